"""The analysis scripts and the graph of experiments: what they say about tables that the scripts have written."""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from analysis.method_figures import of_models
from analysis.papers import why_not_the_papers
from analysis.summarize_model_overlap import overlap
from conftest import CIRCUITS, METHODS, TRAINING, circuit_values, rows_of, training_values, write_yaml
from interp.experiment import main
from interp.methods.masks import Circuit, load_circuit
from interp.runs.config import PROJECT_ROOT
from interp.runs.files import write_table


def drawn(folder: Path) -> set[str]:
    """The figures in a folder, each there as PDF and as PNG."""
    pdf, png = ({file.stem for file in folder.glob(f"*.{ending}") if file.stat().st_size > 1000}
                for ending in ("pdf", "png"))
    assert pdf == png
    return pdf


def test_comparison_puts_each_published_cell_beside_ours(tiny, tmp_path, analyse):
    config = write_yaml(tmp_path / "c.yaml", tiny.circuits | {
        "results_dir": str(tmp_path / "Toy/circuit_probing/a2"), "save_models": False, "operation_list": ["mlp"]})
    assert main(CIRCUITS, ["--config", str(config)]) == 0
    [row] = rows_of(tmp_path / "Toy/circuit_probing/a2/results.csv")
    (tmp_path / "published.csv").write_text(
        "experiment,task,method,variable,component,metric,value\n"
        f"Toy,,circuit_probing,a2,mlp,vanilla_acc_test,{row['vanilla_acc_test']}\n"
        "Toy,,circuit_probing,a2,mlp,ablated_acc_test,-1\nToy,,circuit_probing,b2,mlp,ablated_acc_test,0\n")
    command = ("compare_with_published", "--results", tmp_path, "--published", tmp_path / "published.csv",
               "--out", tmp_path / "table.md", "--experiment")
    assert analyse(*command, "Toy").returncode == 0
    cells = [line.strip("| ").split(" | ") for line in (tmp_path / "table.md").read_text().splitlines()
             if line.startswith("| a2")]
    assert [cell[2] for cell in cells] == ["vanilla_acc_test", "ablated_acc_test"]
    assert cells[0][5] == "+0" and cells[1][5].endswith("**")
    failed = analyse(*command, "Toys")
    assert failed.returncode == 2 and "Toys" in failed.stderr and len(failed.stderr.splitlines()) == 1


