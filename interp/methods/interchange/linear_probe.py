"""A linear probe's directions: the leading right singular vectors of its centred weights."""

import torch

from interp.methods.interchange import Interchange, Place, leading_directions, subspace
from interp.methods.probes import build_probe, train_probe
from interp.runs.config import Count, Positive

SEES = "variable"


def fit(place: Place, *, seed: int, rank: str | int = "selected", lr: Positive = 0.1, num_epochs: Count = 100,
        batch_size: Count = 500) -> Interchange:
    base = place.fit.base
    probe = build_probe(base.activations.shape[1], place.n_classes, -1, seed).to(base.activations.device)
    train_probe(probe, base.activations, base.values, lr=lr, batch_size=min(batch_size, len(base)),
                num_epochs=num_epochs, generator=torch.Generator().manual_seed(seed))
    weights = probe.weight.detach()[base.values.unique()]  # classes that do not occur left out: (classes, d)
    return subspace(place, leading_directions(weights - weights.mean(0)), rank=rank)
