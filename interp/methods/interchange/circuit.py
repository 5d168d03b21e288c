"""Interchanges of what a circuit of the sublayer below the site computes."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from interp.methods.interchange.base import Interchange, Pairs, SiteUnderStudy, learn_from_answers
from interp.methods.masks import Circuit, NeuronMasks, l0
from interp.models.open_model import hooked
from interp.models.sublayers import Masks

WEIGHTS = (5e-8, 1e-7, 2e-7, 5e-7, 1e-6, 2e-6, 5e-6)  # of sparsity, from which circuit_selected chooses


@dataclass(frozen=True)
class OfCircuit(Interchange):
    """tensors: the circuit's scores, by linear map; its neurons are those above 0. fan_in: weights into each neuron."""

    fan_in: dict[str, int]

    @classmethod
    def of(cls, circuit: Circuit) -> Self:
        return cls(None, circuit.scores, circuit.fan_in)

    def circuit(self, device: torch.device) -> Circuit:
        return Circuit({name: score.to(device) for name, score in self.tensors.items()}, self.fan_in)

    def random_like(self, generator: torch.Generator) -> Interchange:
        """As many random neurons of each map, none of them in the circuit; raises ImpossibleAblation without these."""
        drawn = Circuit(self.tensors, self.fan_in).random_ablation(generator)
        return replace(self, tensors={name: 0.5 - mask for name, mask in drawn.items()})


@dataclass(frozen=True)
class UpdateInterchange(OfCircuit):
    """h + u(x') - u(x), u the update of the sublayer masked down to the circuit: what its objective shapes."""

    @torch.no_grad()
    def __call__(self, pairs: Pairs) -> Tensor:
        masks = self.circuit(pairs.base.device).masks()
        return pairs.base_activations + pairs.updates(masks, pairs.source) - pairs.updates(masks, pairs.base)


@dataclass(frozen=True)
class NeuronInterchange(OfCircuit):
    """The sublayer run on the bases with the outputs of the circuit's neurons taken from the sources.

    At all positions, counted back from the probed one; where a source is shorter its base keeps its outputs.
    """

    @torch.no_grad()
    def __call__(self, pairs: Pairs) -> Tensor:
        masks = {name: mask > 0 for name, mask in self.circuit(pairs.base.device).masks().items()}
        parts = torch.arange(len(pairs), device=pairs.base.device).split(512) if len(pairs) else []
        changes = [self.change(masks, pairs[chosen]) for chosen in parts]
        return pairs.base_activations + torch.cat(changes) if changes else pairs.base_activations

    def change(self, masks: Masks, pairs: Pairs) -> Tensor:
        """What the interchange changes in the bases' updates, (n, d_model)."""
        sublayer, probed = pairs.split.sublayer, pairs.split.examples.probed
        taken: dict[str, Tensor] = {}

        def run(rows: Tensor, hook) -> Tensor:
            handles = [linear.register_forward_hook(
                lambda module, arguments, output, name=name: hook(name, output))
                for name, linear in sublayer.maps.items()]
            with hooked(*handles):
                return pairs.split.block.update(sublayer.full_masks(), rows)

        def keep(name: str, output: Tensor) -> None:
            taken[name] = output.view(len(pairs), -1, output.shape[-1])  # (n, T, neurons)

        def put(name: str, output: Tensor) -> Tensor:
            outputs = output.view(len(pairs), -1, output.shape[-1])
            sources = aligned(outputs, taken[name], (probed[pairs.source] - probed[pairs.base]).to(outputs.device))
            return torch.where(masks[name].to(outputs.device), sources, outputs).view_as(output)

        run(pairs.source, keep)
        return run(pairs.base, put) - run(pairs.base, lambda name, output: None)


def aligned(base: Tensor, source: Tensor, shift: Tensor) -> Tensor:
    """The sources' outputs at the bases' positions, (n, T, neurons); the bases' where the sources have none.

    shift: (n,) how much later the sources are probed.
    """
    at = torch.arange(base.shape[1], device=base.device) + shift.unsqueeze(1)  # (n, T)
    inside = (at >= 0) & (at < source.shape[1])
    rows = torch.arange(len(base), device=base.device).unsqueeze(1)
    return torch.where(inside.unsqueeze(-1), source[rows, at.clamp(0, source.shape[1] - 1)], base)


def circuit_update(site: SiteUnderStudy, seed: int, **training) -> UpdateInterchange:
    """Circuit probing's circuit, exchanged by its update."""
    return UpdateInterchange.of(site.find_circuit(seed, **training))


def circuit_neurons(site: SiteUnderStudy, seed: int, **training) -> NeuronInterchange:
    """Circuit probing's circuit, exchanged neuron by neuron: its ablation, with the source's outputs instead of 0."""
    return NeuronInterchange.of(site.find_circuit(seed, **training))


def circuit_complement(site: SiteUnderStudy, seed: int, **training) -> UpdateInterchange:
    """The control of circuit_update: all neurons of the sublayer but the circuit's."""
    circuit = circuit_update(site, seed, **training)
    return replace(circuit, tensors={name: (score <= 0).to(score) - 0.5 for name, score in circuit.tensors.items()})


def circuit_selected(site: SiteUnderStudy, seed: int, lr: float, num_epochs: int,
                     weight: float | None = None) -> UpdateInterchange:
    """circuit_update with its sparsity penalty chosen on the select pairs, as ranks of directions are.

    The paper's penalty leaves many neurons; with a little more of it the circuit is empty.
    """
    tried = (replace(circuit_update(site, seed, lr=lr, num_epochs=num_epochs, l0_lambda=penalty),
                     chosen={"weight": penalty}) for penalty in (WEIGHTS if weight is None else [weight]))
    return max(tried, key=site.score)


def neuron_mask(site: SiteUnderStudy, seed: int, lr: float, epochs: int, batch_size: int, mask_init: float,
                max_temp: float, l0_lambda: float) -> UpdateInterchange:
    """A binary mask over the sublayer's neurons, as circuit probing's, but learned from answers instead of clusters."""
    masks = NeuronMasks(site.sublayer, mask_init)

    def intervene(pairs: Pairs, done: float) -> tuple[Tensor, Tensor]:
        soft = masks.soft(max_temp ** done)
        change = pairs.updates(soft, pairs.source) - pairs.updates(soft, pairs.base)  # (n, d)
        return pairs.base_activations + change, l0_lambda * l0(soft, masks.fan_in)

    learn_from_answers(site, list(masks.parameters()), intervene, lr=lr, epochs=epochs, batch_size=batch_size,
                       seed=seed)
    return UpdateInterchange.of(masks.circuit())
