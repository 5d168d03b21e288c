"""A step of mask training, and the plain way to a masked sublayer's updates: the whole model, weights multiplied."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interp.methods.circuits import shuffled_batches, soft_nearest_neighbor_loss
from interp.models.loading import Sublayer
from interp.models.masks import Masks, NeuronMasks, l0

Update = Callable[[Masks, Tensor], Tensor]  # soft masks, rows (batch,) -> (batch, d_model)


def mask_step(sublayer: Sublayer, update: Update, labels: Tensor, batch_size: int, l0_lambda: float,
              generator: torch.Generator) -> Callable[[], float]:
    """A step on a random batch, its backward pass and the optimizer's included. labels: (rows,)."""
    masks = NeuronMasks(sublayer, init=0.0)
    optimizer = torch.optim.AdamW(masks.parameters(), lr=1e-3)

    def step() -> float:
        rows = shuffled_batches(len(labels), batch_size, generator)[0]
        soft = masks.soft(1.0)
        loss = soft_nearest_neighbor_loss(update(soft, rows), labels[rows]) + l0_lambda * l0(soft, masks.fan_in)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def plain_updates(model: PreTrainedModel, sublayer: Sublayer, tokens: Tensor) -> Update:
    """Updates at the last position. tokens: (rows, positions)."""
    caught = {}
    sublayer.module.register_forward_hook(lambda module, arguments, output: caught.update(
        update=output[0] if isinstance(output, tuple) else output))
    prefix = next(name for name, module in model.named_modules() if module is sublayer.module)

    def update(soft: Masks, rows: Tensor) -> Tensor:
        weights = {f"{prefix}.{name}.weight": linear.weight * soft[name] for name, linear in sublayer.maps.items()}
        torch.func.functional_call(model, weights, (tokens[rows],), {"use_cache": False})
        return caught["update"][:, -1]

    return update
