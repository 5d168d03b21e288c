"""The sentences are those of the grammar, and are read to the right token with any tokenizer."""

import hashlib
import re

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, PreTrainedTokenizerFast

from conftest import CIRCUITS, DEVICE, SENTENCES, execute, language_values, papers_table
from interp.models import examples as in_tokens
from interp.models.examples import Examples
from interp.models.loading import load_tokenizer
from interp.runs.config import BadInput
from interp.runs.settings import expand_settings
from interp.tasks.grammar import csv_text, make_table
from interp.tasks.sentences import Reader, draw, read_sentences
from interp.tasks.study import Data, Study, check_fits
from language_model import END, completed_sentences, word_level_tokenizer

# A second, independent statement of the lexicon and the patterns, as regular expressions.
HUMAN = "author|consultant|customer|farmer|manager|officer|pilot|senator|surgeon|teacher"
THING = "book|game|movie|novel|painting|picture|poem|show|song"
OBJ = "architect|assistant|chef|dancer|executive|guard|minister|parent|skater|taxi driver"
AFTER_HUMAN = "across from|behind|in front of|near|next to|to the side of"
THAT = f"that the (?P<obj>{OBJ})(?:s (?:admire|hate|like|love)| (?:admires|hates|likes|loves))"
THAT_AND = (f"that the (?:(?P<p1>{OBJ})s (?:admire|hate|like|love) and the (?P<p2>{OBJ})s (?:admire|hate|like|love)|"
            f"(?P<s1>{OBJ}) (?:admires|hates|likes|loves) and the (?P<s2>{OBJ}) (?:admires|hates|likes|loves))")
PREP = f"(?:the (?:{HUMAN})(?P<hs>s?) (?:{AFTER_HUMAN})|the (?:{THING})(?P<ts>s?) (?:by|from))"
PREP_PREP = (f"(?:(?P<q1>{OBJ})s (?:{AFTER_HUMAN}) the (?P<q2>{OBJ})s|"
             f"(?P<r1>{OBJ}) (?:{AFTER_HUMAN}) the (?P<r2>{OBJ}))")
KNEW = "(?:knew|said|thought)"
REFL = "(?:congratulated|disguised|doubted|embarrassed|hated|hurt|injured)"
PATTERNS = {
    "SV_Agr": [f"{PREP} the (?:{OBJ})(?P<os>s?)", f"the (?:{HUMAN}|{THING})(?P<hs>s?) {THAT}"],
    "SV_Agr_gen": [f"{PREP} the {PREP_PREP}", f"the (?:{HUMAN}|{THING})(?P<hs>s?) {THAT_AND}"],
    "Reflexive_An": [f"the (?:{HUMAN})(?P<hs>s?) {THAT} {REFL}",
                     f"the (?:banker|mechanic)s? {KNEW} the (?:{HUMAN})(?P<hs>s?) {REFL}"],
    "Reflexive_An_gen": [f"the (?:{HUMAN})(?P<hs>s?) {THAT_AND} {REFL}",
                         f"the (?:bankers {KNEW} the mechanics|mechanics {KNEW} the bankers|banker {KNEW} the mechanic|"
                         f"mechanic {KNEW} the banker) {KNEW} the (?:{HUMAN})(?P<hs>s?) {REFL}"],
}
PATTERNS["Syntactic_Number"] = PATTERNS["SV_Agr"][:1]
ROWS = {"SV_Agr": 6160, "SV_Agr_gen": 5000, "Reflexive_An": 25760, "Reflexive_An_gen": 5000, "Syntactic_Number": 3120}


def parse(name: str, sentence: str) -> dict[str, str | None]:
    """What stands in a sentence; `number` is the subject's or antecedent's."""
    [found] = [match.groupdict() for pattern in PATTERNS[name] if (match := re.fullmatch(pattern, sentence))]
    for pair in ("p", "s", "q", "r"):
        first = found.get(f"{pair}1")
        assert first is None or first != found[f"{pair}2"], sentence
    plural = found["hs"] if found["hs"] is not None else found["ts"]
    return found | {"number": int(plural == "s")}


