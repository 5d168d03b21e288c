"""The figures of Experiment 4: what the circuits of a language model's sublayers hold, and what it answers without.

Reads a run of circuit_probing.py, results.csv and ablations.csv, of which there may be a part only. Settings of the
same sublayer (seeds) are averaged.

Is a circuit's ablation more than that of any neurons? p is its rank among the random draws: the share of them, the
circuit counted with them, after which the model is no better than without the circuit. With n draws p is never below
1 / (n + 1). Over several settings accuracies and draws are averaged, draw by draw. p_holm is corrected for the number
of sublayers by Holm's method: a star among 24 sublayers takes 479 draws, among 60 it takes 1199 (num_random_ablations);
with fewer the figures say what lies below every draw. Intervals of accuracies are over settings, then sentences.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.method_figures import (
    COMPONENTS,
    check_columns,
    config_that_writes,
    number_of,
    parse_folders,
    present,
    read_csv,
    read_results_table,
    stored_config,
)
from interp.methods.table import ABLATION_COLUMNS
from interp.plotting import COLORS, draw_bars, draw_line, plt, save_figure
from interp.runs.config import BadInput, shown
from interp.runs.files import write_text
from interp.statistics import clustered_interval, holm, rank_among

SUBLAYER = ["target_layer", "operation"]
SWEPT = ("checkpoint", "lr", "batch_size", "mask_init")  # what else a run may sweep; figures take one value
FULL, CIRCUIT, RANDOM = "full model", "circuit ablated", "as many random neurons ablated (sd)"
LEVEL = 0.05
MARKS = {  # of a circuit's point: marker, size, label
    "significant": ("*", 14, f"below random, corrected p < {LEVEL}"), "below": ("v", 8, "below every random draw"),
    "other": ("o", 5, None),
    "alone": ("X", 8, "no random draw"),
}
IID, GEN = "patterns trained on (IID)", "other patterns (generalization)"  # how figures call the evaluation sets
NEIGHBORS = {"test": IID, "gen": GEN}  # what nearest neighbors are asked for, by the columns' names
SMALLEST = 1e-6  # accuracies that differ by less are equal: they are shares of some thousand sentences
LABELS_AT_MOST = 12  # layers named on an axis


# ------------------------------------------------------------------------------- the numbers

def read_run(results: Path, task: str, sets: dict[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A run's finished settings, a row each, and their ablations, a row for each evaluation set, condition and draw.

    Raises:
        BadInput: there is no run, one of another task, one without ablations on any of the sets, or a sweep over more
            than layers, sublayers and seeds.
    """
    file, ablations_file = results / "results.csv", results / "ablations.csv"
    if not file.exists():
        config = config_that_writes(results)
        raise BadInput(f"nothing to draw in {shown(results)}: it has no results.csv"
                       + (f"; 'python circuit_probing.py --config {config}' makes it." if config else "."))
    own_task = stored_config(results).get("task", task)
    if own_task != task:
        raise BadInput(f"{shown(results)} is a run of another task: {own_task}, not {task}.")
    table = read_results_table(file)
    neighbors = [column for name in NEIGHBORS for column in neighbor_columns(name) if column in table]
    check_columns(file, table, "circuit_probing.py", ["operation"], ["target_layer", "l0_norm", "l0_max", *neighbors])
    for column in SWEPT:
        if column in table and table[column].nunique() > 1:
            raise BadInput(f"{shown(results)} sweeps {column}, so that a sublayer's circuits are of several kinds; "
                           "draw a run that has one value of it.")
    if not ablations_file.exists():
        raise BadInput(f"{shown(results)} has no ablations.csv: the run had lm_eval: false, or is another method's.")
    ablations = read_csv(ablations_file)
    check_columns(ablations_file, ablations, "circuit_probing.py", ["operation", "evaluation", "maps", "condition"],
                  ["target_layer", "accuracy"])
    found = set(ablations["evaluation"])
    if not found & set(sets):
        raise BadInput(f"{shown(results)} is a run of another task: its evaluation sets are "
                       f"{', '.join(sorted(map(str, found)))}, not {', '.join(sets)}.")
    settings = [name for name in ("model_seed", *SUBLAYER) if name in ablations and name in table]
    finished = ablations.merge(table[settings].drop_duplicates(), on=settings)
    finished = finished[(finished["maps"] == "all") & finished["evaluation"].isin(set(sets))]
    measured = finished.groupby(SUBLAYER)["condition"].agg(set)
    if finished.empty or not all({"full", "circuit"} <= conditions for conditions in measured):
        raise BadInput(f"{shown(ablations_file)} lacks rows for settings of {shown(file)}.")
    return table, finished.assign(setting=finished.groupby(settings).ngroup())


