"""What the report says of each experiment: headline tables, and figures in words."""

import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd

from analysis import (
    language_figures,
    summarize_agreement,
    summarize_comparison,
    summarize_disambiguation,
    summarize_grokking,
    summarize_layers,
    summarize_reflexives,
    summarize_shared_nodes,
    summarize_syntactic_number,
)
from analysis.comparison_figures import in_order as methods_in_order
from analysis.comparison_figures import stays, told_of
from analysis.method_figures import (
    COMPONENTS,
    NEIGHBORS,
    PROBES,
    THERE,
    USED,
    check_columns,
    number_of,
    present,
    read_csv,
    tidy,
)
from analysis.report_figures import Figure
from analysis.report_runs import ROWS_AT_MOST, Problems, Run, Table, as_table, number
from interp.methods.interchange import method
from interp.methods.table import BEFORE_AND_AFTER, METHODS
from interp.runs.config import BadInput

NUMBERS_AT_MOST = 12  # in the words of one figure
SUBLAYERS_AT_MOST = 12
MODEL = {f"{method}:{before}": "model accuracy" for method in METHODS for before, _ in BEFORE_AND_AFTER}
Summary = tuple[list[Table], Callable[[Figure], str]]  # the headline tables, and a figure's numbers in words


@dataclass(frozen=True)
class Section:
    """One experiment. folders: of its results. parts: its tasks' variables by folder, and how figures call them.

    command: makes all of it. scripts: those that draw it; their docstrings say what each figure shows.
    """

    id: str
    title: str
    question: str
    folders: tuple[str, ...]
    command: str
    summarize: Callable[["Section", Path, list[Run], Problems], Summary]
    scripts: tuple[ModuleType, ...] = ()
    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    note: str = ""

    def holds(self, name: str) -> bool:
        return any(name == folder or name.startswith(f"{folder}/") for folder in self.folders)


# ---------------------------------------------------------------- Experiments 1 to 3, and the quickstart

def summarize_methods(section: Section, results: Path, runs: list[Run], problems: Problems) -> Summary:
    """Each method's headline values for each variable, after attention and after the MLP."""
    parts = [problems.attempt(f"{run.name}/results.csv", read_method, results, run, part, labels)
             for part, labels in section.parts.items() for run in in_order(runs, labels)
             if run.table is not None and is_of_method(run.name, section.folders[0], part)]
    parts = [part for part in parts if part is not None and len(part)]
    if not parts:
        return [], lambda figure: ""
    table = pd.concat(parts, ignore_index=True)
    seeds = sorted({number(seed) for column in table if column.endswith(":model_seed")
                    for seed in table[column].dropna().unique()})
    of = f"model seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" if seeds else ""
    return ([headlines(table, f"{question} {words}", present(table, measures), of) for question, words, measures in (
        ("Is it there?", "How often the variable is read off rightly", THERE),
        ("Is it used?", "What an intervention does to the model's answers: the accuracy that is lost, or, of "
         "embeddings and DAS, how often the answer becomes the wanted one (empty: not asked, or the circuit leaves too "
         "few neurons to draw as many at random; both 0.00: perhaps the circuit is empty)", MODEL | USED))
        if present(table, measures)],
        lambda figure: methods_in_words(table, figure, section))


def headlines(table: pd.DataFrame, title: str, measures: dict[str, str], of: str) -> Table:
    """Headline values of the methods, a row for each task, checkpoint, layer, variable and component that there is."""
    keys = [key for key in ("task", "checkpoint", "layer", "variable", "component") if key in table
            and (key != "layer" or table["layer"].nunique() > 1)]
    groups = table.assign(**table[keys].fillna("")).groupby(keys, sort=False)[list(measures)]
    means, counts = groups.mean().dropna(how="all"), groups.count()
    if "checkpoint" in keys:
        means = means.sort_index(level="checkpoint", sort_remaining=False, kind="stable",
                                 key=lambda level: pd.to_numeric(level, errors="coerce"))
    labels = list(dict.fromkeys(measures.values()))
    rows = []
    for key, own in means.iterrows():
        key = key if isinstance(key, tuple) else (key,)
        rows.append([COMPONENTS.get(str(word), number(word)) for word in key] + [
            next((told(own[column], counts.loc[key, column]) for column, name in measures.items()
                  if name == label and pd.notna(own[column])), "") for label in labels])
    caption = "; ".join(filter(None, (f"{title}, on the test split: {over(counts)}", of)))
    return Table(caption, ["after" if key == "component" else key for key in keys] + labels, rows[:ROWS_AT_MOST],
                 max(0, len(rows) - ROWS_AT_MOST), folded=24)


