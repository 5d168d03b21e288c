"""Nearest-neighbor accuracy: how well updates predict a variable's value; and the majority baseline."""

import torch
import torch.nn.functional as F
from torch import Tensor


def draw_references(labels: Tensor, generator: torch.Generator) -> Tensor:
    """One example of each class, at random: row numbers, (classes,) in order of the classes."""
    order = torch.randperm(len(labels), generator=generator)
    shuffled = labels.cpu()[order]
    return torch.stack([order[(shuffled == value).nonzero()[0, 0]] for value in shuffled.unique()])


@torch.no_grad()
def nearest_neighbor_accuracy(references: Tensor, reference_labels: Tensor, updates: Tensor,
                              labels: Tensor) -> float | None:
    """Accuracy of giving each update the class of its nearest reference by cosine distance; None without updates.

    Args:
        references: (classes, d_model) with reference_labels (classes,).
        updates: (examples, d_model) with labels (examples,).
    """
    similarity = F.normalize(updates, dim=-1) @ F.normalize(references, dim=-1).T  # (examples, classes)
    predicted = reference_labels[similarity.argmax(1)]
    return (predicted == labels).double().mean().item() if len(labels) else None


def majority_accuracy(train_labels: Tensor, labels: Tensor) -> float:
    """Accuracy of always predicting the most frequent label of train (of several, the smallest)."""
    values, counts = train_labels.unique(return_counts=True)
    return (labels == values[counts.argmax()]).double().mean().item()
