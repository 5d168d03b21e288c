"""Circuit probing: the mask under which a sublayer's updates cluster by a variable's value."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.methods.masks import Circuit, NeuronMasks, l0
from interp.models.replay import Replay, all_updates
from interp.models.sublayers import Masks, Sublayer
from interp.runs.config import RunFailed
from interp.runs.progress import Progress

EPSILON = 1e-5


def soft_nearest_neighbor_loss(updates: Tensor, labels: Tensor) -> Tensor:
    """How poorly updates cluster by class, in nats (arXiv 2311.04354, circuit probing).

    With s_ij = exp(cos(u_i, u_j) - 1), the mean over i of
    -log (Σ_{j≠i, y_j=y_i} s_ij + ε) / (Σ_{j≠i} s_ij + ε).

    Args:
        updates: (batch, d_model).
        labels: (batch,).
    """
    unit = F.normalize(updates, dim=-1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    similarity = torch.exp(unit @ unit.T - 1).masked_fill(itself, 0)  # (batch, batch)
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    alike = (similarity * same).sum(1) + EPSILON
    everyone = similarity.sum(1) + EPSILON
    return -(alike / everyone).log().mean()


def find_circuit(sublayer: Sublayer, replayed: Replay, labels: Tensor, *, lr: float, batch_size: int,
                 num_epochs: int, mask_init: float, max_temp: float, l0_lambda: float,
                 generator: torch.Generator,
                 after_epoch: Callable[[int, Masks], None] | None = None) -> Circuit:
    """Learn a binary mask over a frozen sublayer's neurons.

    The temperature of the soft mask grows from 1 to max_temp, a factor max_temp^(1/num_epochs)
    an epoch. Batches are shuffled by a CPU generator; an incomplete last one is dropped.

    Args:
        replayed: the sublayer on the training examples.
        labels: (examples,) the variable's value.
        after_epoch: called with the number of epochs done and the soft masks in force.

    Raises:
        RunFailed: the loss is not a number.
    """
    masks = NeuronMasks(sublayer, mask_init)
    optimizer = torch.optim.AdamW(masks.parameters(), lr=lr)
    temperature = 1.0
    bar = Progress(range(num_epochs), desc=f"layer {sublayer.layer} {sublayer.operation}", unit="epoch")
    for epoch in bar:
        for rows in shuffled_batches(len(replayed), batch_size, generator):
            rows = rows.to(labels.device)
            soft = masks.soft(temperature)
            penalty = l0_lambda * l0(soft, masks.fan_in)
            loss = soft_nearest_neighbor_loss(replayed.update(soft, rows), labels[rows]) + penalty
            if not torch.isfinite(loss):
                advice = "value in lr_list" if torch.isfinite(penalty) else "l0_lambda"
                raise RunFailed(f"the mask's loss became {loss.item()} in epoch {epoch} at layer "
                                f"{sublayer.layer} {sublayer.operation} with lr {lr}; try a smaller "
                                f"{advice}.")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        temperature *= max_temp ** (1 / num_epochs)
        bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
        if after_epoch:
            after_epoch(epoch + 1, {name: mask.detach() for name, mask in masks.soft(temperature).items()})
    return masks.circuit()


def shuffled_batches(count: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Row numbers in random order, the incomplete last batch dropped; a list of (batch_size,)."""
    order = torch.randperm(count, generator=generator)
    return list(order[:count - count % batch_size].split(batch_size))


def even_batch(count: int, most: int) -> int:
    """The size of batches of at most so many rows that leave hardly a row out: 473 for 947 rows and at most 500."""
    return max(1, count // -(-count // most)) if count else 1


def batches_in_order(count: int, batch_size: int) -> list[Tensor]:
    """Row numbers in order, in batches; the last one may be shorter."""
    return list(torch.arange(count).split(batch_size))


def mean_loss(replayed: Replay, masks: Masks, labels: Tensor, batches: list[Tensor]) -> float:
    """The objective without its L0 term, as the mean over batches.

    It depends on the batch size, which decides how many neighbours an example has.
    """
    updates = all_updates(replayed, masks)  # (examples, d_model)
    losses = [soft_nearest_neighbor_loss(updates[rows], labels[rows])
              for rows in (batch.to(labels.device) for batch in batches)]
    return torch.stack(losses).mean().item()
