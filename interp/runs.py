"""The run directory: a run that explains itself, continues after a kill and deletes nothing.

    config.yaml   the config as resolved
    run.json      code and package versions, device, threads, start, end, status
    results.csv   one row per setting, written as soon as the setting is done
    *.csv         further tables of the same run, keyed by the same setting columns
"""

import csv
import io
import json
import os
import platform
import shutil
import subprocess
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from pydantic import ValidationError

from interp.config import PROJECT_ROOT, BadInput, ScriptConfig, project_path, shown

PACKAGES = ("torch", "transformers", "numpy", "pandas", "scikit-learn", "safetensors")
RESULTS = "results"

Row = dict[str, Any]


class RunDirectory:
    """One config's folder of results. Use `open_run` to get one."""

    def __init__(self, path: Path, setting_names: tuple[str, ...]):
        self.path = path
        self.setting_names = setting_names
        self.tables = {file.stem: read_table(file) for file in path.glob("*.csv")}
        self.drop_unfinished()

    def key(self, row: Row) -> tuple[str, ...]:
        """What identifies a row's setting: its values as a CSV shows them."""
        return tuple(cell(row[name]) for name in self.setting_names)

    def has(self, setting: Row) -> bool:
        return self.key(setting) in {self.key(row) for row in self.tables.get(RESULTS, [])}

    def drop_unfinished(self) -> None:
        """Forget rows of side tables whose setting was cut off before its results row came."""
        for name, rows in self.tables.items():
            if name != RESULTS:
                self.tables[name] = [row for row in rows if self.has(row)]

    def record(self, row: Row, tables: dict[str, list[Row]]) -> None:
        """Write a finished setting: side tables first, so that its results row means done."""
        for name, rows in tables.items():
            self.tables.setdefault(name, []).extend(rows)
            write_table(self.path / f"{name}.csv", self.tables[name])
        self.tables.setdefault(RESULTS, []).append(row)
        write_table(self.path / f"{RESULTS}.csv", self.tables[RESULTS], last="seconds")


@contextmanager
def open_run(config: ScriptConfig, setting_names: tuple[str, ...], device: torch.device,
             overwrite: bool = False):
    """Open a config's run directory, alone, to begin it or to go on with it.

    Raises:
        BadInput: another process works in it, or it holds a run of a different config.
    """
    path = project_path(config.results_dir)
    if path.exists() and not path.is_dir():
        raise BadInput(f"results_dir: {shown(path)} is a file, not a folder.")
    if overwrite and path.exists():
        with locked(path):
            set_aside(path)
    path.mkdir(parents=True, exist_ok=True)
    with locked(path):
        refuse_other_config(path / "config.yaml", config)
        write_text(path / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        record = begin_record(path / "run.json", device)
        try:
            yield RunDirectory(path, setting_names)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            end_record(path / "run.json", record, "interrupted" if interrupted else "failed")
            raise
        end_record(path / "run.json", record, "done")


@contextmanager
def locked(path: Path):
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise BadInput(f"results_dir: another process is at work in {shown(path)}; "
                       "wait for it to end or give another results_dir.") from None
    try:
        yield
    finally:
        lock.release()


def refuse_other_config(stored: Path, config: ScriptConfig) -> None:
    """A run goes on only under the config it began with; the device may change."""
    if not stored.exists():
        return
    old = yaml.safe_load(stored.read_text()) or {}
    try:
        old = type(config)(**old).model_dump(mode="json")  # fill in keys newer than that run
    except (ValidationError, TypeError):
        pass
    new = config.model_dump(mode="json")
    changed = [key for key in new if key != "device" and old.get(key) != new[key]]
    if changed:
        raise BadInput(
            f"results_dir: {shown(stored.parent)} holds a run with another "
            f"{', '.join(changed)}; give another results_dir, or --overwrite, which moves "
            "the old run aside.")


def set_aside(path: Path) -> Path:
    """Move a file or folder to the first free NAME.old-N beside it; nothing is deleted."""
    number = 1
    while (target := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    path.rename(target)
    return target


def place(temporary: Path, target: Path) -> None:
    """Move a freshly written file or folder to its place in one step.

    What stands there is kept where it is the same to the byte, and set aside where it is not.
    """
    if target.exists():
        if contents(temporary) == contents(target):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()
            return
        set_aside(target)
    temporary.rename(target)


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def temporary_beside(target: Path) -> Path:
    """A path in the target's folder to write to before `place`, free of a killed run's rests."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    if temporary.is_dir():
        shutil.rmtree(temporary)
    return temporary


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step, so that a kill leaves the old one or the new one."""
    temporary = temporary_beside(path)
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def cell(value: Any) -> str:
    """A value as the tables show it: full precision, an empty cell for a missing value."""
    if value is None:
        return ""
    if isinstance(value, (torch.Tensor,)) or hasattr(value, "item"):
        value = value.item()
    return str(value)


def write_table(path: Path, rows: list[Row], last: str | None = None) -> None:
    """Write tidy rows as CSV; columns in order of appearance, `last` at the end."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != last))
    if last:
        names.append(last)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[cell(row.get(name)) for name in names] for row in rows])
    write_text(path, text.getvalue())


def read_table(path: Path) -> list[Row]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def begin_record(path: Path, device: torch.device) -> Row:
    earlier = json.loads(path.read_text()) if path.exists() else {}
    record = {
        "code_version": code_version(),
        "packages": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "starts": [*earlier.get("starts", []), now()],
        "end": None,
        "status": "running",
    }
    write_text(path, json.dumps(record, indent=2) + "\n")
    return record


def end_record(path: Path, record: Row, status: str) -> None:
    write_text(path, json.dumps(record | {"end": now(), "status": status}, indent=2) + "\n")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def code_version() -> str | None:
    """The commit of this checkout, marked where files differ from it; None outside of git."""
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(PROJECT_ROOT), *arguments], check=True,
                              capture_output=True, text=True).stdout.strip()
    try:
        return git("rev-parse", "HEAD") + ("-modified" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
