"""What the report reads: runs with their accounts; and tables as the page shows them.

Whatever lies in the folder, a page must come of it: a file that cannot be read becomes a `Problem` with its name.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from analysis.method_figures import read_csv
from interp.runs.config import BadInput, read_yaml
from interp.runs.store import CONFIG, RECORD

ROWS_AT_MOST = 100  # of one table; the file has the rest
PASSED_OVER = ("figures", "times", "qualitative")  # folders that hold no runs

T = TypeVar("T")


class Problems(list[str]):
    """What could not be read, one sentence each; said on stderr too."""

    def add(self, sentence: str) -> None:
        if sentence not in self:
            print(sentence, file=sys.stderr)
            self.append(sentence)

    def attempt(self, what: str, make: Callable[..., T], *arguments: Any) -> T | None:
        """make(*arguments), or None and a problem: a damaged file costs the page what is made of it, and no more."""
        try:
            return make(*arguments)
        except (BadInput, OSError) as error:
            self.add(f"{what}: {error}")
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            # each is what some foreign table has a summary raise; anything else is a mistake of ours
            self.add(f"{what}: its contents are not what such a file holds ({type(error).__name__}: {error}).")
        return None


@dataclass(frozen=True)
class Table:
    """Text in cells. left_out: rows beyond those shown. common: what all rows have in common. folded: if longer.

    on_end: each row is a column of the one row that there is.
    """

    caption: str
    columns: list[str]
    rows: list[list[str]]
    left_out: int = 0
    common: str = ""
    folded: int = 12
    on_end: bool = False


@dataclass
class Run:
    """A run directory.

    name: relative to the results. id: its anchor in the page. settings: how many its config asks for, None if unknown.
    """

    name: str
    id: str = ""
    table: pd.DataFrame | None = None
    config: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    settings: int | None = None
    done: int = 0
    changed: float = 0  # when its results.csv was written last, in seconds

    @property
    def status(self) -> str:
        return status_of(self.record)

    @property
    def unfinished(self) -> str:
        """Why it is not finished, or nothing."""
        told = [why] if (why := why_unfinished(self.record)) else []
        if self.settings is not None and self.done < self.settings:
            told.append(f"{self.done} of {self.settings} settings have rows")
        elif self.table is None:
            told.append("no results.csv that can be read")
        return "; ".join(told)


def status_of(record: dict[str, Any]) -> str:
    return str(record.get("status", "no run.json"))


def why_unfinished(record: dict[str, Any]) -> str:
    """As a run's record has it; nothing where it is done, or has another word."""
    return {"running": f"running since {when(record.get('start'))}, or killed", "failed": "failed",
            "interrupted": "interrupted"}.get(status_of(record), "")


def walk(results: Path, problems: Problems) -> Iterator[tuple[Path, list[str], list[str]]]:
    """os.walk in order, through links too, but not where it has been, nor into what --overwrite set aside."""
    def unreadable(error: OSError) -> None:
        problems.add(f"{error.filename}: {error.strerror}.")

    seen = set[str]()
    for folder, folders, files in os.walk(results, followlinks=True, onerror=unreadable):
        if (whole := os.path.realpath(folder)) in seen:
            problems.add(f"{shown_name(Path(folder), results)}: a link makes it the same as a folder that is read "
                         "already.")
            folders.clear()
            continue
        seen.add(whole)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and ".old-" not in name)
        yield Path(folder), folders, sorted(files)


def shown_name(path: Path, results: Path) -> str:
    """A path below the results as text; bytes that are no UTF-8 are marked."""
    return os.fsencode(path.relative_to(results).as_posix()).decode("utf-8", "replace")


def find_runs(results: Path, problems: Problems) -> list[Run]:
    """All runs below a folder, but those that --overwrite set aside."""
    runs = []
    for folder, folders, files in walk(results, problems):
        folders[:] = [name for name in folders if name not in PASSED_OVER]
        if {CONFIG, RECORD, "results.csv"} & set(files) and folder != results:
            runs.append(read_run(folder, shown_name(folder, results), problems))
            runs[-1].id = f"run-{len(runs)}"
    return runs


def read_run(folder: Path, name: str, problems: Problems) -> Run:
    run = Run(name, others=sorted(file.name for file in folder.glob("*.csv") if file.stem != "results"))
    stored, record = folder / CONFIG, folder / RECORD
    if stored.exists():
        run.config = problems.attempt(f"{name}/{CONFIG}", read_yaml, stored) or {}
    if record.exists():
        run.record = read_record(record)
        if not run.record:
            problems.add(f"{name}/{RECORD}: it is damaged, so nothing is known of when and with what the run was made.")
    swept = {key.removesuffix("_list"): values for key, values in run.config.items()
             if key.endswith("_list") and isinstance(values, list)}
    table = folder / "results.csv"
    if table.exists():
        run.table = problems.attempt(f"{name}/results.csv", read_results, table, list(swept))
        run.changed = table.stat().st_mtime
    if run.config:
        run.settings = math.prod(len(values) for values in swept.values())
    if run.table is not None:
        run.done = len(run.table[list(swept)].drop_duplicates()) if swept else min(1, len(run.table))
    return run


