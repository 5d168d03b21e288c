"""The analysis scripts: what they say about tables that the scripts have written, or that are written here."""

import itertools
import subprocess
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.container import BarContainer

from analysis import figures
from analysis.comparison_figures import draw_layers, mean_with_interval
from analysis.figures import draw_by_variable
from analysis.language_figures import marks_of, measure_effects, read_run
from analysis.summarize_comparison import as_cells, causalgym, leaderboard, read_runs, shared_cells
from analysis.summarize_model_overlap import overlap
from analysis.summarize_positions import in_sentence
from conftest import CIRCUITS, COMPARISON, METHODS, execute, rows_of, write_yaml
from interp.experiment import main
from interp.methods.interchange.base import Subspace
from interp.methods.masks import Circuit
from interp.models.sublayers import masked
from interp.runs.config import PROJECT_ROOT, BadInput
from interp.runs.files import write_table
from interp.runs.tensors import save_tensors
from interp.statistics import holm, interval


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
        analyse(*command)
        return [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("|")]

    assert lines() == ["| variable | component | checkpoint | metric | ours, float32 | published | difference | "
                       "ours, float64 |", "|---|---|---|---|---|---|---|---|",
                       "| a2 | resid_mid | 100 | test_acc | 0.1 | 0.2 | -0.1 ** | 0.6 |",
                       "| a2 | resid_mid | 200 | test_acc | 0.2 | 0.2 | +0 | 0.7 |"]
    write_table(folder / "results.csv", [row | {"model_seed": seed, "test_acc": row["test_acc"] + seed / 10}
                                         for row in rows for seed in (0, 1, 2)])
    assert lines()[2].endswith("| 0.2 | 0.2 | +0 | 0.7 | -0.2968 | 0.6968 | yes |")  # ours, the mean over models
    write_table(folder / "results.csv", [row | {"lr": lr} for row in rows for lr in (1, 2)])
    analyse(*command, refusal="--where")
    analyse(*command, "--where", "lr=1")
    (folder / "results.csv").unlink()
    assert "missing: " in analyse(*command, refusal="no results of ours").stderr


def test_figures_of_what_exists_from_any_directory(tiny, tmp_path):
    for variable, column in (("a2", "var_0"), ("a_plus_b", "aux_0")):
        execute(CIRCUITS, tiny.circuits | {"variable": column, "save_models": False},
            tmp_path / "circuit_probing" / variable)
    finished = subprocess.run([sys.executable, PROJECT_ROOT / "analysis/summarize_disambiguation.py", "--results",
                               tmp_path], cwd="/", capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    table = {(row["variable"], row["component"]): row for row in rows_of(tmp_path / "figures/circuits.csv")}
    [mlp] = [row for row in rows_of(tmp_path / "circuit_probing/a2/results.csv") if row["operation"] == "mlp"]
    assert table["a2", "mlp"]["accuracy ablated"] == mlp["ablated_acc_test"]
    assert drawn(tmp_path / "figures") == {"nearest_neighbors", "ablation"}


def test_models_are_averaged_and_other_sweeps_are_not(tmp_path, analyse):
    rows = [{"model_seed": seed, "target_layer": 3, "operation": "mlp", "lr": lr, "knn_test_acc": 0.01 * seed + lr}
            for seed in (0, 1) for lr in (0.1, 0.2)]
    write_table(tmp_path / "circuit_probing/a2/results.csv", rows)
    write_yaml(tmp_path / "circuit_probing/a2/config.yaml", {"lr_list": [0.1, 0.2]})
    said = analyse("summarize_disambiguation", "--results", tmp_path, refusal="sweeps lr").stderr
    assert "--where KEY=VALUE" in said
    analyse("summarize_disambiguation", "--results", tmp_path, "--where", "lr=0.2")
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
        ("knn_test_acc", "much", "a2/results.csv, line 2: the column 'knn_test_acc' holds 'much'"),
        ("operation", "attention", "'operation' is not always one of attn, mlp"))] + [
    ("summarize_grokking", "epoch", 0, "curves.csv, line 2: the column 'train_acc' holds 'all'")])
def test_damaged_tables_are_refused_by_file_line_and_column(script, column, value, words, tmp_path, analyse):
    file, curves = tmp_path / "circuit_probing/a2/results.csv", tmp_path / "curves.csv"
    row = {"model_seed": 0, "checkpoint": 100, "target_layer": 0, "operation": "mlp", "knn_test_acc": 0.5}
    write_table(file, [row | {column: value}, row | {"checkpoint": 200}])
    write_table(curves, [{"epoch": 100, "train_acc": "all" if column == "epoch" else 1, "test_acc": 1}])
    options = ["--curves", curves] if script == "summarize_grokking" else []
    said = analyse(script, "--results", tmp_path, *options, refusal=words).stderr
    assert ("curves.csv" if column == "epoch" else "a2/results.csv") in said
    assert not (tmp_path / "figures").exists()


