"""Linear discriminants: the leading whitened class-mean directions, in float64.

P = Σ^½ V Vᵀ Σ^-½, V the right singular vectors of the whitened centred class means, Σ the activations' covariance.
"""

import torch

from interp.methods.interchange import Interchange, Place, class_means, leading_directions, subspace

SEES = "variable"


def fit(place: Place, *, seed: int, rank: str | int = "selected") -> Interchange:
    activations, values = place.fit.base.activations, place.fit.base.values
    wide = activations.double()
    variances, basis = torch.linalg.eigh(torch.cov(wide.T))
    seen = variances > variances[-1] * len(variances) * torch.finfo(wide.dtype).eps
    scale = variances[seen].sqrt()                                             # (r,)
    directions = leading_directions(class_means(wide, values) @ (basis[:, seen] / scale))  # (r, K)
    right, left = basis[:, seen] / scale @ directions, directions.T @ (basis[:, seen] * scale).T
    return subspace(place, right.to(activations), left.to(activations), rank=rank)
