"""A step of boundless DAS, batch 128: the suffix forward on cached activations against the whole model run on base and
source.

    python benchmarks/das_step.py [--quick]

A model of the paper's shape with fresh weights. The optimized way keeps the rotation orthogonal by Cayley's map; the
reference is timed with that and with torch's default, matrix_exp.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from benchmarks.timing import Step, compare, largest_difference
from interp.methods.das import WARM_UP, AlignmentSearch
from interp.models.examples import Answer, Examples
from interp.models.loading import build_gpt2
from interp.models.open_model import ForwardFrom, OpenModel, Site
from interp.models.opening import open_model
from interp.models.suffix import forward_from

MOD, ROWS, BATCH, STEPS, ROUNDS = (13, 169, 32, 50, 2) if "--quick" in sys.argv else (113, 2500, 128, 5000, 15)
SUFFIX, REFERENCE = "suffix forward, cached activations", "whole model, base and source"
WAYS = (SUFFIX, REFERENCE)


def search_step(model: OpenModel, search: AlignmentSearch, activations: Callable[[], tuple[Tensor, Tensor]],
                forward: ForwardFrom, rows: Tensor, counterfactual: Answer) -> Callable[[], float]:
    """A step of a search, with its backward pass and the optimizer's.

    activations: gives those of base and of source, (batch, d_model) each. counterfactual: of the batch.
    """
    optimizer = torch.optim.Adam(search.parameters(), lr=0.01, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, WARM_UP * STEPS, STEPS)

    def step() -> float:
        intervened, penalty = search(*activations(), 1.0)
        loss = model.loss(forward(intervened, rows), counterfactual).mean() + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        return loss.item()

    return step


@torch.no_grad()
def run_to(model: OpenModel, examples: Examples, site: Site, rows: Tensor) -> Tensor:
    """The activations of some rows at a site, (batch, d_model): the model run up to there."""
    return model.read(examples.tokens[rows], [site])[site][torch.arange(len(rows)), examples.probed[rows]]


def das_step(location: str, orthogonal_map: str, way: str) -> Step:
    generator = torch.Generator().manual_seed(0)
    labels, last = torch.randint(MOD, (ROWS,), generator=generator), torch.full((ROWS,), 2)
    base, source = (Examples(tokens, last, last, {}, Answer(labels))
                    for tokens in torch.randint(MOD, (2, ROWS, 3), generator=generator))
    model = build_gpt2(vocab_size=MOD + 1, n_positions=3, n_layer=1, n_head=4, n_embd=128, n_inner=512, seed=0)
    opened = open_model(model.eval().requires_grad_(False), base)
    site, rows = Site(0, location), torch.arange(BATCH)
    search = AlignmentSearch(128, "cayley" if way == SUFFIX else orthogonal_map, seed=0)
    if way == SUFFIX:
        cached = tuple(opened.activations(examples, [site])[site][rows] for examples in (base, source))
        forward = forward_from(opened, base, [site])[site]
        return search_step(opened, search, lambda: cached, forward, rows, base.answer[rows])

    def run() -> tuple[Tensor, Tensor]:
        return run_to(opened, base, site, rows), run_to(opened, source, site, rows)

    return search_step(opened, search, run, opened.patched(base, site), rows, base.answer[rows])


if __name__ == "__main__":
    for location in ("resid_mid", "resid_post"):
        for orthogonal_map in ("cayley", "matrix_exp"):
            build = partial(das_step, location, orthogonal_map)
            compare(f"DAS step at {location}, reference with {orthogonal_map}", build, WAYS, ROUNDS, in_a_row=20)
            print(largest_difference(build, WAYS, 20))
