"""Experiment 1 in figures and a table: which of two algorithms did the model learn?

    python analysis/summarize_disambiguation.py [--results DIR] [--out DIR]

Reads DIR/METHOD/VARIABLE/results.csv of the five methods and four variables, whichever exist, and draws

nearest_neighbors      is the variable there? circuit and full model
ablation               is the circuit used?
probe_accuracy_attn    circuit, linear and MLP probe, after attention
probe_accuracy_mlp     the same after the MLP
there_and_used         every method's answer to both questions, for each variable

and prints the circuits' figures beside the paper's.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from interp.config import PROJECT_ROOT, BadInput, config_that_writes, shown
from interp.plotting import draw_bars, plt, save_figure, sns
from interp.runs import write_text

PAPER = Path(__file__).with_name("paper_experiment_1.csv")
VARIABLES = {"a2": "a²", "minus_b2": "-b²", "a_plus_b": "a+b", "a_minus_b": "a-b"}
COMPONENTS = {"attn": "attention", "mlp": "MLP"}
PLACES = ("operation", "residual_location", "location")  # the column that says where a method looked
COMPONENT_OF = {"attn": "attn", "mlp": "mlp", "resid_mid": "attn", "resid_post": "mlp"}
METHODS = {  # folder of results: script
    "circuit_probing": "circuit_probing.py", "linear_probing": "probing.py", "nonlinear_probing": "probing.py",
    "amnesic": "amnesic_probing.py", "DAS": "DAS.py",
}
NEIGHBORS = {"circuit_probing:knn_test_acc": "circuit", "circuit_probing:full_model_knn_test_acc": "full model",
             "circuit_probing:majority_test_acc": "majority baseline"}
ABLATION = {"circuit_probing:vanilla_acc_test": "full model", "circuit_probing:ablated_acc_test": "circuit ablated",
            "circuit_probing:random_ablated_acc_test_mean": "as many random neurons ablated (sd)"}
PROBES = {"circuit_probing:knn_test_acc": "circuit (nearest neighbors)", "linear_probing:test_acc": "linear probe",
          "nonlinear_probing:test_acc": "MLP probe", "circuit_probing:majority_test_acc": "majority baseline"}
THERE = {"circuit_probing:knn_test_acc": "circuit, nearest neighbors", "linear_probing:test_acc": "linear probe",
         "nonlinear_probing:test_acc": "MLP probe", "amnesic:test_pre_erasure_probe_acc": "linear probe, before LEACE"}
USED = {"circuit_probing:accuracy_lost": "circuit ablated: accuracy lost",
        "amnesic:accuracy_lost": "LEACE: accuracy lost",
        "DAS:interchange_intervention_acc": "DAS: interchange accuracy",
        "linear_probing:counterfactual_predicts_cf_label": "linear probe's counterfactual embedding",
        "nonlinear_probing:counterfactual_predicts_cf_label": "MLP probe's counterfactual embedding"}


def read_results(results: Path) -> pd.DataFrame:
    """All runs below a folder: index (variable, component), a column METHOD:FIGURE for each figure.

    Several seeds are one row each. Says which runs are missing.
    """
    tables = []
    for method, script in METHODS.items():
        for variable in VARIABLES:
            file = results / method / variable / "results.csv"
            if file.exists():
                tables.append(tidy(read_results_table(file), method).assign(variable=variable))
            elif (results / method).exists() or method == "circuit_probing":
                config = config_that_writes(file.parent)
                hint = f", made by 'python {script} --config {config}'" if config else ""
                print(f"missing: {shown(file)}{hint}", file=sys.stderr)
    if not tables:
        raise BadInput(f"nothing to draw in {shown(results)}.")
    return pd.concat(tables, ignore_index=True)


def read_results_table(file: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(file)
    except ValueError as error:
        raise BadInput(f"{shown(file)} cannot be read as CSV: {str(error).strip()}.") from None
    if table.empty or not any(name in table for name in PLACES):
        raise BadInput(f"{shown(file)} is no results table: it has no rows or none of the columns "
                       f"{', '.join(PLACES)}.")
    return table


def tidy(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """A results table with the component it looked at, and the share of accuracy that an intervention costs."""
    place = next(name for name in PLACES if name in table)
    if "vanilla_acc_test" in table:
        table["accuracy_lost"] = table["vanilla_acc_test"] - table["ablated_acc_test"]
    if method == "amnesic":
        table["accuracy_lost"] = table["test_vanilla_acc"] - table["test_acc"]
    return table.add_prefix(f"{method}:").assign(component=table[place].map(COMPONENT_OF))


def present(table: pd.DataFrame, measures: dict[str, str]) -> dict[str, str]:
    return {column: label for column, label in measures.items() if column in table and table[column].notna().any()}


def draw_by_variable(table: pd.DataFrame, measures: dict[str, str], components: list[str], ylabel: str, title: str,
                     path: Path) -> None:
    """Grouped bars: a panel for each component, a group for each variable, a bar for each measure."""
    measures = present(table, measures)
    variables = [name for name in VARIABLES if name in set(table["variable"])]
    figure, axes = plt.subplots(1, len(components), figsize=(5.5 * max(len(components), 1.3), 4.2), sharey=True,
                                squeeze=False, layout="constrained")
    for axis, component in zip(axes[0], components):
        by_variable = table[table["component"] == component].groupby("variable")
        for number, (column, label) in enumerate(measures.items()):
            own_spread = column.replace("_mean", "_std")
            errors = by_variable[own_spread].mean() if own_spread != column else by_variable[column].std()
            draw_bars(axis, by_variable[column].mean().reindex(variables), errors.reindex(variables), label, number,
                      len(measures))
        axis.set(title=COMPONENTS[component], xlabel="intermediate variable", ylim=(0, 1.12))
        axis.set_xticks(range(len(variables)), [VARIABLES[name] for name in variables])
        axis.grid(axis="x", visible=False)
    axes[0][0].set_ylabel(ylabel)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(measures), 3))
    figure.suptitle(title)
    save_figure(figure, path)


def draw_there_and_used(table: pd.DataFrame, path: Path) -> None:
    """A grid: is the variable there (above), is it used (below); a row for each method, a column for each variable.

    Cells without a result are grey.
    """
    there, used = present(table, THERE), present(table, USED)
    columns = [(component, variable) for component in COMPONENTS for variable in VARIABLES]
    figure, axes = plt.subplots(2, 1, figsize=(10, 1.6 + 0.45 * (len(there) + len(used))), layout="constrained",
                                height_ratios=[len(there), len(used)])
    for axis, measures, question in zip(axes, (there, used), ("Is it there? accuracy of reading it off",
                                                              "Is it used? effect of an intervention")):
        means = table.groupby(["component", "variable"])[list(measures)].mean().reindex(columns)
        sns.heatmap(means.T, annot=True, fmt=".2f", vmin=0, vmax=1, cmap="Blues", linewidths=1, ax=axis,
                    cbar=axis is axes[0], cbar_kws={"label": "share"}, annot_kws={"fontsize": 10})
        axis.set_yticks(np.arange(len(measures)) + 0.5, list(measures.values()), rotation=0)
        axis.set_xticks(np.arange(len(columns)) + 0.5, [VARIABLES[variable] for _, variable in columns], rotation=0)
        axis.set(title=question, ylabel="",
                 xlabel="after attention" + " " * 45 + "after the MLP" if axis is axes[1] else "")
        axis.set_facecolor("0.9")  # a cell without a result
        axis.grid(visible=False)
        axis.axvline(len(VARIABLES), color="black", linewidth=2)
    save_figure(figure, path)


def beside_the_paper(table: pd.DataFrame) -> pd.DataFrame:
    """The circuits' means over settings next to the published values, a row for each variable and component."""
    paper = pd.read_csv(PAPER, comment="#").set_index(["variable", "component"])
    names = {"knn_test_acc": "KNN circuit", "full_model_knn_test_acc": "KNN full model",
             "vanilla_acc_test": "accuracy", "ablated_acc_test": "accuracy ablated"}
    ours = table.groupby(["variable", "component"])[[column for column in table
                                                     if column.removeprefix("circuit_probing:") in names]].mean()
    ours.columns = [column.removeprefix("circuit_probing:") for column in ours]
    rows = paper.index[paper.index.isin(ours.dropna(how="all").index)]
    return pd.DataFrame({(label, who): source[name].reindex(rows) for name, label in names.items() if name in ours
                         for who, source in (("ours", ours), ("paper", paper))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=PROJECT_ROOT / "Results" / "Disambiguation")
    parser.add_argument("--out", type=Path, help="default: RESULTS/figures")
    options = parser.parse_args()
    results = options.results.absolute()
    out = (options.out or results / "figures").absolute()

    table = read_results(results)
    components = [name for name in COMPONENTS if name in set(table["component"])]
    if present(table, NEIGHBORS):
        draw_by_variable(table, NEIGHBORS, components, "nearest-neighbor accuracy (test)",
                         "Is the variable there? Nearest neighbors of updates", out / "nearest_neighbors")
    if present(table, ABLATION):
        draw_by_variable(table, ABLATION, components, "model accuracy (test)",
                         "Is the circuit used? Ablation (n/a: too few neurons outside of it)", out / "ablation")
    if set(present(table, PROBES)) - set(NEIGHBORS):
        for component in components:
            draw_by_variable(table, PROBES, [component], "accuracy (test)", "Is the variable there? Three probes",
                             out / f"probe_accuracy_{component}")
        draw_there_and_used(table, out / "there_and_used")
    comparison = beside_the_paper(table)
    if not comparison.empty:
        print(comparison.to_string(float_format="%.3f"))
        comparison.columns = [f"{measure} {who}".replace(" ", "_") for measure, who in comparison.columns]
        write_text(out / "beside_the_paper.csv", comparison.to_csv())


if __name__ == "__main__":
    try:
        main()
    except (BadInput, OSError) as error:
        print(f"summarize_disambiguation: {error}", file=sys.stderr)
        sys.exit(2)
