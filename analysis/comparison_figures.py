"""The figures of the comparison of methods, as summarize_comparison.py draws them, and what its leaderboard shares."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Text

from analysis.method_figures import stored_config
from interp.methods.interchange import method
from interp.methods.table import interchange_methods
from interp.plotting import COLORS, draw_line, plt, save_figure, sns, wrapped
from interp.runs.config import shown
from interp.runs.files import write_text
from interp.statistics import clustered_interval

LOOKS = {  # the methods in the order of figures, each with its key of COLORS and its marker
    "full": ("whole", "D"), "none": ("baseline", "o"), "random": ("random", "s"), "pca": ("other", "^"),
    "difference_in_means": ("difference in means", "v"), "linear_probe": ("linear probe", "<"), "leace": ("LEACE", ">"),
    "lda": ("closed form", "P"), "mlp_probe": ("MLP probe", "X"), "circuit_update": ("circuit", "*"),
    "circuit_selected": ("circuit", "s"), "circuit_complement": ("circuit", "h"), "circuit_neurons": ("circuit", "^"),
    "neuron_mask": ("circuit", "D"), "das_k": ("DAS", "d"), "das": ("DAS", "o")}
OWN_MARKERS = "p8H1234"  # of methods that are not among them
CONTROLS = ("none", "random", "pca", "full", "circuit_complement")  # compared with, not ranked; hollow in figures
MODEL_MARKERS = "os^Dv<>PX*hpd8H"  # markers of models, where colours tell methods
SEES = {"nothing": "sees nothing", "activations": "sees activations", "variable": "sees the variable",
        "answers": "sees the right answers"}  # what a method is given, in the order of figures
SITES = {"resid_mid": "after attention", "resid_post": "after the MLP"}
DOT = 5  # points, of the lines over checkpoints
FEW = 5  # models; an interval over fewer covers the truth less often than it says
TASKS = {  # by the data that are tested on: what is asked, and what the columns of its variables hold
    "data/Disambiguation/test.csv": ("a² - b² mod 113", {
        "var_0": "a²", "var_1": "-b²", "aux_0": "a+b", "aux_1": "a-b"}),
    "data/Grokking/test.csv": ("a² + b mod 113", {"var_0": "a²", "var_1": "b", "aux_0": "b²"}),
    "data/Shared_Nodes/Task_1/test.csv": ("a mod 29 + b mod 31, one of two tasks of a model", {
        "var_0": "a mod 29", "var_1": "b mod 31", "aux_0": "distractor mod 23"}),
    "data/Shared_Nodes/Task_2/test.csv": ("a mod 29 + b mod 23, one of two tasks of a model", {
        "var_0": "a mod 29", "var_1": "b mod 23", "aux_0": "distractor mod 31"}),
    "data/Language/Syntactic_Number.csv": ("'is' or 'are'", {
        "labels": "number of the subject", "object labels": "number of the object"})}


@dataclass(frozen=True)
class Told:
    """What a run's config tells for the titles of its figures; of other data than TASKS, the folder and the columns.

    names: of variables, by their columns. config: empty where there is none.
    """

    title: str
    names: dict[str, str]
    config: dict[str, Any]

    def variables(self, columns: Iterable[str]) -> str:
        return ", ".join(self.names.get(column, column) for column in columns)


def told_of(folder: Path) -> Told:
    """What the run in a folder tells; raises BadInput where its config cannot be read."""
    config = stored_config(folder)
    sentences = config.get("data_path")
    title, names = TASKS.get(str(sentences or config.get("test_data_path")), (folder.name, {}))
    if sentences:
        title += f" in {Path(str(config.get('model_path'))).name}"
    return Told(", ".join(filter(None, (title, fresh(config)))), names, config)


def stays(table: pd.DataFrame, told: Told) -> bool:
    """Whether answers should stay: those of sentences, which do not depend on the variable of these rows."""
    return bool(told.config.get("data_path")) and bool(table["beyond_full"].isna().all())


def fresh(config: dict[str, Any]) -> str:
    """Which weights of a run's models were made anew, as controls; nothing where none were."""
    layer = config.get("layer_reinit", -1)
    return ", ".join(filter(None, (
        when(config.get("random_init"), "fresh weights"), when(config.get("reinit_embeddings"), "fresh embeddings"),
        "the sublayer's weights shuffled" if layer is True else
        when(layer is not False and layer not in (-1, None), f"fresh weights in layer {layer}"))))


