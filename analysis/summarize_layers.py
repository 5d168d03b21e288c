"""Every method at every layer of a language model: where can a variable be read, and where is it used?

    python analysis/summarize_layers.py --model smollm2 [--results Results/SV_Agreement] [--out DIR]

Reads RESULTS/METHOD/MODEL/results.csv of the methods and RESULTS/MODEL/results.csv of circuit probing, whichever exist,
and writes

layers.csv, layers.md   a row for each layer and site, a column for each measure and evaluation set (IID and gen)
layers.png, .pdf        the same over layers: read above, used below; IID solid, generalization dashed

Circuits stand at the site that their sublayer writes: attention's after attention, the MLP's after the MLP. Settings of
the same site (seeds) are averaged.
"""

import argparse
from pathlib import Path

import pandas as pd

from analysis.language_figures import GEN, IID
from analysis.method_figures import (
    COMPONENTS,
    PLACE_NAMES,
    RESULTS,
    ROLES,
    markdown_table,
    read_results_table,
    run,
    whole_out,
)
from interp.methods.table import COMPONENT_OF, METHODS
from interp.plotting import COLORS, plt, save_figure
from interp.runs.config import BadInput, shown
from interp.runs.files import write_text

SETS = {"iid": "IID", "gen": "generalization"}  # in tables, which have little room
# what evaluation sets are called in columns
NAMES = {"iid": {"set": "iid", "test": "test", "prefix": ""}, "gen": {"set": "gen", "test": "gen", "prefix": "gen_"}}
# (method, what is shown, whether it is read or used): the column of its table, or two, less the second
MEASURES = {
    ("linear_probing", "linear probe", "read"): ["{test}_acc"],
    ("nonlinear_probing", "MLP probe", "read"): ["{test}_acc"],
    ("circuit_probing", "circuit, nearest neighbors", "read"): ["knn_{test}_acc"],
    ("amnesic", "LEACE: accuracy lost", "used"): ["{prefix}vanilla_acc", "{prefix}heldout_acc"],
    ("amnesic", "as many random dimensions erased: accuracy lost", "used"): [
        "{prefix}vanilla_acc", "{prefix}random_heldout_acc_mean"],
    ("DAS", "DAS: interchange accuracy", "used"): ["{prefix}interchange_intervention_acc"],
    ("DAS", "everything exchanged: interchange accuracy", "used"): ["{prefix}full_interchange_acc"],
    ("circuit_probing", "circuit ablated: accuracy lost", "used"): ["vanilla_acc_{set}", "ablated_acc_{set}"],
}


def collect(results: Path, model: str) -> pd.DataFrame:
    """A row for each layer, site, measure and evaluation set: layer, component, measure, kind, set, value."""
    parts, absent = [], dict[str, None]()  # the files that are not there, once each
    for (method, label, kind), columns in MEASURES.items():
        folder = results / model if method == "circuit_probing" else results / method / model
        file = folder / "results.csv"
        if not file.exists():
            absent[shown(file)] = None
            continue
        table = read_results_table(file)
        for name in SETS:
            own = [column.format(**NAMES[name]) for column in columns]
            if missing := [column for column in own if column not in table]:
                raise BadInput(f"{shown(file)} has no column '{missing[0]}': it is no table of "
                               f"{METHODS[method].script} on sentences, or its run had no gen_path, or sentences in "
                               "groups, which this figure does not draw.")
            values = table[own[0]] - sum(table[column] for column in own[1:])
            parts.append(pd.DataFrame({"layer": table["target_layer"], "measure": label, "kind": kind, "set": name,
                                       "component": table[METHODS[method].place].map(COMPONENT_OF), "value": values}))
    for name in absent:
        print(f"missing: {name}")
    if not parts:
        raise BadInput(f"nothing to draw of {model} in {shown(results)}.")
    keys = ["layer", "component", "measure", "kind", "set"]
    return pd.concat(parts).groupby(keys, sort=False, as_index=False).agg(value=("value", "mean"), n=("value", "size"))


def as_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each layer and site, a column for each measure and set, in the order of MEASURES."""
    table = rows.pivot(index=["layer", "component"], columns=["measure", "set"], values="value")
    order = [(label, name) for _, label, _ in MEASURES for name in SETS if (label, name) in table]
    return table[order].rename(index=COMPONENTS, level="component")


def as_cells(table: pd.DataFrame) -> list[list[str]]:
    """The table as text, its header first, with IID / generalization in one cell, so that the page has room."""
    measures = list(dict.fromkeys(label for label, _ in table.columns))
    rows = [["layer, after", *measures]]
    for (layer, component), row in table.iterrows():
        cells = [" / ".join("" if pd.isna(row[label, name]) else f"{round(row[label, name], 2) + 0.0:.2f}"
                            for name in SETS) for label in measures]  # + 0.0: no -0.00
        rows.append([f"{layer}, {component}", *("" if cell == " / " else cell for cell in cells)])
    return rows


def draw(rows: pd.DataFrame, model: str, path: Path) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(12, 7.5), sharex=True, sharey=True, layout="constrained")
    looks = {label: (COLORS[role_of(method, label)], marker)
             for (method, label, _), marker in zip(MEASURES, "os^ovD*P")}
    for line, (kind, ylabel) in zip(axes, (("read", "accuracy of reading it"), ("used", "effect of an intervention"))):
        for axis, component in zip(line, COMPONENTS):
            own = rows[(rows["kind"] == kind) & (rows["component"] == component)]
            for (label, name), values in own.groupby(["measure", "set"], sort=False):
                color, marker = looks[label]
                axis.plot(values["layer"], values["value"], "-" if name == "iid" else "--", marker=marker, markersize=5,
                          color=color, markerfacecolor=color if name == "iid" else "white",
                          label=label if name == "iid" else None)
            axis.set(ylim=(min(-0.08, rows["value"].min() - 0.05), 1.03), ylabel=ylabel if axis is line[0] else "")
    for axis, component in zip(axes[0], COMPONENTS):
        axis.set_title(PLACE_NAMES[component])
    for axis in axes[1]:
        axis.set_xlabel("layer")
        axis.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    entries = {label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3, fontsize="small")
    settings = "one setting" if rows["n"].max() == 1 else f"mean of up to {rows['n'].max()} settings"
    figure.suptitle(f"{model}: is the variable read (above), is it used (below)? ({settings} a point)\n"
                    f"solid: {IID}, dashed: {GEN}", parse_math=False)
    save_figure(figure, path)


def role_of(method: str, label: str) -> str:
    """A measure's key of COLORS."""
    return {"as": "random", "everything": "whole"}.get(label.split()[0], ROLES[method])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="the folder of each method's results, such as smollm2")
    parser.add_argument("--results", type=Path, default=RESULTS / "SV_Agreement")
    parser.add_argument("--out", type=Path, help="default: RESULTS/figures/MODEL")
    options = parser.parse_args()
    results = options.results.absolute()
    out = whole_out(options.out or results / "figures" / options.model)
    rows = collect(results, options.model)
    table = as_table(rows)
    flat = table.copy()
    flat.columns = [f"{label} ({SETS[name]})" for label, name in table.columns]
    write_text(out / "layers.csv", flat.to_csv())
    text = markdown_table(as_cells(table))
    write_text(out / "layers.md", text)
    print(text)
    draw(rows, options.model, out / "layers")


if __name__ == "__main__":
    run("summarize_layers", main)
