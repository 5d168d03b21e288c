"""Train models to hold variables in subspaces that are chosen beforehand, and write down where.

    python train_known_models.py --config configs/Known/train/quick.yaml

Strict interchange intervention training (arXiv 2112.00826, 2407.14494): V and W, each exchanged in its subspace, change
the answer as they should, and everything else at the cut can be exchanged without any effect.
Writes train.csv and test.csv, the verified models with truth.csv and truth.safetensors, curves.csv and results.csv.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from interp.runs.command_line import answer_early
from interp.runs.config import Count, NonEmpty, NonNegative, Positive, ScriptConfig, Seed, Text, Whole


class Config(ScriptConfig):
    family_list: NonEmpty[Literal["gpt2", "llama", "olmo2"]] = Field(["gpt2"], description="families of models")
    rank_list: NonEmpty[Count] = Field([1, 4, 12], description="dimensions of each subspace")
    cut_list: NonEmpty[NonNegative] = Field([1], description=(
        "the layer after whose block the variables are held; at least one block is above it"))
    decoy_list: NonEmpty[Literal["none", "U", "copy"]] = Field(["none"], description=(
        "what can be read at `=` and is not used: nothing, U, or a copy of V"))
    code_list: NonEmpty[Literal["linear", "centred", "either", "shared"]] = Field(["linear"], description=(
        "how V is held: free, with the same mean for all its values, twice, or as the sum of A and B"))
    model_seed_list: NonEmpty[Seed] = Field([0], description="seeds of models, subspaces and batches")
    data_seed: Seed = Field(0, description="of the task's tables, the split and the sources")
    sources_per_input: Annotated[Whole, Field(ge=1, le=124)] = Field(8, description=(
        "rows of the data files for each input, with as many sources"))
    n_layer: Annotated[Whole, Field(ge=2, le=1000)] = Field(3, description="layers of each model")
    n_embd: Count = Field(64, description="width of the residual stream; the MLPs' is four times that")
    n_head: Count = Field(4, description="heads of each attention")
    steps: Count = Field(3000, description="steps of training, at most")
    lr: Positive = Field(2e-3, description="the highest learning rate of AdamW")
    batch_size: Count = Field(128, description="pairs of base and source in a step")
    data_dir: Text = Field(description="where train.csv and test.csv are written")
    model_dir: Text = Field(description="where the verified models are saved")

    @model_validator(mode="after")
    def consistent(self):
        if max(self.rank_list) > self.n_embd:
            raise ValueError(f"rank_list: {max(self.rank_list)} is more than the width, n_embd {self.n_embd}")
        if max(self.cut_list) > self.n_layer - 2:
            raise ValueError(f"cut_list: no block is above layer {max(self.cut_list)} of {self.n_layer} (n_layer), so "
                             "that nothing could read what is held there")
        if self.n_embd % (2 * self.n_head):
            raise ValueError(f"n_embd ({self.n_embd}) is not a multiple of twice n_head ({self.n_head})")
        return self


if __name__ == "__main__":  # before what follows loads torch, which takes seconds
    answer_early("train_known_models", Config)

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from interp.experiment import Outcome, Script, main
from interp.methods import held
from interp.methods.held import Held, Values, interchanged, interventions, values_after
from interp.models.family import family_of
from interp.models.loading import build_gpt2, save_model
from interp.runs.config import RunFailed, project_path
from interp.runs.files import check_data_files, place, write_missing, write_table, writing
from interp.runs.settings import Setting
from interp.runs.store import RunDirectory
from interp.runs.tensors import save_tensors
from interp.tasks import known
from interp.tasks.known import MOD, Split

EVALUATE_EVERY, TEST_PAIRS, ENOUGH = 250, 2000, 0.99


@dataclass(frozen=True)
class Prepared:
    files: dict[Path, str]  # the text of each
    out: Tensor             # (5, 5), the answer by V and W
    splits: dict[str, Split]


def prepare(config: Config, settings: list[Setting], device: torch.device) -> Prepared:
    """Draw the task in memory; refuse to replace a file that holds other data."""
    generator = torch.Generator().manual_seed(config.data_seed)
    tables = known.draw_tables(generator)
    splits = known.draw_splits(tables, generator)
    files = {project_path(config.data_dir) / f"{name}.csv": known.paired_csv(
        split, tables["out"], config.sources_per_input, generator) for name, split in splits.items()}
    check_data_files(files)
    return Prepared(files, tables["out"].to(device), {name: split.to(device) for name, split in splits.items()})


def run(config: Config, settings: list[Setting], prepared: Prepared) -> Iterator[tuple[Setting, Outcome]]:
    """Train each model, verify it on held-out inputs and save it with the truth about it, or say why not."""
    write_missing(prepared.files)
    for setting in settings:
        model = build(config, setting, prepared.out.device)
        curve = train(config, setting, model, prepared)
        metrics = {name: value for name, value in curve[-1].items() if name not in ("steps", "loss")}
        missed = [f"{name} {value:.3f}" for name, value in metrics.items() if value < ENOUGH]
        if missed:
            tqdm.write(f"{model_name(setting)} is not verified and not saved: {', '.join(missed)}.", sys.stdout)
        else:
            save(config, setting, model)
        yield setting, Outcome(metrics | {"steps": curve[-1]["steps"], "verified": not missed}, {"curves": curve})


def build(config: Config, setting: Setting, device: torch.device) -> Held:
    """A fresh model with random orthonormal subspaces."""
    torch.manual_seed(setting.model_seed)
    if setting.family == "gpt2":
        model: PreTrainedModel = build_gpt2(
            setting.model_seed, vocab_size=known.VOCABULARY, n_positions=known.POSITIONS, n_layer=config.n_layer,
            n_head=config.n_head, n_embd=config.n_embd, n_inner=4 * config.n_embd)
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(
            setting.family, vocab_size=known.VOCABULARY, max_position_embeddings=known.POSITIONS,
            num_hidden_layers=config.n_layer, num_attention_heads=config.n_head, hidden_size=config.n_embd,
            intermediate_size=4 * config.n_embd, bos_token_id=None, eos_token_id=None, pad_token_id=None))
    decoy = {"none": "", "U": "U", "copy": "V"}[setting.decoy]
    positions = held.PLACES[setting.code] | ({"decoy": held.DECOY_POSITION} if decoy else {})
    bases = {name: torch.linalg.qr(torch.randn(config.n_embd, setting.rank))[0].to(device) for name in positions}
    model.to(device)  # type: ignore[arg-type]  # as in load_model
    block = model.get_submodule(f"{family_of(model.config).blocks}.{setting.cut}")
    return Held(model, block, positions, bases, decoy)


def train(config: Config, setting: Setting, model: Held, prepared: Prepared) -> list[dict[str, Any]]:
    """Train until every metric is 1, or to the last step; returns the curve, a row for each evaluation.

    Without the hints little is learned for 2,000 steps, as `out` is a Latin square: an answer says nothing of V or of W
    alone. They stand above the cut, and follow each intervention as the answer does.
    """
    device, terms = prepared.out.device, [*interventions(setting.code, model.decoy).values()]
    decoder = nn.Linear(setting.rank, MOD).to(device)        # of the decoy
    hints = nn.Linear(config.n_embd, 2 * MOD).to(device)     # V and W from the final hidden state
    parameters = [weight for part in (model.model, decoder, hints) for weight in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.steps)
    generator, curve = torch.Generator().manual_seed(setting.model_seed), list[dict[str, Any]]()
    for step in tqdm(range(1, config.steps + 1), desc=model_name(setting), unit="step", leave=False, disable=None):
        tokens, values = draw_pairs(prepared.splits["train"], config.batch_size, generator)
        states, clean = interchanged(model, tokens, [word for word, _ in terms])
        loss = torch.zeros((), device=device)
        for state, (_, whose) in zip(states, terms):                                  # (n, d_model)
            v, w = values_after(values, whose)
            of_v, of_w = hints(state).chunk(2, dim=-1)                                # (n, 5) each
            loss = loss + F.cross_entropy(model.logits(state), prepared.out[v, w]) + (
                F.cross_entropy(of_v, v) + F.cross_entropy(of_w, w)) / 2
        if model.decoy:
            loss = loss + 0.5 * F.cross_entropy(decoder(model.read("decoy", clean)), both(values, model.decoy))
        if setting.code == "centred":
            loss = loss + between_share(model.read("V", clean), both(values, "V"))
        if not torch.isfinite(loss):
            raise RunFailed(f"{model_name(setting)}: the loss became {loss.item()} at step {step}; try a smaller lr.")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % EVALUATE_EVERY == 0 or step == config.steps:
            metrics = evaluate(setting.code, model, decoder, prepared)
            curve.append({"steps": step, "loss": loss.item()} | metrics)
            if min(metrics.values()) == 1:
                break
    return curve


@torch.no_grad()
def evaluate(code: str, model: Held, decoder: nn.Linear, prepared: Prepared) -> dict[str, float]:
    """How often, on held-out pairs, the answer is the one wanted, by intervention, and the decoder is right."""
    tokens, values = draw_pairs(prepared.splits["test"], TEST_PAIRS, torch.Generator().manual_seed(0))
    terms = interventions(code, model.decoy)
    states, clean = interchanged(model, tokens, [word for word, _ in terms.values()])
    found = {name: model.logits(state).argmax(-1) == prepared.out[values_after(values, whose)]
             for state, (name, (_, whose)) in zip(states, terms.items())}
    if model.decoy:
        found["decoy_accuracy"] = decoder(model.read("decoy", clean)).argmax(-1) == both(values, model.decoy)
    return {name: right.double().mean().item() for name, right in found.items()}


def draw_pairs(split: Split, count: int, generator: torch.Generator) -> tuple[Tensor, Values]:
    """Bases and sources drawn independently: tokens, (2 count, positions), and the values of both, (count,) each."""
    rows = torch.randint(len(split.tokens), (2 * count,), generator=generator).to(split.tokens.device)
    return split.tokens[rows], {letter: {name: value[some] for name, value in split.values.items()}
                                for letter, some in zip("bs", rows.chunk(2))}


def both(values: Values, variable: str) -> Tensor:
    """A variable of bases, then of sources, (2n,)."""
    return torch.cat([values["b"][variable], values["s"][variable]])


def between_share(coordinates: Tensor, values: Tensor) -> Tensor:
    """The share of the variance of coordinates, (n, rank), that lies between the means of values, (n,)."""
    chosen = F.one_hot(values, MOD).to(coordinates.dtype)                             # (n, 5)
    centred = coordinates - coordinates.mean(0)
    means = chosen.T @ centred / chosen.sum(0).clamp(min=1)[:, None]                  # (5, rank)
    return (chosen @ means).pow(2).sum() / centred.pow(2).sum()


def save(config: Config, setting: Setting, model: Held) -> None:
    """Save a model with the truth about it, in one step."""
    [folder] = artifacts(config, setting)
    with writing(folder) as temporary:
        save_model(model.model, temporary)
        write_table(temporary / "truth.csv", held.truth(model.positions, model.decoy, setting.cut))
        save_tensors(temporary / "truth.safetensors", model.bases, {
            "setting": setting._asdict(), "positions": model.positions})
        place(temporary, folder)


def model_name(setting: Setting) -> str:
    return "{family}_rank{rank}_cut{cut}_{decoy}_{code}_seed{model_seed}".format(**setting._asdict())


def artifacts(config: Config, setting: Setting) -> list[Path]:
    """The folder that a setting leaves; none where the model was not verified."""
    done = RunDirectory(project_path(config.results_dir)).finished(setting)
    verified = done is None or done["metrics"].get("verified")
    return [project_path(config.model_dir) / model_name(setting)] if verified else []


def finish(config: Config, prepared: Prepared, run: RunDirectory) -> None:
    """Restore data that somebody deleted."""
    write_missing(prepared.files)


SCRIPT = Script("train_known_models", Config, prepare, run, artifacts, finish)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