def in_order(runs: list[Run], labels: dict[str, str]) -> list[Run]:
    """Runs by variable, in the order of figures; those of the reader's own variables come last."""
    names = list(labels)
    return sorted(runs, key=lambda run: names.index(name) if (name := run.name.rpartition("/")[2]) in labels else len(
        names))


def is_of_method(name: str, folder: str, part: str) -> bool:
    words = name.removeprefix("/".join(filter(None, [folder, part])) + "/").split("/")
    return len(words) == 2 and words[0] in METHODS


def read_method(results: Path, run: Run, part: str, labels: dict[str, str]) -> pd.DataFrame:
    method, variable = run.name.split("/")[-2:]
    numbers = {column.partition(":")[2] for column in THERE | USED | NEIGHBORS | PROBES}
    numbers |= {column for pair in BEFORE_AND_AFTER for column in pair}
    file = results / run.name / "results.csv"
    if run.table is None or run.table.empty:
        return pd.DataFrame()
    check_columns(file, run.table, METHODS[method].script, [METHODS[method].place],
                  [column for column in run.table if column in numbers])
    named = tidy(run.table, method).assign(variable=labels.get(variable, variable))
    return named.assign(task=part.replace("_", " ")) if part else named


def told(mean: float, count: int) -> str:
    """A mean in a cell, with its n where it is one of several."""
    return f"{round(mean, 2) + 0.0:.2f}" + (f" (n = {count})" if count > 1 else "")  # + 0.0: no -0.00


def over(counts: pd.DataFrame) -> str:
    return ("each of a single row of results" if counts.to_numpy().max() <= 1 else
            "each of a single row of results, or the mean of n settings where it says so")


def measures_of(figure: Figure) -> dict[str, str]:
    """The columns that a figure of the methods shows, with their labels."""
    component = figure.stem.rpartition("_")[2]
    if "Grokking" in figure.name and figure.stem in summarize_grokking.FIGURES:
        return summarize_grokking.FIGURES[figure.stem][2]
    if figure.stem.startswith("ablation_") and component in COMPONENTS:
        return summarize_shared_nodes.ablation_measures(summarize_shared_nodes.FIRST_MAP[component])
    return {"nearest_neighbors": NEIGHBORS, "ablation": summarize_disambiguation.ABLATION,
            "there_and_used": THERE | USED,
            "probe_accuracy_attn": PROBES, "probe_accuracy_mlp": PROBES}.get(figure.stem, {})


