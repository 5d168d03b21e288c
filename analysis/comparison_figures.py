"""The figures of the comparison of methods, of rows with the columns that `describe` adds."""

import sys
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from analysis import figures
from analysis.figures import handle
from interp.methods.interchange.registry import INTERCHANGES
from interp.plotting import COLORS, wrapped
from interp.runs.config import shown
from interp.runs.files import write_text
from interp.statistics import clustered_interval

LOOKS = {  # the methods in the order of figures, each with its key of COLORS and its marker
    "full": ("whole", "D"), "none": ("baseline", "o"), "random": ("random", "s"), "pca": ("other", "^"),
    "difference_in_means": ("difference in means", "v"), "linear_probe": ("linear probe", "<"), "leace": ("LEACE", ">"),
    "lda": ("closed form", "P"), "mlp_probe": ("MLP probe", "X"), "circuit_update": ("circuit", "*"),
    "circuit_selected": ("circuit", "s"), "circuit_complement": ("circuit", "h"), "circuit_neurons": ("circuit", "^"),
    "neuron_mask": ("circuit", "D"), "das_k": ("DAS", "d"), "das": ("DAS", "o")}
LOOKS |= {name: ("other", marker) for name, marker in zip(sorted(set(INTERCHANGES) - set(LOOKS)), cycle("p8H1234"))}
CONTROLS = ("none", "random", "pca", "full", "circuit_complement")  # compared with, not ranked; hollow in figures
MODEL_MARKERS = "os^Dv<>PX*hpd8H"  # markers of models, where colours tell methods
SUPERVISION = ("nothing", "activations", "variable", "answers")  # what methods are given, in the order of figures
SITES = {"resid_pre": "before the layer", "attn_out": "in attention's output", "resid_mid": "after attention",
         "mlp_out": "in the MLP's output", "resid_post": "after the MLP"}
TASKS = {  # by the data that are tested on: what is computed, and what the columns of its variables hold
    "data/Disambiguation/test.csv": (
        "a² - b² mod 113", {"var_0": "a²", "var_1": "-b²", "aux_0": "a+b", "aux_1": "a-b"}),
    "data/Grokking/test.csv": ("a² + b mod 113", {"var_0": "a²", "var_1": "b", "aux_0": "b²"}),
    "data/Shared_Nodes/Task_1/test.csv": ("a mod 29 + b mod 31, one of two tasks of a model", {
        "var_0": "a mod 29", "var_1": "b mod 31", "aux_0": "distractor mod 23"}),
    "data/Shared_Nodes/Task_2/test.csv": ("a mod 29 + b mod 23, one of two tasks of a model", {
        "var_0": "a mod 29", "var_1": "b mod 23", "aux_0": "distractor mod 31"}),
    "data/Language/Syntactic_Number.csv": ("'is' or 'are'", {
        "labels": "number of the subject", "object labels": "number of the object"})}


def describe(table: pd.DataFrame, experiment: str, config: dict[str, Any]) -> pd.DataFrame:
    """A run's table with what its config says: data and model, which tell cells from those of other runs, and names."""
    data = str(config.get("data_path") or config.get("test_data_path") or experiment)
    model, (title, names) = str(config.get("model_path", experiment)), TASKS.get(data, (experiment, {}))
    controls = [f"{key} {config[key]}" for key in ("random_init", "reinit_embeddings", "layer_reinit")
                if str(config.get(key)) not in ("None", "False", "-1")]  # weights that were replaced
    title += f" in {Path(model).name}" if config.get("data_path") else ""
    title += ", with pairs that the model answers wrongly" if config.get("only_right") is False else ""
    rule = config.get("rank") or (config.get("rank_rule_list") or ["selected"])[0]
    return table.assign(
        rank_rule=table.get("rank_rule", pd.Series(rule, table.index)).astype(str),
        draws=config.get("num_random_draws", 20), experiment=experiment, title=", ".join([title, *controls]),
        sentences=bool(config.get("data_path")), data=data,
        model=" ".join([model, *controls]) + " " + table["model_seed"].astype(str),
        model_name=Path(config["model_path"]).name if "model_path" in config else str(Path(experiment).parent),
        cell_name=table["variable"].replace(names) + " " + table["residual_location"].map(SITES)
        + (" at " + table["position"]).where(table["position"] != "last", ""),
        ground_truth=table["ground_truth"].map({True: True, False: False, "True": True, "False": False}))


