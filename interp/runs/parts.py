"""A sweep in parts: `--part 3/8` computes every eighth setting from the third on, in a run directory of its own; of
compare_methods.py, whose methods share circuits, every eighth site and variable.

    RESULTS_DIR/part_3_of_8/    a run like any other, which no other process writes in

When all parts are complete, the same command without --part joins them in RESULTS_DIR. Until then, who reads the
results reads the parts.
"""

import argparse
import csv
import io
import re
import sys
from pathlib import Path
from typing import NamedTuple

from interp.runs.config import BadInput, C, ScriptConfig, parse_yaml, project_path, shown
from interp.runs.directory import CONFIG, FREE_KEYS, PART, RESULTS, key_of, refuse_other_config
from interp.runs.files import Row, put_rows, read_table
from interp.runs.record import account_of
from interp.runs.settings import Setting, combinations

TOGETHER = "method"  # of compare_methods.py: the methods of a site and variable share circuits and random draws


class Part(NamedTuple):
    """Every `of`-th setting, from the `number`-th on; those that differ in TOGETHER alone stay together."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def share(self, settings: list[Setting]) -> list[Setting]:
        groups: dict[tuple, list[Setting]] = {}
        for setting in settings:
            groups.setdefault(tuple(value for name, value in setting._asdict().items() if name != TOGETHER),
                              []).append(setting)
        return [setting for group in [*groups.values()][self.number - 1::self.of] for setting in group]

    def folder(self, results: Path) -> Path:
        return results / f"{PART}{self.number}_of_{self.of}"


def parse_part(text: str) -> Part:
    """For argparse."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"'{text}' is not a part such as 3/8, the third of eight")
    return Part(int(number), int(of))


def as_part(name: str) -> Part | None:
    """The part whose folder has this name; a folder of a reader's own, such as part_of_speech, is none."""
    numbers = re.fullmatch(rf"{PART}(\d+)_of_(\d+)", name)
    return Part(*map(int, numbers.groups())) if numbers else None


def parts_in(results: Path) -> list[Part]:
    """The parts that a results_dir holds, begun ones too; raises BadInput where they are of different divisions."""
    found = sorted(part for folder in results.glob(f"{PART}*_of_*")
                   if folder.is_dir() and (part := as_part(folder.name)))
    if len(divisions := sorted({part.of for part in found})) > 1:
        raise BadInput(f"results_dir: {shown(results)} holds parts of {' and of '.join(map(str, divisions))}, which do "
                       "not fit together; move those that do not belong there away.")
    return found


def narrow(config: C, settings: list[Setting], part: Part, overwrite: bool) -> tuple[C, list[Setting]]:
    """The config and the settings of a part.

    Raises:
        BadInput: the whole run, or parts that do not fit, are in its results_dir already.
    """
    results = project_path(config.results_dir)
    own = part.folder(results)
    if (results / CONFIG).exists() and not own.exists():
        raise BadInput(f"results_dir: {shown(results)} holds a run that is not in parts; go on with it without --part, "
                       "or give another results_dir.")
    for other in parts_in(results):
        if other.of != part.of:
            raise BadInput(f"results_dir: {shown(results)} is computed in {other.of} parts, to which {part} does not "
                           "belong; give another results_dir.")
    share = part.share(settings)
    if not overwrite:
        refuse_other_parts(config)
        refuse_other_division(part, own, settings, share)
    return config_of(part, config), share


def refuse_other_parts(config: ScriptConfig) -> None:
    """Refuse parts of another config in a results_dir; raises BadInput."""
    results = project_path(config.results_dir)
    for part in parts_in(results):
        if (part.folder(results) / CONFIG).exists():
            refuse_other_config(part.folder(results) / CONFIG, config)


def refuse_other_division(part: Part, own: Path, settings: list[Setting], share: list[Setting]) -> None:
    """Refuse a part that holds settings of another one, whose rows would be dropped.

    Raises:
        BadInput: it is a copy of another part, or was begun by a version that divided sweeps in another way.
    """
    names = settings[0]._fields
    keys, of_part = ({key_of(setting._asdict(), names) for setting in some} for some in (settings, share))
    file = own / f"{RESULTS}.csv"
    try:
        rows = read_table(file) if file.exists() else []
    except (csv.Error, UnicodeDecodeError):  # said when the run is opened
        return
    if any(key_of(row, names) in keys - of_part for row in rows if all(name in row for name in names)):
        raise BadInput(f"results_dir: {shown(own)} holds settings that are not of part {part} (it is a copy, or of an "
                       "earlier version, which divided sweeps in another way); give another results_dir, or "
                       "--overwrite, which sets it aside.")