def methods_in_words(table: pd.DataFrame, figure: Figure, section: Section) -> str:
    """The numbers of a figure, from the tables; of a sweep over checkpoints those of the last that has any.

    Nothing where a figure must be of some rows only: of a layer that its folder does not name, or of one value of a
    sweep, which no figure averages.
    """
    component, measures = figure.stem.rpartition("_")[2], present(table, measures_of(figure))
    if component in COMPONENTS:
        table = table[table["component"] == component]
    task = next((part.replace("_", " ") for part in section.parts if part and f"/{part}/" in figure.name), None)
    if task:
        table = table[table["task"] == task]
    if layer := re.search(r"/layer_(\d+)/", figure.name):
        table = table[table["layer"].astype(str) == layer[1]]
    if not measures or table.empty or table["layer"].nunique() > 1:
        return ""
    table = table.dropna(subset=list(measures), how="all")
    at = ""
    if "checkpoint" in table:
        last = max(table["checkpoint"].dropna(), key=lambda name: pd.to_numeric(name, errors="coerce"))
        table, at = table[table["checkpoint"] == last], f"At checkpoint {number(last)}: "
    of_one = [key for key in ("variable", "component", "model_seed") if key in table]
    if table.groupby(of_one, dropna=False)[list(measures)].count().to_numpy().max() > 1:
        return ""
    groups = table.groupby(["variable", "component"], sort=False)[list(measures)]
    counts = groups.count().stack()
    said = [f"{variable}, {COMPONENTS[component]}: " + ", ".join(
                f"{label} {told(mean, 1)}"
                for label, mean in own.groupby(lambda column: measures[column], sort=False).first().dropna().items())
            for (variable, component), own in groups.mean().dropna(how="all").iterrows()]
    few = max(1, NUMBERS_AT_MOST // max(1, len(set(measures.values()))))
    means = f" Means of {number_of(counts[counts > 0], 'models')}." if counts.max() > 1 else ""
    return at + "; ".join(said[:few]) + ("; the figure shows the rest" if len(said) > few else "") + "." + means


# ---------------------------------------------------------------------------- language models

CIRCUITS = {  # by folder of results: the script that draws a run's circuits and the run's task
    "SV_Agreement": (summarize_agreement, "agreement"), "Reflexives": (summarize_reflexives, "reflexive"),
    "Syntactic_Number": (summarize_syntactic_number, "syntactic_number")}


def summarize_language(section: Section, results: Path, runs: list[Run], problems: Problems) -> Summary:
    """Of each model, every method by layer, and the sublayers whose circuits matter most."""
    tables, words = [], {}
    layered = sorted({run.name.split("/")[2] for run in runs if run.table is not None
                      and run.name.startswith("SV_Agreement/") and len(run.name.split("/")) == 3
                      and run.name.split("/")[1] in METHODS})
    for model in layered:
        rows = problems.attempt(f"SV_Agreement, {model}", collect_layers, results / "SV_Agreement", model)
        if rows is not None:
            flat = summarize_layers.as_table(rows)
            flat.columns = [f"{label} ({summarize_layers.SETS[name]})" for label, name in flat.columns]
            seeds = seeds_of(run for run in runs if run.name.endswith(f"/{model}"))
            mean = f", the mean over {rows['n'].max()} settings of a site" if rows["n"].max() > 1 else ""
            tables.append(as_table(flat.reset_index(), (
                f"Agreement in {model}: every method at every layer{mean} ({seeds}). Pairs of DAS are of all "
                "sentences, answered rightly or not; the comparison of methods takes those that are answered rightly")))
            words[f"SV_Agreement/figures/{model}/layers"] = peaks(rows)
    for run in runs:
        experiment, _, model = run.name.partition("/")
        if run.table is not None and experiment in CIRCUITS and model and "/" not in model and model not in METHODS:
            ranking = problems.attempt(run.name, rank_circuits, results / run.name, experiment)
            if ranking is not None:
                script, _ = CIRCUITS[experiment]
                tables.append(as_table(in_columns(ranking, script.SETS).head(SUBLAYERS_AT_MOST), (
                    f"{experiment.replace('_', ' ')} in {model}: the circuits whose ablation costs most beyond that of "
                    f"random neurons, the first {min(len(ranking), SUBLAYERS_AT_MOST)} of {len(ranking)} sublayers "
                    f"({seeds_of([run])}). A circuit whose nearest neighbors tell no more than the commoner answer "
                    "does not hold the variable, whatever its ablation costs. "
                    f"{what_draws_allow(ranking, script.SETS)}")))
                words[f"{run.name}/figures/nearest_neighbors"] = neighbors_in_words(ranking)
                words[f"{run.name}/figures"] = circuit_in_words(ranking, script.SETS)
    return tables, lambda figure: next((text for name, text in words.items() if figure.name.startswith(name)), "")


def collect_layers(results: Path, model: str) -> pd.DataFrame:
    with redirect_stdout(sys.stderr):  # where the report says what is missing
        return summarize_layers.collect(results, model)


def seeds_of(runs) -> str:
    seeds = sorted({number(seed) for run in runs if run.table is not None and "model_seed" in run.table
                    for seed in run.table["model_seed"].dropna().unique()})
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" if seeds else "one model"


def peaks(rows: pd.DataFrame) -> str:
    best = rows[rows["set"] == "iid"].sort_values("value", ascending=False).drop_duplicates("measure")
    return "Highest on IID sentences: " + "; ".join(
        f"{row.measure} {row.value:.2f} at layer {row.layer}, after {COMPONENTS[row.component]}"
        for row in best.itertuples()) + "."


def rank_circuits(folder: Path, experiment: str) -> pd.DataFrame:
    script, task = CIRCUITS[experiment]
    table, ablations = language_figures.read_run(folder, task, script.SETS)
    sets = [name for name in script.SETS if name in set(ablations["evaluation"])]
    return language_figures.rank_sublayers(table, language_figures.measure_effects(ablations), sets)


def in_columns(ranking: pd.DataFrame, sets: dict[str, str]) -> pd.DataFrame:
    """A ranking as the page shows it: under words, and without what follows from other columns."""
    columns = {"target_layer": "layer", "operation": "sublayer", "l0_share": "share of weights in the circuit",
               "knn_test_acc": "nearest neighbors, circuit",
               "full_model_knn_test_acc": "nearest neighbors, full sublayer",
               "majority_test_acc": "nearest neighbors, always the commoner answer"}
    for name, label in sets.items():
        columns |= {f"vanilla_acc_{name}": f"model accuracy, {label}",
                    f"ablated_acc_{name}": f"circuit ablated, {label}",
                    f"random_ablated_acc_{name}_mean": f"as many random neurons ablated, {label}"}
    if len(ranking) and ranking["settings"].max() > 1:
        columns |= {"settings": "means of"}
    flat = ranking.reset_index()
    flat = flat.assign(operation=flat["operation"].map(COMPONENTS))
    return flat[[column for column in columns if column in flat]].rename(columns=columns)


def what_draws_allow(ranking: pd.DataFrame, sets: dict[str, str]) -> str:
    """Whether any circuit can be told from random neurons, with as many draws and sublayers as there are."""
    ranks = ranking[[column for name in sets if (column := f"p_holm_{name}") in ranking]].min().min()
    return "" if pd.isna(ranks) else (
        f"The smallest p against random neurons, corrected for all sublayers, is {number(ranks)}"
        + ("; with so few draws none can be significant" if ranks >= 1 else ""))


def neighbors_in_words(ranking: pd.DataFrame) -> str:
    """Of the set that circuits are tested on, whose sentences are of the patterns trained on."""
    if "knn_test_acc" not in ranking or ranking["knn_test_acc"].isna().all():
        return ""
    layer, operation = ranking["knn_test_acc"].idxmax()
    best = ranking.loc[(layer, operation)]
    full = best.get("full_model_knn_test_acc")
    whole = "" if full is None else f", on the full sublayer's {full:.2f}"
    return (f"The best circuit, {COMPONENTS[operation]} of layer {layer}: right on its updates for "
            f"{best['knn_test_acc']:.2f} of test sentences{whole}.")


def circuit_in_words(ranking: pd.DataFrame, sets: dict[str, str]) -> str:
    (layer, operation), first = ranking.index[0], ranking.iloc[0]
    name = next(name for name in sets if f"ablated_acc_{name}" in ranking)
    random = first.get(f"random_ablated_acc_{name}_mean")
    return (f"The strongest circuit, {COMPONENTS[operation]} of layer {layer}, {sets[name]}: model accuracy "
            f"{first[f'vanilla_acc_{name}']:.3f}, {first[f'ablated_acc_{name}']:.3f} without the circuit"
            + (f", {random:.3f} with as many random neurons ablated." if pd.notna(random) else "."))


# ------------------------------------------------------------------------- comparison, own runs

def summarize_board(section: Section, results: Path, runs: list[Run], problems: Problems) -> Summary:
    """The leaderboard."""
    tables = [problems.attempt(run.name, summarize_comparison.read_run, results / run.name / "results.csv")
              for run in runs if run.table is not None and len(run.table) and run.name.count("/") == 1]
    tables = [table for table in tables if table is not None]
    if not tables:
        return [], lambda figure: ""
    table = pd.concat(tables, ignore_index=True)
    known = table[table["carried"].notna() & ~summarize_comparison.is_swept(table)]
    board = None
    if known["carried"].any():
        board = problems.attempt("leaderboard", leaderboard, known, results)
    shown = [] if board is None else [board_table(board)]
    names = methods_in_order(table["method"])
    shown.append(Table("The methods: what each exchanges, by its file in interp/methods/interchange",
                       ["method", "what"], [[name, first_words(method(name))] for name in names], folded=50))
    shown.append(Table("The columns of the leaderboard", ["column", "what"], [list(pair) for pair in COLUMNS.items()]))
    return shown, lambda figure: comparison_in_words(table, board, figure, results)


def first_words(module: ModuleType) -> str:
    """The first paragraph of a docstring."""
    return " ".join((module.__doc__ or "").partition("\n\n")[0].split())


COLUMNS = {
    "sees": "what a method is given to be fitted: nothing, activations, the variable's values, or the right answers",
    "iia": "interchange accuracy: how often the answer is the one that the exchange should give",
    "isolate": "how often the answer stays what it is when base and source have the same value of the variable",
    "disentangle": "the mean of iia and isolate; doing nothing has about one half",
    "highest": "the highest interchange accuracy of a cell whose variable is not carried",
    "change": "how far the exchange moves the activation, in distances to the source's; far above 1 it leaves the data",
    "rank": "how many dimensions are exchanged, where that means something",
    "AUROC": "how often a cell that carries its variable has a higher iia than one that does not"}


def leaderboard(known: pd.DataFrame, results: Path) -> pd.DataFrame | None:
    """As summarize_comparison.py wrote it, if it is of these rows; else made here, which takes longer."""
    known = summarize_comparison.shared_cells(known)
    if not known["carried"].any():
        return None
    written = results / "Comparison" / "figures" / "leaderboard.csv"
    if written.exists():
        with suppress(BadInput, ValueError, LookupError, TypeError):  # another version's, or damaged: made here
            board = read_csv(written)
            board_table(board)
            if is_of(board, known):
                return board
    return summarize_comparison.leaderboard(known)


def is_of(board: pd.DataFrame, known: pd.DataFrame) -> bool:
    """Whether a leaderboard is of some rows: of as many models and cells, with the same means."""
    groups, asked = known.groupby("method"), known[known["pairs"] > 0]
    means = {f"{column}_{word}": asked[asked["carried"].eq(truth)].groupby("method")[column].mean()
             for column, word, truth in (("iia", "carried", True), ("iia", "not_carried", False),
                                         ("isolate", "carried", True))}
    wanted = pd.DataFrame({"models": groups["model"].nunique(), "cells": groups.size(), **means})
    own = board.set_index("method")[list(wanted)].reindex(wanted.index)
    return len(board) == len(wanted) and np.allclose(own.to_numpy(float), wanted.to_numpy(float), equal_nan=True)


def board_table(board: pd.DataFrame) -> Table:
    return Table(
        f"Leaderboard, by disentangle, the mean of iia and isolate where the variable is carried: means with 95 % "
        f"intervals over models, then pairs, too narrow with so few models. {summarize_comparison.over_what(board)} "
        "Controls have no place; compare with none, which does nothing",
        ["method", "place", *summarize_comparison.BOARD[2:]],
        [[method, place, *cells] for place, method, *cells in summarize_comparison.as_cells(board)], folded=50)


def comparison_in_words(table: pd.DataFrame, board: pd.DataFrame | None, figure: Figure, results: Path) -> str:
    if figure.stem == "detection" and board is not None:
        return listed("AUROC", board.set_index("method")["auroc"])
    experiment = Path(figure.name).parent.name
    own = table[table["experiment"] == experiment]
    if figure.stem in ("methods", "isolate"):
        carried = own[own["carried"].eq(True)]
        measure = "isolate" if figure.stem == "isolate" else "iia"
        name = "isolate" if measure == "isolate" else "interchange accuracy"
        return (listed(f"Mean {name} where the variable is carried", carried.groupby("method")[measure].mean())
                or listed(f"Mean {name}, variable not carried", own.groupby("method")[measure].mean()))
    if figure.stem == "checkpoints" and "checkpoint" in own and len(own):
        last = max(own["checkpoint"].dropna(), key=lambda name: pd.to_numeric(name, errors="coerce"))
        return listed(f"Highest interchange accuracy at checkpoint {number(last)}",
                      own[own["checkpoint"] == last].groupby("method")["iia"].max())
    here = own[(own["variable"] + "_" + own["residual_location"]).str.replace(" ", "_") == figure.stem]
    if len(here) and stays(here, told_of(results / "Comparison" / experiment)):
        return listed("Share of answers kept, as they should be, the lowest over layers",
                      here.groupby("method")["iia"].min())
    return listed("Highest interchange accuracy over layers", here.groupby("method")["iia"].max())


def listed(what: str, values: pd.Series) -> str:
    values = values.dropna().sort_values(ascending=False, kind="stable")
    text = ", ".join(f"{name} {value:.2f}" for name, value in values.head(NUMBERS_AT_MOST).items())
    lower = f"; none of the other {len(values) - NUMBERS_AT_MOST} is higher" if len(values) > NUMBERS_AT_MOST else ""
    return f"{what}: {text}{lower}." if text else ""


def summarize_nothing(section: Section, results: Path, runs: list[Run], problems: Problems) -> Summary:
    return [], lambda figure: ""
