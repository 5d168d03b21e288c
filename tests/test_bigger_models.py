"""What bigger models need: 16 bits, weights on the disk, activations read in portions. The metrics are the same."""

import pytest
import torch

import circuit_probing
import DAS
import probing
from conftest import rows_of, sentence_jobs, write_yaml
from interp.experiment import main
from interp.models import loading
from interp.models.open_model import OpenModel
from interp.models.opening import open_model
from interp.models.sublayers import find_sublayer
from language_model import FAMILIES, everything, random_examples, random_model, replayed

KINDS = ["gpt2", "llama"]
BODIES = {"gpt2": ("transformer", "h"), "llama": ("model", "layers")}  # where their blocks are


def results_of(jobs: dict, folder, **changes) -> dict:
    """The tables of some configs, by script, run with changes."""
    for script, values in jobs.items():
        values = values | {"results_dir": str(folder / script.__name__)} | changes
        values |= {"model_dir": str(folder / "saved")} if "model_dir" in values else {}
        assert main(script.SCRIPT, ["--config", str(write_yaml(folder / "c.yaml", values))]) == 0
    return {script: rows_of(folder / script.__name__ / "results.csv") for script in jobs}


# ---------------------------------------------------------------------------------- 16 bits

@pytest.mark.parametrize("kind", KINDS)
def test_every_method_runs_in_bfloat16(kind, sentences, tmp_path):
    found = results_of(sentence_jobs(sentences, kind, tmp_path), tmp_path, dtype="bfloat16")
    model = random_model(kind).bfloat16()  # whole sentences, answers compared in float32
    tokens = sentences.tokenizer(sentences.gen["sentence"].tolist(), return_tensors="pt")["input_ids"]
    logits = model.base_model(tokens).last_hidden_state[:, -1].float() @ model.get_output_embeddings().weight.float().T
    right, wrong = (logits.gather(1, torch.tensor(sentences.tokenizer.convert_tokens_to_ids(
        sentences.gen[column].tolist())).unsqueeze(1)) for column in ("right", "wrong"))
    for row in found[probing] + found[circuit_probing] + found[DAS]:
        assert float(row["vanilla_acc_gen"]) == (right > wrong).double().mean().item()


@pytest.mark.parametrize("dtype, share", [(torch.bfloat16, 0.1), (torch.float16, 0.01)])
@pytest.mark.parametrize("kind", FAMILIES)
def test_rounding_is_not_taken_for_an_error(kind, dtype, share):
    """What is exact in float32 is used, and gives what float32 gives, up to rounding."""
    examples = random_examples()
    model, wanted = (open_model(random_model(kind).to(one), examples) for one in (dtype, torch.float32))
    assert (model.direct, model.suffix, model.shares) == (wanted.direct, wanted.suffix, wanted.shares)
    for operation in ("attn", "mlp"):
        assert len({type(replayed(one, examples, 1, operation)) for one in (model, wanted)}) == 1
    states = model.final_states(examples)
    assert states.dtype == torch.float32  # the weights are rounded too
    assert (states - wanted.final_states(examples)).square().mean(1).sqrt().max() < share * states.std()


def test_in_float32_nothing_is_cast_or_copied():
    model, values = open_model(random_model("llama"), random_examples()), torch.ones(2, 3)
    assert model.leave(values) is values and model.enter(values) is values
    sublayer = find_sublayer(model, 1, "mlp")
    assert sublayer.affine()["up_proj"].matrix.data_ptr() == sublayer.maps["up_proj"].weight.data_ptr()


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


# ------------------------------------------------------------------- portions, several devices

@pytest.mark.parametrize("kind, changes", [("gpt2", {"cache_gib": 1e-9}), ("llama", {"cache_gib": 6e-6}),
                                           ("gpt2", {"layers_at_once": 1})])
def test_activations_read_in_portions_give_the_same(kind, changes, sentences, tmp_path, monkeypatch):
    passes, read = [], OpenModel.activations
    monkeypatch.setattr(OpenModel, "activations", lambda *given, **more: passes.append(given) or read(*given, **more))
    jobs = {script: values | {"target_layer_list": [1, 0]}
            for script, values in sentence_jobs(sentences, kind, tmp_path).items()
            if script is circuit_probing or "layers_at_once" not in changes}
    wanted, few = results_of(jobs, tmp_path / "whole"), len(passes)
    assert results_of(jobs, tmp_path / "portions", **changes) == wanted and len(passes) > 2 * few > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_on_the_disk_give_what_weights_in_memory_give(kind, dtype, sentences, tmp_path, monkeypatch, capsys):
    """As accelerate leaves them where memory is short: the second block, the last norm, the embeddings."""
    body, blocks = BODIES[kind]
    parts = [name for name, _ in random_model(kind).get_submodule(body).named_children() if name != blocks]
    monkeypatch.setattr(loading, "SPREAD", {
        **{f"{body}.{name}": "disk" for name in parts}, f"{body}.{blocks}.0": "cpu", f"{body}.{blocks}.1": "disk",
        "lm_head": "disk"})
    examples, path = random_examples(), str(sentences.saved(kind))
    whole, spread = (loading.load_model("m", path, torch.device("cpu"), dtype, spread) for spread in (False, True))
    away = [name for name, parameter in spread.named_parameters() if parameter.device.type == "meta"]
    assert 0 < len(away) < len(list(spread.parameters()))
    wanted, found = (everything(open_model(model, examples), examples) for model in (whole, spread))
    for name, values in found.items():
        assert torch.equal(values, wanted[name]), name
    assert [name for name, parameter in spread.named_parameters() if parameter.device.type == "meta"] == away
    jobs = sentence_jobs(sentences, kind, tmp_path)
    assert results_of(jobs, tmp_path / "disk", spread=True, dtype=dtype) == results_of(
        jobs, tmp_path / "memory", dtype=dtype)
    values = jobs[probing] | {"spread": True, "random_init": True, "results_dir": str(tmp_path / "control")}
    assert main(probing.SCRIPT, ["--config", str(write_yaml(tmp_path / "c.yaml", values))]) == 2
    assert "the key 'random_init' draws fresh weights" in capsys.readouterr().err
