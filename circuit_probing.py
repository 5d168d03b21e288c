"""Circuit probing: does a sublayer compute a variable, in which neurons, and is it used?

    python circuit_probing.py --config configs/Disambiguation/circuit_probing/a2.yaml

1. Learn a binary mask over a frozen sublayer's neurons under which its updates cluster by the
   variable: the circuit.
2. Does the circuit hold the variable? Nearest neighbours tell its value from the circuit's
   updates, and for comparison from the full model's.
3. Does the model use it? Ablate the circuit and see what becomes of the model's answers; ablate
   as many random neurons outside of it for comparison.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from interp.behavior import masked, next_token_accuracy
from interp.circuits import batches_in_order, find_circuit, mean_loss, shuffled_batches
from interp.config import (
    BadInput,
    Count,
    ModelSweep,
    NonEmpty,
    NonNegative,
    Positive,
    Real,
    Seed,
    Text,
    Whole,
    project_path,
)
from interp.examples import Examples, check_batch, check_classes, check_model, read_examples
from interp.experiment import Outcome, Script, Setting, fill_in, main, setting_name
from interp.masks import Circuit, ImpossibleAblation, Masks, full_masks, save_circuit
from interp.models import Sublayer, find_sublayer, load_model, reinitialize
from interp.neighbors import draw_references, majority_accuracy, nearest_neighbor_accuracy
from interp.plotting import UpdateAnimation
from interp.prefixes import Forest, unshared
from interp.sublayer import Replay, all_updates, capture_inputs, replay

NOT_YET = ("agreement", "reflexive", "syntactic_number")
GIF_CLASSES, GIF_EXAMPLES = 10, 5


class Config(ModelSweep):
    task: Text = "arithmetic"
    variable: Text
    train_data_path: Text
    test_data_path: Text
    random_init: bool = False
    reinit_embeddings: bool = False
    layer_reinit: Annotated[Whole, Field(ge=-1)] = -1

    target_layer_list: NonEmpty[NonNegative]
    probe_index_list: NonEmpty[Whole]
    operation_list: NonEmpty[Literal["attn", "mlp"]]
    lr_list: NonEmpty[Positive]
    batch_size_list: NonEmpty[Annotated[Whole, Field(ge=2)]]
    mask_init_list: NonEmpty[Real]
    num_epochs: Count
    max_temp: Annotated[Real, Field(ge=1, le=1e6)]
    l0_lambda: Annotated[Real, Field(ge=0)]
    data_seed: Seed = 0

    lm_eval: bool = True
    lm_same_task_path: Text | None = None
    lm_different_task_path: Text | None = None
    num_random_ablations: NonNegative = 0
    save_models: bool = False
    model_dir: Text | None = None
    gif: bool = False
    gif_interval: Count = 10

    @model_validator(mode="after")
    def consistent(self):
        if self.task in NOT_YET:
            raise ValueError(f"the key 'task': '{self.task}' is a task that this version cannot do yet")
        if self.task == "multitask" and self.lm_eval and not (self.lm_same_task_path and self.lm_different_task_path):
            raise ValueError("the task 'multitask' needs the keys lm_same_task_path and lm_different_task_path, "
                             "the data to evaluate on (or lm_eval: false)")
        if self.save_models and self.model_dir is None:
            raise ValueError("save_models needs the key 'model_dir', the folder for the circuits")
        return self


@dataclass(frozen=True)
class Bench:
    """A model, and what the sublayers to be probed read on each split."""

    model: PreTrainedModel
    inputs: dict[tuple[int, str], dict[str, Tensor]]  # by layer and operation, then by split
    forests: dict[str, Forest]                        # by split


@dataclass(frozen=True)
class Prepared:
    splits: dict[str, Examples]
    evaluations: dict[str, Examples]  # what ablation is judged on: test, or the same and a different task
    device: torch.device
    benches: dict[tuple, Bench] = field(default_factory=dict)  # the last one used


# ------------------------------------------------------------- before anything is computed

def prepare(config: Config, settings: list[Setting], device: torch.device) -> Prepared:
    """Read the data and each model's configuration; refuse what does not fit together."""
    splits = {key: read_examples(key, getattr(config, key), [config.variable, "labels"], device)
              for key in ("train_data_path", "test_data_path")}
    train, test = splits.values()
    check_classes(config.variable, train[config.variable], test[config.variable])
    if config.gif and len(test) < 2:
        raise BadInput("gif: an animation needs at least two test examples.")
    evaluations = {"test": test}
    if config.task == "multitask" and config.lm_eval:
        evaluations = {name: read_examples(f"lm_{name}_task_path", getattr(config, f"lm_{name}_task_path"),
                                           ["labels"], device) for name in ("same", "different")}
        splits |= {f"lm_{name}_task_path": examples for name, examples in evaluations.items()}
    for setting in settings:
        check_model(fill_in("model_path", config.model_path, setting),
                    {"target_layer_list": setting.target_layer, "layer_reinit": config.layer_reinit}, splits,
                    {"probe_index_list": setting.probe_index})
        check_batch(setting.batch_size, len(train))
    return Prepared({"train": train, "test": test}, evaluations, device)


