"""Shared by the methods that use a probe's directions, or change activations until it reads another value."""

import torch
from torch import nn

from interp.methods.circuits import even_batch
from interp.methods.interchange import Place
from interp.methods.probes import build_probe, train_probe


def probe_at(place: Place, hidden: int, *, seed: int, lr: float, num_epochs: int, batch_size: int) -> nn.Module:
    """A probe of the variable, trained on the bases that methods are fitted on. hidden: -1 for a linear one."""
    base = place.fit.base
    probe = build_probe(base.activations.shape[1], place.n_classes, hidden, seed).to(base.activations.device)
    train_probe(probe, base.activations, base.values, lr=lr, batch_size=even_batch(len(base), batch_size),
                num_epochs=num_epochs, generator=torch.Generator().manual_seed(seed))
    return probe
