"""Every mistake ends in one sentence that names key, file or setting, with status 2 and nothing written."""

import io
import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2LMHeadModel

from conftest import CIRCUITS, METHODS, TRAINING, write_yaml
from interp.experiment import main
from interp.methods.masks import l0
from interp.runs.config import PROJECT_ROOT
from language_model import random_model

TRAINING_MISTAKES = {
    "unknown variable": ({"intermediate_functions": [["a3", 0, 1]]}, ["[a3, 0, 1]", "a4, b_identity"]),
    "a variable without its positions": ({"intermediate_functions": [["a2", 0]]}, ["'intermediate_functions.0.2'"]),
    "position of the = token": ({"intermediate_functions": [["a2", 0, 2]]}, ["[a2, 0, 2]", "position 2"]),
    "no variable": ({"intermediate_functions": []}, ["intermediate_functions"]),
    "rule on a missing column": ({"counterfactual_label_functions": [["var_0", "var_7", "+"]]}, ["var_7"]),
    "rule with another operation": ({"counterfactual_label_functions": [["var_0", "var_1", "-"]]}, ["+ and *"]),
    "heads that do not divide the width": ({"n_head": 3}, ["n_embd", "n_head"]),
    "context too short": ({"n_positions": 2}, ["n_positions"]),
    "checkpoint never reached": ({"save_checkpoints": [999]}, ["save_checkpoints", "999"]),
    "transfer without a model": ({"start_list": ["transfer"]}, ["'transfer'"]),
    "transfer from another shape": ({"transfer": "MODEL", "n_inner": 64}, ["transfer", "n_inner", "32"]),
    "transfer of another family": ({"transfer": "LLAMA"}, ["transfer", "'llama'", "GPT-2"]),
    "transfer of a model with dropout": ({"transfer": "DROPOUT"}, ["transfer", "resid_pdrop 0.1", "without dropout"]),
    "a branch of a type": ({"transfer": 5}, ["the key 'transfer': Input should be a valid string"]),
    "other data in place": ({"data_seed": 1}, ["data_dir", "train.csv"]),
}

CIRCUIT_MISTAKES = {
    "missing data file": ({"test_data_path": "data/Disambiguation/nothing.csv"},
                          ["test_data_path", "nothing.csv", "Disambiguation/a2_minus_b2.yaml makes it"]),
    "missing model": ({"model_path": "Models/Disambiguation/none"},
                      ["model_path", "Models/Disambiguation/none", "Disambiguation/a2_minus_b2.yaml"]),
    "variable is no column": ({"variable": "var_00"}, ["'var_00'", "train.csv", "did you mean 'var_0'"]),
    "variable is no number": ({"variable": "CF_FN_0"}, ["CF_FN_0", "whole numbers"]),
    "layer the model lacks": ({"target_layer_list": [1]}, ["target_layer_list", "layer 1", "has 1"]),
    "layer to re-initialise": ({"layer_reinit": 4}, ["layer_reinit", "layer 4"]),
    "position beyond the sequence": ({"probe_index_list": [3]}, ["probe_index_list", "3"]),
    "unknown operation": ({"operation_list": ["attention"]}, ["operation_list", "'attn' or 'mlp'"]),
    "batch larger than train": ({"batch_size_list": [500]}, ["batch_size_list", "500"]),
    "circuits without a folder": ({"model_dir": None}, ["model_dir"]),
    "sweep that is not in the path": ({"checkpoint_list": [1]}, ["checkpoint_list", "{checkpoint}"]),
    "placeholder without a sweep": ({"model_path": "m_{checkpoint}"}, ["model_path", "{checkpoint}"]),
    "unknown placeholder": ({"model_path": "m_{seed}"}, ["model_path", "{seed}"]),
    "two tasks without their data": ({"task": "multitask"}, ["lm_same_task_path", "lm_different_task_path"]),
    "a key of sentences": ({"answer_prefix": ""}, ["'answer_prefix'", "no effect"]),
    "a language task without sentences": ({"task": "agreement"}, ["'data_path'", "'agreement'"]),
    "a branch of a type": ({"checkpoint_list": [1.5]}, ["the key 'checkpoint_list.0': Input"]),
}

