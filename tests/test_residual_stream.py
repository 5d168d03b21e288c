"""Capturing and patching the residual stream, and running only what lies above a site."""

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from interp.models.loading import build_gpt2, load_model, save_model
from interp.models.residual_stream import LastPositionTail, ResidualStream
from interp.runs.config import BadInput

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    model = build_gpt2(vocab_size=20, n_positions=6, n_layer=3, n_head=4, n_embd=32, n_inner=64, seed=0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    folder = tmp_path_factory.mktemp("stream") / "model"
    save_model(model, folder)
    return str(folder)


@pytest.fixture
def tokens(generator):
    return torch.randint(20, (30, 6), generator=generator)


def test_the_open_model_says_what_the_model_says(path, tokens):
    stream = ResidualStream.load("model", path, CPU)
    with torch.no_grad():
        plain = load_model("model", path, CPU)(tokens).logits[:, -1]
    torch.testing.assert_close(stream.answers(tokens, batch_size=7), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer, location, position", [(0, "resid_mid", -1), (1, "resid_post", 2), (2, "resid_mid", 5)])
def test_patching_an_activation_with_itself_changes_nothing_with_another_something(path, tokens, layer, location,
                                                                                   position):
    stream = ResidualStream.load("model", path, CPU)
    activations = stream.capture(tokens, layer, location, position, batch_size=8)
    assert activations.shape == (30, 32)
    clean = stream.answers(tokens)
    site = (layer, location, position)
    torch.testing.assert_close(stream.patched_answers(tokens, *site, activations, batch_size=7), clean,
                               rtol=1e-5, atol=1e-5)
    assert (stream.patched_answers(tokens, *site, activations.flip(0)) - clean).abs().max() > 0.01


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("location", ["resid_mid", "resid_post"])
def test_the_tail_equals_the_patched_whole_model(path, tokens, layer, location):
    stream = ResidualStream.load("model", path, CPU)
    rows = torch.tensor([4, 0, 17, 17])
    patch = stream.capture(tokens, layer, location, -1).flip(0)[rows].requires_grad_(True)
    tail = LastPositionTail(load_model("model", path, CPU), tokens, layer, location).logits(patch, rows)
    plain = stream.patched_logits(tokens[rows], layer, location, -1, patch)
    torch.testing.assert_close(tail, plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*(torch.autograd.grad(logits.logsumexp(-1).sum(), patch)[0]
                                 for logits in (tail, plain)), rtol=1e-3, atol=1e-5)


def test_a_model_of_parallel_sublayers_has_no_stream_between_them(tmp_path):
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                             intermediate_size=32, max_position_embeddings=8,
                                             use_parallel_residual=True, bos_token_id=None, eos_token_id=None))
    model.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="no site 'blocks.0.hook_resid_mid'"):
        ResidualStream(model.eval(), str(tmp_path)).site(0, "resid_mid")
