"""Sentences carry marks of their parts; those from templates are pairs that differ in one variable alone."""

import hashlib
import json
import os
import re
from collections import Counter

import pytest

from conftest import SENTENCES, execute
from interp.runs.config import CONFIGS
from interp.tasks.grammar import csv_text, make_table
from interp.tasks.marks import unmarked
from interp.tasks.sentences import read_sentences
from interp.tasks.templates import Task, make_rows, read_templates

OURS = str(CONFIGS / "Language" / "templates.yaml")
CAUSALGYM = os.environ.get("CAUSALGYM", "")  # the path of its syntaxgym.json
MARK = re.compile(r"\{([^{}:]+):(\S|\S[^{}]*\S)\}")
WITHOUT_MARKS = {  # the SHA-256 of files, a _gen one of 1000 rows and seed 3, as they were before there were marks
    "SV_Agr": "5724e70441742c18", "SV_Agr_gen": "6ca710fb71589398", "Reflexive_An": "f4e599dd244444ed",
    "Reflexive_An_gen": "0b54d0137f3fb42f", "Syntactic_Number": "d997c22e9b8e0c20"}
WORDS = {  # that a mark may hold; NAME2 as NAME
    "subject": "[a-z]+", "object": "[a-z]+|taxi drivers?", "that": "that", "verb": "(admire|hate|like|love)s?",
    "preposition": "by|from|near|behind|(in front|to the side) of|next to|across from", "matrix": "(banker|mechanic)s?",
    "matrix_verb": "knew|said|thought", "reflexive_verb": "[a-z]+ed|hurt"}
TOY = {"templates": ["the {noun} {near} it{end}"], "label": "noun",
       "labels": {"one": ["is", "was"], "two": ["are", "were"]}, "variables": {
           "noun": {"one": ["cat", "dog"], "two": ["cats", "dogs"]}, "near": ["near", "", "by"], "end": ["", " now"]}}


@pytest.mark.parametrize("name", WITHOUT_MARKS)
def test_marks_name_the_parts_of_a_sentence_and_change_nothing_else(name):
    table, plain = make_table(name, 1000, 3), csv_text(make_table(name, 1000, 3, mark=False))
    assert unmarked(csv_text(table)) == plain
    assert hashlib.sha256(plain.encode()).hexdigest()[:16] == WITHOUT_MARKS[name]
    for sentence, number in zip(table["sentence"], table["labels"]):
        marks = MARK.findall(sentence)
        assert all(re.fullmatch(WORDS[part.rstrip("2")], words) for part, words in marks)
        assert len(dict(marks)) == len(marks) >= 3 and dict(marks)["subject"].endswith("s") == number
        assert {*MARK.sub("", sentence).split()} <= {"the", "and"}


def check(task: Task, rows: list[dict], most: int) -> None:
    """Rows are pairs that differ in the label's slots, by words of their values, and share no sentence."""
    values = [*task.labels]
    for row in rows:
        marks = [dict(MARK.findall(row[text])) for text in ("sentence", "source")]
        [shared] = {frozenset(one.items() - {(slot, one.get(slot)) for slot in task.label_slots}) for one in marks}
        assert {slot for slot, _ in shared} <= {*task.variables}
        pair = [values[row[column]] for column in ("labels", "source_labels")]
        assert all(one.get(slot, "") in [word.strip() for word in task.variables[slot][value]]
                   for one, value in zip(marks, pair) for slot in task.label_slots)
        answers = zip(*(task.labels[value] for value in pair))
        assert (row["right"], row["wrong"]) in answers and row["source_right"] == row["wrong"]
    texts = [unmarked(row[text]) for row in rows for text in ("sentence", "source")]
    assert len({*texts}) == 2 * len(rows) <= 2 * most
    assert all(text == " ".join(text.split()) and not {*"{}"} & {*text} for text in texts)
    bases = Counter(row["labels"] for row in rows)
    assert len(bases) == len(values) and max(bases.values()) - min(bases.values()) <= 2


@pytest.mark.parametrize("name", read_templates(OURS))
def test_our_templates_give_pairs(name):
    task = read_templates(OURS)[name]
    rows = make_rows(name, task, 2000, 0)
    check(task, rows, 2000)
    assert len(rows) >= 900 and rows != make_rows(name, task, 2000, 1)
    assert min(len(MARK.findall(row["sentence"])) for row in rows) >= 4


