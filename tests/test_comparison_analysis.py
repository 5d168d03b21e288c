"""The figures and the leaderboard of the comparison of methods, from tables made here and from a real run."""

import pandas as pd
import pytest

from analysis.summarize_comparison import leaderboard, read_runs
from conftest import COMPARISON, comparison_values, write_yaml
from interp.experiment import main

METHODS = {"full": (0.02, 0.02), "none": (0.02, 0.02), "lda": (0.99, 0.02), "linear_probe": (0.8, 0.02),
           "das": (0.9, 0.3)}


def table_of(seeds=(0, 1), known=True, **changes) -> pd.DataFrame:
    """One carried variable and one that is not, at two sites."""
    rows = [{"model_seed": seed, "target_layer": 0, "residual_location": site, "variable": variable, "method": name,
             "iia": iia[0] if (carried := variable == "var_0" and site == "resid_mid") else iia[1],
             "iia_low": 0.01, "iia_high": 1.0, "log_odds_mean": 3.0, "log_odds_median": 3.0,
             "isolate": 0.9 if carried else 1.0, "disentangle": (iia[0] + 0.9) / 2 if carried else 0.5,
             "change": 0.5, "pairs": 500, "left_out": 3, "carried": carried if known else None, "rank": 4,
             "random_iia_mean": 0.03, "random_iia_max": 0.05, "rank_among_random": 0.05, "selectivity": 1.0,
             "beyond_full": None if known else name == "das", "seconds": 1.0}
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
    board = leaderboard(read_runs(tmp_path)).set_index("method")
    assert list(board.index[:3]) == ["lda", "das", "linear_probe"] and list(board["place"][:3]) == [1, 2, 3]
    assert board.loc[["none", "full"], "place"].isna().all()
    assert board.loc["lda", "iia_carried"] == pytest.approx(0.99) and board.loc["lda", "models"] == 3
    assert board.loc["lda", "iia_carried_low"] < 0.99 < board.loc["lda", "iia_carried_high"]
    assert board.loc["lda", "auroc"] == 1 and board.loc["none", "auroc"] == 0.5
    assert board.loc["das", "iia_not_carried_max"] == pytest.approx(0.3)


def test_runs_of_the_same_models_are_not_counted_twice(tmp_path):
    """Nor is what --overwrite set aside; and AUROC is over the cells that all methods have."""
    save(tmp_path, A=table_of(), B=table_of(), **{"B.old-1": table_of(seeds=(5,))})
    for run in "AB":
        write_yaml(tmp_path / run / "config.yaml", {"model_path": "m_{model_seed}"})
    fresh = table_of(seeds=(0,), carried=False)
    save(tmp_path, Fresh=fresh[fresh["method"] == "lda"])
    board = leaderboard(read_runs(tmp_path)).set_index("method")
    assert board.loc["lda", "models"] == 3 and board.loc["das", "models"] == 2
    assert set(board["auroc_cells"]) == {16}


EDGES = {
    "one seed": table_of(seeds=(0,)),
    "one method": table_of()[lambda table: table["method"] == "lda"],
    "none carried": table_of(carried=False),
    "nothing could be measured": table_of(iia=None, isolate=None, disentangle=None, pairs=0, iia_low=None, iia_high=None
                                          ).astype({"iia": float, "isolate": float}),
    "language": table_of(known=False),
    "sixty layers": pd.concat([table_of(seeds=(0,), known=False, target_layer=layer) for layer in range(60)]),
    "checkpoints": pd.concat([table_of(seeds=(0,), checkpoint=step) for step in (100, 200, "final")]),
}


@pytest.mark.parametrize("name", EDGES)
def test_edges_are_drawn(name, tmp_path, analyse):
    save(tmp_path, **{"Run": EDGES[name]})
    said = analyse("summarize_comparison", "--results", tmp_path)
    assert said.returncode == 0, said.stderr
    drawn = {file.relative_to(tmp_path / "figures").as_posix() for file in (tmp_path / "figures").rglob("*.png")}
    wanted = {"language": "Run/aux_0_resid_post.png", "sixty layers": "Run/var_0_resid_mid.png",
              "checkpoints": "Run/checkpoints.png"}.get(name, "Run/methods.png")
    assert wanted in drawn and all((tmp_path / "figures" / file).with_suffix(".pdf").exists() for file in drawn)
    assert (tmp_path / "figures/leaderboard.csv").exists() == (name in ("one seed", "one method", "nothing could be "
                                                                        "measured"))


def test_a_real_run_is_drawn(tiny, tmp_path, analyse):
    values = comparison_values(tiny.folder) | {
        "carried": {"var_0": ["resid_mid"], "var_1": []}, "method_list": ["none", "random", "lda", "circuit_update"],
        "results_dir": str(tmp_path / "Comparison/tiny")}
    assert main(COMPARISON, ["--config", str(write_yaml(tmp_path / "config.yaml", values))]) == 0
    said = analyse("summarize_comparison", "--results", tmp_path / "Comparison", "--out", tmp_path / "out")
    assert said.returncode == 0, said.stderr
    assert "| 1 | " in said.stdout and (tmp_path / "out/tiny/isolate.png").exists()


MISTAKES = {
    "no run": ({}, ["nothing to draw", "compare_methods.py"]),
    "another table": ({"A": table_of().drop(columns="isolate")}, ["A/results.csv", "'isolate'"]),
    "words for numbers": ({"A": table_of(iia="high")}, ["A/results.csv", "'iia'"]),
    "words for the model's accuracy": ({"A": table_of(model_acc="high")}, ["A/results.csv", "'model_acc'"]),
    "unknown method": ({"A": table_of(method="magic")}, ["row 2", "'magic'"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_a_sentence(name, tmp_path, analyse):
    tables, words = MISTAKES[name]
    save(tmp_path, **tables)
    said = analyse("summarize_comparison", "--results", tmp_path)
    assert said.returncode == 2 and all(word in said.stderr for word in words)
    assert not (tmp_path / "figures").exists()
