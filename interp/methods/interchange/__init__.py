"""Methods compared by exchanging what each takes for a variable between two inputs: one file per method.

A file NAME.py is the method NAME of `method_list`. It says what the method sees (`SEES`: "nothing", "activations",
"variable" or "answers"), from which its control task follows, and has `fit(place, *, seed, ...) -> Interchange`. What
all of them are given, and give, is here.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from interp.methods.circuits import shuffled_batches
from interp.methods.table import interchange_methods
from interp.models.examples import Answer, Examples
from interp.models.opened import OpenModel, RunOn, Site, run_all
from interp.models.replay import Replay
from interp.models.sublayers import Sublayer
from interp.runs.config import BadInput, RunFailed, shown
from interp.runs.progress import Progress
from interp.runs.tensors import load_tensors, save_tensors

RANKS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # tried where one is selected


@dataclass(frozen=True)
class Points:
    """Rows at a site. activations: (n, d_model). rows: their numbers in the examples. values: of the variable; (n,)."""

    activations: Tensor
    examples: Examples
    rows: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: Tensor) -> "Points":
        return Points(self.activations[chosen], self.examples, self.rows[chosen], self.values[chosen])


@dataclass(frozen=True)
class Pairs:
    """Bases and sources, row by row.

    answer, exchanged: what is right for the bases, and after the variable has been exchanged.
    run_on: the rest of the model above the site, for rows of the bases' examples.
    """

    base: Points
    source: Points
    answer: Answer
    exchanged: Answer
    run_on: RunOn

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, chosen: Tensor) -> "Pairs":
        return Pairs(self.base[chosen], self.source[chosen], self.answer[chosen], self.exchanged[chosen], self.run_on)

    def states(self, activations: Tensor) -> Tensor:
        """The model's states with other activations in the bases' place, (n, d_model)."""
        return run_all(self.run_on, activations, self.base.rows)


@dataclass(frozen=True)
class Place:
    """What a method is fitted at: a site of an open model, pairs to fit on, and others to select by.

    sublayer: what writes to the site. replays: gives it ready to be run through masks, on any examples.
    found: circuits that were found here, by their options, for the methods that share one. modules: the sublayer's own
    module on examples, for neurons to be exchanged in it.
    """

    opened: OpenModel
    site: Site
    n_classes: int
    fit: Pairs
    select: Pairs
    sublayer: Sublayer
    replays: Callable[[Examples], Replay]
    inputs: Callable[[Examples], Tensor]
    found: dict[tuple, Any] = field(default_factory=dict)
    modules: dict[Examples, Any] = field(default_factory=dict)

    def score(self, interchange: "Interchange") -> float:
        """Interchange accuracy on the select pairs; this uses the answers."""
        states = self.select.states(interchange(self.select.base, self.select.source))
        return self.opened.is_right(states, self.select.exchanged).double().mean().item()

    def update(self, masks: dict[str, Tensor], points: Points) -> Tensor:
        """What the masked sublayer adds to the residual stream at some points, (n, d_model)."""
        replayed = self.replays(points.examples)
        return torch.cat([replayed.update(masks, rows) for rows in points.rows.split(1024)])


@dataclass(frozen=True)
class Interchange:
    """A fitted method: called with (base, source) points it gives activations (n, d_model) to put in the bases' place.

    rank: dimensions that it exchanges; None if it has no such number. tensors: all that it has learned.
    chosen: what was chosen on the select pairs, as options of the fit, so that the control need not choose.
    """

    name: str
    rank: int | None
    tensors: dict[str, Tensor]
    chosen: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def __call__(self, base: Points, source: Points) -> Tensor:
        raise NotImplementedError

    def random_like(self, generator: torch.Generator) -> "Interchange | None":
        """The control: random, of the same size; None if there is none."""
        return None

    def save(self, path: Path, about: dict[str, Any]) -> None:
        save_tensors(path, self.tensors, {**about, "interchange": self.name, "rank": self.rank})


@dataclass(frozen=True)
class Subspace(Interchange):
    """h + (h' - h) right left: right (d, k) reads k coordinates, left (k, d) writes them; left @ right is 1."""

    def __call__(self, base: Points, source: Points) -> Tensor:
        change = source.activations - base.activations
        return base.activations + (change @ self.tensors["right"].to(change)) @ self.tensors["left"].to(change)

    def random_like(self, generator: torch.Generator) -> Interchange:
        d, k = self.tensors["right"].shape
        basis = torch.linalg.qr(torch.randn(d, k, generator=generator)).Q
        return Subspace("random", k, {"right": basis, "left": own(basis.T)})


def subspace(place: Place, right: Tensor, left: Tensor | None = None, *, rank: str | int = "all") -> Subspace:
    """The exchange along directions, the leading first. right: (d, K), orthonormal where no left (K, d) is given.

    rank: how many: "all", a number, or "selected", by interchange accuracy on the select pairs.
    """
    left = right.T if left is None else left

    def leading(k: int) -> Subspace:
        return Subspace("subspace", k, {"right": own(right[:, :k]), "left": own(left[:k])})

    if rank == "selected":
        best = max((leading(k) for k in sorted({min(k, right.shape[1]) for k in RANKS})), key=place.score)
        return replace(best, chosen={"rank": best.rank})
    return leading(min(rank, right.shape[1]) if isinstance(rank, int) else right.shape[1])


def own(part: Tensor) -> Tensor:
    """A copy of a part of a tensor in its own memory, to be saved."""
    return part.clone(memory_format=torch.contiguous_format)


def class_means(activations: Tensor, values: Tensor) -> Tensor:
    """The means of the classes that occur, minus their mean, (classes, d)."""
    means = torch.stack([activations[values == value].mean(0) for value in values.unique()])
    return means - means.mean(0)


def leading_directions(rows: Tensor) -> Tensor:
    """The leading directions of centred rows, one fewer than there are: (n, d) -> (d, n - 1)."""
    return torch.linalg.svd(rows, full_matrices=False).Vh.T[:, :len(rows) - 1]


def learn_from_answers(place: Place, parameters: list[Tensor], exchange: Callable[[Pairs, float], tuple[Tensor, Any]],
                       *, lr: float, epochs: int, batch_size: int, seed: int) -> None:
    """Train parameters in place, by Adam, to give the answers that the exchange should give.

    exchange: of some pairs and the share of the training that is done (0 to 1) gives the activations (n, d_model) to
    put in the bases' place, and a penalty.

    Raises:
        RunFailed: the loss is not a number.
    """
    optimizer = torch.optim.Adam(parameters, lr=lr)
    drawing = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, len(place.fit))
    for epoch in Progress(range(epochs), desc="answers", unit="epoch"):
        for rows in shuffled_batches(len(place.fit), batch_size, drawing):
            pairs = place.fit[rows.to(place.opened.device)]
            activations, penalty = exchange(pairs, epoch / epochs)
            loss = place.opened.loss(pairs.run_on(activations, pairs.base.rows), pairs.exchanged).mean() + penalty
            if not torch.isfinite(loss):
                advice = "lr" if torch.isfinite(torch.as_tensor(penalty)) else "weight of the penalty"
                raise RunFailed(f"the loss became {loss.item()} in epoch {epoch} with lr {lr}; try a smaller {advice} "
                                "in method_options.")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


