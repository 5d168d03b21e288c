"""The one main() of all scripts.

    config files -> typed configs -> settings -> run_setting(...) -> rows of results.csv

All configs are read and checked before the first is run, so bad input ends with exit
status 2 before anything is computed or written.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

import torch

from interp.models.loading import choose_device, model_files
from interp.runs.command_line import naming_config, parse_arguments, read_config
from interp.runs.config import (
    DATA,
    MODEL,
    BadInput,
    C,
    RunFailed,
    ScriptConfig,
    keys_that_read,
    project_path,
    require_file,
    shown,
)
from interp.runs.directory import RunDirectory, check_folder, locked, open_run, refuse_foreign_files
from interp.runs.files import copy_missing
from interp.runs.interruption import take_over
from interp.runs.parts import Part, all_parts
from interp.runs.progress import Progress
from interp.runs.record import account_of, as_written, digests, recorded, refuse_changed_inputs
from interp.runs.settings import Setting, fill_in


@dataclass(frozen=True)
class Outcome:
    """What a setting gives: figures for its row of results.csv, and rows of further tables."""

    figures: dict[str, Any]
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Script(Generic[C]):
    """One method: its config, a check that loads what can be wrong, and the work itself.

    prepare(config, settings, device) returns whatever run_setting needs, computes nothing
    long and writes nothing; it raises BadInput. artifacts(config, setting) are the files and
    folders that a setting leaves in model_dir: another run's are never replaced, and a setting
    without its own is not done. side_tables(config) are the tables besides results.csv in which every
    setting has rows, details(config, setting) what it leaves in results_dir besides tables.
    finish(config, prepared, run) draws what the script draws.
    """

    name: str
    schema: type[C]
    prepare: Callable[[C, list[Setting], torch.device], Any]
    run_setting: Callable[[C, Setting, Any], Outcome]
    artifacts: Callable[[C, Setting], list[Path]] = lambda config, setting: []
    finish: Callable[[C, Any, RunDirectory], None] | None = None
    side_tables: Callable[[C], list[str]] = lambda config: []
    details: Callable[[C, Setting], list[Path]] = lambda config, setting: []


def main(script: Script, arguments: list[str] | None = None) -> int:
    """Run a script's command line; returns the exit status: 0, 1 (failed), 2 (bad input) or 130 (Ctrl-C)."""
    options = parse_arguments(script.name, script.schema, arguments)
    status = 0
    take_over()
    try:
        jobs = [check(script, file, options) for file in options.config]
        jobs = [job for job in jobs if job[1]]  # a part may have no settings
        refuse_twice(script, [job[:2] for job in jobs])
        for job in jobs if options.check else ():
            say_what_is_left(script, *job[:2])
        while jobs and not options.check:  # popped, so that a job's model does not stay in memory during the next ones
            run(script, options, *jobs.pop(0))
    except BadInput as error:
        status, message = 2, str(error)
    except OSError as error:
        status, message = 2, f"{shown(error.filename or 'a file')}: {error.strerror or error}."
    except RunFailed as error:
        status, message = 1, str(error)
    except (MemoryError, RuntimeError) as error:  # torch on a CPU raises a plain RuntimeError
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        status, message = 1, ("memory ran out; make the batch, the data or the model smaller (or cache_gib, "
                              "layers_at_once or dtype, where there are these keys).")
    except KeyboardInterrupt:
        status, message = 130, "interrupted; the same command goes on from here."
    if status:
        print(f"{script.name}: {' '.join(message.splitlines())}", file=sys.stderr)  # a path may hold a line's end
    return status


def check(script: Script, file: str, options: argparse.Namespace) -> tuple:
    """Read a config and look for all mistakes in it that can be found beforehand."""
    with naming_config(file):
        config, settings = read_config(file, script.schema, options)
        if not settings:
            print(f"{shown(project_path(config.results_dir))}: no settings fall to this part.")
            return config, settings, None, None
        device = choose_device(options.device or config.device)
        prepared = script.prepare(config, settings, device)
        paths = all_artifacts(script, config, settings)
        for folder in {path.parent for path in paths}:
            check_folder("model_dir", folder)
        if not options.overwrite:
            if not options.part:
                refuse_missing_parts(script, config, settings)
            refuse_foreign_files(project_path(config.results_dir), paths)
    return config, settings, prepared, device


def say_what_is_left(script: Script, config: ScriptConfig, settings: list[Setting]) -> None:
    """What a run would compute, a line for each setting that is not done."""
    path = project_path(config.results_dir)
    refuse_changed_inputs(path, digests(read_by(config, settings)))
    left = todo(script, config, settings, RunDirectory(path, settings, script.side_tables(config)))
    print(f"{shown(path)}: {len(left)} of {len(settings)} settings to compute.")
    for setting in left:
        print("  " + ", ".join(f"{name} {value}" for name, value in setting._asdict().items()))


def todo(script: Script, config: ScriptConfig, settings: list[Setting], directory: RunDirectory) -> list[Setting]:
    """The settings that have no row yet, or whose rows or files are gone or are not what was written."""
    return [setting for setting in settings if not (
        directory.has(setting)
        and as_written(directory.path, script.artifacts(config, setting), script.details(config, setting)))]