def measure_effects(ablations: pd.DataFrame) -> pd.DataFrame:
    """What each ablation does, indexed by layer, operation and evaluation set.

    Columns: full, ablated, ablated_sd (over settings), random, random_sd (over all draws), draws (of a setting; of
    several the fewest), beyond (the accuracy that the circuit's ablation costs more than a random one), p, examples
    (sentences); nan where there is none.
    """
    rows = {}
    for key, group in ablations.groupby([*SUBLAYER, "evaluation"]):
        full, ablated, draws = (pd.Series(accuracies_of(group, name)) for name in ("full", "circuit", "random"))
        beyond, p = compare_with_draws([(accuracies_of(own, "circuit").mean(), accuracies_of(own, "random"))
                                        for _, own in group.groupby("setting")])
        counts = group[group["condition"] == "random"].groupby("setting").size()
        low, high = interval_of(group[group["condition"] == "circuit"])
        rows[key] = {"full": full.mean(), "ablated": ablated.mean(), "ablated_sd": ablated.std(), "ablated_low": low,
                     "ablated_high": high, "random": draws.mean(), "random_sd": draws.std(),
                     "draws": counts.min() if len(counts) else 0, "beyond": beyond, "p": p,
                     "examples": group["examples"].max() if "examples" in group else np.nan}
    effects = pd.DataFrame.from_dict(rows, orient="index").rename_axis([*SUBLAYER, "evaluation"])
    return effects.assign(p_holm=effects.groupby("evaluation")["p"].transform(lambda own: holm(own.to_numpy())))


def interval_of(group: pd.DataFrame) -> tuple[float, float]:
    """Of the mean accuracy of settings, over them and their sentences; nan where the table does not count these."""
    if "examples" not in group or group["examples"].isna().any():
        return np.nan, np.nan
    return clustered_interval([[share] for share in group["accuracy"]], [[count] for count in group["examples"]])


def accuracies_of(group: pd.DataFrame, condition: str) -> np.ndarray:
    return group.loc[group["condition"] == condition, "accuracy"].to_numpy(float)


def compare_with_draws(settings: list[tuple[float, np.ndarray]]) -> tuple[float, float]:
    """How far circuits' accuracies lie below the mean of their random draws, and their rank among these, p.

    settings: the accuracy without the circuit, and those of the draws; settings without draws are left out.
    Returns nan where nothing can be said.
    """
    settings = [(ablated, draws) for ablated, draws in settings if len(draws)]
    if not settings:
        return np.nan, np.nan
    beyond = float(np.mean([draws.mean() - ablated for ablated, draws in settings]))
    fewest = min(len(draws) for _, draws in settings)
    averaged = np.mean([draws[:fewest] for _, draws in settings], axis=0)  # (draws,)
    return beyond, rank_among(-float(np.mean([ablated for ablated, _ in settings])) - SMALLEST, -averaged)


def marks_of(effects: pd.DataFrame) -> np.ndarray:
    """Which of MARKS each row gets."""
    below = effects["p"] <= 1 / (1 + effects["draws"]) + SMALLEST
    return np.select([effects["random"].isna(), effects["p_holm"] < LEVEL, below], ["alone", "significant", "below"],
                     "other")