@pytest.mark.skipif(not CAUSALGYM, reason="CAUSALGYM does not name its file of templates")
def test_causalgym_is_read_as_it_is():
    tasks = read_templates(CAUSALGYM)
    assert len(tasks) == 29
    for name, task in tasks.items():
        rows = make_rows(name, task, 300, 0)
        check(task, rows, 300)
        assert len(rows) == 300 or name == "cleft"
        assert task.result_prepend_space or {row["right"] for row in rows} == {*sum(task.labels.values(), [])}


def test_a_task_that_runs_out_of_words_gives_every_pair_once():
    rows = make_rows("toy", Task(**TOY), 50, 0)
    assert len(rows) == 2 * 3 * 2  # nouns of a value, near, end
    check(Task(**TOY), rows, 50)
    assert "the {noun:cat} it {end:now}" in {row[text] for row in rows for text in ("sentence", "source")}
    own_space = TOY | {"templates": [*TOY["templates"], "the {noun} {near} it"],  # which gives some of the same
                       "labels": {"one": [" is"], "two": ["."]}, "result_prepend_space": False}
    rows = make_rows("toy", Task(**own_space), 50, 0)
    check(Task(**own_space), rows, 50)
    assert len(rows) <= 12 and {row["right"] for row in rows} == {" is", "."}


@pytest.mark.parametrize("change, words", [
    ({"templates": ["the {noun} {nea}"]}, ["task toy: ", "'nea'", "did you mean 'near'"]),
    ({"templates": ["the {near}"]}, ["'the {near}' lacks the slot 'noun'"]),
    ({"templates": ["{noun} {near} {near}"]}, ["'{noun} {near} {near}'", "twice"]),
    ({"labels": {"one": ["is"], "three": ["are"]}}, ["'noun' has the values one, two", "one, three"]),
    ({"labels": {"one": ["is"]}, "variables": {"noun": ["one"], "near": ["by"], "end": [""]}}, ["two values"]),
    ({"labels": {"one": ["is"], "two": ["is"]}}, ["task toy gives no two"]),
    ({"variables": {"noun": {"one": [1], "two": ["a"]}}}, ["task toy variables noun one 0", "string"]),
    ({"variables": {"noun": {"one": ["{"], "two": ["a"]}}}, ["task toy variables noun one 0"])])
def test_bad_templates_are_refused(change, words, tmp_path, refused):
    (tmp_path / "toy.json").write_text(json.dumps({"toy": TOY | change}))
    values = {"templates": str(tmp_path / "toy.json"), "data_dir": str(tmp_path / "data")}
    refused(SENTENCES, values, ["toy.json", *words])


def test_templates_by_the_command_line(tmp_path, refused):
    """A file depends on its task and the seed alone; without marks methods read the same words."""
    values = {"templates": OURS, "num_rows": 40, "data_dir": str(tmp_path / "data")}
    rows = execute(SENTENCES, values, tmp_path / "run")
    assert [row["file"] for row in rows] == list(read_templates(OURS))
    assert {(row["rows"], row["answer_prefix"], row["plural_share"]) for row in rows} == {("40", " ", "")}
    execute(SENTENCES, values | {"file_list": ["tense"], "data_dir": str(tmp_path / "one")}, tmp_path / "run_one")
    [one] = (tmp_path / "one").iterdir()
    marked, bare = (tmp_path / f"{folder}/tense.csv" for folder in ("data", "plain"))
    assert one.read_bytes() == marked.read_bytes()
    execute(SENTENCES, values | {"mark": False, "data_dir": str(tmp_path / "plain")}, tmp_path / "run_plain")
    assert bare.read_text() == unmarked(marked.read_text()) != marked.read_text()
    assert len(read_sentences("data_path", str(bare), "sentences", ["labels"])) == 40
    for change, words in (({"file_list": ["tens"]}, ["file_list", "did you mean 'tense'"]),
                          ({"gen_size": 10}, ["'gen_size' has no effect with"]),
                          ({"templates": None}, ["'num_rows' has no effect without"]),
                          ({"templates": str(one)}, ["templates: ", "tense.csv"])):
        refused(SENTENCES, values | change, words)
