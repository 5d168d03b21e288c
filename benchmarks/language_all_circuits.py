"""Circuits of all sublayers of a model of GPT-2-small's shape, caching included: the training of Experiment 4, timed.

    python benchmarks/language_all_circuits.py [--quick]

2000 sentences in batches of 500 for 90 epochs, which are 360 steps, for each of 24 sublayers. Below: what caching the
sublayers' inputs takes, once for all steps, as layers and examples grow.
"""

import multiprocessing
import time
from functools import partial

import torch
from tqdm import tqdm

from benchmarks.language_models import BATCH, EXAMPLES, LAYERS, QUICK, draw_sentences, open_gpt2
from benchmarks.timing import Step, own_peak_memory, peak_memory
from interp.methods.circuits import find_circuit
from interp.models.kept import bytes_kept, capture
from interp.models.opened import OpenModel
from interp.models.replay import replay
from interp.models.sublayers import Sublayer, find_sublayer

OPERATIONS = ("attn", "mlp")
EPOCHS = 9 if QUICK else 90


def sublayers_of(opened: OpenModel, layers: int) -> list[Sublayer]:
    return [find_sublayer(opened, layer, operation) for layer in range(layers) for operation in OPERATIONS]


def find_all() -> None:
    examples = draw_sentences(EXAMPLES)
    opened = open_gpt2(examples)
    sublayers, generator = sublayers_of(opened, LAYERS), torch.Generator().manual_seed(0)

    start = time.perf_counter()
    inputs = capture(opened, examples, sublayers, range(LAYERS)).inputs
    cached = time.perf_counter()
    seconds = dict.fromkeys(OPERATIONS, 0.0)
    for sublayer in tqdm(sublayers, unit="circuit"):
        begun = time.perf_counter()
        replayed = replay(opened, sublayer, examples, inputs[sublayer.layer, sublayer.operation])
        find_circuit(sublayer, replayed, examples.variables["labels"], lr=0.001, batch_size=BATCH, num_epochs=EPOCHS,
                     mask_init=0.0, max_temp=200, l0_lambda=1e-7, generator=generator)
        seconds[sublayer.operation] += time.perf_counter() - begun
    steps = EPOCHS * (EXAMPLES // BATCH)
    print(f"{len(sublayers)} circuits, {steps} steps each: {(time.perf_counter() - start) / 60:.1f} min, of which "
          f"caching {cached - start:.1f} s; peak memory {own_peak_memory():.0f} MiB")
    for operation, took in seconds.items():
        print(f"  {operation}: {1000 * took / steps / LAYERS:.0f} ms a step")


def caching(layers: int, count: int, name: str) -> Step:
    examples = draw_sentences(count)
    opened = open_gpt2(examples)
    return lambda: capture(opened, examples, sublayers_of(opened, layers), layers=range(layers))


def show_caching(layers: int, count: int) -> None:
    """A line of the table; its memory is that of a process that does nothing else."""
    examples = draw_sentences(count)
    kept = layers * bytes_kept(open_gpt2(examples), examples, OPERATIONS, entering=True) / 2**20
    step = caching(layers, count, "")
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peak = pool.apply(peak_memory, (partial(caching, layers, count), ""))
    print(f"  {layers:6} {count:8} {examples.forest.compression:11.1f} {seconds:8.2f} {kept:9.0f} {peak:9.0f}")


if __name__ == "__main__":
    find_all()
    print("caching the inputs of all sublayers and blocks: compression by the forest, seconds, MiB kept, MiB of the "
          "process at its peak\n  layers examples compression  seconds      kept      peak")
    for layers in sorted({1, LAYERS // 2, LAYERS}):
        show_caching(layers, EXAMPLES)
    for count in (EXAMPLES // 2, 2 * EXAMPLES):
        show_caching(LAYERS, count)
