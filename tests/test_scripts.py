"""The command lines end to end on a tiny model: tables, kill and resume, one run at a time, figures."""

import json
import runpy
import shutil
import signal
import time

import imageio.v2 as imageio
import pandas as pd
import pytest
import torch
from transformers import GPT2LMHeadModel

from conftest import CIRCUITS, DEVICE, METHODS, SENTENCES, TRAINING, kill_when, rows_of, start, write_yaml
from interp.experiment import main
from interp.methods.das import load_alignment
from interp.methods.masks import load_circuit
from interp.models.family import family_of
from interp.models.loading import load_model
from interp.models.opened import OpenModel, Site, run_all
from interp.models.sublayers import find_sublayer, masked
from interp.runs.config import PROJECT_ROOT, describe_keys, load_config
from interp.runs.settings import expand_settings
from interp.tasks.arithmetic import labels_of, read_data, token_ids
from interp.tasks.question import Exchange, read_sequences


@torch.no_grad()
def accuracy_of(model, file) -> float:
    """The plain way: the model's own forward, the likeliest token after the last."""
    table = read_data("test", str(file), ["data", "labels"])
    return (model(token_ids(table)).logits[:, -1].argmax(-1) == labels_of(table, "labels")).double().mean().item()


def sessions_of(run) -> list[dict]:
    return json.loads((run / "run.json").read_text())["sessions"]


def opened_model(path) -> OpenModel:
    model = load_model("model", str(path), DEVICE)
    return OpenModel(model, family_of(model.config))


def test_training_writes_curves_checkpoints_and_provenance(tiny):
    run = tiny.folder / "training"
    curve = rows_of(run / "curves.csv")
    assert [int(row["epoch"]) for row in curve] == [0, 50, 100, 150]
    [result] = rows_of(run / "results.csv")
    assert float(result["train_acc"]) > 0.9 > 0.3 > float(curve[0]["train_acc"])
    assert {"train_loss", "test_loss", "test_acc", "train_length", "test_length"} <= result.keys()
    [session] = sessions_of(run)
    assert session["status"] == "done" and session["packages"]["torch"] == torch.__version__
    for ending in ("png", "pdf"):
        assert (run / f"curves.{ending}").stat().st_size > 1000

    model = GPT2LMHeadModel.from_pretrained(tiny.folder / "models" / "model_LR_0.01_Seed_0_final").eval()
    assert accuracy_of(model, tiny.folder / "data/test.csv") == pytest.approx(float(result["test_acc"]))
    assert (tiny.folder / "models" / "model_LR_0.01_Seed_0_100").is_dir()


def test_training_killed_and_started_again_ends_bit_identical(tiny, tmp_path):
    values = tiny.training | {"num_epochs": 500, "checkpoint_every": 20}
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
        "gif": True, "gif_interval": 2, "operation_list": ["mlp", "attn"]})
    for name in ("one", "two"):
        assert main(CIRCUITS, ["--config", str(config), "--set", f"results_dir={tmp_path / name}",
                               f"model_dir={tmp_path / f'circuits_{name}'}"]) == 0
    assert rows_of(tmp_path / "one/results.csv") == rows_of(tmp_path / "two/results.csv")
    assert (tmp_path / "one/ablations.csv").read_bytes() == (tmp_path / "two/ablations.csv").read_bytes()

    mlp, attention = rows_of(tmp_path / "one/results.csv")
    assert (mlp["operation"], attention["operation"]) == ("mlp", "attn")
    assert (int(mlp["l0_max"]), int(attention["l0_max"])) == (2 * 16 * 32, 16 * 64)
    frames = imageio.mimread(next((tmp_path / "one").glob("updates_*attn*.gif")))
    assert len(frames) == 1 + 3  # the full model, epochs 2, 4 and 5

    # the accuracies of the table are those of the saved circuit, ablated by one documented call
    opened = opened_model(tiny.circuits["model_path"])
    circuit, about = load_circuit(next((tmp_path / "circuits_one").glob("*mlp*")))
    assert about["variable"] == "var_0" and about["operation"] == "mlp"
    with masked(find_sublayer(opened, 0, "mlp"), circuit.ablation()):
        accuracy = accuracy_of(opened.model, tiny.circuits["test_data_path"])
    assert str(accuracy) == mlp["ablated_acc_test"]
    ablations = rows_of(tmp_path / "one/ablations.csv")
    assert [row["accuracy"] for row in ablations if row["operation"] == "mlp"][:2] == [
        mlp["vanilla_acc_test"], mlp["ablated_acc_test"]]


