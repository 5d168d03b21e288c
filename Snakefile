# Experiments 1 to 3, and the comparison of methods, as a graph over the shipped configs: train -> probe -> draw.
#
#     make experiment1        from nothing to the figures; if killed, the same command continues
#     make comparison         all methods by one measure, on the models of all three
#     snakemake -n paper      what is left to do for all three
#     make experiment1 SEEDS="0 1 2"      the same for three models: figures show every one, results in Results/Seeds
#     snakemake experiment1 --config configs=mine/configs results=mine/Results
#                             over configs of your own in the same layout, whose results_dir lie in mine/Results
#
# Each step is one command of this project, run from this folder; the scripts do not depend on the graph. Their tables
# grow row by row and a killed script continues them, so a step's output is a mark that is set when all its runs are
# complete. A step is one process for many configs, because importing torch takes longer than many of the runs. It has
# one thread, so that its results do not depend on the number of cores; with more cores more steps run at once.

import subprocess
import sys

from snakemake.exceptions import WorkflowError

from interp.methods.table import METHODS
from interp.runs.config import project_path, read_chain, read_yaml, shown

CONFIGS, RESULTS = config.get("configs", "configs"), config.get("results", "Results")
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


def marks(files):
    """A file in each config's run directory that is there when the run is complete.

    If a run's table or models have been deleted, its mark does not count.
    """
    found = []
    for values in (read_yaml(project_path(file)) for file in files):
        mark = project_path(values["results_dir"]) / ".complete"
        written = [mark.with_name("results.csv")]
        if values.get("save_models"):
            written.append(project_path(values["model_dir"]))
        if not all(path.exists() for path in written):
            mark.unlink(missing_ok=True)
        found.append(shown(mark))
    return found


def figures(experiment, names):
    return [f"{RESULTS}/{experiment}/figures/{name}.{ending}" for name in names for ending in ("png", "pdf")]


TRAINED = {experiment: marks([config_file(f"Train_Algorithmic_Models/{name}")]) for experiment, name in TRAINING.items()}
TRANSFERS = [config_file(f"Disambiguation/transfer/{name}") for name in ("a2", "a_plus_b")]
PROBED = {}  # the marks of all methods, by experiment


for experiment in TRAINING:
    folders = [folder for folder in VARIABLES if folder.split("/")[0] == experiment]
    PROBED[experiment] = []

    rule:
        name: f"train_{experiment}"
        input: config_file(f"Train_Algorithmic_Models/{TRAINING[experiment]}"),
        output: touch(TRAINED[experiment]),
        benchmark: f"{RESULTS}/times/{experiment}/train.tsv"
        threads: 1
        shell: "OMP_NUM_THREADS={threads} {sys.executable} train_algorithmic_models.py --config {input}"

    for folder in folders:
        for method, script in SCRIPTS.items():
            configs = configs_of(folder, method)
            complete = marks(configs)
            PROBED[experiment] += complete

            rule:
                name: f"{method}_{folder.replace('/', '_')}"
                input: TRAINED[experiment], read_by(configs),
                output: touch(complete),
                benchmark: f"{RESULTS}/times/{folder}/{method}.tsv"
                params: script=script, configs=configs,
                threads: 1
                shell: "OMP_NUM_THREADS={threads} {sys.executable} {params.script} --config {params.configs}"

    rule:
        name: f"draw_{experiment}"
        input: PROBED[experiment],
        output: figures(experiment, FIGURES[experiment]),
        benchmark: f"{RESULTS}/times/{experiment}/draw.tsv"
        params: command=f"analysis/summarize_{experiment.lower()}.py --results {RESULTS}/{experiment}"
                + f" --curves {RESULTS}/{CURVES}" * (experiment == "Grokking"),
        shell: "{sys.executable} {params.command}"


rule transfer:
    input: TRAINED["Disambiguation"], read_by(TRANSFERS),
    output: touch(marks(TRANSFERS)),
    benchmark: f"{RESULTS}/times/Disambiguation/transfer.tsv"
    threads: 1
    params: configs=TRANSFERS,
    shell: "OMP_NUM_THREADS={threads} {sys.executable} train_algorithmic_models.py --config {params.configs}"


for name, pair in OVERLAPS.items():
    configs = [config_file(f"Shared_Nodes/{file}") for file in pair]

    rule:
        name: f"overlap_{name}"
        input: configs=configs, circuits=marks(configs),
        output: figures("Shared_Nodes", [f"overlap/{name}"]),
        params: out=f"{RESULTS}/Shared_Nodes/figures/overlap/{name}",
        shell: "{sys.executable} analysis/summarize_model_overlap.py --config {input.configs} --out {params.out}"


SEEDED = marks(there([SEEDS]))
COMPARISONS = []  # the marks of the runs of the comparison

if SEEDED:
    rule train_seeds:
        input: read_by(there([SEEDS])), TRAINED["Disambiguation"],  # which writes the same data
        output: touch(SEEDED),
        benchmark: f"{RESULTS}/times/Disambiguation/train_seeds.tsv"
        threads: 1
        params: config=config_file(SEEDS),
        shell: "OMP_NUM_THREADS={threads} {sys.executable} train_algorithmic_models.py --config {params.config}"


for name, experiment in COMPARISON.items():
    files = there([f"Comparison/{name}"])
    complete = marks(files)
    COMPARISONS += complete

    if files:
        rule:
            name: f"compare_{name}"
            input: TRAINED[experiment], SEEDED if experiment == "Disambiguation" else [], read_by(files),
            output: touch(complete),
            benchmark: f"{RESULTS}/times/Comparison/{name}.tsv"
            threads: 1
            params: configs=files,
            shell: "OMP_NUM_THREADS={threads} {sys.executable} compare_methods.py --config {params.configs}"


rule comparison:
    input: COMPARISONS,
    output: f"{RESULTS}/Comparison/figures/leaderboard.csv", figures("Comparison", ["detection"]),
    shell: "{sys.executable} analysis/summarize_comparison.py --results {RESULTS}/Comparison"


rule experiment1:
    input: rules.draw_Disambiguation.output, rules.transfer.output,


rule experiment2:
    input: rules.draw_Shared_Nodes.output,
           figures("Shared_Nodes", [f"overlap/{name}" for name in OVERLAPS]),


rule experiment3:
    input: rules.draw_Grokking.output,


rule paper:
    input: rules.experiment1.input, rules.experiment2.input, rules.experiment3.input,
    default_target: True
