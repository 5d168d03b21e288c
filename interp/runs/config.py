"""Typed configs: YAML with `base:` inheritance, `--set key=value`, errors that name the key.

Every mistake a user can make in a config ends as a `BadInput`: one sentence, exit status 2,
before anything is computed or written.
"""

import difflib
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

PROJECT_ROOT = Path(__file__).resolve().parent.parent.parent
CONFIGS = PROJECT_ROOT / "configs"
TRAINING = "Train_Algorithmic_Models"  # the folder of configs that make the data and models of the others
ALIASES = {  # several names for one key, most of them the paper's: read under the one that the script's config has
    "train_path": "train_data_path", "test_path": "test_data_path", "epochs": "num_epochs",
    "precision": "precision_list"}  # one value for a list of one
CONVERTED = {  # models that no config makes, and what does
    "Models/SmolLM2-135M": "python -m interp.convert_gguf",
    "Models/Gemma3-270M": "python -m interp.convert_gguf --model gemma3"}

T = TypeVar("T")


def no_truth_value(value: Any) -> Any:
    """YAML reads yes and on as true, which pydantic would take for the number 1."""
    if isinstance(value, bool):
        raise ValueError(f"a number is wanted, not {value}")
    return value


Whole = Annotated[int, BeforeValidator(no_truth_value), Field(gt=-2**32, lt=2**32)]  # more overflows C's integers
Real = Annotated[float, BeforeValidator(no_truth_value), Field(ge=-1e30, le=1e30)]  # beyond that float32 overflows
NonEmpty = Annotated[list[T], Field(min_length=1)]
Positive = Annotated[Real, Field(gt=0)]
Count = Annotated[Whole, Field(ge=1)]
NonNegative = Annotated[Whole, Field(ge=0)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]  # what torch and numpy both take
Text = Annotated[str, Field(min_length=1)]
FLOAT32 = "float32"
DATA, MODEL = "data file", "model"  # marks of the keys whose files a run reads, whatever their names
DataFile = Annotated[str, Field(min_length=1), DATA]
ModelFolder = Annotated[str, Field(min_length=1), MODEL]


class BadInput(Exception):
    """A mistake in what the user gave, told in one sentence that names the key, file or setting."""


class RunFailed(Exception):
    """A run that cannot go on (a loss that is not a number), told in one sentence."""


