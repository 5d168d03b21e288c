"""Sentences: files of them, and how a model reads them.

A file has the columns `sentence` (up to where the answer comes), `right` and `wrong` (the words that are compared
there), any number of variables, whole numbers from 0, and if wanted `group`, a subset that is evaluated separately, and
`source`, `source_right`, the source that a row is paired with. The paper's three tasks are such files; the paper's
copies of them, which leave out what the task's name says, are read as well.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from interp.models.examples import Answer, Examples, Pairs, from_rows
from interp.models.positions import FIRST
from interp.runs.config import BadInput, project_path, shown
from interp.tasks.arithmetic import labels_of, read_data, require_columns
from interp.tasks.grammar import ANSWERS, GENDERS
from interp.tasks.keys import AGREEMENT, LABELS, REFLEXIVE, SYNTACTIC_NUMBER
from interp.tasks.marks import tokens_in, without_marks

# ------------------------------------------------------------------------------------ files

def with_verbs(table: pd.DataFrame) -> pd.DataFrame:
    """The paper's agreement: `is` and `are`, by the column labels."""
    if "ungrammatical" in table:
        raise BadInput(f"{table.attrs['source']} has a column 'ungrammatical': its sentences end with a pronoun, which "
                       f"gives the answer away; they are for the task '{REFLEXIVE}'.")
    if "right" in table and "wrong" in table:
        return table
    numbers = check_numbers(table, LABELS, binary=True)
    return table.assign(right=[ANSWERS[number] for number in numbers],
                        wrong=[ANSWERS[1 - number] for number in numbers])


def without_pronouns(table: pd.DataFrame) -> pd.DataFrame:
    """The paper's reflexives: a sentence with its pronoun, an ungrammatical one with the other, and a gender."""
    if "ungrammatical" not in table and "right" in table:
        return table
    right, wrong = (words_of(table, column).str.split() for column in ("sentence", "ungrammatical"))
    genders, _ = (check_numbers(table, column, binary=True) for column in ("gender", LABELS))
    for words, others in zip(right, wrong):
        if len(words) < 2 or words[:-1] != others[:-1] or words[-1] == others[-1]:
            raise BadInput(f"{table.attrs['source']}: '{' '.join(words)}' and its ungrammatical form must differ in "
                           "the last word and in nothing else.")
    return table.drop(columns=["ungrammatical", "gender"]).assign(
        sentence=right.str[:-1].str.join(" "), right=right.str[-1], wrong=wrong.str[-1],
        group=[[*GENDERS][number] for number in genders])


PAPERS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {  # the paper's copies as files of the general form
    AGREEMENT: with_verbs, REFLEXIVE: without_pronouns, SYNTACTIC_NUMBER: with_verbs}


def words_of(table: pd.DataFrame, column: str) -> pd.Series:
    """A column of text without spaces around it: one at the end would be the token that is probed.

    Raises:
        BadInput: there is no such column, or a row has none.
    """
    require_columns(table, [column])
    words = table[column].str.strip()
    for row in words.index[words == ""][:1]:
        raise BadInput(f"{table.attrs['source']}: the column '{column}' must hold words in every row; row {row} has "
                       "none.")
    return words


def check_numbers(table: pd.DataFrame, column: str, binary: bool = False) -> list[int]:
    """A column's values; raises BadInput where it holds anything but whole numbers from 0, or but 0 and 1."""
    require_columns(table, [column])
    held, values = ("0 and 1 only", range(2)) if binary else ("whole numbers from 0", range(2**63))
    return labels_of(table, column, held, values=values).tolist()


def check_one_value(table: pd.DataFrame, column: str, by: str) -> None:
    """Refuse a sentence, of the column `by`, that has several values of a variable; raises BadInput."""
    counts = table.groupby(by)[column].nunique()
    for sentence in counts.index[counts > 1][:1]:
        raise BadInput(f"{table.attrs['source']}: '{sentence}' has more than one value of '{column}'.")


