"""Where in the sentence? Each method's values as a heat map of layers and positions, everything exchanged first.

    python analysis/summarize_positions.py --results Results/Positions/smollm2 [--where KEY=VALUE ...] [--out DIR]

Reads the results.csv of RESULTS and of every run below it, those of the paper's methods as METHOD/RUN, of circuit
probing also as RUN. Writes RUN/comparison_VARIABLE_SITE of compare_methods.py and RUN/methods_VARIABLE_SITE of the
paper's methods, on the patterns trained on (IID); positions.csv, their cells; and best.csv and best.md, each method's
highest cell, of equal ones the lowest layer's, beside what exchanging everything does there. Seeds are averaged, and
of several rank rules the first counts.
Circuits stand at the site that their sublayer writes to.
"""

import sys
from collections.abc import Iterable
from itertools import zip_longest
from math import ceil
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from analysis import figures, tables
from analysis.comparison_figures import CONTROLS, SITES, in_order
from analysis.summarize_comparison import checked
from analysis.summarize_layers import MEASURES, NAMES, measured
from interp.methods.table import METHODS, PLACES
from interp.models.positions import FIRST, LAST
from interp.plotting import wrapped
from interp.runs.config import BadInput, project_path, shown
from interp.runs.files import write_text
from interp.tasks.marks import without_marks

FULL = ("full", "everything exchanged: interchange accuracy")  # in runs of compare_methods.py, and of DAS.py
MAP = ["run", "kind", "variable", "location"]  # what a figure is of
CELL = [*MAP, "position", "layer"]
MEANS = {"value": "mean", "exceeds_full": "min", "n_pairs": "mean", "n_without_position": "max", "model": "first",
         "data_path": "first"}  # of the settings of a cell
KINDS = {"comparison": ("pairs", "interchange accuracy: share of pairs with the wanted answer"),
         "methods": ("sentences", "accuracy: of reading, of interchanges, or lost by an intervention")}
WRITES_TO = {"attn": "resid_mid", "mlp": "resid_post"}
LETTER, LINE = 0.066, 0.125  # inches, of the small print of axes
MOST = 60  # cells of a panel that are large enough for their values


def read_run(file: Path, name: str, where: dict[str, str]) -> pd.DataFrame:
    """A run's values, a row for each method or measure and each setting; without rows if it is another script's."""
    table, config = tables.read_csv(file), tables.read_config(file.parent)
    place = next((column for column in PLACES if column in table), None)
    if place is None:
        return pd.DataFrame()
    if "iia" in table:
        rows = tables.select(checked(file, table), where)
        rows = rows[rows["rank_rule"] == rows["rank_rule"].iloc[0]] if "rank_rule" in rows and len(rows) else rows
        rows = rows.assign(kind="comparison", value=rows["iia"])
    else:
        owner = next((part for part in reversed(file.parts) if part in METHODS), "circuit_probing")
        labels = [label for label, (method, *_) in MEASURES.items() if method == owner]
        columns = [column.format(**NAMES["iid"]) for label in labels for column in MEASURES[label][-1]]
        rows = tables.select(tables.check_columns(file, table, [place], ["target_layer", *columns]), where)
        n = (config.get("test_size") or float("nan")) - rows.get("n_without_position", 0)
        rows = pd.concat([rows.assign(method=label, value=measured(rows, label), n_pairs=n) for label in labels])
        rows = rows.assign(kind="methods", variable=config.get("variable", file.parent.name), exceeds_full=None)
    exceeds, model = rows["exceeds_full"].astype(str).map({"True": 1, "False": 0}), config.get("model_path", name)
    return rows.assign(run=name, location=rows[place].replace(WRITES_TO), layer=rows["target_layer"],
                       exceeds_full=exceeds, model=Path(model).name, data_path=config.get("data_path")
                       ).reindex(columns=[*CELL, "method", "model_seed", *MEANS])


def read_maps(results: Path, where: dict[str, str]) -> pd.DataFrame:
    """A row for each method and cell of all runs, from the lowest layer up; raises BadInput: none, or several sweeps.

    full: what exchanging everything does in the cell. exceeds_full: whether it is exceeded in all seeds, as 1 or 0.
    """
    parts = [pd.DataFrame(columns=["value"])]
    for folder in tables.find_runs(results):
        if (file := folder / "results.csv").exists():
            names = [part for part in tables.name_of(results, folder).split("/") if part not in METHODS]
            parts.append(read_run(file, "/".join(names) or results.name, where))
    rows = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    if rows["value"].isna().all():
        raise BadInput(f"nothing to draw in {shown(results)}: no results.csv of a method has such rows.")
    twice = rows[rows.duplicated([*CELL, "method", "model_seed"])]
    if len(twice):
        raise BadInput(f"{shown(results)} has several rows of {', '.join(map(str, twice[['method', *CELL]].iloc[0]))}; "
                       "take one value of what else it sweeps with --where KEY=VALUE.")
    maps = rows.groupby([*CELL, "method"], as_index=False).agg(MEANS)
    full = maps[maps["method"].isin(FULL)].set_index(CELL)["value"].rename("full")
    if full.empty:
        print(f"missing: what exchanging everything does (method full, or DAS) in {shown(results)}", file=sys.stderr)
    return maps.join(full, on=CELL).sort_values("layer", kind="stable", ignore_index=True)


def ordered(methods: Iterable[str]) -> list[str]:
    """Methods or measures in the order of figures: the exchange of everything first, controls last."""
    known = in_order({*methods} - {*MEASURES}) + [label for label in MEASURES if label in {*methods}]
    return sorted(known, key=lambda name: (name not in FULL, name in CONTROLS))


