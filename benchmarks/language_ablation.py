"""One evaluation of an ablated sublayer, by layer: from that layer upward on the forest, against the whole model.

    python benchmarks/language_ablation.py [--quick]

The plain way is no straw man: it runs in batches and computes logits at the last position only.
"""

from functools import partial

import torch

from benchmarks.language_models import EXAMPLES, MIDDLE_LAYER, build_model, draw_sentences
from benchmarks.timing import Step, compare
from interp.models.behavior import masked, preference_accuracy
from interp.models.blocks import final_states
from interp.models.forest import plant
from interp.models.loading import blocks_of, find_sublayer
from interp.models.sublayer import capture

FAST, PLAIN = "from the layer upward, on the forest", "whole model, single sentences"
RIGHT, WRONG, PLAIN_BATCH = 1, 2, 100


def ablation(layer: int, operation: str, examples: int, name: str) -> Step:
    model, sentences = build_model(), draw_sentences(examples)
    sublayer = find_sublayer(model, layer, operation)
    generator = torch.Generator().manual_seed(0)
    masks = {name: (torch.rand(len(linear.bias), generator=generator) > 0.2).float()
             for name, linear in sublayer.maps.items()}
    forest, tokens = plant(sentences), torch.tensor(sentences)
    entering = capture(model, forest, [], layers=[layer]).entering[layer]
    right, wrong = torch.full((examples,), RIGHT), torch.full((examples,), WRONG)

    def fast() -> float:
        with masked(sublayer, masks):
            return preference_accuracy(model, final_states(model, forest, layer, entering), right, wrong)

    @torch.no_grad()
    def plain() -> float:
        with masked(sublayer, masks):
            logits = torch.cat([model(batch, use_cache=False, logits_to_keep=1).logits[:, -1]
                                for batch in tokens.split(PLAIN_BATCH)])
        return (logits[:, RIGHT] > logits[:, WRONG]).double().mean().item()

    return fast if name == FAST else plain


if __name__ == "__main__":
    last = len(blocks_of(build_model())) - 1
    for layer, operation, examples in (
            (MIDDLE_LAYER, "attn", EXAMPLES // 2), (MIDDLE_LAYER, "mlp", EXAMPLES // 2), (0, "mlp", EXAMPLES // 2),
            (last, "mlp", EXAMPLES // 2), (MIDDLE_LAYER, "mlp", EXAMPLES)):
        compare(f"ablation at layer {layer}, {operation}, {examples} sentences",
                partial(ablation, layer, operation, examples), FAST, PLAIN, rounds=3)
