"""Methods compared by interchange: what holds for every one of them, the measures, the controls, the script."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import fractional_matrix_power
from sklearn.decomposition import PCA

import compare_methods
from conftest import COMPARISON, DEVICE, QUICK, Plain, execute, language_values, tokens_of, write_yaml
from interp.methods.circuits import find_circuit
from interp.methods.comparison import circuit_finder
from interp.methods.erasure import erased_rank, fit_eraser
from interp.methods.interchange.base import RANKS, Interchange, Pairs, SiteUnderStudy, learn_from_answers
from interp.methods.interchange.circuit import WEIGHTS
from interp.methods.interchange.linear import fit_probe
from interp.methods.interchange.registry import INTERCHANGES, Compared, fit, load_interchange
from interp.methods.masks import Circuit, ImpossibleAblation, NeuronMasks
from interp.models.examples import Answer
from interp.models.open_model import hooked
from interp.models.replay import ReplayedBlock
from interp.runs.config import BadInput, load_config
from interp.runs.settings import expand_settings
from interp.statistics import share_interval
from interp.tasks.arithmetic import add_hard_negatives
from language_model import save_random_model

RANKED = [name for name, method in INTERCHANGES.items() if method.ranked]
LINEAR = ("none", "full", "random", "pca", "difference_in_means", "linear_probe", "leace", "lda", "lda_weights",
          "das_k", "das_oblique")
FITTED = [name for name in INTERCHANGES if name != "saved"]  # which test_saved.py tests
WITH_CIRCUITS = {"method_list": ["circuit_update"]}  # so that what the sublayer reads is kept


def trials_of(folder: Path, values: dict, **changes) -> list[tuple]:
    """The settings of a config, each with what its method is compared on."""
    config = load_config(write_yaml(folder / "config.yaml", values | changes), COMPARISON.schema)
    settings = expand_settings(config)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compare_methods, "compare", lambda config, setting, trial, path: trial)
        return list(compare_methods.run(config, settings, compare_methods.prepare(config, settings, DEVICE)))


def table_of(folder: Path, values: dict) -> pd.DataFrame:
    execute(COMPARISON, values, folder / "run")
    return pd.read_csv(folder / "run/results.csv").set_index(["variable", "method"])


def sentence_values(language, folder: Path) -> dict:
    """The comparison on sentences whose two nouns have a number each."""
    values = language_values(language, folder, "syntactic_number")
    return {key: values[key] for key in ("data_path", "model_path", "train_size", "test_size")} | {
        "task": "sentences", "variable_list": ["labels", "object labels"], "residual_location_list": ["resid_post"],
        "method_list": ["full", "lda"], "n_fit": 300, "n_select": 100, "num_random_draws": 2, "method_options": QUICK,
        "target_layer_list": [1], "results_dir": str(folder / "comparison")}


@pytest.fixture(scope="module")
def of_sequences(tiny, tmp_path_factory) -> SiteUnderStudy:
    return trials_of(tmp_path_factory.mktemp("site"), tiny.values[COMPARISON], **WITH_CIRCUITS)[0][1].site


@pytest.fixture(scope="module")
def of_sentences(language, tmp_path_factory) -> SiteUnderStudy:
    folder = tmp_path_factory.mktemp("site")
    values = sentence_values(language, folder) | {"residual_location_list": ["resid_mid"]}
    return trials_of(folder, values, **WITH_CIRCUITS)[0][1].site


def same(first: torch.Tensor, second: torch.Tensor, places: float = 1e-5) -> bool:
    return bool((first - second).abs().max() <= places * second.abs().max())


def planted(site: SiteUnderStudy, activations: torch.Tensor, values: torch.Tensor) -> SiteUnderStudy:
    """A site whose fit pairs have other activations and values."""
    rows, answer = torch.arange(len(values)), Answer(values)
    pairs = Pairs(replace(site.fit.split, activations=activations), rows, rows, values, values, answer, answer)
    return replace(site, fit=pairs, n_classes=1 + int(values.max()))


def projector(found: Interchange) -> torch.Tensor:
    """What a linear interchange does to the difference of two rows, (d, d)."""
    return found.tensors["right"].double() @ found.tensors["left"].double()


@pytest.mark.parametrize("name", FITTED)
def test_every_method_keeps_its_promises(name, of_sequences, of_sentences, tmp_path):
    for number, site in enumerate((of_sequences, of_sentences)):
        pairs, options = site.select, QUICK.get(name, {})
        found = fit(name, site, seed=1, **options)
        moved = found(pairs)
        assert found.name == name and moved.shape == pairs.base_activations.shape and moved.isfinite().all()
        nothing = replace(pairs, source=pairs.base, source_values=pairs.base_values)
        assert same(found(nothing), pairs.base_activations), "base = source changes something"
        again = fit(name, replace(site, find_circuit=circuit_finder(site.fit)), seed=1, **options)
        assert same(again(pairs), moved, 0), "the same seed gives another result"

        found.save(tmp_path / f"{number}.safetensors", {"seed": 1})
        loaded, about = load_interchange(tmp_path / f"{number}.safetensors")
        assert about == {"seed": 1} and loaded.name == name and loaded.rank == found.rank
        assert same(loaded(pairs), moved, 1e-6), "saved and loaded it does something else"
    (tmp_path / "0.safetensors").write_text("x")
    with pytest.raises(BadInput, match="not a saved interchange"):
        load_interchange(tmp_path / "0.safetensors")


def test_no_method_sees_the_test_rows(tiny, tmp_path, monkeypatch):
    """Test rows that are not numbers do not disturb the fit."""
    def site() -> SiteUnderStudy:
        return trials_of(tmp_path, tiny.values[COMPARISON], **WITH_CIRCUITS)[0][1].site

    at_sites, clean = compare_methods.at_sites, site()

    def spoiled(*arguments, **options):
        for at in at_sites(*arguments, **options):
            yield replace(at, **{kind: read | {"test": read["test"] * torch.nan} for kind, read in (
                ("activations", at.activations), ("entering", at.entering))})

    monkeypatch.setattr(compare_methods, "at_sites", spoiled)
    disturbed = site()
    for name in FITTED:
        found = [fit(name, own, seed=0, **QUICK.get(name, {}))(own.select) for own in (clean, disturbed)]
        assert same(*found, 0), name


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_interchange_is_a_projector_of_its_rank_and_with_all_directions_the_full_one(name, of_sequences):
    pairs = of_sequences.select
    found = fit(name, of_sequences, seed=0, **QUICK.get(name, {}))
    change = projector(found)
    # an oblique one is kept in single precision, and what it reads may be large where it varies little
    assert (change @ change - change).norm() < 1e-5 * max(1, change.norm() ** 2)
    assert torch.linalg.matrix_rank(change, rtol=1e-5) == found.rank
    moved = pairs.base_activations + (pairs.source_activations - pairs.base_activations) @ change.float()
    assert same(found(pairs), moved, 1e-4)
    if name in ("random", "pca", "full"):
        whole = fit(name, of_sequences, seed=0, **({"rank": 16} if name != "full" else {}))
        assert whole.rank == 16 and same(whole(pairs), pairs.source_activations, 1e-4)
    if name == "none":
        assert found.rank == 0 and torch.equal(found(pairs), pairs.base_activations)


def test_closed_forms_are_what_they_are_called(of_sequences, generator):
    """Of activations far from 0, in classes of which one does not occur."""
    values = torch.tensor([0, 1, 3, 4])[torch.arange(400) % 4]
    activations = (3 * torch.randn(5, 16, generator=generator)[values] + 20
                   + torch.randn(400, 16, generator=generator) @ torch.randn(16, 16, generator=generator))
    site, wide = planted(of_sequences, activations, values), activations.double()
    means = torch.stack([wide[values == value].mean(0) for value in (0, 1, 3, 4)])
    white = torch.tensor(fractional_matrix_power(wide.T.cov(), -0.5))
    weights = fit_probe(site, -1, 5, lr=0.1, num_epochs=10, batch_size=500).weight[[0, 1, 3, 4]].detach().double()

    def leading(rows: torch.Tensor, k: int) -> torch.Tensor:
        directions = torch.linalg.svd(rows - rows.mean(0)).Vh[:k]
        return directions.T @ directions

    for k in (1, 2, 3):
        components = torch.tensor(PCA(k).fit(wide.numpy()).components_)
        for name, wanted in {
                "difference_in_means": leading(means, k), "linear_probe": leading(weights, k),
                "pca": components.T @ components, "lda": white @ leading(means @ white, k) @ white.inverse(),
                "lda_weights": leading(means @ white @ white, k)}.items():
            found = fit(name, site, seed=5, rank=k, **({"num_epochs": 10} if name == "linear_probe" else {}))
            assert found.rank == k
            torch.testing.assert_close(projector(found), wanted, rtol=1e-3, atol=1e-4, msg=f"{name} {k}")
    eraser = fit_eraser(activations, values, 5)  # what it would remove is taken from the source
    leace = fit("leace", site, seed=0)
    assert leace.rank == erased_rank(eraser) == 3
    torch.testing.assert_close(activations - (activations - activations.mean(0)) @ projector(leace).float(),
                               eraser(activations), rtol=1e-4, atol=1e-3)


def test_what_is_chosen_is_best_on_the_select_pairs(of_sequences, tiny):
    plain, pairs = Plain(tiny.values[COMPARISON]["model_path"]), of_sequences.select

    def score(found: Interchange) -> float:
        hits = plain.above("resid_mid", found(pairs)).argmax(-1) == pairs.counterfactual.right
        return hits.double().mean().item()

    for name in RANKED:
        most = 16 if name in ("random", "pca") else len(of_sequences.fit.base_values.unique()) - 1
        ranks = {1, most} if name.startswith("das") else {min(k, most) for k in RANKS}
        scores = {k: score(fit(name, of_sequences, seed=0, rank=k, **QUICK.get(name, {}))) for k in sorted(ranks)}
        found = fit(name, of_sequences, seed=0, **QUICK.get(name, {}))
        assert found.chosen == {"rank": found.rank} == {"rank": max(scores, key=scores.__getitem__)}, (name, scores)
    scores = {weight: score(fit("circuit_update", of_sequences, seed=0, l0_lambda=weight, **QUICK["circuit_update"]))
              for weight in WEIGHTS}
    assert fit("circuit_selected", of_sequences, seed=0, **QUICK["circuit_selected"]).chosen == {
        "weight": max(scores, key=scores.__getitem__)}


def test_learning_from_answers_takes_plain_steps(of_sequences, tiny, monkeypatch):
    site, shift = of_sequences, torch.zeros(16, requires_grad=True)
    plain, own = Plain(tiny.values[COMPARISON]["model_path"]), torch.zeros(16, requires_grad=True)
    learn_from_answers(site, [shift], lambda pairs, done: (pairs.base_activations + shift, done * shift.square().sum()),
                       lr=0.05, epochs=4, batch_size=12, seed=3)
    optimizer, drawing = torch.optim.Adam([own], lr=0.05), torch.Generator().manual_seed(3)
    for epoch in range(4):
        for rows in torch.randperm(len(site.fit), generator=drawing)[:len(site.fit) // 12 * 12].split(12):
            optimizer.zero_grad()
            logits = plain.above("resid_mid", site.fit.base_activations[rows] + own)
            (F.cross_entropy(logits, site.fit.counterfactual.right[rows]) + epoch / 4 * own.square().sum()).backward()
            optimizer.step()
    torch.testing.assert_close(shift, own, rtol=1e-3, atol=1e-5)

    temperatures, soft = [], NeuronMasks.soft
    monkeypatch.setattr(NeuronMasks, "soft", lambda masks, value: temperatures.append(value) or soft(masks, value))
    fit("neuron_mask", site, seed=0, epochs=4, batch_size=50, max_temp=16)  # a batch of all
    assert temperatures == pytest.approx([1, 2, 4, 8])


def test_the_circuit_is_the_one_that_circuit_probing_finds(of_sequences):
    pairs = of_sequences.fit
    found = fit("circuit_update", of_sequences, seed=3, num_epochs=5, lr=0.01)
    reference = ReplayedBlock(of_sequences.model.with_ways(suffix=frozenset()), of_sequences.sublayer,
                              pairs.split.examples[pairs.base], pairs.base_activations)
    plain = find_circuit(of_sequences.sublayer, reference, pairs.base_values, lr=0.01, batch_size=len(pairs),
                         num_epochs=5, mask_init=0.0, max_temp=200, l0_lambda=1e-6,
                         generator=torch.Generator().manual_seed(3))
    for name, score in plain.scores.items():
        assert torch.equal(score > 0, found.tensors[name] > 0)


@pytest.mark.parametrize("which", ["of_sequences", "of_sentences"])
def test_interchanges_of_a_circuit_are_those_of_plain_hooks(which, request):
    """One pair after the other through the whole model, neurons taken over at the positions counted from the end."""
    site = request.getfixturevalue(which)
    pairs, sublayer = site.select, site.sublayer
    examples, drawing = pairs.split.examples, torch.Generator().manual_seed(0)
    scores = {name: torch.rand(len(mask), generator=drawing) - 0.5 for name, mask in sublayer.full_masks().items()}

    def update(row: int, change) -> torch.Tensor:
        end = int(examples.probed[row]) + 1
        with torch.no_grad(), hooked(*(linear.register_forward_hook(
                lambda module, arguments, output, name=name: change(name, output, module.bias))
                for name, linear in sublayer.maps.items())):
            return site.model.read(examples.tokens[row, :end].unsqueeze(0), [sublayer.site])[sublayer.site][0, -1]

    def without(kept: bool):
        """The update of the circuit alone, or of the other neurons alone."""
        return lambda name, output, bias: torch.where((scores[name] > 0) == kept, output, bias)

    ends = [examples.probed[rows[:12]].tolist() for rows in (pairs.base, pairs.source)]
    assert which == "of_sequences" or ends[0] != ends[1]
    wanted = {name: [] for name in ("circuit_neurons", "circuit_update", "circuit_complement")}
    for base, source in zip(pairs.base[:12].tolist(), pairs.source[:12].tolist()):
        taken: dict = {}

        def put(name, output, bias, taken=taken):
            mixed, common = output.clone(), min(output.shape[1], taken[name].shape[1])
            mixed[:, -common:, scores[name] > 0] = taken[name][:, -common:, scores[name] > 0]
            return mixed

        update(source, lambda name, output, bias, taken=taken: taken.update({name: output.clone()}))
        wanted["circuit_neurons"].append(update(base, put) - update(base, lambda *_: None))
        for name, kept in (("circuit_update", True), ("circuit_complement", False)):
            wanted[name].append(update(source, without(kept)) - update(base, without(kept)))
    circuit = Circuit(scores, sublayer.fan_in())
    for name, changes in wanted.items():
        found = fit(name, replace(site, find_circuit=lambda *_, **__: circuit), seed=0)
        assert same(found(pairs)[:12] - pairs.base_activations[:12], torch.stack(changes), 1e-4), name


def test_random_controls_are_of_the_methods_size(of_sequences, generator):
    lda = fit("lda", of_sequences, seed=0)
    drawn = lda.random_like(generator)
    assert drawn.rank == lda.rank and drawn.tensors["right"].shape == lda.tensors["right"].shape
    das = fit("das", of_sequences, seed=0, **QUICK["das"])
    assert das.random_like(generator).rank == das.rank == round(16 * das.tensors["width"].item())
    scores = {name: torch.where(torch.arange(len(mask)) < 3, 1.0, -1.0)
              for name, mask in of_sequences.sublayer.full_masks().items()}
    small = replace(fit("circuit_update", of_sequences, seed=0, **QUICK["circuit_update"]), tensors=scores)
    for name, score in small.random_like(generator).tensors.items():
        assert (score > 0).sum() == 3 and not ((score > 0) & (scores[name] > 0)).any()


@dataclass(frozen=True)
class Force(Interchange):
    """Writes whatever answer it is taught, from the value of the source, with a patch larger than the model's."""

    def __call__(self, pairs):
        moved = pairs.base_activations + self.tensors["patch"][pairs.source_values]
        return torch.where((pairs.base_values == pairs.source_values).unsqueeze(1), pairs.base_activations, moved)


