"""Which method can be trusted? How often methods miss a variable that is there, and find one that is not.

    python analysis/summarize_known.py [--results Results/Known/compare] [--where KEY=VALUE ...] [--out DIR]

Reads the runs of compare_methods.py below RESULTS on models of train_known_models.py, and truth.csv beside each model.
Writes

known.csv        every cell (model, variable, layer, position): does it carry the variable (`carried`); its interchange
                 accuracy as a share of that of exchanging everything there (`found`); is it above both that and doing
                 nothing (`false_alarm`); the share of a subspace's write directions in the true one (`inside`)
scores.csv, .md  by method: the share of carried cells with less than half of what exchanging everything gives (misses),
                 that of cells without the variable with a false alarm, and how often its best cell at the cut is the
                 true one; 95 % intervals over models
groups.csv       the same by family, rank, cut, decoy and code
rates            misses and false alarms by method
"""

import re
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch

from analysis import figures, tables
from analysis.comparison_figures import draw_interval, in_order, look, mean_with_interval
from analysis.figures import handle
from analysis.summarize_comparison import read_runs
from interp.methods.interchange.base import Subspace
from interp.methods.interchange.registry import INTERCHANGES, load_interchange
from interp.runs.config import BadInput, project_path, shown
from interp.runs.files import write_text
from interp.runs.settings import saved_files
from interp.runs.tensors import load_tensors

NAME = r"(?P<family>\w+?)_rank(?P<true_rank>\d+)_cut(?P<cut>\d)_(?P<decoy>\w+?)_(?P<code>\w+)_seed(?P<seed>\d+)"
GROUPS = ["family", "true_rank", "cut", "decoy", "code"]
CELL = ["checkpoint", "variable", "target_layer", "position"]
LEAST = 0.5  # of what exchanging everything gives: below it a variable counts as missed
RATES = {"misses": "missed where it is", "false_alarms": "found where it is not"}


def config_of(results: Path, experiment: str) -> dict[str, Any]:
    """The config of a run in a folder of results, which may itself be the run."""
    return tables.read_config(results) or tables.read_config(results / experiment)


def with_truth(table: pd.DataFrame, results: Path) -> pd.DataFrame:
    """The rows of runs with what is true of their models; raises BadInput: a model has no truth.csv."""
    parts = []
    for (experiment, name), rows in table.groupby(["experiment", "checkpoint"]):
        folder = project_path(config_of(results, str(experiment))["model_path"].format(checkpoint=name))
        truth = tables.read_csv(folder / "truth.csv").rename(columns={"layer": "target_layer"})
        parts.append(rows.astype({"position": int}).merge(truth, on=["variable", "target_layer", "position"]).assign(
            folder=str(folder), model=name, **re.fullmatch(NAME, str(name)).groupdict()))  # type: ignore[union-attr]
    return pd.concat(parts, ignore_index=True)


def scored(table: pd.DataFrame) -> pd.DataFrame:
    """What each cell says: carried where the truth says so (nothing where it says nothing), found, false_alarm."""
    by_method = table.drop_duplicates([*CELL, "method"]).pivot(index=CELL, columns="method", values="iia")
    of_cell = pd.MultiIndex.from_frame(table[CELL])
    full, nothing = (by_method[name].reindex(of_cell).to_numpy() for name in ("full", "none"))
    exceeds = table["exceeds_full"].astype(str) == "True"
    return table.assign(found=table["iia"] / full, above_full=table["iia"] - full,
                        false_alarm=exceeds & (table["iia_low"] > nothing))


def inside(row: Any, results: Path) -> float | None:
    """The share of a saved subspace's write directions, (k, d), in the true one; None if nothing of it was saved."""
    config = config_of(results, row.experiment)
    names = [*tables.swept(config)]
    setting = namedtuple("Setting", names)(*(getattr(row, name) for name in names))
    files = saved_files("interchange", SimpleNamespace(**{"save_models": False, "model_dir": None, **config}), setting)
    if not files or not files[0].exists():
        return None
    found = load_interchange(files[0])[0]
    if not isinstance(found, Subspace) or not found.rank:
        return None
    true = load_tensors("truth", Path(row.folder) / "truth.safetensors", lambda tensors, about: tensors)[0]
    directions = torch.linalg.qr(found.tensors["left"].T).Q  # (d, k)
    return ((true[row.variable].T @ directions).square().sum() / found.rank).item()


