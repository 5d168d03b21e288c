"""What every compared method is given, and gives: the site under study, its pairs, an interchange."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.methods.masks import Circuit
from interp.methods.optimize import optimize, shuffled_batches
from interp.models.examples import Answer, Examples
from interp.models.open_model import ForwardFrom, OpenModel, in_batches
from interp.models.replay import Replay, ReplayedBlock, replay
from interp.models.sublayers import Masks, Sublayer
from interp.runs.tensors import save_tensors

RANKS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # tried where one is selected


@dataclass(frozen=True)
class SplitAtSite:
    """The rows of one split at the site, bases and then sources.

    activations: (rows, d_model). forward: the model above the site, for the rows of the bases.
    sublayer: the one that writes to the site. entering: what enters its block, (rows, T, d_model), if needed.
    """

    model: OpenModel
    examples: Examples
    activations: Tensor
    forward: ForwardFrom
    sublayer: Sublayer
    entering: Tensor | None = None

    @cached_property
    def replay(self) -> Replay:
        """The sublayer on these rows, ready to be run through masks."""
        assert self.entering is not None
        return replay(self.model, self.sublayer, self.examples, self.entering)

    @cached_property
    def block(self) -> ReplayedBlock:
        """The block on these rows."""
        assert self.entering is not None
        return ReplayedBlock(self.model, self.sublayer, self.examples, self.entering)


@dataclass(frozen=True)
class Pairs:
    """Bases and sources at the site, pair by pair.

    base, source: rows of the split. base_values, source_values: of the variable. All (n,).
    answer, counterfactual: what is right for the bases, and after the interchange of the variable.
    """

    split: SplitAtSite
    base: Tensor
    source: Tensor
    base_values: Tensor
    source_values: Tensor
    answer: Answer
    counterfactual: Answer

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, chosen: Tensor) -> "Pairs":
        return Pairs(self.split, self.base[chosen], self.source[chosen], self.base_values[chosen],
                     self.source_values[chosen], self.answer[chosen], self.counterfactual[chosen])

    @cached_property
    def base_activations(self) -> Tensor:
        return self.split.activations[self.base]  # (n, d_model)

    @cached_property
    def source_activations(self) -> Tensor:
        return self.split.activations[self.source]  # (n, d_model)

    def states(self, activations: Tensor) -> Tensor:
        """The final hidden states with other activations in the bases' place, (n, d_model)."""
        return in_batches(self.split.forward, activations, self.base)

    def updates(self, masks: Masks, rows: Tensor) -> Tensor:
        """What the masked sublayer adds to the residual stream in some rows of the split, (n, d_model)."""
        return torch.cat([self.split.replay.update(masks, part) for part in rows.split(1024)])


@dataclass(frozen=True)
class SiteUnderStudy:
    """What a method is fitted at: pairs to fit on, and others to select by.

    find_circuit: finds the variable's circuit in the sublayer that writes to the site, once for the same options.
    """

    model: OpenModel
    n_classes: int
    fit: Pairs
    select: Pairs
    find_circuit: Callable[..., Circuit]

    @property
    def sublayer(self) -> Sublayer:
        return self.fit.split.sublayer

    @torch.no_grad()
    def score(self, interchange: "Interchange") -> float:
        """Interchange accuracy on the select pairs; this uses the answers."""
        states = self.select.states(interchange(self.select))
        return self.model.is_right(states, self.select.counterfactual).double().mean().item()


@dataclass(frozen=True)
class Interchange:
    """A fitted method: gives activations (n, d_model) to put in the bases' place.

    rank: dimensions that it takes from the source; None if it has no such number. tensors: all that it has learned.
    chosen: what was chosen on the select pairs, as options of the fit, so that a control need not choose. name: the
    method's, which `fit` enters.
    """

    rank: int | None
    tensors: dict[str, Tensor]
    chosen: dict[str, Any] = field(default_factory=dict, kw_only=True)
    name: str = field(default="", kw_only=True)

    def __call__(self, pairs: Pairs) -> Tensor:
        raise NotImplementedError

    def random_like(self, generator: torch.Generator) -> "Interchange | None":
        """The control: random, of the same size; None if there is none."""
        return None

    def save(self, path: Path, about: dict[str, Any]) -> None:
        further = {name: value for name, value in vars(self).items() if name not in ("name", "tensors", "chosen")}
        save_tensors(path, self.tensors, {**about, "interchange": self.name, **further})


@dataclass(frozen=True)
class Subspace(Interchange):
    """h + (h' - h) right left: right (d, k) reads k coordinates, left (k, d) writes them; left @ right is 1."""

    def __call__(self, pairs: Pairs) -> Tensor:
        change = pairs.source_activations - pairs.base_activations
        return pairs.base_activations + (change @ self.tensors["right"].to(change)) @ self.tensors["left"].to(change)

    def random_like(self, generator: torch.Generator) -> Interchange:
        d, k = self.tensors["right"].shape
        return random_subspace(d, k, generator)


def random_subspace(d: int, k: int, generator: torch.Generator) -> Subspace:
    basis = torch.linalg.qr(torch.randn(d, k, generator=generator)).Q
    return Subspace(k, {"right": basis, "left": basis.T.contiguous()})


def subspace(site: SiteUnderStudy, right: Tensor, left: Tensor | None = None, *, rank: str | int = "all") -> Subspace:
    """The interchange along directions, the leading first. right: (d, K), orthonormal where no left (K, d) is given.

    rank: how many: "all", a number, or "selected", by interchange accuracy on the select pairs.
    """
    left = right.T if left is None else left

    def leading(k: int) -> Subspace:
        parts = {"right": right[:, :k], "left": left[:k]}  # in memory of their size, to be saved
        return Subspace(k, {name: part.clone(memory_format=torch.contiguous_format) for name, part in parts.items()})

    if rank == "selected":
        best = max((leading(k) for k in sorted({min(k, right.shape[1]) for k in RANKS})), key=site.score)
        return replace(best, chosen={"rank": best.rank})
    return leading(min(rank, right.shape[1]) if isinstance(rank, int) else right.shape[1])


def learn_from_answers(site: SiteUnderStudy, parameters: list[Tensor],
                       intervene: Callable[[Pairs, float], tuple[Tensor, Any]],
                       *, lr: float, epochs: int, batch_size: int, seed: int) -> None:
    """Train parameters in place, by Adam, to give the counterfactual answers; raises RunFailed.

    intervene: of some pairs and the share of the training that is done (0 to 1) gives the activations (n, d_model) to
    put in the bases' place, and a penalty.
    """
    drawing, penalty = torch.Generator().manual_seed(seed), torch.zeros(())

    def loss_of(epoch: int, rows: Tensor) -> Tensor:
        nonlocal penalty
        pairs = site.fit[rows.to(site.model.device)]
        activations, penalty = intervene(pairs, epoch / epochs)
        return site.model.loss(pairs.split.forward(activations, pairs.base), pairs.counterfactual).mean() + penalty

    optimize(torch.optim.Adam(parameters, lr=lr), loss_of,
             lambda: shuffled_batches(len(site.fit), min(batch_size, len(site.fit)), drawing), epochs, name="answers",
             advice=lambda: "lr" if torch.isfinite(torch.as_tensor(penalty)) else "weight of the penalty")
