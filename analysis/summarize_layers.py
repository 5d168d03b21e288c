"""Every method at every layer of a language model: where can a variable be read, and where is it used?

    python analysis/summarize_layers.py --model smollm2 [--results Results/SV_Agreement] [--where KEY=VALUE] [--out DIR]

Reads RESULTS/METHOD/MODEL/results.csv of the methods and RESULTS/MODEL/results.csv of circuit probing, whichever exist,
and writes layers.csv and layers.md, a row for each layer and site, a column for each measure and evaluation set, and
layers.png and .pdf. Circuits stand at the site that their sublayer writes to. Settings of a site (seeds) are averaged.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from analysis import figures
from analysis.language_figures import GEN, IID
from analysis.tables import COMPONENTS, RESULTS, WHERE, check_columns, exists, markdown_table, parse, read_method, run
from interp.plotting import COLORS
from interp.runs.config import BadInput, shown
from interp.runs.files import write_text

SETS = {"iid": "IID", "gen": "generalization"}  # in tables, which have little room
# what evaluation sets are called in columns
NAMES = {"iid": {"set": "iid", "test": "test", "prefix": ""}, "gen": {"set": "gen", "test": "gen", "prefix": "gen_"}}
# what is shown: its method, whether it is read or used, its colour, and its column, or two, less the second
MEASURES = {
    "linear probe": ("linear_probing", "read", "linear probe", ["{test}_acc"]),
    "MLP probe": ("nonlinear_probing", "read", "MLP probe", ["{test}_acc"]),
    "circuit, nearest neighbors": ("circuit_probing", "read", "circuit", ["knn_{test}_acc"]),
    "LEACE: accuracy lost": ("amnesic", "used", "LEACE", ["{prefix}vanilla_acc", "{prefix}heldout_acc"]),
    "as many random dimensions erased: accuracy lost": ("amnesic", "used", "random", [
        "{prefix}vanilla_acc", "{prefix}random_heldout_acc_mean"]),
    "DAS: interchange accuracy": ("DAS", "used", "DAS", ["{prefix}interchange_intervention_acc"]),
    "everything exchanged: interchange accuracy": ("DAS", "used", "whole", ["{prefix}full_interchange_acc"]),
    "circuit ablated: accuracy lost": ("circuit_probing", "used", "circuit", [
        "vanilla_acc_{set}", "ablated_acc_{set}"])}


def read_tables(results: Path, model: str, where: dict[str, str]) -> dict[str, pd.DataFrame]:
    """The results of the methods on a model, by method; prints which are missing, raises BadInput if all are."""
    found = {}
    for method in dict.fromkeys(method for method, *_ in MEASURES.values()):
        file = (results / model if method == "circuit_probing" else results / method / model) / "results.csv"
        if exists(file):
            wanted = [column.format(**NAMES[name]) for owner, *_, columns in MEASURES.values() if owner == method
                      for column in columns for name in SETS]
            found[method] = check_columns(file, read_method(file, where), [], ["target_layer", *wanted])
    if not found:
        raise BadInput(f"nothing to draw of {model} in {shown(results)}.")
    return found


def measured(table: pd.DataFrame, measure: str, name: str = "iid") -> pd.Series:
    """The values of a measure in its method's table, on an evaluation set."""
    first, *less = (column.format(**NAMES[name]) for column in MEASURES[measure][-1])
    return table[first] - sum(table[column] for column in less)


def collect(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A row for each layer, site, measure and evaluation set, with its mean `value` and the number n of settings."""
    parts = []
    for label, (method, kind, *_) in MEASURES.items():
        for name in SETS if method in tables else ():
            table = tables[method]
            parts.append(pd.DataFrame({
                "layer": table["target_layer"], "component": table["component"], "measure": label, "kind": kind,
                "set": name, "value": measured(table, label, name)}))
    keys = ["layer", "component", "measure", "kind", "set"]
    return pd.concat(parts).groupby(keys, sort=False, as_index=False).agg(value=("value", "mean"), n=("value", "size"))


def as_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each layer and site, a column for each measure and set, in the order of MEASURES."""
    table = rows.pivot(index=["layer", "component"], columns=["measure", "set"], values="value")
    order = [(label, name) for label in MEASURES for name in SETS if (label, name) in table]
    return table[order].rename(index=COMPONENTS, level="component")


def as_cells(table: pd.DataFrame) -> list[list[str]]:
    """The table as text, its header first, with IID / generalization in one cell, so that the page has room."""
    measures = list(dict.fromkeys(label for label, _ in table.columns))
    text = (table.round(2) + 0.0).map(lambda value: "" if pd.isna(value) else f"{value:.2f}")  # + 0.0: no -0.00
    cells = [text[label].agg(" / ".join, axis=1).replace(" / ", "") for label in measures]
    places = [f"{layer}, {component}" for layer, component in table.index]
    return [["layer, after", *measures], *map(list, zip(places, *cells))]


def draw(rows: pd.DataFrame, model: str, path: Path) -> None:
    """Rows: read, used. Columns: attention, MLP. A line for each measure and evaluation set."""
    looks: dict[str, dict[str, Any]] = {}
    for marker, (label, (_, _, role, _)) in zip("os^ovD*P", MEASURES.items()):
        look = {"color": COLORS[role], "marker": marker, "markersize": 5, "linewidth": 1.5}
        looks |= {f"{label} iid": look | {"label": label, "linestyle": "-"},
                  f"{label} gen": look | {"label": None, "linestyle": "--", "markerfacecolor": "white"}}
    lines = rows.assign(line=rows["measure"] + " " + rows["set"]).rename(
        columns={"kind": "row", "component": "column", "layer": "x"})
    figure, panels = figures.draw_lines(lines, {"read": "accuracy of reading it", "used": "effect of an intervention"},
                                        figures.PLACE_NAMES, looks, "layer", (12, 7.5), sharey=True)
    for axis in panels.values():
        axis.set_ylim(min(-0.08, rows["value"].min() - 0.05), 1.03)
    figures.finish(figure, f"{model}: is the variable read (above), is it used (below)?\nmean of "
                   f"{figures.span(rows['n'])} settings a point; solid: {IID}, dashed: {GEN}", path, fontsize="small")


def main() -> None:
    options = parse(__doc__, RESULTS / "SV_Agreement", WHERE | {
        "--model": {"required": True, "help": "the folder of each method's results, such as smollm2"}},
        out="figures/{model}")
    rows, out = collect(read_tables(options.results, options.model, options.where)), options.out
    table = as_table(rows)
    text = markdown_table(as_cells(table))
    write_text(out / "layers.md", text)
    table.columns = [f"{label} ({SETS[name]})" for label, name in table.columns]
    write_text(out / "layers.csv", table.to_csv())
    print(text)
    draw(rows, options.model, out / "layers")


if __name__ == "__main__":
    run("summarize_layers", main)
