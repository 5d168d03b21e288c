"""Sentences as a model reads them: token ids up to the probed position, and the two answers to compare there.

Agreement and syntactic number are probed at a sentence's last token, where `are` is compared with `is`;
reflexives at the token before the pronoun, where its grammatical form is compared with the ungrammatical
one. Later positions never matter in a causal model, so sentences end at the probed position.
"""

import re
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from interp.arithmetic import labels_of, read_data
from interp.config import BadInput, project_path, shown
from interp.grammar import ANSWERS, FEMININE, MASCULINE

GENDERS = {"masculine": MASCULINE, "feminine": FEMININE}
REFLEXIVE = "reflexive"
LANGUAGE_TASKS = ("agreement", REFLEXIVE, "syntactic_number")


@dataclass(frozen=True)
class Sentences:
    """Sentences up to the token that is probed.

    texts: as the model is shown them, without what follows the probed token.
    prefixes: their token ids, the probed token last; lengths differ.
    labels: (rows,) values of the probed variable; None where a gen file does not have it.
    right, wrong: (rows,) ids of the tokens to compare at the probed position. A model answers rightly
        where logit(right) > logit(wrong), strictly: it must choose, so a tie is wrong for either label.
    """

    texts: list[str]
    prefixes: list[list[int]]
    labels: Tensor | None
    right: Tensor
    wrong: Tensor

    def __len__(self) -> int:
        return len(self.prefixes)


@dataclass(frozen=True)
class LanguageData:
    """What a circuit is trained on, and the sets that it and the model are judged on, by name.

    Agreement and syntactic number: iid and gen. Reflexives: iid_masculine, iid_feminine, gen_masculine
    and gen_feminine, the same sentences for both genders; training reads masculine ones.
    """

    train: Sentences
    evaluations: dict[str, Sentences]


# ------------------------------------------------------------------------------------ files

def read_sentences(key: str, path: str, task: str, variable: str, must_have_variable: bool = True) -> pd.DataFrame:
    """The sentences of a file, a row for each: text up to the probed token, label, the words to compare there.

    Columns: text; label, where the file has the variable; right and wrong, or for reflexives right_masculine,
    wrong_masculine, right_feminine and wrong_feminine, a row standing for the sentence in both genders.

    Raises:
        BadInput: the file or a column is missing, or holds what it should not.
    """
    sentences = ["sentence", "ungrammatical"] if task == REFLEXIVE else ["sentence"]
    binary = ["labels", "gender"] if task == REFLEXIVE else ["labels"]
    table = read_data(key, path, [*sentences, *binary, *([variable] if must_have_variable else [])])
    source = table.attrs["source"]
    if task != REFLEXIVE and "ungrammatical" in table:
        raise BadInput(f"{key}: {source} has a column 'ungrammatical': its sentences end with a pronoun, which gives "
                       f"the answer away; they are for the task '{REFLEXIVE}'.")
    for column in sentences:
        if not all(isinstance(text, str) and text.strip() for text in table[column]):
            raise BadInput(f"{key}: {source}: the column '{column}' must hold a sentence in every row.")
    for column in [*binary, *({variable} & set(table))]:
        if not labels_of(table, column).lt(2).logical_and(labels_of(table, column).ge(0)).all():
            raise BadInput(f"{key}: {source}: the column '{column}' must hold 0 and 1 only.")
    labels = table[variable] if variable in table else None
    table = table.drop(columns="label", errors="ignore")
    if labels is not None:
        table["label"] = labels
    for column in sentences:  # a space at the end would be the token that is probed
        table[column] = table[column].str.strip()
    if task == REFLEXIVE:
        return pair_genders(key, table)
    right = table["labels"].map(ANSWERS.__getitem__)
    wrong = (1 - table["labels"]).map(ANSWERS.__getitem__)
    return table.assign(text=table["sentence"], right=right, wrong=wrong).filter(["text", "label", "right", "wrong"])


