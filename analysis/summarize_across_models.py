"""Experiment 4 in all models: published circuits of GPT-2 small and medium beside ours, by relative depth.

    python analysis/summarize_across_models.py --published results.csv [--results Results] [--out DIR]

Reads RESULTS/{SV_Agreement,Reflexives,Syntactic_Number}/MODEL/results.csv of circuit probing, whichever exist, and the
published file, whose columns compare_with_published.py names and which tells layers by a column `layer`. Draws for each
task, with sublayers by their layer's place between the model's first (0) and last (1),

TASK            nearest neighbors on the circuit's updates and on the full sublayer's, and the accuracy that the
                circuit's ablation costs beyond that of as many random neurons; published dashed and hollow, ours solid

and writes TASK.csv, its values. Settings of the same sublayer (seeds) are averaged.
"""

import argparse
from pathlib import Path

import pandas as pd

from analysis.compare_with_published import read_published
from analysis.method_figures import COMPONENTS, RESULTS, check_columns, read_results_table, run, whole_out
from interp.plotting import COLORS, plt, save_figure
from interp.runs.config import BadInput, shown
from interp.runs.files import write_text

TASKS = {  # folder of results: what figures call it, the evaluation set, ours and published
    "SV_Agreement": ("Agreement", "iid", "iid"),
    "Reflexives": ("Reflexives, masculine", "iid_masculine", "male_iid"),
    "Syntactic_Number": ("Syntactic number", "iid", "iid")}
PUBLISHED = {"gpt2": ("GPT-2 small", 12, "0.6", "s"), "gpt2-medium": ("GPT-2 medium", 24, "0.1", "D")}
OURS = {"smollm2": ("SmolLM2-135M", 30, "#332288", "o"), "gemma3": ("Gemma 3 270M", 18, "#44aa99", "^")}
MODELS = PUBLISHED | OURS  # name, layers, colour and marker; the colours are of no role
MEASURES = {"circuit": "nearest neighbors,\ncircuit",
            "full_sublayer": "nearest neighbors,\nfull sublayer",
            "beyond_random": "accuracy lost beyond\nrandom neurons"}


def measures_of(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The columns of MEASURES, from those of a results table. name: of the evaluation set."""
    return table[["layer", "component"]].assign(
        circuit=table["knn_test_acc"], full_sublayer=table["full_model_knn_test_acc"],
        full_accuracy=table[f"vanilla_acc_{name}"],
        beyond_random=table[f"random_ablated_acc_{name}_mean"] - table[f"ablated_acc_{name}"])


def columns_of(name: str) -> list[str]:
    return ["knn_test_acc", "full_model_knn_test_acc", f"vanilla_acc_{name}", f"ablated_acc_{name}",
            f"random_ablated_acc_{name}_mean"]


def read_ours(results: Path, task: str) -> list[pd.DataFrame]:
    """A table for each of our models that has a run, a row for each sublayer; says which have none."""
    found, name = [], TASKS[task][1]
    for model in OURS:
        file = results / task / model / "results.csv"
        if not file.exists():
            print(f"missing: {shown(file)}")
            continue
        table = read_results_table(file)
        check_columns(file, table, "circuit_probing.py", ["operation"], ["target_layer", *columns_of(name)])
        table = measures_of(table.rename(columns={"target_layer": "layer", "operation": "component"}), name)
        found.append(table.groupby(["layer", "component"], as_index=False).mean().assign(model=model))
    return found


def read_theirs(published: pd.DataFrame, task: str) -> list[pd.DataFrame]:
    """A table for each model that the published file has, a row for each sublayer.

    Raises:
        BadInput: it lacks a measure of one of them.
    """
    found, name = [], TASKS[task][2]
    for model in PUBLISHED:
        own = published[(published["experiment"] == task) & (published["task"] == model)
                        & (published["method"] == "circuit_probing")]
        if own.empty:
            continue
        table = own.assign(layer=pd.to_numeric(own["layer"], errors="coerce")).pivot_table(
            index=["layer", "component"], columns="metric", values="value").reset_index()
        if lacking := [column for column in columns_of(name) if column not in table]:
            raise BadInput(f"--published: {task} {model} has no '{lacking[0]}' by layer.")
        found.append(measures_of(table, name).assign(model=model))
    return found


def draw(table: pd.DataFrame, task: str, path: Path) -> None:
    """Rows: the measures. Columns: attention and MLP. A line for each model."""
    figure, axes = plt.subplots(len(MEASURES), 2, figsize=(11, 8.5), sharex=True, sharey="row", layout="constrained")
    for line, (measure, label) in zip(axes, MEASURES.items()):
        line[0].set_ylabel(label)
        for axis, component in zip(line, COMPONENTS):
            baseline = 0 if measure == "beyond_random" else 0.5
            axis.axhline(baseline, color=COLORS["baseline"], linewidth=1, linestyle=":")
            for model, own in table[table["component"] == component].groupby("model", sort=False):
                name, _, color, marker = MODELS[model]
                theirs = model in PUBLISHED
                own = own.sort_values("depth")
                axis.plot(own["depth"], own[measure], "--" if theirs else "-", marker=marker, color=color, markersize=6,
                          markerfacecolor="none" if theirs else color, linewidth=1.2 if theirs else 2,
                          label=f"{name} ({'published' if theirs else 'ours'})")
    for axis, component in zip(axes[0], COMPONENTS.values()):
        axis.set_title(component)
    for axis in axes[-1]:
        axis.set_xlabel("relative depth: 0 first layer, 1 last layer")
    entries = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=len(entries))
    figure.suptitle(f"{TASKS[task][0]}: circuits of language models, on the patterns trained on (IID)\n"
                    "dotted: a coin's accuracy, nothing lost; one circuit a sublayer", parse_math=False)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", type=Path, required=True, help="the CSV of published values")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the tasks' results")
    parser.add_argument("--out", type=Path, help="default: RESULTS/figures/across_models")
    options = parser.parse_args()
    results = options.results.absolute()
    out = whole_out(options.out or results / "figures/across_models")
    published = read_published(options.published)
    if "layer" not in published:
        raise BadInput(f"--published {options.published}: it has no column 'layer'.")
    for task in TASKS:
        tables = read_theirs(published, task) + read_ours(results, task)
        if not tables:
            print(f"nothing to draw of {task}.")
            continue
        table = pd.concat(tables, ignore_index=True)
        depth = table["layer"] / (table["model"].map({model: layers for model, (_, layers, *_) in MODELS.items()}) - 1)
        table.insert(0, "depth", depth)
        write_text(out / f"{task}.csv", table.to_csv(index=False))
        draw(table, task, out / task)


if __name__ == "__main__":
    run("summarize_across_models", main)
