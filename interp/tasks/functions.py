"""Variables of two operands a and b, and the tasks made of them: what a config of arithmetic data may name.

Tokens 0..mod-1 are numbers, mod is `=`; with two tasks mod+1 and mod+2 name the task. Nothing here loads torch, so that
a wrong config is refused at once; a and b are whole numbers or tensors of them.
"""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Numbers = Any  # an int, or a tensor of whole numbers
Function = tuple[str, int, int]  # a variable's name and the positions of its two arguments
Rule = tuple[str, str, str]      # (x, y, op): the counterfactual label (x op y) mod p

VARIABLES: dict[str, Callable[[Numbers, Numbers], Numbers]] = {
    "a_identity": lambda a, b: a,
    "a2": lambda a, b: a**2,
    "a4": lambda a, b: a**4,
    "b_identity": lambda a, b: b,
    "b2": lambda a, b: b**2,
    "minus_b2": lambda a, b: -(b**2),
    "b4": lambda a, b: b**4,
    "ab": lambda a, b: a * b,
    "a_plus_b": lambda a, b: a + b,
    "a_minus_b": lambda a, b: a - b,
}
NAMES = [*VARIABLES, "a_plus_b_no_prime", "a_minus_b_no_prime", "a_mod_N", "b_mod_N"]
OPERATIONS = {"+": operator.add, "*": operator.mul}

# Where each word of a sequence stands: a and b are the operands, r the distractor.
SINGLE_TASK = ("a", "b", "=")
TASK_1 = ("task_1", "a", "r", "b", "=")
TASK_2 = ("task_2", "a", "b", "r", "=")


@dataclass(frozen=True)
class Task:
    """What a data set holds: its sequence layout, variables and counterfactual labels."""

    layout: tuple[str, ...]
    intermediate: list[Function]
    auxiliary: list[Function]
    counterfactual_labels: list[Rule]


def variable_values(name: str, a: Numbers, b: Numbers, mod: int) -> Numbers:
    """A variable for each pair (a, b), reduced mod `mod` unless its name says otherwise.

    Raises:
        ValueError: no variable has that name.
    """
    if residue := re.fullmatch(r"([ab])_mod_([1-9]\d{0,8})", name):
        return (a if residue[1] == "a" else b) % int(residue[2])
    if name in ("a_plus_b_no_prime", "a_minus_b_no_prime"):
        return VARIABLES[name.removesuffix("_no_prime")](a, b)
    if name not in VARIABLES:
        raise ValueError(f"there is no variable '{name}'; known are {', '.join(NAMES)}")
    return VARIABLES[name](a, b) % mod


def check_task(task: Task, mod: int) -> None:
    """Refuse a task whose functions or rules name what it does not have.

    Raises:
        ValueError: in a sentence that names the function or rule.
    """
    for name, i, j in [*task.intermediate, *task.auxiliary]:
        try:
            variable_values(name, 0, 0, mod)
        except ValueError as error:
            raise ValueError(f"the function [{name}, {i}, {j}]: {error}") from None
        for position in (i, j):
            if not 0 <= position < len(task.layout) or task.layout[position] not in "abr":
                raise ValueError(f"the function [{name}, {i}, {j}] reads position {position}, "
                                 f"which holds no number in '{' '.join(task.layout)}'")
    names = [prefix + name for name in column_names(task) for prefix in ("", "counter_")]
    for x, y, op in task.counterfactual_labels:
        for word in (x, y):
            if word not in names:
                raise ValueError(f"the rule [{x}, {y}, {op}] names {word}, which is not "
                                 f"one of {', '.join(names)}")
        if op not in OPERATIONS:
            raise ValueError(f"the rule [{x}, {y}, {op}] has an operation other than + and *")


def column_names(task: Task) -> list[str]:
    return ([f"var_{i}" for i in range(len(task.intermediate))]
            + [f"aux_{i}" for i in range(len(task.auxiliary))])