def in_sentence(positions: Iterable[str], data_path: str | None) -> tuple[str, dict[str, str]]:
    """The first of the sentences with the most marks, and positions in its order, called by their names and words.

    Positions that it does not mark stand before those counted from its end. Without the file there are no words.
    """
    file = project_path(data_path or "")
    texts = without_marks(tables.read_csv(file).get("sentence", []) if file.is_file() else [], shown(file))
    sentence, spans = max(zip(*texts), key=lambda text: len(text[1]), default=("", {}))
    words = {FIRST: sentence.split(" ")[0], LAST: sentence.split(" ")[-1]} | {
        name: sentence[start:end] for name, (start, end) in spans.items()}

    def place(name: str) -> tuple[int, int]:
        if name.lstrip("-").isdigit():
            return (4 if name.startswith("-") else 1), int(name)
        return (2, spans[name][1]) if name in spans else ({FIRST: 0, LAST: 5}.get(name, 3), 0)

    return sentence, {name: f"{name}\n{words.get(name, '')}".rstrip() for name in sorted(sorted(positions), key=place)}


def draw_panel(axis: Axes, rows: pd.DataFrame, layers: list[int], positions: dict[str, str], named: list[str]) -> None:
    """A method's map. layers: from the top. named: how they are called. positions: how each is called, in order."""
    grid, order = rows.pivot(index="layer", columns="position", values="value"), [*positions]
    figures.draw_heat_map(axis, grid.reindex(layers, columns=order), named, cmap="viridis", vmin=0, vmax=1, cbar=False,
                          **{"annot_kws": {"fontsize": 7}} if len(layers) * len(order) <= MOST else {"annot": False})
    beyond = rows[rows["exceeds_full"] == 1]
    figures.hatch(axis, zip(map(order.index, beyond["position"]), map(layers.index, beyond["layer"])))
    axis.set_xticks([place + 0.5 for place in range(len(order))], positions.values(), rotation=0)
    axis.tick_params(labelsize=7, pad=1)


def draw(maps: pd.DataFrame, path: Path) -> None:
    """A panel for each method on one scale of colours. maps: the rows of one figure."""
    about, methods, layers = maps.iloc[0], ordered(maps["method"]), sorted(set(maps["layer"]), reverse=True)
    sentence, positions = in_sentence(set(maps["position"]), about["data_path"])
    longest = max(len(line) for name in positions.values() for line in name.splitlines())
    width, height = len(positions) * max(0.45, LETTER * (1 + longest)), min(max(1.2, LINE * len(layers)), 5)
    columns, step = min(4, len(methods)), ceil(LINE * len(layers) / height)
    lines = ceil(len(methods) / columns)
    named = [str(layer) if (len(layers) - 1 - place) % step == 0 else "" for place, layer in enumerate(layers)]
    size = max(7.0, 1.6 + columns * (width + 0.15)), 1.3 + lines * (height + 0.8)  # a heading has that width
    figure, axes = figures.grid_of([""] * lines, [""] * columns, size)
    for place, (axis, method) in enumerate(zip_longest(axes.flat, methods)):
        if method is None:
            axis.remove()
            continue
        left = place % columns == 0
        draw_panel(axis, maps[maps["method"] == method], layers, positions, named if left else [""] * len(layers))
        axis.set_ylabel("layer" * left)
        axis.set_title(wrapped(method + " (control)" * (method in CONTROLS), width * 10), fontsize="medium")
    (unit, what), site = KINDS[about["kind"]], SITES.get(about["location"], about["location"])
    figure.colorbar(axes[0][0].collections[0], ax=figure.axes, aspect=30, fraction=0.05, pad=0.01,
                    label=what.partition(":")[0])
    n = f"; n = {figures.span(maps['n_pairs'])} {unit} a cell" if maps["n_pairs"].notna().any() else ""
    what += "; hatched: exceeds the interchange of everything" * bool((maps["exceeds_full"] == 1).any())
    what += "; grey: not run" * (len(maps) < len(methods) * len(layers) * len(positions))
    heading = f"{about['model']}: {about['variable']} {site}{n}\n{what}\n{sentence}"
    figures.finish(figure, heading.rstrip(), path)


def best_cells(maps: pd.DataFrame) -> pd.DataFrame:
    """Each method's highest cell; share_of_full: of what exchanging everything does there, for interchanges."""
    best = maps.loc[maps.dropna(subset="value").groupby([*MAP, "method"])["value"].idxmax()].set_index("method")
    best = best.loc[ordered(best.index)].reset_index().sort_values(MAP, kind="stable")
    interchanges = best["kind"].eq("comparison") | best["method"].str.contains("interchange")
    share = best["value"] / best["full"].where(interchanges & best["full"].gt(0))
    return best[[*MAP, "method", "layer", "position", "value", "full"]].assign(
        share_of_full=share, exceeds_full=best["exceeds_full"].map({1: "yes", 0: "no"}))


def main() -> None:
    options = tables.parse(__doc__, tables.RESULTS / "Positions", tables.WHERE)
    maps, out = read_maps(options.results, options.where), options.out
    for (name, kind, variable, location), rows in maps.groupby(MAP):
        draw(rows, out / name / f"{kind}_{variable}_{location}".replace(" ", "_"))
    best = best_cells(maps)
    write_text(out / "positions.csv", maps.to_csv(index=False))
    write_text(out / "best.csv", best.to_csv(index=False))
    write_text(out / "best.md", text := tables.as_markdown(best))
    print(text)


if __name__ == "__main__":
    tables.run("summarize_positions", main)