def about(table: pd.DataFrame) -> str:
    """What a table is of, for titles: cells, models and pairs."""
    models, cells = table["model"].nunique(), ", ".join(table["cell_name"].unique())
    return f"{cells}; n = {models} model{'s' * (models > 1)}, {figures.span(table['n_pairs'])} pairs a point"


def in_order(methods: Iterable[str]) -> list[str]:
    """Methods in the order of figures: by supervision, then as in LOOKS."""
    order = [*LOOKS]
    return sorted(set(methods), key=lambda name: (SUPERVISION.index(INTERCHANGES[name].supervision), order.index(name)))


def sizes_of(table: pd.DataFrame, column: str = "rank") -> dict[str, str]:
    """', rank 2' or ', rank 1 to 8' by method, to stand behind its name; '' where it has no such number."""
    ranks = table.groupby("method")[column]
    return {name: f", rank {figures.span(rank)}" if rank.any() else "" for name, rank in ranks}


def look(name: str) -> dict[str, Any]:
    """A method's marker and colour, hollow if it is a control."""
    role, marker = LOOKS[name]
    return {"marker": marker, "color": COLORS[role], "markerfacecolor": "white" if name in CONTROLS else COLORS[role]}


def mean_with_interval(table: pd.DataFrame, *columns: str) -> tuple[float, float, float]:
    """The mean of shares of pairs over cells, then models, and its interval over models (of one: over its pairs)."""
    known = table[table[list(columns)].notna().all(axis=1) & (table["n_pairs"] > 0)]
    if known.empty:
        return np.nan, np.nan, np.nan
    models = [rows for _, rows in known.groupby("model")]
    shares = [rows[list(columns)].to_numpy().flatten() for rows in models]
    counts = [np.repeat(rows["n_pairs"].to_numpy(), len(columns)) for rows in models]
    return float(np.mean([share.mean() for share in shares])), *clustered_interval(shares, counts)


def draw_interval(axis: Axes, y: float, values: tuple[float, float, float], **options) -> None:
    """A mean, and how far its interval reaches, below and above."""
    mean, low, high = values
    axis.errorbar(mean, y, xerr=[[max(0, mean - low)], [max(0, high - mean)]], capsize=3, **options)


def draw_methods(table: pd.DataFrame, path: Path) -> None:
    """Interchange accuracy by method, where the variable is carried and where not; a dot a cell."""
    methods, truths = in_order(table["method"]), sorted(table["ground_truth"].unique(), reverse=True)
    markers = dict(zip(sorted(table["model_seed"].unique()), cycle(MODEL_MARKERS)))
    size = max(8, 6.4 * len(truths)), 3.3 + 0.42 * len(methods)
    figure, axes = figures.grid_of([""], [""] * len(truths), size, sharey=True)
    for axis, truth in zip(axes[0], truths):
        part = table[table["ground_truth"] == truth]
        highest = np.nan_to_num(part[["iia", "random_iia_max"]].max().max())
        end = 1.0 if truth else min(1.0, max(0.01, 1.5 * highest))
        cells = part["cell_name"].unique()
        heights = dict(zip(cells, np.linspace(-0.24, 0.24, len(cells) + 2)[1:-1]))
        axis.axvline(part.loc[part["method"] == "none", "iia"].mean(), linestyle="--", color="0.4")
        for y, name in enumerate(methods):
            rows = part[part["method"] == name]
            low, high = rows["random_iia_mean"].min(), rows["random_iia_max"].max()
            axis.barh(y, max(high - low, 0.003 * end), 0.7, low, color="0.8", edgecolor="0.6", linewidth=0.6, zorder=0)
            for seed, dots in rows.groupby("model_seed"):
                axis.plot(dots["iia"], y + dots["cell_name"].map(heights), alpha=0.7, markersize=4.5,
                          **look(name) | {"marker": markers[seed], "linestyle": "none"})
            draw_interval(axis, y, mean_with_interval(rows, "iia"), fmt="|", color="0.2", markersize=13, zorder=1)
        axis.set_title(wrapped(f"{'carried' if truth else 'not carried'}: {about(part)}", 62), fontsize="medium")
        axis.set(xlim=(-0.03 * end, 1.03 * end), ylim=(len(methods) - 0.4, -0.6),
                 xlabel="interchange accuracy" + (f" (up to {end:.2f} only)" if end < 1 else ""))
    sizes = sizes_of(table[table["ground_truth"] == truths[0]])
    names = [f"{name} ({INTERCHANGES[name].supervision}{sizes.get(name, '')})" for name in methods]
    axes[0][0].set_yticks(range(len(methods)), names)
    handles = [handle(f"model of seed {seed}", marker=marker) for seed, marker in markers.items()] + [
        handle("hollow: a control", marker="o", markerfacecolor="white"),
        handle("mean where nothing is exchanged (none);\nsome interchanges leave the answer as it is", linestyle="--"),
        handle("in brackets: supervision, rank (dimensions exchanged)", marker=""),
        handle("mean, 95 % interval over models (of one: over pairs)", marker="|", markersize=13),
        Patch(color="0.8", linewidth=0, label="mean to highest of random draws of the method's size; not an interval\n"
              "(no box: the method has no size, or its circuit leaves too few neurons to draw from)")]
    figures.finish(figure, f"{table['title'].iloc[0]}: does an interchange change the answer as it should?\ncarried or "
                   "not: known beforehand (key ground_truth); cells of a row from top to bottom as listed", path,
                   len(truths), handles, fontsize="small")


