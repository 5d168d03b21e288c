"""Experiment 1 in figures and a table: which of two algorithms did the model learn?

    python analysis/summarize_disambiguation.py [--results DIR] [--out DIR]

Reads DIR/METHOD/VARIABLE/results.csv of the five methods and four variables, or your own, whichever exist. Draws
nearest_neighbors, probe_accuracy_attn and probe_accuracy_mlp (is the variable there?), ablation (is the circuit used?)
and there_and_used (every method's answer to both), and writes and prints circuits.csv, the circuits' accuracies. Of
several models figures show means, dots and intervals; of several layers --where target_layer=LAYER takes one.
"""

from analysis.figures import METHODS, draw_by_variable, draw_probes, of_models
from analysis.tables import RESULTS, WHERE, parse, present, read_experiment, run
from interp.runs.files import write_text

VARIABLES = {"a2": "a²", "minus_b2": "-b²", "a_plus_b": "a+b", "a_minus_b": "a-b"}
MEASURES = {"circuit_probing:knn_test_acc": "KNN circuit",
            "circuit_probing:full_model_knn_test_acc": "KNN full sublayer",
            "circuit_probing:vanilla_acc_test": "accuracy", "circuit_probing:ablated_acc_test": "accuracy ablated"}
ABLATION = {"circuit_probing:vanilla_acc_test": "full model", "circuit_probing:ablated_acc_test": "circuit ablated",
            "circuit_probing:random_ablated_acc_test_mean": "as many random neurons ablated"}


def main() -> None:
    options = parse(__doc__, RESULTS / "Disambiguation", WHERE)
    found = sorted({file.parent.name for method in METHODS for file in options.results.glob(f"{method}/*/results.csv")})
    variables = {name: label for name, label in VARIABLES.items() if name in found} | {
        name: name for name in found if name not in VARIABLES}  # the user's
    table = read_experiment(options.results, variables, options.where)
    draw_probes(table, variables, options.out)
    if present(table, ABLATION):
        draw_by_variable(table, variables, ABLATION, sorted(set(table["component"])), "model accuracy (test)",
                         "Is the circuit used? n/a: too few neurons outside of it", options.out / "ablation")
    if measures := present(table, MEASURES):
        groups = table.groupby(["layer", "variable", "component"], sort=False)[list(measures)]
        circuits = groups.mean().dropna(how="all").rename(columns=measures)
        print(f"Circuits, {of_models(table)}:\n{circuits.to_string(float_format='%.3f')}")
        write_text(options.out / "circuits.csv", circuits.to_csv())


if __name__ == "__main__":
    run("summarize_disambiguation", main)
