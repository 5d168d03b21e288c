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
    probe_index_list: NonEmpty[Whole] = Field([-1], description="the probed position of sequences, -1 for the last")
    operation_list: NonEmpty[Literal["attn", "mlp"]] = Field(description="the sublayers")
    lr_list: NonEmpty[Positive] = Field(description="learning rate of AdamW")
    batch_size_list: NonEmpty[Annotated[Whole, Field(ge=2)]] = Field(description=(
        "examples in a batch, which the objective depends on"))
    mask_init_list: NonEmpty[Real] = Field(description="what the mask parameters start at")
    num_epochs: Count = Field(description="epochs of mask training")
    max_temp: Annotated[Real, Field(ge=1, le=1e6)] = Field(description="the temperature grows from 1 to this")
    l0_lambda: Annotated[Real, Field(ge=0)] = Field(description="weight of the number of weights kept")

    lm_eval: bool = Field(True, description="ablate circuits and see what the model answers")
    lm_same_task_path: DataFile | None = Field(None, description="with two tasks: data of this one to judge answers on")
    lm_different_task_path: DataFile | None = Field(None, description="with two tasks: data of the other task")
    num_random_ablations: NonNegative = Field(0, description="how many times to ablate as many random neurons")
    save_models: bool = Field(False, description="save the circuits")
    model_dir: Text | None = Field(None, description="where to save them")
    gif: bool = Field(False, description="animate the updates while the mask is learned")
    gif_interval: Count = Field(10, description="epochs between frames")
    layers_at_once: Count | None = Field(None, description=(
        "layers whose activations are kept from one pass; by default as many as there is room for"))

    sequence_keys = (*QuestionConfig.sequence_keys, *LM_KEYS.values())

    def reads(self, key):
        return self.judges_tasks or key not in LM_KEYS.values()

    @property
    def judges_tasks(self) -> bool:
        """Whether answers are judged on this task and on the other one."""
        return self.task == "multitask" and self.lm_eval

    @model_validator(mode="after")
    def consistent(self):
        if self.judges_tasks and not (self.lm_same_task_path and self.lm_different_task_path):
            raise ValueError("the task 'multitask' needs the keys lm_same_task_path and lm_different_task_path, "
                             "the data to evaluate on (or lm_eval: false)")
        return self


if __name__ == "__main__":  # before what follows loads torch, which takes seconds
    answer_early("circuit_probing", Config)

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.experiment import Outcome, Script, main
from interp.methods.circuits import batches_in_order, find_circuit, mean_loss, shuffled_batches
from interp.methods.masks import Circuit, ImpossibleAblation, save_circuit
from interp.methods.neighbors import draw_references, majority_accuracy, nearest_neighbor_accuracy
from interp.methods.table import ABLATION_COLUMNS
from interp.models.examples import Examples
from interp.models.kept import Kept, answer_from, bytes_kept, capture
from interp.models.loading import load_tokenizer
from interp.models.opened import OpenModel
from interp.models.replay import Replay, all_updates, replay
from interp.models.sublayers import Masks, Sublayer, find_sublayer, masked
from interp.plotting import UpdateAnimation
from interp.runs.config import BadInput, project_path
from interp.runs.files import write_table
from interp.runs.settings import Setting, saved_files, setting_name
from interp.tasks.question import Data, Question, accuracies, check_batch, evaluations

Case = tuple[str, str, int | None, dict[str, Tensor]]  # an ablation: condition, maps, draw, and its masks or states


@dataclass(frozen=True)
class Bench:
    """A model, and what one pass over its data kept for some layers."""

    opened: OpenModel
    data: Data
    judged: dict[str, Examples]
    layers: list[int]
    kept: dict[Examples, Kept]

    def replays(self, sublayer: Sublayer) -> dict[str, Replay]:
        """The sublayer on train and each test, ready to be run through masks."""
        place = (sublayer.layer, sublayer.operation)
        return {name: replay(self.opened, sublayer, examples, self.kept[examples].inputs[place])
                for name, examples in {"train": self.data.train, **self.data.tests}.items()}

    def without(self, sublayer: Sublayer, masks: Masks) -> dict[str, Tensor]:
        """The states of everything that is judged, without the neurons that the masks ablate."""
        with masked(sublayer, masks):
            return {name: answer_from(self.opened, self.kept[examples], sublayer.layer)
                    for name, examples in self.judged.items()}


@dataclass
class Prepared:
    question: Question
    bench: Bench | None = None  # the last one used


def prepare(config: Config, settings: list[Setting], device: torch.device) -> Prepared:
    """Read the data and each model's configuration; refuse what does not fit together."""
    question = Question(config, settings, device, extra=LM_KEYS.values() if config.judges_tasks else ())
    for setting in settings:
        check_batch(setting.batch_size, len(question.data(setting).train))
    if config.gif and len(question.data(settings[0]).tests["test"]) < 2:
        raise BadInput("gif: an animation needs at least two test examples.")
    return Prepared(question)


