"""The run directory: a run that explains itself, continues after a kill and deletes nothing.

    config.yaml   the config as resolved
    run.json      code and package versions, device, threads, start, end, status
    results.csv   one row per setting, written as soon as the setting is done
    *.csv         further tables of the same run, keyed by the same setting columns
"""

import csv
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from interp.config import PROJECT_ROOT, BadInput, ScriptConfig, project_path, require_file, shown

PACKAGES = ("torch", "transformers", "numpy", "pandas", "scikit-learn", "safetensors")
FREE_KEYS = ("device", "results_dir", "layers_at_once")  # where and in what portions: no figure depends on them
RESULTS, CONFIG, RECORD = "results", "config.yaml", "run.json"

Row = dict[str, Any]


class RunDirectory:
    """One config's folder of results. Use `open_run` to get one.

    setting_names: the columns that identify a setting. settings: all of the config's, in order.
    side_tables: the tables besides results.csv in which every finished setting has rows.

    Raises:
        BadInput: one of its tables cannot be read.
    """

    def __init__(self, path: Path, setting_names: tuple[str, ...], settings: list[Row],
                 side_tables: Sequence[str] = ()):
        self.path = path
        self.setting_names = setting_names
        self.needed = (RESULTS, *side_tables)
        self.order = {self.key(setting): number for number, setting in enumerate(settings)}
        self.tables = {file.stem: rows for file in sorted(path.glob("*.csv"))
                       if (rows := self.read(file)) is not None}
        # `seconds` is the last cell: a row without it was cut off by whoever edited the table
        self.done = {self.key(row) for row in self.tables.get(RESULTS, []) if row.get("seconds")}
        for name in side_tables:  # where one was lost, its settings are computed again
            self.done &= {self.key(row) for row in self.tables.get(name, [])}
        for name, rows in self.tables.items():  # a setting cut off before its results row came is not done
            self.tables[name] = [row for row in rows if self.key(row) in self.done]

    def read(self, file: Path) -> list[Row] | None:
        """A table of this run; None for a CSV that somebody else put here."""
        try:
            rows = read_table(file)
            if all(name in row for row in rows for name in self.setting_names):
                return rows
        except (csv.Error, UnicodeDecodeError):
            pass
        if file.stem in self.needed:
            raise BadInput(f"results_dir: {shown(file)} is damaged (its settings cannot be read); move it away.")
        return None

    def key(self, row: Row) -> tuple[str, ...]:
        """What identifies a row's setting, however its numbers are written."""
        return tuple(plain_number(cell(row[name])) for name in self.setting_names)

    def has(self, setting: Row) -> bool:
        return self.key(setting) in self.done

    def record(self, setting: Row, row: Row, tables: dict[str, list[Row]]) -> None:
        """Write a finished setting: side tables first, so that its results row means done."""
        key = self.key(setting)
        for name, rows in {**tables, RESULTS: [row]}.items():
            others = [old for old in self.tables.get(name, []) if self.key(old) != key]
            table = sorted(others + [setting | new for new in rows],
                           key=lambda entry: self.order.get(self.key(entry), len(self.order)))
            self.tables[name] = table
            write_table(self.path / f"{name}.csv", table, last="seconds" if name == RESULTS else None)
        self.done.add(key)


def plain_number(text: str) -> str:
    try:
        return str(float(text))
    except ValueError:
        return text


def check_results_dir(config: ScriptConfig, overwrite: bool) -> None:
    """Refuse a results_dir that cannot be written, that is no run's, or that is another config's.

    Raises:
        BadInput: as said.
    """
    path = project_path(config.results_dir)
    check_folder("results_dir", path)
    begun = (path / CONFIG).exists()
    if path.exists() and not begun and any(not file.name.startswith(".") for file in path.iterdir()):
        raise BadInput(f"results_dir: {shown(path)} is not empty and holds no run; give another results_dir.")
    if begun and not overwrite:
        refuse_other_config(path / CONFIG, config)


def check_folder(key: str, path: Path) -> None:
    """Refuse a folder that cannot be made or written.

    Raises:
        BadInput: as said.
    """
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir():
        raise BadInput(f"{key}: {shown(existing)} is a file, not a folder.")
    if not os.access(existing, os.W_OK):
        raise BadInput(f"{key}: {shown(existing)} cannot be written to.")


def check_data_file(file: Path, text: str) -> None:
    """Refuse a data file that cannot be written, or that is there and holds anything but this text.

    Raises:
        BadInput: as said.
    """
    check_folder("data_dir", file.parent)
    if file.exists() and (not file.is_file() or file.read_bytes() != text.encode()):
        raise BadInput(f"data_dir: {shown(file)} holds other data than this config makes; "
                       "give another data_dir or move the file away.")


