"""Tasks of one's own, from a CSV and a YAML alone, asked by every method of a small GPT-2 that has learned them."""

import json
import os
import shutil
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from conftest import CIRCUITS, DEVICE, METHODS, execute, opened_model
from interp.experiment import main
from interp.models.loading import load_tokenizer
from interp.runs.config import BadInput
from interp.runs.settings import expand_settings
from interp.tasks.arithmetic import labels_of, read_data, token_ids
from interp.tasks.sentences import Reader, read_sentences
from interp.tasks.study import Data
from language_model import make_language_model

SHE = ("anna", "clara", "emma", "julia", "laura", "maria", "nora", "olga", "paula", "sara")
HE = ("adam", "carl", "david", "eric", "frank", "hugo", "ivan", "john", "mark", "paul")
ROLES = ("waiter", "doctor", "painter")
NOUNS = ("cat", "dog", "horse", "king", "queen", "ship", "train", "wolf")
DAYS = (("today", "now", "again"), ("yesterday", "before", "once"))  # by tense
THINGS = (("banana", "lemon"), ("tomato", "cherry"), ("frog", "leaf"))  # by colour
COLOURS = ("yellow", "red", "green")
OF_METHOD = {  # what each method is told besides
    "probing": {"residual_location_list": ["resid_mid", "resid_post"], "lr_list": [0.01], "batch_size_list": [40],
                "num_epochs": 40, "counterfactual_embeddings": True},
    "amnesic_probing": {"residual_location_list": ["resid_mid", "resid_post"], "num_random_erasures": 3},
    "DAS": {"location_list": ["attn", "mlp"], "n_train": 120, "n_val": 40, "batch_size_list": [40], "epochs": 30},
    "circuit_probing": {"operation_list": ["attn", "mlp"], "lr_list": [0.01], "batch_size_list": [80],
                        "mask_init_list": [0.0], "num_epochs": 30, "max_temp": 200, "l0_lambda": 1e-5,
                        "num_random_ablations": 2}}
SCRIPTS = METHODS | {"circuit_probing": CIRCUITS}


def gender_table() -> pd.DataFrame:
    """he or she, by a name; the role is what the answer does not depend on."""
    rows = [(f"the {role} {name} {verb} that", gender, number, ("he", "she")[gender], ("she", "he")[gender])
            for number, role in enumerate(ROLES) for verb in ("said", "knew", "thought", "wrote")
            for gender, names in enumerate((HE, SHE)) for name in names]
    return pd.DataFrame(rows, columns=["sentence", "gender", "role", "right", "wrong"])


def tense_table(template: str = "{day} the {noun} near the {other}") -> pd.DataFrame:
    """was or is, by the day."""
    rows = [(template.format(day=day, noun=noun, other=other), tense, ("is", "was")[tense], ("was", "is")[tense])
            for tense, days in enumerate(DAYS) for day, noun, other in product(days, NOUNS, NOUNS)]
    return pd.DataFrame(rows, columns=["sentence", "tense", "right", "wrong"])


def colour_table() -> pd.DataFrame:
    """A variable of three values: a thing's colour; each of the other two is wrong somewhere."""
    rows = [(f"the {noun} saw a {thing} of {name} that looked", colour, COLOURS[colour],
             COLOURS[(colour + 1 + number % 2) % 3])
            for colour, things in enumerate(THINGS) for thing in things
            for number, (noun, name) in enumerate(product(NOUNS, SHE[:5] + HE[:4]))]
    return pd.DataFrame(rows, columns=["sentence", "colour", "right", "wrong"])


TASKS = {"gender": gender_table, "tense": tense_table, "colour": colour_table}


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> SimpleNamespace:
    """The files of the tasks and a small GPT-2 that has learned all of them."""
    folder = tmp_path_factory.mktemp("own")
    tables = {name: make() for name, make in TASKS.items()} | {
        "tense_gen": tense_table("in the morning {day} the {noun} with the {other}")}
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    make_language_model(folder / "model", [f"{row.sentence} {row.right}" for table in tables.values()
                                           for row in table.itertuples()],
                        steps=300, width=32, lr=5e-3, warmup=1)
    return SimpleNamespace(folder=folder, tables=tables)


def values_of(own, method: str, variable: str, **changes) -> dict:
    gen = own.folder / f"{variable}_gen.csv"
    return {"task": "sentences", "variable": variable, "data_path": str(own.folder / f"{variable}.csv"),
            "gen_path": str(gen) if gen.exists() else None, "model_path": str(own.folder / "model"),
            "train_size": 160, "test_size": 60, "target_layer_list": [0, 1], **OF_METHOD[method],
            "results_dir": str(own.folder / "never")} | changes


