"""Configs fuzzed by their schema, and files damaged as editors, transfers and disks damage them."""

import copy
import csv
import datetime
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, get_args

import yaml

from campaign.bench import (
    JOBS,
    Ended,
    Trial,
    copy_inputs,
    copy_project,
    require,
    require_plausible,
    require_same,
    require_sentence,
    run,
    saved,
    snapshot,
)
from conftest import write_yaml

SHARE_RUN = 0.3  # of the configs that --check accepts
SECONDS_RUN, SECONDS_CHECK = 5, 120
ODD = [
    None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**32, 2**63, -2**40, 10**400, 0.5, -0.0, 1e-30, 1e-320, 1e30, 1e31,
    1e308, math.nan, math.inf, -math.inf, "", " ", "word", "é漢字🙂", "a" * 5000, "a\nb", "\0", "..", ".", "/", "~",
    "~nobody/x", "/proc/x", "/dev/null", "c.yaml", "c.yaml/x", "{x}", "{", "{0.__class__}", "%s", "nan", "1e5",
    "0x10", "1_000", [], [[]], [None], [[1], [2]], [1, 1], [1, "a"], ["a", "a"], [True], [math.nan],
    {}, {"a": 1}, {"a": {}}, [{}], [{"a": [1]}], datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1, 1),
    b"\xff\x00", {1}]
COLUMNS = ["data", "labels", "var_0", "var_1", "aux_0", "counter_var_0", "CF_Label_0", "sentence", "right", "group",
           "object labels"]
TEXTS = [
    "", "\0", "- a\n- b\n", "just words\n", "a: b: c\n", "x: [1, 2\n", "\tx: 1\n", "? [a]\n: 1\n", "1: 2\n", "on: 1\n",
    "x: !!python/object:os.system {}\n", "x: *a\n", "x: &a [*a]\n", "<<: 5\n", "---\na: 1\n---\nb: 2\n",
    "x: 2024-99-99\n", "base: c.yaml\n", "base: nowhere.yaml\n", "base: /\n", "base: 5\n", "base: [a]\n", "base: ''\n",
    "%YAML 9.9\n---\n"]
OF_THE_FILE = ("c.yaml is", "c.yaml cannot", "'base'", "the path '", "unknown key")  # named where no key is to blame


# ------------------------------------------------------------------------------ configs

def configs(trial: Trial) -> None:
    """A config with some of its keys wrong, at their bounds or odd, is refused in a sentence or runs."""
    name = trial.rng.choice(list(JOBS))
    values, words = fuzzed(name, trial.rng)
    trial.what = f"{name}: {words}"
    copy_inputs(trial, name)
    (trial.project / "c.yaml").touch()
    before = snapshot(trial.project)
    ended = run(trial.project, name, values, "--check", seconds=SECONDS_CHECK)
    trial.told = told(ended)
    require(snapshot(trial.project).keys() == before.keys(), "--check wrote " + ", ".join(
        snapshot(trial.project).keys() - before.keys()))
    if ended.status:
        return require_sentence(name, ended, (2,), [*JOBS[name].script.schema.model_fields, *OF_THE_FILE])
    require(not ended.errors, f"exit 0, but said {' | '.join(ended.errors)}")
    if trial.rng.random() < SHARE_RUN and not leads_out(values):
        trial.what += ", run"
        ended = run(trial.project, name, values, seconds=SECONDS_RUN)
        trial.told += f", {told(ended)}"
        if ended.status:
            require_sentence(name, ended, (1, 2, 130))
        require_plausible(trial.project)


def told(ended: Ended) -> str:
    return f"exit {ended.status}: {' | '.join(ended.errors)[:300]}"


def leads_out(values: dict | str) -> bool:
    """Whether a path leads out of the trial's folder."""
    return isinstance(values, dict) and any(isinstance(value, str) and (value[:1] in ("/", "~") or ".." in value)
                                            for value in values.values())


def fuzzed(name: str, rng: Random) -> tuple[dict | str, list[str]]:
    """A job's config made wrong, as values or as a text that no values would make; and what was done to which key."""
    values = copy.deepcopy(JOBS[name].values)
    if rng.random() < 0.12:
        text = yaml.safe_dump(values, sort_keys=False)
        return fuzzed_text(text, rng)
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        key = rng.choice(list(JOBS[name].script.schema.model_fields))
        match rng.choice(("value",) * 8 + ("missing", "misspelt", "swapped")):
            case "value":
                values[key] = drawn_value(name, key, values, rng)
            case "missing":
                key = rng.choice(list(values))
                del values[key]
            case "misspelt":
                key = rng.choice(list(values))
                place = rng.randrange(len(key))
                values[key[:place] + rng.choice(("", "x", "_", "é")) + key[place + 1:]] = values.pop(key)
            case "swapped":
                key, other = rng.sample(list(values), 2)
                values[key], values[other] = values[other], values[key]
        done.append(f"{key}: {short(values[key])}" if key in values else f"{key} missing or misspelt")
    return values, done


