"""Circuit probing and the methods it is compared with. Notebooks need the names below; docs/tour.ipynb shows them."""

import os
from importlib import import_module

# Before torch is loaded: its threads should not wait actively for each other, which beside another busy process takes
# twice as long. A user's setting wins.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

MODULES = {  # of each name, loaded on first use: --help should not wait for torch
    "open_study": "tasks.study", "accuracy": "tasks.study", "Site": "models.open_model",
    "in_batches": "models.open_model", "forward_from": "models.suffix", "find_sublayer": "models.sublayers",
    "masked": "models.sublayers", "study_site": "methods.comparison", "fit": "methods.interchange.registry",
    "load_interchange": "methods.interchange.registry", "load_circuit": "methods.masks",
    "load_alignment": "methods.das"}
__all__ = list(MODULES)


def __getattr__(name: str):
    if name not in MODULES:
        raise AttributeError(f"module 'interp' has no attribute '{name}'")
    return getattr(import_module(f"interp.{MODULES[name]}"), name)
