"""Models of every family: found, saved and loaded, refused where weights are missing, given new weights."""

import shutil
import sys

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from conftest import DEVICE
from interp.models.family import family_of
from interp.models.loading import load_model, load_tokenizer, read_model_config, reinitialize, shuffle_weights
from interp.models.opened import OpenModel
from interp.models.sublayers import find_sublayer
from interp.runs.config import BadInput
from language_model import FAMILIES, random_model


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("size", ["1GB", "20KB"])
def test_a_saved_model_comes_back(kind, size, tmp_path):
    model, tokens = random_model(kind), torch.arange(12).view(2, 6)
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (size == "20KB")
    loaded = load_model("model_path", str(tmp_path), DEVICE)
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=0, atol=0)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama"])
def test_a_model_that_lacks_a_shard_is_refused(kind, tmp_path):
    random_model(kind).save_pretrained(tmp_path, max_shard_size="20KB")
    sorted(tmp_path.glob("*.safetensors"))[0].unlink()
    with pytest.raises(BadInput, match="^model_path: the weights in .* lack"):
        read_model_config("model_path", str(tmp_path))


def test_half_precision_and_pickled_weights_are_loaded_and_missing_ones_refused(tmp_path):
    model = random_model("gpt_neox")
    random_model("gpt_neox").half().save_pretrained(tmp_path / "half")
    assert {parameter.dtype for parameter in load_model("m", str(tmp_path / "half"), DEVICE).parameters()} == {
        torch.float32}
    weights = model.state_dict()
    model.config.save_pretrained(tmp_path / "pickled")
    torch.save(weights, tmp_path / "pickled/pytorch_model.bin")
    loaded = load_model("m", str(tmp_path / "pickled"), DEVICE)
    torch.testing.assert_close(loaded.lm_head.weight, model.lm_head.weight, rtol=0, atol=0)
    del weights["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"]
    torch.save(weights, tmp_path / "pickled/pytorch_model.bin")
    with pytest.raises(BadInput, match=r"lack .*layers\.1\.mlp\.dense_4h_to_h\.weight"):
        load_model("m", str(tmp_path / "pickled"), DEVICE)
    (tmp_path / "pickled/pytorch_model.bin").write_bytes(b"half a file")
    with pytest.raises(BadInput, match="^m: .*pickled cannot be loaded"):
        load_model("m", str(tmp_path / "pickled"), DEVICE)


@pytest.mark.parametrize("kind", FAMILIES)
def test_each_family_is_given_new_weights_where_asked(kind):
    before = dict(random_model(kind).named_parameters())

    def changed(**parts):
        model = random_model(kind)
        reinitialize(model, seed=1, **parts)
        return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}

    layers = family_of(random_model(kind).config).blocks
    outside = {name for name in before if not name.startswith(layers) and not any(
        word in name for word in ("norm", "ln_f"))}
    assert changed() == set()
    assert changed(body=True) == set(before) - outside
    assert changed(layer=1) == {name for name in before if name.startswith(f"{layers}.1.")}
    assert changed(embeddings=True) == outside


def test_shuffled_weights_are_the_same_in_another_order():
    model = random_model("gpt2")
    before = dict(random_model("gpt2").named_parameters())
    shuffle_weights(find_sublayer(OpenModel(model, family_of(model.config)), 1, "attn").maps.values(), seed=0)
    changed = {name for name, own in model.named_parameters() if not torch.equal(own, before[name])}
    assert changed == {f"transformer.h.1.attn.{name}.weight" for name in ("c_attn", "c_proj")}
    for name in changed:
        assert torch.equal(*(own.flatten().sort().values for own in (model.get_parameter(name), before[name])))


def test_tokenizer_of_a_folder(tmp_path):
    words = Tokenizer(WordLevel({"the": 0, "author": 1, "[UNK]": 2}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "model")
    assert load_tokenizer("model_path", str(tmp_path / "model")).decode([1]) == "author"
    (tmp_path / "nothing").mkdir()
    with pytest.raises(BadInput, match="^model_path: .*nothing has no tokenizer"):
        load_tokenizer("model_path", str(tmp_path / "nothing"))


@pytest.mark.parametrize("path, words", [
    ("gpt2-that-is-nowhere", "'gpt2-that-is-nowhere' is no folder here and cannot be fetched .* give its folder"),
    ("EleutherAI/pythia-none", "'EleutherAI/pythia-none' is no folder here and cannot be fetched"),
    ("Models/none", "there is no Models/none"),
    ("Models/Disambiguation/none", "there is no Models/Disambiguation/none; 'python train_algorithmic_models"),
    ("./gpt2", "there is no gpt2"),
    ("/nowhere/gpt2", "there is no /nowhere/gpt2"),
    ("Models/none.gguf", "there is no Models/none.gguf"),
])
def test_a_model_that_cannot_be_had_ends_in_a_sentence(path, words):
    for function in (read_model_config, load_tokenizer):
        with pytest.raises(BadInput, match=f"^model_path: {words}") as told:
            function("model_path", path)
        assert "\n" not in str(told.value) and str(told.value).endswith((".", "makes it."))


def test_a_gguf_file_without_the_package_that_reads_it(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(BadInput, match="^model_path: .*model.gguf takes the package gguf; 'pip install gguf'"):
        load_model("model_path", str(tmp_path / "model.gguf"), DEVICE)


def test_a_hub_model_in_the_cache_is_a_folder(tmp_path, monkeypatch):
    """What is fetched, in one format; the hub itself is played by a folder."""
    model, asked = random_model("qwen2"), []

    def snapshot_download(name, allow_patterns, ignore_patterns):
        asked.append(allow_patterns)
        if "pytorch_model*.bin" in allow_patterns:
            torch.save(model.state_dict(), tmp_path / "cache/pytorch_model.bin")
        return str(tmp_path / "cache")

    monkeypatch.setattr("interp.models.loading.snapshot_download", snapshot_download)
    model.save_pretrained(tmp_path / "cache")
    tokens = torch.arange(12).view(2, 6)
    assert torch.equal(load_model("m", "some/qwen-a", DEVICE)(tokens).logits, model(tokens).logits)
    assert len(asked) == 1  # once, however often it is asked for
    shutil.move(tmp_path / "cache/model.safetensors", tmp_path / "elsewhere")
    assert torch.equal(load_model("m", "some/qwen-b", DEVICE)(tokens).logits, model(tokens).logits)
    assert len(asked) == 3
