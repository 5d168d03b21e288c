"""Circuit probing: does a sublayer compute a variable, in which neurons, and is it used?

    python circuit_probing.py --config configs/Disambiguation/circuit_probing/a2.yaml
    python circuit_probing.py --config configs/SV_Agreement/sv_agreement-smollm2.yaml

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

from interp.behavior import masked
from interp.bench import Bench, ask, set_up
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
    suggestion,
)
from interp.experiment import Outcome, Script, Setting, fill_in, main, setting_name
from interp.language import LANGUAGE_TASKS
from interp.masks import Circuit, ImpossibleAblation, Masks, full_masks, save_circuit
from interp.models import Sublayer, find_sublayer, load_model, load_tokenizer, reinitialize
from interp.neighbors import draw_references, majority_accuracy, nearest_neighbor_accuracy
from interp.plotting import UpdateAnimation
from interp.runs import write_table
from interp.sublayer import Replay, all_updates
from interp.tasks import Answers, ArithmeticTask, LanguageTask, Material

GIF_CLASSES, GIF_EXAMPLES = 10, 5
SPECIAL_TASKS = ("multitask", *LANGUAGE_TASKS)
SEQUENCE_KEYS = ("train_data_path", "test_data_path", "lm_same_task_path", "lm_different_task_path")
SENTENCE_KEYS = ("data_path", "gen_path", "sentence_prefix", "capitalize")


class Config(ModelSweep):
    task: Text = "arithmetic"
    variable: Text
    train_data_path: Text | None = None
    test_data_path: Text | None = None
    data_path: Text | None = None
    gen_path: Text | None = None
    train_size: Count = 2000
    test_size: Count = 1000
    sentence_prefix: str = ""
    capitalize: bool = False
    random_init: bool = False
    reinit_embeddings: bool = False
    layer_reinit: Annotated[Whole, Field(ge=-1)] = -1

    target_layer_list: NonEmpty[NonNegative]
    probe_index_list: NonEmpty[Whole] = [-1]
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
    layers_at_once: Count | None = None

    @model_validator(mode="after")
    def consistent(self):
        meant = suggestion(self.task, SPECIAL_TASKS, cutoff=0.7)
        if meant and self.task not in SPECIAL_TASKS:  # any other word is an arithmetic task's name
            raise ValueError(f"there is no task '{self.task}'{meant}")
        sentences = self.task in LANGUAGE_TASKS
        hint = f"; tasks of sentences are {', '.join(LANGUAGE_TASKS)}" if self.data_path and not sentences else ""
        for key in ("data_path",) if sentences else ("train_data_path", "test_data_path"):
            if getattr(self, key) is None:
                raise ValueError(f"the key '{key}' is missing, which the task '{self.task}' needs{hint}")
        for key in SEQUENCE_KEYS if sentences else SENTENCE_KEYS:
            if getattr(self, key):
                raise ValueError(f"the key '{key}' says nothing to the task '{self.task}'{hint}; leave it out")
        if self.task == "multitask" and self.lm_eval and not (self.lm_same_task_path and self.lm_different_task_path):
            raise ValueError("the task 'multitask' needs the keys lm_same_task_path and lm_different_task_path, "
                             "the data to evaluate on (or lm_eval: false)")
        if self.save_models and self.model_dir is None:
            raise ValueError("save_models needs the key 'model_dir', the folder for the circuits")
        return self


@dataclass(frozen=True)
class Prepared:
    task: ArithmeticTask | LanguageTask
    device: torch.device
    benches: dict[tuple, Bench] = field(default_factory=dict)  # the last one used


def prepare(config: Config, settings: list[Setting], device: torch.device) -> Prepared:
    """Read the data and each model's configuration; refuse what does not fit together."""
    task = (LanguageTask if config.task in LANGUAGE_TASKS else ArithmeticTask)(config, settings, device)
    path = fill_in("model_path", config.model_path, settings[0])
    if config.gif and len(task.material(settings[0], path).tests["test"].labels) < 2:
        raise BadInput("gif: an animation needs at least two test examples.")
    return Prepared(task, device)


# ------------------------------------------------------------------------------ the method

def run_setting(config: Config, setting: Setting, prepared: Prepared) -> Outcome:
    """Find one sublayer's circuit for the variable; measure what it holds and what it does."""
    bench = bench_for(config, setting, prepared)
    train, test = bench.material.train.labels, bench.material.tests["test"].labels  # (rows,) each
    sublayer = find_sublayer(bench.model, setting.target_layer, setting.operation)
    replays = bench.replays(sublayer)
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
        **neighbor_accuracies(config, bench.material, replays, masks, prefix=""),
        **neighbor_accuracies(config, bench.material, replays, full_masks(sublayer), prefix="full_model_"),
        "majority_dev_acc": majority_accuracy(train, train),
        **{f"majority_{name}_acc": majority_accuracy(train, split.labels)
           for name, split in bench.material.tests.items()},
    }
    tables = {}
    if bench.material.behaviors:
        without = ask_without(setting, bench, sublayer, circuit.ablation(), setting.batch_size)
        tables["ablations"], reason = ablations(config, setting, bench, sublayer, circuit, without)
        figures |= headline(config, tables["ablations"], reason)
        if without.likeliest is not None:
            write_qualitative(config, setting, bench, without)
    for file in artifacts(config, setting):
        save_circuit(circuit, file, description(config, setting))
    if animation:
        animation.save(project_path(config.results_dir) / f"updates_{setting_name(setting)}.gif")
    return Outcome(figures, tables)