def test_figures_of_what_exists_from_any_directory(tiny, tmp_path):
    for variable in ("a2", "a_plus_b"):
        config = write_yaml(tmp_path / f"{variable}.yaml", tiny.circuits | {
            "variable": "var_0" if variable == "a2" else "aux_0", "save_models": False,
            "results_dir": str(tmp_path / "circuit_probing" / variable)})
        assert main(CIRCUITS, ["--config", str(config)]) == 0
    finished = subprocess.run([sys.executable, PROJECT_ROOT / "analysis/summarize_disambiguation.py", "--results",
                               tmp_path], cwd="/", capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert [line.split("circuit_probing/")[1].split("/")[0] for line in finished.stderr.splitlines()
            if line.startswith("missing")] == ["minus_b2", "a_minus_b"]
    table = {(row["variable"], row["component"]): row for row in rows_of(tmp_path / "figures/circuits.csv")}
    [mlp] = [row for row in rows_of(tmp_path / "circuit_probing/a2/results.csv") if row["operation"] == "mlp"]
    assert table["a2", "mlp"]["accuracy ablated"] == mlp["ablated_acc_test"]
    assert not any("paper" in column for column in table["a2", "mlp"])  # a stranger's model is not set beside the paper
    assert "not set beside the paper's figures: a2" in finished.stdout
    assert drawn(tmp_path / "figures") == {"nearest_neighbors", "ablation"}


def test_a_run_is_the_papers_only_with_its_settings_and_its_model(tiny, tmp_path):
    shutil.copytree(tiny.folder, tmp_path / "tiny")
    training = write_yaml(tmp_path / "training.yaml", training_values(tmp_path / "tiny"))
    values = circuit_values(tmp_path / "tiny") | {"save_models": False, "results_dir": str(tmp_path / "run")}
    paper = write_yaml(tmp_path / "paper.yaml", values)
    assert main(TRAINING, ["--config", str(training), "--overwrite"]) == 0
    assert main(CIRCUITS, ["--config", str(paper), "--set", f"results_dir={tmp_path / 'elsewhere'}"]) == 0
    assert main(CIRCUITS, ["--config", str(paper), "--set", "l0_lambda=1e-3"]) == 0

    def why(run: str) -> str | None:
        return why_not_the_papers(tmp_path / run, paper, CIRCUITS.schema, training)

    assert why("elsewhere") is None
    assert "l0_lambda" in why("run") and "config.yaml" in why("nothing")
    other = write_yaml(tmp_path / "other.yaml", training_values(tmp_path / "tiny") | {"wd": 0.2})
    assert why_not_the_papers(tmp_path / "elsewhere", paper, CIRCUITS.schema, other).endswith("wd than " + str(other))
    weights = Path(values["model_path"]) / "model.safetensors"
    shutil.copy(weights.parent.with_name("model_LR_0.01_Seed_0_100") / weights.name, weights)
    assert "no longer, the model that" in why("elsewhere")


def test_layers_are_drawn_apart_and_other_sweeps_are_not_averaged(tmp_path, analyse):
    """Two layers, two models, two learning rates."""
    rows = [{"model_seed": seed, "target_layer": layer, "probe_index": 2, "operation": "mlp", "lr": lr,
             "knn_test_acc": 0.1 * layer + 0.01 * seed + lr, "full_model_knn_test_acc": 0.2, "majority_test_acc": 0.1}
            for seed in (0, 1) for layer in (0, 3) for lr in (0.1, 0.2)]
    folder = tmp_path / "circuit_probing/a2"
    folder.mkdir(parents=True)
    write_table(folder / "results.csv", rows)
    write_yaml(folder / "config.yaml", {"model_seed_list": [0, 1], "target_layer_list": [0, 3], "lr_list": [0.1, 0.2]})
    refused = analyse("summarize_disambiguation", "--results", tmp_path)
    assert refused.returncode == 2 and "sweeps lr" in refused.stderr and "--where lr=VALUE" in refused.stderr
    assert analyse("summarize_disambiguation", "--results", tmp_path, "--where", "lr=0.2").returncode == 0
    assert drawn(tmp_path / "figures/layer_0") == drawn(tmp_path / "figures/layer_3") == {"nearest_neighbors"}
    table = {int(row["layer"]): float(row["KNN circuit"]) for row in rows_of(tmp_path / "figures/circuits.csv")}
    assert table == pytest.approx({0: 0.205, 3: 0.505})


def test_a_figure_says_over_how_many_models_its_values_are():
    """Where not all methods have the same models, too."""
    measures = {"circuit_probing:knn_test_acc": "circuit", "linear_probing:test_acc": "probe"}
    rows = [{"component": "mlp", "variable": "a2", "model_seed": seed, column: 0.5}
            for column in measures for seed in range(3 if "circuit" in column else 1)]
    table = pd.DataFrame(rows)
    assert of_models(table, measures, ", dots") == "mean of 1 to 3 models, dots"
    assert of_models(table, {"circuit_probing:knn_test_acc": "circuit"}) == "mean of 3 models"
    assert of_models(table[table["model_seed"] == 0], measures) == "one model"


@pytest.mark.parametrize("column, value, words", [
    ("knn_test_acc", "", ["line 2", "nothing", "'knn_test_acc'", "a number"]),
    ("knn_test_acc", "much", ["line 2", "'much'", "'knn_test_acc'"]),
    ("operation", "attention", ["line 2", "'attention'", "'operation'", "attn, mlp"]),
    ("target_layer", "", ["line 2", "'target_layer'"])])
@pytest.mark.parametrize("script", ["summarize_disambiguation", "summarize_grokking"])
def test_damaged_tables_are_refused_by_file_line_and_column(script, column, value, words, tmp_path, analyse):
    folder = tmp_path / "circuit_probing/a2"
    folder.mkdir(parents=True)
    row = {"model_seed": 0, "checkpoint": 100, "target_layer": 0, "operation": "mlp", "knn_test_acc": 0.5}
    write_table(folder / "results.csv", [row | {column: value}, row | {"checkpoint": 200}])
    curves = tmp_path / "curves.csv"
    write_table(curves, [{"epoch": 100, "train_acc": 1, "test_acc": 1}])
    options = ["--curves", curves] if script == "summarize_grokking" else []
    refused = analyse(script, "--results", tmp_path, *options)
    assert refused.returncode == 2 and all(word in refused.stderr for word in ["a2/results.csv", *words])
    if script == "summarize_grokking":
        write_table(folder / "results.csv", [row])
        write_table(curves, [{"epoch": 100, "train_acc": "all", "test_acc": 1}])
        refused = analyse(script, "--results", tmp_path, *options)
        assert refused.returncode == 2 and "curves.csv is damaged: line 2 holds 'all'" in refused.stderr


@pytest.mark.parametrize("script", ["summarize_disambiguation", "summarize_shared_nodes"])
def test_an_analysis_with_nothing_to_draw_says_so(script, tmp_path, analyse):
    finished = analyse(script, "--results", tmp_path)
    assert finished.returncode == 2
    assert "nothing to draw" in finished.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_leace_is_set_beside_the_published_in_both_precisions_and_checkpoint_by_checkpoint(tmp_path, analyse):
    rows = [{"model_seed": 0, "checkpoint": epoch, "residual_location": "resid_mid", "precision": precision,
             "test_acc": epoch / 1000 + (precision == "float64") / 2} for epoch in (100, 200)
            for precision in ("float64", "float32")]
    folder = tmp_path / "Toy/amnesic/a2"
    folder.mkdir(parents=True)
    write_table(folder / "results.csv", rows)
    write_table(tmp_path / "published.csv", [
        {"experiment": "Toy", "task": "", "method": "amnesic", "variable": "a2", "component": "resid_mid",
         "metric": "test_acc", "value": 0.2, "checkpoint": epoch, "layer": ""} for epoch in (100, 200, 300)])
    command = ("compare_with_published", "--results", tmp_path, "--published", tmp_path / "published.csv",
               "--out", tmp_path / "table.md", "--experiment", "Toy")
    assert analyse(*command).returncode == 0
    lines = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("|")]
    assert lines[0] == ("| variable | component | checkpoint | metric | ours, float32 | published | difference | "
                        "ours, float64 |")
    assert lines[2:] == ["| a2 | resid_mid | 100 | test_acc | 0.1 | 0.2 | -0.1 ** | 0.6 |",
                         "| a2 | resid_mid | 200 | test_acc | 0.2 | 0.2 | +0 | 0.7 |"]
    write_table(folder / "results.csv", [{**rows[1], "checkpoint": None}])
    table = pd.read_csv(folder / "results.csv").drop(columns="checkpoint")
    table.to_csv(folder / "results.csv", index=False)  # of one checkpoint, which it does not tell
    assert analyse(*command).returncode == 2
    write_table(folder / "results.csv", [row | {"lr": lr} for row in rows for lr in (1, 2)])
    refused = analyse(*command)
    assert refused.returncode == 2 and "--where" in refused.stderr
    assert analyse(*command, "--where", "lr=1").returncode == 0


