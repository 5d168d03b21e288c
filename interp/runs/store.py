"""The run directory: a run that explains itself, goes on after a kill, and may be shared by several processes.

    config.yaml         the config as resolved
    run.json            digests of the config and of what the run reads; of each process machine, start, end, status
    settings/KEY.json   a setting's metrics, further tables and seconds: the file makes it finished
    *.csv               collated from settings/, in the config's order; results.csv has one row a setting
"""

import hashlib
import json
import platform
import shlex
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from pydantic import ValidationError

from interp.runs.config import PROJECT_ROOT, BadInput, ScriptConfig, project_path, read_yaml, shown
from interp.runs.files import Row, check_folder, set_aside, write_table, write_text
from interp.runs.settings import Setting, setting_name

RESULTS, CONFIG, RECORD = "results.csv", "config.yaml", "run.json"
FREE_KEYS = {"device", "results_dir", "layers_at_once", "spread", "cache_gib"}  # no number depends on them
PACKAGES = ("torch", "transformers", "transformer-lens", "numpy", "pandas", "scikit-learn", "safetensors")


class RunDirectory:
    """A run's folder. Reading it raises BadInput where a file is damaged."""

    def __init__(self, path: Path):
        self.path = path
        self.turn = FileLock(path / ".turn.lock")  # for what several processes write
        self.next_collating = 0.0

    def table(self, name: str):
        """A table of the run, a pandas.DataFrame."""
        import pandas as pd  # here, as --help should not wait for it
        return pd.read_csv(self.path / f"{name}.csv")

    def record(self) -> dict[str, Any]:
        """run.json: config, inputs (SHA-256 by path), sessions (a dict for each process)."""
        return read_json(self.path / RECORD, {"config", "inputs", "sessions"}) or {"inputs": {}, "sessions": []}

    def file(self, setting: Setting) -> Path:
        return self.path / "settings" / f"{setting_name(setting)}.json"

    def finished(self, setting: Setting) -> dict[str, Any] | None:
        """What `save` wrote; None where the setting is not finished."""
        found = read_json(self.file(setting), {"setting", "metrics", "tables", "seconds"})
        if found and found["setting"] != setting._asdict():
            raise BadInput(f"results_dir: {shown(self.file(setting))} is of another setting; move it away.")
        return found

    def save(self, setting: Setting, metrics: Row, tables: dict[str, list[Row]], seconds: float) -> None:
        """Write a finished setting; numbers may be numpy's or torch's."""
        found = {"setting": setting._asdict(), "metrics": metrics, "tables": tables, "seconds": round(seconds, 2)}
        write_text(self.file(setting), json.dumps(found, default=lambda value: value.item()) + "\n")

    def collate(self, settings: list[Setting], sparingly: bool = False) -> None:
        """Write the tables of what is finished; sparingly: only where that takes less than a tenth of the time."""
        start = time.monotonic()
        if sparingly and start < self.next_collating:
            return
        tables: dict[str, list[Row]] = {}
        with self.turn:  # a slower process must not put an older state in place of a newer one
            for found in filter(None, map(self.finished, settings)):
                row = found["metrics"] | {"seconds": found["seconds"]}
                for name, rows in (found["tables"] | {"results": [row]}).items():
                    tables.setdefault(name, []).extend(found["setting"] | row for row in rows)
            for name in sorted(tables, key="results".__eq__):  # results.csv last, so that is_collated can go by it
                write_table(self.path / f"{name}.csv", tables[name], last=("seconds",) * (name == "results"))
        self.next_collating = time.monotonic() + 10 * (time.monotonic() - start)

    def is_collated(self, settings: list[Setting]) -> bool:
        """Whether results.csv is as new as all that is finished, which it may not be after a kill."""
        files = [file for file in [self.path / RESULTS, *map(self.file, settings)] if file.exists()]
        return not files or max(files, key=lambda file: file.stat().st_mtime_ns).name == RESULTS

    def refuse_changed(self, inputs: dict[str, str]) -> None:
        """A run goes on only with the models and data it began with; raises BadInput naming what changed."""
        known = self.record()["inputs"]
        if changed := [name for name in inputs if known.get(name, inputs[name]) != inputs[name]]:
            raise BadInput(f"results_dir: {shown(self.path)} holds a run of another {changed[0]}; give another "
                           "results_dir, or --overwrite, which moves the old run aside.")

    @contextmanager
    def session(self, config: ScriptConfig, settings: list[Setting], inputs: dict[str, str], machine: Row
                ) -> Iterator[None]:
        """Note in run.json that a process works on the run, and how it ended; collate the tables at its end."""
        failed, commit = subprocess.getstatusoutput(
            f"git -C {shlex.quote(str(PROJECT_ROOT))} describe --always --dirty --abbrev=40 --exclude='*'")
        mine = {"id": uuid.uuid4().hex[:8], "commit": None if failed else commit, **machine, "packages": {
            one.name: one.version for one in distributions() if one.name in PACKAGES} | {
            "python": platform.python_version()}}

        def note(status: str) -> None:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            mine.update(start=mine.get("start", now), end=now, status=status)
            with self.turn:
                self.refuse_changed(inputs)
                old = self.record()
                sessions = [session for session in old["sessions"] if session["id"] != mine["id"]] + [mine]
                digest = hashlib.sha256(config.model_dump_json(exclude=FREE_KEYS).encode()).hexdigest()
                write_text(self.path / RECORD, json.dumps({
                    "config": digest, "inputs": old["inputs"] | inputs, "sessions": sessions}, indent=2) + "\n")

        note("running")
        status = "failed"
        try:
            yield
            status = "done"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            note(status)
            self.collate(settings)