def pair_genders(key: str, table: pd.DataFrame) -> pd.DataFrame:
    """One row for each reflexive sentence, which the file holds once for each gender.

    Raises:
        BadInput: a gender is missing or stands twice, or the two sentences of a row differ in more than the pronoun.
    """
    source = table.attrs["source"]
    right, wrong = (table[column].str.split() for column in ("sentence", "ungrammatical"))
    for words, others in zip(right, wrong):
        if len(words) < 2 or words[:-1] != others[:-1] or words[-1] == others[-1]:
            raise BadInput(f"{key}: {source}: '{' '.join(words)}' and its ungrammatical form must differ in the last "
                           "word and in nothing else.")
    table = table.assign(text=right.str[:-1].str.join(" "), right=right.str[-1], wrong=wrong.str[-1])
    masculine, feminine = (table[table["gender"] == gender].set_index("text") for gender in GENDERS.values())
    for name, rows in zip(GENDERS, (masculine, feminine)):
        for text in rows.index[rows.index.duplicated()][:1]:
            raise BadInput(f"{key}: {source}: '{text} …' stands twice with the {name} gender.")
    for text in masculine.index.symmetric_difference(feminine.index)[:1]:
        raise BadInput(f"{key}: {source}: '{text} …' needs a row for each gender.")
    feminine = feminine.loc[masculine.index]
    for text in masculine.index[masculine["labels"] != feminine["labels"]][:1]:
        raise BadInput(f"{key}: {source}: '{text} …' has another label for each gender.")
    forms = [rows[["right", "wrong"]].add_suffix(f"_{name}") for name, rows in zip(GENDERS, (masculine, feminine))]
    return pd.concat([masculine.filter(["label"]), *forms], axis=1).reset_index()


# ----------------------------------------------------------------------------------- tokens

@dataclass(frozen=True)
class Reader:
    """How a model is shown sentences.

    source: the model's name in messages. prefix: put before each sentence as it is, there to be a special
    token that the model expects; no other is added. capitalize: begin with a capital letter.
    """

    tokenizer: PreTrainedTokenizerBase
    source: str
    prefix: str = ""
    capitalize: bool = False

    def shown(self, sentence: str) -> str:
        return self.prefix + (sentence[:1].upper() + sentence[1:] if self.capitalize else sentence)

    def tokens(self, texts: list[str]) -> list[list[int]]:
        try:
            return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        except Exception as error:  # the tokenizers library raises plain Exceptions: a vocabulary without [UNK]
            raise BadInput(f"model_path: the tokenizer of {self.source} cannot read the sentences: "
                           f"{str(error).strip()}.") from None

    def check_words(self, texts: list[str]) -> None:
        """Refuse words that the tokenizer does not know, which would all look alike to the model.

        Raises:
            BadInput: naming the first.
        """
        for special in re.findall(r"<[^<>\s]+>", self.prefix):
            if len(self.tokens([special])[0]) != 1:
                raise BadInput(f"sentence_prefix: '{special}' is no special token of the tokenizer of {self.source}, "
                               f"which has {', '.join(self.tokenizer.all_special_tokens) or 'none'}.")
        unknown = self.tokenizer.unk_token_id
        if unknown in self.tokens([self.prefix])[0] and self.tokenizer.unk_token not in self.prefix:
            raise BadInput(f"sentence_prefix: the tokenizer of {self.source} does not know '{self.prefix}'.")
        firsts, others = {}, {}  # as ordered sets; a word may be another token at the beginning
        for text in texts:
            first, *rest = text.removeprefix(self.prefix).split()
            firsts[first] = None
            others |= dict.fromkeys(f" {word}" for word in rest)
        words = [*firsts, *others]
        for word, ids in zip(words, self.tokens(words)):
            if not ids or unknown in ids:
                raise BadInput(f"model_path: the tokenizer of {self.source} does not know the word '{word.strip()}'.")

    def answers(self, texts: list[str], prefixes: list[list[int]], words: list[str]) -> Tensor:
        """The single token that each word is after its text, (rows,).

        Raises:
            BadInput: a word is not one token there, so that its logit is not the word's.
        """
        found = []
        for prefix, word, ids in zip(prefixes, words, self.tokens([f"{text} {word}" for text, word in
                                                                   zip(texts, words)])):
            if len(ids) != len(prefix) + 1 or ids[:-1] != prefix:
                raise BadInput(f"model_path: '{word}' is not one token after a sentence to the tokenizer of "
                               f"{self.source}, but its logit at one position is what is compared.")
            found.append(ids[-1])
        return torch.tensor(found)

    def read(self, rows: pd.DataFrame) -> dict[str, Sentences]:
        """Rows of read_sentences as tokens: under "" or, for reflexives, under each gender.

        Raises:
            BadInput: as check_words and answers; or a grammatical and an ungrammatical word are the same token.
        """
        texts = [self.shown(text) for text in rows["text"]]
        genders = list(GENDERS) if "right" not in rows else [""]
        columns = {gender: [rows[f"{side}_{gender}".rstrip("_")].tolist() for side in ("right", "wrong")]
                   for gender in genders}
        self.check_words([f"{text} {word}" for sides in columns.values() for words in sides
                          for text, word in zip(texts, words)])
        prefixes = self.tokens(texts)
        labels = torch.tensor(rows["label"].tolist()) if "label" in rows else None
        sets = {}
        for gender, sides in columns.items():
            right, wrong = (self.answers(texts, prefixes, words) for words in sides)
            if (right == wrong).any():
                row = (right == wrong).nonzero()[0].item()
                raise BadInput(f"model_path: '{sides[0][row]}' and '{sides[1][row]}' are the same token to the "
                               f"tokenizer of {self.source}.")
            sets[gender] = Sentences(texts, prefixes, labels, right, wrong)
        return sets


