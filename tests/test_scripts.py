"""The command lines end to end on a tiny model, each against a plain computation of what its rows say.

compare_methods.py is in test_interchange.py, generate_language_data.py in test_language.py.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time

import imageio.v2 as imageio
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from transformers import GPT2LMHeadModel

import conftest
from conftest import CIRCUITS, METHODS, SCRIPTS, TRAINING, Plain, execute, opened_model, rows_of, tokens_of, write_yaml
from interp.experiment import main
from interp.methods.circuits import draw_references, soft_nearest_neighbor_loss
from interp.methods.das import load_alignment
from interp.methods.erasure import decodability, erased_rank, fit_eraser, random_eraser
from interp.methods.masks import load_circuit
from interp.models.loading import build_gpt2
from interp.models.open_model import Site
from interp.models.sublayers import find_sublayer, masked
from interp.runs.config import PROJECT_ROOT, describe_keys, load_config
from interp.runs.settings import expand_settings

EVERY_SCRIPT = [TRAINING, conftest.SENTENCES, *SCRIPTS.values()]


@torch.no_grad()
def accuracy_of(model, file) -> float:
    """The plain way: the model's own forward, the likeliest token after the last."""
    table = pd.read_csv(file)
    return share(model(tokens_of(table["data"])).logits[:, -1], table["labels"])


def share(logits: torch.Tensor, labels) -> float:
    return (logits.argmax(-1) == torch.as_tensor(labels)).double().mean().item()


def data_of(values: dict) -> dict[str, pd.DataFrame]:
    return {name: pd.read_csv(values[f"{name}_data_path"]) for name in ("train", "test")}


def test_training_takes_plain_steps_and_saves_what_it_reports(tiny, tmp_path):
    folder = tiny.folder / "training"
    curve = rows_of(folder / "curves.csv")
    assert [int(row["epoch"]) for row in curve] == [0, 50, 100, 150]
    [result] = rows_of(folder / "results.csv")
    assert float(result["train_acc"]) > 0.9 > 0.3 > float(curve[0]["train_acc"])
    assert json.loads((folder / "run.json").read_text())["sessions"][0]["status"] == "done"
    assert all((folder / f"curves.{ending}").stat().st_size > 1000 for ending in ("png", "pdf"))
    models = tiny.folder / "models"
    assert {path.name for path in models.iterdir()} == {f"model_LR_0.01_Seed_0_{name}" for name in ("100", "final")}
    model = GPT2LMHeadModel.from_pretrained(models / "model_LR_0.01_Seed_0_final").eval()
    data = data_of(tiny.circuits)
    for name, table in data.items():
        assert accuracy_of(model, tiny.folder / f"data/{name}.csv") == pytest.approx(float(result[f"{name}_acc"]))
        assert int(result[f"{name}_length"]) == len(table)

    execute(TRAINING, tiny.training | {"num_epochs": 15, "checkpoint_every": 5, "save_checkpoints": [],
                                       "save_models": False, "model_seed_list": [3]}, tmp_path / "run")
    model = build_gpt2(3, vocab_size=12, n_positions=3, n_layer=1, n_head=2, n_embd=16, n_inner=32)
    assert model.config.activation_function == "relu" and model.lm_head.weight is model.transformer.wte.weight
    optimizer, losses = torch.optim.AdamW(model.parameters(), weight_decay=0.1, betas=(0.9, 0.98)), {}
    for epoch in range(16):
        for name, table in data.items():
            logits = model(tokens_of(table["data"])).logits[:, -1].double()
            losses[name, epoch] = F.cross_entropy(logits, torch.tensor(table["labels"]))
        optimizer.param_groups[0]["lr"] = 0.01 * min(1, 1 / 3 + epoch * 2 / 30)  # from a third, over ten steps
        optimizer.zero_grad()
        losses["train", epoch].backward()
        optimizer.step()
    for row in rows_of(tmp_path / "run/curves.csv"):
        for name in data:
            assert float(row[f"{name}_loss"]) == pytest.approx(losses[name, int(row["epoch"])].item(), rel=1e-4)


