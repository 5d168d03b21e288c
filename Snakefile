# The paper's experiments and the comparison of methods as a workflow over the shipped configs: train -> probe -> draw.
#
#     make experiment1        from nothing to the figures; if killed, the same command continues
#     make experiment4        SmolLM2 and Gemma 3; make language: agreement in SmolLM2
#     make known              methods on models whose variables are known; make known-quick: on three of them
#     make comparison         all methods by one measure, on the models of Experiments 1 to 3; also comparison-language
#     snakemake -n paper      what is left to do for Experiments 1 to 3
#     make experiment1 SEEDS="0 1 2"      the same for three models: figures show every one, results in Results/Seeds
#     make paper PROFILE=profiles/slurm   the same on a cluster; or profiles/gpus, on one machine with several GPUs
#     make paper SHARDS=8                 every sweep in up to eight jobs, which write into one run directory
#     snakemake experiment1 --config configs=mine/configs results=mine/Results
#                             over other configs in the same layout, whose results_dir lie in mine/Results
#
# Each step is one command of this project, run from this folder; the scripts do not depend on the workflow. Their
# tables grow row by row and a killed script continues them, so a step's output is a mark that is set when all its runs
# are complete. A step is one process for many short configs, because importing torch takes longer than many of the runs.
# It has one thread, so that its results do not depend on the number of cores; with more cores more steps run at once.

import shlex
import subprocess
import sys
from math import prod
from typing import NamedTuple

from snakemake.exceptions import WorkflowError

from interp.methods.table import METHODS
from interp.runs.config import project_path, read_chain, read_yaml, shown

CONFIGS, RESULTS = config.get("configs", "configs"), config.get("results", "Results")
SHARDS = int(config.get("shards", 1))  # of every sweep
PYTHON = shlex.quote(sys.executable)
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
LANGUAGE_MODELS = {"smollm2": "Models/SmolLM2-135M", "gemma3": "Models/Gemma3-270M"}
SENTENCES = {"SV_Agreement": ("sv_agreement", "agreement"), "Reflexives": ("reflexives", "reflexives"),
             "Syntactic_Number": ("syntactic_number", "syntactic_number")}  # the names of configs, and of the script
COMPARISON = {"Disambiguation": "Disambiguation", "Untrained": "Disambiguation", "Shared_Nodes_Task_1": "Shared_Nodes",
              "Shared_Nodes_Task_2": "Shared_Nodes", "Grokking": "Grokking", "Grokking-checkpoints": "Grokking"}
COMPARED = ["probe_accuracy_attn", "probe_accuracy_mlp", "there_and_used", "nearest_neighbors"]
FIGURES = {
    "Disambiguation": [*COMPARED, "ablation"],
    "Shared_Nodes": [f"{task}/{name}" for task in ("Task_1", "Task_2")
                     for name in (*COMPARED, "ablation_attn", "ablation_mlp")],
    "Grokking": ["probe_accuracy", "ablation", "amnesic", "DAS"],
}
OVERLAPS = {  # the circuits of two configs: are they the same neurons?
    "Shared_Nodes/figures/overlap/shared_of_both_tasks": [
        f"Shared_Nodes/{task}/circuit_probing/shared" for task in ("Task_1", "Task_2")],
    "Shared_Nodes/figures/overlap/free_of_both_tasks": [
        f"Shared_Nodes/{task}/circuit_probing/free" for task in ("Task_1", "Task_2")],
    "Shared_Nodes/figures/overlap/free_and_shared": [
        f"Shared_Nodes/Task_1/circuit_probing/{name}" for name in ("free", "shared")],
    "Reflexives/overlap/agreement_smollm2": ["SV_Agreement/sv_agreement-smollm2", "Reflexives/reflexives-smollm2"],
}


if not project_path(CONFIGS).is_dir():
    raise WorkflowError(f"configs: there is no folder {CONFIGS}.")


def config_file(name):
    return f"{CONFIGS}/{name}.yaml"


def there(*names):
    """The configs of some names that exist."""
    return [config_file(name) for name in names if project_path(config_file(name)).exists()]


def configs_of(folder, method):
    """The configs of a method's variables that exist: DAS does not have a label for every variable."""
    ending = "_cf" if method == "DAS" and folder != "Grokking" else ""
    return there(*(f"{folder}/{method}/{variable}{ending}" for variable in VARIABLES[folder]))


def read_by(files):
    """Configs, and the ones they are based on: if any changes, the step is repeated."""
    return sorted({shown(path) for file in files for path, _ in read_chain(project_path(file))})


def mark(file, *written):
    """A file that is there when something is complete; it does not count if what was written has been deleted."""
    if not all(path.exists() for path in written):
        file.unlink(missing_ok=True)
    return shown(file)


def marks(files, shard=""):
    """A mark in each config's run directory: its run, or a shard of it, is complete."""
    found = []
    for values in (read_yaml(project_path(file)) for file in files):
        results = project_path(values["results_dir"])
        folders = ["data_dir"] * ("data_dir" in values) + ["model_dir"] * bool(values.get("save_models"))
        written = [results / "results.csv", *(project_path(values[key]) for key in folders)]
        found.append(mark(results / f".{shard}complete", *([] if shard else written)))  # a shard may have no setting
    return found


