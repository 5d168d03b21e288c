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

from pathlib import Path

import pandas as pd

from analysis.method_figures import METHODS, draw_by_variable, draw_probes, parse_folders, present, read_results, run
from interp.runs.files import write_text

PAPER = Path(__file__).with_name("paper_experiment_1.csv")
VARIABLES = {"a2": "a²", "minus_b2": "-b²", "a_plus_b": "a+b", "a_minus_b": "a-b"}
ABLATION = {"circuit_probing:vanilla_acc_test": "full model", "circuit_probing:ablated_acc_test": "circuit ablated",
            "circuit_probing:random_ablated_acc_test_mean": "as many random neurons ablated (sd)"}


def with_own(results: Path, known: dict[str, str]) -> dict[str, str]:
    """The variables to draw: those of the paper, and the reader's own; of the reader's alone, those alone."""
    found = sorted({file.parent.name for method in METHODS for file in (results / method).glob("*/results.csv")})
    own = {name: name for name in found if name not in known}
    return known | own if set(found) & set(known) or not own else own


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
    options = parse_folders(__doc__.splitlines()[0], "Disambiguation")
    variables = with_own(options.results, VARIABLES)
    table = read_results(options.results, variables)
    draw_probes(table, variables, options.out)
    if present(table, ABLATION):
        draw_by_variable(table, variables, ABLATION, sorted(set(table["component"])), "model accuracy (test)",
                         "Is the circuit used? Ablation (n/a: too few neurons outside of it)", options.out / "ablation")
    comparison = beside_the_paper(table)
    if not comparison.empty:
        print(comparison.to_string(float_format="%.3f"))
        comparison.columns = [f"{measure} {who}".replace(" ", "_") for measure, who in comparison.columns]
        write_text(options.out / "beside_the_paper.csv", comparison.to_csv())


if __name__ == "__main__":
    run("summarize_disambiguation", main)
