"""Generate arithmetic data and train one-layer GPT-2s on it by variables of their operands.

    python train_algorithmic_models.py \
        --config configs/Train_Algorithmic_Models/Disambiguation/a2_minus_b2.yaml

Full-batch training: an epoch is one step of AdamW on the cross-entropy at the last position.
Writes train.csv and test.csv, the saved checkpoints, curves.csv, results.csv and a figure.
"""

import os
from typing import Annotated, Literal

from pydantic import Field, model_validator

from interp.runs.command_line import answer_early
from interp.runs.config import Count, ModelFolder, NonEmpty, Positive, Real, ScriptConfig, Seed, Text, Whole
from interp.tasks import functions
from interp.tasks.functions import Function, Rule, Task

RECORDED = ("epoch", "train_loss", "train_acc", "test_loss", "test_acc")  # what a row of the curve holds


class Config(ScriptConfig):
    intermediate_functions: list[Function] = Field([], description=(
        "[name, i, j]: a variable and the positions of a and b; the label is the sum of them. Names: "
        + ", ".join(functions.NAMES)))
    auxiliary_functions: list[Function] = Field([], description="further variables, which the label does not need")
    counterfactual_label_functions: list[Rule] = Field([], description=(
        "[x, y, op]: the label (x op y) mod `mod`, op + or *, x and y columns such as var_0 or counter_var_0"))
    multitask: bool = Field(False, description="two tasks in one model, by the keys that name task 1 and 2")
    intermediate_functions_1: list[Function] = Field([], description="of task 1")
    intermediate_functions_2: list[Function] = Field([], description="of task 2")
    task_1_auxiliary_functions: list[Function] = Field([], description="of task 1")
    task_2_auxiliary_functions: list[Function] = Field([], description="of task 2")
    task_1_counterfactual_label_functions: list[Rule] = Field([], description="of task 1")
    task_2_counterfactual_label_functions: list[Rule] = Field([], description="of task 2")
    mod: Annotated[Whole, Field(ge=2, le=2048)] = Field(113, description="the modulus; data are all pairs below it")
    train_frac: Annotated[Real, Field(gt=0, lt=1)] = Field(description="share of the pairs that is trained on")
    data_seed: Seed = Field(0, description="of the data: counterfactual pairs, the split")
    data_dir: Text = Field(description="where train.csv and test.csv are written")

    n_layer: Annotated[Whole, Field(ge=1, le=1000)] = Field(1, description="layers of the GPT-2")
    n_head: Count = Field(4, description="heads of each attention")
    n_embd: Count = Field(128, description="width of the residual stream")
    n_inner: Count = Field(512, description="width of each MLP")
    n_positions: Count = Field(description="context: at least the tokens of a sequence")

    transfer: ModelFolder | Literal[False] = Field(False, description=(
        "a model to start from; the paper's `transfer: true` with `model_path` says the same"))
    start_list: NonEmpty[Literal["fresh", "transfer"]] | None = Field(None, description=(
        "how to start: both where `transfer` is given"))
    model_seed_list: NonEmpty[Seed] = Field([0], description="seeds of the models")
    lr_list: NonEmpty[Positive] = Field(description="learning rate of AdamW")
    wd: Annotated[Real, Field(ge=0)] = Field(1.0, description="its weight decay")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.98), description="its betas")
    num_epochs: Count = Field(description="full-batch steps; the first 10 warm up from a third of the rate")
    checkpoint_every: Count = Field(description=(
        "epochs between records of loss and accuracy, and between the states that a killed run continues from"))
    save_checkpoints: list[Count] = Field([], description="epochs whose model is saved, besides the last")
    save_models: bool = Field(True, description="save models")
    model_dir: Text = Field(description="where to save them")
    figtitle: str = Field("", description="title of the figure of curves")

    @model_validator(mode="before")
    @classmethod
    def both_starts(cls, values):
        """Transfer is evaluated by comparison: train from the old model and from a fresh one."""
        values = dict(values)
        if values.get("transfer") is True:  # the paper's way to say it
            values["transfer"] = values.pop("model_path", None)
            if not values["transfer"]:
                raise ValueError("transfer: true needs the key 'model_path', the model to start from")
        if values.get("transfer") and not values.get("start_list"):
            values["start_list"] = ["fresh", "transfer"]
        return values

    @model_validator(mode="after")
    def consistent(self):
        if "transfer" in (self.start_list or []) and not self.transfer:
            raise ValueError("start_list names transfer, but the key 'transfer' names no model to start from")
        tasks = self.tasks()
        for task in tasks.values():
            if not task.intermediate:
                key = "intermediate_functions_1 and _2" if self.multitask else "intermediate_functions"
                raise ValueError(f"{key} must name at least one variable")
            functions.check_task(task, self.mod)
            if len(task.layout) > self.n_positions:
                raise ValueError(f"n_positions is {self.n_positions}, but a sequence has {len(task.layout)} tokens")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd ({self.n_embd}) is not a multiple of n_head ({self.n_head})")
        d, vocabulary = self.n_embd, self.shape["vocab_size"]
        weights = self.n_layer * (4 * d * d + 2 * d * self.n_inner) + (vocabulary + self.n_positions) * d
        # weights, gradients and Adam's two moments; the logits in float32 and float64
        least = 16 * weights + 12 * int(self.mod**2 * self.train_frac) * vocabulary
        if least > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
            raise ValueError("n_layer, n_embd, n_inner, n_positions and mod ask for a training of at least "
                             f"{least >> 30} GiB, and this machine has {memory >> 30}")
        if late := [epoch for epoch in self.save_checkpoints if epoch > self.num_epochs]:
            raise ValueError(f"save_checkpoints asks for epoch {late[0]}, but num_epochs is {self.num_epochs}")
        if not 0 < int(self.mod**2 * self.train_frac) < self.mod**2:
            raise ValueError(f"train_frac {self.train_frac} leaves train or test empty")
        return self

    @property
    def shape(self) -> dict[str, int]:
        """The GPT-2's. Its tokens are the numbers, `=`, and one for each of two tasks."""
        return {"vocab_size": self.mod + (3 if self.multitask else 1), "n_positions": self.n_positions,
                "n_layer": self.n_layer, "n_head": self.n_head, "n_embd": self.n_embd, "n_inner": self.n_inner}

    def tasks(self) -> dict[str, Task]:
        """The data sets to make, by their folder in data_dir."""
        if not self.multitask:
            return {"": Task(functions.SINGLE_TASK, self.intermediate_functions, self.auxiliary_functions,
                             self.counterfactual_label_functions)}
        return {
            "Task_1": Task(functions.TASK_1, self.intermediate_functions_1, self.task_1_auxiliary_functions,
                           self.task_1_counterfactual_label_functions),
            "Task_2": Task(functions.TASK_2, self.intermediate_functions_2, self.task_2_auxiliary_functions,
                           self.task_2_counterfactual_label_functions),
        }


