"""Experiment 1 in figures and a table: which of two algorithms did the model learn?

    python analysis/summarize_disambiguation.py [--results DIR] [--out DIR]

Reads DIR/METHOD/VARIABLE/results.csv of the five methods and four variables, whichever exist, and draws

nearest_neighbors      is the variable there? circuit and full sublayer
ablation               is the circuit used?
probe_accuracy_attn    circuit, linear and MLP probe, after attention
probe_accuracy_mlp     the same after the MLP
there_and_used         every method's answer to both questions, for each variable

and prints the circuits' figures, beside the paper's where model, data and settings are the paper's. With several layers
each has a folder of its own; of several models the figures show means, dots and intervals.
"""

from pathlib import Path

import pandas as pd

import circuit_probing
from analysis.method_figures import (
    DRAWS_SD,
    METHODS,
    draw_by_variable,
    draw_probes,
    each_layer,
    of_models,
    parse_folders,
    present,
    read_results,
    run,
    tables_below,
)
from analysis.papers import why_not_the_papers
from interp.runs.config import CONFIGS
from interp.runs.files import write_text

PAPER = Path(__file__).with_name("paper_experiment_1.csv")
PAPERS = CONFIGS / "Disambiguation/circuit_probing"
TRAINING = CONFIGS / "Train_Algorithmic_Models/Disambiguation/a2_minus_b2.yaml"
VARIABLES = {"a2": "a²", "minus_b2": "-b²", "a_plus_b": "a+b", "a_minus_b": "a-b"}
MEASURES = {"knn_test_acc": "KNN circuit", "full_model_knn_test_acc": "KNN full sublayer",
            "vanilla_acc_test": "accuracy", "ablated_acc_test": "accuracy ablated"}
ABLATION = {"circuit_probing:vanilla_acc_test": "full model", "circuit_probing:ablated_acc_test": "circuit ablated",
            "circuit_probing:random_ablated_acc_test_mean": f"as many random neurons ablated{DRAWS_SD}"}


def with_own(results: Path, known: dict[str, str]) -> dict[str, str]:
    """The variables to draw: those of the paper, and the reader's own; of the reader's alone, those alone."""
    found = sorted({file.parent.name for method in METHODS for file in tables_below(results / method, "*")})
    own = {name: name for name in found if name not in known}
    return known | own if set(found) & set(known) or not own else own


def circuits(table: pd.DataFrame) -> pd.DataFrame:
    """The circuits' figures, means over models, a row for each layer, variable and component."""
    columns = {f"circuit_probing:{name}": label for name, label in MEASURES.items()}
    columns = {name: label for name, label in columns.items() if name in table}
    found = table.groupby(["layer", "variable", "component"], sort=False)[list(columns)].mean().dropna(how="all")
    return found.rename(columns=columns)


def beside_the_paper(ours: pd.DataFrame, results: Path) -> pd.DataFrame:
    """Ours of the circuits with the published values of those runs that are the paper's; says why others are not."""
    paper = pd.read_csv(PAPER, comment="#").set_index(["variable", "component"]).rename(columns=MEASURES)
    reasons = {}
    for variable in ours.index.unique("variable"):
        config = PAPERS / f"{variable}.yaml"
        reasons[variable] = why_not_the_papers(results / "circuit_probing" / variable, config, circuit_probing.Config,
                                               TRAINING) if config.exists() else "the paper has no such variable"
    for reason in sorted({reason for reason in reasons.values() if reason}):
        print(f"not set beside the paper's figures: {', '.join(key for key in reasons if reasons[key] == reason)} "
              f"({reason}).")
    published = paper.reindex(ours.index.droplevel("layer")).set_index(ours.index)[list(ours)]
    published[[bool(reasons[variable]) for _, variable, _ in ours.index]] = float("nan")
    both = pd.concat([ours, published.dropna(how="all", axis=1).add_suffix(", paper")], axis=1)
    return both[sorted(both, key=lambda column: list(ours).index(column.removesuffix(", paper")))]


def main() -> None:
    options = parse_folders(__doc__.splitlines()[0], "Disambiguation")
    variables = with_own(options.results, VARIABLES)
    everything = read_results(options.results, variables, where=options.where)
    for table, out, of in each_layer(everything, options.out):
        draw_probes(table, variables, out, of)
        if present(table, ABLATION):
            draw_by_variable(table, variables, ABLATION, sorted(set(table["component"])), "model accuracy (test)",
                             f"Is the circuit used? n/a: too few neurons outside of it{of}", out / "ablation")
    ours = circuits(everything)
    if not ours.empty:
        table = beside_the_paper(ours, options.results)
        columns = present(everything, {f"circuit_probing:{name}": label for name, label in MEASURES.items()})
        print(f"Circuits, {of_models(everything, columns)}:\n{table.to_string(float_format='%.3f')}")
        write_text(options.out / "circuits.csv", table.to_csv())


if __name__ == "__main__":
    run("summarize_disambiguation", main)