def test_training_killed_or_bereft_of_its_files_ends_bit_identical(tiny, tmp_path):
    values = tiny.training | {"num_epochs": 500, "checkpoint_every": 20}

    def made(name: str) -> dict:
        """What a run leaves in data, in models and as curves, after it has been started again."""
        execute(TRAINING, values | {f"{kind}_dir": str(tmp_path / name / kind) for kind in ("data", "model")},
                tmp_path / name / "results")
        return {path.relative_to(tmp_path / name): path.read_bytes() for pattern in (
            "data/*.csv", "results/curves.csv", "model/*/*.*") for path in (tmp_path / name).glob(pattern)}

    whole = made("whole")
    config = write_yaml(tmp_path / "killed.yaml", values | {
        f"{kind}_dir": str(tmp_path / "killed" / kind) for kind in ("data", "model", "results")})
    process = subprocess.Popen([sys.executable, PROJECT_ROOT / "train_algorithmic_models.py", "--config", config])
    while not (tmp_path / "killed/model/model_LR_0.01_Seed_0_100").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed/results/results.csv").exists()
    assert made("killed") == whole and len(whole) == 2 + 1 + 2 * 3
    record = (tmp_path / "killed/results/run.json").read_bytes()
    shutil.rmtree(tmp_path / "killed/data")
    assert made("killed") == whole and (tmp_path / "killed/results/run.json").read_bytes() == record  # nothing computed
    shutil.rmtree(tmp_path / "killed/model")
    assert made("killed") == whole


def test_transfer_trains_from_both_starts(tiny, tmp_path, capsys):
    shutil.copytree(tiny.circuits["model_path"], tmp_path / "old")
    (tmp_path / "old/generation_config.json").write_text('{"temperature": 0.5}')  # says nothing of what is trained
    values = tiny.training | {
        "transfer": str(tmp_path / "old"), "num_epochs": 20, "checkpoint_every": 1, "save_checkpoints": [],
        "model_dir": str(tmp_path / "models")}
    execute(TRAINING, values, tmp_path / "run")
    curves = {(row["start"], int(row["epoch"])): row for row in rows_of(tmp_path / "run/curves.csv")}
    assert len(curves) == 2 * 21
    [old] = rows_of(tiny.folder / "training/results.csv")
    assert curves["transfer", 0]["test_acc"] == old["test_acc"]  # it starts where the other training ended
    assert float(curves["fresh", 0]["test_acc"]) < 0.4
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        "model_LR_0.01_Seed_0_fresh_final", "model_LR_0.01_Seed_0_transfer_final"]
    assert len({file.read_bytes() for file in (tmp_path / "models").glob("*/generation_config.json")}) == 1


