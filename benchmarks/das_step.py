"""A step of boundless DAS, batch 128: cached activations and what lies above the site, against the whole model
run on base and source.

    python benchmarks/das_step.py

A model of the paper's shape with fresh weights. Both ways use the same rotation; the last comparison
adds torch's default way to keep it orthogonal (matrix_exp) to the plain one.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import Step, compare
from interp.das import AlignmentSearch
from interp.models import build_gpt2, load_model, save_model
from interp.residual_stream import LastPositionTail, ResidualStream

MOD, ROWS, BATCH = 113, 2500, 128
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
    site = (0, location, 2)
    at_base, at_source = stream.capture(base, *site), stream.capture(source, *site)
    search = AlignmentSearch(128, "cayley" if name == FAST else plain_map, seed=0)
    optimizer = torch.optim.Adam(search.parameters(), lr=0.01)

    def step() -> float:
        rows = torch.randint(ROWS, (BATCH,), generator=generator)
        if name == FAST:
            intervened, penalty = search(at_base[rows], at_source[rows], 1.0)
            logits = tail.logits(intervened, rows)
        else:
            intervened, penalty = search(*(stream.capture(tokens[rows], *site) for tokens in (base, source)), 1.0)
            logits = stream.patched_logits(base[rows], *site, intervened)
        loss = F.cross_entropy(logits, labels[rows]) + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


if __name__ == "__main__":
    for location in ("resid_mid", "resid_post"):
        for plain_map in ("cayley", "matrix_exp"):
            compare(f"DAS step at {location}, plain with {plain_map}", partial(das_step, location, plain_map),
                    FAST, PLAIN, rounds=30)
