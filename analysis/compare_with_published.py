"""Our figures beside the published ones, cell by cell, as a Markdown table.

    python analysis/compare_with_published.py --published results.csv --experiment Disambiguation --out FILE.md

The published file has the columns experiment, task, method, variable, component, metric, value. Ours are read from
RESULTS/EXPERIMENT[/TASK]/METHOD/VARIABLE/results.csv, as the shipped configs write them; with several seeds, their
mean. Differences of more than --tolerance are marked. Where nothing is published of a method in an experiment or
task, its usual figures stand alone. --where checkpoint=20000 takes only those rows of a sweep.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from analysis.method_figures import places_of, read_csv, run, whole_out
from interp.runs.config import PROJECT_ROOT, BadInput, shown
from interp.runs.files import write_text

COLUMNS = ["experiment", "task", "method", "variable", "component", "metric", "value"]


def unpublished_cells(results: Path, experiment: str, task: str, published: pd.DataFrame) -> pd.DataFrame:
    """Cells for the results of an experiment of which nothing is published, with the metrics that its methods have."""
    cells = []
    for method, metrics in published.groupby("method", sort=False)["metric"].unique().items():
        for file in sorted((results / experiment / task / method).glob("*/results.csv")):
            table = read_csv(file)
            cells += [[experiment, task, method, file.parent.name, component, metric, float("nan")]
                      for component in places_of(table).unique() for metric in metrics if metric in table]
    return pd.DataFrame(cells, columns=COLUMNS)


def our_figures(results: Path, published: pd.DataFrame, where: dict[str, str]) -> pd.DataFrame:
    """The published cells that we have figures for: the columns of `published`, with our value."""
    found = []
    for keys, cells in published.groupby(["experiment", "task", "method", "variable"], sort=False):
        experiment, task, method, variable = keys
        if method == "training":
            file = results / "Train_Algorithmic_Models" / experiment / "results.csv"
        else:
            file = results / experiment / task / method / variable / "results.csv"
        if not file.exists():
            print(f"missing: {shown(file)}", file=sys.stderr)
            continue
        table = read_csv(file)
        for key, value in where.items():
            table = table[table[key].astype(str) == value] if key in table else table
        for cell in cells.to_dict("records"):
            rows = table[places_of(table).isin(["", cell["component"]])]
            if cell["metric"] in rows and rows[cell["metric"]].notna().any():
                found.append(cell | {"value": rows[cell["metric"]].mean()})
    return pd.DataFrame(found, columns=COLUMNS)


def markdown(merged: pd.DataFrame, tolerance: float) -> str:
    """A section for each method and task, a row for each variable, component and metric."""
    lines = []
    for (task, method), cells in merged.groupby(["task", "method"], sort=False):
        lines += ["", f"## {' '.join(filter(None, [task, method]))}", "",
                  "| variable | component | metric | ours | published | difference |", "|---|---|---|---|---|---|"]
        for _, cell in cells.iterrows():
            difference = cell["ours"] - cell["published"]
            mark = " **" if abs(difference) > tolerance and cell["metric"].endswith(SHARES) else ""
            beside = "" if pd.isna(difference) else f"{cell['published']:.6g} | {difference:+.4g}{mark}"
            lines.append(f"| {cell['variable']} | {cell['component']} | {cell['metric']} | {cell['ours']:.6g} | "
                         f"{beside or ' | '} |")
    return "\n".join(lines) + "\n"


SHARES = ("acc", "acc_test", "acc_same", "acc_different", "label", "success", "diff")  # figures between 0 and 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", type=Path, required=True, help="the CSV of published values")
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--task", default="", help="only this task of the experiment")
    parser.add_argument("--where", nargs="+", default=[], metavar="KEY=VALUE", help="only rows with these settings")
    parser.add_argument("--results", type=Path, default=PROJECT_ROOT / "Results")
    parser.add_argument("--tolerance", type=float, default=0.05, help="accuracies that differ by more are marked")
    parser.add_argument("--out", type=Path, required=True, help="the Markdown file to write")
    options = parser.parse_args()
    out = whole_out(options.out, names_files=True)
    if out.is_dir():
        raise BadInput(f"--out {options.out}: it is a folder, and a file is to be written.")
    if not options.published.is_file():
        raise BadInput(f"--published {options.published}: there is no such file.")
    published = read_csv(options.published, keep_default_na=False)
    if missing := [name for name in COLUMNS if name not in published]:
        raise BadInput(f"--published {options.published}: it has no column '{missing[0]}'.")
    published["value"] = pd.to_numeric(published["value"], errors="coerce")
    if published["value"].isna().any():
        raise BadInput(f"--published {options.published}: its column 'value' must hold numbers only.")
    results, everything = options.results.absolute(), published
    published = published[published["experiment"] == options.experiment]
    if options.task:
        published = published[published["task"] == options.task]
    others = everything[~everything["method"].isin(published["method"])]
    published = pd.concat([published, unpublished_cells(results, options.experiment, options.task, others)])
    ours = our_figures(results, published, dict(pair.partition("=")[::2] for pair in options.where))
    if ours.empty:
        raise BadInput(f"no results of {options.experiment} {options.task} in {shown(results)}; published experiments "
                       f"are {', '.join(sorted(set(everything['experiment'])))}.")
    keys = COLUMNS[:-1]
    merged = published.rename(columns={"value": "published"}).merge(ours.rename(columns={"value": "ours"}), on=keys)
    body = markdown(merged, options.tolerance)
    name = " ".join(filter(None, [options.experiment, options.task, *options.where]))
    about = (f"Published: arXiv 2311.04354. A difference of more than {options.tolerance} between accuracies or shares "
             "is marked with **." if merged["published"].notna().any() else "The paper publishes no figures of these.")
    title = (f"# {name}: our figures beside the published ones\n\n"
             f"Made by `analysis/compare_with_published.py`. {about}\n")
    write_text(out, title + body)
    print(f"{options.out}: {len(merged)} of {len(published)} figures, {body.count('**')} marked.")


if __name__ == "__main__":
    run("compare_with_published", main)
