"""The sentences are those of the grammar, and are read to the right token with any tokenizer."""

import hashlib
import re

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

import generate_language_data
from conftest import SENTENCES, write_yaml
from interp.experiment import main
from interp.models.loading import load_tokenizer
from interp.runs.config import BadInput
from interp.runs.files import read_table
from interp.tasks.grammar import csv_text, make_table
from interp.tasks.language import Reader, check_sentences, read_language, read_sentences
from language_model import END, completed_sentences, last_logits, word_level_tokenizer

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
    if name.startswith("Reflexive"):
        assert list(table) == ["sentence", "labels", "ungrammatical", "gender"]
        assert not table.duplicated(["sentence", "gender"]).any() and table["gender"].mean() == 0.5
        assert table["sentence"].duplicated().sum() == (table["labels"] == 1).sum() / 2  # they: once a gender
        for row in table.itertuples():
            part, pronoun = row.sentence.rsplit(" ", 1)
            assert parse(name, part)["number"] == row.labels, row
            forms = [("himself", "herself")[row.gender], "themselves"]
            assert [pronoun, row.ungrammatical] == [forms[row.labels], f"{part} {forms[1 - row.labels]}"], row
    else:
        assert list(table) == ["sentence", "labels", "object labels"][:len(table.columns)]
        assert not table["sentence"].duplicated().any()
        parsed = [parse(name, sentence) for sentence in table["sentence"]]
        assert [found["number"] for found in parsed] == table["labels"].tolist()
        if "object labels" in table:
            assert [int(found["os"] == "s") for found in parsed] == table["object labels"].tolist()
            assert table["object labels"].mean() == 0.5
    assert table["labels"].mean() == 0.5 or name.endswith("_gen") and abs(table["labels"].mean() - 0.5) < 0.02


def test_a_seed_gives_the_same_bytes_whatever_is_made_beside(language, tmp_path):
    one = write_yaml(tmp_path / "c.yaml", {"file_list": ["Reflexive_An_gen"], "data_dir": str(tmp_path / "data"),
                                           "results_dir": str(tmp_path / "run")})
    assert main(SENTENCES, ["--config", str(one)]) == 0
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["Reflexive_An_gen.csv"]
    made, other = (folder / "Reflexive_An_gen.csv" for folder in (tmp_path / "data", language.data))
    assert made.read_bytes() == other.read_bytes()
    drawn = {seed: csv_text(make_table("SV_Agr_gen", 100, seed)) for seed in (0, 1)}
    assert drawn[0] != drawn[1]
    assert (language.data / "SV_Agr_gen.csv").read_text().startswith(drawn[0])  # a smaller draw is its beginning


