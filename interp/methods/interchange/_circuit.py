"""Shared by the methods that exchange what a circuit of the sublayer below the site computes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from interp.methods.circuits import even_batch, find_circuit
from interp.methods.interchange import Interchange, Place, Points
from interp.methods.masks import Circuit
from interp.models.examples import Examples
from interp.models.opened import hooked
from interp.models.replay import CannotReplay, ReplayedModule
from interp.runs.config import Count, Positive, Real, RunFailed

Weight = Annotated[Real, Field(ge=0)]  # of sparsity, in the objective


def circuit_at(place: Place, seed: int, **options) -> Circuit:
    """The circuit of the variable in the sublayer, found once for all methods that ask for the same."""
    key = (seed, *sorted(options.items()))
    if key not in place.found:
        place.found[key] = search(place, seed, **options)
    return place.found[key]


def search(place: Place, seed: int, lr: float, num_epochs: int, l0_lambda: float) -> Circuit:
    """Circuit probing as circuit_probing.py does it with the paper's keys, on the bases that methods are fitted on."""
    base = place.fit.base
    return find_circuit(place.sublayer, Some(place, base), base.values, lr=lr, batch_size=even_batch(len(base), 500),
                        num_epochs=num_epochs, mask_init=0.0, max_temp=200, l0_lambda=l0_lambda,
                        generator=torch.Generator().manual_seed(seed))


def fit_circuit(kind: type["OfCircuit"], place: Place, *, seed: int, lr: Positive = 0.001, num_epochs: Count = 90,
                l0_lambda: Weight = 1e-6) -> "OfCircuit":
    """The `fit` of a method: the circuit with the paper's sparsity penalty, exchanged as a kind does."""
    circuit = circuit_at(place, seed, lr=lr, num_epochs=num_epochs, l0_lambda=l0_lambda)
    return load_circuit(kind, circuit.scores, None, place)


def load_circuit(kind: type["OfCircuit"], tensors: dict[str, Tensor], rank: None, place: Place) -> "OfCircuit":
    """The `load` of a method."""
    return kind(kind.__name__, rank, tensors, place)


@dataclass(frozen=True)
class Some:
    """The sublayer replayed on some rows of examples."""

    place: Place
    points: Points

    def __len__(self) -> int:
        return len(self.points)

    def update(self, masks: dict[str, Tensor], rows: Tensor) -> Tensor:
        return self.place.replays(self.points.examples).update(masks, self.points.rows[rows])


@dataclass(frozen=True)
class OfCircuit(Interchange):
    """tensors: the circuit's scores, by linear map; its neurons are those above 0."""

    place: Place

    @property
    def circuit(self) -> Circuit:
        device = self.place.opened.device
        return Circuit({name: score.to(device) for name, score in self.tensors.items()}, self.place.sublayer.fan_in())

    def random_like(self, generator: torch.Generator) -> Interchange:
        """As many random neurons of each map, none of them in the circuit; raises ImpossibleAblation without these."""
        drawn = self.circuit.random_ablation(generator)
        return replace(self, tensors={name: 0.5 - mask for name, mask in drawn.items()})


@dataclass(frozen=True)
class UpdateExchange(OfCircuit):
    """h + u(x') - u(x), u the update of the sublayer masked down to the circuit: what its objective shapes."""

    @torch.no_grad()
    def __call__(self, base: Points, source: Points) -> Tensor:
        masks = self.circuit.masks()
        return base.activations + self.place.update(masks, source) - self.place.update(masks, base)


@dataclass(frozen=True)
class NeuronExchange(OfCircuit):
    """The sublayer run on the bases with the outputs of the circuit's neurons taken from the sources.

    At all positions, counted back from the probed one; where a source is shorter its base keeps its own.
    """

    @torch.no_grad()
    def __call__(self, base: Points, source: Points) -> Tensor:
        if not len(base):
            return base.activations
        masks = {name: mask > 0 for name, mask in self.circuit.masks().items()}
        modules = {points.examples: module_at(self.place, points.examples) for points in (base, source)}
        return torch.cat([own[0].activations + self.exchanged(masks, modules, *own)
                          for own in batches_of((base, source))])

    def exchanged(self, masks: dict[str, Tensor], modules: dict, base: Points, source: Points) -> Tensor:
        """What the exchange changes in the bases' updates, (batch, d_model)."""
        maps, everything = self.place.sublayer.maps, self.place.sublayer.full_masks()
        taken: dict[str, Tensor] = {}

        def run(points: Points, hook) -> Tensor:
            handles = [linear.register_forward_hook(
                lambda module, arguments, output, name=name: hook(name, output)) for name, linear in maps.items()]
            with hooked(*handles):
                return modules[points.examples].run(everything, points.rows, {})

        def keep(name: str, output: Tensor) -> None:
            taken[name] = output.view(len(source), -1, output.shape[-1])  # (batch, T, neurons)

        def put(name: str, output: Tensor) -> Tensor:
            own = output.view(len(base), -1, output.shape[-1])
            other = self.aligned(own, taken[name], base, source)
            return torch.where(masks[name].to(own.device), other, own).view_as(output)

        run(source, keep)
        return run(base, put) - run(base, lambda name, output: None)

    @staticmethod
    def aligned(own: Tensor, other: Tensor, base: Points, source: Points) -> Tensor:
        """The sources' outputs at the bases' positions, (batch, T, neurons); the bases' own where there is none."""
        if own.shape[1] == other.shape[1] == 1:  # at the probed position alone
            return other
        shift = (source.examples.probed[source.rows] - base.examples.probed[base.rows]).to(own.device)  # (batch,)
        at = torch.arange(own.shape[1], device=own.device) + shift.unsqueeze(1)               # (batch, T)
        there = (at >= 0) & (at < other.shape[1])
        rows = torch.arange(len(own), device=own.device).unsqueeze(1)
        return torch.where(there.unsqueeze(-1), other[rows, at.clamp(0, other.shape[1] - 1)], own)


def batches_of(pairs: tuple[Points, Points], size: int = 512) -> Iterator[tuple[Points, Points]]:
    """Points of bases and of sources, some at a time."""
    for chosen in torch.arange(len(pairs[0]), device=pairs[0].rows.device).split(size):
        yield pairs[0][chosen], pairs[1][chosen]


def module_at(place: Place, examples: Examples) -> ReplayedModule:
    """The sublayer's module on examples.

    Raises:
        RunFailed: the block calls its maps itself.
    """
    if examples not in place.modules:
        try:
            place.modules[examples] = ReplayedModule(place.opened, place.sublayer, place.inputs(examples), examples)
        except CannotReplay:
            raise RunFailed(f"circuit_neurons: the {place.sublayer.operation} of a "
                            f"'{place.opened.model.config.model_type}' model is no module of its own, so that its "
                            "neurons cannot be exchanged; leave the method out.") from None
    return place.modules[examples]
