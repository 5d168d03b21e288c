"""Scripts killed, configs fuzzed by their schema, and files damaged as editors, transfers and disks damage them."""

import copy
import datetime
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, get_args

import yaml

from campaign import bench
from campaign.bench import CODE, JOBS, Trial, copy_project, run
from conftest import modified, write_yaml

PATIENCE = 300  # seconds, for a machine that has other things to do
KEYS = ("train_data_path", "test_data_path", "model_path", "data_path", "gen_path")  # that lead to inputs
ODD = [
    None, True, 0, 1, -1, 3, 2**31, 2**63, -2**40, 10**400, 0.5, -0.0, 1e-320, 1e31, math.nan, -math.inf, "", " ",
    "é漢字🙂", "a" * 5000, "a\nb", "\0", "..", "/", "~", "~nosuchuser/x", "/proc/x", "/dev/null", "c.yaml", "c.yaml/x",
    "{x}", "{", "{0.__class__}", "nan", "1e5", [], [[]], [None], [[1], [2]], [1, 1], [1, "a"], [True], {}, {"a": {}},
    datetime.date(2024, 1, 1), b"\xff\x00", {1}]
TEXTS = [
    "", "\0", "- a\n- b\n", "just words\n", "a: b: c\n", "x: [1, 2\n", "\tx: 1\n", "? [a]\n: 1\n", "1: 2\n", "on: 1\n",
    "x: !!python/object:os.system {}\n", "x: *a\n", "x: &a [*a]\n", "<<: 5\n", "---\na: 1\n---\nb: 2\n",
    "x: 2024-99-99\n", "base: c.yaml\n", "base: nowhere.yaml\n", "base: /\n", "base: 5\n", "base: [a]\n",
    "%YAML 9.9\n---\n", "x: " + "[" * 20000 + "\n"]
