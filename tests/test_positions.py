"""Any position of a sentence: marks, what a position is of each row, and every method asked there."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import compare_methods
from conftest import CIRCUITS, COMPARISON, DEVICE, METHODS, execute, language_values, opened_model, write_yaml
from interp.experiment import main
from interp.methods.masks import load_circuit
from interp.models.examples import rows_of as rows_of_tokens
from interp.models.open_model import hooked, tensor_of
from interp.models.positions import EVERYWHERE
from interp.models.sublayers import find_sublayer, masked
from interp.runs.config import load_config
from interp.runs.settings import expand_settings
from interp.statistics import clustered_interval
from interp.tasks.grammar import make_table
from interp.tasks.marks import read_marks, tokens_in
from interp.tasks.sentences import WORD
from interp.tasks.study import at_sites

LOCATIONS = ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
SMALL = {"target_layer_list": [0, 1], "train_size": 300, "test_size": 120,
         "position_list": ["subject", "object", "last"]}
OF_METHOD = {
    "probing": {"residual_location_list": LOCATIONS, "lr_list": [0.01], "batch_size_list": [50], "num_epochs": 5,
                "counterfactual_embeddings": True, "cf_num_epochs": 20},
    "amnesic_probing": {"residual_location_list": LOCATIONS},
    "DAS": {"location_list": ["attn", "mlp", "resid_pre", "mlp_out"], "n_train": 150, "n_val": 60,
            "batch_size_list": [50], "epochs": 2},
    "circuit_probing": {"num_epochs": 5, "num_random_ablations": 1, "ablate_at": "position",
                        "batch_size_list": [100]},
    "compare_methods": {"residual_location_list": ["attn_out", "resid_post"], "n_fit": 200, "n_select": 60,
                        "method_list": ["full", "none", "lda", "circuit_update"], "num_random_draws": 2,
                        "variable_list": ["labels"], "method_options": {"circuit_update": {"num_epochs": 3}}}}
SCRIPTS = METHODS | {"circuit_probing": CIRCUITS, "compare_methods": COMPARISON}


@pytest.fixture(scope="module")
def marked(language, tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("marked")
    table = make_table("Syntactic_Number", 0, 0)
    table.to_csv(folder / "marked.csv", index=False)
    table.assign(sentence=make_table("Syntactic_Number", 0, 0, mark=False)["sentence"]).to_csv(
        folder / "plain.csv", index=False)
    return SimpleNamespace(folder=folder, model=language.model, language=language)


def values_of(marked: SimpleNamespace, method: str, folder: Path, **changes) -> dict:
    """A script's config on marked sentences."""
    values = language_values(marked.language, folder, "syntactic_number")
    values = values if method == "circuit_probing" else {"model_path": values["model_path"]}
    variable = {} if method == "compare_methods" else {"variable": "labels"}
    return values | variable | SMALL | OF_METHOD[method] | {
        "task": "sentences", "answer_variable": "labels", "data_path": str(marked.folder / "marked.csv")} | changes


# -------------------------------------------------------------------------------------- marks

def test_a_mark_names_a_span_of_characters_and_tokens():
    text, spans = read_marks("  the {subject:taxi driver} near {object:it} ")
    assert text == "the taxi driver near it"
    assert {name: text[slice(*span)] for name, span in spans.items()} == {"subject": "taxi driver", "object": "it"}
    offsets = [(0, 3), (3, 8), (8, 15), (15, 20), (20, 23)]  # with the spaces before them
    assert tokens_in(spans, offsets, 0) == {"subject": [1, 2], "object": [4]}
    assert tokens_in(spans, [(0, 2), *((start + 2, end + 2) for start, end in offsets)], 2) == {
        "subject": [2, 3], "object": [5]}
    for wrong, words in ((offsets[:3], "no token has a character"), ([(0, 8), (8, 23)], "share a token")):
        with pytest.raises(ValueError, match=words):
            tokens_in(spans, wrong, 0)