def draw_isolate(table: pd.DataFrame, path: Path) -> None:
    """Cause against isolate where the variable is carried, a marker a method, a colour a kind of method."""
    part = table[table["ground_truth"].eq(True)]
    ylabel = "isolate: share of answers that stay, right or wrong,\nwhen the source has the same value"
    figure, [[axis]] = figures.grid_of([ylabel], [""], (9.6, 6.4))
    for name in in_order(part["method"]):
        rows, style = part[part["method"] == name], look(name)
        axis.plot(rows["iia"], rows["isolate"], markersize=9, alpha=0.8, linestyle="none",
                  label=f"{name} ({INTERCHANGES[name].supervision}{sizes_of(part)[name]})",
                   markeredgecolor=style["color"] if name in CONTROLS else "0.2", **style)
    for y, left, right in ((1.08, "changes hardly any answer", "the variable, and no more"),
                           (-0.12, "changes more than the variable", "the variable, and more")):
        axis.text(-0.03, y, left, fontsize="small")
        axis.text(1.03, y, right, fontsize="small", ha="right")
    axis.set(xlim=(-0.06, 1.06), ylim=(-0.2, 1.18),
             xlabel="interchange accuracy (cause): share of answers as the interchange should give them")
    figures.finish(figure, f"{table['title'].iloc[0]}: is the answer changed, and nothing else?\ncarried: "
                   f"{about(part)}", path, 4, title="hollow: control; in brackets: supervision, rank", fontsize="small")


def draw_detection(board: pd.DataFrame, path: Path) -> None:
    """AUROC by method with its interval. board: the leaderboard, in its order."""
    board = board.dropna(subset="auroc").sort_values("auroc", ascending=False, kind="stable")
    figure, [[axis]] = figures.grid_of([""], [""], (8.4, 2.6 + 0.36 * len(board)))
    for y, row in enumerate(board.itertuples()):
        draw_interval(axis, y, (row.auroc, row.auroc_low, row.auroc_high), **look(row.method))
        axis.text(1.04, y, f"{row.auroc:.2f}", va="center", fontsize="small")
    axis.axvline(0.5, linestyle="--", color="0.4")
    names = board["method"] + board["method"].map(sizes_of(board, "rank_carried"))
    axis.set(yticks=range(len(board)), yticklabels=names, ylim=(len(board) - 0.5, -0.5), xlim=(-0.03, 1.12),
             xlabel="AUROC: how often a cell that carries its variable has a higher\ninterchange accuracy than another")
    cells, carried, models = board[["cells", "carried", "models"]].max()
    handles = [handle("chance", linestyle="--"), handle("hollow: a control", marker="o", markerfacecolor="white")]
    figures.finish(figure, f"Is interchange accuracy higher where a variable is carried?\n{carried} of {cells} cells "
                   f"carry it; {models} models; 95 % interval over models, then cells", path, 3, handles)