def test_circuits_of_two_tasks_are_ablated_whole_and_map_by_map(tiny, tmp_path):
    training = {key: value for key, value in tiny.training.items() if "functions" not in key} | {
        "multitask": True, "n_positions": 5, "num_epochs": 100, "save_checkpoints": [],
        "intermediate_functions_1": [["a_mod_3", 1, 3], ["b_mod_4", 1, 3]],
        "intermediate_functions_2": [["a_mod_3", 1, 2], ["b_mod_5", 1, 2]],
        "data_dir": str(tmp_path / "data"), "model_dir": str(tmp_path / "models"), "results_dir": str(tmp_path / "run")}
    assert main(TRAINING, ["--config", str(write_yaml(tmp_path / "t.yaml", training))]) == 0
    tasks = {task: str(tmp_path / f"data/{task}") for task in ("Task_1", "Task_2")}
    config = write_yaml(tmp_path / "c.yaml", tiny.circuits | {
        "task": "multitask", "train_data_path": f"{tasks['Task_1']}/train.csv", "probe_index_list": [4],
        "test_data_path": f"{tasks['Task_1']}/test.csv", "lm_same_task_path": f"{tasks['Task_1']}/test.csv",
        "lm_different_task_path": f"{tasks['Task_2']}/test.csv", "operation_list": ["attn"],
        "model_path": str(tmp_path / "models/model_LR_0.01_Seed_0_final"), "model_dir": str(tmp_path / "circuits"),
        "results_dir": str(tmp_path / "probing")})
    assert main(CIRCUITS, ["--config", str(config)]) == 0
    [row] = rows_of(tmp_path / "probing/results.csv")
    [file] = (tmp_path / "circuits").iterdir()
    opened = opened_model(tmp_path / "models/model_LR_0.01_Seed_0_final")
    sublayer, (circuit, _) = find_sublayer(opened, 0, "attn"), load_circuit(file)
    for name, task in (("same", "Task_1"), ("different", "Task_2")):
        for prefix, maps in (("", None), ("c_attn_", ("c_attn",)), ("c_proj_", ("c_proj",))):
            with masked(sublayer, circuit.ablation(maps)):
                accuracy = accuracy_of(opened.model, f"{tasks[task]}/test.csv")
            assert str(accuracy) == row[f"{prefix}ablated_acc_{name}"]
            assert row[f"{prefix}vanilla_acc_{name}"] == row[f"vanilla_acc_{name}"]
    assert float(row["c_attn_ablated_acc_same"]) < float(row["vanilla_acc_same"])


def test_circuits_killed_and_started_again_keep_what_was_done(tiny, tmp_path):
    values = tiny.circuits | {"num_epochs": 150, "model_seed_list": [0, 1, 2], "save_models": False}
    whole = write_yaml(tmp_path / "whole.yaml", values | {"results_dir": str(tmp_path / "whole")})
    killed = write_yaml(tmp_path / "killed.yaml", values | {"results_dir": str(tmp_path / "killed")})
    table = tmp_path / "killed/results.csv"
    kill_when(start("circuit_probing", killed), table.exists)
    done = table.read_text().splitlines()[1:]
    assert 0 < len(done) < 6
    assert [session["status"] for session in sessions_of(tmp_path / "killed")] == ["running"]
    for config in (killed, whole):
        assert main(CIRCUITS, ["--config", str(config)]) == 0
    assert table.read_text().splitlines()[1:1 + len(done)] == done  # with their seconds: not recomputed
    assert rows_of(table) == rows_of(tmp_path / "whole/results.csv")
    assert (tmp_path / "killed/ablations.csv").read_bytes() == (tmp_path / "whole/ablations.csv").read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_other_methods_same_seed_same_table_also_after_a_kill(method, tiny, tmp_path):
    seeds = {"model_seed_list": list(range(6))} | ({"epochs": 60} if method == "DAS" else {"num_epochs": 60})
    for name in ("killed", "whole"):
        config = write_yaml(tmp_path / f"{name}.yaml", tiny.methods[method] | seeds | {
            "results_dir": str(tmp_path / name)})
        if name == "killed":
            kill_when(start(method, config), (tmp_path / "killed/results.csv").exists)
            done = (tmp_path / "killed/results.csv").read_text().splitlines()[1:]
            assert 0 < len(done) < 12
        assert main(METHODS[method], ["--config", str(config)]) == 0
    assert (tmp_path / "killed/results.csv").read_text().splitlines()[1:1 + len(done)] == done
    for table in (tmp_path / "whole").glob("*.csv"):
        assert rows_of(tmp_path / "killed" / table.name) == rows_of(table)
    assert len(rows_of(tmp_path / "whole/results.csv")) == 12


