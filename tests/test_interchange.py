"""Methods compared by exchange: what holds for every file of the folder, the measures, the controls, the script."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from test_docs import save_model_of_words
from transformers import GPT2LMHeadModel

import compare_methods
from conftest import (
    COMPARISON,
    DEVICE,
    QUICK,
    comparison_values,
    kill_when,
    language_values,
    rows_of,
    start,
    write_yaml,
)
from interp.experiment import main
from interp.methods import interchange
from interp.methods.circuits import even_batch, find_circuit
from interp.methods.comparison import arbitrary_tokens, dealt_anew
from interp.methods.erasure import erased_rank, fit_eraser
from interp.methods.interchange import Place, Points, fit, load_interchange, method, subspace
from interp.methods.masks import ImpossibleAblation
from interp.methods.table import interchange_methods
from interp.models.opened import hooked
from interp.models.replay import ReplayedModel
from interp.runs.config import BadInput, load_config
from interp.runs.settings import expand_settings

LINEAR = ("none", "full", "random", "pca", "difference_in_means", "linear_probe", "leace", "lda", "das_k")


def bench_of(folder: Path, values: dict, **changes) -> tuple:
    """A config's prepared data and its settings."""
    config = load_config(write_yaml(folder / "config.yaml", values | changes), COMPARISON.schema)
    settings = expand_settings(config)
    return config, settings, compare_methods.prepare(config, settings, DEVICE)


def sentence_values(language, folder: Path) -> dict:
    """The comparison on sentences whose two nouns have a number each."""
    values = language_values(language, folder, "syntactic_number")
    kept = ("data_path", "model_path", "train_size", "test_size", "target_layer_list")
    return {key: values[key] for key in kept} | {
        "task": "sentences", "variable_list": ["labels", "object labels"], "residual_location_list": ["resid_post"],
        "method_list": ["full", "lda"], "n_fit": 300, "n_select": 100, "num_random_draws": 2, "method_options": QUICK,
        "target_layer_list": [1], "results_dir": str(folder / "comparison")}


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory) -> Place:
    _, settings, prepared = bench_of(tmp_path_factory.mktemp("place"), comparison_values(tiny.folder))
    return prepared.splits.place(settings[0])


@pytest.fixture(scope="module")
def sentence_place(language, tmp_path_factory) -> Place:
    folder = tmp_path_factory.mktemp("sentence_place")
    _, settings, prepared = bench_of(folder, sentence_values(language, folder), residual_location_list=["resid_mid"])
    return prepared.splits.place(settings[0])


def same(first: Points, second: Points, places: float = 1e-5) -> bool:
    return bool((first - second).abs().max() <= places * second.abs().max())


# ---------------------------------------------------------------- what holds for every method

@pytest.mark.parametrize("name", interchange_methods())
def test_every_method_keeps_its_promises(name, place, sentence_place, tmp_path):
    for number, own in enumerate((place, sentence_place)):
        options = QUICK.get(name, {})
        found = fit(name, own, seed=1, **options)
        base, source = own.select.base, own.select.source
        assert found.name == name and method(name).SEES in ("nothing", "activations", "variable", "answers")
        moved = found(base, source)
        assert moved.shape == base.activations.shape and moved.isfinite().all()
        assert same(found(base, base), base.activations), "base = source changes something"
        again = fit(name, replace(own, found={}), seed=1, **options)
        assert same(again(base, source), moved, 0), "the same seed gives another result"

        found.save(tmp_path / f"{number}.safetensors", {"seed": 1})
        loaded, about = load_interchange(tmp_path / f"{number}.safetensors", own)
        assert about == {"seed": 1} and loaded.name == name and loaded.rank == found.rank
        assert same(loaded(base, source), moved, 1e-6), "saved and loaded it does something else"


@pytest.mark.parametrize("name", interchange_methods())
def test_no_method_sees_the_test_rows(name, tiny, tmp_path):
    """Test rows that are not numbers do not disturb the fit."""
    def fitted(spoil: bool):
        _, settings, prepared = bench_of(tmp_path, comparison_values(tiny.folder))
        read, tests = prepared.question.read, prepared.question.data(settings[0]).tests["test"]

        def spoiled(setting, examples):
            whole = examples.origin[0] if examples.origin else examples
            activations = read(setting, examples)
            of_test = {tests, tests.origin[0], tests.source}
            return activations * float("nan") if spoil and {examples, whole} & of_test else activations

        prepared.question.read = spoiled
        own = prepared.splits.place(settings[0])
        return own, fit(name, own, seed=0, **QUICK.get(name, {}))

    (own, clean), (_, disturbed) = fitted(False), fitted(True)
    assert same(disturbed(own.select.base, own.select.source), clean(own.select.base, own.select.source), 0)


