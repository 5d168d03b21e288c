"""The functions that every figure is made of: grouped bars, lines, heat maps; and those of methods on arithmetic."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from analysis.tables import COMPONENTS, FLOAT32, present
from interp.methods.table import METHODS
from interp.plotting import COLORS, LETTERS_AN_INCH, plt, save_figure, sns, wrapped
from interp.statistics import interval

PLACE_NAMES = {"attn": "after attention", "mlp": "after the MLP"}
HATCHES = ("", "//", "..", "xx")  # what tells bars of one colour apart
STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))  # lines of a panel, from the bottom up
ROLES = {"circuit_probing": "circuit", "linear_probing": "linear probe", "nonlinear_probing": "MLP probe",
         "amnesic": "LEACE", FLOAT32: "LEACE", "DAS": "DAS"}  # the methods' keys of COLORS
OTHER_ROLES = {"majority": "baseline", "full_": "whole", "vanilla": "whole", "random": "random"}  # by words in columns
NEIGHBORS = {"circuit_probing:knn_test_acc": "circuit", "circuit_probing:full_model_knn_test_acc": "full sublayer",
             "circuit_probing:majority_test_acc": "majority baseline"}
PROBES = {"circuit_probing:knn_test_acc": "circuit (nearest neighbors)", "linear_probing:test_acc": "linear probe",
          "nonlinear_probing:test_acc": "MLP probe", "circuit_probing:majority_test_acc": "majority baseline"}
THERE = {f"{name}:{column}": label for name, method in METHODS.items() for column, label in method.there.items()}
USED = {f"{name}:{column}": label for name, method in METHODS.items() for column, label in method.used.items()}
USED |= {f"{FLOAT32}:{column}": f"{label}, float32 as published" for column, label in METHODS["amnesic"].used.items()}
USED |= {column: USED.pop(column) for column in [*USED] if column.startswith("DAS")}  # below both fits of LEACE

Frames = tuple[pd.DataFrame, pd.DataFrame]
Drawn = tuple[Figure, dict[tuple[str, str], Axes]]  # panels by row and column


def role_of(column: str) -> str:
    """What a column METHOD:COLUMN is of, a key of COLORS: the untouched model, random draws, a baseline, the method."""
    method, _, name = column.partition(":")
    return next((role for word, role in OTHER_ROLES.items() if word in name), ROLES[method])


def mean_and_sd(groups, measures: dict[str, str]) -> Frames:
    """Means and standard deviations of groups of rows, columns named by labels; of NAME_mean it is that in NAME_std."""
    spreads = {label: groups[column].std() if (draws := column.replace("_mean", "_std")) == column
               else groups[draws].mean() for column, label in measures.items()}
    return groups[list(measures)].mean().rename(columns=measures), pd.DataFrame(spreads)


def long_of(table: pd.DataFrame, keys: list[str], measures: dict[str, str]) -> pd.DataFrame:
    """Means over groups of rows for draw_lines: the keys, line (a measure's label), value, low and high (± sd)."""
    means, spreads = mean_and_sd(table.groupby(keys), measures)
    long = means.melt(var_name="line", ignore_index=False).reset_index()
    sd = spreads[[*means]].melt()["value"].fillna(0)
    return long.assign(low=long["value"] - sd, high=long["value"] + sd)


def reach(means: pd.DataFrame, each: Sequence[pd.DataFrame]) -> Frames:
    """How far the 95 % intervals of means over models reach, below and above. each: the values of every model."""
    models = pd.concat(each).groupby(level=0)
    low, high = (models.agg(lambda values, end=end: interval(values.dropna())[end]).reindex(means.index)
                 for end in (0, 1))
    return (means - low).clip(lower=0), (high - means).clip(lower=0)


def of_models(table: pd.DataFrame, spread: str = "") -> str:
    """Over how many models a figure's values are means: not all methods need have the most. spread: what is shown."""
    models = table["model_seed"].nunique() if "model_seed" in table else 1
    return f"mean of up to {models} models{spread}" if models > 1 else "one model"


def span(counts: pd.Series) -> str:
    """The smallest to the largest: 3, 1 to 3."""
    return " to ".join(f"{count:.0f}" for count in sorted({counts.min(), counts.max()}))


def draw_bars(axis: Axes, heights: pd.DataFrame, ends: Frames, roles: Sequence[str],
              each: Sequence[pd.DataFrame] = ()) -> None:
    """A group of bars for each row, a bar for each column, its value above it, n/a where there is none.

    ends: how far error bars reach. roles: of the columns, keys of COLORS; further bars of a role are hatched, and a
    baseline is a line across the group. each: the heights of every model, as dots.
    """
    bars = [label for label, role in zip(heights, roles) if role != "baseline"]
    width, seen, groups = min(0.8 / max(len(bars), 1), 0.3), Counter[str](), np.arange(len(heights))
    for label, role in zip(heights, roles):
        if role == "baseline":
            axis.hlines(heights[label], groups - 0.45, groups + 0.45, COLORS[role], "--", label=label, zorder=3)
            continue
        places = groups + (bars.index(label) - (len(bars) - 1) / 2) * width
        axis.bar(places, heights[label], width, color=COLORS[role], label=label, yerr=[end[label] for end in ends],
                 hatch=HATCHES[seen[role] % len(HATCHES)], error_kw={"elinewidth": 1.2, "capsize": 2})
        seen[role] += 1
        tops = heights[label] + ends[1][label].fillna(0)
        for values in each:
            axis.plot(places, values[label], "o", color="black", markerfacecolor="white", markersize=3.5, zorder=4)
            tops = np.fmax(tops, values[label])
        for x, height, top in zip(places, heights[label], tops):
            text = "n/a" if np.isnan(height) else f"{height:.2f}"
            axis.text(x, np.nan_to_num(top) + 0.01, text, ha="center", va="bottom", fontsize=8)
    sides, middle = max(len(heights) / 2, 1), (len(heights) - 1) / 2  # a single group does not fill the panel
    highest = np.nan_to_num((heights + ends[1].fillna(0)).to_numpy(float)).max(initial=0)
    axis.set(xlim=(middle - sides, middle + sides), ylim=(0, max(1.12, highest + 0.12, axis.get_ylim()[1])))
    room = LETTERS_AN_INCH / 11 * axis.get_window_extent().width / axis.figure.dpi / (2 * sides)
    axis.set_xticks(groups, [wrapped(str(name), room, broken=True) for name in heights.index])
    axis.grid(axis="x", visible=False)


def draw_lines(table: pd.DataFrame, rows: dict[str, str], columns: dict[str, str], looks: dict[Any, dict[str, Any]],
               xlabel: str, size: tuple[float, float], **options) -> Drawn:
    """Panels of lines over x, which are layers or checkpoints.

    table: long, with columns row, column, line, x, value (nan interrupts a line) and, for bands, low and high.
    rows, columns: what panels are called. looks: of each line its color, and what differs from the defaults.
    """
    figure, axes = grid_of([*rows.values()], [*columns.values()], size, sharex=True, **options)
    panels = {(row, column): axes[i][j] for i, row in enumerate(rows) for j, column in enumerate(columns)}
    for (row, column), axis in panels.items():
        axis.set_xlabel(xlabel if axis in axes[-1] else "")
        if xlabel == "layer":
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        here = table[(table["row"] == row) & (table["column"] == column)].sort_values("x", kind="stable")
        lines = dict(list(here.groupby("line")))
        for number, line in enumerate(name for name in looks if name in lines):
            points, (dashes, marker) = lines[line], STYLES[number % len(STYLES)]
            look = {"label": line, "linestyle": dashes, "marker": marker, "markersize": max(3, 7 - 1.3 * number),
                    "linewidth": max(1.2, 2.6 - 0.4 * number)} | looks[line]
            axis.plot(points["x"], points["value"], **look)
            if "low" in points:
                axis.fill_between(points["x"], points["low"], points["high"], color=look["color"], alpha=0.25, lw=0)
    return figure, panels


def draw_heat_map(axis: Axes, grid: pd.DataFrame, rows: Sequence[str], digits: int = 2, **options) -> None:
    """A cell for each row and column with its value; cells without one are grey. rows: their names."""
    axis.set_facecolor("0.87")
    values = grid.round(digits) + 0.0  # + 0.0: no -0.0
    sns.heatmap(grid, ax=axis, fmt=f".{digits}f", **{"annot": values} | options)
    axis.set_yticks(np.arange(len(grid)) + 0.5, rows, rotation=0)
    axis.set(xlabel="", ylabel="")
    axis.grid(visible=False)


def hatch(axis: Axes, cells: Iterable[tuple[int, int]]) -> None:
    """Hatch cells of a heat map, by column and row."""
    for cell in cells:
        axis.add_patch(Rectangle(cell, 1, 1, fill=False, hatch="//", edgecolor=(1, 0.4, 0.3, 0.6), linewidth=1.5))


def grid_of(rows: Sequence[str], columns: Sequence[str], size: tuple[float, float], **options) -> tuple[Figure, Any]:
    """A figure and its panels, (rows, columns), with the columns' titles above and the rows' labels at the left."""
    figure, axes = plt.subplots(len(rows), len(columns), figsize=size, squeeze=False, layout="constrained", **options)
    for axis, title in zip(axes[0], columns):
        axis.set_title(title, parse_math=False)
    for axis, label in zip(axes[:, 0], rows):
        axis.set_ylabel(label)
    return figure, axes


def finish(figure: Figure, heading: str, path: Path, columns: int = 3, handles: Sequence[Any] = (), **options) -> None:
    """Save a figure with a heading and one legend for all panels, below them: of their labels, or of some handles."""
    entries = {entry.get_label(): entry for entry in handles} or {
        label: entry for axis in figure.axes for entry, label in zip(*axis.get_legend_handles_labels())}
    if entries:
        ncols = min(len(entries), columns)
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=ncols, **options)
    figure.suptitle(heading, parse_math=False)
    save_figure(figure, path)