artifacts = partial(saved_files, "circuit")


# ------------------------------------------------------------------------------ the method

def run_setting(config: Config, setting: Setting, prepared: Prepared) -> Outcome:
    """Find one sublayer's circuit for the variable; measure what it holds and what it does."""
    bench = bench_for(config, setting, prepared)
    labels = {name: examples.variables[config.asked]  # (rows,) each
              for name, examples in {"train": bench.data.train, **bench.data.tests}.items()}
    train, test = labels["train"], labels["test"]
    sublayer = find_sublayer(bench.opened, setting.target_layer, setting.operation)
    replays = bench.replays(sublayer)
    animation = Animation(config, test, replays["test"], sublayer.full_masks()) if config.gif else None

    shuffling = torch.Generator().manual_seed(setting.model_seed)
    circuit = find_circuit(
        sublayer, replays["train"], train, lr=setting.lr, batch_size=setting.batch_size,
        num_epochs=config.num_epochs, mask_init=setting.mask_init, max_temp=config.max_temp,
        l0_lambda=config.l0_lambda, generator=shuffling, after_epoch=animation)

    masks = circuit.masks()
    figures = {
        "train_loss": mean_loss(replays["train"], masks, train, shuffled_batches(
            len(train), setting.batch_size, shuffling)),
        "test_loss": mean_loss(replays["test"], masks, test, batches_in_order(len(test), setting.batch_size)),
        "l0_norm": circuit.l0_norm(), "l0_max": circuit.l0_max(),
        **neighbor_accuracies(config, labels, replays, masks, prefix=""),
        **neighbor_accuracies(config, labels, replays, sublayer.full_masks(), prefix="full_model_"),
        "majority_dev_acc": majority_accuracy(train, train),
        **{f"majority_{name}_acc": majority_accuracy(train, labels[name]) for name in bench.data.tests},
    }
    tables = {}
    if bench.judged:
        whole = {name: prepared.question.answers(setting, examples) for name, examples in bench.judged.items()}
        without = bench.without(sublayer, circuit.ablation())
        tables["ablations"], reason = ablations(config, setting, bench, sublayer, circuit, whole, without)
        figures |= headline(config, tables["ablations"], reason)
        if config.of_sentences:
            write_qualitative(config, setting, bench, whole, without, prepared.question.path(setting))
    for file in artifacts(config, setting):
        save_circuit(circuit, file, description(config, setting, prepared.question.path(setting)))
    if animation:
        animation.save(animated(config, setting))
    return Outcome(figures, tables)


def description(config: Config, setting: Setting, path: str) -> dict[str, Any]:
    """What a setting's saved circuit is about, kept in its file. path: its model's."""
    kept = {key: getattr(config, key) for key in ("task", "random_init", "reinit_embeddings", "layer_reinit")}
    return {"variable": config.asked, **kept, "model_path": path, **setting._asdict()}


def bench_for(config: Config, setting: Setting, prepared: Prepared) -> Bench:
    """The setting's model, and what a pass kept for its layer and the ones that come next."""
    opened, data = prepared.question.open(setting), prepared.question.data(setting)
    bench = prepared.bench
    if not bench or bench.opened is not opened or bench.data is not data or setting.target_layer not in bench.layers:
        prepared.bench = bench = None  # memory holds what was kept of one pass
        prepared.bench = bench = set_up(config, setting, opened, data)
    return bench


def set_up(config: Config, setting: Setting, opened: OpenModel, data: Data) -> Bench:
    """Run a model over its data and keep what the setting's layer and the next ones need, as far as there is room."""
    judged = {name: data.extra[key] for name, key in LM_KEYS.items()} if config.judges_tasks else data.judged
    judged = judged if config.lm_eval else {}
    probed, operations = {data.train, *data.tests.values()}, config.operation_list
    layers = config.target_layer_list[config.target_layer_list.index(setting.target_layer):]
    per_layer = sum(bytes_kept(opened, examples, operations if examples in probed else [], examples in judged.values())
                    for examples in probed | set(judged.values()))
    layers = layers[:config.layers_at_once or opened.room.portion(per_layer, len(layers), opened.device)]
    sublayers = [find_sublayer(opened, layer, operation) for layer in layers for operation in operations]
    kept = {examples: capture(opened, examples, sublayers if examples in probed else [],
                              layers if examples in judged.values() else [])
            for examples in probed | set(judged.values())}
    return Bench(opened, data, judged, layers, kept)


