"""Models of every family: found, saved and loaded, refused where weights are missing, given new weights."""

import sys

import pytest
import torch

from conftest import DEVICE
from interp.models.family import family_of
from interp.models.loading import load_model, load_tokenizer, read_model_config, reinitialize, shuffle_weights
from interp.models.open_model import OpenModel
from interp.models.sublayers import find_sublayer
from interp.runs.config import BadInput
from language_model import FAMILIES, random_model, word_level_tokenizer


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("size", ["1GB", "20KB"])
def test_a_saved_model_comes_back_and_is_refused_where_a_shard_is_missing(kind, size, tmp_path):
    model, tokens = random_model(kind), torch.arange(12).view(2, 6)
    model.save_pretrained(tmp_path, max_shard_size=size)
    loaded = load_model("model_path", str(tmp_path), DEVICE)
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=0, atol=0)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    sorted(tmp_path.glob("*.safetensors"))[0].unlink()
    with pytest.raises(BadInput, match="^model_path: the weights in .* (lack|are missing)"):
        read_model_config("model_path", str(tmp_path))


def test_half_precision_and_pickled_weights_are_loaded_and_missing_ones_refused(tmp_path):
    model, file = random_model("gpt_neox").half(), tmp_path / "pytorch_model.bin"
    model.config.save_pretrained(tmp_path)
    weights = model.state_dict()
    torch.save(weights, file)
    assert torch.equal(load_model("m", str(tmp_path), DEVICE).lm_head.weight, model.lm_head.weight.float())
    del weights["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"]
    torch.save(weights, file)
    with pytest.raises(BadInput, match=r"lack .*layers\.1\.mlp\.dense_4h_to_h\.weight"):
        load_model("m", str(tmp_path), DEVICE)
    file.write_bytes(b"half a file")
    with pytest.raises(BadInput, match="^m: the weights in .* are missing or damaged"):
        load_model("m", str(tmp_path), DEVICE)


@pytest.mark.parametrize("kind", FAMILIES)
def test_each_family_is_given_new_weights_where_the_config_says(kind):
    before = dict(random_model(kind).named_parameters())

    def changed(**parts):
        model = random_model(kind)
        reinitialize(model, seed=1, **parts)
        return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}

    layers = family_of(random_model(kind).config).blocks
    outside = {name for name in before if not name.startswith(layers) and "norm" not in name and "ln_f" not in name}
    assert changed() == set() and changed(body=True) == set(before) - outside
    assert changed(layer=1) == {name for name in before if name.startswith(f"{layers}.1.")}
    assert changed(embeddings=True) == outside


def test_shuffled_weights_are_the_same_in_another_order():
    model, before = random_model("gpt2"), dict(random_model("gpt2").named_parameters())
    shuffle_weights(find_sublayer(OpenModel(model, family_of(model.config)), 1, "attn").maps.values(), seed=0)
    changed = {name for name, weights in model.named_parameters() if not torch.equal(weights, before[name])}
    assert changed == {f"transformer.h.1.attn.{name}.weight" for name in ("c_attn", "c_proj")}
    for name in changed:
        assert torch.equal(*(weights.flatten().sort().values for weights in (model.get_parameter(name), before[name])))


def test_tokenizer_of_a_folder(tmp_path):
    with pytest.raises(BadInput, match=f"^model_path: {tmp_path} has no tokenizer"):
        load_tokenizer("model_path", str(tmp_path))
    word_level_tokenizer(["the author"]).save_pretrained(tmp_path)
    assert load_tokenizer("model_path", str(tmp_path)).decode([2]) == "author"


@pytest.mark.parametrize("path, words", [
    ("gpt2-that-is-nowhere", "'gpt2-that-is-nowhere' is no folder here and cannot be fetched .* give its folder"),
    ("EleutherAI/pythia-none", "'EleutherAI/pythia-none' is no folder here and cannot be fetched"),
    ("Models/Disambiguation/none", "there is no Models/Disambiguation/none; configs/.* makes it"),
    ("./gpt2", "there is no gpt2"), ("/nowhere/gpt2", "there is no /nowhere/gpt2"),
    ("Models/none.gguf", "there is no Models/none.gguf"), ("{}/a.gguf", ".*a.gguf takes the package gguf; 'pip")])
def test_a_model_that_is_not_here_ends_in_a_sentence(path, words, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    for function in (read_model_config, load_tokenizer):
        with pytest.raises(BadInput, match=f"^model_path: {words}") as refused:
            function("model_path", path.format(tmp_path))
        assert "\n" not in str(refused.value) and str(refused.value).endswith(".")


def test_a_hub_model_is_fetched_once(tmp_path, monkeypatch):
    """The hub itself is played by a folder."""
    model, tokens, fetched = random_model("qwen2"), torch.arange(12).view(2, 6), []
    monkeypatch.setattr("interp.models.loading.snapshot_download",
                        lambda name, **options: fetched.append(name) or str(tmp_path))
    model.save_pretrained(tmp_path)
    assert torch.equal(load_model("m", "some/qwen", DEVICE)(tokens).logits, model(tokens).logits)
    assert fetched == ["some/qwen"]
