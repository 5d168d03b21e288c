"""Circuit probing: does a sublayer compute a variable, in which neurons, and is it used?

    python circuit_probing.py --config configs/Disambiguation/circuit_probing/a2.yaml
    python circuit_probing.py --config configs/SV_Agreement/sv_agreement-smollm2.yaml

1. Learn a binary mask over a frozen sublayer's neurons under which its updates cluster by the
   variable: the circuit.
2. Does the circuit compute the variable? Nearest neighbors tell its value from the circuit's
   updates, and for comparison from the full sublayer's.
3. Does the model use it? Ablate the circuit and see what becomes of the model's answers; ablate
   as many random neurons outside of it for comparison.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from interp.runs.command_line import answer_early
from interp.runs.config import Count, DataFile, NonEmpty, NonNegative, Positive, Real, Text, Whole
from interp.tasks.keys import QuestionConfig

GIF_CLASSES, GIF_EXAMPLES = 10, 5
LM_KEYS = {"same": "lm_same_task_path", "different": "lm_different_task_path"}


class Config(QuestionConfig):
    operation_list: NonEmpty[Literal["attn", "mlp"]] = Field(description="the sublayers")
    lr_list: NonEmpty[Positive] = Field(description="learning rate of AdamW")
    batch_size_list: NonEmpty[Annotated[Whole, Field(ge=2)]] = Field(description=(
        "examples in a batch, which the objective depends on"))
    mask_init_list: NonEmpty[Real] = Field(description="what the mask parameters start at")
    num_epochs: Count = Field(description="epochs of mask training")
    max_temp: Annotated[Real, Field(ge=1, le=1e6)] = Field(description="the temperature grows from 1 to this")
    l0_lambda: Annotated[Real, Field(ge=0)] = Field(description="weight of the number of weights kept")

    lm_eval: bool = Field(True, description="ablate circuits and see what the model answers")
    lm_same_task_path: DataFile | None = Field(None, description=(
        "with two tasks: data of this one to evaluate answers on"))
    lm_different_task_path: DataFile | None = Field(None, description="with two tasks: data of the other task")
    ablate_at: Literal["everywhere", "position"] = Field("everywhere", description=(
        "ablate circuits at all tokens, or leave out what they add at the position alone"))
    num_random_ablations: NonNegative = Field(0, description="how many times to ablate as many random neurons")
    save_models: bool = Field(False, description="save the circuits")
    model_dir: Text | None = Field(None, description="where to save them")
    gif: bool = Field(False, description="animate the updates while the mask is learned")
    gif_interval: Count = Field(10, description="epochs between frames")
    partial_sublayers: bool = Field(False, description=(
        "mask the linear maps alone of a sublayer that has further weights, such as those of experts"))
    layers_at_once: Count | None = Field(None, description=(
        "layers whose activations are kept from one pass; by default as many as cache_gib holds"))

    sequence_keys = (*QuestionConfig.sequence_keys, *LM_KEYS.values())

    def reads(self, key):
        return self.of_two_tasks or key not in LM_KEYS.values()

    @property
    def of_two_tasks(self) -> bool:
        """Whether answers are evaluated on this task and on the other one."""
        return self.task == "multitask" and self.lm_eval

    @model_validator(mode="after")
    def consistent(self):
        if self.of_two_tasks and not (self.lm_same_task_path and self.lm_different_task_path):
            raise ValueError("the task 'multitask' needs the keys lm_same_task_path and lm_different_task_path, "
                             "the data to evaluate on (or lm_eval: false)")
        return self


if __name__ == "__main__":  # before what follows loads torch, which takes seconds
    answer_early("circuit_probing", Config)

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.experiment import Outcome, Script, main
from interp.methods.circuits import draw_references, find_circuit, mean_loss, nearest_neighbor_accuracy
from interp.methods.masks import Circuit, ImpossibleAblation, save_circuit
from interp.methods.optimize import batches_in_order, shuffled_batches
from interp.methods.probes import majority_accuracy
from interp.methods.table import ABLATION_COLUMNS
from interp.models.examples import Examples
from interp.models.loading import load_tokenizer
from interp.models.open_model import RESID_PRE, OpenModel, in_batches
from interp.models.replay import Replay, all_updates, replay
from interp.models.sublayers import Masks, Sublayer, find_sublayer, masked
from interp.models.suffix import final_states_from
from interp.plotting import UpdateAnimation
from interp.runs.config import BadInput, project_path
from interp.runs.files import write_table
from interp.runs.settings import Setting, saved_files, setting_name
from interp.tasks.study import AtSite, Data, Study, accuracies, at_sites, check_batch


def prepare(config: Config, settings: list[Setting], device: torch.device) -> Study:
    """Read the data and each model's configuration; refuse what does not fit together."""
    study = Study(config, settings, device, extra=LM_KEYS.values() if config.of_two_tasks else (), masks=True)
    for setting in settings:
        check_batch(setting.batch_size, len(study.data(setting).train))
    if config.gif and len(study.data(settings[0]).tests["test"]) < 2:
        raise BadInput("gif: an animation needs at least two test examples.")
    return study


