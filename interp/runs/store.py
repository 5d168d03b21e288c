"""The run directory: a run that explains itself, goes on after a kill, and may be shared by several processes.

    config.yaml         the config as resolved
    run.json            digests of the config and of what the run reads; of each process machine, start, end, status
    settings/KEY.json   a setting's metrics, further tables and seconds: the file makes it finished
    *.csv               collated from settings/, in the config's order; results.csv has one row a setting
"""

import hashlib
import json
import os
import platform
import re
import subprocess
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from interp.runs.config import PROJECT_ROOT, BadInput, ScriptConfig, project_path, read_yaml, shown
from interp.runs.files import Row, check_folder, set_aside, write_table, write_text
from interp.runs.settings import Setting, setting_name

RESULTS, CONFIG, RECORD = "results.csv", "config.yaml", "run.json"
OURS = re.compile(  # beside what a run is known by: locks, temporaries, marks of the workflow
    r"config\.yaml|\.(.*\.)?(lock|tmp)|\.(shard_\d+_of_\d+_)?complete")
FREE_KEYS = {"device", "results_dir", "layers_at_once", "spread", "cache_gib"}  # no number depends on them
PACKAGES = ("torch", "transformers", "transformer-lens", "numpy", "pandas", "scikit-learn", "safetensors")
GIT = ["git", "-C", str(PROJECT_ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
INSTEAD = "give another results_dir, or --overwrite, which moves the old run aside"


class RunDirectory:
    """A run's folder. Reading it raises BadInput where a file is damaged."""

    def __init__(self, path: Path):
        self.path = path
        self.turn = FileLock(path / ".turn.lock")  # for what several processes write
        self.begun = b""  # what config.yaml held when this process began

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

    def is_run(self) -> bool:
        """Whether a run wrote the folder: its settings or its record are there."""
        with suppress(BadInput):
            return (self.path / "settings").is_dir() or bool(self.record()["sessions"])
        return False

    def is_there(self) -> bool:
        """Whether config.yaml is what this process began with; it may have been deleted, or replaced."""
        return (self.path / CONFIG).is_file() and (self.path / CONFIG).read_bytes() == self.begun

    def collate(self, settings: list[Setting]) -> None:
        """Write the tables of what is finished."""
        tables: dict[str, list[Row]] = {}
        with self.turn:  # a slower process must not put an older state in place of a newer one
            for found in filter(None, map(self.finished, settings)):
                results = {"results": [found["metrics"] | {"seconds": found["seconds"]}]}
                for name, rows in (found["tables"] | results).items():
                    tables.setdefault(name, []).extend(found["setting"] | row for row in rows)
            for name in sorted(tables, key="results".__eq__):  # results.csv last, so that is_settled can go by it
                write_table(self.path / f"{name}.csv", tables[name])

    def is_settled(self, settings: list[Setting]) -> bool:
        """Whether the last process ended well, and results.csv is as new as config and settings; not after a kill."""
        files = [file for file in [self.path / RESULTS, self.path / CONFIG, *map(self.file, settings)] if file.exists()]
        return ([session["status"] for session in self.record()["sessions"]][-1:] == ["done"]
                and max(files, key=lambda file: file.stat().st_mtime_ns, default=self.path / RESULTS).name == RESULTS)

    def refuse_changed(self, inputs: dict[str, str]) -> None:
        """A run goes on only with the models and data it began with; raises BadInput naming what changed."""
        known = self.record()["inputs"]
        if changed := [name for name in inputs if known.get(name, inputs[name]) != inputs[name]]:
            raise BadInput(f"results_dir: {shown(self.path)} holds a run of another {changed[0]}; {INSTEAD}.")

    @contextmanager
    def session(self, config: ScriptConfig, settings: list[Setting], inputs: dict[str, str], device: dict[str, Any]
                ) -> Iterator[None]:
        """Note in run.json that a process works on the run, with what, and how it ended; collate at its end."""
        mine = {"id": uuid.uuid4().hex[:8], "status": "running", **device, "python": platform.python_version(),
                "packages": {one.name: one.version for one in distributions() if one.name in PACKAGES}}
        with suppress(OSError):  # without git there is no commit
            mine["commit"] = subprocess.run(GIT, capture_output=True, text=True).stdout.strip()

        def note() -> None:
            mine["end"] = datetime.now(UTC).isoformat(timespec="seconds")
            mine.setdefault("start", mine["end"])
            with self.turn:
                self.refuse_changed(inputs)
                old = self.record()
                sessions = [one for one in old["sessions"] if one["id"] != mine["id"]] + [mine]
                digest = hashlib.sha256(config.model_dump_json(exclude=FREE_KEYS).encode()).hexdigest()
                write_text(self.path / RECORD, json.dumps({
                    "config": digest, "inputs": old["inputs"] | inputs, "sessions": sessions}, indent=2) + "\n")

        note()
        mine["status"] = "failed"
        try:
            yield
            mine["status"] = "done"
        except KeyboardInterrupt:
            mine["status"] = "interrupted"
            raise
        finally:
            if self.is_there():
                self.collate(settings)
                note()


def read_json(file: Path, keys: set[str]) -> dict[str, Any] | None:
    """A JSON file with these keys, None where there is none; raises BadInput where it is something else."""
    if not file.exists():
        return None
    with suppress(ValueError, RecursionError, AttributeError):
        found = json.loads(file.read_bytes())
        if found.keys() == keys:
            return found
    raise BadInput(f"results_dir: {shown(file)} is damaged; move it away, and start the same command again.")


@contextmanager
def open_run(run: RunDirectory, config: ScriptConfig, artifacts: list[Path], shard: tuple[int, int], overwrite: bool
             ) -> Iterator[None]:
    """Begin, extend or continue a run, or a shard of it; raises BadInput as check_run, or if another process does."""
    content = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    try:
        if overwrite:
            with ExitStack() as locks:
                for lock in run.path.glob(".*lock"):
                    locks.enter_context(FileLock(lock, blocking=False))
                check_run(config, artifacts, overwrite)
                for file in [run.path] * (run.path / CONFIG).exists() + artifacts:
                    if file.exists():  # what was inside has moved with the run
                        set_aside(file)
        run.path.mkdir(parents=True, exist_ok=True)
        with run.turn, ExitStack() as locks:
            if check_run(config, artifacts):  # whoever knows the shorter lists would put its tables in place of ours
                for lock in {*run.path.glob(".*lock")} - {Path(run.turn.lock_file)}:
                    locks.enter_context(FileLock(lock, blocking=False))
                write_text(run.path / CONFIG, content)
        lock = run.path / (".lock" if shard == (1, 1) else ".shard_{}_of_{}.lock".format(*shard))
        with FileLock(lock, blocking=False):
            with run.turn:
                check_run(config, artifacts)
                if not (run.path / CONFIG).exists():
                    write_text(run.path / CONFIG, content)
                run.begun = (run.path / CONFIG).read_bytes()
            yield
    except Timeout:
        raise BadInput(f"results_dir: another process is at work in {shown(run.path)}; wait for it to end or give "
                       "another results_dir.") from None


def check_run(config: ScriptConfig, artifacts: Iterable[Path] = (), overwrite: bool = False) -> bool:
    """Refuse what cannot be written or is another run's, by BadInput; say whether the run's lists get more values."""
    path = project_path(config.results_dir)
    for folder in (Path("~").expanduser(), PROJECT_ROOT):
        if folder.resolve().is_relative_to(path.resolve()):
            raise BadInput(f"results_dir: {path} is or holds your home or this project; give another results_dir.")
    check_folder("results_dir", path)
    for folder in {file.parent for file in artifacts}:
        check_folder("model_dir", folder)
    others, inner = [file for file in artifacts if file.exists()], [
        project_path(folder).resolve() for key, folder in config if key in ("data_dir", "model_dir") and folder]
    foreign = [name for name in (os.listdir(path) if path.exists() else []) if not OURS.fullmatch(name)
               and not any(folder.is_relative_to((path / name).resolve()) for folder in inner)]
    begun = (path / CONFIG).exists()  # looked at last: another process writes it before all else
    if (foreign or overwrite and begun) and not (begun and RunDirectory(path).is_run()):
        raise BadInput(f"results_dir: {shown(path)} is not empty and holds no run; give another results_dir.")
    if others and not begun and not overwrite:
        raise BadInput(f"model_dir: {shown(others[0])} is there already, from another run; give another model_dir, or "
                       "--overwrite, which sets it aside.")
    if begun and not overwrite:
        old, fields = read_yaml(path / CONFIG), type(config).model_fields
        now = config.model_dump(mode="json", exclude=FREE_KEYS)
        before = {key: old.get(key, fields[key].default) for key in now}  # a key may be newer than the run
        changed = [key for key, value in before.items() if value != now[key] and not (
            key.endswith("_list") and isinstance(value, list) and all(one in (now[key] or ()) for one in value))]
        if changed:
            raise BadInput(f"results_dir: {shown(path)} holds a run with another {', '.join(changed)}; {INSTEAD}.")
        return before != now
    return False
