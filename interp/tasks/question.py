"""A config's data, sequences or sentences, as each of its models reads them, and the models themselves.

Whatever the task, a method gets Examples and an open model; only this module distinguishes tasks.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor
from transformers import PretrainedConfig

from interp.models import loading
from interp.models.examples import Answer, Examples
from interp.models.family import family_of
from interp.models.opened import RESID_MID, OpenModel, Site
from interp.models.opening import open_model
from interp.models.room import Room
from interp.models.sublayers import find_sublayer
from interp.runs.config import BadInput
from interp.runs.settings import Setting, fill_in
from interp.tasks import sentences
from interp.tasks.arithmetic import labels_of, read_data, require_columns, rule_values, token_ids
from interp.tasks.functions import Rule
from interp.tasks.keys import LABELS, SEQUENCE_KEYS, QuestionConfig

POSITION_KEYS = ("probe_index", "target_position", "token_range")  # the paper's names of the probed position
LOCATION_KEYS = ("operation", "residual_location", "location")  # and of the place in a layer
SITES = {"attn": RESID_MID, "mlp": "resid_post"}  # DAS names the site after the sublayer it follows
TRAIN, TEST, GEN = "train", "test", "gen"


@dataclass(frozen=True)
class Data:
    """What one model is shown.

    train: to learn from. tests: to probe on, by name, the one called `test` first. judged: what answers are judged on,
    by the name that the figures carry. extra: other sequences of the config, by its key.
    """

    train: Examples
    tests: dict[str, Examples]
    judged: dict[str, Examples]
    extra: dict[str, Examples]


@dataclass(frozen=True)
class Exchange:
    """The columns that give the answer after exchanging a variable with that of the counterfactual sequence.

    label: the column of the answers, or a rule that gives them, as `counterfactual_label_functions` has them.
    """

    label: str | Rule
    variable: str | None = None


class ReadSentences(NamedTuple):
    """Sentences as a model reads them. answer_variable: the column that the answer depends on. splits: by name."""

    reader: sentences.Reader
    answer_variable: str
    splits: dict[str, tuple[pd.DataFrame, Examples]]


class Question:
    """A config's data and models: read and checked when made, opened one model at a time.

    pairs: for sequences the columns of their exchange (by variable, where several are swept), for sentences whether
    sources are wanted.
    extra: further sequences whose answers are judged, config key by config key.

    Raises:
        BadInput: the data are missing, or do not fit each other, the keys or the models.
    """

    def __init__(self, config: QuestionConfig, settings: Sequence[Setting], device: torch.device, *,
                 pairs: Exchange | dict[str, Exchange] | bool = False, extra: Collection[str] = ()):
        self.config, self.settings, self.device = config, settings, device
        self.pairs, self.extra = pairs, extra
        self.room = Room(config.cache_gib)
        self.configurations: dict[str, PretrainedConfig] = {}
        self.known: dict[Any, Data] = {}
        self.sentences: dict[str, ReadSentences] = {}  # by model
        self.opened: dict[Any, OpenModel] = {}
        self.activations: dict[Any, Tensor] = {}
        self.states: dict[Examples, Tensor] = {}
        for setting in settings:
            path = self.path(setting)
            if path not in self.configurations:
                self.configurations[path] = loading.read_model_config("model_path", path)
            check_layers(self.configurations[path], path, config, setting)
            data, exchange = self.data(setting), self.exchange(self.variable(setting))
            splits = {} if config.of_sentences else dict(zip(SEQUENCE_KEYS, (data.train, data.tests[TEST])))
            for key, examples in (splits | data.extra).items():
                check_fits(key, examples, self.configurations[path])
                if examples.source and exchange:
                    check_fits(key, examples.source, self.configurations[path], f"'{exchange.label}'")

    def path(self, setting: Setting) -> str:
        return fill_in("model_path", self.config.model_path, setting)

    # ------------------------------------------------------------------------------ data

    def data(self, setting: Setting) -> Data:
        """What the setting's model is shown, probed at the setting's position."""
        path, position = self.path(setting), position_of(self.config, setting)
        variable = self.variable(setting)
        key = (path if self.config.of_sentences else None, position, variable)
        if key not in self.known:
            self.known[key] = (self.pair_sentences(path, position, variable) if self.config.of_sentences
                               else self.read_sequences(position, variable))
        return self.known[key]

    def variable(self, setting: Setting) -> str:
        """The variable that a setting asks about."""
        return getattr(setting, "variable", self.config.asked)

    def answer_variable(self, setting: Setting) -> str:
        """The column that the answer to sentences depends on."""
        return self.sentences[self.path(setting)].answer_variable

    def has_own_sources(self, setting: Setting) -> bool:
        """Whether the file of sentences says which source each has."""
        table, _ = self.sentences[self.path(setting)].splits[TRAIN]
        return "source" in table

    def groups(self, setting: Setting, split: str, rows: Tensor) -> dict[str, Tensor]:
        """Where among some of a split's sentences, counted once each, those of each group stand."""
        table, _ = self.sentences[self.path(setting)].splits[split]
        names = table.drop_duplicates("sentence")["group"].iloc[rows.tolist()].reset_index(drop=True)
        return {name: torch.tensor(at, device=rows.device) for name, at in names.groupby(names).indices.items()}

    def exchange(self, variable: str) -> Exchange | None:
        """How sequences say what exchanging a variable does."""
        own = self.pairs.get(variable) if isinstance(self.pairs, dict) else self.pairs
        return own if isinstance(own, Exchange) else None

    def read_sequences(self, position: int, variable: str) -> Data:
        config = self.config
        columns = [variable] if config.variables else []
        place: dict[str, Any] = {"position": position, "position_key": position_key(self.settings[0])}
        train, test = (read_sequences(key, getattr(config, key), columns, self.device, exchange=self.exchange(variable),
                                      variable=variable, **place) for key in SEQUENCE_KEYS)
        for column in columns:
            check_classes(column, train.variables[column], test.variables[column])
        extra = {key: read_sequences(key, getattr(config, key), [], self.device, **place) for key in self.extra}
        return Data(train, {TEST: test}, {TEST: test}, extra)

    def read_sentences(self, path: str, position: int) -> "ReadSentences":
        """Train and test sentences drawn from data_path, and test_size more from gen_path, as a model reads them."""
        config, variables = self.config, self.config.variables
        assert config.data_path is not None  # consistent_task sees to it
        if position != -1:
            raise BadInput(f"{position_key(self.settings[0])}: sentences are probed at their last token; leave "
                           "the key out.")
        reader = sentences.Reader(loading.load_tokenizer("model_path", path), path, config.sentence_prefix,
                                  config.capitalize)
        wanted = list(dict.fromkeys([*variables, *filter(None, [config.answer_variable])]))
        table = sentences.read_sentences("data_path", config.data_path, config.task, wanted)
        answer_variable = config.answer_variable or (LABELS if LABELS in table else variables[0])
        if len(variables) > 1:
            if LABELS not in table and not config.answer_variable:
                raise BadInput(f"answer_variable: say which of {', '.join(variables)} the answer depends on; "
                               f"{table.attrs['source']} has no column '{LABELS}'.")
            for variable in variables if "source" in table else ():
                if f"source_{variable}" not in table:
                    raise BadInput(f"{table.attrs['source']} gives sources, so that for several variables it needs a "
                                   f"column 'source_{variable}' too.")
        drawing = torch.Generator().manual_seed(config.data_seed)
        drawn = sentences.draw("train_size", config.data_path, table, config.train_size + config.test_size, drawing)
        tables = {TRAIN: drawn[drawn["drawn"] < config.train_size], TEST: drawn[drawn["drawn"] >= config.train_size]}
        if config.gen_path:
            gen = sentences.read_sentences("gen_path", config.gen_path, config.task, wanted, optional=True)
            for variable in (name for name in variables if name not in gen):
                print(f"gen_path: {config.gen_path} has no column '{variable}', so that nothing is looked for in it.")
            tables[GEN] = sentences.draw("test_size", config.gen_path, gen, config.test_size, drawing)
        read = {name: (own, reader.read(own, wanted, self.device)) for name, own in tables.items()}
        for name, (_, examples) in read.items():
            check_fits("gen_path" if name == GEN else "data_path", examples, self.configurations[path])
        return ReadSentences(reader, answer_variable, read)

    def pair_sentences(self, path: str, position: int, variable: str) -> Data:
        """A model's sentences, paired for exchanging a variable where that is asked for."""
        if path not in self.sentences:
            self.sentences[path] = self.read_sentences(path, position)
        reader, answer_variable, tables = self.sentences[path]
        judged, probed = {}, {}
        for name, (own, examples) in tables.items():
            if variable in own:
                if self.pairs:
                    examples = sentences.pair(examples, own, reader, variable, answer_variable, self.config.data_seed)
                first = torch.tensor((~own["sentence"].duplicated()).tolist(), device=self.device)
                probed[name] = examples if first.all() or "source" in own else examples[first.nonzero().flatten()]
                for rows in filter(None, (probed[name], probed[name].source)):
                    check_classes(variable, probed[TRAIN].variables[variable], rows.variables[variable])
            judged[{TEST: "iid"}.get(name, name)] = examples
        del judged[TRAIN]
        return Data(probed.pop(TRAIN), probed, judged, {})

    # ----------------------------------------------------------------------------- models

    def open(self, setting: Setting) -> OpenModel:
        """The setting's model, with fresh weights where the config has controls; kept until another is asked for."""
        config, path = self.config, self.path(setting)
        shuffled = config.layer_reinit is True and (setting.target_layer, location_of(setting))
        key = (path, setting.model_seed, shuffled)
        if key not in self.opened:
            self.opened.clear()
            self.activations.clear()
            self.states.clear()
            model = loading.load_model("model_path", path, self.device, config.dtype, config.spread)
            loading.reinitialize(
                model, setting.model_seed, body=config.random_init, embeddings=config.reinit_embeddings,
                layer=-1 if isinstance(config.layer_reinit, bool) else config.layer_reinit)
            try:
                opened = open_model(model, self.data(setting).train, self.room)
            except (ValueError, IndexError, KeyError, AttributeError, TypeError) as error:  # as families differ
                raise BadInput(f"model_path: {path} cannot be opened: {loading.first_line(error)}.") from None
            if shuffled:
                operation = "mlp" if location_of(setting) in ("mlp", "resid_post") else "attn"
                sublayer = find_sublayer(opened, setting.target_layer, operation)
                loading.shuffle_weights(sublayer.maps.values(), setting.model_seed)
            self.opened[key] = opened
        return self.opened[key]

    def read(self, setting: Setting, examples: Examples) -> Tensor:
        """The activations at the setting's site, (rows, d_model); those of the settings to come in the same pass."""
        opened, site = self.open(setting), site_of(setting)
        if examples.origin:
            whole, rows = examples.origin
            return self.read(setting, whole)[rows]
        if (examples, site) not in self.activations:
            coming = self.sites(setting, examples)
            self.activations = {key: kept for key, kept in self.activations.items() if key[1] in coming}
            self.activations |= zip([(examples, own) for own in coming], opened.read(examples, coming))
        return self.activations[examples, site].to(self.device)  # which are in a file where memory is short

    def answers(self, setting: Setting, examples: Examples) -> Tensor:
        """The states of the setting's model without intervention, (rows, d_model), computed once."""
        opened = self.open(setting)
        if examples not in self.states:
            self.states[examples] = opened.answer(examples)
        return self.states[examples]

    def vanilla(self, setting: Setting) -> dict[str, float]:
        """How often the setting's model answers rightly without intervention, as a reference for other figures."""
        return {column: share for name, examples in self.data(setting).judged.items() for column, share in accuracies(
            self.open(setting), self.answers(setting, examples), f"vanilla_acc_{name}", examples).items()}

    def check_portions(self, *keys: str) -> None:
        """Refuse portions of train, with the sizes that these keys give, if train has fewer rows; raises BadInput."""
        sizes = [getattr(self.config, key) for key in keys]
        for setting in self.settings:
            count = len(self.data(setting).train)
            if sum(sizes) > count:
                what = "training sentences" if self.config.of_sentences else "rows of train_data_path"
                raise BadInput(f"{keys[0]}: {sizes[0]} and {keys[1]} {sizes[1]} are more than the {count} {what}.")

    def portions(self, examples: Examples, *sizes: int) -> list[Tensor]:
        """Row numbers of disjoint portions of examples, drawn with data_seed, which share no input.

        Rows of one input (a sentence with several sources) come together; of an input at the end of a portion the
        rows that it had no room for are in none.
        """
        drawing = torch.Generator().manual_seed(self.config.data_seed)
        order, inputs = torch.randperm(len(examples), generator=drawing), examples.inputs.cpu()
        first: dict[int, int] = {}  # place in the order, of the first row of each input
        places = [first.setdefault(number, place) for place, number in enumerate(inputs[order].tolist())]
        order = order[torch.tensor(places).sort(stable=True).indices]
        parts = list(order[:sum(sizes)].split(sizes))
        for i in range(1, len(parts)):
            earlier = inputs[torch.cat(parts[:i])]
            parts[i] = parts[i][~torch.isin(inputs[parts[i]], earlier)]
        return [part.to(self.device) for part in parts]

    def sites(self, setting: Setting, examples: Examples) -> list[Site]:
        """The setting's site and the next ones with the same model, as many as there is room for."""
        coming = [site_of(other) for other in self.settings[self.settings.index(setting):]
                  if self.path(other) == self.path(setting) and other.model_seed == setting.model_seed]
        coming, each = list(dict.fromkeys(coming)), 4 * len(examples) * self.open(setting).model.config.hidden_size
        return coming[:self.room.portion(each, len(coming), self.device)]


