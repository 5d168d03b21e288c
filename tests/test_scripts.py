"""The command lines end to end on a tiny model: tables, kill and resume, one run at a time, figures."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio.v2 as imageio
import pytest
import torch
from transformers import GPT2LMHeadModel

from conftest import CIRCUITS, TRAINING, write_yaml
from interp.arithmetic import labels_of, read_data, token_ids
from interp.behavior import masked, next_token_accuracy
from interp.config import PROJECT_ROOT
from interp.experiment import main
from interp.masks import load_circuit
from interp.models import find_sublayer, load_model


def rows_of(file: Path, drop: str = "seconds") -> list[dict]:
    with open(file, newline="") as table:
        return [{key: value for key, value in row.items() if key != drop} for row in csv.DictReader(table)]


def start(script: str, config: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(PROJECT_ROOT / f"{script}.py"), "--config", str(config)],
                            cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {"HF_HUB_OFFLINE": "1"})


def kill_when(process: subprocess.Popen, ready) -> None:
    """SIGKILL a running script as soon as it has got somewhere."""
    deadline = time.time() + 60
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.time() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_training_writes_curves_checkpoints_and_provenance(tiny):
    run = tiny.folder / "training"
    curve = rows_of(run / "curves.csv")
    assert [int(row["epoch"]) for row in curve] == [0, 50, 100, 150]
    [result] = rows_of(run / "results.csv")
    assert float(result["train_acc"]) > 0.9 > 0.3 > float(curve[0]["train_acc"])
    assert {"train_loss", "test_loss", "test_acc", "train_length", "test_length"} <= result.keys()
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "done" and record["packages"]["torch"] == torch.__version__
    for ending in ("png", "pdf"):
        assert (run / f"curves.{ending}").stat().st_size > 1000

    model = GPT2LMHeadModel.from_pretrained(tiny.folder / "models" / "model_LR_0.01_Seed_0_final")
    test = read_data("test", str(tiny.folder / "data" / "test.csv"), ["labels"])
    accuracy = next_token_accuracy(model.eval(), token_ids(test), labels_of(test, "labels"))
    assert accuracy == pytest.approx(float(result["test_acc"]))
    assert (tiny.folder / "models" / "model_LR_0.01_Seed_0_100").is_dir()


def test_training_killed_and_started_again_ends_bit_identical(tiny, tmp_path):
    values = tiny.training | {"num_epochs": 1000, "checkpoint_every": 20}
    folders = {}
    for name in ("whole", "killed"):
        folders[name] = tmp_path / name
        folder = {"results_dir": str(tmp_path / name / "run"), "model_dir": str(tmp_path / name / "models")}
        config = write_yaml(tmp_path / f"{name}.yaml", values | folder)
        if name == "killed":
            kill_when(start("train_algorithmic_models", config),
                      lambda: (tmp_path / "killed/models/model_LR_0.01_Seed_0_100").exists())
            assert not (tmp_path / "killed/run/results.csv").exists()
        assert main(TRAINING, ["--config", str(config)]) == 0
    assert rows_of(folders["killed"] / "run/results.csv") == rows_of(folders["whole"] / "run/results.csv")
    assert ((folders["killed"] / "run/curves.csv").read_bytes()
            == (folders["whole"] / "run/curves.csv").read_bytes())
    for name in ("100", "final"):
        weights = [(folders[run] / f"models/model_LR_0.01_Seed_0_{name}/model.safetensors").read_bytes()
                   for run in folders]
        assert weights[0] == weights[1]
    assert len(list((folders["killed"] / "models").iterdir())) == 2  # nothing set aside, no rests


def test_circuits_same_seed_same_table_and_what_the_rows_say(tiny, tmp_path):
    config = write_yaml(tmp_path / "circuits.yaml", tiny.circuits | {
        "gif": True, "gif_interval": 2, "model_dir": str(tmp_path / "circuits"), "operation_list": ["mlp", "attn"]})
    for name in ("one", "two"):
        assert main(CIRCUITS, ["--config", str(config), "--set", f"results_dir={tmp_path / name}"]) == 0
    assert rows_of(tmp_path / "one/results.csv") == rows_of(tmp_path / "two/results.csv")
    assert (tmp_path / "one/ablations.csv").read_bytes() == (tmp_path / "two/ablations.csv").read_bytes()

    mlp, attention = rows_of(tmp_path / "one/results.csv")
    assert (mlp["operation"], attention["operation"]) == ("mlp", "attn")
    assert (int(mlp["l0_max"]), int(attention["l0_max"])) == (2 * 16 * 32, 16 * 64)
    frames = imageio.mimread(next((tmp_path / "one").glob("updates_*attn*.gif")))
    assert len(frames) == 1 + 3  # the full model, epochs 2, 4 and 5
    assert list(rows_of(tmp_path / "one/results.csv", drop="")[0])[-1] == "seconds"

    # the accuracies of the table are those of the saved circuit, ablated by one documented call
    test = read_data("test", tiny.circuits["test_data_path"], ["labels"])
    model = load_model("model", tiny.circuits["model_path"], torch.device("cpu"))
    circuit, about = load_circuit(next((tmp_path / "circuits").glob("*mlp*")))
    assert about["variable"] == "var_0" and about["operation"] == "mlp"
    with masked(find_sublayer(model, 0, "mlp"), circuit.ablation()):
        accuracy = next_token_accuracy(model, token_ids(test), labels_of(test, "labels"))
    assert str(accuracy) == mlp["ablated_acc_test"]
    ablations = rows_of(tmp_path / "one/ablations.csv")
    assert [row["accuracy"] for row in ablations if row["operation"] == "mlp"][:2] == [
        mlp["vanilla_acc_test"], mlp["ablated_acc_test"]]


def test_circuits_killed_and_started_again_keep_what_was_done(tiny, tmp_path):
    values = tiny.circuits | {"num_epochs": 150, "model_seed_list": [0, 1, 2], "save_models": False}
    whole = write_yaml(tmp_path / "whole.yaml", values | {"results_dir": str(tmp_path / "whole")})
    killed = write_yaml(tmp_path / "killed.yaml", values | {"results_dir": str(tmp_path / "killed")})
    table = tmp_path / "killed/results.csv"
    kill_when(start("circuit_probing", killed), table.exists)
    done = table.read_text().splitlines()[1:]
    assert 0 < len(done) < 6
    assert json.loads((tmp_path / "killed/run.json").read_text())["status"] == "running"
    for config in (killed, whole):
        assert main(CIRCUITS, ["--config", str(config)]) == 0
    assert table.read_text().splitlines()[1:1 + len(done)] == done  # with their seconds: not recomputed
    assert rows_of(table) == rows_of(tmp_path / "whole/results.csv")
    assert (tmp_path / "killed/ablations.csv").read_bytes() == (tmp_path / "whole/ablations.csv").read_bytes()


def test_rows_cut_off_between_two_tables_are_computed_again(tiny, tmp_path):
    config = write_yaml(tmp_path / "c.yaml", tiny.circuits | {"results_dir": str(tmp_path / "run"),
                                                              "save_models": False})
    assert main(CIRCUITS, ["--config", str(config)]) == 0
    wanted = {name: rows_of(tmp_path / "run" / name) for name in ("results.csv", "ablations.csv")}
    lines = (tmp_path / "run/results.csv").read_text().splitlines(keepends=True)
    (tmp_path / "run/results.csv").write_text("".join(lines[:2]))  # as if killed before the last row
    assert main(CIRCUITS, ["--config", str(config)]) == 0
    assert {name: rows_of(tmp_path / "run" / name) for name in wanted} == wanted


def test_two_at_once_on_one_directory_the_second_stops(tiny, tmp_path):
    config = write_yaml(tmp_path / "c.yaml", tiny.circuits | {
        "num_epochs": 100000, "results_dir": str(tmp_path / "run"), "save_models": False})
    first = start("circuit_probing", config)
    try:
        deadline = time.time() + 60
        while not (tmp_path / "run/run.json").exists():
            assert first.poll() is None and time.time() < deadline
            time.sleep(0.05)
        second = start("circuit_probing", config)
        output, errors = second.communicate(timeout=60)
        assert second.returncode == 2
        assert errors.splitlines() == [
            f"circuit_probing: results_dir: another process is at work in {tmp_path / 'run'}; "
            "wait for it to end or give another results_dir."]
    finally:
        first.kill()
        first.communicate()


def test_overwrite_moves_the_old_run_aside(tiny, tmp_path):
    config = write_yaml(tmp_path / "c.yaml", tiny.circuits | {
        "results_dir": str(tmp_path / "run"), "model_dir": str(tmp_path / "circuits"), "operation_list": ["mlp"]})
    assert main(CIRCUITS, ["--config", str(config)]) == 0
    before = (tmp_path / "run/results.csv").read_bytes()
    circuit = next((tmp_path / "circuits").iterdir())
    old_circuit = circuit.read_bytes()
    assert main(CIRCUITS, ["--config", str(config), "--overwrite", "--set", "num_epochs=2"]) == 0
    assert (tmp_path / "run.old-1/results.csv").read_bytes() == before != (tmp_path / "run/results.csv").read_bytes()
    assert circuit.with_name(f"{circuit.name}.old-1").read_bytes() == old_circuit != circuit.read_bytes()


def test_a_loss_that_is_no_number_fails_in_one_sentence(tiny, tmp_path, capsys):
    config = write_yaml(tmp_path / "c.yaml", tiny.training | {
        "lr_list": [1e30], "results_dir": str(tmp_path / "run"), "model_dir": str(tmp_path / "models")})
    assert main(TRAINING, ["--config", str(config)]) == 1
    assert "lr_list" in capsys.readouterr().err.strip().splitlines()[-1]
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "failed"
    assert not (tmp_path / "run/results.csv").exists()


def test_checkpoints_and_seeds_sweep_in_one_table(tiny, tmp_path):
    shutil.copytree(tiny.folder / "models", tmp_path / "models")
    config = write_yaml(tmp_path / "c.yaml", tiny.circuits | {
        "model_path": str(tmp_path / "models" / "model_LR_0.01_Seed_{model_seed}_{checkpoint}"),
        "checkpoint_list": [100, "final"], "operation_list": ["mlp"], "results_dir": str(tmp_path / "run"),
        "save_models": False})
    assert main(CIRCUITS, ["--config", str(config)]) == 0
    assert [row["checkpoint"] for row in rows_of(tmp_path / "run/results.csv")] == ["100", "final"]


def test_reinitialised_models_do_not_know_the_task(tiny, tmp_path):
    for control in ("random_init=true", "reinit_embeddings=true", "layer_reinit=0"):
        arguments = ["--config", str(write_yaml(tmp_path / "c.yaml", tiny.circuits)), "--set", control,
                     f"results_dir={tmp_path / control}", "save_models=false", "operation_list=[mlp]"]
        assert main(CIRCUITS, arguments) == 0
        [row] = rows_of(tmp_path / control / "results.csv")
        assert float(row["vanilla_acc_test"]) < 0.3


def test_figures_of_what_exists_from_any_directory(tiny, tmp_path):
    for variable in ("a2", "a_plus_b"):
        config = write_yaml(tmp_path / f"{variable}.yaml", tiny.circuits | {
            "variable": "var_0" if variable == "a2" else "aux_0", "save_models": False,
            "results_dir": str(tmp_path / "circuit_probing" / variable)})
        assert main(CIRCUITS, ["--config", str(config)]) == 0
    finished = subprocess.run([sys.executable, PROJECT_ROOT / "analysis" / "summarize_disambiguation.py",
                               "--results", str(tmp_path)], cwd="/", capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert [line.split("circuit_probing/")[1].split("/")[0] for line in finished.stderr.splitlines()
            if line.startswith("missing")] == ["minus_b2", "a_minus_b"]
    table = {(row["variable"], row["component"]): row for row in rows_of(tmp_path / "figures/beside_the_paper.csv")}
    [mlp] = [row for row in rows_of(tmp_path / "circuit_probing/a2/results.csv") if row["operation"] == "mlp"]
    assert table["a2", "mlp"]["accuracy_ablated_ours"] == mlp["ablated_acc_test"]
    assert table["a2", "attn"]["KNN_circuit_paper"] == "0.991"
    for name in ("nearest_neighbors", "ablation"):
        for ending in ("png", "pdf"):
            assert (tmp_path / f"figures/{name}.{ending}").stat().st_size > 1000