def test_grokking_is_followed_over_checkpoints(tiny, tmp_path, analyse):
    swept = {"model_path": str(tiny.folder / "models/model_LR_0.01_Seed_0_{checkpoint}"), "checkpoint_list": [100]}
    for script, name, values in ((CIRCUITS, "circuit_probing", tiny.circuits | {"save_models": False}),
                                 (METHODS["DAS"], "DAS", tiny.methods["DAS"] | {"epochs": 2})):
        execute(script, values | swept, tmp_path / name / "a2")
    analyse("summarize_grokking", "--results", tmp_path, "--curves", tiny.folder / "training/curves.csv")
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
    said = analyse("summarize_layers", "--results", results, "--model", "smollm2").stderr
    assert said.count("missing: ") == 4, said
    assert drawn(results / "figures/smollm2") == {"layers"}
    assert "| 3, MLP | 0.30 / 0.00 | 0.00 /  |" in (results / "figures/smollm2/layers.md").read_text()
    row = {"target_layer": 29, "operation": "attn", "full_model_knn_test_acc": 0.6, "vanilla_acc_iid": 0.95,
           "ablated_acc_iid": 0.7, "random_ablated_acc_iid_mean": 0.9}
    write_table(results / "smollm2/results.csv", [row | {"knn_test_acc": accuracy} for accuracy in (0.7, 0.8)])
    (tmp_path / "p.csv").write_text("experiment,task,method,variable,component,metric,value,layer\n")
    analyse("summarize_across_models", "--published", tmp_path / "p.csv", "--results", tmp_path)
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
    analyse("summarize_model_overlap", "--config", *configs, "--out", tmp_path / "found")
    assert drawn(tmp_path) == {"found"}
    rows = rows_of(tmp_path / "found.csv")
    assert {row["operation"] for row in rows} == {"attn", "mlp"}
    named = [sorted((tmp_path / name).glob("*attn*"))[0] for name in ("a2", "b")]
    analyse("summarize_model_overlap", "--circuits", *named, "--out", tmp_path / "named")
    assert rows_of(tmp_path / "named.csv") == [row for row in rows if row["operation"] == "attn"]
    other = sorted((tmp_path / "b").glob("*mlp*"))[0]
    further = write_yaml(tmp_path / "c.yaml", {"base": str(configs[0]), "variable": "aux_0"})  # made no circuit
    for arguments, word in ((("--circuits", named[0], other), "different sublayers"),
                            (("--circuits", named[0], configs[0]), "not a saved circuit"),
                            (("--config", configs[0], tmp_path / "no.yaml"), "no.yaml"),
                            (("--config", further, configs[1]), "circuit_probing.py --config")):
        analyse("summarize_model_overlap", *arguments, "--out", tmp_path / "never", refusal=word)


@contextmanager
def ablated_at(tokens: slice, sublayer, masks):
    """The plain way: the sublayer's update is another one at some tokens."""
    def hook(module, arguments, keywords, whole):
        with masked(sublayer, masks):
            without = module.forward(*arguments, **keywords)
        update, other = (given[0] if isinstance(given, tuple) else given for given in (whole, without))
        update[:, tokens] = other[:, tokens]

    handle = sublayer.module.register_forward_hook(hook, with_kwargs=True)
    yield
    handle.remove()


# ------------------------------------------------------------------------------ sentences

FIGURES_BY_LAYER = {"one_circuit", "ablation_by_layer", "nearest_neighbors"}


def write_run(folder: Path, sublayers: dict[tuple, dict[str, tuple[float, Iterable[float]]]], **counted) -> Path:
    """A run by hand: for each (seed, layer, operation), the accuracy without the circuit and the draws' on each set.

    counted: further columns of the ablations, such as examples.
    """
    rows, ablations = [], []
    for (seed, layer, operation), effects in sublayers.items():
        setting = {"model_seed": seed, "target_layer": layer, "probe_index": -1, "operation": operation, "lr": 0.001}
        possible = all(len(draws) for _, draws in effects.values())
        neighbors = {f"{prefix}_{name}_acc": value for name in ("test", "gen")
                     for prefix, value in (("knn", 0.9), ("full_model_knn", 0.7), ("majority", 0.5))}
        rows.append(setting | {"l0_norm": 30 + seed, "l0_max": 120} | neighbors
                    | {"random_ablation_impossible": None if possible else "the circuit holds 41 of the 64 neurons"})
        for name, (ablated, draws) in effects.items():
            cases = [("full", None, 0.95), ("circuit", None, ablated)]
            cases += [("random", draw, accuracy) for draw, accuracy in enumerate(draws)]
            ablations += [setting | {"evaluation": name, "maps": "all", "condition": condition, "draw": draw,
                                     "accuracy": accuracy} for condition, draw, accuracy in cases]
    folder.mkdir()
    pd.DataFrame(rows).to_csv(folder / "results.csv", index=False)
    pd.DataFrame(ablations).assign(**counted).to_csv(folder / "ablations.csv", index=False)
    return folder


