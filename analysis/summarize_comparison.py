"""Which method finds what the model uses? The runs of compare_methods.py as figures and a leaderboard.

    python analysis/summarize_comparison.py [--results Results/Comparison] [--out DIR]

Reads RESULTS/*/results.csv. A run that knows which sites carry a variable (its key `carried`) goes into

sites.csv                all settings of all runs, with p_holm: the rank among random draws corrected over a run's sites
leaderboard.csv, .md     a row for each method: interchange accuracy where the variable is carried and where not, and
                         how well it tells the two apart (AUROC); 95 % intervals over models, then pairs
EXPERIMENT/methods       interchange accuracy by method, a dot for each model, variable and site
EXPERIMENT/isolate       cause against isolate, where the variable is carried
detection                AUROC by method, of all such runs

and one that does not (language) into EXPERIMENT/VARIABLE_SITE, heat maps of layers and methods, and their tables as
VARIABLE_SITE_iia.csv and _log_odds_mean.csv. A run that sweeps checkpoints gives EXPERIMENT/checkpoints instead. Every
figure is a PNG and a PDF.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from analysis.method_figures import RESULTS, check_columns, read_csv, run, whole_out
from interp.methods.interchange import method
from interp.methods.table import interchange_methods
from interp.plotting import COLORS, STYLES, plt, save_figure, sns
from interp.runs.config import BadInput, read_yaml, shown
from interp.runs.files import write_text
from interp.runs.parts import stored_config, tables_below
from interp.statistics import auroc, clustered_auroc_interval, clustered_interval, holm

ORDER = ["none", "random", "pca", "full", "difference_in_means", "linear_probe", "leace", "lda", "mlp_probe",
         "circuit_update", "circuit_selected", "circuit_complement", "circuit_neurons", "neuron_mask", "das_k", "das"]
CONTROLS = ("none", "random", "pca", "full", "circuit_complement")  # compared with, not ranked
ROLES = {"none": "baseline", "random": "random", "full": "whole", "difference_in_means": "closed form",
         "lda": "closed form", "linear_probe": "linear probe", "leace": "LEACE", "mlp_probe": "MLP probe",
         "das": "DAS", "das_k": "DAS"}  # keys of COLORS
ROLES |= {name: "circuit" for name in ORDER if "circuit" in name or "neuron" in name}
MARKERS = "os^Dv<>PX*hpd8H"
CELL = ["experiment", "target_layer", "residual_location", "variable"]
WORDS = ["residual_location", "variable", "method", "carried", "beyond_full"]
NUMBERS = ["model_seed", "target_layer", "iia", "iia_low", "iia_high", "log_odds_mean", "isolate", "disentangle",
           "change", "rank", "selectivity", "pairs"]
SITES = {"resid_mid": "after attention", "resid_post": "after the MLP"}


# ------------------------------------------------------------------------------- the numbers

def read_runs(results: Path) -> pd.DataFrame:
    """All runs below a folder, a row for each setting with the folder's name as `experiment`.

    Raises:
        BadInput: there is none, or a table cannot be read.
    """
    tables = [read_run(file) for file in tables_below(results, "*")
              if ".old-" not in file.parent.name]  # what --overwrite set aside
    if not tables:
        raise BadInput(f"nothing to draw in {shown(results)}: it has no */results.csv; 'python compare_methods.py "
                       "--config configs/Comparison/Disambiguation.yaml' makes one.")
    return pd.concat(tables, ignore_index=True)


def read_run(file: Path) -> pd.DataFrame:
    """The results.csv of one run, as read_runs gives it; raises BadInput where it is no table of a comparison."""
    table = read_csv(file)
    check_columns(file, table, "compare_methods.py", WORDS, NUMBERS)
    unknown = table.loc[~table["method"].isin(interchange_methods()), "method"]
    if len(unknown):
        raise BadInput(f"{shown(file)}: row {unknown.index[0] + 2} is of the method '{unknown.iloc[0]}', which is "
                       "not in interp/methods/interchange.")
    carried = table["carried"].map({True: True, False: False, "True": True, "False": False})
    return table.assign(experiment=file.parent.name, model=model_of(file, table), carried=carried)


def is_swept(table: pd.DataFrame) -> pd.Series:
    """Which rows are of a sweep over checkpoints: these are followed over training, and are not on the leaderboard."""
    return table["checkpoint"].notna() if "checkpoint" in table else pd.Series(False, index=table.index)


def model_of(file: Path, table: pd.DataFrame) -> pd.Series:
    """What tells a run's models from others': several runs may ask the same ones, and are no evidence of more."""
    stored = stored_config(file.parent)
    config = read_yaml(stored) if stored.exists() else {}
    path = f"{config.get('model_path', file.parent.name)}{' fresh' if config.get('random_init') else ''}"
    return path + " " + table["model_seed"].astype(str)


def in_order(methods) -> list[str]:
    """Methods in the order of figures; those that it does not know come last."""
    return sorted(set(methods), key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def mean_with_interval(table: pd.DataFrame, *columns: str) -> tuple[float, float, float]:
    """The mean over cells of shares of pairs, and its interval over models and the pairs in them."""
    known = table[table[list(columns)].notna().all(axis=1) & (table["pairs"] > 0)]
    if known.empty:
        return np.nan, np.nan, np.nan
    models = [own for _, own in known.groupby("model")]
    shares = [own[list(columns)].to_numpy().flatten() for own in models]
    counts = [np.repeat(own["pairs"].to_numpy(), len(columns)) for own in models]
    return known[list(columns)].to_numpy().mean(), *clustered_interval(shares, counts)


def leaderboard(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each method, the best by cause and isolation where a variable is carried first, controls last."""
    rows, table = [], table.assign(cell=table[["model", *CELL]].astype(str).agg(" ".join, axis=1))
    asked = table.dropna(subset="iia").groupby("cell")["method"].nunique()
    shared = asked.index[asked == table["method"].nunique()]
    for name in in_order(table["method"]):
        own = table[table["method"] == name]
        carried, not_carried = own[own["carried"].eq(True)], own[own["carried"].eq(False)]
        groups = list(own.groupby("model"))
        row = {"method": name, "sees": method(name).SEES, "models": len(groups), "cells": len(own)}
        for label, part, columns in (("iia_carried", carried, ["iia"]), ("iia_not_carried", not_carried, ["iia"]),
                                     ("isolate_carried", carried, ["isolate"]),
                                     ("disentangle_carried", carried, ["iia", "isolate"])):
            row[label], row[f"{label}_low"], row[f"{label}_high"] = mean_with_interval(part, *columns)
        row |= {"iia_not_carried_max": not_carried["iia"].max(), "change_carried": carried["change"].mean(),
                "rank_carried": carried["rank"].mean(), "selectivity_carried": carried["selectivity"].mean()}
        of_all = own[own["cell"].isin(shared)]  # methods are compared by the same cells
        split = [[part.loc[part["carried"].eq(truth), "iia"].dropna().to_numpy() for _, part in of_all.groupby("model")]
                 for truth in (True, False)]
        row["auroc_cells"], row["auroc_models"] = len(of_all), of_all["model"].nunique()
        row["auroc"] = auroc(*(np.concatenate(part or [[]]) for part in split))
        row["auroc_low"], row["auroc_high"] = (clustered_auroc_interval(split[0], split[1]) if split[0]
                                               else (np.nan, np.nan))
        rows.append(row)
    found = pd.DataFrame(rows)
    control = found["method"].isin(CONTROLS) | found["disentangle_carried"].isna()
    found = found.assign(control=control).sort_values(["control", "disentangle_carried"], ascending=[True, False])
    found.insert(0, "place", [None if is_control else i + 1 for i, is_control in enumerate(found["control"])])
    return found.drop(columns="control").reset_index(drop=True)


