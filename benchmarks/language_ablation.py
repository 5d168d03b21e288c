"""One evaluation of an ablated sublayer, by layer: from that layer upward on the forest, against the whole model.

    python benchmarks/language_ablation.py [--quick]

The plain way is no straw man: it runs in batches and computes logits at the last position only.
"""

from functools import partial

import torch

from benchmarks.language_models import EXAMPLES, LAYERS, MIDDLE_LAYER, RIGHT, WRONG, draw_sentences, open_gpt2
from benchmarks.timing import Step, compare
from interp.models.kept import answer_from, capture
from interp.models.sublayers import find_sublayer, masked
from interp.tasks.question import accuracy

FAST, PLAIN = "from the layer upward, on the forest", "whole model, single sentences"
PLAIN_BATCH = 100


def ablation(layer: int, operation: str, count: int, name: str) -> Step:
    examples = draw_sentences(count)
    opened = open_gpt2(examples)
    sublayer = find_sublayer(opened, layer, operation)
    generator = torch.Generator().manual_seed(0)
    masks = {name: (torch.rand(len(mask), generator=generator) > 0.2).float()
             for name, mask in sublayer.full_masks().items()}
    kept = capture(opened, examples, [], layers=[layer])

    @torch.no_grad()
    def fast() -> float:
        with masked(sublayer, masks):
            return accuracy(opened, answer_from(opened, kept, layer), examples.answer)

    @torch.no_grad()
    def plain() -> float:
        with masked(sublayer, masks):
            logits = torch.cat([opened.model(batch, use_cache=False, logits_to_keep=1).logits[:, -1]
                                for batch in examples.tokens.split(PLAIN_BATCH)])
        return (logits[:, RIGHT] > logits[:, WRONG]).double().mean().item()

    return fast if name == FAST else plain


if __name__ == "__main__":
    for layer, operation, count in (
            (MIDDLE_LAYER, "attn", EXAMPLES // 2), (MIDDLE_LAYER, "mlp", EXAMPLES // 2), (0, "mlp", EXAMPLES // 2),
            (LAYERS - 1, "mlp", EXAMPLES // 2), (MIDDLE_LAYER, "mlp", EXAMPLES)):
        compare(f"ablation at layer {layer}, {operation}, {count} sentences",
                partial(ablation, layer, operation, count), FAST, PLAIN, rounds=3)
