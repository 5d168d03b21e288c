"""The one reader of what runs have written, as pandas frames, and the command line of the scripts of this folder."""

import math
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from interp.methods.table import BEFORE_AND_AFTER, COMPONENT_OF, METHODS, PLACES
from interp.runs.config import PROJECT_ROOT, BadInput, read_yaml, shown, there_are
from interp.runs.files import check_folder

RESULTS = PROJECT_ROOT / "Results"
COMPONENTS = {"attn": "attention", "mlp": "MLP"}
FLOAT32 = "amnesic_float32"  # LEACE as it was published, told apart from its fit in float64
WORDS = {"random_ablation_impossible", "precision", "checkpoint", "position", *PLACES}  # columns that hold no numbers
IDENTITY = ("component", "model_seed", "precision")  # what may tell the rows of a method and variable apart
Options = dict[str, dict[str, Any]]  # of a command line, as argparse takes them
WHERE: Options = {"--where": {"nargs": "+", "default": [], "metavar": "KEY=VALUE",
                              "help": "only rows with these settings"}}


def find_runs(results: Path) -> list[Path]:
    """The run directories below a folder, but for those that --overwrite moved aside."""
    files = [file for name in ("config.yaml", "results.csv") for file in results.rglob(name)]
    return sorted({file.parent for file in files if ".old-" not in str(file.parent.relative_to(results))})


def name_of(results: Path, folder: Path) -> str:
    """A run's name in a folder of results, which may itself be the run."""
    return (folder.relative_to(results) if folder != results else Path(results.name)).as_posix()


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a run; empty where it has none."""
    file = folder / "config.yaml"
    return read_yaml(file) if file.exists() else {}


def swept(config: dict[str, Any]) -> dict[str, list[Any]]:
    """The settings that a config sweeps, by their columns."""
    return {key.removesuffix("_list"): values for key, values in config.items() if key.endswith("_list") and values}


def count_settings(config: dict[str, Any], table: pd.DataFrame) -> tuple[int, int]:
    """How many settings of a run have rows, and how many its config sweeps."""
    lists = swept(config)
    done = len(table[[*lists]].drop_duplicates()) if lists else min(1, len(table))
    return done, math.prod(map(len, lists.values()))


def exists(file: Path) -> bool:
    """Whether there is a file of results; prints its name where there is none."""
    if not file.exists():
        print(f"missing: {shown(file)}", file=sys.stderr)
    return file.exists()


def read_csv(file: Path, **options) -> pd.DataFrame:
    """A CSV file; raises BadInput where there is none or it cannot be read."""
    if file.exists() and not file.is_file():
        raise BadInput(f"{shown(file)} cannot be read as CSV: it is no file.")
    try:
        return pd.read_csv(file, **options)
    except (ValueError, OSError) as error:
        raise BadInput(f"{shown(file)} cannot be read as CSV: {str(error).strip()}.") from None


def check_columns(file: Path, table: pd.DataFrame, words: Sequence[str], numbers: Sequence[str]) -> pd.DataFrame:
    """A table as it is, if it has the columns and `numbers` hold numbers or nothing; else raises BadInput."""
    if missing := [column for column in (*words, *numbers) if column not in table]:
        raise BadInput(f"{shown(file)} has no column '{missing[0]}'{there_are(table)}.")
    for column in numbers:
        wrong = table.index[pd.to_numeric(table[column], errors="coerce").isna() & table[column].notna()]
        if len(wrong):
            raise BadInput(f"{shown(file)}, line {wrong[0] + 2}: the column '{column}' holds "
                           f"'{table.at[wrong[0], column]}', which is no number.")
    return table


def read_method(file: Path, where: dict[str, str] | None = None) -> pd.DataFrame:
    """The results.csv of a method that looks into layers, with a column `component`.

    Raises BadInput, also where it has several positions, or several sites of one component, which would be mixed.
    """
    table = read_csv(file)
    place = next((name for name in PLACES if name in table), PLACES[0])
    check_columns(file, table, [place], [column for column in table if column not in WORDS])
    table = select(table, where or {})
    components = table[place].map(COMPONENT_OF)
    if table.empty or components.isna().any():
        raise BadInput(f"{shown(file)}: it has no rows, or '{place}' is not always one of {', '.join(COMPONENT_OF)}.")
    for column, most, example in (("position", 1, "NAME"), (place, components.nunique(), "SITE")):
        if table[column].nunique() > most:
            raise BadInput(f"{shown(file)} has several values of {column}, which would be mixed: "
                           f"{', '.join(table[column].unique())}; take one with --where {column}={example}.")
    return table.assign(component=components)


def select(table: pd.DataFrame, where: dict[str, str]) -> pd.DataFrame:
    """The rows of a table with some values of settings, for those that it has; older runs' `position` is the last."""
    table = table.assign(position=table["position"].astype(str) if "position" in table else "last")
    for key, value in where.items():
        table = table[table[key].astype(str) == value] if key in table else table
    return table