BOARD = ["", "method", "sees", "iia, carried", "isolate, carried", "disentangle", "iia, not carried", "highest",
         "change", "rank", "AUROC"]


def as_cells(board: pd.DataFrame) -> list[list[str]]:
    """The leaderboard as a page has it, below the columns BOARD: a mean with its 95 % interval in one cell."""
    def cell(row, name: str, digits: int = 2) -> str:
        if pd.isna(row[name]):
            return ""
        interval = f" [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]" if f"{name}_low" in row else ""
        return f"{row[name]:.{digits}f}{interval}"

    return [[cell(row, "place", 0), row["method"], row["sees"], *(cell(row, name) for name in (
        "iia_carried", "isolate_carried", "disentangle_carried", "iia_not_carried", "iia_not_carried_max",
        "change_carried")), cell(row, "rank_carried", 0), cell(row, "auroc")] for _, row in board.iterrows()]


def as_markdown(board: pd.DataFrame) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (BOARD, *as_cells(board))]
    lines.insert(1, "|---" * len(BOARD) + "|")
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------- the figures

def color_of(name: str) -> str:
    return COLORS[ROLES.get(name, "other")]


def about(table: pd.DataFrame, what: str) -> str:
    """Over what a figure is, for its title. what: that there are so many pairs of."""
    seeds, pairs = table["model"].nunique(), table.loc[table["pairs"] > 0, "pairs"]
    size = f"{pairs.min():.0f}" if pairs.min() == pairs.max() else f"{pairs.min():.0f} to {pairs.max():.0f}"
    return f"n = {seeds} model{'s' * (seeds > 1)}, {size} pairs {what}"


