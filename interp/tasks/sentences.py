"""Sentences: files of them, and how a model reads them.

A file has the columns `sentence` (up to where the answer comes), `right` and `wrong` (the words that are compared
there), any number of variables, whole numbers from 0, and if wanted `group`, a subset that is evaluated separately, and
`source`, `source_right`, the source that a row is paired with. The paper's three tasks are such files; the paper's
copies of them, which leave out what the task's name says, are read as well.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from interp.models.examples import Answer, Examples, Pairs, from_rows
from interp.runs.config import BadInput, project_path, shown
from interp.tasks.arithmetic import labels_of, read_data, require_columns
from interp.tasks.grammar import ANSWERS, GENDERS
from interp.tasks.keys import AGREEMENT, LABELS, REFLEXIVE, SYNTACTIC_NUMBER

# ------------------------------------------------------------------------------------ files

def with_verbs(table: pd.DataFrame) -> pd.DataFrame:
    """The paper's agreement: `is` and `are`, by the column labels."""
    if "ungrammatical" in table:
        raise BadInput(f"{table.attrs['source']} has a column 'ungrammatical': its sentences end with a pronoun, which "
                       f"gives the answer away; they are for the task '{REFLEXIVE}'.")
    if "right" in table and "wrong" in table:
        return table
    check_numbers(table, LABELS, binary=True)
    numbers = table[LABELS]
    return table.assign(right=numbers.map(ANSWERS.__getitem__), wrong=(1 - numbers).map(ANSWERS.__getitem__))


def without_pronouns(table: pd.DataFrame) -> pd.DataFrame:
    """The paper's reflexives: a sentence with its pronoun, an ungrammatical one with the other, and a gender."""
    if "ungrammatical" not in table and "right" in table:
        return table
    right, wrong = (words_of(table, column).str.split() for column in ("sentence", "ungrammatical"))
    for column in ("gender", LABELS):
        check_numbers(table, column, binary=True)
    for words, others in zip(right, wrong):
        if len(words) < 2 or words[:-1] != others[:-1] or words[-1] == others[-1]:
            raise BadInput(f"{table.attrs['source']}: '{' '.join(words)}' and its ungrammatical form must differ in "
                           "the last word and in nothing else.")
    return table.drop(columns=["ungrammatical", "gender"]).assign(
        sentence=right.str[:-1].str.join(" "), right=right.str[-1], wrong=wrong.str[-1],
        group=table["gender"].map({number: name for name, number in GENDERS.items()}))


PAPERS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {  # the paper's copies as files of the general form
    AGREEMENT: with_verbs, REFLEXIVE: without_pronouns, SYNTACTIC_NUMBER: with_verbs}


def words_of(table: pd.DataFrame, column: str) -> pd.Series:
    """A column of text without spaces around it: one at the end would be the token that is probed.

    Raises:
        BadInput: there is no such column, or a row has none.
    """
    require_columns(table, [column])
    words = table[column].astype(str).str.strip()
    if table[column].isna().any() or not words.all():
        raise BadInput(f"{table.attrs['source']}: the column '{column}' must hold words in every row.")
    return words


def check_numbers(table: pd.DataFrame, column: str, binary: bool = False) -> None:
    """Refuse a column that holds anything but whole numbers from 0, or but 0 and 1; raises BadInput."""
    require_columns(table, [column])
    numbers = labels_of(table, column)
    if numbers.min() < 0 or binary and numbers.max() > 1:
        held = "0 and 1 only" if binary else "whole numbers from 0"
        raise BadInput(f"{table.attrs['source']}: the column '{column}' must hold {held}.")


def check_one_value(table: pd.DataFrame, column: str, by: str) -> None:
    """Refuse a sentence, of the column `by`, that has several values of a variable; raises BadInput."""
    counts = table.groupby(by)[column].nunique()
    for sentence in counts.index[counts > 1][:1]:
        raise BadInput(f"{table.attrs['source']}: '{sentence}' has more than one value of '{column}'.")