def parts_of(script: Script, config: ScriptConfig,
             settings: list[Setting]) -> list[tuple[Part, ScriptConfig, list[Setting], RunDirectory]]:
    """The parts of a run that is computed in parts and not joined yet, each with its run directory; else nothing."""
    whole = RunDirectory(project_path(config.results_dir), settings, script.side_tables(config))
    if all(map(whole.has, settings)):
        return []
    return [(part, own, share, RunDirectory(project_path(own.results_dir), share, script.side_tables(own)))
            for part, (own, share) in all_parts(config, settings).items()]


def refuse_missing_parts(script: Script, config: ScriptConfig, settings: list[Setting]) -> None:
    """A run in parts is joined when all are complete; raises BadInput naming those that are not."""
    parts = parts_of(script, config, settings)
    lacking = [f"{part} lacks {left} of {len(share)} settings" for part, own, share, directory in parts
               if (left := len(todo(script, own, share, directory)))]
    if lacking:
        raise BadInput(f"results_dir: {shown(project_path(config.results_dir))} is computed in {parts[0][0].of} parts, "
                       f"which are not complete: {', '.join(lacking)}; compute them with --part.")


def summary_of(part: RunDirectory) -> dict[str, Any]:
    """What the record of a whole run says of a part."""
    account = account_of(part.path)
    return {key: account.get(key) for key in ("start", "end", "code_version", "device", "device_name", "threads")}


def join(script: Script, config: ScriptConfig, parts: list, whole: RunDirectory,
         note: Callable[[list[Path], dict[str, str]], None]) -> None:
    """Take over the rows and files of parts, all of them complete."""
    for _, own, share, directory in parts:
        with locked(directory.path):
            for setting in share:
                copy_missing(zip(script.details(own, setting), script.details(config, setting)))
            whole.adopt(directory)
            note([path for setting in share for path in script.artifacts(config, setting) + script.details(
                config, setting) if path.exists()], account_of(directory.path).get("rows", {}))


def all_artifacts(script: Script, config: ScriptConfig, settings: list[Setting]) -> list[Path]:
    """All that a run may leave in model_dir."""
    return [path for setting in settings for path in script.artifacts(config, setting)]


def refuse_twice(script: Script, jobs: list[tuple[ScriptConfig, list[Setting]]]) -> None:
    """Refuse configs of one command that would write to the same folder, or the same file in model_dir."""
    seen, written = set[Path](), set[Path]()
    for config, settings in jobs:
        path = project_path(config.results_dir).resolve()
        if path in seen:
            raise BadInput(f"results_dir: two of the configs write to {config.results_dir}.")
        own = {path.resolve() for path in all_artifacts(script, config, settings)}
        for path_of_both in sorted(own & written)[:1]:
            raise BadInput(f"model_dir: two of the configs write {shown(path_of_both)}.")
        seen.add(path)
        written |= own


def run(script: Script, options: argparse.Namespace, config: ScriptConfig, settings: list[Setting], prepared: Any,
        device: torch.device) -> None:
    """Compute the settings that the run directory lacks, a row each, or take them over from its parts."""
    with open_run(config, settings, script.side_tables(config), options.overwrite,
                  all_artifacts(script, config, settings), options.wait) as directory:
        read = digests(read_by(config, settings))
        refuse_changed_inputs(directory.path, read)
        where = shown(directory.path)
        left = todo(script, config, settings, directory)
        if len(left) < len(settings):
            print(f"{where}: {len(settings) - len(left)} of {len(settings)} settings are done already.")
        if left or account_of(directory.path).get("status", "done") != "done":  # killed after its last row
            parts = parts_of(script, config, settings)
            for part in parts:
                refuse_changed_inputs(part[-1].path, read)
            accounts = {str(part[0]): summary_of(part[-1]) for part in parts}
            with recorded(directory.path, machine(device) | ({"parts": accounts} if parts else {}), read) as note:
                if parts:
                    join(script, config, parts, directory, note)
                    left = todo(script, config, settings, directory)
                for setting in Progress(left, desc=where, unit="setting", leave=True):
                    compute(script, config, setting, prepared, directory, note)
        if script.finish and not options.part:
            script.finish(config, prepared, directory)
        print(f"{where}/results.csv: {len(settings)} settings.")


def machine(device: torch.device) -> dict[str, Any]:
    """What a run is computed on, for its record."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": str(device), "device_name": name, "threads": torch.get_num_threads()}


def read_by(config: ScriptConfig, settings: list[Setting]) -> dict[str, list[Path]]:
    """The files of the models and the data that a run reads, by the path that its config gives."""
    schema, files = type(config), dict[str, list[Path]]()
    for key in keys_that_read(schema, MODEL):
        templates = [getattr(config, key)] if getattr(config, key) else []
        for path in sorted({fill_in(key, template, setting) if key == "model_path" else template
                            for template in templates for setting in settings}):
            files[path] = model_files(key, path)
    return files | {path: [require_file(key, path)] for key in keys_that_read(schema, DATA)
                    if config.reads(key) and (path := getattr(config, key))}


def compute(script: Script, config: ScriptConfig, setting: Setting, prepared: Any, directory: RunDirectory,
            note: Callable[[list[Path], dict[str, str]], None]) -> None:
    start = time.perf_counter()
    outcome = script.run_setting(config, setting, prepared)
    row = outcome.figures | {"seconds": round(time.perf_counter() - start, 2)}
    note(script.artifacts(config, setting) + script.details(config, setting),
         directory.digests(setting, row, outcome.tables))
    directory.record(setting, row, outcome.tables)