def draw_methods(table: pd.DataFrame, title: str, path: Path) -> None:
    """Interchange accuracy by method, where the variable is carried and where not; a dot a model, variable and site."""
    methods, truths = in_order(table["method"]), [truth for truth in (True, False) if table["carried"].eq(truth).any()]
    figure, axes = plt.subplots(1, len(truths), figsize=(max(8, 6.2 * len(truths)), 2.8 + 0.4 * len(methods)),
                                sharey=True, squeeze=False, layout="constrained")
    models = sorted(table["model"].unique())
    for axis, truth in zip(axes[0], truths):
        part = table[table["carried"].eq(truth)]
        axis.axvline(part.loc[part["method"] == "none", "iia"].mean(), linestyle="--", color="0.4",
                     label="nothing exchanged")
        for y, name in enumerate(methods):
            own = part[part["method"] == name]
            if "random_iia_mean" in own and own["random_iia_mean"].notna().any():
                low, high = own["random_iia_mean"].min(), own["random_iia_max"].max()
                axis.barh(y, max(high - low, 0.002), 0.7, left=low, color="0.8", zorder=0)
            for number, model in enumerate(models):
                dots = own[own["model"] == model]
                axis.plot(dots["iia"], y + np.linspace(-0.24, 0.24, len(dots) + 2)[1:-1],
                          MARKERS[number % len(MARKERS)], color=color_of(name), markersize=4, alpha=0.7)
            mean, low, high = mean_with_interval(own, "iia")
            axis.errorbar(mean, y, xerr=[[max(0, mean - low)], [max(0, high - mean)]], fmt="|", color="0.2",
                          markersize=13, capsize=3, zorder=1)
        highest = 1.0 if truth else max(0.1, 1.2 * part["iia"].max())
        axis.set(title=f"variable {'' if truth else 'not '}carried{'' if highest == 1 else ' (another scale)'}",
                 xlim=(-0.03 * highest, 1.03 * highest), xlabel="interchange accuracy", yticks=range(len(methods)),
                 yticklabels=methods)
    axes[0][0].invert_yaxis()
    axes[0][0].barh([0], [0], color="0.8", label="as many random directions or neurons: mean to highest")
    axes[0][0].errorbar([], [], xerr=[], fmt="|", color="0.2", label="mean, 95 % interval over models and pairs")
    for number in range(len(models)):
        axes[0][0].plot([], [], MARKERS[number % len(MARKERS)], color="0.3",
                        label=f"model {number + 1}, a variable and site a dot")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    figure.suptitle(f"{title}: does exchanging what a method takes for a variable\nchange the answer as it should? "
                    f"{about(table, 'a dot')}", parse_math=False)
    save_figure(figure, path)


