# Experiments 1 to 3, and the comparison of methods, as a graph over the shipped configs: train -> probe -> draw.
#
#     make experiment1        from nothing to the figures; if killed, the same command continues
#     make comparison         all methods by one measure, on the models of all three
#     snakemake -n paper      what is left to do for all three
#     make experiment1 SEEDS="0 1 2"      the same for three models: figures show every one, results in Results/Seeds
#     make paper PROFILE=profiles/slurm   the same on a cluster; or profiles/gpus, on one machine with several GPUs
#     snakemake experiment1 --config configs=mine/configs results=mine/Results
#                             over configs of your own in the same layout, whose results_dir lie in mine/Results
#     ... --config parts=8    every sweep in up to eight jobs, and one that joins them
#
# Each step is one command of this project, run from this folder; the scripts do not depend on the graph. Their tables
# grow row by row and a killed script continues them, so a step's output is a mark that is set when all its runs are
# complete. A step is one process for many configs, because importing torch takes longer than many of the runs. It has
# one thread, so that its results do not depend on the number of cores; with more cores more steps run at once.

import subprocess
import sys
from math import prod
from typing import NamedTuple

from snakemake.exceptions import WorkflowError

from interp.methods.table import METHODS
from interp.runs.config import project_path, read_chain, read_yaml, shown
from interp.runs.settings import TOGETHER

CONFIGS, RESULTS = config.get("configs", "configs"), config.get("results", "Results")
PARTS = int(config.get("parts", 1))  # of every sweep
if "seeds" in config:  # --config seeds="0 1 2": the same for several models, in folders of their own
    seeds = str(config["seeds"]).split()
    if not seeds or not all(seed.isdecimal() for seed in seeds):
        raise WorkflowError(f"seeds: '{config['seeds']}' is not a list of whole numbers such as 0 1 2.")
    CONFIGS, RESULTS = "Results/Seeds/configs", "Results/Seeds"
    subprocess.run([sys.executable, "configs/with_seeds.py", *seeds, "--out", CONFIGS], check=True)

VARIABLES = {"Disambiguation": ["a2", "minus_b2", "a_plus_b", "a_minus_b"], "Grokking": ["a2", "b2"],
             "Shared_Nodes/Task_1": ["free", "shared", "aux"], "Shared_Nodes/Task_2": ["free", "shared", "aux"]}
SCRIPTS = {name: method.script for name, method in METHODS.items()}
TRAINING = {"Disambiguation": "Disambiguation/a2_minus_b2", "Shared_Nodes": "Shared_Nodes/shared_nodes",
            "Grokking": "Grokking/a2_b"}
SEEDS = "Train_Algorithmic_Models/Disambiguation/a2_minus_b2_seeds"  # more models of Experiment 1
COMPARISON = {"Disambiguation": "Disambiguation", "Untrained": "Disambiguation", "Shared_Nodes_Task_1": "Shared_Nodes",
              "Shared_Nodes_Task_2": "Shared_Nodes", "Grokking": "Grokking", "Grokking-checkpoints": "Grokking"}
COMPARED = ["probe_accuracy_attn", "probe_accuracy_mlp", "there_and_used", "nearest_neighbors"]
FIGURES = {
    "Disambiguation": [*COMPARED, "ablation"],
    "Shared_Nodes": [f"{task}/{name}" for task in ("Task_1", "Task_2")
                     for name in (*COMPARED, "ablation_attn", "ablation_mlp")],
    "Grokking": ["probe_accuracy", "ablation", "amnesic", "DAS"],
}
CURVES = "Train_Algorithmic_Models/Grokking/curves.csv"
OVERLAPS = {  # the circuits of two configs: are they the same neurons?
    "shared_of_both_tasks": ["Task_1/circuit_probing/shared", "Task_2/circuit_probing/shared"],
    "free_of_both_tasks": ["Task_1/circuit_probing/free", "Task_2/circuit_probing/free"],
    "free_and_shared": ["Task_1/circuit_probing/free", "Task_1/circuit_probing/shared"],
}


if not project_path(CONFIGS).is_dir():
    raise WorkflowError(f"configs: there is no folder {CONFIGS}.")


def config_file(name):
    return f"{CONFIGS}/{name}.yaml"


def there(names):
    """The configs that there are, of some names."""
    return [config_file(name) for name in names if project_path(config_file(name)).exists()]


def configs_of(folder, method):
    """The configs of a method's variables, if there are any: DAS does not have a label for every variable."""
    ending = "_cf" if method == "DAS" and folder != "Grokking" else ""
    return there(f"{folder}/{method}/{variable}{ending}" for variable in VARIABLES[folder])


def read_by(files):
    """Configs, and the ones they are based on: when any changes the step is to be made again."""
    return sorted({shown(path) for file in files for path, _ in read_chain(project_path(file))})


def marks(files, part=""):
    """A file in each config's run directory that is there when the run, or a part of it, is complete.

    If a run's table or models have been deleted, its mark does not count.
    """
    found = []
    for values in (read_yaml(project_path(file)) for file in files):
        results = project_path(values["results_dir"])
        mark = results / (f".{part}.complete" if part else ".complete")
        written = [] if part else [results / "results.csv"]
        if values.get("save_models"):
            written.append(project_path(values["model_dir"]))
        if not all(path.exists() for path in written):
            mark.unlink(missing_ok=True)
        found.append(shown(mark))
    return found


def figures(experiment, names):
    return [f"{RESULTS}/{experiment}/figures/{name}.{ending}" for name in names for ending in ("png", "pdf")]


