"""Amnesic probing: erase what is linearly readable about a variable, with LEACE (arXiv 2306.03819)."""

import torch
import torch.nn.functional as F
from concept_erasure import LeaceEraser
from torch import Tensor

from interp.methods.optimize import optimize
from interp.methods.probes import build_probe


def fit_eraser(activations: Tensor, labels: Tensor, n_classes: int, precision: str = "float64",
               **options) -> LeaceEraser:
    """The smallest affine change after which no linear classifier reads the variable.

    concept-erasure's shrinkage of the covariance adds the epsilon of its numbers to fourth powers of activations. Where
    these are small, as in small models, the covariance is all but replaced by a multiple of the identity: in float32
    nearly always, in float64 at a standard deviation below about 0.01. The fit in float64 therefore measures
    activations in units of their standard deviation, which changes nothing else.

    activations: (examples, d_model) with labels (examples,) below n_classes. precision: of the fit, "float64" or, as
    published, "float32"; the eraser itself is of the activations' type. options: of concept-erasure's fitter.
    """
    wide = activations.to(getattr(torch, precision))
    unit = wide.std() if precision == "float64" and wide.std() > 0 else 1.0
    eraser = LeaceEraser.fit(wide / unit, F.one_hot(labels, n_classes).to(wide.dtype), **options)
    parts = eraser.proj_left, eraser.proj_right, eraser.bias * unit
    return LeaceEraser(*(part.to(activations) for part in parts))


def erased_rank(eraser: LeaceEraser) -> int:
    """How many dimensions an eraser removes."""
    return int(torch.linalg.matrix_rank(eraser.proj_left.double() @ eraser.proj_right.double()))


def random_eraser(activations: Tensor, rank: int, generator: torch.Generator) -> LeaceEraser:
    """The control: as many random dimensions removed, around the mean of the activations, (examples, d_model)."""
    d = activations.shape[1]
    basis = torch.linalg.qr(torch.randn(d, rank, generator=generator)).Q.to(activations)  # (d_model, rank)
    return LeaceEraser(basis, basis.T, activations.mean(0))


def decodability(activations: Tensor, labels: Tensor, n_classes: int, *, lr: float, num_steps: int, seed: int,
                 heldout: tuple[Tensor, Tensor] | None = None) -> float:
    """Accuracy of a linear probe trained full-batch by AdamW, on the examples it is trained on; raises RunFailed.

    heldout: activations and labels to measure it on instead. Of few examples a probe learns whatever labels they have.
    """
    probe = build_probe(activations.shape[1], n_classes, -1, seed).to(activations.device)
    optimize(torch.optim.AdamW(probe.parameters(), lr=lr),
             lambda step, rows: F.cross_entropy(probe(activations), labels), lambda: [labels], num_steps,
             name="decodability")
    activations, labels = heldout or (activations, labels)
    with torch.no_grad():
        return (probe(activations).argmax(-1) == labels).double().mean().item()
