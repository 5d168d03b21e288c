"""Which method finds what the model uses? The runs of compare_methods.py as figures and a leaderboard.

    python analysis/summarize_comparison.py [--results Results/Comparison] [--out DIR]

Reads RESULTS/*/results.csv. A run that knows which sites carry a variable (its key `carried`) goes into

sites.csv                all settings of all runs, with p_holm: the rank among random draws corrected over a run's sites
leaderboard.csv, .md     a row for each method: interchange accuracy where the variable is carried and where not, and
                         how well it tells the two apart (AUROC); 95 % intervals over models, then pairs. Methods are
                         compared by the same cells (model, data, site and variable); others are left out
EXPERIMENT/methods       interchange accuracy by method, a dot for each model, variable and site
EXPERIMENT/isolate       cause against isolate, where the variable is carried
detection                AUROC by method, of all such runs

and one that does not (language) into EXPERIMENT/VARIABLE_SITE, heat maps of layers and methods, and their tables as
VARIABLE_SITE_iia.csv, _log_odds_mean.csv and _isolate.csv. A run that sweeps checkpoints gives EXPERIMENT/checkpoints
instead. Every figure is a PNG and a PDF.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.comparison_figures import (
    CONTROLS,
    draw_checkpoints,
    draw_detection,
    draw_isolate,
    draw_layers,
    draw_methods,
    fresh,
    in_order,
    mean_with_interval,
    told_of,
)
from analysis.method_figures import RESULTS, check_columns, markdown_table, read_csv, run, tables_below, whole_out
from interp.methods.interchange import method
from interp.methods.table import interchange_methods
from interp.runs.config import BadInput, shown
from interp.runs.files import write_text
from interp.statistics import auroc, clustered_auroc_interval, holm

CELL = ["model", "data", "target_layer", "residual_location", "variable"]
WORDS = ["residual_location", "variable", "method", "carried", "beyond_full"]
NUMBERS = ["model_seed", "target_layer", "iia", "iia_low", "iia_high", "log_odds_mean", "isolate", "disentangle",
           "change", "rank", "selectivity", "pairs"]
NEWER = ["random_iia_mean", "random_iia_max", "model_acc"]  # numbers that a table may lack


# ------------------------------------------------------------------------------- the numbers

def read_runs(results: Path) -> pd.DataFrame:
    """All runs below a folder, a row for each setting with the folder's name as `experiment`.

    Raises:
        BadInput: there is none, or a table cannot be read.
    """
    tables = [read_run(file) for file in tables_below(results, "*")
              if ".old-" not in file.parent.name]  # what --overwrite set aside
    if not tables:
        raise BadInput(f"nothing to draw in {shown(results)}: it has no */results.csv; 'python compare_methods.py "
                       "--config configs/Comparison/Disambiguation.yaml' makes one.")
    return pd.concat(tables, ignore_index=True)


def read_run(file: Path) -> pd.DataFrame:
    """The results.csv of one run, as read_runs gives it; raises BadInput where it is no table of a comparison.

    model, data: what tells models and data from others' of any run: several runs may ask the same, and are no evidence
    of more.
    """
    table = read_csv(file)
    check_columns(file, table, "compare_methods.py", WORDS, [*NUMBERS, *(name for name in NEWER if name in table)])
    unknown = table.loc[~table["method"].isin(interchange_methods()), "method"]
    if len(unknown):
        raise BadInput(f"{shown(file)}: row {unknown.index[0] + 2} is of the method '{unknown.iloc[0]}', which is "
                       "not in interp/methods/interchange.")
    carried = table["carried"].map({True: True, False: False, "True": True, "False": False})
    config = told_of(file.parent).config
    data = next((str(config[key]) for key in ("test_data_path", "data_path") if config.get(key)), file.parent.name)
    models = " ".join(filter(None, [str(config.get("model_path", file.parent.name)), fresh(config)]))
    return table.assign(experiment=file.parent.name, data=data, carried=carried,
                        model=models + " " + table["model_seed"].astype(str))


def is_swept(table: pd.DataFrame) -> pd.Series:
    """Which rows are of a sweep over checkpoints: these are followed over training, and are not on the leaderboard."""
    return table["checkpoint"].notna() if "checkpoint" in table else pd.Series(False, index=table.index)


def shared_cells(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of cells that all methods were run on, by which alone they can be compared; says what is left out.

    Raises:
        BadInput: a method was run twice on a cell, so that nothing says which row counts.
    """
    table = table.dropna(subset="iia")
    table = table.assign(cell=[", ".join(map(str, cell)) for cell in table[CELL].itertuples(index=False)])
    twice = table[table.duplicated(["cell", "method"], keep=False)]
    if len(twice):
        own = twice[(twice["cell"] == twice["cell"].iloc[0]) & (twice["method"] == twice["method"].iloc[0])]
        raise BadInput(f"{own['method'].iloc[0]} was run more than once on {own['cell'].iloc[0]} (in "
                       f"{', '.join(own['experiment'].unique())}); move the runs that should not count away.")
    asked, methods = table.groupby("cell")["method"].nunique(), table["method"].nunique()
    shared = table[table["cell"].isin(asked.index[asked == methods])]
    if len(shared) < len(table):
        counts = table.groupby("method")["cell"].nunique()
        print(f"leaderboard: over the {shared['cell'].nunique()} of {len(asked)} cells that all {methods} methods were "
              f"run on; {', '.join(counts.index[counts == counts.min()])} on {counts.min()}.", file=sys.stderr)
    return shared