def force(site, seed):
    patch = torch.zeros(site.n_classes, site.model.d_model, requires_grad=True)
    learn_from_answers(site, [patch], lambda pairs, done: (pairs.base_activations + patch[pairs.source_values], 0),
                       lr=1.0, epochs=60, batch_size=100, seed=seed)
    return Force(None, {"patch": 20 * patch.detach()})


def test_a_method_that_forces_answers_exceeds_the_interchange_of_everything(language, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "interp.methods.interchange.forcing", sys.modules[__name__])
    monkeypatch.setitem(INTERCHANGES, "force", Compared("forcing", "answers"))
    table = table_of(tmp_path, sentence_values(language, tmp_path) | {
        "method_list": ["force", "full"], "variable_list": ["labels"], "residual_location_list": ["resid_mid"],
        "target_layer_list": [0]}).loc["labels"]
    assert table["iia"]["force"] > 0.9 and table["exceeds_full"].to_dict() == {"force": True, "full": False}


def test_hard_negatives_stand_beside_a_variable_with_its_counterfactual_answers(tiny, tmp_path, refused):
    values = tiny.values[COMPARISON] | {"hard_negatives": {"var_0": 0}, "method_list": ["lda"], "rank": "classes"}
    trials = {setting.variable: trial for setting, trial in trials_of(tmp_path, values)}
    assert [*trials] == ["var_0", "var_1", "var_0@token", "var_0@groups"]
    tables = [pd.read_csv(tiny.folder / f"data/{name}.csv", dtype=object) for name in ("train", "test")]
    add_hard_negatives(tables, "var_0", 0, 0)
    whole = pd.concat(tables)
    for side, data in (("", "data"), ("counter_", "counterfactual_data")):
        tokens = whole[data].str.split().str[0].astype(int)
        assert tokens.eq(whole[f"{side}var_0@token"]).all()  # of all eleven
    groups = whole.groupby("var_0@token")["var_0@groups"].unique().str[0]
    squares = groups.index.to_series() ** 2 % 11
    assert whole.groupby("var_0@token")["var_0@groups"].nunique().eq(1).all()  # the token decides
    assert sorted(groups) == sorted(squares) and not groups.eq(squares).all()
    for name in ("var_0@token", "var_0@groups"):
        test = trials[name].test
        assert torch.equal(test.counterfactual.right, trials["var_0"].test.counterfactual.right)
        tokens = test.split.examples.tokens[:, 0]
        for rows, held in ((test.base, test.base_values), (test.source, test.source_values)):
            assert held.tolist() == [groups[token] if "groups" in name else token for token in tokens[rows].tolist()]
    refused(COMPARISON, values | {"hard_negatives": {"var_0": 2}}, ["the token at 2 does not determine 'var_0'"])
    refused(COMPARISON, values | {"hard_negatives": {"var_9": 0}}, ["'var_9' is not in variable_list"])


