"""The pairs that methods are compared on: three splits that share no base, at any site, and their control tasks.

If sources are rows of the same data (sentences), they are drawn within the split.
"""

from dataclasses import replace
from itertools import combinations
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from interp.methods.interchange import Pairs, Place, Points
from interp.methods.table import COMPONENT_OF
from interp.models.examples import Answer, Examples
from interp.models.kept import bytes_kept, capture
from interp.models.opened import OpenModel
from interp.models.replay import Replay, replay
from interp.models.sublayers import Sublayer, find_sublayer
from interp.models.tail import run_on_from
from interp.runs.config import BadInput
from interp.runs.settings import Setting
from interp.tasks.question import Question, accuracy, site_of
from interp.tasks.sentences import draw_sources, exchanged_answer

SPLITS = ("fit", "select", "test")


class Splits:
    """The bases, sources and answers of a question at its settings' sites.

    n_fit, n_select: rows of train. only_right: leave out pairs whose base or source the model answers wrongly.

    Raises:
        BadInput: only_right is set, but the right answer of a source cannot be known.
    """

    def __init__(self, question: Question, n_fit: int, n_select: int, only_right: bool):
        self.question, self.only_right = question, only_right
        self.sizes = {"fit": n_fit, "select": n_select}
        self.examples: dict[Any, Examples] = {}  # what bases and sources are rows of; of sentences for all variables
        self.right: dict[Any, Tensor] = {}       # which pairs the model answers rightly
        self.inputs: dict[Examples, dict[tuple, Tensor]] = {}  # what sublayers read
        self.opened: OpenModel | None = None     # whose they are
        self.of_data: dict[tuple, int] | None = None  # the answers of sequences, by their tokens
        if only_right and not question.config.of_sentences:
            for setting in {question.variable(setting): setting for setting in question.settings}.values():
                data = question.data(setting)
                for examples in (data.train, data.tests["test"]):
                    self.own_answer(examples.pairing[0])

    def depends(self, setting: Setting) -> bool:
        """Whether the answer depends on the setting's variable alone."""
        question = self.question
        return question.config.of_sentences and question.variable(setting) == question.answer_variable(setting)

    # ---------------------------------------------------------------------------- pairs

    def pairs(self, setting: Setting, name: str) -> tuple[Pairs, int]:
        """A split's pairs at the setting's site, and how many were left out."""
        opened, variable = self.open(setting), self.question.variable(setting)
        base, source, rows, exchanged = self.paired(setting, name)
        right = self.answered(setting, name, base, source, rows).nonzero().flatten()  # the pairs that are kept
        bases, sources = (Points(self.question.read(setting, own)[at], own, at, own.variables[variable][at])
                          for own, at in ((base, right), (source, rows[right])))
        run_on = run_on_from(opened, base, site_of(setting))
        return Pairs(bases, sources, base.answer[right], exchanged[right], run_on), len(rows) - len(right)

    def paired(self, setting: Setting, name: str) -> tuple[Examples, Examples, Tensor, Answer]:
        """A split's bases, what their sources are rows of, which rows, and what is right after the exchange."""
        data, variable = self.question.data(setting), self.question.variable(setting)
        whole = data.tests["test"] if name == "test" else data.train
        rows = self.rows(whole, name)
        sentences = self.question.config.of_sentences
        base = self.some((self.question.path(setting) if sentences else whole, name), whole, rows)
        if not sentences or self.question.has_own_sources(setting):
            at = torch.arange(len(rows), device=rows.device)
            source, exchanged = whole.pairing
            return base, self.some((source, name), source, rows), at, exchanged[rows]
        drawing = torch.Generator().manual_seed(self.question.config.data_seed)
        grouped = replace(base, groups=self.question.groups(setting, "test" if name == "test" else "train", rows))
        at = draw_sources(grouped, variable, "data_path", drawing)
        return base, base, at, exchanged_answer(base.answer, base.answer[at]) if self.depends(setting) else base.answer

    def rows(self, examples: Examples, name: str) -> Tensor:
        if name == "test":
            return torch.arange(len(examples), device=self.question.device)
        return dict(zip(self.sizes, self.question.portions(examples, *self.sizes.values())))[name]

    def some(self, key: Any, examples: Examples, rows: Tensor) -> Examples:
        """Rows as separate examples: always the same object, so that caches find it."""
        if key not in self.examples:
            self.examples[key] = examples.unpaired(rows)
        return self.examples[key]

    def open(self, setting: Setting) -> OpenModel:
        opened = self.question.open(setting)
        if opened is not self.opened:
            self.opened = opened
            self.right.clear()
            self.inputs.clear()
        return opened

    @torch.no_grad()
    def answered(self, setting: Setting, name: str, base: Examples, source: Examples, rows: Tensor) -> Tensor:
        """Which pairs count: with only_right, those whose base and source the model answers rightly, (n,)."""
        if not self.only_right:
            return torch.ones_like(rows, dtype=torch.bool)
        key = (name, self.question.variable(setting))
        if key not in self.right:
            def right(examples: Examples, answer: Answer) -> Tensor:
                return self.open(setting).is_right(self.question.answers(setting, examples), answer)

            own = source.answer if self.question.config.of_sentences else self.own_answer(source)
            self.right[key] = right(base, base.answer) & right(source, own)[rows]
            if not self.right[key].any():
                raise BadInput("only_right: the model answers none of the pairs rightly; set it to false to keep those "
                               "that it answers wrongly.")
        return self.right[key]

    @torch.no_grad()
    def model_accuracy(self, setting: Setting) -> float:
        """How often the model answers the bases of all test pairs rightly, without intervention."""
        base, *_ = self.paired(setting, "test")
        return accuracy(self.open(setting), self.question.answers(setting, base), base.answer)

    def own_answer(self, source: Examples) -> Answer:
        """The right answers of sequences that are sources; their data give only the answer after the exchange.

        Raises:
            BadInput: a sequence is neither in train nor in test.
        """
        if self.of_data is None:
            data = self.question.data(self.question.settings[0])
            self.of_data = {tuple(row): answer for examples in (data.train, data.tests["test"])
                            for row, answer in zip(examples.tokens.tolist(), examples.answer.right.tolist())}
        found = [self.of_data.get(tuple(row)) for row in source.tokens.tolist()]
        if None in found:
            row = " ".join(map(str, source.tokens[found.index(None)].tolist()))
            raise BadInput(f"only_right: the source '{row}' is in neither train_data_path nor test_data_path, so "
                           "that its answer is not known; set it to false.")
        return Answer(torch.tensor(found, device=source.tokens.device))

    def sharing(self, test: Pairs) -> Pairs:
        """The same bases, each paired with another input that has the same value of the variable, if there is one."""
        drawing, values = torch.Generator().manual_seed(self.question.config.data_seed), test.base.values.cpu()
        inputs = test.base.examples.inputs[test.base.rows].cpu()
        partners = torch.full_like(values, -1)
        for value in values.unique():
            own = (values == value).nonzero().flatten()
            first = {number: row for row, number in zip(reversed(own.tolist()), reversed(inputs[own].tolist()))}
            if len(first) > 1:  # a shuffled ring of distinct inputs: nobody is his own partner
                others = torch.tensor(sorted(first.values()))
                ring = others[torch.randperm(len(others), generator=drawing)]
                partner = dict(zip(inputs[ring].tolist(), ring.roll(1).tolist()))
                partners[own] = torch.tensor([partner[number] for number in inputs[own].tolist()])
        some = (partners >= 0).nonzero().flatten().to(test.base.rows.device)
        return replace(test[some], source=test.base[partners.to(some.device)[some]])

    def clean(self, setting: Setting, pairs: Pairs) -> Tensor:
        """The states of the bases without intervention, (n, d_model)."""
        return self.question.answers(setting, pairs.base.examples)[pairs.base.rows]

    # ---------------------------------------------------------------------------- places

    def place(self, setting: Setting) -> Place:
        """Where a setting's methods are fitted."""
        opened, site = self.open(setting), site_of(setting)
        sublayer = find_sublayer(opened, site.layer, COMPONENT_OF[site.location])
        replays: dict[Examples, Replay] = {}

        def inputs(examples: Examples) -> Tensor:
            return self.read_by(setting, examples, sublayer)

        def replayed(examples: Examples) -> Replay:
            if examples not in replays:
                replays[examples] = replay(opened, sublayer, examples, inputs(examples))
            return replays[examples]

        splits = {name: self.pairs(setting, name)[0] for name in SPLITS}
        if len(splits["fit"].base.values.unique()) < 2 or not len(splits["select"]):
            raise BadInput(f"variable_list: of '{self.question.variable(setting)}' {len(splits['fit'])} fit and "
                           f"{len(splits['select'])} select pairs are left, with fewer than two values to tell apart; "
                           "see only_right, n_fit and n_select.")
        n_classes = 1 + max(int(values.max()) for own in splits.values()
                            for values in (own.base.values, own.source.values) if len(values))
        return Place(opened, site, n_classes, splits["fit"], splits["select"], sublayer, replayed, inputs)

    def read_by(self, setting: Setting, examples: Examples, sublayer: Sublayer) -> Tensor:
        """What a sublayer reads; one pass keeps it also for sublayers of coming settings, as far as there is room."""
        place = (sublayer.layer, sublayer.operation)
        if place not in self.inputs.get(examples, {}):
            opened = self.open(setting)
            coming = dict.fromkeys((site.layer, COMPONENT_OF[site.location])
                                   for site in self.question.sites(setting, examples))
            each = len(SPLITS) * bytes_kept(opened, examples, ["attn"])
            most = opened.room.portion(each, len(coming), opened.device)
            self.inputs[examples] = capture(opened, examples, [
                find_sublayer(opened, *own) for own in list(coming)[:most]]).inputs
        return self.inputs[examples][place]

    # -------------------------------------------------------------------------- controls

    def controls(self, setting: Setting, place: Place, test: Pairs) -> dict[str, tuple[Place, Pairs]]:
        """For what a method sees, a place where that means nothing, and the test pairs to match.

        Without `variable` if no one or two words decide the values of a split: then there is no such task.
        """
        drawing = torch.Generator().manual_seed(self.question.config.data_seed)
        splits = [place.fit, place.select, test]
        parts = [points for pairs in splits for points in (pairs.base, pairs.source)]
        controls = {}
        dealt = dealt_anew([row for points in parts for row in words_of(points)],
                           torch.cat([points.values for points in parts]), drawing)
        if dealt is None:
            print(f"{self.question.variable(setting)}: no one or two words decide its value, so that there is no "
                  "control task.")
        else:
            dealt = dealt.split(list(map(len, parts)))
            fit, select, own = (replace(pairs, base=replace(pairs.base, values=base), source=replace(
                pairs.source, values=source)) for pairs, base, source in zip(splits, dealt[::2], dealt[1::2]))
            controls["variable"] = replace(place, fit=fit, select=select, found={}), own

        arbitrary = arbitrary_tokens(splits, place.opened.model.config.vocab_size, drawing)
        fit, select, own = (replace(pairs, answer=renamed(pairs.answer, arbitrary), exchanged=renamed(
            pairs.exchanged, arbitrary)) for pairs in splits)
        return controls | {"answers": (replace(place, fit=fit, select=select, found={}), own)}