def converted(model):
    """The mark of a language model that is taken from its package."""
    folder = project_path(LANGUAGE_MODELS[model])
    return mark(folder.with_name(f".{folder.name}.complete"), folder)


def figures(experiment, names):
    return [f"{RESULTS}/{experiment}/figures/{name}.{ending}" for name in names for ending in ("png", "pdf")]


def groups_of(files):
    """The most groups of settings that a sweep of some configs has; those that differ in the method stay together."""
    return max(prod(len(value) for key, value in read_yaml(project_path(file)).items()
                    if key.endswith("_list") and key != "method_list" and value) for file in files)


class Step(NamedTuple):
    """A command on some configs. measured: minutes and MiB at most (docs/reproducing.md, docs/experiment_4.md)."""

    script: str
    configs: list
    needs: list
    times: str
    measured: tuple


class Drawing(NamedTuple):
    """A script of analysis/ with its arguments."""

    needs: list
    figures: list
    command: str


STEPS = {}  # by the name of the rule
DRAWINGS = {}


def add_step(name, *step):
    """Returns the marks of the step's runs; without configs there is no step."""
    step = Step(*step)
    if step.configs:
        STEPS[name] = step
    return marks(step.configs)


TRAINED = {experiment: add_step(
    f"train_{experiment}", "train_algorithmic_models.py", [config_file(f"Train_Algorithmic_Models/{name}")], [],
    f"{experiment}/train", {"Shared_Nodes": (85, 1000)}.get(experiment, (36, 740)))
    for experiment, name in TRAINING.items()}
PROBED = {experiment: [] for experiment in TRAINING}  # the marks of all methods
for folder in VARIABLES:
    experiment = folder.split("/")[0]
    for method, script in SCRIPTS.items():
        PROBED[experiment] += add_step(
            f"{method}_{folder.replace('/', '_')}", script, configs_of(folder, method), TRAINED[experiment],
            f"{folder}/{method}", (41 if experiment == "Grokking" else 6, 830))
TRANSFERRED = add_step(
    "transfer", "train_algorithmic_models.py", [config_file(f"Disambiguation/transfer/{name}") for name in (
        "a2", "a_plus_b")], TRAINED["Disambiguation"], "Disambiguation/transfer", (6, 780))
SEEDED = add_step(  # after the first model, which writes the same data
    "train_seeds", "train_algorithmic_models.py", there(SEEDS), TRAINED["Disambiguation"], "Disambiguation/train_seeds",
    (52, 740))
READY = {experiment: done + SEEDED * (experiment == "Disambiguation") for experiment, done in TRAINED.items()}
COMPARED_RUNS = [done for name, experiment in COMPARISON.items() for done in add_step(
    f"compare_{name}", "compare_methods.py", there(f"Comparison/{name}"), READY[experiment], f"Comparison/{name}",
    (54, 2200))]

for experiment in TRAINING:
    DRAWINGS[f"draw_{experiment}"] = Drawing(
        PROBED[experiment], figures(experiment, FIGURES[experiment]),
        f"summarize_{experiment.lower()}.py --results {shlex.quote(f'{RESULTS}/{experiment}')}")
COMPARE = f"summarize_comparison.py --results {shlex.quote(f'{RESULTS}/Comparison')}"
DRAWINGS["comparison"] = Drawing(
    COMPARED_RUNS, [f"{RESULTS}/Comparison/figures/leaderboard.csv", *figures("Comparison", ["detection"])], COMPARE)

for name, trainings, runs in (("known", ["gpt2", "seeds", "cut0", "llama", "olmo2"], ["cut1", "cut0"]),
                              ("known_hard", ["hard"], ["hard"]), ("known_quick", ["quick"], ["quick"])):
    trained = []
    for one in trainings:  # the first writes the data of all
        trained += add_step(f"train_known_{one}", "train_known_models.py", there(f"Known/train/{one}"), trained[:1],
                            f"Known/train_{one}", (20, 1000))
    folder = "Known" if name == "known" else f"Known/{runs[0]}"
    compared = [done for one in runs for done in add_step(
        f"compare_known_{one}", "compare_methods.py", there(f"Known/compare/{one}"), trained, f"Known/compare_{one}",
        (60, 1500))]
    DRAWINGS[name] = Drawing(compared, figures(f"{folder}/compare", ["rates"]),
                             f"summarize_known.py --results {shlex.quote(f'{RESULTS}/{folder}/compare')}")

