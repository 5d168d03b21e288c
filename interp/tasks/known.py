"""The task of models that are trained to hold its variables: `x1 x2 SEP x3 x4 =`, each x in 0..4.

V = f(x1, x2) and W = h(x3, x4) decide the answer out[V, W]; U = u(x1, x4) plays no part. V is A + B (mod 5), where A
and B are functions of x1 and x2 as well. All tables are drawn by a seed.
"""

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from interp.tasks.arithmetic import csv_text

MOD, SEP, EQUALS, VOCABULARY, POSITIONS = 5, 5, 6, 7, 6
VARIABLES = ("V", "W", "U")


@dataclass(frozen=True)
class Split:
    """Inputs with the values of their variables: tokens (n, 6); V, W, U, A, B by name, (n,) each."""

    tokens: Tensor
    values: dict[str, Tensor]

    def to(self, device: torch.device) -> "Split":
        return Split(self.tokens.to(device), {name: value.to(device) for name, value in self.values.items()})


def draw_tables(generator: torch.Generator) -> dict[str, Tensor]:
    """The tables f, h, u, a, (5, 5), which have each value five times, and out, whose rows and columns have each once.

    out is the table of addition, its rows, columns and values permuted.
    """
    tables = {name: torch.randperm(MOD**2, generator=generator).view(MOD, MOD) % MOD for name in "fhua"}
    row, column, value = (torch.randperm(MOD, generator=generator) for _ in range(3))
    return tables | {"out": value[(row[:, None] + column) % MOD]}


def draw_splits(tables: dict[str, Tensor], generator: torch.Generator) -> dict[str, Split]:
    """All 625 inputs, four fifths of them in train."""
    x1, x2, x3, x4 = x = torch.cartesian_prod(*[torch.arange(MOD)] * 4).T  # (625,) each
    tokens = torch.stack([x1, x2, torch.full_like(x1, SEP), x3, x4, torch.full_like(x1, EQUALS)], dim=1)
    values = {"V": tables["f"][x1, x2], "W": tables["h"][x3, x4], "U": tables["u"][x1, x4], "A": tables["a"][x1, x2]}
    values["B"] = (values["V"] - values["A"]) % MOD
    order = torch.randperm(x.shape[1], generator=generator)
    parts = dict(zip(("train", "test"), order.split([len(order) * 4 // 5, len(order) - len(order) * 4 // 5])))
    return {name: Split(tokens[rows], {key: value[rows] for key, value in values.items()})
            for name, rows in parts.items()}


def paired_csv(split: Split, out: Tensor, count: int, generator: torch.Generator) -> str:
    """A data file: each input with `count` sources of its split, and the answers that interchanges should give.

    label_U is the answer if U were what the model uses in V's place.
    """
    others = torch.rand(len(split.tokens), len(split.tokens), generator=generator).fill_diagonal_(2)
    source = others.argsort(dim=1)[:, :count].flatten()                    # (n * count,)
    base = torch.arange(len(split.tokens)).repeat_interleave(count)        # (n * count,)
    text = [" ".join(map(str, row)) for row in split.tokens.tolist()]
    of_base, of_source = ({name: split.values[name][rows] for name in VARIABLES} for rows in (base, source))
    labels = {"V": out[of_source["V"], of_base["W"]], "W": out[of_base["V"], of_source["W"]],
              "U": out[of_source["U"], of_base["W"]]}
    return csv_text(pd.DataFrame({
        "data": [text[row] for row in base.tolist()], "labels": out[of_base["V"], of_base["W"]].numpy(),
        **{name: value.numpy() for name, value in of_base.items()},
        "counterfactual_data": [text[row] for row in source.tolist()],
        **{f"counter_{name}": value.numpy() for name, value in of_source.items()},
        **{f"label_{name}": value.numpy() for name, value in labels.items()}}))
