"""What the scripts of this folder share: reading the methods' results, and the figures that compare methods."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.methods.table import BEFORE_AND_AFTER, COMPONENT_OF, METHODS, PLACES
from interp.plotting import draw_bars, plt, save_figure, sns
from interp.runs.config import PROJECT_ROOT, BadInput, config_that_writes, project_path, shown
from interp.runs.directory import check_folder

RESULTS = PROJECT_ROOT / "Results"
COMPONENTS = {"attn": "attention", "mlp": "MLP"}
NEIGHBORS = {"circuit_probing:knn_test_acc": "circuit", "circuit_probing:full_model_knn_test_acc": "full model",
             "circuit_probing:majority_test_acc": "majority baseline"}
PROBES = {"circuit_probing:knn_test_acc": "circuit (nearest neighbors)", "linear_probing:test_acc": "linear probe",
          "nonlinear_probing:test_acc": "MLP probe", "circuit_probing:majority_test_acc": "majority baseline"}
THERE = {f"{name}:{column}": label for name, method in METHODS.items() for column, label in method.there.items()}
USED = {f"{name}:{column}": label for name, method in METHODS.items() for column, label in method.used.items()}


def read_results(results: Path, variables: dict[str, str], never: tuple[tuple[str, str], ...] = ()) -> pd.DataFrame:
    """All runs below a folder, a row for each setting: variable, component, a column METHOD:FIGURE for each figure.

    Says which runs are missing: those of circuit probing, and of any method that has some; but not
    those that are `never` done, (method, variable).

    Raises:
        BadInput: there is no run at all, or a table cannot be read.
    """
    tables = []
    for method, known in METHODS.items():
        for variable in variables:
            file = results / method / variable / "results.csv"
            if file.exists():
                tables.append(tidy(read_results_table(file), method).assign(variable=variable))
            elif (method, variable) not in never and ((results / method).exists() or method == "circuit_probing"):
                config = config_that_writes(file.parent)
                hint = f", made by 'python {known.script} --config {config}'" if config else ""
                print(f"missing: {shown(file)}{hint}", file=sys.stderr)
    if not tables:
        raise BadInput(f"nothing to draw in {shown(results)}.")
    return pd.concat(tables, ignore_index=True)


def read_csv(file: Path, **options) -> pd.DataFrame:
    """A CSV file; raises BadInput where it is none."""
    try:
        return pd.read_csv(file, **options)
    except ValueError as error:
        raise BadInput(f"{shown(file)} cannot be read as CSV: {str(error).strip()}.") from None


def places_of(table: pd.DataFrame) -> pd.Series:
    """Where in a layer each row of a results table looked; empty where the table is of whole models."""
    return next((table[name] for name in PLACES if name in table), pd.Series("", table.index))


def check_columns(file: Path, table: pd.DataFrame, script: str, words: list[str], numbers: list[str]) -> None:
    """Refuse a table that lacks a column of a script's, or has words where numbers belong; raises BadInput."""
    for column in (*words, *numbers):
        if column not in table:
            raise BadInput(f"{shown(file)} is no table of {script}: it has no column '{column}'.")
        if column == "operation" and not set(table[column]) <= set(COMPONENTS):
            raise BadInput(f"{shown(file)} is damaged: its column 'operation' holds more than {', '.join(COMPONENTS)}.")
        if column in numbers and not pd.api.types.is_numeric_dtype(table[column]):
            raise BadInput(f"{shown(file)} is damaged: its column '{column}' holds more than numbers.")


def read_results_table(file: Path) -> pd.DataFrame:
    table = read_csv(file)
    if table.empty or not any(name in table for name in PLACES):
        raise BadInput(f"{shown(file)} is no results table: it has no rows or none of the columns "
                       f"{', '.join(PLACES)}.")
    return table


