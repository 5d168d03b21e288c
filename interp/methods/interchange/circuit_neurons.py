"""Circuit probing's circuit, exchanged neuron by neuron: its ablation, with the source's values instead of zeros."""

from functools import partial

from interp.methods.interchange._circuit import NeuronExchange, fit_circuit, load_circuit

SEES = "variable"
fit, load = partial(fit_circuit, NeuronExchange), partial(load_circuit, NeuronExchange)