def config_of(part: Part, config: C) -> C:
    return config.model_copy(update={"results_dir": str(part.folder(Path(config.results_dir)))})


def all_parts(config: C, settings: list[Setting]) -> dict[Part, tuple[C, list[Setting]]]:
    """The config and the settings of every part of a run that is computed in parts; else nothing."""
    refuse_other_parts(config)
    results = project_path(config.results_dir)
    found = parts_in(results)
    shares = {part: part.share(settings) for part in (
        Part(number, found[0].of) for number in range(1, found[0].of + 1))} if found else {}
    for part, share in shares.items():
        refuse_other_division(part, part.folder(results), settings, share)
    return {part: (config_of(part, config), share) for part, share in shares.items() if share}


# ------------------------------------------------------------------------------ reading tables

def stored_config(results: Path) -> Path:
    """Where a run keeps its config; of a run in parts, that of one of them."""
    own = results / CONFIG
    return own if own.exists() else next((file for part in parts_in(results) if (
        file := part.folder(results) / CONFIG).exists()), own)


def has_table(file: Path) -> bool:
    """Whether a run has a table, whole or in parts."""
    return file.exists() or any(part.exists() for part in tables_of_parts(file))


def tables_below(results: Path, pattern: str) -> list[Path]:
    """Where the results.csv of the runs are whose folders match, in parts or not."""
    folders = [folder for folder in results.glob(pattern) if folder.is_dir() and not as_part(folder.name)]
    return sorted(file for folder in folders if has_table(file := folder / f"{RESULTS}.csv"))


def tables_of_parts(file: Path) -> list[Path]:
    return [part.folder(file.parent) / file.name for part in parts_in(file.parent)]


def source(file: Path) -> Path | io.StringIO:
    """A table to read: the file, or if its run is in parts, the text that joining them would write.

    Says which parts are missing or not complete; their settings have no rows.

    Raises:
        BadInput: the parts do not fit together.
    """
    parts = [] if file.exists() else parts_in(file.parent)
    if not parts:
        return file
    order = common_order(file.parent, parts)
    names = next(iter(order.values()))._fields
    numbers = {key: number for number, key in enumerate(order)}
    rows, missing = list[tuple[int, Row]](), list[str]()
    for part in (Part(number, parts[0].of) for number in range(1, parts[0].of + 1)):
        own = part.folder(file.parent) / file.name
        share, done = {key_of(setting._asdict(), names) for setting in part.share(list(order.values()))}, set()
        for row in read_table(own) if own.exists() else ():
            if not all(name in row for name in names) or (key := key_of(row, names)) not in share:
                raise BadInput(f"{shown(own)} has a row of a setting that does not belong to part {part}.")
            rows.append((numbers[key], row))
            done.add(key)
        if left := len(share - done):
            missing.append(str(part) if not done else f"{part} (has {len(done)} of {len(done) + left} settings)")
    if missing and file.stem == RESULTS:
        print(f"missing: of {shown(file.parent)}, which is computed in parts, --part {', '.join(missing)}",
              file=sys.stderr)
    text = io.StringIO()
    put_rows(text, [row for _, row in sorted(rows, key=lambda entry: entry[0])],
             last="seconds" if file.stem == RESULTS else None)
    text.seek(0)
    return text


def common_order(results: Path, parts: list[Part]) -> dict[tuple[str, ...], Setting]:
    """All settings of a run in parts, in order, by what identifies them; raises BadInput where its parts differ."""
    stored = {part: part.folder(results) / CONFIG for part in parts if (part.folder(results) / CONFIG).exists()}
    if not stored:
        raise BadInput(f"{shown(results)} holds parts of a run that have no {CONFIG}.")
    values = {part: parse_yaml(file.read_text(encoding="utf-8"), shown(file)) for part, file in stored.items()}
    first, *others = values
    for other in others:
        keys = [key for key in values[first] if key not in FREE_KEYS and values[first][key] != values[other].get(key)]
        if keys:
            raise BadInput(f"{shown(results)}: part {other} was computed with another {', '.join(keys)} than part "
                           f"{first}, so they are not one run.")
        read = [account_of(part.folder(results)).get("inputs", {}) for part in (first, other)]
        if changed := [name for name in read[0].keys() & read[1].keys() if read[0][name] != read[1][name]]:
            raise BadInput(f"{shown(results)}: part {other} has read another {min(changed)} than part {first}, so they "
                           "are not one run.")
    lists = {key.removesuffix("_list"): own for key, own in values[first].items()
             if key.endswith("_list") and own is not None}
    settings = combinations(lists)
    return {key_of(setting._asdict(), setting._fields): setting for setting in settings}
