"""Experiment 1 in two figures and a table: which of two algorithms did the model learn?

    python analysis/summarize_disambiguation.py [--results DIR] [--out DIR]

Reads DIR/circuit_probing/{a2,minus_b2,a_plus_b,a_minus_b}/results.csv, whichever exist, and
draws nearest-neighbour accuracy and accuracy after ablation; prints our figures beside the paper's.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from interp.config import PROJECT_ROOT, shown
from interp.plotting import plt, save_figure
from interp.runs import write_text

PAPER = Path(__file__).with_name("paper_experiment_1.csv")
VARIABLES = {"a2": "a²", "minus_b2": "-b²", "a_plus_b": "a+b", "a_minus_b": "a-b"}
COMPONENTS = {"attn": "attention", "mlp": "MLP"}
NEIGHBORS = {"circuit_knn_test_acc": "circuit", "full_model_knn_test_acc": "full model",
             "majority_test_acc": "majority baseline"}
ABLATION = {"vanilla_acc_test": "full model", "ablated_acc_test": "circuit ablated",
            "random_ablated_acc_test_mean": "as many random neurons ablated (sd)"}


def read_circuits(results: Path) -> pd.DataFrame:
    """The rows of all circuit probing runs below a folder; says which runs are missing."""
    tables = []
    for variable in VARIABLES:
        file = results / "circuit_probing" / variable / "results.csv"
        if file.exists():
            tables.append(pd.read_csv(file).assign(variable=variable))
        else:
            print(f"missing: {shown(file)}, made by 'python circuit_probing.py --config "
                  f"configs/Disambiguation/circuit_probing/{variable}.yaml'", file=sys.stderr)
    if not tables:
        sys.exit(f"summarize_disambiguation: nothing to draw in {shown(results)}.")
    table = pd.concat(tables, ignore_index=True)
    return table.rename(columns={"operation": "component", "knn_test_acc": "circuit_knn_test_acc"})


def draw_by_variable(table: pd.DataFrame, measures: dict[str, str], ylabel: str, title: str, path: Path) -> None:
    """Grouped bars: a panel for each component, a group for each variable, a bar for each measure."""
    measures = {column: label for column, label in measures.items()
                if column in table and table[column].notna().any()}
    variables = [name for name in VARIABLES if name in set(table["variable"])]
    components = [name for name in COMPONENTS if name in set(table["component"])]
    figure, axes = plt.subplots(1, len(components), figsize=(5.5 * len(components), 4.2), sharey=True,
                                squeeze=False, layout="constrained")
    for axis, component in zip(axes[0], components):
        by_variable = table[table["component"] == component].groupby("variable")
        for number, (column, label) in enumerate(measures.items()):
            draw_bars(axis, by_variable[column].mean().reindex(variables),
                      spread(by_variable, column).reindex(variables), label, number, len(measures))
        axis.set(title=COMPONENTS[component], xlabel="intermediate variable", ylim=(0, 1.12))
        axis.set_xticks(range(len(variables)), [VARIABLES[name] for name in variables])
        axis.grid(axis="x", visible=False)
    axes[0][0].set_ylabel(ylabel)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(measures))
    figure.suptitle(title)
    save_figure(figure, path)


def spread(by_variable, column: str) -> pd.Series:
    """The standard deviation of a measure: its own column's, or over the settings of a run."""
    own = column.replace("_mean", "_std")
    return by_variable[own].mean() if own != column else by_variable[column].std()


def draw_bars(axis, heights: pd.Series, errors: pd.Series, label: str, number: int, bars: int) -> None:
    """The number-th bar of every group, its value above it, n/a where there is none."""
    width = 0.8 / bars
    for group, (height, error) in enumerate(zip(heights, errors)):
        x = group + (number - (bars - 1) / 2) * width
        axis.bar(x, height, width, color=f"C{number}", label=label if group == 0 else None,
                 yerr=None if np.isnan(error) else error, error_kw={"elinewidth": 1.2, "capsize": 2})
        top = 0.0 if np.isnan(height) else height + np.nan_to_num(error)
        axis.text(x, top + 0.01, "n/a" if np.isnan(height) else f"{height:.2f}", ha="center", va="bottom", fontsize=8)


def beside_the_paper(table: pd.DataFrame) -> pd.DataFrame:
    """Our mean over settings next to the published value, a row for each variable and component."""
    paper = pd.read_csv(PAPER, comment="#").set_index(["variable", "component"])
    ours = table.groupby(["variable", "component"])[[name for name in paper if name in table]].mean()
    names = {"circuit_knn_test_acc": "KNN circuit", "full_model_knn_test_acc": "KNN full model",
             "vanilla_acc_test": "accuracy", "ablated_acc_test": "accuracy ablated"}
    rows = paper.index[paper.index.isin(ours.index)]
    return pd.DataFrame({(names[name], who): source[name].reindex(rows) for name in ours
                         for who, source in (("ours", ours), ("paper", paper))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=PROJECT_ROOT / "Results" / "Disambiguation")
    parser.add_argument("--out", type=Path, help="default: RESULTS/figures")
    options = parser.parse_args()
    results = options.results.absolute()
    out = (options.out or results / "figures").absolute()

    table = read_circuits(results)
    draw_by_variable(table, NEIGHBORS, "nearest-neighbor accuracy (test)",
                     "Is the variable there? Nearest neighbors of updates", out / "nearest_neighbors")
    if "vanilla_acc_test" in table:
        draw_by_variable(table, ABLATION, "model accuracy (test)",
                         "Is the circuit used? Ablation (n/a: it holds more than half of a map)", out / "ablation")
    comparison = beside_the_paper(table)
    print(comparison.to_string(float_format="%.3f"))
    comparison.columns = [f"{measure} {who}".replace(" ", "_") for measure, who in comparison.columns]
    write_text(out / "beside_the_paper.csv", comparison.to_csv())


if __name__ == "__main__":
    main()
