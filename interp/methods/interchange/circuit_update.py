"""Circuit probing's circuit, exchanged by its update: what the objective of circuit probing shapes."""

from functools import partial

from interp.methods.interchange._circuit import UpdateExchange, fit_circuit, load_circuit

SEES = "variable"
fit, load = partial(fit_circuit, UpdateExchange), partial(load_circuit, UpdateExchange)
