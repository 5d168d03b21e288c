"""Every figure of every analysis script, from tables at the edges: what is drawn is there, inside, and apart."""

import re
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis import ablate_by_position, comparison_figures, figures, summarize_model_overlap
from interp import plotting
from interp.methods.table import INTERCHANGES
from test_comparison_analysis import EDGES as COMPARISONS
from test_comparison_analysis import save, table_of
from test_language_analysis import write_run

pytestmark = pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning", "error::DeprecationWarning",
                                        "error::FutureWarning")
LONG = "a_variable_with_a_long_name_such_as_people_give"
VALUE = re.compile(r"-?\d\.\d\d|n/a")
SAME = {"circuit": {"circuit", "circuit (nearest neighbors)", "circuit ablated", "circuit, nearest neighbors"},
        "whole": {"full model", "full sublayer", "everything exchanged: interchange accuracy"},
        "linear probe": {"linear probe"}, "MLP probe": {"MLP probe"}, "LEACE": {"LEACE: accuracy lost"},
        "DAS": {"DAS: interchange accuracy", "boundless DAS"}, "baseline": {"majority baseline"}}


@pytest.fixture
def gallery(monkeypatch):
    """The figures that are saved, by name, each looked at as it is; no file is drawn."""
    figures = {}

    def savefig(figure, file, format, **options):
        if format == "png":
            figures[file.name.partition(".png")[0].strip(".")] = figure
            look_at(figure)
        file.write_bytes(b"a figure")

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def look_at(figure) -> None:
    figure.draw_without_rendering()
    plotted, named = set(), set()
    for axis in figure.axes:
        panel = axis.get_window_extent()
        for text in axis.texts:  # the values of bars and cells
            box = text.get_window_extent()
            if VALUE.fullmatch(text.get_text()):
                assert panel.y0 - 1 <= box.y0 and box.y1 <= panel.y1 + 1, text
                assert panel.x0 - 1 <= box.x0 and box.x1 <= panel.x1 + 1, text
        names = [tick for tick in axis.get_xticklabels() if tick.get_text() and tick.get_rotation() == 0
                 and panel.x0 - 1 <= tick.get_window_extent().x0 + tick.get_window_extent().width / 2 <= panel.x1 + 1]
        boxes = sorted((tick.get_window_extent() for tick in names), key=lambda box: box.x0)
        assert all(left.x1 <= right.x0 for left, right in zip(boxes, boxes[1:])), [str(name) for name in names]
        for handle, label in zip(*axis.get_legend_handles_labels()):
            plotted.add(label)
            check_color(handle, label)
        named |= {text.get_text() for text in axis.get_legend().get_texts()} if axis.get_legend() else set()
    named |= {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert plotted <= named, plotted - named
    for title in figure.texts:
        assert title.get_window_extent().width <= 1.1 * figure.bbox.width, title


def check_color(handle, label: str) -> None:
    for role, labels in SAME.items():
        if label in labels:
            color = handle.patches[0].get_facecolor() if hasattr(handle, "patches") else handle.get_color()
            color = to_hex(color if isinstance(color, str) else np.ravel(color)[:4])  # a collection has many
            assert color == to_hex(plotting.COLORS[role]), label


# ------------------------------------------------------------------------------- Experiments 1 to 3

FIGURES = {
    "circuit_probing": ("operation", ["knn_test_acc", "full_model_knn_test_acc", "majority_test_acc", *(
        f"{what}_acc_{split}" for what in ("vanilla", "ablated", "c_attn_ablated", "c_fc_ablated")
        for split in ("test", "same", "different"))]),
    "linear_probing": ("residual_location", ["test_acc", "counterfactual_predicts_cf_label"]),
    "nonlinear_probing": ("residual_location", ["test_acc", "counterfactual_predicts_cf_label"]),
    "amnesic": ("residual_location", ["test_pre_erasure_probe_acc", "test_vanilla_acc", "test_acc", "heldout_acc"]),
    "DAS": ("location", ["interchange_intervention_acc", "boundary"])}


def write_methods(folder, variables, methods=tuple(FIGURES), layers=(0,), seeds=(0,), places=(0, 1), draws=True,
                  **settings):
    for method in methods:
        place, columns = FIGURES[method]
        names = ("resid_mid", "resid_post") if place == "residual_location" else ("attn", "mlp")
        rows = [{"target_layer": layer, "model_seed": seed, place: names[i]} | settings
                | dict.fromkeys(columns, 1 - 0.4 * (seed % 2)) for layer in layers for seed in seeds
                for i in places]
        if method == "circuit_probing":
            rows = [row | {f"random_ablated_acc_test_{end}": value if draws else None
                           for end, value in (("mean", 0.9), ("std", 0.2))} for row in rows]
        if method == "amnesic":
            rows = [row | {"precision": precision} for row in rows for precision in ("float64", "float32")]
        for variable in variables:
            (folder / method / variable).mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows).to_csv(folder / method / variable / "results.csv", index=False)


