"""Models in 16 bits, on several devices, with what is kept of them on the disk: the same figures, up to rounding.

There is one device here: weights that are elsewhere lie on the disk, as accelerate leaves them where memory is short.
"""

import errno
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import Tensor

import circuit_probing
import probing
from conftest import kill_when, rows_of, sentence_jobs, start, write_yaml
from interp.experiment import main
from interp.models import loading, opened, room
from interp.models.examples import Answer, Examples, from_rows
from interp.models.kept import answer_from, capture
from interp.models.opened import RESID_MID, RESID_POST, OpenModel, RunOn, Site, run_all
from interp.models.opening import open_model
from interp.models.replay import Replay, all_updates, replay
from interp.models.room import Room
from interp.models.sublayers import find_sublayer, masked, random_masks
from interp.models.tail import run_on_from
from language_model import FAMILIES, LAYERS, VOCABULARY, random_model, rows_that_begin_alike

KINDS = ["gpt2", "llama"]
DISK = {"gpt2": ("transformer", "h"), "llama": ("model", "layers")}  # where their blocks are


def results_of(jobs: dict, folder: Path, **changes) -> dict:
    """The tables of some configs, by script, run with changes."""
    for script, values in jobs.items():
        values = values | {"results_dir": str(folder / script.__name__)} | changes
        values |= {"model_dir": str(folder / "saved")} if "model_dir" in values else {}
        assert main(script.SCRIPT, ["--config", str(write_yaml(folder / "c.yaml", values))]) == 0
    return {script: rows_of(folder / script.__name__ / "results.csv") for script in jobs}


def examples_of_rows() -> Examples:
    rows = rows_that_begin_alike()
    tokens, last = from_rows(rows)
    answers = torch.randint(VOCABULARY, (2, len(rows)), generator=torch.Generator().manual_seed(1))
    return Examples(tokens, last, last, {}, Answer(*answers))


def replayed(model: OpenModel, examples: Examples, operation: str) -> Replay:
    sublayer = find_sublayer(model, 1, operation)
    return replay(model, sublayer, examples, capture(model, examples, [sublayer]).inputs[1, operation])


def everything(model: OpenModel, examples: Examples) -> dict[str, Tensor]:
    """What each verb of an open model gives, and each way of replaying, by name."""
    found, everyone = {"answer": model.answer(examples)}, torch.arange(len(examples))
    found |= {"logits": model.logits(found["answer"]), "logit": model.logit(found["answer"], examples.answer.right)}
    for site in (Site(layer, location) for layer in range(LAYERS) for location in (RESID_MID, RESID_POST)):
        [found[str(site)]] = own = model.read(examples, [site])
        moved = own[0].flip(0).requires_grad_(True)
        for name, run_on in (("tail", run_on_from(model, examples, site)), ("patched", model.patched(examples, site))):
            states = run_on(moved, everyone)
            found |= {f"{name} {site}": states.detach(),
                      f"{name} {site} gradient": torch.autograd.grad(states.pow(3).sum(), moved)[0]}
    for layer, operation in ((layer, operation) for layer in range(LAYERS) for operation in ("attn", "mlp")):
        sublayer = find_sublayer(model, layer, operation)
        masks = random_masks(sublayer, seed=3)
        kept = capture(model, examples, [sublayer], [layer])
        found[f"updates {layer} {operation}"] = all_updates(
            replay(model, sublayer, examples, kept.inputs[layer, operation]), masks)
        with masked(sublayer, masks):
            found[f"answers {layer} {operation}"] = answer_from(model, kept, layer)
    return found


# ---------------------------------------------------------------------------------- 16 bits

@pytest.mark.parametrize("kind", KINDS)
def test_every_method_runs_in_bfloat16(kind, sentences, tmp_path, capsys):
    jobs = sentence_jobs(sentences, kind, tmp_path)
    found = results_of(jobs, tmp_path / "16", dtype="bfloat16")
    wanted = results_of(jobs, tmp_path / "32")
    assert [len(rows) for rows in found.values()] == [len(rows) for rows in wanted.values()]

    model = random_model(kind).bfloat16()  # the plain way: whole sentences, answers compared in float32
    tokens = sentences.tokenizer(sentences.gen["sentence"].tolist(), return_tensors="pt")["input_ids"]
    states = model.base_model(tokens).last_hidden_state[:, -1].float()
    logits = states @ model.get_output_embeddings().weight.float().T
    right, wrong = (logits.gather(1, torch.tensor(sentences.tokenizer.convert_tokens_to_ids(
        sentences.gen[column].tolist())).unsqueeze(1)) for column in ("right", "wrong"))
    for row in found[probing] + found[circuit_probing]:
        assert float(row["vanilla_acc_gen"]) == (right > wrong).double().mean().item()

    config = tmp_path / "c.yaml"  # another dtype is another run; where what is kept goes is not
    values = yaml.safe_load((tmp_path / "16/circuit_probing/config.yaml").read_text())
    capsys.readouterr()
    assert main(circuit_probing.SCRIPT, ["--config", str(write_yaml(config, values | {"dtype": "float32"}))]) == 2
    assert "holds a run with another dtype;" in capsys.readouterr().err
    assert main(circuit_probing.SCRIPT, ["--config", str(write_yaml(config, values | {"cache_gib": 0.5}))]) == 0
    assert "2 of 2 settings, 0 of them new" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", FAMILIES)
