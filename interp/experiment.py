"""The one main() of all scripts.

    config files -> typed configs -> settings -> run_setting(...) -> rows of results.csv

All configs are read and checked before the first is run, so bad input ends with exit
status 2 before anything is computed or written.
"""

import argparse
import itertools
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm.auto import tqdm

from interp.config import BadInput, RunFailed, ScriptConfig, find_config, load_config, project_path, shown
from interp.models import choose_device
from interp.runs import RunDirectory, open_run, refuse_other_config

Setting = Any  # a namedtuple with one field for each *_list key of the config


@dataclass(frozen=True)
class Outcome:
    """What a setting gives: figures for its row of results.csv, and rows of further tables."""

    figures: dict[str, Any]
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Script:
    """One method: its config, a check that loads what can be wrong, and the work itself.

    prepare(config, settings, device) returns whatever run_setting needs, computes nothing
    long and writes nothing; it raises BadInput. finish(config, run) draws what the script draws.
    """

    name: str
    schema: type[ScriptConfig]
    prepare: Callable[[ScriptConfig, list[Setting], torch.device], Any]
    run_setting: Callable[[ScriptConfig, Setting, Any], Outcome]
    finish: Callable[[ScriptConfig, RunDirectory], None] | None = None


def expand_settings(config: ScriptConfig) -> list[Setting]:
    """Every combination of the config's `*_list` keys, the last key varying fastest.

    A list key that is None (a sweep that was not asked for) gives no field.
    """
    lists = {name.removesuffix("_list"): getattr(config, name)
             for name in type(config).model_fields
             if name.endswith("_list") and getattr(config, name) is not None}
    for name, values in lists.items():
        if len({str(value) for value in values}) < len(values):
            raise BadInput(f"{name}_list: a value stands twice in {values}.")
    setting = namedtuple("Setting", lists)
    return [setting(*values) for values in itertools.product(*lists.values())]


def setting_name(setting: Setting) -> str:
    """A setting as a file name: lr_0.001_batch_size_500_..."""
    return "_".join(f"{name}_{value}" for name, value in setting._asdict().items())


def fill_in(key: str, template: str, setting: Setting) -> str:
    """A path of the config with {checkpoint} and {model_seed} replaced by the setting's.

    Raises:
        BadInput: the path asks for something the setting has not.
    """
    values = {name: getattr(setting, name) for name in ("model_seed", "checkpoint") if hasattr(setting, name)}
    if "checkpoint" in values and "{checkpoint}" not in template:
        raise BadInput(f"{key}: checkpoint_list is given, but '{template}' has no {{checkpoint}}.")
    try:
        return template.format(**values)
    except (KeyError, IndexError, ValueError, AttributeError):
        known = ", ".join(f"{{{name}}}" for name in values)
        raise BadInput(f"{key}: '{template}' asks for more than this config sweeps ({known}).") from None


def parse_arguments(script: Script, arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"{script.name}.py", allow_abbrev=False)
    parser.add_argument("--config", nargs="+", required=True, metavar="FILE",
                        help="YAML configs, run one after another")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="override a key of every config")
    parser.add_argument("--overwrite", action="store_true",
                        help="move an earlier run in results_dir aside and begin anew")
    parser.add_argument("--device", help="auto (cuda if present, else cpu), cpu, cuda, cuda:1, mps")
    return parser.parse_args(arguments)


def main(script: Script, arguments: list[str] | None = None) -> int:
    """Run a script's command line; returns the exit status: 0, 1 (failed) or 2 (bad input)."""
    options = parse_arguments(script, arguments)
    try:
        jobs = [check(script, file, options) for file in options.config]
        check_results_dirs([job[0] for job in jobs], options.overwrite)
        for config, settings, prepared, device in jobs:
            run(script, config, settings, prepared, device, options.overwrite)
    except (BadInput, RunFailed) as error:
        print(f"{script.name}: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1
    return 0


def check(script: Script, file: str, options: argparse.Namespace) -> tuple:
    """Read a config and let the script look for mistakes in it."""
    config = load_config(file, script.schema, options.set)
    device = choose_device(options.device or config.device)
    settings = expand_settings(config)
    try:
        return config, settings, script.prepare(config, settings, device), device
    except BadInput as error:
        raise BadInput(f"{shown(find_config(file))}: {error}") from None


def check_results_dirs(configs: list[ScriptConfig], overwrite: bool) -> None:
    """Refuse configs that would write over each other or over a run of another config."""
    seen = set()
    for config in configs:
        path = project_path(config.results_dir).resolve()
        if path in seen:
            raise BadInput(f"results_dir: two of the configs write to {config.results_dir}.")
        seen.add(path)
        if not overwrite:
            refuse_other_config(path / "config.yaml", config)


def run(script: Script, config: ScriptConfig, settings: list[Setting], prepared: Any,
        device: torch.device, overwrite: bool) -> None:
    """Compute the settings that the run directory lacks, a row each."""
    with open_run(config, settings[0]._fields, device, overwrite) as directory:
        done = [directory.has(setting._asdict()) for setting in settings]
        where = shown(directory.path)
        if any(done):
            print(f"{where}: {sum(done)} of {len(settings)} settings are done already.")
        bar = tqdm(settings, desc=where, unit="setting", disable=None)
        for setting, is_done in zip(bar, done):
            if is_done:
                continue
            start = time.perf_counter()
            outcome = script.run_setting(config, setting, prepared)
            seconds = round(time.perf_counter() - start, 2)
            key = setting._asdict()
            directory.record(
                key | outcome.figures | {"seconds": seconds},
                {name: [key | row for row in rows] for name, rows in outcome.tables.items()})
        if script.finish:
            script.finish(config, directory)
        print(f"{where}/results.csv: {len(settings)} settings.")
