"""Fill the marked tables of these pages from the runs that docs/runs keeps.

    python docs/make_tables.py

A table stands below a line `<!-- table: NAME -->`, and is written anew up to the next line that is none of a table.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from analysis import summarize_layers
from analysis.comparison_figures import in_order
from analysis.language_figures import COMPONENTS, marks_of, measure_effects, rank_sublayers, read_run
from analysis.method_figures import markdown_table, run
from analysis.summarize_comparison import BOARD, as_cells, leaderboard, read_runs, shared_cells
from interp.runs.config import BadInput, shown
from interp.runs.files import write_text

PAGES = [Path(__file__).with_name(f"{name}.md") for name in ("results", "comparison", "experiment_4")]
RUNS = Path(__file__).with_name("runs")
AGAIN = Path(__file__).with_name("tables") / "comparison_a2_minus_b2.csv"
MARKED = re.compile(r"^<!-- table: (.+) -->\n((?:\|.*\n?)*)", re.MULTILINE)
ON_LEADERBOARD = ("Disambiguation", "Untrained", "Shared_Nodes_Task_1", "Shared_Nodes_Task_2", "Grokking")
IN_WORDS = {
    "lda": "LDA, which needs no training", "neuron_mask": "circuit probing's masks, learned from answers", "das": "DAS",
    "circuit_selected": "circuit probing, sparsity penalty chosen", "linear_probe": "linear probe", "leace": "LEACE",
    "difference_in_means": "difference in means", "circuit_update": "circuit probing, the paper's sparsity penalty",
    "random": "random directions", "mlp_probe": "MLP probe, counterfactual embedding"}

Rows = list[list[str]]


@dataclass(frozen=True)
class Selection:
    """Rows of results.csv of a comparison: of some run, variable and site; one for each method, layer and model."""

    table: pd.DataFrame

    def of(self, **wanted) -> "Selection":
        """The rows whose columns have these values, or one of a list of values."""
        own = self.table
        for name, value in wanted.items():
            own = own[own[name].isin(value if isinstance(value, list) else [value])]
        return Selection(own)

    def values(self, name: str, column: str) -> pd.Series:
        """A column of a method's rows, where it has a value."""
        return self.table.loc[self.table["method"] == name, column].dropna()

    def mean(self, name: str, column: str = "iia", digits: int = 2) -> str:
        """The mean of a method's rows, as text; nothing where there is none."""
        values = self.values(name, column)
        return f"{round(values.mean(), digits) + 0.0:.{digits}f}" if len(values) else ""  # + 0.0: no -0.00

    def range(self, name: str) -> str:
        values = self.values(name, "iia")
        return f"{values.min():.2f} to {values.max():.2f}" if len(values) else ""

    def with_selectivity(self, name: str) -> str:
        """iia, selectivity in brackets, *b* where it is beyond full."""
        beyond = " *b*" if self.values(name, "beyond_full").astype(str).eq("True").any() else ""
        selectivity = self.mean(name, "selectivity", 1)
        return self.mean(name) + (f" ({selectivity})" if selectivity else "") + beyond


def by_method(table: pd.DataFrame, columns: dict[str, Callable[[str], str]], title: str = "method") -> Rows:
    """A row for each method of a table, in the order of the figures; methods without a value are left out."""
    rows = [[name, *(cell(name) for cell in columns.values())] for name in in_order(table["method"])]
    return [[title, *columns], *(row for row in rows if any(row[1:]))]


@cache
def all_runs() -> pd.DataFrame:
    return read_runs(RUNS / "Comparison")


def kept(name: str) -> Selection:
    """A run of the comparison.

    Raises:
        BadInput: docs/runs lacks it.
    """
    if name not in set(all_runs()["experiment"]):
        raise BadInput(f"{shown(RUNS / 'Comparison')} lacks the run {name}, of which a table is.")
    return Selection(all_runs()).of(experiment=name)