def test_circuits_are_what_their_rows_say(tiny, tmp_path):
    """Neighbors by scikit-learn, losses, and the whole model without the circuit or as many random neurons."""
    values = tiny.circuits | {
        "gif": True, "gif_interval": 2, "operation_list": ["mlp", "attn"], "model_seed_list": [3], "data_seed": 1,
        "l0_lambda": 1e-3, "num_random_ablations": 3, "model_dir": str(tmp_path / "circuits")}
    rows = execute(CIRCUITS, values, tmp_path / "run")
    assert [(row["operation"], int(row["l0_max"])) for row in rows] == [("mlp", 2 * 16 * 32), ("attn", 16 * 64)]
    assert list(rows_of(tmp_path / "run/results.csv", drop="")[0])[-1] == "seconds"
    frames = imageio.mimread(next((tmp_path / "run").glob("updates_*attn*.gif")))
    assert len(frames) == 1 + 3  # the full sublayer, epochs 2, 4 and 5

    opened, plain, data = opened_model(values["model_path"]), Plain(values["model_path"]), data_of(values)
    plain.model = opened.model
    labels = {name: torch.tensor(table["var_0"]) for name, table in data.items()}
    known = draw_references(labels["train"], torch.Generator().manual_seed(1))
    rest = [number for number in range(len(labels["train"])) if number not in known]
    drawing = torch.Generator().manual_seed(3)
    orders = [torch.randperm(len(labels["train"]), generator=drawing) for _ in range(6)]  # of five epochs, and after
    for row in rows:
        circuit, about = load_circuit(next((tmp_path / "circuits").glob(f"*_{row['operation']}_*")))
        assert about["variable"] == "var_0" and about["operation"] == row["operation"]
        sublayer, drawing = find_sublayer(opened, 0, row["operation"]), torch.Generator().manual_seed(3)
        assert int(row["l0_norm"]) == sum(int((score > 0).sum()) * circuit.fan_in[name]
                                          for name, score in circuit.scores.items()) > 0
        shares = []
        for masks in (sublayer.full_masks(), circuit.ablation(), *(circuit.random_ablation(drawing) for _ in range(3))):
            with masked(sublayer, masks):
                shares.append(accuracy_of(opened.model, values["test_data_path"]))
        table = [line for line in rows_of(tmp_path / "run/ablations.csv") if line["operation"] == row["operation"]]
        assert [float(line["accuracy"]) for line in table] == pytest.approx(shares)
        assert [line["condition"] for line in table] == ["full", "circuit", *["random"] * 3]
        assert len(set(shares[2:])) > 1
        for column, wanted in {
                "vanilla_acc_test": shares[0], "ablated_acc_test": shares[1],
                "random_ablated_acc_test_mean": sum(shares[2:]) / 3,
                "random_ablated_acc_test_std": statistics.stdev(shares[2:])}.items():
            assert float(row[column]) == pytest.approx(wanted)

        for prefix, masks in (("full_model_", sublayer.full_masks()), ("", circuit.masks())):
            with masked(sublayer, masks):
                updates = {name: plain.read(getattr(opened.blocks[0], row["operation"]), tokens_of(table["data"]), True)
                           for name, table in data.items()}
            oracle = KNeighborsClassifier(1, metric="cosine").fit(updates["train"][known], labels["train"][known])
            assert float(row[f"{prefix}knn_dev_acc"]) == pytest.approx(
                oracle.score(updates["train"][rest], labels["train"][rest]))
            assert float(row[f"{prefix}knn_test_acc"]) == pytest.approx(oracle.score(updates["test"], labels["test"]))
        every = torch.arange(len(labels["test"]))
        for name, batches in (("train", orders[-1][:len(orders[-1]) // 20 * 20].split(20)), ("test", every.split(20))):
            losses = [soft_nearest_neighbor_loss(updates[name][some], labels[name][some]).item() for some in batches]
            assert float(row[f"{name}_loss"]) == pytest.approx(sum(losses) / len(losses), rel=1e-4)
        commonest = labels["train"].bincount().argmax()
        assert float(row["majority_test_acc"]) == (labels["test"] == commonest).double().mean()


def test_circuits_of_two_tasks_are_ablated_whole_and_map_by_map(tiny, tmp_path):
    training = {key: value for key, value in tiny.training.items() if "functions" not in key} | {
        "multitask": True, "n_positions": 5, "num_epochs": 100, "save_checkpoints": [],
        "intermediate_functions_1": [["a_mod_3", 1, 3], ["b_mod_4", 1, 3]],
        "intermediate_functions_2": [["a_mod_3", 1, 2], ["b_mod_5", 1, 2]],
        "data_dir": str(tmp_path / "data"), "model_dir": str(tmp_path / "models")}
    execute(TRAINING, training, tmp_path / "training")
    tasks = {task: str(tmp_path / f"data/{task}") for task in ("Task_1", "Task_2")}
    model = str(tmp_path / "models/model_LR_0.01_Seed_0_final")
    [row] = execute(CIRCUITS, tiny.circuits | {
        "task": "multitask", "train_data_path": f"{tasks['Task_1']}/train.csv", "probe_index_list": [4],
        "test_data_path": f"{tasks['Task_1']}/test.csv", "lm_same_task_path": f"{tasks['Task_1']}/test.csv",
        "lm_different_task_path": f"{tasks['Task_2']}/test.csv", "operation_list": ["attn"], "model_path": model,
        "model_dir": str(tmp_path / "circuits")}, tmp_path / "probing")
    opened, [file] = opened_model(model), (tmp_path / "circuits").iterdir()
    sublayer, (circuit, _) = find_sublayer(opened, 0, "attn"), load_circuit(file)
    for name, task in (("same", "Task_1"), ("different", "Task_2")):
        for prefix, maps in (("", None), ("c_attn_", ("c_attn",)), ("c_proj_", ("c_proj",))):
            with masked(sublayer, circuit.ablation(maps)):
                accuracy = accuracy_of(opened.model, f"{tasks[task]}/test.csv")
            assert str(accuracy) == row[f"{prefix}ablated_acc_{name}"]
            assert row[f"{prefix}vanilla_acc_{name}"] == row[f"vanilla_acc_{name}"]
    assert float(row["c_attn_ablated_acc_same"]) < float(row["vanilla_acc_same"])


def test_checkpoints_sweep_in_one_table_and_data_need_no_further_columns(tiny, tmp_path):
    for name, table in data_of(tiny.circuits).items():
        table[["data", "labels", "var_0"]].to_csv(tmp_path / f"{name}.csv")
    models = tiny.folder / "models"
    rows = execute(CIRCUITS, tiny.circuits | {
        "model_path": str(models / "model_LR_0.01_Seed_{model_seed}_{checkpoint}"), "checkpoint_list": [100, "final"],
        "operation_list": ["mlp"], "save_models": False,
        **{f"{name}_data_path": str(tmp_path / f"{name}.csv") for name in ("train", "test")}}, tmp_path / "run")
    for row in rows:
        model = GPT2LMHeadModel.from_pretrained(models / f"model_LR_0.01_Seed_0_{row['checkpoint']}").eval()
        assert float(row["vanilla_acc_test"]) == accuracy_of(model, tiny.circuits["test_data_path"])
    assert [row["checkpoint"] for row in rows] == ["100", "final"]


def test_probing_is_its_plain_computation(tiny, tmp_path):
    """A probe trained on shuffled batches, and embeddings moved one by one, patched in and run through what follows."""
    values = tiny.methods["probing"] | {"model_seed_list": [2], "num_epochs": 5}
    rows = execute(METHODS["probing"], values, tmp_path / "run")
    plain, data = Plain(values["model_path"]), data_of(values)
    labels = {name: torch.tensor(table["var_0"]) for name, table in data.items()}
    answers, expected, targets = (torch.tensor(data["test"][column]) for column in (
        "labels", "CF_Label_1", "counter_var_0"))
    changed = (answers != expected).nonzero().flatten()
    examples = pd.read_csv(tmp_path / "run/counterfactual_examples.csv")
    assert [row["residual_location"] for row in rows] == ["resid_mid", "resid_post"]
    for row in rows:
        where = row["residual_location"]
        activations = {name: plain.at(where, tokens_of(table["data"])) for name, table in data.items()}
        torch.manual_seed(2)
        probe, drawing = nn.Linear(16, 11), torch.Generator().manual_seed(2)
        optimizer = torch.optim.AdamW(probe.parameters(), lr=0.1)

        def batches(drawing=drawing):
            return torch.randperm(84, generator=drawing)[:80].split(20)

        def loss(name, some, probe=probe, activations=activations):
            return F.cross_entropy(probe(activations[name][some]), labels[name][some])

        for some in (some for _ in range(5) for some in batches()):
            optimizer.zero_grad()
            loss("train", some).backward()
            optimizer.step()
        probe.requires_grad_(False)
        moved = []
        for number in changed:
            moved.append(activations["test"][number].clone().requires_grad_(True))
            optimizer = torch.optim.AdamW([moved[-1]], lr=0.1)
            for _ in range(20):
                optimizer.zero_grad()
                F.cross_entropy(probe(moved[-1]), targets[number]).backward()
                optimizer.step()
        moved, each = torch.stack(moved).detach(), torch.arange(len(changed))
        after, before = plain.above(where, moved), plain.above(where, activations["test"][changed])
        differences = [logits[each, expected[changed]] - logits[each, answers[changed]] for logits in (after, before)]
        wanted = {
            "train_loss": torch.stack([loss("train", some) for some in batches()]).mean(),
            "test_loss": torch.stack([loss("test", some) for some in torch.arange(len(answers)).split(20)]).mean(),
            "test_acc": share(probe(activations["test"]), labels["test"]),
            "counterfactual_embedding_success": share(probe(moved), targets[changed]),
            "counterfactual_predicts_cf_label": share(after, expected[changed]),
            "counterfactual_predicts_original_label": share(after, answers[changed]),
            "counterfactual_average_logit_diff": (differences[0] / differences[1]).mean(),
            "counterfactual_dataset_size": len(changed)}
        assert {name: float(row[name]) for name in wanted} == pytest.approx(
            {name: float(value) for name, value in wanted.items()}, rel=1e-3)
        own = examples[examples["residual_location"] == where]
        assert own["row"].tolist() == changed.tolist() and own["target"].tolist() == targets[changed].tolist()
        assert own["logit_diff"].mean() == pytest.approx(float(row["counterfactual_average_logit_diff"]))


def test_amnesic_probing_is_its_plain_computation(tiny, tmp_path):
    """Of a split erased by its own eraser and by that of train; the other task, here the same data, is the same."""
    values = tiny.methods["amnesic_probing"]
    rows = execute(METHODS["amnesic_probing"], values | {
        "model_seed_list": [4], "num_random_erasures": 3, "multitask": True, **{
            f"t2_{name}_data_path": values[f"{name}_data_path"] for name in ("train", "test")}}, tmp_path / "run")
    plain, data = Plain(values["model_path"]), data_of(values)
    labels, answers = ({name: torch.tensor(table[column]) for name, table in data.items()} for column in (
        "var_0", "labels"))
    assert [row["residual_location"] for row in rows] == ["resid_mid", "resid_post"]
    for row in rows:
        where, drawing = row["residual_location"], torch.Generator().manual_seed(4)
        points = {name: plain.at(where, tokens_of(table["data"])) for name, table in data.items()}
        erasers = {name: fit_eraser(points[name], labels[name], 11) for name in data}

        def answered(name, erase=lambda activations: activations, where=where, points=points) -> float:
            return share(plain.above(where, erase(points[name])), answers[name])

        def read(name, erase=lambda activations: activations, heldout=None, points=points) -> float:
            return decodability(erase(points[name]), labels[name], 11, lr=0.1, num_steps=100, seed=4,
                                heldout=(erase(points[heldout]), labels[heldout]) if heldout else None)

        rank = erased_rank(erasers["train"])
        draws = [answered("test", random_eraser(points["train"], rank, drawing)) for _ in range(3)]
        wanted = {
            "erased_rank": rank, "same_heldout_acc": answered("test", erasers["train"]),
            "same_heldout_post_erasure_probe_acc": read("test", erasers["train"]),
            "same_heldout_pre_erasure_decodability": read("train", heldout="test"),
            "same_heldout_post_erasure_decodability": read("train", erasers["train"], heldout="test"),
            "same_random_heldout_acc_mean": sum(draws) / 3, "same_random_heldout_acc_std": statistics.stdev(draws)}
        for name, eraser in erasers.items():
            wanted |= {f"same_{name}_vanilla_acc": answered(name), f"same_{name}_acc": answered(name, eraser),
                       f"same_{name}_pre_erasure_probe_acc": read(name),
                       f"same_{name}_post_erasure_probe_acc": read(name, eraser)}
        for name, value in wanted.items():  # a probe that reads little hangs on rounding
            of_probe = "probe" in name or "decodability" in name
            assert float(row[name]) == pytest.approx(value, abs=0.05 if of_probe else 1e-9), name
        assert len(set(draws)) > 1
        for name in ("train_acc", "test_acc", "train_vanilla_acc", "test_vanilla_acc", "heldout_acc"):
            assert row[f"same_{name}"] == row[f"diff_{name}"]


def test_das_saves_what_it_reports_at_any_position(tiny, tmp_path):
    values = tiny.methods["DAS"] | {"save_models": True, "location_list": ["attn"]}
    opened, plain = opened_model(values["model_path"]), Plain(values["model_path"])
    for token_range in ("2_3", "1_2"):  # at the last position by the suffix forward, elsewhere by the whole model
        own = values | {"token_range": token_range, "model_dir": str(tmp_path / f"saved_{token_range}")}
        [row] = execute(METHODS["DAS"], own, tmp_path / token_range)
        assert float(row["rotation_error"]) < 1e-5 and len(rows_of(tmp_path / token_range / "training_log.csv")) == 10
        alignment, about = load_alignment(next((tmp_path / f"saved_{token_range}").iterdir()))
        assert float(row["dimensions"]) == pytest.approx(16 * alignment.width) and about["counterfactual_label"]
        config = load_config(tmp_path / f"{token_range}.yaml", METHODS["DAS"].schema)
        settings, site = expand_settings(config), Site(0, "resid_mid")
        data = METHODS["DAS"].prepare(config, settings, conftest.DEVICE).data(settings[0])
        found = {}
        for name, pairs in data.pairs.items():
            base, source = (opened.activations(side, [site])[site] for side in (pairs.base, pairs.source))
            states = opened.patched(pairs.base, site)(alignment.intervene(base, source), torch.arange(len(base)))
            found[name] = opened.is_right(states, pairs.counterfactual).double()
            if token_range == "2_3":
                table = pd.read_csv(values[f"{name}_data_path"])
                moved = alignment.intervene(*(plain.at("resid_mid", tokens_of(table[column])) for column in (
                    "data", "counterfactual_data")))
                assert found[name].mean() == pytest.approx(
                    share(plain.above("resid_mid", moved), table["CF_Label_0"]), abs=0.02)
        validation = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[50:70]
        assert float(row["val_acc"]) == pytest.approx(found["train"][validation].mean().item(), abs=0.06)
        assert float(row["interchange_intervention_acc"]) == pytest.approx(found["test"].mean().item(), abs=0.04)
    [row] = execute(METHODS["DAS"], values | {"choose_on": "test", "save_models": False}, tmp_path / "test")
    assert row["interchange_intervention_acc"] == max(
        (line["selection_acc"] for line in rows_of(tmp_path / "test/training_log.csv")), key=float)


def test_an_answer_after_the_interchange_of_another_variable_is_said(tiny, tmp_path, capsys):
    """As in the paper's configs of variables that a task does not need."""
    for label, said in (("CF_Label_0", True), ("CF_Label_1", False)):
        config = write_yaml(tmp_path / "c.yaml", tiny.methods["probing"] | {
            "counterfactual_label": label, "results_dir": str(tmp_path / "run")})
        assert main(METHODS["probing"], ["--check", "--config", str(config)]) == 0
        assert ("CF_Label_0 is the answer after an interchange of var_1, not of var_0"
                in capsys.readouterr().out) == said


def values_of(script, tiny, folder) -> dict:
    """A quick config of a script, which saves what it can in a folder."""
    saved = {"data_dir": str(folder / "data"), "model_dir": str(folder / "saved"), "save_models": True, "gif": True}
    if script is conftest.COMPARISON:
        saved |= {"variable_list": ["var_0"], "method_list": ["random", "das", "circuit_update"], "save_pairs": True}
    return tiny.values.get(script, {"file_list": ["SV_Agr"]}) | {
        key: value for key, value in saved.items() if key in script.schema.model_fields}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_same_seed_same_table_another_seed_another(script, tiny, tmp_path):
    """And a seed gives the same whatever other seeds are in the list."""
    made = {}
    for name, seeds in (("first", [0, 1]), ("second", [1, 0])):
        rows = execute(script, values_of(script, tiny, tmp_path / name) | {"model_seed_list": seeds}, tmp_path / name)
        assert {row["model_seed"] for row in rows} == {"0", "1"}
        made[name] = {file.name: sorted(map(str, rows_of(file))) for file in (tmp_path / name).glob("*.csv")} | {
            file.name: file.read_bytes() for file in (tmp_path / name).glob("saved/*")}
    assert made["first"] == made["second"]
    by_seed = [[{name: value for name, value in row.items() if name != "model_seed"} for row in rows
                if row["model_seed"] == seed] for seed in "01"]
    assert all(one != other or one.get("method") == "circuit_update"  # whose batch is all there is
               for one, other in zip(*by_seed, strict=True))


@pytest.mark.parametrize("script", EVERY_SCRIPT, ids=lambda script: script.name)
def test_help_says_every_key_and_check_computes_and_writes_nothing(script, tiny, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(script, ["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert all(f" {option} " in said for option in ("--config", "--set", "--overwrite", "--check", "--device"))
    for name, default, meaning in describe_keys(script.schema):
        assert meaning, name
        assert " ".join(f"{name}{f' ({default})' if default else ''}: {meaning}".split()) in said
    before = set(tiny.folder.rglob("*"))
    config = write_yaml(tmp_path / "c.yaml", values_of(script, tiny, tmp_path) | {"results_dir": str(tmp_path / "run")})
    assert main(script, ["--config", str(config), "--check"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    count = len(expand_settings(load_config(config, script.schema)))
    assert first == f"{tmp_path / 'run'}: {count} of {count} settings to compute." and len(lines) == count
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"] and set(tiny.folder.rglob("*")) == before


def test_check_says_when_asked_how_often_a_model_answers_correctly(language, tiny, tmp_path, capsys):
    values = conftest.language_values(language, tmp_path, "reflexive")
    config = write_yaml(tmp_path / "c.yaml", values | {"results_dir": str(tmp_path / "run")})
    assert main(CIRCUITS, ["--config", str(config), "--check", "--answers"]) == 0
    said = capsys.readouterr().out.partition("how often")[2].partition(str(tmp_path / "run"))[0]
    lines = [line.split() for line in said.splitlines()[1:]]
    counts = {}
    for *part, found, _, count in lines:
        counts[" ".join(part)] = counts.get(" ".join(part), 0) + int(count)
        assert 0.5 < float(found) <= 1
    assert counts["test"] == counts["gen"] == 200 and counts["group feminine"] + counts["group masculine"] == 400
    assert sum(counts[f"answer {word}"] for word in ("himself", "herself", "themselves")) == 400

    config = write_yaml(tmp_path / "c.yaml", tiny.circuits | {"results_dir": str(tmp_path / "run")})
    assert main(CIRCUITS, ["--config", str(config), "--check", "--answers"]) == 0
    test = capsys.readouterr().out.partition("how often")[2].splitlines()[1]
    table = pd.read_csv(tiny.circuits["test_data_path"])
    logits = Plain(tiny.circuits["model_path"]).model(tokens_of(table["data"])).logits[:, -1]
    assert test.split() == ["test", f"{share(logits, torch.tensor(table['labels'])):.2f}", "of", str(len(table))]
    for script, options in ((CIRCUITS, ["--answers"]), (TRAINING, ["--check", "--answers"])):
        with pytest.raises(SystemExit) as ended:
            main(script, ["--config", str(config), *options])
        assert ended.value.code == 2 and "--answers goes with --check" in capsys.readouterr().err


@pytest.mark.parametrize("script, place", [
    (TRAINING, "saved"), (TRAINING, "run"), (TRAINING, "data"), (CIRCUITS, "saved"), (CIRCUITS, "run"),
    (METHODS["DAS"], "saved"), (conftest.SENTENCES, "data")], ids=lambda part: getattr(part, "name", part))
def test_a_full_disk_ends_in_a_sentence_and_with_room_again_the_run_goes_on(script, place, tiny, tmp_path, capsys):
    mount, disk, ends = shutil.which("mount"), tmp_path / place, []
    disk.mkdir()
    mounting = [mount, "-t", "tmpfs", "-o", "size=4k", "tmpfs", disk]
    if not mount or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    config = write_yaml(tmp_path / "c.yaml", values_of(script, tiny, tmp_path) | {"results_dir": str(tmp_path / "run")})
    try:
        for pages in range(1, 400):
            subprocess.run([mount, "-o", f"remount,size={4 * int(1.3 ** pages)}k", disk], check=True)
            capsys.readouterr()
            ends.append(main(script, ["--config", str(config)]))
            if not ends[-1]:
                break
            [said] = capsys.readouterr().err.strip().splitlines()
            assert ends[-1] == 2 and f": {disk}" in said and "No space left on device" in said
            assert not [file for file in tmp_path.rglob("*") if ".tmp" in file.name]
        assert ends[-1] == 0 and len(ends) > 1
        found = {file.name: rows_of(file) for file in (tmp_path / "run").glob("*.csv")}
    finally:
        subprocess.run(["umount", disk], check=True)
    execute(script, values_of(script, tiny, tmp_path / "alone"), tmp_path / "alone/run")
    assert found == {file.name: rows_of(file) for file in (tmp_path / "alone/run").glob("*.csv")} != {}


@pytest.mark.parametrize("script", EVERY_SCRIPT, ids=lambda script: script.name)
def test_help_and_a_wrong_config_are_answered_before_torch_is_loaded(script, tmp_path):
    wrong = write_yaml(tmp_path / "c.yaml", {"results_dir": str(tmp_path / "run"), "num_epoch": 3})
    for arguments, status in ((["--help"], 0), (["--config", str(wrong)], 2)):
        finished = subprocess.run([sys.executable, "-X", "importtime", PROJECT_ROOT / f"{script.name}.py", *arguments],
                                  cwd="/", capture_output=True, text=True)
        said = [line for line in finished.stderr.splitlines() if not line.startswith("import time:")]
        assert finished.returncode == status and len(said) == (status == 2)
        loaded = {line.rpartition("|")[2].strip() for line in finished.stderr.splitlines()}
        assert "interp" in loaded and not loaded & {"torch", "pandas", "transformers"}


@pytest.mark.parametrize("own", [None, "active"])
def test_threads_wait_passively_unless_the_user_says_otherwise(own):
    """The setting is read when torch is loaded."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    code = ("import os, sys\nclass Early:\n  def find_spec(name, *_):\n    if name == 'torch': "
            "sys.exit(os.environ.get('OMP_WAIT_POLICY'))\nsys.meta_path.insert(0, Early)\nimport circuit_probing")
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT_ROOT,
                              env=environment | ({"OMP_WAIT_POLICY": own} if own else {}))
    assert finished.stderr.strip() == (own or "passive")