def read_record(file: Path) -> dict[str, Any]:
    """The last process in a run.json, with the ones before; nothing where the file is damaged."""
    try:
        record = json.loads(file.read_text())
        sessions = record.get("sessions") or [record]
        return sessions[-1] | {"earlier": [*sessions[:-1], *sessions[-1].get("earlier", [])]}
    except (OSError, ValueError, RecursionError, AttributeError, LookupError, TypeError):
        return {}


def read_results(file: Path, settings: list[str]) -> pd.DataFrame:
    table = read_csv(file)
    if missing := [name for name in settings if name not in table]:
        raise BadInput(f"it is damaged or another run's: its config sweeps '{missing[0]}', and it has no such column.")
    return table


def account(run: Run) -> list[tuple[str, str]]:
    """With what, from when to when and on what a run was made, a name and a text each."""
    return account_of(run.record, run.status + (f" ({run.unfinished})" if run.unfinished else "")) + other_tables(run)


def other_tables(run: Run) -> list[tuple[str, str]]:
    return [("other tables of the run", ", ".join(run.others))] if run.others else []


def account_of(record: dict[str, Any], status: str) -> list[tuple[str, str]]:
    packages, earlier = record.get("packages"), record.get("earlier")
    entries = {
        "status": status,
        "started": when(record.get("start")), "ended": when(record.get("end")), "took": duration(record),
        "started before": f"{len(earlier)} times, whose rows stay" if isinstance(earlier, list) and earlier else None,
        "code version": record.get("commit") or record.get("code_version"),
        "packages": ", ".join(f"{name} {version}" for name, version in packages.items())
                    if isinstance(packages, dict) else None,
        "machine": " ".join(str(record[key]) for key in ("device", "device_name") if record.get(key)),
        "threads": record.get("threads")}
    return [(name, str(value)) for name, value in entries.items() if value not in (None, "")]


def when(time: Any) -> str:
    """A time of run.json to the minute; as it stands where it is none."""
    try:
        return f"{datetime.fromisoformat(time):%Y-%m-%d %H:%M %Z}"
    except (TypeError, ValueError):
        return str(time or "")


def duration(record: dict[str, Any]) -> str | None:
    """Of the last start."""
    try:
        seconds = (datetime.fromisoformat(record["end"]) - datetime.fromisoformat(record["start"])).total_seconds()
    except (KeyError, TypeError, ValueError):  # no end yet, or edited by hand
        return None
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


# ------------------------------------------------------------------------------- tables as text

def number(value: Any) -> str:
    """A cell as the page shows it: three decimals, or three digits where these would say nothing."""
    if value is None or value is pd.NA or (isinstance(value, (float, np.floating)) and math.isnan(value)):
        return ""
    if not isinstance(value, (float, np.floating)):
        return str(value)
    value = float(value)
    if value.is_integer() and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.3f}" if 1e-3 <= abs(value) < 1e5 else f"{value:.3g}"


def as_table(frame: pd.DataFrame, caption: str) -> Table:
    """The first rows of a table; a single row stands on end, and columns that never vary stand above."""
    columns = [str(name) for name in frame.columns]
    shown = [[number(value) for value in row] for row in frame.head(ROWS_AT_MOST).itertuples(index=False, name=None)]
    if len(frame) == 1:
        return Table(caption, ["column", "value"], [list(pair) for pair in zip(columns, shown[0])], on_end=True)
    constant = [frame.iloc[:, i].nunique(dropna=False) <= 1 for i in range(len(columns))]
    if not len(frame) or all(constant):
        constant = [False] * len(columns)
    same = [f"{name} {shown[0][i]}" for i, name in enumerate(columns) if constant[i] and shown[0][i]]
    empty = [name for i, name in enumerate(columns) if constant[i] and not shown[0][i]]
    common = "; ".join([*[f"the same in all rows: {', '.join(same)}"] * bool(same),
                        *[f"empty in all rows: {', '.join(empty)}"] * bool(empty)])
    kept = [i for i in range(len(columns)) if not constant[i]]
    return Table(caption, [columns[i] for i in kept], [[row[i] for i in kept] for row in shown],
                 len(frame) - len(shown), common)
