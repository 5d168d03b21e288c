"""Counterfactual embeddings: all examples in one tensor against one example at a time.

    python benchmarks/counterfactual_embeddings.py

Random activations and a probe of the paper's shape: time does not depend on what they hold.
"""

from functools import partial

import torch

from benchmarks.timing import Step, compare
from interp.methods.counterfactual import counterfactual_embeddings
from interp.methods.probes import build_probe

EXAMPLES, SAMPLE, CLASSES, D_MODEL = 5000, 20, 113, 128
FAST, PLAIN = "all at once", "one at a time, on a sample"


def embed(intermediate_size: int, name: str) -> Step:
    generator = torch.Generator().manual_seed(0)
    probe = build_probe(D_MODEL, CLASSES, intermediate_size, seed=0).requires_grad_(False)
    activations = torch.randn(EXAMPLES, D_MODEL, generator=generator)
    targets = torch.randint(CLASSES, (EXAMPLES,), generator=generator)
    batches = [slice(None)] if name == FAST else [slice(i, i + 1) for i in range(SAMPLE)]
    return lambda: [counterfactual_embeddings(probe, activations[rows], targets[rows], num_steps=100, lr=0.1)
                    for rows in batches]


if __name__ == "__main__":
    for kind, size in (("linear", -1), ("MLP", 256)):
        compare(f"counterfactual embeddings, {kind} probe, 100 steps each", partial(embed, size), FAST, PLAIN,
                rounds=5, sizes=(EXAMPLES, SAMPLE), unit="example")
