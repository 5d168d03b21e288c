"""The figures and the leaderboard of the comparison of methods, from tables made here and from a real run."""

import pandas as pd
import pytest

from analysis.comparison_figures import draw_checkpoints, draw_layers, mean_with_interval
from analysis.summarize_comparison import as_cells, leaderboard, read_runs, shared_cells
from conftest import COMPARISON, comparison_values, write_yaml
from interp.experiment import main
from interp.runs.config import BadInput
from interp.statistics import holm
from test_analysis import drawn, kept_figures

METHODS = {"full": (0.02, 0.02), "none": (0.02, 0.02), "lda": (0.99, 0.02), "linear_probe": (0.8, 0.02),
           "das": (0.9, 0.3)}


def table_of(seeds=(0, 1), known=True, **changes) -> pd.DataFrame:
    """One variable that is carried and one that is not, at two sites."""
    rows = [{"model_seed": seed, "target_layer": 0, "residual_location": site, "variable": variable, "method": name,
             "iia": iia[0] if (carried := variable == "var_0" and site == "resid_mid") else iia[1],
             "iia_low": 0.01, "iia_high": 1.0, "log_odds_mean": 3.0, "isolate": 0.9 if carried else 1.0,
             "relative_norm": 0.5, "n_pairs": 500, "n_excluded": 3, "ground_truth": carried if known else None,
             "rank": 4, "random_iia_mean": 0.03, "random_iia_max": 0.05, "empirical_p": 0.05, "selectivity": 1.0,
             "exceeds_full": None if known else name == "das", "model_acc": 1.0, "seconds": 1.0}
            for seed in seeds for site in ("resid_mid", "resid_post") for variable in ("var_0", "aux_0")
            for name, iia in METHODS.items()]
    return pd.DataFrame(rows).assign(**changes)


def save(folder, config=None, **tables) -> None:
    for name, table in tables.items():
        (folder / name).mkdir(parents=True)
        table.to_csv(folder / name / "results.csv", index=False)
        if config:
            write_yaml(folder / name / "config.yaml", config)


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


def test_means_are_over_cells_that_were_measured_and_intervals_over_models():
    rows = pd.DataFrame({"model": ["m", "m", "n", "o"], "iia": [0.2, 0.4, 0.9, 0.7], "n_pairs": [10**6] * 3 + [0]})
    mean, low, high = mean_with_interval(rows, "iia")
    assert mean == pytest.approx(0.5) and (low, high) == pytest.approx((0.3, 0.9), abs=0.002)
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


@pytest.mark.parametrize("seeds, value, ends", [((0, 1, 2), 0.4, (0.2, 0.6)), ((0,), 0.2, (0.01, 1.0))])
def test_lines_over_checkpoints_have_intervals_over_models_or_the_runs(seeds, value, ends, tmp_path, monkeypatch):
    save(tmp_path, A=pd.concat([table_of(seeds=(seed,), checkpoint=step, iia=0.2 + 0.2 * seed).query("method == 'lda'")
                                for seed in seeds for step in (100, 200)]))
    figures = kept_figures(monkeypatch)
    draw_checkpoints(read_runs(tmp_path), tmp_path / "checkpoints")
    axis = figures["checkpoints"].axes[0]
    [line] = [line for line in axis.lines if line.get_label() == "lda"]
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([100, 200], pytest.approx([value] * 2))
    assert axis.collections[-1].get_datalim(axis.transData).intervaly == pytest.approx(ends, abs=0.05)


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


EDGES = {
    "one seed": table_of(seeds=(0,)),
    "one method": table_of()[lambda table: table["method"] == "lda"],
    "none carried": table_of(ground_truth=False),
    "nothing could be measured": table_of(iia=None, isolate=None, n_pairs=0, iia_low=None, iia_high=None).astype(
        {"iia": float, "isolate": float}),
    "language": table_of(known=False),
    "sixty layers": pd.concat([table_of(seeds=(0,), known=False, target_layer=layer) for layer in range(60)]),
    "checkpoints": pd.concat([table_of(seeds=(0,), checkpoint=step) for step in (100, 200, "final")]),
}


@pytest.mark.parametrize("name, wanted", [("nothing could be measured", {"methods", "isolate"}), (
    "language", {"var_0_resid_mid", "var_0_resid_post", "aux_0_resid_mid", "aux_0_resid_post"})])
def test_runs_without_a_leaderboard_are_drawn(name, wanted, tmp_path, analyse):
    save(tmp_path, Run=EDGES[name])
    said = analyse("summarize_comparison", "--results", tmp_path)
    assert said.returncode == 0 and "no leaderboard" in said.stderr, said.stderr
    assert drawn(tmp_path / "figures/Run") == wanted


def test_a_real_run_is_drawn(tiny, tmp_path, analyse):
    values = comparison_values(tiny.folder) | {
        "ground_truth": {"var_0": ["resid_mid"], "var_1": []}, "method_list": ["none", "random", "lda"],
        "results_dir": str(tmp_path / "Comparison/tiny")}
    assert main(COMPARISON, ["--config", str(write_yaml(tmp_path / "config.yaml", values))]) == 0
    said = analyse("summarize_comparison", "--results", tmp_path / "Comparison", "--out", tmp_path / "out")
    assert said.returncode == 0 and "| 1 | lda" in said.stdout, said.stderr
    assert drawn(tmp_path / "out/tiny") == {"methods", "isolate"} and drawn(tmp_path / "out") == {"detection"}
    assert "Over the same 2 cells, 1 of which carry" in (tmp_path / "out/leaderboard.md").read_text()
    sites = pd.read_csv(tmp_path / "out/sites.csv").query("method == 'lda'")
    assert sites["p_holm"].tolist() == holm(sites["empirical_p"]).tolist()  # of the sites of a run and method


@pytest.mark.parametrize("changes, words", [
    ({"iia": "high"}, "line 2: the column 'iia' holds 'high'"), ({"method": "magic"}, "there is no method 'magic'")])
def test_mistakes_end_in_a_sentence(changes, words, tmp_path, analyse):
    assert "has no */results.csv" in analyse("summarize_comparison", "--results", tmp_path).stderr
    save(tmp_path, A=table_of(**changes))
    said = analyse("summarize_comparison", "--results", tmp_path)
    assert said.returncode == 2 and "A/results.csv" in said.stderr and words in said.stderr
    assert len(said.stderr.splitlines()) == 1 and not (tmp_path / "figures").exists()
