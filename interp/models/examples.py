"""What a model is shown: rows of tokens, a variable at a position, the right answer; and pairs of such rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from interp.models.positions import FIRST, LAST, PROBED, Position


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
    positions: further positions by name, (rows,) each, -1 in a row that has none of this name.
    """

    tokens: Tensor
    probed: Tensor
    answering: Tensor
    variables: dict[str, Tensor]
    answer: Answer
    groups: dict[str, Tensor] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    positions: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Tensor) -> "Examples":
        groups = {name: torch.isin(rows, members).nonzero().flatten() for name, members in self.groups.items()}
        return Examples(self.tokens[rows], self.probed[rows], self.answering[rows],
                        {name: values[rows] for name, values in self.variables.items()}, self.answer[rows],
                        {name: members for name, members in groups.items() if len(members)},
                        [self.texts[row] for row in rows.tolist()] if self.texts else [],
                        {name: at[rows] for name, at in self.positions.items()})

    def where(self, position: Position) -> Tensor:
        """Which token a position is in each row, (rows,); -1 in a row that has none.

        `last` is the one after which the answer comes, `first` the first one but for a prefix, `probed` the probed one.
        """
        if position in (LAST, PROBED):
            return self.answering if position == LAST else self.probed
        if isinstance(position, str):
            return self.positions.get(position, torch.full_like(self.answering, 0 if position == FIRST else -1))
        at = self.answering + 1 + position if position < 0 else torch.full_like(self.answering, position)
        return at.where((at >= 0) & (at <= self.answering), -1)

    def rows_with(self, position: Position) -> Tensor:
        """The numbers of the rows that have a position."""
        return (self.where(position) >= 0).nonzero().flatten()

    def probing(self, position: Position) -> "Examples":
        """The rows that have a position, probed there."""
        rows, probed = self.rows_with(position), replace(self, probed=self.where(position))
        return probed if len(rows) == len(self) else probed[rows]

    @property
    def lengths(self) -> Tensor:
        """How many tokens each row has without padding, (rows,)."""
        return self.probed.maximum(self.answering) + 1

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

    def rows_with(self, position: Position) -> Tensor:
        """The numbers of the pairs of which both have a position."""
        return ((self.base.where(position) >= 0) & (self.source.where(position) >= 0)).nonzero().flatten()

    def probing(self, position: Position) -> "Pairs":
        """The pairs of which both have a position, probed there."""
        rows = self.rows_with(position)
        kept = self if len(rows) == len(self) else self[rows]
        return replace(kept, base=kept.base.probing(position), source=kept.source.probing(position))

    def both(self) -> Examples:
        """All bases, then all sources: what a model reads of them."""
        return stacked([self.base, self.source])


def distinct(examples: Examples, positions: Iterable[Position]) -> tuple[Examples, Tensor]:
    """The rows that differ in their tokens or in where some positions are, and which of these each row is, (rows,)."""
    keys = torch.stack([examples.inputs(), *map(examples.where, positions)], dim=1)
    _, which = keys.unique(dim=0, return_inverse=True)
    rows = torch.arange(len(which), device=which.device)
    first = torch.zeros(int(which.max()) + 1, dtype=torch.long, device=which.device).scatter_reduce(
        0, which, rows, "amin", include_self=False)
    return examples[first], which


def stacked(parts: Sequence[Examples]) -> Examples:
    """The rows of several splits one below the other, without variables and groups: what a model reads of them."""
    length = max(part.tokens.shape[1] for part in parts)
    tokens = torch.cat([F.pad(part.tokens, (0, length - part.tokens.shape[1])) for part in parts])
    probed, answering, right = (torch.cat(values) for values in zip(*(
        (part.probed, part.answering, part.answer.right) for part in parts)))
    names = dict.fromkeys(name for part in parts for name in part.positions)
    return Examples(tokens, probed, answering, {}, Answer(right), texts=[text for part in parts for text in part.texts],
                    positions={name: torch.cat([part.where(name) for part in parts]) for name in names})


def rows_of(examples: Examples) -> list[list[int]]:
    """The token ids of each row, without padding."""
    return [row[:length] for row, length in zip(examples.tokens.tolist(), examples.lengths.tolist())]


def from_rows(rows: list[list[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Rows of token ids of any lengths as (rows, T), filled up with zeros, and their last positions, (rows,)."""
    tokens = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return tokens.to(device), torch.tensor([len(row) - 1 for row in rows], device=device)
