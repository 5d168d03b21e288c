"""Variables held in subspaces at a cut: what is exchanged there, what that should give, and the truth that follows.

The task is interp/tasks/known.py. The cut is the residual stream after a block, at all positions.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.models.open_model import hooked
from interp.tasks.known import MOD, POSITIONS, VARIABLES

PLACES = {"linear": {"V": 2, "W": 4}, "centred": {"V": 2, "W": 4},  # by code: the positions, by what is held there
          "either": {"V": 2, "V2": 3, "W": 4}, "shared": {"A": 2, "B": 3, "W": 4}}
DECOY_POSITION = 5
# What is taken from where, by name: b is the base, s the source, m the bases' mean, r at each position base or source
# at random. The first word has a letter for what is outside the subspaces and one for each of PLACES; the second says
# whose A, B and W decide the answer then. strict alone lets a model use a copy of V that agrees with the rest.
CLEAN, ONE_PLACE, TWO_PLACES = ("b", "bbb"), {
    "iia_V": ("bsb", "ssb"), "iia_W": ("bbs", "bbs"), "strict": ("sbb", "bbb"),
    "scattered": ("rbb", "bbb")}, {
    "iia_V": ("bssb", "ssb"), "iia_W": ("bbbs", "bbs"), "strict": ("sbbb", "bbb"),
    "scattered": ("rbbb", "bbb")}
INTERVENTIONS = {"linear": ONE_PLACE, "centred": ONE_PLACE,
                 "either": TWO_PLACES | {"without_V": ("bmbb", "bbb"), "without_V2": ("bbmb", "bbb")},
                 "shared": TWO_PLACES | {"iia_A": ("bsbb", "sbb"), "iia_B": ("bbsb", "bsb")}}
Values = dict[str, dict[str, Tensor]]  # of bases ("b") and sources ("s"), by variable, (n,)


@dataclass(frozen=True)
class Held:
    """A model, its block at the cut, and the subspaces there: positions and orthonormal bases, (d_model, rank), by
    what they hold, the decoy last. decoy: the variable that it copies, or nothing."""

    model: PreTrainedModel
    block: nn.Module
    positions: dict[str, int]
    bases: dict[str, Tensor]
    decoy: str

    def read(self, name: str, activations: Tensor) -> Tensor:
        """The coordinates in a subspace, (n, rank), of activations at the cut, (n, positions, d_model)."""
        return activations[:, self.positions[name]] @ self.bases[name]

    def logits(self, states: Tensor) -> Tensor:
        """(n, vocabulary), of final hidden states, (n, d_model)."""
        return self.model.get_output_embeddings()(states)


def interchanged(held: Held, tokens: Tensor, words: list[str]) -> tuple[Tensor, Tensor]:
    """The model on bases and sources, (2n, positions), which above the cut goes on with n mixtures for each word.

    Returns the final hidden states at `=`, (words, n, d_model), and the bases' and sources' activations at the cut,
    (2n, positions, d_model).
    """
    clean = []

    def exchange(block, arguments, result):
        activations = result[0] if isinstance(result, tuple) else result
        clean.append(activations)
        base, source = activations.chunk(2)
        drawn = torch.rand(*base.shape[:2], 1, device=base.device) < 0.5
        given = {"b": base, "s": source, "m": base.mean(0, keepdim=True).expand_as(base),
                 "r": torch.where(drawn, source, base)}
        mixtures = torch.cat([mixture(held, given, word) for word in words])
        return (mixtures, *result[1:]) if isinstance(result, tuple) else mixtures

    with hooked(held.block.register_forward_hook(exchange)):
        states = held.model.base_model(tokens, use_cache=False).last_hidden_state[:, -1]
    return states.unflatten(0, (len(words), -1)), clean[0]


def mixture(held: Held, given: dict[str, Tensor], word: str) -> Tensor:
    """Activations at the cut, (n, positions, d_model), taken from where a word of INTERVENTIONS says."""
    rest = given[word[0]]
    mixed = rest.clone()
    for letter, (name, position) in zip(word[1:], held.positions.items()):
        basis = held.bases[name]
        mixed[:, position] += (given[letter] - rest)[:, position] @ basis @ basis.T
    return mixed


def interventions(code: str, decoy: str) -> dict[str, tuple[str, str]]:
    """What a model is trained to, by name: that of its code, and, with a decoy, that alone from the source."""
    alone = {"decoy_swap": ("b" * (1 + len(PLACES[code])) + "s", "bbb")}
    return {"accuracy": CLEAN} | INTERVENTIONS[code] | (alone if decoy else {})


def values_after(values: Values, whose: str) -> tuple[Tensor, Tensor]:
    """V and W after an interchange, (n,) each, where A, B and W are of base or source."""
    a, b, w = (values[letter][name] for letter, name in zip(whose, "ABW"))
    return (a + b) % MOD, w


def truth(positions: dict[str, int], decoy: str, cut: int) -> list[dict[str, Any]]:
    """What the construction says of each variable, layer up to the cut and position.

    carried: whether an interchange of the activation there gives the variable's answer; None where nothing is known. At
    the cut all but the subspaces is without effect; below it V and W can be where they are computed, and not behind the
    last position that holds them, as nothing gets from there to it. V in two places (held twice, or as A and B) is
    carried by neither alone as far as the training says: None.
    decodable: True where the variable's subspace is, or the decoy that was trained to give it; else None.
    """
    held = {"V": [place for name, place in positions.items() if name in ("V", "V2", "A", "B")],
            "W": [positions["W"]], "U": []}
    readable = {("V", place) for name, place in positions.items() if name in ("V", "V2")} | {("W", positions["W"])}
    readable |= {(decoy, positions["decoy"])} if decoy else set()
    possible = {"V": range(max(held["V"]) + 1), "W": range(3, positions["W"] + 1), "U": range(0)}
    rows = []
    for variable, layer, position in ((v, n, p) for v in VARIABLES for n in range(cut + 1) for p in range(POSITIONS)):
        at_cut = layer == cut
        unknown = at_cut and len(held[variable]) > 1 and position in held[variable] or (
            not at_cut and position in possible[variable])
        rows.append({"variable": variable, "layer": layer, "position": position,
                     "carried": None if unknown else at_cut and position in held[variable],
                     "decodable": True if at_cut and (variable, position) in readable else None})
    return rows