def test_rounding_is_not_taken_for_an_error(kind, dtype, capsys):
    """All fast ways of a family are used that are in float32, and give what float32 gives, up to rounding."""
    examples = examples_of_rows()
    model, wanted = (open_model(random_model(kind).to(own), examples) for own in (dtype, torch.float32))
    assert (model.shares, model.direct, model.tails) == (wanted.shares, wanted.direct, wanted.tails)
    for operation in ("attn", "mlp"):
        way, other = (type(replayed(own, examples, operation)) for own in (model, wanted))
        assert way is other
    states = model.answer(examples)
    assert states.dtype == torch.float32
    difference = (states - wanted.answer(examples)).square().mean(1).sqrt().max()
    assert difference < (0.1 if dtype == torch.bfloat16 else 0.01) * states.std()  # the weights are rounded too


def test_in_float32_nothing_is_cast_or_copied():
    model = open_model(random_model("llama"), examples_of_rows())
    values, sublayer = torch.ones(2, 3), find_sublayer(model, 1, "mlp")
    assert model.leave(values) is values and model.enter(values) is values
    for name, own in sublayer.affine().items():
        assert own.matrix.data_ptr() == sublayer.maps[name].weight.data_ptr()


@pytest.mark.parametrize("factor, status, words", [(1e6, 2, "no finite numbers in float16"),
                                                   (1e4, 1, "activations go beyond what float16 holds")])
def test_what_float16_does_not_hold_is_refused(factor, status, words, sentences, tmp_path, capsys):
    model = random_model("llama")
    for linear in (model.model.layers[1].mlp.up_proj, model.model.layers[1].mlp.down_proj):
        linear.weight *= factor
    model.save_pretrained(tmp_path / "model")
    sentences.tokenizer.save_pretrained(tmp_path / "model")
    values = sentence_jobs(sentences, "llama", tmp_path)[probing] | {"dtype": "float16",
                                                                     "model_path": str(tmp_path / "model")}
    assert main(probing.SCRIPT, ["--config", str(write_yaml(tmp_path / "c.yaml", values))]) == status
    [said] = capsys.readouterr().err.strip().splitlines()
    assert words in said


# -------------------------------------------------------------------------- what is kept

@pytest.fixture
def files(monkeypatch) -> list[Tensor]:
    """The tensors that were put into files."""
    found, mapped = [], room.mapped
    monkeypatch.setattr(room, "mapped", lambda *given: found.append(mapped(*given)) or found[-1])
    return found


@pytest.mark.parametrize("kind, dtype", [("gpt2", "float32"), ("llama", "bfloat16")])
def test_on_the_disk_or_in_memory_is_the_same_to_the_last_bit(kind, dtype, sentences, tmp_path, files, monkeypatch):
    jobs, cache = sentence_jobs(sentences, kind, tmp_path), tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(room.tempfile, "tempdir", str(cache))
    wanted = results_of(jobs, tmp_path / "memory", dtype=dtype)
    assert not files
    assert results_of(jobs, tmp_path / "disk", dtype=dtype, cache_gib=1e-9) == wanted
    assert {tensor.dtype for tensor in files} >= {torch.float32, getattr(torch, dtype)}  # activations, and keys
    assert not list(cache.iterdir())


def test_only_what_goes_beyond_memory_is_put_into_files(files):
    cpu = torch.device("cpu")
    own = Room(gib=100 / 2**30)
    first, second, third = own.empty(10, device=cpu), own.empty(10, device=cpu), own.empty(10, device=cpu)
    assert len(files) == 1 and files[0] is third
    del second
    assert own.empty(2, 5, device=cpu).shape == (2, 5) and len(files) == 1  # there is room again
    assert own.empty(0, 5, device=cpu).shape == (0, 5) and first.shape == (10,)


