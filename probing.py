"""Probing: can a classifier read a variable off the residual stream, and does the model use what it reads?

    python probing.py --config configs/Disambiguation/linear_probing/a2.yaml
    python probing.py --config configs/SV_Agreement/linear_probing/smollm2.yaml

1. Capture the residual stream once, after attention (resid_mid) or after the MLP (resid_post).
2. Train a linear probe, or one with a hidden layer, to tell the variable's value from it.
3. Counterfactual embeddings: move each test activation until the probe reads the value that the
   variable has in its source, patch it in, run the rest of the model, and see what it answers.
"""

from typing import Literal

from pydantic import Field, model_validator

from interp.runs.command_line import answer_early
from interp.runs.config import Count, NonEmpty, Positive, Text, Whole
from interp.tasks.keys import QuestionConfig


class Config(QuestionConfig):
    n_classes: Count | None = Field(None, description="classes of the probe; by default as many as train has")
    target_position_list: NonEmpty[Whole] = Field([-1], description="the position of sequences, -1 for the last")
    residual_location_list: NonEmpty[Literal["resid_mid", "resid_post"]] = Field(description=(
        "after attention, after the MLP"))
    lr_list: NonEmpty[Positive] = Field(description="learning rate of AdamW")
    batch_size_list: NonEmpty[Count] = Field(description="examples in a batch")
    num_epochs: Count = Field(description="epochs of probe training")
    intermediate_size: Whole = Field(-1, description="neurons of a hidden ReLU layer, -1 for a linear probe")

    counterfactual_embeddings: bool = Field(False, description="try counterfactual embeddings")
    counterfactual_variable: Text | None = Field(None, description="sequences: the column with the values to read")
    counterfactual_label: Text | None = Field(None, description="sequences: the column with the answers to expect")
    other_counterfactual: bool = Field(False, description=(
        "allow a counterfactual_variable other than counter_VARIABLE, the variable that the probe reads"))
    cf_num_epochs: Count = Field(100, description="steps of AdamW that move an embedding")
    cf_lr: Positive = Field(0.1, description="their learning rate")
    save_examples: bool = Field(False, description="write a row for each embedding: counterfactual_examples.csv")

    sequence_keys = (*QuestionConfig.sequence_keys, "counterfactual_variable", "counterfactual_label")

    @model_validator(mode="after")
    def consistent(self):
        if self.intermediate_size != -1 and self.intermediate_size < 1:
            raise ValueError("intermediate_size must be -1 (a linear probe) or a number of hidden neurons")
        if (self.counterfactual_embeddings and not self.of_sentences
                and not (self.counterfactual_variable and self.counterfactual_label)):
            raise ValueError("counterfactual_embeddings needs the keys counterfactual_variable and "
                             "counterfactual_label")
        own = f"counter_{self.variable}"
        if (self.counterfactual_embeddings and not self.of_sentences and not self.other_counterfactual
                and self.counterfactual_variable != own):
            raise ValueError(f"counterfactual_variable is {self.counterfactual_variable}, but the probe reads "
                             f"{self.variable}, whose counterfactual is {own}; correct it and counterfactual_label, or "
                             "say other_counterfactual: true")
        return self


if __name__ == "__main__":  # before what follows loads torch, which takes seconds
    answer_early("probing", Config)

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from interp.experiment import Outcome, Script, main
from interp.methods.circuits import shuffled_batches
from interp.methods.counterfactual import counterfactual_embeddings, measure_patches
from interp.methods.neighbors import majority_accuracy
from interp.methods.probes import build_probe, evaluate_probe, train_probe
from interp.models.examples import Examples
from interp.models.opened import run_all
from interp.models.tail import run_on_from
from interp.runs.config import BadInput
from interp.runs.settings import Setting
from interp.tasks.question import Exchange, Question, check_batch, check_range, site_of