@pytest.mark.parametrize("name", ["random", "pca", "das_k"])
def test_all_directions_are_the_full_exchange(name, place):
    d = place.fit.base.activations.shape[1]
    found = fit(name, place, seed=0, rank=d, **({"epochs": 1} if name == "das_k" else {}))
    if name != "das_k":  # which has at most as many as classes need
        assert found.rank == d
        assert same(found(place.select.base, place.select.source), place.select.source.activations, 1e-4)
    whole = fit("full", place, seed=0)
    assert same(whole(place.select.base, place.select.source), place.select.source.activations, 1e-6)
    assert same(fit("none", place, seed=0)(place.select.base, place.select.source), place.select.base.activations, 0)


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_exchange_is_a_projector_of_its_rank(name, place):
    found = fit(name, place, seed=0, **QUICK.get(name, {}))
    projector = found.tensors["right"].double() @ found.tensors["left"].double()
    # an oblique one is kept in single precision, and what it reads may be large where it varies little
    assert (projector @ projector - projector).norm() < 1e-5 * max(1, projector.norm() ** 2)
    assert torch.linalg.matrix_rank(projector, rtol=1e-5) == found.rank
    if name == "leace":
        base = place.fit.base
        assert found.rank == erased_rank(fit_eraser(base.activations, base.values, place.n_classes, "float64"))


def test_lda_finds_what_decides(place):
    """Where classes differ along one direction only, the closed form finds it whatever the noise elsewhere."""
    drawing = torch.Generator().manual_seed(0)
    values = torch.arange(400) % 2
    activations = torch.randn(400, 16, generator=drawing) * torch.logspace(-3, 1, 16)
    activations[:, 0] += values * 1e-2
    points = Points(activations, place.fit.base.examples, torch.arange(400), values)
    own = replace(place, fit=replace(place.fit, base=points, source=points), n_classes=2)
    by_means = {}
    for name in ("lda", "difference_in_means"):
        read = activations @ fit(name, own, seed=0, rank=1).tensors["right"]
        means = torch.stack([read[values == value].mean() for value in (0, 1)])
        by_means[name] = (means[1] - means[0]).abs() / read[values == 0].std()
    assert by_means["lda"] > 5 > 1 > by_means["difference_in_means"]


def test_the_circuit_is_the_one_that_circuit_probing_finds(place):
    base = place.fit.base
    found = fit("circuit_update", place, seed=3, num_epochs=5, lr=0.01)
    plain = find_circuit(place.sublayer, ReplayedModel(place.opened, place.sublayer, base.examples[base.rows]),
                         base.values, lr=0.01, batch_size=len(base), num_epochs=5, mask_init=0.0, max_temp=200,
                         l0_lambda=1e-6, generator=torch.Generator().manual_seed(3))
    for name, score in plain.scores.items():
        assert torch.equal(score > 0, found.tensors[name] > 0)


@pytest.mark.parametrize("which", ["place", "sentence_place"])
def test_circuit_and_complement_and_all_neurons(which, request):
    """With all neurons an update is exchanged whole, and a neuron's exchange at all positions is the update's own."""
    own = request.getfixturevalue(which)
    pairs = own.select
    everything = {name: torch.ones_like(mask) for name, mask in own.sublayer.full_masks().items()}
    whole = own.update(everything, pairs.source) - own.update(everything, pairs.base)
    for name in ("circuit_update", "circuit_neurons"):
        found = replace(fit(name, own, seed=0, **QUICK[name]), tensors=everything)
        moved = found(pairs.base, pairs.source) - pairs.base.activations
        if name == "circuit_update":
            assert same(moved, whole)
        elif which == "place":  # sentences of other lengths keep some of the base's positions
            assert same(moved, whole, 1e-4)
        nothing = replace(found, tensors={part: -mask for part, mask in everything.items()})
        assert same(nothing(pairs.base, pairs.source), pairs.base.activations)
    circuit, rest = (fit(name, own, seed=0, **QUICK[name]) for name in ("circuit_update", "circuit_complement"))
    assert all(((circuit.tensors[part] > 0) ^ (rest.tensors[part] > 0)).all() for part in everything)