artifacts = partial(saved_files, "circuit")


# ------------------------------------------------------------------------------ the loops

@dataclass(frozen=True)
class AtSublayer:
    """A sublayer, and what it is asked with.

    replays: by split, the sublayer on the rows that a circuit is learned from and read in. labels: the variable there,
    (rows,). evaluated: what the model's answers are evaluated on, by the name that columns carry. full: the unablated
    model's final hidden states there, (rows, d_model). without: what they are without the neurons that masks ablate.
    """

    model: OpenModel
    sublayer: Sublayer
    replays: dict[str, Replay]
    labels: dict[str, Tensor]
    evaluated: dict[str, Examples]
    full: dict[str, Tensor]
    without: Callable[[Masks], dict[str, Tensor]]


def run(config: Config, settings: list[Setting], study: Study) -> Iterator[tuple[Setting, Outcome]]:
    """Read what enters each model's layers, of as many as memory holds at once; find a circuit in each sublayer."""
    at_once = config.layers_at_once and config.layers_at_once * len(config.operation_list)
    for model, data, of_model in study.models(settings):
        splits, evaluated = {"train": data.train, **data.tests}, evaluated_by(config, data)
        full = {name: model.final_states(examples) for name, examples in evaluated.items()}
        keys = {name: f"evaluated {name}" for name in evaluated}  # of these rows among all that are read
        shown = splits | {keys[name]: examples for name, examples in evaluated.items()}
        forward = keys.values() if config.ablate_at == "position" else ()
        for at in at_sites(model, of_model, shown, forward, entering=True, at_once=at_once):
            of_site = at_sublayer(config, model, at, [*splits], keys, full)
            for setting in at.settings:
                outcome = probe_sublayer(config, setting, of_site, study.path(setting))
                yield setting, replace(outcome, metrics=outcome.metrics | at.left_out)


def at_sublayer(config: Config, model: OpenModel, at: AtSite, splits: list[str], keys: dict[str, str],
                full: dict[str, Tensor]) -> AtSublayer:
    """keys: of what is evaluated, by its name. full: the unablated model's final hidden states of all these rows."""
    setting = at.settings[0]
    sublayer = find_sublayer(model, setting.target_layer, setting.operation, config.partial_sublayers)
    replays = {key: replay(model, sublayer, at.shown[key], at.entering[key]) for key in (*splits, *at.forward)}

    def without(masks: Masks) -> dict[str, Tensor]:
        if config.ablate_at == "position":  # the masked sublayer's update in the place of its own
            return {name: in_batches(at.forward[key], all_updates(replays[key], masks, len(at.rows[key])))
                    for name, key in keys.items()}
        with masked(sublayer, masks):
            return {name: final_states_from(model, at.shown[key], sublayer.layer, at.entering[key])
                    if RESID_PRE in model.suffix else model.final_states(at.shown[key]) for name, key in keys.items()}

    return AtSublayer(model, sublayer, {name: replays[name] for name in splits},
                      {name: at.shown[name].variables[config.variable_name] for name in splits},
                      {name: at.shown[key] for name, key in keys.items()},
                      {name: full[name][at.rows[key]] for name, key in keys.items()}, without)


def evaluated_by(config: Config, data: Data) -> dict[str, Examples]:
    """What answers are evaluated on, by the name that columns carry."""
    if config.of_two_tasks:
        return {name: data.extra[key] for name, key in LM_KEYS.items()}
    return data.evaluated if config.lm_eval else {}


