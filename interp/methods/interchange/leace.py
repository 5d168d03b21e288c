"""LEACE's eraser as an exchange: what it would remove is taken from the source instead.

Oblique: it reads coordinates whitened by the activations' covariance and writes along the class means.
"""

from typing import Literal

from interp.methods.erasure import fit_eraser
from interp.methods.interchange import Interchange, Place, subspace

SEES = "variable"


def fit(place: Place, *, seed: int, precision: Literal["float32", "float64"] = "float64",
        shrinkage: bool = True) -> Interchange:
    """shrinkage: of the covariance, as concept-erasure has it by default; without it the exchange is lda's."""
    base = place.fit.base
    eraser = fit_eraser(base.activations, base.values, place.n_classes, precision, shrinkage=shrinkage)
    kept = eraser.proj_left.norm(dim=0) > 0  # x - (x - bias) proj_rightᵀ proj_leftᵀ is what it makes of x
    return subspace(place, eraser.proj_right.T[:, kept], eraser.proj_left.T[kept])
