"""The one main() of all scripts.

    config files -> typed configs -> settings -> run(...) -> settings/KEY.json -> rows of results.csv

All configs are read and checked before the first is run, so bad input is refused before anything is computed.
"""

import argparse
import hashlib
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

import torch

from interp.models.loading import choose_device, model_files
from interp.runs.command_line import parse_arguments, read_config
from interp.runs.config import DATA, MODEL, BadInput, C, RunFailed, inputs_of, project_path, require_file, shown
from interp.runs.progress import Progress
from interp.runs.settings import Setting, fill_in, share_of
from interp.runs.store import RunDirectory, check_run, open_run


@dataclass(frozen=True)
class Outcome:
    """What a setting gives: metrics for its row of results.csv, and rows of further tables."""

    metrics: dict[str, Any]
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Script(Generic[C]):
    """One method: its config, a check that reads what can be wrong, and the work itself.

    prepare(config, settings, device) returns whatever `run` needs; it computes nothing long, writes nothing and raises
    BadInput. run(config, settings, prepared) gets the settings that are left and yields the outcome of each as soon as
    it is there, in any order, after whatever else it writes of it. artifacts(config, setting) are the files and folders
    that a setting leaves in model_dir: another run's are never replaced, and a setting without its artifacts is not
    done. finish(config, prepared, run) draws what the script draws, when all settings are done.
    """

    name: str
    schema: type[C]
    prepare: Callable[[C, list[Setting], torch.device], Any]
    run: Callable[[C, list[Setting], Any], Iterator[tuple[Setting, Outcome]]]
    artifacts: Callable[[C, Setting], list[Path]] = lambda config, setting: []
    finish: Callable[[C, Any, RunDirectory], None] | None = None


def main(script: Script, arguments: list[str] | None = None) -> int:
    """Run a script's command line; returns the exit status: 0, 1 (failed), 2 (bad input) or 130 (Ctrl-C)."""
    options = parse_arguments(script.name, script.schema, arguments)
    jobs = list[tuple]()
    try:
        for file in options.config:
            jobs.append(check(script, file, options))
        file = ""
        while jobs:  # popped, so that a job's model does not stay in memory during the next ones
            run(script, options, *jobs.pop(0))
        return 0
    except BadInput as error:
        status, message = 2, f"{file}: {error}" if file else str(error)
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
    print(f"{script.name}: {' '.join(message.splitlines())}", file=sys.stderr)  # a path may hold a line's end
    return status


def check(script: Script, file: str, options: argparse.Namespace) -> tuple:
    """Read a config and look for all mistakes in it that can be found beforehand; returns arguments of `run`."""
    config, settings = read_config(file, script.schema, options)
    device = choose_device(options.device or config.device)
    share = share_of(settings, *options.shard)
    prepared = script.prepare(config, share or settings, device)
    artifacts = [path for setting in settings for path in script.artifacts(config, setting)]
    check_run(config, artifacts, options.overwrite)
    return config, settings, share, artifacts, prepared, device


def run(script: Script, options: argparse.Namespace, config: Any, settings: list[Setting], share: list[Setting],
        artifacts: list[Path], prepared: Any, device: torch.device) -> None:
    """Compute those settings of the share that are left; draw the figures when all of the config's are done."""
    def todo(some: list[Setting]) -> list[Setting]:
        return [setting for setting in some if not directory.finished(setting) or not all(
            path.exists() for path in script.artifacts(config, setting))]

    directory, inputs = RunDirectory(project_path(config.results_dir)), digests_of(config, share)
    directory_name = shown(directory.path)
    deleted = RunFailed(f"{directory_name}: config.yaml or files of settings were deleted or replaced while the run "
                        "computed; start the same command again; if it refuses what is left there, move that away.")
    if options.check:
        directory.refuse_changed(inputs)
        if hasattr(prepared, "check_models"):
            prepared.check_models(share, options.answers)
        left = [", ".join(f"{name} {value}" for name, value in setting._asdict().items()) for setting in todo(share)]
        print(f"{directory_name}: {len(left)} of {len(share)} settings to compute.", *left, sep="\n  ")
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    machine = {"device": str(device), "device_name": name, "threads": torch.get_num_threads(),
               "notes": getattr(prepared, "notes", [])}
    with open_run(directory, config, artifacts, options.shard, options.overwrite):
        directory.refuse_changed(inputs)
        left = todo(share)
        if left or not directory.is_settled(settings):
            with directory.session(config, settings, inputs, machine):
                start, due = time.perf_counter(), 0.0
                for setting, outcome in Progress(script.run(config, left, prepared), total=len(left),
                                                 desc=directory_name, unit="setting"):
                    if not directory.is_there():
                        raise deleted
                    directory.save(setting, outcome.metrics, outcome.tables, time.perf_counter() - start)
                    if (now := time.perf_counter()) > due:  # the tables take at most a tenth of the time
                        directory.collate(settings)
                        due = now + 10 * (time.perf_counter() - now)
                    start = time.perf_counter()
                if todo(share) or not directory.is_there():
                    raise deleted
        done = len(settings) - len(todo(settings))
        if script.finish and done == len(settings):
            script.finish(config, prepared, directory)
        print(f"{directory_name}/results.csv: {done} of {len(settings)} settings, {len(left)} of them new.")


def digests_of(config: Any, settings: list[Setting]) -> dict[str, str]:
    """SHA-256 of the files of data and models that a run reads, by path."""
    named = inputs_of(config, DATA) | config.reads_besides()
    files, digests = [require_file(key, path) for key, path in named.items()], dict[str, str]()
    for key, template in inputs_of(config, MODEL).items():
        for path in {fill_in(key, template, setting) if key == "model_path" else template for setting in settings}:
            files += model_files(key, path)
    for file in files:
        with open(file, "rb") as content:
            digests[shown(file)] = hashlib.file_digest(content, "sha256").hexdigest()
    return digests