def tidy(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """A results table with the component it looked at, and the accuracy that an intervention costs on test."""
    for before, after in BEFORE_AND_AFTER:
        if before in table:
            table["accuracy_lost"] = table[before] - table[after]
    swept = {"checkpoint": table["checkpoint"]} if "checkpoint" in table else {}
    return table.add_prefix(f"{method}:").assign(component=places_of(table).map(COMPONENT_OF), **swept)


def present(table: pd.DataFrame, measures: dict[str, str]) -> dict[str, str]:
    return {column: label for column, label in measures.items() if column in table and table[column].notna().any()}


def mean_and_sd(groups, measures: dict[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means and standard deviations of groups of rows, a column for each measure under its label.

    The spread of a column NAME_mean is that of its own draws, in NAME_std; of others it is over the group.
    """
    spreads = {}
    for column, label in measures.items():
        own = column.replace("_mean", "_std")
        spreads[label] = groups[column].std() if own == column else groups[own].mean()
    return groups[list(measures)].mean().rename(columns=measures), pd.DataFrame(spreads)


def draw_by_variable(table: pd.DataFrame, labels: dict[str, str], measures: dict[str, str], components: list[str],
                     ylabel: str, title: str, path: Path) -> None:
    """Grouped bars: a panel for each component, a group for each variable, a bar for each measure.

    labels, measures: how variables and columns are called in the figure, in order.
    """
    measures = present(table, measures)
    variables = [name for name in labels if name in set(table["variable"])]
    figure, axes = plt.subplots(1, len(components), figsize=(5.5 * max(len(components), 1.3), 4.2), sharey=True,
                                squeeze=False, layout="constrained")
    for axis, component in zip(axes[0], components):
        found = mean_and_sd(table[table["component"] == component].groupby("variable"), measures)
        draw_bars(axis, *(own.reindex(variables).rename(index=labels) for own in found))
        axis.set(title=COMPONENTS[component], xlabel="intermediate variable")
    axes[0][0].set_ylabel(ylabel)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(measures), 3))
    figure.suptitle(title)
    save_figure(figure, path)


def draw_there_and_used(table: pd.DataFrame, labels: dict[str, str], path: Path) -> None:
    """A grid: is the variable there (above), is it used (below); a row for each method, a column for each variable.

    Cells without a result are grey.
    """
    there, used = present(table, THERE), present(table, USED)
    columns = [(component, variable) for component in COMPONENTS for variable in labels]
    figure, axes = plt.subplots(2, 1, figsize=(10, 1.6 + 0.45 * (len(there) + len(used))), layout="constrained",
                                height_ratios=[len(there), len(used)])
    for axis, measures, question in zip(axes, (there, used), ("Is it there? accuracy of reading it off",
                                                              "Is it used? effect of an intervention")):
        means = table.groupby(["component", "variable"])[list(measures)].mean().reindex(columns)
        sns.heatmap(means.T, annot=True, fmt=".2f", vmin=0, vmax=1, cmap="Blues", linewidths=1, ax=axis,
                    cbar=axis is axes[0], cbar_kws={"label": "share"}, annot_kws={"fontsize": 10})
        axis.set_yticks(np.arange(len(measures)) + 0.5, list(measures.values()), rotation=0)
        axis.set_xticks(np.arange(len(columns)) + 0.5,
                        [labels[variable].replace(" (", "\n(") for _, variable in columns], rotation=0)
        axis.set(title=question, ylabel="",
                 xlabel="after attention" + " " * 45 + "after the MLP" if axis is axes[1] else "")
        axis.set_facecolor("0.9")  # a cell without a result
        axis.grid(visible=False)
        axis.axvline(len(labels), color="black", linewidth=2)
    save_figure(figure, path)


def draw_probes(table: pd.DataFrame, labels: dict[str, str], out: Path, of: str = "") -> None:
    """What can be read: nearest neighbors, and beside other probes where there are any.

    of: which model or task the figures are about, for their titles.
    """
    components = [name for name in COMPONENTS if name in set(table["component"])]
    if present(table, NEIGHBORS):
        draw_by_variable(table, labels, NEIGHBORS, components, "nearest-neighbor accuracy (test)",
                         f"Is the variable there? Nearest neighbors of updates{of}", out / "nearest_neighbors")
    if set(present(table, PROBES)) - set(NEIGHBORS):
        for component in components:
            draw_by_variable(table, labels, PROBES, [component], "accuracy (test)",
                             f"Is the variable there? Three probes{of}", out / f"probe_accuracy_{component}")
        draw_there_and_used(table, labels, out / "there_and_used")


def parse_folders(description: str, experiment: str, further: dict[str, dict[str, Any]] | None = None) -> Namespace:
    """The command line of a script that draws an experiment: `results` to read, `out` for figures, whole paths both.

    further: other options of the script, as argparse takes them.
    """
    parser = ArgumentParser(description=description)
    parser.add_argument("--results", type=Path, default=RESULTS / experiment)
    parser.add_argument("--out", type=Path, help="default: RESULTS/figures")
    for name, option in (further or {}).items():
        parser.add_argument(name, **option)
    options = parser.parse_args()
    options.results = options.results.absolute()
    options.out = whole_out(options.out or options.results / "figures")
    return options


def whole_out(out: Path, names_files: bool = False) -> Path:
    """The whole path that --out gives: a folder, or what files' names begin with.

    Raises:
        BadInput: nothing can be written there.
    """
    if names_files and not out.name:
        raise BadInput(f"--out {out}: it must end in a file's name.")
    whole = project_path(out.absolute())
    check_folder("--out", whole.parent if names_files else whole)
    return whole


def run(script: str, main: Callable[[], None]) -> None:
    """Run a script's main; bad input ends in one sentence and exit status 2."""
    try:
        main()
    except (BadInput, OSError) as error:
        print(f"{script}: {error}", file=sys.stderr)
        sys.exit(2)
