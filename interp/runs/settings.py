"""Settings: every combination of the lists that a config sweeps."""

import hashlib
import itertools
import math
import re
from collections import namedtuple
from contextlib import suppress
from pathlib import Path
from string import Formatter
from typing import Any

from interp.runs.config import BadInput, ScriptConfig, project_path

TOGETHER = ("method", "rank_rule")  # compare_methods.py: a site and variable's share circuits and random draws
MOST_SETTINGS = 100_000  # each is a file
Setting = Any  # a namedtuple with one field for each *_list key of the config


def expand_settings(config: ScriptConfig) -> list[Setting]:
    """Every combination of the config's `*_list` keys, the last varying fastest; a list that is None gives no field."""
    lists = {name.removesuffix("_list"): values for name, values in config
             if name.endswith("_list") and values is not None}
    for name, values in lists.items():
        if len({str(value) for value in values}) < len(values):
            raise BadInput(f"{name}_list: a value stands twice in {values}.")
    if (count := math.prod(map(len, lists.values()))) > MOST_SETTINGS:
        raise BadInput(f"{', '.join(f'{name}_list' for name in lists)}: these sweep {count} settings; "
                       f"{MOST_SETTINGS} are the most.")
    return [*filter(config.sweeps, itertools.starmap(namedtuple("Setting", lists), itertools.product(*lists.values())))]


def share_of(settings: list[Setting], number: int, of: int) -> list[Setting]:
    """Every `of`-th setting from the `number`-th on; those that differ in TOGETHER alone count as one."""
    groups: dict[tuple, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(tuple((setting._asdict() | dict.fromkeys(TOGETHER)).items()), []).append(setting)
    return [setting for group in [*groups.values()][number - 1::of] for setting in group]


def setting_name(setting: Setting) -> str:
    """A setting as a file name: lr_0.001_batch_size_500_...; shortened, with a hash, where that could be none."""
    name = "_".join(f"{key}_{value}" for key, value in setting._asdict().items())
    if re.fullmatch(r"[\w .,+=-]{1,180}", name, re.ASCII):
        return name
    return f"{re.sub(r'[^a-zA-Z0-9.-]+', '_', name)[:100]}_{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def saved_files(kind: str, config: Any, setting: Setting) -> list[Path]:
    """The file in model_dir that a setting's `kind` ("circuit", ...) is saved in; none where the config saves none."""
    return ([project_path(config.model_dir) / f"{kind}_{setting_name(setting)}.safetensors"]
            if config.save_models and config.model_dir else [])


def fill_in(key: str, template: str, setting: Setting) -> str:
    """A path with {checkpoint} and {model_seed} replaced; raises BadInput where it lacks one or asks for more."""
    values = {name: value for name, value in setting._asdict().items() if name in ("model_seed", "checkpoint")}
    with suppress(ValueError):  # a brace alone
        asked = {part[1:] for part in Formatter().parse(template) if part[1] is not None}
        if asked <= {(name, "", None) for name in values}:  # no format: its width might fill the memory
            if "checkpoint" in values and ("checkpoint", "", None) not in asked:
                raise BadInput(f"{key}: checkpoint_list is given, but '{template}' has no {{checkpoint}}.")
            return template.format(**values)
    known = ", ".join(f"{{{name}}}" for name in values)
    raise BadInput(f"{key}: '{template}' asks for more than this config sweeps ({known}, as they stand).")
