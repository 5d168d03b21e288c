"""Our values beside the published ones, cell by cell, as a Markdown table.

    python analysis/compare_with_published.py --published results.csv --experiment Disambiguation --out FILE.md

The published file has the columns experiment, task, method, variable, component, metric, value and, where figures are
of one checkpoint, checkpoint. Ours are read from RESULTS/EXPERIMENT[/TASK]/METHOD/VARIABLE/results.csv, as the shipped
configs write them; with several model seeds, their mean, and whether the published value is one that a further model
might give. Differences of more than --tolerance are marked.
--where lr=0.001 takes only those rows of a sweep.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from analysis.method_figures import only, places_of, read_csv, run, whole_out
from interp.runs.config import PROJECT_ROOT, BadInput, shown
from interp.runs.files import write_text
from interp.statistics import prediction_interval

COLUMNS = ["experiment", "task", "method", "variable", "component", "checkpoint", "metric", "value"]


def our_figures(results: Path, published: pd.DataFrame, where: dict[str, str]) -> pd.DataFrame:
    """The published cells that we have figures for: the columns of `published`, with our value, the mean over models.

    Of LEACE that of erasers fitted in float32, as published, and in a column `float64` that of the others. low, high:
    where 95 % of models would lie, as far as those that we have tell; nan of one.

    Raises:
        BadInput: a run sweeps more than models, places, checkpoints and LEACE's precision, which nothing averages.
    """
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
        table = only(read_csv(file), where)
        as_published = table.get("precision", pd.Series("float32", table.index)) == "float32"
        for cell in cells.to_dict("records"):
            rows = table[places_of(table).isin(["", cell["component"]])]
            if cell["checkpoint"]:  # of a run that does not say its checkpoint there is no figure of one
                rows = only(rows, {"checkpoint": cell["checkpoint"]}) if "checkpoint" in rows else rows[:0]
            if cell["metric"] not in rows or not rows[cell["metric"]].notna().any():
                continue
            if rows.duplicated([name for name in ("model_seed", "precision") if name in rows]).any():
                raise BadInput(f"{shown(file)} has several rows for {variable} {cell['component']} {cell['checkpoint']}"
                               "; say which to take with --where KEY=VALUE.")
            ours = rows.loc[as_published, cell["metric"]].dropna()
            low, high = prediction_interval(ours)
            found.append(cell | {"value": ours.mean(), "float64": rows.loc[~as_published, cell["metric"]].mean(),
                                 "models": len(ours), "low": low, "high": high})
    return pd.DataFrame(found, columns=[*COLUMNS, "float64", "models", "low", "high"])


def read_published(file: Path) -> pd.DataFrame:
    """The published values; raises BadInput where the file is none of these."""
    if not file.is_file():
        raise BadInput(f"--published {file}: there is no such file.")
    published = read_csv(file, keep_default_na=False, dtype=str)
    published = published.assign(checkpoint=published.get("checkpoint", ""))
    if missing := [name for name in COLUMNS if name not in published]:
        raise BadInput(f"--published {file}: it has no column '{missing[0]}'.")
    published["value"] = pd.to_numeric(published["value"], errors="coerce")
    if published["value"].isna().any():
        raise BadInput(f"--published {file}: its column 'value' must hold numbers only.")
    return published


def put_beside(published: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """The cells that both have, with the columns published, ours, difference, and whether published lies inside."""
    merged = published.rename(columns={"value": "published"}).merge(ours.rename(columns={"value": "ours"}),
                                                                    on=COLUMNS[:-1])
    # a share of 1.0 in every model leaves no width, and a published 0.9998 is no contradiction
    inside = merged["published"].between(merged["low"] - ROUNDING, merged["high"] + ROUNDING)
    return merged.assign(difference=merged["ours"] - merged["published"],
                         inside=inside.map({True: "yes", False: "no"}).where(merged["low"].notna(), ""))


def is_share(metric: str) -> bool:
    return metric.endswith(SHARES)


def markdown(merged: pd.DataFrame, tolerance: float) -> str:
    """A section for each method and task, a row for each variable, component, checkpoint and metric."""
    lines = []
    for (task, method), cells in merged.groupby(["task", "method"], sort=False):
        keys = [name for name in ("variable", "component", "checkpoint", "metric") if cells[name].any()]
        values = ["ours", "published", "difference"] + ["float64"] * bool(cells["float64"].notna().any())
        seeds = ["low", "high", "inside"] if cells["low"].notna().any() else []
        names = {"ours": "ours, float32", "float64": "ours, float64"} if "float64" in values else {}
        lines += ["", f"## {' '.join(filter(None, [task, method]))}", "",
                  f"| {' | '.join([*keys, *(names.get(value, value) for value in [*values, *seeds])])} |",
                  "|" + "---|" * len([*keys, *values, *seeds])]
        for _, cell in cells.iterrows():
            mark = " **" if abs(cell["difference"]) > tolerance and is_share(cell["metric"]) else ""
            numbers = [f"{cell['difference']:+.4g}{mark}" if value == "difference" else f"{cell[value]:.6g}"
                       for value in values]
            numbers += [cell[name] if name == "inside" else f"{cell[name]:.4g}" for name in seeds]
            lines.append(f"| {' | '.join([*(cell[key] for key in keys), *numbers])} |")
    return "\n".join(lines) + "\n"


SHARES = ("acc", "acc_test", "acc_same", "acc_different", "label", "success", "diff")  # values between 0 and 1
TOLERANCE = 0.05  # shares that differ by more are marked
ROUNDING = 0.0005


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", type=Path, required=True, help="the CSV of published values")
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--task", default="", help="only this task of the experiment")
    parser.add_argument("--where", nargs="+", default=[], metavar="KEY=VALUE", help="only rows with these settings")
    parser.add_argument("--results", type=Path, default=PROJECT_ROOT / "Results")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="accuracies that differ by more are marked")
    parser.add_argument("--out", type=Path, required=True, help="the Markdown file to write")
    options = parser.parse_args()
    out = whole_out(options.out, names_files=True)
    if out.is_dir():
        raise BadInput(f"--out {options.out}: it is a folder, and a file is to be written.")
    published = read_published(options.published)
    results, everything = options.results.absolute(), published
    published = published[published["experiment"] == options.experiment]
    if options.task:
        published = published[published["task"] == options.task]
    ours = our_figures(results, published, dict(pair.partition("=")[::2] for pair in options.where))
    if ours.empty:
        raise BadInput(f"no results of {options.experiment} {options.task} in {shown(results)}; published experiments "
                       f"are {', '.join(sorted(set(everything['experiment'])))}.")
    merged = put_beside(published, ours)
    body = markdown(merged, options.tolerance)
    name = " ".join(filter(None, [options.experiment, options.task, *options.where]))
    about = (f"Published: arXiv 2311.04354. A difference of more than {options.tolerance} between accuracies or shares "
             "is marked with **." + (
                 " Ours are means over models; low and high is where 95 % of models would lie (Student's t, of as many "
                 "as we have), and `inside` says whether the published value, of one model, does."
                 if merged["models"].max() > 1 else ""))
    about += (" Metrics are the columns of the method's results.csv, which its page in docs/ explains (in "
              "amnesic_probing `test_acc` is the model's accuracy after erasure, in probing the probe's).")
    title = (f"# {name}: our values beside the published ones\n\n"
             f"Made by `analysis/compare_with_published.py`. {about}\n")
    write_text(out, title + body)
    inside = f", {(merged['inside'] == 'yes').sum()} inside" if merged["models"].max() > 1 else ""
    print(f"{options.out}: {len(merged)} of {len(published)} values, {body.count('**')} marked{inside}.")


if __name__ == "__main__":
    run("compare_with_published", main)