def draw_isolate(table: pd.DataFrame, title: str, path: Path) -> None:
    """Cause against isolate where the variable is carried, a marker a method, a colour a kind of method."""
    part = table[table["carried"].eq(True)]
    figure, axis = plt.subplots(figsize=(8.6, 5.4), layout="constrained")
    for number, name in enumerate(in_order(part["method"])):
        own = part[part["method"] == name]
        axis.plot(own["iia"], own["isolate"], MARKERS[number % len(MARKERS)], color=color_of(name), markersize=9,
                  alpha=0.75, markeredgecolor="0.2", markeredgewidth=0.5, label=name)
    axis.text(0.06, 0.95, "does nothing", color="0.4", fontsize="small")
    axis.text(0.06, 0.0, "changes more than the variable", color="0.4", fontsize="small")
    axis.text(1.02, 0.88, "the variable,\nand no more", color="0.4", fontsize="small", ha="right")
    axis.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), xlabel="cause: answers as the exchange should give them",
             ylabel="isolate: answers unchanged when\nthe source has the same value")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    axis.set_title(f"{title}, variable carried\n{about(part, 'a dot: a model and a variable')}", parse_math=False)
    save_figure(figure, path)


def draw_detection(board: pd.DataFrame, path: Path) -> None:
    """AUROC by method with its interval."""
    board = board[board["auroc"].notna()].sort_values("auroc", ascending=False, kind="stable")
    figure, axis = plt.subplots(figsize=(7, 1.8 + 0.36 * len(board)), layout="constrained")
    for y, row in enumerate(board.itertuples()):
        axis.errorbar(row.auroc, y, xerr=[[max(0, row.auroc - row.auroc_low)], [max(0, row.auroc_high - row.auroc)]],
                      fmt="o", color=color_of(row.method), capsize=3,
                      markerfacecolor="white" if row.method in CONTROLS else color_of(row.method))
    axis.axvline(0.5, linestyle="--", color="0.4", label="chance")
    axis.plot([], [], "o", color="0.3", label="method")
    axis.plot([], [], "o", color="0.3", markerfacecolor="white", label="control")
    axis.set(yticks=range(len(board)), yticklabels=board["method"], xlim=(-0.03, 1.03),
             xlabel="AUROC of interchange accuracy")
    axis.invert_yaxis()
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    first = board.iloc[0]
    axis.set_title(f"Is a site that carries a variable above one that does not?\n{first['auroc_cells']:.0f} cells of "
                   f"{first['auroc_models']:.0f} models, the same for all; 95 % intervals", parse_math=False)
    save_figure(figure, path)


