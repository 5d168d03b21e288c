"""Which method finds what the model uses? The runs of compare_methods.py as figures and a leaderboard.

    python analysis/summarize_comparison.py [--results Results/Comparison] [--where KEY=VALUE ...] [--out DIR]

Reads every results.csv below RESULTS. A run that knows which sites carry a variable (its key `ground_truth`) goes into

leaderboard.csv, .md, detection   how methods tell cells (a model, site and variable) that carry their variable from
                                  others; they are compared by the cells that all of them were run on, of several rank
                                  rules by each
EXPERIMENT/methods, /isolate      interchange accuracy by method, a dot a cell; cause against isolate

and one that does not (language) into EXPERIMENT/VARIABLE_SITE, heat maps of layers and methods, and their tables; one
that sweeps checkpoints into EXPERIMENT/checkpoints. Figures are of a run's first rank rule. sites.csv has all settings,
with p_holm, empirical_p corrected over sites, where the random draws are enough for it to become significant.
causalgym.csv, .md have the measure of CausalGym (Arora et al. 2024) of runs that ask for several positions.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import comparison_figures, tables
from analysis.comparison_figures import CONTROLS, in_order, mean_with_interval
from interp.methods.interchange.registry import INTERCHANGES
from interp.models.positions import LAST
from interp.runs.config import BadInput, shown
from interp.runs.files import write_text
from interp.statistics import auroc, clustered_auroc_interval, holm

LEVEL = 0.05
CELL = ["model", "data", "target_layer", "residual_location", "variable", "position"]
WORDS = ["residual_location", "variable", "method", "ground_truth", "exceeds_full"]
NUMBERS = ["model_seed", "target_layer", "iia", "iia_low", "iia_high", "log_odds_mean", "isolate", "relative_norm",
           "rank", "n_pairs", "model_acc", "empirical_p", "random_iia_mean", "random_iia_max"]
BOARD = {  # the leaderboard's columns as a page has them, and how many decimals
    "place": ("", 0), "method": ("method", 0), "supervision": ("supervision", 0), "form": ("form", 0),
    "rank_rule": ("rank rule", 0), "iia_carried": ("iia, carried", 2),
    "isolate_carried": ("isolate, carried", 2), "disentangle_carried": ("disentangle", 2),
    "iia_not_carried": ("iia, not carried", 2), "iia_not_carried_max": ("highest", 2),
    "relative_norm_carried": ("relative norm", 2), "rank_carried": ("rank", 0), "auroc": ("AUROC", 2),
    "control_iia_carried": ("iia, permuted values", 2), "iia_token": ("iia, token", 2),
    "iia_groups": ("iia, random groups", 2)}


def checked(file: Path, table: pd.DataFrame) -> pd.DataFrame:
    """A run's table as it is; raises BadInput where it is not of compare_methods.py."""
    tables.check_columns(file, table, WORDS, NUMBERS)
    if unknown := set(table["method"]) - set(INTERCHANGES):
        raise BadInput(f"{shown(file)}: there is no method '{min(unknown)}'.")
    return table


def read_runs(results: Path, where: dict[str, str] | None = None) -> pd.DataFrame:
    """All runs of compare_methods.py below a folder, as `describe` gives them; raises BadInput: none, or damaged."""
    parts = []
    for folder in tables.find_runs(results):
        file = folder / "results.csv"
        if file.exists() and "method" in (table := tables.read_csv(file)):
            table = tables.select(checked(file, table), where or {})
            name, config = tables.name_of(results, folder), tables.read_config(folder)
            parts += [comparison_figures.describe(table, name, config)] * (len(table) > 0)
    if not parts:
        raise BadInput(f"{shown(results)} has no */results.csv with such rows, as compare_methods.py writes it.")
    return pd.concat(parts, ignore_index=True)


def once(table: pd.DataFrame) -> pd.DataFrame:
    """A table as it is; raises BadInput if a method was run on a cell twice."""
    twice = table[table.duplicated([*CELL, "method", "rank_rule"], keep=False)].sort_values([*CELL, "method"])
    if len(twice):
        what, runs = ", ".join(map(str, twice[["method", *CELL]].iloc[0])), ", ".join(twice["experiment"].unique())
        raise BadInput(f"{what}: it was run more than once (in {runs}); move the runs that should not count away.")
    return table


