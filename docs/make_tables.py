"""Fill the marked tables of these pages from the runs in docs/tables, which keep_runs.py puts there.

    python docs/make_tables.py

A table stands below a line `<!-- table: NAME -->` and ends before the next line that is no row of a table.
"""

import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from keep_runs import TABLES, unpack

from analysis import summarize_layers
from analysis.comparison_figures import in_order
from analysis.language_figures import marks_of, measure_effects, rank_sublayers, read_run
from analysis.summarize_comparison import as_cells, leaderboard, read_runs, shared_cells
from analysis.tables import COMPONENTS, markdown_table
from interp.runs.files import write_text

PAGES = [Path(__file__).with_name(f"{name}.md") for name in ("results", "comparison", "experiment_4", "positions")]
MARKED = re.compile(r"^<!-- table: (.+) -->\n((?:\|.*\n?)*)", re.MULTILINE)
ON_LEADERBOARD = ["Disambiguation", "Untrained", "Shared_Nodes_Task_1", "Shared_Nodes_Task_2", "Grokking"]
IN_WORDS = {
    "lda": "LDA, which needs no training", "neuron_mask": "circuit probing's masks, learned from answers", "das": "DAS",
    "circuit_selected": "circuit probing, sparsity penalty chosen", "linear_probe": "linear probe", "leace": "LEACE",
    "difference_in_means": "difference in means", "circuit_update": "circuit probing, the paper's sparsity penalty",
    "random": "random directions", "mlp_probe": "MLP probe, counterfactual embedding"}

Rows = list[list[str]]


def mean(rows: pd.DataFrame, column: str = "iia", digits: int = 2) -> str:
    """The mean of a column as text; empty where it has no value."""
    values = rows[column].dropna()
    return f"{round(values.mean(), digits) + 0.0:.{digits}f}" if len(values) else ""  # + 0.0: no -0.00


def with_mark(rows: pd.DataFrame) -> str:
    """iia, *b* where it exceeds full."""
    return mean(rows) + (" *b*" if (rows["exceeds_full"].astype(str) == "True").any() else "")


def by_method(columns: dict[str, tuple[pd.DataFrame, Callable[[pd.DataFrame], str]]], title: str = "method") -> Rows:
    """A row for each method that has a value, in the order of the figures.

    columns: by its title, the rows of all methods that a column is made from, and what it says of one method's.
    """
    methods = in_order(pd.concat([table for table, _ in columns.values()])["method"])
    rows = [[name, *(say(table[table["method"] == name]) for table, say in columns.values())] for name in methods]
    return [[title, *columns], *(row for row in rows if any(row[1:]))]


def comparison(runs: Path, name: str, where: str) -> pd.DataFrame:
    """The rows of a run of the comparison that a query selects."""
    return read_runs(runs / "Comparison").query(f"experiment == '{name}'").query(where)


def same_models(runs: Path) -> Rows:
    """a² - b², a² and -b² after attention, beside the same three seeds trained again on another machine."""
    where = "variable in ['var_0', 'var_1'] and residual_location == 'resid_mid'"
    again = pd.read_csv(TABLES / "comparison_a2_minus_b2.csv").query(where)
    columns = {}
    for rows, end in ((comparison(runs, "Disambiguation", where), ""), (again, ", again")):
        columns |= {f"iia{end}": (rows, mean),
                    f"range of iia{end}": (rows, lambda own: f"{own['iia'].min():.2f} to {own['iia'].max():.2f}"),
                    f"isolate{end}": (rows, lambda own: mean(own, "isolate"))}
    return by_method(columns)


def two_tasks(runs: Path) -> Rows:
    """Both tasks of Experiment 2's model after attention; task 1 / task 2 in a cell."""
    tasks = pd.concat([comparison(runs, f"Shared_Nodes_Task_{task}", "residual_location == 'resid_mid'")
                       for task in (1, 2)])
    kinds = {"shared": "var_0", "free": "var_1", "other task's": "aux_0"}
    return by_method({kind: (tasks[tasks["variable"] == variable], lambda own: " / ".join(
        mean(rows) for _, rows in own.groupby("experiment"))) for kind, variable in kinds.items()})


