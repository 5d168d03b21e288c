"""Leading principal components of the activations: directions that vary, whatever the variable."""

import torch

from interp.methods.interchange import Interchange, Place, subspace

SEES = "activations"


def fit(place: Place, *, seed: int, rank: str | int = "selected") -> Interchange:
    activations = place.fit.base.activations  # (n, d)
    directions = torch.linalg.svd(activations - activations.mean(0), full_matrices=False).Vh.T  # (d, K)
    return subspace(place, directions, rank=rank)