def read_sentences(key: str, path: str, task: str, variables: list[str], optional: bool = False) -> pd.DataFrame:
    """The rows of a file of sentences in the general form, the variables asked for as whole numbers from 0.

    optional: the file may lack variables.

    Raises:
        BadInput: the file or a column is missing, holds what it should not, or a sentence stands twice.
    """
    table = read_data(key, path, ["sentence"])
    source = table.attrs["source"]
    table = PAPERS[task](table) if task in PAPERS else table
    sources = ["source", "source_right"] if "source" in table or "source_right" in table else []
    for column in ("sentence", "right", "wrong", *sources):
        table[column] = words_of(table, column)
    table["group"] = words_of(table, "group") if "group" in table else ""
    for variable in variables:
        if variable in table or not optional:
            check_numbers(table, variable)
            check_one_value(table, variable, by="sentence")
        if sources and f"source_{variable}" in table:
            check_numbers(table, f"source_{variable}")
            check_one_value(table, f"source_{variable}", by="source")
    for row in table.index[table["right"] == table["wrong"]][:1]:
        raise BadInput(f"{source}: in row {row + 2} right and wrong are both '{table.loc[row, 'right']}'.")
    for row in table.index[table["source"] == table["sentence"]][:1] if sources else ():
        raise BadInput(f"{source}: row {row + 2} is its own source.")
    for row in table.index[table.duplicated(["sentence", "group", *sources[:1]])][:1]:
        group = table.loc[row, "group"]
        raise BadInput(f"{source}: '{table.loc[row, 'sentence']}' stands twice"
                       + (f" in the group '{group}'." if group else "."))
    return table


def draw(key: str, path: str, table: pd.DataFrame, count: int, generator: torch.Generator) -> pd.DataFrame:
    """Some sentences in random order, without repetition, each with all its rows; raises BadInput."""
    sentences = table["sentence"].unique()
    if count > len(sentences):
        what = "train_size and test_size together ask" if key == "train_size" else f"{key} asks"
        raise BadInput(f"{key}: {what} for {count} sentences, and {shown(project_path(path))} has {len(sentences)}.")
    order = torch.randperm(len(sentences), generator=generator)[:count]
    drawn = pd.DataFrame({"sentence": sentences[order.numpy()], "drawn": range(count)})
    drawn = drawn.merge(table, on="sentence", how="left", sort=False)
    drawn.attrs["source"] = table.attrs["source"]
    return drawn


# ----------------------------------------------------------------------------------- tokens

