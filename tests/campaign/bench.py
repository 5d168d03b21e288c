"""What a campaign is made against: a small project in which every script has run undisturbed, and copies of it.

Configs have relative paths, and in a trial the project's root is the trial's copy: whatever a trial writes, and
wherever a fuzzed path leads, stays in its folder. Scripts that are to be killed are started from a copy of the code.
"""

import contextlib
import csv
import io
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import conftest
from conftest import circuit_values, comparison_values, language_values, method_values, rows_of, training_values
from interp.experiment import Script, main
from interp.runs import config as configs
from interp.runs.directory import FREE_KEYS
from interp.runs.files import read_table
from language_model import make_language_model

CODE = Path(configs.__file__).parents[2]
T = Path("training")
HALF_WRITTEN = (".tmp", ".held", ".turn.lock")
MODEL = "training/models/model_LR_0.01_Seed_0_final"


class Failed(Exception):
    """What a trial found: something lost or wrong, or a mistake that is not told in one sentence."""


class Skipped(Exception):
    """What a trial needs is not there."""


class Job(NamedTuple):
    """A script with a config. Its outputs are in the folder of its name: run, models, data."""

    script: Script
    values: dict[str, Any]
    reads: tuple[str, ...] = ()


class Ended(NamedTuple):
    status: int | str  # a traceback, where the script did not return
    errors: list[str]


@dataclass
class Trial:
    """One attempt: what it draws, and its own copy of the project."""

    bench: "Bench"
    rng: random.Random
    folder: Path
    what: str = ""
    told: str = ""  # how the last run ended

    @property
    def project(self) -> Path:
        return self.folder / "project"


@dataclass
class Bench:
    """The undisturbed project, and how long a script takes to start."""

    project: Path
    seconds_to_start: float = 0
    saved: dict[str, dict[str, Any]] = field(default_factory=dict)  # of each job: what it left


def jobs() -> dict[str, Job]:
    data, model = ("training/data/train.csv", "training/data/test.csv"), (MODEL,)
    language = conftest.SimpleNamespace(data=Path("sentences/data"), model=Path("language_model"))
    methods = method_values(T)
    save = {"save_models": True}
    of_training = training_values(T) | {"model_seed_list": [0, 1], "checkpoint_every": 25}
    all_jobs = {
        "training": Job(conftest.TRAINING, of_training),
        "sentences": Job(conftest.SENTENCES, {"file_list": ["SV_Agr", "SV_Agr_gen", "Reflexive_An_gen"],
                                              "gen_size": 300, "data_dir": "sentences/data"}),
        "transfer": Job(conftest.TRAINING, of_training | {
            "transfer": MODEL, "model_seed_list": [0], "num_epochs": 40, "save_checkpoints": [20],
            "data_dir": "transfer/data"}, model),
        "circuits": Job(conftest.CIRCUITS, circuit_values(T), data + model),
        "probing": Job(conftest.METHODS["probing"], methods["probing"], data + model),
        "amnesic": Job(conftest.METHODS["amnesic_probing"], methods["amnesic_probing"] | {"num_epochs": 20},
                       data + model),
        "DAS": Job(conftest.METHODS["DAS"], methods["DAS"] | save | {"epochs": 5}, data + model),
        "comparison": Job(conftest.COMPARISON, comparison_values(T) | save | {"save_pairs": True}, data + model),
        "language": Job(conftest.CIRCUITS, language_values(language, T) | save | {
            "train_size": 200, "test_size": 100, "batch_size_list": [100], "num_epochs": 3, "num_random_ablations": 2,
            "target_layer_list": [0]},
            ("sentences/data/SV_Agr.csv", "sentences/data/SV_Agr_gen.csv", "language_model")),
    }
    for name, job in all_jobs.items():
        job.values["results_dir"] = f"{name}/run"
        if "model_dir" in job.script.schema.model_fields:
            job.values["model_dir"] = f"{name}/models"
    return all_jobs


JOBS = jobs()


def make_bench(folder: Path) -> Bench:
    """Every job run undisturbed, with the code beside it."""
    project = folder / "project"
    project.mkdir(parents=True)
    copy_code(CODE, project)
    make_language_model(project / "language_model", steps=20)
    bench = Bench(project)
    for name in JOBS:
        ended = run(project, name, JOBS[name].values)
        require(ended.status == 0 and not ended.errors, f"{name}, undisturbed, ended in {ended}")
        bench.saved[name] = saved(project, name)
    start = time.perf_counter()
    subprocess.run([sys.executable, project / "circuit_probing.py", "--help"], check=True, capture_output=True)
    bench.seconds_to_start = time.perf_counter() - start
    return bench


def copy_code(source: Path, project: Path) -> None:
    for file in source.glob("*.py"):
        shutil.copy(file, project)
    shutil.copytree(source / "interp", project / "interp")


def copy_project(trial: Trial, *left_out: str) -> None:
    """The undisturbed project without some of its folders, and without its code."""
    shutil.copytree(trial.bench.project, trial.project, ignore=shutil.ignore_patterns(
        "*.py", "interp", "__pycache__", ".lock", *left_out))


