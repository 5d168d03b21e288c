"""The analysis scripts: what they say about tables that the scripts have written, or that are written here."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.container import BarContainer

from analysis import figures
from analysis.figures import draw_by_variable
from analysis.summarize_model_overlap import overlap
from conftest import CIRCUITS, METHODS, rows_of, write_yaml
from interp.experiment import main
from interp.methods.masks import Circuit
from interp.runs.config import PROJECT_ROOT
from interp.runs.files import write_table
from interp.statistics import interval


def drawn(folder: Path) -> set[str]:
    """The figures in a folder, each there as PDF and as PNG."""
    pdf, png = ({file.stem for file in folder.glob(f"*.{ending}") if file.stat().st_size > 1000}
                for ending in ("pdf", "png"))
    assert pdf == png
    return pdf


def kept_figures(monkeypatch) -> dict:
    """The figures that would be saved from now on, by name."""
    kept = {}
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: kept.update({path.name: figure}))
    return kept


def test_leace_is_set_beside_the_published_in_both_precisions_and_checkpoint_by_checkpoint(tmp_path, analyse):
    rows = [{"model_seed": 0, "checkpoint": epoch, "residual_location": "resid_mid", "precision": precision,
             "test_acc": epoch / 1000 + (precision == "float64") / 2} for epoch in (100, 200)
            for precision in ("float64", "float32")]
    folder = tmp_path / "Toy/amnesic/a2"
    write_table(folder / "results.csv", rows)
    write_table(tmp_path / "published.csv", [
        {"experiment": "Toy", "task": "", "method": "amnesic", "variable": "a2", "component": "resid_mid",
         "metric": "test_acc", "value": 0.2, "checkpoint": epoch, "layer": ""} for epoch in (100, 200, 300)])
    command = ("compare_with_published", "--results", tmp_path, "--published", tmp_path / "published.csv",
               "--out", tmp_path / "table.md", "--experiment", "Toy")

    def lines() -> list[str]:
        assert analyse(*command).returncode == 0
        return [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("|")]

    assert lines() == ["| variable | component | checkpoint | metric | ours, float32 | published | difference | "
                       "ours, float64 |", "|---|---|---|---|---|---|---|---|",
                       "| a2 | resid_mid | 100 | test_acc | 0.1 | 0.2 | -0.1 ** | 0.6 |",
                       "| a2 | resid_mid | 200 | test_acc | 0.2 | 0.2 | +0 | 0.7 |"]
    write_table(folder / "results.csv", [row | {"model_seed": seed, "test_acc": row["test_acc"] + seed / 10}
                                         for row in rows for seed in (0, 1, 2)])
    assert lines()[2].endswith("| 0.2 | 0.2 | +0 | 0.7 | -0.2968 | 0.6968 | yes |")  # ours, the mean over models
    write_table(folder / "results.csv", [row | {"lr": lr} for row in rows for lr in (1, 2)])
    refused = analyse(*command)
    assert refused.returncode == 2 and "--where" in refused.stderr
    assert analyse(*command, "--where", "lr=1").returncode == 0
    (folder / "results.csv").unlink()
    refused = analyse(*command)
    assert refused.returncode == 2 and "missing: " in refused.stderr and "no results of ours" in refused.stderr


def test_figures_of_what_exists_from_any_directory(tiny, tmp_path):
    for variable, column in (("a2", "var_0"), ("a_plus_b", "aux_0")):
        config = write_yaml(tmp_path / f"{variable}.yaml", tiny.circuits | {
            "variable": column, "save_models": False, "results_dir": str(tmp_path / "circuit_probing" / variable)})
        assert main(CIRCUITS, ["--config", str(config)]) == 0
    finished = subprocess.run([sys.executable, PROJECT_ROOT / "analysis/summarize_disambiguation.py", "--results",
                               tmp_path], cwd="/", capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    table = {(row["variable"], row["component"]): row for row in rows_of(tmp_path / "figures/circuits.csv")}
    [mlp] = [row for row in rows_of(tmp_path / "circuit_probing/a2/results.csv") if row["operation"] == "mlp"]
    assert table["a2", "mlp"]["accuracy ablated"] == mlp["ablated_acc_test"]
    assert drawn(tmp_path / "figures") == {"nearest_neighbors", "ablation"}


def test_models_are_averaged_and_other_sweeps_are_not(tmp_path, analyse):
    """Two models, two learning rates."""
    rows = [{"model_seed": seed, "target_layer": 3, "operation": "mlp", "lr": lr, "knn_test_acc": 0.01 * seed + lr}
            for seed in (0, 1) for lr in (0.1, 0.2)]
    write_table(tmp_path / "circuit_probing/a2/results.csv", rows)
    write_yaml(tmp_path / "circuit_probing/a2/config.yaml", {"lr_list": [0.1, 0.2]})
    refused = analyse("summarize_disambiguation", "--results", tmp_path)
    assert refused.returncode == 2 and "sweeps lr" in refused.stderr and "--where KEY=VALUE" in refused.stderr
    assert analyse("summarize_disambiguation", "--results", tmp_path, "--where", "lr=0.2").returncode == 0
    [row] = rows_of(tmp_path / "figures/circuits.csv")
    assert row["layer"] == "3" and float(row["KNN circuit"]) == pytest.approx(0.205)


def bars_of(figure) -> dict:
    """By label, the heights of the bars of a figure's first panel and where the first error bar ends."""
    bars = [bar for bar in figure.axes[0].containers if isinstance(bar, BarContainer)]
    ends = [bar.errorbar.lines[2][0].get_segments()[0].reshape(-1, 2)[:, 1] for bar in bars]
    return {bar.get_label(): (bar.datavalues, end) for bar, end in zip(bars, ends)}