# --------------------------------------------------------------------------- the paper's names

def position_of(config: QuestionConfig, setting: Setting) -> int:
    """The probed position, under whichever of its names; -1, the last, where there is none."""
    for name in POSITION_KEYS:
        if hasattr(setting, name):
            return getattr(setting, name)
        if getattr(config, name, None) is not None:
            return int(getattr(config, name).split("_")[0])
    return -1


def position_key(setting: Setting) -> str:
    """The key of the probed position."""
    return next((f"{name}_list" for name in POSITION_KEYS if hasattr(setting, name)), "token_range")


def location_of(setting: Setting) -> str:
    return next(getattr(setting, name) for name in LOCATION_KEYS if hasattr(setting, name))


def site_of(setting: Setting) -> Site:
    """The site in the residual stream that a setting is about; not of circuit probing, which is about sublayers."""
    return Site(setting.target_layer, SITES.get(location_of(setting), location_of(setting)))


# ---------------------------------------------------------------------------------- sequences

def read_sequences(key: str, path: str, columns: list[str], device: torch.device, position: int,
                   exchange: Exchange | None = None, variable: str | None = None,
                   position_key: str = "position") -> Examples:
    """Sequences of equal length with integer columns, probed at a position, answered after the last.

    Raises:
        BadInput: the file or a column is missing, or holds what it should not.
    """
    rule = exchange.label if exchange and isinstance(exchange.label, tuple) else None
    own = [*(rule[:2] if rule else [exchange.label]), *filter(None, [exchange.variable])] if exchange else []
    table = read_data(key, path, ["data", LABELS, *columns, *own])
    examples = sequences_of(table, "data", {column: labels_of(table, column).to(device) for column in columns},
                            labels_of(table, LABELS).to(device), key, position, position_key)
    if exchange is None:
        return examples
    require_columns(table, ["counterfactual_data"])
    values = {variable: labels_of(table, exchange.variable).to(device)} if exchange.variable and variable else {}
    label = (labels_of(table, exchange.label) if isinstance(exchange.label, str)
             else rule_values(table, exchange.label)).to(device)
    if key == SEQUENCE_KEYS[0] and variable in columns:
        say_other_exchange(key, table, exchange.label, variable)
    source = sequences_of(table, "counterfactual_data", values, label, key, position, position_key)
    return examples.paired_with(source, Answer(label))


