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
from interp.models.kept import answer_from, capture
from interp.models.loading import choose_device
from interp.models.opened import OpenModel
from interp.models.sublayers import Sublayer, find_sublayer, masked
from interp.runs.config import BadInput, project_path, read_yaml
from interp.runs.files import write_text
from interp.tasks.keys import QuestionConfig
from interp.tasks.question import Question, accuracies

SETS = TASKS["agreement"][1] | TASKS["reflexive"][1]
NOWHERE, EVERYWHERE, FIRST, OTHERS = "full model", "every token", "first token", "all other tokens"


class Sentences(QuestionConfig, extra="ignore"):
    """The keys of a config of circuit_probing.py that say which model and sentences it is of."""


@torch.no_grad()
def ablate_by_position(opened: OpenModel, sublayer: Sublayer, circuit: Circuit, file: str,
                       examples: Examples) -> list[dict[str, Any]]:
    """A row for each evaluation set and case. file: the name of the examples.

    What a block gives at a token depends on the masks through the sublayer's update at that token alone, so the
    residual stream that enters the next block is put together from a pass with and one without the circuit.
    """
    if not opened.shares:
        raise BadInput(f"a '{opened.model.config.model_type}' model cannot be run from the middle, which this needs.")
    above, forest = sublayer.layer + 1, opened.forest(examples)
    kept = capture(opened, examples, [], layers=[above])
    whole = kept.entering[above]                                                       # (chunks, N, d_model)
    with masked(sublayer, circuit.ablation()):
        without = capture(opened, examples, [], layers=[above]).entering[above]        # (chunks, N, d_model)
    first = (forest.positions == 0).unsqueeze(-1)                                      # (chunks, N, 1)
    norms, changes = (stream.norm(dim=-1).flatten() for stream in (whole, whole - without))  # (nodes,) each
    inside = torch.arange(forest.path.shape[1], device=whole.device) < forest.lengths.unsqueeze(1)  # (rows, T)
    rows = []
    for case, ablated in ((NOWHERE, first & ~first), (EVERYWHERE, first | ~first), (FIRST, first), (OTHERS, ~first)):
        states = answer_from(opened, kept, above, torch.where(ablated, without, whole))
        tokens = forest.path[inside & ablated.flatten()[forest.path]]
        means = {"stream_norm": norms[tokens].mean().item(), "change_norm": changes[tokens].mean().item()}
        rows += [{"evaluation": name, "ablated_at": case, "accuracy": share, **means}
                 for name, share in accuracies(opened, states, file, examples).items()]
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
    setting_of = namedtuple("Setting", [  # type: ignore[misc]
        name for name in circuits[0][1] if name in ("model_seed", "checkpoint", "target_layer", "operation")])
    settings = [setting_of(*(about[name] for name in setting_of._fields)) for _, about in circuits]
    question, rows = Question(config, settings, choose_device(options.device)), []
    for (circuit, _), setting in zip(circuits, settings):
        opened = question.open(setting)
        sublayer = find_sublayer(opened, *place)
        rows += [setting._asdict() | row for file, examples in question.data(setting).judged.items()
                 for row in ablate_by_position(opened, sublayer, circuit, file, examples)]
    table, results = pd.DataFrame(rows), project_path(config.results_dir)
    out = options.out if options.out != options.results / "figures" else (
        results / "figures" / f"ablation_by_position_{options.operation}_{options.layer}")
    write_text(out.with_name(f"{out.name}.csv"), table.to_csv(index=False))
    columns = ["evaluation", "ablated_at", "accuracy", "stream_norm", "change_norm"]
    print(table[columns].to_string(index=False, float_format="%.3f", na_rep=""))
    draw(table, f"Where does the ablation act? {where} ({results.name})", out)


if __name__ == "__main__":
    run("ablate_by_position", main)
