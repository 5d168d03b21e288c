"""One evaluation of an ablated sublayer, by layer: from that layer on, and with prefixes shared, or the whole model.

    python benchmarks/language_ablation.py [--quick]

The reference is no straw man: it runs in batches and computes logits of the compared words only.
"""

from functools import partial

import torch

from benchmarks.language_models import EXAMPLES, LAYERS, MIDDLE_LAYER, build_gpt2_small, draw_sentences
from benchmarks.timing import Step, compare
from interp.models.open_model import RESID_PRE, Site
from interp.models.opening import open_model
from interp.models.positions import EVERYWHERE
from interp.models.sublayers import find_sublayer, masked
from interp.models.suffix import final_states_from
from interp.tasks.study import accuracy

SHARED, APART, REFERENCE = "from the layer on, prefixes shared", "from the layer on, rows apart", "whole model"


def ablation(layer: int, operation: str, count: int, way: str) -> Step:
    examples = draw_sentences(count)
    model = open_model(build_gpt2_small(), examples)
    model.shares = way == SHARED
    sublayer, entry = find_sublayer(model, layer, operation), Site(layer, RESID_PRE, EVERYWHERE)
    generator = torch.Generator().manual_seed(0)
    masks = {name: (torch.rand(len(mask), generator=generator) > 0.2).float()
             for name, mask in sublayer.full_masks().items()}
    entering = model.activations(examples, [entry])[entry]

    def evaluate() -> float:
        with masked(sublayer, masks):
            states = model.final_states(examples) if way == REFERENCE else final_states_from(
                model, examples, layer, entering)
        return accuracy(model, states, examples.answer)

    return evaluate


if __name__ == "__main__":
    for layer, operation, count in (
            (MIDDLE_LAYER, "attn", EXAMPLES // 2), (MIDDLE_LAYER, "mlp", EXAMPLES // 2), (0, "mlp", EXAMPLES // 2),
            (LAYERS - 1, "mlp", EXAMPLES // 2), (MIDDLE_LAYER, "mlp", EXAMPLES)):
        compare(f"ablation at layer {layer}, {operation}, {count} sentences",
                partial(ablation, layer, operation, count), (SHARED, APART, REFERENCE), rounds=3)