def test_probing_counts_what_its_examples_say(tiny, tmp_path):
    config = write_yaml(tmp_path / "c.yaml", tiny.methods["probing"] | {"results_dir": str(tmp_path / "run")})
    assert main(METHODS["probing"], ["--config", str(config)]) == 0
    examples = pd.read_csv(tmp_path / "run/counterfactual_examples.csv")
    for _, row in pd.read_csv(tmp_path / "run/results.csv").iterrows():
        own = examples[examples["residual_location"] == row["residual_location"]]
        assert len(own) == row["counterfactual_dataset_size"]
        assert (own["label"] != own["cf_label"]).all()
        for name in ("embedding_success", "predicts_cf_label", "predicts_original_label"):
            assert own[name].mean() == pytest.approx(row[f"counterfactual_{name}"])
        assert own["logit_diff"].mean() == pytest.approx(row["counterfactual_average_logit_diff"])


def test_amnesic_probing_of_two_tasks(tiny, tmp_path):
    values = tiny.methods["amnesic_probing"]
    tasks = {f"t2_{split}_data_path": values[f"{split}_data_path"] for split in ("train", "test")}
    config = write_yaml(tmp_path / "c.yaml", values | tasks | {
        "multitask": True, "results_dir": str(tmp_path / "run"), "residual_location_list": ["resid_mid"]})
    assert main(METHODS["amnesic_probing"], ["--config", str(config)]) == 0
    [row] = rows_of(tmp_path / "run/results.csv")  # the other task is the same data, so its figures are the same
    for name in ("train_acc", "test_acc", "train_vanilla_acc", "test_vanilla_acc", "heldout_acc"):
        assert row[f"same_{name}"] == row[f"diff_{name}"]
    assert float(row["same_train_acc"]) < float(row["same_train_vanilla_acc"])
    assert float(row["same_train_post_erasure_probe_acc"]) < float(row["same_train_pre_erasure_probe_acc"])


def test_das_saves_what_it_reports_at_any_position(tiny, tmp_path):
    config = write_yaml(tmp_path / "c.yaml", tiny.methods["DAS"] | {
        "save_models": True, "model_dir": str(tmp_path / "alignments"), "location_list": ["attn"]})
    opened = opened_model(tiny.methods["DAS"]["model_path"])
    for token_range in ("2_3", "1_2"):  # at the last position the fast way, elsewhere through the whole model
        run = tmp_path / token_range
        assert main(METHODS["DAS"], ["--config", str(config), "--set", f"results_dir={run}",
                                     f"token_range='{token_range}'", f"model_dir={run}"]) == 0
        [row] = rows_of(run / "results.csv")
        assert float(row["rotation_error"]) < 1e-5
        assert len(rows_of(run / "training_log.csv")) == 10
        alignment, about = load_alignment(next(run.glob("*.safetensors")))
        pairs = read_sequences("test", tiny.methods["DAS"]["test_path"], [], DEVICE, about["position"],
                               Exchange("CF_Label_0"))
        site = Site(about["target_layer"], "resid_mid")
        exchanged = alignment.intervene(*(opened.read(own, [site])[0] for own in (pairs, pairs.source)))
        states = run_all(opened.patched(pairs, site), exchanged)
        accuracy = opened.is_right(states, pairs.exchanged).double().mean().item()
        assert accuracy == pytest.approx(float(row["interchange_intervention_acc"]), abs=1.5 / len(pairs))


def test_an_answer_after_the_exchange_of_another_variable_is_said(tiny, tmp_path, capsys):
    """As in the paper's configs of variables that a task does not need."""
    for label, said in (("CF_Label_0", True), ("CF_Label_1", False)):
        config = write_yaml(tmp_path / "c.yaml", tiny.methods["probing"] | {
            "counterfactual_label": label, "results_dir": str(tmp_path / "run")})
        assert main(METHODS["probing"], ["--check", "--config", str(config)]) == 0
        assert ("CF_Label_0 is the answer after an exchange of var_1, not of var_0" in capsys.readouterr().out) == said


