"""Nothing is exchanged: what the model answers without intervention."""

import torch

from interp.methods.interchange import Interchange, Place, subspace

SEES = "nothing"


def fit(place: Place, *, seed: int) -> Interchange:
    return subspace(place, torch.zeros(place.fit.base.activations.shape[1], 0))