FOREIGN = [b"", b"[1, 2]", b"null", b"just words\n", b"a;b\n1;2\n", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff" * 200,
           bytes(4000), b"[" * 20000, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"]
OF_INPUTS = ["byte changed", "line lost", "line twice", "other encoding"]  # of a run nobody would notice some of them


# ------------------------------------------------------------------------------ kills

def kills(trial: Trial) -> None:
    """One to three kills at random moments; the same command then ends as if nothing had been."""
    name = trial.rng.choice(list(JOBS))
    copy_project(trial, name)
    for script in CODE.glob("*.py"):  # a copy of the code, as its folder is the root of relative paths
        shutil.copy(script, trial.project)
    shutil.copytree(CODE / "interp", trial.project / "interp")
    config = write_yaml(trial.project / "c.yaml", JOBS[name].values)
    command = [sys.executable, trial.project / f"{JOBS[name].script.name}.py", "--config", config]
    for number in range(trial.rng.randint(1, 3)):
        how = trial.rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        when, ready, rest = moment(trial, name)
        status, errors = killed(command, trial.project / f"stderr_{number}", how, ready, rest)
        trial.what += f"{name}, {how.name} {when} ({status}); "
        early = "KeyboardInterrupt" in errors and "in main" not in errors  # while modules are loaded Python itself ends
        assert "Traceback" not in errors or early, errors
        assert status in {0, -how, *[130, 1] * (how is signal.SIGINT)}, f"exit {status}; {errors.strip()}"
    ended = run(trial.project, name, JOBS[name].values)
    assert ended.status == 0 and not ended.errors, f"the last start: exit {ended.status}; {' | '.join(ended.errors)}"
    bench.require_same(trial, name)
    record = json.loads((trial.project / name / "run/run.json").read_text())
    assert record["sessions"][-1]["status"] == "done", "its record does not say that it is done"


def moment(trial: Trial, name: str) -> tuple[str, Callable[[], bool], float]:
    """A moment of a start: in words, whether it has come, and how many seconds after that."""
    if trial.rng.random() < 0.2:
        seconds = trial.rng.uniform(0, 6)
        return f"{seconds:.1f} s after the start", lambda: True, seconds
    path = trial.project / name / trial.rng.choice(("run/run.json", "run/settings", "run/results.csv", "models", "run"))
    stamp = lambda: path.exists() and path.stat().st_mtime_ns  # noqa: E731
    before = stamp()  # an earlier start may have left some
    return f"once it writes {path.name}", lambda: stamp() != before, trial.rng.uniform(0, 0.5)


def killed(command: list, errors: Path, how: signal.Signals, ready: Callable[[], bool], rest: float) -> tuple[int, str]:
    """Start a script, send the signal a while after the moment has come, if it still runs; exit status and stderr."""
    with open(errors, "w") as file:
        process = subprocess.Popen(command, cwd="/", stdout=subprocess.DEVNULL, stderr=file,
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and not ready():
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.005)
    time.sleep(rest)
    process.send_signal(how)
    return process.wait(timeout=PATIENCE), errors.read_text()


# ------------------------------------------------------------------------------ configs

def configs(trial: Trial) -> None:
    """A config with some of its keys wrong, at their bounds or odd, is refused in a sentence or runs."""
    name = trial.rng.choice(list(JOBS))
    values, trial.what = fuzzed(name, trial.rng)
    copy_project(trial, name)
    (trial.project / "c.yaml").touch()
    before = modified(trial.project).keys()
    ended = run(trial.project, name, values, "--check", seconds=120)
    trial.ended = str(ended)
    assert modified(trial.project).keys() == before, "--check wrote something"
    if ended.status:
        return bench.require_sentence(name, ended, (2,), [*JOBS[name].script.schema.model_fields, "c.yaml"])
    paths = [value for value in values.values() if isinstance(value, str)] if isinstance(values, dict) else []
    if trial.rng.random() < 0.3 and not any(path[:1] in ("/", "~") or ".." in path for path in paths):
        ended = run(trial.project, name, values, seconds=5)
        trial.ended += f", run: {ended}"
        if ended.status:
            bench.require_sentence(name, ended, (1, 2, 130))
        bench.require_plausible(trial.project)


def fuzzed(name: str, rng: Random) -> tuple[dict | str, str]:
    """A job's config made wrong, as values or as a text that no values would make; and what was done to it."""
    values = copy.deepcopy(JOBS[name].values)
    if rng.random() < 0.12:
        lines = yaml.safe_dump(values, sort_keys=False).splitlines(keepends=True)
        place, odd = rng.randrange(len(lines)), rng.choice(TEXTS)
        return rng.choice((odd, "".join([*lines[:place], odd, *lines[place:]]), "".join(lines)[:rng.randrange(300)],
                           "\ufeff" + "".join(lines), "".join(lines + lines[place:]))), f"{name}: a text, {odd[:60]!r}"
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        key = rng.choice(list(JOBS[name].script.schema.model_fields))
        match rng.choice(("value",) * 8 + ("missing", "misspelt", "swapped")):
            case "value":
                values[key] = drawn_value(name, key, values, rng)
            case "missing":
                del values[key := rng.choice(list(values))]
            case "misspelt":
                key = rng.choice(list(values))
                place = rng.randrange(len(key))
                values[key[:place] + rng.choice(("", "x", "_", "é")) + key[place + 1:]] = values.pop(key)
            case "swapped":
                key, other = rng.sample(list(values), 2)
                values[key], values[other] = values[other], values[key]
        done.append(f"{key}: {values.get(key, 'missing or misspelt')!r}"[:80])
    return values, f"{name}: {', '.join(done)}"


def drawn_value(name: str, key: str, values: dict, rng: Random) -> Any:
    """An odd value, one at a bound of the key, another key's, or one not far from what is there."""
    field = JOBS[name].script.schema.model_fields[key]
    bounds = [bound for mark in (*field.metadata, *parts_of(field.annotation)) for part in (
        mark, *getattr(mark, "metadata", ())) for limit in ("ge", "gt", "le", "lt")
        if (bound := getattr(part, limit, None)) is not None]
    words = [part for part in parts_of(field.annotation) if isinstance(part, str)]
    near = [value for bound in bounds for value in (bound, bound + 1, bound - 1, float(bound), bound * 2)]
    match rng.choice(("odd", "odd", "near", "near", "list", "another's", "mild", "mild", "mild", "mild")):
        case "mild":
            return mild(values.get(key, None if field.is_required() else copy.deepcopy(field.default)), words, rng)
        case "near" if near or words:
            value = rng.choice([*near, *words])
            return [value] if key.endswith("_list") else value
        case "list":
            return [rng.choice([*near, *words, *ODD]) for _ in range(rng.randint(1, 4))]
        case "another's":
            return copy.deepcopy(rng.choice(list(values.values())))
    return rng.choice(ODD)


def parts_of(annotation: Any) -> list[Any]:
    parts = get_args(annotation)
    return [*parts, *(deeper for part in parts for deeper in parts_of(part))]


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
    return rng.choice([*words, "data", "labels", "var_0", "counter_var_0", "CF_Label_0", "right", "object labels"])


# ------------------------------------------------------------------------------ files

def files(trial: Trial) -> None:
    """A damaged input is refused by name; so is a damaged run, or it ends in the tables of before."""
    name, rng = trial.rng.choice(list(JOBS)), trial.rng
    fresh = bool(JOBS[name].reads) and rng.random() < 0.6
    copy_project(trial, name, fresh)
    inputs = sorted(file for path in JOBS[name].reads for place in [trial.project / path]
                    for file in [place, *place.rglob("*")] if file.is_file())
    kept = [*(trial.project / name / "run/settings").glob("*.json"), trial.project / name / "run/config.yaml"]
    file = rng.choice(inputs if fresh else sorted(kept + inputs))
    if not fresh and file not in kept[:-1]:
        kept[0].unlink()  # something is left to compute
    trial.what = f"{name}, {'from the start' if fresh else 'again'}: {file.relative_to(trial.project)} "
    trial.what += damage(file, rng, among=["foreign", "cut", *(OF_INPUTS if file in inputs else ())])
    before = bench.saved(trial.project, name)
    ended = run(trial.project, name, JOBS[name].values)
    trial.ended = str(ended)
    if ended.status:
        words = [file.name, str(file.parent.relative_to(trial.project)), *(KEYS if file in inputs else ())]
        bench.require_sentence(name, ended, (1, 2) if fresh else (2,), words)
        assert fresh or file.suffix == ".json" or bench.saved(trial.project, name) == before, "something was changed"
    elif fresh:
        bench.require_plausible(trial.project)
    else:
        bench.require_same(trial, name)


def damage(file: Path, rng: Random, among: list[str]) -> str:
    """Damage a file; says how."""
    content = file.read_bytes()
    lines = content.splitlines(keepends=True)
    place, byte = (rng.randrange(len(part) or 1) for part in (lines, content))
    how = rng.choice(["deleted", "a folder", "a link to nothing", *among * 3])
    changed = {
        "foreign": lambda: rng.choice(FOREIGN),
        "cut": lambda: content[:byte],
        "byte changed": lambda: content[:byte] + bytes([rng.randrange(256)]) + content[byte + 1:],
        "line lost": lambda: b"".join(lines[:place] + lines[place + 1:]),
        "line twice": lambda: b"".join(lines[:place + 1] + lines[place:]),
        "other encoding": lambda: rng.choice((content.decode("latin-1").encode("utf-16"), b"\xef\xbb\xbf" + content,
                                              content.replace(b"a", b"\xe9", 1), content.replace(b",", b";")))}
    if how in changed:
        file.write_bytes(changed[how]())
        return how
    file.unlink()
    if how == "a folder":
        file.mkdir()
    elif how == "a link to nothing":
        file.symlink_to("nowhere")
    return how
