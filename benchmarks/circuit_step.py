"""A circuit-probing step of 500 examples: the replayed sublayer against the whole model with masked weights.

    python benchmarks/circuit_step.py [--quick]

Of the paper's model, and of one of GPT-2 small's shape on sentences of 12 tokens, with fresh weights: time does not
depend on what they have learned. A step has its backward pass to the mask and the optimizer's in it.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.language_models import BATCH, EXAMPLES, MIDDLE_LAYER, QUICK, draw_sentences, open_gpt2
from benchmarks.timing import Step, compare
from interp.methods.circuits import shuffled_batches, soft_nearest_neighbor_loss
from interp.methods.masks import NeuronMasks, l0
from interp.models.examples import Answer, Examples
from interp.models.kept import capture
from interp.models.loading import build_gpt2
from interp.models.opened import OpenModel, hooked, tensor_of
from interp.models.opening import open_model
from interp.models.replay import replay
from interp.models.sublayers import Masks, Sublayer, find_sublayer

MOD, ROWS, PAPERS_BATCH = (13, 169, 100) if QUICK else (113, 7661, 500)
STEPS = 20  # fast ones in a row, as in real use; of the plain way on sentences one is long enough
FAST, PLAIN = "replayed sublayer", "whole model, masked weights"

Update = Callable[[Masks, Tensor], Tensor]  # soft masks, rows (batch,) -> (batch, d_model)


def mask_step(sublayer: Sublayer, update: Update, labels: Tensor, batch_size: int,
              l0_lambda: float) -> Callable[[], float]:
    """A step on a random batch. labels: (rows,)."""
    masks, generator = NeuronMasks(sublayer, init=0.0), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(masks.parameters(), lr=1e-3)

    def step() -> float:
        rows = shuffled_batches(len(labels), batch_size, generator)[0]
        soft = masks.soft(1.0)
        loss = soft_nearest_neighbor_loss(update(soft, rows), labels[rows]) + l0_lambda * l0(soft, masks.fan_in)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def updates(name: str, opened: OpenModel, sublayer: Sublayer, examples: Examples) -> Update:
    if name == FAST:
        read = capture(opened, examples, [sublayer]).inputs[sublayer.layer, sublayer.operation]
        return replay(opened, sublayer, examples, read).update
    prefix = next(name for name, module in opened.model.named_modules() if module is sublayer.module)

    def update(soft: Masks, rows: Tensor) -> Tensor:
        weights = {f"{prefix}.{name}.weight": linear.weight * soft[name] for name, linear in sublayer.maps.items()}
        found = []
        with hooked(sublayer.out.register_forward_hook(
                lambda module, arguments, output: found.append(tensor_of(output)))):
            torch.func.functional_call(opened.model, weights, (examples.tokens[rows],), {"use_cache": False})
        return found[0][torch.arange(len(rows)), examples.probed[rows]] * sublayer.scale

    return update


def papers_step(operation: str, name: str) -> Step:
    """Of a model of the paper's shape, on its sequences."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(MOD, (ROWS, 3), generator=generator)
    last = torch.full((ROWS,), 2)
    examples = Examples(tokens, last, last, {"a2": tokens[:, 0] ** 2 % MOD}, Answer(tokens[:, 0]))
    model = build_gpt2(vocab_size=MOD + 1, n_positions=3, n_layer=1, n_head=4, n_embd=128, n_inner=512, seed=0)
    opened = open_model(model.eval().requires_grad_(False), examples)
    sublayer = find_sublayer(opened, 0, operation)
    return mask_step(sublayer, updates(name, opened, sublayer, examples), examples.variables["a2"], PAPERS_BATCH, 1e-6)


def language_step(operation: str, name: str) -> Step:
    """Of a model of GPT-2 small's shape, on sentences."""
    examples = draw_sentences(EXAMPLES)
    opened = open_gpt2(examples)
    sublayer = find_sublayer(opened, MIDDLE_LAYER, operation)
    step = mask_step(sublayer, updates(name, opened, sublayer, examples), examples.variables["labels"], BATCH, 1e-7)
    return (lambda: [step() for _ in range(STEPS)]) if name == FAST else step


if __name__ == "__main__":
    for operation in ("attn", "mlp"):
        build = partial(papers_step, operation)
        compare(f"circuit step, the paper's model, {operation}, batch {PAPERS_BATCH}", build, FAST, PLAIN, rounds=15,
                in_a_row=STEPS)
        print(f"  losses of the first step: {build(FAST)():.6f} and {build(PLAIN)():.6f}")
    for operation in ("attn", "mlp"):
        compare(f"circuit step, GPT-2 small's shape, layer {MIDDLE_LAYER}, {operation}, batch {BATCH}",
                partial(language_step, operation), FAST, PLAIN, rounds=3, sizes=(STEPS, 1))