def same_models() -> Rows:
    """a² - b², a² and -b² after attention, beside the same three seeds trained again on another machine."""
    asked = {"variable": ["var_0", "var_1"], "residual_location": "resid_mid"}
    first, again = kept("Disambiguation").of(**asked), Selection(pd.read_csv(AGAIN)).of(**asked)
    return by_method(first.table, {
        "iia": first.mean, "range of iia": first.range, "isolate": lambda name: first.mean(name, "isolate"),
        "selectivity": lambda name: first.mean(name, "selectivity", 1), "again: iia": again.mean,
        "range of iia, again": again.range, "isolate, again": lambda name: again.mean(name, "isolate"),
        "selectivity, again": lambda name: again.mean(name, "selectivity", 1)})


def two_tasks() -> Rows:
    """Both tasks of Experiment 2's model after attention; task 1 / task 2 in a cell."""
    tasks = [kept(f"Shared_Nodes_Task_{task}").of(residual_location="resid_mid") for task in (1, 2)]
    kinds = {"shared": "var_0", "free": "var_1", "other task's": "aux_0"}

    def both(column: str) -> Callable[[str], str]:
        return lambda name: " / ".join(task.of(variable=column).mean(name) for task in tasks)

    return by_method(pd.concat([task.table for task in tasks]), {kind: both(column) for kind, column in kinds.items()})


def checkpoints() -> Rows:
    """a² over the checkpoints of a² + b, after attention, and how often the model answers rightly."""
    own = kept("Grokking-checkpoints").of(variable="var_0", residual_location="resid_mid")
    steps = [100, 500, 1000, 3000, 5000, 7000, 9000, 10000, 12500, 15000, 17500, 20000]
    at = {str(step): own.of(checkpoint=[step, str(step)]) for step in steps}
    rows = by_method(own.table, {step: cells.mean for step, cells in at.items()}, "epoch")
    model = ["model's test accuracy", *(cells.mean("none", "model_acc") for cells in at.values())]
    return [rows[0], model, *rows[1:]]


def layers(model: str, variable: str, asked: Iterable[int]) -> Rows:
    """A language model's interchange accuracy after the MLP of some layers."""
    own = kept(f"SV_Agreement-{model}").of(variable=variable, residual_location="resid_post")
    return by_method(own.table, {f"layer {layer}": own.of(target_layer=layer).mean for layer in asked})


def trained(model: str, asked: Iterable[int]) -> Rows:
    """The methods that are trained at every site, and the others there: with selectivity, and what is beyond full."""
    own = kept(f"SV_Agreement-{model}-trained").of(variable="labels")
    sites = {f"{layer}, {after}": own.of(target_layer=layer, residual_location=site)
             for layer in asked for after, site in (("attention", "resid_mid"), ("MLP", "resid_post"))}
    return by_method(own.table, {site: cells.with_selectivity for site, cells in sites.items()})


@cache
def ranked() -> pd.DataFrame:
    """The leaderboard of all arithmetic runs."""
    return leaderboard(shared_cells(pd.concat([kept(name).table for name in ON_LEADERBOARD])))


def in_short() -> Rows:
    """The leaderboard's most telling methods, under names that need no glossary, in its order."""
    board = ranked().set_index("method").loc[lambda table: [name for name in table.index if name in IN_WORDS]]
    rows = [[IN_WORDS[name], f"{row['iia_carried']:.2f} [{row['iia_carried_low']:.2f}, {row['iia_carried_high']:.2f}]",
             f"{row['isolate_carried']:.2f}", f"{row['iia_not_carried']:.2f}"] for name, row in board.iterrows()]
    return [["method", "answers changed as they should (interchange accuracy), [95 %]",
             "answers left alone as they should", "variable not carried"], *rows]


