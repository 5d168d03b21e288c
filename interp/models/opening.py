"""Opening a model: the optimized ways are compared with the reference, on a few rows of its data."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interp.models.examples import Examples, rows_of
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
from interp.models.suffix import Suffix, start_at

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
    family, few = family_of(model.config), compared_rows(examples)
    plain = OpenModel(model, family, examples.tokens.device, budget)
    given: list[Tensor] = []

    def head(states: Tensor) -> Tensor:
        """In float32: logits of 16 bits, which may be far from 0, would differ by their own rounding."""
        given.append(plain.head(states))
        return given[-1]

    with replaced([plain.unembed], head):
        logits = plain.leave(torch.cat([
            model(torch.tensor([row], device=plain.device), use_cache=False).logits[:, -1] for row in rows_of(few)]))
    plain.finite(logits)
    states = plain.final_states(few)
    unchanged = alike(plain.leave(torch.cat([part[:, -1] for part in given])), logits) if given else True
    direct = unchanged and agrees(plain, lambda: plain.logits(states), logits)
    plain = OpenModel(model, family, plain.device, budget, direct)
    if not direct and not agrees(plain, lambda: plain.logits(states), logits):
        raise CannotOpen(f"a '{model.config.model_type}' model gives other logits with its hooks than without")
    entering = check_sums(plain, few)
    return OpenModel(model, family, plain.device, budget, direct, exact_locations(plain, few, states, entering))


def compared_rows(examples: Examples) -> Examples:
    """The shortest and the longest rows, probed where they are answered."""
    order = examples.lengths.argsort()
    few = examples[torch.cat([order[:ROWS_COMPARED // 2], order[-ROWS_COMPARED // 2:]]).unique()]
    return replace(few, probed=few.answering)


def agrees(model: OpenModel, compute: Callable[[], Tensor], wanted: Tensor) -> bool:
    """Whether a way of computing gives the wanted result; an exception counts as no."""
    try:
        return alike(compute(), wanted, model.dtype)
    except Exception:  # a family with other arguments can fail in any way
        return False


def check_sums(model: OpenModel, few: Examples) -> Tensor:
    """Every block adds its sublayers' updates to the residual stream, and nothing else; raises CannotOpen.

    Returns what enters the middle block, (rows, T, d_model).
    """
    middle = Site(len(model.blocks) // 2, RESID_PRE)
    sites = {(layer, location): Site(layer, location) for layer in range(len(model.blocks))
             for location in (RESID_PRE, ATTN_OUT, MLP_OUT, RESID_POST)}
    read = model.read(few.tokens, sites.values())
    rows = torch.arange(len(few), device=model.device)
    for layer in range(len(model.blocks)):
        pre, attention, mlp, post = (read[sites[layer, location]][rows, few.probed]
                                     for location in (RESID_PRE, ATTN_OUT, MLP_OUT, RESID_POST))
        if not alike(pre + attention + mlp, post, model.dtype):
            raise CannotOpen(f"layer {layer} of a '{model.kind}' model gives more than what enters and the updates of "
                             "its attention and its MLP")
    return read[middle]


def exact_locations(plain: OpenModel, few: Examples, states: Tensor, entering: Tensor) -> frozenset[str]:
    """Where the suffix forward gives what the reference gives: RESID_PRE for a start at a block.

    entering: the residual stream at the middle block, (rows, T, d_model). states: final hidden states, (rows, d_model).
    """
    middle, exact = len(plain.blocks) // 2, set[str]()
    starting = OpenModel(plain.model, plain.family, plain.device, plain.budget, plain.direct, frozenset([RESID_PRE]))
    if agrees(plain, lambda: start_at(starting, few, middle, entering)(), states):
        exact.add(RESID_PRE)
    rows = torch.arange(len(few), device=plain.device).flip(0)[:ROWS_COMPARED - 1]
    for location in (RESID_POST,) if plain.family.parallel else (RESID_MID, RESID_POST):
        sites = [Site(layer, location) for layer in {middle - 1, len(plain.blocks) - 1} - {-1}]
        if all(suffix_agrees(plain, few, site, rows) for site in sites):
            exact.add(location)
    for location in {RESID_PRE, RESID_POST, *([] if plain.family.parallel else [RESID_MID])} - exact:
        warn(f"{plain.kind}: a forward pass from {location} gives other answers, so each runs the whole model")
    return frozenset(exact)


def suffix_agrees(plain: OpenModel, few: Examples, site: Site, rows: Tensor) -> bool:
    """Whether the suffix forward of some rows with the activations of others gives what the patched model gives."""
    moved = plain.activations(few, [site])[site][:len(rows)]
    return agrees(plain, lambda: Suffix(plain, few, site.layer).above(site)(moved, rows),
                  plain.patched(few, site)(moved, rows))