def neighbor_accuracies(config: Config, labels: dict[str, Tensor], replays: dict[str, Replay], masks: Masks,
                        prefix: str) -> dict[str, float | None]:
    """Nearest neighbors on the rest of train ("dev") and on tests, one reference a class from train."""
    train = labels["train"]
    references = draw_references(train, torch.Generator().manual_seed(config.data_seed)).to(train.device)
    rest = torch.ones_like(train, dtype=torch.bool)
    rest[references] = False
    updates = {name: all_updates(replayed, masks) for name, replayed in replays.items()}  # (rows, d_model) each
    known = updates["train"][references], train[references]
    rows = {"dev": (updates["train"][rest], train[rest])} | {
        name: (updates[name], labels[name]) for name in replays if name != "train"}
    return {f"{prefix}knn_{name}_acc": nearest_neighbor_accuracy(*known, *own) for name, own in rows.items()}


def ablations(config: Config, setting: Setting, bench: Bench, sublayer: Sublayer, circuit: Circuit,
              whole: dict[str, Tensor], without: dict[str, Tensor]) -> tuple[list[dict[str, Any]], str | None]:
    """Accuracy of the whole model, without the circuit, without random neurons instead.

    With two tasks also without the circuit's neurons in one linear map alone. whole, without: states by name of what is
    judged, (rows, d_model). Returns a row for each evaluation set and condition, and why there are no random draws
    where there are none.
    """
    drawing, reason = torch.Generator().manual_seed(setting.model_seed), None
    cases: list[Case] = []
    if config.task == "multitask":
        cases += [("circuit", name, None, circuit.ablation((name,))) for name in sublayer.maps]
    try:
        cases += [("random", "all", draw, circuit.random_ablation(drawing))
                  for draw in range(config.num_random_ablations)]
    except ImpossibleAblation as error:
        reason = str(error)
    measured: list[Case] = [("full", "all", None, whole), ("circuit", "all", None, without)]
    measured += [(condition, maps, draw, bench.without(sublayer, masks)) for condition, maps, draw, masks in cases]
    counts = {name: len(examples) if rows is None else len(rows)
              for name, (examples, rows) in evaluations(bench.judged).items()}
    return [{"evaluation": name, "maps": maps, "condition": condition, "draw": draw, "accuracy": share,
             "examples": counts[name]}
            for condition, maps, draw, states in measured for file, examples in bench.judged.items()
            for name, share in accuracies(bench.opened, states[file], file, examples).items()], reason


def write_qualitative(config: Config, setting: Setting, bench: Bench, whole: dict[str, Tensor],
                      without: dict[str, Tensor], path: str) -> None:
    """What the model would say next after the first test batch, before and after ablation, as text."""
    tokenizer, (name, examples) = load_tokenizer("model_path", path), next(iter(bench.judged.items()))
    first = next(iter(examples.groups.values()), torch.arange(len(examples)))[:setting.batch_size]  # (batch,)

    def said(states: Tensor) -> list[str]:
        return [" | ".join(tokenizer.batch_decode(row.unsqueeze(1))) for row in bench.opened.top_tokens(states[first])]

    texts = [examples.texts[row] for row in first.tolist()]
    rows = [{"sentence": text, "before": before, "after": after} for text, before, after in zip(
        texts, said(whole[name]), said(without[name]))]
    write_table(qualitative(config, setting), rows)


def qualitative(config: Config, setting: Setting) -> Path:
    return project_path(config.results_dir) / "qualitative" / f"{setting_name(setting)}.csv"


def animated(config: Config, setting: Setting) -> Path:
    return project_path(config.results_dir) / f"updates_{setting_name(setting)}.gif"


def headline(config: Config, rows: list[dict[str, Any]], reason: str | None) -> dict[str, Any]:
    """The figures of an ablation table that go into results.csv, under the published names."""
    figures: dict[str, Any] = {}
    for evaluation in dict.fromkeys(row["evaluation"] for row in rows):
        own = [row for row in rows if row["evaluation"] == evaluation]
        name = {condition: column.format(evaluation) for condition, column in ABLATION_COLUMNS.items()}
        vanilla = next(row["accuracy"] for row in own if row["condition"] == "full")
        for row in own:
            if row["condition"] == "circuit":
                prefix = "" if row["maps"] == "all" else f"{row['maps']}_"
                figures |= {f"{prefix}{name['full']}": vanilla, f"{prefix}{name['circuit']}": row["accuracy"]}
        if config.num_random_ablations:
            random = torch.tensor([row["accuracy"] for row in own if row["condition"] == "random"], dtype=torch.double)
            figures[f"{name['random']}_mean"] = random.mean().item() if len(random) else None
            figures[f"{name['random']}_std"] = random.std().item() if len(random) > 1 else None
    return figures | ({"random_ablation_impossible": reason} if config.num_random_ablations else {})


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


def run(config: Config, settings: list[Setting], prepared: Any) -> Iterator[tuple[Setting, Outcome]]:
    return ((setting, run_setting(config, setting, prepared)) for setting in settings)


SCRIPT = Script("circuit_probing", Config, prepare, run, artifacts)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
