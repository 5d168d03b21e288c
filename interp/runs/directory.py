"""The run directory: a run that explains itself, continues after a kill and deletes nothing.

    config.yaml   the config as resolved
    run.json      code and package versions, device, threads, start, end, status
    results.csv   one row per setting, written as soon as the setting is done
    *.csv         further tables of the same run, keyed by the same setting columns
"""

import csv
import hashlib
import json
import os
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml
from filelock import FileLock, Timeout
from pydantic import ValidationError

from interp.runs.config import BadInput, ScriptConfig, project_path, shown
from interp.runs.files import Row, cell, naming, read_table, set_aside, write_table, write_text
from interp.runs.record import account_of
from interp.runs.settings import Setting

# where and in what portions: no figure depends on them
FREE_KEYS = ("device", "results_dir", "layers_at_once", "spread", "cache_gib", "cache_dir")
RESULTS, CONFIG = "results", "config.yaml"
PART = "part_"  # what folders of parts begin with (parts.py)


class RunDirectory:
    """One config's folder of results. Use `open_run` to get one.

    settings: all of the config's, in order; their names are the columns that identify one.
    side_tables: the tables besides results.csv in which every finished setting has rows.

    Raises:
        BadInput: one of its tables cannot be read.
    """

    def __init__(self, path: Path, settings: list[Setting], side_tables: Sequence[str]):
        self.path = path
        self.setting_names = settings[0]._fields
        self.needed = (RESULTS, *side_tables)
        self.order = {self.key(setting._asdict()): number for number, setting in enumerate(settings)}
        self.tables = {file.stem: rows for file in sorted(path.glob("*.csv"))
                       if (rows := self.read(file)) is not None}
        # `seconds` is the last cell: a row without it was cut off by whoever edited the table
        self.done = {self.key(row) for row in self.tables.get(RESULTS, []) if row.get("seconds")}
        for name in side_tables:  # where one was lost, its settings are computed again
            self.done &= {self.key(row) for row in self.tables.get(name, [])}
        for name in self.needed:  # and those of rows that were cut
            self.done -= {self.key(row) for row in cut_rows(path / f"{name}.csv", self.tables.get(name, []))}
        self.foreign = [name for name in self.needed  # a cell was changed, or a line came from elsewhere
                        if any(self.key(row) not in self.order for row in self.tables.get(name, []))]
        self.done &= self.order.keys()
        self.done -= self.changed(account_of(path).get("rows", {}))
        for name, rows in self.tables.items():  # a setting cut off before its results row came is not done
            self.tables[name] = [row for row in rows if self.key(row) in self.done]

    def read(self, file: Path) -> list[Row] | None:
        """A table of this run; None for a CSV that is not part of it."""
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
        return key_of(row, self.setting_names)

    def changed(self, known: dict[str, str]) -> set[tuple[str, ...]]:
        """The settings whose rows are not those that were written: known has the digests, where they are known."""
        rows: dict[str, list[Row]] = {}
        for name, table in self.tables.items():
            for row in table:
                rows.setdefault(label(name, self.key(row)), []).append(row)
        changed = {setting for setting in known if digest_of(rows.get(setting, [])) != known[setting]}
        tables = {setting.partition(" ")[0] for setting in known}
        return {key for key in self.done if any(label(name, key) in changed for name in tables)}

    def digests(self, setting: Setting, row: Row, tables: dict[str, list[Row]]) -> dict[str, str]:
        """The digests of a finished setting's rows, by table and setting."""
        own = setting._asdict()
        return {label(name, self.key(own)): digest_of([own | new for new in rows])
                for name, rows in {**tables, RESULTS: [row]}.items()}

    def has(self, setting: Setting) -> bool:
        return self.key(setting._asdict()) in self.done

    def record(self, setting: Setting, row: Row, tables: dict[str, list[Row]]) -> None:
        """Write a finished setting: side tables first, so that its results row means done."""
        key = self.key(setting._asdict())
        for name, rows in {**tables, RESULTS: [row]}.items():
            others = [old for old in self.tables.get(name, []) if self.key(old) != key]
            self.tables[name] = sorted(others + [setting._asdict() | new for new in rows],
                                       key=lambda entry: self.order[self.key(entry)])
            self.write(name)
        self.done.add(key)

    def adopt(self, other: "RunDirectory") -> None:
        """Take over the finished settings of a run of some of these settings that this one has not."""
        for name, rows in other.tables.items():
            new = [row for row in rows if self.key(row) not in self.done]
            self.tables[name] = sorted(self.tables.get(name, []) + new, key=lambda row: self.order[self.key(row)])
        for name in sorted(other.tables, key=RESULTS.__eq__):  # side tables first, as in `record`
            self.write(name)
        self.done |= other.done

    def write(self, name: str) -> None:
        write_table(self.path / f"{name}.csv", self.tables[name], last="seconds" if name == RESULTS else None)


