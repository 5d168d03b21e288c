"""The figures of Experiment 4: what the circuits of a language model's sublayers hold, and what it answers without.

Reads a run of circuit_probing.py, results.csv and ablations.csv. Settings of the same sublayer (seeds) are averaged.
p is a circuit's rank among its random draws: the share of them, the circuit counted with them, after which the model is
no better than without the circuit. With n draws it is never below 1 / (n + 1). p_holm is corrected for the number of
sublayers by Holm's method: a star among 24 sublayers takes 479 draws, among 60 it takes 1199 (num_random_ablations).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import figures, tables
from interp.plotting import COLORS
from interp.runs.config import BadInput, shown
from interp.runs.files import write_text
from interp.statistics import clustered_interval, holm, rank_among

SUBLAYER = ["target_layer", "operation"]
SWEPT = ("checkpoint", "lr", "batch_size", "mask_init")  # what else a run may sweep; figures take one value
FULL, CIRCUIT, RANDOM = "full model", "circuit ablated", "as many random neurons ablated (sd)"
LEVEL = 0.05
MARKS: dict[str, tuple[str, int, str | None]] = {  # of a circuit's point: marker, size, label
    "significant": ("*", 14, f"below random, corrected p < {LEVEL}"), "below": ("v", 8, "below every random draw"),
    "other": ("o", 5, None), "alone": ("X", 8, "no random draw")}
IID, GEN = "patterns trained on (IID)", "other patterns (generalization)"  # how figures call the evaluation sets
TASKS = {  # the folder of results, the evaluation sets in the order of figures, what circuits are of
    "agreement": ("SV_Agreement/small", {"iid": IID, "gen": GEN}, "Agreement, number of the subject"),
    "reflexive": ("Reflexives/small", {f"{name}_{gender}": f"{gender}, {label}" for name, label in (
        ("iid", IID), ("gen", GEN)) for gender in ("masculine", "feminine")}, "Reflexives, number of the antecedent"),
    "syntactic_number": ("Syntactic_Number/small", {"iid": IID, "gen": GEN}, "Verb after ablating the object's number")}
NEIGHBORS = {name: {f"knn_{name}_acc": "circuit", f"full_model_knn_{name}_acc": "full sublayer",
                    f"majority_{name}_acc": "majority baseline"} for name in ("test", "gen")}  # by evaluation set
COLUMNS = {  # of a ranking, by those of effects; the first four are the published names
    "full": "vanilla_acc_{}", "ablated": "ablated_acc_{}", "random": "random_ablated_acc_{}_mean",
    "random_sd": "random_ablated_acc_{}_std", "beyond": "lost_beyond_random_{}", "p": "p_{}", "p_holm": "p_holm_{}"}
SMALLEST = 1e-6  # accuracies that differ by less are equal: they are shares of some thousand sentences


def read_run(results: Path, task: str, sets: dict[str, str],
             where: dict[str, str] | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A run's settings, and its circuits' ablations: a row for each evaluation set, condition and draw; or BadInput."""
    table, other = tables.read_method(results / "results.csv", where), tables.read_config(results).get("task", task)
    file = results / "ablations.csv"
    words = ["operation", "evaluation", "maps", "condition"]
    ablations = tables.check_columns(file, tables.read_csv(file), words, ["target_layer", "accuracy"])
    ablations = tables.select(ablations, where or {})
    if other != task or not set(ablations["evaluation"]) & set(sets):
        raise BadInput(f"{shown(results)} is a run of another task: {other}, or without the sets {', '.join(sets)}.")
    if several := [column for column in SWEPT if column in table and table[column].nunique() > 1]:
        raise BadInput(f"{shown(results)} sweeps {several[0]}; draw a run that has one value of it.")
    return table, ablations[ablations["evaluation"].isin([*sets]) & (ablations["maps"] == "all")]


def measure_effects(ablations: pd.DataFrame) -> pd.DataFrame:
    """What each circuit's ablation does to accuracies, by layer, operation and evaluation set, with columns of compare.

    full, ablated, random: accuracies, ablated_sd over settings, random_sd over all draws. p_holm.
    """
    ablations = ablations.assign(seed=ablations["model_seed"] if "model_seed" in ablations else 0)
    keys = [*SUBLAYER, "evaluation"]
    groups = ablations.groupby([*keys, "condition"])["accuracy"]
    means, sds = (found.unstack().reindex(columns=["full", "circuit", "random"]) for found in (
        groups.mean(), groups.std()))
    further = pd.DataFrame.from_dict({key: compare(group) for key, group in ablations.groupby(keys)}, orient="index")
    effects = means.set_axis(["full", "ablated", "random"], axis=1).assign(
        ablated_sd=sds["circuit"], random_sd=sds["random"], **{name: further[name] for name in further})
    return effects.assign(p_holm=effects.groupby("evaluation")["p"].transform(lambda p: holm(p.to_numpy())))


