"""Every mistake ends in one sentence that names key, file or setting, with status 2 and nothing written."""

import subprocess
import sys

import pandas as pd
import pytest

from conftest import CIRCUITS, TRAINING, write_yaml
from interp.config import PROJECT_ROOT
from interp.experiment import main

TRAINING_MISTAKES = {
    "unknown key": ({"lr_lst": [0.1]}, ["'lr_lst'", "did you mean 'lr_list'"]),
    "empty list": ({"lr_list": []}, ["'lr_list'", "empty"]),
    "wrong type": ({"num_epochs": "many"}, ["'num_epochs'", "integer"]),
    "not a number": ({"wd": float("nan")}, ["'wd'", "finite"]),
    "unknown variable": ({"intermediate_functions": [["a3", 0, 1]]}, ["[a3, 0, 1]", "a4, b_identity"]),
    "position of the = token": ({"intermediate_functions": [["a2", 0, 2]]}, ["[a2, 0, 2]", "position 2"]),
    "no variable": ({"intermediate_functions": []}, ["intermediate_functions"]),
    "rule on a missing column": ({"counterfactual_label_functions": [["var_0", "var_7", "+"]]}, ["var_7"]),
    "rule with another operation": ({"counterfactual_label_functions": [["var_0", "var_1", "-"]]}, ["+ and *"]),
    "heads that do not divide the width": ({"n_head": 3}, ["n_embd", "n_head"]),
    "context too short": ({"n_positions": 2}, ["n_positions"]),
    "checkpoint never reached": ({"save_checkpoints": [999]}, ["save_checkpoints", "999"]),
    "value twice": ({"lr_list": [0.01, 0.01]}, ["lr_list", "twice"]),
    "no such device": ({"device": "abacus"}, ["device", "abacus"]),
    "other data in place": ({"data_seed": 1}, ["data_dir", "train.csv"]),
    "results of another config": ({"wd": 0.5, "results_dir": "SAME"}, ["results_dir", "wd", "--overwrite"]),
}

CIRCUIT_MISTAKES = {
    "missing data file": ({"test_data_path": "data/Disambiguation/nothing.csv"},
                          ["test_data_path", "nothing.csv", "train_algorithmic_models.py --config"]),
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
    "infinite weight": ({"l0_lambda": float("inf")}, ["l0_lambda"]),
    "results_dir is a file": ({"results_dir": "FILE"}, ["results_dir", "file"]),
}


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


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
    same = changes.get("results_dir") == "SAME"
    results = tiny.training["results_dir"] if same else str(tmp_path / "run")
    config = write_yaml(tmp_path / "c.yaml", tiny.training | changes | {"results_dir": results})
    refuse(TRAINING, ["--config", str(config)], [tmp_path, tiny.folder], words, capsys)


@pytest.mark.parametrize("mistake", CIRCUIT_MISTAKES)
def test_circuit_probing_refuses(mistake, tiny, tmp_path, capsys):
    changes, words = CIRCUIT_MISTAKES[mistake]
    if changes.get("results_dir") == "FILE":
        (tmp_path / "file").write_text("mine")
        changes = {"results_dir": str(tmp_path / "file")}
    config = write_yaml(tmp_path / "c.yaml", tiny.circuits | {"results_dir": str(tmp_path / "run")} | changes)
    refuse(CIRCUITS, ["--config", str(config)], [tmp_path, tiny.folder], words, capsys)


@pytest.mark.parametrize("mistake, words", [
    ("class without an example", ["class 3", "var_0", "train.csv"]),
    ("a single class", ["var_0", "single value"]),
    ("token beyond the vocabulary", ["test_data_path", "99"]),
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
    ("no weights", ["model_path", "no weights"]),
    ("half a weight file", ["model_path", "model.safetensors", "broken"]),
    ("no config", ["model_path", "config.json"]),
    ("another architecture", ["model_path", "'t5'"]),
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
    config = write_yaml(tmp_path / "c.yaml", tiny.circuits | {
        "model_path": str(model), "results_dir": str(tmp_path / "run")})
    refuse(CIRCUITS, ["--config", str(config)], [tmp_path, tiny.folder], words, capsys)


@pytest.mark.parametrize("text, words", [
    ("lr_list: [0.1", ["c.yaml", "not valid YAML"]),
    ("wd: 1\nwd: 2", ["c.yaml", "'wd' stands twice"]),
    ("just words", ["c.yaml", "key: value"]),
    ("base: nowhere.yaml", ["c.yaml", "'base'", "nowhere.yaml"]),
    ("base: c.yaml", ["c.yaml", "'base' leads back"]),
    ("results_dir: x", ["c.yaml", "is missing"]),
])
def test_files_that_are_no_config(text, words, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(text)
    refuse(TRAINING, ["--config", str(tmp_path / "c.yaml")], [tmp_path], words, capsys)


def test_command_line_mistakes(tiny, tmp_path, capsys):
    config = str(write_yaml(tmp_path / "c.yaml", tiny.circuits | {"results_dir": str(tmp_path / "run")}))
    folders = [tmp_path, tiny.folder]
    refuse(CIRCUITS, ["--config", "no/such.yaml"], folders, ["--config", "no/such.yaml"], capsys)
    refuse(CIRCUITS, ["--config", config, "--set", "lr_list"], folders, ["--set", "key=value"], capsys)
    refuse(CIRCUITS, ["--config", config, "--set", "lrs=[1]"], folders, ["'lrs'"], capsys)
    refuse(CIRCUITS, ["--config", config, config], folders, ["results_dir", "two of the configs"], capsys)
    refuse(CIRCUITS, ["--config", config, "--device", "abacus"], folders, ["abacus"], capsys)


def test_an_analysis_with_nothing_to_draw_says_so(tmp_path):
    finished = subprocess.run([sys.executable, PROJECT_ROOT / "analysis" / "summarize_disambiguation.py",
                               "--results", str(tmp_path)], capture_output=True, text=True)
    assert finished.returncode != 0
    assert "nothing to draw" in finished.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())