def read_language(task: str, data_path: str, gen_path: str | None, reader: Reader, *, variable: str = "labels",
                  train_size: int = 2000, test_size: int = 1000, data_seed: int = 0) -> LanguageData:
    """Draw train and test sentences from data_path and test_size more from gen_path, and tokenise them.

    Raises:
        BadInput: too few sentences, a variable with nothing to tell apart, or as read_sentences and Reader.
    """
    drawing = torch.Generator().manual_seed(data_seed)
    rows = draw("train_size", data_path, read_sentences("data_path", data_path, task, variable),
                train_size + test_size, drawing)
    splits = {"train": rows[:train_size], "iid": rows[train_size:]}
    if splits["train"]["label"].nunique() < 2:
        raise BadInput(f"variable: '{variable}' has a single value in the {train_size} training sentences; there "
                       "is nothing to tell apart.")
    if gen_path is not None:
        splits["gen"] = draw("test_size", gen_path, read_sentences(
            "gen_path", gen_path, task, variable, must_have_variable=False), test_size, drawing)
    read = {name: reader.read(rows) for name, rows in splits.items()}
    train = read.pop("train")["masculine" if task == REFLEXIVE else ""]
    return LanguageData(train, {"_".join(filter(None, (name, gender))): sentences
                                for name, sets in read.items() for gender, sentences in sets.items()})


def draw(key: str, path: str, rows: pd.DataFrame, count: int, generator: torch.Generator) -> pd.DataFrame:
    """Some rows in random order, none twice.

    Raises:
        BadInput: there are fewer.
    """
    if count > len(rows):
        what = "train_size and test_size together ask" if key == "train_size" else f"{key} asks"
        raise BadInput(f"{key}: {what} for {count} sentences, and {shown(project_path(path))} has {len(rows)}.")
    order = torch.randperm(len(rows), generator=generator)[:count]
    return rows.iloc[order.numpy()].reset_index(drop=True)


def check_sentences(key: str, sentences: Sentences, n_positions: int, vocab_size: int) -> None:
    """Refuse sentences that the model cannot read to the probed position.

    Raises:
        BadInput: one is longer than the model's context, or has tokens that are not the model's.
    """
    for text, prefix in zip(sentences.texts, sentences.prefixes):
        if len(prefix) > n_positions:
            raise BadInput(f"{key}: '{text}' has {len(prefix)} tokens, the model reads at most {n_positions}.")
        if max(prefix) >= vocab_size:
            raise BadInput(f"{key}: in '{text}', {outside(max(prefix), vocab_size)}")
    highest = max(sentences.right.max().item(), sentences.wrong.max().item())
    if highest >= vocab_size:
        raise BadInput(f"{key}: in the answers, {outside(highest, vocab_size)}")


def outside(token: int, vocab_size: int) -> str:
    return f"the tokenizer's token {token} is not in the model's vocabulary of {vocab_size}."
