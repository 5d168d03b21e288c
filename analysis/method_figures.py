"""What the scripts of this folder share: reading the methods' results, and the figures that compare methods."""

import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.methods.table import BEFORE_AND_AFTER, COMPONENT_OF, METHODS, PLACES
from interp.plotting import draw_bars, plt, save_figure, sns, wrapped
from interp.runs.config import CONFIGS, PROJECT_ROOT, BadInput, project_path, read_yaml, shown
from interp.runs.files import check_folder
from interp.runs.store import CONFIG
from interp.statistics import interval

RESULTS = PROJECT_ROOT / "Results"
TRAINING = "Train_Algorithmic_Models"  # the folder of configs that train
COMPONENTS = {"attn": "attention", "mlp": "MLP"}
PLACE_NAMES = {"attn": "after attention", "mlp": "after the MLP"}
NEIGHBORS = {"circuit_probing:knn_test_acc": "circuit", "circuit_probing:full_model_knn_test_acc": "full sublayer",
             "circuit_probing:majority_test_acc": "majority baseline"}
PROBES = {"circuit_probing:knn_test_acc": "circuit (nearest neighbors)", "linear_probing:test_acc": "linear probe",
          "nonlinear_probing:test_acc": "MLP probe", "circuit_probing:majority_test_acc": "majority baseline"}
DRAWS_SD = " (sd)"  # of a label: the bar is the standard deviation of random draws
FLOAT32 = "amnesic_float32"  # LEACE as it was published, told apart from its fit in float64
ROLES = {"circuit_probing": "circuit", "linear_probing": "linear probe", "nonlinear_probing": "MLP probe",
         "amnesic": "LEACE", FLOAT32: "LEACE", "DAS": "DAS"}  # the methods' keys of COLORS
OTHER_ROLES = {"majority": "baseline", "full_": "whole", "vanilla": "whole", "random": "random"}  # by figures' names
THERE = {f"{name}:{column}": label for name, method in METHODS.items() for column, label in method.there.items()}
USED = {f"{name}:{column}": label for name, method in METHODS.items() for column, label in method.used.items()}
USED = {column: label for own, label in USED.items() for column, label in (
    [(own, label), (own.replace("amnesic", FLOAT32), f"{label}, float32 as published")] if "amnesic" in own
    else [(own, label)])}
HEADLINES = {column.partition(":")[2] for column in (*NEIGHBORS, *PROBES, *THERE, *USED)} | {
    column for pair in BEFORE_AND_AFTER for column in pair}
WORDS = {"random_ablation_impossible", "precision", "checkpoint", *PLACES}  # columns that hold words
IDENTITY = ["variable", "component", "layer", "model_seed"]  # what may tell the rows of a method apart


def read_results(results: Path, variables: dict[str, str], never: tuple[tuple[str, str], ...] = (),
                 where: dict[str, str] | None = None, over: tuple[str, ...] = ()) -> pd.DataFrame:
    """All runs below a folder, a row for each variable, component, layer, model seed and what the figures go `over`; a
    column METHOD:FIGURE for each figure, AMNESIC_FLOAT32:FIGURE for those of erasers fitted in float32. Over
    checkpoints, runs of single ones, METHOD/VARIABLE_EPOCH, are read beside a sweep; what both have is the sweep's.

    Says which runs are missing: those of circuit probing, and of any method that has some; but not
    those that are `never` done, (method, variable). where: values of settings, of which only the rows are taken.

    Raises:
        BadInput: there is no run at all, a table cannot be read, or a run sweeps more, which nothing averages.
    """
    tables = []
    for method, known in METHODS.items():
        for variable in variables:
            file = results / method / variable / "results.csv"
            parts = []
            for own in [file] * file.exists() + singles(file.parent) * ("checkpoint" in over):
                table = read_results_table(own)
                table = with_epoch(own, table) if "checkpoint" in over else table
                parts.append(refuse_sweep(own, tidy(only(table, where or {}), method).assign(variable=variable), over))
            if parts:
                table = pd.concat(parts)
                keys = [name for name in (*IDENTITY, *over, "precision") if name in table]
                tables.append(table[~table.duplicated(keys)])
            elif (method, variable) not in never and ((results / method).exists() or method == "circuit_probing"):
                config = config_that_writes(file.parent)
                hint = f", made by 'python {known.script} --config {config}'" if config else ""
                print(f"missing: {shown(file)}{hint}", file=sys.stderr)
    if not tables:
        raise BadInput(f"nothing to draw in {shown(results)}.")
    return pd.concat(tables, ignore_index=True)


