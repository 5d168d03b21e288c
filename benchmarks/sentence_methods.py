"""The methods on sentences in a real model: reading all sites in one pass, a step of DAS in the middle layer, at the
last token and at the subject, and a map of everything exchanged at each layer and position.

    python benchmarks/sentence_methods.py [--model Models/SmolLM2-135M] [--sentences FILE] [--quick]

A step of 64 pairs by the suffix forward against the whole model run on base and source; with the search for a rotation,
and without what that takes. The reference is no straw man: it reads the sources no further up than the site, knows the
activations of the bases, and compares the two logits that the suffix forward does.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.das_step import REFERENCE, SUFFIX, WAYS, run_to, search_step
from benchmarks.timing import Step, alone, compare, largest_difference, own_peak_memory
from interp.methods.das import AlignmentSearch
from interp.models.examples import Answer, Pairs
from interp.models.loading import load_model, load_tokenizer
from interp.models.open_model import RESID_MID, RESID_POST, ForwardFrom, OpenModel, Site, in_batches
from interp.models.opening import open_model
from interp.models.positions import FIRST, LAST
from interp.models.suffix import forward_from
from interp.runs.config import BadInput
from interp.tasks.keys import AGREEMENT, LABELS
from interp.tasks.sentences import Reader, draw, drawn_pairs, read_sentences

BATCH = 64
PREFIXES = {"llama": ("<|endoftext|>", True), "gemma3_text": ("<bos>", False)}  # and whether with a capital letter


@functools.cache
def open_with_pairs(model: str, sentences: str, count: int) -> tuple[OpenModel, Pairs]:
    """A model, and sentences of the paper's agreement as it reads them, each with a source of the other number."""
    loaded = load_model("--model", model, torch.device("cpu"))
    reader = Reader(load_tokenizer("--model", model), model, *PREFIXES.get(loaded.config.model_type, ("", False)))
    table = read_sentences("--sentences", sentences, AGREEMENT, [LABELS])
    table = draw("--sentences", sentences, table, count, torch.Generator().manual_seed(0))
    examples = reader.read(table, [LABELS], loaded.device, {})
    return open_model(loaded, examples), drawn_pairs(examples, LABELS, True, sentences, 0)


def read_all_sites(where: tuple[str, str, int]) -> str:
    """What reading takes, of a process that does nothing else."""
    model, pairs = open_with_pairs(*where)
    locations = (RESID_POST,) if model.family.parallel else (RESID_MID, RESID_POST)
    sites = [Site(layer, location) for layer in range(len(model.blocks)) for location in locations]
    lines = []
    for shares in sorted({False, model.shares}):
        model.shares, start = shares, time.perf_counter()
        size = sum(values.nbytes for values in model.activations(pairs.base, sites).values())
        lines.append(f"reading {len(sites)} sites of {len(pairs)} sentences, prefixes shared: {shares}; "
                     f"{time.perf_counter() - start:.1f} s, {size / 2**20:.0f} MiB kept, peak memory "
                     f"{own_peak_memory():.0f} MiB")
    return "\n".join(lines)


def das_step(where: tuple[str, str, int], rotated: bool, position: str, way: str) -> Step:
    model, pairs = open_with_pairs(*where)
    pairs = pairs.probing(position)
    site, rows = Site(len(model.blocks) // 2, RESID_POST), torch.arange(BATCH).remainder(len(pairs))
    base, source = (model.activations(examples[rows], [site])[site] for examples in (pairs.base, pairs.source))
    forward = forward_from(model, pairs.base, [site])[site] if way == SUFFIX else model.patched(pairs.base, site)

    def activations() -> tuple[Tensor, Tensor]:
        return base, run_to(model, pairs.source, site, rows) if way == REFERENCE else source

    if not rotated:
        return interchange_step(model, activations, forward, rows, pairs.counterfactual[rows])
    search = AlignmentSearch(base.shape[1], "cayley", seed=0)
    return search_step(model, search, activations, forward, rows, pairs.counterfactual[rows])


def interchange_step(model: OpenModel, activations: Callable[[], tuple[Tensor, Tensor]], forward: ForwardFrom,
                     rows: Tensor, counterfactual: Answer) -> Callable[[], float]:
    """A step with the mean of base and source, and its gradient to there: all but what the rotation takes."""
    def step() -> float:
        base, source = activations()
        moved = ((base + source) / 2).requires_grad_()
        loss = model.loss(forward(moved, rows), counterfactual).mean()
        loss.backward()
        return loss.item()

    return step


def full_map(where: tuple[str, str, int], count: int) -> str:
    """Everything exchanged at each position and in every fifth layer, of some pairs, once each way."""
    model, pairs = open_with_pairs(*where)
    pairs = pairs[torch.arange(min(count, len(pairs)))]
    positions = dict.fromkeys([FIRST, *pairs.base.positions, LAST])
    sites = [Site(layer, RESID_POST, position) for position in positions for layer in range(2, len(model.blocks), 5)]
    seconds, shares = {}, {}
    for way in WAYS:
        start = time.perf_counter()
        sources = model.activations(pairs.source, sites)
        forward = (forward_from(model, pairs.base, sites) if way == SUFFIX
                   else {site: model.patched(pairs.base, site) for site in sites})
        shares[way] = [model.is_right(in_batches(forward[site], sources[site]), pairs.counterfactual).sum().item()
                       for site in sites]
        seconds[way] = time.perf_counter() - start
    ratio, same = seconds[REFERENCE] / seconds[SUFFIX], shares[SUFFIX] == shares[REFERENCE]
    return (f"map of {len(positions)} positions and every fifth layer, {len(pairs)} pairs: {seconds[SUFFIX]:.1f} s by "
            f"the suffix forward, {ratio:.2f} times as fast as the whole model; the same shares: {same}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="Models/SmolLM2-135M", help="its folder")
    parser.add_argument("--sentences", default="data/Language/SV_Agr.csv", help="a file with columns sentence, labels")
    parser.add_argument("--quick", action="store_true", help="few sentences, to see whether it runs")
    options = parser.parse_args()
    where = options.model, options.sentences, 100 if options.quick else 2000
    rounds, steps = (2, 2) if options.quick else (7, 3)
    try:
        print(alone(read_all_sites, where), flush=True)
    except BadInput as error:
        sys.exit(str(error))
    _, pairs = open_with_pairs(*where)
    for position in ("last", *{"subject"} & {*pairs.base.positions}):
        for rotated, title in ((True, "with the search for a rotation"), (False, "without it")):
            build = partial(das_step, where, rotated, position)
            compare(f"DAS step of {BATCH} pairs in the middle layer, at {position}, {title}", build, WAYS, rounds)
            print(largest_difference(build, WAYS, steps))
    print(full_map(where, 20 if options.quick else 500))


if __name__ == "__main__":
    main()
