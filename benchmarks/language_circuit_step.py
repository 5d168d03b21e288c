"""A circuit-probing step on a model of GPT-2-small's shape: the replayed sublayer against the whole model.

    python benchmarks/language_circuit_step.py [--quick]

A step is 500 sentences of 12 tokens, its backward pass to the mask included. Below the table: what caching the
sublayers' inputs takes, once for all steps, as layers and examples grow.
"""

import multiprocessing
import time
from functools import partial

import torch

from benchmarks.language_models import BATCH, EXAMPLES, MIDDLE_LAYER, build_model, draw_sentences
from benchmarks.mask_training import mask_step, plain_updates
from benchmarks.timing import Step, compare, peak_memory
from interp.models.forest import plant
from interp.models.loading import Sublayer, blocks_of, find_sublayer
from interp.models.sublayer import bytes_kept, capture, capture_inputs, replay

FAST, PLAIN = "replayed sublayer", "whole model, masked weights"
STEPS = 20  # fast ones in a row, as in real use; of the plain way one is long enough


def circuit_step(operation: str, name: str) -> Step:
    model, sentences = build_model(), draw_sentences(EXAMPLES)
    sublayer = find_sublayer(model, MIDDLE_LAYER, operation)
    update = (fast_updates(model, sublayer, sentences) if name == FAST
              else plain_updates(model, sublayer, torch.tensor(sentences)))
    generator = torch.Generator().manual_seed(0)
    step = mask_step(sublayer, update, torch.randint(2, (EXAMPLES,), generator=generator), BATCH, 1e-7, generator)
    return (lambda: [step() for _ in range(STEPS)]) if name == FAST else step


def fast_updates(model, sublayer: Sublayer, sentences: list[list[int]]):
    forest = plant(sentences)
    return replay(sublayer, capture_inputs(model, forest, [sublayer])[0], forest).update


def caching(layers: int, examples: int, name: str) -> Step:
    model, forest = build_model(), plant(draw_sentences(examples))
    places = [find_sublayer(model, layer, operation) for layer in range(layers) for operation in ("attn", "mlp")]
    return lambda: capture(model, forest, places, layers=range(layers))


def show_caching(layers: int, examples: int) -> None:
    """A line of the table; its memory is that of a process that does nothing else."""
    forest = plant(draw_sentences(examples))
    kept = layers * bytes_kept(build_model().config, forest, ("attn", "mlp"), entering=True) / 2**20
    start = time.perf_counter()
    caching(layers, examples, FAST)()
    seconds = time.perf_counter() - start
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peak = pool.apply(peak_memory, (partial(caching, layers, examples), FAST))
    print(f"  {layers:6} {examples:8} {forest.compression:11.1f} {seconds:8.2f} {kept:9.0f} {peak:9.0f}")


if __name__ == "__main__":
    for operation in ("attn", "mlp"):
        compare(f"circuit step, layer {MIDDLE_LAYER}, {operation}, batch {BATCH}", partial(circuit_step, operation),
                FAST, PLAIN, rounds=3, sizes=(STEPS, 1))
    every = len(blocks_of(build_model()))
    print("caching the inputs of all sublayers and blocks: compression by the forest, seconds with loading, MiB kept, "
          "MiB of the process at its peak\n  layers examples compression  seconds      kept      peak")
    for layers in sorted({1, every // 2, every}):
        show_caching(layers, EXAMPLES)
    for examples in (EXAMPLES // 2, 2 * EXAMPLES):
        show_caching(every, examples)
