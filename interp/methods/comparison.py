"""The pairs that methods are compared on: three splits that share no base, and their controls.

Sources that are rows of the same data (sentences) are drawn within the split.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from interp.methods.circuits import find_circuit
from interp.methods.interchange.base import Pairs, SiteUnderStudy, SplitAtSite
from interp.methods.masks import Circuit
from interp.methods.optimize import even_batch
from interp.methods.table import COMPONENT_OF
from interp.models.examples import Answer
from interp.models.examples import Pairs as ExamplePairs
from interp.models.family import ATTENTION
from interp.models.open_model import RESID_PRE, ForwardFrom, OpenModel, Site
from interp.models.positions import EVERYWHERE
from interp.models.sublayers import find_sublayer
from interp.models.suffix import forward_from
from interp.runs.config import BadInput
from interp.tasks.sentences import drawn_pairs
from interp.tasks.study import Data, portions


def split_pairs(data: Data, variable: str, n_fit: int, n_select: int, data_seed: int) -> dict[str, ExamplePairs]:
    """The base-source pairs of fit, select and test."""
    fit, select = portions(data.train, (n_fit, n_select), data_seed)
    if data.from_file:
        train, test = (data.pairs[name] for name in ("train", "test"))
        return {"fit": train[fit], "select": train[select], "test": test}
    bases = {"fit": data.train[fit], "select": data.train[select], "test": data.tests["test"]}
    return {name: drawn_pairs(base, variable, data.changes, "data_path", data_seed) for name, base in bases.items()}


def with_source_answers(data: Data) -> Data:
    """Sequences with the answers of their sources, which files do not give; raises BadInput: one is in neither file."""
    known = {tuple(row): answer for examples in (data.train, data.tests["test"])
             for row, answer in zip(examples.tokens.tolist(), examples.answer.right.tolist())}
    pairs = {}
    for name, given in data.pairs.items():
        answers = [known.get(tuple(row)) for row in given.source.tokens.tolist()]
        if None in answers:
            row = " ".join(map(str, given.source.tokens[answers.index(None)].tolist()))
            raise BadInput(f"only_right: the source '{row}' is in neither train_data_path nor test_data_path, so that "
                           "its answer is not known; set it to false.")
        right = Answer(torch.tensor(answers, device=given.source.tokens.device))
        pairs[name] = replace(given, source=replace(given.source, answer=right))
    return replace(data, pairs=pairs)


@dataclass(frozen=True)
class Split:
    """The pairs of a split that count.

    clean: the bases' final hidden states without intervention, (n, d_model). accuracy: how often the model answers all
    bases correctly, those of excluded pairs too. n_excluded: pairs whose base or source the model answers wrongly.
    n_unchanged: others, whose counterfactual answer is the base's. base_rows, source_rows: the pairs' row numbers among
    all of the split, (n,).
    """

    pairs: ExamplePairs
    clean: Tensor
    accuracy: float
    n_excluded: int
    n_unchanged: int
    base_rows: Tensor
    source_rows: Tensor

    def of(self, rows: Tensor) -> "Split":
        """Some of the pairs."""
        return replace(self, pairs=self.pairs[rows], clean=self.clean[rows], base_rows=self.base_rows[rows],
                       source_rows=self.source_rows[rows])


@torch.no_grad()
def answered(model: OpenModel, pairs: ExamplePairs, only_right: bool) -> Split:
    """The pairs of a split that count; raises BadInput where none is left.

    With only_right the model must answer base and source correctly. A pair whose answer the interchange leaves as it is
    counts only if that is so of all, as where the answer does not depend on the variable.
    """
    states = model.final_states(pairs.base)
    right = model.is_right(states, pairs.base.answer)  # (n,)
    accuracy, rows = right.double().mean().item(), torch.arange(len(pairs), device=right.device)
    # a source that is among the bases has the base's row number, any other that of its pair
    inputs = pairs.both().inputs()[len(pairs):]
    sources = torch.where(inputs < len(pairs), inputs, rows) if pairs.base.texts else rows
    if only_right:
        right &= model.is_right(model.final_states(pairs.source), pairs.source.answer)
    kept = right if only_right else torch.ones_like(right)
    changed = pairs.counterfactual.right != pairs.base.answer.right
    counts = (kept & changed if changed.any() else kept).nonzero().flatten()
    if not len(counts):
        raise BadInput("only_right: the model answers none of the pairs correctly whose answer should change; set it "
                       "to false to keep them all.")
    excluded = len(pairs) - int(kept.sum())
    return Split(pairs[counts], states[counts], accuracy, excluded, len(pairs) - excluded - len(counts), counts,
                 sources[counts])


# ------------------------------------------------------------------------------ pairs at a site

def pairs_at_site(model: OpenModel, pairs: ExamplePairs, variable: str, site: Site, activations: Tensor,
                  forward: ForwardFrom, entering: Tensor | None) -> Pairs:
    """The pairs of a split at the site. activations, entering: of the bases, then of the sources; see SplitAtSite."""
    writer = COMPONENT_OF.get(site.location, ATTENTION)  # none writes to resid_pre, where no method masks one
    sublayer = find_sublayer(model, site.layer, writer, partial=entering is None)
    split = SplitAtSite(model, pairs.both(), activations, forward, sublayer, entering)
    rows = torch.arange(len(pairs), device=activations.device)
    return Pairs(split, rows, len(pairs) + rows, pairs.base.variables[variable], pairs.source.variables[variable],
                 pairs.base.answer, pairs.counterfactual)


def sharing_pairs(test: Pairs, data_seed: int) -> Pairs:
    """The same bases, each paired with another input that has the same value of the variable, if there is one."""
    drawing, values = torch.Generator().manual_seed(data_seed), test.base_values.cpu()
    inputs = test.split.examples.inputs()[test.base].cpu()
    partners = torch.full_like(values, -1)
    for value in values.unique():
        rows = (values == value).nonzero().flatten()
        first = {number: row for row, number in zip(reversed(rows.tolist()), reversed(inputs[rows].tolist()))}
        if len(first) > 1:  # a shuffled ring of distinct inputs: no input is paired with itself
            others = torch.tensor(sorted(first.values()))
            ring = others[torch.randperm(len(others), generator=drawing)]
            partner = dict(zip(inputs[ring].tolist(), ring.roll(1).tolist()))
            partners[rows] = torch.tensor([partner[number] for number in inputs[rows].tolist()])
    paired = (partners >= 0).nonzero().flatten().to(test.base.device)
    others = partners.to(test.base.device)[paired]
    return replace(test[paired], source=test.base[others], source_values=test.base_values[others])


def site_under_study(fit: Pairs, select: Pairs, test: Pairs, variable: str) -> SiteUnderStudy:
    """Where methods are fitted; raises BadInput where too few pairs are left."""
    if len(fit.base_values.unique()) < 2 or not len(select):
        raise BadInput(f"variable_list: of '{variable}' {len(fit)} fit and {len(select)} select pairs are left, with "
                       "fewer than two values to tell apart; see only_right, n_fit and n_select.")
    values = torch.cat([part for pairs in (fit, select, test) for part in (pairs.base_values, pairs.source_values)])
    return SiteUnderStudy(fit.split.model, 1 + int(values.max()), fit, select, circuit_finder(fit))


def study_site(model: OpenModel, data: Data, site: Site, variable: str, n_fit: int = 2500, n_select: int = 1000,
               data_seed: int = 0) -> tuple[SiteUnderStudy, Pairs]:
    """A site of a model where methods are fitted, and the test pairs to measure them on, for notebooks."""
    pairs, below = {}, Site(site.layer, RESID_PRE, EVERYWHERE)
    for name, split in split_pairs(data, variable, n_fit, n_select, data_seed).items():
        split = split.probing(site.position)
        read = model.activations(split.both(), [site, below])
        forward = forward_from(model, split.base, [site])[site]
        pairs[name] = pairs_at_site(model, split, variable, site, read[site], forward, read[below])
    return site_under_study(pairs["fit"], pairs["select"], pairs["test"], variable), pairs["test"]


def circuit_finder(fit: Pairs) -> Callable[..., Circuit]:
    """Circuit probing on the bases of the fit pairs; methods that ask for the same options share the circuit."""
    return cache(lambda seed, **training: find_circuit(
        fit.split.sublayer, fit.split.replay, fit.base_values, batch_size=even_batch(len(fit), 500), mask_init=0.0,
        max_temp=200, generator=torch.Generator().manual_seed(seed), **training))  # the bases are the first rows


def permuted_site(site: SiteUnderStudy, data_seed: int) -> SiteUnderStudy:
    """The control: the same site with the variable's values permuted over the fit pairs, where they mean nothing."""
    order = torch.randperm(len(site.fit), generator=torch.Generator().manual_seed(data_seed)).to(site.fit.base.device)
    fit = replace(site.fit, base_values=site.fit.base_values[order], source_values=site.fit.source_values[order])
    return replace(site, fit=fit, find_circuit=circuit_finder(fit))