def checkpoints(runs: Path) -> Rows:
    """a² over the checkpoints of a² + b, after attention, and the model's test accuracy."""
    table = comparison(runs, "Grokking-checkpoints", "variable == 'var_0' and residual_location == 'resid_mid'")
    steps = [100, 500, 1000, 3000, 5000, 7000, 9000, 10000, 12500, 15000, 17500, 20000]
    at = {str(step): table[table["checkpoint"].astype(float) == step] for step in steps}
    header, *rows = by_method({step: (own, mean) for step, own in at.items()}, "epoch")
    return [header, ["model's test accuracy", *(mean(own, "model_acc") for own in at.values())], *rows]


def layers(runs: Path, model: str, variable: str, shown: Iterable[int]) -> Rows:
    """A language model's interchange accuracy after the MLP of some layers."""
    table = comparison(runs, f"SV_Agreement-{model}", f"variable == '{variable}' and residual_location == 'resid_post'")
    return by_method({f"layer {layer}": (table[table["target_layer"] == layer], mean) for layer in shown})


def trained(runs: Path, model: str, shown: Iterable[int]) -> Rows:
    """The methods that are trained at every site, and the others there: what exceeds full."""
    table = comparison(runs, f"SV_Agreement-{model}-trained", "variable == 'labels'")
    return by_method({f"{layer}, {after}": (table.query(f"target_layer == {layer} and residual_location == '{site}'"),
                                            with_mark)
                      for layer in shown for after, site in (("attention", "resid_mid"), ("MLP", "resid_post"))})


@cache  # 20 seconds
def ranked(runs: Path) -> pd.DataFrame:
    """The leaderboard of all arithmetic runs."""
    table = read_runs(runs / "Comparison")
    return leaderboard(shared_cells(table[table["experiment"].isin(ON_LEADERBOARD)]))


def in_short(runs: Path) -> Rows:
    """The leaderboard's most telling methods, under names that need no glossary, in its order."""
    rows = [[IN_WORDS[row["method"]],
             f"{row['iia_carried']:.2f} [{row['iia_carried_low']:.2f}, {row['iia_carried_high']:.2f}]",
             f"{row['isolate_carried']:.2f}", f"{row['iia_not_carried']:.2f}"]
            for _, row in ranked(runs).iterrows() if row["method"] in IN_WORDS]
    return [["method", "answers changed as they should (interchange accuracy), [95 %]",
             "answers left alone as they should", "variable not carried"], *rows]


def circuits(runs: Path, run: str, task: str, sets: dict[str, str], at_most: int) -> Rows:
    """The sublayers whose circuits' ablation costs most beyond random neurons on the first of some evaluation sets.

    sets: as a run's tables call them, and as the page does.
    """
    table, ablations = read_run(runs / run, task, sets)
    effects = measure_effects(ablations)
    effects = effects.assign(below=marks_of(effects) != "other")
    evaluated = [name for name in ("test", "gen") if f"knn_{name}_acc" in table]
    rows = [["sublayer", "L0", f"KNN{' IID / gen' * (len(evaluated) > 1)}",
             *(f"{what} {name}".strip() for name in sets.values() for what in ("ablated", "random")),
             f"below every draw{': ' * any(sets.values())}{', '.join(sets.values())}"]]
    for (layer, operation), row in rank_sublayers(table, effects, list(sets)).head(at_most).iterrows():
        at = [effects.loc[(layer, operation, name)] for name in sets]
        neighbors = [f"{row[f'knn_{name}_acc']:.2f} ({row[f'full_model_knn_{name}_acc']:.2f})" for name in evaluated]
        rows.append([f"{COMPONENTS[operation]} {layer}", f"{row['l0_share']:.2g}", " / ".join(neighbors)])
        for effect in at:
            rows[-1] += [f"{effect['ablated']:.3f}", f"{effect['random']:.3f} ± {effect['random_sd']:.3f}"]
        rows[-1].append(", ".join("yes" if effect["below"] else "no" for effect in at))
    return rows


def sites(runs: Path, model: str, shown: Iterable[int]) -> Rows:
    """Every method at some layers of a language model, on the sentences of agreement."""
    tables = summarize_layers.read_tables(runs / "SV_Agreement", model, {})
    table = summarize_layers.as_table(summarize_layers.collect(tables))
    return summarize_layers.as_cells(table.loc[table.index.get_level_values("layer").isin(list(shown))])