def leaderboard(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each method, the best by cause and isolation where a variable is carried first, controls last.

    table: of cells that all methods share.
    """
    rows = []
    for name in in_order(table["method"]):
        own = table[table["method"] == name]
        carried, not_carried = own[own["carried"].eq(True)], own[own["carried"].eq(False)]
        groups = list(own.groupby("model"))
        row = {"method": name, "sees": method(name).SEES, "models": len(groups), "cells": len(own),
               "carried": len(carried), "models_carrying": carried["model"].nunique(), "pairs": own["pairs"].sum()}
        for label, part, columns in (("iia_carried", carried, ["iia"]), ("iia_not_carried", not_carried, ["iia"]),
                                     ("isolate_carried", carried, ["isolate"]),
                                     ("disentangle_carried", carried, ["iia", "isolate"])):
            row[label], row[f"{label}_low"], row[f"{label}_high"] = mean_with_interval(part, *columns)
        row |= {"iia_not_carried_max": not_carried["iia"].max(), "change_carried": carried["change"].mean(),
                "rank_carried": carried["rank"].mean(), "selectivity_carried": carried["selectivity"].mean()}
        split = [[part.loc[part["carried"].eq(truth), "iia"].to_numpy() for _, part in groups]
                 for truth in (True, False)]
        row["auroc"] = auroc(*map(np.concatenate, split))
        row["auroc_low"], row["auroc_high"] = clustered_auroc_interval(split[0], split[1])
        rows.append(row)
    found = pd.DataFrame(rows)
    control = found["method"].isin(CONTROLS) | found["disentangle_carried"].isna()
    found = found.assign(control=control).sort_values(["control", "disentangle_carried"], ascending=[True, False])
    shown = found.loc[~found["control"], "disentangle_carried"].round(2)  # equal ones share a place
    found.insert(0, "place", shown.rank(ascending=False, method="min"))
    return found.drop(columns="control").reset_index(drop=True)


BOARD = ["", "method", "sees", "iia, carried", "isolate, carried", "disentangle", "iia, not carried", "highest",
         "change", "rank", "AUROC"]


def as_cells(board: pd.DataFrame) -> list[list[str]]:
    """The leaderboard as a page has it, below the columns BOARD: a mean with its 95 % interval in one cell."""
    def cell(row, name: str, digits: int = 2) -> str:
        if pd.isna(row[name]):
            return ""
        interval = f" [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]" if f"{name}_low" in row else ""
        return f"{row[name]:.{digits}f}{interval}"

    return [[cell(row, "place", 0), row["method"], row["sees"], *(cell(row, name) for name in (
        "iia_carried", "isolate_carried", "disentangle_carried", "iia_not_carried", "iia_not_carried_max",
        "change_carried")), cell(row, "rank_carried", 0), cell(row, "auroc")] for _, row in board.iterrows()]


def as_markdown(board: pd.DataFrame) -> str:
    return markdown_table([BOARD, *as_cells(board)]) + f"\n{over_what(board)}\n"


def over_what(board: pd.DataFrame) -> str:
    """Over what a leaderboard is: all methods have the same cells."""
    cells, carried, carrying, models, pairs = (int(board.iloc[0][name]) for name in (
        "cells", "carried", "models_carrying", "models", "pairs"))
    return (f"Over the same {cells} cells (a model, site and variable each) for all methods, of {models} "
            f"model{'s' * (models > 1)}; {carried} cells, of {carrying} model{'s' * (carrying > 1)}, carry their "
            f"variable; {pairs} test pairs in all.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS / "Comparison", help="the folder of the runs")
    parser.add_argument("--out", type=Path, help="default: RESULTS/figures")
    options = parser.parse_args()
    results = options.results.absolute()
    out = whole_out(options.out or results / "figures")
    table = read_runs(results)
    if "rank_among_random" in table:  # p values among random draws, corrected over the sites of a run
        write_text(out / "sites.csv", table.assign(p_holm=table.groupby(["experiment", "method"])[
            "rank_among_random"].transform(lambda p: holm(p.to_numpy(float)))).to_csv(index=False))
    swept = is_swept(table)
    for experiment, own in table[swept].groupby("experiment"):
        draw_checkpoints(own, told_of(results / experiment), out / experiment / "checkpoints")
    known = table[table["carried"].notna() & ~swept]
    for experiment, own in known.groupby("experiment"):
        told = told_of(results / experiment)
        draw_methods(own, told, out / experiment / "methods")
        if own["carried"].any():
            draw_isolate(own, told, out / experiment / "isolate")
    shared = shared_cells(known)
    if shared["carried"].any():
        board = leaderboard(shared)
        text = as_markdown(board)
        write_text(out / "leaderboard.csv", board.to_csv(index=False))
        write_text(out / "leaderboard.md", text)
        if board["auroc"].notna().any():
            draw_detection(board, out / "detection")
        print(text)
    else:
        print(f"no leaderboard: {'no cell that all methods were run on' if known['carried'].any() else 'no run'} is "
              "known to carry its variable (key carried).", file=sys.stderr)
    unknown = table[table["carried"].isna() & ~swept]
    for (experiment, variable, site), own in unknown.groupby(["experiment", "variable", "residual_location"]):
        draw_layers(own, told_of(results / experiment), out / experiment / f"{variable}_{site}".replace(" ", "_"))


if __name__ == "__main__":
    run("summarize_comparison", main)