# ------------------------------------------------------------------------------ the method

def run_setting(config: Config, setting: Setting, prepared: Prepared) -> Outcome:
    """Find one sublayer's circuit for the variable; measure what it holds and what it does."""
    train, test = (prepared.splits[split][config.variable] for split in ("train", "test"))  # (rows,) labels
    bench = bench_for(config, setting, prepared)
    sublayer = find_sublayer(bench.model, setting.target_layer, setting.operation)
    replays = {split: replay(sublayer, inputs, bench.forests[split])
               for split, inputs in bench.inputs[setting.target_layer, setting.operation].items()}
    animation = Animation(config, test, replays["test"], full_masks(sublayer)) if config.gif else None

    shuffling = torch.Generator().manual_seed(setting.model_seed)
    circuit = find_circuit(
        sublayer, replays["train"], train, lr=setting.lr, batch_size=setting.batch_size,
        num_epochs=config.num_epochs, mask_init=setting.mask_init, max_temp=config.max_temp,
        l0_lambda=config.l0_lambda, generator=shuffling, after_epoch=animation)

    masks = circuit.masks()
    figures = {
        "train_loss": mean_loss(replays["train"], masks, train,
                                shuffled_batches(len(train), setting.batch_size, shuffling)),
        "test_loss": mean_loss(replays["test"], masks, test,
                               batches_in_order(len(test), setting.batch_size)),
        "l0_norm": circuit.l0_norm(), "l0_max": circuit.l0_max(),
        **neighbor_accuracies(config, prepared, replays, masks, prefix=""),
        **neighbor_accuracies(config, prepared, replays, full_masks(sublayer), prefix="full_model_"),
        "majority_dev_acc": majority_accuracy(train, train),
        "majority_test_acc": majority_accuracy(train, test),
    }
    tables = {}
    if config.lm_eval:
        tables["ablations"], reason = ablate(config, setting, bench.model, sublayer, circuit, prepared.evaluations)
        figures |= headline(config, tables["ablations"], reason)
    for file in artifacts(config, setting):
        save_circuit(circuit, file,
                     {"variable": config.variable, "model_path": fill_in("model_path", config.model_path, setting),
                      **setting._asdict()})
    if animation:
        animation.save(project_path(config.results_dir) / f"updates_{setting_name(setting)}.gif")
    return Outcome(figures, tables)


def artifacts(config: Config, setting: Setting) -> list[Path]:
    """The file of a setting's circuit, where circuits are saved."""
    return ([project_path(config.model_dir) / f"circuit_{setting_name(setting)}.safetensors"]
            if config.save_models else [])


def bench_for(config: Config, setting: Setting, prepared: Prepared) -> Bench:
    """The setting's model with all cached inputs, computed in one pass and kept for the next setting."""
    path = fill_in("model_path", config.model_path, setting)
    key = (path, setting.model_seed, setting.probe_index)
    if key not in prepared.benches:
        prepared.benches.clear()
        model = load_model("model_path", path, prepared.device)
        reinitialize(model, setting.model_seed, everything=config.random_init,
                     embeddings=config.reinit_embeddings, layer=config.layer_reinit)
        places = [(layer, operation) for layer in config.target_layer_list for operation in config.operation_list]
        inputs: dict[tuple[int, str], dict[str, Tensor]] = {place: {} for place in places}
        forests = {}
        for split, examples in prepared.splits.items():
            rows, length = examples.tokens.shape
            probed = torch.full((rows,), setting.probe_index % length, device=prepared.device)
            forests[split] = unshared(examples.tokens, probed)
            captured = capture_inputs(model, forests[split], [find_sublayer(model, *place) for place in places])
            for place, tensor in zip(places, captured):
                inputs[place][split] = tensor
        prepared.benches[key] = Bench(model, inputs, forests)
    return prepared.benches[key]