def key_of(row: Row, names: Sequence[str]) -> tuple[str, ...]:
    """What identifies a row's setting, however its numbers are written."""
    return tuple(plain_number(cell(row[name])) for name in names)


def cut_rows(file: Path, rows: list[Row]) -> list[Row]:
    """The rows that lack cells or have too many; of a file that was cut in a row, that one and the one before it, which
    may be of the same setting."""
    cut = [row for row in rows if None in row or None in row.values()]
    return cut + (rows[-2:] if rows and not file.read_bytes().endswith(b"\n") else [])


def label(table: str, key: tuple[str, ...]) -> str:
    return " ".join((table, *key))


def digest_of(rows: list[Row]) -> str:
    """Tells whether rows have changed; empty cells, which the columns of other settings' rows bring, do not count."""
    cells = [sorted((str(name), cell(value)) for name, value in row.items() if cell(value)) for row in rows]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]


def plain_number(text: str) -> str:
    try:
        return str(float(text))
    except ValueError:
        return text


def check_results_dir(config: ScriptConfig, overwrite: bool) -> None:
    """Refuse a results_dir that cannot be written, that is no run's, or that is another config's; raises BadInput."""
    path = project_path(config.results_dir)
    check_folder("results_dir", path)
    foreign = path.exists() and any(not file.name.startswith((".", PART)) for file in path.iterdir())
    begun = (path / CONFIG).exists()  # asked last: another process writes it before anything else
    if foreign and not begun:
        raise BadInput(f"results_dir: {shown(path)} is not empty and holds no run; give another results_dir.")
    if begun and not overwrite:
        refuse_other_config(path / CONFIG, config)


def check_folder(key: str, path: Path) -> None:
    """Refuse a folder that cannot be made or written; raises BadInput."""
    existing = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not existing.exists():
        raise BadInput(f"{key}: {shown(existing)} is a link that leads nowhere.")
    if not existing.is_dir():
        raise BadInput(f"{key}: {shown(existing)} is a file, not a folder.")
    if not os.access(existing, os.W_OK):
        raise BadInput(f"{key}: {shown(existing)} cannot be written to.")


def check_data_files(files: dict[Path, str]) -> None:
    """Refuse data files that cannot be written, or that are there and hold anything but these texts.

    Raises:
        BadInput: naming the file and what is wrong with it.
    """
    for file, text in files.items():
        check_folder("data_dir", file.parent)
        if file.exists() and (not file.is_file() or file.read_bytes() != text.encode()):
            raise BadInput(f"data_dir: {shown(file)} holds other data than this config makes; "
                           "give another data_dir or move the file away.")


def write_missing(files: dict[Path, str]) -> None:
    """Write data files that are not there, or that somebody deleted; errors as check_data_files."""
    check_data_files(files)
    for folder in {file.parent for file in files if not file.exists()}:
        folder.mkdir(parents=True, exist_ok=True)
        own = {file: text for file, text in files.items() if file.parent == folder}
        with briefly_locked(folder):  # another process may have written since the check
            check_data_files(own)
            for file, text in own.items():
                if not file.exists():
                    write_text(file, text)


def refuse_foreign_files(results: Path, paths: list[Path]) -> None:
    """A run that has not begun must not find what it would write: that belongs to another run; raises BadInput."""
    for path in paths:
        if path.exists() and not is_begun(results):  # asked last: its config is written before any of them
            raise BadInput(f"model_dir: {shown(path)} is there already, from another run; give another model_dir, "
                           "or --overwrite, which sets it aside.")


def is_begun(results: Path) -> bool:
    """Whether a folder holds a run, as a whole or in parts."""
    return (results / CONFIG).exists() or any(results.glob(f"{PART}*/{CONFIG}"))