EDGES = {
    "one variable, no random draws": dict(variables=["a4"], draws=False),
    "four variables, three seeds": dict(variables=["a2", "minus_b2", "a_plus_b", "a_minus_b"], seeds=(0, 1, 2)),
    "long names": dict(variables=[LONG, f"{LONG}_too", "short"]),
    "circuits alone": dict(variables=["a2"], methods=["circuit_probing"]),
    "attention alone": dict(variables=["a2"], places=(0,)),
    "nothing is used": dict(variables=["a2"], methods=["circuit_probing", "linear_probing"]),
    "two layers": dict(variables=["a2"], layers=(0, 59)),
}


@pytest.mark.parametrize("name", EDGES)
def test_experiment_1(name, tmp_path, analyse, gallery):
    edge = EDGES[name]
    write_methods(tmp_path, **edge)
    if name == "nothing is used":  # probes without counterfactual embeddings, circuits without ablations
        for file in tmp_path.glob("*/*/results.csv"):
            table = pd.read_csv(file)
            table.drop(columns=[column for column in table if "ablated" in column or "vanilla" in column
                                or "counterfactual" in column]).to_csv(file, index=False)
    result = analyse("summarize_disambiguation", "--results", tmp_path)
    assert result.returncode == 0, result.stderr
    assert ("there_and_used" in gallery) == (name != "circuits alone")
    bars = gallery["nearest_neighbors"].axes[0]
    assert len(bars.get_xticklabels()) == len(edge["variables"])
    assert [len(group) for group in bars.containers if isinstance(group, BarContainer)] == [len(edge["variables"])] * 2
    if name == "one variable, no random draws":
        for axis in gallery["ablation"].axes:
            assert [text.get_text() for text in axis.texts].count("n/a") == 1
            assert axis.get_xlim() == (-1, 1)  # the bar that is n/a has its room


def test_experiment_2(tmp_path, analyse, gallery):
    for task in ("Task_1", "Task_2"):
        write_methods(tmp_path / task, ["free", "shared", "aux"][: 1 if task == "Task_2" else 3])
    assert analyse("summarize_shared_nodes", "--results", tmp_path).returncode == 0
    hatches = [group.patches[0].get_hatch() for group in gallery["ablation_mlp"].axes[0].containers
               if isinstance(group, BarContainer)]
    assert len(set(hatches)) == 4  # one colour, four bars


@pytest.mark.parametrize("epochs, seeds", [((100,), (0,)), ((100, 20000), (0, 1))])
def test_experiment_3(epochs, seeds, tmp_path, analyse, gallery):
    for epoch in epochs:
        write_methods(tmp_path / str(epoch), ["a2", "b2"], seeds=seeds, checkpoint=epoch)
    for file in (tmp_path / "100").glob("*/*/results.csv"):
        (tmp_path / "all" / file.relative_to(tmp_path / "100")).parent.mkdir(parents=True)
        pd.concat([pd.read_csv(tmp_path / str(epoch) / file.relative_to(tmp_path / "100")) for epoch in epochs]).to_csv(
            tmp_path / "all" / file.relative_to(tmp_path / "100"), index=False)
    curves = tmp_path / "curves.csv"
    pd.DataFrame({"epoch": epochs, "train_acc": 1.0, "test_acc": 0.5}).to_csv(curves, index=False)
    result = analyse("summarize_grokking", "--results", tmp_path / "all", "--curves", curves)
    assert result.returncode == 0, result.stderr
    assert set(gallery) == {"probe_accuracy", "ablation", "amnesic", "DAS"}
    for figure in gallery.values():  # lines that lie upon each other have different dashes or markers
        lines = figure.axes[2].get_lines()
        assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == len(lines)