def read_sentences(key: str, path: str, task: str, variables: list[str], optional: bool = False,
                   spaces: bool = False) -> pd.DataFrame:
    """The rows of a file of sentences in the general form, the variables asked for as whole numbers from 0.

    optional: the file may lack variables. spaces: answers may begin with a space of their own.

    Raises:
        BadInput: the file or a column is missing, holds what it should not, or a sentence stands twice.
    """
    table = read_data(key, path, ["sentence"])
    source = table.attrs["source"]
    table = PAPERS[task](table) if task in PAPERS else table
    sources = ["source", "source_right"] if "source" in table or "source_right" in table else []
    for column in ("sentence", "right", "wrong", *sources):
        words, answers = words_of(table, column), column not in ("sentence", "source")
        table[column] = table[column].str.rstrip() if spaces and answers else words
    for column in ("sentence", *sources[:1]):
        table[column], table[f"{column}_spans"] = without_marks(table[column], source)
    table["group"] = words_of(table, "group") if "group" in table else ""
    for variable in variables:
        if variable in table or not optional:
            table[variable] = check_numbers(table, variable)
            check_one_value(table, variable, by="sentence")
        if sources and f"source_{variable}" in table:
            table[f"source_{variable}"] = check_numbers(table, f"source_{variable}")
            check_one_value(table, f"source_{variable}", by="source")
    for row in table.index[table["right"] == table["wrong"]][:1]:
        raise BadInput(f"{source}: in row {row} right and wrong are both '{table.loc[row, 'right']}'.")
    for row in table.index[table["source"] == table["sentence"]][:1] if sources else ():
        raise BadInput(f"{source}: row {row} is its own source.")
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

@cache
def written_in(folder: str) -> Tokenizer | None:
    """The tokenizer that a model's tokenizer.json says, if there is one; transformers may make another of it."""
    if not (file := Path(folder) / "tokenizer.json").is_file():
        return None
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


WORD = "@word"  # the column of the words that hold_out tells apart, by number


