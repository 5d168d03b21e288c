"""The published values beside ours, as the report shows them."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from analysis.compare_with_published import TOLERANCE, is_share, our_figures, put_beside
from analysis.method_figures import check_columns
from analysis.report_runs import Problems, Run, Table, as_table, number


def beside_published(results: Path, runs: list[Run], published: pd.DataFrame, problems: Problems) -> list[Table]:
    """A table for each method and task, differences beyond the tolerance first; before them one that counts them."""
    found = [problems.attempt(f"{run.name}/results.csv", beside, results, run,
                              cells_of(run.name, published)) for run in runs if run.table is not None]
    found = [cells for cells in found if cells is not None and len(cells)]
    merged = pd.concat(found, ignore_index=True).dropna(subset="difference") if found else pd.DataFrame()
    if not len(merged):
        return []
    all_cells = sum(len(cells_of(run.name, published)) for run in runs if run.table is not None)
    share = merged["metric"].map(is_share)
    within, beyond = (f"{word} {TOLERANCE}" for word in ("within", "beyond"))
    apart = merged["difference"].abs() > TOLERANCE
    merged["judged"] = apart.map({True: beyond, False: within}).where(share, "no share")
    groups = {" ".join(filter(None, key)).replace("_", " "): cells
              for key, cells in merged.groupby(["task", "method"], sort=False)}
    counts = [[name, str(len(cells)), *(str((cells["judged"] == word).sum()) for word in (within, beyond, "no share")),
               number(cells.loc[cells["judged"] != "no share", "difference"].abs().max())]
              for name, cells in groups.items()]
    lacking = f"; {all_cells - len(merged)} of the {all_cells} published of these runs have none of ours" * (
        len(merged) < all_cells)
    several = merged["models"].max() > 1
    tables = [Table(f"How many of our accuracies and shares are within {TOLERANCE} of the published ones. Ours are "
                    f"{'single rows of results, or means over models' if several else 'single rows of results'}"
                    f"{lacking}", [
                        "method", "numbers", within, beyond, "losses and counts", "largest difference of a share"],
                    counts)]
    swept = ["checkpoint"] if merged["checkpoint"].ne("").any() else []
    both = ["float64"] if merged["float64"].notna().any() else []  # of LEACE, whose `ours` are in float32, as published
    seeds = ["models"] if several else []
    columns = ["variable", "component", *swept, "metric", "ours", "published", "difference", "judged", *both, *seeds]
    for name, cells in groups.items():
        cells = cells.iloc[(cells["judged"] != beyond).argsort(kind="stable")]
        signed = cells["difference"].map(lambda value: f"{value:+.3f}" if abs(value) >= 5e-4 else f"{value:+.2g}")
        caption = f"{name}: {(cells['judged'] == beyond).sum()} of {len(cells)} {beyond}"
        tables.append(replace(as_table(cells.assign(difference=signed)[columns], caption), folded=0))
    return tables


def cells_of(name: str, published: pd.DataFrame) -> pd.DataFrame:
    """The published cells of a run."""
    where = published["experiment"].where(published["method"] == "training", "")
    folders = ("Train_Algorithmic_Models/" + where).where(where != "", published["experiment"] + "/" + (
        published["task"] + "/").where(published["task"] != "", "") + published["method"] + "/" + published["variable"])
    return published[folders == name]


def beside(results: Path, run: Run, cells: pd.DataFrame) -> pd.DataFrame:
    if run.table is None or not len(cells):
        return pd.DataFrame()
    check_columns(results / run.name / "results.csv", run.table, "the run's method", [], [
        name for name in cells["metric"].unique() if name in run.table])
    return put_beside(cells, our_figures(results, cells, {}))