def scores(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each method and rank rule."""
    rows = []
    for name in in_order(table["method"]):
        for rule, cells in table[table["method"] == name].groupby("rank_rule"):
            there, absent = cells[cells["carried"].eq(True)], cells[cells["carried"].eq(False)]
            at_cut = cells[cells["target_layer"] == cells["cut"].astype(int)]
            best = at_cut.loc[at_cut.groupby(["checkpoint", "variable"])["iia"].idxmax()]
            best = best.merge(there[["checkpoint", "variable"]].drop_duplicates())
            row = {"method": name, "supervision": INTERCHANGES[name].supervision, "form": INTERCHANGES[name].form,
                   "rank_rule": rule if INTERCHANGES[name].ranked else "", "models": cells["checkpoint"].nunique(),
                   "carried": len(there), "not_carried": len(absent), "found": there["found"].mean()}
            for column, (part, value) in {
                    "misses": (there, there["found"] < LEAST), "false_alarms": (absent, absent["false_alarm"]),
                    "best_is_true": (best, best["carried"].eq(True))}.items():
                row[column], row[f"{column}_low"], row[f"{column}_high"] = mean_with_interval(
                    part.assign(value=value.astype(float), n_pairs=1), "value")  # a cell is counted, not its pairs
            rows.append(row | {"highest_alarm": absent["above_full"].max(), "inside": there["inside"].mean()})
    return pd.DataFrame(rows)


def draw_rates(board: pd.DataFrame, models: int, path: Path) -> None:
    """Misses and false alarms by method, a panel each."""
    figure, axes = figures.grid_of([""], list(RATES.values()), (10, 2.2 + 0.34 * len(board)), sharey=True)
    for axis, column in zip(axes[0], RATES):
        for y, row in enumerate(board.itertuples()):
            draw_interval(axis, y, tuple(getattr(row, f"{column}{end}") for end in ("", "_low", "_high")),
                          **look(row.method))
        axis.set(xlim=(-0.03, 1.03), ylim=(len(board) - 0.5, -0.5), xlabel="share of cells")
    names = board["method"] + board["rank_rule"].map(lambda rule: f", {rule}" if rule else "")
    axes[0][0].set_yticks(range(len(board)), names + " (" + board["supervision"] + ")")
    cells = board[["carried", "not_carried"]].max()
    figures.finish(figure, f"Variables that models were trained to hold: how often does a method miss one, or find one "
                   f"that is not there?\n{models} models; {cells['carried']} cells (variable, layer, position) carry "
                   f"their variable, {cells['not_carried']} do not; 95 % intervals over models", path, 2,
                   [handle("hollow: a control", marker="o", markerfacecolor="white"),
                    handle("in brackets: what it learns from", marker="")])


def main() -> None:
    options = tables.parse(__doc__, tables.RESULTS / "Known/compare", tables.WHERE)
    table, out = read_runs(options.results, options.where), options.out
    if "checkpoint" not in table or not {"full", "none"} <= {*table["method"]}:
        raise BadInput(f"{shown(options.results)}: the runs should sweep known models by checkpoint_list, with the "
                       "methods full and none.")
    known = scored(with_truth(table.dropna(subset="iia"), options.results))
    known["inside"] = [inside(row, options.results) if row.carried is True else None for row in known.itertuples()]
    board = scores(known[~known["method"].isin(["none", "full"])])
    write_text(out / "known.csv", known.to_csv(index=False))
    write_text(out / "scores.csv", board.to_csv(index=False))
    columns = ["method", "supervision", "form", "rank_rule", "found", *RATES, "best_is_true", "highest_alarm", "inside"]
    text = tables.as_markdown(board[columns].dropna(axis=1, how="all"))
    write_text(out / "scores.md", text)
    groups = [scores(rows).assign(group=group, value=value) for group in GROUPS
              for value, rows in known.groupby(group) if known[group].nunique() > 1]
    if groups:
        write_text(out / "groups.csv", pd.concat(groups).to_csv(index=False))
    draw_rates(board, known["checkpoint"].nunique(), out / "rates")
    print(text)


if __name__ == "__main__":
    tables.run("summarize_known", main)