def fuzzed_text(text: str, rng: Random) -> tuple[str, list[str]]:
    lines = text.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    kind = rng.choice(("cut", "line twice", "odd text", "odd text", "odd line", "odd line", "tab", "byte order mark"))
    match kind:
        case "cut":
            text = text[:rng.randrange(len(text))]
        case "line twice":
            text = "".join(lines[:place + 1] + lines[place:])
        case "odd text":
            text = rng.choice(TEXTS)
        case "odd line":
            text = "".join(lines[:place]) + rng.choice(TEXTS) + "".join(lines[place:])
        case "tab":
            text = "".join(lines[:place] + ["\t" + lines[place]] + lines[place + 1:])
        case "byte order mark":
            text = "\ufeff" + text
    return text, [f"text, {kind}, line {place + 1}: {short(text) if kind == 'odd text' else ''}"]


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def drawn_value(name: str, key: str, values: dict, rng: Random) -> Any:
    """An odd value, one at a bound of the key, a list of some, another key's, or one not far from what is there."""
    schema = JOBS[name].script.schema.model_fields[key]
    bounds, words = marks(schema.annotation, schema.metadata)
    near = [value for bound in bounds for value in (bound, bound + 1, bound - 1, float(bound), bound + 1e-9, bound * 2)]
    match rng.choice(("odd", "odd", "bound", "bound", "word", "list", "another's", "mild", "mild", "mild", "mild")):
        case "mild":
            default = None if schema.is_required() else copy.deepcopy(schema.default)
            return mild(values.get(key, default), words, rng)
        case "bound" if near:
            value = rng.choice(near)
        case "word" if words:
            value = rng.choice(words)
            value = rng.choice((value, value, value.upper(), value[:-1], value + " "))
        case "list":
            return [rng.choice([*near, *words, *ODD]) for _ in range(rng.randint(1, 4))]
        case "another's":
            return copy.deepcopy(rng.choice(list(values.values())))
        case _:
            return rng.choice(ODD)
    return [value] if key.endswith("_list") else value


def mild(value: Any, words: list[str], rng: Random) -> Any:
    """A value like the one that is there, which may well be allowed."""
    match value:
        case bool():
            return not value
        case int():
            return max(value + rng.randint(-2, 3), rng.randint(-1, 1))
        case float():
            return value * rng.choice((0.5, 2, 10, -1))
        case list() if value:
            return [mild(part, words, rng) for part in rng.sample(value, rng.randint(1, len(value)))]
        case dict() if value:
            key = rng.choice(list(value))
            return value | {key: mild(value[key], words, rng)}
    return rng.choice([*words, *COLUMNS])


def marks(annotation: Any, metadata: tuple = ()) -> tuple[list[float], list[str]]:
    """The bounds of a key's type, and the words it allows, of its parts too."""
    bounds = [bound for mark in metadata for part in (mark, *getattr(mark, "metadata", ()))
              for limit in ("ge", "gt", "le", "lt", "multiple_of") if (bound := getattr(part, limit, None)) is not None]
    parts = get_args(annotation)
    words = [part for part in parts if isinstance(part, str)]
    for part in parts:
        if get_args(part):
            more, own = marks(part, getattr(part, "__metadata__", ()))
            bounds, words = bounds + more, words + own
    return bounds, words


# ------------------------------------------------------------------------------ files

FOREIGN = [b"[1, 2]", b"{}", b"null", b"just words\n", b"a;b\n1;2\n", b"a,b\n1,2\n", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
           b"PK\x03\x04" + bytes(60), b"<!DOCTYPE html><html><body>404</body></html>", b"\xff" * 200, bytes(4000),
           b"[" * 20000, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", b'"', b",\n,\n",
           b"\n\n\n"]


def cut(content: bytes, rng: Random) -> bytes:
    return content[:rng.randrange(len(content) or 1)]


