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
    location_list: NonEmpty[Literal["attn", "mlp"]] = Field(description="after attention, after the MLP")
    token_range: Text | None = Field(None, description='the position of sequences: "2_3" for the third token')
    lr_list: NonEmpty[Positive] = Field([0.01], description="learning rate of the rotation")
    boundary_lr: Positive = Field(0.005, description="learning rate of the width")
    batch_size_list: NonEmpty[Count] = Field([128], description="pairs in a batch")
    epochs: Count = Field(250, description="epochs of search")
    orthogonal_map: Literal["cayley", "matrix_exp", "householder"] = Field("cayley", description=(
        "how the rotation is kept orthogonal"))
    save_models: bool = Field(False, description="save the alignments")
    model_dir: Text | None = Field(None, description="where to save them")

    sequence_keys = (*QuestionConfig.sequence_keys, "counterfactual_label", "token_range")
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

    @field_validator("token_range", mode="before")
    @classmethod
    def quoted(cls, value):
        if isinstance(value, int):
            raise ValueError('it wants quotes, as in "2_3": YAML reads 2_3 as a number')
        return value

    @model_validator(mode="after")
    def consistent(self):
        start, _, end = (self.token_range or "0_1").partition("_")
        if not (start.isdecimal() and end.isdecimal() and int(end) == int(start) + 1):
            raise ValueError(f"the key 'token_range' must span one position, as \"2_3\" does, not '{self.token_range}'")
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
from interp.models.suffix import forward_from
from interp.runs.settings import Setting, saved_files
from interp.runs.tensors import save_tensors
from interp.tasks.study import (
    Counterfactual,
    Study,
    accuracy,
    at_sites,
    portions,
    position_of,
    site_of,
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
        forward = {name: forward_from(model, pairs.base, [site_of(setting) for setting in of_model])
                   for name, pairs in data.pairs.items()}
        vanilla = vanilla_accuracies(model, data) if config.of_sentences else {}
        both = {name: pairs.both() for name, pairs in data.pairs.items()}
        rows = portions(data.train, (config.n_train, config.n_val), config.data_seed)
        for of_site, activations, _ in at_sites(model, of_model, both):
            splits = {name: AtSite(model, pairs, activations[name], forward[name][site_of(of_site[0])])
                      for name, pairs in data.pairs.items()}
            for setting in of_site:
                alignment, outcome = align(config, setting, splits, *rows)
                for file in artifacts(config, setting):
                    save_tensors(file, alignment.tensors, description(config, setting, study.path(setting)))
                yield setting, Outcome(outcome.metrics | vanilla, outcome.tables)


def description(config: Config, setting: Setting, path: str) -> dict[str, Any]:
    """What a setting's saved alignment is about, kept in its file. path: its model's."""
    variable = config.variable_name if config.of_sentences else config.variable
    return {"counterfactual_label": config.counterfactual_label, "variable": variable, "model_path": path,
            "position": position_of(config, setting), **setting._asdict()}


class AtSite:
    """The pairs of one split at a site. activations: of the bases, then of the sources, (2 pairs, d_model)."""

    def __init__(self, model: OpenModel, pairs: Pairs, activations: Tensor, forward: ForwardFrom):
        self.model, self.forward = model, forward
        self.base, self.source = activations.tensor_split(2)
        self.counterfactual = pairs.counterfactual

    def accuracy(self, alignment: Alignment, rows: Tensor | None = None) -> float:
        """Share of pairs with the counterfactual answer after the interchange, of some rows or of all."""
        rows = torch.arange(len(self.base), device=self.base.device) if rows is None else rows
        with torch.no_grad():
            states = in_batches(self.forward, alignment.intervene(self.base[rows], self.source[rows]), rows)
            return accuracy(self.model, states, self.counterfactual[rows])

    def full_accuracy(self) -> float:
        """The same, of the interchange of everything at the site."""
        return accuracy(self.model, in_batches(self.forward, self.source), self.counterfactual)

    def loss(self, activations: Tensor, rows: Tensor) -> Tensor:
        return self.model.loss(self.forward(activations, rows), self.counterfactual[rows])


def align(config: Config, setting: Setting, splits: dict[str, AtSite], rows: Tensor,
          validation: Tensor) -> tuple[Alignment, Outcome]:
    """Search for an alignment at one site; choose its epoch, and report it on the tests.

    rows, validation: pairs of train to learn from, and others to choose the epoch on.
    """
    train, tests = splits["train"], {name: split for name, split in splits.items() if name != "train"}
    chosen_on, chosen_rows = (train, validation) if config.choose_on == "validation" else (tests["test"], None)
    alignment, log = search_alignment(
        train.loss, train.base, train.source, rows, lr=setting.lr, boundary_lr=config.boundary_lr,
        batch_size=setting.batch_size, epochs=config.epochs, orthogonal_map=config.orthogonal_map,
        seed=setting.model_seed, accuracy=lambda candidate: chosen_on.accuracy(candidate, chosen_rows))
    metrics: dict[str, Any] = {}
    for name, split in tests.items():
        prefix = "" if name == "test" else f"{name}_"
        metrics[f"{prefix}interchange_intervention_acc"] = split.accuracy(alignment)
        if config.of_sentences:
            metrics[f"{prefix}full_interchange_acc"] = split.full_accuracy()
    return alignment, Outcome(metrics | {
        "val_acc": train.accuracy(alignment, validation), "boundary": alignment.width,
        "dimensions": alignment.width * len(alignment.rotation), "rotation_error": alignment.rotation_error(),
    }, {"training_log": log})


SCRIPT = Script("DAS", Config, prepare, run, artifacts)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
