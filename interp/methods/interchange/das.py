"""Boundless DAS: a rotated subspace and its width, learned from the answers that the exchange should give."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from interp.methods.das import Alignment, search_alignment
from interp.methods.interchange import Interchange, Place, Points, Subspace
from interp.runs.config import Count, Positive

SEES = "answers"


@dataclass(frozen=True)
class Rotated(Interchange):
    """A boundless alignment: its rotation (d, d) and width, a share of d."""

    def __call__(self, base: Points, source: Points) -> Tensor:
        alignment = Alignment(self.tensors["rotation"], self.tensors["width"].item())
        return alignment.intervene(base.activations, source.activations)

    def random_like(self, generator: torch.Generator) -> Interchange:
        empty = torch.empty(len(self.tensors["rotation"]), self.rank or 1)
        return Subspace("random", self.rank, {"right": empty, "left": empty.T}).random_like(generator)


def fit(place: Place, *, seed: int, epochs: Count = 120, batch_size: Count = 128, lr: Positive = 0.01,
        boundary_lr: Positive = 0.005,
        orthogonal_map: Literal["cayley", "matrix_exp", "householder"] = "cayley") -> Interchange:
    pairs = place.fit
    alignment, _ = search_alignment(
        lambda activations, own: pairs.run_on(activations, pairs.base.rows[own]),
        lambda states, own: place.opened.loss(states, pairs.exchanged[own]),
        pairs.base.activations, pairs.source.activations, torch.arange(len(pairs), device=place.opened.device), lr=lr,
        boundary_lr=boundary_lr, batch_size=batch_size, epochs=epochs, orthogonal_map=orthogonal_map, seed=seed,
        accuracy=lambda candidate: place.score(as_interchange(candidate)))
    return as_interchange(alignment)


def as_interchange(alignment: Alignment) -> Rotated:
    tensors = {"rotation": alignment.rotation, "width": torch.tensor(alignment.width, dtype=torch.float64)}
    return load(tensors, round(alignment.width * len(alignment.rotation)), None)


def load(tensors: dict[str, Tensor], rank: int, place: Place | None) -> Rotated:
    return Rotated("das", rank, tensors)