def test_how_much_one_pass_keeps(monkeypatch):
    own, cuda = Room(gib=100 / 2**30), torch.device("cuda")
    monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: SimpleNamespace(free=400))
    assert own.portion(30, 20, torch.device("cpu")) == 10  # memory, and half of what the disk has free
    assert own.portion(30, 4, torch.device("cpu")) == 4
    assert own.portion(30, 20, cuda) == 3 and own.portion(1000, 20, cuda) == 1


def test_files_are_gone_after_a_kill(sentences, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    values = sentence_jobs(sentences, "gpt2", tmp_path)[circuit_probing] | {
        "num_epochs": 100000, "cache_gib": 1e-9}
    monkeypatch.setenv("TMPDIR", str(cache))
    process = start("circuit_probing", write_yaml(tmp_path / "c.yaml", values))
    kill_when(process, lambda: str(cache) in Path(f"/proc/{process.pid}/maps").read_text())
    time.sleep(0.1)
    assert not list(cache.iterdir())


def test_a_full_disk_ends_in_one_sentence(sentences, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(room.os, "posix_fallocate", full)
    values = sentence_jobs(sentences, "gpt2", tmp_path)[probing] | {"cache_gib": 1e-9}
    assert main(probing.SCRIPT, ["--config", str(write_yaml(tmp_path / "c.yaml", values))]) == 2
    assert capsys.readouterr().err.strip().endswith("No space left on device.")


@pytest.mark.parametrize("kind", KINDS)
def test_batches_as_small_as_can_be_give_the_same(kind, monkeypatch):
    examples = examples_of_rows()
    model = open_model(random_model(kind), examples)
    wanted, site = everything(model, examples), Site(0, RESID_POST)
    assert model.nodes_at_once == opened.NODES_AT_ONCE and model.patched(examples, site).at_once == opened.ROWS_AT_ONCE
    monkeypatch.setattr(opened, "PASS_BYTES", 1)
    assert model.nodes_at_once == model.logits_at_once == model.patched(examples, site).at_once == 1
    for name, own in everything(model, examples).items():
        torch.testing.assert_close(own, wanted[name], rtol=1e-3, atol=1e-4)
    moved, [own] = [], model.read(examples, [site])
    run_all(RunOn(lambda activations, rows: moved.append(len(rows)) or activations, 1), own)
    assert moved == [1] * len(examples)


# ------------------------------------------------------------------------- several devices

@pytest.fixture
def spread(monkeypatch):
    """Leave the second block, the last norm and the embeddings of every model on the disk."""
    def place(kind: str) -> None:
        body, blocks = DISK[kind]
        parts = [name for name, _ in random_model(kind).get_submodule(body).named_children() if name != blocks]
        monkeypatch.setattr(loading, "SPREAD", {
            **{f"{body}.{name}": "disk" for name in parts}, f"{body}.{blocks}.0": "cpu", f"{body}.{blocks}.1": "disk",
            "lm_head": "disk"})
    return place


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_on_the_disk_give_what_weights_in_memory_give(kind, dtype, sentences, spread, tmp_path):
    spread(kind)
    examples, path = examples_of_rows(), str(sentences.saved(kind))
    whole, parts = (loading.load_model("m", path, torch.device("cpu"), dtype, own) for own in (False, True))
    away = [name for name, parameter in parts.named_parameters() if parameter.device.type == "meta"]
    assert 0 < len(away) < len(list(parts.parameters()))
    wanted, found = (everything(open_model(model, examples), examples) for model in (whole, parts))
    assert wanted.keys() == found.keys()
    for name, own in found.items():
        assert torch.equal(own, wanted[name]), name
    assert [name for name, parameter in parts.named_parameters() if parameter.device.type == "meta"] == away
    jobs = sentence_jobs(sentences, kind, tmp_path)
    assert results_of(jobs, tmp_path / "disk", spread=True, dtype=dtype) == results_of(
        jobs, tmp_path / "memory", dtype=dtype)


def test_controls_take_weights_on_one_device(sentences, tmp_path, capsys):
    values = sentence_jobs(sentences, "gpt2", tmp_path)[probing] | {"spread": True, "random_init": True}
    assert main(probing.SCRIPT, ["--config", str(write_yaml(tmp_path / "c.yaml", values))]) == 2
    assert "the key 'random_init' draws weights anew" in capsys.readouterr().err
