"""A sublayer, the attention or the MLP of one layer: its linear maps, and masks over their output neurons."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from interp.models.family import ATTENTION, LinearMap
from interp.models.opened import ATTN_OUT, MLP_OUT, OpenModel, Site, hooked
from interp.runs.config import BadInput

Masks = dict[str, Tensor]  # for each linear map of a sublayer: (neurons,), between 0 and 1


@dataclass(frozen=True)
class Sublayer:
    """maps: its linear maps by their names inside it, in the model's order.

    module: what its block calls; None where the block calls the maps itself.
    out: the module whose output, times the factor `scale`, is the update.
    """

    operation: str
    layer: int
    maps: dict[str, LinearMap]
    module: nn.Module | None
    out: nn.Module
    scale: float

    @property
    def site(self) -> Site:
        """Where its update stands."""
        return Site(self.layer, ATTN_OUT if self.operation == ATTENTION else MLP_OUT)

    def fan_in(self) -> dict[str, int]:
        """How many weights each neuron of a map has."""
        return {name: linear.weight.numel() // width_of(linear) for name, linear in self.maps.items()}

    def full_masks(self) -> Masks:
        """Masks that keep everything: the model without intervention."""
        return {name: linear.weight.new_ones(width_of(linear)) for name, linear in self.maps.items()}


def find_sublayer(opened: OpenModel, layer: int, operation: str) -> Sublayer:
    """The attention ('attn') or MLP ('mlp') of a layer.

    Raises:
        BadInput: it has no linear maps.
    """
    block, component = opened.blocks[layer], opened.family.components[operation]
    module = block.get_submodule(component.module) if component.module else None
    named = module.named_modules() if module else ((name, block.get_submodule(name)) for name in component.maps)
    maps = {name: part for name, part in named if isinstance(part, LinearMap)}
    if not maps:
        raise BadInput(f"operation_list: the {operation} of layer {layer} in a '{opened.model.config.model_type}' "
                       "model has no linear maps to mask.")
    return Sublayer(operation, layer, maps, module, *opened.out_of(layer, operation))


def width_of(linear: LinearMap) -> int:
    """A linear map's output neurons."""
    return linear.weight.shape[0 if isinstance(linear, nn.Linear) else 1]


def product(linear: LinearMap, inputs: Tensor) -> Tensor:
    """x @ W without the bias: (..., fan_in) -> (..., neurons)."""
    return inputs @ (linear.weight.T if isinstance(linear, nn.Linear) else linear.weight)


def bias_of(linear: LinearMap) -> Tensor:
    """(neurons,), zeros where it has none."""
    return linear.weight.new_zeros(width_of(linear)) if linear.bias is None else linear.bias


@contextmanager
def masked(sublayer: Sublayer, masks: Masks):
    """While open, the maps' outputs y = xW + b are (y - b) ⊙ m + b at every position; differentiable in the masks.

    Written y ⊙ m + b ⊙ (1 - m), so that a mask of 1 changes nothing, to the last bit.
    """
    def gate(mask: Tensor, linear: LinearMap):
        kept = None if linear.bias is None else linear.bias * (1 - mask)
        return lambda module, arguments, output: output * mask if kept is None else output * mask + kept

    with hooked(*(linear.register_forward_hook(gate(masks[name], linear)) for name, linear in sublayer.maps.items())):
        yield


@torch.no_grad()
def random_masks(sublayer: Sublayer, seed: int = 0) -> Masks:
    """Soft masks for comparing two ways of computing the same."""
    drawing = torch.Generator().manual_seed(seed)
    return {name: (0.2 + 0.8 * torch.rand(len(mask), generator=drawing)).to(mask)
            for name, mask in sublayer.full_masks().items()}
