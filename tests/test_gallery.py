"""Every kind of figure, from tables at the edges: its values are the table's, and its words are readable and apart."""

import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis import comparison_figures, summarize_model_overlap
from interp import plotting
from interp.methods.interchange.registry import INTERCHANGES
from interp.methods.table import COMPONENT_OF, METHODS
from test_analysis import save, table_of, write_run

pytestmark = pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning", "error::DeprecationWarning",
                                        "error::FutureWarning")
LONG = "a_variable_with_a_long_name_such_as_people_give"
VALUE = re.compile(r"-?\d\.\d\d|n/a")
ROLES = {"circuit": "circuit", "circuit ablated": "circuit", "full model": "whole", "full sublayer": "whole",
         "linear probe": "linear probe", "LEACE: accuracy lost": "LEACE", "boundless DAS": "DAS"}


@pytest.fixture
def gallery(monkeypatch):
    """The figures that are saved, by name, each looked at as it is; no file is drawn."""
    found = {}

    def savefig(figure, file, format, **options):
        if format == "png":
            found[file.name.partition(".png")[0].strip(".")] = figure
            look_at(figure)
        file.write_bytes(b"a figure")

    monkeypatch.setattr(Figure, "savefig", savefig)
    return found


def look_at(figure) -> None:
    """The legend names all that is plotted, in its role's colour; words are inside and do not overlap."""
    figure.draw_without_rendering()
    plotted, named = set(), set()
    for axis in figure.axes:
        panel = axis.get_window_extent()
        for text in axis.texts:  # the values of bars and cells
            if VALUE.fullmatch(text.get_text()):
                box = text.get_window_extent()
                assert panel.x0 - 1 <= box.x0 and box.x1 <= panel.x1 + 1, text
                assert panel.y0 - 1 <= box.y0 and box.y1 <= panel.y1 + 1, text
        names = [tick for tick in axis.get_xticklabels() if tick.get_rotation() == 0]
        for texts in (axis.texts, names, axis.get_yticklabels()):
            check_apart(text for text in texts if text.get_text())
        for handle, label in zip(*axis.get_legend_handles_labels()):
            plotted.add(label)
            if label in ROLES:
                color = handle.patches[0].get_facecolor() if hasattr(handle, "patches") else handle.get_color()
                assert to_hex(color) == to_hex(plotting.COLORS[ROLES[label]]), label
        named |= {text.get_text() for text in axis.get_legend().get_texts()} if axis.get_legend() else set()
    named |= {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert plotted <= named, plotted - named
    for title in figure.texts:
        assert title.get_window_extent().width <= 1.1 * figure.bbox.width, title
    check_apart([*figure.texts, *figure.legends, *figure.axes])


def check_apart(artists) -> None:
    artists = list(artists)
    boxes = np.array([artist.get_window_extent().extents for artist in artists]).reshape(-1, 2, 2)  # (n, corner, axis)
    across = (boxes[:, None, 0] + 1 < boxes[None, :, 1]).all(-1)  # (n, n): begins before the other ends
    pairs = [(artists[i], artists[j]) for i, j in np.argwhere(across & across.T) if i < j]
    assert not pairs, [str(artist) for artist in pairs[0]]


def bars(axis) -> dict[str, list[float]]:
    """The heights of bars by label."""
    return {group.get_label(): [bar.get_height() for bar in group] for group in axis.containers
            if isinstance(group, BarContainer)}


def lines(axis) -> dict[str, list[float]]:
    """The y values of lines by label."""
    return {line.get_label(): list(line.get_ydata()) for line in axis.get_lines()}


def points(axis) -> list[float]:
    """The x values of the points that have horizontal error bars, from the top down."""
    return [group.lines[0].get_xdata()[0] for group in axis.containers if isinstance(group, ErrorbarContainer)]


def equal(values, **options):
    return pytest.approx(list(values), nan_ok=True, **options)


def words_of(figure) -> str:
    return " ".join(" ".join(text.get_text() for text in figure.findobj(Text)).split())


PROBES = ["test_acc", "counterfactual_predicts_cf_label"]
COLUMNS = {
    "circuit_probing": ["knn_test_acc", "full_model_knn_test_acc", "majority_test_acc", "vanilla_acc_test",
                        "ablated_acc_test", "random_ablated_acc_test_mean", "random_ablated_acc_test_std",
                        "ablated_acc_same", "ablated_acc_different", "c_fc_ablated_acc_same",
                        "c_fc_ablated_acc_different"],
    "linear_probing": PROBES, "nonlinear_probing": PROBES,
    "amnesic": ["test_pre_erasure_probe_acc", "test_vanilla_acc", "test_acc", "heldout_acc"],
    "DAS": ["interchange_intervention_acc", "boundary"]}


def write_methods(folder, variables, methods=tuple(COLUMNS), components=("attn", "mlp"), empty=r"^$", used=True,
                  **swept) -> pd.DataFrame:
    """Tables of random values, as methods write them, and all of them in one. empty: columns without values."""
    generator, tables = np.random.default_rng(0), []
    for method in methods:
        place = METHODS[method].place
        names = [name for name, component in COMPONENT_OF.items() if component in components
                 and not name.endswith("_out") and name.startswith("resid") == (place == "residual_location")]
        keys = {"target_layer": [0], place: names, **swept}
        if method == "amnesic":
            keys["precision"] = ["float64", "float32"]
        for variable in variables:
            table = pd.MultiIndex.from_product(keys.values(), names=keys).to_frame(index=False)
            for column in COLUMNS[method]:
                if used or not re.search("ablated|vanilla|counterfactual", column):
                    table[column] = np.nan if re.search(empty, column) else generator.random(len(table)).round(3)
            (folder / method / variable).mkdir(parents=True, exist_ok=True)
            table.to_csv(folder / method / variable / "results.csv", index=False)
            tables.append(table.assign(method=method, variable=variable, component=table[place].map(COMPONENT_OF)))
    return pd.concat(tables)


def means(table, column, by="variable", **where) -> list[float]:
    for key, value in where.items():
        table = table[table[key] == value]
    return table.groupby(by, sort=False)[column].mean().tolist()


EDGES = {
    "one variable, no random draws": dict(variables=["a4"], empty="^random"),
    "four variables, three seeds": dict(variables=["a2", "minus_b2", "a_plus_b", "a_minus_b"], model_seed=[0, 1, 2]),
    "long names": dict(variables=[LONG, f"{LONG}_too", "short"]),
    "circuits alone": dict(variables=["a2"], methods=["circuit_probing"]),
    "attention alone": dict(variables=["a2"], components=["attn"]),
    "nothing is used": dict(variables=["a2"], methods=["circuit_probing", "linear_probing"], used=False)}


@pytest.mark.parametrize("name", EDGES)
def test_experiment_1(name, tmp_path, analyse, gallery):
    table = write_methods(tmp_path, **EDGES[name])
    analyse("summarize_disambiguation", "--results", tmp_path)
    variables = EDGES[name]["variables"]
    neighbors = gallery["nearest_neighbors"]
    for axis, component in zip(neighbors.axes, ("attn", "mlp")):
        of_circuits = dict(method="circuit_probing", component=component)
        assert bars(axis) == {"circuit": equal(means(table, "knn_test_acc", **of_circuits)),
                              "full sublayer": equal(means(table, "full_model_knn_test_acc", **of_circuits))}
        assert len(axis.get_xticklabels()) == len(variables)
    assert ("ablation" in gallery) == (name != "nothing is used")
    assert ("there_and_used" in gallery) == (name != "circuits alone")
    if "there_and_used" in gallery:
        axis = gallery["there_and_used"].axes[0]
        row = [label.get_text() for label in axis.get_yticklabels()].index("linear probe")
        cells = axis.collections[0].get_array().reshape(-1, len(axis.get_xticklabels()))
        assert cells[row][: len(variables)].tolist() == equal(
            means(table, "test_acc", method="linear_probing", component="attn"))
    if name == "one variable, no random draws":
        for axis in gallery["ablation"].axes:
            assert np.isnan(bars(axis)["as many random neurons ablated (sd)"]).all()
            assert [text.get_text() for text in axis.texts].count("n/a") == 1
            assert axis.get_xlim() == (-1, 1)  # the bar that is n/a has its room


def test_experiment_2(tmp_path, analyse, gallery):
    analyse("summarize_shared_nodes", "--results", tmp_path, refusal="nothing to draw")
    assert not list(tmp_path.iterdir())
    write_methods(tmp_path / "Task_1", ["shared"], methods=["circuit_probing"], components=["mlp"])
    table = write_methods(tmp_path / "Task_2", ["free", "shared", "aux"])
    assert "Task_1/circuit_probing/free/results.csv" in analyse("summarize_shared_nodes", "--results", tmp_path).stderr
    assert {file.stem for file in (tmp_path / "figures/Task_1").glob("*.pdf")} == {"nearest_neighbors", "ablation_mlp"}
    [axis] = gallery["ablation_mlp"].axes
    assert bars(axis)["its first map ablated: other task"] == equal(
        means(table, "c_fc_ablated_acc_different", component="mlp", method="circuit_probing"))
    assert len({patch.get_hatch() for patch in axis.patches}) == 4  # one colour, four bars


@pytest.mark.parametrize("epochs, seeds", [([100], [0]), ([100, 900, 20000], [0, 1])])
def test_experiment_3(epochs, seeds, tmp_path, analyse, gallery):
    table = write_methods(tmp_path, ["a2", "b2"], model_seed=seeds, checkpoint=epochs, empty="^random")
    pd.DataFrame({"epoch": epochs, "train_acc": 1.0, "test_acc": 0.5}).to_csv(tmp_path / "curves.csv", index=False)
    analyse("summarize_grokking", "--results", tmp_path, "--curves", tmp_path / "curves.csv")
    assert set(gallery) == {"probe_accuracy", "ablation", "amnesic", "DAS"}
    for figure in gallery.values():
        assert lines(figure.axes[0]) == {"model, train": [1.0] * len(epochs), "model, test": [0.5] * len(epochs)}
    of_circuits = dict(by="checkpoint", method="circuit_probing", variable="b2", component="mlp")
    assert lines(gallery["ablation"].axes[5]) == {  # and no line of random draws
        "full model": equal(means(table, "vanilla_acc_test", **of_circuits)),
        "circuit ablated": equal(means(table, "ablated_acc_test", **of_circuits))}


SETS = [f"{name}_{gender}" for name in ("iid", "gen") for gender in ("masculine", "feminine")]
LANGUAGE = {  # script, layers, seeds, sublayers, evaluation sets, random draws
    "one sublayer": ("summarize_agreement", [3], 1, ["attn"], ["iid"], 5),
    "no draw anywhere": ("summarize_agreement", [0, 5], 1, ["mlp"], ["iid", "gen"], 0),
    "sixty layers": ("summarize_agreement", range(60), 1, ["attn", "mlp"], ["iid", "gen"], 5),
    "three seeds": ("summarize_agreement", [0, 9], 3, ["attn"], ["iid"], 5),
    "four sets": ("summarize_reflexives", range(24), 1, ["attn", "mlp"], SETS, 5)}


@pytest.mark.parametrize("name", LANGUAGE)
def test_experiment_4(name, tmp_path, analyse, gallery):
    script, layers, seeds, operations, sets, draws = LANGUAGE[name]
    random = np.random.default_rng(0).random
    run = write_run(tmp_path / f"run_{LONG}", {
        (seed, layer, operation): {evaluation: (random(), random(draws)) for evaluation in sets}
        for seed in range(seeds) for layer in layers for operation in operations}, examples=1000)
    table, ablations = (pd.read_csv(run / f"{name}.csv") for name in ("results", "ablations"))
    table.assign(knn_test_acc=(neighbors := random(len(table)))).to_csv(run / "results.csv", index=False)
    analyse(script, "--results", run)
    figure, one = gallery["ablation_by_layer"], gallery["one_circuit"].axes[0]
    assert "n = 1000 sentences" in words_of(figure) and "patterns trained on (IID)" in words_of(figure)
    panels = [(evaluation, operation) for evaluation in sets for operation in operations]
    for axis, (evaluation, operation) in zip(figure.axes, panels, strict=True):
        where = dict(by="target_layer", evaluation=evaluation, operation=operation)
        drawn = lines(axis)
        assert drawn["circuit ablated"] == equal(means(ablations, "accuracy", condition="circuit", **where))
        assert drawn["as many random neurons ablated (sd)"] == equal(
            means(ablations, "accuracy", condition="random", **where) or [np.nan] * len(layers))
        assert ("no random draw" in drawn) == (draws == 0)
    assert lines(gallery["nearest_neighbors"].axes[0])["circuit"] == equal(
        means(table.assign(knn_test_acc=neighbors), "knn_test_acc", by="target_layer", operation=operations[0]))
    assert len(one.get_xticklabels()) == len(sets)
    ranking = pd.read_csv(run / "figures/strongest_sublayers.csv").iloc[0]
    assert bars(one)["circuit ablated"] == equal(ranking[[f"ablated_acc_{evaluation}" for evaluation in sets]])


@pytest.mark.parametrize("rows", [3, 60])
def test_overlap(rows, tmp_path, gallery):
    table = pd.DataFrame([{"layer": layer, "operation": "attn", "map": "all maps", "block": "whole", "neurons": 90,
                           "alone_1": layer, "common": 3, "alone_2": 5, "jaccard": 0.1, "chance": 1e-300}
                          for layer in range(rows)])
    summarize_model_overlap.draw(table, [f"one/{LONG}", f"other/{LONG}"], tmp_path / "figure")
    [axis] = gallery["figure"].axes
    assert [[bar.get_width() * 90 for bar in group] for group in axis.containers] == [
        equal(table[part]) for part in ("alone_1", "common", "alone_2")]
    header, *texts = [text.get_text() for text in axis.texts]
    assert all(text.get_text().split(":")[0] in header for text in gallery["figure"].legends[0].get_texts())
    assert texts[-1].startswith(f"{rows - 1} | 3 | 5;")


def compared(**options) -> pd.DataFrame:
    """A table whose models differ; of the method none nan at some sites."""
    table = table_of(**options)
    changed = table["iia"] - table["model_seed"] / 1000
    return table.assign(iia=changed.mask((table["method"] == "none") & (table["variable"] == "aux_0")),
                        isolate=table["isolate"] - 0.01 * table.groupby("method").ngroup())


@pytest.fixture
def compare(tmp_path, analyse):
    """Draws the figures of a run of the comparison, with a config or without."""
    def draw(table: pd.DataFrame, **config) -> None:
        save(tmp_path, config, Run=table)
        analyse("summarize_comparison", "--results", tmp_path)
    return draw


@pytest.mark.parametrize("table", [compared(), compared()[lambda t: t["method"] == "lda"],
                                   compared(ground_truth=False)], ids=["two", "one method", "not carried"])
def test_the_comparison_of_methods(table, compare, tmp_path, gallery):
    compare(table, test_data_path="data/Disambiguation/test.csv", random_init=True, only_right=False)
    methods = comparison_figures.in_order(table["method"])
    truths = sorted(table["ground_truth"].unique(), reverse=True)
    for axis, truth in zip(gallery["methods"].axes, truths, strict=True):
        part = table[table["ground_truth"] == truth]
        dots = np.concatenate([line.get_xdata() for line in axis.get_lines() if line.get_alpha() == 0.7])
        assert sorted(dots, key=str) == equal(sorted(part["iia"], key=str))  # nan among them is not a dot at 0
        assert points(axis) == equal(part.groupby("method")["iia"].mean().reindex(methods))
    labels = [label.get_text().split()[0] for label in gallery["methods"].axes[0].get_yticklabels()]
    assert labels == methods
    for words in ("a² - b² mod 113", "random_init True", "with pairs that the model answers wrongly", "not carried: a",
                  "(variable, rank 4)"):
        assert words in words_of(gallery["methods"])
    if not truths[0]:
        assert set(gallery) == {"methods"}
        return
    isolate = gallery["isolate"].axes[0]
    assert sorted(y for ys in lines(isolate).values() for y in ys) == equal(
        sorted(table.loc[table["ground_truth"], "isolate"]))
    board = pd.read_csv(tmp_path / "figures/leaderboard.csv").sort_values("auroc", ascending=False, kind="stable")
    assert points(gallery["detection"].axes[0]) == equal(board["auroc"])


def test_before_leace_the_published_column_is_drawn_and_else_the_held_out_one(tmp_path, analyse, gallery):
    write_methods(tmp_path, ["a2"])
    table = pd.read_csv(file := tmp_path / "amnesic/a2/results.csv").assign(heldout_pre_erasure_decodability=0.75)
    for published, drawn in ((0.25, 0.25), (np.nan, 0.75)):
        table.assign(test_pre_erasure_probe_acc=published).to_csv(file, index=False)
        analyse("summarize_disambiguation", "--results", tmp_path)
        axis = gallery["there_and_used"].axes[0]
        [row] = [i for i, label in enumerate(axis.get_yticklabels()) if "before LEACE" in label.get_text()]
        assert axis.collections[0].get_array().reshape(-1, 2)[row].tolist() == [drawn] * 2


@pytest.mark.parametrize("seeds, value, ends", [((0, 1, 2), 0.4, (0.0, 0.9)), ((0,), 0.2, (0.01, 1.0))])
def test_the_comparison_over_checkpoints(seeds, value, ends, compare, gallery):
    """Intervals are over models, or those of the run."""
    table = pd.concat([table_of(seeds=(seed,), checkpoint=step, model_acc=accuracy, iia=0.2 + 0.2 * seed)
                       for seed in seeds for step, accuracy in ((100, 0.25), (200, 0.5), (300, 0.75), ("final", 1.0))])
    compare(table.assign(iia=table["iia"].where(table["checkpoint"] != 300)))
    for axis in gallery["checkpoints"].axes:
        [model] = [line for line in axis.lines if line.get_color() == "black"]
        assert model.get_xdata().tolist() == [100, 200, 300] and model.get_ydata().tolist() == [0.25, 0.5, 0.75]
    axis = gallery["checkpoints"].axes[0]
    assert lines(axis)["lda, rank 4"] == equal([value, value, np.nan])
    assert axis.collections[-1].get_datalim(axis.transData).intervaly == pytest.approx(ends, abs=0.05)


def test_the_comparison_by_layer(compare, gallery):
    table = pd.concat([compared(seeds=[0], known=False, target_layer=layer) for layer in range(12) if layer != 7])
    table = table[table["method"].isin(["none", "lda", "das"])]
    table = table.assign(exceeds_full=table["exceeds_full"].where(table["variable"] != "aux_0"))
    compare(table[(table["method"] != "lda") | (table["target_layer"] != 9)], data_path="a.csv", model_path="M/Some")
    for name, stays in (("var_0_resid_mid", False), ("aux_0_resid_mid", True)):
        axis, rows = gallery[name].axes[0], comparison_figures.in_order(set(table["method"]))
        cells = np.ma.filled(axis.collections[0].get_array().astype(float), np.nan).reshape(len(rows), -1)
        wanted = 0.02 if stays else 0.99
        assert cells[rows.index("lda")].tolist() == equal([wanted] * 8 + [np.nan] + [wanted] * 2)
        assert "Run in Some" in words_of(gallery[name]) and "grey: not run" in words_of(gallery[name])
        assert ("share of pairs that keep their answer" in words_of(gallery[name])) == stays


@pytest.mark.parametrize("seeds", [1, 12])
def test_curves(seeds, tmp_path, gallery):
    table = pd.DataFrame([{"model_seed": seed, "epoch": epoch, "train_loss": 1.0, "test_loss": 2.0, "train_acc": 1.0,
                           "test_acc": 1 - seed / 20} for seed in range(seeds) for epoch in (0, 100)])
    plotting.draw_curves(table, ["model_seed"], "Training", tmp_path / "curves")
    accuracies = {y for line in gallery["curves"].axes[1].get_lines() for y in line.get_ydata()}
    assert accuracies == {1 - seed / 20 for seed in range(seeds)}


def test_no_two_roles_and_no_two_methods_look_alike():
    looks = [tuple(comparison_figures.look(name).values()) for name in INTERCHANGES]
    colors = [to_hex(color) for color in plotting.COLORS.values()]
    assert len(set(looks)) == len(looks) and len(set(colors)) == len(colors)