def effects_of(run: Path) -> pd.DataFrame:
    return measure_effects(read_run(run, "agreement", {"iid": "IID"})[1])


def test_sublayers_are_ranked_by_what_their_ablation_costs_beyond_random_draws(tmp_path, analyse):
    around = [0.91, 0.93, 0.95, 0.93, 0.93]  # mean 0.93, sd sqrt(0.0002)
    run = write_run(tmp_path / "run", {
        (0, 0, "attn"): {"iid": (0.92, around), "gen": (0.90, around)},
        (0, 0, "mlp"): {"iid": (0.94, [0.94] * 5), "gen": (0.93, [0.94] * 5)},  # draws that are all equal
        (0, 3, "attn"): {"iid": (0.60, around), "gen": (0.99, around)},
        (0, 3, "mlp"): {"iid": (0.50, []), "gen": (0.50, [])}})  # no random draw of its size
    analyse("summarize_agreement", "--results", run)
    assert drawn(run / "figures") == FIGURES_BY_LAYER
    ranking = pd.read_csv(run / "figures/strongest_sublayers.csv").set_index(["target_layer", "operation"])
    assert list(ranking.index) == [(3, "attn"), (0, "attn"), (0, "mlp"), (3, "mlp")]
    columns = ["lost_beyond_random_iid", "random_ablated_acc_iid_std", "p_iid", "p_holm_iid"]
    assert ranking.loc[(3, "attn"), columns].tolist() == pytest.approx([0.33, 0.0002 ** 0.5, 1 / 6, 3 / 6])
    assert ranking.loc[(0, "attn"), "p_iid"] == pytest.approx(2 / 6)  # one draw, 0.91, lies below 0.92
    assert ranking.loc[(0, "mlp"), ["p_iid", "p_gen"]].tolist() == pytest.approx([1, 1 / 6])
    assert ranking.loc[(3, "mlp"), ["random_ablated_acc_iid_mean", "p_iid", "lost_beyond_random_gen"]].isna().all()
    assert ranking["random_ablation_impossible"].notna().tolist() == [False, False, False, True]
    assert ranking["l0_share"].tolist() == [0.25] * 4 and set(ranking["full_model_knn_gen_acc"]) == {0.7}


def test_marks_tell_a_loss_from_a_gain_and_from_a_circuit_without_draws(tmp_path):
    around = [0.91, 0.93, 0.95, 0.93, 0.93]
    many = [0.9 + 0.0001 * i for i in range(199)]  # 199 draws and nine sublayers: 9 / 200 < 0.05
    run = write_run(tmp_path / "run", {
        (0, layer, "attn"): {"iid": effect} for layer, effect in enumerate([
            (0.60, around), (0.92, around), (0.99, around), (0.93, [0.94] * 3), (0.94, [0.94] * 3), (0.2, []),
            (0.2, [0.9]), (0.8, many), (0.91, many)])})
    effects = effects_of(run)
    marks = "below other other below other alone below significant other"
    assert list(marks_of(effects)) == marks.split()
    assert effects["p"].iloc[2] == 1  # a gain is no loss


def test_seeds_are_averaged_and_compared_with_their_own_draws(tmp_path):
    low, high = [0.70, 0.72, 0.74], [0.90, 0.92, 0.94]
    run = write_run(tmp_path / "run", {(0, 5, "attn"): {"iid": (0.68, low)}, (1, 5, "attn"): {"iid": (0.84, high)},
                                       (2, 5, "attn"): {"iid": (0.10, [])}})
    [effect] = effects_of(run).to_dict("records")
    assert effect["ablated"] == pytest.approx((0.68 + 0.84 + 0.10) / 3)
    assert effect["random"] == pytest.approx(0.82)
    assert effect["beyond"] == pytest.approx(0.06)  # (0.04 + 0.08) / 2: the third seed has no draws
    assert effect["p"] == pytest.approx(1 / 4)  # 0.76 lies below the averaged draws 0.80, 0.82, 0.84
    assert effect["draws"] == 3  # of a setting, not of all of them
    assert pd.isna(effect["ablated_low"])  # the table does not count its sentences


