"""Probing: can a classifier read a variable off the residual stream, and does the model use what it reads?

    python probing.py --config configs/Disambiguation/linear_probing/a2.yaml
    python probing.py --config configs/SV_Agreement/linear_probing/smollm2.yaml

1. Capture the residual stream once, after attention (resid_mid) or after the MLP (resid_post).
2. Train a linear probe, or one with a hidden layer, to tell the variable's value from it.
3. Counterfactual embeddings: move each test activation until the probe reads the value that the
   variable has in its source, patch it in, run the rest of the model, and see what it answers.
"""

from pydantic import Field, model_validator

from interp.runs.command_line import answer_early
from interp.runs.config import Count, NonEmpty, Positive, Text, Whole
from interp.tasks.keys import Locations, QuestionConfig


class Config(QuestionConfig):
    n_classes: Count | None = Field(None, description="classes of the probe; by default as many as train has")
    residual_location_list: Locations
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
        expected = f"counter_{self.variable}"
        if (self.counterfactual_embeddings and not self.of_sentences and not self.other_counterfactual
                and self.counterfactual_variable != expected):
            raise ValueError(f"counterfactual_variable is {self.counterfactual_variable}, but the probe reads "
                             f"{self.variable}, whose counterfactual is {expected}; correct it, or say "
                             "other_counterfactual: true")
        return self


if __name__ == "__main__":  # before what follows loads torch, which takes seconds
    answer_early("probing", Config)

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from interp.experiment import Outcome, Script, main
from interp.methods.optimize import shuffled_batches
from interp.methods.probes import (
    build_probe,
    counterfactual_embeddings,
    evaluate_probe,
    majority_accuracy,
    measure_patches,
    train_probe,
)
from interp.models.examples import Examples, Pairs
from interp.models.open_model import ForwardFrom, OpenModel, in_batches
from interp.runs.config import BadInput
from interp.runs.settings import Setting
from interp.tasks.study import (
    AtSite,
    Counterfactual,
    Study,
    at_sites,
    bases_of,
    check_batch,
    check_range,
    vanilla_accuracies,
)


def prepare(config: Config, settings: list[Setting], device: torch.device) -> Study:
    """Read the data and each model's configuration; refuse what does not fit together."""
    counterfactuals = {config.variable_name: Counterfactual(config.counterfactual_label, config.counterfactual_variable)
                       } if config.counterfactual_embeddings and config.counterfactual_label else {}
    study = Study(config, settings, device, counterfactuals=counterfactuals, paired=config.counterfactual_embeddings)
    for setting in settings:
        data = study.data(setting)
        check_batch(setting.batch_size, len(data.train))
        values = data.train.variables[config.variable_name]
        check_range("n_classes", config.variable_name, values, classes_of(config, data.train))
        for name in data.tests if config.counterfactual_embeddings else ():
            if not data.pairs[name].changed().numel():
                key, what = (("counterfactual_embeddings", f"the interchange of '{config.variable_name}'")
                             if config.of_sentences else ("counterfactual_label", f"'{config.counterfactual_label}'"))
                raise BadInput(f"{key}: {what} changes the answer in no row of the test data.")
    return study


def classes_of(config: Config, train: Examples) -> int:
    return config.n_classes or 1 + int(train.variables[config.variable_name].max())


# ------------------------------------------------------------------------------ the method

def run(config: Config, settings: list[Setting], study: Study) -> Iterator[tuple[Setting, Outcome]]:
    """Of each model read the activations of train and tests at every site, and probe them."""
    for model, data, of_model in study.models(settings):
        patched = {name: data.pairs[name] for name in data.tests} if config.counterfactual_embeddings else {}
        splits: dict[str, Examples | Pairs] = {"train": data.train, **data.tests, **patched}
        clean = {name: model.final_states(pairs.base) for name, pairs in patched.items()}
        vanilla = vanilla_accuracies(model, data, config.position_list) if config.of_sentences else {}
        for at in at_sites(model, of_model, splits, forward=clean):
            for setting in at.settings:
                metrics, tables = probe(config, setting, model, at, clean)
                yield setting, Outcome(metrics | vanilla.get(setting.position, {}) | at.left_out, tables)


def probe(config: Config, setting: Setting, model: OpenModel, at: AtSite, clean: dict[str, Tensor]
          ) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Train one probe; measure what it reads and, with counterfactual embeddings, whether the model uses it.

    clean: of each test that is patched, the final hidden states without intervention, (all rows, d_model).
    """
    shown = {name: bases_of(split) for name, split in at.shown.items()}
    values = {name: examples.variables[config.variable_name] for name, examples in shown.items()}  # (rows,) each
    activations = {name: at.activations[name][:len(examples)] for name, examples in shown.items()}  # of bases
    classifier = build_probe(model.d_model, classes_of(config, shown["train"]), config.intermediate_size,
                             setting.model_seed).to(model.device)
    shuffling = torch.Generator().manual_seed(setting.model_seed)
    train_probe(classifier, activations["train"], values["train"], lr=setting.lr, batch_size=setting.batch_size,
                num_epochs=config.num_epochs, generator=shuffling)

    # as the published values: train without its incomplete batch, loss as the mean over batches
    train_loss, train_acc = evaluate_probe(classifier, activations["train"], values["train"],
                                           shuffled_batches(len(shown["train"]), setting.batch_size, shuffling))
    metrics, tables = {"train_loss": train_loss, "train_acc": train_acc}, dict[str, list[dict[str, Any]]]()
    for name in (name for name in shown if name != "train"):
        loss, share = evaluate_probe(classifier, activations[name], values[name], batch_size=setting.batch_size)
        metrics |= {f"{name}_loss": loss, f"{name}_acc": share,
                    f"majority_{name}_acc": majority_accuracy(values["train"], values[name])}
    for name, forward in at.forward.items():
        effects, rows = try_counterfactuals(config, model, classifier, at.shown[name], activations[name], forward,
                                            clean[name][at.rows[name]])
        prefix = "counterfactual_" if name == "test" else f"{name}_counterfactual_"
        metrics |= {f"{prefix}{measure}": value for measure, value in effects.items()}
        if config.save_examples:
            tables.setdefault("counterfactual_examples", []).extend({"split": name} | row for row in rows)
    return metrics, tables


def try_counterfactuals(config: Config, model: OpenModel, classifier: nn.Module, pairs: Pairs, activations: Tensor,
                        forward: ForwardFrom, clean: Tensor) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Patch in counterfactual embeddings wherever they should change the answer.

    activations, clean: of the bases, at the site and final hidden states, (pairs, d_model) each. Returns the metrics,
    and a row for each example.
    """
    changed = pairs.changed()  # (changed,) row numbers
    some, targets = pairs[changed], pairs.source.variables[config.variable_name][changed]
    embeddings = counterfactual_embeddings(classifier, activations[changed], targets,
                                           num_steps=config.cf_num_epochs, lr=config.cf_lr)
    with torch.no_grad():
        measured = measure_patches(model, classifier, embeddings, targets, clean=clean[changed],
                                   patched=in_batches(forward, embeddings, changed), pairs=some)
    means = {name: values.double().mean().item() for name, values in measured.items()}
    means["average_logit_diff"] = means.pop("logit_diff")
    columns = {"row": changed, "label": some.base.answer.right, "cf_label": some.counterfactual.right,
               "target": targets, **measured}
    rows = [dict(zip(columns, values)) for values in zip(*(column.tolist() for column in columns.values()))]
    return means | {"dataset_size": len(changed)}, rows


SCRIPT = Script("probing", Config, prepare, run)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