def flipped(content: bytes, rng: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(min(rng.choice((1, 1, 3, 20)), len(content))):
        changed[rng.randrange(len(content))] ^= rng.randrange(1, 256)
    return bytes(changed)


def other_digit(content: bytes, rng: Random) -> bytes:
    places = [place for place, byte in enumerate(content) if chr(byte).isdigit()]
    changed = bytearray(content)
    for place in rng.sample(places, min(1, len(places))):
        changed[place] = ord("0") + (changed[place] - ord("0") + rng.randrange(1, 10)) % 10
    return bytes(changed)


def line_removed(content: bytes, rng: Random) -> bytes:
    lines = content.splitlines(keepends=True)
    place = rng.randrange(len(lines) or 1)
    return b"".join(lines[:place] + lines[place + 1:])


def line_twice(content: bytes, rng: Random) -> bytes:
    lines = content.splitlines(keepends=True)
    place = rng.randrange(len(lines) or 1)
    return b"".join(lines[:place + 1] + lines[place:])


def other_encoding(content: bytes, rng: Random) -> bytes:
    return rng.choice((lambda: content.decode("latin-1").encode("utf-16"), lambda: b"\xef\xbb\xbf" + content,
                       lambda: content.replace(b"\n", b"\r\n"), lambda: content.replace(b"\n", b"\r"),
                       lambda: content.replace(b"a", b"\xe9", 1), lambda: content.replace(b"\n", b"\n\0", 1),
                       lambda: content.replace(b",", b";")))()


def foreign(content: bytes, rng: Random) -> bytes:
    return rng.choice(FOREIGN)


def empty(content: bytes, rng: Random) -> bytes:
    return b""


DAMAGES: list[Callable[[bytes, Random], bytes]] = [cut, empty, flipped, other_digit, line_removed, line_twice,
                                                   other_encoding, foreign]
KEYS = ("train_data_path", "test_data_path", "model_path", "data_path", "gen_path", "transfer")  # that lead to inputs
IN_ITS_PLACE = {"deleted": lambda file: None, "a folder": Path.mkdir,
                "a link to nothing": lambda file: file.symlink_to("nowhere")}


def files(trial: Trial) -> None:
    """A damaged input is refused by name; a damaged run too, or it ends in the tables and models of before."""
    name = trial.rng.choice(list(JOBS))
    inputs = list(input_files(trial, name))
    fresh = bool(inputs) and trial.rng.random() < 0.3
    if fresh:
        copy_inputs(trial, name)
    else:
        copy_project(trial)
    write_yaml(trial.project / "c.yaml", JOBS[name].values)
    own = [] if fresh else [str(file.relative_to(trial.project)) for file in (trial.project / name).rglob("*")
                            if file.is_file() and not file.name.endswith((".png", ".pdf"))]
    path = trial.rng.choice(sorted(inputs if inputs and trial.rng.random() < (1 if fresh else 0.4) else own))
    if not fresh and trial.rng.random() < 0.3:
        unfinish(trial.project / name / "run/results.csv", trial.rng)
        trial.what = "unfinished "
    file = trial.project / path
    trial.what += f"{name}, {'begun anew' if fresh else 'gone on with'}: {path} {damage(file, trial.rng)}"
    before = saved(trial.project, name)
    ended = run(trial.project, name, JOBS[name].values)
    trial.told = told(ended)
    if fresh and ended.status == 0:
        require_plausible(trial.project)
    elif ended.status == 0:
        require_same(trial, name)
    else:
        words = [file.name, str(file.parent.relative_to(trial.project)), *(KEYS if path in inputs else ())]
        require_sentence(name, ended, (1, 2) if fresh else (2,), words)
        begun_anew = fresh or trial.what.startswith("unfinished")  # a setting may have been done before the refusal
        require(begun_anew or saved(trial.project, name) == before, "it was refused, but something was changed")


def input_files(trial: Trial, name: str) -> Iterator[str]:
    for path in JOBS[name].reads:
        whole = trial.bench.project / path
        for file in whole.rglob("*") if whole.is_dir() else [whole]:
            yield str(file.relative_to(trial.bench.project))


def unfinish(table: Path, rng: Random) -> None:
    """As if killed before the last rows came."""
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:rng.randint(1, len(lines) - 1)]))


def damage(file: Path, rng: Random) -> str:
    """Damage a file; says how. Of a table of results, not by another number in a cell, which nobody can notice."""
    if rng.random() < 0.15:
        how = rng.choice(list(IN_ITS_PLACE))
        file.unlink()
        IN_ITS_PLACE[how](file)
        return how
    content = file.read_bytes()
    while True:
        how = rng.choice(DAMAGES)
        changed = how(content, rng)
        if changed != content and not (file.parent.name == "run" and other_numbers(content, changed)):
            file.write_bytes(changed)
            return how.__name__


def other_numbers(before: bytes, after: bytes) -> bool:
    """Whether two tables differ in nothing but the numbers in cells."""
    try:
        tables = [list(csv.reader(io.StringIO(content.decode()))) for content in (before, after)]
        cells = [pair for rows in zip(*tables, strict=True) for pair in zip(*rows, strict=True)]
        changed = [(old, new) for old, new in cells if old != new]
        return all(math.isfinite(float(old)) and math.isfinite(float(new)) for old, new in changed)
    except (ValueError, csv.Error):
        return False
