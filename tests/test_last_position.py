"""The forward pass at the last position is the model's, in values and in gradients."""

import pytest
import torch
import torch.nn.functional as F

from interp.models.last_position import last_position_logits
from interp.models.loading import build_gpt2


@pytest.mark.parametrize("layers, positions", [(1, 3), (1, 5), (2, 3)])  # of two layers by the model's forward
def test_logits_and_gradients_are_those_of_the_whole_model(layers, positions, generator):
    model = build_gpt2(vocab_size=30, n_positions=positions, n_layer=layers, n_head=4, n_embd=32, n_inner=64, seed=0)
    for parameter in model.parameters():  # biases start at zero, where a forgotten one would not be seen
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    tokens, target = torch.randint(30, (200, positions), generator=generator), torch.arange(200) % 30
    found, wanted = last_position_logits(model, tokens)(), model(tokens).logits[:, -1]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    for gradients in zip(*(torch.autograd.grad(F.cross_entropy(logits, target), list(model.parameters()))
                           for logits in (found, wanted))):
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
