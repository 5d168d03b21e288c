"""Scripts that are killed."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from campaign.bench import CODE, JOBS, Trial, copy_project, require, require_same, run
from conftest import write_yaml

PATIENCE = 300  # seconds, for a machine that has other things to do


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
        require("Traceback" not in errors or early, errors)
        require(status in {0, -how, *[130, 1] * (how is signal.SIGINT)}, f"exit {status}; {errors.strip()}")
    ended = run(trial.project, name, JOBS[name].values)
    require(ended.status == 0 and not ended.errors, f"the last start: exit {ended.status}; {' | '.join(ended.errors)}")
    require_same(trial, name)
    record = json.loads((trial.project / name / "run/run.json").read_text())
    require(record["sessions"][-1]["status"] == "done", "its record does not say that it is done")


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
        require(time.monotonic() < deadline, "the moment never came")
        time.sleep(0.005)
    time.sleep(rest)
    process.send_signal(how)
    return process.wait(timeout=PATIENCE), errors.read_text()