class ScriptConfig(BaseModel):
    """What every script's config has. Frozen: a script never changes its config."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True,
        protected_namespaces=(),  # keys such as model_path are ours, not pydantic's
    )

    results_dir: Text = Field(description="where the run's tables are written")
    device: Text = Field("auto", description="auto (cuda where there is one, else cpu), cpu, cuda, cuda:1, mps")

    @model_validator(mode="before")
    @classmethod
    def one_name(cls, values):
        """Keys under their other names."""
        values = dict(values)
        for alias, name in ALIASES.items():
            for given, known in ((alias, name), (name, alias)):
                if given in values and given not in cls.model_fields and known in cls.model_fields:
                    if known in values:
                        raise ValueError(f"the keys '{given}' and '{known}' are two names of one; give one of them")
                    value = values.pop(given)
                    values[known] = [value] if known == f"{given}_list" else value
        return values


    def reads(self, key: str) -> bool:
        """Whether a run reads the files that the key names, where it names any."""
        return True


class ModelSweep(ScriptConfig):
    """The models that a method looks into: one, or one for each seed and checkpoint in its path."""

    model_path: ModelFolder = Field(description=(
        "the model: a folder, a GGUF file or a name on the Hugging Face hub; {model_seed} and {checkpoint} stand for "
        "the values of these lists"))
    model_seed_list: NonEmpty[Seed] = Field([0], description="seeds of models, and of what the method draws")
    checkpoint_list: NonEmpty[int | str] | None = Field(None, description="checkpoints of a training")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description=(
        "the type of the model's weights and of what it computes; masks, probes, losses and all that is kept for them "
        "are float32 in any case"))
    spread: bool = Field(False, description=(
        "where one device does not hold the model, put its layers on all there are, then in memory, and leave the rest "
        "on the disk"))
    cache_gib: Positive = Field(2.0, description=(
        "GiB of memory for what passes of the model keep; what goes beyond is in files mapped into memory"))
    cache_dir: Text | None = Field(None, description=(
        "the folder of these files, which vanish with the run; by default the system's for temporary files"))


C = TypeVar("C", bound=ScriptConfig)


def project_path(path: str | Path) -> Path:
    """A path of a config, relative to the project root wherever the script is started.

    Raises:
        BadInput: no file can have that name.
    """
    try:
        full = PROJECT_ROOT / Path(path).expanduser()
        if ".." in full.parts:  # which, beyond what exists, would make folders on the way
            full = full.resolve()
        if "\0" in str(full):
            raise ValueError("it holds a zero byte")
        if not full.exists() and full.is_symlink():  # raises where a name is too long
            raise ValueError("it is a link that leads nowhere")
    except (OSError, ValueError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise BadInput(f"the path '{str(path)[:200]}' cannot be used: {why}.") from None
    return full


def shown(path: str | Path) -> str:
    """A path as messages show it: relative to the project root where it lies inside."""
    path = Path(path)
    return str(path.relative_to(PROJECT_ROOT)) if path.is_relative_to(PROJECT_ROOT) else str(path)


def load_config(file: str | Path, schema: type[C], overrides: Sequence[str] = ()) -> C:
    """Read a YAML config, follow its `base:`, apply `key=value` overrides, validate.

    Raises:
        BadInput: a missing or unreadable file, an unknown key, a wrong value.
    """
    path = find_config(file)
    values = read_yaml(path)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise BadInput(f"--set takes key=value, not '{override}'.")
        values[key] = parse_yaml(text, f"--set {override}")
    try:
        return schema(**values)
    except ValidationError as error:
        raise BadInput(explain(error.errors()[0], shown(path), schema, values)) from None


def find_config(file: str | Path) -> Path:
    """A config named on the command line: as seen from here, else from the project root."""
    project_path(file)  # refuses what can be no path
    for path in (Path(file).expanduser().absolute(), project_path(file)):
        if path.is_file():
            return path
    raise BadInput(f"--config {file}: there is no such file.")


def read_yaml(path: Path) -> dict[str, Any]:
    """A config file's keys, laid over those of the file its `base:` names."""
    values: dict[str, Any] = {}
    for _, own in reversed(read_chain(path)):
        values |= own
    return values


def read_chain(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """A config file with its own keys, then the one that it is based on, and so on."""
    path = path.resolve()
    if path in seen:
        raise BadInput(f"{shown(seen[0])}: its 'base' leads back to {shown(path)}.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{shown(path)} cannot be read: {error}.") from None
    values = parse_yaml(text, shown(path))
    if not isinstance(values, dict):
        raise BadInput(f"{shown(path)} is not a config: it should hold lines of 'key: value'.")
    base = values.pop("base", None)
    if base is None:
        return [(path, values)]
    base_path = project_path(path.parent / str(base))
    if not base_path.is_file():
        raise BadInput(f"{shown(path)}: 'base' names {base}, and there is no such file beside it.")
    return [(path, values), *read_chain(base_path, (*seen, path))]


class _UniqueKeys(yaml.SafeLoader):
    """YAML silently keeps the last of two equal keys; an edited config should not."""

    def construct_mapping(self, node, deep=False):
        self.flatten_mapping(node)  # so that merge keys (<<) work
        seen = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen or not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem_mark=key_node.start_mark, problem=(
                    f"the key '{key}' stands twice" if key in seen
                    else "a key is not a word; quote keys such as 1 or yes"))
            seen.append(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _UniqueKeys)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: dates that are none
        mark = getattr(error, "problem_mark", None)
        where = f" near line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise BadInput(f"{source} is not valid YAML{where}: {problem}.") from None


def explain(error: ErrorDetails, source: str, schema: type[BaseModel], values: dict[str, Any]) -> str:
    """One sentence for pydantic's first complaint about the values of some keys."""
    key = place_of(error["loc"], values)
    match error["type"]:
        case "extra_forbidden":
            return f"{source}: unknown key '{key}'{suggestion(key, schema.model_fields)}."
        case "missing":
            return f"{source}: the key '{key}' is missing."
        case "too_short":
            return f"{source}: the key '{key}' is empty and needs at least one value."
        case "value_error":
            at_key = f"the key '{key}': " if key else ""
            return f"{source}: {at_key}{error['ctx']['error']}."
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{source}: the key '{key}' is wrong: {message}."


