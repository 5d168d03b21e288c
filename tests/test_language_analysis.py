"""The figures of the language tasks: what they say about small tables written by hand."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest

from analysis.language_figures import marks_of, measure_effects, read_run
from conftest import write_yaml
from test_analysis import drawn, kept_figures

FIGURES = {"one_circuit", "ablation_by_layer", "nearest_neighbors"}


def write_run(folder: Path, sublayers: dict[tuple, dict[str, tuple[float, Iterable[float]]]]) -> Path:
    """A run by hand: for each (seed, layer, operation), the accuracy without the circuit and the draws' on each set."""
    rows, ablations = [], []
    for (seed, layer, operation), effects in sublayers.items():
        setting = {"model_seed": seed, "target_layer": layer, "probe_index": -1, "operation": operation, "lr": 0.001}
        possible = all(draws for _, draws in effects.values())
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
    pd.DataFrame(ablations).to_csv(folder / "ablations.csv", index=False)
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
    finished = analyse("summarize_agreement", "--results", run)
    assert finished.returncode == 0, finished.stderr
    assert drawn(run / "figures") == FIGURES
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
        ((0, 5, "attn"), 0.5), ((0, 6, "attn"), 0.2), ((1, 6, "attn"), 0.8))})
    pd.read_csv(run / "ablations.csv").assign(examples=1000).to_csv(run / "ablations.csv", index=False)
    one, two = effects_of(run).to_dict("records")
    assert (one["ablated_low"], one["ablated_high"]) == pytest.approx((0.469, 0.531), abs=0.004)
    assert (two["ablated_low"], two["ablated_high"]) == pytest.approx((0.2, 0.8), abs=0.03)
    figures = kept_figures(monkeypatch)
    assert analyse("summarize_agreement", "--results", run, "--layer", 6).returncode == 0
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
        assert analyse(script, "--results", run, "--out", tmp_path / script).returncode == 0
        assert drawn(tmp_path / script) == FIGURES
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
        refused = analyse("summarize_syntactic_number", "--results", *arguments, "--out", tmp_path / "never")
        assert refused.returncode == 2 and words in refused.stderr
        assert len(refused.stderr.splitlines()) == 1 and not (tmp_path / "never").exists()
