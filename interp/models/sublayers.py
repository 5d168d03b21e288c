"""A sublayer, the attention or the MLP of one layer: its linear maps, and masks over their output neurons."""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from interp.models.family import ATTENTION, LinearMap
from interp.models.open_model import ATTN_OUT, MLP_OUT, OpenModel, Site, hooked
from interp.runs.config import BadInput

Masks = dict[str, Tensor]  # for each linear map of a sublayer: (neurons,), between 0 and 1, float32


class Affine(NamedTuple):
    """A linear map x @ matrix + bias in float32 and on one device, whatever the model keeps it in, and where."""

    matrix: Tensor  # (fan_in, neurons)
    bias: Tensor    # (neurons,), of zeros in a map without bias


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
    device: torch.device  # of masks, and of what leaves the model

    @property
    def site(self) -> Site:
        """Where its update stands."""
        return Site(self.layer, ATTN_OUT if self.operation == ATTENTION else MLP_OUT)

    def fan_in(self) -> dict[str, int]:
        """How many weights each neuron of a map has."""
        return {name: linear.weight.numel() // width_of(linear) for name, linear in self.maps.items()}

    def full_masks(self) -> Masks:
        """Masks that keep everything: the model without intervention."""
        return {name: torch.ones(width_of(linear), device=self.device) for name, linear in self.maps.items()}

    def affine(self) -> dict[str, Affine]:
        """The maps' weights outside the model."""
        return {name: affine_of(linear, self.device) for name, linear in self.maps.items()}


def find_sublayer(model: OpenModel, layer: int, operation: str, partial: bool = False) -> Sublayer:
    """The attention ('attn') or MLP ('mlp') of a layer. partial: it may have weights outside its linear maps.

    Raises:
        BadInput: it has no linear maps, or such weights: masks would not cover it.
    """
    block, component = model.blocks[layer], model.family.components[operation]
    module = block.get_submodule(component.module) if component.module else None
    named = module.named_modules() if module else ((name, block.get_submodule(name)) for name in component.maps)
    maps = {name: part for name, part in named  # Llama 4's router is one, but gives two tensors
            if isinstance(part, LinearMap) and "Router" not in type(part).__name__}
    if not maps:
        raise BadInput(f"operation_list: the {operation} of layer {layer} in a '{model.kind}' "
                       "model has no linear maps to mask.")
    for name, weight in module.named_parameters() if module and not partial else ():
        if weight.dim() > 1 and name.removesuffix(".weight") not in maps:  # an expert's, a router's
            raise BadInput(f"operation_list: the {operation} of layer {layer} in a '{model.kind}' model has weights, "
                           f"such as {name}, that masks over {', '.join(maps)} do not cover; circuit_probing.py takes "
                           "this part alone with 'partial_sublayers: true'.")
    return Sublayer(operation, layer, maps, module, *model.writer(layer, operation), model.device)


def width_of(linear: LinearMap) -> int:
    """A linear map's output neurons."""
    return linear.weight.shape[0 if isinstance(linear, nn.Linear) else 1]


def affine_of(linear: LinearMap, device: torch.device) -> Affine:
    """A linear map's weights; of a float32 model on that device without a copy."""
    with align_module_device(linear):
        matrix = linear.weight.T if isinstance(linear, nn.Linear) else linear.weight
        bias = matrix.new_zeros(width_of(linear)) if linear.bias is None else linear.bias
        return Affine(matrix.to(device, torch.float32), bias.to(device, torch.float32))


@contextmanager
def masked(sublayer: Sublayer, masks: Masks):
    """While open, the maps' outputs y = xW + b are (y - b) ⊙ m + b at every position; differentiable in the masks.

    Written y ⊙ m + b ⊙ (1 - m), so that a mask of 1 changes nothing, to the last bit. y is of the model's type, the
    rest float32.
    """
    def gate(mask: Tensor, linear: LinearMap):
        bias = affine_of(linear, mask.device).bias
        kept = None if bias is None else bias * (1 - mask)

        def masked_output(module, arguments, output: Tensor) -> Tensor:
            result = output * mask.to(output.device)
            return (result if kept is None else result + kept.to(output.device)).to(output.dtype)

        return masked_output

    with hooked(*(linear.register_forward_hook(gate(masks[name], linear)) for name, linear in sublayer.maps.items())):
        yield


@torch.no_grad()
def random_masks(sublayer: Sublayer, seed: int = 0) -> Masks:
    """Soft masks for comparing two ways of computing the same."""
    drawing = torch.Generator().manual_seed(seed)
    return {name: (0.2 + 0.8 * torch.rand(len(mask), generator=drawing)).to(mask)
            for name, mask in sublayer.full_masks().items()}
