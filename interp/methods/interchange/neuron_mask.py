"""A binary mask over the sublayer's neurons, as circuit probing's, but learned from answers instead of clusters.

It exchanges as circuit_update does; the two differ in what they learn from.
"""

from functools import partial

from torch import Tensor

from interp.methods.interchange import Interchange, Pairs, Place, learn_from_answers
from interp.methods.interchange._circuit import UpdateExchange, Weight, load_circuit
from interp.methods.masks import NeuronMasks, l0
from interp.runs.config import Count, Positive, Real

SEES = "answers"
load = partial(load_circuit, UpdateExchange)


def fit(place: Place, *, seed: int, lr: Positive = 0.01, epochs: Count = 60, batch_size: Count = 128,
        mask_init: Real = 0.0, max_temp: Positive = 200, l0_lambda: Weight = 1e-6) -> Interchange:
    masks = NeuronMasks(place.sublayer, mask_init)

    def exchange(pairs: Pairs, done: float) -> tuple[Tensor, Tensor]:
        soft = masks.soft(max_temp ** done)
        change = place.update(soft, pairs.source) - place.update(soft, pairs.base)  # (batch, d)
        return pairs.base.activations + change, l0_lambda * l0(soft, masks.fan_in)

    learn_from_answers(place, list(masks.parameters()), exchange, lr=lr, epochs=epochs, batch_size=batch_size,
                       seed=seed)
    return load(masks.circuit().scores, None, place)
