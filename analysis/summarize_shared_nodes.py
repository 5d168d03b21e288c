"""Experiment 2 in figures: is a variable that two tasks share computed by one circuit?

    python analysis/summarize_shared_nodes.py [--results DIR] [--out DIR]

Reads DIR/Task_{1,2}/METHOD/VARIABLE/results.csv, whichever exist, and draws for each task, in OUT/Task_1 and
OUT/Task_2,

nearest_neighbors      is the variable there? circuit and full sublayer
probe_accuracy_attn    circuit, linear and MLP probe, after attention
probe_accuracy_mlp     the same after the MLP
there_and_used         every method's answer to both questions
ablation_attn, _mlp     which task needs the circuit: all of it, and its first linear map alone
"""


from analysis.method_figures import (
    draw_by_variable,
    draw_probes,
    each_layer,
    parse_folders,
    present,
    read_results,
    run,
)
from interp.runs.config import BadInput, shown

TASKS = {
    "Task_1": {"free": "free (b mod 31)", "shared": "shared (a mod 29)", "aux": "other task's (b mod 23)"},
    "Task_2": {"free": "free (b mod 23)", "shared": "shared (a mod 29)", "aux": "other task's (b mod 31)"},
}
FIRST_MAP = {"attn": "c_attn", "mlp": "c_fc"}


def ablation_measures(first_map: str) -> dict[str, str]:
    return {"circuit_probing:ablated_acc_same": "circuit ablated: same task",
            "circuit_probing:ablated_acc_different": "circuit ablated: other task",
            f"circuit_probing:{first_map}_ablated_acc_same": "its first map ablated: same task",
            f"circuit_probing:{first_map}_ablated_acc_different": "its first map ablated: other task"}


def main() -> None:
    options = parse_folders(__doc__.splitlines()[0], "Shared_Nodes")
    results, out = options.results, options.out
    tasks = [task for task in TASKS if (results / task).is_dir()]
    if not tasks:
        raise BadInput(f"nothing to draw in {shown(results)}.")
    for task in tasks:
        found = read_results(results / task, TASKS[task], never=(("DAS", "aux"),),  # no label says what it should do
                             where=options.where)
        for table, folder, layer in each_layer(found, out / task):
            of = f" ({task.replace('_', ' ')}{layer})"
            draw_probes(table, TASKS[task], folder, of=of)
            for component, first_map in FIRST_MAP.items():
                rows = table[table["component"] == component]
                if present(rows, ablation_measures(first_map)):
                    draw_by_variable(rows, TASKS[task], ablation_measures(first_map), [component],
                                     "model accuracy (test)", f"Which task needs the circuit?{of}",
                                     folder / f"ablation_{component}")


if __name__ == "__main__":
    run("summarize_shared_nodes", main)