def test_intervals_are_over_seeds_and_over_the_sentences_that_the_table_counts(tmp_path, monkeypatch, analyse):
    run = write_run(tmp_path / "run", {key: {"iid": (accuracy, [0.9] * 3)} for key, accuracy in (
        ((0, 5, "attn"), 0.5), ((0, 6, "attn"), 0.2), ((1, 6, "attn"), 0.8))}, examples=1000)
    one, two = effects_of(run).to_dict("records")
    assert (one["ablated_low"], one["ablated_high"]) == pytest.approx((0.469, 0.531), abs=0.004)
    assert (two["ablated_low"], two["ablated_high"]) == (0, 1)  # two seeds say next to nothing of others
    figures = kept_figures(monkeypatch)
    analyse("summarize_agreement", "--results", run, "--layer", 6)
    assert "n = 1000 sentences, 3 random draws a circuit" in figures["ablation_by_layer"].get_suptitle()
    assert "circuit in attention, layer 6" in figures["one_circuit"].get_suptitle()
    lines = {line.get_label(): line.get_ydata().tolist() for line in figures["ablation_by_layer"].axes[0].lines}
    assert lines["circuit ablated"] == pytest.approx([0.5, 0.5]) and lines["full model"] == pytest.approx([0.95] * 2)


def test_other_tasks_are_drawn_and_a_run_that_cannot_be_is_refused_in_one_sentence(tmp_path, analyse):
    effect = {"iid": (0.5, [0.9, 0.8])}
    runs = {name: write_run(tmp_path / name, {(0, layer, "attn"): effect for layer in (0, 1)}) for name in (
        "run", "unevaluated", "agreement", "sweep")}
    genders = write_run(tmp_path / "genders", {(0, 4, "attn"): {"iid_masculine": (0.5, [0.9, 0.8])}})
    for script, run in (("summarize_syntactic_number", runs["run"]), ("summarize_reflexives", genders)):
        analyse(script, "--results", run, "--out", tmp_path / script)
        assert drawn(tmp_path / script) == FIGURES_BY_LAYER
    damaged = write_run(tmp_path / "damaged", {(0, 0, "attn"): {"iid": ("half", [0.9, 0.8])}})
    (runs["unevaluated"] / "ablations.csv").unlink()
    write_yaml(runs["agreement"] / "config.yaml", {"task": "agreement"})
    table = pd.read_csv(runs["sweep"] / "results.csv")
    table.assign(checkpoint=[0, "final"]).to_csv(runs["sweep"] / "results.csv", index=False)
    for arguments, words in (((tmp_path / "none",), "none/results.csv cannot be read"),
                             ((runs["agreement"],), "another task: agreement"), ((runs["sweep"],), "sweeps checkpoint"),
                             ((genders,), "without the sets iid"), ((runs["unevaluated"],), "ablations.csv cannot"),
                             ((damaged,), "line 3: the column 'accuracy' holds 'half'"),
                             ((runs["run"], "--layer", 7), "no circuit with --layer 7")):
        analyse("summarize_syntactic_number", "--results", *arguments, "--out", tmp_path / "never", refusal=words)
        assert not (tmp_path / "never").exists()


# ------------------------------------------------------------------------------ the comparison of methods

ACCURACIES = {  # of interchanges where a variable is carried, and where it is not
    "full": (0.02, 0.02), "none": (0.02, 0.02), "lda": (0.99, 0.02), "linear_probe": (0.8, 0.02),
           "das": (0.9, 0.3)}


def table_of(seeds=(0, 1), known=True, **changes) -> pd.DataFrame:
    """One variable that is carried and one that is not, at two sites."""
    rows = [{"model_seed": seed, "target_layer": 0, "residual_location": site, "variable": variable, "method": name,
             "iia": iia[0] if (carried := variable == "var_0" and site == "resid_mid") else iia[1],
             "iia_low": 0.01, "iia_high": 1.0, "log_odds_mean": 3.0, "isolate": 0.9 if carried else 1.0,
             "relative_norm": 0.5, "n_pairs": 500, "n_excluded": 3, "ground_truth": carried if known else None,
             "rank": 4, "random_iia_mean": 0.03, "random_iia_max": 0.05, "empirical_p": 0.05, "control_iia": 0.1,
             "exceeds_full": None if known else name == "das", "model_acc": 1.0, "seconds": 1.0}
            for seed in seeds for site in ("resid_mid", "resid_post") for variable in ("var_0", "aux_0")
            for name, iia in ACCURACIES.items()]
    return pd.DataFrame(rows).assign(**changes)


def save(folder, config=None, **tables) -> None:
    for name, table in tables.items():
        write_yaml(folder / name / "config.yaml", config or {})
        table.to_csv(folder / name / "results.csv", index=False)


def test_the_leaderboard_ranks_methods_and_not_controls(tmp_path):
    save(tmp_path, A=table_of(), B=table_of(seeds=(0,)))
    board = leaderboard(shared_cells(read_runs(tmp_path)))
    assert [row[:3] for row in as_cells(board)[1:]] == [
        ["1", "lda", "variable"], ["2", "das", "answers"], ["3", "linear_probe", "variable"],
        ["", "full", "nothing"], ["", "none", "nothing"]]
    board = board.set_index("method")
    lda, das = board.loc["lda"], board.loc["das"]
    assert (lda["models"], lda["cells"], lda["carried"], lda["pairs"]) == (3, 12, 3, 6000)
    assert lda[["iia_carried", "isolate_carried", "disentangle_carried", "iia_not_carried"]].tolist() == (
        pytest.approx([0.99, 0.9, 0.945, 0.02]))
    assert lda["iia_carried_low"] < 0.99 < lda["iia_carried_high"] < 1
    assert (lda["auroc"], das["auroc"], board.loc["none", "auroc"]) == (1, 1, 0.5)
    assert das[["iia_not_carried_max", "relative_norm_carried", "rank_carried"]].tolist() == [0.3, 0.5, 4]


