"""A circuit-probing step of 500 examples: the replayed sublayer against the whole model with masked weights.

    python benchmarks/circuit_step.py

A model of the paper's shape with fresh weights: time does not depend on what it has learned.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import Step, compare
from interp.circuits import shuffled_batches, soft_nearest_neighbor_loss
from interp.masks import Masks, NeuronMasks, l0
from interp.models import build_gpt2, find_sublayer
from interp.prefixes import unshared
from interp.sublayer import capture_inputs, replay

MOD, ROWS, BATCH = 113, 7661, 500
FAST, PLAIN = "replayed sublayer", "whole model, masked weights"


def circuit_step(operation: str, name: str) -> Step:
    model = build_gpt2(vocab_size=MOD + 1, n_positions=3, n_layer=1, n_head=4, n_embd=128, n_inner=512, seed=0)
    sublayer = find_sublayer(model.eval().requires_grad_(False), 0, operation)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(MOD, (ROWS, 3), generator=generator)
    labels, probed = tokens[:, 0] ** 2 % MOD, torch.full((ROWS,), 2)
    masks = NeuronMasks(sublayer, init=0.0)
    optimizer = torch.optim.AdamW(masks.parameters(), lr=1e-3)
    updates = fast_updates if name == FAST else plain_updates
    update = updates(model, sublayer, tokens, probed)

    def step() -> float:
        rows = shuffled_batches(ROWS, BATCH, generator)[0]
        soft = masks.soft(1.0)
        loss = soft_nearest_neighbor_loss(update(soft, rows), labels[rows]) + 1e-6 * l0(soft, masks.fan_in)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def fast_updates(model, sublayer, tokens, probed):
    forest = unshared(tokens, probed)
    return replay(sublayer, capture_inputs(model, forest, [sublayer])[0], forest).update


def plain_updates(model, sublayer, tokens, probed):
    caught = {}
    sublayer.module.register_forward_hook(lambda module, arguments, output: caught.update(
        update=output[0] if isinstance(output, tuple) else output))
    prefix = f"transformer.h.{sublayer.layer}.{sublayer.operation}"

    def update(soft: Masks, rows: Tensor) -> Tensor:
        weights = {f"{prefix}.{name}.weight": linear.weight * soft[name] for name, linear in sublayer.maps.items()}
        torch.func.functional_call(model, weights, (tokens[rows],), {"use_cache": False})
        return caught["update"][torch.arange(len(rows)), probed[rows]]

    return update


if __name__ == "__main__":
    for operation in ("attn", "mlp"):
        compare(f"circuit step, {operation}, batch {BATCH}", partial(circuit_step, operation), FAST, PLAIN,
                rounds=15, in_a_row=20)
