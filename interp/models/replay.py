"""A frozen sublayer replayed on cached inputs through neuron masks: a training step of circuit probing.

Everything below the sublayer is frozen, so what it reads is computed once. Positions after the probed one never matter
in a causal model. Three ways, the fastest that agrees with the last on a few rows:

ReplayedAttention   attention written out (attention.py)
ReplayedModule      the model's own module
ReplayedModel       the reference: the model run up to the sublayer
"""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from interp.models.attention import MaskedAttention, NotKnown
from interp.models.examples import Examples
from interp.models.family import ATTENTION
from interp.models.open_model import Call, Enough, OpenModel, alike, hooked, replaced, tensor_of, warn
from interp.models.opening import ROWS_COMPARED
from interp.models.sublayers import Masks, Sublayer, masked, random_masks
from interp.models.suffix import run_above


class Replay(Protocol):
    """A sublayer on fixed rows, ready to be run through masks."""

    def update(self, masks: Masks, rows: Tensor) -> Tensor:
        """What the masked sublayer adds to the residual stream where some rows are probed: (batch, d_model)."""


class ReplayedAttention:
    """inputs: (rows, T, d_model)."""

    def __init__(self, model: OpenModel, sublayer: Sublayer, examples: Examples, inputs: Tensor):
        if sublayer.operation != ATTENTION:
            raise NotKnown
        self.attention = MaskedAttention(model, sublayer, inputs, examples.probed)
        self.behind = behind_of(model, sublayer)

    def update(self, masks: Masks, rows: Tensor) -> Tensor:
        return self.behind(self.attention.update(masks, rows))


def behind_of(model: OpenModel, sublayer: Sublayer) -> Callable[[Tensor], Tensor]:
    """What follows the last map or the module: a norm, if the family has one there, and the factor."""
    norm = sublayer.out if sublayer.out not in (sublayer.module, *sublayer.maps.values()) else None

    def behind(update: Tensor) -> Tensor:
        update = model.leave(update if norm is None else norm(model.enter(update)))
        return update if sublayer.scale == 1 else update * sublayer.scale

    return behind


class ReplayedModule:
    """The model's own module: of an attention all positions, of an MLP the probed ones.

    The maps that read the input give what they gave before, and the last one, if it is an attention's, is applied at
    the probed position only. inputs: (rows, T, d_model) of an attention, (rows, d_model) of an MLP.
    """

    def __init__(self, model: OpenModel, sublayer: Sublayer, examples: Examples, inputs: Tensor):
        if sublayer.module is None:
            raise NotKnown
        self.sublayer, self.module, self.whole = sublayer, sublayer.module, sublayer.operation == ATTENTION
        self.behind = behind_of(model, sublayer)
        self.inner = sublayer.out in sublayer.maps.values()  # the module adds more to what is its update
        self.probed = examples.probed
        self.inputs = model.enter(inputs if self.whole else inputs.unsqueeze(1))  # (rows, T or 1, d_model)
        self.call = module_call(model, sublayer, sublayer.module, examples)
        self.last: str | None = None
        self.constant, self.last = self.look_at_maps()

    @torch.no_grad()
    def look_at_maps(self) -> tuple[dict[str, Tensor], str]:
        """The outputs of the maps that read the input, (rows, T or 1, neurons) each, and which map comes last."""
        few = torch.arange(min(2, len(self.inputs)), device=self.inputs.device)
        read: dict[str, Tensor] = {}
        with hooked(*(linear.register_forward_pre_hook(
                lambda module, arguments, name=name: read.update({name: arguments[0]}))
                for name, linear in self.sublayer.maps.items())):
            self.run(random_masks(self.sublayer), few, {})
        constant = {name: self.sublayer.maps[name](self.inputs) for name, values in read.items()
                    if values.shape == self.inputs[few].shape and torch.equal(values.to(few.device), self.inputs[few])}
        return constant, list(read)[-1]

    def update(self, masks: Masks, rows: Tensor) -> Tensor:
        return self.run(masks, rows, {name: table[rows.to(table.device)] for name, table in self.constant.items()})

    def run(self, masks: Masks, rows: Tensor, constant: dict[str, Tensor]) -> Tensor:
        """The update of some rows. constant: the outputs of the maps that read the input, if they are known."""
        maps, found = self.sublayer.maps, []
        handles = [self.sublayer.out.register_forward_hook(
            lambda module, arguments, output: found.append(output))] if self.inner else []
        if self.whole and self.last:
            at = torch.arange(len(rows), device=rows.device), self.probed[rows]

            def at_probed(module, arguments):
                read = arguments[0].unflatten(0, (len(rows), -1)) if arguments[0].dim() == 2 else arguments[0]
                return (read[tuple(index.to(read.device) for index in at)].unsqueeze(1),)

            handles.append(maps[self.last].register_forward_pre_hook(at_probed))
        arguments, keywords = call_for(self.call, rows, len(self.inputs))
        with ExitStack() as changed:
            for name, values in constant.items():
                changed.enter_context(replaced([maps[name]], lambda inputs, values=values: values))
            changed.enter_context(masked(self.sublayer, masks))
            changed.enter_context(hooked(*handles))  # in this order: `out` is read behind its mask
            result = tensor_of(self.module(self.inputs[rows], *arguments, **keywords))
        return self.behind((found[0] if self.inner else result)[:, 0])