def shared_cells(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of cells that all methods were run on; raises BadInput if one was run twice."""
    table = once(table.dropna(subset="iia"))
    methods, run_on = table["method"].nunique(), table.groupby(CELL)["method"].transform("nunique")
    shared = table[run_on == methods]
    if len(shared) < len(table):
        print(f"leaderboard: over {len(shared) // methods} cells, which all methods were run on.", file=sys.stderr)
    return shared


def leaderboard(table: pd.DataFrame, negatives: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row for each method, by cause and isolation where a variable is carried; controls, without place, come last.

    negatives: the rows of hard negatives, asked at the same sites as the variables beside which they stand.
    """
    rows = []
    carrying = table.loc[table["ground_truth"].astype(bool), [*CELL, "method"]]
    hard = pd.DataFrame(columns=["method", "kind", "iia"]) if negatives is None else negatives.assign(
        kind=negatives["variable"].str.split("@").str[1], variable=negatives["variable"].str.split("@").str[0]).merge(
        carrying, on=[*CELL, "method"])
    for name in in_order(table["method"]):
        cells, truth = table[table["method"] == name], table.loc[table["method"] == name, "ground_truth"].astype(bool)
        carried, others, models = cells[truth], cells[~truth], sorted(cells["model"].unique())
        row = {"method": name, "supervision": INTERCHANGES[name].supervision, "form": INTERCHANGES[name].form,
               "rank_rule": cells["rank_rule"].iloc[0] if INTERCHANGES[name].ranked else "", "models": len(models),
               "cells": len(cells), "carried": len(carried), "models_carrying": carried["model"].nunique(),
               "pairs": cells["n_pairs"].sum(), "iia_not_carried_max": others["iia"].max()}
        for label, part, columns in (("iia_carried", carried, ["iia"]), ("iia_not_carried", others, ["iia"]),
                                     ("isolate_carried", carried, ["isolate"]),
                                     ("disentangle_carried", carried, ["iia", "isolate"])):
            row[label], row[f"{label}_low"], row[f"{label}_high"] = mean_with_interval(part, *columns)
        row |= {f"{column}_carried": carried[column].mean() for column in (
            "relative_norm", "rank", "mahalanobis", "control_iia", "control_isolate") if column in carried}
        row |= {f"iia_{kind}": hard.loc[(hard["method"] == name) & (hard["kind"] == kind), "iia"].mean()
                for kind in ("token", "groups")}
        high, low = ([part.loc[part["model"] == model, "iia"].to_numpy() for model in models]
                     for part in (carried, others))
        row["auroc"] = auroc(np.concatenate(high), np.concatenate(low))
        row["auroc_low"], row["auroc_high"] = clustered_auroc_interval(high, low)
        rows.append(row)
    board = pd.DataFrame(rows)
    ranked = ~board["method"].isin(CONTROLS) & board["disentangle_carried"].notna()
    places = board["disentangle_carried"].where(ranked).round(2).rank(ascending=False, method="min")  # equal ones share
    board.insert(0, "place", places)
    order = ["ranked", "disentangle_carried"]
    return board.assign(ranked=ranked).sort_values(order, ascending=False).drop(columns="ranked").reset_index(drop=True)


def causalgym(table: pd.DataFrame) -> pd.DataFrame:
    """The measure of CausalGym: a row for each model and method, a column for each task, their mean and their number.

    A task is a run that asks for several positions. Its value is the highest log odds over positions, in the mean over
    the layers that all its methods were run on, for variables that the answer depends on alone, as exceeds_full says.
    """
    several = table.groupby("experiment")["position"].transform("nunique") > 1
    boards = {}
    for model, of_model in once(table[several & table["exceeds_full"].notna()]).groupby("model_name"):
        tasks = {}
        for name, of_run in of_model.groupby("experiment"):
            cells = list(of_run.groupby(["variable", "residual_location"]))
            for cell, rows in cells:
                highest = rows.pivot_table("log_odds_mean", ["model", "target_layer"], "method", "max")
                task = ", ".join([name.partition("/")[2] or name, *(cell if len(cells) > 1 else ())])
                tasks[task] = highest.dropna().mean()
        boards[model] = pd.DataFrame(tasks).loc[in_order(of_model["method"])]
    board = pd.concat(boards, names=["model", "method"]) if boards else pd.DataFrame()
    return board.assign(mean=board.mean(axis=1), n_tasks=board.count(axis=1))


def by_rule(table: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each rank rule, with those of methods without ranks."""
    ranked = table["method"].map(lambda name: INTERCHANGES[name].ranked)
    rules = table.loc[ranked, "rank_rule"].unique()
    return [table[~ranked | (table["rank_rule"] == rule)] for rule in rules] if len(rules) else [table]


def as_cells(board: pd.DataFrame) -> list[list[str]]:
    """The leaderboard as a page has it, the header first: a mean with its 95 % interval in one cell."""
    def text(row: pd.Series, column: str, digits: int) -> str:
        if isinstance(row[column], str) or pd.isna(row[column]):
            return row[column] if isinstance(row[column], str) else ""
        ends = f" [{row[f'{column}_low']:.2f}, {row[f'{column}_high']:.2f}]" if f"{column}_low" in row else ""
        return f"{row[column]:.{digits}f}{ends}"

    shown = {column: look for column, look in BOARD.items() if column in board and not board[column].isna().all()}
    return [[name for name, _ in shown.values()], *([
        text(row, column, digits) for column, (_, digits) in shown.items()] for _, row in board.iterrows())]


def main() -> None:
    options = tables.parse(__doc__, tables.RESULTS / "Comparison", tables.WHERE)
    table, out = read_runs(options.results, options.where), options.out
    groups = table.groupby(["experiment", "method", "rank_rule"])["empirical_p"]
    enough = groups.transform("count") / (1 + table["draws"]) <= LEVEL
    p_holm = groups.transform(lambda p: holm(p.to_numpy(float))).where(enough)
    write_text(out / "sites.csv", table.assign(p_holm=p_holm).dropna(axis=1, how="all").to_csv(index=False))
    first = table["rank_rule"] == table.groupby("experiment")["rank_rule"].transform("first")
    followed = table["checkpoint"].notna() if "checkpoint" in table else pd.Series(False, table.index)  # over training
    for name, rows in table[first & followed].groupby("experiment"):
        comparison_figures.draw_checkpoints(rows, out / name / "checkpoints")
    known = table["ground_truth"].notna() & ~followed
    for name, rows in table[first & known].groupby("experiment"):
        comparison_figures.draw_methods(rows, out / name / "methods")
        if rows["ground_truth"].any():
            comparison_figures.draw_isolate(rows, out / name / "isolate")
    negatives = table[table["variable"].str.contains("@")]
    rules = [shared_cells(part) for part in by_rule(table[known])] if known.any() else []
    if any(part["ground_truth"].any() for part in rules):
        board = pd.concat([leaderboard(part, negatives) for part in rules], ignore_index=True)
        size = "{cells} cells, {carried} of which carry their variable, of {models} models; {pairs} pairs in all.\n"
        text = f"{tables.markdown_table(as_cells(board))}\nOver the same {size.format(**board.iloc[0])}"
        write_text(out / "leaderboard.csv", board.to_csv(index=False))
        write_text(out / "leaderboard.md", text)
        comparison_figures.draw_detection(board.drop_duplicates("method"), out / "detection")
        print(text)
    else:
        print("no leaderboard: no cell that all methods were run on is known to carry its variable (key ground_truth).",
              file=sys.stderr)
    if len(tasks := causalgym(table[first & ~followed]).reset_index()):
        text = f"{tables.as_markdown(tasks)}\nLog odds (nats): the highest over positions, in the mean over layers.\n"
        write_text(out / "causalgym.csv", tasks.to_csv(index=False))
        write_text(out / "causalgym.md", text)
        print(text)
    unknown = table[first & table["ground_truth"].isna() & ~followed]
    for (name, *cell, position), rows in unknown.groupby(["experiment", "variable", "residual_location", "position"]):
        file = "_".join([*cell, position] if position != LAST else cell).replace(" ", "_")
        comparison_figures.draw_layers(rows, out / name / file)


if __name__ == "__main__":
    tables.run("summarize_comparison", main)
