"""Probing: can a classifier read a variable off the residual stream, and does the model use what it reads?

    python probing.py --config configs/Disambiguation/linear_probing/a2.yaml

1. Capture the residual stream once, after attention (resid_mid) or after the MLP (resid_post).
2. Train a linear probe, or one with a hidden layer, to tell the variable's value from it.
3. Counterfactual embeddings: move each test activation until the probe reads the variable's
   counterfactual value, patch it in, run the rest of the model, and see what it answers.
"""

import sys
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from interp.circuits import shuffled_batches
from interp.config import BadInput, Count, ModelSweep, NonEmpty, NonNegative, Positive, Text, Whole
from interp.counterfactual import counterfactual_embeddings, measure_patches
from interp.examples import Examples, check_batch, check_classes, check_model, check_range, read_examples
from interp.experiment import Outcome, Script, Setting, fill_in, main
from interp.neighbors import majority_accuracy
from interp.probes import build_probe, evaluate_probe, train_probe
from interp.residual_stream import ResidualStream


class Config(ModelSweep):
    variable: Text
    train_data_path: Text
    test_data_path: Text
    n_classes: Count

    target_layer_list: NonEmpty[NonNegative] = [0]
    target_position_list: NonEmpty[Whole] = [-1]
    residual_location_list: NonEmpty[Literal["resid_mid", "resid_post"]]
    lr_list: NonEmpty[Positive]
    batch_size_list: NonEmpty[Count]
    num_epochs: Count
    intermediate_size: Whole

    counterfactual_embeddings: bool = False
    counterfactual_variable: Text | None = None
    counterfactual_label: Text | None = None
    cf_num_epochs: Count = 100
    cf_lr: Positive = 0.1
    save_examples: bool = False

    @model_validator(mode="after")
    def consistent(self):
        if self.intermediate_size != -1 and self.intermediate_size < 1:
            raise ValueError("intermediate_size must be -1 (a linear probe) or a number of hidden neurons")
        if self.counterfactual_embeddings and not (self.counterfactual_variable and self.counterfactual_label):
            raise ValueError("counterfactual_embeddings needs the keys counterfactual_variable and "
                             "counterfactual_label")
        return self


@dataclass(frozen=True)
class Prepared:
    train: Examples
    test: Examples
    device: torch.device
    streams: dict[str, ResidualStream] = field(default_factory=dict)  # the last one used


def prepare(config: Config, settings: list[Setting], device: torch.device) -> Prepared:
    """Read the data and each model's configuration; refuse what does not fit together."""
    counterfactual = ([config.counterfactual_variable, config.counterfactual_label]
                      if config.counterfactual_embeddings else [])
    train = read_examples("train_data_path", config.train_data_path, [config.variable], device)
    test = read_examples("test_data_path", config.test_data_path, [config.variable, "labels", *counterfactual], device)
    check_classes(config.variable, train[config.variable], test[config.variable], config.n_classes)
    if config.counterfactual_embeddings:
        check_range("n_classes", config.counterfactual_variable, test[config.counterfactual_variable],
                    config.n_classes)
        if not (test[config.counterfactual_label] != test["labels"]).any():
            raise BadInput(f"counterfactual_label: '{config.counterfactual_label}' differs from the label in no "
                           "row of test_data_path.")
    for setting in settings:
        check_model(fill_in("model_path", config.model_path, setting), {"target_layer_list": setting.target_layer},
                    {"train_data_path": train, "test_data_path": test},
                    {"target_position_list": setting.target_position},
                    answers=("labels", config.counterfactual_label))
        check_batch(setting.batch_size, len(train))
    return Prepared(train, test, device)


def run_setting(config: Config, setting: Setting, prepared: Prepared) -> Outcome:
    """Train one probe; measure what it reads and, on request, whether the model uses it."""
    train, test = prepared.train[config.variable], prepared.test[config.variable]  # (rows,) labels
    stream = ResidualStream.kept(prepared.streams, fill_in("model_path", config.model_path, setting), prepared.device)
    site = (setting.target_layer, setting.residual_location, setting.target_position)
    activations = {split: stream.capture(examples.tokens, *site)  # (rows, d_model) each
                   for split, examples in (("train", prepared.train), ("test", prepared.test))}

    probe = build_probe(activations["train"].shape[1], config.n_classes, config.intermediate_size,
                        setting.model_seed).to(prepared.device)
    shuffling = torch.Generator().manual_seed(setting.model_seed)
    train_probe(probe, activations["train"], train, lr=setting.lr, batch_size=setting.batch_size,
                num_epochs=config.num_epochs, generator=shuffling)

    # as the published figures: train without its incomplete batch, loss as the mean over batches
    train_loss, train_acc = evaluate_probe(probe, activations["train"], train,
                                           shuffled_batches(len(train), setting.batch_size, shuffling))
    test_loss, test_acc = evaluate_probe(probe, activations["test"], test, batch_size=setting.batch_size)
    figures = {"train_loss": train_loss, "test_loss": test_loss, "train_acc": train_acc, "test_acc": test_acc,
               "majority_test_acc": majority_accuracy(train, test)}
    tables = {}
    if config.counterfactual_embeddings:
        effects, rows = try_counterfactuals(config, stream, site, probe, activations["test"], prepared.test)
        figures |= {f"counterfactual_{name}": value for name, value in effects.items()}
        if config.save_examples:
            tables["counterfactual_examples"] = rows
    return Outcome(figures, tables)


def try_counterfactuals(config: Config, stream: ResidualStream, site: tuple[int, str, int], probe: nn.Module,
                        activations: Tensor, test: Examples) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Patch in counterfactual embeddings wherever they should change the answer.

    Returns the figures, and a row for each example.
    """
    labels, wanted = test["labels"], test[config.counterfactual_label]
    changed = (labels != wanted).nonzero().flatten()  # (examples,) row numbers
    targets = test[config.counterfactual_variable][changed]
    tokens, labels, wanted = test.tokens[changed], labels[changed], wanted[changed]

    embeddings = counterfactual_embeddings(probe, activations[changed], targets,
                                           num_steps=config.cf_num_epochs, lr=config.cf_lr)
    measured = measure_patches(probe, embeddings, targets, clean=stream.answers(tokens),
                               patched=stream.patched_answers(tokens, *site, embeddings),
                               labels=labels, counterfactual_labels=wanted)
    means = {name: values.double().mean().item() for name, values in measured.items()}
    means["average_logit_diff"] = means.pop("logit_diff")
    columns = {"row": changed, "label": labels, "cf_label": wanted, "target": targets, **measured}
    rows = [dict(zip(columns, values)) for values in zip(*(column.tolist() for column in columns.values()))]
    return means | {"dataset_size": len(changed)}, rows


def side_tables(config: Config) -> list[str]:
    return ["counterfactual_examples"] if config.counterfactual_embeddings and config.save_examples else []


SCRIPT = Script("probing", Config, prepare, run_setting, side_tables=side_tables)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
