"""Amnesic probing: erase a variable from the residual stream with LEACE; can the model still answer?

    python amnesic_probing.py --config configs/Disambiguation/amnesic/a2.yaml
    python amnesic_probing.py --config configs/SV_Agreement/amnesic/smollm2.yaml

1. Capture the residual stream, after attention (resid_mid) or after the MLP (resid_post).
2. Fit LEACE: the smallest affine change after which no linear classifier reads the variable.
3. How well does a linear probe read the variable before and after?
4. Patch the erased activations in and see how often the model is still right.
5. As a control, erase as many random dimensions.

The published figures fit an eraser on each split itself (columns train_... and test_...); the
held-out ones fit it on train and apply it to test. With two tasks, the eraser of one is also
applied to the other (diff_...). Of sentences, where a split has hundreds of classes less to fit chance with, only the
held-out figures are asked for.
"""

from typing import Literal

from pydantic import Field, model_validator

from interp.runs.command_line import answer_early
from interp.runs.config import Count, DataFile, NonEmpty, NonNegative, Positive, Whole
from interp.tasks.keys import QuestionConfig

OTHER_KEYS = {"train": "t2_train_data_path", "test": "t2_test_data_path"}


class Config(QuestionConfig):
    n_classes: Count | None = Field(None, description="more classes than occur change nothing; may be left out")
    multitask: bool = Field(False, description="erase from another task's activations too")
    t2_train_data_path: DataFile | None = Field(None, description="with multitask: the other task's data to train on")
    t2_test_data_path: DataFile | None = Field(None, description="with multitask: the other task's data to test on")
    target_position_list: NonEmpty[Whole] = Field([-1], description="the position of sequences, -1 for the last")
    residual_location_list: NonEmpty[Literal["resid_mid", "resid_post"]] = Field(description=(
        "after attention, after the MLP"))
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
from interp.models.opened import run_all
from interp.models.tail import run_on_from
from interp.runs.config import BadInput
from interp.runs.settings import Setting
from interp.tasks.question import Question, accuracies, check_range, site_of


def prepare(config: Config, settings: list[Setting], device: torch.device) -> Question:
    """Read the data and each model's configuration; refuse what does not fit together."""
    question = Question(config, settings, device, extra=OTHER_KEYS.values() if config.multitask else ())
    for setting in settings:
        train, test = question.data(setting).train, question.data(setting).tests["test"]
        if len(test) < 2 and not config.of_sentences:
            raise BadInput("test_data_path: LEACE is fitted on it too, which takes two rows or more.")
        for examples in (train, *question.data(setting).tests.values()):  # one-hot: no more classes than examples
            check_range("variable", config.asked, examples.variables[config.asked], len(train))
    return question


# ------------------------------------------------------------------------------ the method

class Erasure:
    """One setting's activations, and figures before and after erasing the variable from them."""

    def __init__(self, config: Config, setting: Setting, question: Question):
        self.config, self.setting, self.question = config, setting, question
        self.opened, self.data = question.open(setting), question.data(setting)
        splits = (self.data.train, *self.data.tests.values())
        self.n_classes = 1 + max(int(examples.variables[config.asked].max()) for examples in splits)

    def activations(self, examples: Examples) -> Tensor:
        return self.question.read(self.setting, examples)  # (rows, d_model)

    def fit(self, examples: Examples) -> LeaceEraser:
        return fit_eraser(self.activations(examples), examples.variables[self.config.asked], self.n_classes,
                          self.setting.precision)

    def readable(self, examples: Examples, eraser: LeaceEraser | None = None) -> float:
        """How well a linear probe reads the variable, before or after erasure."""
        activations = self.activations(examples)
        return decodability(eraser(activations) if eraser else activations, examples.variables[self.config.asked],
                            self.n_classes, lr=self.setting.lr, num_steps=self.config.num_epochs,
                            seed=self.setting.model_seed)

    def accuracies(self, column: str, examples: Examples, eraser: LeaceEraser | None = None) -> dict[str, float]:
        """How often the model answers rightly, before or after erasure, as COLUMN, or as COLUMN_GROUP of groups."""
        states = (self.question.answers(self.setting, examples) if eraser is None else run_all(
            run_on_from(self.opened, examples, site_of(self.setting)), eraser(self.activations(examples))))
        return accuracies(self.opened, states, column, examples)


def run_setting(config: Config, setting: Setting, question: Question) -> Outcome:
    """Erase the variable at one site: on each split with its own eraser, and on the others with the one of train."""
    erasure, data = Erasure(config, setting, question), question.data(setting)
    heldout = erasure.fit(data.train)
    figures: dict[str, Any] = {}
    if not config.of_sentences:
        figures |= of_own_split(erasure, {"train": data.train, "test": data.tests["test"]}, heldout)
    prefix = "same_" if config.multitask else ""
    drawing = torch.Generator().manual_seed(setting.model_seed)
    rank = erased_rank(heldout)
    controls = [random_eraser(erasure.activations(data.train), rank, drawing)
                for _ in range(config.num_random_erasures)]
    figures["erased_rank"] = rank
    for name, examples in data.tests.items():
        own = prefix if name == "test" else f"{name}_"
        judged = data.judged.get({"test": "iid"}.get(name, name), examples)
        if config.of_sentences:
            figures[f"{own}pre_erasure_probe_acc"] = erasure.readable(examples)
            figures |= erasure.accuracies(f"{own}vanilla_acc", judged)
        figures[f"{own}heldout_post_erasure_probe_acc"] = erasure.readable(examples, heldout)
        figures |= erasure.accuracies(f"{own}heldout_acc", judged, heldout)
        draws = [erasure.accuracies(f"{own}random_heldout_acc_{{}}", judged, control) for control in controls]
        for column in draws[0] if draws else ():
            shares = torch.tensor([draw[column] for draw in draws], dtype=torch.double)
            figures[column.replace("{}", "mean")] = shares.mean().item()
            figures[column.replace("{}", "std")] = shares.std().item() if len(shares) > 1 else None
    if config.multitask:  # what the erasers of this task do to the other task's answers
        other = {split: data.extra[key] for split, key in OTHER_KEYS.items()}
        for split, eraser in (("train", heldout), ("test", erasure.fit(data.tests["test"]))):
            figures |= erasure.accuracies(f"diff_{split}_vanilla_acc", other[split])
            figures |= erasure.accuracies(f"diff_{split}_acc", other[split], eraser)
        figures |= erasure.accuracies("diff_heldout_acc", other["test"], heldout)
    return Outcome(figures)


def of_own_split(erasure: Erasure, splits: dict[str, Examples], train_eraser: LeaceEraser) -> dict[str, float]:
    """The published figures: each split erased by the eraser that was fitted on it."""
    prefix, figures = "same_" if erasure.config.multitask else "", dict[str, float]()
    for split, examples in splits.items():
        eraser = train_eraser if split == "train" else erasure.fit(examples)
        figures |= {
            f"{prefix}{split}_pre_erasure_probe_acc": erasure.readable(examples),
            f"{prefix}{split}_post_erasure_probe_acc": erasure.readable(examples, eraser),
            **erasure.accuracies(f"{prefix}{split}_vanilla_acc", examples),
            **erasure.accuracies(f"{prefix}{split}_acc", examples, eraser)}
    return figures


def run(config: Config, settings: list[Setting], prepared: Any) -> Iterator[tuple[Setting, Outcome]]:
    return ((setting, run_setting(config, setting, prepared)) for setting in settings)


SCRIPT = Script("amnesic_probing", Config, prepare, run)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