def prepare(config: Config, settings: list[Setting], device: torch.device) -> Question:
    """Read the data and each model's configuration; refuse what does not fit together."""
    exchange = True if config.counterfactual_label is None else Exchange(
        config.counterfactual_label, config.counterfactual_variable)
    question = Question(config, settings, device, pairs=exchange if config.counterfactual_embeddings else False)
    for setting in settings:
        data = question.data(setting)
        check_batch(setting.batch_size, len(data.train))
        check_range("n_classes", config.asked, data.train.variables[config.asked], classes_of(config, data.train))
        for examples in data.tests.values():
            if config.counterfactual_embeddings and not changed_rows(examples).numel():
                key, what = (("counterfactual_embeddings", f"exchanging '{config.asked}'") if config.of_sentences
                             else ("counterfactual_label", f"'{config.counterfactual_label}'"))
                raise BadInput(f"{key}: {what} changes the answer in no row of the test data.")
    return question


def classes_of(config: Config, train: Examples) -> int:
    return config.n_classes or 1 + int(train.variables[config.asked].max())


# ------------------------------------------------------------------------------ the method

def run_setting(config: Config, setting: Setting, question: Question) -> Outcome:
    """Train one probe; measure what it reads and, on request, whether the model uses it."""
    data = question.data(setting)
    train = data.train.variables[config.asked]  # (rows,)
    activations = question.read(setting, data.train)  # (rows, d_model)
    probe = build_probe(activations.shape[1], classes_of(config, data.train), config.intermediate_size,
                        setting.model_seed).to(question.device)
    shuffling = torch.Generator().manual_seed(setting.model_seed)
    train_probe(probe, activations, train, lr=setting.lr, batch_size=setting.batch_size,
                num_epochs=config.num_epochs, generator=shuffling)

    # as the published figures: train without its incomplete batch, loss as the mean over batches
    train_loss, train_acc = evaluate_probe(probe, activations, train,
                                           shuffled_batches(len(train), setting.batch_size, shuffling))
    figures, tables = {"train_loss": train_loss, "train_acc": train_acc}, dict[str, list[dict[str, Any]]]()
    for name, examples in data.tests.items():
        values = examples.variables[config.asked]
        loss, share = evaluate_probe(probe, question.read(setting, examples), values, batch_size=setting.batch_size)
        figures |= {f"{name}_loss": loss, f"{name}_acc": share,
                    f"majority_{name}_acc": majority_accuracy(train, values)}
    if config.counterfactual_embeddings:
        for name, examples in data.tests.items():
            effects, rows = try_counterfactuals(config, setting, question, probe, examples)
            prefix = "counterfactual_" if name == "test" else f"{name}_counterfactual_"
            figures |= {f"{prefix}{measure}": value for measure, value in effects.items()}
            if config.save_examples:
                tables.setdefault("counterfactual_examples", []).extend({"split": name} | row for row in rows)
    if config.of_sentences:
        figures |= question.vanilla(setting)
    return Outcome(figures, tables)


def try_counterfactuals(config: Config, setting: Setting, question: Question, probe: nn.Module,
                        examples: Examples) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Patch in counterfactual embeddings wherever they should change the answer.

    Returns the figures, and a row for each example.
    """
    opened, changed = question.open(setting), changed_rows(examples)  # (examples,) row numbers
    source, exchanged = examples.pairing
    targets = source.variables[config.asked][changed]
    embeddings = counterfactual_embeddings(probe, question.read(setting, examples)[changed], targets,
                                           num_steps=config.cf_num_epochs, lr=config.cf_lr)
    run_on = run_on_from(opened, examples, site_of(setting))
    measured = measure_patches(opened, probe, embeddings, targets, clean=question.answers(setting, examples)[changed],
                               patched=run_all(run_on, embeddings, changed), answer=examples.answer[changed],
                               exchanged=exchanged[changed])
    means = {name: values.double().mean().item() for name, values in measured.items()}
    means["average_logit_diff"] = means.pop("logit_diff")
    columns = {"row": changed, "label": examples.answer.right[changed], "cf_label": exchanged.right[changed],
               "target": targets, **measured}
    rows = [dict(zip(columns, values)) for values in zip(*(column.tolist() for column in columns.values()))]
    return means | {"dataset_size": len(changed)}, rows


def changed_rows(examples: Examples) -> Tensor:
    """The rows whose answer the exchange changes, (examples,)."""
    return (examples.answer.right != examples.pairing[1].right).nonzero().flatten()


def run(config: Config, settings: list[Setting], prepared: Any) -> Iterator[tuple[Setting, Outcome]]:
    return ((setting, run_setting(config, setting, prepared)) for setting in settings)


SCRIPT = Script("probing", Config, prepare, run)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