def circuits(folder: str, task: str, sets: dict[str, str], at_most: int) -> Rows:
    """The sublayers whose circuits' ablation costs most beyond random neurons on the first of some sets of sentences.

    sets: as a run's tables call them, and as the page does.
    """
    table, ablations = read_run(RUNS / folder, task, sets)
    effects = measure_effects(ablations)
    effects = effects.assign(below=marks_of(effects) != "other")
    evaluated = [name for name in ("test", "gen") if f"knn_{name}_acc" in table]
    measured = [f"{what} {name}".strip() for name in sets.values() for what in ("ablated", "random")]
    rows = [["sublayer", "L0", f"KNN{' IID / gen' * (len(evaluated) > 1)}", *measured,
             f"below every draw{': ' * any(sets.values())}{', '.join(sets.values())}"]]
    for (layer, operation), row in rank_sublayers(table, effects, list(sets)).head(at_most).iterrows():
        at = [effects.loc[(layer, operation, name)] for name in sets]
        told = [text for own in at for text in (
            f"{own['ablated']:.3f}", f"{own['random']:.3f} ± {own['random_sd']:.3f}" if own["draws"] else "none drawn")]
        neighbors = [f"{row[f'knn_{name}_acc']:.2f} ({row[f'full_model_knn_{name}_acc']:.2f})"
                     for name in evaluated]
        below = [("yes" if own["below"] else "no") if own["draws"] else "" for own in at]
        rows.append([f"{COMPONENTS[operation]} {layer}", f"{row['l0_share']:.2g}", " / ".join(neighbors), *told,
                     ", ".join(below)])
    return rows


def sites(model: str, asked: Iterable[int]) -> Rows:
    """Every method at some layers of a language model, on the sentences of agreement."""
    table = summarize_layers.as_table(summarize_layers.collect(RUNS / "SV_Agreement", model))
    return summarize_layers.as_cells(table.loc[table.index.get_level_values("layer").isin(list(asked))])


SMOLLM2 = (0, 6, 12, 18, 24, 25, 26, 27, 28, 29)  # layers
GEMMA = (0, 4, 8, 10, 12, 13, 14, 15, 16, 17)
TABLES: dict[str, Callable[[], Rows]] = {
    "in short": in_short, "leaderboard": lambda: [BOARD, *as_cells(ranked())], "a² - b²": same_models,
    "two tasks": two_tasks, "checkpoints": checkpoints,
    "SmolLM2, subject": lambda: layers("smollm2", "labels", SMOLLM2),
    "SmolLM2, object": lambda: layers("smollm2", "object labels", SMOLLM2),
    "SmolLM2, trained": lambda: trained("smollm2", (18, 24, 25, 26, 27)),
    "Gemma, subject": lambda: layers("gemma3", "labels", GEMMA),
    "Gemma, object": lambda: layers("gemma3", "object labels", GEMMA),
    "Gemma, trained": lambda: trained("gemma3", (9, 12, 13, 14, 16)),
    "agreement": lambda: circuits("SV_Agreement/smollm2", "agreement", {"iid": "IID", "gen": "gen"}, 12),
    "reflexives": lambda: circuits("Reflexives/smollm2", "reflexive", {
        "iid_masculine": "masculine", "iid_feminine": "feminine"}, 7),
    "syntactic number": lambda: circuits("Syntactic_Number/smollm2", "syntactic_number", {"iid": ""}, 6),
    "SmolLM2, all methods": lambda: sites("smollm2", (0, 3, 6, 9, 12, 15, 18, 21, 24, 25, 26, 27, 28, 29)),
    "Gemma, all methods": lambda: sites("gemma3", range(18))}


def made(name: str) -> str:
    """A table in Markdown.

    Raises:
        BadInput: there is no such table, or the run that it is of is not kept.
    """
    if name not in TABLES:
        raise BadInput(f"there is no table '{name}'; there are {', '.join(map(repr, TABLES))}.")
    return markdown_table(TABLES[name]())


def page(text: str) -> str:
    """A page's text with its tables as the kept runs have them; raises BadInput as `made` does."""
    return MARKED.sub(lambda found: f"<!-- table: {found[1]} -->\n{made(found[1])}", text)


def main() -> None:
    texts = {file: page(file.read_text(encoding="utf-8")) for file in PAGES}  # all, before one is written
    for file, text in texts.items():
        write_text(file, text)


if __name__ == "__main__":
    run("make_tables", main)