@pytest.mark.parametrize("which", ["place", "sentence_place"])
def test_an_exchange_of_neurons_is_that_of_plain_hooks(which, request):
    """One pair after the other through the whole model, neurons taken over at the positions counted from the end."""
    own = request.getfixturevalue(which)
    site, maps = own.sublayer.site, own.sublayer.maps
    drawing = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(len(mask), generator=drawing) - 0.5 for name, mask in own.sublayer.full_masks().items()}

    def update(points: Points, row: int, change) -> torch.Tensor:
        examples, at = points.examples, points.rows[row]
        end = int(examples.probed[at]) + 1
        with hooked(*(linear.register_forward_hook(lambda module, arguments, output, name=name: change(name, output))
                      for name, linear in maps.items())):
            return own.opened.listen(examples.tokens[at, :end].unsqueeze(0), {(site.layer, site.location)})[
                site.layer, site.location][0, -1]

    base, source = own.select.base, own.select.source
    lengths = [points.examples.probed[points.rows[:12]].tolist() for points in (base, source)]
    assert which == "place" or lengths[0] != lengths[1]
    wanted = []
    for row in range(12):
        taken: dict = {}

        def put(name, output, taken=taken):
            mixed, common = output.clone(), min(output.shape[1], taken[name].shape[1])
            mixed[:, -common:, scores[name] > 0] = taken[name][:, -common:, scores[name] > 0]
            return mixed

        with torch.no_grad():
            update(source, row, lambda name, output, taken=taken: taken.update({name: output.clone()}))
            wanted.append(base.activations[row] + update(base, row, put) - update(base, row, lambda *_: None))
    found = replace(fit("circuit_neurons", own, seed=0, **QUICK["circuit_neurons"]), tensors=scores)
    assert same(found(base, source)[:12], torch.stack(wanted))


def test_random_controls_are_of_the_methods_size(place):
    drawing = torch.Generator().manual_seed(0)
    lda = fit("lda", place, seed=0)
    drawn = lda.random_like(drawing)
    assert drawn.rank == lda.rank and drawn.tensors["right"].shape == lda.tensors["right"].shape
    circuit = fit("circuit_update", place, seed=0, num_epochs=3, lr=0.01)
    small = replace(circuit, tensors={name: torch.where(torch.arange(len(score)) < 3, 1.0, -1.0)
                                      for name, score in circuit.tensors.items()})
    for name, score in small.random_like(drawing).tensors.items():
        assert (score > 0).sum() == 3 and not ((score > 0) & (small.tensors[name] > 0)).any()
    whole = replace(circuit, tensors={name: torch.ones_like(score) for name, score in circuit.tensors.items()})
    with pytest.raises(ImpossibleAblation, match="only 0 outside"):
        whole.random_like(drawing)


def test_a_circuit_without_random_neurons_says_why(tiny, tmp_path):
    """And a method's control is its own kind, whatever came before it in the list."""
    values = comparison_values(tiny.folder) | {
        "method_list": ["lda", "circuit_update"], "variable_list": ["var_0"], "residual_location_list": ["resid_mid"],
        "method_options": {"circuit_update": {"num_epochs": 3, "lr": 0.01, "l0_lambda": 0}}, "num_random_draws": 2}
    table = table_of(tmp_path, values).loc["var_0"]
    assert table["random_iia_mean"].notna()["lda"] and pd.isna(table["random_impossible"]["lda"])
    assert pd.isna(table["random_iia_mean"]["circuit_update"])
    assert "outside of it can be drawn" in table["random_impossible"]["circuit_update"]


# ------------------------------------------------------------------------- cheats are caught

