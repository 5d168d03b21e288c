"""The control of circuit_update: all neurons of the sublayer but the circuit's."""

from dataclasses import replace
from functools import partial

from interp.methods.interchange import Interchange, Place
from interp.methods.interchange._circuit import UpdateExchange, Weight, fit_circuit, load_circuit
from interp.runs.config import Count, Positive

SEES = "variable"
load = partial(load_circuit, UpdateExchange)


def fit(place: Place, *, seed: int, lr: Positive = 0.001, num_epochs: Count = 90,
        l0_lambda: Weight = 1e-6) -> Interchange:
    circuit = fit_circuit(UpdateExchange, place, seed=seed, lr=lr, num_epochs=num_epochs, l0_lambda=l0_lambda)
    return replace(circuit, tensors={name: (score <= 0).to(score) - 0.5 for name, score in circuit.tensors.items()})