def rank_sublayers(table: pd.DataFrame, effects: pd.DataFrame, sets: list[str]) -> pd.DataFrame:
    """A row for each sublayer, the one whose ablation costs most beyond a random one on the first set first.

    Sublayers without a random draw come last, by the accuracy lost.
    """
    groups = table.assign(l0_share=table["l0_norm"] / table["l0_max"]).groupby(SUBLAYER)
    neighbors = [column for name in NEIGHBORS for column in neighbor_columns(name)]
    ranking = groups[["l0_share", *present(table, dict.fromkeys(neighbors, ""))]].mean()
    ranking.insert(0, "settings", groups.size())
    for name in sets:
        own = effects.xs(name, level="evaluation")
        full, circuit, random = (column.format(name) for column in ABLATION_COLUMNS.values())
        ranking = ranking.join(own[["full", "ablated", "random", "random_sd", "beyond", "p", "p_holm"]].rename(columns={
            "full": full, "ablated": circuit, "random": f"{random}_mean", "random_sd": f"{random}_std",
            "beyond": f"lost_beyond_random_{name}", "p": f"p_{name}", "p_holm": f"p_holm_{name}"}))
    if "random_ablation_impossible" in table:
        ranking["random_ablation_impossible"] = groups["random_ablation_impossible"].first()
    lost = ranking[f"vanilla_acc_{sets[0]}"] - ranking[f"ablated_acc_{sets[0]}"]
    return ranking.assign(lost=lost).sort_values([f"lost_beyond_random_{sets[0]}", "lost"],
                                                 ascending=False).drop(columns="lost")


def neighbor_columns(name: str) -> list[str]:
    return [f"{prefix}_{name}_acc" for prefix in ("knn", "full_model_knn", "majority")]


def describe(ranking: pd.DataFrame, sets: list[str]) -> str:
    """The ranking as text, under short names: a group of columns for each evaluation set."""
    short = {"vanilla_acc_{}": "full", "ablated_acc_{}": "ablated", "random_ablated_acc_{}_mean": "random",
             "random_ablated_acc_{}_std": "sd", "p_{}": "p"}
    columns = {"l0_share": ("circuit", "L0"), "knn_test_acc": ("circuit", "KNN"),
               "full_model_knn_test_acc": ("full sublayer", "KNN")}
    columns |= {column.format(name): (name, said) for name in sets for column, said in short.items()}
    text = ranking[[column for column in columns if column in ranking]].copy()
    for name in sets:
        column = f"random_ablated_acc_{name}_mean"
        text[column] = [f"{mean:.3f}" if pd.notna(mean) else "no random draw" for mean in text[column]]
    text.columns = pd.MultiIndex.from_tuples([columns[column] for column in text])
    text.index = [f"{COMPONENTS[operation]} {layer}" for layer, operation in text.index]
    return text.to_string(float_format="%.3f", na_rep="")


# ------------------------------------------------------------------------------- the figures

