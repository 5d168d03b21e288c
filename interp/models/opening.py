"""Opening a model: the optimized ways are compared with the reference, on a few rows of its data."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.models.batches import NODES
from interp.models.examples import Answer, Examples, from_rows, rows_of
from interp.models.family import Family, family_of
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
from interp.models.positions import EVERYWHERE
from interp.models.suffix import Suffix, final_states_from


class CannotOpen(ValueError):
    """A model of which the hooks give something else than its forward pass."""


@torch.no_grad()
def open_model(model: PreTrainedModel, *splits: Examples, budget: int = 2 * GIB) -> OpenModel:
    """A frozen model with hooks, which is to run some splits.

    An optimized way that differs on the shortest and longest rows of a split is named in a line and not used.

    budget: bytes of memory for the activations of one pass.

    Raises:
        CannotOpen: the hooks give other logits than the model, a block does more than add its updates, or a row's
            answer depends on the rows beside it.
        RunFailed: float16 does not hold the model's numbers.
        ValueError: as family_of.
    """
    few = shortest_and_longest(splits)
    family = family_of(model.config)
    check_parts(model, family)
    opened = OpenModel(model, family, few.tokens.device, budget)
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
    alone = torch.cat([opened.final_states(few[row]) for row in torch.arange(len(few), device=opened.device).split(1)])
    if not alike(opened.logits(alone), logits, opened.dtype):
        raise CannotOpen(f"a '{opened.kind}' model gives other logits with its hooks than without")
    if not alike(opened.final_states(few), alone, opened.dtype):
        raise CannotOpen(f"a '{opened.kind}' model gives a row another answer beside longer rows than alone; its "
                         "rotary factors may depend on the longest row")
    check_sums(opened, few)
    return opened.with_ways(suffix=exact_locations(opened, few, alone), shares=prefixes_are_shared(opened, few))


def shortest_and_longest(splits: Iterable[Examples]) -> Examples:
    """The two shortest rows of each split, one of middle length and the two longest, probed and answered at the end."""
    rows = dict[tuple[int, ...], None]()
    for examples in splits:
        order = examples.lengths.argsort()
        chosen = torch.cat([order[:2], order[len(order) // 2:][:1], order[-2:]])
        rows |= dict.fromkeys(map(tuple, rows_of(examples[chosen])))
        device = examples.tokens.device
    tokens, last = from_rows(list(map(list, rows)), device)
    return Examples(tokens, last, last, {}, Answer(last))


def check_parts(model: PreTrainedModel, family: Family) -> None:
    """Refuse a model that has a block without an attention or an MLP, as hybrids do; raises CannotOpen."""
    for layer, block in enumerate(cast(nn.ModuleList, model.get_submodule(family.blocks))):
        modules = dict(block.named_modules())
        for operation, component in family.components.items():
            if component.module and component.module not in modules:
                raise CannotOpen(f"layer {layer} of a '{model.config.model_type}' model, a {type(block).__name__}, has "
                                 f"no {component.module}, the family's {operation}")


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

    def forward(suffix: Suffix, site: Site, clean: dict[Site, Tensor]) -> Tensor:
        return suffix.above(site, clean)(clean[site], rows)

    trying = model.with_ways(suffix=frozenset(possible))
    sites = [Site(layer, location) for layer in layers for location in possible]
    ways: dict[str, list[Callable[[], Tensor]]] = {location: [] for location in possible}
    for examples in (few, replace(few, probed=few.answering // 2)):
        try:
            suffix = Suffix(trying, examples, sites)
        except Exception:  # a family that keeps keys and values otherwise can fail in any way
            possible = []
            break
        clean = model.activations(examples, {part for site in sites for part in (site, *suffix.needs(site))})
        for site in sites:
            ways[site.location].append(partial(forward, suffix, site, clean))

    def from_block(layer: int) -> Tensor:
        below = Site(layer, RESID_PRE, EVERYWHERE)
        return final_states_from(model, few, layer, model.activations(few, [below])[below])

    ways[RESID_PRE] += [partial(from_block, layer) for layer in layers]
    exact = [location for location in possible if all(agrees(model, way, states) for way in ways[location])]
    for location in ways:
        if location not in exact:
            warn(f"{model.kind}: a forward pass from {location} gives other answers, so each runs the whole model")
    return frozenset(exact)


def prefixes_are_shared(model: OpenModel, few: Examples) -> bool:
    """Whether rows that share what they begin with give what they give apart.

    The rows begin as the longest of `few` and end in any token, so that the last ones are packed far from what they
    begin with: a family may look at how far that is.
    """
    start = max(rows_of(few), key=len)[:-1]
    rows = [[*start, token] for token in range(min(model.model.config.vocab_size, max(2, NODES - len(start))))]
    tokens, last = from_rows(rows, model.device)
    alike_rows = Examples(tokens, last, last, {}, Answer(last))
    sharing = model.with_ways(shares=True)
    compared = torch.tensor([0, len(rows) - 1], device=model.device)
    shares = agrees(model, lambda: sharing.final_states(alike_rows)[compared], model.final_states(alike_rows[compared]))
    if not shares:
        warn(f"{model.kind}: rows that share what they begin with give other answers, so each is run apart")
    return shares