def draw_layers(table: pd.DataFrame, path: Path) -> None:
    """Heat maps of layers and methods, of a variable at a site: interchange accuracy, log odds and isolate."""
    methods, layers = in_order(table["method"]), sorted(set(table["target_layer"]))
    stays = table["sentences"].all() and table["exceeds_full"].isna().all()  # they do not depend on the variable
    share: dict[str, Any] = {"vmin": 0, "vmax": 1, "cmap": "viridis"}
    iia, favoured = ("pairs that keep their answer", "other") if stays else ("pairs with the wanted answer", "wanted")
    panels: dict[str, tuple[str, int, dict[str, Any]]] = {
        "iia": (f"interchange accuracy: share of {iia}", 2, share),
        "log_odds_mean": (f"log odds (nats) of the {favoured} answer, less those without the interchange", 1, {
            "center": 0, "cmap": "vlag"}),
        "isolate": ("isolate: share of pairs with the same value of the variable that keep their answer", 2, share)}
    panels = {column: panel for column, panel in panels.items() if table[column].notna().any()}
    width = max(7.5, 3.6 + 0.5 * len(layers))
    names = [name + " (control)" * (name in CONTROLS) + sizes_of(table)[name] for name in methods]
    figure, axes = figures.grid_of([""] * len(panels), [""], (width, 1 + len(panels) * (1.1 + 0.31 * len(methods))))
    exceeds = table["exceeds_full"].astype(str).eq("True").groupby([table["method"], table["target_layer"]]).all()
    for axis, (column, (title, digits, scale)) in zip(axes[:, 0], panels.items()):
        grid = table.pivot_table(index="method", columns="target_layer", values=column).reindex(methods, columns=layers)
        write_text(path.with_name(f"{path.name}_{column}.csv"), grid.to_csv())
        figures.draw_heat_map(axis, grid, names, digits, annot_kws={"fontsize": 7}, **scale)
        figures.hatch(axis, [(layers.index(layer), methods.index(name)) for name, layer in exceeds.index[exceeds]])
        axis.set_xlabel("layer")
        axis.set_title(wrapped(title, 12 * (width - 3)), fontsize="medium")
    figures.finish(figure, f"{table['title'].iloc[0]}; exchanged: {about(table)}\nmeans over models; hatched: exceeds "
                   "the interchange of everything; grey: not run, or no pairs", path)


def draw_checkpoints(table: pd.DataFrame, path: Path) -> None:
    """Interchange accuracy over the checkpoints of a training, a panel for each variable and site; the model's too."""
    table = table.assign(x=pd.to_numeric(table["checkpoint"], errors="coerce"), row="").dropna(subset="x")
    if table.empty:
        print(f"{shown(path)}: not drawn, because its checkpoints are no epochs.", file=sys.stderr)
        return
    table = table.assign(column=table["cell_name"] + ", layer " + table["target_layer"].astype(str))
    lines = table.rename(columns={"method": "line", "iia": "value", "iia_low": "low", "iia_high": "high"})
    keys = ["row", "column", "x"]
    if table["model"].nunique() > 1:
        means = [(*key, *mean_with_interval(rows, "iia")) for key, rows in table.groupby([*keys, "method"])]
        lines = pd.DataFrame(means, columns=[*keys, "line", "value", "low", "high"])
    accuracy = "the model's test accuracy, nothing exchanged"
    model = table.groupby(keys)["model_acc"].mean().rename("value").reset_index().assign(line=accuracy)
    looks = {accuracy: {"color": "black", "marker": ""}} | {
        name: look(name) | {"markersize": 5, "label": name + sizes_of(table)[name]}
        for name in in_order(table["method"])}
    columns = {name: name for name in table["column"].unique()}
    figure, panels = figures.draw_lines(pd.concat([lines, model]), {"": "interchange accuracy\n(black line: accuracy)"},
                                        columns, looks, "epoch", (max(8, 4.6 * len(columns)), 4.8), sharey=True)
    for axis in panels.values():
        axis.set(xscale="log", ylim=(-0.03, 1.03))
    figures.finish(figure, f"{table['title'].iloc[0]}: when is the answer changed as it should be?\n{about(table)}; "
                   "shaded: 95 % intervals over models (of one: over pairs)", path, fontsize="small")
