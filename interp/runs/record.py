"""run.json: with what, from when to when a run was made, and how it ended; and whether what it reads has changed."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from interp.runs.config import PROJECT_ROOT, BadInput, shown
from interp.runs.files import Row, write_text

PACKAGES = ("torch", "transformers", "transformer-lens", "numpy", "pandas", "scikit-learn", "safetensors")
RECORD = "run.json"


@contextmanager
def recorded(folder: Path, machine: dict[str, Any], inputs: dict[str, str]):
    """Record a start in run.json: with what, from when to when, and how it ended.

    The records of earlier starts, whose rows stay, go under `earlier`. Yields a function that notes what files and
    folders were written, with their digests, and rows of tables, of which it is given the digests.
    """
    last = account_of(folder)
    rows = last.pop("rows", {})
    earlier = [*last.pop("earlier", []), last] if last else []
    record: dict[str, Any] = {
        "status": "running",
        "start": now(),
        "end": None,
        "code_version": code_version(),
        "packages": {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES},
        **machine,
        "inputs": last.get("inputs", {}) | inputs,
        "written": last.get("written", {}),
        "rows": rows,
        "earlier": earlier,
    }

    def write(**changes: str) -> None:
        write_text(folder / RECORD, json.dumps(record | changes, indent=2) + "\n")

    def note(paths: list[Path], rows: dict[str, str]) -> None:
        record["written"] |= digests({shown(path): files_of(path) for path in paths})
        record["rows"] |= rows
        write()

    write()
    try:
        yield note
    except BaseException as error:
        with suppress(OSError):  # the message is about why the run failed
            try:
                write(status="interrupted" if isinstance(error, KeyboardInterrupt) else "failed", end=now())
            except OSError:
                say_failed(folder / RECORD)
        raise
    write(status="done", end=now())


def say_failed(file: Path) -> None:
    """Written in place, with the same number of bytes: a full disk has no room for another file."""
    text = file.read_text().replace('"status": "running"', '"status": "failed" ', 1)
    with open(file, "r+") as record:
        record.write(text)


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


def files_of(path: Path) -> list[Path]:
    """A file, or all that are in a folder."""
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def as_written(folder: Path, paths: list[Path], details: Sequence[Path] = ()) -> bool:
    """Whether files and folders are there, and match the digests in the run's record, if it has them.

    details: which need not be there where the record has nothing of them.
    """
    known = account_of(folder).get("written", {})
    return all(path.exists() and known.get(shown(path)) in (None, *digests({"": files_of(path)}).values())
               for path in [*paths, *(path for path in details if shown(path) in known)])


def refuse_changed_inputs(path: Path, inputs: dict[str, str]) -> None:
    """A run continues only with the models and data it began with; otherwise its rows could not be compared.

    Raises:
        BadInput: naming what changed.
    """
    known = account_of(path).get("inputs", {})
    for name, digest in inputs.items():
        if known.get(name, digest) != digest:
            raise BadInput(f"results_dir: {shown(path)} holds a run of {name}, which has changed since; give another "
                           "results_dir, or --overwrite, which moves the old run aside.")


def account_of(folder: Path) -> Row:
    """A run's account, without what an editor has given another form."""
    forms = {"inputs": dict, "written": dict, "rows": dict, "earlier": list}
    return {name: value for name, value in read_record(folder / RECORD).items()
            if isinstance(value, forms.get(name, object))}


def read_record(path: Path) -> Row:
    """What is recorded in a JSON file; nothing where there is none, or a kill or an editor left something else."""
    try:
        record = json.loads(path.read_text())
        return record if isinstance(record, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # LEACE_environment.yml has not all of them
        return None


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
