"""circuit_update with its sparsity penalty chosen on the select pairs, as ranks of directions are.

The paper's penalty is one that leaves many neurons; a little more of it, and the circuit is empty.
"""

from dataclasses import replace
from functools import partial

from interp.methods.interchange import Interchange, Place
from interp.methods.interchange._circuit import UpdateExchange, fit_circuit, load_circuit
from interp.runs.config import Count, Positive

SEES = "variable"
WEIGHTS = (1e-6, 1.5e-6, 2e-6)
load = partial(load_circuit, UpdateExchange)


def fit(place: Place, *, seed: int, lr: Positive = 0.001, num_epochs: Count = 90,
        weight: Positive | None = None) -> Interchange:
    found = (replace(fit_circuit(UpdateExchange, place, seed=seed, lr=lr, num_epochs=num_epochs, l0_lambda=tried),
                     chosen={"weight": tried}) for tried in (WEIGHTS if weight is None else [weight]))
    return max(found, key=place.score)