def moves(runs: Path) -> Rows:
    """Of each task and model, where everything exchanged changes the answer: at a word, then at the last token."""
    rows = [["task", "model", "pairs", "at the word: share in the lowest layer, above half up to", "above half at the "
             "last token from", "most elsewhere"]]
    for file in sorted((runs / "Positions").glob("*/*/results.csv"), key=lambda file: (file.parent.name, file.parts)):
        table = pd.read_csv(file, dtype={"position": str}).query("method == 'full'")
        grid = table.pivot(index="target_layer", columns="position", values="iia")
        last = grid.pop("last")
        grid = grid[[name for name in grid if not grid[name].equals(last)]]  # what is marked may end the sentence
        word = grid.iloc[0].idxmax()
        other = grid.drop(columns=word).stack()
        layer, position = other.idxmax()
        rows.append([file.parent.name.replace("_", " "), {"smollm2": "SmolLM2", "gemma3": "Gemma 3"}[file.parts[-3]],
                     str(table["n_pairs"].max()),
                     f"{word} {grid[word].iloc[0]:.2f}, layer {grid.index[grid[word] > 0.5].max()}",
                     f"layer {last.index[last > 0.5].min()}", f"{other.max():.2f} ({position}, layer {layer})"])
    return rows


def causalgym(runs: Path) -> Rows:
    """CausalGym's measure by method and model, the mean over its tasks; kept as summarize_comparison.py writes it."""
    board = pd.read_csv(TABLES / "causalgym.csv")
    grid = board.pivot(index="method", columns="model", values="mean").loc[in_order(board["method"])]
    return [["log odds (nats)", *grid], *([name, *(f"{value:.2f}" for value in row)] for name, row in zip(
        grid.index, grid.to_numpy()))]


SMOLLM2 = (0, 6, 12, 18, 24, 25, 26, 27, 28, 29)  # layers
GEMMA = (0, 4, 8, 10, 12, 13, 14, 15, 16, 17)
MADE: dict[str, tuple] = {  # by a table's name, the function that makes it and its arguments
    "in short": (in_short,), "leaderboard": (lambda runs: as_cells(ranked(runs)),),
    "a² - b²": (same_models,), "two tasks": (two_tasks,), "checkpoints": (checkpoints,),
    "SmolLM2, subject": (layers, "smollm2", "labels", SMOLLM2),
    "SmolLM2, object": (layers, "smollm2", "object labels", SMOLLM2),
    "SmolLM2, trained": (trained, "smollm2", (18, 24, 25, 26, 27)),
    "Gemma, subject": (layers, "gemma3", "labels", GEMMA), "Gemma, object": (layers, "gemma3", "object labels", GEMMA),
    "Gemma, trained": (trained, "gemma3", (9, 12, 13, 14, 16)),
    "agreement": (circuits, "SV_Agreement/smollm2", "agreement", {"iid": "IID", "gen": "gen"}, 12),
    "reflexives": (circuits, "Reflexives/smollm2", "reflexive", {
        "iid_masculine": "masculine", "iid_feminine": "feminine"}, 7),
    "syntactic number": (circuits, "Syntactic_Number/smollm2", "syntactic_number", {"iid": ""}, 6),
    "SmolLM2, all methods": (sites, "smollm2", (0, 3, 6, 9, 12, 15, 18, 21, 24, 25, 26, 27, 28, 29)),
    "positions": (moves,), "CausalGym": (causalgym,),
    "Gemma, all methods": (sites, "gemma3", range(18))}


def page(text: str, runs: Path) -> str:
    """A page's text with its tables as the kept runs have them, which are below a folder."""
    def filled(found: re.Match) -> str:
        make, *arguments = MADE[found[1]]
        return f"<!-- table: {found[1]} -->\n{markdown_table(make(runs, *arguments))}"

    return MARKED.sub(filled, text)


def pages() -> dict[Path, str]:
    """The text of all pages with their tables."""
    with TemporaryDirectory() as folder:
        unpack(Path(folder))
        return {file: page(file.read_text(encoding="utf-8"), Path(folder)) for file in PAGES}


if __name__ == "__main__":
    for file, text in pages().items():
        write_text(file, text)