def in_order(methods: Iterable[str]) -> list[str]:
    """Methods in the order of figures: by what they see, then as in LOOKS; those that it does not know come last."""
    def place(name: str) -> tuple:
        return ([*SEES, method(name).SEES].index(method(name).SEES), [*LOOKS, name].index(name), name)

    return sorted(set(methods), key=place)


def mean_with_interval(table: pd.DataFrame, *columns: str) -> tuple[float, float, float]:
    """The mean over cells of shares of pairs, and its interval over models and the pairs in them."""
    known = table[table[list(columns)].notna().all(axis=1) & (table["pairs"] > 0)]
    if known.empty:
        return np.nan, np.nan, np.nan
    models = [own for _, own in known.groupby("model")]
    shares = [own[list(columns)].to_numpy().flatten() for own in models]
    counts = [np.repeat(own["pairs"].to_numpy(), len(columns)) for own in models]
    return known[list(columns)].to_numpy().mean(), *clustered_interval(shares, counts)


# ------------------------------------------------------------------------------- words

def about(table: pd.DataFrame, what: str) -> str:
    """Over what a figure is, for its title. what: that there are so many pairs of."""
    seeds, pairs = table["model"].nunique(), table.loc[table["pairs"] > 0, "pairs"]
    size = " to ".join(f"{count:.0f}" for count in sorted({pairs.min(), pairs.max()})) if len(pairs) else "no"
    return f"n = {seeds} model{'s' * (seeds > 1)}, {size} pairs {what}"


def interval_of(models: float, within: str) -> str:
    """What an interval is over, and what it is worth. within: what is drawn in a model."""
    if models == 1:
        return f"95 % interval over the {within} of one model (says nothing of others)"
    few = when(models < FEW, " (nominal: too narrow with so few models)")
    return f"95 % interval over models, then {within}{few}"


def cells_of(table: pd.DataFrame, told: Told) -> str:
    """Which variables at which sites a table has."""
    sites = [f"{told.variables(own['variable'].unique())} {SITES[site]}"
             for site, own in table.groupby("residual_location", sort=False)]
    layers = table["target_layer"].nunique()
    return "; ".join(sites) + when(layers > 1, f", in {layers} layers")


def has_draws(table: pd.DataFrame) -> bool:
    return "random_iia_mean" in table and bool(table["random_iia_mean"].notna().any())


def draws_of(table: pd.DataFrame, told: Told) -> str:
    """What is shown of the random draws of a method's size, and how many there are, where that is known."""
    draws, pairs = (told.config.get(key) for key in ("num_random_draws", "num_random_pairs"))
    on = f" on {min(pairs, table['pairs'].max()):.0f} pairs" if pairs else ""
    return (f"mean to highest of {f'{draws} ' if draws else ''}random draws of the method's size{on}; not an interval\n"
            "(no box: the method has no size, or its circuit leaves too few neurons to draw from)")


def sizes_of(table: pd.DataFrame) -> dict[str, str]:
    """How many dimensions each method exchanges, those that have such a number: the smallest to the largest."""
    ranks = table[table["method"] != "none"].dropna(subset="rank").groupby("method")["rank"]
    return {name: " to ".join(f"{rank:.0f}" for rank in sorted({own.min(), own.max()})) for name, own in ranks}


def why_full_fails(carried: pd.DataFrame) -> str:
    """Why exchanging everything gives other answers than exchanging a carried variable, where it does.

    Nothing of variables that decide the answer alone, which have a column beyond_full.
    """
    return when(carried["beyond_full"].isna().all() and carried.loc[carried["method"] == "full", "iia"].mean() < 0.5,
                "full exchanges all else too, so it gives the source's own answer")


def wrong_answers(told: Told) -> str:
    return when(told.config.get("only_right") is False, "with pairs that the model answers wrongly")


def when(true: Any, text: str) -> str:
    return text if true else ""


def listed(*parts: str) -> str:
    return "; ".join(filter(None, parts))


# ------------------------------------------------------------------------------- looks

def look(name: str) -> dict[str, Any]:
    """A method's marker and colour, hollow if it is a control; methods that LOOKS does not know have other markers."""
    own = sorted({*interchange_methods()} - {*LOOKS})
    role, marker = LOOKS.get(name) or ("other", OWN_MARKERS[own.index(name) % len(OWN_MARKERS)])
    color = COLORS[role]
    return {"marker": marker, "color": color, "markerfacecolor": "white" if name in CONTROLS else color}