def test_transfer_trains_from_both_starts(tiny, tmp_path, capsys):
    shutil.copytree(tiny.circuits["model_path"], tmp_path / "old")
    (tmp_path / "old/generation_config.json").write_text('{"temperature": 0.5}')  # says nothing of what is trained
    config = write_yaml(tmp_path / "c.yaml", tiny.training | {
        "transfer": str(tmp_path / "old"), "num_epochs": 20, "checkpoint_every": 1, "save_checkpoints": [],
        "results_dir": str(tmp_path / "run"), "model_dir": str(tmp_path / "models")})
    assert main(TRAINING, ["--config", str(config)]) == 0
    curves = {(row["start"], int(row["epoch"])): row for row in rows_of(tmp_path / "run/curves.csv")}
    assert len(curves) == 2 * 21
    [old] = rows_of(tiny.folder / "training/results.csv")
    assert curves["transfer", 0]["test_acc"] == old["test_acc"]  # it starts where the other training ended
    assert float(curves["fresh", 0]["test_acc"]) < 0.4
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        "model_LR_0.01_Seed_0_fresh_final", "model_LR_0.01_Seed_0_transfer_final"]
    assert len({file.read_bytes() for file in (tmp_path / "models").glob("*/generation_config.json")}) == 1
    shutil.copy(tiny.folder / "models/model_LR_0.01_Seed_0_100/model.safetensors", tmp_path / "old")
    assert main(TRAINING, ["--config", str(config)]) == 2
    assert "holds a run of another" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_another_model_or_other_data(tiny, tmp_path, capsys):
    shutil.copytree(tiny.circuits["model_path"], tmp_path / "model")
    shutil.copy(tiny.circuits["test_data_path"], tmp_path / "test.csv")
    values = tiny.circuits | {"model_path": str(tmp_path / "model"), "test_data_path": str(tmp_path / "test.csv"),
                              "results_dir": str(tmp_path / "run"), "save_models": False}
    config = str(write_yaml(tmp_path / "c.yaml", values))
    assert main(CIRCUITS, ["--config", config]) == 0
    before = (tmp_path / "run/results.csv").read_bytes()
    for changed, content in (("model/model.safetensors",
                              (tiny.folder / "models/model_LR_0.01_Seed_0_100/model.safetensors").read_bytes()),
                             ("test.csv", (tmp_path / "test.csv").read_bytes()[:-20])):
        original = (tmp_path / changed).read_bytes()
        (tmp_path / changed).write_bytes(content.rsplit(b"\n", 1)[0] + b"\n" if changed == "test.csv" else content)
        assert main(CIRCUITS, ["--config", config]) == 2
        said = capsys.readouterr().err
        assert f"holds a run of another {tmp_path / changed}" in said
        (tmp_path / changed).write_bytes(original)
    assert main(CIRCUITS, ["--config", config]) == 0
    assert (tmp_path / "run/results.csv").read_bytes() == before


def test_what_was_deleted_is_made_again_and_nothing_else(tiny, tmp_path):
    config = write_yaml(tmp_path / "c.yaml", tiny.training | {
        "results_dir": str(tmp_path / "run"), "model_dir": str(tmp_path / "models"),
        "data_dir": str(tmp_path / "data")})
    assert main(TRAINING, ["--config", str(config)]) == 0
    before = rows_of(tmp_path / "run/results.csv")
    weights = {path: path.read_bytes() for path in (tmp_path / "models").rglob("*.safetensors")}
    for name in ("models", "data"):
        shutil.rmtree(tmp_path / name)
    assert main(TRAINING, ["--config", str(config)]) == 0
    assert rows_of(tmp_path / "run/results.csv") == before
    assert {path: path.read_bytes() for path in (tmp_path / "models").rglob("*.safetensors")} == weights
    assert (tmp_path / "data/train.csv").exists()
    record = (tmp_path / "run/run.json").read_bytes()
    assert main(TRAINING, ["--config", str(config)]) == 0
    assert (tmp_path / "run/run.json").read_bytes() == record  # nothing was left to do


