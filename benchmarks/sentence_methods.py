"""The methods on sentences in a real model: reading all sites in one pass, and a step of DAS in the middle layer.

    python benchmarks/sentence_methods.py [--model Models/SmolLM2-135M] [--sentences FILE] [--quick]

A step of 64 pairs by what lies above the site, at the answering token only, against the whole model run on base and
source; with the search for a rotation, and without its own cost. The plain way is no straw man: it reads the sources
no further up than the site, knows the activations of the bases, and compares the two logits that the fast one does.
"""

import argparse
import functools
import multiprocessing
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.das_step import FAST, PLAIN, run_to, search_step, show_difference
from benchmarks.timing import Step, compare, own_peak_memory
from interp.methods.das import AlignmentSearch
from interp.models.examples import Examples
from interp.models.loading import load_model, load_tokenizer
from interp.models.opened import RESID_MID, RESID_POST, OpenModel, RunOn, Site
from interp.models.opening import open_model
from interp.models.tail import run_on_from
from interp.runs.config import BadInput
from interp.tasks.keys import AGREEMENT, LABELS
from interp.tasks.sentences import Reader, draw, pair, read_sentences

BATCH = 64
PREFIXES = {"llama": ("<|endoftext|>", True), "gemma3_text": ("<bos>", False)}  # and whether with a capital letter


@functools.cache
def open_with_pairs(model: str, sentences: str, count: int) -> tuple[OpenModel, Examples]:
    """A model, and sentences of the paper's agreement as it reads them, each with a source of the other number."""
    loaded = load_model("--model", model, torch.device("cpu"))
    reader = Reader(load_tokenizer("--model", model), model, *PREFIXES.get(loaded.config.model_type, ("", False)))
    table = read_sentences("--sentences", sentences, AGREEMENT, [LABELS])
    table = draw("--sentences", sentences, table, count, torch.Generator().manual_seed(0))
    examples = pair(reader.read(table, [LABELS], loaded.device), table, reader, LABELS, LABELS, 0)
    return open_model(loaded, examples), examples


def read_all_sites(where: tuple[str, str, int]) -> str:
    """What reading takes, of a process that does nothing else."""
    opened, examples = open_with_pairs(*where)
    locations = (RESID_POST,) if opened.family.parallel else (RESID_MID, RESID_POST)
    sites = [Site(layer, location) for layer in range(len(opened.blocks)) for location in locations]
    before, start = own_peak_memory(), time.perf_counter()
    kept = opened.read(examples, sites)
    seconds = time.perf_counter() - start
    return (f"reading {len(sites)} sites of {len(examples)} sentences in one pass: {seconds:.1f} s, "
            f"{sum(own.nbytes for own in kept) / 2**20:.0f} MiB kept, compression by the forest "
            f"{opened.forest(examples).compression:.1f}, peak memory {own_peak_memory():.0f} MiB "
            f"(before reading {before:.0f} MiB)")


def das_step(where: tuple[str, str, int], rotated: bool, name: str) -> Step:
    opened, examples = open_with_pairs(*where)
    site, rows = Site(len(opened.blocks) // 2, RESID_POST), torch.arange(BATCH).remainder(len(examples))
    base, source = (opened.read(own[rows], [site])[0] for own in (examples, examples.source))
    run_on = (run_on_from if name == FAST else OpenModel.patched)(opened, examples, site)

    def activations() -> tuple[Tensor, Tensor]:
        return base, source if name == FAST else run_to(opened, examples.source, site, rows)

    if not rotated:
        return exchange_step(opened, activations, run_on, rows, examples)
    search = AlignmentSearch(base.shape[1], "cayley", seed=0)
    return search_step(opened, search, activations, run_on, rows, examples.exchanged[rows])


def exchange_step(opened: OpenModel, activations: Callable[[], tuple[Tensor, Tensor]], run_on: RunOn, rows: Tensor,
                  examples: Examples) -> Callable[[], float]:
    """A step that exchanges the mean of both, and takes the gradient to there: all but the rotation's own cost."""
    exchanged = examples.exchanged[rows]

    def step() -> float:
        base, source = activations()
        moved = ((base + source) / 2).requires_grad_()
        loss = opened.loss(run_on(moved, rows), exchanged).mean()
        loss.backward()
        return loss.item()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="Models/SmolLM2-135M", help="its folder")
    parser.add_argument("--sentences", default="data/Language/SV_Agr.csv", help="a file with columns sentence, labels")
    parser.add_argument("--quick", action="store_true", help="few sentences, to see whether it runs")
    options = parser.parse_args()
    where = options.model, options.sentences, 100 if options.quick else 2000
    rounds, steps = (2, 2) if options.quick else (7, 3)
    try:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            print(pool.apply(read_all_sites, (where,)))
    except BadInput as error:
        sys.exit(str(error))
    for rotated, title in ((True, "with the search for a rotation"), (False, "without it")):
        build = partial(das_step, where, rotated)
        compare(f"DAS step of {BATCH} pairs in the middle layer, {title}", build, FAST, PLAIN, rounds=rounds)
        show_difference(build, steps)


if __name__ == "__main__":
    main()