def with_headings(methods: Iterable[str]) -> list[str]:
    """Methods in order; before those that see the same, what that is, in several words."""
    rows: list[str] = []
    for name in in_order(methods):
        heading = SEES.get(method(name).SEES, f"sees {method(name).SEES}")
        rows += [name] if heading in rows else [heading, name]
    return rows


def is_heading(row: str) -> bool:
    return " " in row  # the name of a method, a file's, holds none


def embolden_headings(texts: Iterable[Text]) -> None:
    for text in texts:
        if is_heading(text.get_text()):
            text.set(fontweight="bold", color="0.3", fontsize="small")


def note(axis, x: float, y: float, text: str, **options) -> None:
    """A remark in a panel, which no line strikes out."""
    axis.text(x, y, text, color="0.3", fontsize="small", parse_math=False, zorder=5,
              bbox={"facecolor": "white", "edgecolor": "none", "pad": 1}, **options)


def handle(label: str, **options) -> Line2D:
    return Line2D([], [], label=label, **{"linestyle": "none", "color": "0.3"} | options)


# ------------------------------------------------------------------------------- the figures

def draw_methods(table: pd.DataFrame, told: Told, path: Path) -> None:
    """Interchange accuracy by method, where the variable is carried and where not; a dot a model, variable and site."""
    rows = with_headings(table["method"])
    truths = [truth for truth in (True, False) if table["carried"].eq(truth).any()]
    figure, axes = plt.subplots(1, len(truths), figsize=(max(8, 6.4 * len(truths)), 3.3 + 0.36 * len(rows)),
                                sharey=True, squeeze=False, layout="constrained")
    markers = dict(zip(sorted(table["model_seed"].unique()), cycle(MODEL_MARKERS)))
    for axis, truth in zip(axes[0], truths):
        part = table[table["carried"].eq(truth)]
        highest = 1.0 if truth else np.nan_to_num(part.filter(["iia", "random_iia_max"]).max().max())
        end = min(1.0, max(0.01, 1.5 * highest))
        cells = [(site, variable) for site, own in part.groupby("residual_location", sort=False)
                 for variable in own["variable"].unique()]  # the order of the title
        heights = dict(zip(cells, np.linspace(-0.24, 0.24, len(cells) + 2)[1:-1]))
        axis.axvline(part.loc[part["method"] == "none", "iia"].mean(), linestyle="--", color="0.4")
        for y, name in enumerate(rows):
            own = part[part["method"] == name]
            if is_heading(name):
                axis.axhspan(y - 0.4, y + 0.4, color="white", linewidth=0, zorder=0.6)  # above the grid
            if has_draws(own):
                low, high = own["random_iia_mean"].min(), own["random_iia_max"].max()
                axis.barh(y, max(high - low, 0.003 * end), 0.7, left=low, color="0.8", edgecolor="0.6", linewidth=0.6,
                          zorder=0)
            for seed, dots in own.groupby("model_seed"):
                axis.plot(dots["iia"], [y + heights[cell] for cell in zip(dots["residual_location"], dots["variable"])],
                          alpha=0.7, markersize=4.5, **look(name) | {"marker": markers[seed], "linestyle": "none"})
            mean, low, high = mean_with_interval(own, "iia")
            axis.errorbar(mean, y, xerr=[[max(0, mean - low)], [max(0, high - mean)]], fmt="|", color="0.2",
                          markersize=13, capsize=3, zorder=1)
        if truth and (why := why_full_fails(part)):
            note(axis, 0.08, rows.index("full"), why, va="center")
        title = f"{'carried' if truth else 'not carried'}: {cells_of(part, told)}".replace("; ", ";\n")
        title += when(len(cells) > 1, "\n(in each row from top to bottom)")
        axis.set_title(wrapped(title, 62), parse_math=False, fontsize="medium")
        axis.set(xlim=(-0.03 * end, 1.03 * end), ylim=(len(rows) - 0.4, -0.6),
                 xlabel="interchange accuracy" + when(len(truths) > 1 and end < 1, f" (up to {end:.2f} only)"))
    sizes = sizes_of(table[table["carried"].eq(truths[0])]) if truths else {}
    axes[0][0].set_yticks(range(len(rows)), [f"{row} ({sizes[row]})" if row in sizes else row for row in rows])
    embolden_headings(text for text, row in zip(axes[0][0].get_yticklabels(), rows) if is_heading(row))
    figure.legend(handles=[
        *(handle(f"model of seed {seed}", marker=marker) for seed, marker in markers.items()),
        handle("hollow: a control", marker="o", markerfacecolor="white"),
        *[handle("mean where nothing is exchanged (none);\nsome exchanges leave the answer as it is", linestyle="--",
                 color="0.4")] * ("none" in rows),
        *[handle(f"in brackets: dimensions exchanged{when(truths[0], ' where carried')}", marker="")] * bool(sizes),
        handle(f"mean, {interval_of(table['model'].nunique(), 'pairs')}", marker="|", markersize=13, color="0.2"),
        *[Patch(color="0.8", linewidth=0, label=draws_of(table, told))] * has_draws(table)],
        loc="outside lower center", ncols=len(truths), fontsize="small")
    figure.suptitle(f"{told.title}: does exchanging what a method takes for a variable change the answer as it should?"
                    + "\n" + listed(about(table, "a dot (a model, a variable and a site)"), wrong_answers(told),
                                    "carried or not: known beforehand (key carried)"),
                    parse_math=False, fontsize="medium")
    save_figure(figure, path)