def singles(folder: Path) -> list[Path]:
    """The tables of runs of one checkpoint of what a folder is about, in FOLDER_EPOCH, in the order of epochs."""
    found = {file: file.parent.name.removeprefix(f"{folder.name}_")
             for file in tables_below(folder.parent, f"{folder.name}_*")}
    return sorted((file for file, epoch in found.items() if epoch.isdigit()), key=lambda file: int(found[file]))


def with_epoch(file: Path, table: pd.DataFrame) -> pd.DataFrame:
    """A results table with a column `checkpoint`, where it has none from the model that its run's config names.

    Raises:
        BadInput: neither tells the epoch; what a folder is called is no evidence of what was computed.
    """
    if "checkpoint" in table:
        return table
    model = str(stored_config(file.parent).get("model_path", ""))
    epoch = re.search(r"_Seed_(\d+|{model_seed})\D.*?(\d+)/?$", model)
    if not epoch:
        raise BadInput(f"{shown(file)} does not tell the epoch of its model: it has no column 'checkpoint', and the "
                       f"model_path in its run's {CONFIG} ({model or 'not there'}) does not end in Seed_..._EPOCH.")
    return table.assign(checkpoint=int(epoch[2]))


def only(table: pd.DataFrame, where: dict[str, str]) -> pd.DataFrame:
    """The rows of a results table with some values of settings, for those settings that it has."""
    for key, value in where.items():
        table = table[table[key].astype(str) == value] if key in table else table
    return table


def refuse_sweep(file: Path, table: pd.DataFrame, over: tuple[str, ...]) -> pd.DataFrame:
    """A tidy table as it is, where nothing but IDENTITY and `over` tells its rows apart; else raises BadInput."""
    if not table.duplicated([name for name in (*IDENTITY, *over, "precision") if name in table]).any():
        return table
    lists = stored_config(file.parent)
    swept = [key.removesuffix("_list") for key, values in lists.items() if key.endswith("_list") and values]
    swept = [key for key in swept if len(lists[f"{key}_list"]) > 1 and key not in (
        *IDENTITY, *over, *PLACES, "target_layer", "precision")]
    raise BadInput(f"{shown(file)} sweeps {', '.join(swept) or 'more than models and layers'}, over which no figure "
                   f"averages; take one value with --where {swept[0] if swept else 'KEY'}=VALUE.")


def each_layer(table: pd.DataFrame, out: Path):
    """The rows of each layer, the folder of their figures and what their titles add: layers are not averaged."""
    layers = sorted(table["layer"].unique())
    for layer in layers:
        alone = len(layers) == 1
        folder, of = (out, "") if alone else (out / f"layer_{layer}", f", layer {layer}")
        yield table[table["layer"] == layer], folder, of


def of_models(table: pd.DataFrame, measures: dict[str, str], spread: str = "") -> str:
    """How many models the values of a figure of some measures are of, and what shows their spread.

    A value is a mean over rows of a variable and component (and checkpoint); not all methods need have the same models.
    """
    if not by_model(table):
        return "one model"
    keys = [name for name in ("component", "variable", "checkpoint") if name in table]
    counts = table.groupby(keys)[list(measures)].count().stack()
    return f"mean of {number_of(counts[counts > 0], 'models')}{spread}"


def number_of(counts: pd.Series, what: str) -> str:
    """Over how many a figure's values are means, where that may differ: 3 models, 1 to 3 models."""
    return f"{' to '.join(f'{count:.0f}' for count in sorted({counts.min(), counts.max()}))} {what}"


