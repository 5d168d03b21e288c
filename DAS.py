"""Boundless DAS: is there a subspace of the residual stream whose exchange exchanges the variable?

    python DAS.py --config configs/Disambiguation/DAS/a2_cf.yaml

1. Capture the residual stream of every base sequence and of its counterfactual source, once.
2. Learn a rotation and how many of its dimensions to take from the source, so that the model,
   run on from there, gives the counterfactual label.
3. Choose the epoch on validation examples, and report interchange-intervention accuracy on test.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from pydantic import field_validator, model_validator
from torch import Tensor

from interp.config import BadInput, Count, ModelSweep, NonEmpty, NonNegative, Positive, Seed, Text, project_path
from interp.das import Alignment, Head, interchange_accuracy, save_alignment, search_alignment
from interp.examples import check_model, read_examples
from interp.experiment import Outcome, Script, Setting, fill_in, main, setting_name
from interp.models import load_model
from interp.residual_stream import LastPositionTail, ResidualStream

LOCATIONS = {"attn": "resid_mid", "mlp": "resid_post"}


class Config(ModelSweep):
    counterfactual_label: Text
    train_path: Text
    test_path: Text
    n_train: Count = 2500
    n_val: Count = 1000
    data_seed: Seed = 0
    choose_on: Literal["validation", "test"] = "validation"

    target_layer_list: NonEmpty[NonNegative] = [0]
    location_list: NonEmpty[Literal["attn", "mlp"]]
    token_range: Text
    lr_list: NonEmpty[Positive] = [0.01]
    boundary_lr: Positive = 0.005
    batch_size_list: NonEmpty[Count] = [128]
    epochs: Count = 250
    orthogonal_map: Literal["cayley", "matrix_exp", "householder"] = "cayley"
    save_models: bool = False
    model_dir: Text | None = None

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
        self.position()
        if self.save_models and self.model_dir is None:
            raise ValueError("save_models needs the key 'model_dir', the folder for the alignments")
        return self

    def position(self) -> int:
        """The one position that token_range, "2_3", spans."""
        start, _, end = self.token_range.partition("_")
        if not (start.isdecimal() and end.isdecimal() and int(end) == int(start) + 1):
            raise ValueError(f"the key 'token_range' must span one position, as \"2_3\" does, not '{self.token_range}'")
        return int(start)


@dataclass(frozen=True)
class Pairs:
    """Base sequences, their sources (rows, positions) and the labels that an exchange should give (rows,)."""

    base: Tensor
    source: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Prepared:
    train: Pairs
    test: Pairs
    device: torch.device
    streams: dict[str, ResidualStream] = field(default_factory=dict)  # the last one used


@dataclass(frozen=True)
class OpenSite:
    """Activations of base and source at a site (rows, d_model), computed once, and what lies above it."""

    base: Tensor
    source: Tensor
    labels: Tensor
    head: Head

    def accuracy(self, alignment: Alignment, rows: Tensor) -> float:
        return interchange_accuracy(alignment, self.head, self.base, self.source, self.labels, rows)


def prepare(config: Config, settings: list[Setting], device: torch.device) -> Prepared:
    """Read the data and each model's configuration; refuse what does not fit together."""
    label, paths = config.counterfactual_label, {key: getattr(config, key) for key in ("train_path", "test_path")}
    bases = {key: read_examples(key, path, [label], device) for key, path in paths.items()}
    sources = {key: read_examples(key, path, [], device, sequence="counterfactual_data")
               for key, path in paths.items()}
    for setting in settings:
        for sequences in (bases, sources):
            check_model(fill_in("model_path", config.model_path, setting), {"target_layer_list": setting.target_layer},
                        sequences, {"token_range": config.position()}, answers=(label,))
    count = len(bases["train_path"])
    if config.n_train + config.n_val > count:
        raise BadInput(f"n_train: {config.n_train} and n_val {config.n_val} are more than the {count} rows of "
                       "train_path.")
    return Prepared(*(Pairs(bases[key].tokens, sources[key].tokens, bases[key][label]) for key in paths), device)


def run_setting(config: Config, setting: Setting, prepared: Prepared) -> Outcome:
    """Search an alignment at one site; choose its epoch, and report it on test."""
    path = fill_in("model_path", config.model_path, setting)
    stream = ResidualStream.kept(prepared.streams, path, prepared.device)
    site = (setting.target_layer, LOCATIONS[setting.location], config.position())
    train, test = (open_site(stream, path, site, pairs) for pairs in (prepared.train, prepared.test))

    drawing = torch.Generator().manual_seed(config.data_seed)
    order = torch.randperm(len(train.labels), generator=drawing).to(prepared.device)
    rows, validation = order[:config.n_train], order[config.n_train:config.n_train + config.n_val]
    everything = torch.arange(len(test.labels), device=prepared.device)
    judge, judged = (train, validation) if config.choose_on == "validation" else (test, everything)

    alignment, log = search_alignment(
        train.head, train.base, train.source, train.labels, rows, lr=setting.lr,
        boundary_lr=config.boundary_lr, batch_size=setting.batch_size, epochs=config.epochs,
        orthogonal_map=config.orthogonal_map, seed=setting.model_seed,
        accuracy=lambda candidate: judge.accuracy(candidate, judged))
    for file in artifacts(config, setting):
        save_alignment(alignment, file, {"counterfactual_label": config.counterfactual_label, "model_path": path,
                                         "position": config.position(), **setting._asdict()})
    return Outcome({
        "interchange_intervention_acc": test.accuracy(alignment, everything),
        "val_acc": train.accuracy(alignment, validation),
        "boundary": alignment.width, "dimensions": alignment.width * len(alignment.rotation),
        "rotation_error": alignment.rotation_error(),
    }, {"training_log": log})


def artifacts(config: Config, setting: Setting) -> list[Path]:
    """The file of a setting's alignment, where alignments are saved."""
    return ([project_path(config.model_dir) / f"alignment_{setting_name(setting)}.safetensors"]
            if config.save_models else [])


def open_site(stream: ResidualStream, path: str, site: tuple[int, str, int], pairs: Pairs) -> OpenSite:
    """Capture base and source; at the last position run only what lies above, elsewhere the whole model."""
    base, source = (stream.capture(tokens, *site) for tokens in (pairs.base, pairs.source))
    layer, location, position = site
    if position == pairs.base.shape[1] - 1:
        head = LastPositionTail(load_model("model_path", path, base.device), pairs.base, layer, location).logits
    else:
        def head(activations: Tensor, rows: Tensor) -> Tensor:
            return stream.patched_logits(pairs.base[rows], *site, activations)
    return OpenSite(base, source, pairs.labels, head)


SCRIPT = Script("DAS", Config, prepare, run_setting, artifacts, side_tables=lambda config: ["training_log"])

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
