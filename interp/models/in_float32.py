"""Linear maps of 16 bits that multiply in float32: on a CPU, which is up to a hundred times slower in 16 bits.

docs/scaling.md has what was measured. What the maps give is rounded to 16 bits, as their own product would be.
"""

from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


class InFloat32(torch.autograd.Function):
    """x @ weight + bias of 16 bits, multiplied in float32, of which no copy of the weight is kept for the gradient.

    inputs: (..., fan_in). weight: (fan_in, neurons).
    """

    @staticmethod
    def forward(context, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(weight)
        product = inputs.float() @ weight.float()
        return (product if bias is None else product + bias.float()).to(inputs.dtype)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None, None]:
        [weight] = context.saved_tensors
        return (gradient.float() @ weight.float().T).to(gradient.dtype), None, None


def multiply_in_float32(model: PreTrainedModel) -> None:
    """Let a model's linear maps multiply in float32."""
    def product(linear: nn.Module, inputs: Tensor) -> Tensor:
        weight = linear.weight.T if isinstance(linear, nn.Linear) else linear.weight
        return InFloat32.apply(inputs, weight, linear.bias)

    for linear in (module for module in model.modules() if isinstance(module, (nn.Linear, Conv1D))):
        # where accelerate brings a module its weights, it calls this in between
        setattr(linear, "_old_forward" if hasattr(linear, "_old_forward") else "forward", partial(product, linear))