@pytest.mark.parametrize("sentence, words", [
    ("the {subject:author near the guards", "a brace belongs to no mark"),
    ("the {subject:author} near the {subject:guards}", "'subject' stands twice"),
    ("the {subject:author near {object:the guards}}", "marks do not stand inside each other"),
    ("the {last:author} near the guards", "'last' cannot be the name"),
    ("the {probed:author} near the guards", "'probed' cannot be the name"),
    ("the {:author} near the guards", "'' cannot be the name"),
    ("the author{gap: } near the author", "no token has a character of the mark 'gap'"),
    ("the {subject:auth}{second:or} near the author", "'subject' and 'second' share a token"),
])
def test_a_wrong_mark_is_one_sentence_that_names_its_row(sentence, words, marked, tmp_path, capsys):
    table = pd.read_csv(marked.folder / "marked.csv")
    rows = table[table["sentence"].str.contains("author")].reset_index(drop=True)
    rows.loc[7, "sentence"] = sentence
    rows.to_csv(tmp_path / "wrong.csv", index=False)
    values = values_of(marked, "DAS", tmp_path, data_path=str(tmp_path / "wrong.csv"), train_size=140,
                       test_size=100, n_train=80, n_val=40, results_dir=str(tmp_path / "never"))
    assert main(METHODS["DAS"], ["--config", str(write_yaml(tmp_path / "c.yaml", values))]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and words in said and "author" in said and "wrong.csv" in said
    assert not (tmp_path / "never").exists()


# ------------------------------------------------------------------------------------ methods

@pytest.mark.parametrize("method", OF_METHOD)
def test_every_method_at_every_position(method, marked, tmp_path):
    """The object's token is the last one, and what is asked there is the same; the subject's is another one."""
    rows = pd.DataFrame(execute(SCRIPTS[method], values_of(marked, method, tmp_path), tmp_path / "run"))
    values = [name for name in rows if name not in ("position", "seconds")]
    at = {position: of.reset_index(drop=True)[values] for position, of in rows.groupby("position")}
    assert set(at) == {"subject", "object", "last"} and (rows["n_without_position"].astype(int) == 0).all()
    assert at["object"].equals(at["last"]) and not at["subject"].equals(at["last"])
    plain = values_of(marked, method, tmp_path, data_path=str(marked.folder / "plain.csv"), position_list=["last"])
    assert pd.DataFrame(execute(SCRIPTS[method], plain, tmp_path / "plain"))[values].equals(at["last"])


def with_objects_unmarked(marked: SimpleNamespace, folder: Path) -> str:
    """The file, in every fifth sentence of which no object is marked."""
    table = pd.read_csv(marked.folder / "marked.csv")
    bare = table["sentence"].str.replace(r"\{object:(.*)\}", r"\1", regex=True)
    table["sentence"] = table["sentence"].where(table.index % 5 != 0, bare)
    table.to_csv(folder / "some.csv", index=False)
    return str(folder / "some.csv")


def test_what_stands_at_a_site_is_that_of_the_rows_with_its_position(marked, tmp_path):
    """Activations, what enters the layer and the forward pass of splits and pairs, each read without the others."""
    values = values_of(marked, "DAS", tmp_path, data_path=with_objects_unmarked(marked, tmp_path), results_dir="x",
                       position_list=["object", "subject", "last"])
    config = METHODS["DAS"].schema(**values)
    settings = expand_settings(config)
    [(model, data, _)] = METHODS["DAS"].prepare(config, settings, DEVICE).models(settings)
    splits, rows = {"train": data.train, "pairs": data.pairs["test"], "test": data.tests["test"]}, torch.arange(20)
    for at in at_sites(model, settings, splits, forward=["pairs", "test"], entering=True):
        here = replace(at.site, position="probed")
        below = replace(here, location="resid_pre", position=EVERYWHERE)
        for name, split in splits.items():
            shown = split.probing(at.site.position)
            assert (len(shown) < len(split)) == (at.site.position == "object") == bool(at.missing[name])
            bases = shown.base if name == "pairs" else shown
            examples = shown.both() if name == "pairs" else shown
            alone = model.activations(examples, [here, below])
            torch.testing.assert_close(at.activations[name], alone[here])
            inside = torch.arange(examples.tokens.shape[1]) < examples.lengths.unsqueeze(1)
            torch.testing.assert_close(at.entering[name][:, :inside.shape[1]][inside], alone[below][inside])
            if name in at.forward:
                moved = alone[here][:len(shown)].flip(0)[:20]
                torch.testing.assert_close(at.forward[name](moved, rows), model.patched(bases, here)(moved, rows),
                                           rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", OF_METHOD)
def test_rows_without_the_position_are_left_out_there_and_counted(method, marked, tmp_path):
    changes = {"data_path": with_objects_unmarked(marked, tmp_path), "position_list": ["object", "last"],
               "target_layer_list": [1]} | ({"only_right": False} if method == "compare_methods" else {})
    rows = pd.DataFrame(execute(SCRIPTS[method], values_of(marked, method, tmp_path, **changes), tmp_path / "run"))
    missing = rows.groupby("position")["n_without_position"].unique()
    [left_out], [none] = missing["object"], missing["last"]
    of_pairs = method in ("DAS", "compare_methods") or (method == "probing")
    assert int(none) == 0 and (30 < int(left_out) < 60 if of_pairs else 15 < int(left_out) < 35)
    there, everywhere = (rows[rows["position"] == position] for position in ("object", "last"))
    if method == "compare_methods":  # what is unchanged is what these rows give without intervention
        assert set(there["n_pairs"]) == {str(120 - int(left_out))}
        assert there.loc[there["method"] == "none", "log_odds_mean"].astype(float).abs().max() < 1e-5
    if method == "amnesic_probing":
        assert there["vanilla_acc"].astype(float).min() > 0.9 < everywhere["vanilla_acc"].astype(float).min()
    if method == "probing":
        effects = [of["counterfactual_average_logit_diff"].astype(float).abs().max() for of in (there, everywhere)]
        assert effects[0] == pytest.approx(effects[1], rel=0.15)


def test_everything_exchanged_at_the_subject_is_the_model_with_one_token_patched(marked, tmp_path):
    values = values_of(marked, "DAS", tmp_path, position_list=["subject"], location_list=["mlp"], epochs=1)
    rows = execute(METHODS["DAS"], values, tmp_path / "run")
    config = METHODS["DAS"].schema(**values, results_dir="x")
    settings = expand_settings(config)
    pairs = METHODS["DAS"].prepare(config, settings, DEVICE).data(settings[0]).pairs["test"]
    model, hits = opened_model(marked.model).model, {0: [], 1: []}
    for layer, row in product((0, 1), range(len(pairs))):
        base, source = (torch.tensor([rows_of_tokens(side)[row]]) for side in (pairs.base, pairs.source))
        block, taken = model.transformer.h[layer], list[torch.Tensor]()

        def take(module, arguments, output, taken=taken):
            taken.append(tensor_of(output)[0, 1].clone())

        def put(module, arguments, output, taken=taken):
            tensor_of(output)[0, 1] = taken[0]  # the subject is the second word

        with torch.no_grad():
            with hooked(block.register_forward_hook(take)):
                model(source, use_cache=False)
            with hooked(block.register_forward_hook(put)):
                logits = model(base, use_cache=False).logits[0, -1]
        wanted = pairs.counterfactual[torch.tensor([row])]
        hits[layer].append(bool(logits[wanted.right] > logits[wanted.wrong]))
    for row in rows:
        share = sum(hits[int(row["target_layer"])]) / len(pairs)
        assert float(row["full_interchange_acc"]) == pytest.approx(share, abs=1e-9)


def test_a_circuit_ablated_at_a_position_leaves_out_what_it_adds_there(marked, tmp_path):
    values = values_of(marked, "circuit_probing", tmp_path, position_list=["subject"], save_models=True,
                       model_dir=str(tmp_path / "saved"), num_random_ablations=0)
    rows = execute(CIRCUITS, values, tmp_path / "run")
    everywhere = execute(CIRCUITS, values | {"ablate_at": "everywhere", "model_dir": str(tmp_path / "other")},
                         tmp_path / "everywhere")
    config = CIRCUITS.schema(**values | {"results_dir": "x"})
    settings = expand_settings(config)
    examples = CIRCUITS.prepare(config, settings, DEVICE).data(settings[0]).evaluated["iid"]
    opened = opened_model(marked.model)
    for row, other in zip(rows, everywhere):
        [file] = (tmp_path / "saved").glob(f"*layer_{row['target_layer']}_*_{row['operation']}_*")
        sublayer = find_sublayer(opened, int(row["target_layer"]), row["operation"])
        masks = load_circuit(file)[0].ablation()
        site = replace(sublayer.site, position=EVERYWHERE)
        with masked(sublayer, masks):
            without = opened.activations(examples, [site])[site][:, 1]

        def put(update: torch.Tensor, without=without) -> torch.Tensor:
            return update.index_copy(1, torch.tensor([1]), without.unsqueeze(1))

        with hooked(opened.hook(sublayer.site, put)):
            states = opened.forward(examples.tokens)[torch.arange(len(examples)), examples.answering]
        assert float(row["ablated_acc_iid"]) == pytest.approx(
            opened.is_right(states, examples.answer).double().mean().item())
        assert {name: row[name] for name in ("knn_test_acc", "l0_norm", "vanilla_acc_iid")} == {
            name: other[name] for name in ("knn_test_acc", "l0_norm", "vanilla_acc_iid")}
    assert [row["ablated_acc_iid"] for row in rows] != [row["ablated_acc_iid"] for row in everywhere]


def test_check_shows_which_token_each_position_is(marked, tmp_path, capsys):
    values = values_of(marked, "DAS", tmp_path, results_dir=str(tmp_path / "never"))
    assert main(METHODS["DAS"], ["--config", str(write_yaml(tmp_path / "c.yaml", values)), "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [number for number, line in enumerate(lines) if line.startswith(("train: ", "test: "))]
    assert len(shown) == 6
    for number in shown:
        words = lines[number].split("'")[1].split()
        assert lines[number + 1] == f"  subject: token 1, {words[1]}" and lines[number + 3].endswith(words[-1])


def test_words_are_held_out_of_the_fit_and_intervals_are_over_them(marked, tmp_path, refused):
    values = values_of(marked, "compare_methods", tmp_path, train_size=400, test_size=300, hold_out="subject",
                       position_list=["last"], save_pairs=True, method_list=["full"], only_right=False,
                       residual_location_list=["resid_post"], target_layer_list=[1], n_fit=60, n_select=20)
    config = load_config(write_yaml(tmp_path / "held.yaml", values | {"results_dir": "r"}), COMPARISON.schema)
    study = compare_methods.prepare(config, expand_settings(config), DEVICE)
    [data] = study.data_by_key.values()
    texts = {"train": data.train.texts, "test": data.tests["test"].texts}
    nouns = {name: {text.split()[1].removesuffix("s") for text in some} for name, some in texts.items()}
    assert not nouns["train"] & nouns["test"] and min(map(len, nouns.values())) > 3
    assert 100 < len(texts["train"]) < 300 and 80 < len(texts["test"]) < 220  # about half of each
    held = data.tests["test"].variables[WORD].tolist()
    assert len({*zip(held, (text.split()[1].removesuffix("s") for text in texts["test"]))}) == len(nouns["test"])

    [row] = execute(COMPARISON, values, tmp_path / "run")
    pairs = pd.read_csv(tmp_path / "run/pairs.csv")
    words = pairs["base_row"].map(dict(enumerate(held)))
    parts = [hits.astype(float).tolist() for _, hits in pairs.groupby(words)["hit"]]
    assert [float(row["iia_low"]), float(row["iia_high"])] == pytest.approx(clustered_interval(
        [[sum(part) / len(part)] for part in parts], [[len(part)] for part in parts]))
    refused(COMPARISON, values | {"hold_out": "verb"}, ["hold_out:", "has no mark 'verb'"])
