"""Random directions: what exchanging as many dimensions does, whichever they are."""

import torch

from interp.methods.interchange import Interchange, Place, subspace

SEES = "nothing"


def fit(place: Place, *, seed: int, rank: str | int = "selected") -> Interchange:
    d, drawing = place.fit.base.activations.shape[1], torch.Generator().manual_seed(seed)
    return subspace(place, torch.linalg.qr(torch.randn(d, d, generator=drawing)).Q, rank=rank)
