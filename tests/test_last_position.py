"""The fast forward is the model's own, in values and in gradients."""

import pytest
import torch

from interp.models.last_position import last_position_logits
from interp.models.loading import build_gpt2


@pytest.mark.parametrize("positions", [3, 5])
def test_fast_logits_and_gradients_equal_the_plain_ones(positions, generator):
    model = build_gpt2(vocab_size=30, n_positions=positions, n_layer=1, n_head=4, n_embd=32, n_inner=64, seed=0)
    for parameter in model.parameters():  # biases start at zero, where a forgotten one would not be seen
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    tokens = torch.randint(30, (200, positions), generator=generator)
    fast = last_position_logits(model, tokens)
    plain = model(tokens).logits[:, -1]
    torch.testing.assert_close(fast(), plain, rtol=1e-5, atol=1e-4)

    target = torch.randint(30, (200,), generator=generator)
    gradients = []
    for logits in (fast(), plain):
        loss = torch.nn.functional.cross_entropy(logits, target)
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for quick, slow in zip(*gradients):
        torch.testing.assert_close(quick, slow, rtol=1e-4, atol=1e-5)


def test_more_than_one_layer_goes_through_the_models_own_forward():
    model = build_gpt2(vocab_size=9, n_positions=3, n_layer=2, n_head=2, n_embd=8, n_inner=8, seed=0)
    tokens = torch.arange(9).view(3, 3)
    torch.testing.assert_close(last_position_logits(model, tokens)(), model(tokens).logits[:, -1])
