"""Files written in one step, so that a kill leaves the old one or the new one; nothing is ever deleted."""

import csv
import errno
import glob
import io
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

Row = dict[str, Any]


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
            return
        set_aside(target)
    temporary.rename(target)


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say which file could not be written, which errors of a full disk, Python's and safetensors', do not.

    Raises:
        OSError: naming the path.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except SafetensorError as error:
        raise OSError(errno.EIO, f"it cannot be written ({error})", str(path)) from error


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """A path of this process's own in the target's folder, to write to and move to the target.

    Where that fails, what was written is removed: a full disk has room again. Errors as naming.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    name, host = f".{target.name}.", f"@{socket.gethostname()}.tmp"
    for rest in target.parent.glob(f"{glob.escape(name)}*{glob.escape(host)}"):  # of processes of this machine
        process = rest.name[len(name):-len(host)]
        if process.isdecimal() and not is_at_work(int(process)):
            remove(rest)
    temporary = target.with_name(f"{name}{os.getpid()}{host}")
    with naming(target):
        try:
            yield temporary
        finally:
            remove(temporary)


def is_at_work(process: int) -> bool:
    """Whether another process of this machine has that number; files with our own number are from an earlier one."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return process != os.getpid()


def copy_missing(pairs: Iterable[tuple[Path, Path]]) -> None:
    """Copy the first file of each pair, where there is one, to the second, where there is none."""
    for file, target in pairs:
        if file.exists() and not target.exists():
            with writing(target) as temporary:
                shutil.copyfile(file, temporary)
                temporary.replace(target)


def remove(temporary: Path) -> None:
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step, so that a kill leaves the old one or the new one."""
    with writing(path) as temporary:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def cell(value: Any) -> str:
    """A value as the tables show it: full precision, an empty cell for a missing value."""
    if value is None:
        return ""
    return str(value.item() if hasattr(value, "item") else value)


def write_table(path: Path, rows: list[Row], last: str | None = None) -> None:
    """Write tidy rows as CSV; columns in order of appearance, `last` at the end."""
    text = io.StringIO()
    put_rows(text, rows, last)
    write_text(path, text.getvalue())


def put_rows(text: io.StringIO, rows: list[Row], last: str | None) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row if name != last))
    if last:
        names.append(last)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[cell(row.get(name)) for name in names] for row in rows])


def read_table(path: Path) -> list[Row]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))
