"""Experiment 3 in figures: does a circuit for a² form before the model groks a² + b?

    python analysis/summarize_grokking.py [--results DIR] [--curves FILE] [--out DIR]

Reads DIR/METHOD/{a2,b2}/results.csv, sweeps over checkpoints, whichever exist, and the training's curves.csv. Draws
probe_accuracy, ablation, amnesic and DAS over training, below the model's accuracy, for a² and for b², which the task
does not need (the selectivity control), and writes all their values to over_training.csv.
"""

from pathlib import Path

import pandas as pd

from analysis.figures import PLACE_NAMES, PROBES, draw_lines, finish, long_of, of_models, role_of
from analysis.tables import FLOAT32, RESULTS, WHERE, check_columns, parse, present, read_csv, read_experiment, run
from interp.plotting import COLORS
from interp.runs.files import write_text

VARIABLES = {"a2": "a² (needed)", "b2": "b² (control)"}
CURVES = "Train_Algorithmic_Models/Grokking/curves.csv"
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
        "DAS:interchange_intervention_acc": "boundless DAS", "DAS:boundary": "its width (share of dimensions)"})}
MODEL = {  # the lines of the training's curves; both are 1 for long
    "train_acc": {"label": "model, train", "color": "0.75", "linewidth": 5, "marker": ""},
    "test_acc": {"label": "model, test", "color": "black", "linewidth": 1.5, "marker": "", "linestyle": "-"}}


def draw_over_training(curves: pd.DataFrame, table: pd.DataFrame, name: str, path: Path) -> None:
    """Columns: attention and MLP. Rows: the model's accuracy, then the measures for each variable."""
    title, ylabel, measures = FIGURES[name]
    measures = present(table, measures)
    lines = long_of(table, ["variable", "component", "checkpoint"], measures).dropna(subset="value")
    model = curves.melt("checkpoint", var_name="line").assign(variable="model")
    both = pd.concat([*(model.assign(component=component) for component in PLACE_NAMES), lines])
    figure, panels = draw_lines(
        both.rename(columns={"variable": "row", "component": "column", "checkpoint": "x"}),
        {"model": "model accuracy"} | {key: ylabel.format(label) for key, label in VARIABLES.items()}, PLACE_NAMES,
        MODEL | {label: {"color": COLORS[role_of(column)]} for column, label in measures.items()},
        "epoch (one full-batch step each, log scale)", (12, 8), sharey=True)
    for axis in panels.values():
        axis.set(xscale="log", ylim=(-0.03, 1.03))
    finish(figure, f"{title}   a² + b mod 113 ({of_models(table, ', bands: standard deviation')})", path)


def main() -> None:
    options = parse(__doc__, RESULTS / "Grokking", WHERE | {
        "--curves": {"type": Path, "help": f"the training's curves.csv; default: {CURVES} beside RESULTS"}})
    options.curves = options.curves or options.results.parent / CURVES
    accuracies = ["train_acc", "test_acc"]
    curves = check_columns(options.curves, read_csv(options.curves.absolute()), [], ["epoch", *accuracies])
    curves = curves[curves["epoch"] > 0].groupby("epoch")[accuracies].mean()  # the axis is a log axis
    curves = curves.rename_axis("checkpoint").reset_index()
    table = read_experiment(options.results, VARIABLES, options.where, over=("checkpoint",))
    check_columns(options.results, table, [], ["checkpoint"])
    for name, (*_, measures) in FIGURES.items():
        if present(table, measures):
            draw_over_training(curves, table, name, options.out / name)
    columns = dict.fromkeys(column for *_, measures in FIGURES.values() for column in present(table, measures))
    means = table.groupby(["checkpoint", "layer", "component", "variable"], as_index=False)[[*columns]].mean()
    write_text(options.out / "over_training.csv", means.merge(curves, on="checkpoint", how="left").to_csv(index=False))


if __name__ == "__main__":
    run("summarize_grokking", main)