# ------------------------------------------------------------------------------- Experiment 4

around = [0.91, 0.93, 0.95, 0.93, 0.93]
LANGUAGE = {
    "one sublayer": {(0, 3, "attn"): {"iid": (0.6, around)}},
    "no draw anywhere": {(0, layer, "mlp"): {"iid": (0.6, []), "gen": (0.6, [])} for layer in (0, 5)},
    "sixty layers": {(0, layer, operation): {"iid": (0.6, around), "gen": (0.9, around)} for layer in range(60)
                     for operation in ("attn", "mlp")},
    "three seeds": {(seed, layer, "attn"): {"iid": (0.6 + seed / 10, around)} for layer in (0, 9) for seed in range(3)},
}


@pytest.mark.parametrize("name", LANGUAGE)
def test_experiment_4(name, tmp_path, analyse, gallery):
    run = write_run(tmp_path / f"run_{LONG}", LANGUAGE[name])
    table = pd.read_csv(run / "ablations.csv")
    table.assign(examples=1000).to_csv(run / "ablations.csv", index=False)
    result = analyse("summarize_agreement", "--results", run)
    assert result.returncode == 0, result.stderr
    assert "n = 1000 sentences" in gallery["ablation_by_layer"].get_suptitle().replace("\n", " ")
    assert "IID" in gallery["ablation_by_layer"].axes[0].get_ylabel()
    assert "patterns trained on" in gallery["ablation_by_layer"].axes[0].get_ylabel().replace("\n", " ")


def test_reflexives_have_four_sets(tmp_path, analyse, gallery):
    sets = [f"{name}_{gender}" for name in ("iid", "gen") for gender in ("masculine", "feminine")]
    run = write_run(tmp_path / "run", {(0, layer, operation): dict.fromkeys(sets, (0.6, around))
                                       for layer in range(24) for operation in ("attn", "mlp")})
    assert analyse("summarize_reflexives", "--results", run).returncode == 0
    assert len(gallery["one_circuit"].axes[0].get_xticklabels()) == 4


@pytest.mark.parametrize("layers, methods", [([7], ["linear_probing"]), (range(60), ["linear_probing", "DAS"])])
def test_layers(layers, methods, tmp_path, analyse, gallery):
    columns = {"linear_probing": ("residual_location", ["test_acc", "gen_acc"]),
               "DAS": ("location", ["interchange_intervention_acc", "gen_interchange_intervention_acc",
                                    "full_interchange_acc", "gen_full_interchange_acc"])}
    for method in methods:
        place, names = columns[method]
        (tmp_path / method / "m").mkdir(parents=True)
        pd.DataFrame([{"target_layer": layer, place: "resid_mid" if method == "linear_probing" else "attn"}
                      | dict.fromkeys(names, 1.0) for layer in layers]).to_csv(
            tmp_path / method / "m/results.csv", index=False)
    result = analyse("summarize_layers", "--model", "m", "--results", tmp_path)
    assert result.returncode == 0 and "layers" in gallery, result.stderr


@pytest.mark.parametrize("sets, seeds", [(["iid"], 1), (["iid", "gen"], 3), (
    [f"{name}_{gender}" for name in ("iid", "gen") for gender in ("masculine", "feminine")], 1)])
def test_ablation_by_position(sets, seeds, tmp_path, gallery):
    cases = [getattr(ablate_by_position, name) for name in ("NOWHERE", "EVERYWHERE", "FIRST", "OTHERS")]
    table = pd.DataFrame([{"evaluation": name, "ablated_at": case, "accuracy": 0.9 + 0.05 * seed}
                          for seed in range(seeds) for name in sets for case in cases])
    ablate_by_position.draw(table, f"Where does the ablation act? MLP of layer 7 ({LONG})", tmp_path / "figure")
    [axis] = gallery["figure"].axes
    assert len(axis.get_xticklabels()) == len(sets)
    assert all(text.get_position()[1] > 0.9 for text in axis.texts)  # above the bars