@contextmanager
def open_run(config: ScriptConfig, setting_names: tuple[str, ...], settings: list[Row],
             side_tables: Sequence[str] = (), overwrite: bool = False):
    """Open a config's run directory, alone, to begin it or to go on with it; tables as in RunDirectory.

    Raises:
        BadInput: another process works in it, or it holds a run of a different config.
    """
    path = project_path(config.results_dir)
    if overwrite and path.exists():
        with locked(path):
            set_aside(path)
    path.mkdir(parents=True, exist_ok=True)
    with locked(path):
        check_results_dir(config, overwrite=False)
        directory = RunDirectory(path, setting_names, settings, side_tables)
        if not (path / CONFIG).exists():
            write_text(path / CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False,
                                                     allow_unicode=True))
        yield directory


@contextmanager
def recorded(directory: RunDirectory, device: torch.device, inputs: dict[str, str]):
    """Keep account in run.json of a start: with what, from when to when, and how it ended."""
    file = directory.path / RECORD
    record = begin_record(file, device, inputs)
    try:
        yield
    except BaseException as error:
        end_record(file, record, "interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
        raise
    end_record(file, record, "done")


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
    """A run goes on only under the config it began with, but for keys that change no number."""
    try:
        old = yaml.safe_load(stored.read_text(encoding="utf-8"))
        if not isinstance(old, dict):
            raise ValueError
    except (OSError, ValueError, yaml.YAMLError):
        raise BadInput(f"results_dir: {shown(stored)} is damaged, so the run cannot go on; give another "
                       "results_dir, or --overwrite, which moves the old run aside.") from None
    try:
        old = type(config)(**old).model_dump(mode="json")  # fill in keys newer than that run
    except (ValidationError, TypeError):
        pass
    new = config.model_dump(mode="json")
    changed = [key for key in new if key not in FREE_KEYS and old.get(key) != new[key]]
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


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """Save tensors as safetensors in one step; `about`, whatever JSON can hold, goes into the file."""
    temporary = temporary_beside(path)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    temporary.write_bytes(save(tensors, {"about": json.dumps(about)}))
    place(temporary, path)


def load_tensors(what: str, path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What save_tensors saved.

    Raises:
        BadInput: no such file, or not a `what` ("circuit", ...) that this project saved.
    """
    file = require_file(what, str(path))
    try:
        with safe_open(file, framework="pt") as stored:
            about = json.loads(stored.metadata()["about"])
            return {name: stored.get_tensor(name) for name in stored.keys()}, about
    except (SafetensorError, KeyError, TypeError, OSError, json.JSONDecodeError):
        raise BadInput(f"{shown(file)} is not a saved {what}.") from None


def save_state(file: Path, **state: Any) -> None:
    """Save what an interrupted computation needs to go on, in one step."""
    temporary = temporary_beside(file)
    torch.save(state, temporary)
    temporary.replace(file)


def load_state(file: Path) -> dict[str, Any] | None:
    """What save_state saved; None where nothing was.

    Raises:
        BadInput: the file is damaged.
    """
    if not file.exists():
        return None
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # torch.load raises anything on a damaged file
        raise BadInput(f"{shown(file)} is damaged; move it away, and the training begins anew.") from None


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
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def digests(files: dict[str, list[Path]]) -> dict[str, str]:
    """SHA-256 of some files together, by name: tells whether they changed."""
    found = {}
    for name, paths in files.items():
        whole = hashlib.sha256()
        for path in paths:
            with open(path, "rb") as file:
                whole.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        found[name] = whole.hexdigest()
    return found


def refuse_changed_inputs(path: Path, inputs: dict[str, str]) -> None:
    """A run goes on only with the models and data it began with: its rows would not be of the same thing.

    Raises:
        BadInput: naming what changed.
    """
    known = read_record(path / RECORD).get("inputs", {})
    for name, digest in inputs.items():
        if known.get(name, digest) != digest:
            raise BadInput(f"results_dir: {shown(path)} holds a run of {name}, which has changed since; give another "
                           "results_dir, or --overwrite, which moves the old run aside.")


def read_record(path: Path) -> Row:
    """run.json; empty where there is none, or a kill or an editor left something else."""
    try:
        record = json.loads(path.read_text())
        return record if isinstance(record, dict) else {}
    except (OSError, ValueError):
        return {}


def begin_record(path: Path, device: torch.device, inputs: dict[str, str]) -> Row:
    """This start's account; those of earlier starts, whose rows stay, go under `earlier`."""
    last = read_record(path)
    earlier = [*last.pop("earlier", []), last] if last else []
    record = {
        "status": "running",
        "start": now(),
        "end": None,
        "code_version": code_version(),
        "packages": {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES},
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "inputs": last.get("inputs", {}) | inputs,
        "earlier": earlier,
    }
    write_text(path, json.dumps(record, indent=2) + "\n")
    return record


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # LEACE_environment.yml has not all of them
        return None


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
