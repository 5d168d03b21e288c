"""At which tokens does a circuit's ablation act?

    python analysis/ablate_by_position.py --config configs/SV_Agreement/sv_agreement-smollm2.yaml \\
        --layer 11 --operation mlp [--device cpu] [--out FILE]

Circuits are ablated at every token of a sentence. Language models write a massive update at the first token, which
later attention leans on, and an ablation that destroys it costs accuracy whatever the variable. This takes the circuits
that a config of circuit_probing.py has saved and gives the model the sublayer's update without them at the first token
alone, and at all others alone. Writes FILE.csv, a row for each circuit, evaluation set and case, and draws FILE.png and
FILE.pdf. stream_norm, change_norm: mean norms, where a case ablates, of the full model's residual stream above the
layer and of what the ablation changes in it.
"""

from collections import namedtuple
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from analysis import figures
from analysis.language_figures import TASKS
from analysis.summarize_model_overlap import circuits_of
from analysis.tables import COMPONENTS, RESULTS, parse, run
from interp.methods.masks import Circuit
from interp.models.examples import Examples
from interp.models.loading import choose_device
from interp.models.open_model import RESID_POST, RESID_PRE, OpenModel, Site
from interp.models.sublayers import Sublayer, find_sublayer, masked
from interp.models.suffix import final_states_from
from interp.runs.config import BadInput, project_path, read_yaml
from interp.runs.files import write_text
from interp.tasks.keys import QuestionConfig
from interp.tasks.study import Study, accuracies

SETS = TASKS["agreement"][1] | TASKS["reflexive"][1]
NOWHERE, EVERYWHERE, FIRST, OTHERS = "full model", "every token", "first token", "all other tokens"


class Sentences(QuestionConfig, extra="ignore"):
    """The keys of a config of circuit_probing.py that say which model and sentences it is of."""


@torch.no_grad()
def ablate_by_position(model: OpenModel, sublayer: Sublayer, circuit: Circuit, name: str,
                       examples: Examples) -> list[dict[str, Any]]:
    """A row for each evaluation set and case. name: of the examples.

    What a block gives at a token depends on the masks through the sublayer's update at that token alone, so the
    residual stream that enters the next block is put together from a pass with and one without the circuit.
    """
    if RESID_PRE not in model.suffix:
        raise BadInput(f"a '{model.kind}' model cannot be run from the middle, which this needs.")
    site = Site(sublayer.layer, RESID_POST)
    whole = model.activations(examples, [], [site])[site]                    # (rows, T, d_model)
    with masked(sublayer, circuit.ablation()):
        without = model.activations(examples, [], [site])[site]              # (rows, T, d_model)
    norms, changes = (stream.norm(dim=-1) for stream in (whole, whole - without))  # (rows, T) each
    steps = torch.arange(whole.shape[1], device=whole.device)
    inside, first = steps < examples.lengths.unsqueeze(1), steps == 0        # (rows, T), (T,)
    rows = []
    for case, ablated in ((NOWHERE, first & ~first), (EVERYWHERE, first | ~first), (FIRST, first), (OTHERS, ~first)):
        entering = torch.where(ablated.unsqueeze(-1), without, whole)
        states = final_states_from(model, examples, sublayer.layer + 1, entering)
        means = {"stream_norm": norms[inside & ablated].mean().item(),
                 "change_norm": changes[inside & ablated].mean().item()}
        rows += [{"evaluation": group, "ablated_at": case, "accuracy": share, **means}
                 for group, share in accuracies(model, states, name, examples).items()]
    return rows


def draw(table: pd.DataFrame, title: str, path: Path) -> None:
    """A group of bars for each evaluation set, a bar for each case, circuits as standard deviation."""
    labels = {case: f"circuit ablated: {case}" for case in (EVERYWHERE, FIRST, OTHERS)}
    groups = table.replace({"ablated_at": labels}).groupby(["evaluation", "ablated_at"], sort=False)["accuracy"]
    heights, sd = (values.unstack(sort=False).rename(index=SETS) for values in (groups.mean(), groups.std()))
    figure, [[axis]] = figures.grid_of(["model accuracy"], [""], (3 + 2.4 * max(len(heights), 2), 4.4))
    figures.draw_bars(axis, heights, (sd, sd), ["whole" if case == NOWHERE else "circuit" for case in heights])
    figures.finish(figure, f"{title}, mean of {groups.size().max()} circuits", path, 2)


def main() -> None:
    options = parse(__doc__, RESULTS, {
        "--config": {"type": Path, "required": True, "help": "a config of circuit_probing.py, for sentences"},
        "--layer": {"type": int, "required": True}, "--operation": {"choices": list(COMPONENTS), "required": True},
        "--device": {"default": "auto"},
        "--out": {"type": Path, "help": "default: figures/ablation_by_position_OPERATION_LAYER of the run"}})
    config, place = Sentences(**read_yaml(options.config.absolute())), (options.layer, options.operation)
    where = f"{COMPONENTS[options.operation]} of layer {options.layer}"
    circuits = [(circuit, about) for circuit, about in circuits_of(options.config)
                if (about["target_layer"], about["operation"]) == place]
    if not circuits or not config.of_sentences:
        raise BadInput(f"{options.config}: it has no circuit of the {where}, or is not of sentences.")
    settings = [namedtuple("Setting", ["circuit", *about])(circuit, *about.values())  # type: ignore
                for circuit, about in circuits]
    study, rows = Study(config, settings, choose_device(options.device)), []
    for model, data, of_model in study.models(settings):
        rows += [{"model_seed": setting.model_seed, **row} for setting in of_model
                 for name, examples in data.evaluated.items() for row in ablate_by_position(
                     model, find_sublayer(model, *place), setting.circuit, name, examples)]
    table, results = pd.DataFrame(rows), project_path(config.results_dir)
    out = options.out if options.out != options.results / "figures" else (
        results / "figures" / f"ablation_by_position_{options.operation}_{options.layer}")
    write_text(out.with_name(f"{out.name}.csv"), table.to_csv(index=False))
    columns = ["evaluation", "ablated_at", "accuracy", "stream_norm", "change_norm"]
    print(table[columns].to_string(index=False, float_format="%.3f", na_rep=""))
    draw(table, f"Where does the ablation act? {where} ({results.name})", out)


if __name__ == "__main__":
    run("ablate_by_position", main)
