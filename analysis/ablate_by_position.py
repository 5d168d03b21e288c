"""At which tokens does a circuit's ablation act?

    python analysis/ablate_by_position.py --config configs/SV_Agreement/sv_agreement-smollm2.yaml \\
        --layer 11 --operation mlp [--device cpu] [--out FILE]

Circuits are ablated at every token of a sentence. Language models write a massive update at the first token, which
later attention leans on, and an ablation that destroys it costs accuracy whatever the variable. This takes the circuit
that a config of circuit_probing.py has saved and gives the model the sublayer's update without it at the first token
alone, and at all others alone. With a `sentence_prefix` the first token is the same in all sentences, otherwise a word.
The keys and values that an attention reads from the first token belong to the updates of the tokens that read them.
Writes FILE.csv, a row for each evaluation set and case, and draws FILE.png and FILE.pdf.

accuracy       how often the model prefers the right word
stream_norm    mean norm of the full model's residual stream above the layer, at the tokens where the case ablates
change_norm    mean norm of what the ablation changes in it there
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import circuit_probing
from analysis import summarize_agreement, summarize_reflexives
from analysis.method_figures import COMPONENTS, run, whole_out
from analysis.summarize_model_overlap import saved_circuits
from interp.methods.masks import Circuit
from interp.models.examples import Examples
from interp.models.kept import answer_from, capture
from interp.models.loading import choose_device
from interp.models.opened import OpenModel
from interp.models.sublayers import Sublayer, find_sublayer, masked
from interp.plotting import draw_bars, plt, save_figure
from interp.runs.config import BadInput, load_config, project_path
from interp.runs.files import write_text
from interp.runs.settings import Setting, expand_settings
from interp.tasks.keys import SENTENCE_TASKS
from interp.tasks.question import accuracies

SETS = summarize_agreement.SETS | summarize_reflexives.SETS
NOWHERE, EVERYWHERE, FIRST, OTHERS = "full model", "every token", "first token", "all other tokens"


def choose(file: Path, layer: int, operation: str) -> tuple[circuit_probing.Config, list[Setting]]:
    """A config and those of its settings that are about the sublayer.

    Raises:
        BadInput: there are none, or the config is not of sentences that the model is judged on.
    """
    config = load_config(file, circuit_probing.Config)
    if not config.of_sentences or not config.lm_eval:
        raise BadInput(f"{file}: its task must be one of {', '.join(SENTENCE_TASKS)}, with lm_eval: true.")
    settings = [setting for setting in expand_settings(config)
                if (setting.target_layer, setting.operation) == (layer, operation)]
    if not settings:
        raise BadInput(f"{file}: it has no circuit of the {COMPONENTS[operation]} of layer {layer}.")
    return config, settings


@torch.no_grad()
def ablate_by_position(opened: OpenModel, sublayer: Sublayer, circuit: Circuit, file: str,
                       examples: Examples) -> list[dict[str, Any]]:
    """A row for each evaluation set and case. file: the name of the examples.

    What a block gives at a token depends on the masks through the sublayer's update at that token alone, so the
    residual stream that enters the next block is put together, token by token, from a pass with and one without the
    circuit.

    Raises:
        BadInput: a pass of this model cannot start in the middle.
    """
    if not opened.shares:
        raise BadInput(f"a '{opened.model.config.model_type}' model cannot be run from the middle, which this needs.")
    above, forest = sublayer.layer + 1, opened.forest(examples)
    kept = capture(opened, examples, [], layers=[above])
    whole = kept.entering[above]                                                       # (chunks, N, d_model)
    with masked(sublayer, circuit.ablation()):
        without = capture(opened, examples, [], layers=[above]).entering[above]        # (chunks, N, d_model)
    first = (forest.positions == 0).unsqueeze(-1)                                      # (chunks, N, 1)
    cases = {NOWHERE: torch.zeros_like(first), EVERYWHERE: torch.ones_like(first), FIRST: first, OTHERS: ~first}
    norms, changes = (of.norm(dim=-1).flatten() for of in (whole, whole - without))    # (nodes,) each
    path, lengths = forest.path, forest.lengths
    read = torch.arange(path.shape[1], device=path.device) < lengths.unsqueeze(1)      # (rows, T) not beyond the end
    rows = []
    for case, ablated in cases.items():
        states = answer_from(opened, kept, above, torch.where(ablated, without, whole))
        tokens = path[read & ablated.flatten()[path]]
        means = {name: float(of[tokens].mean()) if len(tokens) else None
                 for name, of in (("stream_norm", norms), ("change_norm", changes))}
        rows += [{"evaluation": name, "ablated_at": case, "accuracy": share, **means}
                 for name, share in accuracies(opened, states, file, examples).items()]
    return rows


def draw(table: pd.DataFrame, title: str, path: Path) -> None:
    """A group of bars for each evaluation set, a bar for each case, seeds as standard deviation."""
    said = {case: f"circuit ablated: {case}" for case in (EVERYWHERE, FIRST, OTHERS)}
    groups = table.replace({"ablated_at": said}).groupby(["evaluation", "ablated_at"], sort=False)["accuracy"]
    heights, errors = (own.unstack(sort=False).rename(index=SETS) for own in (groups.mean(), groups.std()))
    figure, axis = plt.subplots(figsize=(3 + 2.4 * max(len(heights), 2), 4.4), layout="constrained")
    draw_bars(axis, heights, errors, ["whole" if case == NOWHERE else "circuit" for case in heights])
    circuits = table.groupby(["evaluation", "ablated_at"]).size().max()
    axis.set(ylabel="model accuracy", xlabel="evaluation set")
    axis.set_title(f"{title}, {'one circuit' if circuits == 1 else f'mean of {circuits} circuits'}", parse_math=False)
    figure.legend(loc="outside lower center", ncols=2)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, help="a config of circuit_probing.py, for sentences")
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--operation", choices=list(COMPONENTS), required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="default: figures/ablation_by_position_OPERATION_LAYER of the run")
    options = parser.parse_args()
    config, settings = choose(options.config, options.layer, options.operation)
    results = project_path(config.results_dir)
    out = whole_out(options.out or results / "figures" / f"ablation_by_position_{options.operation}_{options.layer}",
                    names_files=True)
    device = choose_device(options.device)
    circuits = [circuit for _, _, circuit in saved_circuits(options.config, config, settings)]
    question = circuit_probing.prepare(config, settings, device).question
    rows = []
    for setting, circuit in zip(settings, circuits):
        opened = question.open(setting)
        sublayer = find_sublayer(opened, setting.target_layer, setting.operation)
        rows += [setting._asdict() | row for file, examples in question.data(setting).judged.items()
                 for row in ablate_by_position(opened, sublayer, circuit, file, examples)]
    table = pd.DataFrame(rows)
    write_text(out.with_name(f"{out.name}.csv"), table.to_csv(index=False))
    shown_columns = ["evaluation", "ablated_at", "accuracy", "stream_norm", "change_norm"]
    print(table[shown_columns].to_string(index=False, float_format="%.3f", na_rep=""))
    place = f"{COMPONENTS[options.operation]} of layer {options.layer}"
    draw(table, f"Where does the ablation act? {place} ({results.name})", out)


if __name__ == "__main__":
    run("ablate_by_position", main)