def words_of(points: Points) -> list[list[str]]:
    """The words of some rows, or the numbers of sequences."""
    rows = points.rows.tolist()
    if points.examples.texts:
        return [points.examples.texts[row].split() for row in rows]
    return [list(map(str, row)) for row in points.examples.tokens[points.rows].tolist()]


def dealt_anew(rows: list[list[str]], values: Tensor, generator: torch.Generator) -> Tensor | None:
    """A control task (arXiv 1909.03368): values assigned at random to the words that decide them, (n,).

    These are the words at one or two places, counted from the front or from the back, that determine the value; None
    if no two do. Each word gets the value of another one, so that values are as frequent among them as before.
    """
    shortest = min(map(len, rows))
    places = [*range(shortest), *range(-shortest, 0)]
    table = pd.DataFrame([[row[place] for place in places] for row in rows], columns=places).assign(
        value=values.tolist())
    for chosen in (*combinations(places, 1), *combinations(places, 2)):
        kinds = table.groupby(list(chosen), sort=False)["value"]
        if (kinds.nunique() == 1).all():
            break
    else:
        return None
    of_kinds = torch.tensor(kinds.first().tolist())
    dealt = of_kinds[torch.randperm(len(of_kinds), generator=generator)]
    return dealt[torch.tensor(kinds.ngroup().tolist())].to(values.device)


def arbitrary_tokens(splits: list[Pairs], vocabulary: int, generator: torch.Generator) -> dict[int, int]:
    """For each answer an arbitrary token of the vocabulary, or, if all answers are possible, another answer."""
    answers = [answer for pairs in splits for answer in (pairs.answer, pairs.exchanged)]
    tokens = torch.cat([own for answer in answers for own in (answer.right, answer.wrong) if own is not None])
    tokens = tokens.unique().cpu()
    if answers[0].wrong is None:
        ring = tokens[torch.randperm(len(tokens), generator=generator)]
        return dict(zip(ring.tolist(), ring.roll(1).tolist()))
    others = torch.randperm(vocabulary, generator=generator)
    others = others[~torch.isin(others, tokens)][:len(tokens)]
    return dict(zip(tokens.tolist(), others.tolist()))


def renamed(answer: Answer, tokens: dict[int, int]) -> Answer:
    def part(own: Tensor) -> Tensor:
        return torch.tensor([tokens[token] for token in own.tolist()], dtype=own.dtype, device=own.device)

    return Answer(part(answer.right), None if answer.wrong is None else part(answer.wrong))