def test_grokking_is_followed_over_checkpoints(tiny, tmp_path, analyse):
    swept = {"model_path": str(tiny.folder / "models" / "model_LR_0.01_Seed_0_{checkpoint}"),
             "checkpoint_list": [100, "final"]}
    for script, name, values in ((CIRCUITS, "circuit_probing", tiny.circuits | {"save_models": False}),
                                 (METHODS["DAS"], "DAS", tiny.methods["DAS"] | {"epochs": 2})):
        config = write_yaml(tmp_path / f"{name}.yaml", values | swept | {"results_dir": str(tmp_path / name / "a2")})
        assert main(script, ["--config", str(config), "--set", "checkpoint_list=[100]"]) == 0
    finished = analyse("summarize_grokking", "--results", tmp_path, "--curves", tiny.folder / "training/curves.csv")
    assert finished.returncode == 0, finished.stderr
    assert drawn(tmp_path / "figures") == {"probe_accuracy", "ablation", "DAS"}
    table = {row["component"]: row for row in rows_of(tmp_path / "figures/over_training.csv")}
    [mlp] = [row for row in rows_of(tmp_path / "circuit_probing/a2/results.csv") if row["operation"] == "mlp"]
    [at_100] = [row for row in rows_of(tiny.folder / "training/curves.csv") if row["epoch"] == "100"]
    assert float(table["mlp"]["circuit_probing:knn_test_acc"]) == float(mlp["knn_test_acc"])
    assert float(table["mlp"]["test_acc"]) == float(at_100["test_acc"])


def test_runs_of_single_checkpoints_are_drawn_as_a_sweep_of_them_is(tmp_path, analyse):
    curves = tmp_path / "curves.csv"
    write_table(curves, [{"epoch": epoch, "train_acc": 1, "test_acc": 1} for epoch in (100, 200, 300)])

    def write(name: str, *epochs: int, value: float = 0.5, model: str | None = None) -> None:
        folder = tmp_path / "Grokking/circuit_probing" / name
        folder.mkdir(parents=True, exist_ok=True)
        write_table(folder / "results.csv", [
            {"model_seed": 0, "target_layer": 0, "operation": "mlp", "knn_test_acc": value}
            | ({} if model else {"checkpoint": epoch}) for epoch in epochs])
        write_yaml(folder / "config.yaml", {"model_path": model or "Models/model_LR_0.001_Seed_0_{checkpoint}"})

    def drawn_values() -> dict[int, float]:
        said = analyse("summarize_grokking", "--results", tmp_path / "Grokking", "--curves", curves)
        assert said.returncode == 0, said.stderr
        return {int(row["checkpoint"]): float(row["circuit_probing:knn_test_acc"])
                for row in rows_of(tmp_path / "Grokking/figures/over_training.csv")}

    write("a2_100", 100)
    write("a2_200", 200)  # as configs/Grokking/circuit_probing/circuit_probing/a2/200.yaml writes it
    write("a2_300", 0, value=0.7, model="Models/model_LR_0.001_Seed_{model_seed}_300")  # without checkpoint_list
    assert drawn_values() == {100: 0.5, 200: 0.5, 300: 0.7}
    write("a2", 100, value=0.9)
    assert drawn_values() == {100: 0.9, 200: 0.5, 300: 0.7}  # of what both have, the sweep's
    write("a2_300", 0, model="Models/model_LR_0.001_Seed_300")
    refused = analyse("summarize_grokking", "--results", tmp_path / "Grokking", "--curves", curves)
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert all(words in refused.stderr for words in ("a2_300/results.csv does not tell the epoch",
                                                     "model_LR_0.001_Seed_300"))


