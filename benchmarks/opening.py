"""Opening a model, which compares the optimized ways with the reference, against a pass over the compared rows.

    python benchmarks/opening.py [--quick]

Of the paper's model, and of one of GPT-2 small's shape.
"""

from functools import partial

import torch

from benchmarks.language_models import EXAMPLES, QUICK, build_gpt2_small, draw_sentences
from benchmarks.timing import Step, compare
from interp.models.loading import build_gpt2
from interp.models.opening import open_model

ROWS_COMPARED = 4
OPENING, PASS = "opening", f"a pass over {ROWS_COMPARED} rows, one by one"


def opening(papers: bool, way: str) -> Step:
    examples = draw_sentences(EXAMPLES)
    model = build_gpt2_small() if not papers else build_gpt2(
        vocab_size=50257, n_positions=12, n_layer=1, n_head=4, n_embd=128, n_inner=512, seed=0).eval()

    @torch.no_grad()
    def run() -> None:
        for row in examples.tokens[:ROWS_COMPARED]:
            model(row.unsqueeze(0), use_cache=False)

    return (lambda: open_model(model.requires_grad_(False), examples)) if way == OPENING else run


if __name__ == "__main__":
    for papers, title in ((True, "the paper's model"), (False, "GPT-2 small's shape")):
        compare(f"opening {title}", partial(opening, papers), (OPENING, PASS), rounds=3 if QUICK else 9,
                unit="opening or pass")