def test_ctrl_c_ends_in_one_sentence_and_the_run_goes_on(tiny, tmp_path):
    config = write_yaml(tmp_path / "c.yaml", tiny.circuits | {
        "num_epochs": 150, "results_dir": str(tmp_path / "run"), "save_models": False})
    process = start("circuit_probing", config)
    while not (tmp_path / "run/run.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines() == ["circuit_probing: interrupted; the same command goes on from here."]
    assert main(CIRCUITS, ["--config", str(config)]) == 0
    assert [session["status"] for session in sessions_of(tmp_path / "run")] == ["interrupted", "done"]


def test_data_without_an_index_column_will_do(tiny, tmp_path):
    for name in ("train", "test"):
        table = pd.read_csv(tiny.folder / f"data/{name}.csv")
        table[["data", "labels", "var_0"]].to_csv(tmp_path / f"{name}.csv", index=False)
    config = write_yaml(tmp_path / "c.yaml", tiny.circuits | {
        "train_data_path": str(tmp_path / "train.csv"), "test_data_path": str(tmp_path / "test.csv"),
        "results_dir": str(tmp_path / "run"), "save_models": False, "num_epochs": 1})
    assert main(CIRCUITS, ["--config", str(config)]) == 0


def test_a_loss_that_is_no_number_fails_in_one_sentence(tiny, tmp_path, capsys):
    config = write_yaml(tmp_path / "c.yaml", tiny.training | {
        "lr_list": [1e30], "results_dir": str(tmp_path / "run"), "model_dir": str(tmp_path / "models")})
    assert main(TRAINING, ["--config", str(config)]) == 1
    assert "lr_list" in capsys.readouterr().err.strip().splitlines()[-1]
    assert [session["status"] for session in sessions_of(tmp_path / "run")] == ["failed"]
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
    for control in ("random_init=true", "reinit_embeddings=true", "layer_reinit=0", "layer_reinit=true"):
        arguments = ["--config", str(write_yaml(tmp_path / "c.yaml", tiny.circuits)), "--set", control,
                     f"results_dir={tmp_path / control}", "save_models=false", "operation_list=[mlp]"]
        assert main(CIRCUITS, arguments) == 0
        [row] = rows_of(tmp_path / control / "results.csv")
        assert float(row["vanilla_acc_test"]) < 0.3


@pytest.mark.parametrize("script", [TRAINING, SENTENCES, CIRCUITS, *METHODS.values()], ids=lambda script: script.name)
def test_help_tells_every_key_with_its_meaning(script, capsys):
    with pytest.raises(SystemExit) as ended:
        main(script, ["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert all(f" {option} " in said for option in ("--config", "--set", "--overwrite", "--check", "--device"))
    for name, default, meaning in describe_keys(script.schema):
        assert meaning, name
        assert " ".join(f"{name}{f' ({default})' if default else ''}: {meaning}".split()) in said


def test_the_page_of_keys_is_what_the_scripts_say():
    maker = PROJECT_ROOT / "docs/make_keys.py"
    if not maker.exists():
        pytest.skip("there is no docs/make_keys.py")
    assert runpy.run_path(str(maker))["page"]() == (PROJECT_ROOT / "docs/keys.md").read_text()


def test_check_says_what_is_left_and_computes_and_writes_nothing(tiny, tmp_path, capsys):
    values = {TRAINING: tiny.training | {"data_dir": str(tmp_path / "data"), "model_dir": str(tmp_path / "models")},
              SENTENCES: {"file_list": ["SV_Agr"], "data_dir": str(tmp_path / "sentences")}, CIRCUITS: tiny.circuits}
    values |= {METHODS[method]: own for method, own in tiny.methods.items()}
    before = set(tiny.folder.rglob("*"))
    for script, own in values.items():
        config = write_yaml(tmp_path / f"{script.name}.yaml", own | {"results_dir": str(tmp_path / script.name)})
        assert main(script, ["--config", str(config), "--check"]) == 0
        first, *lines = capsys.readouterr().out.splitlines()
        count = len(expand_settings(load_config(config, script.schema)))
        assert first == f"{tmp_path / script.name}: {count} of {count} settings to compute." and len(lines) == count
    assert {path.suffix for path in tmp_path.iterdir()} == {".yaml"} and set(tiny.folder.rglob("*")) == before