def test_means_are_over_models_and_so_are_intervals():
    rows = pd.DataFrame({"model": ["m", "m", "n", "o"], "iia": [0.2, 0.4, 0.9, 0.7], "n_pairs": [10**6] * 3 + [0]})
    mean, low, high = mean_with_interval(rows, "iia")
    assert mean == pytest.approx(0.6) and (low, high) == (0, 1)  # of two models
    assert mean_with_interval(rows.assign(iia=[0.2, None, 0.4, None]), "iia")[0] == pytest.approx(0.3)
    assert pd.isna(mean_with_interval(rows.tail(1), "iia")[0])
    alone = mean_with_interval(rows.head(1).assign(n_pairs=100), "iia")  # the interval is over its pairs
    assert alone[1:] == pytest.approx((0.12, 0.28), abs=0.015)


def test_methods_are_compared_by_the_cells_that_all_of_them_have(tmp_path, capsys):
    """What --overwrite set aside is not read, and runs of the same models have the same cells."""
    table, config = table_of(), {"model_path": "m_{model_seed}", "test_data_path": "data/test.csv"}
    save(tmp_path, config, A=table[table["method"] != "das"], Mine=table[table["method"] == "das"],
         **{"A.old-1": table_of(seeds=(5,))})
    board = leaderboard(shared_cells(read_runs(tmp_path)))
    assert set(board["cells"]) == {8} and set(board["models"]) == {2} and board["auroc"].notna().all()
    assert not capsys.readouterr().err
    fresh = table_of(seeds=(0,), ground_truth=False)
    save(tmp_path, config | {"layer_reinit": 0}, Fresh=fresh[fresh["method"] == "lda"])  # another model
    assert leaderboard(shared_cells(read_runs(tmp_path))).equals(board)
    assert "over 8 cells, which all methods were run on" in capsys.readouterr().err
    save(tmp_path, config | {"layer_reinit": -1}, Again=table[table["method"] == "lda"])
    with pytest.raises(BadInput, match=r"lda, .*more than once \(in A, Again\)"):
        shared_cells(read_runs(tmp_path))


def test_heat_maps_are_means_over_models_and_hatched_beyond_the_full_interchange(tmp_path, monkeypatch):
    table = pd.concat([table_of(known=False, target_layer=layer) for layer in (0, 3, 9)], ignore_index=True)
    table = table[(table["target_layer"] < 9) | (table["method"] != "lda")]
    das = (table["method"] == "das") & (table["model_seed"] == 1)
    table.loc[das, "iia"] = 0.1
    table.loc[das & (table["target_layer"] == 3), "exceeds_full"] = False  # in one of two models only
    save(tmp_path, A=table.query("variable == 'var_0' and residual_location == 'resid_mid'"))
    figures = kept_figures(monkeypatch)
    draw_layers(read_runs(tmp_path), tmp_path / "layers")
    grid = pd.read_csv(tmp_path / "layers_iia.csv", index_col="method")
    assert grid.loc["das"].tolist() == pytest.approx([0.5] * 3) and pd.isna(grid.loc["lda", "9"])
    row = list(grid.index).index("das")
    assert {cell.get_xy() for cell in figures["layers"].axes[0].patches if cell.get_hatch()} == {(0, row), (2, row)}


@pytest.mark.parametrize("table, wanted", [
    (table_of(iia=None, isolate=None, n_pairs=0, iia_low=None, iia_high=None), {"methods", "isolate"}),
    (table_of(known=False), {f"{variable}_{site}" for variable in ("var_0", "aux_0") for site in (
        "resid_mid", "resid_post")})], ids=["nothing could be measured", "language"])
def test_runs_without_a_leaderboard_are_drawn(table, wanted, tmp_path, analyse):
    save(tmp_path, Run=table)
    assert "no leaderboard" in analyse("summarize_comparison", "--results", tmp_path).stderr
    assert drawn(tmp_path / "figures/Run") == wanted