@pytest.mark.parametrize("name", ROWS)
def test_files_hold_sentences_of_the_grammar_and_all_of_them(name, language):
    table = pd.read_csv(language.data / f"{name}.csv")
    assert len(table) == ROWS[name]
    parsed = [parse(name, sentence) for sentence in table["sentence"]]
    assert [found["number"] for found in parsed] == table["labels"].tolist()
    grouped, of_object = ["group"] * name.startswith("Reflexive"), ["object labels"] * (name == "Syntactic_Number")
    assert list(table) == ["sentence", "labels", *of_object, "right", "wrong", *grouped]
    assert not table.duplicated(["sentence", *grouped]).any()
    forms = {"masculine": ("himself", "themselves"), "feminine": ("herself", "themselves"), "": ("is", "are")}
    for group, label, right, wrong in zip(table.get("group", [""] * len(table)), *(
            table[column] for column in ("labels", "right", "wrong"))):
        assert (right, wrong) == (forms[group][label], forms[group][1 - label])
    assert not grouped or (table["group"] == "masculine").mean() == 0.5
    if of_object:
        assert [int(found["os"] == "s") for found in parsed] == table["object labels"].tolist()
        assert table["object labels"].mean() == 0.5
    assert table["labels"].mean() == 0.5 or name.endswith("_gen") and abs(table["labels"].mean() - 0.5) < 0.02


def test_a_seed_gives_the_same_bytes_whatever_is_made_beside(language, tmp_path):
    values = {"file_list": ["Reflexive_An_gen"], "data_dir": str(tmp_path / "data"), "mark": False}
    execute(SENTENCES, values, tmp_path / "run")
    assert [file.name for file in (tmp_path / "data").glob("*.csv")] == ["Reflexive_An_gen.csv"]
    made, other = (folder / "Reflexive_An_gen.csv" for folder in (tmp_path / "data", language.data))
    assert made.read_bytes() == other.read_bytes()
    drawn = {seed: csv_text(make_table("SV_Agr_gen", 100, seed, mark=False)) for seed in (0, 1)}
    assert drawn[0] != drawn[1]
    assert (language.data / "SV_Agr_gen.csv").read_text().startswith(drawn[0])  # a smaller draw is its beginning


def test_sentences_by_the_command_line(language, tmp_path, refused):
    """What they are, again where somebody deleted them, and never over other data."""
    values = {"data_dir": str(tmp_path / "data"), "mark": False}
    rows = execute(SENTENCES, values, tmp_path / "run")
    assert [row["file"] for row in rows] == list(ROWS)
    for row in rows:
        made, table = tmp_path / f"data/{row['file']}.csv", pd.read_csv(language.data / f"{row['file']}.csv")
        assert made.read_bytes() == (language.data / made.name).read_bytes()
        assert row["sha256"] == hashlib.sha256(made.read_bytes()).hexdigest() and int(row["rows"]) == len(table)
        assert float(row["plural_share"]) == pytest.approx(table["labels"].mean())
    (tmp_path / "data/SV_Agr.csv").unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.csv")}
    assert execute(SENTENCES, values, tmp_path / "run") == rows
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (tmp_path / "data/SV_Agr.csv").read_bytes() == (language.data / "SV_Agr.csv").read_bytes()
    refused(SENTENCES, values | {"data_seed": 1}, ["SV_Agr_gen.csv holds other data"])


@pytest.mark.parametrize("change, words", [
    ({"gen_size": 5001}, ["gen_size", "multiple of 2"]), ({"gen_size": 400000}, ["gen_size", "277920", "SV_Agr_gen"]),
    ({"file_list": ["SV"]}, ["file_list", "SV_Agr"])])
def test_sentences_refuse(change, words, tmp_path, refused):
    refused(SENTENCES, {"data_dir": str(tmp_path / "data")} | change, words)