# whether cause and isolate are high: what it means to lie there, and where that is said
CORNERS: dict[tuple[bool, bool], tuple[str, dict[str, Any]]] = {
    (False, True): ("changes hardly any answer", {"x": -0.03, "y": 1.05, "va": "bottom"}),
    (True, True): ("the variable, and no more", {"x": 1.03, "y": 1.05, "va": "bottom", "ha": "right"}),
    (False, False): ("changes more than the variable", {"x": -0.03, "y": -0.05, "va": "top"}),
    (True, False): ("the variable, and more", {"x": 1.03, "y": -0.05, "va": "top", "ha": "right"})}


def draw_isolate(table: pd.DataFrame, told: Told, path: Path) -> None:
    """Cause against isolate where the variable is carried, a marker a method, a colour a kind of method."""
    part = table[table["carried"].eq(True)]
    rows = with_headings(part["method"])
    figure, axis = plt.subplots(figsize=(9.6, 6.4), layout="constrained")
    for name in rows:
        own = part[part["method"] == name]
        hollow = name in CONTROLS
        axis.plot(own["iia"], own["isolate"], markersize=9, alpha=0.8, label=name, linestyle="none",
                  **({} if is_heading(name) else look(name) | {
                      "markeredgecolor": look(name)["color"] if hollow else "0.2",
                      "markeredgewidth": 1.5 if hollow else 0.5}))
    means = part.groupby("method")[["iia", "isolate"]].mean().reindex(in_order(part["method"]))
    for (cause, isolated), (words, place) in CORNERS.items():
        there = [(means[column] > 0.9) if high else (means[column] < 0.1)
                 for column, high in (("iia", cause), ("isolate", isolated))]
        pile = list(means.index[there[0] & there[1]])
        why = when("full" in pile, why_full_fails(part))
        note(axis, text=wrapped(listed(f"{words}: {', '.join(pile) or 'no method'}", why), 40), **place)
    ticks = np.linspace(0, 1, 6).round(1)
    axis.set(xlim=(-0.06, 1.06), ylim=(-0.3, 1.24), xticks=ticks, yticks=ticks,
             xlabel="interchange accuracy (cause): share of answers as the exchange should give them",
             ylabel="isolate: share of answers that stay, right or wrong,\nwhen the source has the same value")
    legend = axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small",
                         title="hollow: a control", title_fontsize="small")
    embolden_headings(legend.get_texts())
    axis.set_title(f"{told.title}: does an exchange change the answer as it should, and nothing else?\ncarried: "
                   + listed(cells_of(part, told), about(part, "a dot (a model, a variable and a site)"),
                            wrong_answers(told)), parse_math=False, fontsize="medium")
    save_figure(figure, path)