def say_other_exchange(key: str, table: pd.DataFrame, label: str | Rule, variable: str) -> None:
    """Say where the answers after an exchange are those of exchanging another variable: as some of the paper's are."""
    told = label.replace("CF_Label_", "CF_FN_") if isinstance(label, str) else None
    words = label[:2] if told is None else str(table[told].iloc[0]).split()[:2] if told in table else []
    exchanged = [word.removeprefix("counter_") for word in words if word.startswith("counter_")]
    if exchanged and variable not in exchanged:
        print(f"{key}: {label if told else ' '.join(label)} is the answer after an exchange of {exchanged[0]}, not of "
              f"{variable}.")


def sequences_of(table, column: str, variables: dict[str, Tensor], labels: Tensor, key: str, position: int,
                 position_key: str) -> Examples:
    tokens = token_ids(table, column).to(labels.device)
    length = tokens.shape[1]
    if not -length <= position < length:
        raise BadInput(f"{position_key}: there is no position {position} in the {length} tokens of {key}.")
    last = torch.full_like(labels, length - 1)
    return Examples(tokens, torch.full_like(last, position % length), last, variables, Answer(labels))


def check_classes(variable: str, train: Tensor, test: Tensor) -> None:
    """Refuse a variable with a single value, or with a class that only test has; raises BadInput."""
    classes = set(train.tolist())
    if len(classes) < 2:
        raise BadInput(f"variable: '{variable}' has a single value in the training data; there is nothing to tell "
                       "apart.")
    if max(classes) >= max(len(train), 1000):
        raise BadInput(f"variable: '{variable}' goes up to {max(classes)}, with {len(classes)} values in {len(train)} "
                       "training examples; number its values from 0.")
    unknown = sorted(set(test.tolist()) - classes)
    if unknown:
        raise BadInput(f"variable: class {unknown[0]} of '{variable}' has no example in the training data, but is "
                       "in the test data.")


