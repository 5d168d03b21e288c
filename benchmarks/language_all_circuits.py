"""Circuits of all sublayers of a model of GPT-2-small's shape, caching included: the training of Experiment 4, timed.

    python benchmarks/language_all_circuits.py [--quick]

2000 sentences in batches of 500 for 90 epochs, which are 360 steps, for each of 24 sublayers.
"""

import time

import torch
from tqdm import tqdm

from benchmarks.language_models import BATCH, EXAMPLES, build_model, draw_sentences
from benchmarks.timing import own_peak_memory
from interp.methods.circuits import find_circuit
from interp.models.forest import plant
from interp.models.loading import blocks_of, find_sublayer
from interp.models.sublayer import capture, replay

EPOCHS = 90

if __name__ == "__main__":
    model, sentences = build_model(), draw_sentences(EXAMPLES)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (EXAMPLES,), generator=generator)
    layers = range(len(blocks_of(model)))
    sublayers = [find_sublayer(model, layer, operation) for layer in layers for operation in ("attn", "mlp")]

    start = time.perf_counter()
    forest = plant(sentences)
    inputs = capture(model, forest, sublayers, layers).inputs
    cached = time.perf_counter()
    seconds = {"attn": 0.0, "mlp": 0.0}
    for sublayer, read in tqdm(list(zip(sublayers, inputs)), unit="circuit"):
        begun = time.perf_counter()
        find_circuit(sublayer, replay(sublayer, read, forest), labels, lr=0.001, batch_size=BATCH, num_epochs=EPOCHS,
                     mask_init=0.0, max_temp=200, l0_lambda=1e-7, generator=generator)
        seconds[sublayer.operation] += time.perf_counter() - begun
    steps = EPOCHS * (EXAMPLES // BATCH)
    print(f"{len(sublayers)} circuits, {steps} steps each: {(time.perf_counter() - start) / 60:.1f} min, of which "
          f"caching {cached - start:.1f} s; peak memory {own_peak_memory():.0f} MiB")
    for operation, took in seconds.items():
        print(f"  {operation}: {1000 * took / steps / len(layers):.0f} ms a step")
