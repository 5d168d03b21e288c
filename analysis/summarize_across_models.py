"""Experiment 4 in all models: published circuits of GPT-2 small and medium beside ours, by relative depth.

    python analysis/summarize_across_models.py --published results.csv [--results Results] [--out DIR]

Reads RESULTS/{SV_Agreement,Reflexives,Syntactic_Number}/MODEL/results.csv of circuit probing, whichever exist, and the
published file, whose columns compare_with_published.py names and which has a column `layer`. Draws TASK.png and .pdf,
and writes TASK.csv: nearest neighbors on the circuit's updates and the full sublayer's, and what its ablation costs
beyond that of random neurons, by the layer's place between the first (0) and last (1). Seeds are averaged.
"""

from pathlib import Path

import pandas as pd

from analysis import figures
from analysis.compare_with_published import PUBLISHED, read_published
from analysis.tables import COMPONENTS, RESULTS, WHERE, check_columns, exists, parse, read_method, run
from interp.plotting import COLORS
from interp.runs.files import write_text

TASKS = {  # folder of results: what figures call it, the evaluation set, ours and published
    "SV_Agreement": ("Agreement", "iid", "iid"),
    "Reflexives": ("Reflexives, masculine", "iid_masculine", "male_iid"),
    "Syntactic_Number": ("Syntactic number", "iid", "iid")}
THEIRS = {"gpt2": ("GPT-2 small", 12, "0.6", "s"), "gpt2-medium": ("GPT-2 medium", 24, "0.1", "D")}
OURS = {"smollm2": ("SmolLM2-135M", 30, "#332288", "o"), "gemma3": ("Gemma 3 270M", 18, "#44aa99", "^")}
MODELS = THEIRS | OURS  # name, layers, colour and marker; the colours are of no role
METHOD = "circuit_probing"
MEASURES = {"circuit": "nearest neighbors,\ncircuit", "full_sublayer": "nearest neighbors,\nfull sublayer",
            "beyond_random": "accuracy lost beyond\nrandom neurons"}


def tables_of(results: Path, published: Path, task: str, where: dict[str, str]) -> dict[str, pd.DataFrame]:
    """By model, published or ours: its circuits with columns layer, component and MEASURES. Raises BadInput."""
    (_, ours, theirs), found = TASKS[task], {}
    cells = check_columns(published, read_published(published), ["layer"], [])
    cells = cells[(cells["experiment"] == task) & cells["task"].isin([*THEIRS]) & (cells["method"] == METHOD)]
    for model, rows in cells.assign(layer=pd.to_numeric(cells["layer"], errors="coerce")).groupby("task", sort=False):
        found[model] = rows.pivot_table("value", ["layer", "component"], "metric").reset_index(), theirs
    for model in OURS:
        file = results / task / model / "results.csv"
        if exists(file):
            found[model] = read_method(file, where).rename(columns={"target_layer": "layer"}), ours
    measured = {}
    for model, (table, name) in found.items():
        columns = ["knn_test_acc", "full_model_knn_test_acc", f"vanilla_acc_{name}", f"ablated_acc_{name}",
                   f"random_ablated_acc_{name}_mean"]
        check_columns(results / task / model, table, ["component"], ["layer", *columns])
        means = table.groupby(["layer", "component"], as_index=False)[columns].mean()
        circuit, sublayer, full, ablated, random = (means[column] for column in columns)
        measured[model] = means[["layer", "component"]].assign(
            circuit=circuit, full_sublayer=sublayer, full_accuracy=full, beyond_random=random - ablated, model=model)
    return measured


def draw(table: pd.DataFrame, task: str, path: Path) -> None:
    """Rows: the measures. Columns: attention and MLP. A line for each model."""
    lines = table.melt(["depth", "component", "model"], [*MEASURES], "row").rename(
        columns={"depth": "x", "component": "column", "model": "line"})
    looks = {model: {"label": f"{name} (ours)", "color": color, "marker": marker, "markersize": 6, "linestyle": "-",
                     "linewidth": 2} for model, (name, _, color, marker) in MODELS.items()}
    for model, (name, *_) in THEIRS.items():
        looks[model] |= {"label": f"{name} (published)", "linestyle": "--", "linewidth": 1.2, "markerfacecolor": "none"}
    figure, panels = figures.draw_lines(lines, MEASURES, COMPONENTS, looks,
                                        "relative depth: 0 first layer, 1 last layer", (11, 8.5), sharey="row")
    for (measure, _), axis in panels.items():
        axis.axhline(0 if measure == "beyond_random" else 0.5, color=COLORS["baseline"], linewidth=1, linestyle=":")
    figures.finish(figure, f"{TASKS[task][0]}: circuits of language models, on the patterns trained on (IID)\n"
                   "dotted: a coin's accuracy, nothing lost; one circuit a sublayer", path, len(MODELS))


def main() -> None:
    options = parse(__doc__, RESULTS, PUBLISHED | WHERE, out="figures/across_models")
    for task in TASKS:
        tables = tables_of(options.results, options.published, task, options.where)
        if tables:
            table = pd.concat(tables.values(), ignore_index=True)
            layers = table["model"].map({model: layers for model, (_, layers, *_) in MODELS.items()})
            table.insert(0, "depth", table["layer"] / (layers - 1))
            write_text(options.out / f"{task}.csv", table.to_csv(index=False))
            draw(table, task, options.out / task)


if __name__ == "__main__":
    run("summarize_across_models", main)