def test_a_real_run_is_drawn(tiny, tmp_path, analyse):
    execute(COMPARISON, tiny.values[COMPARISON] | {
        "ground_truth": {"var_0": ["resid_mid"], "var_1": []}, "method_list": ["none", "random", "lda"],
        "only_right": False, "rank": ["selected", "classes"], "hard_negatives": {"var_0": 0}, "num_random_draws": 99},
        tmp_path / "Comparison/tiny")
    said = analyse("summarize_comparison", "--results", tmp_path / "Comparison", "--out", tmp_path / "out")
    board = pd.read_csv(tmp_path / "out/leaderboard.csv").set_index(["method", "rank_rule"])
    assert "| 1 | lda" in said.stdout and board.loc[("lda", "classes"), "rank_carried"] == 5
    assert board["iia_token"].notna().sum() == len(board) == 6 and board["control_iia_carried"].notna().sum() == 2
    negatives = {f"var_0@{kind}_resid_mid" for kind in ("token", "groups")}  # of which it is not known
    assert drawn(tmp_path / "out/tiny") == {"methods", "isolate"} | negatives
    assert drawn(tmp_path / "out") == {"detection"}
    assert "Over the same 2 cells, 1 of which carry" in (tmp_path / "out/leaderboard.md").read_text()
    sites = pd.read_csv(tmp_path / "out/sites.csv").query("method == 'lda'")
    for _, rows in sites.groupby("rank_rule"):  # of the sites of a run and method
        assert rows["p_holm"].tolist() == holm(rows["empirical_p"]).tolist()


@pytest.mark.parametrize("changes, words", [
    ({"iia": "high"}, "line 2: the column 'iia' holds 'high'"), ({"method": "magic"}, "there is no method 'magic'")])
def test_mistakes_end_in_a_sentence(changes, words, tmp_path, analyse):
    analyse("summarize_comparison", "--results", tmp_path, refusal="has no */results.csv")
    save(tmp_path, A=table_of(**changes))
    assert "A/results.csv" in analyse("summarize_comparison", "--results", tmp_path, refusal=words).stderr
    assert not (tmp_path / "figures").exists()


# ------------------------------------------------------------------------------ positions

MARKED = "sentence\na {one:mark}\nthe {subject:taxi driver} near the {object:guards}\nthe {subject:b} to {object:c}\n"


def at_positions(**accuracies) -> pd.DataFrame:
    """A run of two seeds, 0.1 apart, at layers 3 and 9. accuracies: of methods, by position, of both layers."""
    tables = []
    for position, values in accuracies.items():
        for at, layer in enumerate((3, 9)):
            table = table_of(known=False, target_layer=layer, position=position, n_without_position=2)
            iia = table["method"].map({name: pair[at] for name, pair in values.items()}) - 0.1 * table["model_seed"]
            tables.append(table.assign(iia=iia, exceeds_full=table["method"].eq("das") & (iia > 0.75)))
    return pd.concat(tables).query("variable == 'var_0' and residual_location == 'resid_mid'")


AT = at_positions(last={"full": (0.1, 0.9), "none": (0.1, 0.1), "lda": (0.2, 0.8), "linear_probe": (0.1, 0.1),
                        "das": (0.1, 0.7)},
                  subject={"full": (0.8, 0.3), "none": (0.1, 0.1), "lda": (0.5, 0.2), "linear_probe": (0.1, 0.3),
                           "das": (0.9, 0.8)})


def test_positions_stand_in_the_order_of_the_sentence_that_has_the_most_marks(tmp_path):
    (tmp_path / "marked.csv").write_text(MARKED)
    asked = {"last", "-1", "-2", "other", "object", "subject", "first", "2"}
    sentence, named = in_sentence(asked, str(tmp_path / "marked.csv"))
    assert sentence == "the taxi driver near the guards"
    assert [*named] == ["first", "2", "subject", "object", "other", "-2", "-1", "last"]
    assert [*named.values()][::2] == ["first\nthe", "subject\ntaxi driver", "other", "-1"]
    assert in_sentence({"last", "object", "first"}, str(tmp_path / "gone.csv")) == (
        "", {"first": "first", "object": "object", "last": "last"})