if __name__ == "__main__":  # before what follows loads torch, which takes seconds
    answer_early("train_algorithmic_models", Config)

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GPT2LMHeadModel

from interp.experiment import Outcome, Script, main
from interp.models.last_position import last_position_logits
from interp.models.loading import NO_DROPOUT, build_gpt2, load_model, read_model_config, save_model
from interp.plotting import draw_curves
from interp.runs.config import BadInput, RunFailed, project_path, shown
from interp.runs.files import check_data_files, write_missing
from interp.runs.settings import Setting, expand_settings, setting_name
from interp.runs.store import RunDirectory
from interp.runs.tensors import damaged, load_state, save_state
from interp.tasks import arithmetic


@dataclass(frozen=True)
class Split:
    """The sequences of a split, of all tasks."""

    tokens: Tensor  # (rows, positions)
    labels: Tensor  # (rows,)


@dataclass(frozen=True)
class Prepared:
    files: dict[Path, str]  # the text of each
    splits: dict[str, Split]
    device: torch.device


def prepare(config: Config, settings: list[Setting], device: torch.device) -> Prepared:
    """Make the data in memory; refuse to replace a file that holds other data."""
    generator = torch.Generator().manual_seed(config.data_seed)
    files, tables = dict[Path, str](), {"train": list[pd.DataFrame](), "test": list[pd.DataFrame]()}
    for folder, task in config.tasks().items():
        for name, table in zip(tables, arithmetic.make_data(task, config.mod, config.train_frac, generator)):
            files[project_path(config.data_dir) / folder / f"{name}.csv"] = arithmetic.csv_text(table)
            tables[name].append(table)
    check_data_files(files)
    old = read_model_config("transfer", config.transfer) if config.transfer else None
    if old and old.model_type != "gpt2":
        raise BadInput(f"transfer: the model in {config.transfer} is a '{old.model_type}', and a GPT-2 is trained.")
    for key, value in (config.shape | NO_DROPOUT).items() if old else ():
        if getattr(old, key) != value:
            what = "trains without dropout" if key in NO_DROPOUT else value
            raise BadInput(f"transfer: the model in {config.transfer} has {key} {getattr(old, key)}, this config "
                           f"{what}.")
    splits = {name: Split(torch.cat([arithmetic.token_ids(table) for table in of_split]).to(device),
                          torch.cat([arithmetic.labels_of(table, "labels") for table in of_split]).to(device))
              for name, of_split in tables.items()}
    return Prepared(files, splits, device)


