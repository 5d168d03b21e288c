"""Difference in means: the leading directions in which the class means differ."""

from interp.methods.interchange import Interchange, Place, class_means, leading_directions, subspace

SEES = "variable"


def fit(place: Place, *, seed: int, rank: str | int = "selected") -> Interchange:
    base = place.fit.base
    return subspace(place, leading_directions(class_means(base.activations, base.values)), rank=rank)