METHOD_MISTAKES = {
    "probing": {
        "unknown location": ({"residual_location_list": ["resid_pre"]}, ["residual_location_list", "resid_mid"]),
        "too few classes": ({"n_classes": 5}, ["n_classes", "var_0", "5"]),
        "negative hidden layer": ({"intermediate_size": -2}, ["intermediate_size"]),
        "no counterfactual label": ({"counterfactual_label": None}, ["counterfactual_label"]),
        "label beyond the vocabulary": ({"counterfactual_label": "aux_9"}, ["train_data_path", "aux_9", "vocabulary"]),
        "learning rate beyond float32": ({"cf_lr": 1e38}, ["cf_lr"]),
        "label that never changes": ({"counterfactual_label": "labels"}, ["counterfactual_label", "no row"]),
        "position beyond the sequence": ({"target_position_list": [7]}, ["target_position_list", "7"]),
        "batch larger than train": ({"batch_size_list": [500]}, ["batch_size_list", "500"]),
        "missing column": ({"counterfactual_variable": "counter_var", "other_counterfactual": True},
                           ["'counter_var'", "did you mean"]),
        "counterfactual of another variable": (
            {"counterfactual_variable": "counter_var_1"}, ["counterfactual_variable", "counter_var_0", "other"]),
    },
    "amnesic_probing": {
        "second task without data": ({"multitask": True}, ["t2_train_data_path"]),
        "missing data of the second task": (
            {"multitask": True, "t2_train_data_path": "no.csv", "t2_test_data_path": "no.csv"}, ["t2_train_data_path"]),
        "layer the model lacks": ({"target_layer_list": [1]}, ["target_layer_list", "layer 1"]),
        "a test file of one row": ({"test_data_path": "ONE ROW"}, ["test_data_path", "two rows"]),
        "more classes than examples": ({"variable": "aux_9"}, ["variable", "aux_9", "84"]),
    },
    "DAS": {
        "two labels": ({"counterfactual_label": ["CF_Label_0", "CF_Label_1"]}, ["counterfactual_label", "one"]),
        "a range without quotes": ({"token_range": 23}, ["token_range", "quotes"]),
        "a range of two positions": ({"token_range": "1_3"}, ["token_range", "1_3"]),
        "position beyond the sequence": ({"token_range": "3_4"}, ["token_range", "3"]),
        "more examples than there are": ({"n_train": 80}, ["n_train", "n_val"]),
        "alignments without a folder": ({"save_models": True}, ["model_dir"]),
        "label that is no token": ({"counterfactual_label": "counter_aux_9"}, ["'counter_aux_9'"]),
    },
}


