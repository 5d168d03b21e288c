"""The control of circuit_update: all neurons of the sublayer but the circuit's."""

from torch import Tensor

from interp.methods.interchange import Interchange, Place
from interp.methods.interchange._circuit import UpdateExchange, Weight, circuit_at
from interp.runs.config import Count, Positive

SEES = "variable"


def fit(place: Place, *, seed: int, lr: Positive = 0.001, num_epochs: Count = 90,
        l0_lambda: Weight = 1e-6) -> Interchange:
    scores = circuit_at(place, seed, lr=lr, num_epochs=num_epochs, l0_lambda=l0_lambda).scores
    return load({name: (score <= 0).to(score) - 0.5 for name, score in scores.items()}, None, place)


def load(tensors: dict[str, Tensor], rank: None, place: Place) -> UpdateExchange:
    return UpdateExchange("circuit_complement", rank, tensors, place)
