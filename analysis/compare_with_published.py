"""Our values beside the published ones, cell by cell, as a Markdown table.

    python analysis/compare_with_published.py --published results.csv --experiment Disambiguation --out FILE.md

The published file has the columns experiment, task, method, variable, component, metric, value and, where values are of
one checkpoint, checkpoint. Ours are read from RESULTS/EXPERIMENT[/TASK]/METHOD/VARIABLE/results.csv, as the shipped
configs write them. --where lr=0.001 takes only those rows of a sweep.
"""

from pathlib import Path

import pandas as pd

from analysis.tables import RESULTS, WHERE, Options, check_columns, exists, markdown_table, parse, read_csv, run, select
from interp.methods.table import PLACES
from interp.runs.config import BadInput
from interp.runs.files import write_text
from interp.statistics import prediction_interval

COLUMNS = ["experiment", "task", "method", "variable", "component", "checkpoint", "metric"]
SHARES = ("acc", "acc_test", "acc_same", "acc_different", "label", "success", "diff")  # values between 0 and 1
TOLERANCE = 0.05  # shares that differ by more are marked
ROUNDING = 0.0005
PUBLISHED: Options = {"--published": {"type": Path, "required": True, "help": "the CSV of published values"}}
FORMATS = {"ours": "{:.6g}", "published": "{:.6g}", "difference": "{:+.4g}", "float64": "{:.6g}", "low": "{:.4g}",
           "high": "{:.4g}"}
ABOUT = """Made by `analysis/compare_with_published.py`. Published: arXiv 2311.04354. Ours are means over models; low
and high is where 95 % of models would lie (Student's t). Shares that differ by more than the tolerance are marked **.
Metrics are the columns of the method's results.csv, which its page in docs/ explains.
"""


def read_published(file: Path) -> pd.DataFrame:
    """The published values, with a column `run`: the run directory of ours, relative to Results. Raises BadInput."""
    table = read_csv(file, keep_default_na=False, dtype=str)
    table["checkpoint"] = table.get("checkpoint", "")
    check_columns(file, table, COLUMNS, ["value"])
    folders = table["experiment"] + "/" + (table["task"] + "/").where(table["task"] != "", "")
    runs = (folders + table["method"] + "/" + table["variable"]).where(
        table["method"] != "training", "Train_Algorithmic_Models/" + table["experiment"])
    return table.assign(run=runs, value=pd.to_numeric(table["value"]))


def put_beside(cells: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The published cells of a run that its results.csv has too, with ours, the mean over models, and the difference.

    Of LEACE `ours` is fitted in float32, as published, and `float64` otherwise. low, high: where 95 % of models would
    lie. Raises BadInput: the run sweeps more than models, places and checkpoints.
    """
    as_published = table.get("precision", pd.Series("float32", table.index)) == "float32"
    place = next((table[name] for name in PLACES if name in table), pd.Series("", table.index))
    found = []
    for cell in cells.to_dict("records"):
        rows = table[place.isin(["", cell["component"]])]
        if cell["checkpoint"]:  # a run that does not say its checkpoint has no value of one
            rows = select(rows, {"checkpoint": cell["checkpoint"]}) if "checkpoint" in rows else rows[:0]
        if cell["metric"] not in rows or not rows[cell["metric"]].notna().any():
            continue
        if rows.duplicated([name for name in ("model_seed", "precision") if name in rows]).any():
            raise BadInput(f"{cell['run']} has several rows for {cell['component']} {cell['checkpoint']}; take one "
                           "value of what it sweeps with --where KEY=VALUE.")
        values, others = (rows.loc[kind, cell["metric"]].dropna() for kind in (as_published, ~as_published))
        ours, (low, high) = values.mean(), prediction_interval(values)
        # a share of 1.0 in every model leaves no width, and a published 0.9998 is no contradiction
        inside = "yes" if low - ROUNDING <= cell["value"] <= high + ROUNDING else "" if pd.isna(low) else "no"
        found.append(cell | {"ours": ours, "published": cell["value"], "difference": round(ours - cell["value"], 12),
                             "float64": others.mean(), "low": low, "high": high, "inside": inside})
    return pd.DataFrame(found)


def is_apart(cells: pd.DataFrame, tolerance: float = TOLERANCE) -> pd.Series:
    """Which accuracies and shares differ by more than the tolerance."""
    return (cells["difference"].abs() > tolerance) & cells["metric"].map(lambda metric: metric.endswith(SHARES))


def section(cells: pd.DataFrame, tolerance: float) -> str:
    """The cells of a method and task in Markdown, a row for each variable, component, checkpoint and metric."""
    names = [name for name in [*COLUMNS[3:], *FORMATS, "inside"] if cells[name].replace("", None).notna().any()]
    text = cells.assign(**{name: cells[name].map(words.format) for name, words in FORMATS.items()})
    text["difference"] += is_apart(cells, tolerance).map({True: " **", False: ""})
    float64 = {"ours": "ours, float32", "float64": "ours, float64"} if "float64" in names else {}
    return markdown_table([[float64.get(name, name) for name in names], *text[names].to_numpy().tolist()])


def main() -> None:
    options = parse(__doc__, RESULTS, PUBLISHED | WHERE | {
        "--experiment": {"required": True}, "--task": {"default": "", "help": "only this task of the experiment"},
        "--out": {"type": Path, "required": True, "help": "the Markdown file to write"},
        "--tolerance": {"type": float, "default": TOLERANCE, "help": "shares that differ by more are marked"}})
    published = select(read_published(options.published), {"experiment": options.experiment} | (
        {"task": options.task} if options.task else {}))
    found = [pd.DataFrame()]
    for name, cells in published.groupby("run", sort=False):
        file = options.results / str(name) / "results.csv"
        if exists(file):
            table = read_csv(file)
            check_columns(file, table, [], [metric for metric in cells["metric"].unique() if metric in table])
            found.append(put_beside(cells, select(table, options.where)))
    merged = pd.concat(found)
    if merged.empty:
        raise BadInput(f"there are no published values of {options.experiment} {options.task}, or no results of ours.")
    body = "".join(f"\n## {' '.join(filter(None, key))}\n\n{section(cells, options.tolerance)}"
                   for key, cells in merged.groupby(["task", "method"], sort=False))
    title = " ".join(filter(None, [options.experiment, options.task, *map("=".join, options.where.items())]))
    write_text(options.out, f"# {title}: our values beside the published ones\n\n{ABOUT}{body}")
    marked = is_apart(merged, options.tolerance).sum()
    print(f"{options.out}: {len(merged)} of {len(published)} values, {marked} marked.")


if __name__ == "__main__":
    run("compare_with_published", main)
