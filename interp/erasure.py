"""Amnesic probing: erase what is linearly readable about a variable, with LEACE (arXiv 2306.03819)."""

import torch
import torch.nn.functional as F
from concept_erasure import LeaceEraser
from torch import Tensor

from interp.config import RunFailed
from interp.probes import build_probe


def fit_eraser(activations: Tensor, labels: Tensor, n_classes: int) -> LeaceEraser:
    """The smallest affine change after which no linear classifier reads the variable.

    Args:
        activations: (examples, d_model) with labels (examples,) below n_classes.
    """
    return LeaceEraser.fit(activations, F.one_hot(labels, n_classes).to(activations.dtype))


def decodability(activations: Tensor, labels: Tensor, n_classes: int, *, lr: float, num_steps: int,
                 seed: int) -> float:
    """Accuracy that a linear probe reaches on the examples it is trained on, full-batch, by AdamW.

    Raises:
        RunFailed: the loss is not a number.
    """
    probe = build_probe(activations.shape[1], n_classes, -1, seed).to(activations.device)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=lr)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(probe(activations), labels)
        loss.backward()
        optimizer.step()
    if not torch.isfinite(loss):
        raise RunFailed(f"the probe's loss became {loss.item()} with lr {lr}; try a smaller value in lr_list.")
    with torch.no_grad():
        return (probe(activations).argmax(-1) == labels).double().mean().item()