def test_sentences_by_the_command_line(language, tmp_path, monkeypatch, capsys):
    values = language.sentences | {"data_dir": str(tmp_path / "data"), "results_dir": str(tmp_path / "run")}
    config = str(write_yaml(tmp_path / "c.yaml", values))
    write, written = generate_language_data.write_text, []

    def interrupted(file, text):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(file)
        write(file, text)

    with monkeypatch.context() as patch:
        patch.setattr(generate_language_data, "write_text", interrupted)
        assert main(SENTENCES, ["--config", config]) == 130
    assert len(read_table(tmp_path / "run/results.csv")) == 3
    assert main(SENTENCES, ["--config", config]) == 0
    for row in read_table(tmp_path / "run/results.csv"):
        made = (tmp_path / "data" / f"{row['file']}.csv").read_bytes()
        assert made == (language.data / f"{row['file']}.csv").read_bytes()
        assert row["sha256"] == hashlib.sha256(made).hexdigest() and int(row["rows"]) == ROWS[row["file"]]

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"}
    assert main(SENTENCES, ["--config", config]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    other = [f"results_dir={tmp_path / 'other'}", "data_seed=1"]
    capsys.readouterr()
    assert main(SENTENCES, ["--config", config, "--set", *other]) == 2
    assert "SV_Agr_gen.csv holds other data" in capsys.readouterr().err
    (tmp_path / "data/SV_Agr.csv").unlink()
    assert main(SENTENCES, ["--config", config]) == 0
    assert (tmp_path / "data/SV_Agr.csv").read_bytes() == (language.data / "SV_Agr.csv").read_bytes()


@pytest.mark.parametrize("change, words", [
    ("gen_size=5001", ["gen_size", "multiple of 2"]),
    ("gen_size=400000", ["gen_size", "277920", "SV_Agr_gen"]),
    ("file_list=[SV]", ["file_list", "SV_Agr"]),
])
def test_sentences_refuse(change, words, language, tmp_path, capsys):
    config = write_yaml(tmp_path / "c.yaml", language.sentences | {"results_dir": str(tmp_path / "run")})
    assert main(SENTENCES, ["--config", str(config), "--set", change]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words) and not (tmp_path / "run").exists(), error


# --------------------------------------------------------------------------------- as tokens

def read(language, task: str, reader: Reader | None = None, **options):
    file = {"agreement": "SV_Agr", "reflexive": "Reflexive_An", "syntactic_number": "Syntactic_Number"}[task]
    gen = None if task == "syntactic_number" else str(language.data / f"{file}_gen.csv")
    reader = reader or Reader(load_tokenizer("model_path", str(language.model)), "model")
    return read_language(task, str(language.data / f"{file}.csv"), gen, reader,
                         **{"train_size": 60, "test_size": 40} | options)


def byte_level_tokenizer(sentences: list[str], vocab_size: int = 1000) -> PreTrainedTokenizerFast:
    """GPT-2's kind: ' is' and 'is' differ, every text can be read, the unknown token is the prefix's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(sentences, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=END, bos_token=END, eos_token=END)


def test_agreement_ends_in_its_last_token_and_compares_are_with_is(language):
    data = read(language, "agreement")
    table = pd.read_csv(language.data / "SV_Agr.csv").set_index("sentence")["labels"]
    tokenizer = load_tokenizer("model_path", str(language.model))
    for sentences in (data.train, data.evaluations["iid"]):
        assert tokenizer.batch_decode(sentences.prefixes) == sentences.texts
        assert sentences.labels.tolist() == table[sentences.texts].tolist()
        forms = [["is", "are"][label] for label in sentences.labels]
        assert tokenizer.convert_ids_to_tokens(sentences.right.tolist()) == forms
        assert set(tokenizer.convert_ids_to_tokens(sentences.wrong.tolist())) == {"is", "are"}
        assert (sentences.right != sentences.wrong).all()
    texts = [set(sentences.texts) for sentences in (data.train, *data.evaluations.values())]
    assert [len(some) for some in texts] == [60, 40, 40] and len(set.union(*texts)) == 140
    again, other = read(language, "agreement"), read(language, "agreement", data_seed=1)
    assert again.train.texts == data.train.texts != other.train.texts


def test_reflexives_are_probed_before_the_pronoun_for_both_genders_alike(language):
    data = read(language, "reflexive")
    assert list(data.evaluations) == ["iid_masculine", "iid_feminine", "gen_masculine", "gen_feminine"]
    tokenizer = load_tokenizer("model_path", str(language.model))
    words = {name: [tokenizer.convert_ids_to_tokens(ids.tolist()) for ids in (sentences.right, sentences.wrong)]
             for name, sentences in {"train_masculine": data.train, **data.evaluations}.items()}
    for name, (right, wrong) in words.items():
        sentences = data.train if name.startswith("train") else data.evaluations[name]
        forms = ["himself" if name.endswith("masculine") and "feminine" not in name else "herself", "themselves"]
        assert right == [forms[label] for label in sentences.labels]
        assert wrong == [forms[1 - label] for label in sentences.labels]
        assert tokenizer.batch_decode(sentences.prefixes) == sentences.texts
        assert all(re.search(f"{REFL}$", text) for text in sentences.texts)
    for where in ("iid", "gen"):
        masculine, feminine = (data.evaluations[f"{where}_{gender}"] for gender in ("masculine", "feminine"))
        assert masculine.prefixes is feminine.prefixes


def test_syntactic_number_is_probed_for_the_object_and_judged_by_the_subject(language):
    data = read(language, "syntactic_number", variable="object labels")
    table = pd.read_csv(language.data / "Syntactic_Number.csv").set_index("sentence")
    sentences, rows = data.evaluations["iid"], table.loc[data.evaluations["iid"].texts]
    assert list(data.evaluations) == ["iid"]
    assert sentences.labels.tolist() == rows["object labels"].tolist()
    assert (sentences.right > sentences.wrong).long().tolist() != sentences.labels.tolist()
    plural = sentences.right == sentences.right[rows["labels"].to_numpy() == 1][0]
    assert plural.long().tolist() == rows["labels"].tolist()
    gen = read_sentences("gen_path", str(language.data / "SV_Agr_gen.csv"), "syntactic_number", "object labels", False)
    assert list(gen) == ["text", "right", "wrong"]


def test_prefix_and_capital_letter_come_before_a_byte_level_tokenizer(language):
    tokenizer = byte_level_tokenizer([f"T{text[1:]}" for text in completed_sentences(0)[::21]])
    data = read(language, "reflexive", Reader(tokenizer, "model", prefix=END, capitalize=True))
    for text, ids in zip(data.train.texts, data.train.prefixes):
        assert text.startswith(f"{END}The ") and ids == tokenizer.encode(text) and ids[0] == tokenizer.eos_token_id
    assert tokenizer.decode(data.train.right[:1]) in (" himself", " themselves")


@pytest.mark.parametrize("mistake, words", [
    ("pronoun of several tokens", ["model_path", "'herself'", "one token", "tokenizer"]),
    ("verb of several tokens", ["model_path", "'is'", "one token"]),
    ("unknown word", ["model_path", "'surgeons'", "does not know"]),
    ("unknown capital", ["model_path", "'The'", "does not know"]),
    ("unknown prefix", ["sentence_prefix", "'<s>'"]),
    ("too many train sentences", ["train_size", "6160", "6161"]),
    ("too many gen sentences", ["test_size", "5001", "SV_Agr_gen.csv", "5000"]),
    ("missing file", ["data_path", "none.csv", "generate_language_data.py --config configs/Language/sentences.yaml"]),
    ("misspelt variable", ["data_path", "'label'", "did you mean 'labels'"]),
    ("single value", ["variable", "'gender'", "single value"]),
    ("label 2", ["data_path", "'labels'", "0 and 1"]),
    ("empty sentence", ["data_path", "'sentence'", "every row"]),
    ("one gender", ["data_path", "needs a row for each gender"]),
    ("gender twice", ["data_path", "stands twice", "masculine"]),
    ("other ungrammatical sentence", ["data_path", "differ in the last word"]),
])
def test_reading_refuses(mistake, words, language, tmp_path):
    path = {task: language.data / f"{name}.csv" for task, name in (("agreement", "SV_Agr"),
                                                                   ("reflexive", "Reflexive_An"))}
    reader = Reader(load_tokenizer("model_path", str(language.model)), "model")
    task, options = "agreement", {}
    sentences = completed_sentences(0)
    table = pd.read_csv(path["reflexive"])[:40]
    match mistake:
        case "pronoun of several tokens":
            task = "reflexive"
            reader = Reader(byte_level_tokenizer([text for text in sentences[::21] if "herself" not in text]), "model")
        case "verb of several tokens":
            reader = Reader(byte_level_tokenizer([], 257), "model")
        case "unknown word":
            options = {"train_size": 500}
            reader = Reader(word_level_tokenizer([text for text in sentences if "surgeons" not in text]), "model")
        case "unknown capital":
            reader = Reader(reader.tokenizer, "model", capitalize=True)
        case "unknown prefix":
            reader = Reader(reader.tokenizer, "model", prefix="<s>")
        case "too many train sentences":
            options = {"train_size": 6160, "test_size": 1}
        case "too many gen sentences":
            options = {"test_size": 5001}
        case "missing file":
            path["agreement"] = "data/Language/none.csv"
        case "misspelt variable":
            options = {"variable": "label"}
        case "single value":
            task, options = "reflexive", {"variable": "gender"}
        case "label 2":
            table.loc[3, "labels"] = 2
        case "empty sentence":
            table.loc[3, "sentence"] = " "
        case "one gender":
            table = table[:-1]
        case "gender twice":
            table.loc[1, "gender"] = 0
        case "other ungrammatical sentence":
            table.loc[3, "ungrammatical"] = table.loc[5, "ungrammatical"].replace("chef", "guard") + " so"
    if mistake in ("label 2", "empty sentence", "one gender", "gender twice", "other ungrammatical sentence"):
        task, path["reflexive"] = "reflexive", tmp_path / "data.csv"
        table.to_csv(tmp_path / "data.csv", index=False)
    with pytest.raises(BadInput) as error:
        gen = language.data / f"{'Reflexive_An' if task == 'reflexive' else 'SV_Agr'}_gen.csv"
        read_language(task, str(path[task]), str(gen), reader, **{"train_size": 10, "test_size": 5} | options)
    message = str(error.value)
    assert all(word in message for word in words) and message.endswith(".") and "\n" not in message, message


def test_sentences_beyond_the_model_and_a_missing_tokenizer_are_named(language, tmp_path):
    sentences = read(language, "agreement").train
    longest = max(map(len, sentences.prefixes))
    check_sentences("data_path", sentences, longest, 200)
    with pytest.raises(BadInput, match=rf"data_path: 'the .*' has {longest} tokens, .* at most {longest - 1}\."):
        check_sentences("data_path", sentences, longest - 1, 200)
    with pytest.raises(BadInput, match="vocabulary of 20"):
        check_sentences("data_path", sentences, longest, 20)
    with pytest.raises(BadInput, match=r"'python -m interp.convert_gguf' makes it"):
        load_tokenizer("model_path", "Models/SmolLM2-135M/none")
    with pytest.raises(BadInput, match=r"model_path: .* has no tokenizer"):
        load_tokenizer("model_path", str(tmp_path))


def test_the_small_model_agrees(language):
    model = GPT2LMHeadModel.from_pretrained(language.model).eval()
    for task in ("agreement", "reflexive", "syntactic_number"):
        for name, sentences in read(language, task, test_size=400).evaluations.items():
            with torch.no_grad():
                logits = last_logits(model, sentences.prefixes)  # (rows, vocabulary)
            rows = torch.arange(len(sentences))
            right = logits[rows, sentences.right] > logits[rows, sentences.wrong]
            assert right.float().mean() > 0.97, (task, name)
