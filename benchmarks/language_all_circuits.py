"""Circuits of all sublayers of a model of GPT-2-small's shape, caching included: the training of Experiment 4, timed.

    python benchmarks/language_all_circuits.py [--quick]

2000 sentences in batches of 500 for 90 epochs, which are 360 steps, for each of 24 sublayers. Below: what caching the
sublayers' inputs takes, once for all steps, as layers and examples grow.
"""

import time

import torch
from tqdm import tqdm

from benchmarks.language_models import BATCH, EXAMPLES, LAYERS, QUICK, build_gpt2_small, draw_sentences
from benchmarks.timing import alone, own_peak_memory
from interp.methods.circuits import find_circuit
from interp.models.examples import Examples
from interp.models.open_model import RESID_PRE, OpenModel, Site
from interp.models.opening import open_model
from interp.models.positions import EVERYWHERE
from interp.models.replay import replay
from interp.models.sublayers import Sublayer, find_sublayer

OPERATIONS = ("attn", "mlp")
EPOCHS = 9 if QUICK else 90


def cache(model: OpenModel, examples: Examples, sublayers: list[Sublayer]) -> dict[Site, torch.Tensor]:
    """What circuit probing keeps of a pass: the residual stream that enters each layer."""
    return model.activations(examples, [Site(sublayer.layer, RESID_PRE, EVERYWHERE) for sublayer in sublayers])


def sublayers_of(model: OpenModel, layers: int) -> list[Sublayer]:
    return [find_sublayer(model, layer, operation) for layer in range(layers) for operation in OPERATIONS]


def find_all() -> None:
    examples = draw_sentences(EXAMPLES)
    model = open_model(build_gpt2_small(), examples)
    sublayers, generator = sublayers_of(model, LAYERS), torch.Generator().manual_seed(0)

    start = time.perf_counter()
    entering = cache(model, examples, sublayers)
    cached = time.perf_counter()
    seconds = dict.fromkeys(OPERATIONS, 0.0)
    for sublayer in tqdm(sublayers, unit="circuit"):
        begun = time.perf_counter()
        replayed = replay(model, sublayer, examples, entering[Site(sublayer.layer, RESID_PRE, EVERYWHERE)])
        find_circuit(sublayer, replayed, examples.variables["labels"], lr=0.001, batch_size=BATCH, num_epochs=EPOCHS,
                     mask_init=0.0, max_temp=200, l0_lambda=1e-7, generator=generator)
        seconds[sublayer.operation] += time.perf_counter() - begun
    steps = EPOCHS * (EXAMPLES // BATCH)
    print(f"{len(sublayers)} circuits, {steps} steps each: {(time.perf_counter() - start) / 60:.1f} min, of which "
          f"caching {cached - start:.1f} s; peak memory {own_peak_memory():.0f} MiB")
    for operation, took in seconds.items():
        print(f"  {operation}: {1000 * took / steps / LAYERS:.0f} ms a step")


def caching(layers: int, count: int) -> str:
    """A line of the table, of a process that does nothing else."""
    examples = draw_sentences(count)
    model = open_model(build_gpt2_small(), examples)
    start = time.perf_counter()
    kept = cache(model, examples, sublayers_of(model, layers))
    seconds, size = time.perf_counter() - start, sum(values.nbytes for values in kept.values()) / 2**20
    return f"  {layers:6} {count:8} {seconds:8.2f} {size:9.0f} {own_peak_memory():9.0f}"


if __name__ == "__main__":
    find_all()
    print("caching what enters each layer: seconds, MiB kept, MiB of the process at its peak\n"
          "  layers examples  seconds      kept      peak")
    for layers, count in [*((layers, EXAMPLES) for layers in sorted({1, LAYERS // 2, LAYERS})),
                          (LAYERS, EXAMPLES // 2), (LAYERS, 2 * EXAMPLES)]:
        print(alone(caching, layers, count), flush=True)