def hold_out(mark: str, train: pd.DataFrame, test: pd.DataFrame, data_seed: int) -> list[pd.DataFrame]:
    """Train and test without common words at a mark, of sentences and of their sources, numbered in the column WORD.

    A word is its first four letters, so that a noun and its regular plural are one. Raises BadInput: a row lacks the
    mark, or fewer than two words are left to either.
    """
    def words(table: pd.DataFrame, column: str) -> list[str]:
        spans = [found.get(mark) for found in table[f"{column}_spans"]]
        if None in spans:
            raise BadInput(f"hold_out: '{table[column].iloc[spans.index(None)]}' has no mark '{mark}'.")
        return [text[start:stop].lower()[:4] for text, (start, stop) in zip(table[column], spans)]

    columns = ["sentence", *(["source"] if "source" in train else [])]
    found = [pd.DataFrame({column: words(table, column) for column in columns}, table.index) for table in (train, test)]
    kinds = sorted(set(pd.concat(found).stack()))
    order = torch.randperm(len(kinds), generator=torch.Generator().manual_seed(data_seed)).tolist()
    parts = []
    for table, held, of_part in zip((train, test), found, (order[len(kinds) // 2:], order[:len(kinds) // 2])):
        numbers = held.map(kinds.index)
        part = table.assign(**{WORD: numbers["sentence"]})[numbers.isin(of_part).all(axis=1)]
        part.attrs = table.attrs
        if part[WORD].nunique() < 2:
            raise BadInput(f"hold_out: of the {len(kinds)} words of '{mark}' fewer than two are left to train or test.")
        parts.append(part)
    return parts


@dataclass(frozen=True)
class Reader:
    """How a model is shown sentences.

    source: the model's name in messages. prefix: put before each sentence as it is, for a special token that the model
    expects; no other is added. capitalize: begin with a capital letter. answer_prefix: what stands between a sentence
    and its answer. position_token: the token of a span, first or last, that is its position. notes: what a user should
    know of how texts were read.
    """

    tokenizer: PreTrainedTokenizerBase
    source: str
    prefix: str = ""
    capitalize: bool = False
    answer_prefix: str = " "
    position_token: str = "last"
    notes: dict[str, str] = field(default_factory=dict)

    def shown(self, sentence: str) -> str:
        return self.prefix + (sentence[:1].upper() + sentence[1:] if self.capitalize else sentence)

    def tokens(self, texts: list[str], special: bool = False) -> list[list[int]]:
        """special: with the tokens that the tokenizer adds by itself."""
        try:
            return self.tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
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
        words = list(dict.fromkeys(f" {word}" if place else word for text in texts for place, word in enumerate(
            text.removeprefix(self.prefix).split())))  # a word may be another token at the beginning
        for word, ids in zip(words, self.tokens(words)):
            if not ids or unknown in ids or (unknown is None and not self.says(ids, word)):
                raise BadInput(f"model_path: the tokenizer of {self.source} does not know the word '{word.strip()}'.")

    def says(self, ids: list[int], word: str) -> bool:
        """Whether tokens say a word, as it is or as the tokenizer normalizes it: without accents, say."""
        normalizer = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "normalizer", None)
        [said] = self.tokenizer.batch_decode([ids], clean_up_tokenization_spaces=False)
        normal = normalizer.normalize_str(word).replace("▁", " ") if normalizer else word
        return said.strip().casefold() in (word.strip().casefold(), normal.strip().casefold())

    def answers(self, texts: list[str], rows: list[list[int]], words: list[str], prefix: str) -> list[int | None]:
        """The token that each word is after its text, of a row's tokens, and a prefix; None where it is not one."""
        joined = self.tokens([f"{text}{prefix}{word}" for text, word in zip(texts, words)])
        return [ids[-1] if ids and ids[:-1] == row else None for ids, row in zip(joined, rows)]

    def note(self, texts: list[str], rows: list[list[int]], words: list[str], answers: list[int | None]) -> None:
        """Keep an example of each way in which texts and answers could be read otherwise than they are here."""
        added, bare = self.tokens(texts, special=True), self.tokens([text.removeprefix(self.prefix) for text in texts])
        if self.prefix and added[0][0] == rows[0][0]:
            added = rows  # the prefix has it
        space = self.answer_prefix.endswith(" ")
        others = self.answers(texts, rows, words, self.answer_prefix[:-1] if space else f"{self.answer_prefix} ")
        swapped = [token if other in (None, self.tokenizer.unk_token_id) else other
                   for token, other in zip(answers, others)]
        joined = [f"{text}{self.answer_prefix}{word}" for text, word in zip(texts, words)]
        here, file = self.tokens(joined, special=True), written_in(self.tokenizer.name_or_path)
        for key, how, shown_texts, first, second in (
                ("sentence_prefix", "with what it adds by itself", texts, rows, added),
                ("sentence_prefix", "without that", texts, [row[-len(ids):] for row, ids in zip(rows, bare)], bare),
                ("answer_prefix", "without a space" if space else "after a space", words, answers, swapped),
                ("model_path", "by its tokenizer.json", joined, here,
                 [read.ids for read in file.encode_batch(joined)] if file else here)):
            for text, *both in [case for case in zip(shown_texts, first, second) if case[1] != case[2]][:1]:
                one, other = map(self.tokenizer.convert_ids_to_tokens, both)  # type: ignore[arg-type]  # one or several
                self.notes.setdefault(how, f"{key}: to the tokenizer of {self.source} '{text}' is {one}, and {how} "
                                           f"{other}; the first is taken")

    def read(self, table: pd.DataFrame, variables: list[str], device: torch.device,
             seen: dict[tuple[int, ...], str]) -> Examples:
        """Rows of read_sentences as examples, probed at their last token, where the answer comes.

        seen: sentences read so far by their tokens, to which these are added.

        Raises:
            BadInput: as check_words; an answer is not one token, a row's two are the same, or two sentences are the
                same tokens.
        """
        texts = [self.shown(text) for text in table["sentence"]]
        right, wrong = table["right"].tolist(), table["wrong"].tolist()
        self.check_words([f"{text}{self.answer_prefix}{word}" for words in (right, wrong)
                          for text, word in zip(texts, words)])
        rows = self.tokens(texts)
        for sentence, row in zip(table["sentence"], rows):
            if self.tokenizer.unk_token_id in row and self.tokenizer.unk_token not in self.prefix:
                raise BadInput(f"sentence_prefix: the tokenizer of {self.source} does not know all of '{self.prefix}' "
                               f"before '{sentence}'.")
            if (other := seen.setdefault(tuple(row), sentence)) != sentence:
                raise BadInput(f"model_path: '{sentence}' and '{other}' are the same to the tokenizer of "
                               f"{self.source}.")
        tokens, last = from_rows(rows, device)
        positions = {name: at.to(device) for name, at in self.positions(table, texts, rows).items()}
        answers = [self.answers(texts, rows, words, self.answer_prefix) for words in (right, wrong)]
        for words, found in zip((right, wrong), answers):
            if None in found:
                raise BadInput(f"model_path: '{words[found.index(None)]}' is not one token after a sentence and "
                               f"answer_prefix '{self.answer_prefix}' to the tokenizer of {self.source}, but its logit "
                               "at one position is what is compared.")
            self.note(texts, rows, words, found)
        wanted, others = torch.tensor(answers, device=device)
        for row in (wanted == others).nonzero()[:1].flatten().tolist():
            raise BadInput(f"model_path: '{right[row]}' and '{wrong[row]}' are the same token to the tokenizer of "
                           f"{self.source}.")
        groups = {name: torch.tensor(numbers, device=device)
                  for name, numbers in table.reset_index(drop=True).groupby("group", sort=False).indices.items()}
        return Examples(tokens, last, last,
                        {name: labels_of(table, name).to(device) for name in variables if name in table},
                        Answer(wanted, others), groups if list(groups) != [""] else {}, texts, positions)

    def positions(self, table: pd.DataFrame, texts: list[str], rows: list[list[int]]) -> dict[str, Tensor]:
        """The positions `first`, the first token after the prefix, and of marks, by name: (rows,), -1 where none is.

        Raises:
            BadInput: a mark has no token, shares one with another mark, or the tokenizer does not say where tokens are.
        """
        marked = table["sentence_spans"] if "sentence_spans" in table else [{}] * len(table)
        if not self.tokenizer.is_fast:
            if any(marked):
                raise BadInput(f"model_path: the tokenizer of {self.source} does not say where in a text its tokens "
                               "are, which marks need; take its fast version.")
            return {FIRST: torch.full((len(rows),), len(self.tokens([self.prefix])[0]) if self.prefix else 0)}
        encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        found: dict[str, list[int]] = {FIRST: []}
        for row, (sentence, spans, offsets) in enumerate(zip(table["sentence"], marked, encoded["offset_mapping"])):
            shift = len(texts[row]) - len(sentence)
            try:
                tokens = tokens_in(spans, offsets, shift)
            except ValueError as error:
                raise BadInput(f"{table.attrs['source']}: in '{sentence}', as the tokenizer of {self.source} reads it, "
                               f"{error}.") from None
            first = next((token for token, (_, end) in enumerate(offsets) if end > len(self.prefix)), len(offsets) - 1)
            at = {FIRST: first} | {name: of_span[0 if self.position_token == "first" else -1]
                                   for name, of_span in tokens.items()}
            for name in {**found, **at}:
                found.setdefault(name, [-1] * row).append(at.get(name, -1))
        return {name: torch.tensor(at) for name, at in found.items()}


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
    sources = pd.DataFrame({"sentence": table["source"], "right": table["source_right"], "wrong": wrong, "group": "",
                            "sentence_spans": table["source_spans"]})
    sources.attrs["source"] = table.attrs["source"]
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
