"""Typed configs: YAML with `base:` inheritance, `--set key=value`, errors that name the key."""

import difflib
import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

PROJECT_ROOT = Path(__file__).resolve().parent.parent.parent
CONFIGS = PROJECT_ROOT / "configs"
ALIASES = {  # several names for one key, most of them the paper's: read under the one that the script's config has
    "train_path": "train_data_path", "test_path": "test_data_path", "epochs": "num_epochs",
    "precision": "precision_list",  # one value for a list of one
    "rank": "rank_rule_list", "probe_index_list": "position_list",
    "target_position_list": "position_list", "token_range": "position_list"}

T = TypeVar("T")
Whole = Annotated[int, Field(strict=True, gt=-2**32, lt=2**32)]  # more overflows C's integers; strict: no truth value
Real = Annotated[float, Field(strict=True, ge=-1e30, le=1e30)]  # beyond that float32 overflows
NonEmpty = Annotated[list[T], Field(min_length=1)]
Positive = Annotated[Real, Field(gt=0)]
Count = Annotated[Whole, Field(ge=1)]
NonNegative = Annotated[Whole, Field(ge=0)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]  # what torch and numpy both take
Text = Annotated[str, Field(min_length=1)]
FLOAT32 = "float32"
MOST_BYTES = 2**18  # of a config; YAML reads about 100 kB in a second
DATA, MODEL = "names a data file", "names a model"  # marks of the keys whose files a run reads
DataFile = Annotated[str, Field(min_length=1), DATA]
ModelFolder = Annotated[str, Field(min_length=1), MODEL]


class BadInput(Exception):
    """A mistake in what the user gave, told in one sentence that names the key, file or setting."""


class RunFailed(Exception):
    """A run that cannot go on (a loss that is not a number), told in one sentence."""


class ScriptConfig(BaseModel):
    """What every script's config has. Frozen: a script never changes its config."""

    model_config = ConfigDict(  # protected_namespaces: keys such as model_path are ours, not pydantic's
        extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True, protected_namespaces=())

    results_dir: Text = Field(description="where the run's tables are written")
    device: Text = Field("auto", description="auto (cuda where there is one, else cpu), cpu, cuda, cuda:1, mps")

    @model_validator(mode="before")
    @classmethod
    def one_name(cls, values):
        """Keys under their other names."""
        values = dict(values)
        for alias, name in [*ALIASES.items(), *((name, alias) for alias, name in ALIASES.items())]:
            if alias in values and name not in values and name in cls.model_fields and alias not in cls.model_fields:
                value = values.pop(alias)
                single = name.endswith("_list") and not alias.endswith("_list") and not isinstance(value, list)
                values[name] = [value] if single else value
        return values

    def reads(self, key: str) -> bool:
        """Whether a run reads the file that a key names."""
        return True

    def sweeps(self, setting: Any) -> bool:
        """Whether a combination of the lists' values is a setting."""
        return True

    def reads_besides(self) -> dict[str, str]:
        """Files that a run reads and no key's value is, by the key that they are named in."""
        return {}


class ModelSweep(ScriptConfig):
    """The models that a method looks into: one, or one for each seed and checkpoint in its path."""

    model_path: ModelFolder = Field(description=(
        "the model: a folder, a GGUF file or a name on the Hugging Face hub; {model_seed} and {checkpoint} stand for "
        "the values of these lists"))
    model_seed_list: NonEmpty[Seed] = Field([0], description="seeds of models, and of what the method draws")
    checkpoint_list: NonEmpty[Whole | str] | None = Field(None, description="checkpoints of a training")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description=(
        "the type of the model's weights and of what it computes; masks, probes and losses are float32 in any case"))
    spread: bool = Field(False, description=(
        "where one device does not hold the model, put its layers on all there are, then in memory, then on the disk"))
    cache_gib: Positive = Field(2.0, description="GiB of memory for the activations that one pass of the model keeps")


C = TypeVar("C", bound=ScriptConfig)


def project_path(path: str | Path) -> Path:
    """A path of a config, relative to the project root; raises BadInput where no file can have that name."""
    try:
        full = PROJECT_ROOT / Path(path).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            full.stat()
        return full
    except (OSError, ValueError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise BadInput(f"the path '{str(path)[:200]}' cannot be used: {why}.") from None


def shown(path: str | Path) -> str:
    """A path as messages show it: relative to the project root where it lies inside."""
    path = Path(path)
    return str(path.relative_to(PROJECT_ROOT)) if path.is_relative_to(PROJECT_ROOT) else str(path)


def require_file(key: str, path: str) -> Path:
    """The existing file or folder that a key names; raises BadInput, which names a config that makes it."""
    full = project_path(path)
    if not full.exists():
        folders = {f"{made}: {shown(parent)}" for parent in full.parents for made in ("data_dir", "model_dir")}
        makers = [shown(file) for file in sorted(CONFIGS.rglob("*.yaml"), key=lambda file: "Train" not in str(file))
                  if folders & set(file.read_text(encoding="utf-8", errors="replace").splitlines())]
        raise BadInput(f"{key}: there is no {shown(full)}" + (f"; {makers[0]} makes it." if makers else "."))
    return full


def inputs_of(config: ScriptConfig, mark: str) -> dict[str, str]:
    """The data files or the models that a run reads, by key; mark: DATA or MODEL."""
    return {name: value for name, field in type(config).model_fields.items() if (value := getattr(config, name))
            and mark in str((field.annotation, field.metadata)) and config.reads(name)}


def load_config(file: str | Path, schema: type[C], overrides: Sequence[str] = ()) -> C:
    """Read a YAML config, follow its `base:`, apply `key=value` overrides, validate; raises BadInput."""
    files = [path for path in (project_path(file), Path(file).expanduser().absolute()) if path.is_file()]
    if not files:
        raise BadInput(f"--config {file}: there is no such file.")
    values = read_yaml(files[-1])
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise BadInput(f"--set takes key=value, not '{override}'.")
        values[key] = read_value(schema, key, text)
    try:
        return schema(**values)
    except ValidationError as error:
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")  # its place names types too
        key = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part == first["loc"][0])[:200]
        hint = suggestion(key, schema.model_fields) if first["type"] == "extra_forbidden" else ""
        words = first["msg"].removeprefix("Value error, ")
        raise BadInput((f"the key '{key}': {words}" if key else words) + f"{hint}.") from None


