"""Circuit probing's circuit, exchanged neuron by neuron: its ablation, with the source's values instead of zeros."""

from torch import Tensor

from interp.methods.interchange import Interchange, Place
from interp.methods.interchange._circuit import NeuronExchange, Weight, circuit_at
from interp.runs.config import Count, Positive

SEES = "variable"


def fit(place: Place, *, seed: int, lr: Positive = 0.001, num_epochs: Count = 90,
        l0_lambda: Weight = 1e-6) -> Interchange:
    return load(circuit_at(place, seed, lr=lr, num_epochs=num_epochs, l0_lambda=l0_lambda).scores, None, place)


def load(tensors: dict[str, Tensor], rank: None, place: Place) -> NeuronExchange:
    return NeuronExchange("circuit_neurons", rank, tensors, place)