def test_maps_are_means_over_seeds_hatched_beyond_full_and_the_best_cell_is_told(tmp_path, monkeypatch, analyse):
    (tmp_path / "marked.csv").write_text(MARKED)
    save(tmp_path / "results", {"data_path": str(tmp_path / "marked.csv"), "model_path": "Models/m"}, run=AT)
    kept = kept_figures(monkeypatch)
    said = analyse("summarize_positions", "--results", tmp_path / "results").stdout
    figure = kept["comparison_var_0_resid_mid"]
    panels = {axis.get_title().split(" ")[0]: axis for axis in figure.axes}
    assert [*panels] == ["full", "linear_probe", "lda", "das", "none", ""]  # the last is the scale of colours
    drawn = panels["das"].collections[0].get_array().reshape(2, 2)
    assert np.ravel(drawn).tolist() == pytest.approx([0.75, 0.65, 0.85, 0.05])  # layer 9 above layer 3
    assert {cell.get_xy() for cell in panels["das"].patches if cell.get_hatch()} == {(0, 1)}  # in both seeds
    assert [label.get_text() for label in panels["lda"].get_xticklabels()] == ["subject\ntaxi driver", "last\nguards"]
    assert [label.get_text() for label in panels["full"].get_yticklabels()] == ["9", "3"]
    assert "m: var_0 after attention; n = 500 pairs a cell" in figure.get_suptitle()
    best = pd.read_csv(tmp_path / "results/figures/best.csv").set_index("method")
    columns = ["layer", "position", "value", "full", "share_of_full", "exceeds_full"]
    assert best.loc["das", columns].tolist() == [3, "subject", *map(pytest.approx, (0.85, 0.75, 0.85 / 0.75)), "yes"]
    assert best.loc["lda", columns].tolist() == [9, "last", *map(pytest.approx, (0.75, 0.85, 0.75 / 0.85)), "no"]
    assert "| lda | 9 | last | 0.75 | 0.85 | 0.88 | no |" in said
    long = pd.read_csv(tmp_path / "results/figures/positions.csv")
    assert len(long) == 20 and set(long["n_without_position"]) == {2} and set(long["n_pairs"]) == {500}


def test_maps_of_the_papers_methods_stand_beside_the_full_interchange_of_das(tmp_path, monkeypatch, analyse):
    places = [{"target_layer": layer, "position": position} for layer in (0, 1) for position in ("subject", -1)]
    rows = {"linear_probing": {"residual_location": "resid_post", "test_acc": 0.9},
            "DAS": {"location": "mlp", "interchange_intervention_acc": 0.3, "full_interchange_acc": 0.6},
            "circuit_probing": {"operation": "mlp", "knn_test_acc": 0.8, "vanilla_acc_iid": 1, "ablated_acc_iid": 0.3}}
    for method, row in rows.items():
        write_table(tmp_path / method / "m/results.csv", [place | row for place in places])
        write_yaml(tmp_path / method / "m/config.yaml", {"variable": "labels"})
    kept = kept_figures(monkeypatch)
    analyse("summarize_positions", "--results", tmp_path)
    assert [axis.get_title().replace("\n", " ") for axis in kept["methods_labels_resid_post"].axes[:5]] == [
        "everything exchanged: interchange accuracy", "linear probe", "circuit, nearest neighbors",
        "DAS: interchange accuracy", "circuit ablated: accuracy lost"]
    best = pd.read_csv(tmp_path / "figures/best.csv").set_index("method")
    assert best["value"].tolist() == pytest.approx([0.6, 0.9, 0.8, 0.3, 0.7]) and set(best["full"]) == {0.6}
    assert best["share_of_full"].dropna().to_dict() == pytest.approx({
        "everything exchanged: interchange accuracy": 1, "DAS: interchange accuracy": 0.5})


def test_positions_and_sites_are_not_mixed(tmp_path, analyse):
    row = {"target_layer": 0, "test_acc": 0.9, "gen_acc": 0.8, "residual_location": "resid_mid"}
    file = tmp_path / "linear_probing/m/results.csv"
    command = "summarize_layers", "--results", tmp_path, "--model", "m"
    write_table(file, [row | {"position": "last"}, row | {"position": "subject", "test_acc": 0.5}])
    analyse(*command, refusal="last, subject; take one with --where position=NAME")
    analyse(*command, "--where", "position=subject")
    assert "| 0, attention | 0.50 / 0.80 |" in (tmp_path / "figures/m/layers.md").read_text()
    write_table(file, [row, row | {"residual_location": "attn_out"}])  # an older table, of the last position
    analyse(*command, refusal="resid_mid, attn_out; take one with --where residual_location=SITE")
    analyse(*command, "--where", "position=last", "residual_location=attn_out")
    analyse(*command, "--where", "position=subject", refusal="it has no rows")
    analyse("summarize_positions", "--results", tmp_path / "none", refusal="nothing to draw")
    save(tmp_path / "swept", run=pd.concat([AT.assign(lr=lr) for lr in (1, 2)]))
    analyse("summarize_positions", "--results", tmp_path / "swept", refusal="--where KEY=VALUE")
    analyse("summarize_positions", "--results", tmp_path / "swept", "--where", "lr=1")


