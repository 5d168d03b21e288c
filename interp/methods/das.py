"""Boundless distributed alignment search (arXiv 2305.08809): a rotated subspace that carries a variable causally.

Interchange, in the basis R, the first β·d coordinates of a base activation with those of a source: if they carry the
variable, the model answers as if it had the source's value. Symbols as in docs/das.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal
from transformers import get_linear_schedule_with_warmup

from interp.methods.interchange.base import Interchange, Pairs, random_subspace
from interp.methods.optimize import optimize
from interp.runs.tensors import load_tensors, require, sizes_of

FIRST_TEMPERATURE, LAST_TEMPERATURE = 50.0, 0.1
SMALLEST_WIDTH = 1e-3
WARM_UP = 0.1  # the share of all steps in which the learning rate grows from 0; then it falls to 0, linearly both


@dataclass(frozen=True)
class Alignment(Interchange):
    """A learned subspace. tensors: the rotation R (d, d), orthogonal, and its width β, a share of d."""

    @classmethod
    def of(cls, rotation: Tensor, width: float) -> "Alignment":
        tensors = {"rotation": rotation, "width": torch.tensor(width, dtype=torch.float64)}
        return cls(round(width * len(rotation)), tensors)

    @property
    def rotation(self) -> Tensor:
        return self.tensors["rotation"]

    @property
    def width(self) -> float:
        return self.tensors["width"].item()

    def __call__(self, pairs: Pairs) -> Tensor:
        return self.intervene(pairs.base_activations, pairs.source_activations)

    def random_like(self, generator: torch.Generator) -> Interchange:
        return random_subspace(len(self.rotation), self.rank or 1, generator)

    def intervene(self, base: Tensor, source: Tensor) -> Tensor:
        """Base activations with the subspace's coordinates of the sources: (batch, d)."""
        dimensions = torch.arange(float(len(self.rotation)))
        gate = boundary(torch.tensor(self.width), dimensions, LAST_TEMPERATURE).to(base)
        return interchange(self.rotation.to(base), gate, base, source)

    def rotation_error(self) -> float:
        """The largest entry of |RᵀR - 1|."""
        product = self.rotation.T @ self.rotation
        return (product - torch.eye(len(product)).to(product)).abs().max().item()


def boundary(width: Tensor, dimensions: Tensor, temperature: float) -> Tensor:
    """g_i = σ(i/τ) σ((β·d - i)/τ) for the dimensions i = 0 .. d-1: about 1 inside the subspace, 0 outside; (d,)."""
    return torch.sigmoid(dimensions / temperature) * torch.sigmoid((width * len(dimensions) - dimensions) / temperature)


def interchange(rotation: Tensor, gate: Tensor, base: Tensor, source: Tensor) -> Tensor:
    """R[(1 - g) ⊙ Rᵀh + g ⊙ Rᵀh'] for rows h of base and h' of source, (batch, d)."""
    return base + (gate * ((source - base) @ rotation)) @ rotation.T


class AlignmentSearch(nn.Module):
    """The trainable rotation and boundary."""

    dimensions: Tensor

    def __init__(self, d: int, orthogonal_map: str, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        rotation = nn.Module()
        rotation.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(d, d)))
        self.rotation = orthogonal(rotation, orthogonal_map=orthogonal_map)
        self.boundary = nn.Parameter(torch.tensor([1.0, 0.0]))
        self.register_buffer("dimensions", torch.arange(float(d)))

    def width(self) -> Tensor:
        """β, the share of dimensions that the interchange takes from the source."""
        return self.boundary[0].clamp(SMALLEST_WIDTH, 1)

    def forward(self, base: Tensor, source: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """The intervened activations (batch, d), and the penalty of boundary and rotation."""
        rotation = cast(Tensor, self.rotation.weight)  # computed from the parametrization: once a step
        gate = boundary(self.width(), self.dimensions, temperature)
        sums = torch.cat([rotation.sum(1), rotation.sum(0)])  # (2d,) of rows and of columns
        penalty = self.boundary.sum() + (sums - 1).abs().mean() + rotation.mean() - rotation.square().mean()
        return interchange(rotation, gate, base, source), penalty

    @torch.no_grad()
    def alignment(self) -> Alignment:
        return Alignment.of(cast(Tensor, self.rotation.weight).detach().clone(), self.width().item())


def search_alignment(loss_of: Callable[[Tensor, Tensor], Tensor], base: Tensor, source: Tensor, *,
                     lr: float, boundary_lr: float, batch_size: int, epochs: int, orthogonal_map: str, seed: int,
                     accuracy: Callable[[Alignment], float]) -> tuple[Alignment, list[dict[str, Any]]]:
    """Learn a rotation and its boundary: the best by `accuracy` (the later of equals), and a row for each epoch.

    loss_of: the model's for the counterfactual answers, (batch,), with activations (batch, d) in the place of the bases
    with these row numbers. base, source: (pairs, d) activations at the site, learned from in batches of this order.
    accuracy: called with the alignment after each epoch. Raises RunFailed.
    """
    search = AlignmentSearch(base.shape[1], orthogonal_map, seed).to(base.device)
    optimizer = torch.optim.Adam([{"params": search.rotation.parameters(), "lr": lr},
                                  {"params": [search.boundary], "lr": boundary_lr}],
                                 fused=base.device.type != "mps")  # a step is short enough for this to show
    # not shuffled, so every epoch has the same
    everything = torch.arange(len(base), device=base.device)
    batches = [(rows, base[rows], source[rows]) for rows in everything.split(batch_size)]
    steps = epochs * len(batches)
    schedule = get_linear_schedule_with_warmup(optimizer, WARM_UP * steps, steps)
    temperatures = iter(torch.linspace(FIRST_TEMPERATURE, LAST_TEMPERATURE, steps).tolist())
    temperature, losses, log = FIRST_TEMPERATURE, list[Tensor](), list[dict[str, Any]]()
    best, best_score = search.alignment(), -1.0

    def loss_of_batch(epoch: int, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        nonlocal temperature
        temperature, (rows, bases, sources) = next(temperatures), batch
        intervened, penalty = search(bases, sources, temperature)
        loss = loss_of(intervened, rows).mean() + penalty
        losses.append(loss.detach())
        return loss

    def choose(done: int) -> None:
        nonlocal best, best_score
        alignment = search.alignment()
        score = accuracy(alignment)
        if score >= best_score:
            best, best_score = alignment, score
        log.append({"epoch": done, "loss": torch.stack(losses).mean().item(), "selection_acc": score,
                    "width": alignment.width, "temperature": temperature})
        losses.clear()

    optimize(optimizer, loss_of_batch, lambda: batches, epochs, name="DAS", after_step=schedule.step,
             after_epoch=choose, advice=lambda: "lr" if torch.isfinite(search.boundary.sum()) else "boundary_lr")
    return best, log


def load_alignment(path: str | Path) -> tuple[Alignment, dict[str, Any]]:
    """A saved alignment and what it is about; raises BadInput where there is none."""
    return load_tensors("alignment", path, alignment_of)


def alignment_of(tensors: dict[str, Tensor], about: dict[str, Any]) -> Alignment:
    """An alignment from what is saved of it; raises ValueError where its parts do not fit each other."""
    sizes_of(tensors, {"rotation": "d d", "width": ""})
    alignment = Alignment.of(tensors["rotation"], tensors["width"].item())
    require(alignment.rotation_error() < 1e-3, "its rotation is not orthogonal")
    require(0 <= alignment.width <= 1, f"its width {alignment.width} is not between 0 and 1")
    return alignment