def place_of(path: tuple[str | int, ...], values: Any) -> str:
    """The key that pydantic's path to a value leads to; of the path's parts those that the values have."""
    parts = [str(part) for part in path[:1]]
    values = values.get(path[0]) if path else None
    for part in path[1:]:  # the others are pydantic's own names of a type's branches
        if part in values if isinstance(values, dict) else isinstance(values, list) and part in range(len(values)):
            parts.append(str(part))
            values = values[part]
    return ".".join(parts)


def suggestion(word: str, known, cutoff: float = 0.6) -> str:
    """', did you mean X?' in the words of an error, or nothing. cutoff: how alike, between 0 and 1."""
    close = difflib.get_close_matches(str(word), [str(name) for name in known], n=1, cutoff=cutoff)
    return f"; did you mean '{close[0]}'" if close else ""


def describe_keys(schema: type[BaseModel]) -> list[tuple[str, str, str]]:
    """Each key of a config: its name, default (empty where there is none) and meaning, with the words allowed."""
    rows = []
    for name, field in schema.model_fields.items():
        default = "" if field.is_required() else yaml.safe_dump(field.default, default_flow_style=True).splitlines()[0]
        words = [word for word in choices(field.annotation) if word not in default]
        meaning = (field.description or "") + (f" ({', '.join(choices(field.annotation))})" if words else "")
        rows.append((name, default, meaning))
    return rows


def keys_that_read(schema: type[BaseModel], mark: str) -> list[str]:
    """The keys that name a data file or a model, by their mark."""
    def marked(annotation: Any) -> bool:
        return annotation == mark or any(map(marked, get_args(annotation)))

    return [name for name, field in schema.model_fields.items() if mark in field.metadata or marked(field.annotation)]


def choices(annotation: Any) -> list[str]:
    """The words that a key allows, where it allows only some."""
    if get_origin(annotation) is Literal:
        return [word for word in get_args(annotation) if isinstance(word, str)]
    return [word for part in get_args(annotation) for word in choices(part)]


def keys_as_text(schema: type[BaseModel]) -> str:
    """The keys of a config for --help: those that must be given first."""
    lines = ["keys of a config (base: FILE takes over those of another; keys that end in _list are swept):", ""]
    for name, default, meaning in sorted(describe_keys(schema), key=lambda key: key[1] != ""):
        lines += textwrap.wrap(f"{name}{f' ({default})' if default else ''}: {meaning}", 100, initial_indent="  ",
                               subsequent_indent="      ")
    return "\n".join(lines)


def require_file(key: str, path: str) -> Path:
    """The existing file or folder that a config key names.

    Raises:
        BadInput: it is missing; the sentence names the command that makes it, where one does.
    """
    full = project_path(path)
    if full.exists():
        return full
    command = command_that_makes(full)
    hint = f"; '{command}' makes it" if command else ""
    raise BadInput(f"{key}: there is no {shown(full)}{hint}.")


def command_that_makes(path: Path) -> str | None:
    """The command in whose data_dir or model_dir a missing path lies, or that converts a model to it."""
    for folder, command in CONVERTED.items():
        if path.is_relative_to(project_path(folder)):
            return command
    for file, values in shipped_configs():
        folders = [project_path(values[key]) for key in ("data_dir", "model_dir")
                   if "data_dir" in values and isinstance(values.get(key), str)]
        if any(path.is_relative_to(folder) for folder in folders):
            script = "train_algorithmic_models.py" if "num_epochs" in values else "generate_language_data.py"
            return f"python {script} --config {shown(file)}"
    return None


def config_that_writes(results: Path) -> str | None:
    """The shipped config whose results_dir a folder is."""
    for file, values in shipped_configs():
        if isinstance(values.get("results_dir"), str) and project_path(values["results_dir"]) == results:
            return shown(file)
    return None


def shipped_configs():
    """All configs of the project with their keys, those that train first; broken ones are passed over."""
    for file in sorted(CONFIGS.rglob("*.yaml"), key=lambda file: (TRAINING not in file.parts, file)):
        try:
            yield file, read_yaml(file)
        except BadInput:  # somebody's half-edited config is no reason to hide the real message
            continue