def description(config: Config, setting: Setting) -> dict[str, Any]:
    """What a setting's saved circuit is about, kept in its file."""
    kept = {key: getattr(config, key) for key in ("task", "variable", "random_init", "reinit_embeddings",
                                                  "layer_reinit")}
    return {**kept, "model_path": fill_in("model_path", config.model_path, setting), **setting._asdict()}


def artifacts(config: Config, setting: Setting) -> list[Path]:
    """The file of a setting's circuit, where circuits are saved."""
    return ([project_path(config.model_dir) / f"circuit_{setting_name(setting)}.safetensors"]
            if config.save_models else [])


def bench_for(config: Config, setting: Setting, prepared: Prepared) -> Bench:
    """The setting's model with what a pass kept of its layer and of those that come next."""
    path = fill_in("model_path", config.model_path, setting)
    key = (path, setting.model_seed, setting.probe_index)
    bench = prepared.benches.get(key)
    if bench is None or setting.target_layer not in bench.layers:
        if bench is None:
            model = load_as_configured(config, setting, prepared.device)
            material = prepared.task.material(setting, path)
            known = model, material, ask(model, material, spoken=max(config.batch_size_list))
        else:
            known = bench.model, bench.material, bench.vanilla
        del bench
        prepared.benches.clear()  # memory holds what was kept of one pass
        layers = config.target_layer_list[config.target_layer_list.index(setting.target_layer):]
        prepared.benches[key] = set_up(*known, layers, config.operation_list, config.layers_at_once)
    return prepared.benches[key]


def load_as_configured(config: Config, setting: Setting, device: torch.device) -> PreTrainedModel:
    """The setting's model, with fresh weights where the config has controls."""
    model = load_model("model_path", fill_in("model_path", config.model_path, setting), device)
    reinitialize(model, setting.model_seed, everything=config.random_init, embeddings=config.reinit_embeddings,
                 layer=config.layer_reinit)
    return model


def neighbor_accuracies(config: Config, material: Material, replays: dict[str, Replay], masks: Masks,
                        prefix: str) -> dict[str, float]:
    """Nearest neighbours on the rest of train ("dev") and on tests, one reference a class from train."""
    train = material.train.labels
    references = draw_references(train, torch.Generator().manual_seed(config.data_seed)).to(train.device)
    rest = torch.ones_like(train, dtype=torch.bool)
    rest[references] = False
    updates = all_updates(replays["train"], masks)  # (rows, d_model)
    known = updates[references], train[references]
    return {f"{prefix}knn_dev_acc": nearest_neighbor_accuracy(*known, updates[rest], train[rest])} | {
        f"{prefix}knn_{name}_acc": nearest_neighbor_accuracy(*known, all_updates(replays[name], masks), split.labels)
        for name, split in material.tests.items()}


def ask_without(setting: Setting, bench: Bench, sublayer: Sublayer, masks: Masks, spoken: int = 0) -> Answers:
    """The model's answers without the neurons that the masks take from it."""
    with masked(sublayer, masks):
        return bench.ask(setting.target_layer, spoken)


def ablations(config: Config, setting: Setting, bench: Bench, sublayer: Sublayer, circuit: Circuit,
              without: Answers) -> tuple[list[dict[str, Any]], str | None]:
    """Accuracy of the whole model, without the circuit, without random neurons instead.

    With two tasks also without the circuit's neurons in one linear map alone. Returns a row for each
    evaluation set and condition, and why there are no random draws where there are none.
    """
    drawing, reason = torch.Generator().manual_seed(setting.model_seed), None
    cases = []
    if config.task == "multitask":
        cases += [("circuit", name, None, circuit.ablation((name,))) for name in sublayer.maps]
    try:
        cases += [("random", "all", draw, circuit.random_ablation(drawing))
                  for draw in range(config.num_random_ablations)]
    except ImpossibleAblation as error:
        reason = str(error)
    measured = [("full", "all", None, bench.vanilla), ("circuit", "all", None, without)]
    measured += [(condition, maps, draw, ask_without(setting, bench, sublayer, masks))
                 for condition, maps, draw, masks in cases]
    return [{"evaluation": name, "maps": maps, "condition": condition, "draw": draw, "accuracy": accuracy}
            for condition, maps, draw, answers in measured for name, accuracy in answers.accuracies.items()], reason


def write_qualitative(config: Config, setting: Setting, bench: Bench, without: Answers) -> None:
    """What the model would say next after the first test batch, before and after ablation, as text."""
    tokenizer = load_tokenizer("model_path", fill_in("model_path", config.model_path, setting))

    def said(tokens: Tensor) -> list[str]:
        return [" | ".join(tokenizer.batch_decode(row.unsqueeze(1))) for row in tokens]

    rows = [{"sentence": text, "before": before, "after": after} for text, before, after in zip(
        bench.material.behaviors[0].texts, said(bench.vanilla.likeliest), said(without.likeliest))]
    write_table(project_path(config.results_dir) / "qualitative" / f"{setting_name(setting)}.csv", rows)


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
            random = torch.tensor([row["accuracy"] for row in own if row["condition"] == "random"], dtype=torch.double)
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


def side_tables(config: Config) -> list[str]:
    return ["ablations"] if config.lm_eval else []


SCRIPT = Script("circuit_probing", Config, prepare, run_setting, artifacts, side_tables=side_tables)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