def read_value(schema: type[ScriptConfig], key: str, text: str) -> Any:
    """The value of --set key=text: text as it stands where the key takes text, otherwise YAML."""
    field = schema.model_fields.get(ALIASES.get(key, key)) or schema.model_fields.get(key)
    annotation = field.annotation if field else None
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if not any(getattr(kind, "__origin__", kind) is str for kind in kinds):
        return parse_yaml(text, f"--set {key}={text}")
    others = {"": None, "null": None} if NoneType in kinds else {"true": True, "false": False}  # the latter of transfer
    return others.get(text, text) if len(kinds) > 1 else text


def read_yaml(path: Path) -> dict[str, Any]:
    """A config file's keys, laid over those of the file its `base:` names."""
    return {key: value for _, values in reversed(read_chain(path)) for key, value in values.items()}


def read_chain(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """A config file with its keys, then the one that it is based on, and so on."""
    chain: dict[Path, dict[str, Any]] = {}
    base: Any = path.name
    while base is not None:
        path = project_path(path.parent / str(base)).resolve()
        if path in chain:
            raise BadInput(f"{shown(path)} is based on itself, by the key 'base'.")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            raise BadInput(f"{shown(path)} is not a config: it is no file, or has more than {MOST_BYTES >> 10} KiB.")
        values = parse_yaml(path.read_bytes(), shown(path), quotes=not chain)
        if not isinstance(values, dict) or not all(
                isinstance(key, str) and re.fullmatch(r"[\w-]+", key) for key in values):
            raise BadInput(f"{shown(path)} is not a config: it should hold lines of 'key: value'.")
        base, chain[path] = values.pop("base", None), values
    return list(chain.items())


class _UniqueKeys(yaml.SafeLoader):
    """YAML silently keeps the last of two equal keys; an edited config should not."""

    def construct_mapping(self, node, deep=False):
        counts = Counter(key.value for key, _ in node.value if isinstance(key.value, str))
        for key, _ in node.value:
            if isinstance(key.value, str) and counts[key.value] > 1:
                raise yaml.MarkedYAMLError(problem=f"the key '{key.value}' stands twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)

    def resolve(self, kind, value, implicit):
        """1:20:30 and 010 are text; YAML 1.1 reads them as numbers of the bases 60 and 8."""
        text = kind is yaml.ScalarNode and implicit[0] and re.match(r"[-+]?(0[\d_]|[\d_]+:)", value)
        return "tag:yaml.org,2002:str" if text else super().resolve(kind, value, implicit)


for one in (_UniqueKeys, yaml.SafeDumper):  # 1e-5, which YAML 1.1 takes for a word, is a number; written, such a word
    one.add_implicit_resolver(              # gets quotes
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), [*"-+0123456789"])


def parse_yaml(text: str | bytes, source: str, quotes: bool = True) -> Any:
    """quotes: whether an error may quote the text; another's secrets stay out of messages."""
    try:
        return yaml.load(text, _UniqueKeys)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: dates that are none
        mark, why = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        raise BadInput(f"{source} is not valid YAML" + f": {' '.join(why.split())}" * quotes
                       + (f", in line {mark.line + 1}." if mark else ".")) from None


def suggestion(word: str, known: Iterable[object], cutoff: float = 0.6) -> str:
    """', did you mean X?' in the words of an error, or nothing. cutoff: how alike, between 0 and 1."""
    names = [str(name) for name in known]
    close = [name for name in names if name == f"{word}_list"] or difflib.get_close_matches(
        str(word), names, n=1, cutoff=cutoff)
    return f"; did you mean '{close[0]}'" if close else ""


def there_are(columns: Iterable[object]) -> str:
    """'; there are X, Y' in the words of an error: a table's columns, but for those that have no name."""
    names = [str(name) for name in columns if str(name).strip()]
    return f"; there are {', '.join(names[:30])}{', ...' * (len(names) > 30)}"


def describe_keys(schema: type[BaseModel]) -> list[tuple[str, str, str]]:
    """Each key of a config: its name, default (empty where there is none) and meaning, with the words allowed."""
    rows = []
    for name, field in schema.model_fields.items():
        default = "" if field.is_required() else yaml.safe_dump(field.default, default_flow_style=True).splitlines()[0]
        words = re.findall(r"(?<!class )'(\w+)'", str(field.annotation))  # of a Literal
        listed = f" ({', '.join(words)})" if any(word not in default for word in words) else ""
        rows.append((name, default, f"{field.description or ''}{listed}"))
    return rows
