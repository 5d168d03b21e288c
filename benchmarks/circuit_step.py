"""A circuit-probing step of 500 examples: attention written out, the sublayer's module, and the reference.

    python benchmarks/circuit_step.py [--quick]

Of the paper's model, and of one of GPT-2 small's shape on sentences of 12 tokens, with fresh weights: time does not
depend on what they have learned. A step has its backward pass to the mask and the optimizer's in it. The reference is
the model run up to the sublayer under masks.
"""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.language_models import BATCH, EXAMPLES, MIDDLE_LAYER, QUICK, build_gpt2_small, draw_sentences
from benchmarks.timing import Step, compare, largest_difference
from interp.methods.circuits import soft_nearest_neighbor_loss
from interp.methods.masks import NeuronMasks, l0
from interp.methods.optimize import shuffled_batches
from interp.models.examples import Answer, Examples
from interp.models.loading import build_gpt2
from interp.models.open_model import RESID_PRE, OpenModel, Site
from interp.models.opening import open_model
from interp.models.positions import EVERYWHERE
from interp.models.replay import Replay, ReplayedAttention, ReplayedBlock, ReplayedMLP
from interp.models.sublayers import Sublayer, find_sublayer

MOD, ROWS, PAPERS_BATCH = (13, 169, 100) if QUICK else (113, 7661, 500)
STEPS = 20  # optimized ones in a row, as in real use; of the reference on sentences one is long enough
WRITTEN_OUT, ALONE, BLOCK, REFERENCE = "attention written out", "MLP alone", "block", "model up to the sublayer"
WAYS = {"attn": (WRITTEN_OUT, BLOCK, REFERENCE), "mlp": (ALONE, BLOCK, REFERENCE)}


def mask_step(sublayer: Sublayer, replayed: Replay, labels: torch.Tensor, batch_size: int,
              l0_lambda: float) -> Callable[[], float]:
    """A step on a random batch. labels: (rows,)."""
    masks, generator = NeuronMasks(sublayer, init=0.0), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(masks.parameters(), lr=1e-3)

    def step() -> float:
        rows = shuffled_batches(len(labels), batch_size, generator)[0]
        soft = masks.soft(1.0)
        updates = replayed.update(soft, rows)
        loss = soft_nearest_neighbor_loss(updates, labels[rows]) + l0_lambda * l0(soft, masks.fan_in)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def replay_by(way: str, model: OpenModel, sublayer: Sublayer, examples: Examples) -> Replay:
    below = Site(sublayer.layer, RESID_PRE, EVERYWHERE)
    entering = model.activations(examples, [below])[below]
    if way == REFERENCE:
        return ReplayedBlock(model.with_ways(suffix=frozenset()), sublayer, examples, entering)
    ways = {WRITTEN_OUT: ReplayedAttention, ALONE: ReplayedMLP, BLOCK: ReplayedBlock}
    return ways[way](model, sublayer, examples, entering)


def papers_step(operation: str, way: str) -> Step:
    """Of a model of the paper's shape, on its sequences."""
    tokens, last = torch.randint(MOD, (ROWS, 3), generator=torch.Generator().manual_seed(0)), torch.full((ROWS,), 2)
    examples = Examples(tokens, last, last, {"a2": tokens[:, 0] ** 2 % MOD}, Answer(tokens[:, 0]))
    model = build_gpt2(vocab_size=MOD + 1, n_positions=3, n_layer=1, n_head=4, n_embd=128, n_inner=512, seed=0)
    opened = open_model(model.eval().requires_grad_(False), examples)
    sublayer = find_sublayer(opened, 0, operation)
    return mask_step(sublayer, replay_by(way, opened, sublayer, examples), examples.variables["a2"], PAPERS_BATCH, 1e-6)


def language_step(operation: str, steps: int, way: str) -> Step:
    """Of a model of GPT-2 small's shape, on sentences; an optimized way takes so many steps at once."""
    examples = draw_sentences(EXAMPLES)
    opened = open_model(build_gpt2_small(), examples)
    sublayer = find_sublayer(opened, MIDDLE_LAYER, operation)
    step = mask_step(sublayer, replay_by(way, opened, sublayer, examples), examples.variables["labels"], BATCH, 1e-7)
    return step if way == REFERENCE or steps == 1 else lambda: [step() for _ in range(steps)]


if __name__ == "__main__":
    for operation, ways in WAYS.items():
        build = partial(papers_step, operation)
        compare(f"circuit step, the paper's model, {operation}, batch {PAPERS_BATCH}", build, ways, rounds=15,
                in_a_row=STEPS)
        print(largest_difference(build, ways, 3))
    for operation, ways in WAYS.items():
        compare(f"circuit step, GPT-2 small's shape, layer {MIDDLE_LAYER}, {operation}, batch {BATCH}",
                partial(language_step, operation, STEPS), ways, rounds=3, units=dict.fromkeys(ways[:-1], STEPS))
        print(largest_difference(partial(language_step, operation, 1), ways, 2))