@torch.no_grad()
def module_call(model: OpenModel, sublayer: Sublayer, module: nn.Module, examples: Examples) -> Call:
    """What a sublayer's module is called with besides what it reads; of an MLP, for the probed position alone."""
    found: list[Call] = []

    def part(value: Any) -> Any:
        return value[:, :1] if sublayer.operation != ATTENTION and isinstance(value, Tensor) else value

    def catch(module, arguments, keywords):
        found.append((tuple(map(part, arguments[1:])), {
            name: part(value) for name, value in keywords.items() if name != "hidden_states"}))
        raise Enough

    stream = torch.zeros(*examples.tokens.shape, model.d_model, device=model.device)
    with hooked(module.register_forward_pre_hook(catch, with_kwargs=True)), suppress(Enough):
        run_above(model, sublayer.layer, stream, examples.tokens)
    return found[0]


def call_for(call: Call, rows: Tensor, count: int) -> Call:
    """A module's call for all rows, so many in number, as one for some of them."""
    def part(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() and count > 1:
            chosen = rows.to(value.device)
            if value.shape[0] == count:
                return value[chosen]
            if value.dim() > 2 and value.shape[0] % count == 0:  # BLOOM's: (rows · heads, ...)
                return value.unflatten(0, (count, -1))[chosen].flatten(0, 1)
        return tuple(map(part, value)) if isinstance(value, tuple) else value

    arguments, keywords = call
    return tuple(map(part, arguments)), {name: part(value) for name, value in keywords.items()}


class ReplayedModel:
    """The reference: the model run up to the sublayer, under masks."""

    def __init__(self, model: OpenModel, sublayer: Sublayer, examples: Examples):
        self.model, self.sublayer, self.examples = model, sublayer, examples

    def update(self, masks: Masks, rows: Tensor) -> Tensor:
        at = torch.arange(len(rows), device=rows.device), self.examples.probed[rows]
        with masked(self.sublayer, masks):
            return self.model.read(self.examples.tokens[rows], [self.sublayer.site])[self.sublayer.site][at]


@torch.no_grad()
def replay(model: OpenModel, sublayer: Sublayer, examples: Examples, inputs: Tensor) -> Replay:
    """A sublayer ready to be run through masks, by the fastest way that agrees with the reference.

    inputs: what it reads, (rows, T, d_model) of an attention, (rows, d_model) of an MLP.
    """
    reference = ReplayedModel(model, sublayer, examples)
    rows, masks = torch.arange(min(ROWS_COMPARED, len(examples)), device=model.device), random_masks(sublayer)
    wanted, why = reference.update(masks, rows), "has no module"
    for way in (ReplayedAttention, ReplayedModule):
        try:
            found = way(model, sublayer, examples, inputs)
            if alike(found.update(masks, rows), wanted, model.dtype):
                return found
            why = "gives other updates when run alone"
        except NotKnown:
            continue
        except Exception as error:  # a module with other arguments can fail in any way
            why = f"cannot be run alone ({type(error).__name__})"
    warn(f"{model.kind}, layer {sublayer.layer}: its {sublayer.operation} {why}, so each step runs the whole model")
    return reference


@torch.no_grad()
def all_updates(replayed: Replay, masks: Masks, count: int, batch_size: int = 2048) -> Tensor:
    """The updates of all rows, so many in number: (rows, d_model)."""
    rows = torch.arange(count, device=next(iter(masks.values())).device)
    return torch.cat([replayed.update(masks, batch) for batch in rows.split(batch_size)])
