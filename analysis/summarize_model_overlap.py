"""Are two circuits of one model the same neurons?

    python analysis/summarize_model_overlap.py --config A.yaml B.yaml --out Results/overlap
    python analysis/summarize_model_overlap.py --circuits A.safetensors B.safetensors --out Results/overlap

Finds the circuits that two configs of circuit_probing.py have saved, sublayer by sublayer, or takes two files. Counts,
for each linear map, each block of a map (the query, key and value of GPT-2's c_attn) and the whole sublayer, the
neurons that each circuit has alone and that both have; writes OUT.csv and draws OUT.png and OUT.pdf, of more than
four sublayers each as a whole only. The columns of OUT.csv:

neurons                    how many there are
alone_1, common, alone_2   of the first circuit only, of both, of the second only
jaccard                    common / (alone_1 + common + alone_2); empty where both are empty
chance                     the probability that two random sets of these sizes have as many neurons in common, or more
                           (hypergeometric distribution); for a whole sublayer its maps are drawn from apart
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import hypergeom
from torch import Tensor

import circuit_probing
from analysis.method_figures import COMPONENTS, run, whole_out
from interp.methods.masks import Circuit, load_circuit
from interp.plotting import COLORS, plt, save_figure
from interp.runs.config import BadInput, load_config, shown
from interp.runs.files import write_text
from interp.runs.settings import Setting, expand_settings, fill_in

BLOCKS = {"c_attn": ("query", "key", "value")}  # maps whose neurons are several maps' in one
WHOLE, ALL = "whole", "all maps"
SUBLAYERS_IN_DETAIL = 4  # drawn with their maps; of more the figure would be longer than a page
PARTS = {"alone_1": (0.35, ""), "common": (1, ""), "alone_2": (0.35, "//")}  # how strong a circuit's colour, hatching

Named = tuple[str, dict[str, Any], Circuit]  # the file, what it is about, the circuit


def circuits_of(file: Path) -> list[Named]:
    """The circuits that a config saves.

    Raises:
        BadInput: as saved_circuits.
    """
    config = load_config(file, circuit_probing.Config)
    return saved_circuits(file, config, expand_settings(config))


def saved_circuits(file: Path, config: circuit_probing.Config, settings: list[Setting]) -> list[Named]:
    """The circuits that some settings of a config save, in order. file: the config's.

    Raises:
        BadInput: the config saves none, they are not there yet, or what lies there is another run's.
    """
    if not config.save_models:
        raise BadInput(f"{file}: it has save_models: false, so there are no saved circuits.")
    found = []
    for setting in settings:
        [path] = circuit_probing.artifacts(config, setting)
        if not path.exists():
            raise BadInput(f"{file}: there is no {shown(path)}; "
                           f"'python circuit_probing.py --config {file}' makes it.")
        found.append(load_named(path))
        name, about, _ = found[-1]
        wanted_of = circuit_probing.description(config, setting, fill_in("model_path", config.model_path, setting))
        for key, wanted in wanted_of.items():
            if about.get(key, wanted) != wanted:
                raise BadInput(f"{file}: {name} is another run's: its {key} is {about[key]}, not {wanted}.")
    return found


def load_named(path: Path) -> Named:
    circuit, about = load_circuit(path)
    return shown(path), about, circuit


def pairs(first: list[Named], second: list[Named]) -> list[tuple[Named, Named]]:
    """The circuits of the same sublayer, of the same model, learned with the same setting.

    Raises:
        BadInput: there are none.
    """
    def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
        may_differ = {"task", "variable", "lr", "batch_size"}
        return all(one[key] == other[key] for key in (set(one) & set(other)) - may_differ)

    found = [(one, other) for one in first for other in second if alike(one[1], other[1])]
    if not found:
        raise BadInput(f"{first[0][0]} and {second[0][0]}: no two circuits of the same sublayer of one model.")
    return found


def check_comparable(one: Named, other: Named) -> None:
    places = [f"{COMPONENTS.get(str(named[1].get('operation')))} of layer {named[1].get('target_layer')}"
              for named in (one, other)]
    if places[0] != places[1]:
        raise BadInput(f"{one[0]} and {other[0]} are circuits of different sublayers: {' and '.join(places)}.")
    sizes = [{name: len(scores) for name, scores in named[2].scores.items()} for named in (one, other)]
    if sizes[0] != sizes[1]:
        raise BadInput(f"{one[0]} and {other[0]} are circuits of different sublayers: their maps are {sizes[0]} "
                       f"and {sizes[1]} neurons wide.")


def overlap(one: Named, other: Named) -> list[dict[str, Any]]:
    """A row for each map, each block, and the sublayer as a whole."""
    check_comparable(one, other)
    where = {"layer": one[1].get("target_layer"), "operation": one[1].get("operation")}
    rows, together = [], np.array([1.0])
    for name in one[2].scores:
        masks = one[2].scores[name] > 0, other[2].scores[name] > 0  # (neurons,) each
        blocks = BLOCKS.get(name, ())
        parts = {WHOLE: masks} | dict(zip(blocks, zip(*(mask.chunk(max(1, len(blocks))) for mask in masks))))
        for block, pair in parts.items():
            counted = count(*pair)
            chances = chance_distribution(counted)
            rows.append({"map": name, "block": block, **counted, "chance": at_least(chances, counted["common"])})
            if block == WHOLE:  # the maps are independent, so their counts' distributions convolve
                together = np.convolve(together, chances)
    total = {key: sum(row[key] for row in rows if row["block"] == WHOLE) for key in ("neurons", *PARTS)}
    rows.append({"map": ALL, "block": WHOLE, **total, "chance": at_least(together, total["common"])})
    return [where | row | {"jaccard": jaccard(row)} for row in rows]


def count(one: Tensor, other: Tensor) -> dict[str, int]:
    """Neurons alone and in common; one, other: (neurons,) of truth values."""
    return {"neurons": len(one), "alone_1": int((one & ~other).sum()), "common": int((one & other).sum()),
            "alone_2": int((other & ~one).sum())}


def chance_distribution(counted: dict[str, int]) -> np.ndarray:
    """The probability of each number of common neurons, 0 to all, for random circuits of these sizes."""
    sizes = counted["alone_1"] + counted["common"], counted["alone_2"] + counted["common"]
    return hypergeom.pmf(np.arange(counted["neurons"] + 1), counted["neurons"], *sizes)


def at_least(distribution: np.ndarray, common: int) -> float:
    return float(min(distribution[common:].sum(), 1.0))


def jaccard(row: dict[str, Any]) -> float | None:
    either = row["alone_1"] + row["common"] + row["alone_2"]
    return row["common"] / either if either else None


def draw(table: pd.DataFrame, names: tuple[str, str], path: Path) -> None:
    """A bar for each row: neurons of one circuit alone, of both, of the other alone, as a share of the map's.

    Rows of whole sublayers, all maps together, are shares of the sublayer's.
    """
    figure, axis = plt.subplots(figsize=(9, 1.8 + 0.36 * len(table)), layout="constrained")
    labels = [f"{COMPONENTS[row.operation]} {row.layer}: {row.map}{'' if row.block == WHOLE else f', {row.block}'}"
              for row in table.itertuples()]
    left = np.zeros(len(table))
    legend = {"alone_1": f"alone 1: {names[0]}", "common": "in both", "alone_2": f"alone 2: {names[1]}"}
    for part, (strength, hatch) in PARTS.items():
        share = table[part].to_numpy() / table["neurons"].to_numpy()
        axis.barh(labels, share, left=left, color=(COLORS["circuit"], strength), hatch=hatch, label=legend[part])
        left += share
    for number, row in enumerate(table.itertuples()):
        similarity = "both empty" if pd.isna(row.jaccard) else f"J {row.jaccard:.2f}, p {row.chance:.1g}"
        axis.text(1.02, number, f"{row.alone_1} | {row.common} | {row.alone_2};  {similarity}",
                  va="center", fontsize=9)
    axis.text(1.02, -0.75, "alone 1 | in both | alone 2;  Jaccard index J, p by chance", va="center", fontsize=9,
              style="italic")
    axis.set(xlim=(0, 1), ylim=(len(table) - 0.5, -0.5),
             xlabel=f"share of the {'sublayer' if set(table['map']) == {ALL} else 'map'}'s neurons")
    axis.set_title("Neurons of two circuits", loc="left")
    axis.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=3 if max(map(len, names)) < 30 else 1)
    save_figure(figure, path)


def distinct_names(first: str, second: str) -> tuple[str, str]:
    """Two paths without the parts that they share: what tells them apart."""
    parts = [list(Path(name).with_suffix("").parts) for name in (first, second)]
    for end in (0, -1):
        while min(map(len, parts)) > 1 and parts[0][end] == parts[1][end]:
            for own in parts:
                own.pop(end)
    return "/".join(parts[0]), "/".join(parts[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", nargs=2, type=Path, metavar=("A", "B"), help="configs of circuit_probing.py")
    source.add_argument("--circuits", nargs=2, type=Path, metavar=("A", "B"), help="saved circuits")
    parser.add_argument("--out", type=Path, required=True, help="OUT.csv, OUT.png and OUT.pdf are written")
    options = parser.parse_args()
    out = whole_out(options.out, names_files=True)
    if options.config:
        found = pairs(*(circuits_of(file) for file in options.config))
    else:
        one, other = (load_named(path.absolute()) for path in options.circuits)
        found = [(one, other)]
    table = pd.DataFrame([row for pair in found for row in overlap(*pair)])
    write_text(out.with_name(f"{out.name}.csv"), table.to_csv(index=False))
    print(table.to_string(index=False, float_format="%.3g"))
    wholes = table[table["map"] == ALL]
    drawn = table if len(wholes) <= SUBLAYERS_IN_DETAIL else wholes
    draw(drawn, distinct_names(*map(str, options.config or options.circuits)), out)


if __name__ == "__main__":
    run("summarize_model_overlap", main)