def test_bars_are_means_over_models_with_intervals_and_say_what_is_missing(tmp_path, monkeypatch):
    kept, values = kept_figures(monkeypatch), [0.2, 0.5, 0.6]
    ablated, random = "circuit_probing:ablated_acc_test", "circuit_probing:random_ablated_acc_test"
    table = pd.DataFrame([{"component": component, "variable": variable, "model_seed": seed, ablated: value,
                           f"{random}_mean": None if variable == "b" else 0.9, f"{random}_std": 0.05}
                          for seed, value in enumerate(values) for variable in ("a", "b")
                          for component in ("attn", "mlp") if component == "mlp" or seed == 0])
    options = {"a": "a", "b": "b"}, {ablated: "circuit", f"{random}_mean": "random"}, ["mlp"], "accuracy", "Title"
    draw_by_variable(table, *options, tmp_path / "models")
    heights, ends = bars_of(kept["models"])["circuit"]
    assert heights == pytest.approx([np.mean(values)] * 2) and ends == pytest.approx(interval(values))
    assert bars_of(kept["models"])["random"][0].tolist() == pytest.approx([0.9, np.nan], nan_ok=True)
    texts = [text.get_text() for text in kept["models"].axes[0].texts]
    assert sorted(texts) == ["0.43", "0.43", "0.90", "n/a"] and "up to 3 models" in kept["models"].get_suptitle()
    dots = [line.get_ydata().tolist() for line in kept["models"].axes[0].lines if line.get_marker() == "o"]
    assert [0.2, 0.2] in dots and [0.6, 0.6] in dots
    draw_by_variable(table[table["model_seed"] == 0], *options, tmp_path / "model")
    heights, ends = bars_of(kept["model"])["random (sd)"]  # over draws, where there is one model
    assert ends == pytest.approx([0.85, 0.95]) and "one model" in kept["model"].get_suptitle()


@pytest.mark.parametrize("script, column, value, words", [
    (script, *case) for script in ("summarize_disambiguation", "summarize_grokking") for case in (
        ("knn_test_acc", "much", ["a2/results.csv, line 2: the column 'knn_test_acc' holds 'much'"]),
        ("operation", "attention", ["a2/results.csv", "'operation' is not always one of attn, mlp"]))] + [
    ("summarize_grokking", "epoch", 0, ["curves.csv, line 2: the column 'train_acc' holds 'all'"])])
def test_damaged_tables_are_refused_by_file_line_and_column(script, column, value, words, tmp_path, analyse):
    file, curves = tmp_path / "circuit_probing/a2/results.csv", tmp_path / "curves.csv"
    row = {"model_seed": 0, "checkpoint": 100, "target_layer": 0, "operation": "mlp", "knn_test_acc": 0.5}
    write_table(file, [row | {column: value}, row | {"checkpoint": 200}])
    write_table(curves, [{"epoch": 100, "train_acc": "all" if column == "epoch" else 1, "test_acc": 1}])
    options = ["--curves", curves] if script == "summarize_grokking" else []
    refused = analyse(script, "--results", tmp_path, *options)
    assert refused.returncode == 2 and all(word in refused.stderr for word in words)
    assert len(refused.stderr.splitlines()) == 1 and not (tmp_path / "figures").exists()


def test_shared_nodes_draws_both_tasks_and_the_first_map(tmp_path, analyse):
    refused = analyse("summarize_shared_nodes", "--results", tmp_path)
    assert refused.returncode == 2 and "nothing to draw" in refused.stderr and not list(tmp_path.iterdir())
    for task in ("Task_1", "Task_2"):
        write_table(tmp_path / task / "circuit_probing/shared/results.csv", [
            {"operation": "mlp", "knn_test_acc": 1, "ablated_acc_same": 0.5, "c_fc_ablated_acc_different": 0.75}])
    finished = analyse("summarize_shared_nodes", "--results", tmp_path)
    assert finished.returncode == 0 and "Task_1/circuit_probing/free/results.csv" in finished.stderr  # it is missing
    assert drawn(tmp_path / "figures/Task_1") == drawn(tmp_path / "figures/Task_2") == {
        "nearest_neighbors", "ablation_mlp"}


