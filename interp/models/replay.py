"""A frozen sublayer replayed on cached activations through neuron masks: a training step of circuit probing.

Everything below the sublayer's block is frozen, so what enters the block is computed once.

ReplayedBlock       the block on what enters it, up to the sublayer: exact in every family
ReplayedMLP         the MLP's modules at the probed position
ReplayedAttention   attention written out (attention.py)

The last two are used where they agree with the first on a few rows.
"""

from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from interp.models.attention import MaskedAttention
from interp.models.examples import Examples
from interp.models.family import ATTENTION
from interp.models.open_model import RESID_PRE, Enough, OpenModel, alike, hooked
from interp.models.sublayers import Masks, Sublayer, find_sublayer, masked, random_masks
from interp.models.suffix import mlp_update, run_above


class Replay(Protocol):
    """A sublayer on fixed rows, ready to be run through masks."""

    def update(self, masks: Masks, rows: Tensor) -> Tensor:
        """What the masked sublayer adds to the residual stream where some rows are probed: (batch, d_model)."""


class ReplayedBlock:
    """entering: the residual stream that enters the block, (rows, T, d_model)."""

    def __init__(self, model: OpenModel, sublayer: Sublayer, examples: Examples, entering: Tensor):
        self.model, self.sublayer, self.examples, self.entering = model, sublayer, examples, entering

    def update(self, masks: Masks, rows: Tensor) -> Tensor:
        model, tokens, found = self.model, self.examples.tokens[rows], list[Tensor]()

        def take(update: Tensor) -> None:
            update = model.leave(update.view(*tokens.shape, -1))
            found.append(update[torch.arange(len(rows), device=rows.device), self.examples.probed[rows]])
            raise Enough

        # in this order: where the last map's output is the update, it is taken behind its mask
        with masked(self.sublayer, masks), hooked(model.hook(self.sublayer.site, take)), suppress(Enough):
            if RESID_PRE in model.suffix:
                run_above(model, self.sublayer.layer, self.entering[rows], tokens)
            else:
                model.forward(tokens)
        return found[0]


class ReplayedMLP:
    """Raises ValueError where the block calls the MLP's maps itself. entering: as of ReplayedBlock."""

    def __init__(self, model: OpenModel, sublayer: Sublayer, examples: Examples, entering: Tensor):
        self.model, self.sublayer, self.run = model, sublayer, mlp_update(model, sublayer.layer)
        rows = torch.arange(len(examples), device=entering.device)
        stream = entering[rows, examples.probed]  # (rows, d_model)
        if not model.family.parallel:
            attention = find_sublayer(model, sublayer.layer, ATTENTION, partial=True)
            block = ReplayedBlock(model, attention, examples, entering)
            stream = stream + all_updates(block, attention.full_masks(), len(examples))
        self.stream = model.enter(stream).unsqueeze(1)

    def update(self, masks: Masks, rows: Tensor) -> Tensor:
        with masked(self.sublayer, masks):
            return self.model.leave(self.run(self.stream[rows]).squeeze(1))


class ReplayedAttention:
    """Raises LookupError for a family whose formula is not known. entering: as of ReplayedBlock."""

    def __init__(self, model: OpenModel, sublayer: Sublayer, examples: Examples, entering: Tensor):
        norm = model.blocks[sublayer.layer].get_submodule(model.family.components[ATTENTION].norm or "")
        self.attention = MaskedAttention(model, sublayer, model.leave(norm(model.enter(entering))), examples.probed)

    def update(self, masks: Masks, rows: Tensor) -> Tensor:
        return self.attention.update(masks, rows)


@torch.no_grad()
def replay(model: OpenModel, sublayer: Sublayer, examples: Examples, entering: Tensor) -> Replay:
    """A sublayer ready to be run through masks.

    entering: the residual stream that enters its block, (rows, T, d_model).
    """
    longest = int(examples.probed.max()) + 1  # no later token matters
    entering, examples = entering[:, :longest], replace(
        examples, tokens=examples.tokens[:, :longest], answering=examples.probed)
    block = ReplayedBlock(model, sublayer, examples, entering)
    order, masks = examples.lengths.argsort(), random_masks(sublayer)
    rows = torch.cat([order[:2], order[-2:]])  # windows matter to long ones only
    with suppress(Exception):  # a family that a way does not fit fails in any way
        way = (ReplayedAttention if sublayer.operation == ATTENTION else ReplayedMLP)(
            model, sublayer, examples, entering)
        if alike(way.update(masks, rows), block.update(masks, rows), model.dtype):
            return way
    return block


@torch.no_grad()
def all_updates(replayed: Replay, masks: Masks, count: int, batch_size: int = 2048) -> Tensor:
    """The updates of all rows, so many in number: (rows, d_model)."""
    rows = torch.arange(count, device=next(iter(masks.values())).device)
    return torch.cat([replayed.update(masks, batch) for batch in rows.split(batch_size)])