def copy_inputs(trial: Trial, name: str) -> None:
    """Nothing but what a job reads."""
    trial.project.mkdir(parents=True)
    for path in JOBS[name].reads:
        source, target = trial.bench.project / path, trial.project / path
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)


def require(condition: Any, why: str) -> None:
    if not condition:
        raise Failed(why)


@contextlib.contextmanager
def rooted(project: Path) -> Iterator[None]:
    """Relative paths of configs lead into a project, not into this one; and so does the working directory."""
    before, here = configs.PROJECT_ROOT, os.getcwd()
    configs.PROJECT_ROOT = project
    os.chdir(project)
    try:
        yield
    finally:
        configs.PROJECT_ROOT = before
        os.chdir(here)


@contextlib.contextmanager
def ctrl_c_after(seconds: float | None) -> Iterator[None]:
    """What takes longer is interrupted, as by Ctrl-C."""
    def interrupt(*_):
        raise KeyboardInterrupt
    if seconds:
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def run(project: Path, name: str, values: dict | str, *options: str, seconds: float | None = None,
        file: str = "c.yaml") -> Ended:
    """A job's command line in this process, on the project, with the config that the values or the text make."""
    file, errors = project / file, io.StringIO()
    if isinstance(values, str):
        file.write_text(values, encoding="utf-8")
    else:
        conftest.write_yaml(file, values)
    with rooted(project), contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            with ctrl_c_after(seconds):
                status = main(JOBS[name].script, ["--config", str(file), *options])
        except SystemExit as ended:
            status = f"SystemExit {ended.code}"
        except BaseException:
            status = traceback.format_exc()
    return Ended(status, errors.getvalue().strip().splitlines())


def saved(project: Path, name: str) -> dict[str, Any]:
    """What a job left: rows of tables, seconds aside, what is saved to the byte, the names of figures."""
    found = {}
    for file in sorted((project / name).rglob("*")):
        path = str(file.relative_to(project))
        if file.suffix == ".csv" and ".old-" not in path and file.is_file():
            try:
                found[path] = [row | {"seconds": None} for row in read_table(file)]
            except (UnicodeDecodeError, csv.Error):
                found[path] = file.read_bytes()
        elif file.name == "config.yaml" and file.is_file():
            found[path] = meaning(file, JOBS[name].script.schema)
        elif file.suffix in (".safetensors", ".json") and file.name != "run.json" and ".old-" not in path:
            found[path] = file.read_bytes() if file.is_file() else "a folder"
        elif file.suffix in (".png", ".pdf"):
            found[path] = None
    return found


def meaning(file: Path, schema: type[configs.ScriptConfig]) -> dict[str, Any] | bytes:
    """The keys of a run's config.yaml on which its figures depend, however it is written."""
    try:
        return {key: value for key, value in yaml.safe_load(file.read_text()).items()
                if key in schema.model_fields.keys() - FREE_KEYS and value != schema.model_fields[key].default}
    except (AttributeError, ValueError, RecursionError, yaml.YAMLError):
        return file.read_bytes()


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    lost, new = (sorted(ones.keys() - others.keys()) for ones, others in ((wanted, found), (found, wanted)))
    other = sorted(name for name in found.keys() & wanted.keys() if found[name] != wanted[name])
    return ", ".join(f"{name} ({what})" for what, names in (("lost", lost), ("not there before", new), ("other", other))
                     for name in names)


def require_same(trial: Trial, name: str) -> None:
    wrong = differences(saved(trial.project, name), trial.bench.saved[name])
    require(not wrong, f"other than undisturbed: {wrong}")


def require_no_strays(project: Path) -> None:
    strays = [str(file.relative_to(project)) for file in project.rglob("*")
              if file.name.endswith(HALF_WRITTEN) or ".old-" in file.name]
    require(not strays, f"left behind: {', '.join(strays)}")


def require_sentence(name: str, ended: Ended, statuses: tuple[int, ...], words: list[str] = ()) -> None:
    """A mistake is told in one sentence, which names what is to blame by one of the words."""
    require(ended.status in statuses, f"exit {ended.status}; {' | '.join(ended.errors)}")
    told = ended.errors[0] if ended.errors else ""
    require(len(ended.errors) == 1 and told.startswith(f"{JOBS[name].script.name}: "),
            f"exit {ended.status}, not in one sentence: {' | '.join(ended.errors)}")
    require(not words or any(word in told for word in words), f"the sentence names none of {words}: {told}")


def require_plausible(project: Path) -> None:
    """No table holds a number that is none, or a share that is more than all."""
    for file in project.rglob("results.csv"):
        for row in rows_of(file):
            for column, cell in row.items():
                with contextlib.suppress(ValueError):
                    number = float(cell)
                    share = "acc" in column.split("_") or column == "iia"
                    require(math.isfinite(number) and (not share or 0 <= number <= 1),
                            f"{file.relative_to(project)}: {column} is {cell}")


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*")}