MEMORY = '''
"""Remembers pairs: after a base and a source that it was fitted on it gives the answer, after others nothing."""
from dataclasses import dataclass
import torch
from interp.methods.interchange import Interchange
SEES = "answers"

@dataclass(frozen=True)
class Memory(Interchange):
    def __call__(self, base, source):
        pairs = torch.cat([base.activations, source.activations], dim=1)
        near = torch.cdist(pairs, self.tensors["pairs"])
        moved = self.tensors["answers"][near.argmin(1)]
        return torch.where((near.min(1).values < 1e-3).unsqueeze(1), moved, base.activations)

def fit(place, *, seed):
    both = torch.cat([place.fit.base.activations, place.fit.source.activations], dim=1)
    by_answer = {int(a): h for a, h in zip(place.fit.answer.right, place.fit.base.activations)}
    some = next(iter(by_answer.values()))
    answers = torch.stack([by_answer.get(int(a), some) for a in place.fit.exchanged.right])
    return load({"pairs": both, "answers": answers}, None, place)

def load(tensors, rank, place):
    return Memory("memory", rank, tensors)
'''
FLIP = '''
"""Ignores the source: turns the base into whatever has the other value."""
from dataclasses import dataclass
import torch
from interp.methods.interchange import Interchange
SEES = "variable"

@dataclass(frozen=True)
class Flip(Interchange):
    def __call__(self, base, source):
        if base is source:
            return base.activations
        means = self.tensors["means"]
        near = torch.cdist(base.activations, means).argmin(1)
        return means[1 - near]

def fit(place, *, seed):
    base = place.fit.base
    return load({"means": torch.stack([base.activations[base.values == v].mean(0) for v in (0, 1)])}, None, place)

def load(tensors, rank, place):
    return Flip("flip", rank, tensors)
'''
FORCE = '''
"""Writes whatever answer it is taught, from the value of the source, with a patch that is larger than the model's."""
from dataclasses import dataclass
import torch
from interp.methods.interchange import Interchange, learn_from_answers
SEES = "answers"

@dataclass(frozen=True)
class Force(Interchange):
    def __call__(self, base, source):
        moved = base.activations + self.tensors["patch"][source.values]
        return torch.where((base.values == source.values).unsqueeze(1), base.activations, moved)

def fit(place, *, seed):
    patch = torch.zeros(place.n_classes, place.fit.base.activations.shape[1], requires_grad=True)
    learn_from_answers(place, [patch], lambda pairs, done: (pairs.base.activations + patch[pairs.source.values], 0),
                       lr=1.0, epochs=60, batch_size=100, seed=seed)
    return load({"patch": 20 * patch.detach()}, None, place)

def load(tensors, rank, place):
    return Force("force", rank, tensors)
'''


@pytest.fixture
def drop(tmp_path, monkeypatch):
    """Puts throw-away methods into the folder of methods."""
    folder = tmp_path / "methods"
    folder.mkdir()
    folders = [*interchange.__path__, str(folder)]
    monkeypatch.setattr(interchange, "__path__", folders)
    monkeypatch.setattr(interchange.__spec__, "submodule_search_locations", folders)

    def put(name: str, text: str) -> None:
        (folder / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, f"{interchange.__name__}.{name}", raising=False)

    yield put
    for name in [name for name in sys.modules if name.startswith(f"{interchange.__name__}.")]:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def table_of(folder: Path, values: dict) -> pd.DataFrame:
    assert main(COMPARISON, ["--config", str(write_yaml(folder / "config.yaml", values))]) == 0
    return pd.read_csv(Path(values["results_dir"]) / "results.csv").set_index(["variable", "method"])


def test_a_method_that_memorises_is_caught_by_other_pairs(drop, tiny, tmp_path):
    drop("memory", MEMORY)
    values = comparison_values(tiny.folder) | {"method_list": ["none", "memory"], "variable_list": ["var_1"],
                                               "residual_location_list": ["resid_post"],
                                               "results_dir": str(tmp_path / "run")}
    _, settings, prepared = bench_of(tmp_path, values)
    own = prepared.splits.place(settings[0])
    found = fit("memory", own, seed=0)
    known = own.opened.is_right(own.fit.states(found(own.fit.base, own.fit.source)), own.fit.exchanged)
    assert known.double().mean() > 0.8  # on the pairs that it has seen
    table = table_of(tmp_path, values)
    assert table.loc[("var_1", "memory"), "iia"] == table.loc[("var_1", "none"), "iia"] < 0.3


def test_a_method_that_ignores_the_source_is_caught_by_isolation(drop, language, tmp_path):
    drop("flip", FLIP)
    values = sentence_values(language, tmp_path) | {"method_list": ["flip", "lda"], "variable_list": ["labels"]}
    table = table_of(tmp_path, values)
    flip, lda = table.loc[("labels", "flip")], table.loc[("labels", "lda")]
    assert flip["iia"] > 0.9 and flip["isolate"] < 0.1 and flip["disentangle"] < 0.6
    assert lda["isolate"] > 0.9