if there("Language/sentences"):  # Experiment 4; not for several seeds, as its models are not trained here
    WRITTEN = add_step("sentences", "generate_language_data.py", there("Language/sentences"), [], "Language/sentences",
                       (1, 1000))
    COMPARED_LANGUAGE = []
    for model in LANGUAGE_MODELS:
        needs = [*WRITTEN, converted(model)]
        agreement = []  # the marks of all methods
        for task, (name, script) in SENTENCES.items():
            circuits = add_step(f"circuit_probing_{task}_{model}", "circuit_probing.py", there(f"{task}/{name}-{model}"),
                                needs, f"{task}/{model}", (88 if task == "SV_Agreement" else 27, 4000))
            agreement += circuits * (task == "SV_Agreement")
            DRAWINGS[f"draw_{task}_{model}"] = Drawing(
                circuits, figures(f"{task}/{model}", ["one_circuit", "ablation_by_layer"]),
                f"summarize_{script}.py --results {shlex.quote(f'{RESULTS}/{task}/{model}')}")
        for method, script in SCRIPTS.items():
            agreement += add_step(f"{method}_SV_Agreement_{model}", script, there(f"SV_Agreement/{method}/{model}"), needs,
                             f"SV_Agreement/{method}_{model}", (16, 3010))
        DRAWINGS[f"draw_layers_{model}"] = Drawing(
            agreement, figures("SV_Agreement", [f"{model}/layers"]),
            f"summarize_layers.py --model {model} --results {shlex.quote(f'{RESULTS}/SV_Agreement')}")
        for run in (f"SV_Agreement-{model}", f"SV_Agreement-{model}-trained"):
            COMPARED_LANGUAGE += add_step(f"compare_{run}", "compare_methods.py", there(f"Comparison/{run}"), needs,
                                          f"Comparison/{run}", (127, 3200))
    DRAWINGS["comparison_language"] = Drawing(COMPARED_LANGUAGE, figures("Comparison", [
        f"SV_Agreement-{model}{run}" for model in LANGUAGE_MODELS
        for run in ("/labels_resid_post", "-trained/labels_resid_mid")]), COMPARE)

for out, pair in OVERLAPS.items():
    if len(files := there(*pair)) == 2:
        DRAWINGS[f"overlap_{out.rpartition('/')[2]}"] = Drawing(
            [*files, *marks(files)], [f"{RESULTS}/{out}.{ending}" for ending in ("png", "pdf")],
            shlex.join(["summarize_model_overlap.py", "--config", *files, "--out", f"{RESULTS}/{out}"]))


for name, step in STEPS.items():
    shards = min(SHARDS, groups_of(step.configs))
    command = f"{step.script} --config {shlex.join(step.configs)}"
    minutes, mebibytes = step.measured
    division = [(f"{name}_shard_{number}", f" --shard {number}/{shards}",
                 marks(step.configs, f"shard_{number}_of_{shards}_")) for number in range(1, shards + 1)] * (shards > 1)
    divided = [done for *_, own in division for done in own]

    # after its shards the whole command finds every setting done, and draws
    for rule_name, option, wanted in [*division, (name, "", marks(step.configs))]:

        rule:
            name: rule_name
            input: divided if divided and not option else step.needs + read_by(step.configs),
            output: touch(wanted),
            benchmark: f"{RESULTS}/times/{step.times}{rule_name.removeprefix(name)}.tsv"
            threads: 1
            resources:  # twice what was measured, twice that in a second try
                mem_mb=lambda wildcards, attempt, mebibytes=mebibytes: 2 * mebibytes * attempt,
                runtime=lambda wildcards, attempt, minutes=minutes: max(10, 2 * minutes) * attempt,
            params:
                command=command + option,
                on=lambda wildcards, resources: "profiles/on_a_free_gpu.sh " if resources.get("gpu") else "",
            shell: "OMP_NUM_THREADS=1 {params.on}{PYTHON} {params.command}"


for model in LANGUAGE_MODELS:

    rule:
        name: f"convert_{model}"
        output: touch(converted(model)),
        params: model=model,
        resources: mem_mb=4000, runtime=10, gpu=0,
        shell: "{PYTHON} -m interp.convert_gguf --model {params.model}"


for name, drawing in DRAWINGS.items():

    rule:
        name: name
        input: drawing.needs,
        output: drawing.figures,
        benchmark: f"{RESULTS}/times/{name.removeprefix('draw_')}/draw.tsv"
        params: command=drawing.command,
        resources: mem_mb=2000, runtime=20, gpu=0,
        shell: "{PYTHON} analysis/{params.command}"


def drawn(*names):
    return [figure for name in names for figure in DRAWINGS[name].figures]


TARGETS = {
    "experiment1": drawn("draw_Disambiguation") + TRANSFERRED,
    "experiment2": drawn("draw_Shared_Nodes", "overlap_shared_of_both_tasks", "overlap_free_of_both_tasks",
                         "overlap_free_and_shared"),
    "experiment3": drawn("draw_Grokking")}
PAPER = [*TARGETS.values()]
if "comparison_language" in DRAWINGS:
    TARGETS["language"] = drawn("draw_SV_Agreement_smollm2")
    TARGETS["experiment4"] = drawn(*(f"draw_{what}_{model}" for model in LANGUAGE_MODELS
                                     for what in (*SENTENCES, "layers")), "overlap_agreement_smollm2")

for name, wanted in TARGETS.items():

    rule:
        name: name
        input: wanted,


rule paper:
    input: PAPER,
    default_target: True