def read_experiment(results: Path, variables: Iterable[str], where: dict[str, str],
                    over: Sequence[str] = ()) -> pd.DataFrame:
    """RESULTS/METHOD/VARIABLE/results.csv of all methods, a row for each variable, component, model and `over`.

    Columns are METHOD:COLUMN. Raises BadInput: there is no run, a table cannot be read, or a run sweeps more than that.
    """
    tables = []
    for folder in [results / method / variable for method in METHODS for variable in variables]:
        if folder.parent.exists() and exists(folder / "results.csv"):
            table = tidy(read_method(folder / "results.csv", where), folder.parent.name)
            if table.duplicated([name for name in (*IDENTITY, *over) if name in table]).any():
                lists = [key for key, values in swept(read_config(folder)).items() if len(values) > 1]
                raise BadInput(f"{shown(folder)} sweeps {', '.join(lists)}; figures average over models only, so take "
                               "one value with --where KEY=VALUE.")
            tables.append(table.assign(variable=folder.name))
    if not tables:
        raise BadInput(f"nothing to draw in {shown(results)}.")
    return pd.concat(tables, ignore_index=True)


def tidy(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """A method's table with columns METHOD:COLUMN, also of the accuracy that its intervention costs on test."""
    for before, after in BEFORE_AND_AFTER:
        if before in table:
            table = table.assign(accuracy_lost=table[before] - table[after])
            if (random := f"random_{after}_mean") in table:
                table = table.assign(random_accuracy_lost=table[before] - table[random])
    published = table.get("precision", pd.Series("", table.index)).eq("float32")
    parts = ((method, table[~published]), (FLOAT32, table[published]))
    prefixed = pd.concat([rows.add_prefix(f"{name}:") for name, rows in parts if len(rows)])
    kept = {name: table[name] for name in ("component", "checkpoint", "model_seed", "precision") if name in table}
    return prefixed.assign(layer=table["target_layer"] if "target_layer" in table else 0, **kept)


def present(table: pd.DataFrame, measures: dict[str, str]) -> dict[str, str]:
    """Those measures, labels by column, of which a table has a value; of several with one label the first."""
    known = {column: label for column, label in measures.items() if column in table and table[column].notna().any()}
    first = {label: column for column, label in reversed(known.items())}
    return {column: label for column, label in known.items() if first[label] == column}


def markdown_table(rows: list[list[str]]) -> str:
    """Rows of text, the first of them the header, as a table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def as_markdown(table: pd.DataFrame) -> str:
    """A frame in Markdown, numbers that are not whole with two decimals."""
    text = table.map(lambda value: "" if pd.isna(value) else f"{value:.2f}" if isinstance(value, float) else str(value))
    return markdown_table([[*map(str, text)], *text.to_numpy().tolist()])


def parse(description: str | None, results: Path, further: Options | None = None, out: str = "figures") -> Namespace:
    """The command line of a script: `results` to read, `out` to write, both as whole paths, and further options.

    out: what is written by default, in the folder of results; {OPTION} stands for an option's value.
    """
    known: Options = {"--results": {"type": Path, "default": results, "help": "the folder to read"},
                      "--out": {"type": Path, "help": f"default: RESULTS/{out}"}}
    parser = ArgumentParser(description=str(description).partition("\n")[0])
    for name, option in (known | (further or {})).items():
        parser.add_argument(name, **option)
    options = parser.parse_args()
    options.results = options.results.absolute()
    options.out = (options.out or options.results / out.format(**vars(options))).absolute()
    check_folder("--out", options.out.parent if options.out.is_file() else options.out)
    if "where" in options:
        options.where = dict(pair.partition("=")[::2] for pair in options.where)
    return options


def run(script: str, main: Callable[[], None]) -> None:
    """Run a script's main; bad input ends in one sentence and exit status 2."""
    try:
        main()
    except (BadInput, OSError) as error:
        print(f"{script}: {error}", file=sys.stderr)
        sys.exit(2)
