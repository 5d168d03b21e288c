"""The figures and the leaderboard of the comparison of methods, from tables made here and from a real run."""

import pandas as pd
import pytest

from analysis.comparison_figures import accuracy_by_step, told_of
from analysis.report_figures import Figure
from analysis.report_summaries import comparison_in_words
from analysis.summarize_comparison import leaderboard, read_runs, shared_cells
from conftest import COMPARISON, comparison_values, write_yaml
from interp.experiment import main
from interp.runs.config import BadInput

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
    board = leaderboard(shared_cells(read_runs(tmp_path))).set_index("method")
    assert list(board.index[:3]) == ["lda", "das", "linear_probe"] and list(board["place"][:3]) == [1, 2, 3]
    assert board.loc[["none", "full"], "place"].isna().all()
    assert board.loc["lda", "iia_carried"] == pytest.approx(0.99) and board.loc["lda", "models"] == 3
    assert board.loc["lda", "iia_carried_low"] < 0.99 < board.loc["lda", "iia_carried_high"]
    assert board.loc["lda", "auroc"] == 1 and board.loc["none", "auroc"] == 0.5
    assert board.loc["das", "iia_not_carried_max"] == pytest.approx(0.3)


def test_runs_of_the_same_models_are_not_counted_twice(tmp_path, capsys):
    """Nor is what --overwrite set aside; and methods are compared by the cells that all of them have."""
    save(tmp_path, A=table_of(), B=table_of(), **{"B.old-1": table_of(seeds=(5,))})
    for run in "AB":
        write_yaml(tmp_path / run / "config.yaml", {"model_path": "m_{model_seed}"})
    fresh = table_of(seeds=(0,), carried=False)
    save(tmp_path, Fresh=fresh[fresh["method"] == "lda"])
    board = leaderboard(shared_cells(read_runs(tmp_path))).set_index("method")
    assert set(board["models"]) == {2} and set(board["cells"]) == {16} and board.loc["lda", "iia_not_carried"] < 0.03
    assert "over the 16 of 20 cells that all 5 methods were run on" in capsys.readouterr().err


def test_a_method_in_a_run_of_its_own_is_compared_by_the_same_cells(tmp_path):
    """A method that was added later has a folder of its own; one that was run twice is refused."""
    config, table = {"model_path": "m_{model_seed}", "test_data_path": "data/test.csv"}, table_of()
    save(tmp_path, config, A=table[table["method"] != "das"], Mine=table[table["method"] == "das"])
    board = leaderboard(shared_cells(read_runs(tmp_path)))
    together = leaderboard(shared_cells(read_runs(tmp_path).assign(experiment="A")))
    assert set(board["cells"]) == {8} and board["auroc"].notna().all() and board.equals(together)
    save(tmp_path, config, Again=table[table["method"] == "lda"])
    with pytest.raises(BadInput, match="lda was run more than once on .*A, Again"):
        shared_cells(read_runs(tmp_path))


def test_controls_of_fresh_weights_are_other_models(tmp_path):
    for name, keys in (("A", {}), ("B", {"layer_reinit": True}), ("C", {"layer_reinit": -1}),
                       ("D", {"reinit_embeddings": True}), ("E", {"layer_reinit": 0})):
        save(tmp_path, {"model_path": "m_{model_seed}"} | keys, **{name: table_of(seeds=(0,))})
    models = read_runs(tmp_path).groupby("experiment")["model"].first()
    assert models["A"] == models["C"] and len(set(models)) == 4
    assert told_of(tmp_path / "E").title == "E, fresh weights in layer 0"


def test_lines_over_checkpoints_of_several_models_have_intervals_over_models():
    rows = pd.concat([table_of(seeds=(0,), checkpoint=100, step=100, model=f"m {seed}", iia=0.2 + 0.2 * seed)
                      for seed in range(3)])
    [(step, line)] = accuracy_by_step(rows[rows["method"] == "lda"].head(9)).iterrows()
    assert step == 100 and line["iia_low"] < 0.3 < 0.5 < line["iia_high"]
    alone = accuracy_by_step(rows[(rows["model"] == "m 0") & (rows["method"] == "lda")])
    assert alone["iia_low"].iloc[0] == 0.01


def test_the_leaderboard_is_over_what_it_says(tmp_path, analyse):
    save(tmp_path, Run=table_of())
    assert analyse("summarize_comparison", "--results", tmp_path).returncode == 0
    said = (tmp_path / "figures/leaderboard.md").read_text()
    assert ("Over the same 8 cells (a model, site and variable each) for all methods, of 2 models; 2 cells, of 2 "
            "models, carry their variable; 4000 test pairs in all.") in said


@pytest.mark.parametrize("config, said", [({"data_path": "mine.csv"}, "Share of answers kept"),
                                          ({"test_data_path": "mine.csv"}, "Highest interchange accuracy")])
def test_only_of_sentences_answers_should_stay(config, said, tmp_path):
    """Arithmetic has nothing beyond full either, as its answers depend on two variables."""
    save(tmp_path / "Comparison", config, Run=table_of(known=False).assign(beyond_full=None))
    figure = Figure("Comparison/figures/Run/aux_0_resid_post.png", "", 1, 1, "aux_0_resid_post", 0.0)
    assert comparison_in_words(read_runs(tmp_path / "Comparison"), None, figure, tmp_path).startswith(said)


EDGES = {
    "one seed": table_of(seeds=(0,)),
    "one method": table_of()[lambda table: table["method"] == "lda"],
    "none carried": table_of(carried=False),
    "nothing could be measured": table_of(iia=None, isolate=None, disentangle=None, pairs=0, iia_low=None, iia_high=None
                                          ).astype({"iia": float, "isolate": float}),
    "language": table_of(known=False),
    "sixty layers": pd.concat([table_of(seeds=(0,), known=False, target_layer=layer) for layer in range(60)]),
    "no epochs": pd.concat([table_of(seeds=(0,)), table_of(seeds=(0,), checkpoint="final")]),
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
    assert (tmp_path / "figures/leaderboard.csv").exists() == (name in ("one seed", "one method", "no epochs"))


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
