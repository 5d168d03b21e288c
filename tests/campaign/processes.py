"""Processes that are killed, that run out of disk, or that meet at the same files."""

import multiprocessing
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from campaign.bench import (
    JOBS,
    Skipped,
    Trial,
    copy_code,
    copy_inputs,
    require,
    require_no_strays,
    require_same,
    require_sentence,
    run,
    saved,
)
from conftest import write_yaml
from interp.runs.record import RECORD, read_record

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SAVING = ("training", "transfer", "circuits", "DAS", "comparison", "language")  # jobs that leave something in model_dir
PATIENCE = 300  # seconds, for a machine that has other things to do


# ------------------------------------------------------------------------------ kills

def kills(trial: Trial) -> None:
    """One to three kills at random moments; the same command then ends as if nothing had been."""
    name = trial.rng.choice(list(JOBS))
    copy_inputs(trial, name)
    copy_code(trial.bench.project, trial.project)
    config = write_yaml(trial.project / "c.yaml", JOBS[name].values)
    command = [sys.executable, trial.project / f"{JOBS[name].script.name}.py", "--config", config]
    told = []
    for number in range(trial.rng.randint(1, 3)):
        when, ready, rest = moment(trial, name)
        how = trial.rng.choice(SIGNALS)
        told.append(f"{how.name} {when}")
        trial.what = f"{name}: {', '.join(told)}"
        status, errors = killed(command, trial.folder / f"stderr_{number}", how, ready, rest)
        told[-1] += f" ({status})"
        trial.what = f"{name}: {', '.join(told)}"
        ours = interrupts_us(errors, trial.project, command[1])
        require("Traceback" not in errors or not ours, f"after {how.name} {when}: {errors.strip()}")
        allowed = {0, -how} | ({130} if how is signal.SIGINT else set()) | ({1} if errors and not ours else set())
        require(status in allowed, f"after {how.name} {when}: exit {status}; {errors.strip()}")
    ended = run(trial.project, name, JOBS[name].values)
    require(ended.status == 0 and not ended.errors, f"the last start: exit {ended.status}; {' | '.join(ended.errors)}")
    require_same(trial, name)
    require_no_strays(trial.project)
    status = read_record(trial.project / name / "run" / RECORD).get("status")
    require(status == "done", f"its record says '{status}'")


def interrupts_us(errors: str, project: Path, script: Path) -> bool:
    """Whether a traceback shows code of the project at work, rather than Python on the way to it.

    Until a script's first import has taken Ctrl-C over, a few milliseconds, nothing of ours can tell it in a sentence.
    """
    text = script.read_text()
    first = 1 + text[:text.index("import interp.runs.interruption")].count("\n")  # its line
    taking_over = {project / "interp" / name for name in ("__init__.py", "runs/__init__.py", "runs/interruption.py")}
    return any(Path(file) not in taking_over and not (Path(file) == script and int(line) <= first)
               for file, line in re.findall(rf'File "({re.escape(str(project))}[^"]*)", line (\d+)', errors))


def moment(trial: Trial, name: str) -> tuple[str, Callable[[], bool], float]:
    """A moment of a start: in words, whether it has come, and how many seconds after that."""
    if trial.rng.random() < 0.3:
        seconds = trial.rng.uniform(0, 1.2 * trial.bench.seconds_to_start)
        return f"{seconds:.1f} s after the start", lambda: True, seconds
    words, path = trial.rng.choice((("is begun", "run/run.json"), ("writes a row", "run/results.csv"),
                                    ("saves", "models" if name in SAVING else "run")))
    before = stamp(trial.project / name / path)  # an earlier start may have left some
    return f"once it {words}", lambda: stamp(trial.project / name / path) != before, trial.rng.uniform(0, 0.7)


def stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def killed(command: list, errors: Path, how: signal.Signals, ready: Callable[[], bool], rest: float) -> tuple[int, str]:
    """Start a script, send the signal a while after the moment has come, if it still runs; exit status and stderr."""
    with open(errors, "w") as file:
        process = subprocess.Popen(command, cwd="/", stdout=subprocess.DEVNULL, stderr=file,
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and not ready():
        require(time.monotonic() < deadline, "the moment never came")
        time.sleep(0.005)
    time.sleep(rest)
    process.send_signal(how)
    status = process.wait(timeout=PATIENCE)
    return status, errors.read_text()


# ------------------------------------------------------------------------------ a full disk

def disk(trial: Trial) -> None:
    """On a file system that is too small a run is refused by name, until there is room."""
    name = trial.rng.choice(list(JOBS))
    copy_inputs(trial, name)
    place = trial.project / name / trial.rng.choice(("", "run", *(["models"] if name in SAVING else [])))
    size, growth = trial.rng.randint(4, 60), trial.rng.uniform(1.1, 2)
    place.mkdir(parents=True, exist_ok=True)
    what = f"{name}, {place.relative_to(trial.project)} on a disk of"
    mount = shutil.which("mount")
    if not mount or subprocess.run([mount, "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", place],
                                   capture_output=True).returncode:
        raise Skipped("no file system may be mounted here")
    try:
        for _ in range(30):
            what += f" {size}k"
            trial.what = what
            ended = run(trial.project, name, JOBS[name].values)
            if ended.status == 0:
                break
            require_sentence(name, ended, (2,), ["No space left on device"])
            require(name in ended.errors[0], f"no file is named: {ended.errors[0]}")
            size = int(size * growth) + 4
            subprocess.run([mount, "-o", f"remount,size={size}k", place], check=True)
        require(ended.status == 0, f"with room enough it still ends in {ended.status}; {' | '.join(ended.errors)}")
        require_same(trial, name)
        require_no_strays(trial.project)
    finally:
        subprocess.run(["umount", place], check=True)


# ------------------------------------------------------------------------------ at once

def at_once(trial: Trial) -> None:
    """Three processes, together or nearly so, on one config, one model_dir or one data_dir: one wins, or all."""
    shared = trial.rng.choice(("config", "config", "model_dir", "data_dir"))
    names = {"config": tuple(JOBS), "model_dir": SAVING, "data_dir": ("sentences", "training")}[shared]
    name = trial.rng.choice(names)
    copy_inputs(trial, name)
    values = [JOBS[name].values | changed(shared, name, number) for number in range(3)]
    pauses = [trial.rng.choice((0, trial.rng.uniform(0, 1))) for _ in values]
    trial.what = f"{name}, one {shared}, started after {', '.join(f'{pause:.2f} s' for pause in pauses)}"
    ends = together(trial, name, values, pauses)
    for ended in ends:
        if ended.status:
            require_sentence(name, ended, (2,), ["another process", "another run", "other data"])
    won = [number for number, ended in enumerate(ends) if ended.status == 0]
    enough = won if shared == "config" else len(won) == (3 if (shared, name) == ("data_dir", "training") else 1)
    require(enough, f"{len(won)} of three finished: {ends}")
    require_no_strays(trial.project)
    if shared == "config":
        return require_same(trial, name)
    runs = sorted(path.parent.name for path in (trial.project / name).glob("*/results.csv"))
    finished = {f"run_{number}" for number in won}  # of data, files that no seed changes are everybody's
    require(finished <= set(runs) and (shared == "data_dir" or finished == set(runs)), f"tables in {runs}, not {won}")
    if shared == "model_dir":
        found, wanted = ({path: content for path, content in all_saved.items() if "/models/" in path}
                         for all_saved in (saved(trial.project, name), trial.bench.saved[name]))
        require(found == wanted, "the models are other than those of a run alone")


def changed(shared: str, name: str, number: int) -> dict:
    """In what the config of each of three differs."""
    if shared == "config":
        return {}
    seed = {"sentences": {"data_seed": number}, "training": {"model_seed_list": [number]}}
    return {"results_dir": f"{name}/run_{number}"} | (seed[name] if shared == "data_dir" else {})


def together(trial: Trial, name: str, values: list[dict], pauses: list[float]) -> list:
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(len(values)), context.Queue()

    def compete(number: int) -> None:
        barrier.wait()
        time.sleep(pauses[number])
        queue.put((number, run(trial.project, name, values[number], file=f"c{number}.yaml")))

    started = [context.Process(target=compete, args=(number,)) for number in range(len(values))]
    for process in started:
        process.start()
    ends = dict(queue.get(timeout=PATIENCE) for _ in started)
    for process in started:
        process.join()
    return [ends[number] for number in sorted(ends)]