def draw_detection(board: pd.DataFrame, path: Path) -> None:
    """AUROC by method with its interval. board: the leaderboard, in its order."""
    board = board[board["auroc"].notna()].sort_values("auroc", ascending=False, kind="stable")
    figure, axis = plt.subplots(figsize=(8.4, 2.6 + 0.36 * len(board)), layout="constrained")
    for y, row in enumerate(board.itertuples()):
        axis.errorbar(row.auroc, y, xerr=[[max(0, row.auroc - row.auroc_low)], [max(0, row.auroc_high - row.auroc)]],
                      capsize=3, **look(row.method))
        note(axis, 1.04, y, f"{row.auroc:.2f}", va="center")
    axis.axvline(0.5, linestyle="--", color="0.4")
    axis.set(yticks=range(len(board)), yticklabels=board["method"], xlim=(-0.03, 1.12), xlabel=(
        "AUROC: how often a cell that carries its variable has a higher\ninterchange accuracy than one that does not"))
    axis.invert_yaxis()
    figure.legend(handles=[handle("chance", linestyle="--", color="0.4"), handle("a method", marker="o"),
                           handle("a control", marker="o", markerfacecolor="white")], loc="outside lower center",
                  ncols=3, fontsize="small")
    cells, carried, models = (int(board.iloc[0][name]) for name in ("cells", "carried", "models"))
    easy = when(board.loc[board["method"] == "random", "auroc"].ge(0.99).any(),
                "It is for random directions too: an easy test.\n")
    axis.set_title(f"Is interchange accuracy higher where a variable is carried?\n{easy}" + wrapped(listed(
        f"{carried} cells that carry and {cells - carried} that do not, known beforehand (a cell: a "
        f"model, a variable and a site); n = {models} model{'s' * (models > 1)}, the same for all methods",
        interval_of(models, "cells"), "equal ones in the order of the leaderboard"), 84), parse_math=False,
        fontsize="medium")
    save_figure(figure, path)


