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
from interp.methods.das import Alignment, interchange_hits, save_alignment, search_alignment
from interp.models.examples import Examples
from interp.models.opened import run_all
from interp.models.tail import run_on_from
from interp.runs.settings import Setting, saved_files
from interp.tasks.question import Exchange, Question, accuracy, position_of, site_of


def prepare(config: Config, settings: list[Setting], device: torch.device) -> Question:
    """Read the data and each model's configuration; refuse what does not fit together."""
    question = Question(config, settings, device, pairs=(
        True if config.counterfactual_label is None else Exchange(config.counterfactual_label)))
    question.check_portions("n_train", "n_val")
    return question


artifacts = partial(saved_files, "alignment")


# ------------------------------------------------------------------------------ the method

def run_setting(config: Config, setting: Setting, question: Question) -> Outcome:
    """Search for an alignment at one site; choose its epoch, and report it on test."""
    opened, data = question.open(setting), question.data(setting)
    rows, validation = question.portions(data.train, config.n_train, config.n_val)

    def activations(examples: Examples) -> tuple[Tensor, Tensor]:
        """Activations of bases and of sources, (rows, d_model) each."""
        return question.read(setting, examples), question.read(setting, examples.pairing[0])

    def hits(alignment: Alignment, examples: Examples, rows: Tensor | None = None) -> Tensor:
        """Whether the model gives the exchanged answer, for each pair: (rows,) booleans."""
        return interchange_hits(alignment, opened, run_on_from(opened, examples, site_of(setting)),
                                *activations(examples), examples.pairing[1], rows)

    judge, judged = ((data.train, validation) if config.choose_on == "validation" else (data.tests["test"], None))
    alignment, log = search_alignment(
        run_on_from(opened, data.train, site_of(setting)), lambda states, own: opened.loss(
            states, data.train.pairing[1][own]), *activations(data.train), rows, lr=setting.lr,
        boundary_lr=config.boundary_lr, batch_size=setting.batch_size, epochs=config.epochs,
        orthogonal_map=config.orthogonal_map, seed=setting.model_seed,
        accuracy=lambda candidate: hits(candidate, judge, judged).double().mean().item())
    for file in artifacts(config, setting):
        save_alignment(alignment, file, {
            "counterfactual_label": config.counterfactual_label, "variable": config.variable or (
                config.asked if config.of_sentences else None), "model_path": question.path(setting),
            "position": position_of(config, setting), **setting._asdict()})
    figures: dict[str, Any] = {}
    for name, examples in data.tests.items():
        prefix = "" if name == "test" else f"{name}_"
        figures[f"{prefix}interchange_intervention_acc"] = hits(alignment, examples).double().mean().item()
        if config.of_sentences:  # what exchanging everything at the site does
            full = run_all(run_on_from(opened, examples, site_of(setting)), activations(examples)[1])
            figures[f"{prefix}full_interchange_acc"] = accuracy(opened, full, examples.pairing[1])
    if config.of_sentences:
        figures |= question.vanilla(setting)
    return Outcome(figures | {
        "val_acc": hits(alignment, data.train, validation).double().mean().item(),
        "boundary": alignment.width, "dimensions": alignment.width * len(alignment.rotation),
        "rotation_error": alignment.rotation_error(),
    }, {"training_log": log})


def run(config: Config, settings: list[Setting], prepared: Any) -> Iterator[tuple[Setting, Outcome]]:
    return ((setting, run_setting(config, setting, prepared)) for setting in settings)


SCRIPT = Script("DAS", Config, prepare, run, artifacts)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