def check_range(key: str, column: str, values: Tensor, limit: int) -> None:
    """Refuse values that are no class of `limit` classes.

    Raises:
        BadInput: one is negative or too large.
    """
    if not 0 <= values.min() <= values.max() < limit:
        raise BadInput(f"{key}: '{column}' goes from {values.min()} to {values.max()}, which does not fit "
                       f"in {limit} classes from 0.")


def check_batch(batch_size: int, count: int) -> None:
    """Refuse a batch that leaves no complete one; raises BadInput."""
    if batch_size > count:
        raise BadInput(f"batch_size_list: {batch_size} is more than the {count} training examples.")


# ------------------------------------------------------------------- models, by their configuration

def check_layers(model: PretrainedConfig, path: str, config: QuestionConfig, setting: Setting) -> None:
    """Refuse a layer or a site that a model's configuration lacks; raises BadInput."""
    for key, layer in (("target_layer_list", setting.target_layer), ("layer_reinit", config.layer_reinit)):
        if layer is not True and layer >= model.num_hidden_layers:
            raise BadInput(f"{key}: there is no layer {layer}; the model has {model.num_hidden_layers}, counted from "
                           "0.")
    of_sublayer = hasattr(setting, "operation")
    if not of_sublayer and site_of(setting).location == RESID_MID and family_of(model).parallel:
        key = next(name for name in LOCATION_KEYS if hasattr(setting, name))
        raise BadInput(f"{key}_list: {path} has no {RESID_MID}: attention and MLP of a '{model.model_type}' model read "
                       "the same residual stream.")