# ------------------------------------------------------------------------------ the method

def probe_sublayer(config: Config, setting: Setting, at: AtSublayer, path: str) -> Outcome:
    """Find one sublayer's circuit for the variable; measure what it holds and what it does. path: the model's."""
    labels, replays, everything = at.labels, at.replays, at.sublayer.full_masks()
    train, test = labels["train"], labels["test"]  # (rows,) each
    animation = Animation(config, test, replays["test"], everything) if config.gif else None

    shuffling = torch.Generator().manual_seed(setting.model_seed)
    circuit = find_circuit(
        at.sublayer, replays["train"], train, lr=setting.lr, batch_size=setting.batch_size,
        num_epochs=config.num_epochs, mask_init=setting.mask_init, max_temp=config.max_temp,
        l0_lambda=config.l0_lambda, generator=shuffling, after_epoch=animation)

    updates, full = ({name: all_updates(replayed, masks, len(labels[name])) for name, replayed in replays.items()}
                     for masks in (circuit.masks(), everything))  # (rows, d_model) each
    metrics = {
        "train_loss": mean_loss(updates["train"], train, shuffled_batches(len(train), setting.batch_size, shuffling)),
        "test_loss": mean_loss(updates["test"], test, batches_in_order(len(test), setting.batch_size)),
        "l0_norm": circuit.l0_norm(), "l0_max": circuit.l0_max(),
        **neighbor_accuracies(config, labels, updates, prefix=""),
        **neighbor_accuracies(config, labels, full, prefix="full_model_"),
        "majority_dev_acc": majority_accuracy(train, train),
        **{f"majority_{name}_acc": majority_accuracy(train, labels[name]) for name in labels if name != "train"},
    }
    tables = {}
    if at.evaluated:
        without = at.without(circuit.ablation())
        tables["ablations"], reason = ablations(config, setting, at, circuit, without)
        metrics |= headline(config, tables["ablations"], reason)
        if config.of_sentences:
            write_qualitative(config, setting, at, without, path)
    for file in artifacts(config, setting):
        save_circuit(circuit, file, description(config, setting, path))
    if animation:
        animation.save(project_path(config.results_dir) / f"updates_{setting_name(setting)}.gif")
    return Outcome(metrics, tables)


def description(config: Config, setting: Setting, path: str) -> dict[str, Any]:
    """What a setting's saved circuit is about, kept in its file. path: its model's."""
    kept = {key: getattr(config, key) for key in ("task", "random_init", "reinit_embeddings", "layer_reinit")}
    return {"variable": config.variable_name, **kept, "model_path": path, **setting._asdict()}


def neighbor_accuracies(config: Config, labels: dict[str, Tensor], updates: dict[str, Tensor],
                        prefix: str) -> dict[str, float | None]:
    """Nearest neighbors on the rest of train ("dev") and on tests, one reference a class from train.

    labels, updates: by split, (rows,) and (rows, d_model).
    """
    train = labels["train"]
    references = draw_references(train, torch.Generator().manual_seed(config.data_seed)).to(train.device)
    rest = torch.ones_like(train, dtype=torch.bool)
    rest[references] = False
    known = updates["train"][references], train[references]
    rows = {"dev": (updates["train"][rest], train[rest])} | {
        name: (updates[name], labels[name]) for name in updates if name != "train"}
    return {f"{prefix}knn_{name}_acc": nearest_neighbor_accuracy(*known, *there) for name, there in rows.items()}


