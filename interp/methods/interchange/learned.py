"""Subspaces learned from the counterfactual answers: DAS, boundless and with a fixed number of directions."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from interp.methods.das import Alignment, search_alignment
from interp.methods.interchange.base import Pairs, SiteUnderStudy, Subspace, learn_from_answers, subspace


def das(site: SiteUnderStudy, seed: int, **search) -> Alignment:
    """Boundless DAS: a rotated subspace and its width."""
    pairs = site.fit
    alignment, _ = search_alignment(
        lambda activations, rows: site.model.loss(pairs.split.forward(activations, pairs.base[rows]),
                                                  pairs.counterfactual[rows]),
        pairs.base_activations, pairs.source_activations, seed=seed, accuracy=site.score, **search)
    return alignment


def das_k(site: SiteUnderStudy, seed: int, rank: str | int, **training) -> Subspace:
    """DAS with a fixed number of orthonormal directions."""
    return best_rank(site, rank, lambda k: learn_directions(site, k, seed, **training))


def das_oblique(site: SiteUnderStudy, seed: int, rank: str | int, **training) -> Subspace:
    """DAS with directions to read by and others, as many, to write along: any exchange with left @ right = 1.

    lda's and LEACE's are of this form; das_k's are those whose left is right transposed.
    """
    return best_rank(site, rank, lambda k: learn_oblique(site, k, seed, **training))


def best_rank(site: SiteUnderStudy, rank: str | int, learn: Callable[[int], Subspace]) -> Subspace:
    """As many directions as asked; if selected, one or as many as the classes need, the better on the select pairs."""
    most = len(site.fit.base_values.unique()) - 1
    ranks = {min(k, site.model.d_model) for k in ((1, most) if isinstance(rank, str) else (rank,))}
    best = max(map(learn, sorted(ranks)), key=site.score)
    return replace(best, chosen={"rank": best.rank})


def learn_oblique(site: SiteUnderStudy, k: int, seed: int, **training) -> Subspace:
    drawing = torch.Generator().manual_seed(seed)
    start = torch.linalg.qr(torch.randn(site.model.d_model, k, generator=drawing)).Q.to(site.model.device)
    right, free = (nn.Parameter(start.clone()) for _ in range(2))  # (d, k) each

    def left() -> Tensor:  # (k, d)
        return torch.linalg.solve(free.T @ right, free.T)

    def intervene(pairs: Pairs, done: float) -> tuple[Tensor, float]:
        change = pairs.source_activations - pairs.base_activations  # (n, d)
        return pairs.base_activations + change @ right @ left(), 0.0

    learn_from_answers(site, [right, free], intervene, seed=seed, **training)
    return subspace(site, right.detach(), left().detach())


def learn_directions(site: SiteUnderStudy, k: int, seed: int, **training) -> Subspace:
    torch.manual_seed(seed)
    directions = nn.Linear(site.model.d_model, k, bias=False)
    # Householder's map goes column by column, Cayley's solves once, of the size of d: with d 128 and k 1 forward and
    # backward take 0.7 and 2.0 ms, with k 55 they take 5.5 and 1.6
    orthogonal(directions, orthogonal_map="cayley" if k > directions.in_features / 8 else "householder")
    directions.to(site.model.device)

    def intervene(pairs: Pairs, done: float) -> tuple[Tensor, float]:
        change = pairs.source_activations - pairs.base_activations  # (n, d)
        weight = directions.weight                                  # (k, d), its rows orthonormal
        return pairs.base_activations + change @ weight.T @ weight, 0.0

    learn_from_answers(site, list(directions.parameters()), intervene, seed=seed, **training)
    return subspace(site, directions.weight.detach().T)