@contextmanager
def open_run(config: ScriptConfig, settings: list[Setting], side_tables: Sequence[str], overwrite: bool,
             artifacts: list[Path], wait: bool = False):
    """Open a config's run directory, exclusively, to begin or to continue it; tables as in RunDirectory.

    artifacts: the files and folders elsewhere that it may write, locked against other processes meanwhile.
    wait: for another process that works in it or writes an artifact, instead of refusing.

    Raises:
        BadInput: another process works in it or writes an artifact, or it holds a run of a different config.
    """
    path = project_path(config.results_dir)
    if overwrite and is_begun(path):
        with ExitStack() as locks:
            for folder in (path, *(file.parent for file in path.glob(f"{PART}*/{CONFIG}"))):
                locks.enter_context(locked(folder, wait))
            (set_aside(path) / ".lock").unlink()  # who waits at the old place locks nothing
    path.mkdir(parents=True, exist_ok=True)
    with locked(path, wait), held("model_dir", artifacts, wait):
        check_results_dir(config, overwrite=False)
        directory = RunDirectory(path, settings, side_tables)
        if not (path / CONFIG).exists():
            if not overwrite:
                refuse_foreign_files(path, artifacts)
            write_text(path / CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False,
                                                     allow_unicode=True))
        for name in directory.foreign:
            directory.write(name)
        yield directory


@contextmanager
def locked(path: Path, wait: bool = False):
    try:
        with FileLock(path / ".lock", blocking=wait):
            yield
    except (Timeout, FileNotFoundError) as error:
        if isinstance(error, FileNotFoundError) and error.filename != str(path / ".lock"):
            raise
        raise BadInput(f"results_dir: another process is at work in {shown(path)}; "
                       "wait for it to end or give another results_dir.") from None


@contextmanager
def briefly_locked(folder: Path):
    """Wait for exclusive access to a folder that several runs may write in; the lock file is removed afterwards."""
    lock = FileLock(folder / ".turn.lock")
    with lock:
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)


@contextmanager
def held(key: str, paths: list[Path], wait: bool = False):
    """Hold files and folders against other processes; of a folder, others may meanwhile write other ones.

    A process says what it holds in a hidden file, which it keeps locked: the lock of a process that died is free.

    Raises:
        BadInput: another process holds one of them, named after the key whose folder they are in.
    """
    with ExitStack() as own:
        for folder in sorted({path.parent for path in paths}):
            names = {path.name for path in paths if path.parent == folder}
            folder.mkdir(parents=True, exist_ok=True)
            while taken := hold(folder, names, own):
                if not wait:
                    raise BadInput(f"{key}: another process writes {shown(folder / min(taken))}; wait for it to end or "
                                   f"give another {key}.")
                time.sleep(1)
        yield


def hold(folder: Path, names: set[str], own: ExitStack) -> set[str]:
    """Hold some files of a folder until `own` ends; those that another process holds, if there are any."""
    with briefly_locked(folder):
        for file in folder.glob(".*.held"):
            try:
                with FileLock(file, blocking=False):
                    file.unlink()
            except Timeout:
                if taken := names & set(file.read_text().splitlines()):
                    return taken
        file = folder / f".{os.getpid()}@{socket.gethostname()}.held"
        own.enter_context(FileLock(file, blocking=False))
        own.callback(file.unlink, missing_ok=True)
        with naming(file):
            file.write_text("\n".join(names), encoding="utf-8")
    return set()


def refuse_other_config(stored: Path, config: ScriptConfig) -> None:
    """A run continues only with the config it began with, apart from keys that change no number."""
    changed = changed_keys(stored, config)
    if changed:
        raise BadInput(
            f"results_dir: {shown(stored.parent)} holds a run with another "
            f"{', '.join(changed)}; give another results_dir, or --overwrite, which moves "
            "the old run aside.")


def changed_keys(stored: Path, config: ScriptConfig) -> list[str]:
    """The keys in which a run's own config.yaml differs from a config, but for those that change no number.

    Raises:
        BadInput: the run's is damaged.
    """
    try:
        old = yaml.safe_load(stored.read_text(encoding="utf-8"))
        if not isinstance(old, dict):
            raise ValueError
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        raise BadInput(f"results_dir: {shown(stored)} is damaged, so the run cannot go on; give another "
                       "results_dir, or --overwrite, which moves the old run aside.") from None
    try:
        old = type(config)(**old).model_dump(mode="json")  # fill in keys newer than that run
    except (ValidationError, TypeError):
        pass
    new = config.model_dump(mode="json")
    return [key for key in new if key not in FREE_KEYS and old.get(key) != new[key]]