def settings_of(files):
    """How many settings the largest of some configs sweeps that a part may divide."""
    def size(values):
        return prod(len(value) for key, value in values.items()
                    if key.endswith("_list") and key != f"{TOGETHER}_list" and value)
    return max((size(read_yaml(project_path(file))) for file in files), default=0)


class Step(NamedTuple):
    """A command on some configs. measured: minutes and MiB at most, by the graph's own benchmarks (docs/reproducing.md)."""

    script: str
    configs: list
    needs: list
    times: str
    measured: tuple


TRAINED = {experiment: marks([config_file(f"Train_Algorithmic_Models/{name}")]) for experiment, name in TRAINING.items()}
TRANSFERS = [config_file(f"Disambiguation/transfer/{name}") for name in ("a2", "a_plus_b")]
SEEDED = marks(there([SEEDS]))
STEPS = {}  # by the name of the rule
PROBED = {experiment: [] for experiment in TRAINING}  # the marks of all methods
COMPARISONS = []  # the marks of the runs of the comparison

for experiment, name in TRAINING.items():
    STEPS[f"train_{experiment}"] = Step(
        "train_algorithmic_models.py", [config_file(f"Train_Algorithmic_Models/{name}")], [], f"{experiment}/train",
        {"Shared_Nodes": (85, 1000)}.get(experiment, (36, 740)))
for folder in VARIABLES:
    experiment = folder.split("/")[0]
    for method, script in SCRIPTS.items():
        files = configs_of(folder, method)
        STEPS[f"{method}_{folder.replace('/', '_')}"] = Step(
            script, files, TRAINED[experiment], f"{folder}/{method}", (41 if experiment == "Grokking" else 6, 830))
        PROBED[experiment] += marks(files)
STEPS["transfer"] = Step("train_algorithmic_models.py", TRANSFERS, TRAINED["Disambiguation"], "Disambiguation/transfer",
                         (6, 780))
if SEEDED:  # after the first model, which writes the same data
    STEPS["train_seeds"] = Step("train_algorithmic_models.py", there([SEEDS]), TRAINED["Disambiguation"],
                                "Disambiguation/train_seeds", (52, 740))
for name, experiment in COMPARISON.items():
    if files := there([f"Comparison/{name}"]):
        STEPS[f"compare_{name}"] = Step(
            "compare_methods.py", files, TRAINED[experiment] + (SEEDED if experiment == "Disambiguation" else []),
            f"Comparison/{name}", (54, 2200))
        COMPARISONS += marks(files)


for name, step in STEPS.items():
    complete, parts = marks(step.configs), min(PARTS, settings_of(step.configs))
    command = f"OMP_NUM_THREADS=1 {sys.executable} {step.script} --config {' '.join(step.configs)}"
    minutes, mebibytes = step.measured
    division = [(f"{name}_part_{number}", f" --shard {number}/{parts}", marks(step.configs, f"part_{number}_of_{parts}"))
                for number in range(1, parts + 1)] if parts > 1 else []
    joined = [mark for *_, own in division for mark in own]

    for rule_name, option, wanted in [*division, (name, "", complete)]:

        rule:
            name: rule_name
            input: joined if wanted is complete and joined else step.needs + read_by(step.configs),
            output: touch(wanted),
            benchmark: f"{RESULTS}/times/{step.times}{rule_name.removeprefix(name)}.tsv"
            threads: 1
            resources:  # twice what was measured, twice that in a second try
                mem_mb=lambda wildcards, attempt, mebibytes=mebibytes: 2 * mebibytes * attempt,
                runtime=lambda wildcards, attempt, minutes=minutes: max(10, 2 * minutes) * attempt,
            params:
                command=command + option,
                on=lambda wildcards, resources: "profiles/on_a_free_gpu.sh env " if resources.get("gpu") else "",
            shell: "{params.on}{params.command}"


for experiment in TRAINING:

    rule:
        name: f"draw_{experiment}"
        input: PROBED[experiment],
        output: figures(experiment, FIGURES[experiment]),
        benchmark: f"{RESULTS}/times/{experiment}/draw.tsv"
        params: command=f"analysis/summarize_{experiment.lower()}.py --results {RESULTS}/{experiment}"
                + f" --curves {RESULTS}/{CURVES}" * (experiment == "Grokking"),
        resources: mem_mb=2000, runtime=10, gpu=0,
        shell: "{sys.executable} {params.command}"


for name, pair in OVERLAPS.items():
    configs = [config_file(f"Shared_Nodes/{file}") for file in pair]

    rule:
        name: f"overlap_{name}"
        input: configs=configs, circuits=marks(configs),
        output: figures("Shared_Nodes", [f"overlap/{name}"]),
        params: out=f"{RESULTS}/Shared_Nodes/figures/overlap/{name}",
        resources: mem_mb=2000, runtime=10, gpu=0,
        shell: "{sys.executable} analysis/summarize_model_overlap.py --config {input.configs} --out {params.out}"


rule comparison:
    input: COMPARISONS,
    output: f"{RESULTS}/Comparison/figures/leaderboard.csv", figures("Comparison", ["detection"]),
    resources: mem_mb=2000, runtime=20, gpu=0,
    shell: "{sys.executable} analysis/summarize_comparison.py --results {RESULTS}/Comparison"


rule experiment1:
    input: rules.draw_Disambiguation.output, marks(TRANSFERS),


rule experiment2:
    input: rules.draw_Shared_Nodes.output,
           figures("Shared_Nodes", [f"overlap/{name}" for name in OVERLAPS]),


rule experiment3:
    input: rules.draw_Grokking.output,


rule paper:
    input: rules.experiment1.input, rules.experiment2.input, rules.experiment3.input,
    default_target: True
