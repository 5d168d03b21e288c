"""What a campaign is made against: a small project in which every script has run undisturbed, and copies of it.

Configs have relative paths, and in a trial the project's root is the trial's copy: whatever a trial writes, and
wherever a fuzzed path leads, stays in its folder. Scripts that are to be killed are started from a copy of the code.
"""

import contextlib
import io
import math
import os
import random
import shutil
import signal
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import conftest
from conftest import circuit_values, comparison_values, language_values, made_by_training, method_values, rows_of
from interp.experiment import Script, main
from interp.runs import config as configs
from language_model import completed_sentences, make_language_model

CODE = Path(configs.__file__).parents[2]
T = Path("training")


class Job(NamedTuple):
    """A script with a config. Its outputs are in the folder of its name: run, models, data."""

    script: Script
    values: dict[str, Any]
    reads: tuple[str, ...] = ()


class Ended(NamedTuple):
    status: int | str  # a traceback, where the script did not return
    errors: list[str]


@dataclass
class Bench:
    """The undisturbed project, and what each job left."""

    project: Path
    saved: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Trial:
    """One attempt: what it draws, its copy of the project, what was done to it and how its last run ended."""

    bench: Bench
    rng: random.Random
    project: Path
    what: str = ""
    ended: str = ""


def jobs() -> dict[str, Job]:
    methods, save = method_values(T), {"save_models": True}
    made = tuple(made_by_training(T).values())
    language = conftest.SimpleNamespace(data=Path("sentences/data"), model=Path("language_model"))
    all_jobs = {
        "training": Job(conftest.TRAINING, conftest.training_values(T) | {
            "model_seed_list": [0, 1], "checkpoint_every": 25}),
        "sentences": Job(conftest.SENTENCES, {"file_list": ["SV_Agr", "SV_Agr_gen", "Reflexive_An_gen"],
                                              "gen_size": 300, "data_dir": "sentences/data"}),
        "circuits": Job(conftest.CIRCUITS, circuit_values(T), made),
        "probing": Job(conftest.METHODS["probing"], methods["probing"], made),
        "amnesic": Job(conftest.METHODS["amnesic_probing"], methods["amnesic_probing"] | {"num_epochs": 20}, made),
        "DAS": Job(conftest.METHODS["DAS"], methods["DAS"] | save | {"epochs": 5}, made),
        "comparison": Job(conftest.COMPARISON, comparison_values(T) | save | {"save_pairs": True}, made),
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
    bench = Bench(folder / "project")
    bench.project.mkdir(parents=True)
    make_language_model(bench.project / "language_model", completed_sentences(), steps=20)
    for name in JOBS:
        ended = run(bench.project, name, JOBS[name].values)
        assert ended.status == 0 and not ended.errors, f"{name}, undisturbed, ended in {ended}"
        bench.saved[name] = saved(bench.project, name)
    return bench


def copy_project(trial: Trial, name: str, fresh: bool = True) -> None:
    """What a job reads; unless it is to begin from nothing, what it has left too."""
    trial.project.mkdir()
    for path in (*JOBS[name].reads, *[name] * (not fresh)):
        source, target = trial.bench.project / path, trial.project / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)


def run(project: Path, name: str, values: dict | str, *options: str, seconds: float = 0, file: str = "c.yaml") -> Ended:
    """A job's command line in this process, on the project, with the config that the values or the text make.

    seconds: what takes longer is interrupted, as by Ctrl-C.
    """
    def interrupt(*_):
        raise KeyboardInterrupt

    if isinstance(values, str):
        (project / file).write_text(values, encoding="utf-8")
    else:
        conftest.write_yaml(project / file, values)
    errors, root, here = io.StringIO(), configs.PROJECT_ROOT, os.getcwd()
    configs.PROJECT_ROOT = project  # where relative paths lead
    os.chdir(project)
    signal.signal(signal.SIGALRM, interrupt)
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            status = main(JOBS[name].script, ["--config", file, *options])
        except SystemExit as ended:
            status = f"SystemExit {ended.code}"
        except BaseException:
            status = traceback.format_exc()
        signal.setitimer(signal.ITIMER_REAL, 0)
    configs.PROJECT_ROOT = root
    os.chdir(here)
    return Ended(status, errors.getvalue().strip().splitlines())


def saved(project: Path, name: str) -> dict[str, Any]:
    """What a job left: rows of tables, seconds aside, models to the byte, the names of all other files."""
    found = {}
    for file in sorted((project / name).rglob("*")):
        if file.is_file() and not file.name.startswith("."):
            found[str(file.relative_to(project))] = rows_of(file) if file.suffix == ".csv" else (
                file.suffix == ".safetensors" and file.read_bytes())
    return found


def require_same(trial: Trial, name: str) -> None:
    found, wanted = saved(trial.project, name), trial.bench.saved[name]
    wrong = sorted(path for path in found.keys() | wanted.keys() if found.get(path, 0) != wanted.get(path, 0))
    assert not wrong, f"other than undisturbed: {', '.join(wrong)}"


def require_sentence(name: str, ended: Ended, statuses: tuple[int, ...], words: list[str] = ()) -> None:
    said = ended.errors[0] if ended.errors else ""
    assert ended.status in statuses and len(ended.errors) == 1 and said.startswith(f"{JOBS[name].script.name}: "), (
        f"exit {ended.status}, not in one sentence: {' | '.join(ended.errors)}")
    assert not words or any(word in said for word in words), f"the sentence names none of {words}: {said}"


def require_plausible(project: Path) -> None:
    """No table holds a number that is none, or a share that is more than all."""
    tables = [rows_of(file) for file in project.rglob("results.csv")]
    for column, cell in [cell for table in tables for row in table for cell in row.items()]:
        with contextlib.suppress(ValueError):
            share = "acc" in column.split("_") or column == "iia"
            assert math.isfinite(float(cell)) and (not share or 0 <= float(cell) <= 1), f"{column} is {cell}"