def ask(own, method: str, variable: str, results: Path, **changes) -> pd.DataFrame:
    """A method's command line; its results, a row for each layer and place."""
    execute(SCRIPTS[method], values_of(own, method, variable, **changes), results)
    return pd.read_csv(results / "results.csv")


def data_of(own, method: str, variable: str, **changes) -> Data:
    config = SCRIPTS[method].schema(**values_of(own, method, variable, **changes))
    settings = expand_settings(config)
    return SCRIPTS[method].prepare(config, settings, DEVICE).data(settings[0])


@pytest.mark.parametrize("variable", TASKS)
def test_every_method_asks_a_task_of_ones_own(variable, own, tmp_path):
    values = own.tables[variable][variable].nunique()
    folders = {"circuit_probing": "small"} | {method: f"{folder}/small" for method, folder in (
        ("probing", "linear_probing"), ("amnesic_probing", "amnesic"), ("DAS", "DAS"))}
    found = {method: ask(own, method, variable, tmp_path / folders[method]) for method in SCRIPTS}
    probes, erased, aligned, circuits = (found[method] for method in (
        "probing", "amnesic_probing", "DAS", "circuit_probing"))
    last = {method: found[method].iloc[-1] for method in found}  # above the last MLP nothing but the answer is left
    sets = [("test", "", "iid")] + [("gen", "gen_", "gen")] * (variable == "tense")
    for name, prefix, judged in sets:
        for table in (probes, aligned, circuits):
            assert (table[f"vanilla_acc_{judged}"] > 0.97).all()
        assert (erased[f"{prefix}vanilla_acc"] > 0.97).all()

        assert last["probing"][f"{name}_acc"] > 0.95 > 0.6 > last["probing"][f"majority_{name}_acc"]
        assert last["probing"][f"{prefix}counterfactual_embedding_success"] > 0.95
        assert last["probing"][f"{prefix}counterfactual_predicts_cf_label"] > 0.9
        assert last["amnesic_probing"][f"{prefix}heldout_acc"] < 0.7
        assert (erased[f"{prefix}random_heldout_acc_mean"] > 0.95).all()
        assert last["DAS"][f"{prefix}interchange_intervention_acc"] > 0.95
        assert last["DAS"][f"{prefix}full_interchange_acc"] > 0.95

        assert (circuits[f"knn_{name}_acc"] > 0.95).any()
        assert {f"full_model_knn_{name}_acc", f"majority_{name}_acc"} <= set(circuits)
        lost = circuits[f"vanilla_acc_{judged}"] - circuits[f"ablated_acc_{judged}"]
        by_chance = circuits[f"vanilla_acc_{judged}"] - circuits[f"random_ablated_acc_{judged}_mean"]
        assert lost.max() > 0.3 and not by_chance.max() > 0.1
    assert (erased["erased_rank"] == values - 1).all()
    assert "knn_dev_acc" in circuits and len(list((tmp_path / "small/qualitative").iterdir())) == 4
    for method, table in found.items():
        assert len(table) == 4 and ("gen_acc" in table) == (variable == "tense" and method == "probing")


@pytest.mark.parametrize("variable", TASKS)
def test_a_drawn_source_has_another_value_and_its_answer_is_what_an_exchange_should_give(variable, own):
    data = data_of(own, "DAS", variable)
    model = opened_model(own.folder / "model")
    for pairs in data.pairs.values():
        base, source = pairs.base, pairs.source
        assert set(source.texts) <= set(base.texts)  # of the same split
        assert (source.variables[variable] != base.variables[variable]).all()
        assert pairs.counterfactual.right.equal(source.answer.right)
        assert (pairs.counterfactual.right != base.answer.right).all()
        untouched = model.final_states(base)
        assert model.is_right(untouched, base.answer).double().mean() > 0.97
        assert not model.is_right(untouched, pairs.counterfactual).any()  # doing nothing is no success
    other = data_of(own, "DAS", variable, data_seed=1)
    assert all(getattr(other.pairs["train"], side).texts != getattr(data.pairs["train"], side).texts
               for side in ("base", "source"))


def test_exchanging_what_the_answer_does_not_depend_on_leaves_it_as_it_is(own, tmp_path, refused):
    of_role = {"data_path": str(own.folder / "gender.csv"), "answer_variable": "gender"}
    pairs = data_of(own, "DAS", "role", **of_role).pairs["test"]
    assert (pairs.source.variables["role"] != pairs.base.variables["role"]).all()
    assert pairs.counterfactual == pairs.base.answer
    same = (pairs.source.answer.right == pairs.base.answer.right).double().mean().item()
    table = ask(own, "DAS", "role", tmp_path / "run", **of_role, epochs=60)
    assert table["full_interchange_acc"].iloc[-1] == pytest.approx(same, abs=0.02)  # gender goes along with it
    assert table["interchange_intervention_acc"].iloc[-1] > table["full_interchange_acc"].iloc[-1] + 0.2
    refused(SCRIPTS["probing"], values_of(own, "probing", "role", **of_role), ["'role'"])  # no answer to change