def layer_grid(rows: dict[str, str], table: pd.DataFrame, ylabel: str) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """Panels over layers by (row, operation): a line of them for each of `rows`, a column for each operation."""
    operations = [name for name in COMPONENTS if name in set(table["operation"])]
    layers = sorted(set(table["target_layer"]))
    figure, axes = plt.subplots(len(rows), len(operations), squeeze=False, sharex=True, sharey=True,
                                figsize=(5.5 * max(len(operations), 1.4), 1.3 + 2.5 * len(rows)), layout="constrained")
    for axis, operation in zip(axes[0], operations):
        axis.set_title(COMPONENTS[operation])
    for axis, label in zip(axes[:, 0], rows.values()):
        axis.set_ylabel(f"{ylabel}\n{label.replace(' (', chr(10) + '(').replace(', ', ',' + chr(10))}", fontsize=10)
    axes[0][0].margins(y=0.1)
    for axis in axes[-1]:
        axis.set(xlabel="layer", xticks=layers[::-(-len(layers) // LABELS_AT_MOST)])
    return figure, {(row, operation): axis for row, line in zip(rows, axes)
                    for operation, axis in zip(operations, line)}


def save_with_legend(figure: Figure, title: str, path: Path) -> None:
    """One legend for all panels, below them."""
    entries = {label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(len(entries), 3))
    figure.suptitle(title, parse_math=False)
    save_figure(figure, path)


def draw_ablation_by_layer(effects: pd.DataFrame, sets: dict[str, str], title: str, path: Path) -> None:
    effects = effects.reset_index()
    figure, panels = layer_grid(sets, effects, "model accuracy")
    for (name, operation), axis in panels.items():
        own = effects[(effects["evaluation"] == name) & (effects["operation"] == operation)].set_index("target_layer")
        if own.empty:
            continue
        axis.axhline(own["full"].mean(), color=COLORS["whole"], label=FULL)
        draw_line(axis, own["random"], own["random_sd"], RANDOM, COLORS["random"], 1)
        axis.errorbar(own.index, own["random"], own["random_sd"], fmt="none", color=COLORS["random"], elinewidth=1)
        draw_line(axis, own["ablated"], own["ablated_sd"], CIRCUIT, COLORS["circuit"], marker="")
        known = own[own["ablated_low"].notna()]
        if len(known):
            low, high = ((known[f"ablated_{end}"] - known["ablated"]).abs() for end in ("low", "high"))
            axis.errorbar(known.index, known["ablated"], [low, high], fmt="none", color=COLORS["circuit"], elinewidth=1,
                          capsize=2,
                          label="95 % interval")
        for mark, points in own.groupby(marks_of(own)):
            marker, size, label = MARKS[mark]
            axis.plot(points.index, points["ablated"], marker, markersize=size, color=COLORS["circuit"], label=label)
    save_with_legend(figure, f"{title} ({counts(effects)})", path)


def counts(effects: pd.DataFrame) -> str:
    """Of how many sentences and random draws a figure is, for its title."""
    sentences = "" if effects["examples"].isna().all() else f"n = {effects['examples'].max():.0f} sentences, "
    return f"{sentences}{effects['draws'].max():.0f} random draws a circuit"


def draw_neighbors_by_layer(table: pd.DataFrame, title: str, path: Path) -> None:
    """Nearest neighbors on the circuit's updates and on the full sublayer's, for the sets that have the variable."""
    rows = {name: label for name, label in NEIGHBORS.items()
            if set(neighbor_columns(name)) == set(present(table, dict.fromkeys(neighbor_columns(name), "")))}
    if not rows:
        return
    figure, panels = layer_grid(rows, table, "nearest-neighbor accuracy")
    for (name, operation), axis in panels.items():
        by_layer = table[table["operation"] == operation].groupby("target_layer")
        circuit, full_sublayer, majority = neighbor_columns(name)
        for number, (column, label, role) in enumerate(((full_sublayer, "full sublayer", "whole"),
                                                        (circuit, "circuit", "circuit"))):
            draw_line(axis, by_layer[column].mean(), by_layer[column].std(), label, COLORS[role], number)
        axis.axhline(table[majority].mean(), linestyle="--", color=COLORS["baseline"], label="majority baseline")
    settings = table.groupby(SUBLAYER).size()
    circuits = "one circuit" if settings.max() == 1 else f"mean of {number_of(settings, 'circuits')}"
    save_with_legend(figure, f"{title} ({circuits} a sublayer)", path)


def draw_one_circuit(effects: pd.DataFrame, ablations: pd.DataFrame, sets: dict[str, str], title: str,
                     path: Path) -> None:
    """A group of bars for each evaluation set, the single random draws as points. effects: indexed by set."""
    names = [name for name in sets if name in effects.index]
    effects = effects.loc[names]
    effects.index = [f"{sets[row.Index]}\n{tell_p(row)}" for row in effects.itertuples()]
    labels = FULL, CIRCUIT, f"{RANDOM}, points: single draws"
    figure, axis = plt.subplots(figsize=(2.5 + 2.4 * max(len(effects), 2), 4.6), layout="constrained")
    draw_bars(axis, effects[["full", "ablated", "random"]].set_axis(labels, axis=1),
              effects.reindex(columns=["full_sd", "ablated_sd", "random_sd"]).set_axis(labels, axis=1),
              ["whole", "circuit", "random"])
    for group, name in enumerate(names):
        draws = accuracies_of(ablations[ablations["evaluation"] == name], "random")
        x = group + 0.8 / 3 + np.resize([0.06, 0.09], len(draws))  # in the right half of the third bar
        axis.plot(x, draws, "o", color="0.15", markersize=3)
    axis.set_ylabel("model accuracy")
    save_with_legend(figure, f"{title} ({counts(effects)})", path)


def tell_p(row) -> str:
    if np.isnan(row.random):
        return "no random draw"
    return f"p = {row.p:.2g}\n(corrected for all sublayers: {row.p_holm:.2g})"


# ------------------------------------------------------------------------------- the scripts

def choose_sublayer(ranking: pd.DataFrame, layer: int | None, operation: str | None) -> tuple[int, str]:
    """The first sublayer of a ranking that is as asked for; raises BadInput."""
    for own_layer, own_operation in ranking.index:
        if layer in (None, own_layer) and operation in (None, own_operation):
            return own_layer, own_operation
    asked = " and ".join(f"{key} {value}" for key, value in (("layer", layer), ("operation", operation))
                         if value is not None)
    there = "; ".join(f"{name}: layers {', '.join(str(layer) for layer, own in sorted(ranking.index) if own == name)}"
                      for name in COMPONENTS if name in set(ranking.index.get_level_values("operation")))
    raise BadInput(f"there is no circuit with {asked} among the results ({there}).")


def summarize(description: str, experiment: str, task: str, sets: dict[str, str], subject: str) -> None:
    """The command line of a script that draws one of the tasks, from results to figures.

    Args:
        experiment: the folder of results, below Results/, that is read by default.
        task: the task of the runs that it can draw.
        sets: how the task's evaluation sets are called in the figures, in order; those that exist are drawn.
        subject: what the circuits are of, for titles.

    Raises:
        BadInput: there is nothing to draw, or not what is asked for.
    """
    options = parse_folders(description, experiment, {
        "--layer": {"type": int, "help": "one_circuit's layer; default: where ablation costs most"},
        "--operation": {"choices": list(COMPONENTS), "help": "one_circuit's sublayer"}})
    results, out = options.results, options.out
    table, ablations = read_run(results, task, sets)
    sets = {name: label for name, label in sets.items() if name in set(ablations["evaluation"])}
    effects = measure_effects(ablations)
    ranking = rank_sublayers(table, effects, list(sets))
    layer, operation = choose_sublayer(ranking, options.layer, options.operation)
    about = f"{subject} ({results.name})"
    draw_one_circuit(effects.loc[(layer, operation)],
                     ablations[(ablations["target_layer"] == layer) & (ablations["operation"] == operation)], sets,
                     f"{about}: circuit in {COMPONENTS[operation]}, layer {layer}", out / "one_circuit")
    draw_ablation_by_layer(effects, sets, f"{about}: are the circuits used?", out / "ablation_by_layer")
    draw_neighbors_by_layer(table, f"{about}: is it there?", out / "nearest_neighbors")
    write_text(out / "strongest_sublayers.csv", ranking.to_csv())
    print(f"{shown(out / 'strongest_sublayers.csv')}\n{describe(ranking, list(sets))}")