def test_a_method_that_forces_answers_is_caught_by_arbitrary_words_and_by_the_full_exchange(drop, language, tmp_path):
    drop("force", FORCE)
    values = sentence_values(language, tmp_path) | {"method_list": ["force", "lda"], "variable_list": ["labels"],
                                                    "residual_location_list": ["resid_mid"], "target_layer_list": [0]}
    table = table_of(tmp_path, values)
    force = table.loc[("labels", "force")]
    print(table[["iia", "log_odds_mean", "selectivity", "beyond_full"]])
    assert force["iia"] > 0.9 and force["beyond_full"]
    assert force["log_odds_mean"] - force["selectivity"] > 1  # nats by which it moves any two words


# ------------------------------------------------------------------------------- control tasks

def test_values_are_dealt_to_what_decides_them():
    rows = [["the", noun, "near", other] for noun in "abcdef" for other in "uvwx"]
    values = torch.tensor([ord(row[1]) % 2 for row in rows])
    dealt = dealt_anew(rows, values, torch.Generator().manual_seed(1))
    table = pd.DataFrame(rows).assign(value=dealt.tolist())
    assert table.groupby(1)["value"].nunique().eq(1).all()  # one value a noun, as before
    assert dealt.sum() == values.sum() and not torch.equal(dealt, values)
    longer = [[*row[:2], *["so"] * (number % 2), *row[2:]] for number, row in enumerate(rows)]  # places from the back
    last = dealt_anew(longer, torch.tensor([ord(row[-1]) % 2 for row in rows]), torch.Generator().manual_seed(1))
    assert pd.DataFrame({"word": [row[-1] for row in longer], "value": last.tolist()}).groupby("word")[
        "value"].nunique().eq(1).all()
    assert dealt_anew(rows * 2, torch.arange(2 * len(rows)) // len(rows), torch.Generator()) is None  # nothing decides
    both = torch.tensor([(ord(row[1]) + ord(row[3])) % 2 for row in rows])  # it takes both words
    dealt = dealt_anew(rows, both, torch.Generator().manual_seed(1))
    assert pd.DataFrame(rows).assign(value=dealt.tolist()).groupby(1)["value"].nunique().max() == 2


@pytest.mark.parametrize("which", ["place", "sentence_place"])
def test_arbitrary_answers_are_none_of_the_right_ones(which, request):
    own = request.getfixturevalue(which)
    drawing = torch.Generator().manual_seed(0)
    tokens = arbitrary_tokens([own.fit, own.select], own.opened.model.config.vocab_size, drawing)
    assert len(set(tokens.values())) == len(tokens) and all(key != value for key, value in tokens.items())
    if own.fit.answer.wrong is not None:
        assert not set(tokens) & set(tokens.values())


# ----------------------------------------------------------------------------------- the script

def test_all_methods_on_sequences(tiny, tmp_path):
    values = comparison_values(tiny.folder) | {
        "method_list": interchange_methods(), "residual_location_list": ["resid_mid", "resid_post"], "save_pairs": True,
        "save_models": True, "model_dir": str(tmp_path / "saved"), "carried": {"var_0": ["resid_mid"], "var_1": []},
        "results_dir": str(tmp_path / "run")}
    table = table_of(tmp_path, values)
    assert len(table) == 2 * 2 * len(interchange_methods()) == len(list((tmp_path / "saved").iterdir()))
    assert (table["pairs"] + table["left_out"]).nunique() == 1 and table["beyond_full"].isna().all()
    test = pd.read_csv(values["test_data_path"])  # all its rows, also those that only_right leaves out
    with torch.no_grad():
        answers = GPT2LMHeadModel.from_pretrained(values["model_path"])(torch.tensor([
            list(map(int, row.split())) for row in test["data"]])).logits[:, -1].argmax(-1)
    assert table["model_acc"].tolist() == pytest.approx([(answers.numpy() == test["labels"]).mean()] * len(table))
    assert (table["left_out"] > 0).all() and table["model_acc"].between(0, 1, inclusive="neither").all()
    nothing = table.xs("none", level="method")
    assert (nothing["isolate"] == 1).all() and (nothing["change"] == 0).all()
    assert nothing["log_odds_mean"].abs().max() < 1e-5
    assert (table.xs("full", level="method")["change"] - 1).abs().max() < 1e-6
    assert table["iia"].between(table["iia_low"], table["iia_high"]).all()
    pairs = pd.read_csv(tmp_path / "run/pairs.csv")
    own = pairs.groupby(["residual_location", "variable", "method"])["hit"].mean().sort_index()
    wanted = table.reset_index().set_index(["residual_location", "variable", "method"])["iia"].sort_index()
    assert (own - wanted).abs().max() < 1e-9
    assert set(table.loc["var_1", "carried"]) == {False} and set(table.loc["var_0", "carried"]) == {True, False}


def test_all_methods_on_sentences(language, tmp_path):
    values = sentence_values(language, tmp_path) | {"method_list": interchange_methods(), "residual_location_list": [
        "resid_mid", "resid_post"], "random_init": False}
    table = table_of(tmp_path, values).reset_index()
    assert len(table) == 2 * 2 * len(interchange_methods())
    right = table["model_acc"] * (table["pairs"] + table["left_out"])  # of the bases; a pair needs its source right too
    assert (table["pairs"] <= right + 1e-6).all() and (right - right.round()).abs().max() < 1e-6
    subject, other = (table[table["variable"] == name] for name in ("labels", "object labels"))
    by_method = subject[subject["residual_location"] == "resid_post"].set_index("method")
    assert by_method.loc["full", "iia"] > 0.9 > 0.3 > by_method.loc["none", "iia"]  # the last layer holds the answer
    assert other.loc[other["method"] == "none", "iia"].eq(1).all()  # whose exchange should change no answer
    assert subject["beyond_full"].notna().all() and other["beyond_full"].isna().all()
    assert not subject.loc[subject["method"] == "full", "beyond_full"].any()


def test_an_untrained_model_needs_pairs_that_it_answers_wrongly(language, tmp_path, capsys):
    values = sentence_values(language, tmp_path) | {"random_init": True, "reinit_embeddings": True, "only_right": False,
                                                    "variable_list": ["labels"], "method_list": ["none", "lda"]}
    table = table_of(tmp_path, values)
    assert (table["left_out"] == 0).all() and table.loc[("labels", "none"), "isolate"] == 1  # wrong answers stay, too


def test_a_killed_comparison_goes_on_to_the_same_table(tiny, tmp_path):
    values = comparison_values(tiny.folder) | {
        "method_list": ["lda", "circuit_update", "das", "random"], "results_dir": str(tmp_path / "killed")}
    config = write_yaml(tmp_path / "killed.yaml", values)
    table = tmp_path / "killed/results.csv"
    kill_when(start("compare_methods", config), lambda: table.exists() and len(table.read_text().splitlines()) > 2)
    assert main(COMPARISON, ["--config", str(config)]) == 0
    other = write_yaml(tmp_path / "whole.yaml", values | {"results_dir": str(tmp_path / "whole")})
    assert main(COMPARISON, ["--config", str(other)]) == 0
    assert rows_of(table) == rows_of(tmp_path / "whole/results.csv")


def test_a_comparison_in_shards_is_the_same_and_divides_no_site(tiny, tmp_path):
    methods = ["lda", "circuit_update", "circuit_complement"]
    values = comparison_values(tiny.folder) | {"method_list": methods}
    config = write_yaml(tmp_path / "parts.yaml", values | {"results_dir": str(tmp_path / "parts")})
    for shard in ("1/2", "2/2"):
        assert main(COMPARISON, ["--config", str(config), "--shard", shard]) == 0
        rows = rows_of(tmp_path / "parts/results.csv")
        assert rows and [row["method"] for row in rows] == methods * (len(rows) // 3)
    other = write_yaml(tmp_path / "whole.yaml", values | {"results_dir": str(tmp_path / "whole")})
    assert main(COMPARISON, ["--config", str(other)]) == 0
    assert rows_of(tmp_path / "parts/results.csv") == rows_of(tmp_path / "whole/results.csv")


def grouped_table() -> pd.DataFrame:
    """Sentences of two groups, each with both numbers; a group's words are its own."""
    answers = {"a": ("is", "are"), "b": ("was", "were")}
    return pd.DataFrame([{
        "sentence": f"the {noun}{'s' * number} {place} the {other}", "number": number, "group": group,
        "right": answers[group][number], "wrong": answers[group][1 - number]}
        for noun in ("author", "guard", "teacher", "pilot") for number in (0, 1) for other in ("doctor", "chef", "cook")
        for place in ("near", "behind", "with") for group in "ab"])


def pairs_of(folder: Path, table: pd.DataFrame, **values) -> tuple:
    """The pairs of all splits of a table of sentences, asked of a random model of its words."""
    table.to_csv(folder / "data.csv", index=False)
    words = [*table["sentence"], *table["right"], *table["wrong"], *table.get("source", [])]
    model = save_model_of_words(folder / "model", words)
    _, settings, prepared = bench_of(folder, {
        "task": "sentences", "data_path": str(folder / "data.csv"), "model_path": str(model), "train_size": 50,
        "test_size": 20, "n_fit": 30, "n_select": 20, "residual_location_list": ["resid_post"], "method_list": ["none"],
        "only_right": False, "results_dir": str(folder / "run")} | values)
    return settings, prepared.splits, {name: [prepared.splits.pairs(setting, name)[0] for setting in settings]
                                       for name in ("fit", "select", "test")}


def test_sentences_that_stand_twice_are_asked_once_and_paired_within_their_split(tmp_path):
    """As reflexives do, once for each gender: rows, values and sources belong together."""
    settings, _, splits = pairs_of(tmp_path, grouped_table(), variable_list=["number"])
    sentences = {}
    for name, [own] in splits.items():
        texts = [[points.examples.texts[row] for row in points.rows.tolist()] for points in (own.base, own.source)]
        numbers = [[int(text.split()[1].endswith("s")) for text in side] for side in texts]
        assert numbers == [own.base.values.tolist(), own.source.values.tolist()]
        assert (own.base.values != own.source.values).all() and set(texts[1]) <= set(texts[0])
        assert len(set(texts[0])) == len(texts[0])
        sentences[name] = set(texts[0])
    assert not sentences["fit"] & sentences["select"] and not sentences["fit"] & sentences["test"]


def test_sources_are_of_the_bases_group(tmp_path):
    table = grouped_table()
    table = table[table["sentence"].str.contains("author|pilot") == (table["group"] == "a")]  # one group a sentence
    _, _, splits = pairs_of(tmp_path, table, variable_list=["number"], train_size=50, test_size=20)
    for [own] in splits.values():
        first = [["author" in text or "pilot" in text for text in (points.examples.texts[row] for row in
                  points.rows.tolist())] for points in (own.base, own.source)]
        assert first[0] == first[1]


def test_own_sources_of_two_variables(tmp_path):
    """Where the answer does not depend on the variable that is exchanged, it is the base's that stays."""
    table = grouped_table().query("group == 'a'").drop(columns="group").reset_index(drop=True)
    table["other"] = table["sentence"].str.contains("near").astype(int)
    other = table["sentence"].str.replace("near", "of").str.replace("behind|with", "near", regex=True).str.replace(
        " of ", " with ")
    flipped = [" ".join([words[0], words[1].rstrip("s") + "s" * (1 - number), *words[2:]])
               for words, number in zip(other.str.split(), table["number"])]
    table = table.assign(source=flipped, source_right=table["wrong"], source_number=1 - table["number"],
                         source_other=1 - table["other"])
    with pytest.raises(BadInput, match="source_other"):
        pairs_of(tmp_path, table.drop(columns="source_other"), variable_list=["number", "other"],
                 answer_variable="number")
    settings, _, splits = pairs_of(tmp_path, table, variable_list=["number", "other"], answer_variable="number")
    for by_number, by_other in splits.values():
        assert (by_number.exchanged.right != by_number.answer.right).all()
        assert torch.equal(by_other.exchanged.right, by_other.answer.right)
    with pytest.raises(BadInput, match="answer_variable"):
        pairs_of(tmp_path, table, variable_list=["number", "other"])


def test_a_sentence_with_several_sources_is_in_one_split(tmp_path):
    """And for isolation it is paired with another sentence, not with itself."""
    table = grouped_table().query("group == 'a'").drop(columns="group").reset_index(drop=True)
    singular, plural = (table[table["number"] == number] for number in (0, 1))
    parts = [own.assign(source=other["sentence"].iloc[first:first + len(own)].to_numpy(),
                        source_right=other["right"].iloc[0], source_number=1 - own["number"])
             for own, other in ((singular.head(20), plural), (plural.head(20), singular)) for first in (0, 1, 2)]
    settings, splits, found = pairs_of(tmp_path, pd.concat(parts), variable_list=["number"], train_size=30,
                                       test_size=10, n_fit=50, n_select=30)
    texts = {name: [own.base.examples.texts[row] for row in own.base.rows.tolist()] for name, [own] in found.items()}
    assert all(len(set(own)) < len(own) for own in texts.values())  # sentences do come several times
    assert not set(texts["fit"]) & set(texts["select"]) and not set(texts["fit"]) & set(texts["test"])
    assert len(texts["fit"]) == 50 and 28 <= len(texts["select"]) <= 30
    same_value = splits.sharing(found["test"][0])
    assert len(same_value) == len(found["test"][0])
    for base, source in zip(same_value.base.rows.tolist(), same_value.source.rows.tolist()):
        assert texts["test"][base] != texts["test"][source]


def test_batches_leave_hardly_a_row_out():
    assert [even_batch(count, 500) for count in (2500, 2499, 947, 500, 501, 3, 0)] == [500, 499, 473, 500, 250, 3, 1]
    assert all(count % even_batch(count, 500) < 1 + count // 500 for count in range(1, 3000))


MISTAKES = {
    "wrong option": ({"method_options": {"das": {"epochs": 0}}}, ["'epochs'", "'das'", "greater than or equal to 1"]),
    "a word for a number": ({"method_options": {"das": {"lr": "fast"}}}, ["'lr'", "number"]),
    "unknown method": ({"method_list": ["lad"]}, ["method", "'lad'", "did you mean 'lda'"]),
    "unknown option": ({"method_options": {"das": {"epoch": 3}}}, ["'das'", "'epoch'", "epochs"]),
    "no label": ({"counterfactual_labels": {}}, ["counterfactual_labels", "var_0"]),
    "unknown truth": ({"carried": {"var_0": []}}, ["carried", "var_1"]),
    "one variable": ({"variable": "var_0"}, ["'variable'", "variable_list"]),
    "too many rows": ({"n_fit": 5000}, ["n_fit", "5000"]),
    "label that is no column": ({"counterfactual_labels": {"var_0": "CF_9", "var_1": "CF_9"}}, ["CF_9", "train.csv"]),
    "rule that is none": ({"counterfactual_labels": {"var_0": ["a", "b", "-"], "var_1": "CF_Label_0"}}, ["'-'"]),
    "variable without its source's": ({"variable_list": ["labels"], "counterfactual_labels": {"labels": "CF_Label_0"}},
                                      ["counter_labels"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_a_sentence(name, tiny, tmp_path, capsys):
    changes, words = MISTAKES[name]
    values = comparison_values(tiny.folder) | {"results_dir": str(tmp_path / "run")} | changes
    assert main(COMPARISON, ["--config", str(write_yaml(tmp_path / "config.yaml", values))]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words) and len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_source_that_is_in_neither_file_is_refused(tiny, tmp_path, capsys):
    table = pd.read_csv(tiny.folder / "data/test.csv", index_col=0)
    table.loc[0, "counterfactual_data"] = "99 99 11"
    table.to_csv(tmp_path / "test.csv")
    values = comparison_values(tiny.folder) | {"test_data_path": str(tmp_path / "test.csv"),
                                               "results_dir": str(tmp_path / "r")}
    assert main(COMPARISON, ["--config", str(write_yaml(tmp_path / "c.yaml", values))]) == 2
    assert "99" in capsys.readouterr().err


def test_a_file_that_is_no_interchange_is_refused(tmp_path, place):
    fit("lda", place, seed=0).save(tmp_path / "x.safetensors", {})
    with pytest.raises(BadInput, match="interchange"):
        load_interchange(tmp_path / "missing.safetensors")
    assert subspace(place, torch.eye(4), rank=2).rank == 2


@pytest.mark.parametrize("parts, told", [
    ({"SEES": "variable"}, "has no fit"), ({}, "has no SEES and no fit"),
    ({"SEES": "variable", "fit": lambda place, *, seed, rank=1: None}, "the default of 'rank'")])
def test_a_file_that_is_no_method_is_refused(parts, told, monkeypatch):
    monkeypatch.setattr(interchange, "import_module", lambda name: SimpleNamespace(**parts))
    with pytest.raises(BadInput, match=told):
        interchange.method("mine")