def draw_layers(table: pd.DataFrame, title: str, path: Path) -> None:
    """Heat maps of layers and methods, interchange accuracy above, log odds below; beyond full hatched."""
    methods = list(dict.fromkeys(name for name in ("full", *in_order(table["method"])) if name in set(table["method"])))
    layers = sorted(set(table["target_layer"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(2, 1, figsize=(max(7.5, 3.6 + 0.5 * len(layers)), 2.8 + 0.62 * len(methods)),
                                layout="constrained")
    beyond = table[table["beyond_full"].astype(str).eq("True")]
    for axis, (column, label, digits, scale) in zip(axes, (
            ("iia", "interchange accuracy", 2, {"vmin": 0, "vmax": 1, "cmap": "viridis"}),
            ("log_odds_mean", "log odds moved to\nthe new answer (nats)", 1, {"center": 0, "cmap": "vlag"}))):
        grid = table.pivot_table(index="method", columns="target_layer", values=column).reindex(methods, columns=layers)
        write_text(path.with_name(f"{path.name}_{column}.csv"), grid.to_csv())
        axis.set_facecolor("0.85")  # what was not run is grey
        sns.heatmap(grid.round(digits) + 0.0, ax=axis, annot=True, fmt=f".{digits}f", annot_kws={"fontsize": 7},
                    cbar_kws={"label": label}, **scale)
        axis.grid(visible=False)
        for text in axis.texts:
            text.set_zorder(5)
        for own in beyond.itertuples():
            at = layers.index(own.target_layer), methods.index(own.method)
            axis.add_patch(Rectangle(at, 1, 1, fill=False, hatch="//", edgecolor=(1, 0.4, 0.3, 0.6), linewidth=1.5))
        axis.set(xlabel="layer", ylabel="")
        axis.tick_params(axis="y", rotation=0)
    notes = [about(table, "a cell"), *["hatched: beyond what exchanging everything does"] * bool(len(beyond)),
             *["grey: not run"] * bool(grid.isna().any(axis=None))]
    figure.suptitle(f"{title}\n{'; '.join(notes)}", parse_math=False, fontsize="medium")
    save_figure(figure, path)


def draw_checkpoints(table: pd.DataFrame, title: str, path: Path) -> None:
    """Interchange accuracy over the checkpoints of a training, a panel for each variable and site."""
    table = table.assign(step=pd.to_numeric(table["checkpoint"], errors="coerce")).dropna(subset="step")
    panels = list(table.groupby(["variable", "residual_location"], sort=False))
    figure, axes = plt.subplots(1, len(panels), figsize=(max(7, 4.6 * len(panels)), 4), sharey=True, squeeze=False,
                                layout="constrained")
    for axis, ((variable, site), own) in zip(axes[0], panels):
        for number, name in enumerate(in_order(own["method"])):
            line = own[own["method"] == name].groupby("step", as_index=False)[["iia", "iia_low", "iia_high"]].mean()
            axis.plot(line["step"], line["iia"], marker=MARKERS[number % len(MARKERS)], markersize=5, label=name,
                      linestyle=STYLES[number % len(STYLES)][0], color=color_of(name))
            axis.fill_between(line["step"], line["iia_low"], line["iia_high"], color=color_of(name), alpha=0.2,
                              linewidth=0)
        axis.set(xscale="log", xlabel="epoch", ylim=(-0.03, 1.03), title=f"{variable}, {SITES[site]}")
    axes[0][0].set_ylabel("interchange accuracy")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(f"{title}\n{about(table, 'a point')}; 95 % intervals over pairs", parse_math=False,
                    fontsize="medium")
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS / "Comparison", help="the folder of the runs")
    parser.add_argument("--out", type=Path, help="default: RESULTS/figures")
    options = parser.parse_args()
    results = options.results.absolute()
    out = whole_out(options.out or results / "figures")
    table = read_runs(results)
    if "rank_among_random" in table:  # p values among random draws, corrected over the sites of a run
        write_text(out / "sites.csv", table.assign(p_holm=table.groupby(["experiment", "method"])[
            "rank_among_random"].transform(lambda p: holm(p.to_numpy(float)))).to_csv(index=False))
    swept = is_swept(table)
    for experiment, own in table[swept].groupby("experiment"):
        draw_checkpoints(own, experiment, out / experiment / "checkpoints")
    known = table[table["carried"].notna() & ~swept]
    for experiment, own in known.groupby("experiment"):
        draw_methods(own, experiment, out / experiment / "methods")
        if own["carried"].any():
            draw_isolate(own, experiment, out / experiment / "isolate")
    if known["carried"].any():
        board = leaderboard(known)
        text = as_markdown(board)
        write_text(out / "leaderboard.csv", board.to_csv(index=False))
        write_text(out / "leaderboard.md", text)
        if board["auroc"].notna().any():
            draw_detection(board, out / "detection")
        print(text)
    else:
        print("no leaderboard: no run knows a site that carries its variable.", file=sys.stderr)
    unknown = table[table["carried"].isna() & ~swept]
    for (experiment, variable, site), own in unknown.groupby(["experiment", "variable", "residual_location"]):
        draw_layers(own, f"{experiment}: {variable}, {SITES[site]}", out / experiment / f"{variable}_{site}".replace(
            " ", "_"))


if __name__ == "__main__":
    run("summarize_comparison", main)