def test_overlap_is_counted_and_its_chance_is_the_share_of_all_pairs_of_sets():
    first = Circuit({"c_attn": torch.tensor([1.0, 1, -1, -1, 1, -1]), "c_proj": torch.tensor([1.0, -1])},
                    {"c_attn": 2, "c_proj": 2})
    second = Circuit({"c_attn": torch.tensor([1.0, -1, 1, -1, 1, -1]), "c_proj": torch.tensor([1.0, -1])},
                     {"c_attn": 2, "c_proj": 2})
    about = {"target_layer": 0, "operation": "attn"}
    rows = {(row["map"], row["block"]): row for row in overlap(("1", about, first), ("2", about, second))}
    assert set(rows) == {("c_attn", "whole"), ("c_attn", "query"), ("c_attn", "key"), ("c_attn", "value"),
                         ("c_proj", "whole"), ("all maps", "whole")}
    assert [rows["c_attn", "whole"][key] for key in ("alone_1", "common", "alone_2", "jaccard")] == [1, 2, 1, 0.5]
    assert [rows["c_attn", "key"][key] for key in ("alone_1", "common", "alone_2", "jaccard")] == [0, 0, 1, 0]
    pairs = [len(set(one) & set(other)) for one in itertools.combinations(range(6), 3)
             for other in itertools.combinations(range(6), 3)]
    assert rows["c_attn", "whole"]["chance"] == pytest.approx(sum(common >= 2 for common in pairs) / len(pairs))
    both = [common + extra for common in pairs for extra in (0, 1)]  # two sets of one of two neurons: half agree
    assert rows["all maps", "whole"]["chance"] == pytest.approx(sum(common >= 3 for common in both) / len(both))


def test_overlap_finds_circuits_by_config_or_by_name(tiny, tmp_path, analyse):
    configs = [write_yaml(tmp_path / f"{name}.yaml", tiny.circuits | {
        "variable": variable, "model_dir": str(tmp_path / name), "results_dir": str(tmp_path / f"{name}_run")})
        for name, variable in (("a2", "var_0"), ("b", "var_1"))]
    assert main(CIRCUITS, ["--config", *map(str, configs)]) == 0
    assert analyse("summarize_model_overlap", "--config", *configs, "--out", tmp_path / "found").returncode == 0
    assert drawn(tmp_path) == {"found"}
    rows = rows_of(tmp_path / "found.csv")
    assert {row["operation"] for row in rows} == {"attn", "mlp"}
    named = [sorted((tmp_path / name).glob("*attn*"))[0] for name in ("a2", "b")]
    assert analyse("summarize_model_overlap", "--circuits", *named, "--out", tmp_path / "named").returncode == 0
    assert rows_of(tmp_path / "named.csv") == [row for row in rows if row["operation"] == "attn"]
    circuit, _ = load_circuit(named[0])
    [whole] = [row for row in rows_of(tmp_path / "named.csv") if row["map"] == "c_attn" and row["block"] == "whole"]
    assert int(whole["alone_1"]) + int(whole["common"]) == int((circuit.scores["c_attn"] > 0).sum())

    other = sorted((tmp_path / "b").glob("*mlp*"))[0]
    for arguments, word in ((("--circuits", named[0], other), "different sublayers"),
                            (("--circuits", named[0], configs[0]), "not a saved circuit"),
                            (("--config", configs[0], tmp_path / "no.yaml"), "no.yaml")):
        refused = analyse("summarize_model_overlap", *arguments, "--out", tmp_path / "never")
        assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1 and word in refused.stderr
    shutil.rmtree(tmp_path / "a2")
    refused = analyse("summarize_model_overlap", "--config", *configs, "--out", tmp_path / "never")
    assert refused.returncode == 2 and "circuit_probing.py --config" in refused.stderr
