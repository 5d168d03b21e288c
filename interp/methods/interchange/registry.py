"""The methods that are compared, by name: adding one is a function, an entry here, and one in table.INTERCHANGES."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from interp.methods.interchange.base import Interchange, SiteUnderStudy, Subspace
from interp.methods.interchange.circuit import (
    NeuronInterchange,
    UpdateInterchange,
    circuit_complement,
    circuit_neurons,
    circuit_selected,
    circuit_update,
    neuron_mask,
)
from interp.methods.interchange.learned import Rotated, das, das_k
from interp.methods.interchange.linear import (
    Embedding,
    difference_in_means,
    full,
    lda,
    leace,
    linear_probe,
    mlp_probe,
    none,
    pca,
    random,
)
from interp.methods.interchange.options import OPTIONS, RANKED, Options
from interp.runs.config import BadInput, shown
from interp.runs.tensors import load_tensors

FITS: dict[str, Callable[..., Interchange]] = {
    "none": none, "full": full, "random": random, "pca": pca, "difference_in_means": difference_in_means, "lda": lda,
    "leace": leace, "linear_probe": linear_probe, "mlp_probe": mlp_probe, "circuit_update": circuit_update,
    "circuit_neurons": circuit_neurons, "circuit_complement": circuit_complement, "circuit_selected": circuit_selected,
    "das": das, "das_k": das_k, "neuron_mask": neuron_mask}
CLASSES: dict[str, type[Interchange]] = {  # of what a fit gives; any other gives a Subspace
    "mlp_probe": Embedding, "circuit_update": UpdateInterchange, "circuit_neurons": NeuronInterchange,
    "circuit_complement": UpdateInterchange, "circuit_selected": UpdateInterchange, "neuron_mask": UpdateInterchange,
    "das": Rotated}


def fit(name: str, site: SiteUnderStudy, seed: int, *, rank: str | int = "selected", **options: Any) -> Interchange:
    """A method fitted, under its name. rank: of the methods in RANKED; options: as OPTIONS has them."""
    given = OPTIONS.get(name, Options)(**options).model_dump() | ({"rank": rank} if name in RANKED else {})
    return replace(FITS[name](site, seed, **given), name=name)


def load_interchange(path: str | Path) -> tuple[Interchange, dict[str, Any]]:
    """A saved interchange, and what it is about; raises BadInput where there is none."""
    tensors, about = load_tensors("interchange", path)
    name = about.pop("interchange", None)
    if name not in FITS:
        raise BadInput(f"{shown(path)} is not a saved interchange.")
    kind, rank = CLASSES.get(name, Subspace), about.pop("rank", None)
    further: list[dict[str, int]] = [about.pop("fan_in")] if "fan_in" in about else []
    return kind(name, rank, dict[str, Tensor](tensors), *further), about
