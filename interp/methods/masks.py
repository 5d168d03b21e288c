"""Neuron masks over one sublayer: soft while training, hard as a circuit, inverted to ablate it.

A mask has one entry per output neuron of each linear map; every weight into the neuron shares it and the bias is never
masked, so masking the weights equals gating the product x @ weight.
"""

from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.models.sublayers import Masks, Sublayer
from interp.runs.tensors import load_tensors, require, save_tensors, sizes_of


class ImpossibleAblation(ValueError):
    """No random ablation of the circuit's size exists outside of it."""


class NeuronMasks(nn.Module):
    """The trainable mask parameters m of a sublayer, all starting at `init`."""

    def __init__(self, sublayer: Sublayer, init: float):
        super().__init__()
        self.fan_in = sublayer.fan_in()
        whole = sublayer.full_masks()
        self.names = sorted(whole)  # the order of random draws; names with dots fit no ParameterDict
        self.scores = nn.ParameterList([torch.full_like(whole[name], init) for name in self.names])

    def soft(self, temperature: float) -> Masks:
        """σ(T·m), which approaches the step function as the temperature T grows."""
        return {name: torch.sigmoid(temperature * score) for name, score in zip(self.names, self.scores)}

    def circuit(self) -> "Circuit":
        return Circuit({name: score.detach().clone() for name, score in zip(self.names, self.scores)},
                       dict(self.fan_in))


def l0(masks: Masks, fan_in: dict[str, int]) -> Tensor:
    """The number of weights that masks keep, Σ_maps fan_in · Σ_j mask_j; differentiable."""
    return reduce(torch.add, (fan_in[name] * mask.sum() for name, mask in masks.items()))


@dataclass(frozen=True)
class Circuit:
    """The neurons of a sublayer with m > 0.

    scores: the mask parameters m of each linear map, (neurons,). fan_in: the number of weights into a map's neuron.
    """

    scores: dict[str, Tensor]
    fan_in: dict[str, int]

    def masks(self) -> Masks:
        """1 for the circuit's neurons, 0 for all others."""
        return {name: (score > 0).to(score.dtype) for name, score in self.scores.items()}

    def ablation(self, maps: tuple[str, ...] | None = None) -> Masks:
        """0 for the circuit's neurons, 1 for all others; in the named maps only, if any are named."""
        return {name: (score <= 0).to(score.dtype) if maps is None or name in maps else torch.ones_like(score)
                for name, score in self.scores.items()}

    def random_ablation(self, generator: torch.Generator) -> Masks:
        """0 for as many random neurons per map as the circuit has, none of them in it.

        Drawn from the neurons with m < 0 by a CPU generator, so that a seed means the same everywhere. Raises
        ImpossibleAblation: a map has fewer such neurons than the circuit has there.
        """
        masks = {}
        for name, score in self.scores.items():
            size = int((score > 0).sum())
            outside = (score < 0).nonzero().flatten().cpu()  # (candidates,)
            if size > len(outside):
                raise ImpossibleAblation(f"the circuit holds {size} of the {len(score)} neurons of {name}; only "
                                         f"{len(outside)} outside of it can be drawn")
            drawn = outside[torch.randperm(len(outside), generator=generator)[:size]]
            masks[name] = torch.ones_like(score)
            masks[name][drawn.to(score.device)] = 0
        return masks

    def l0_norm(self) -> int:
        return round(l0(self.masks(), self.fan_in).item())

    def l0_max(self) -> int:
        return sum(self.fan_in[name] * len(score) for name, score in self.scores.items())


def save_circuit(circuit: Circuit, path: Path, about: dict[str, Any]) -> None:
    """Save a circuit; `about` (its setting, model, variable) goes into the file."""
    save_tensors(path, circuit.scores, {**about, "fan_in": circuit.fan_in})


def load_circuit(path: str | Path) -> tuple[Circuit, dict[str, Any]]:
    """A saved circuit and what it is about; raises BadInput where there is none."""
    return load_tensors("circuit", path, circuit_of)


def circuit_of(scores: dict[str, Tensor], about: dict[str, Any]) -> Circuit:
    """A circuit from what is saved of it; raises ValueError where its parts do not fit each other."""
    fan_in = about.pop("fan_in")
    sizes_of(scores, {name: name for name in fan_in})  # one size each
    require(len(scores) > 0 and all(type(count) is int and count > 0 for count in fan_in.values()),
            "fan_in is not a whole number for each linear map")
    return Circuit(scores, fan_in)
