"""Labelled sequences for a method: read from CSV, and checked against each other and the model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.arithmetic import labels_of, read_data, token_ids
from interp.config import BadInput
from interp.models import read_model_config


@dataclass(frozen=True)
class Examples:
    """A split of the data.

    tokens: (rows, positions); every named column: (rows,).
    """

    tokens: Tensor
    columns: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, column: str) -> Tensor:
        return self.columns[column]


def read_examples(key: str, path: str, columns: list[str], device: torch.device, sequence: str = "data") -> Examples:
    """Sequences and integer columns of a data file.

    Raises:
        BadInput: the file or a column is missing, or holds what it should not.
    """
    table = read_data(key, path, [sequence, *columns])
    return Examples(token_ids(table, sequence).to(device),
                    {column: labels_of(table, column).to(device) for column in columns})


def check_classes(variable: str, train: Tensor, test: Tensor, n_classes: int | None = None) -> None:
    """Refuse a variable with nothing to tell apart, or with a class that only test has.

    Raises:
        BadInput: as said, or a value is not a class below n_classes.
    """
    classes = set(train.tolist())
    if len(classes) < 2:
        raise BadInput(f"variable: '{variable}' has a single value in train_data_path; there is nothing to tell "
                       "apart.")
    unknown = sorted(set(test.tolist()) - classes)
    if unknown:
        raise BadInput(f"variable: class {unknown[0]} of '{variable}' has no example in train_data_path, but "
                       "stands in test_data_path.")
    if n_classes is not None:
        check_range("n_classes", variable, train, n_classes)


def check_range(key: str, column: str, values: Tensor, limit: int) -> None:
    """Refuse values that are no class of `limit` classes.

    Raises:
        BadInput: one is negative or too large.
    """
    if not 0 <= values.min() <= values.max() < limit:
        raise BadInput(f"{key}: '{column}' goes from {values.min()} to {values.max()}, which does not fit "
                       f"in {limit} classes from 0.")


def check_model(path: str, layers: dict[str, int], splits: dict[str, Examples],
                positions: dict[str, int], answers: tuple[str, ...] = ("labels",)) -> None:
    """Look at a model's configuration only: has it these layers, does it read these sequences?

    Args:
        layers: the layers asked for, by config key.
        splits: sequences by the config key that names their file.
        positions: the positions asked for, by config key.
        answers: columns that hold what the model should say.

    Raises:
        BadInput: naming the key that does not fit.
    """
    model = read_model_config("model_path", path)
    check_layers(model, layers)
    for key, examples in splits.items():
        length = examples.tokens.shape[1]
        for position_key, position in positions.items():
            if not -length <= position < length:
                raise BadInput(f"{position_key}: there is no position {position} in the {length} tokens of {key}.")
        if length > model.max_position_embeddings:
            raise BadInput(f"{key}: its sequences have {length} tokens, the model reads at most "
                           f"{model.max_position_embeddings}.")
        check_tokens(key, "token", examples.tokens, model.vocab_size)
        for column in answers:
            if column in examples.columns:
                check_tokens(key, f"'{column}'", examples[column], model.vocab_size)


def check_layers(model, layers: dict[str, int]) -> None:
    """Refuse layers, by config key, that a model's configuration lacks.

    Raises:
        BadInput: as said.
    """
    for key, layer in layers.items():
        if layer >= model.num_hidden_layers:
            raise BadInput(f"{key}: there is no layer {layer}; the model has {model.num_hidden_layers}, "
                           "counted from 0.")


def check_tokens(key: str, word: str, tokens: Tensor, vocab_size: int) -> None:
    outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if len(outside):
        raise BadInput(f"{key}: {word} {outside[0]} is not in the model's vocabulary of {vocab_size}.")


def check_batch(batch_size: int, count: int) -> None:
    """Refuse a batch that leaves no complete one.

    Raises:
        BadInput: there are fewer examples.
    """
    if batch_size > count:
        raise BadInput(f"batch_size_list: {batch_size} is more than the {count} training examples.")