@dataclass(frozen=True)
class Reader:
    """How a model is shown sentences.

    source: the model's name in messages. prefix: put before each sentence as it is, for a special token that the model
    expects; no other is added. capitalize: begin with a capital letter.
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
        """Refuse words that the tokenizer does not know: they would all be the same to the model; raises BadInput."""
        unknown = self.tokenizer.unk_token_id
        for special in re.findall(r"<[^<>\s]+>", self.prefix):
            if len(self.tokens([special])[0]) != 1:
                raise BadInput(f"sentence_prefix: '{special}' is no special token of the tokenizer of {self.source}, "
                               f"which has {', '.join(self.tokenizer.all_special_tokens) or 'none'}.")
        if unknown in self.tokens([self.prefix])[0] and self.tokenizer.unk_token not in self.prefix:
            raise BadInput(f"sentence_prefix: the tokenizer of {self.source} does not know '{self.prefix}'.")
        # as ordered sets; a word may be another token at the beginning
        firsts, others = dict[str, None](), dict[str, None]()
        for text in texts:
            first, *rest = text.removeprefix(self.prefix).split()
            firsts[first] = None
            others |= dict.fromkeys(f" {word}" for word in rest)
        words = [*firsts, *others]
        for word, ids in zip(words, self.tokens(words)):
            if not ids or unknown in ids or (unknown is None and self.read_as(ids) != word.strip().casefold()):
                raise BadInput(f"model_path: the tokenizer of {self.source} does not know the word '{word.strip()}'.")

    def read_as(self, ids: list[int]) -> str:
        """The word that tokens say: without an unknown token, a tokenizer may give other words the same token."""
        return self.tokenizer.batch_decode([ids], clean_up_tokenization_spaces=False)[0].strip().casefold()

    def answers(self, texts: list[str], rows: list[list[int]], words: list[str]) -> Tensor:
        """The single token that each word is after its text, (rows,).

        Raises:
            BadInput: a word is not one token there, so that its logit is not the word's.
        """
        found = []
        for row, word, ids in zip(rows, words, self.tokens([f"{text} {word}" for text, word in zip(texts, words)])):
            if len(ids) != len(row) + 1 or ids[:-1] != row:
                raise BadInput(f"model_path: '{word}' is not one token after a sentence to the tokenizer of "
                               f"{self.source}, but its logit at one position is what is compared.")
            found.append(ids[-1])
        return torch.tensor(found)

    def read(self, table: pd.DataFrame, variables: list[str], device: torch.device,
             seen: dict[tuple[int, ...], str]) -> Examples:
        """Rows of read_sentences as examples, probed at their last token, where the answer comes.

        seen: sentences read so far by their tokens, to which these are added.

        Raises:
            BadInput: as check_words and answers; a row's two words are the same token, or two sentences are the same
                tokens.
        """
        texts = [self.shown(text) for text in table["sentence"]]
        right, wrong = table["right"].tolist(), table["wrong"].tolist()
        self.check_words([f"{text} {word}" for words in (right, wrong) for text, word in zip(texts, words)])
        rows = self.tokens(texts)
        for sentence, row in zip(table["sentence"], rows):
            if self.tokenizer.unk_token_id in row and self.tokenizer.unk_token not in self.prefix:
                raise BadInput(f"sentence_prefix: with '{self.prefix}' before it, the tokenizer of {self.source} does "
                               f"not know a word of '{sentence}'.")
            if (other := seen.setdefault(tuple(row), sentence)) != sentence:
                raise BadInput(f"model_path: '{sentence}' and '{other}' are the same to the tokenizer of "
                               f"{self.source}.")
        tokens, last = from_rows(rows, device)
        wanted, others = self.answers(texts, rows, right).to(device), self.answers(texts, rows, wrong).to(device)
        for row in (wanted == others).nonzero()[:1].flatten().tolist():
            raise BadInput(f"model_path: '{right[row]}' and '{wrong[row]}' are the same token to the tokenizer of "
                           f"{self.source}.")
        groups = {name: torch.tensor(numbers, device=device)
                  for name, numbers in table.reset_index(drop=True).groupby("group", sort=False).indices.items()}
        return Examples(tokens, last, last,
                        {name: labels_of(table, name).to(device) for name in variables if name in table},
                        Answer(wanted, others), groups if list(groups) != [""] else {}, texts)


# ------------------------------------------------------------------------------------ pairs

def given_pairs(base: Examples, table: pd.DataFrame, reader: Reader, variable: str, changes: bool) -> Pairs:
    """Examples and the sources that their file gives; changes: whether the answer depends on the variable.

    A source's value of the variable is source_VARIABLE or, of two values, the other.

    Raises:
        BadInput: that is not known, or is the base's.
    """
    values = base.variables[variable]
    if f"source_{variable}" in table:
        other = labels_of(table, f"source_{variable}").to(values.device)
    elif int(values.max()) < 2:
        other = 1 - values
    else:
        raise BadInput(f"{table.attrs['source']} gives sources but no column 'source_{variable}', their value of the "
                       "variable, which has more than two values.")
    for row in (other == values).nonzero()[:1].flatten().tolist():
        raise BadInput(f"{table.attrs['source']}: the source of '{table['sentence'].iloc[row]}' has the same value of "
                       f"'{variable}'.")
    wrong = table["wrong"].where(table["right"] == table["source_right"], table["right"])
    sources = pd.DataFrame({"sentence": table["source"], "right": table["source_right"], "wrong": wrong, "group": ""})
    source = replace(reader.read(sources, [], values.device, {}), variables={variable: other})
    return Pairs(base, source, source.answer if changes else base.answer)


def drawn_pairs(examples: Examples, variable: str, changes: bool, file: str, data_seed: int) -> Pairs:
    """Examples, each paired with a random one of its group that has another value of the variable.

    Raises:
        BadInput: a row has no source with another value.
    """
    values, drawing = examples.variables[variable].cpu(), torch.Generator().manual_seed(data_seed)
    rows = torch.empty(len(examples), dtype=torch.long)
    for name, members in (examples.groups or {"": torch.arange(len(examples))}).items():
        members = members.cpu()
        for value in values[members].unique().tolist():
            same, others = members[values[members] == value], members[values[members] != value]
            if not len(others):
                where = f"the group '{name}' of " if name else ""
                raise BadInput(f"{file}: '{variable}' has a single value in {where}the sentences drawn, so that no row "
                               "has a source with another value.")
            rows[same] = others[torch.randint(len(others), (len(same),), generator=drawing)]
    source = examples[rows.to(examples.tokens.device)]
    return Pairs(examples, source, against_base(examples.answer, source.answer) if changes else examples.answer)


def against_base(base: Answer, source: Answer) -> Answer:
    """The sources' answers, compared with the bases'."""
    assert source.wrong is not None  # of sentences
    return Answer(source.right, torch.where(base.right == source.right, source.wrong, base.right))
