"""Arithmetic data: token sequences with the variables of a and b, counterfactual pairs, CSV files."""

import csv
import re
from collections import Counter
from collections.abc import Iterable
from textwrap import shorten
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from interp.runs.config import BadInput, require_file, shown, suggestion, there_are
from interp.tasks.functions import OPERATIONS, Rule, Task, column_names, variable_values


def make_data(task: Task, mod: int, train_frac: float,
              generator: torch.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All mod² sequences of a task with their counterfactual partners, split into train and test.

    The order of draws is that of the published files, which come out identical to the byte;
    a second task goes on with the same generator.
    """
    a = torch.arange(mod).repeat_interleave(mod)  # (mod²,)
    b = torch.arange(mod).repeat(mod)             # (mod²,)
    words = {"a": a, "b": b, "=": torch.full_like(a, mod),
             "task_1": torch.full_like(a, mod + 1), "task_2": torch.full_like(a, mod + 2)}
    if "r" in task.layout:
        words["r"] = torch.randperm(mod, generator=generator)[b]
    sequences = torch.stack([words[word] for word in task.layout], dim=1)  # (mod², positions)
    partner = draw_partners(len(sequences), generator)
    order = torch.randperm(len(sequences), generator=generator)

    functions = dict(zip(column_names(task), [*task.intermediate, *task.auxiliary]))
    values = {column: variable_values(name, sequences[:, i], sequences[:, j], mod)
              for column, (name, i, j) in functions.items()}
    text = [" ".join(map(str, row)) for row in sequences.tolist()]
    columns: dict[str, Any] = {
        "data": text,
        "labels": sum(values[f"var_{i}"] for i in range(len(task.intermediate))) % mod,
        "counterfactual_data": [text[i] for i in partner.tolist()],
    }
    for name, value in values.items():
        columns |= {name: value, f"counter_{name}": value[partner]}
    for i, (x, y, op) in enumerate(task.counterfactual_labels):
        columns |= {f"CF_Label_{i}": OPERATIONS[op](columns[x], columns[y]) % mod,
                    f"CF_FN_{i}": f"{x} {y} {op}"}

    table = pd.DataFrame({name: column.numpy() if isinstance(column, Tensor) else column
                          for name, column in columns.items()})
    cut = int(len(table) * train_frac)
    return tuple(table.iloc[rows.numpy()].reset_index(drop=True) for rows in (order[:cut], order[cut:]))


def draw_partners(count: int, generator: torch.Generator) -> Tensor:
    """A permutation that pairs no row with itself: each row's counterfactual."""
    while True:
        partner = torch.randperm(count, generator=generator)
        if not (partner == torch.arange(count)).any():
            return partner


def csv_text(table: pd.DataFrame) -> str:
    return table.to_csv(lineterminator="\n")


def read_data(key: str, path: str, columns: list[str]) -> pd.DataFrame:
    """A data CSV with the columns asked for, each cell as the text that the file has.

    The index counts rows as the file does, from 1, the header. attrs["source"] names the key and the file in messages.

    Raises:
        BadInput: no CSV is there, a row has more or fewer cells than the header, a column is missing or stands twice.
    """
    file = require_file(key, path)
    source, header, rows = f"{key}: {shown(file)}", list[str](), dict[int, list[str]]()
    try:
        if not file.is_file():  # a pipe would be waited for
            raise ValueError("it is no file")
        with open(file, encoding="utf-8-sig", newline="") as text:
            if "," not in (head := text.readline()) and re.search("[;\t]", head):
                raise ValueError("row 1 has semicolons or tabs between its cells")
            text.seek(0)
            for row, line in enumerate(csv.reader(text, strict=True), 1):
                if len(line) < 2 and not "".join(line).strip():
                    continue
                header = header or line
                for name, count in Counter(map(str.strip, line)).items() if line is header else ():
                    if name and count > 1:
                        raise ValueError(f"row {row} has the column '{name}' twice")
                if len(line) != len(header):
                    raise ValueError(f"row {row} has {len(line)} cells, and the header has {len(header)}")
                rows[row] = line
    except (OSError, ValueError, csv.Error) as error:
        raise BadInput(f"{source} cannot be read as CSV after row {max(rows, default=0)}: {error}; commas stand "
                       "between cells, and quotes around a cell that holds a comma.") from None
    if len(rows) < 2:
        raise BadInput(f"{source} has no rows.")
    table = pd.DataFrame(dict(zip(header, list(zip(*rows.values())))), index=[*rows], dtype=object)[1:]
    table.attrs["source"] = source
    require_columns(table, columns)
    return table


def require_columns(table: pd.DataFrame, columns: Iterable[str]) -> None:
    for column in columns:
        if column not in table:
            raise BadInput(f"{table.attrs['source']} has no column '{column}'{suggestion(column, table)}"
                           f"{there_are(table)}.")


def token_ids(table: pd.DataFrame, column: str = "data") -> Tensor:
    """The sequences of a data table as token ids, (rows, positions); raises BadInput where one holds anything else."""
    words = table[column].str.strip().str.split(r"\s+", regex=True, expand=True)
    return torch.stack([labels_of(table, column, "token ids joined by spaces, as many in every row", words[place])
                        for place in words], dim=1)


def labels_of(table: pd.DataFrame, column: str, held: str = "whole numbers only", cells: pd.Series | None = None,
              values: range = range(-2**63, 2**63)) -> Tensor:
    """A column, or some cells for it, as integers, (rows,): ASCII digits, after a minus sign or none.

    Raises:
        BadInput: a cell is something else, or none of `values`; the message says that the column must hold `held`.
    """
    cells = table[column] if cells is None else cells
    for row, cell in cells.items():
        if not re.fullmatch("-?[0-9]{1,30}", str(cell).strip()) or int(cell) not in values:
            raise BadInput(f"{table.attrs['source']}: the column '{column}' must hold {held}; row {row} has "
                           f"'{shorten(str(table.loc[row, column]), 60)}'.")
    return torch.tensor(list(map(int, cells)), dtype=torch.long)


def rule_values(table: pd.DataFrame, rule: Rule) -> Tensor:
    """The labels (x op y) mod p of a rule over columns of a data table, (rows,); p is the token that ends a row."""
    x, y, op = rule
    return OPERATIONS[op](labels_of(table, x), labels_of(table, y)) % token_ids(table)[:, -1]


def add_hard_negatives(tables: list[pd.DataFrame], variable: str, place: int, data_seed: int) -> None:
    """Add columns of what a method may take for a variable: VARIABLE@token and VARIABLE@groups, of sources too.

    They are the token at a place that determines the variable, by number, and its tokens in random groups, as many to a
    value as the variable has; raises BadInput where the token does not determine the variable.
    """
    sides = [(table, *names) for table in tables for names in (
        (variable, "data"), (f"counter_{variable}", "counterfactual_data"))]
    for table, *columns in sides:
        require_columns(table, columns)
    tokens = torch.cat([token_ids(table, data)[:, place] for table, _, data in sides])
    values = torch.cat([labels_of(table, column) for table, column, _ in sides])
    kinds, which = tokens.unique(return_inverse=True)
    of_kind = torch.zeros_like(kinds).scatter(0, which, values)  # (kinds,)
    if not torch.equal(of_kind[which], values):
        raise BadInput(f"hard_negatives: the token at {place} does not determine '{variable}'.")
    grouped = of_kind[torch.randperm(len(kinds), generator=torch.Generator().manual_seed(data_seed))]
    for (table, column, _), part in zip(sides, which.split([len(table) for table, *_ in sides])):
        table[f"{column}@token"], table[f"{column}@groups"] = part.numpy(), grouped[part].numpy()
