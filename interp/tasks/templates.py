"""Sentences from templates: a base and a source that differ in one variable and share all other words.

A file, YAML or JSON, is in the form of CausalGym's (Arora, Jurafsky and Potts 2024). It has by task `templates`,
sentences with {slots}; `variables`, each slot's words, or its words by value; `label`, the slot that is the variable,
or several that vary together; `labels`, the answers by value; and `result_prepend_space`, false where answers have
their own space or none. Nothing here loads torch.
"""

import json
import math
import random
import re
import sys
from collections import Counter
from itertools import zip_longest
from typing import Annotated

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from interp.runs.config import BadInput, NonEmpty, Text, parse_yaml, require_file, shown, suggestion
from interp.tasks.marks import marked, unmarked

SLOT = re.compile(r"\{([^{}:]+)\}")
Words = NonEmpty[Annotated[str, Field(pattern=r"^[^{}]*$")]]  # a brace would be a mark's


class Task(BaseModel, strict=True, frozen=True):
    """A task of a file; what else stands there, such as its origin, is left alone."""

    templates: NonEmpty[Text]
    variables: dict[Text, Words | dict[str, Words]]
    label: Text | NonEmpty[Text]
    labels: dict[str, NonEmpty[Text]]
    result_prepend_space: bool = True

    @property
    def label_slots(self) -> list[str]:
        return [self.label] if isinstance(self.label, str) else self.label

    def values(self, slot: str) -> dict[str, list[str]]:
        """A slot's words by value, each once; of a plain list each word is a value."""
        given = self.variables[slot]
        by_value = given if isinstance(given, dict) else {word: [word] for word in given}
        return {value: list(dict.fromkeys(words)) for value, words in by_value.items()}

    def words(self, slot: str) -> list[str]:
        return list(dict.fromkeys(word for words in self.values(slot).values() for word in words))

    @model_validator(mode="after")
    def consistent(self):
        for template in self.templates:
            slots = SLOT.findall(template)
            for slot in {*slots} - {*self.variables}:
                raise ValueError(f"'{template}' has a slot '{slot}', which is not among the variables"
                                 f"{suggestion(slot, self.variables)}")
            if len(set(slots)) < len(slots) or re.search("[{}]", SLOT.sub("", template)):
                raise ValueError(f"'{template}' has a slot twice, or a brace that belongs to none")
            for slot in {*self.label_slots} - {*slots}:
                raise ValueError(f"'{template}' lacks the slot '{slot}', which is a label")
        for slot in self.label_slots:
            if {*self.values(slot)} != {*self.labels}:
                raise ValueError(f"the slot '{slot}' has the values {', '.join(self.values(slot))}, and labels has "
                                 f"{', '.join(self.labels)}")
        if len(self.labels) < 2:
            raise ValueError("labels needs at least two values")
        return self


def read_templates(path: str) -> dict[str, Task]:
    """The tasks of a file, by name; raises BadInput where it is not of this form."""
    file = require_file("templates", path)
    source = f"templates: {shown(file)}"
    try:
        text = file.read_text(encoding="utf-8-sig")
        tasks = json.loads(text) if file.suffix == ".json" else parse_yaml(text, source)
        return TypeAdapter(dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], Task]).validate_python(tasks)
    except ValidationError as error:
        deepest = max(error.errors(), key=lambda one: len(one["loc"]))  # of the alternatives the one that is meant
        place = [str(part) for part in ("task", *deepest["loc"]) if "[" not in str(part)]  # not the alternative's type
        raise BadInput(f"{source}, {' '.join(place)}: {deepest['msg'].removeprefix('Value error, ')}.") from None
    except (OSError, ValueError) as error:  # ValueError: no JSON, or no UTF-8
        raise BadInput(f"{source} cannot be read: {error}.") from None


# ------------------------------------------------------------------------------------- rows

def draw(choices: list[list[str]], most: int, drawing: random.Random) -> list[tuple[str, ...]]:
    """Combinations of a word from each list, in random order without repetition: `most`, or all there are."""
    count = min(math.prod(map(len, choices)), sys.maxsize)  # the most that can be drawn from
    drawn = []
    for number in drawing.sample(range(count), min(count, most)):
        words = []
        for options in choices:
            number, place = divmod(number, len(options))
            words.append(options[place])
        drawn.append(tuple(words))
    return drawn


def contexts(task: Task, most: int, drawing: random.Random) -> list[str]:
    """Templates in turn, all but the label's slots filled and marked: `most`, or all there are."""
    drawn = []
    for template in task.templates:
        slots = [slot for slot in SLOT.findall(template) if slot not in task.label_slots]
        drawn.append([fill(template, slots, words) for words in draw([*map(task.words, slots)], most, drawing)])
    return [context for turn in zip_longest(*drawn) for context in turn if context is not None][:most]


def fill(text: str, slots: list[str], words: tuple[str, ...]) -> str:
    """A template with words, marked, in some of its slots, as a sentence if none is left."""
    given = dict(zip(slots, words))
    text = SLOT.sub(lambda found: marked(found[1], given[found[1]]) if found[1] in given else found[0], text)
    return text if SLOT.search(text) else " ".join(text.split())  # without the gaps that empty words leave


def make_rows(name: str, task: Task, num_rows: int, data_seed: int) -> list[dict[str, str | int]]:
    """Rows of a task: base and source, marked, with their answers and values; fewer where there are no more.

    No sentence stands in two of them. They depend on the task, its name and the seed, not on other tasks.
    """
    drawing, values = random.Random(f"{data_seed} {name}"), list(task.labels)
    shared = contexts(task, num_rows, drawing)
    rounds = math.ceil(num_rows / len(shared))
    forms = {value: [task.values(slot)[value] for slot in task.label_slots] for value in values}
    left = [{value: draw(forms[value], rounds, drawing) for value in values} for _ in shared]
    seen, used, rows = set[str](), Counter[str](), list[dict[str, str | int]]()
    for context, words in list(zip(shared, left)) * rounds:
        there = [value for value in values if words[value]]
        if len(rows) == num_rows or len(there) < 2:
            continue
        base = min(there, key=lambda value: (used[value], drawing.random()))
        pair = [base, drawing.choice([value for value in there if value != base])]
        texts = [fill(context, task.label_slots, words[value].pop()) for value in pair]
        right, wrong = drawing.choice(list(zip(*(task.labels[value] for value in pair))))
        bare = {*map(unmarked, texts)}
        if len(bare) < 2 or bare & seen or right == wrong:
            continue
        seen |= bare
        used[base] += 1
        if task.result_prepend_space:
            right, wrong = right.strip(), wrong.strip()
        rows.append({"sentence": texts[0], "right": right, "wrong": wrong, "labels": values.index(pair[0]),
                     "source": texts[1], "source_right": wrong, "source_labels": values.index(pair[1])})
    return rows