def ablations(config: Config, setting: Setting, at: AtSublayer, circuit: Circuit, without: dict[str, Tensor]
              ) -> tuple[list[dict[str, Any]], str | None]:
    """Accuracy of the whole model, without the circuit, and without random neurons instead.

    With two tasks also without the circuit's neurons in one linear map alone. without: final hidden states without the
    circuit by evaluation, (rows, d_model). Returns a row for each evaluation set and condition, and why no random
    neurons can be drawn, if so.
    """
    drawing, reason = torch.Generator().manual_seed(setting.model_seed), None
    cases: list[tuple[str, str, int | None, Masks]] = []
    if config.task == "multitask":
        cases += [("circuit", name, None, circuit.ablation((name,))) for name in at.sublayer.maps]
    try:
        cases += [("random", "all", draw, circuit.random_ablation(drawing))
                  for draw in range(config.num_random_ablations)]
    except ImpossibleAblation as error:
        reason = str(error)
    measured: list[tuple[str, str, int | None, dict[str, Tensor]]] = [
        ("full", "all", None, at.full), ("circuit", "all", None, without)]
    measured += [(condition, maps, draw, at.without(masks)) for condition, maps, draw, masks in cases]
    return [{"evaluation": group, "maps": maps, "condition": condition, "draw": draw, "accuracy": share,
             "examples": len(examples.groups.get(group.removeprefix(f"{name}_"), examples.answer.right))}
            for condition, maps, draw, states in measured for name, examples in at.evaluated.items()
            for group, share in accuracies(at.model, states[name], name, examples).items()], reason


def write_qualitative(config: Config, setting: Setting, at: AtSublayer, without: dict[str, Tensor], path: str) -> None:
    """What the model would say next after the first test batch, before and after ablation, as text."""
    tokenizer, (name, examples) = load_tokenizer("model_path", path), next(iter(at.evaluated.items()))
    first = next(iter(examples.groups.values()), torch.arange(len(examples)))[:setting.batch_size]  # (batch,)

    def said(states: Tensor) -> list[str]:
        return [" | ".join(tokenizer.batch_decode(row.unsqueeze(1))) for row in at.model.top_tokens(states[first])]

    texts = [examples.texts[row] for row in first.tolist()]
    rows = [{"sentence": text, "before": before, "after": after} for text, before, after in zip(
        texts, said(at.full[name]), said(without[name]))]
    write_table(qualitative(config, setting), rows)


def qualitative(config: Config, setting: Setting) -> Path:
    return project_path(config.results_dir) / "qualitative" / f"{setting_name(setting)}.csv"


def headline(config: Config, rows: list[dict[str, Any]], reason: str | None) -> dict[str, Any]:
    """The values of an ablation table that go into results.csv, under the published names."""
    metrics: dict[str, Any] = {}
    for evaluation in dict.fromkeys(row["evaluation"] for row in rows):
        of_set = [row for row in rows if row["evaluation"] == evaluation]
        name = {condition: column.format(evaluation) for condition, column in ABLATION_COLUMNS.items()}
        vanilla = next(row["accuracy"] for row in of_set if row["condition"] == "full")
        for row in of_set:
            if row["condition"] == "circuit":
                prefix = "" if row["maps"] == "all" else f"{row['maps']}_"
                metrics |= {f"{prefix}{name['full']}": vanilla, f"{prefix}{name['circuit']}": row["accuracy"]}
        if config.num_random_ablations:
            random = torch.tensor([row["accuracy"] for row in of_set if row["condition"] == "random"],
                                  dtype=torch.double)
            metrics[f"{name['random']}_mean"] = random.mean().item() if len(random) else None
            metrics[f"{name['random']}_std"] = random.std().item() if len(random) > 1 else None
    return metrics | ({"random_ablation_impossible": reason} if config.num_random_ablations else {})


class Animation(UpdateAnimation):
    """The updates of a few test examples, the full sublayer's first, then the masked ones' as it is learned."""

    def __init__(self, config: Config, labels: Tensor, replayed: Replay, everything: Masks):
        drawing = torch.Generator().manual_seed(config.data_seed)
        order = torch.randperm(len(labels), generator=drawing).to(labels.device)
        classes = labels[order].unique()
        chosen = classes[torch.randperm(len(classes), generator=drawing)[:GIF_CLASSES].to(labels.device)]
        self.rows = torch.cat([order[labels[order] == value][:GIF_EXAMPLES] for value in chosen])
        super().__init__(labels[self.rows])
        self.replayed, self.interval, self.last = replayed, config.gif_interval, config.num_epochs
        self.add_frame(replayed.update(everything, self.rows), "full sublayer")

    def __call__(self, epoch: int, masks: Masks) -> None:
        if epoch % self.interval == 0 or epoch == self.last:
            self.add_frame(self.replayed.update(masks, self.rows), f"masked, epoch {epoch}")


SCRIPT = Script("circuit_probing", Config, prepare, run, artifacts)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