@pytest.mark.parametrize("layers", [[6], range(12)])
def test_across_models(layers, tmp_path, analyse, gallery):
    """One task published, of one model; one of ours, of the same; in the figure each at its depth."""
    measured = {"knn_test_acc": 0.9, "full_model_knn_test_acc": 0.6, "vanilla_acc_iid": 0.95, "ablated_acc_iid": 0.7,
                "random_ablated_acc_iid_mean": 0.9}
    pd.DataFrame([{"experiment": "SV_Agreement", "task": "gpt2", "method": "circuit_probing", "variable": "labels",
                   "component": "attn", "metric": metric, "value": value, "checkpoint": "", "layer": layer}
                  for layer in layers for metric, value in measured.items()]).to_csv(tmp_path / "p.csv", index=False)
    (tmp_path / "SV_Agreement/smollm2").mkdir(parents=True)
    pd.DataFrame([{"target_layer": layer, "operation": "attn", "random_ablation_impossible": None} | measured
                  | {"random_ablated_acc_iid_mean": None} for layer in layers]).to_csv(
        tmp_path / "SV_Agreement/smollm2/results.csv", index=False)
    result = analyse("summarize_across_models", "--published", tmp_path / "p.csv", "--results", tmp_path)
    assert result.returncode == 0 and set(gallery) == {"SV_Agreement"}, result.stderr
    table = pd.read_csv(tmp_path / "figures/across_models/SV_Agreement.csv").set_index(["model", "layer"])
    assert table.loc[("gpt2", 6), "depth"] == pytest.approx(6 / 11)
    assert table.loc[("smollm2", 6), "depth"] == pytest.approx(6 / 29)
    assert table.loc[("gpt2", 6), "beyond_random"] == pytest.approx(0.2)
    theirs, ours = [line for line in gallery["SV_Agreement"].axes[0].get_lines() if "(" in line.get_label()]
    assert (theirs.get_linestyle(), theirs.get_markerfacecolor()) == ("--", "none") and ours.get_linestyle() == "-"


@pytest.mark.parametrize("rows", [1, 60])
def test_overlap(rows, tmp_path, gallery):
    table = pd.DataFrame([{"layer": layer, "operation": "attn", "map": "all maps", "block": "whole", "neurons": 90,
                           "alone_1": layer, "common": 3, "alone_2": 5, "jaccard": 0.1, "chance": 1e-300}
                          for layer in range(rows)])
    summarize_model_overlap.draw(table, (f"one/{LONG}", f"other/{LONG}"), tmp_path / "figure")
    figure = gallery["figure"]
    header = figure.axes[0].texts[-1].get_text()
    assert all(text.get_text().split(":")[0] in header for text in figure.legends[0].get_texts())


@pytest.mark.parametrize("name", ["one seed", "one method", "none carried", "language", "checkpoints", "sixty layers"])
def test_comparison(name, tmp_path, analyse, gallery):
    save(tmp_path, **{"Run": COMPARISONS[name]})
    result = analyse("summarize_comparison", "--results", tmp_path)
    assert result.returncode == 0 and gallery, result.stderr


def words_of(figure) -> str:
    return " ".join(" ".join(text.get_text() for text in figure.findobj(Text)).split())


def test_the_comparison_names_tasks_variables_and_models(tmp_path, analyse, gallery):
    """As the config has them; a run without a config has the name of its folder."""
    table = pd.concat([table_of(), table_of().query("method == 'lda'").assign(method="random")])
    save(tmp_path / "alone", Mine=table)
    assert analyse("summarize_comparison", "--results", tmp_path / "alone").returncode == 0
    assert "Mine: " in words_of(gallery["methods"]) and "carried: var_0 after attention" in words_of(gallery["methods"])
    save(tmp_path, {"test_data_path": "data/Disambiguation/test.csv", "model_path": "m_{model_seed}",
                    "random_init": True, "only_right": False}, Run=table)
    assert analyse("summarize_comparison", "--results", tmp_path).returncode == 0
    methods = gallery["methods"]
    for words in ("a² - b² mod 113", "fresh weights", "n = 2 models", "with pairs that the model answers wrongly",
                  "model of seed 1", "carried: a² after attention", "not carried: a", "a+b after attention",
                  "interchange accuracy (up to 0.45 only)"):
        assert words in words_of(methods), words
    rows = [label.get_text() for label in methods.axes[0].get_yticklabels()]
    assert [row.split()[0] for row in rows] == ["full", "none", "random", "linear_probe", "lda", "das"]
    assert methods.axes[1].get_xlim()[1] == pytest.approx(1.03 * 1.5 * 0.3)  # the highest there
    assert "2 of 8 cells" in words_of(gallery["detection"])