def saved(content) -> bytes:
    """A file of torch's that holds what a training does not write."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def snapshot(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def refuse(script, arguments, folders, words, capsys):
    before = [snapshot(folder) for folder in folders]
    capsys.readouterr()
    assert main(script, arguments) == 2
    output = capsys.readouterr()
    assert len(output.err.strip().splitlines()) == 1, output.err
    for word in words:
        assert word in output.err, output.err
    assert [snapshot(folder) for folder in folders] == before


@pytest.mark.parametrize("mistake", TRAINING_MISTAKES)
def test_training_refuses(mistake, tiny, tmp_path, capsys):
    changes, words = TRAINING_MISTAKES[mistake]
    if changes.get("transfer") == "MODEL":
        changes = changes | {"transfer": tiny.circuits["model_path"]}
    if changes.get("transfer") in ("LLAMA", "DROPOUT"):
        shutil.copytree(tiny.circuits["model_path"], tmp_path / "old")
        settings = tmp_path / "old/config.json"
        settings.write_text(settings.read_text().replace('"resid_pdrop": 0.0', '"resid_pdrop": 0.1'))
        if changes["transfer"] == "LLAMA":
            random_model("llama").save_pretrained(tmp_path / "old")
        changes = changes | {"transfer": str(tmp_path / "old")}
    config = write_yaml(tmp_path / "c.yaml", tiny.training | {"results_dir": str(tmp_path / "run")} | changes)
    refuse(TRAINING, ["--config", str(config)], [tmp_path, tiny.folder], words, capsys)


@pytest.mark.parametrize("mistake", CIRCUIT_MISTAKES)
def test_circuit_probing_refuses(mistake, tiny, tmp_path, capsys):
    changes, words = CIRCUIT_MISTAKES[mistake]
    config = write_yaml(tmp_path / "c.yaml", tiny.circuits | {"results_dir": str(tmp_path / "run")} | changes)
    refuse(CIRCUITS, ["--config", str(config)], [tmp_path, tiny.folder], words, capsys)


@pytest.mark.parametrize("method, mistake", [(method, mistake) for method in METHOD_MISTAKES
                                             for mistake in METHOD_MISTAKES[method]])
def test_other_methods_refuse(method, mistake, tiny, tmp_path, capsys):
    changes, words = METHOD_MISTAKES[method][mistake]
    if "aux_9" in changes.values():  # a column of large numbers
        changes = changes | {f"{split}_data_path": str(tmp_path / f"{split}.csv") for split in ("train", "test")}
        for split in ("train", "test"):
            table = pd.read_csv(tiny.folder / f"data/{split}.csv", index_col=0)
            table.assign(aux_9=500 + table["var_0"]).to_csv(tmp_path / f"{split}.csv")
    if "ONE ROW" in changes.values():
        pd.read_csv(tiny.folder / "data/test.csv", index_col=0)[:1].to_csv(tmp_path / "one.csv")
        changes = {"test_data_path": str(tmp_path / "one.csv")}
    config = write_yaml(tmp_path / "c.yaml", tiny.methods[method] | {"results_dir": str(tmp_path / "run")} | changes)
    refuse(METHODS[method], ["--config", str(config)], [tmp_path, tiny.folder], words, capsys)


@pytest.mark.parametrize("mistake, words", [
    ("class without an example", ["variable", "class 3", "'var_0'", "training data"]),
    ("a single class", ["var_0", "single value"]),
    ("token beyond the vocabulary", ["test_data_path", "99"]),
    ("negative token", ["test_data_path", "-1"]),
    ("rows of different length", ["'data'", "test.csv"]),
    ("no rows", ["test_data_path", "no rows"]),
])
def test_circuit_probing_refuses_data(mistake, words, tiny, tmp_path, capsys):
    tables = {name: pd.read_csv(tiny.folder / f"data/{name}.csv", index_col=0) for name in ("train", "test")}
    if mistake == "class without an example":
        tables["train"] = tables["train"][tables["train"]["var_0"] != 3]
    elif mistake == "a single class":
        tables = {name: table.assign(var_0=1) for name, table in tables.items()}
    elif mistake == "token beyond the vocabulary":
        tables["test"].loc[0, "data"] = "99 2 11"
    elif mistake == "negative token":
        tables["test"].loc[0, "data"] = "-1 2 11"
    elif mistake == "rows of different length":
        tables["test"].loc[0, "data"] = "2 11"
    else:
        tables["test"] = tables["test"][:0]
    for name, table in tables.items():
        table.to_csv(tmp_path / f"{name}.csv")
    config = write_yaml(tmp_path / "c.yaml", tiny.circuits | {
        "train_data_path": str(tmp_path / "train.csv"), "test_data_path": str(tmp_path / "test.csv"),
        "batch_size_list": [5], "results_dir": str(tmp_path / "run")})
    refuse(CIRCUITS, ["--config", str(config)], [tmp_path, tiny.folder], words, capsys)


@pytest.mark.parametrize("mistake, words", [
    ("no weights", ["model_path", "weights", "missing"]),
    ("half a weight file", ["model_path", "weights", "damaged"]),
    ("no config", ["model_path", "config.json"]),
    ("another architecture", ["model_path", "'t5'"]),
    ("weights of another model", ["model_path", "lack", "wte"]),
    ("weights of another shape", ["model_path", "shape", "config.json"]),
    ("impossible config", ["model_path", "config.json", "do not fit"]),
    ("negative heads", ["model_path", "config.json", "n_head -2"]),
    ("a pickle that runs code", ["model_path", "code in it is not run"]),
    ("blocks that do more than add", ["model_path", "'opt'", "do more"]),
])
def test_circuit_probing_refuses_models(mistake, words, tiny, tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    source = tiny.folder / "models" / "model_LR_0.01_Seed_0_final"
    if mistake != "no config":
        (model / "config.json").write_bytes((source / "config.json").read_bytes())
    if mistake == "half a weight file":
        (model / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:3000])
    if mistake == "another architecture":
        (model / "config.json").write_text('{"model_type": "t5"}')
    if mistake == "weights of another model":
        save_file({"foo": torch.zeros(2)}, model / "model.safetensors")
    if mistake == "a pickle that runs code":
        torch.save({"weight": RunsCode()}, model / "pytorch_model.bin")
    if mistake == "blocks that do more than add":
        random_model("opt", do_layer_norm_before=False).save_pretrained(model)
    changes = {"weights of another shape": ('"n_positions": 3', '"n_positions": 4'),
               "impossible config": ('"n_head": 2', '"n_head": 3'), "negative heads": ('"n_head": 2', '"n_head": -2')}
    if change := changes.get(mistake):
        (model / "config.json").write_text((source / "config.json").read_text().replace(*change))
        (model / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    config = write_yaml(tmp_path / "c.yaml", tiny.circuits | {
        "model_path": str(model), "results_dir": str(tmp_path / "run")})
    refuse(CIRCUITS, ["--config", str(config)], [tmp_path, tiny.folder], words, capsys)


class RunsCode:
    def __reduce__(self):
        return print, ("code was run",)


def test_weights_that_are_no_numbers_are_refused_when_a_model_is_opened(tiny, tmp_path, capsys):
    model = GPT2LMHeadModel.from_pretrained(tiny.circuits["model_path"])
    with torch.no_grad():
        model.transformer.wpe.weight[1, 1] = float("nan")
    model.save_pretrained(tmp_path / "model")
    config = write_yaml(tmp_path / "c.yaml", tiny.circuits | {
        "model_path": str(tmp_path / "model"), "results_dir": str(tmp_path / "run"), "save_models": False})
    assert main(CIRCUITS, ["--config", str(config)]) == 2
    assert "model_path: transformer.wpe.weight of" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("content", [saved({"weights": torch.zeros(1)}), saved(torch.zeros(2)), b"half",
                                     saved({"epoch": 150, "curve": [{"epoch": 150}]})])
def test_a_damaged_state_is_named_and_left_alone(content, tiny, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(tiny.training["results_dir"], run)
    shutil.rmtree(run / "settings")
    (run / "results.csv").unlink()
    state = run / "state_model_seed_0_lr_0.01.pt"
    state.write_bytes(content)
    config = write_yaml(tmp_path / "c.yaml", tiny.training | {"results_dir": str(run)})
    assert main(TRAINING, ["--config", str(config)]) == 2
    assert f"{state} is damaged; move it away" in capsys.readouterr().err.strip().splitlines()[-1]
    assert state.read_bytes() == content


@pytest.mark.parametrize("script, changes, advice", [
    (CIRCUITS, {"l0_lambda": 1e30}, "a smaller l0_lambda."),  # of a sublayer with so many weights
    (TRAINING, {"wd": 1e30}, "a smaller wd."),
    (TRAINING, {"lr_list": [1e30]}, "a smaller value in lr_list."),
])
def test_advice_names_the_key_that_is_to_blame(script, changes, advice, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("interp.methods.circuits.l0", lambda masks, fan_in: 1e9 * l0(masks, fan_in))
    own = tiny.training if script is TRAINING else tiny.circuits
    config = write_yaml(tmp_path / "c.yaml", own | changes | {
        "results_dir": str(tmp_path / "run"), "model_dir": str(tmp_path / "models"), "save_models": False})
    assert main(script, ["--config", str(config)]) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith(f"try {advice}")


def test_data_that_a_run_does_not_read_may_be_missing(tiny, tmp_path):
    for script, own, unread in ((METHODS["amnesic_probing"], tiny.methods["amnesic_probing"], "t2_test_data_path"),
                                (CIRCUITS, tiny.circuits | {"save_models": False}, "lm_same_task_path")):
        config = write_yaml(tmp_path / "c.yaml", own | {unread: "data/none.csv", "results_dir": str(tmp_path / unread)})
        assert main(script, ["--config", str(config)]) == 0


OUT = {script: [] for script in ("summarize_disambiguation", "summarize_shared_nodes", "summarize_grokking",
                                 "summarize_agreement", "summarize_reflexives", "summarize_syntactic_number",
                                 "summarize_comparison")} | {
    "summarize_layers": ["--model", "x"], "summarize_across_models": ["--published", "none"],
    "summarize_model_overlap": ["--circuits", "a", "b"],
    "ablate_by_position": ["--layer", "0", "--operation", "attn", "--config",
                           PROJECT_ROOT / "configs/SV_Agreement/sv_agreement-smollm2.yaml"],
    "compare_with_published": ["--published", "none", "--experiment", "x"]}


@pytest.mark.parametrize("script", OUT)
def test_figures_that_cannot_be_written_are_refused_before_anything_is_read(script, tmp_path, analyse):
    (tmp_path / "file").write_text("mine")
    said = analyse(script, *OUT[script], "--out", tmp_path / "file/x/y")
    assert said.returncode == 2 and len(said.stderr.splitlines()) == 1, said.stderr
    assert "--out" in said.stderr and "is a file" in said.stderr