def compare(group: pd.DataFrame) -> dict[str, float]:
    """How a circuit compares with its random draws. group: the rows of a sublayer and evaluation set; nan: unknown.

    beyond: what its ablation costs more than a random one. draws: of a setting, of several the fewest. ablated_low,
    ablated_high: its accuracy's 95 % interval over settings, then sentences. examples: sentences.
    """
    circuits = group[group["condition"] == "circuit"].set_index("seed")
    draws = group[group["condition"] == "random"].pivot(index="draw", columns="seed", values="accuracy")
    row = dict.fromkeys(("beyond", "p", "ablated_low", "ablated_high", "examples"), np.nan) | {"draws": 0}
    if len(draws):
        accuracies = circuits.loc[draws.columns, "accuracy"]  # of settings that have draws
        averaged = draws.dropna().mean(axis=1)  # (draws,)
        row |= {"draws": len(averaged), "beyond": float((draws.mean() - accuracies).mean()),
                "p": rank_among(-accuracies.mean() - SMALLEST, -averaged.to_numpy())}
    if "examples" in group and group["examples"].notna().all():
        shares, counts = ([[value] for value in circuits[name]] for name in ("accuracy", "examples"))
        low, high = clustered_interval(shares, counts)
        row |= {"ablated_low": low, "ablated_high": high, "examples": group["examples"].max()}
    return row


def marks_of(effects: pd.DataFrame) -> np.ndarray:
    """Which of MARKS each row gets."""
    below = effects["p"] <= 1 / (1 + effects["draws"]) + SMALLEST
    conditions = [effects["random"].isna(), effects["p_holm"] < LEVEL, below]
    return np.select(conditions, ["alone", "significant", "below"], "other")


def rank_sublayers(table: pd.DataFrame, effects: pd.DataFrame, sets: list[str]) -> pd.DataFrame:
    """A row for each sublayer, by what its ablation costs beyond a random one on the first set, or else in all."""
    groups = table.assign(l0_share=table["l0_norm"] / table["l0_max"]).groupby(SUBLAYER)
    neighbors = [column for measures in NEIGHBORS.values() for column in tables.present(table, measures)]
    ranking = groups[["l0_share", *neighbors]].mean()
    ranking.insert(0, "settings", groups.size())
    for name in sets:
        names = {column: words.format(name) for column, words in COLUMNS.items()}
        ranking = ranking.join(effects.xs(name, level="evaluation")[[*names]].rename(columns=names))
    if "random_ablation_impossible" in table:
        ranking["random_ablation_impossible"] = groups["random_ablation_impossible"].first()
    lost = ranking[f"vanilla_acc_{sets[0]}"] - ranking[f"ablated_acc_{sets[0]}"]
    order = [f"lost_beyond_random_{sets[0]}", "lost"]
    return ranking.assign(lost=lost).sort_values(order, ascending=False).drop(columns="lost")


def draw_by_layer(lines: pd.DataFrame, rows: dict[str, str], looks: dict[str, dict[str, Any]],
                  ylabel: str) -> figures.Drawn:
    """Panels over layers: a row for each evaluation set, a column for each operation."""
    lines = lines.rename(columns={"evaluation": "row", "operation": "column", "target_layer": "x"})
    operations = {name: label for name, label in tables.COMPONENTS.items() if name in set(lines["column"])}
    labels = {name: f"{ylabel}\n" + label.replace(" (", "\n(").replace(", ", ",\n") for name, label in rows.items()}
    return figures.draw_lines(lines, labels, operations, looks, "layer",
                              (5.5 * max(len(operations), 1.4), 1.3 + 2.7 * len(rows)), sharey=True)


def draw_ablation_by_layer(effects: pd.DataFrame, sets: dict[str, str], title: str, path: Path) -> None:
    """The model's accuracy without each sublayer's circuit, and without as many random neurons."""
    effects = effects.reset_index()
    full, none = effects.groupby(["evaluation", "operation"])["full"].transform("mean"), effects["full"] * 0
    parts = [effects.assign(line=line, value=value, low=value - sd.fillna(0), high=value + sd.fillna(0))
             for line, value, sd in ((FULL, full, none), (RANDOM, effects["random"], effects["random_sd"]),
                                     (CIRCUIT, effects["ablated"], effects["ablated_sd"]))]
    looks: dict[str, dict[str, Any]] = {
        FULL: {"color": COLORS["whole"], "marker": ""}, RANDOM: {"color": COLORS["random"]},
        CIRCUIT: {"color": COLORS["circuit"], "marker": "", "linestyle": "-", "linewidth": 2.6}}
    figure, panels = draw_by_layer(pd.concat(parts), sets, looks, "model accuracy")
    for (name, operation), axis in panels.items():
        here = effects[(effects["evaluation"] == name) & (effects["operation"] == operation)].set_index("target_layer")
        reach = [(here[f"ablated_{end}"] - here["ablated"]).abs() for end in ("low", "high")]
        axis.errorbar(here.index, here["ablated"], reach, fmt="none", color=COLORS["circuit"], elinewidth=1, capsize=2)
        axis.errorbar(here.index, here["random"], here["random_sd"], fmt="none", color=COLORS["random"], elinewidth=1)
        for mark, points in here.groupby(marks_of(here)):
            marker, size, text = MARKS[mark]
            axis.plot(points.index, points["ablated"], marker, markersize=size, color=COLORS["circuit"], label=text)
    figures.finish(figure, title, path)


