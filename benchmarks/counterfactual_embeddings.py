"""Counterfactual embeddings: all examples in one tensor against one example at a time.

    python benchmarks/counterfactual_embeddings.py [--quick]

Random activations and a probe of the paper's shape: time does not depend on what they hold.
"""

import sys
from functools import partial

import torch

from benchmarks.timing import Step, compare
from interp.methods.probes import build_probe, counterfactual_embeddings

EXAMPLES, SAMPLE, STEPS, ROUNDS = (100, 2, 10, 2) if "--quick" in sys.argv else (5000, 20, 100, 5)
CLASSES, D_MODEL = 113, 128
TOGETHER, REFERENCE = "all at once", "one at a time, on a sample"


def embed(intermediate_size: int, way: str) -> Step:
    generator = torch.Generator().manual_seed(0)
    probe = build_probe(D_MODEL, CLASSES, intermediate_size, seed=0).requires_grad_(False)
    activations = torch.randn(EXAMPLES, D_MODEL, generator=generator)
    targets = torch.randint(CLASSES, (EXAMPLES,), generator=generator)
    batches = [slice(None)] if way == TOGETHER else [slice(i, i + 1) for i in range(SAMPLE)]
    return lambda: [counterfactual_embeddings(probe, activations[rows], targets[rows], num_steps=STEPS, lr=0.1)
                    for rows in batches]


if __name__ == "__main__":
    for kind, size in (("linear", -1), ("MLP", 256)):
        compare(f"counterfactual embeddings, {kind} probe, {STEPS} steps each", partial(embed, size),
                (TOGETHER, REFERENCE), rounds=ROUNDS, units={TOGETHER: EXAMPLES, REFERENCE: SAMPLE}, unit="example")
