"""Are two circuits of one model the same neurons?

    python analysis/summarize_model_overlap.py --config A.yaml B.yaml --out Results/overlap
    python analysis/summarize_model_overlap.py --circuits A.safetensors B.safetensors --out Results/overlap

Takes the circuits that two configs of circuit_probing.py have saved, sublayer by sublayer, or two files. Counts, for
each linear map, its blocks (query, key and value of GPT-2's c_attn) and the whole sublayer, the neurons of each circuit
alone and of both, their Jaccard index, and chance: the probability that random sets have as many in common. Writes
OUT.csv and draws OUT.png and OUT.pdf, of more than four sublayers as wholes only.
"""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import hypergeom

from analysis import figures
from analysis.tables import COMPONENTS, RESULTS, parse, run, swept
from interp.methods.masks import Circuit, load_circuit
from interp.plotting import COLORS
from interp.runs.config import BadInput, project_path, read_yaml
from interp.runs.files import write_text

BLOCKS = {"c_attn": ("query", "key", "value")}  # maps whose neurons are several maps' in one
WHOLE, ALL = "whole", "all maps"
PARTS = {"alone_1": (0.35, ""), "common": (1, ""), "alone_2": (0.35, "//")}  # how strong a circuit's colour, hatching
MAY_DIFFER = {"task", "variable", "lr", "batch_size"}  # in the descriptions of circuits that are compared

Saved = tuple[Circuit, dict[str, Any]]  # with its description


def circuits_of(file: Path) -> list[Saved]:
    """The circuits that a config of circuit_probing.py has saved; raises BadInput: there are none, or another run's."""
    config = read_yaml(file.absolute())
    paths = sorted(project_path(config["model_dir"]).glob("circuit_*.safetensors")) if config.get("model_dir") else []
    found = [(circuit, about) for circuit, about in map(load_circuit, paths)
             if all(about.get(key, values[0]) in values for key, values in swept(config).items())]
    if not found or any(about[key] != config[key] for _, about in found for key in ("variable",) if key in config):
        raise BadInput(f"{file}: there is no circuit in its model_dir, or another run's; 'python circuit_probing.py "
                       f"--config {file}' makes them, with save_models: true.")
    return found


def overlap(one: Saved, other: Saved) -> list[dict[str, Any]]:
    """A row for each map, each block, and the sublayer as a whole; raises BadInput if they are of other sublayers."""
    places = [{"layer": about["target_layer"], "operation": about["operation"]} for _, about in (one, other)]
    sizes = [{name: len(scores) for name, scores in circuit.scores.items()} for circuit, _ in (one, other)]
    if places[0] != places[1] or sizes[0] != sizes[1]:
        raise BadInput(f"these are circuits of different sublayers: {places[0] | sizes[0]} and {places[1] | sizes[1]}.")
    rows, together = [], np.array([1.0])
    for name in sizes[0]:
        masks = [circuit.scores[name].cpu().numpy() > 0 for circuit, _ in (one, other)]  # (neurons,) each
        blocks = BLOCKS.get(name, ())
        pairs = {WHOLE: masks} | dict(zip(blocks, zip(*(np.split(mask, max(1, len(blocks))) for mask in masks))))
        for block, (first, second) in pairs.items():
            common = int((first & second).sum())
            chances = hypergeom.pmf(np.arange(len(first) + 1), len(first), first.sum(), second.sum())  # of 0, 1, ...
            rows.append({"map": name, "block": block, "neurons": len(first), "alone_1": int(first.sum()) - common,
                         "common": common, "alone_2": int(second.sum()) - common, "chance": chances[common:].sum()})
            if block == WHOLE:  # the maps are independent, so their counts' distributions convolve
                together = np.convolve(together, chances)
    total = {key: sum(row[key] for row in rows if row["block"] == WHOLE) for key in ("neurons", *PARTS)}
    rows.append({"map": ALL, "block": WHOLE, **total, "chance": together[total["common"]:].sum()})
    for row in rows:
        either = row["alone_1"] + row["common"] + row["alone_2"]
        row |= places[0] | {"jaccard": row["common"] / either if either else None}
    return rows


def draw(table: pd.DataFrame, names: list[str], path: Path) -> None:
    """A bar for each row: neurons of one circuit alone, of both, of the other alone, as a share of the row's."""
    figure, [[axis]] = figures.grid_of([""], [""], (9, 1.8 + 0.36 * len(table)))
    labels = [f"{COMPONENTS[row.operation]} {row.layer}: {row.map}{'' if row.block == WHOLE else f', {row.block}'}"
              for row in table.itertuples()]
    legend = {"alone_1": f"alone 1: {names[0]}", "common": "in both", "alone_2": f"alone 2: {names[1]}"}
    left = np.zeros(len(table))
    for part, (strength, hatch) in PARTS.items():
        share = (table[part] / table["neurons"]).to_numpy()
        axis.barh(labels, share, left=left, color=(COLORS["circuit"], strength), hatch=hatch, label=legend[part])
        left += share
    texts = ["alone 1 | in both | alone 2;  Jaccard index J, p by chance"] + [
        f"{row.alone_1} | {row.common} | {row.alone_2};  J {row.jaccard:.2f}, p {row.chance:.1g}"
        for row in table.itertuples()]
    for number, text in enumerate(texts):
        axis.text(1.02, number - 1, text, va="center", fontsize=9)
    axis.set(xlim=(0, 1), ylim=(len(table) - 0.5, -0.5), xlabel="share of the neurons of the map, or of all maps")
    axis.grid(axis="y", visible=False)
    figures.finish(figure, "Neurons of two circuits", path, 1)


def main() -> None:
    files: dict[str, Any] = {"nargs": 2, "type": Path, "metavar": ("A", "B")}
    options = parse(__doc__, RESULTS, {
        "--config": files | {"help": "configs of circuit_probing.py"}, "--circuits": files | {"help": "saved circuits"},
        "--out": {"type": Path, "required": True, "help": "OUT.csv, OUT.png and OUT.pdf are written"}})
    if bool(options.config) == bool(options.circuits):
        raise BadInput("give either --config A B or --circuits A B.")
    found = product(*map(circuits_of, options.config)) if options.config else [[
        load_circuit(file.absolute()) for file in options.circuits]]
    alike = [(one, other) for one, other in found if options.circuits or all(  # of the same sublayer of one model
        one[1][key] == other[1][key] for key in set(one[1]) & set(other[1]) - MAY_DIFFER)]
    if not alike:
        raise BadInput("--config: there are no two circuits of the same sublayer of one model.")
    table = pd.DataFrame([row for one, other in alike for row in overlap(one, other)])
    write_text(options.out.with_name(f"{options.out.name}.csv"), table.to_csv(index=False))
    print(table.to_string(index=False, float_format="%.3g"))
    if len(alike) > 4:  # the figure would be longer than a page
        table = table[table["map"] == ALL]
    draw(table, [*map(str, options.config or options.circuits)], options.out)


if __name__ == "__main__":
    run("summarize_model_overlap", main)
