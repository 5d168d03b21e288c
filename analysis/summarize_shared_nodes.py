"""Experiment 2 in figures: is a variable that two tasks share computed by one circuit?

    python analysis/summarize_shared_nodes.py [--results DIR] [--out DIR]

Reads DIR/Task_{1,2}/METHOD/VARIABLE/results.csv, whichever exist, and draws in OUT/Task_1 and OUT/Task_2 what
summarize_disambiguation.py draws; ablation_attn and ablation_mlp: which task needs the circuit, or its first map?
"""

from analysis.figures import draw_by_variable, draw_probes
from analysis.tables import RESULTS, WHERE, parse, present, read_experiment, run
from interp.runs.config import BadInput, shown

TASKS = {
    "Task_1": {"free": "free (b mod 31)", "shared": "shared (a mod 29)", "aux": "other task's (b mod 23)"},
    "Task_2": {"free": "free (b mod 23)", "shared": "shared (a mod 29)", "aux": "other task's (b mod 31)"}}
FIRST_MAP = {"attn": "c_attn", "mlp": "c_fc"}


def main() -> None:
    options = parse(__doc__, RESULTS / "Shared_Nodes", WHERE)
    tasks = [task for task in TASKS if (options.results / task).is_dir()]
    if not tasks:
        raise BadInput(f"nothing to draw in {shown(options.results)}.")
    for task in tasks:
        table, of = read_experiment(options.results / task, TASKS[task], options.where), f" ({task.replace('_', ' ')})"
        draw_probes(table, TASKS[task], options.out / task, of)
        for component, first_map in FIRST_MAP.items():
            rows = table[table["component"] == component]
            measures = {f"circuit_probing:{prefix}ablated_acc_{which}": f"{what} ablated: {name} task"
                        for prefix, what in (("", "circuit"), (f"{first_map}_", "its first map"))
                        for which, name in (("same", "same"), ("different", "other"))}
            if present(rows, measures):
                draw_by_variable(rows, TASKS[task], measures, [component], "model accuracy (test)",
                                 f"Which task needs the circuit?{of}", options.out / task / f"ablation_{component}")


if __name__ == "__main__":
    run("summarize_shared_nodes", main)
