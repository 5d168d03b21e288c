"""Files written in one step, so that a kill leaves the old one or the new one; nothing is ever deleted."""

import csv
import io
import itertools
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError

from interp.runs.config import BadInput, shown

Row = dict[str, Any]


def set_aside(path: Path) -> None:
    """Move a file or folder to the first free NAME.old-N beside it."""
    names = (path.with_name(f"{path.name}.old-{number}") for number in itertools.count(1))
    path.rename(next(name for name in names if not name.exists()))


def place(temporary: Path, target: Path) -> None:
    """Move a freshly written file or folder to its place, unless the same is there; raises BadInput if another is."""
    with FileLock(target.with_name(f".{target.name}.lock")) as lock:  # another run may want to write it too
        if not target.exists():
            temporary.rename(target)
        elif contents(temporary) != contents(target):
            raise BadInput(f"{shown(target)} is there already and is not what this run makes; move it away.")
        Path(lock.lock_file).unlink()


def contents(path: Path) -> dict[Path, bytes]:
    return {file.relative_to(path): file.read_bytes() for file in [path, *path.rglob("*")] if file.is_file()}


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """A path to write to and to move to the target. An OSError names the target, which those of a full disk do not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
    except (OSError, SafetensorError) as error:
        raise OSError(None, getattr(error, "strerror", None) or str(error), str(target)) from error
    finally:  # where writing failed, a full disk has room again
        shutil.rmtree(temporary, ignore_errors=True) if temporary.is_dir() else temporary.unlink(missing_ok=True)


def write(path: Path, content: bytes | memoryview, replaces: bool = True) -> None:
    """Write a file. replaces: what is there; otherwise it must be the same, or BadInput is raised."""
    with writing(path) as temporary:
        temporary.write_bytes(content)
        temporary.replace(path) if replaces else place(temporary, path)


def write_text(path: Path, text: str) -> None:
    write(path, text.encode())


def write_table(path: Path, rows: list[Row]) -> None:
    """Write rows as CSV: columns in order of appearance, an empty cell for what is missing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def check_folder(key: str, path: Path) -> None:
    """Refuse a folder that cannot be made or written; raises BadInput naming the key."""
    existing = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    try:
        TemporaryFile(dir=existing).close()  # root may write everywhere, but not in /proc
    except OSError:
        raise BadInput(f"{key}: {shown(existing)} is a file, or a folder that cannot be written to.") from None


def check_data_files(files: dict[Path, str]) -> None:
    """Refuse data files that cannot be written, or are there and hold other texts than these; raises BadInput."""
    for file, text in files.items():
        check_folder("data_dir", file.parent)
        if file.exists() and (not file.is_file() or file.read_bytes() != text.encode()):
            raise BadInput(f"data_dir: {shown(file)} holds other data; give another data_dir or move it away.")


def write_missing(files: dict[Path, str]) -> None:
    """Write those data files that are not there; raises BadInput where others are."""
    check_data_files(files)
    for file, text in files.items():
        if not file.exists():
            write(file, text.encode(), replaces=False)
