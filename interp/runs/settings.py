"""Settings: every combination of the lists that a config sweeps."""

import itertools
from collections import namedtuple
from pathlib import Path
from typing import Any, Protocol

from interp.runs.config import BadInput, ScriptConfig, project_path

Setting = Any  # a namedtuple with one field for each *_list key of the config


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
    return combinations(lists)


def combinations(lists: dict[str, list]) -> list[Setting]:
    """Every combination of some named values, those of the last name varying fastest."""
    return list(itertools.starmap(namedtuple("Setting", lists), itertools.product(*lists.values())))


def setting_name(setting: Setting) -> str:
    """A setting as a file name: lr_0.001_batch_size_500_..."""
    return "_".join(f"{name}_{value}" for name, value in setting._asdict().items())


class Saving(Protocol):
    """A config that says whether what is found is saved, and where."""

    save_models: bool
    model_dir: str | None


def saved_files(kind: str, config: Saving, setting: Setting) -> list[Path]:
    """The file in model_dir that a setting's `kind` ("circuit", ...) is saved in; none where the config saves none."""
    return ([project_path(config.model_dir) / f"{kind}_{setting_name(setting)}.safetensors"]
            if config.save_models and config.model_dir else [])


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
    except (KeyError, IndexError, ValueError, AttributeError, TypeError):
        known = ", ".join(f"{{{name}}}" for name in values)
        raise BadInput(f"{key}: '{template}' asks for more than this config sweeps ({known}).") from None