# --------------------------------------------------------------------------------- as tokens

def data_of(language, task: str, **changes) -> Data:
    """What a config's model is shown."""
    config = CIRCUITS.schema(**language_values(language, language.folder, task) | {
        "train_size": 60, "test_size": 40, "batch_size_list": [10]} | changes)
    settings = expand_settings(config)
    return Study(config, settings, DEVICE).data(settings[0])


def read(language, file: str, reader: Reader | None = None, task: str = "sentences", size: int = 15) -> Examples:
    """Some sentences of a file, as one tokenizer reads them."""
    path = str(language.data / f"{file}.csv")
    table = draw("train_size", path, read_sentences("data_path", path, task, ["labels"]), size,
                 torch.Generator().manual_seed(0))
    return (reader or reader_of(language)).read(table, ["labels"], DEVICE, {})


def reader_of(language, **options) -> Reader:
    return Reader(load_tokenizer("model_path", str(language.model)), "model", **options)


def byte_level_tokenizer(sentences: list[str], vocab_size: int = 1000) -> PreTrainedTokenizerFast:
    """GPT-2's kind: ' is' and 'is' differ, every text can be read, the unknown token is the prefix's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(sentences, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=END, bos_token=END, eos_token=END)


def undeclared(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same vocabulary, whose unknown token the tokenizer does not tell."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)


def test_a_tokenizer_without_an_unknown_token_reads_what_it_knows(language):
    sentences = completed_sentences()
    declared, not_declared = (read(language, "SV_Agr", Reader(change(word_level_tokenizer(sentences)), "model"))
                              for change in (lambda tokenizer: tokenizer, undeclared))
    assert in_tokens.rows_of(declared) == in_tokens.rows_of(not_declared)
    byte_level = undeclared(byte_level_tokenizer([f"T{text[1:]}" for text in sentences[::21]]))
    assert byte_level.unk_token_id is None
    assert read(language, "SV_Agr", Reader(byte_level, "model", capitalize=True)).texts


def test_agreement_ends_in_its_last_token_and_compares_are_with_is(language):
    data = data_of(language, "agreement")
    table = pd.read_csv(language.data / "SV_Agr.csv").set_index("sentence")["labels"]
    tokenizer = load_tokenizer("model_path", str(language.model))
    for examples in (data.train, data.evaluated["iid"]):
        assert tokenizer.batch_decode(in_tokens.rows_of(examples)) == examples.texts
        assert examples.probed.equal(examples.answering)
        labels = examples.variables["labels"]
        assert labels.tolist() == table[examples.texts].tolist()
        assert tokenizer.convert_ids_to_tokens(examples.answer.right.tolist()) == [["is", "are"][i] for i in labels]
        assert tokenizer.convert_ids_to_tokens(examples.answer.wrong.tolist()) == [["are", "is"][i] for i in labels]
    assert [list(sets) for sets in (data.tests, data.evaluated)] == [["test", "gen"], ["iid", "gen"]]
    texts = [set(examples.texts) for examples in (data.train, *data.evaluated.values())]
    assert [len(some) for some in texts] == [60, 40, 40] and len(set.union(*texts)) == 140
    again, other = data_of(language, "agreement"), data_of(language, "agreement", data_seed=1)
    assert again.train.texts == data.train.texts != other.train.texts


def test_reflexives_are_probed_before_the_pronoun_for_both_genders_alike(language):
    data = data_of(language, "reflexive")
    evaluated = {f"{name}_{group}": examples[rows] for name, examples in data.evaluated.items()
                 for group, rows in examples.groups.items()}
    assert list(evaluated) == ["iid_masculine", "iid_feminine", "gen_masculine", "gen_feminine"]
    tokenizer = load_tokenizer("model_path", str(language.model))
    for name, examples in {"train_masculine": data.train, **evaluated}.items():
        forms = ["herself" if name.endswith("feminine") else "himself", "themselves"]
        right, wrong = (tokenizer.convert_ids_to_tokens(ids.tolist())
                        for ids in (examples.answer.right, examples.answer.wrong))
        labels = examples.variables["labels"].tolist()
        assert right == [forms[label] for label in labels] and wrong == [forms[1 - label] for label in labels]
        assert tokenizer.batch_decode(in_tokens.rows_of(examples)) == examples.texts
        assert all(re.search(f"{REFL}$", text) for text in examples.texts)
        assert len(examples) == len(set(examples.texts)) == (60 if name.startswith("train") else 40)
    for where, probed in (("iid", data.tests["test"]), ("gen", data.tests["gen"])):
        masculine, feminine = (evaluated[f"{where}_{gender}"] for gender in ("masculine", "feminine"))
        assert masculine.texts == feminine.texts == probed.texts  # each sentence is probed once


@pytest.mark.parametrize("task, file, variables", [
    ("agreement", "SV_Agr", ["labels"]), ("reflexive", "Reflexive_An_gen", ["labels"]),
    ("syntactic_number", "Syntactic_Number", ["labels", "object labels"])])
def test_the_papers_own_files_are_the_same_task(task, file, variables, language, tmp_path):
    papers_table(file, language).to_csv(tmp_path / "paper.csv", index=False)
    own, papers = (read_sentences("data_path", str(path), task, variables)
                   for path in (language.data / f"{file}.csv", tmp_path / "paper.csv"))
    pd.testing.assert_frame_equal(own[sorted(own)], papers[sorted(own)], check_dtype=False)


def test_a_sentence_of_one_gender_is_evaluated_on_the_rows_there_are(language, tmp_path):
    table = papers_table("Reflexive_An_gen", language)[:400]  # in pairs
    table[[row % 4 != 3 for row in range(400)]].to_csv(tmp_path / "gen.csv", index=False)
    data = data_of(language, "reflexive", gen_path=str(tmp_path / "gen.csv"), test_size=200)
    assert {name: len(rows) for name, rows in data.evaluated["gen"].groups.items()} == {
        "masculine": 200, "feminine": 100} and len(data.tests["gen"]) == 200


def test_syntactic_number_is_probed_for_the_object_and_judged_by_the_subject(language):
    examples = data_of(language, "syntactic_number", variable=None).evaluated["iid"]
    rows = pd.read_csv(language.data / "Syntactic_Number.csv").set_index("sentence").loc[examples.texts]
    assert examples.variables["object labels"].tolist() == rows["object labels"].tolist()
    plural = load_tokenizer("model_path", str(language.model)).convert_tokens_to_ids("are")
    assert (examples.answer.right == plural).long().tolist() == rows["labels"].tolist()
    assert rows["labels"].tolist() != rows["object labels"].tolist()
    gen = data_of(language, "syntactic_number", gen_path=str(language.data / "SV_Agr_gen.csv"))
    assert list(gen.evaluated) == ["iid", "gen"] and list(gen.tests) == ["test"]  # it lacks the object's number


def test_prefix_and_capital_letter_come_before_a_byte_level_tokenizer(language):
    tokenizer = byte_level_tokenizer([f"T{text[1:]}" for text in completed_sentences()[::21]])
    examples = read(language, "Reflexive_An", Reader(tokenizer, "model", prefix=END, capitalize=True))
    for text, ids in zip(examples.texts, in_tokens.rows_of(examples)):
        assert text.startswith(f"{END}The ") and ids == tokenizer.encode(text) and ids[0] == tokenizer.eos_token_id
    assert tokenizer.decode(examples.answer.right[:1]) in (" himself", " themselves")


def sentences_without(word: str, every: int = 1) -> list[str]:
    return [text for text in completed_sentences()[::every] if word not in text]


@pytest.mark.parametrize("file, reader, words", [
    ("Reflexive_An", lambda own: Reader(byte_level_tokenizer(sentences_without("herself", every=21)), "model"),
     ["model_path", "'herself'", "one token", "tokenizer"]),
    ("SV_Agr", lambda own: Reader(byte_level_tokenizer([], 257), "model"), ["model_path", "'is'", "one token"]),
    ("SV_Agr", lambda own: Reader(word_level_tokenizer(sentences_without("surgeons")), "model"),
     ["model_path", "'surgeons'", "does not know"]),
    ("SV_Agr", lambda own: Reader(undeclared(word_level_tokenizer(sentences_without("surgeons"))), "model"),
     ["model_path", "'surgeons'", "does not know"]),
    ("SV_Agr", lambda own: reader_of(own, capitalize=True), ["model_path", "'The'", "does not know"]),
    ("SV_Agr", lambda own: reader_of(own, prefix="<s>"), ["sentence_prefix", "'<s>'"]),
], ids=["pronoun of several tokens", "verb of several tokens", "unknown word", "unknown word of an undeclared token",
        "unknown capital", "unknown prefix"])
def test_what_a_tokenizer_cannot_read_is_refused(file, reader, words, language):
    raises(lambda: read(language, file, reader(language), size=500), words)


def raises(act, words: list[str]) -> None:
    with pytest.raises(BadInput) as error:
        act()
    message = str(error.value)
    assert all(word in message for word in words) and message.endswith(".") and "\n" not in message, message


@pytest.mark.parametrize("task, file, column, value, words", [
    ("reflexive", "Reflexive_An", "labels", 2, ["data_path", "'labels'", "0 and 1"]),
    ("reflexive", "Reflexive_An", "gender", 2, ["data_path", "'gender'", "0 and 1"]),
    ("reflexive", "Reflexive_An", "gender", 1, ["data_path", "stands twice", "feminine"]),
    ("reflexive", "Reflexive_An", "sentence", " ", ["data_path", "'sentence'", "every row"]),
    ("reflexive", "Reflexive_An", "ungrammatical", "the guard that so", ["data_path", "differ in the last word"]),
    ("reflexive", "SV_Agr", "labels", 1, ["data_path", "ungrammatical"]),
    ("agreement", "Reflexive_An", "labels", 1, ["data_path", "ungrammatical", "'reflexive'"]),
    ("agreement", "SV_Agr", "labels", 2, ["data_path", "'labels'", "0 and 1"]),
    ("sentences", "SV_Agr", "labels", -1, ["data_path", "'labels'", "from 0"]),
    ("sentences", "SV_Agr", "labels", 0.5, ["'labels'", "whole numbers"]),
    ("sentences", "SV_Agr", "right", "are", ["data_path", "row 4", "'are'"]),
    ("sentences", "SV_Agr", "right", None, ["data_path", "'right'", "every row"]),
    ("sentences", "SV_Agr", "sentence", "the author across from the architect", ["data_path", "stands twice"]),
    ("sentences", "Reflexive_An", "labels", 1, ["data_path", "more than one value of 'labels'"]),
])
def test_a_file_that_says_too_little_is_refused(task, file, column, value, words, language, tmp_path):
    """Files of one's own are in the general form, those of the paper's tasks in the paper's."""
    table = (pd.read_csv(language.data / f"{file}.csv") if task == "sentences" else papers_table(file, language))[:40]
    table = table.astype({column: object})
    table.loc[2, column] = value
    table.to_csv(tmp_path / "data.csv", index=False)
    raises(lambda: read_sentences("data_path", str(tmp_path / "data.csv"), task, ["labels"]), words)


def test_sentences_beyond_the_model_are_named(language):
    examples = read(language, "SV_Agr")
    longest = int(examples.lengths.max())
    check_fits("data_path", examples, GPT2Config(n_positions=longest, vocab_size=200))
    with pytest.raises(BadInput, match=rf"data_path: 'the .*' has {longest} tokens, .* at most {longest - 1}\."):
        check_fits("data_path", examples, GPT2Config(n_positions=longest - 1, vocab_size=200))
    with pytest.raises(BadInput, match="vocabulary of 20"):
        check_fits("data_path", examples, GPT2Config(n_positions=longest, vocab_size=20))
