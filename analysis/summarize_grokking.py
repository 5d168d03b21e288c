"""Experiment 3 in figures: does a circuit for a² form before the model groks a² + b?

    python analysis/summarize_grokking.py [--results DIR] [--curves FILE] [--out DIR]

Reads DIR/METHOD/{a2,b2}/results.csv, each a sweep over checkpoints, and DIR/METHOD/{a2,b2}_EPOCH/results.csv, each of
one checkpoint, whichever exist, and the training's curves.csv.
Draws over training, after attention and after the MLP, for a² and for b², which the task does not need (the selectivity
control), below the model's train and test accuracy on the same axis of epochs

probe_accuracy   is the variable there? circuit, linear and MLP probe
ablation         is the circuit used? accuracy without it, and without random neurons
amnesic          is the variable used? accuracy after LEACE
DAS              is there a subspace whose exchange exchanges the variable?

and writes all their figures to over_training.csv.
"""

from pathlib import Path

import pandas as pd

from analysis.method_figures import (
    FLOAT32,
    PLACE_NAMES,
    PROBES,
    check_columns,
    each_layer,
    mean_and_sd,
    of_models,
    parse_folders,
    present,
    read_csv,
    read_results,
    role_of,
    run,
)
from interp.plotting import COLORS, draw_line, plt, save_figure
from interp.runs.config import BadInput, project_path, require_file, shown
from interp.runs.files import write_text

VARIABLES = {"a2": "a² (needed)", "b2": "b² (control)"}
CURVES = project_path("Results/Train_Algorithmic_Models/Grokking/curves.csv")
FIGURES = {  # figure: what it shows, its y axis and its lines
    "probe_accuracy": ("Is the variable there?", "accuracy of\nreading {}", PROBES),
    "ablation": ("Is the circuit used?", "model accuracy,\n{} ablated", {
        "circuit_probing:vanilla_acc_test": "full model", "circuit_probing:ablated_acc_test": "circuit ablated",
        "circuit_probing:random_ablated_acc_test_mean":
            "as many random neurons (band: sd; none where the circuit is too large)"}),
    "amnesic": ("Is the variable used? Erasure by LEACE", "model accuracy,\n{} erased", {
        "amnesic:test_vanilla_acc": "full model",
        f"{FLOAT32}:test_acc": "erased (fitted on test in float32, as published)",
        "amnesic:test_acc": "erased (fitted on test)", "amnesic:heldout_acc": "erased (fitted on train)"}),
    "DAS": ("Does exchanging a subspace exchange the variable?", "interchange accuracy\nor width, {}", {
        "DAS:interchange_intervention_acc": "boundless DAS", "DAS:boundary": "its width (share of dimensions)"}),
}


def draw_over_training(curves: pd.DataFrame, table: pd.DataFrame, name: str, out: Path, of: str) -> None:
    """Columns: attention and MLP. Rows: the model's accuracy, then the measures for each variable."""
    title, ylabel, measures = FIGURES[name]
    measures = present(table, measures)
    if not measures:
        return
    figure, axes = plt.subplots(3, 2, figsize=(12, 8), sharex=True, sharey=True, layout="constrained")
    for column, (component, place) in zip(axes.T, PLACE_NAMES.items()):
        for split, color, width in (("train", "0.75", 5), ("test", "black", 1.5)):  # both are 1 for long
            column[0].plot(curves["epoch"], curves[f"{split}_acc"], color=color, linewidth=width,
                           label=f"model, {split}")
        column[0].set_title(place)
        for axis, variable in zip(column[1:], VARIABLES):
            rows = table[(table["component"] == component) & (table["variable"] == variable)]
            means, spreads = mean_and_sd(rows.groupby("checkpoint"), measures)
            for number, (column_name, label) in enumerate(measures.items()):
                draw_line(axis, means[label].dropna(), spreads[label], label, COLORS[role_of(column_name)], number)
        column[-1].set(xscale="log", ylim=(-0.03, 1.03), xlabel="epoch (one full-batch step each, log scale)")
    for axis, label in zip(axes[:, 0], ["model accuracy", *(ylabel.format(name) for name in VARIABLES.values())]):
        axis.set_ylabel(label)
    axes[0][0].legend(loc="center left")
    figure.legend(*axes[1][0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(measures), 3))
    figure.suptitle(f"{title}   a² + b mod 113{of} ({of_models(table, measures, ', bands: standard deviation')})")
    save_figure(figure, out / name)


def headline(curves: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """All drawn figures, means over models: a row for each checkpoint, layer, component and variable."""
    columns = list(dict.fromkeys(column for *_, measures in FIGURES.values() for column in present(table, measures)))
    rows = table.groupby(["checkpoint", "layer", "component", "variable"], as_index=False)[columns].mean()
    accuracies = curves.rename(columns={"epoch": "checkpoint"})[["checkpoint", "train_acc", "test_acc"]]
    return rows.merge(accuracies, on="checkpoint", how="left")


def main() -> None:
    options = parse_folders(__doc__.splitlines()[0], "Grokking", {
        "--curves": {"type": Path, "default": CURVES, "help": "the training's curves.csv"}})
    results, out = options.results, options.out
    file = require_file("--curves", str(options.curves.absolute()))
    curves = read_csv(file)
    check_columns(file, curves, "train_algorithmic_models.py", [], ["epoch", "train_acc", "test_acc"])
    table = read_results(results, VARIABLES, where=options.where, over=("checkpoint",))
    if not pd.api.types.is_numeric_dtype(table["checkpoint"]):
        raise BadInput(f"{shown(results)}: its tables have checkpoints that are no epochs, which no axis can show.")
    curves = curves[curves["epoch"] > 0].groupby("epoch", as_index=False)[["train_acc", "test_acc"]].mean()  # log axis
    for rows, folder, of in each_layer(table, out):
        for name in FIGURES:
            draw_over_training(curves, rows, name, folder, of)
    write_text(out / "over_training.csv", headline(curves, table).to_csv(index=False))
    print(f"{shown(out / 'over_training.csv')}")


if __name__ == "__main__":
    run("summarize_grokking", main)
