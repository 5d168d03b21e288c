"""A linear probe's directions: the leading right singular vectors of its centred weights."""

from interp.methods.interchange import Interchange, Place, leading_directions, subspace
from interp.methods.interchange._probe import probe_at
from interp.runs.config import Count, Positive

SEES = "variable"


def fit(place: Place, *, seed: int, rank: str | int = "selected", lr: Positive = 0.1, num_epochs: Count = 100,
        batch_size: Count = 500) -> Interchange:
    probe = probe_at(place, -1, seed=seed, lr=lr, num_epochs=num_epochs, batch_size=batch_size)
    weights = probe.get_parameter("weight").detach()[place.fit.base.values.unique()]  # classes that occur: (classes, d)
    return subspace(place, leading_directions(weights - weights.mean(0)), rank=rank)