# ------------------------------------------------------------------------------- the folder

def method(name: str) -> ModuleType:
    """A method's module.

    Raises:
        BadInput: it lacks what a method needs, or has a rank of its own, which the config's would replace.
    """
    found, page = import_module(f"{__name__}.{name}"), "docs/add_a_method.md"
    if missing := [part for part in ("SEES", "fit") if not hasattr(found, part)]:
        raise BadInput(f"method_list: interp/methods/interchange/{name}.py has no {' and no '.join(missing)} ({page}).")
    rank = inspect.signature(found.fit).parameters.get("rank")
    if rank is not None and rank.default not in ("selected", inspect.Parameter.empty):
        raise BadInput(f"method_list: the default of 'rank' in {name}.py must be 'selected', "
                       f"as the config's key 'rank' sets it; call a rank of the method's own otherwise ({page}).")
    return found


def checked_options(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Options for a method's fit, as its annotations want them.

    Raises:
        BadInput: there is no such option, or its value is wrong.
    """
    parameters = inspect.signature(method(name).fit).parameters
    known = {option: parameters[option].annotation for option in parameters if option not in ("place", "seed", "rank")}
    options = {}
    for option, value in given.items():
        if option == "rank" and "rank" in parameters:
            raise BadInput(f"method_options: the rank of '{name}' is set by the config's key 'rank', for all methods.")
        if option not in known:
            raise BadInput(f"method_options: the method '{name}' has no option '{option}'; it has "
                           f"{', '.join(known) or 'none'}.")
        try:
            options[option] = TypeAdapter(known[option]).validate_python(value)
        except ValidationError as error:
            raise BadInput(f"method_options: the option '{option}' of the method '{name}' is wrong: "
                           f"{error.errors()[0]['msg']}.") from None
    return options


def fit(name: str, place: Place, **options) -> Interchange:
    """A method fitted, under its own name."""
    return replace(method(name).fit(place, **options), name=name)


def load_interchange(path: str | Path, place: Place | None = None) -> tuple[Interchange, dict[str, Any]]:
    """A saved interchange and what it is about. place: needed by those that run a sublayer.

    Raises:
        BadInput: there is none, or of a method that is not in the folder.
    """
    tensors, about = load_tensors("interchange", path)
    name = about.pop("interchange", None)
    if name not in interchange_methods():
        raise BadInput(f"{shown(path)} is not a saved interchange.")
    build = getattr(method(name), "load", lambda tensors, rank, place: Subspace(name, rank, tensors))
    return replace(build(tensors, about.pop("rank"), place), name=name), about