def neighbor_accuracies(config: Config, prepared: Prepared, replays: dict[str, Replay], masks: Masks,
                        prefix: str) -> dict[str, float]:
    """Nearest neighbours on the rest of train ("dev") and on test, one reference a class from train."""
    train, test = (prepared.splits[split][config.variable] for split in ("train", "test"))
    references = draw_references(train, torch.Generator().manual_seed(config.data_seed)).to(train.device)
    rest = torch.ones_like(train, dtype=torch.bool)
    rest[references] = False
    updates = all_updates(replays["train"], masks)  # (rows, d_model)
    known = updates[references], train[references]
    return {f"{prefix}knn_dev_acc": nearest_neighbor_accuracy(*known, updates[rest], train[rest]),
            f"{prefix}knn_test_acc": nearest_neighbor_accuracy(*known, all_updates(replays["test"], masks), test)}


def ablate(config: Config, setting: Setting, model: PreTrainedModel, sublayer: Sublayer, circuit: Circuit,
           evaluations: dict[str, Examples]) -> tuple[list[dict[str, Any]], str | None]:
    """Accuracy of the whole model, without the circuit, without random neurons instead.

    With two tasks also without the circuit's neurons in one linear map alone. Returns a row for each
    evaluation set and condition, and why there are no random draws where there are none.
    """
    everything, drawing, reason = full_masks(sublayer), torch.Generator().manual_seed(setting.model_seed), None
    cases = [("full", "all", None, everything), ("circuit", "all", None, circuit.ablation())]
    if config.task == "multitask":
        cases += [("circuit", name, None, circuit.ablation((name,))) for name in everything]
    try:
        cases += [("random", "all", draw, circuit.random_ablation(drawing))
                  for draw in range(config.num_random_ablations)]
    except ImpossibleAblation as error:
        reason = str(error)
    rows = []
    for condition, maps, draw, masks in cases:
        with masked(sublayer, masks):
            rows += [{"evaluation": name, "maps": maps, "condition": condition, "draw": draw,
                      "accuracy": next_token_accuracy(model, examples.tokens, examples["labels"])}
                     for name, examples in evaluations.items()]
    return rows, reason


def headline(config: Config, rows: list[dict[str, Any]], reason: str | None) -> dict[str, Any]:
    """The figures of an ablation table that go into results.csv, under the names of the published ones."""
    figures: dict[str, Any] = {}
    for evaluation in dict.fromkeys(row["evaluation"] for row in rows):
        own = [row for row in rows if row["evaluation"] == evaluation]
        vanilla = next(row["accuracy"] for row in own if row["condition"] == "full")
        for row in own:
            if row["condition"] == "circuit":
                prefix = "" if row["maps"] == "all" else f"{row['maps']}_"
                figures[f"{prefix}vanilla_acc_{evaluation}"] = vanilla
                figures[f"{prefix}ablated_acc_{evaluation}"] = row["accuracy"]
        if config.num_random_ablations:
            random = torch.tensor([row["accuracy"] for row in own if row["condition"] == "random"])
            figures[f"random_ablated_acc_{evaluation}_mean"] = random.mean().item() if len(random) else None
            figures[f"random_ablated_acc_{evaluation}_std"] = random.std().item() if len(random) > 1 else None
    return figures | ({"random_ablation_impossible": reason} if config.num_random_ablations else {})


class Animation(UpdateAnimation):
    """The updates of a few test examples, the full model's first, then the masked ones' as it is learned."""

    def __init__(self, config: Config, labels: Tensor, replayed: Replay, everything: Masks):
        drawing = torch.Generator().manual_seed(config.data_seed)
        order = torch.randperm(len(labels), generator=drawing).to(labels.device)
        classes = labels[order].unique()
        chosen = classes[torch.randperm(len(classes), generator=drawing)[:GIF_CLASSES].to(labels.device)]
        self.rows = torch.cat([order[labels[order] == value][:GIF_EXAMPLES] for value in chosen])
        super().__init__(labels[self.rows])
        self.replayed, self.interval, self.last = replayed, config.gif_interval, config.num_epochs
        self.add_frame(replayed.update(everything, self.rows), "full model")

    def __call__(self, epoch: int, masks: Masks) -> None:
        if epoch % self.interval == 0 or epoch == self.last:
            self.add_frame(self.replayed.update(masks, self.rows), f"masked, epoch {epoch}")


SCRIPT = Script("circuit_probing", Config, prepare, run_setting, artifacts)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