def draw_layers(table: pd.DataFrame, told: Told, path: Path) -> None:
    """Heat maps of layers and methods, of a variable at a site: interchange accuracy, log odds and isolate."""
    methods, layers = in_order(table["method"]), sorted(set(table["target_layer"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    width = max(7.5, 3.6 + 0.5 * len(layers))
    judged = table.assign(beyond=table["beyond_full"].astype(str).eq("True")).groupby(["method", "target_layer"])
    beyond = judged["beyond"].all()  # in every model
    beyond, several = beyond[beyond].index, table["model"].nunique() > 1
    skipped = [i for i in range(1, len(layers)) if layers[i] > layers[i - 1] + 1]
    kept, moved = (("keep their answer, as they should", "the other answer is favoured than") if stays(table, told) else
                   ("get the wanted answer, which the exchange should give",
                    "the wanted answer is favoured over the old one than"))
    share = {"vmin": 0, "vmax": 1, "cmap": "viridis"}
    panels = [("iia", "interchange accuracy", f"share of pairs that {kept}", 2, share),
              ("log_odds_mean", "log odds (nats)", f"how much further {moved} without the exchange, mean over pairs", 1,
               {"center": 0, "cmap": "vlag"})]
    if table["isolate"].notna().any():
        panels.append(("isolate", "isolate", "share of pairs with the same value of the variable that keep their "
                       "answer, as they should", 2, share))
    figure, axes = plt.subplots(len(panels), 1, figsize=(width, 1 + len(panels) * (1.1 + 0.31 * len(methods))),
                                layout="constrained", squeeze=False)
    for axis, (column, label, title, digits, scale) in zip(axes.flat, panels):
        grid = table.pivot_table(index="method", columns="target_layer", values=column).reindex(methods, columns=layers)
        write_text(path.with_name(f"{path.name}_{column}.csv"), grid.to_csv())
        axis.set_facecolor("0.85")  # what was not run is grey
        sns.heatmap(grid.round(digits) + 0.0, ax=axis, annot=True, fmt=f".{digits}f", annot_kws={"fontsize": 7},
                    cbar_kws={"label": label}, **scale)
        axis.grid(visible=False)
        for text in axis.texts:
            text.set_zorder(5)
        for name, layer in beyond:
            at = layers.index(layer), methods.index(name)
            axis.add_patch(Rectangle(at, 1, 1, fill=False, hatch="//", edgecolor=(1, 0.4, 0.3, 0.6), linewidth=1.5))
        for i in skipped:
            axis.axvline(i, color="white", linewidth=7)
        axis.set(xlabel="layer", ylabel="")
        axis.set_title(wrapped(title, 12 * (width - 3)), fontsize="medium")
        names = [name + when(name in CONTROLS, " (control)") for name in methods]
        axis.set_yticks(axis.get_yticks(), names, rotation=0)
    reach = pd.concat([table["iia"] - table["iia_low"], table["iia_high"] - table["iia"]]).max()
    ranks = table.loc[~table["method"].isin(["none", "full", "das"]), "rank"].dropna()
    figure.suptitle(f"{told.title}; exchanged: {told.variables(table['variable'].unique())}\n" + listed(
        f"residual stream {SITES[table['residual_location'].iloc[0]]}, at the last token, which answers",
        about(table, "a cell"), when(several, "means of the models"), wrong_answers(told),
        when(not several and reach >= 0, f"95 % intervals over pairs reach at most {np.ceil(100 * reach) / 100:.2f}"),
        when(len(ranks) and ranks.eq(1).all(), "linear methods exchange one direction"),
        when(len(beyond), f"hatched: beyond what exchanging everything does{when(several, ', in every model')}"),
        when(skipped, "white gap: layers that were not run"),
        when(grid.isna().any(axis=None), "grey: not run, or no pairs")), parse_math=False, fontsize="medium")
    save_figure(figure, path)


def accuracy_by_step(rows: pd.DataFrame) -> pd.DataFrame:
    """A method's iia, iia_low and iia_high by step: of one model as it is, of several the mean and its interval."""
    columns, steps = ["iia", "iia_low", "iia_high"], rows.groupby("step")
    if rows["model"].nunique() == 1:
        return steps[columns].mean()
    return pd.DataFrame({step: mean_with_interval(own, "iia") for step, own in steps}, index=columns).T


def draw_checkpoints(table: pd.DataFrame, told: Told, path: Path) -> None:
    """Interchange accuracy over the checkpoints of a training, a panel for each variable and site; the model's own."""
    table = table.assign(step=pd.to_numeric(table["checkpoint"], errors="coerce"))
    left_out = ", ".join(table.loc[table["step"].isna(), "checkpoint"].astype(str).unique())
    table = table.dropna(subset="step")
    if table.empty:
        print(f"{shown(path)}: not drawn, because its checkpoints ({left_out}) are no epochs.", file=sys.stderr)
        return
    panels = list(table.groupby(["variable", "residual_location", "target_layer"], sort=False))
    figure, axes = plt.subplots(1, len(panels), figsize=(max(8, 4.6 * len(panels)), 4.8), sharey=True, squeeze=False,
                                layout="constrained")
    known, nothing = "model_acc" in table and table["model_acc"].notna().any(), pd.Series(dtype=float)
    for axis, ((variable, site, layer), own) in zip(axes[0], panels):
        if known:
            draw_line(axis, own.groupby("step")["model_acc"].mean(), nothing,
                      "the model's own test accuracy, nothing exchanged", "black", marker="")
        for number, name in enumerate(in_order(own["method"]), start=1):
            line, style = accuracy_by_step(own[own["method"] == name]), look(name)
            draw_line(axis, line["iia"], nothing, name, style["color"], number, style["marker"])
            axis.lines[-1].set(markerfacecolor=style["markerfacecolor"], markersize=DOT)
            axis.fill_between(line.index, line["iia_low"], line["iia_high"], color=style["color"], alpha=0.2,
                              linewidth=0)
        axis.set(xscale="log", xlabel="epoch", ylim=(-0.03, 1.03))
        axis.set_title(f"{told.variables([variable])} {SITES[site]}" + when(
            table["target_layer"].nunique() > 1, f", layer {layer}"), parse_math=False)
    axes[0][0].set_ylabel("interchange accuracy" + when(known, "\n(black line: accuracy)"))
    lines = {label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=3, fontsize="small")
    figure.draw_without_rendering()  # lays it out
    dot = DOT * 1.06 / (72 / figure.dpi * axes[0][0].get_window_extent().height)  # in units of the axis
    narrow = table["model"].nunique() == 1 and (table["iia_high"] - table["iia_low"]).max() < dot
    figure.suptitle(f"{told.title}: when in its training does an exchange change the answer as it should?\n" + listed(
        about(table, "a point"), wrong_answers(told), "fitted anew at each checkpoint",
        when(table["model"].nunique() > 1, "means of the models"),
        f"shaded: 95 % intervals over {when(table['model'].nunique() > 1, 'models, then ')}pairs"
        + when(narrow, ", narrower than the dots"), when(left_out, f"without {left_out}, which is no epoch"),
        when(not known, "the table does not have the model's own accuracy")), parse_math=False, fontsize="medium")
    save_figure(figure, path)
