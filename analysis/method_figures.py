"""The figures that compare methods on arithmetic, Experiments 1 and 2: by variable, in attention and in the MLP."""

from pathlib import Path

import numpy as np
import pandas as pd

from analysis import figures
from analysis.figures import PLACE_NAMES, mean_and_sd, of_models
from analysis.tables import COMPONENTS, FLOAT32, present
from interp.methods.table import METHODS
from interp.plotting import plt, wrapped

NEIGHBORS = {"circuit_probing:knn_test_acc": "circuit", "circuit_probing:full_model_knn_test_acc": "full sublayer",
             "circuit_probing:majority_test_acc": "majority baseline"}
PROBES = {"circuit_probing:knn_test_acc": "circuit (nearest neighbors)", "linear_probing:test_acc": "linear probe",
          "nonlinear_probing:test_acc": "MLP probe", "circuit_probing:majority_test_acc": "majority baseline"}
THERE = {f"{name}:{column}": label for name, method in METHODS.items() for column, label in method.there.items()}
USED = {f"{name}:{column}": label for name, method in METHODS.items() for column, label in method.used.items()}
USED |= {f"{FLOAT32}:{column}": f"{label}, float32 as published" for column, label in METHODS["amnesic"].used.items()}
USED |= {column: USED.pop(column) for column in [*USED] if column.startswith("DAS")}  # below both fits of LEACE


def draw_by_variable(table: pd.DataFrame, labels: dict[str, str], measures: dict[str, str], components: list[str],
                     ylabel: str, title: str, path: Path) -> None:
    """Grouped bars: a panel for each component, a group for each variable, a bar for each measure.

    labels, measures: how variables and columns are called in the figure, in order. Measures of methods that have no
    value at all are left out; a bar is n/a if its method has others.
    """
    there = {column.partition(":")[0] for column in table if table[column].notna().any()}
    measures = {column: label for column, label in measures.items()
                if column in table and column.partition(":")[0] in there}
    models = [rows for _, rows in table.groupby("model_seed")] if "model_seed" in table else []
    if len(models) < 2:  # the bar on random neurons is the standard deviation of their draws
        models = []
        measures = {column: f"{label} (sd)" if "random" in column else label for column, label in measures.items()}
    names = {name: labels[name].replace(" (", "\n(") for name in labels if name in set(table["variable"])}
    width = max(5.5 * max(1, 1.3 / len(components)), 0.36 * len(names) * len(measures))  # a value has 0.36 inches
    figure, axes = figures.grid_of([ylabel], [COMPONENTS[name] for name in components],
                                   (width * len(components), 4.2), sharey=True)
    for axis, component in zip(axes[0], components):
        (means, spreads), *each = [
            [found.reindex([*names]).rename(index=names) for found in mean_and_sd(
                rows[rows["component"] == component].groupby("variable"), measures)] for rows in (table, *models)]
        heights = [found for found, _ in each]
        ends = figures.reach(means, heights) if heights else (spreads, spreads)
        figures.draw_bars(axis, means, ends, [*map(figures.role_of, measures)], heights)
        axis.set_xlabel("intermediate variable")
    figures.finish(figure, f"{title} ({of_models(table, measures, ', dots; bars: 95 % interval')})", path,
                   2 if len(measures) == 4 else 3)


def draw_there_and_used(table: pd.DataFrame, labels: dict[str, str], path: Path, of: str) -> None:
    """Heat maps: is the variable there (above), is it used (below); a row a method, a column a variable and place."""
    questions = {question: present(table, measures) for question, measures in (
        ("Is it there? accuracy of reading it off", THERE), ("Is it used? effect of an intervention", USED))}
    questions = {question: measures for question, measures in questions.items() if measures}
    components = [name for name in COMPONENTS if name in set(table["component"])]
    columns = [(component, variable) for component in components for variable in labels]
    names = [wrapped(f"{labels[variable]}\n{PLACE_NAMES[component]}".replace(" (", "\n("), 12)
             for component, variable in columns]
    width = max(0.9, *(0.09 * len(line) for name in names for line in name.splitlines()))  # inches, of a cell
    sizes = [len(measures) for measures in questions.values()]
    figure, axes = plt.subplots(len(sizes), 1, figsize=(5 + width * len(columns), 2 + 0.45 * sum(sizes)),
                                layout="constrained", height_ratios=sizes, squeeze=False)
    for axis, (question, measures) in zip(axes[:, 0], questions.items()):
        means = table.groupby(["component", "variable"])[list(measures)].mean().reindex(columns)
        figures.draw_heat_map(axis, means.T, [*measures.values()], vmin=0, vmax=1, cmap="Blues", linewidths=1,
                              cbar=axis is axes[0, 0], cbar_kws={"label": "share"}, annot_kws={"fontsize": 10})
        axis.set_xticks(np.arange(len(columns)) + 0.5, names, rotation=0, fontsize=10)
        axis.set_title(question)
        axis.axvline(len(labels), color="black", linewidth=2)
    figures.finish(figure, f"Is it there, is it used?{of} ({of_models(table, present(table, THERE | USED))})", path)


def draw_probes(table: pd.DataFrame, labels: dict[str, str], out: Path, of: str = "") -> None:
    """What can be read: nearest neighbors, beside other probes where there are any. of: which model, for titles."""
    components = [name for name in COMPONENTS if name in set(table["component"])]
    if present(table, NEIGHBORS):
        draw_by_variable(table, labels, NEIGHBORS, components, "nearest-neighbor accuracy (test)",
                         f"Is the variable there? Nearest neighbors of updates{of}", out / "nearest_neighbors")
    if set(present(table, PROBES)) - set(NEIGHBORS):
        for component in components:
            draw_by_variable(table, labels, PROBES, [component], "accuracy (test)",
                             f"Is the variable there? Three probes{of}", out / f"probe_accuracy_{component}")
        draw_there_and_used(table, labels, out / "there_and_used", of)