def run(config: Config, settings: list[Setting], prepared: Prepared) -> Iterator[tuple[Setting, Outcome]]:
    """Train the models, each from the last state that an earlier start saved."""
    write_missing(prepared.files)
    sizes = {f"{name}_length": len(split.labels) for name, split in prepared.splits.items()}
    for setting in settings:
        model = build_model(config, setting, prepared.device)
        logits = {name: last_position_logits(model, split.tokens) for name, split in prepared.splits.items()}
        curve = train(config, setting, model, logits, prepared.splits)
        yield setting, Outcome(curve[-1] | sizes, {"curves": curve})


def build_model(config: Config, setting: Setting, device: torch.device) -> GPT2LMHeadModel:
    """A fresh model, or the one to transfer from."""
    if config.transfer and getattr(setting, "start", "fresh") == "transfer":
        return load_model("transfer", config.transfer, device).train().requires_grad_(True)
    return build_gpt2(setting.model_seed, **config.shape).to(device)  # type: ignore[arg-type]  # as in load_model


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean loss, its log-softmax in float64: late in training most losses are below 1e-7."""
    wide = logits.float() if logits.device.type == "mps" else logits.double()
    return F.nll_loss(F.log_softmax(wide, dim=-1), labels)


def train(config: Config, setting: Setting, model: GPT2LMHeadModel,
          logits: dict[str, Callable[[], Tensor]], splits: dict[str, Split]) -> list[dict[str, Any]]:
    """Train to the last epoch; returns the curve, a row for each recorded epoch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.lr, weight_decay=config.wd, betas=config.betas)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 3, total_iters=10)
    state_file = project_path(config.results_dir) / f"state_{setting_name(setting)}.pt"
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "warmup": warmup}  # nothing random is left
    start, curve = go_on(state_file, config, setting, parts)
    begun = time.perf_counter()

    bar = tqdm(range(start, config.num_epochs + 1), desc=setting_name(setting), initial=start,
               total=config.num_epochs, unit="epoch", mininterval=1, leave=False, disable=None)
    for epoch in bar:  # at the top of the loop the model has taken `epoch` steps
        last = epoch == config.num_epochs
        for path in checkpoint_paths(config, setting, epoch):
            save_model(model, path)
        if (epoch % config.checkpoint_every == 0 or last) and epoch not in (row["epoch"] for row in curve):
            curve.append({"epoch": epoch} | evaluate(logits, splits))
            bar.set_postfix_str(f"train acc {curve[-1]['train_acc']:.3f}, test acc {curve[-1]['test_acc']:.3f}")
            if epoch % max(config.checkpoint_every, config.num_epochs // 20) == 0 or last:
                report(config, curve[-1], (time.perf_counter() - begun) / (epoch - start) if epoch > start else 0)
            save_state(state_file, epoch=epoch, curve=curve,
                       **{name: part.state_dict() for name, part in parts.items()})
        if last:
            break
        optimizer.zero_grad()
        loss = cross_entropy(logits["train"](), splits["train"].labels)
        if not torch.isfinite(loss):
            grows = setting.lr < 1 and setting.lr * config.wd > 2  # weights, by decaying to beyond their negatives
            advice = "wd" if grows else "value in lr_list"
            raise RunFailed(f"the training loss became {loss.item()} at epoch {epoch} of setting "
                            f"{setting_name(setting)}; try a smaller {advice}.")
        loss.backward()
        optimizer.step()
        warmup.step()
    return curve


@torch.no_grad()
def evaluate(logits: dict[str, Callable[[], Tensor]], splits: dict[str, Split]) -> dict[str, float]:
    metrics = {}
    for name, split in splits.items():
        values = logits[name]()
        metrics[f"{name}_loss"] = cross_entropy(values, split.labels).item()
        metrics[f"{name}_acc"] = (values.argmax(-1) == split.labels).double().mean().item()
    return metrics


def report(config: Config, row: dict[str, Any], seconds_each: float) -> None:
    """A log line on the progress of training, for when no progress bar is shown or several models train at once."""
    left = seconds_each * (config.num_epochs - row["epoch"]) / 60
    tqdm.write(f"{Path(config.results_dir).name} epoch {row['epoch']:>6}: train loss {row['train_loss']:.3g}, "
               f"acc {row['train_acc']:.4f}; test loss {row['test_loss']:.3g}, acc {row['test_acc']:.4f}"
               + (f"; {left:.0f} min left" if left else ""), file=sys.stdout)


def checkpoint_paths(config: Config, setting: Setting, epoch: int) -> list[Path]:
    """Where the model of this epoch is saved, if it is: under its number, as `final` after the last."""
    names = [str(epoch)] if epoch in config.save_checkpoints else []
    names += ["final"] if epoch == config.num_epochs else []
    start = f"_{setting.start}" if hasattr(setting, "start") else ""
    return [project_path(config.model_dir) / f"model_LR_{setting.lr}_Seed_{setting.model_seed}{start}_{name}"
            for name in names if config.save_models]


def artifacts(config: Config, setting: Setting) -> list[Path]:
    """The model folders that a setting leaves."""
    return [path for epoch in sorted({*config.save_checkpoints, config.num_epochs})
            for path in checkpoint_paths(config, setting, epoch)]


def go_on(file: Path, config: Config, setting: Setting, parts: dict[str, Any]) -> tuple[int, list]:
    """Restore the last state; its epoch and curve: (0, []) where there is none or an earlier checkpoint is gone."""
    state = load_state(file)
    if state is None:
        return 0, []
    try:
        last, curve = state["epoch"], state["curve"]
        if [[row[name] for name in RECORDED] for row in curve][-1][0] != last:
            raise ValueError
        earlier = [path for epoch in config.save_checkpoints for path in checkpoint_paths(config, setting, epoch)
                   if epoch < last]
        if not all(path.exists() for path in earlier):
            return 0, []
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError):  # as a file differs from a state
        raise damaged(file) from None
    print(f"{shown(file)}: going on from epoch {last}")
    return last, curve


def finish(config: Config, prepared: Prepared, run: RunDirectory) -> None:
    """Restore data that somebody deleted; draw the curves."""
    write_missing(prepared.files)
    draw_curves(run.table("curves"), expand_settings(config)[0]._fields, config.figtitle, run.path / "curves")


SCRIPT = Script("train_algorithmic_models", Config, prepare, run, artifacts, finish)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