def minimal_pairs() -> pd.DataFrame:
    """Each sentence with the name of the other gender in its place as its source."""
    table = gender_table()
    swapped = dict(zip(HE + SHE, SHE + HE))
    table["source"] = [" ".join(swapped.get(word, word) for word in text.split()) for text in table["sentence"]]
    return table.assign(source_right=table["wrong"])


def test_sources_of_ones_own_are_what_is_exchanged(own, tmp_path, refused):
    pairs = minimal_pairs()
    pairs.to_csv(tmp_path / "pairs.csv", index=False)
    changes = {"data_path": str(tmp_path / "pairs.csv")}
    found = data_of(own, "DAS", "gender", **changes).pairs["test"]
    wanted = pairs.set_index("sentence").loc[found.base.texts]
    assert found.source.texts == wanted["source"].tolist()
    assert found.source.variables["gender"].equal(1 - found.base.variables["gender"])
    tokenizer = load_tokenizer("", str(own.folder / "model"))
    assert tokenizer.convert_ids_to_tokens(found.counterfactual.right.tolist()) == wanted["source_right"].tolist()
    assert found.counterfactual.wrong.equal(found.base.answer.right)
    for method in ("probing", "DAS"):
        row = ask(own, method, "gender", tmp_path / method, **changes).iloc[-1]
        assert row["interchange_intervention_acc" if method == "DAS" else "counterfactual_predicts_cf_label"] > 0.95

    colours = colour_table()  # a source of the next colour for each
    following = [colours[colours["colour"] == (colour + 1) % 3].iloc[row % 100]
                 for row, colour in enumerate(colours["colour"])]
    colours = colours.assign(source_colour=[row["colour"] for row in following], source=[
        row["sentence"] for row in following], source_right=[row["right"] for row in following])
    changes = {"data_path": str(tmp_path / "colours.csv")}
    for missing in ("source_colour", "source_right"):
        colours.drop(columns=missing).to_csv(tmp_path / "colours.csv", index=False)
        refused(SCRIPTS["DAS"], values_of(own, "DAS", "colour", **changes), [f"'{missing}'"])
    colours.to_csv(tmp_path / "colours.csv", index=False)
    found = data_of(own, "DAS", "colour", **changes).pairs["train"]
    assert found.source.variables["colour"].equal((found.base.variables["colour"] + 1) % 3)
    assert found.counterfactual.wrong.equal(found.base.answer.right)


WORDS = ("true", "TRUE", "null", "None", "NA", "nan", "007", "1e5", "1.0", "2020-01-01", "-", "1,5", 'a "b"')
HEAD = "sentence,right,wrong,v\n"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_words_are_what_the_file_says(end, tmp_path):
    cells = [word.replace('"', '""') for word in WORDS]
    lines = [",sentence,right,wrong,v,", *(f'{row},"s {cell}","{cell}",x,-00{row} ,' for row, cell in enumerate(cells))]
    (tmp_path / "d.csv").write_bytes(("\ufeff" + f"{end}{end}".join(lines)).encode())
    table = read_sentences("data_path", str(tmp_path / "d.csv"), "sentences", [])
    assert (*table["right"],) == WORDS and [*table["sentence"]] == [f"s {word}" for word in WORDS]
    assert labels_of(table, "v").tolist() == [-row for row in range(len(WORDS))]


@pytest.mark.parametrize("text, words", [
    (f"{HEAD}Now, he ran,a,b,0\n", ["row 2 has 5 cells", "has 4", "quotes"]),
    (f"{HEAD}x,a,b,0\n\ny,a,b\n", ["row 4 has 3 cells"]),
    ("sentence,right,wrong,v, right\nx,a,b,0,c\n", ["row 1", "'right' twice"]),
    ("sentence;right;wrong;v\nNow, x;a;b;0\n", ["row 1", "semicolons", "commas"]),
    ("sentence\tright\twrong\tv\nx\ta\tb\t0\n", ["row 1", "tabs"]),
    (f'{HEAD}"x,a,b,0\n', ["after row 1", "end of data"]),
    (f"{HEAD}x,a,b,0\ny,a, ,0\n", ["'wrong'", "every row", "row 3"]),
    *((f"{HEAD}x,a,b,0\ny,a,b,{value}\n", ["'v'", "whole numbers", "row 3", f"'{value}'"])
      for value in ("1.0", "True", "", "-1", "+1", "1_0", "\u0661", "1e5", 2**63)),
    (f"{HEAD}x,a,b,{'9' * 5000}\n", ["'v'", "row 2"]), ("PIPE", ["is no file"]), ("FOLDER", ["is no file"]),
])
def test_a_file_of_another_shape_is_refused(text, words, tmp_path):
    file = tmp_path / "d.csv"
    {"PIPE": os.mkfifo, "FOLDER": os.mkdir}.get(text, lambda path: path.write_text(text))(file)
    with pytest.raises(BadInput) as error:
        read_sentences("data_path", str(file), "sentences", ["v"])
    assert all(word in str(error.value) for word in (f"data_path: {file}", *words)), error.value


