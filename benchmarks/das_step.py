"""A step of boundless DAS, batch 128: cached activations and what lies above the site, against the whole model
run on base and source.

    python benchmarks/das_step.py

A model of the paper's shape with fresh weights. The fast way keeps the rotation orthogonal by Cayley's map;
the plain one is timed with that and with torch's default, matrix_exp.
"""

import tempfile
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.timing import Step, compare
from interp.methods.das import AlignmentSearch, warm_up_and_decay
from interp.models.loading import build_gpt2, load_model, save_model
from interp.models.residual_stream import LastPositionTail, ResidualStream

MOD, ROWS, BATCH, STEPS = 113, 2500, 128, 5000
FAST, PLAIN = "cached, above the site only", "whole model, base and source"


def das_step(location: str, plain_map: str, name: str) -> Step:
    generator = torch.Generator().manual_seed(0)
    base, source = torch.randint(MOD, (2, ROWS, 3), generator=generator)
    labels = torch.randint(MOD, (ROWS,), generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        save_model(build_gpt2(vocab_size=MOD + 1, n_positions=3, n_layer=1, n_head=4, n_embd=128, n_inner=512,
                              seed=0), path)
        stream = ResidualStream.load("model", str(path), torch.device("cpu"))
        tail = LastPositionTail(load_model("model", str(path), torch.device("cpu")), base, 0, location)
    site, rows = (0, location, 2), torch.arange(BATCH)
    base, source, labels = base[:BATCH], source[:BATCH], labels[:BATCH]
    at_base, at_source = stream.capture(base, *site), stream.capture(source, *site)
    search = AlignmentSearch(128, "cayley" if name == FAST else plain_map, seed=0)
    optimizer = torch.optim.Adam(search.parameters(), lr=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_up_and_decay(step, STEPS))

    def step() -> float:
        if name == FAST:
            intervened, penalty = search(at_base, at_source, 1.0)
            logits = tail.logits(intervened, rows)
        else:
            intervened, penalty = search(stream.capture(base, *site), stream.capture(source, *site), 1.0)
            logits = stream.patched_logits(base, *site, intervened)
        loss = F.cross_entropy(logits, labels) + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        return loss.item()

    return step


if __name__ == "__main__":
    for location in ("resid_mid", "resid_post"):
        for plain_map in ("cayley", "matrix_exp"):
            build = partial(das_step, location, plain_map)
            compare(f"DAS step at {location}, plain with {plain_map}", build, FAST, PLAIN, rounds=15, in_a_row=20)
            fast, plain = build(FAST), build(PLAIN)
            print(f"  largest difference of the losses of the first 20 steps: "
                  f"{max(abs(fast() - plain()) for _ in range(20)):.1e}")
