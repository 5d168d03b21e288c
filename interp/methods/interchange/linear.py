"""Interchanges along directions, in closed form or from a probe, and the controls."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from interp.methods.erasure import fit_eraser
from interp.methods.interchange.base import Interchange, Pairs, SiteUnderStudy, Subspace, subspace
from interp.methods.optimize import even_batch
from interp.methods.probes import build_probe, counterfactual_embeddings, train_probe

HIDDEN = 256
CF_STEPS, CF_LR = 100, 0.1


def none(site: SiteUnderStudy, seed: int) -> Subspace:
    """Nothing is exchanged: what the model answers without intervention."""
    return subspace(site, torch.zeros(site.model.d_model, 0))


def full(site: SiteUnderStudy, seed: int) -> Subspace:
    """Everything at the site is exchanged: the most that a site can carry, and whatever else is there."""
    return subspace(site, torch.eye(site.model.d_model))


def random(site: SiteUnderStudy, seed: int, rank: str | int) -> Subspace:
    """Random directions: what exchanging as many dimensions does, whichever they are."""
    d, drawing = site.model.d_model, torch.Generator().manual_seed(seed)
    return subspace(site, torch.linalg.qr(torch.randn(d, d, generator=drawing)).Q, rank=rank)


def pca(site: SiteUnderStudy, seed: int, rank: str | int) -> Subspace:
    """Leading principal components of the activations: directions that vary, whatever the variable."""
    activations = site.fit.base_activations  # (n, d)
    directions = torch.linalg.svd(activations - activations.mean(0), full_matrices=False).Vh.T  # (d, K)
    return subspace(site, directions, rank=rank)


def difference_in_means(site: SiteUnderStudy, seed: int, rank: str | int) -> Subspace:
    """The leading directions in which the class means differ."""
    means = class_means(site.fit.base_activations, site.fit.base_values)
    return subspace(site, leading_directions(means), rank=rank)


def lda(site: SiteUnderStudy, seed: int, rank: str | int) -> Subspace:
    """Linear discriminants: the leading whitened class-mean directions, in float64.

    P = Σ^½ V Vᵀ Σ^-½, V the right singular vectors of the whitened centered class means, Σ the activations' covariance.
    """
    activations = site.fit.base_activations
    wide = activations.double()
    basis, scale = whitening(wide)
    means = class_means(wide, site.fit.base_values)                # (classes, d)
    directions = leading_directions(means @ (basis / scale))       # (r, K)
    right, left = basis / scale @ directions, directions.T @ (basis * scale).T
    return subspace(site, right.to(activations), left.to(activations), rank=rank)


def lda_weights(site: SiteUnderStudy, seed: int, rank: str | int) -> Subspace:
    """The weights of the discriminants as directions, read and written orthogonally, as CausalGym (2402.12560) does."""
    wide = site.fit.base_activations.double()
    basis, scale = whitening(wide)
    weights = class_means(wide, site.fit.base_values) @ (basis / scale.square()) @ basis.T  # (classes, d)
    return subspace(site, leading_directions(weights).to(site.fit.base_activations), rank=rank)


def whitening(wide: Tensor) -> tuple[Tensor, Tensor]:
    """The directions in which activations (n, d) vary, (d, r), and their standard deviations, (r,)."""
    variances, basis = torch.linalg.eigh(torch.cov(wide.T))
    seen = variances > variances[-1] * len(variances) * torch.finfo(wide.dtype).eps
    return basis[:, seen], variances[seen].sqrt()


def leace(site: SiteUnderStudy, seed: int, precision: str, shrinkage: bool) -> Subspace:
    """LEACE's eraser as an interchange: what it would remove is taken from the source instead.

    Oblique: it reads coordinates whitened by the activations' covariance and writes along the class means.
    """
    eraser = fit_eraser(site.fit.base_activations, site.fit.base_values, site.n_classes, precision, shrinkage=shrinkage)
    kept = eraser.proj_left.norm(dim=0) > 0  # x - (x - bias) proj_rightᵀ proj_leftᵀ is what it makes of x
    return subspace(site, eraser.proj_right.T[:, kept], eraser.proj_left.T[kept])


def linear_probe(site: SiteUnderStudy, seed: int, rank: str | int, **training) -> Subspace:
    """The leading right singular vectors of a linear probe's centered weights."""
    weights = fit_probe(site, -1, seed, **training).get_parameter("weight").detach()
    weights = weights[site.fit.base_values.unique()]  # of the classes that occur: (classes, d)
    return subspace(site, leading_directions(weights - weights.mean(0)), rank=rank)


def fit_probe(site: SiteUnderStudy, hidden: int, seed: int, *, batch_size: int, **training) -> nn.Module:
    """A probe of the variable, trained on the bases of the fit pairs. hidden: -1 for a linear one."""
    pairs = site.fit
    probe = build_probe(site.model.d_model, site.n_classes, hidden, seed).to(pairs.base_activations.device)
    train_probe(probe, pairs.base_activations, pairs.base_values, batch_size=even_batch(len(pairs), batch_size),
                generator=torch.Generator().manual_seed(seed), **training)
    return probe


def class_means(activations: Tensor, values: Tensor) -> Tensor:
    """The means of the classes that occur, minus their mean, (classes, d)."""
    means = torch.stack([activations[values == value].mean(0) for value in values.unique()])
    return means - means.mean(0)


def leading_directions(rows: Tensor) -> Tensor:
    """The leading directions of centered rows, one fewer than there are: (n, d) -> (d, n - 1)."""
    return torch.linalg.svd(rows, full_matrices=False).Vh.T[:, :len(rows) - 1]


@dataclass(frozen=True)
class Embedding(Interchange):
    """An MLP probe's counterfactual embedding: changes a base until the probe reads what it reads of the source.

    It sets the variable, it does not exchange it.
    """

    def __call__(self, pairs: Pairs) -> Tensor:
        base = pairs.base_activations
        hidden, classes = len(self.tensors["0.bias"]), len(self.tensors["2.bias"])
        probe = build_probe(base.shape[1], classes, hidden, 0).to(base.device).requires_grad_(False)
        probe.load_state_dict(self.tensors)
        targets = probe(pairs.source_activations).argmax(-1)  # (n,)
        other = probe(base).argmax(-1) != targets
        moved, spread = base.clone(), base.std().item()  # steps in units of how far activations vary
        with torch.enable_grad():
            moved[other] = counterfactual_embeddings(probe, base[other], targets[other], num_steps=CF_STEPS,
                                                     lr=CF_LR * spread)
        return moved


def mlp_probe(site: SiteUnderStudy, seed: int, **training) -> Embedding:
    probe = fit_probe(site, HIDDEN, seed, **training)
    return Embedding(None, {name: tensor.detach() for name, tensor in probe.state_dict().items()})
