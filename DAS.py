"""Boundless DAS: is there a subspace of the residual stream whose exchange exchanges the variable?

    python DAS.py --config configs/Disambiguation/DAS/a2_cf.yaml
    python DAS.py --config configs/SV_Agreement/DAS/smollm2.yaml

1. Capture the residual stream of every base and of its source, once.
2. Learn a rotation and how many of its dimensions to take from the source, so that the model,
   run on from there, gives the answer that exchanging the variable should give.
3. Choose the epoch on validation examples, and report interchange-intervention accuracy on test.
"""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from interp.runs.command_line import answer_early
from interp.runs.config import Count, NonEmpty, Positive, Text
from interp.tasks.keys import QuestionConfig


class Config(QuestionConfig):
    counterfactual_label: Text | None = Field(None, description=(
        "sequences: the column with the answers after an exchange"))
    n_train: Count = Field(2500, description="pairs to learn from")
    n_val: Count = Field(1000, description="pairs to choose the epoch on")
    choose_on: Literal["validation", "test"] = Field("validation", description="the pairs that the epoch is chosen on")
    location_list: NonEmpty[Literal["attn", "mlp", "resid_pre", "attn_out", "mlp_out"]] = Field(description=(
        "after attention, after the MLP, or another site"))
    lr_list: NonEmpty[Positive] = Field([0.01], description="learning rate of the rotation")
    boundary_lr: Positive = Field(0.005, description="learning rate of the width")
    batch_size_list: NonEmpty[Count] = Field([128], description="pairs in a batch")
    epochs: Count = Field(250, description="epochs of search")
    orthogonal_map: Literal["cayley", "matrix_exp", "householder"] = Field("cayley", description=(
        "how the rotation is kept orthogonal"))
    save_models: bool = Field(False, description="save the alignments")
    model_dir: Text | None = Field(None, description="where to save them")

    sequence_keys = (*QuestionConfig.sequence_keys, "counterfactual_label")
    needs_variable = False

    @field_validator("counterfactual_label", mode="before")
    @classmethod
    def one_label(cls, value):
        """The paper's configs give a list of one."""
        if isinstance(value, list):
            if len(value) != 1:
                raise ValueError("give one counterfactual label a config")
            return value[0]
        return value

    @model_validator(mode="after")
    def consistent(self):
        if not self.of_sentences and self.counterfactual_label is None:
            raise ValueError("the key 'counterfactual_label' is missing")
        return self


if __name__ == "__main__":  # before what follows loads torch, which takes seconds
    answer_early("DAS", Config)

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from interp.experiment import Outcome, Script, main
from interp.methods.das import Alignment, search_alignment
from interp.models.examples import Pairs
from interp.models.open_model import ForwardFrom, OpenModel, in_batches
from interp.runs.settings import Setting, saved_files
from interp.runs.tensors import save_tensors
from interp.tasks.study import (
    Counterfactual,
    Study,
    accuracy,
    at_sites,
    portions,
    vanilla_accuracies,
)


def prepare(config: Config, settings: list[Setting], device: torch.device) -> Study:
    """Read the data and each model's configuration; refuse what does not fit together."""
    label = config.counterfactual_label
    counterfactuals = {config.variable_name: Counterfactual(label)} if label else {}
    study = Study(config, settings, device, counterfactuals=counterfactuals, paired=True)
    study.check_portions("n_train", "n_val")
    return study


artifacts = partial(saved_files, "alignment")


# ------------------------------------------------------------------------------ the method

def run(config: Config, settings: list[Setting], study: Study) -> Iterator[tuple[Setting, Outcome]]:
    """Of each model read the activations of bases and sources at every site, and search for an alignment there."""
    for model, data, of_model in study.models(settings):
        train, tests = data.pairs["train"], {name: pairs for name, pairs in data.pairs.items() if name != "train"}
        rows, validation = portions(data.train, (config.n_train, config.n_val), config.data_seed)
        splits = {"train": train[rows], "validation": train[validation], **tests}
        vanilla = vanilla_accuracies(model, data, config.position_list) if config.of_sentences else {}
        for at in at_sites(model, of_model, splits, forward=splits):
            here = {name: PairsAtSite(model, at.shown[name], at.activations[name], at.forward[name]) for name in splits}
            for setting in at.settings:
                alignment, outcome = align(config, setting, here)
                for file in artifacts(config, setting):
                    save_tensors(file, alignment.tensors, description(config, setting, study.path(setting)))
                of_position = vanilla.get(setting.position, {}) | at.left_out
                yield setting, Outcome(outcome.metrics | of_position, outcome.tables)


def description(config: Config, setting: Setting, path: str) -> dict[str, Any]:
    """What a setting's saved alignment is about, kept in its file. path: its model's."""
    variable = config.variable_name if config.of_sentences else config.variable
    return {"counterfactual_label": config.counterfactual_label, "variable": variable, "model_path": path,
            **setting._asdict()}


class PairsAtSite:
    """The pairs of one split at a site. activations: of the bases, then of the sources, (2 pairs, d_model)."""

    def __init__(self, model: OpenModel, pairs: Pairs, activations: Tensor, forward: ForwardFrom):
        self.model, self.forward = model, forward
        self.base, self.source = activations.tensor_split(2)
        self.counterfactual = pairs.counterfactual

    @torch.no_grad()
    def accuracy(self, alignment: Alignment) -> float:
        """Share of pairs with the counterfactual answer after the interchange."""
        states = in_batches(self.forward, alignment.intervene(self.base, self.source))
        return accuracy(self.model, states, self.counterfactual)

    def full_accuracy(self) -> float:
        """The same, of the interchange of everything at the site."""
        return accuracy(self.model, in_batches(self.forward, self.source), self.counterfactual)

    def loss(self, activations: Tensor, rows: Tensor) -> Tensor:
        return self.model.loss(self.forward(activations, rows), self.counterfactual[rows])


def align(config: Config, setting: Setting, splits: dict[str, PairsAtSite]) -> tuple[Alignment, Outcome]:
    """Search for an alignment at one site; choose its epoch, and report it on the tests."""
    train, validation, *_ = splits.values()
    tests = {name: split for name, split in splits.items() if name not in ("train", "validation")}
    chosen_on = tests["test"] if config.choose_on == "test" else validation
    alignment, log = search_alignment(
        train.loss, train.base, train.source, lr=setting.lr, boundary_lr=config.boundary_lr,
        batch_size=setting.batch_size, epochs=config.epochs, orthogonal_map=config.orthogonal_map,
        seed=setting.model_seed, accuracy=chosen_on.accuracy)
    metrics: dict[str, Any] = {}
    for name, split in tests.items():
        prefix = "" if name == "test" else f"{name}_"
        metrics[f"{prefix}interchange_intervention_acc"] = split.accuracy(alignment)
        if config.of_sentences:
            metrics[f"{prefix}full_interchange_acc"] = split.full_accuracy()
    return alignment, Outcome(metrics | {
        "val_acc": validation.accuracy(alignment), "boundary": alignment.width,
        "dimensions": alignment.width * len(alignment.rotation), "rotation_error": alignment.rotation_error(),
    }, {"training_log": log})


SCRIPT = Script("DAS", Config, prepare, run, artifacts)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