def test_the_comparison_shows_the_models_accuracy(tmp_path, analyse, gallery):
    table = COMPARISONS["checkpoints"]
    save(tmp_path, {"test_data_path": "data/Grokking/test.csv", "only_right": False},
         Run=table.assign(model_acc=table["checkpoint"].map({100: 0.25, 200: 0.75, "final": 1.0})))
    assert analyse("summarize_comparison", "--results", tmp_path).returncode == 0
    for axis in gallery["checkpoints"].axes:
        [model] = [line for line in axis.lines if line.get_color() == "black"]
        assert model.get_xdata().tolist() == [100, 200] and model.get_ydata().tolist() == [0.25, 0.75]
    assert "a² after attention" in words_of(gallery["checkpoints"])
    assert "with pairs that the model answers wrongly" in words_of(gallery["checkpoints"])


def test_layers_that_were_skipped_and_answers_that_should_stay(tmp_path, analyse, gallery):
    table = COMPARISONS["sixty layers"].query("target_layer < 9 and target_layer != 7")
    table = table.assign(exceeds_full=table["exceeds_full"].where(table["variable"] != "aux_0"))
    save(tmp_path, {"data_path": "mine.csv", "model_path": "Models/Some"}, Run=table)
    assert analyse("summarize_comparison", "--results", tmp_path).returncode == 0
    for name, stays in (("var_0_resid_mid", False), ("aux_0_resid_mid", True)):
        words = words_of(gallery[name])
        assert "Run in Some" in words and "white gap" in words
        assert ("share of pairs that keep their answer" in words) == stays


def test_no_two_methods_look_alike():
    looks = [tuple(comparison_figures.look(name).values()) for name in INTERCHANGES]
    assert len(set(looks)) == len(looks)
    means, lda = (comparison_figures.look(name) for name in ("difference_in_means", "lda"))
    assert means["color"] != lda["color"] and means["marker"] != lda["marker"]


# ------------------------------------------------------------------------------- what the methods draw

@pytest.mark.parametrize("seeds", [1, 12])
def test_curves(seeds, tmp_path, gallery):
    table = pd.DataFrame([{"model_seed": seed, "epoch": epoch, "train_loss": 1.0, "test_loss": 2.0, "train_acc": 1.0,
                           "test_acc": 1.0} for seed in range(seeds) for epoch in (0, 100)])
    plotting.draw_curves(table, ["model_seed"], "Training", tmp_path / "curves")
    assert gallery


@pytest.mark.parametrize("classes", [2, 113])
def test_animation(classes):
    labels = torch.arange(classes).repeat(2)
    animation = plotting.UpdateAnimation(labels)
    animation.add_frame(torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(0)), "a frame")
    assert len(animation.frames) == 1


def test_bars_that_are_all_missing_have_their_room(tmp_path, gallery):
    figure, axis = plotting.plt.subplots(layout="constrained")
    empty = pd.DataFrame(np.nan, index=["a variable"], columns=["circuit", "linear probe", "majority baseline"])
    figures.draw_bars(axis, empty, (empty, empty), ["circuit", "linear probe", "baseline"])
    figure.legend()
    plotting.save_figure(figure, tmp_path / "figure")
    assert [text.get_text() for text in axis.texts] == ["n/a", "n/a"] and axis.get_xlim() == (-1, 1)


def test_no_two_roles_have_one_colour():
    colors = defaultdict(set)
    for role, color in plotting.COLORS.items():
        colors[to_hex(color)].add(role)
    assert all(len(roles) == 1 for roles in colors.values()), colors
