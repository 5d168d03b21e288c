"""Files written in one step, so that a kill leaves the old one or the new one; nothing is ever deleted."""

import csv
import io
import os
import shutil
from pathlib import Path
from typing import Any

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
    return str(value.item() if hasattr(value, "item") else value)


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


