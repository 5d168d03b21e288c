"""A step of boundless DAS, batch 128: cached activations and what lies above the site, against the whole model
run on base and source.

    python benchmarks/das_step.py

A model of the paper's shape with fresh weights. The fast way keeps the rotation orthogonal by Cayley's map;
the plain one is timed with that and with torch's default, matrix_exp.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from benchmarks.timing import Step, compare
from interp.methods.das import WARM_UP, AlignmentSearch
from interp.models.examples import Answer, Examples
from interp.models.loading import build_gpt2
from interp.models.opened import OpenModel, RunOn, Site
from interp.models.opening import open_model
from interp.models.tail import run_on_from

MOD, ROWS, BATCH, STEPS = 113, 2500, 128, 5000
FAST, PLAIN = "cached, above the site only", "whole model, base and source"


def search_step(opened: OpenModel, search: AlignmentSearch, activations: Callable[[], tuple[Tensor, Tensor]],
                run_on: RunOn, rows: Tensor, exchanged: Answer) -> Callable[[], float]:
    """A step of a search, with its backward pass and the optimizer's.

    Args:
        activations: gives those of base and of source, (batch, d_model) each.
        exchanged: what is right after the exchange, of the batch.
    """
    optimizer = torch.optim.Adam(search.parameters(), lr=0.01, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, WARM_UP * STEPS, STEPS)

    def step() -> float:
        intervened, penalty = search(*activations(), 1.0)
        loss = opened.loss(run_on(intervened, rows), exchanged).mean() + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        return loss.item()

    return step


@torch.no_grad()
def run_to(opened: OpenModel, examples: Examples, site: Site, rows: Tensor) -> Tensor:
    """The activations of some rows at a site, (batch, d_model), by the plain way: the model run up to there."""
    found = opened.listen(examples.tokens[rows], {(site.layer, site.location)})
    return found[site.layer, site.location][torch.arange(len(rows)), examples.probed[rows]]


def das_step(location: str, plain_map: str, name: str) -> Step:
    generator = torch.Generator().manual_seed(0)
    labels, last = torch.randint(MOD, (ROWS,), generator=generator), torch.full((ROWS,), 2)
    base, source = (Examples(tokens, last, last, {}, Answer(labels))
                    for tokens in torch.randint(MOD, (2, ROWS, 3), generator=generator))
    model = build_gpt2(vocab_size=MOD + 1, n_positions=3, n_layer=1, n_head=4, n_embd=128, n_inner=512, seed=0)
    opened = open_model(model.eval().requires_grad_(False), base)
    site, rows = Site(0, location), torch.arange(BATCH)
    search = AlignmentSearch(128, "cayley" if name == FAST else plain_map, seed=0)
    if name == FAST:
        cached = tuple(opened.read(examples, [site])[0][rows] for examples in (base, source))
        return search_step(opened, search, lambda: cached, run_on_from(opened, base, site), rows, base.answer[rows])

    def run() -> tuple[Tensor, Tensor]:
        return run_to(opened, base, site, rows), run_to(opened, source, site, rows)

    return search_step(opened, search, run, opened.patched(base, site), rows, base.answer[rows])


def show_difference(build: Callable[[str], Step], steps: int) -> None:
    fast, plain = build(FAST), build(PLAIN)
    losses = [(fast(), plain()) for _ in range(steps)]
    print(f"  largest difference of the losses of the first {steps} steps, relative: "
          f"{max(abs(own / other - 1) for own, other in losses):.1e}")


if __name__ == "__main__":
    for location in ("resid_mid", "resid_post"):
        for plain_map in ("cayley", "matrix_exp"):
            build = partial(das_step, location, plain_map)
            compare(f"DAS step at {location}, plain with {plain_map}", build, FAST, PLAIN, rounds=15, in_a_row=20)
            show_difference(build, 20)