def check_fits(key: str, examples: Examples, model: PretrainedConfig, answers: str = "the answer") -> None:
    """Refuse rows that a model cannot read to their ends, or whose tokens or answers are not the model's.

    Raises:
        BadInput: the message shows a sentence by its words and calls the answers `answers`.
    """
    longest, most = int(examples.lengths.argmax()), context_of(model)
    if examples.lengths[longest] > most:
        row = f"'{examples.texts[longest]}'" if examples.texts else "a sequence"
        raise BadInput(f"{key}: {row} has {examples.lengths[longest]} tokens, the model reads at most {most}.")
    of_answers = [tokens for tokens in (examples.answer.right, examples.answer.wrong) if tokens is not None]
    for what, tokens in [("token", examples.tokens), *((answers, tokens) for tokens in of_answers)]:
        outside = tokens[(tokens < 0) | (tokens >= model.vocab_size)]
        if len(outside):
            raise BadInput(f"{key}: {what} {outside[0]} is not in the model's vocabulary of {model.vocab_size}.")


def context_of(model: PretrainedConfig) -> int:
    """How many tokens a row may have; a sliding window would need masks that the prefix forest does not have."""
    most = getattr(model, "max_position_embeddings", None) or 10**9
    return min(most, getattr(model, "sliding_window", None) or most)


def evaluations(judged: dict[str, Examples]) -> dict[str, tuple[Examples, Tensor | None]]:
    """What answers are judged on: by name the examples and, of a group, its rows."""
    found: dict[str, tuple[Examples, Tensor | None]] = {}
    for name, examples in judged.items():
        found |= ({f"{name}_{group}": (examples, rows) for group, rows in examples.groups.items()} if examples.groups
                  else {name: (examples, None)})
    return found


def accuracy(opened: OpenModel, states: Tensor, answer: Answer, rows: Tensor | None = None) -> float:
    """Share of right answers, of some rows or of all."""
    right = opened.is_right(states, answer)
    return (right if rows is None else right[rows]).double().mean().item()


def accuracies(opened: OpenModel, states: Tensor, name: str, examples: Examples) -> dict[str, float]:
    """Share of right answers of some examples, by evaluation set. name: of the examples."""
    return {own: accuracy(opened, states, examples.answer, rows)
            for own, (_, rows) in evaluations({name: examples}).items()}