def test_the_measure_of_causalgym_is_the_best_position_of_each_layer(tmp_path, analyse):
    first = AT.assign(log_odds_mean=10 * AT["iia"])
    second = first.assign(log_odds_mean=first["log_odds_mean"] + 1).query("method != 'das' or target_layer == 3")
    for name, table, model in (("m/a", first, "Models/m"), ("m/b", second, "Models/m"), ("n/a", first, "Models/n"),
                               ("m/c", AT.query("position == 'last'"), "Models/m")):  # asks for one position only
        save(tmp_path, {"model_path": model, "data_path": f"{name}.csv"}, **{name: table})
    board = causalgym(read_runs(tmp_path))
    assert [*board] == ["a", "b", "mean", "n_tasks"] and board.index[0] == ("m", "full")
    assert board.loc[("m", "lda")].tolist() == pytest.approx([6.0, 5.5, 5.75, 2])  # (4.5 + 7.5) / 2, and 4.5 + 1
    by_hand = first[first["method"] == "das"].groupby(["model_seed", "target_layer"])["log_odds_mean"].max().mean()
    assert board.loc[("n", "das"), ["a", "mean", "n_tasks"]].tolist() == pytest.approx([by_hand, by_hand, 1])
    said = analyse("summarize_comparison", "--results", tmp_path).stdout
    assert "| m | lda | 6.00 | 5.50 | 5.75 | 2 |" in said and (tmp_path / "figures/causalgym.csv").exists()
    names = read_runs(tmp_path, {"position": "subject"})["cell_name"]
    assert set(names) == {"var_0 after attention at subject"}


# ------------------------------------------------------------------------------ models whose variables are known

def test_misses_and_false_alarms_are_counted_where_the_truth_is_known(tmp_path, analyse):
    names = [f"gpt2_rank2_cut1_{decoy}_linear_seed0" for decoy in ("none", "copy")]
    truth = [("V", 1, 2, True), ("V", 1, 5, False), ("V", 0, 2, None)]  # where nothing is known, nothing is scored
    iia = {"none": (0, 0, 0), "full": (0.9, 0, 0.5), "lda": (0.8, 0, 0), "das": (0.3, 0.2, 0.6)}
    for name in names:
        folder = tmp_path / "Models" / name
        folder.mkdir(parents=True)
        pd.DataFrame(truth, columns=["variable", "layer", "position", "carried"]).to_csv(folder / "truth.csv")
        save_tensors(folder / "truth.safetensors", {"V": torch.eye(4)[:, :2].contiguous()}, {})
    rows = [{"model_seed": 0, "checkpoint": name, "target_layer": layer, "position": position, "variable": variable,
             "residual_location": "resid_post", "method": method, "rank_rule": "classes", "iia": values[place],
             "iia_low": values[place] - 0.05, "iia_high": 1, "log_odds_mean": 0, "isolate": 1, "relative_norm": 1,
             "rank": 1, "n_pairs": 100, "model_acc": 1, "empirical_p": None, "random_iia_mean": None,
             "random_iia_max": None, "ground_truth": None, "exceeds_full": values[place] > iia["full"][place]}
            for name in names for place, (variable, layer, position, _) in enumerate(truth)
            for method, values in iia.items()]
    saved = tmp_path / "saved/interchange_model_seed_0_checkpoint_{}_target_layer_1_position_2_residual_location_" \
        "resid_post_variable_V_method_lda_rank_rule_classes.safetensors"
    half = torch.tensor([[3.0, 0, 3, 0]])  # of its direction half lies in the true subspace
    fitted = Subspace(1, {"right": half.T / 18, "left": half}, name="lda")
    fitted.save(Path(str(saved).format(names[0])), {})
    swept = {"model_seed": [0], "checkpoint": names, "target_layer": [0, 1], "position": [2, 5], "residual_location": [
        "resid_post"], "variable": ["V"], "method": [*iia], "rank_rule": ["classes"]}  # in the order of its file's name
    save(tmp_path / "runs", {f"{name}_list": values for name, values in swept.items()} | {
        "model_path": f"{tmp_path}/Models/{{checkpoint}}", "save_models": True, "model_dir": str(tmp_path / "saved")},
        A=pd.DataFrame(rows))
    said = analyse("summarize_known", "--results", tmp_path / "runs", "--out", tmp_path / "out")
    assert drawn(tmp_path / "out") == {"rates"} and "| lda |" in said.stdout
    board = pd.read_csv(tmp_path / "out/scores.csv").set_index("method")
    analyse("summarize_known", "--results", tmp_path / "runs/A", "--out", tmp_path / "alone")  # the run itself
    assert (tmp_path / "alone/scores.csv").read_text() == (tmp_path / "out/scores.csv").read_text()
    columns = ["carried", "not_carried", "misses", "false_alarms", "best_is_true"]
    assert board.loc["lda", columns].tolist() == [2, 2, 0, 0, 1] and board.loc["lda", "inside"] == pytest.approx(0.5)
    assert board.loc["das", columns].tolist() == [2, 2, 1, 1, 1] and board.loc["das", "found"] == pytest.approx(1 / 3)
    groups = pd.read_csv(tmp_path / "out/groups.csv")
    assert groups["group"].unique().tolist() == ["decoy"] and groups["models"].eq(1).all()
    (tmp_path / "Models" / names[1] / "truth.csv").unlink()
    analyse("summarize_known", "--results", tmp_path / "runs", "--out", tmp_path / "never", refusal="truth.csv")
