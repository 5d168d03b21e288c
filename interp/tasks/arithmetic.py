"""Arithmetic data: token sequences with the variables of a and b, counterfactual pairs, CSV files."""

from collections.abc import Iterable
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
    """A data CSV with the columns asked for; its attrs["source"] names the key and the file in messages.

    Raises:
        BadInput: the file is missing or no CSV, or a column is missing.
    """
    file = require_file(key, path)
    source = f"{key}: {shown(file)}"
    try:
        table = pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise BadInput(f"{source} cannot be read as CSV: {str(error).strip()}.") from None
    if table.empty:
        raise BadInput(f"{source} has no rows.")
    table.attrs["source"] = source
    require_columns(table, columns)
    return table


def require_columns(table: pd.DataFrame, columns: Iterable[str]) -> None:
    for column in columns:
        if column not in table:
            raise BadInput(f"{table.attrs['source']} has no column '{column}'{suggestion(column, table)}"
                           f"{there_are(table)}.")


def token_ids(table: pd.DataFrame, column: str = "data") -> Tensor:
    """The sequences of a data table as token ids, (rows, positions).

    Raises:
        BadInput: a sequence holds a word that is no token id, or lengths differ.
    """
    try:
        return torch.tensor([[int(word) for word in str(text).split()] for text in table[column]])
    except ValueError:
        raise BadInput(f"{table.attrs['source']}: the column '{column}' must hold token ids joined "
                       "by spaces, as many in every row.") from None


def labels_of(table: pd.DataFrame, column: str) -> Tensor:
    """A column of integer labels, (rows,).

    Raises:
        BadInput: a value is missing or not a whole number.
    """
    if not pd.api.types.is_integer_dtype(table[column]):
        raise BadInput(f"{table.attrs['source']}: the column '{column}' must hold whole numbers only.")
    return torch.tensor(table[column].to_numpy(dtype="int64"))


def rule_values(table: pd.DataFrame, rule: Rule) -> Tensor:
    """The labels (x op y) mod p of a rule over columns of a data table, (rows,); p is the token that ends a row."""
    x, y, op = rule
    return OPERATIONS[op](labels_of(table, x), labels_of(table, y)) % token_ids(table)[:, -1]
