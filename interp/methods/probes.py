"""Probes: classifiers that read a variable from frozen activations."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.methods.optimize import batches_in_order, optimize, shuffled_batches


def build_probe(d_model: int, n_classes: int, intermediate_size: int, seed: int) -> nn.Module:
    """A linear probe (intermediate_size -1) or one with a hidden ReLU layer of that size."""
    torch.manual_seed(seed)
    if intermediate_size == -1:
        return nn.Linear(d_model, n_classes)
    return nn.Sequential(nn.Linear(d_model, intermediate_size), nn.ReLU(), nn.Linear(intermediate_size, n_classes))


def train_probe(probe: nn.Module, activations: Tensor, labels: Tensor, *, lr: float, batch_size: int,
                num_epochs: int, generator: torch.Generator) -> None:
    """Train in place with AdamW on shuffled batches, an incomplete last one dropped; then freeze.

    Args:
        activations: (examples, d_model) with labels (examples,).

    Raises:
        RunFailed: the loss is not a number.
    """
    def loss_of(epoch: int, rows: Tensor) -> Tensor:
        rows = rows.to(labels.device)
        return F.cross_entropy(probe(activations[rows]), labels[rows])

    optimize(torch.optim.AdamW(probe.parameters(), lr=lr), loss_of,
             lambda: shuffled_batches(len(labels), batch_size, generator), num_epochs, name="probe",
             advice=lambda: "lr")
    probe.requires_grad_(False)


@torch.no_grad()
def evaluate_probe(probe: nn.Module, activations: Tensor, labels: Tensor, batches: list[Tensor] | None = None,
                   batch_size: int = 500) -> tuple[float, float]:
    """Loss as the mean over batches (in order if none are given), accuracy over their examples."""
    batches = batches or batches_in_order(len(labels), batch_size)
    losses, hits = [], []
    for rows in (batch.to(labels.device) for batch in batches):
        logits = probe(activations[rows])
        losses.append(F.cross_entropy(logits, labels[rows]))
        hits.append(logits.argmax(-1) == labels[rows])
    return torch.stack(losses).mean().item(), torch.cat(hits).double().mean().item()
