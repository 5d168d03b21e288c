"""circuit_update with its weight of sparsity chosen on the select pairs, as ranks of directions are chosen.

The paper's weight is one that leaves many neurons; a little more of it, and the circuit is empty.
"""

from dataclasses import replace

from torch import Tensor

from interp.methods.interchange import Interchange, Place
from interp.methods.interchange._circuit import UpdateExchange, circuit_at
from interp.runs.config import Count, Positive

SEES = "variable"
WEIGHTS = (1e-6, 1.5e-6, 2e-6)


def fit(place: Place, *, seed: int, lr: Positive = 0.001, num_epochs: Count = 90,
        weight: Positive | None = None) -> Interchange:
    def at(l0_lambda: float) -> Interchange:
        circuit = circuit_at(place, seed, lr=lr, num_epochs=num_epochs, l0_lambda=l0_lambda)
        return replace(load(circuit.scores, None, place), chosen={"weight": l0_lambda})

    return max(map(at, WEIGHTS if weight is None else [weight]), key=place.score)


def load(tensors: dict[str, Tensor], rank: None, place: Place) -> UpdateExchange:
    return UpdateExchange("circuit_selected", rank, tensors, place)