def test_grokking_is_followed_over_checkpoints(tiny, tmp_path, analyse):
    swept = {"model_path": str(tiny.folder / "models/model_LR_0.01_Seed_0_{checkpoint}"), "checkpoint_list": [100]}
    for script, name, values in ((CIRCUITS, "circuit_probing", tiny.circuits | {"save_models": False}),
                                 (METHODS["DAS"], "DAS", tiny.methods["DAS"] | {"epochs": 2})):
        config = write_yaml(tmp_path / f"{name}.yaml", values | swept | {"results_dir": str(tmp_path / name / "a2")})
        assert main(script, ["--config", str(config)]) == 0
    finished = analyse("summarize_grokking", "--results", tmp_path, "--curves", tiny.folder / "training/curves.csv")
    assert finished.returncode == 0, finished.stderr
    assert drawn(tmp_path / "figures") == {"probe_accuracy", "ablation", "DAS"}
    [row] = [row for row in rows_of(tmp_path / "figures/over_training.csv") if row["component"] == "mlp"]
    [mlp] = [row for row in rows_of(tmp_path / "circuit_probing/a2/results.csv") if row["operation"] == "mlp"]
    [at_100] = [row for row in rows_of(tiny.folder / "training/curves.csv") if row["epoch"] == "100"]
    assert (row["circuit_probing:knn_test_acc"], row["test_acc"]) == (mlp["knn_test_acc"], at_100["test_acc"])


def test_layers_and_models_are_summarized_as_means_over_seeds(tmp_path, analyse):
    erased = {"vanilla_acc": 0.9, "gen_vanilla_acc": 0.8, "gen_heldout_acc": 0.8, "random_heldout_acc_mean": 0.9,
              "gen_random_heldout_acc_mean": None}
    results = tmp_path / "SV_Agreement"
    write_table(results / "amnesic/smollm2/results.csv", [
        {"target_layer": 3, "residual_location": "resid_post", "heldout_acc": value} | erased for value in (0.5, 0.7)])
    finished = analyse("summarize_layers", "--results", results, "--model", "smollm2")
    assert finished.returncode == 0 and finished.stderr.count("missing: ") == 4, finished.stderr
    assert drawn(results / "figures/smollm2") == {"layers"}
    assert "| 3, MLP | 0.30 / 0.00 | 0.00 /  |" in (results / "figures/smollm2/layers.md").read_text()
    row = {"target_layer": 29, "operation": "attn", "full_model_knn_test_acc": 0.6, "vanilla_acc_iid": 0.95,
           "ablated_acc_iid": 0.7, "random_ablated_acc_iid_mean": 0.9}
    write_table(results / "smollm2/results.csv", [row | {"knn_test_acc": accuracy} for accuracy in (0.7, 0.8)])
    (tmp_path / "p.csv").write_text("experiment,task,method,variable,component,metric,value,layer\n")
    assert analyse("summarize_across_models", "--published", tmp_path / "p.csv", "--results", tmp_path).returncode == 0
    assert drawn(tmp_path / "figures/across_models") == {"SV_Agreement"}
    [model] = rows_of(tmp_path / "figures/across_models/SV_Agreement.csv")
    assert [float(model[name]) for name in ("depth", "circuit", "beyond_random")] == pytest.approx([1, 0.75, 0.2])


def test_overlap_is_counted_and_its_chance_is_the_share_of_all_pairs_of_sets():
    first, second = (Circuit({"c_attn": torch.tensor(scores), "c_proj": torch.tensor([1.0, -1])}, {})
                     for scores in ([1.0, 1, -1, -1, 1, -1], [1.0, -1, 1, -1, 1, -1]))
    about = {"target_layer": 0, "operation": "attn"}
    rows = {(row["map"], row["block"]): row for row in overlap((first, about), (second, about))}
    assert [block for name, block in rows if name == "c_attn"] == ["whole", "query", "key", "value"]
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
    other = sorted((tmp_path / "b").glob("*mlp*"))[0]
    further = write_yaml(tmp_path / "c.yaml", {"base": str(configs[0]), "variable": "aux_0"})  # made no circuit
    for arguments, word in ((("--circuits", named[0], other), "different sublayers"),
                            (("--circuits", named[0], configs[0]), "not a saved circuit"),
                            (("--config", configs[0], tmp_path / "no.yaml"), "no.yaml"),
                            (("--config", further, configs[1]), "circuit_probing.py --config")):
        refused = analyse("summarize_model_overlap", *arguments, "--out", tmp_path / "never")
        assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1 and word in refused.stderr
