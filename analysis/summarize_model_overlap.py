"""Are two circuits of one model the same neurons?

    python analysis/summarize_model_overlap.py --config A.yaml B.yaml --out Results/overlap
    python analysis/summarize_model_overlap.py --circuits A.safetensors B.safetensors --out Results/overlap

Takes the circuits that two configs of circuit_probing.py have saved, sublayer by sublayer, or two files. Counts, for
each linear map, each block of a map (the query, key and value of GPT-2's c_attn) and the whole sublayer, the neurons
that each circuit has alone and that both have; writes OUT.csv and draws OUT.png and OUT.pdf, of more than four
sublayers each as a whole only. The columns of OUT.csv:

neurons                    how many there are
alone_1, common, alone_2   of the first circuit only, of both, of the second only
jaccard                    common / (alone_1 + common + alone_2); empty where both are empty
chance                     the probability that two random sets of these sizes have as many neurons in common, or more
                           (hypergeometric distribution); for a whole sublayer its maps are drawn from apart
"""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import hypergeom

from analysis import figures
from analysis.tables import COMPONENTS, RESULTS, Options, parse, run, swept
from interp.methods.masks import Circuit, load_circuit
from interp.plotting import COLORS
from interp.runs.config import BadInput, project_path, read_yaml, shown
from interp.runs.files import write_text

BLOCKS = {"c_attn": ("query", "key", "value")}  # maps whose neurons are several maps' in one
WHOLE, ALL = "whole", "all maps"
SUBLAYERS_IN_DETAIL = 4  # drawn with their maps; of more the figure would be longer than a page
PARTS = {"alone_1": (0.35, ""), "common": (1, ""), "alone_2": (0.35, "//")}  # how strong a circuit's colour, hatching

Named = tuple[str, dict[str, Any], Circuit]  # the file, its description, the circuit


def load_named(path: Path) -> Named:
    circuit, about = load_circuit(path)
    return shown(path), about, circuit


def circuits_of(file: Path) -> list[Named]:
    """The circuits that a config of circuit_probing.py has saved; raises BadInput if there are none, or another run's."""
    config = read_yaml(file.absolute())
    folder = project_path(config.get("model_dir") or "")
    found = [load_named(path) for path in sorted(folder.glob("circuit_*.safetensors"))] if config.get("model_dir") else []
    for name, about, _ in found:
        if about.get("variable") != config.get("variable", about.get("variable")):
            raise BadInput(f"{file}: {name} is another run's, of the variable '{about.get('variable')}'.")
    found = [named for named in found if all(named[1].get(key, values[0]) in values
                                             for key, values in swept(config).items())]
    if not found:
        raise BadInput(f"{file}: there are no circuits in {shown(folder)}; 'python circuit_probing.py --config {file}', "
                       "with save_models: true, makes them.")
    return found


def alike(one: Named, other: Named) -> bool:
    """Whether two circuits are of the same sublayer of one model, learned with the same setting."""
    keys = (set(one[1]) & set(other[1])) - {"task", "variable", "lr", "batch_size"}  # these may differ
    return all(one[1][key] == other[1][key] for key in keys)


def overlap(one: Named, other: Named) -> list[dict[str, Any]]:
    """A row for each map, each block, and the sublayer as a whole; raises BadInput if they are of other sublayers."""
    layer, operation = (one[1].get(key) for key in ("target_layer", "operation"))
    sizes = [{name: len(scores) for name, scores in circuit.scores.items()} for _, _, circuit in (one, other)]
    if (layer, operation) != (other[1].get("target_layer"), other[1].get("operation")) or sizes[0] != sizes[1]:
        raise BadInput(f"{one[0]} and {other[0]} are circuits of different sublayers.")
    rows, together = [], np.array([1.0])
    for name in one[2].scores:
        masks = [circuit.scores[name].cpu().numpy() > 0 for _, _, circuit in (one, other)]  # (neurons,) each
        blocks = BLOCKS.get(name, ())
        pairs = {WHOLE: masks} | dict(zip(blocks, zip(*(np.array_split(mask, max(1, len(blocks))) for mask in masks))))
        for block, (first, second) in pairs.items():
            common = int((first & second).sum())
            chances = hypergeom.pmf(np.arange(len(first) + 1), len(first), first.sum(), second.sum())  # of 0, 1, ...
            rows.append({"map": name, "block": block, "neurons": len(first), "alone_1": int(first.sum()) - common,
                         "common": common, "alone_2": int(second.sum()) - common, "chance": chances[common:].sum()})
            if block == WHOLE:  # the maps are independent, so their counts' distributions convolve
                together = np.convolve(together, chances)
    total = {key: sum(row[key] for row in rows if row["block"] == WHOLE) for key in ("neurons", *PARTS)}
    rows.append({"map": ALL, "block": WHOLE, **total, "chance": together[total["common"]:].sum()})
    return [{"layer": layer, "operation": operation, **row, "chance": min(row["chance"], 1.0), "jaccard":
             row["common"] / either if (either := sum(row[part] for part in PARTS)) else None} for row in rows]


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
    for number, row in enumerate(table.itertuples()):
        similarity = "both empty" if pd.isna(row.jaccard) else f"J {row.jaccard:.2f}, p {row.chance:.1g}"
        axis.text(1.02, number, f"{row.alone_1} | {row.common} | {row.alone_2};  {similarity}", va="center", fontsize=9)
    axis.text(1.02, -0.75, "alone 1 | in both | alone 2;  Jaccard index J, p by chance", va="center", fontsize=9,
              style="italic")
    axis.set(xlim=(0, 1), ylim=(len(table) - 0.5, -0.5), xlabel="share of the neurons of the map, or of all maps")
    axis.grid(axis="y", visible=False)
    figures.finish(figure, "Neurons of two circuits", path, 1)


def main() -> None:
    files: dict[str, Any] = {"nargs": 2, "type": Path, "metavar": ("A", "B")}
    known: Options = {"--config": files | {"help": "configs of circuit_probing.py"},
                      "--circuits": files | {"help": "saved circuits"},
                      "--out": {"type": Path, "required": True, "help": "OUT.csv, OUT.png and OUT.pdf are written"}}
    options = parse(__doc__, RESULTS, known)
    if bool(options.config) == bool(options.circuits):
        raise BadInput("give either --config A B or --circuits A B.")
    if options.config:
        found = [pair for pair in product(*map(circuits_of, options.config)) if alike(*pair)]
    else:
        found = [(load_named(options.circuits[0].absolute()), load_named(options.circuits[1].absolute()))]
    if not found:
        raise BadInput("--config: there are no two circuits of the same sublayer of one model.")
    table = pd.DataFrame([row for pair in found for row in overlap(*pair)])
    write_text(options.out.with_name(f"{options.out.name}.csv"), table.to_csv(index=False))
    print(table.to_string(index=False, float_format="%.3g"))
    wholes = table[table["map"] == ALL]
    drawn = table if len(wholes) <= SUBLAYERS_IN_DETAIL else wholes
    draw(drawn, [*map(str, options.config or options.circuits)], options.out)


if __name__ == "__main__":
    run("summarize_model_overlap", main)
