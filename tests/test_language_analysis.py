"""The figures of the language tasks: what they say about small tables written by hand."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest
import torch

import circuit_probing
from analysis.language_figures import (
    LABELS_AT_MOST,
    compare_with_draws,
    counts,
    layer_grid,
    marks_of,
    measure_effects,
    read_run,
)
from analysis.summarize_model_overlap import circuits_of, overlap, pairs
from conftest import rows_of, write_yaml
from interp.methods.masks import Circuit, save_circuit
from interp.runs.config import CONFIGS, BadInput, load_config
from interp.runs.settings import expand_settings, fill_in
from test_analysis import drawn

SETS = {"iid": "IID", "gen": "generalization"}


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


def test_sublayers_are_ranked_by_what_their_ablation_costs_beyond_random_draws(tmp_path, analyse):
    around = [0.91, 0.93, 0.95, 0.93, 0.93]  # mean 0.93, sd sqrt(0.0002)
    run = write_run(tmp_path / "run", {
        (0, 0, "attn"): {"iid": (0.92, around), "gen": (0.90, around)},
        (0, 0, "mlp"): {"iid": (0.94, [0.94] * 5), "gen": (0.93, [0.94] * 5)},  # draws that are all equal
        (0, 3, "attn"): {"iid": (0.60, around), "gen": (0.99, around)},
        (0, 3, "mlp"): {"iid": (0.50, []), "gen": (0.50, [])},  # no random draw of its size
    })
    finished = analyse("summarize_agreement", "--results", run)
    assert finished.returncode == 0, finished.stderr
    assert drawn(run / "figures") == {"one_circuit", "ablation_by_layer", "nearest_neighbors"}
    ranking = pd.read_csv(run / "figures/strongest_sublayers.csv").set_index(["target_layer", "operation"])
    assert list(ranking.index) == [(3, "attn"), (0, "attn"), (0, "mlp"), (3, "mlp")]
    strongest = ranking.loc[(3, "attn")]
    assert strongest["lost_beyond_random_iid"] == pytest.approx(0.33)
    assert strongest["random_ablated_acc_iid_std"] == pytest.approx(0.0002 ** 0.5)
    assert strongest["p_iid"] == pytest.approx(1 / 6) and strongest["p_holm_iid"] == pytest.approx(3 / 6)
    assert ranking.loc[(0, "attn"), "p_iid"] == pytest.approx(2 / 6)  # one draw, 0.91, lies below 0.92
    assert ranking.loc[(0, "mlp"), ["p_iid", "p_gen"]].tolist() == pytest.approx([1, 1 / 6])
    assert ranking.loc[(3, "mlp"), ["random_ablated_acc_iid_mean", "p_iid", "lost_beyond_random_gen"]].isna().all()
    assert ranking["random_ablation_impossible"].notna().tolist() == [False, False, False, True]
    assert ranking["l0_share"].tolist() == [0.25] * 4 and set(ranking["full_model_knn_gen_acc"]) == {0.7}
    assert finished.stdout.splitlines()[-1].startswith("MLP 3") and "no random draw" in finished.stdout


def test_marks_tell_a_loss_from_a_gain_and_from_a_circuit_without_draws(tmp_path):
    around = [0.91, 0.93, 0.95, 0.93, 0.93]
    many = [0.9 + 0.0001 * i for i in range(199)]  # 199 draws and nine sublayers: 9 / 200 < 0.05
    run = write_run(tmp_path / "run", {
        (0, layer, "attn"): {"iid": effect} for layer, effect in enumerate([
            (0.60, around), (0.92, around), (0.99, around), (0.93, [0.94] * 3), (0.94, [0.94] * 3), (0.2, []),
            (0.2, [0.9]), (0.8, many), (0.91, many)])})
    effects = measure_effects(read_run(run, "agreement", SETS)[1])
    assert list(marks_of(effects)) == ["below", "other", "other", "below", "other", "alone", "below", "significant",
                                       "other"]
    assert effects["p"].iloc[2] == 1  # a gain is no loss


def test_seeds_are_averaged_and_compared_with_their_own_draws(tmp_path):
    low, high = [0.70, 0.72, 0.74], [0.90, 0.92, 0.94]
    run = write_run(tmp_path / "run", {(0, 5, "attn"): {"iid": (0.68, low)}, (1, 5, "attn"): {"iid": (0.84, high)},
                                       (2, 5, "attn"): {"iid": (0.10, [])}})
    [effect] = measure_effects(read_run(run, "agreement", SETS)[1]).to_dict("records")
    assert effect["ablated"] == pytest.approx((0.68 + 0.84 + 0.10) / 3)
    assert effect["random"] == pytest.approx(0.82)
    assert effect["beyond"] == pytest.approx(0.06)  # (0.04 + 0.08) / 2: the third seed has no draws
    assert effect["p"] == pytest.approx(1 / 4)  # 0.76 lies below the averaged draws 0.80, 0.82, 0.84
    assert pd.isna(effect["ablated_low"])  # the table does not count its sentences


def test_draws_are_those_of_a_setting_however_many_there_are(tmp_path):
    """A circuit below every draw is so with two seeds as with one."""
    for seeds in ((0,), (0, 1)):
        run = write_run(tmp_path / f"run{len(seeds)}", {(seed, 5, "attn"): {"iid": (0.5, [0.9] * 5)} for seed in seeds})
        effects = measure_effects(read_run(run, "agreement", SETS)[1])
        assert effects["draws"].tolist() == [5] and list(marks_of(effects)) == ["below"]
        assert counts(effects) == "5 random draws a circuit"


def test_p_is_the_share_of_further_draws_that_lie_as_far_below():
    """Where circuits are random draws, p is uniform."""
    draws = torch.randn(4000, 20, generator=torch.Generator().manual_seed(0)).numpy()
    p = torch.tensor([compare_with_draws([(own[0], own[1:])])[1] for own in draws])
    for level in (0.05, 0.25, 0.5):
        assert (p <= level + 1e-9).float().mean().item() == pytest.approx(level, abs=0.03)


def test_an_interval_is_over_the_sentences_that_the_table_counts(tmp_path):
    run = write_run(tmp_path / "run", {(0, 5, "attn"): {"iid": (0.5, [0.9] * 3)}})
    table = pd.read_csv(run / "ablations.csv")
    table.assign(examples=1000).to_csv(run / "ablations.csv", index=False)
    [effect] = measure_effects(read_run(run, "agreement", SETS)[1]).to_dict("records")
    assert (effect["ablated_low"], effect["ablated_high"]) == pytest.approx((0.469, 0.531), abs=0.004)


def test_what_is_there_of_a_run_is_drawn(tmp_path, analyse):
    run = write_run(tmp_path / "run", {(0, 4, "attn"): {"iid_masculine": (0.5, [0.9, 0.8]),
                                                        "gen_feminine": (0.5, [0.9, 0.8])}})
    with open(run / "ablations.csv", "a") as table:  # a setting that a kill cut off before its results
        table.write("0,5,-1,attn,0.001,iid_feminine,all,circuit,,0.1\n")
    assert analyse("summarize_reflexives", "--results", run, "--out", tmp_path / "out", "--layer", 4).returncode == 0
    assert drawn(tmp_path / "out") == {"one_circuit", "ablation_by_layer", "nearest_neighbors"}
    [row] = rows_of(tmp_path / "out/strongest_sublayers.csv")
    assert row["target_layer"] == "4" and "ablated_acc_iid_feminine" not in row


@pytest.mark.parametrize("layers", [range(2), range(12), range(24), range(30), range(0, 30, 3)])
def test_layers_are_named_as_far_as_there_is_room(layers):
    table = pd.DataFrame({"target_layer": list(layers), "operation": "mlp"})
    figure, panels = layer_grid({"row": "a row"}, table, "accuracy")
    ticks = [int(tick) for tick in panels["row", "mlp"].get_xticks()]
    assert set(ticks) <= set(layers) and min(len(layers), LABELS_AT_MOST // 2) <= len(ticks) <= LABELS_AT_MOST


def test_a_run_that_cannot_be_drawn_is_refused_in_one_sentence(tmp_path, analyse):
    run = write_run(tmp_path / "run", {(0, 0, "attn"): {"iid": (0.5, [0.9, 0.8])}})
    arithmetic = write_run(tmp_path / "arithmetic", {(0, 0, "attn"): {"test": (0.5, [0.9, 0.8])}})
    unevaluated = write_run(tmp_path / "unevaluated", {(0, 0, "attn"): {"iid": (0.5, [0.9, 0.8])}})
    (unevaluated / "ablations.csv").unlink()
    damaged = write_run(tmp_path / "damaged", {(0, 0, "attn"): {"iid": ("half", [0.9, 0.8])}})
    agreement = write_run(tmp_path / "agreement", {(0, 0, "attn"): {"iid": (0.9, [0.9, 0.8])}})
    write_yaml(agreement / "config.yaml", {"task": "agreement"})
    sweep = write_run(tmp_path / "sweep", {(0, 0, "attn"): {"iid": (0.9, [0.9])}, (0, 1, "attn"): {"iid": (0.9, [])}})
    table = pd.read_csv(sweep / "results.csv")
    table.assign(checkpoint=[0, "final"]).to_csv(sweep / "results.csv", index=False)
    for arguments, words in (((tmp_path / "none",), "nothing to draw"), ((agreement,), "agreement, not syntactic"),
                             ((sweep,), "sweeps checkpoint"), ((arithmetic,), "another task"),
                             ((unevaluated,), "lm_eval"), ((damaged,), "'accuracy'"),
                             ((run, "--layer", 7), "no circuit with layer 7"),
                             ((run, "--operation", "mlp"), "no circuit with operation mlp")):
        refused = analyse("summarize_syntactic_number", "--results", *arguments, "--out", tmp_path / "never")
        assert refused.returncode == 2 and words in refused.stderr
        assert len(refused.stderr.splitlines()) == 1 and not (tmp_path / "never").exists()


def test_circuits_of_agreement_and_reflexives_are_compared_sublayer_by_sublayer(tmp_path):
    """The shipped configs' circuits, though of other data, are of the same sublayer of one model."""
    configs = []
    for number, name in enumerate(("SV_Agreement/save_models/sv_agreement-small",
                                  "Reflexives/save_models/reflexives-small")):
        configs.append(write_yaml(tmp_path / f"{number}.yaml", {"base": str(CONFIGS / f"{name}.yaml"),
                                                                "model_dir": str(tmp_path / f"circuits_{number}")}))
        config = load_config(configs[-1], circuit_probing.Config)
        [setting] = expand_settings(config)
        [file] = circuit_probing.artifacts(config, setting)
        circuit = Circuit({"c_attn": torch.tensor([1.0, -1, number - 0.5] * 2), "c_proj": torch.tensor([1.0, -1])},
                          {"c_attn": 2, "c_proj": 2})
        save_circuit(circuit, file, {"variable": config.variable,
                                     "model_path": fill_in("model_path", config.model_path, setting),
                                     **setting._asdict()})
    [pair] = pairs(*map(circuits_of, configs))
    [whole] = [row for row in overlap(*pair) if row["map"] == "c_attn" and row["block"] == "whole"]
    assert [whole[key] for key in ("layer", "alone_1", "common", "alone_2")] == [6, 0, 2, 2]


def test_circuits_of_other_runs_and_of_other_sublayers_are_not_compared(tmp_path):
    circuit = Circuit({"c_fc": torch.tensor([1.0, -1]), "c_proj": torch.tensor([1.0, -1])}, {"c_fc": 2, "c_proj": 2})
    config = write_yaml(tmp_path / "c.yaml", {
        "base": str(CONFIGS / "SV_Agreement/save_models/sv_agreement-small.yaml"), "model_dir": str(tmp_path)})
    loaded = load_config(config, circuit_probing.Config)
    [setting] = expand_settings(loaded)
    [file] = circuit_probing.artifacts(loaded, setting)
    save_circuit(circuit, file, {"task": "reflexive", "variable": "labels", **setting._asdict()})
    with pytest.raises(BadInput, match="its task is reflexive, not agreement"):
        circuits_of(config)
    named = [("one", {"target_layer": layer, "operation": "mlp"}, circuit) for layer in (0, 2)]
    with pytest.raises(BadInput, match="MLP of layer 0 and MLP of layer 2"):
        overlap(*named)
