"""Amnesic probing: erase a variable from the residual stream with LEACE; can the model still answer?

    python amnesic_probing.py --config configs/Disambiguation/amnesic/a2.yaml
    python amnesic_probing.py --config configs/SV_Agreement/amnesic/smollm2.yaml

1. Capture the residual stream, after attention (resid_mid) or after the MLP (resid_post).
2. Fit LEACE: the smallest affine change after which no linear classifier reads the variable.
3. How well does a linear probe read the variable before and after?
4. Patch the erased activations in and see how often the model is still right.
5. As a control, erase as many random dimensions.

The published values fit an eraser on each split itself (columns train_... and test_...); the
held-out ones fit it on train and apply it to test (columns ..._decodability: the probe too). With
two tasks, the eraser of one is also applied to the other (diff_...). Of sentences, where a split
has hundreds of classes less to fit chance with, only the held-out values are wanted.
"""

from typing import Literal

from pydantic import Field, model_validator

from interp.runs.command_line import answer_early
from interp.runs.config import Count, DataFile, NonEmpty, NonNegative, Positive
from interp.tasks.keys import Locations, QuestionConfig

OTHER_KEYS = {"train": "t2_train_data_path", "test": "t2_test_data_path"}


class Config(QuestionConfig):
    n_classes: Count | None = Field(None, description="more classes than occur change nothing; may be left out")
    multitask: bool = Field(False, description="erase from another task's activations too")
    t2_train_data_path: DataFile | None = Field(None, description="with multitask: the other task's data to train on")
    t2_test_data_path: DataFile | None = Field(None, description="with multitask: the other task's data to test on")
    residual_location_list: Locations
    lr_list: NonEmpty[Positive] = Field([0.1], description="learning rate of the probe that reads before and after")
    num_epochs: Count = Field(100, description="its full-batch steps")
    precision_list: NonEmpty[Literal["float64", "float32"]] = Field(["float64"], description=(
        "of the fit; float32, as published, erases what is not there where activations are small. `precision: float32` "
        "says the same of one"))
    num_random_erasures: NonNegative = Field(1, description="how many times to erase as many random dimensions")

    sequence_keys = (*QuestionConfig.sequence_keys, "multitask", *OTHER_KEYS.values())

    def reads(self, key):
        return self.multitask or key not in OTHER_KEYS.values()

    @model_validator(mode="after")
    def consistent(self):
        if self.multitask and not (self.t2_train_data_path and self.t2_test_data_path):
            raise ValueError("multitask needs the keys t2_train_data_path and t2_test_data_path, the other task's data")
        return self


if __name__ == "__main__":  # before what follows loads torch, which takes seconds
    answer_early("amnesic_probing", Config)

import sys
from collections.abc import Iterator
from typing import Any

import torch
from concept_erasure import LeaceEraser
from torch import Tensor

from interp.experiment import Outcome, Script, main
from interp.methods.erasure import decodability, erased_rank, fit_eraser, random_eraser
from interp.models.examples import Examples
from interp.models.open_model import OpenModel, in_batches
from interp.runs.config import BadInput
from interp.runs.settings import Setting
from interp.tasks.study import AtSite, Data, Study, accuracies, at_sites, check_range


def prepare(config: Config, settings: list[Setting], device: torch.device) -> Study:
    """Read the data and each model's configuration; refuse what does not fit together."""
    study = Study(config, settings, device, extra=OTHER_KEYS.values() if config.multitask else ())
    for data in study.data_by_key.values():
        if len(data.tests["test"]) < 2 and not config.of_sentences:
            raise BadInput("test_data_path: LEACE is fitted on it too, which takes two rows or more.")
        for examples in (data.train, *data.tests.values()):  # one-hot: no more classes than examples
            check_range("variable", config.variable_name, examples.variables[config.variable_name], len(data.train))
    return study


# ------------------------------------------------------------------------------ the method

def run(config: Config, settings: list[Setting], study: Study) -> Iterator[tuple[Setting, Outcome]]:
    """Of each model read the activations of all splits at every site, and erase the variable there."""
    for model, data, of_model in study.models(settings):
        splits = splits_of(config, data)
        clean = {name: model.final_states(examples) for name, examples in splits.items()}
        for at in at_sites(model, of_model, splits, forward=splits):
            for setting in at.settings:
                metrics = erase(config, Erasure(config, setting, model, at, clean), data)
                yield setting, Outcome(metrics | at.left_out)


def splits_of(config: Config, data: Data) -> dict[str, Examples]:
    """All rows that something is erased from, by name.

    A sentence is probed once and evaluated in every row of it: `evaluated_TEST`, if these are more.
    """
    every = {name: data.evaluated["iid" if name == "test" and config.of_sentences else name] for name in data.tests}
    evaluated = {f"evaluated_{name}": examples for name, examples in every.items()
                 if len(examples) > len(data.tests[name])}
    other = {f"diff_{split}": data.extra[key] for split, key in OTHER_KEYS.items()} if config.multitask else {}
    return {"train": data.train, **data.tests, **evaluated, **other}


