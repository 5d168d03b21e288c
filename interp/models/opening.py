"""Opening a model: the optimized ways are compared with the reference, on a few rows of its data."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interp.models.batches import NODES
from interp.models.examples import Answer, Examples, from_rows, rows_of
from interp.models.family import family_of
from interp.models.open_model import (
    ATTN_OUT,
    GIB,
    MLP_OUT,
    RESID_MID,
    RESID_POST,
    RESID_PRE,
    OpenModel,
    Site,
    alike,
    replaced,
    warn,
)
from interp.models.suffix import Suffix, final_states_from

ROWS_COMPARED = 4  # when an optimized way is compared with the reference


class CannotOpen(ValueError):
    """A model of which the hooks give something else than its forward pass."""


@torch.no_grad()
def open_model(model: PreTrainedModel, examples: Examples, budget: int = 2 * GIB) -> OpenModel:
    """A frozen model with hooks. An optimized way that differs on the examples is named in a line and not used.

    budget: bytes of memory for the activations of one pass.

    Raises:
        CannotOpen: the hooks give other logits than the model, or a block does more than add its updates.
        RunFailed: float16 does not hold the model's numbers.
        ValueError: as family_of.
    """
    order = examples.lengths.argsort()  # the shortest and the longest rows are compared
    few = examples[torch.cat([order[:ROWS_COMPARED // 2], order[-ROWS_COMPARED // 2:]]).unique()]
    few = replace(few, probed=few.answering)
    opened = OpenModel(model, family_of(model.config), examples.tokens.device, budget)
    given: list[Tensor] = []

    def head(states: Tensor) -> Tensor:
        """In float32: logits of 16 bits, which may be far from 0, would differ by their rounding."""
        given.append(opened.head(states))
        return given[-1]

    with replaced([opened.unembed], head):
        logits = opened.finite(opened.leave(torch.cat([
            model(torch.tensor([row], device=opened.device), use_cache=False).logits[:, -1] for row in rows_of(few)])))
    direct = bool(given) and alike(opened.leave(torch.cat([part[:, -1] for part in given])), logits)
    opened = opened.with_ways(direct=direct)
    states = opened.final_states(few)
    if not agrees(opened, lambda: opened.logits(states), logits):
        raise CannotOpen(f"a '{opened.kind}' model gives other logits with its hooks than without")
    check_sums(opened, few)
    return opened.with_ways(suffix=exact_locations(opened, few, states), shares=prefixes_are_shared(opened, few))


def agrees(model: OpenModel, compute: Callable[[], Tensor], wanted: Tensor) -> bool:
    """Whether a way of computing gives the wanted result; an exception counts as no."""
    try:
        return alike(compute(), wanted, model.dtype)
    except Exception:  # a family with other arguments can fail in any way
        return False


def check_sums(model: OpenModel, few: Examples) -> None:
    """Refuse a model whose blocks add more to the residual stream than their updates; raises CannotOpen."""
    locations, rows = (RESID_PRE, ATTN_OUT, MLP_OUT, RESID_POST), torch.arange(len(few), device=model.device)
    layers = range(len(model.blocks))
    read = model.read(few.tokens, [Site(layer, location) for layer in layers for location in locations])
    for layer in layers:
        pre, attention, mlp, post = (read[Site(layer, location)][rows, few.probed] for location in locations)
        if not alike(pre + attention + mlp, post, model.dtype):
            raise CannotOpen(f"layer {layer} of a '{model.kind}' model gives more than what enters and the updates of "
                             "its attention and its MLP")


def exact_locations(model: OpenModel, few: Examples, states: Tensor) -> frozenset[str]:
    """From where the suffix forward gives the final hidden states that the reference gave, (rows, d_model)."""
    possible = [RESID_PRE, RESID_POST] + [RESID_MID] * (not model.family.parallel)
    layers, rows = {(len(model.blocks) - 1) // 2, len(model.blocks) - 1}, torch.arange(len(few), device=model.device)
    below = [Site(layer, RESID_PRE) for layer in layers]
    read = model.activations(few, [Site(layer, location) for layer in layers for location in possible[1:]], below)

    def forward(site: Site) -> Tensor:
        if site in below:
            return final_states_from(model, few, site.layer, read[site])
        return Suffix(model, few, site.layer).above(site)(read[site], rows)

    exact = [location for location in possible
             if all(agrees(model, partial(forward, Site(layer, location)), states) for layer in layers)]
    for location in possible:
        if location not in exact:
            warn(f"{model.kind}: a forward pass from {location} gives other answers, so each runs the whole model")
    return frozenset(exact)




def prefixes_are_shared(model: OpenModel, few: Examples) -> bool:
    """Whether rows that share what they begin with give what they give apart.

    The rows begin as the longest of `few` and end in any token, so that the last ones are packed far from what they
    begin with: a family may look at how far that is.
    """
    start = max(rows_of(few), key=len)[:-1]
    rows = [[*start, token] for token in range(min(model.model.config.vocab_size, NODES - len(start)))]
    tokens, last = from_rows(rows, model.device)
    alike_rows = Examples(tokens, last, last, {}, Answer(last))
    sharing = model.with_ways(shares=True)
    compared = torch.tensor([0, len(rows) - 1], device=model.device)
    shares = agrees(model, lambda: sharing.final_states(alike_rows)[compared], model.final_states(alike_rows[compared]))
    if not shares:
        warn(f"{model.kind}: rows that share what they begin with give other answers, so each is run apart")
    return shares