@pytest.mark.parametrize("row", ["1 2_0", "1", "1 \u0662", f"1 {2**70}", "1 +2"])
def test_a_token_id_is_a_number_of_ascii_digits(row, tmp_path):
    (tmp_path / "d.csv").write_text(f"data,labels\n1 2,0\n{row},1\n")
    with pytest.raises(BadInput, match="'data' must hold token ids.*row 3"):
        token_ids(read_data("train_data_path", str(tmp_path / "d.csv"), ["data"]))


BOS = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
UNACCENTED = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()])


def notes_of(folder: Path, answers: str, between: str, prefix="", unigram=False, other=None, **parts) -> list[str]:
    """Of sentences read by a byte-level BPE or a Unigram. parts: of its pipeline; `other` pre-tokenizer when loaded."""
    lines, (right, wrong) = ("Zo\u00e9 said", "from 17", "the 5"), answers.split()
    texts = [line + space + word for line in lines for word in (right, wrong) for space in ("", " ")]
    if unigram:
        words = [word for text in texts for word in text.split()]
        tokenizer = Tokenizer(models.Unigram([(word, -1.0) for word in dict.fromkeys(
            ["<unk>", "<s>", "\u2581", *words, *(f"\u2581{word}" for word in words)])], unk_id=0))
        tokenizer.add_special_tokens(["<s>"])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    if not unigram:
        tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
            special_tokens=["<pad>", "<s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>" if unigram else None).save_pretrained(folder)
    loaded = load_tokenizer("model_path", str(folder))
    loaded.backend_tokenizer.pre_tokenizer = other or loaded.backend_tokenizer.pre_tokenizer
    reader = Reader(loaded, "model", prefix, answer_prefix=between)
    reader.read(pd.DataFrame({"sentence": lines, "right": right, "wrong": wrong, "group": ""}), [], DEVICE, {})
    return [note for note in reader.notes.values() if "'he' is" not in note]  # with a space and without it


@pytest.mark.parametrize("answers, between, options, notes", [
    ("he she", " ", {"post_processor": BOS}, ["with what it adds by itself ['<s>'"]),
    ("he she", " ", {"post_processor": BOS, "prefix": "<s>"}, []),
    ("he she", " ", {"unigram": True, "prefix": "<s>"}, ["['Zo\u00e9', '\u2581said'], and without that ['\u2581Z"]),
    ("he she", " ", {"unigram": True, "prefix": "<s> "}, []),
    ("he she", " ", {"normalizer": UNACCENTED}, []),
    ("he she", " ", {"other": DIGITS}, ["'from 17 he' is ['from', '\u0120', '1', '7', '\u0120he'], and by its"]),
    (". ?", " ", {}, ["'.' is \u0120., and without a space .;"]),
    (". ?", "", {}, ["'.' is ., and after a space \u0120.;"]),
])
def test_what_a_tokenizer_does_to_sentences_is_told(answers, between, options, notes, tmp_path):
    found = notes_of(tmp_path, answers, between, **options)
    assert len(found) == len(notes) and all(note in told for note, told in zip(notes, found)), found


def test_notes_are_printed_and_recorded(own, tmp_path, capsys):
    shutil.copytree(own.folder / "model", tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(tmp_path / "model/tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[
        ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))])
    tokenizer.save(str(tmp_path / "model/tokenizer.json"))
    changes = {"model_path": str(tmp_path / "model"), "num_epochs": 1, "target_layer_list": [0]}
    ask(own, "probing", "gender", tmp_path / "run", **changes)
    [note] = json.loads((tmp_path / "run/run.json").read_text())["sessions"][0]["notes"]
    assert note.startswith("sentence_prefix: ") and f"{note}.\n" in capsys.readouterr().out
    assert main(SCRIPTS["probing"], ["--config", str(tmp_path / "run.yaml"), "--check"]) == 0
    assert note in capsys.readouterr().out