def handle(label: str, **options) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], label=label, **{"linestyle": "none", "color": "0.3"} | options)


def draw_by_variable(table: pd.DataFrame, labels: dict[str, str], measures: dict[str, str], components: list[str],
                     ylabel: str, title: str, path: Path) -> None:
    """Bars: a panel for each component, a group for each variable, a bar for each measure of methods that have values.

    labels, measures: how variables and columns are called in the figure, in order.
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
    titles = [COMPONENTS[name] for name in components]
    figure, axes = grid_of([ylabel], titles, (width * len(components), 4.2), sharey=True)
    for axis, component in zip(axes[0], components):
        (means, spreads), *each = [
            [found.reindex([*names]).rename(index=names) for found in mean_and_sd(
                rows[rows["component"] == component].groupby("variable"), measures)] for rows in (table, *models)]
        heights = [found for found, _ in each]
        ends = reach(means, heights) if heights else (spreads, spreads)
        draw_bars(axis, means, ends, [*map(role_of, measures)], heights)
        axis.set_xlabel("intermediate variable")
    finish(figure, f"{title} ({of_models(table, ', dots; bars: 95 % interval')})", path, 2 if len(measures) == 4 else 3)


def draw_there_and_used(table: pd.DataFrame, labels: dict[str, str], path: Path, of: str) -> None:
    """Heat maps: is the variable there (above), is it used (below); a row a method, a column a variable and place."""
    questions = {question: measures for question, known in (
        ("Is it there? accuracy of reading it off", THERE), ("Is it used? effect of an intervention", USED))
        if (measures := present(table, known))}
    components = [name for name in COMPONENTS if name in set(table["component"])]
    columns = [(component, variable) for component in components for variable in labels]
    names = [wrapped(f"{labels[variable]}\n{PLACE_NAMES[component]}".replace(" (", "\n("), 12)
             for component, variable in columns]
    width = max(0.9, *(0.09 * len(line) for name in names for line in name.splitlines()))  # inches, of a cell
    sizes = [len(measures) for measures in questions.values()]
    size = 5 + width * len(columns), 2 + 0.45 * sum(sizes)
    figure, axes = grid_of([""] * len(sizes), [""], size, height_ratios=sizes)
    for axis, (question, measures) in zip(axes[:, 0], questions.items()):
        means = table.groupby(["component", "variable"])[list(measures)].mean().reindex(columns)
        draw_heat_map(axis, means.T, [*measures.values()], vmin=0, vmax=1, cmap="Blues", linewidths=1,
                      cbar=axis is axes[0, 0], cbar_kws={"label": "share"}, annot_kws={"fontsize": 10})
        axis.set_xticks(np.arange(len(columns)) + 0.5, names, rotation=0, fontsize=10)
        axis.set_title(question)
        axis.axvline(len(labels), color="black", linewidth=2)
    finish(figure, f"Is it there, is it used?{of} ({of_models(table)})", path)


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
