"""The sentences of Experiment 4: a lexicon, and the patterns that make every sentence of a file.

Numbers are those of the labels, singular 0 and plural 1; lower case, no full stop. Patterns mark their words, a noun
without its article; the second word of a kind is marked as NAME2.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import permutations, product

import pandas as pd
import torch

from interp.runs.config import BadInput
from interp.tasks.keys import SENTENCE_FILES
from interp.tasks.marks import marked, unmarked

SINGULAR, PLURAL = 0, 1
MASCULINE, FEMININE = 0, 1

HUMAN = ("author", "consultant", "customer", "farmer", "manager", "officer", "pilot", "senator", "surgeon", "teacher")
THING = ("book", "game", "movie", "novel", "painting", "picture", "poem", "show", "song")
OBJ = ("architect", "assistant", "chef", "dancer", "executive", "guard", "minister", "parent", "skater", "taxi driver")
MATRIX = ("banker", "mechanic")
PREPOSITIONS = {HUMAN: ("across from", "behind", "in front of", "near", "next to", "to the side of"),
                THING: ("by", "from")}
RELATIVE_VERBS = ("admire", "hate", "like", "love")
MATRIX_VERBS = ("knew", "said", "thought")
REFLEXIVE_VERBS = ("congratulated", "disguised", "doubted", "embarrassed", "hated", "hurt", "injured")
PRONOUNS = {MASCULINE: ("himself", "themselves"), FEMININE: ("herself", "themselves")}  # by number
GENDERS = {"masculine": MASCULINE, "feminine": FEMININE}
ANSWERS = ("is", "are")  # by number

Labelled = tuple[str, int]  # words, and the number of the noun that what follows agrees with


# --------------------------------------------------------------------------------- phrases

def noun_phrases(nouns: Iterable[str], name: str) -> list[Labelled]:
    """Each noun in both numbers, marked by a name; every plural of the lexicon is regular."""
    return [(f"the {marked(name, noun + 's' * number)}", number) for noun in nouns for number in (SINGULAR, PLURAL)]


def agreeing(verb: str, number: int, name: str = "verb") -> str:
    return marked(name, verb if number == PLURAL else f"{verb}s")


def all_marked(name: str, words: Iterable[str]) -> list[str]:
    return [marked(name, word) for word in words]


def pairs(nouns: Iterable[str], name: str) -> list[tuple[str, str, int]]:
    """Two different nouns of the same number, in either order."""
    return [(first, second.replace(f"{name}:", f"{name}2:"), number)
            for (first, number), (second, other) in permutations(noun_phrases(nouns, name), 2) if number == other]


def clauses() -> list[str]:
    """OBJ V"""
    return [f"{obj} {agreeing(verb, number)}"
            for (obj, number), verb in product(noun_phrases(OBJ, "object"), RELATIVE_VERBS)]


def double_clauses() -> list[str]:
    """OBJ V and OBJ' V'"""
    return [f"{first} {agreeing(verb, number)} and {second} {agreeing(other, number, 'verb2')}"
            for (first, second, number), verb, other in product(pairs(OBJ, "object"), RELATIVE_VERBS, RELATIVE_VERBS)]


# -------------------------------------------------------------------------------- patterns

def prepositional() -> Iterator[tuple[str, int, int]]:
    """S PREP OBJ, with the numbers of both."""
    for nouns, prepositions in PREPOSITIONS.items():
        for (subject, number), preposition, (obj, obj_number) in product(
                noun_phrases(nouns, "subject"), all_marked("preposition", prepositions), noun_phrases(OBJ, "object")):
            yield f"{subject} {preposition} {obj}", number, obj_number


def double_prepositional() -> Iterator[Labelled]:
    """S PREP OBJ PREP' OBJ': the second preposition stands after a human."""
    for nouns, prepositions in PREPOSITIONS.items():
        for (subject, number), preposition, second, (obj, other, _) in product(
                noun_phrases(nouns, "subject"), all_marked("preposition", prepositions),
                all_marked("preposition2", PREPOSITIONS[HUMAN]), pairs(OBJ, "object")):
            yield f"{subject} {preposition} {obj} {second} {other}", number


def relative(nouns: Iterable[str], inner: list[str]) -> Iterator[Labelled]:
    """S that OBJ V"""
    for (subject, number), clause in product(noun_phrases(nouns, "subject"), inner):
        yield f"{subject} {marked('that', 'that')} {clause}", number


def embedded() -> Iterator[Labelled]:
    """MATRIX MV HUMAN, with the number of HUMAN."""
    for (matrix, _), verb, (human, number) in product(
            noun_phrases(MATRIX, "matrix"), all_marked("matrix_verb", MATRIX_VERBS), noun_phrases(HUMAN, "subject")):
        yield f"{matrix} {verb} {human}", number


def double_embedded() -> Iterator[Labelled]:
    """MATRIX MV MATRIX' MV' HUMAN, with the number of HUMAN."""
    for (first, second, _), verb, other, (human, number) in product(
            pairs(MATRIX, "matrix"), all_marked("matrix_verb", MATRIX_VERBS), all_marked("matrix_verb2", MATRIX_VERBS),
            noun_phrases(HUMAN, "subject")):
        yield f"{first} {verb} {second} {other} {human}", number


def reflexive(*antecedents: Iterator[Labelled]) -> list[Labelled]:
    """Sentences up to the pronoun, which agrees with the antecedent."""
    return [(f"{words} {verb}", number) for pattern in antecedents
            for (words, number), verb in product(pattern, all_marked("reflexive_verb", REFLEXIVE_VERBS))]


# ----------------------------------------------------------------------------------- files

SENTENCES: dict[str, Callable[[], list[tuple]]] = dict(zip(SENTENCE_FILES, (  # all that the grammar has for a file;
    lambda: [row[:2] for row in prepositional()] + list(relative(HUMAN + THING, clauses())),  # reflexives lack the
    lambda: list(double_prepositional()) + list(relative(HUMAN + THING, double_clauses())),   # pronoun
    lambda: reflexive(relative(HUMAN, clauses()), embedded()),
    lambda: reflexive(relative(HUMAN, double_clauses()), double_embedded()),
    lambda: list(prepositional()),
), strict=True))


def make_table(name: str, gen_size: int, data_seed: int, mark: bool = True) -> pd.DataFrame:
    """The table of a file: every sentence of its patterns, or for a gen file gen_size rows drawn from them.

    mark: whether sentences keep their marks.

    A file depends on its name, size and seed only, not on which others are made beside it. A reflexive
    sentence stands once for each gender, so the drawn ones are gen_size / 2, all with both their genders.

    Raises:
        BadInput: the grammar has fewer rows.
    """
    sentences = SENTENCES[name]()
    genders = len(GENDERS) if name.startswith("Reflexive") else 1
    if name.endswith("_gen"):
        if gen_size > genders * len(sentences):
            raise BadInput(f"gen_size: {gen_size} rows are more than the {genders * len(sentences)} that the grammar "
                           f"has for {name}.csv.")
        order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(data_seed))
        sentences = [sentences[i] for i in order[:gen_size // genders].tolist()]
    if not mark:
        sentences = [(unmarked(sentence), *numbers) for sentence, *numbers in sentences]
    if genders > 1:
        return with_pronouns(sentences)
    table = pd.DataFrame(sentences, columns=["sentence", "labels", "object labels"][:len(sentences[0])])
    return table.assign(right=[ANSWERS[number] for number in table["labels"]],
                        wrong=[ANSWERS[1 - number] for number in table["labels"]])


def with_pronouns(parts: list[Labelled]) -> pd.DataFrame:
    """Each sentence for both genders: the pronoun of its number is right, that of the other number wrong."""
    return pd.DataFrame(
        [(part, number, PRONOUNS[gender][number], PRONOUNS[gender][1 - number], name)
         for part, number in parts for name, gender in GENDERS.items()],
        columns=["sentence", "labels", "right", "wrong", "group"])


def csv_text(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, lineterminator="\n")