def by_model(table: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each model seed, where there are several."""
    found = [rows for _, rows in table.groupby("model_seed")] if "model_seed" in table else []
    return found if len(found) > 1 else []


def markdown_table(rows: list[list[str]]) -> str:
    """Rows of text, the first of them the header, as a table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def shipped_configs() -> Iterator[tuple[Path, dict[str, Any]]]:
    """All configs of the project with their keys, those that train first; broken ones are passed over."""
    for file in sorted(CONFIGS.rglob("*.yaml"), key=lambda file: (TRAINING not in file.parts, file)):
        with suppress(BadInput):
            yield file, read_yaml(file)


def stored_config(folder: Path) -> dict[str, Any]:
    """A run's config, {} where there is none."""
    return read_yaml(folder / CONFIG) if (folder / CONFIG).exists() else {}


def tables_below(results: Path, pattern: str) -> list[Path]:
    """The results.csv of the runs whose folders match."""
    return sorted(results.glob(f"{pattern}/results.csv"))


def config_that_writes(results: Path) -> str | None:
    """The shipped config whose results_dir a folder is."""
    return next((shown(file) for file, values in shipped_configs() if isinstance(values.get("results_dir"), str)
                 and project_path(values["results_dir"]) == results), None)


def read_csv(file: Path, **options) -> pd.DataFrame:
    """A CSV file; raises BadInput where it is none."""
    try:
        return pd.read_csv(file, **options)
    except ValueError as error:
        raise BadInput(f"{shown(file)} cannot be read as CSV: {str(error).strip()}.") from None


def places_of(table: pd.DataFrame) -> pd.Series:
    """Where in a layer each row of a results table looked; empty where the table is of whole models."""
    return next((table[name] for name in PLACES if name in table), pd.Series("", table.index))


def check_columns(file: Path, table: pd.DataFrame, script: str, words: list[str], numbers: list[str]) -> None:
    """Refuse a table that lacks a column of a script's, or has words where numbers belong; raises BadInput."""
    for column in (*words, *numbers):
        if column not in table:
            raise BadInput(f"{shown(file)} is no table of {script}: it has no column '{column}'.")
        if column in PLACES:
            refuse_cells(file, table, column, ~table[column].isin([*COMPONENT_OF]), f"one of {', '.join(COMPONENT_OF)}")
        if column in numbers:
            check_numbers(file, table, column)


def check_numbers(file: Path, table: pd.DataFrame, column: str, filled: bool = False) -> None:
    """Refuse a column of a table that holds words, or, where it is to be filled, empty cells; raises BadInput."""
    numbers = pd.to_numeric(table[column], errors="coerce")
    wrong = numbers.isna() if filled else numbers.isna() & table[column].notna()
    refuse_cells(file, table, column, wrong, "a number")


def refuse_cells(file: Path, table: pd.DataFrame, column: str, wrong: pd.Series, wanted: str) -> None:
    """Refuse a table that holds something wrong in a column; raises BadInput, which names the line."""
    for line, value in zip(table.index[wrong] + 2, table.loc[wrong, column]):  # the first line names the columns
        raise BadInput(f"{shown(file)} is damaged: line {line} holds {'nothing' if pd.isna(value) else repr(value)} in "
                       f"the column '{column}', where {wanted} belongs.")


def read_results_table(file: Path) -> pd.DataFrame:
    """A results table of a method that looks into layers.

    Raises:
        BadInput: it is none, or its cells hold what they should not; the sentence names the first.
    """
    table = read_csv(file)
    places = [name for name in PLACES if name in table]
    if table.empty or not places:
        raise BadInput(f"{shown(file)} is no results table: it has no rows or none of the columns "
                       f"{', '.join(PLACES)}.")
    check_columns(file, table, "a method", places, [])
    for column in set(table) - WORDS:
        check_numbers(file, table, column, filled=column in HEADLINES | {"target_layer", "model_seed"})
    return table


def tidy(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """A results table with the component it looked at, and the accuracy that an intervention costs on test.

    Figures are columns METHOD:FIGURE; those of LEACE fitted in float32, rows of their own, AMNESIC_FLOAT32:FIGURE.
    """
    as_published = table.get("precision", pd.Series("", table.index)) == "float32"
    if as_published.any() and method != FLOAT32:
        return pd.concat([tidy(rows, name) for rows, name in (
            (table[~as_published], method), (table[as_published], FLOAT32)) if len(rows)])
    for before, after in BEFORE_AND_AFTER:
        if before in table:
            table = table.assign(accuracy_lost=table[before] - table[after])
            if (random := f"random_{after}_mean") in table:
                table = table.assign(random_accuracy_lost=table[before] - table[random])
    kept = {name: table[name] for name in ("checkpoint", "model_seed", "precision") if name in table}
    layers = table["target_layer"] if "target_layer" in table else 0
    return table.add_prefix(f"{method}:").assign(component=places_of(table).map(COMPONENT_OF), layer=layers, **kept)


def present(table: pd.DataFrame, measures: dict[str, str]) -> dict[str, str]:
    return {column: label for column, label in measures.items() if column in table and table[column].notna().any()}


def asked(table: pd.DataFrame, measures: dict[str, str]) -> dict[str, str]:
    """The measures of those methods that have any figure in the table; one without a value is drawn as n/a."""
    there = {column.partition(":")[0] for column in table if table[column].notna().any()}
    return {column: label for column, label in measures.items()
            if column in table and column.partition(":")[0] in there}


def role_of(column: str) -> str:
    """What a column METHOD:FIGURE is of, a key of COLORS: the untouched model, random draws, a baseline, the method."""
    method, _, name = column.partition(":")
    return next((role for word, role in OTHER_ROLES.items() if word in name), ROLES[method])


def mean_and_sd(groups, measures: dict[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means and standard deviations of groups of rows, a column for each measure under its label.

    The spread of a column NAME_mean is that of its own draws, in NAME_std; of others it is over the group.
    """
    spreads = {}
    for column, label in measures.items():
        own = column.replace("_mean", "_std")
        spreads[label] = groups[column].std() if own == column else groups[own].mean()
    return groups[list(measures)].mean().rename(columns=measures), pd.DataFrame(spreads)


def intervals(means: pd.DataFrame, spreads: pd.DataFrame,
              each: list[pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How far the 95 % intervals of means over models reach, below and above; of one model its draws' own spread."""
    if not each:
        return spreads, spreads
    found = [[interval(pd.Series([own.loc[row, column] for own in each], dtype=float).dropna()) for column in means]
             for row in means.index]
    low, high = (pd.DataFrame([[cell[side] for cell in row] for row in found], means.index, means.columns)
                 for side in (0, 1))
    return (means - low).clip(lower=0), (high - means).clip(lower=0)


def draw_by_variable(table: pd.DataFrame, labels: dict[str, str], measures: dict[str, str], components: list[str],
                     ylabel: str, title: str, path: Path) -> None:
    """Grouped bars: a panel for each component, a group for each variable, a bar for each measure.

    labels, measures: how variables and columns are called in the figure, in order.
    """
    measures = asked(table, measures)
    over_models = bool(by_model(table))  # a bar is then an interval over models, no standard deviation of draws
    if over_models:
        measures = {column: label.removesuffix(DRAWS_SD) for column, label in measures.items()}
    variables = [name for name in labels if name in set(table["variable"])]
    names = {name: labels[name].replace(" (", "\n(") for name in variables}
    width = max(5.5 * max(1, 1.3 / len(components)), 0.36 * len(variables) * len(measures))  # a value has 0.36 inches
    figure, axes = plt.subplots(1, len(components), figsize=(width * len(components), 4.2), sharey=True,
                                squeeze=False, layout="constrained")
    for axis, component in zip(axes[0], components):
        rows = table[table["component"] == component]
        (means, spreads), *others = [[found.reindex(variables).rename(index=names) for found in mean_and_sd(
            own.groupby("variable"), measures)] for own in (rows, *by_model(rows))]
        each = [own for own, _ in others]
        if over_models:  # one model's own draws are no such interval
            spreads = spreads * np.nan
        draw_bars(axis, means, intervals(means, spreads, each), [*map(role_of, measures)], each)
        axis.set(title=COMPONENTS[component], xlabel="intermediate variable")
    axes[0][0].set_ylabel(ylabel)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center",
                  ncols=2 if len(measures) == 4 else min(len(measures), 3))
    figure.suptitle(f"{title} ({of_models(table, measures, ', dots; bars: 95 % interval')})", parse_math=False)
    save_figure(figure, path)


def draw_there_and_used(table: pd.DataFrame, labels: dict[str, str], path: Path, of: str = "") -> None:
    """A grid: is the variable there (above), is it used (below); a row for each method, a column for each variable.

    Cells without a result are grey.
    """
    questions = {"Is it there? accuracy of reading it off": present(table, THERE),
                 "Is it used? effect of an intervention": present(table, USED)}
    questions = {question: measures for question, measures in questions.items() if measures}
    components = [name for name in COMPONENTS if name in set(table["component"])]
    columns = [(component, variable) for component in components for variable in labels]
    names = [wrapped(label.replace(" (", "\n("), 12) for label in labels.values()]
    cell = max(0.9, *(0.09 * len(line) for name in names for line in name.splitlines()))  # inches
    sizes = [len(measures) for measures in questions.values()]
    figure, axes = plt.subplots(len(sizes), 1, figsize=(5 + cell * len(columns), 1.8 + 0.45 * sum(sizes)),
                                layout="constrained", height_ratios=sizes, squeeze=False)
    for axis, (question, measures) in zip(axes[:, 0], questions.items()):
        means = table.groupby(["component", "variable"])[list(measures)].mean().reindex(columns)
        sns.heatmap(means.T, annot=True, fmt=".2f", vmin=0, vmax=1, cmap="Blues", linewidths=1, ax=axis,
                    cbar=axis is axes[0, 0], cbar_kws={"label": "share"}, annot_kws={"fontsize": 10})
        axis.set_yticks(np.arange(len(measures)) + 0.5, list(measures.values()), rotation=0)
        axis.set_xticks(np.arange(len(columns)) + 0.5, names * len(components), rotation=0, fontsize=10)
        axis.set(title=question, ylabel="", xlabel="")
        axis.set_facecolor("0.9")  # a cell without a result
        axis.grid(visible=False)
        for number in range(1, len(components)):
            axis.axvline(number * len(labels), color="black", linewidth=2)
    below = axes[-1, 0].secondary_xaxis(0)  # a second line of names, below the variables'
    below.set_xticks((np.arange(len(components)) + 0.5) * len(labels), [
        "\n" * (1 + max(name.count("\n") for name in names)) + PLACE_NAMES[name] for name in components])
    below.tick_params(length=0, pad=8)
    below.spines["bottom"].set_visible(False)
    every = {column: label for measures in questions.values() for column, label in measures.items()}
    figure.suptitle(f"Is it there, is it used?{of} ({of_models(table, every)})", parse_math=False)
    save_figure(figure, path)


def draw_probes(table: pd.DataFrame, labels: dict[str, str], out: Path, of: str = "") -> None:
    """What can be read: nearest neighbors, and beside other probes where there are any.

    of: which model or task the figures are about, for their titles.
    """
    components = [name for name in COMPONENTS if name in set(table["component"])]
    if present(table, NEIGHBORS):
        draw_by_variable(table, labels, NEIGHBORS, components, "nearest-neighbor accuracy (test)",
                         f"Is the variable there? Nearest neighbors of updates{of}", out / "nearest_neighbors")
    if set(present(table, PROBES)) - set(NEIGHBORS):
        for component in components:
            draw_by_variable(table, labels, PROBES, [component], "accuracy (test)",
                             f"Is the variable there? Three probes{of}", out / f"probe_accuracy_{component}")
        draw_there_and_used(table, labels, out / "there_and_used", of)


def parse_folders(description: str, experiment: str, further: dict[str, dict[str, Any]] | None = None) -> Namespace:
    """The command line of a script that draws an experiment: `results` to read, `out` for figures, whole paths both.

    further: other options of the script, as argparse takes them.
    """
    parser = ArgumentParser(description=description)
    parser.add_argument("--results", type=Path, default=RESULTS / experiment)
    parser.add_argument("--out", type=Path, help="default: RESULTS/figures")
    parser.add_argument("--where", nargs="+", default=[], metavar="KEY=VALUE", help="only rows with these settings")
    for name, option in (further or {}).items():
        parser.add_argument(name, **option)
    options = parser.parse_args()
    options.results = options.results.absolute()
    options.out = whole_out(options.out or options.results / "figures")
    options.where = dict(pair.partition("=")[::2] for pair in options.where)
    return options


def whole_out(out: Path, names_files: bool = False) -> Path:
    """The whole path that --out gives: a folder, or what files' names begin with.

    Raises:
        BadInput: nothing can be written there.
    """
    if names_files and not out.name:
        raise BadInput(f"--out {out}: it must end in a file's name.")
    whole = project_path(out.absolute())
    check_folder("--out", whole.parent if names_files else whole)
    return whole


def run(script: str, main: Callable[[], None]) -> None:
    """Run a script's main; bad input ends in one sentence and exit status 2."""
    try:
        main()
    except (BadInput, OSError) as error:
        print(f"{script}: {error}", file=sys.stderr)
        sys.exit(2)