def draw_neighbors_by_layer(table: pd.DataFrame, title: str, path: Path) -> None:
    """Nearest neighbors on the circuit's updates and on the full sublayer's, for the sets that have the variable."""
    known = {name: found for name, found in NEIGHBORS.items() if len(tables.present(table, found)) == len(found)}
    if not known:
        return
    lines = pd.concat([figures.long_of(table, SUBLAYER, measures).assign(evaluation=name)
                       for name, measures in known.items()])
    looks: dict[str, dict[str, Any]] = {
        "full sublayer": {"color": COLORS["whole"]}, "circuit": {"color": COLORS["circuit"]},
        "majority baseline": {"color": COLORS["baseline"], "marker": "", "linestyle": "--"}}
    names = {name: label for name, label in (("test", IID), ("gen", GEN)) if name in known}
    figure, _ = draw_by_layer(lines, names, looks, "nearest-neighbor accuracy")
    settings = figures.span(table.groupby(SUBLAYER).size())
    figures.finish(figure, f"{title} (mean of {settings} circuits a sublayer)", path)


def draw_one_circuit(effects: pd.DataFrame, ablations: pd.DataFrame, sets: dict[str, str], title: str,
                     path: Path) -> None:
    """A group of bars for each evaluation set, the single random draws as points. effects: indexed by set."""
    effects = effects.loc[list(sets)]
    names = [f"{label}\np = {p:.2g}\n(corrected for all sublayers: {p_holm:.2g})" for label, p, p_holm in zip(
        sets.values(), effects["p"], effects["p_holm"])]
    labels = FULL, CIRCUIT, f"{RANDOM}, points: single draws"
    figure, [[axis]] = figures.grid_of(["model accuracy"], [""], (2.5 + 2.4 * max(len(effects), 2), 4.6))
    heights, sd = (effects.reindex(columns=columns).set_axis(labels, axis=1).set_axis(names, axis=0) for columns in (
        ["full", "ablated", "random"], ["full_sd", "ablated_sd", "random_sd"]))
    figures.draw_bars(axis, heights, (sd, sd), ["whole", "circuit", "random"])
    for group, name in enumerate(sets):
        draws = ablations.loc[(ablations["evaluation"] == name) & (ablations["condition"] == "random"), "accuracy"]
        x = group + 0.8 / 3 + np.resize([0.06, 0.09], len(draws))  # in the right half of the third bar
        axis.plot(x, draws, "o", color="0.15", markersize=3)
    figures.finish(figure, title, path)


def summarize(task: str, description: str | None) -> None:
    """The command line of a script that draws one of TASKS, from results to figures; raises BadInput."""
    experiment, sets, subject = TASKS[task]
    options = tables.parse(description, tables.RESULTS / experiment, tables.WHERE | {
        "--layer": {"type": int, "help": "one_circuit's layer; default: where ablation costs most"},
        "--operation": {"choices": list(tables.COMPONENTS), "help": "one_circuit's sublayer"}})
    table, ablations = read_run(options.results, task, sets, options.where)
    sets = {name: label for name, label in sets.items() if name in set(ablations["evaluation"])}
    effects = measure_effects(ablations)
    ranking = rank_sublayers(table, effects, list(sets))
    chosen = [(layer, operation) for layer, operation in ranking.index
              if options.layer in (None, layer) and options.operation in (None, operation)]
    if not chosen:
        raise BadInput(f"there is no circuit with --layer {options.layer} --operation {options.operation}.")
    (layer, operation), about, out = chosen[0], f"{subject} ({options.results.name})", options.out
    size = f"n = {effects['examples'].max():.0f} sentences, {effects['draws'].max():.0f} random draws a circuit"
    of_one = ablations[(ablations["target_layer"] == layer) & (ablations["operation"] == operation)]
    draw_one_circuit(effects.loc[(layer, operation)], of_one, sets,
                     f"{about}: circuit in {tables.COMPONENTS[operation]}, layer {layer} ({size})", out / "one_circuit")
    draw_ablation_by_layer(effects, sets, f"{about}: are they used? ({size}; bars: 95 %)", out / "ablation_by_layer")
    draw_neighbors_by_layer(table, f"{about}: is it there?", out / "nearest_neighbors")
    write_text(out / "strongest_sublayers.csv", ranking.to_csv())
    print(ranking.filter(regex="^(l0|knn_test|ablated|random_ablated|p_)").to_string(float_format="%.3f", na_rep=""))
