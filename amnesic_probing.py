"""Amnesic probing: erase a variable from the residual stream with LEACE; can the model still answer?

    python amnesic_probing.py --config configs/Disambiguation/amnesic/a2.yaml

1. Capture the residual stream, after attention (resid_mid) or after the MLP (resid_post).
2. Fit LEACE: the smallest affine change after which no linear classifier reads the variable.
3. How well does a linear probe read the variable before and after?
4. Patch the erased activations in and see how often the model is still right.

The published figures fit an eraser on each split itself (columns train_... and test_...); the
held-out ones fit it on train and apply it to test. With two tasks, the eraser of one is also
applied to the other (diff_...).
"""

import sys
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor

from interp.config import Count, ModelSweep, NonEmpty, NonNegative, Positive, Text, Whole
from interp.erasure import decodability, fit_eraser
from interp.examples import Examples, check_classes, check_model, check_range, read_examples
from interp.experiment import Outcome, Script, Setting, fill_in, main
from interp.residual_stream import ResidualStream

SPLITS = ("train", "test")


class Config(ModelSweep):
    variable: Text
    train_data_path: Text
    test_data_path: Text
    multitask: bool = False
    t2_train_data_path: Text | None = None
    t2_test_data_path: Text | None = None

    target_layer_list: NonEmpty[NonNegative] = [0]
    target_position_list: NonEmpty[Whole] = [-1]
    residual_location_list: NonEmpty[Literal["resid_mid", "resid_post"]]
    lr_list: NonEmpty[Positive] = [0.1]
    num_epochs: Count = 100

    @model_validator(mode="after")
    def consistent(self):
        if self.multitask and not (self.t2_train_data_path and self.t2_test_data_path):
            raise ValueError("multitask needs the keys t2_train_data_path and t2_test_data_path, the other task's data")
        return self


@dataclass(frozen=True)
class Prepared:
    same: dict[str, Examples]   # the task whose variable is erased, by split
    other: dict[str, Examples]  # the other task, by split; empty without one
    device: torch.device
    streams: dict[str, ResidualStream] = field(default_factory=dict)  # the last one used


def prepare(config: Config, settings: list[Setting], device: torch.device) -> Prepared:
    """Read the data and each model's configuration; refuse what does not fit together."""
    same = {split: read_examples(f"{split}_data_path", getattr(config, f"{split}_data_path"),
                                 [config.variable, "labels"], device) for split in SPLITS}
    other = {split: read_examples(f"t2_{split}_data_path", getattr(config, f"t2_{split}_data_path"),
                                  ["labels"], device) for split in SPLITS if config.multitask}
    check_classes(config.variable, *(same[split][config.variable] for split in SPLITS))
    for examples in same.values():  # one-hot classes, of which there cannot be more than examples
        check_range("variable", config.variable, examples[config.variable], len(same["train"]))
    sequences = {f"{split}_data_path": examples for split, examples in same.items()}
    sequences |= {f"t2_{split}_data_path": examples for split, examples in other.items()}
    for setting in settings:
        check_model(fill_in("model_path", config.model_path, setting), {"target_layer_list": setting.target_layer},
                    sequences, {"target_position_list": setting.target_position})
    return Prepared(same, other, device)


def run_setting(config: Config, setting: Setting, prepared: Prepared) -> Outcome:
    """Erase the variable at one site, on each split by an eraser of its own, and on test by train's."""
    stream = ResidualStream.kept(prepared.streams, fill_in("model_path", config.model_path, setting), prepared.device)
    site = (setting.target_layer, setting.residual_location, setting.target_position)
    labels = {split: prepared.same[split][config.variable] for split in SPLITS}
    n_classes = 1 + max(int(values.max()) for values in labels.values())
    activations = {split: stream.capture(examples.tokens, *site) for split, examples in prepared.same.items()}
    erasers = {split: fit_eraser(activations[split], labels[split], n_classes) for split in SPLITS}

    def readable(activations_there: Tensor, split: str) -> float:
        return decodability(activations_there, labels[split], n_classes, lr=setting.lr, num_steps=config.num_epochs,
                            seed=setting.model_seed)

    def accuracy(examples: Examples, activations_there: Tensor | None = None) -> float:
        logits = (stream.answers(examples.tokens) if activations_there is None
                  else stream.patched_answers(examples.tokens, *site, activations_there))
        return (logits.argmax(-1) == examples["labels"]).double().mean().item()

    prefix = "same_" if config.multitask else ""
    figures = {}
    for split in SPLITS:
        figures |= {
            f"{prefix}{split}_pre_erasure_probe_acc": readable(activations[split], split),
            f"{prefix}{split}_post_erasure_probe_acc": readable(erasers[split](activations[split]), split),
            f"{prefix}{split}_vanilla_acc": accuracy(prepared.same[split]),
            f"{prefix}{split}_acc": accuracy(prepared.same[split], erasers[split](activations[split]))}
    figures |= {
        f"{prefix}heldout_post_erasure_probe_acc": readable(erasers["train"](activations["test"]), "test"),
        f"{prefix}heldout_acc": accuracy(prepared.same["test"], erasers["train"](activations["test"]))}
    for split, examples in prepared.other.items():
        others = stream.capture(examples.tokens, *site)
        figures |= {f"diff_{split}_vanilla_acc": accuracy(examples),
                    f"diff_{split}_acc": accuracy(examples, erasers[split](others))}
        if split == "test":
            figures["diff_heldout_acc"] = accuracy(examples, erasers["train"](others))
    return Outcome(figures)


SCRIPT = Script("amnesic_probing", Config, prepare, run_setting)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