class Erasure:
    """One setting's activations by split, and metrics before and after erasing the variable from them."""

    def __init__(self, config: Config, setting: Setting, model: OpenModel, at: AtSite, clean: dict[str, Tensor]):
        self.config, self.setting, self.model, self.splits = config, setting, model, at.shown
        self.activations, self.forward = at.activations, at.forward
        self.clean = {name: clean[name][rows] for name, rows in at.rows.items()}
        self.n_classes = 1 + max(int(examples.variables[config.variable_name].max()) for examples in at.shown.values()
                                 if config.variable_name in examples.variables)

    def fit(self, split: str) -> LeaceEraser:
        values = self.splits[split].variables[self.config.variable_name]
        return fit_eraser(self.activations[split], values, self.n_classes, self.setting.precision)

    def readable(self, split: str, eraser: LeaceEraser | None = None, heldout: str | None = None) -> float:
        """How well a linear probe reads the variable, before or after erasure, where it is trained or held out."""
        known = {name: (eraser(self.activations[name]) if eraser else self.activations[name],
                        self.splits[name].variables[self.config.variable_name])
                 for name in (split, heldout) if name is not None}
        return decodability(*known[split], self.n_classes, lr=self.setting.lr, num_steps=self.config.num_epochs,
                            seed=self.setting.model_seed, heldout=known[heldout] if heldout else None)

    def accuracies(self, column: str, split: str, eraser: LeaceEraser | None = None) -> dict[str, float]:
        """How often the model answers correctly, before or after erasure, as COLUMN, or as COLUMN_GROUP of groups."""
        states = self.clean[split] if eraser is None else in_batches(
            self.forward[split], eraser(self.activations[split]))
        return accuracies(self.model, states, column, self.splits[split])


def erase(config: Config, erasure: Erasure, data: Data) -> dict[str, Any]:
    """Erase the variable at one site: on each split with the eraser fitted on it, and with the one of train."""
    heldout = erasure.fit("train")
    metrics: dict[str, Any] = {} if config.of_sentences else of_same_split(erasure, heldout)
    prefix = "same_" if config.multitask else ""
    drawing = torch.Generator().manual_seed(erasure.setting.model_seed)
    metrics["erased_rank"] = rank = erased_rank(heldout)
    controls = [random_eraser(erasure.activations["train"], rank, drawing) for _ in range(config.num_random_erasures)]
    for name in data.tests:
        column = prefix if name == "test" else f"{name}_"
        evaluated = f"evaluated_{name}" if f"evaluated_{name}" in erasure.splits else name
        if config.of_sentences:
            metrics[f"{column}pre_erasure_probe_acc"] = erasure.readable(name)
            metrics |= erasure.accuracies(f"{column}vanilla_acc", evaluated)
        metrics[f"{column}heldout_post_erasure_probe_acc"] = erasure.readable(name, heldout)
        for when, eraser in (("pre", None), ("post", heldout)):
            metrics[f"{column}heldout_{when}_erasure_decodability"] = erasure.readable("train", eraser, name)
        metrics |= erasure.accuracies(f"{column}heldout_acc", evaluated, heldout)
        draws = [erasure.accuracies(f"{column}random_heldout_acc_{{}}", evaluated, control) for control in controls]
        for drawn in draws[0] if draws else ():
            shares = torch.tensor([draw[drawn] for draw in draws], dtype=torch.double)
            metrics[drawn.replace("{}", "mean")] = shares.mean().item()
            metrics[drawn.replace("{}", "std")] = shares.std().item() if len(shares) > 1 else None
    if config.multitask:  # what the erasers of this task do to the other task's answers
        for split, eraser in (("train", heldout), ("test", erasure.fit("test"))):
            metrics |= erasure.accuracies(f"diff_{split}_vanilla_acc", f"diff_{split}")
            metrics |= erasure.accuracies(f"diff_{split}_acc", f"diff_{split}", eraser)
        metrics |= erasure.accuracies("diff_heldout_acc", "diff_test", heldout)
    return metrics


def of_same_split(erasure: Erasure, train_eraser: LeaceEraser) -> dict[str, float]:
    """The published values: each split erased by the eraser that was fitted on it."""
    prefix, metrics = "same_" if erasure.config.multitask else "", dict[str, float]()
    for split, eraser in (("train", train_eraser), ("test", erasure.fit("test"))):
        metrics |= {
            f"{prefix}{split}_pre_erasure_probe_acc": erasure.readable(split),
            f"{prefix}{split}_post_erasure_probe_acc": erasure.readable(split, eraser),
            **erasure.accuracies(f"{prefix}{split}_vanilla_acc", split),
            **erasure.accuracies(f"{prefix}{split}_acc", split, eraser)}
    return metrics


SCRIPT = Script("amnesic_probing", Config, prepare, run)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
