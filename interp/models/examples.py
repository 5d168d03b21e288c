"""What a model is shown: rows of tokens, a variable at a position, the right answer; and pairs of such rows."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Answer:
    """What counts as right after each row.

    right: (rows,) token ids. wrong: (rows,) token ids, and the right one must be strictly likelier, so that a tie is
    wrong; or None, and the right one must be the likeliest of all.
    """

    right: Tensor
    wrong: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> "Answer":
        return Answer(self.right[rows], None if self.wrong is None else self.wrong[rows])


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows of one split.

    tokens: (rows, T) token ids; shorter rows are padded at their end, which does not affect a causal model.
    probed: (rows,) the position at which variables are looked for.
    answering: (rows,) the position after which the answer comes; a row ends at the later of the two.
    variables: values by name, (rows,) each.
    answer: what is right.
    groups: evaluation subsets, row numbers by name; without any, all rows are one group.
    texts: the rows as words, for sentences.
    """

    tokens: Tensor
    probed: Tensor
    answering: Tensor
    variables: dict[str, Tensor]
    answer: Answer
    groups: dict[str, Tensor] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Tensor) -> "Examples":
        groups = {name: torch.isin(rows, members).nonzero().flatten() for name, members in self.groups.items()}
        return Examples(self.tokens[rows], self.probed[rows], self.answering[rows],
                        {name: values[rows] for name, values in self.variables.items()}, self.answer[rows],
                        {name: members for name, members in groups.items() if len(members)},
                        [self.texts[row] for row in rows.tolist()] if self.texts else [])

    @property
    def lengths(self) -> Tensor:
        """How many tokens each row has without padding, (rows,)."""
        return self.probed.maximum(self.answering) + 1

    @property
    def at_answer(self) -> bool:
        """Whether the probed position is the answering one in every row."""
        return bool((self.probed == self.answering).all())

    def inputs(self) -> Tensor:
        """For each row the number of the first one with the same tokens, probed at the same position, (rows,)."""
        first: dict[tuple[int, ...], int] = {}
        rows = zip(self.probed.tolist(), rows_of(self))
        return torch.tensor([first.setdefault((position, *row), number) for number, (position, row) in enumerate(rows)],
                            device=self.tokens.device)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Bases and sources row by row, and what is right after the interchange of a variable between the two."""

    base: Examples
    source: Examples
    counterfactual: Answer

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, rows: Tensor) -> "Pairs":
        return Pairs(self.base[rows], self.source[rows], self.counterfactual[rows])

    def changed(self) -> Tensor:
        """The numbers of the pairs whose answer the interchange changes, (changed,)."""
        return (self.base.answer.right != self.counterfactual.right).nonzero().flatten()

    def both(self) -> Examples:
        """All bases, then all sources: what a model reads of them."""
        length = max(self.base.tokens.shape[1], self.source.tokens.shape[1])
        parts = self.base, self.source
        tokens = torch.cat([F.pad(part.tokens, (0, length - part.tokens.shape[1])) for part in parts])
        probed, answering, right = (torch.cat(values) for values in zip(*(
            (part.probed, part.answering, part.answer.right) for part in parts)))
        return Examples(tokens, probed, answering, {}, Answer(right), texts=self.base.texts + self.source.texts)


def rows_of(examples: Examples) -> list[list[int]]:
    """The token ids of each row, without padding."""
    return [row[:length] for row, length in zip(examples.tokens.tolist(), examples.lengths.tolist())]


def from_rows(rows: list[list[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Rows of token ids of any lengths as (rows, T), filled up with zeros, and their last positions, (rows,)."""
    tokens = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return tokens.to(device), torch.tensor([len(row) - 1 for row in rows], device=device)