def read_json(file: Path, keys: set[str]) -> dict[str, Any] | None:
    """A JSON file with these keys, None where there is none; raises BadInput where it is something else."""
    if not file.exists():
        return None
    with suppress(ValueError, RecursionError, AttributeError):
        found = json.loads(file.read_bytes())
        if found.keys() == keys:
            return found
    raise BadInput(f"results_dir: {shown(file)} is damaged; move it away, and start the same command again.")


def digests(files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files, by path."""
    found = {}
    for path in files:
        with open(path, "rb") as file:
            found[shown(path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


# ------------------------------------------------------------------------------ begin, or go on

@contextmanager
def open_run(run: RunDirectory, config: ScriptConfig, artifacts: list[Path], shard: tuple[int, int], overwrite: bool
             ) -> Iterator[None]:
    """Begin or continue a run, or a shard of it; raises BadInput as check_run, or where another process does so."""
    if overwrite:
        with alone(*run.path.glob(".*lock")):
            for file in [*artifacts, *[run.path] * (run.path / CONFIG).exists()]:
                if file.exists():
                    set_aside(file)
    run.path.mkdir(parents=True, exist_ok=True)
    with alone(run.path / (".lock" if shard == (1, 1) else ".shard_{}_of_{}.lock".format(*shard))):
        with run.turn:
            check_run(config, artifacts)
            if not (run.path / CONFIG).exists():
                write_text(run.path / CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False,
                                                             allow_unicode=True))
        yield


@contextmanager
def alone(*locks: Path) -> Iterator[None]:
    try:
        with ExitStack() as held:
            for lock in locks:
                held.enter_context(FileLock(lock, blocking=False))
            yield
    except Timeout:
        raise BadInput(f"results_dir: another process is at work in {shown(locks[0].parent)}; wait for it to end or "
                       "give another results_dir.") from None


def check_run(config: ScriptConfig, artifacts: Iterable[Path] = (), overwrite: bool = False) -> None:
    """Refuse what cannot be written, a results_dir that holds no run or another config's, and another run's artifacts.

    Raises:
        BadInput: naming the key, the path and what is wrong with it.
    """
    path = project_path(config.results_dir)
    check_folder("results_dir", path)
    for folder in {file.parent for file in artifacts}:
        check_folder("model_dir", folder)
    files = path.exists() and [file for file in path.iterdir() if not file.name.startswith(".")]
    others = [file for file in artifacts if file.exists()]
    if not (path / CONFIG).exists():  # looked at last: another process writes it before all else
        if files:
            raise BadInput(f"results_dir: {shown(path)} is not empty and holds no run; give another results_dir.")
        if others and not overwrite:
            raise BadInput(f"model_dir: {shown(others[0])} is there already, from another run; give another model_dir, "
                           "or --overwrite, which sets it aside.")
    elif not overwrite:
        earlier = (path / RESULTS).exists() and not (path / "settings").is_dir()
        if earlier or (changed := changed_keys(path, config)):
            what = "of an earlier version" if earlier else f"with another {', '.join(changed)}"
            raise BadInput(f"results_dir: {shown(path)} holds a run {what}; give another results_dir, or --overwrite, "
                           "which moves the old run aside.")


def changed_keys(folder: Path, config: ScriptConfig) -> list[str]:
    """The keys in which a run's config differs from another, but for those that change no number."""
    old, new = stored_config(folder), config.model_dump(mode="json")
    with suppress(ValidationError, TypeError):
        old = type(config)(**old).model_dump(mode="json")  # with keys that are newer than the run
    return [key for key in new if key not in FREE_KEYS and old.get(key) != new[key]]


# ------------------------------------------------------------------------------ for who reads runs

def stored_config(folder: Path) -> dict[str, Any]:
    """A run's config, {} where there is none; raises BadInput where it is damaged."""
    return read_yaml(folder / CONFIG) if (folder / CONFIG).exists() else {}


def tables_below(results: Path, pattern: str) -> list[Path]:
    """The results.csv of the runs whose folders match."""
    return sorted(results.glob(f"{pattern}/{RESULTS}"))
