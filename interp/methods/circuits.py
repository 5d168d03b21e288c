"""Circuit probing: the mask under which a sublayer's updates cluster by a variable's value, and how well they do."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.methods.masks import Circuit, NeuronMasks, l0
from interp.methods.optimize import optimize, shuffled_batches
from interp.models.replay import Replay
from interp.models.sublayers import Masks, Sublayer

EPSILON = 1e-5


def soft_nearest_neighbor_loss(updates: Tensor, labels: Tensor) -> Tensor:
    """How poorly updates cluster by class, in nats (arXiv 2311.04354, circuit probing).

    With s_ij = exp(cos(u_i, u_j) - 1), the mean over i of -log (Σ_{j≠i, y_j=y_i} s_ij + ε) / (Σ_{j≠i} s_ij + ε).
    updates: (batch, d_model), labels: (batch,).
    """
    unit = F.normalize(updates, dim=-1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    similarity = torch.exp(unit @ unit.T - 1).masked_fill(itself, 0)  # (batch, batch)
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    alike = (similarity * same).sum(1) + EPSILON
    everyone = similarity.sum(1) + EPSILON
    return -(alike / everyone).log().mean()


def find_circuit(sublayer: Sublayer, replayed: Replay, labels: Tensor, *, lr: float, batch_size: int, num_epochs: int,
                 mask_init: float, max_temp: float, l0_lambda: float, generator: torch.Generator,
                 after_epoch: Callable[[int, Masks], None] | None = None) -> Circuit:
    """Learn a binary mask over a frozen sublayer's neurons; raises RunFailed: the loss is not a number.

    The temperature of the soft mask grows from 1 to max_temp, a factor max_temp^(1/num_epochs) an epoch. Batches are
    shuffled by a CPU generator; an incomplete last one is dropped. replayed: the sublayer on the training examples.
    labels: (examples,) the variable's value. after_epoch: called with the number of epochs done and the soft masks in
    force.
    """
    masks = NeuronMasks(sublayer, mask_init)
    temperature, penalty = 1.0, torch.zeros(())

    def loss_of(epoch: int, rows: Tensor) -> Tensor:
        nonlocal penalty
        soft, rows = masks.soft(temperature), rows.to(labels.device)
        penalty = l0_lambda * l0(soft, masks.fan_in)
        return soft_nearest_neighbor_loss(replayed.update(soft, rows), labels[rows]) + penalty

    def warmer(done: int) -> None:
        nonlocal temperature
        temperature *= max_temp ** (1 / num_epochs)
        if after_epoch:
            after_epoch(done, {name: mask.detach() for name, mask in masks.soft(temperature).items()})

    optimize(torch.optim.AdamW(masks.parameters(), lr=lr), loss_of,
             lambda: shuffled_batches(len(labels), batch_size, generator), num_epochs,
             name=f"layer {sublayer.layer} {sublayer.operation}", after_epoch=warmer,
             advice=lambda: "lr" if torch.isfinite(penalty) else "l0_lambda")
    return masks.circuit()


def mean_loss(updates: Tensor, labels: Tensor, batches: list[Tensor]) -> float:
    """The objective without its L0 term, as the mean over batches. updates: (examples, d_model).

    It depends on the batch size, which decides how many neighbors an example has.
    """
    losses = [soft_nearest_neighbor_loss(updates[rows], labels[rows])
              for rows in (batch.to(labels.device) for batch in batches)]
    return torch.stack(losses).mean().item()


def draw_references(labels: Tensor, generator: torch.Generator) -> Tensor:
    """One example of each class, at random: row numbers, (classes,) in order of the classes."""
    order = torch.randperm(len(labels), generator=generator)
    shuffled = labels.cpu()[order]
    return torch.stack([order[(shuffled == value).nonzero()[0, 0]] for value in shuffled.unique()])


@torch.no_grad()
def nearest_neighbor_accuracy(references: Tensor, reference_labels: Tensor, updates: Tensor,
                              labels: Tensor) -> float | None:
    """Accuracy of giving each update the class of its nearest reference by cosine distance; None without updates.

    references: (classes, d_model), reference_labels: (classes,). updates: (examples, d_model), labels: (examples,).
    """
    similarity = F.normalize(updates, dim=-1) @ F.normalize(references, dim=-1).T  # (examples, classes)
    predicted = reference_labels[similarity.argmax(1)]
    return (predicted == labels).double().mean().item() if len(labels) else None
