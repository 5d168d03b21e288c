"""A circuit-probing step of 500 examples: the replayed sublayer against the whole model with masked weights.

    python benchmarks/circuit_step.py

A model of the paper's shape with fresh weights: time does not depend on what it has learned.
"""

from functools import partial

import torch

from benchmarks.mask_training import mask_step, plain_updates
from benchmarks.timing import Step, compare
from interp.models.forest import unshared
from interp.models.loading import build_gpt2, find_sublayer
from interp.models.sublayer import capture_inputs, replay

MOD, ROWS, BATCH = 113, 7661, 500
FAST, PLAIN = "replayed sublayer", "whole model, masked weights"


def circuit_step(operation: str, name: str) -> Step:
    model = build_gpt2(vocab_size=MOD + 1, n_positions=3, n_layer=1, n_head=4, n_embd=128, n_inner=512, seed=0)
    sublayer = find_sublayer(model.eval().requires_grad_(False), 0, operation)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(MOD, (ROWS, 3), generator=generator)
    update = (fast_updates if name == FAST else plain_updates)(model, sublayer, tokens)
    return mask_step(sublayer, update, tokens[:, 0] ** 2 % MOD, BATCH, 1e-6, generator)


def fast_updates(model, sublayer, tokens):
    forest = unshared(tokens, torch.full((ROWS,), 2))
    return replay(sublayer, capture_inputs(model, forest, [sublayer])[0], forest).update


if __name__ == "__main__":
    for operation in ("attn", "mlp"):
        compare(f"circuit step, {operation}, batch {BATCH}", partial(circuit_step, operation), FAST, PLAIN,
                rounds=15, in_a_row=20)