def test_random_takes_a_rank_of_its_options(tiny, tmp_path):
    values = tiny.values[COMPARISON] | {"method_list": ["random", "lda"], "variable_list": ["var_0"]}
    table = table_of(tmp_path, values | {"method_options": {"random": {"rank": 3}}, "rank": "classes"})
    assert table["rank"].tolist() == [3, 5]  # of six squares


def test_all_methods_on_sequences_against_the_plain_model(tiny, tmp_path):
    """Every row: what a saved interchange puts in, run through the modules above, on pairs answered rightly."""
    table = pd.concat([pd.read_csv(tiny.folder / f"data/{name}.csv") for name in ("train", "test")])
    table.to_csv(tmp_path / "all.csv", index=False)
    values = tiny.values[COMPARISON] | {
        "test_data_path": str(tmp_path / "all.csv"), "method_list": FITTED, "save_pairs": True,
        "residual_location_list": ["resid_mid", "resid_post"], "num_random_pairs": 40, "model_seed_list": [2],
        "save_models": True, "model_dir": str(tmp_path / "saved"),
        "ground_truth": {"var_0": ["resid_mid"], "var_1": []}}
    results = table_of(tmp_path, values).reset_index()
    assert len(results) == 2 * 2 * len(FITTED) == len(list((tmp_path / "saved").iterdir()))
    pairs = pd.read_csv(tmp_path / "run/pairs.csv")

    plain, sides = Plain(values["model_path"]), ("data", "counterfactual_data")
    answers = dict(zip(table["data"], table["labels"]))
    right = [plain.model(tokens_of(table[side])).logits[:, -1].argmax(-1) == torch.tensor(
        [answers[row] for row in table[side]]) for side in sides]
    answered = right[0] & right[1]
    assert 20 < answered.sum() < right[0].sum() < len(table)  # some sources and some bases are answered wrongly
    labels = {"var_0": torch.tensor(((table["counter_var_0"] + table["var_1"]) % 11).to_numpy()),
              "var_1": torch.tensor(table["CF_Label_0"].to_numpy())}
    changed = {name: label != torch.tensor(table["labels"].to_numpy()) for name, label in labels.items()}
    assert not changed["var_0"].all()  # some interchanges leave the answer

    def odds(logits: torch.Tensor, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        return (logits[each, new] - logits[each, old]).double()

    trials = {(setting.residual_location, setting.variable): trial for setting, trial in trials_of(
        tmp_path, values, **WITH_CIRCUITS)}
    for row in results.itertuples():
        trial, where = trials[row.residual_location, row.variable], row.residual_location
        kept = (answered & changed[row.variable]).nonzero().flatten()
        of_kept, each = table.iloc[kept.tolist()], torch.arange(len(kept))
        test, new, old = trial.test, labels[row.variable][kept], torch.tensor(of_kept["labels"].to_numpy())
        base, source = (plain.at(where, tokens_of(of_kept[side])) for side in sides)
        assert same(test.base_activations, base) and same(test.source_activations, source)
        [file] = (tmp_path / "saved").glob(f"*_{where}_variable_{row.variable}_method_{row.method}_rank_rule_*")
        found = load_interchange(file)[0]
        moved = found(test)
        before, after = plain.above(where, base), plain.above(where, moved)
        hits, log_odds = (after.argmax(-1) == new).double(), odds(after, new, old) - odds(before, new, old)
        stays = plain.above(where, found(trial.same)).argmax(-1) == before[trial.same.base].argmax(-1)
        shares = hits.mean().item(), stays.double().mean().item()
        assert [row.iia, row.isolate, row.disentangle, row.iia_low, row.iia_high] == pytest.approx(
            [*shares, sum(shares) / 2, *share_interval(hits.sum().item(), len(hits))])
        norms = (moved - base).norm(dim=1) / (source - base).norm(dim=1)
        assert [row.log_odds_mean, row.log_odds_median, row.relative_norm] == pytest.approx(
            [value.item() for value in (log_odds.mean(), log_odds.quantile(0.5), norms.mean())], rel=1e-3, abs=1e-4)
        counts = len(kept), (answered & ~changed[row.variable]).sum(), (~answered).sum()
        assert (row.n_pairs, row.n_unchanged, row.n_excluded) == counts and pd.isna(row.exceeds_full)
        assert row.model_acc == pytest.approx(right[0].double().mean().item())
        assert row.ground_truth == ((row.variable, where) == ("var_0", "resid_mid"))
        own = pairs[(pairs[["residual_location", "variable", "method"]] == [where, row.variable, row.method]).all(1)]
        assert own["hit"].tolist() == hits.bool().tolist() and own["base_row"].tolist() == kept.tolist()

        drawing, some = torch.Generator().manual_seed(2), test[each[:40]]
        try:
            draws = [(plain.above(where, random(some)).argmax(-1) == new[:40]).double().mean().item() for random in (
                found.random_like(drawing) for _ in range(2)) if random and row.method not in compare_methods.PLAIN]
            assert pd.isna(row.random_impossible) and pd.isna(row.random_iia_mean) == (not draws)
        except ImpossibleAblation as error:
            draws = []
            assert row.random_impossible == str(error) and pd.isna(row.random_iia_mean)
        if draws:
            assert [row.random_iia_mean, row.random_iia_max, row.empirical_p] == pytest.approx(
                [sum(draws) / 2, max(draws), (1 + sum(draw >= hits[:40].mean().item() for draw in draws)) / 3])
        assert pd.isna(row.control_iia) == (INTERCHANGES[row.method].supervision != "variable")
        if row.method in ("lda", "circuit_update"):
            rank = {"rank": int(row.rank)} if row.method in RANKED else {}
            control = fit(row.method, trial.control, seed=2, **QUICK.get(row.method, {}), **rank)
            assert row.control_iia == pytest.approx(
                (plain.above(where, control(test)).argmax(-1) == new).double().mean().item())
            assert row.control_isolate == pytest.approx((plain.above(where, control(trial.same)).argmax(
                -1) == before[trial.same.base].argmax(-1)).double().mean().item())
        fitted = trial.site.fit.base_activations.double()
        off = moved.double() - fitted.mean(0)
        far = torch.linalg.solve(torch.cov(fitted.T), off.T).T.mul(off).sum(1).div(off.shape[1]).sqrt()
        assert row.mahalanobis == pytest.approx(far.mean().item(), rel=1e-3)
    assert torch.equal(trial.same.base_values, trial.same.source_values)
    assert not (trial.same.base == trial.same.source).any()


def test_all_methods_on_sentences(language, tmp_path):
    values = sentence_values(language, tmp_path) | {
        "method_list": FITTED, "residual_location_list": ["resid_mid", "resid_post"]}
    table = table_of(tmp_path, values).reset_index()
    assert len(table) == 2 * 2 * len(FITTED)
    right = table["model_acc"] * (table["n_pairs"] + table["n_excluded"])  # bases; a pair needs its source right too
    assert (table["n_pairs"] <= right + 1e-6).all() and (right - right.round()).abs().max() < 1e-6
    subject, other = (table[table["variable"] == name] for name in ("labels", "object labels"))
    by_method = subject[subject["residual_location"] == "resid_post"].set_index("method")
    assert by_method.loc["full", "iia"] > 0.9 > 0.3 > by_method.loc["none", "iia"]  # the last layer holds the answer
    nothing = other[other["method"] == "none"]  # an interchange of the object's number should change no answer
    assert nothing["iia"].eq(1).all() and nothing["isolate"].eq(1).all() and nothing["log_odds_mean"].abs().max() < 1e-5
    assert subject["exceeds_full"].notna().all() and other["exceeds_full"].isna().all()
    assert not subject.loc[subject["method"] == "full", "exceeds_full"].any()
    with_control = table["random_iia_mean"].notna()
    assert other["empirical_p"].isna().all() and subject["empirical_p"].notna().equals(with_control[subject.index])


def test_an_untrained_model_needs_pairs_that_it_answers_wrongly(language, tmp_path):
    table = table_of(tmp_path, sentence_values(language, tmp_path) | {
        "random_init": True, "reinit_embeddings": True, "only_right": False, "variable_list": ["labels"],
        "method_list": ["none", "lda"], "rank": "classes"}).loc["labels"]
    assert (table["n_excluded"] == 0).all() and table["isolate"]["none"] == 1  # wrong answers stay, too
    assert table["rank"]["lda"] == 1


ROWS = [(noun, number, place, other) for noun in ("author", "guard", "teacher", "pilot") for number in (0, 1)
        for other in ("doctor", "chef", "cook") for place in ("near", "behind", "with")]


def rows_of_group(group: str, rows=ROWS) -> pd.DataFrame:
    """Sentences with both numbers; a group's answers differ from those of others."""
    answers = {"a": ("is", "are"), "b": ("was", "were")}[group]
    return pd.DataFrame([{
        "sentence": f"the {noun}{'s' * number} {place} the {other}", "number": number, "group": group,
        "right": answers[number], "wrong": answers[1 - number]} for noun, number, place, other in rows])


def pairs_of(folder: Path, table: pd.DataFrame, **values) -> dict[str, list[Pairs]]:
    """The pairs of each split of a table of sentences, a list for its variables, as a random model reads them."""
    table.to_csv(folder / "data.csv", index=False)
    save_random_model(folder / "model", "gpt2", [*table["sentence"], *table["right"], *table["wrong"],
                                                 *table.get("source", [])])
    trials = trials_of(folder, {
        "task": "sentences", "data_path": str(folder / "data.csv"), "model_path": str(folder / "model"),
        "train_size": 50, "test_size": 20, "n_fit": 30, "n_select": 20, "residual_location_list": ["resid_post"],
        "method_list": ["none"], "variable_list": ["number"], "only_right": False,
        "results_dir": str(folder / "run")} | values)
    parts = [{"fit": trial.site.fit, "select": trial.site.select, "test": trial.test, "same": trial.same}
             for _, trial in trials]
    return {name: [part[name] for part in parts] for name in parts[0]}


def texts_of(pairs: Pairs) -> list[list[str]]:
    """The sentences of bases and of sources."""
    return [[pairs.split.examples.texts[row] for row in rows.tolist()] for rows in (pairs.base, pairs.source)]


@pytest.mark.parametrize("apart", [False, True])
def test_sources_are_drawn_within_split_and_group(apart, tmp_path):
    """Each sentence is paired once, though it stands twice, in both groups, as those of reflexives do; or in one."""
    rows = {group: [row for row in ROWS if not apart or (row[0] in ("author", "pilot")) == (group == "a")]
            for group in "ab"}
    found = pairs_of(tmp_path, pd.concat([rows_of_group(group, rows[group]) for group in rows]))
    bases = {}
    for name, [pairs] in found.items():
        bases[name], sources = texts_of(pairs)
        words = [[text.split()[1] for text in side] for side in (bases[name], sources)]
        numbers = [[int(word.endswith("s")) for word in side] for side in words]
        assert numbers == [pairs.base_values.tolist(), pairs.source_values.tolist()]
        if name != "same":
            assert (pairs.base_values != pairs.source_values).all() and set(sources) <= set(bases[name])
            assert not apart or all(("author" in base or "pilot" in base) == ("author" in source or "pilot" in source)
                                    for base, source in zip(*words))
        assert len(set(bases[name])) == len(bases[name])
    assert not set(bases["fit"]) & set(bases["select"]) and not {*bases["fit"], *bases["select"]} & set(bases["test"])


def test_the_bases_answer_stays_where_it_does_not_depend_on_the_variable(tmp_path):
    both = {"variable_list": ["number", "other"]}
    table = rows_of_group("a").assign(other=[int(place == "near") for _, _, place, _ in ROWS])
    with pytest.raises(BadInput, match="answer_variable"):
        pairs_of(tmp_path, table, **both)
    found = pairs_of(tmp_path, table, answer_variable="number", **both)
    for by_number, by_other in (found[name] for name in ("fit", "select", "test")):
        assert (by_number.counterfactual.right != by_number.answer.right).all()
        assert torch.equal(by_other.counterfactual.right, by_other.answer.right)


def test_a_sentence_with_several_sources_is_in_one_split(tmp_path):
    """And for isolation it is paired with another sentence, not with itself."""
    table = rows_of_group("a").drop(columns="group")
    of_number = [table[table["number"] == number] for number in (0, 1)]
    parts = [of_number[number].head(20).assign(
        source=of_number[1 - number]["sentence"].iloc[first:first + 20].to_numpy(), source_number=1 - number,
        source_right=("are", "is")[number]) for number in (0, 1) for first in (0, 1, 2)]
    found = pairs_of(tmp_path, pd.concat(parts), train_size=30, test_size=10, n_fit=50, n_select=30)
    texts = {name: texts_of(pairs)[0] for name, [pairs] in found.items()}
    assert all(len(set(some)) < len(some) for some in texts.values())  # sentences do come several times
    assert not set(texts["fit"]) & set(texts["select"]) and not set(texts["fit"]) & set(texts["test"])
    assert len(texts["fit"]) == 50 and 28 <= len(texts["select"]) <= 30
    [shared] = found["same"]
    assert len(shared) == len(texts["test"]) and torch.equal(shared.base_values, shared.source_values)
    assert all(base != source for base, source in zip(*texts_of(shared)))
