"""A config's data and models: what prepare() reads and checks, and the loops that every method runs over them.

Whatever the task, a method gets an open model, Examples and Pairs; only this module distinguishes tasks.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import PretrainedConfig

from interp.models import loading
from interp.models.examples import Answer, Examples, Pairs, distinct, stacked
from interp.models.family import ATTENTION, MLP, family_of
from interp.models.open_model import (
    ATTN_OUT,
    GIB,
    MLP_OUT,
    RESID_MID,
    RESID_POST,
    RESID_PRE,
    ForwardFrom,
    OpenModel,
    Site,
    warn,
)
from interp.models.opening import open_model
from interp.models.positions import EVERYWHERE, FIRST, LAST, Position
from interp.models.sublayers import find_sublayer
from interp.models.suffix import Suffix
from interp.runs.config import BadInput
from interp.runs.settings import Setting, expand_settings, fill_in
from interp.tasks import sentences
from interp.tasks.arithmetic import add_hard_negatives, labels_of, read_data, require_columns, rule_values, token_ids
from interp.tasks.functions import Rule
from interp.tasks.keys import LABELS, SEQUENCE_KEYS, QuestionConfig

LOCATION_KEYS = ("operation", "residual_location", "location")  # the paper's names of the place in a layer
SITES = {"location": {"attn": RESID_MID, "mlp": RESID_POST},    # DAS names the site after the sublayer it follows,
         "operation": {ATTENTION: ATTN_OUT, MLP: MLP_OUT}}      # circuit probing looks at the sublayer's update
TRAIN, TEST, GEN = "train", "test", "gen"


@dataclass(frozen=True)
class Data:
    """What one model is shown.

    train: to learn from. tests: to probe on, by name, the one called `test` first. evaluated: what the model's answers
    are evaluated on, by the name that columns carry. pairs: train and tests with their sources, if sources are wanted.
    extra: other sequences of the config, by its key. from_file: a file of sentences gives the sources.
    """

    train: Examples
    tests: dict[str, Examples]
    evaluated: dict[str, Examples]
    pairs: dict[str, Pairs] = field(default_factory=dict)
    extra: dict[str, Examples] = field(default_factory=dict)
    changes: bool = True    # the answer depends on the variable
    from_file: bool = True

    def probing(self, position: Position) -> "Data":
        """The rows, and the pairs, that have a position, probed there."""
        def each(splits: dict) -> dict:
            return {name: split.probing(position) for name, split in splits.items()}

        return replace(self, train=self.train.probing(position), tests=each(self.tests), pairs=each(self.pairs),
                       evaluated=each(self.evaluated), extra=each(self.extra))

    def splits(self) -> list[Examples]:
        """All that the model is run on."""
        sources = [pairs.source for pairs in self.pairs.values()]
        return [self.train, *self.tests.values(), *self.evaluated.values(), *self.extra.values(), *sources]


@dataclass(frozen=True)
class Counterfactual:
    """The columns of sequences that say what the interchange of a variable does.

    label: the column of the counterfactual answers, or a rule that gives them, as `counterfactual_label_functions` has
    them. variable: the column of the source's values. place: of a hard negative, that of the token that determines the
    variable.
    """

    label: str | Rule
    variable: str | None = None
    place: int | None = None


class Study:
    """A config's data and models, read and checked when made.

    counterfactuals: the columns that pair sequences, by variable. paired: whether sentences are paired with sources.
    extra: config keys of further sequences to evaluate answers on. masks: whether sublayers are masked. notes: what to
    know about how sentences are read.

    Raises:
        BadInput: the data are missing, or do not fit each other, the keys or the models.
    """

    def __init__(self, config: QuestionConfig, settings: Sequence[Setting], device: torch.device, *,
                 counterfactuals: dict[str, Counterfactual] | None = None, paired: bool = False,
                 extra: Collection[str] = (), masks: bool = False):
        self.config, self.device, self.masks = config, device, masks
        self.data_by_key: dict[tuple, Data] = {}
        self.notes: list[str] = []
        for path, of_model in grouped(settings, self.path).items():
            configuration = loading.read_model_config("model_path", path)
            for setting in of_model:
                check_layers(configuration, path, config, setting)
            tables = Sentences(config, path, device) if config.of_sentences else None
            for key, of_data in grouped(of_model, self.data_key).items():
                if key not in self.data_by_key:
                    variable = self.variable(of_data[0])
                    self.data_by_key[key] = tables.data(variable, paired) if tables else read_sequences_of(
                        config, variable, device, (counterfactuals or {}).get(variable), extra)
                counterfactual = (counterfactuals or {}).get(self.variable(of_data[0]))
                check_data(self.data_by_key[key], config, configuration, counterfactual)
                check_positions(self.data_by_key[key], config, self.variable(of_data[0]))
            for note in tables.reader.notes.values() if tables else ():
                self.notes.append(note)
                warn(note)

    def path(self, setting: Setting) -> str:
        return fill_in("model_path", self.config.model_path, setting)

    def variable(self, setting: Setting) -> str:
        """The variable that a setting asks about."""
        return getattr(setting, "variable", self.config.variable_name)

    def data_key(self, setting: Setting) -> tuple:
        path = self.path(setting) if self.config.of_sentences else None  # sentences are read by a model's tokenizer
        return path, self.variable(setting)

    def data(self, setting: Setting) -> Data:
        """What the setting's model is shown, probed at the setting's position."""
        return self.data_by_key[self.data_key(setting)].probing(setting.position)

    def models(self, settings: Sequence[Setting]) -> Iterator[tuple[OpenModel, Data, list[Setting]]]:
        """Each model, opened once, with its data, of all positions, and the settings that ask for both."""
        for (_, _, shuffled), of_model in grouped(settings, self.model_key).items():
            model = self.open(of_model[0], shuffled)
            for of_data in grouped(of_model, self.data_key).values():
                yield model, self.data_by_key[self.data_key(of_data[0])], of_data

    def model_key(self, setting: Setting) -> tuple:
        shuffled = (setting.target_layer, operation_of(setting)) if self.config.layer_reinit is True else None
        return self.path(setting), setting.model_seed, shuffled

    def open(self, setting: Setting, shuffled: tuple[int, str] | None) -> OpenModel:
        """The setting's model, with fresh weights where the config has controls."""
        config, path = self.config, self.path(setting)
        model = loading.load_model("model_path", path, self.device, config.dtype, config.spread)
        loading.reinitialize(
            model, setting.model_seed, body=config.random_init, embeddings=config.reinit_embeddings,
            layer=-1 if isinstance(config.layer_reinit, bool) else config.layer_reinit)
        try:
            splits = self.data_by_key[self.data_key(setting)].splits()
            opened = open_model(model, *splits, budget=int(config.cache_gib * GIB))
        except (ValueError, LookupError, AttributeError, TypeError, RuntimeError) as error:  # as families differ
            if "memory" in str(error):
                raise
            raise BadInput(f"model_path: {path} cannot be opened: {loading.first_line(error)}.") from None
        if shuffled:
            sublayer = find_sublayer(opened, *shuffled)
            loading.shuffle_weights(sublayer.maps.values(), setting.model_seed)
        return opened

    def check_models(self, settings: Sequence[Setting], answers: bool = False) -> None:
        """Refuse what only an opened model shows, by BadInput; answers: print how often each answers correctly."""
        for key, of_data in grouped(settings, self.data_key).items() if self.config.of_sentences else ():
            self.show_positions(self.data_by_key[key], self.path(of_data[0]))
        for model, data, of_model in self.models(settings):
            if answers:
                self.report_answers(model, data, of_model[0])
            for setting in of_model if self.masks else ():
                find_sublayer(model, setting.target_layer, operation_of(setting), getattr(
                    self.config, "partial_sublayers", False))

    def show_positions(self, data: Data, path: str) -> None:
        """Print which token each position is, in three sentences of each file and in their sources."""
        tokenizer = loading.load_tokenizer("model_path", path)
        sources = {f"{name}, source": pairs.source for name, pairs in data.pairs.items() if data.from_file}
        for name, examples in ({TRAIN: data.train, **data.tests, **sources}).items():
            for row in range(min(3, len(examples))):
                pieces = tokenizer.convert_ids_to_tokens(examples.tokens[row].tolist())
                places = {position: int(examples.where(position)[row]) for position in self.config.position_list}
                print(f"{name}: '{examples.texts[row]}'", *(
                    f"{position}: " + (f"token {place}, {pieces[place]}" if place >= 0 else "none")
                    for position, place in places.items()), sep="\n  ")

    def check_portions(self, *keys: str) -> None:
        """Refuse portions of train, of the sizes that these keys give, beyond its rows; raises BadInput."""
        sizes = [getattr(self.config, key) for key in keys]
        count = min(len(data.train) for data in self.data_by_key.values())
        if sum(sizes) > count:
            what = "training sentences" if self.config.of_sentences else "rows of train_data_path"
            raise BadInput(f"{keys[0]}: {sizes[0]} and {keys[1]} {sizes[1]} are more than the {count} {what}.")

    def report_answers(self, model: OpenModel, data: Data, setting: Setting) -> None:
        """Print how often a model answers correctly on up to 200 rows of each test, by group and answer."""
        path, seed, _ = self.model_key(setting)
        tokenizer = loading.load_tokenizer("model_path", path) if self.config.of_sentences else None
        print(f"{path}, model_seed {seed}: how often it answers correctly")
        for name, examples in data.evaluated.items():
            drawn = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))[:200]
            some = examples[drawn.to(examples.tokens.device)]
            right, answers = model.is_right(model.final_states(some), some.answer).cpu(), some.answer.right.cpu()
            words, counts = answers.unique(return_counts=True)
            most = words[counts.argsort(descending=True, stable=True)[:10]]  # of numbers there are many
            parts = {TEST if name == "iid" else name: torch.ones_like(right)}
            parts |= {f"  group {group}": torch.isin(torch.arange(len(some)), rows.cpu())
                      for group, rows in some.groups.items()}
            parts |= {f"  answer {str(tokenizer.decode([word])).strip() if tokenizer else word}": answers == word
                      for word in most.tolist()}
            for part, rows in parts.items():
                print(f"  {part:28} {right[rows].double().mean():.2f} of {rows.sum()}")


def open_study(**keys) -> tuple[OpenModel, Data]:
    """A model with hooks and its data, from the keys that every config has, for notebooks.

    counterfactual_label: for sequences, the column of the answers after the interchange of `variable`; pairs them.
    """
    label = keys.pop("counterfactual_label", None)
    config = QuestionConfig(results_dir="Results", **keys)
    [setting, *_] = expand_settings(config)
    counterfactual = Counterfactual(label, f"counter_{config.variable_name}") if label else None
    study = Study(config, [setting], loading.choose_device(config.device), paired=config.of_sentences,
                  counterfactuals={config.variable_name: counterfactual} if counterfactual else {})
    return study.open(setting, None), study.data(setting)


def grouped(settings: Sequence[Setting], key) -> dict:
    """Settings by a key, in order."""
    groups: dict = {}
    for setting in settings:
        groups.setdefault(key(setting), []).append(setting)
    return groups


def bases_of(split: Examples | Pairs) -> Examples:
    return split.base if isinstance(split, Pairs) else split


@dataclass(frozen=True)
class AtSite:
    """The settings of a site, and what stands there by split, in the rows that have its position.

    rows: their numbers. shown: the splits, probed there. activations: (rows, d_model), of pairs the bases' and then the
    sources'. entering: what enters the layer, (rows, T, d_model). forward: the model above the site, for rows or bases.
    missing: how many rows of each split lack the position.
    """

    site: Site
    settings: list[Setting]
    missing: dict[str, int] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)
    activations: dict[str, Tensor] = field(default_factory=dict)
    entering: dict[str, Tensor] = field(default_factory=dict)
    forward: dict[str, ForwardFrom] = field(default_factory=dict)

    @property
    def left_out(self) -> dict[str, int]:
        """The column that counts the test rows without the position; of sequences there is none."""
        return {"n_without_position": self.missing["test"]} if bases_of(self.shown["test"]).texts else {}


def at_sites(model: OpenModel, settings: Sequence[Setting], splits: Mapping[str, Examples | Pairs],
             forward: Collection[str] = (), entering: bool = False, at_once: int | None = None) -> Iterator[AtSite]:
    """The settings of each site, with what stands there; one pass reads as many places, at all positions, as fit.

    forward: the splits from whose sites the model is run on. entering: whether to read what enters the layers. at_once:
    how many places a pass reads, if not as many as memory holds. Rows with the same tokens are read once.
    """
    of_site = grouped(settings, site_of)
    for position, (name, split) in product({site.position for site in of_site}, splits.items()):
        if not len(split.rows_with(position)):
            raise BadInput(f"position_list: of {name} no row that is used has the position '{position}'.")
    shown = {name: split.both() if isinstance(split, Pairs) else split for name, split in splits.items()}
    suffixes = {name: Suffix(model, bases_of(splits[name]), of_site) for name in forward}
    read_rows, which = distinct(stacked([*shown.values()]), {site.position for site in of_site})
    numbers = dict(zip(shown, which.split([*map(len, shown.values())])))  # (rows of the split,) each

    def needed(site: Site) -> list[Site]:
        below = [Site(site.layer, RESID_PRE, EVERYWHERE)] * entering
        return [site, *below, *(part for suffix in suffixes.values() for part in suffix.needs(site))]

    places = list(grouped([*of_site], lambda site: (site.layer, site.location)).values())
    sizes = [len(read_rows) if part.position != EVERYWHERE else read_rows.tokens.numel()
             for part in {part for site in places[0] for part in needed(site)}]
    count = at_once or model.portion(4 * model.d_model * sum(sizes), len(places))
    for start in range(0, len(places), count):
        sites = [site for place in places[start:start + count] for site in place]
        read = model.activations(read_rows, {part for site in sites for part in needed(site)})
        for site in sites:
            at = AtSite(site, of_site[site])
            for name, split in splits.items():
                at.rows[name], at.shown[name] = split.rows_with(site.position), split.probing(site.position)
                at.missing[name] = len(split) - len(at.rows[name])
                of_rows = numbers[name].view(-1, len(split))[:, at.rows[name]].flatten()  # pairs have two each
                at.activations[name] = read[site][of_rows]
                if entering:
                    at.entering[name] = read[Site(site.layer, RESID_PRE, EVERYWHERE)][of_rows]
            for name, suffix in suffixes.items():
                clean = {part: read[part][numbers[name][:len(splits[name])]] for part in suffix.needs(site)}
                at.forward[name] = suffix.above(site, clean, at.rows[name])
            yield at


def portions(examples: Examples, sizes: Sequence[int], data_seed: int) -> list[Tensor]:
    """Row numbers of disjoint portions of examples, which share no input.

    Rows of one input (a sentence with several sources) come together; of an input at the end of a portion the rows that
    it had no place for are in none.
    """
    drawing = torch.Generator().manual_seed(data_seed)
    order, inputs = torch.randperm(len(examples), generator=drawing), examples.inputs().cpu()
    first: dict[int, int] = {}  # place in the order, of the first row of each input
    places = [first.setdefault(number, place) for place, number in enumerate(inputs[order].tolist())]
    order = order[torch.tensor(places).sort(stable=True).indices]
    parts = list(order[:sum(sizes)].split(list(sizes)))
    for i in range(1, len(parts)):
        earlier = inputs[torch.cat(parts[:i])]
        parts[i] = parts[i][~torch.isin(inputs[parts[i]], earlier)]
    return [part.to(examples.tokens.device) for part in parts]


# --------------------------------------------------------------------------- the paper's names

def location_of(setting: Setting) -> str:
    return next(getattr(setting, name) for name in LOCATION_KEYS if hasattr(setting, name))


def operation_of(setting: Setting) -> str:
    """The sublayer of a setting, or the one that writes to its site."""
    return MLP if location_of(setting) in (MLP, MLP_OUT, RESID_POST) else ATTENTION


def site_of(setting: Setting) -> Site:
    """A setting's site; circuit probing's is the update of its sublayer."""
    [(key, location)] = [(name, getattr(setting, name)) for name in LOCATION_KEYS if hasattr(setting, name)]
    return Site(setting.target_layer, SITES.get(key, {}).get(location, location), setting.position)


# ---------------------------------------------------------------------------------- sequences

def read_sequences_of(config: QuestionConfig, variable: str, device: torch.device,
                      counterfactual: Counterfactual | None, extra: Collection[str]) -> Data:
    """A config's sequences; a variable NAME@... is a hard negative of NAME."""
    place = counterfactual.place if counterfactual else None
    name_of = variable if place is None else variable.partition("@")[0]
    examples, pairs, columns = {}, {}, [variable] if config.variables else []
    tables = {name: read_data(key, getattr(config, key), ["data", LABELS, *([name_of] if columns else [])])
              for name, key in zip((TRAIN, TEST), SEQUENCE_KEYS)}
    if place is not None:
        add_hard_negatives([*tables.values()], name_of, place, config.data_seed)
    for (name, table), key in zip(tables.items(), SEQUENCE_KEYS):
        values = {column: labels_of(table, column).to(device) for column in columns}
        examples[name] = sequences(table, "data", values, labels_of(table, LABELS).to(device))
        if counterfactual:
            source, label = read_sources(table, counterfactual, variable, device)
            pairs[name] = Pairs(examples[name], source, Answer(label))
            if name == TRAIN and columns:
                name_other_interchange(key, table, counterfactual.label, name_of)
    for column in columns:
        check_classes(column, examples[TRAIN].variables[column], examples[TEST].variables[column])
    further = {}
    for key in extra:
        table = read_data(key, getattr(config, key), ["data", LABELS])
        further[key] = sequences(table, "data", {}, labels_of(table, LABELS).to(device))
    tests = {TEST: examples[TEST]}
    return Data(examples[TRAIN], tests, tests, pairs, further, changes=False)


def sequences(table: pd.DataFrame, column: str, variables: dict[str, Tensor], labels: Tensor) -> Examples:
    """Sequences of equal length, answered after the last token."""
    tokens = token_ids(table, column).to(labels.device)
    last = torch.full_like(labels, tokens.shape[1] - 1)
    return Examples(tokens, last, last, variables, Answer(labels))


def read_sources(table: pd.DataFrame, counterfactual: Counterfactual, variable: str,
                 device: torch.device) -> tuple[Examples, Tensor]:
    """The counterfactual sequences, and the answers after the interchange, (rows,)."""
    rule = counterfactual.label
    columns = [rule] if isinstance(rule, str) else list(rule[:2])
    require_columns(table, [*columns, *filter(None, [counterfactual.variable]), "counterfactual_data"])
    values = {}
    if counterfactual.variable:
        values[variable] = labels_of(table, counterfactual.variable).to(device)
    label = (labels_of(table, rule) if isinstance(rule, str) else rule_values(table, rule)).to(device)
    return sequences(table, "counterfactual_data", values, label), label


def name_other_interchange(key: str, table: pd.DataFrame, label: str | Rule, variable: str) -> None:
    """Say where counterfactual answers are those of another variable's interchange, as some of the paper's are."""
    if isinstance(label, str):
        rule = label.replace("CF_Label_", "CF_FN_")
        words, name = str(table[rule].iloc[0]).split()[:2] if rule in table else [], label
    else:
        words, name = list(label[:2]), " ".join(label)
    exchanged = [word.removeprefix("counter_") for word in words if word.startswith("counter_")]
    if exchanged and variable not in exchanged:
        print(f"{key}: {name} is the answer after an interchange of {exchanged[0]}, not of {variable}.")


# ---------------------------------------------------------------------------------- sentences

class Sentences:
    """Train and test sentences drawn from data_path, and test_size more from gen_path, as one model reads them."""

    def __init__(self, config: QuestionConfig, path: str, device: torch.device):
        assert config.data_path is not None  # consistent_task sees to it
        self.config, variables = config, config.variables
        self.reader = sentences.Reader(loading.load_tokenizer("model_path", path), path, config.sentence_prefix,
                                       config.capitalize, config.answer_prefix, config.position_token)
        wanted = list(dict.fromkeys([*variables, *filter(None, [config.answer_variable])]))
        spaces = not config.answer_prefix
        table = sentences.read_sentences("data_path", config.data_path, config.task, wanted, spaces=spaces)
        self.answer_variable = config.answer_variable or (LABELS if LABELS in table else variables[0])
        if len(variables) > 1:
            if LABELS not in table and not config.answer_variable:
                raise BadInput(f"answer_variable: say which of {', '.join(variables)} the answer depends on; "
                               f"{table.attrs['source']} has no column '{LABELS}'.")
            if "source" in table:
                require_columns(table, [f"source_{variable}" for variable in variables])
        drawing = torch.Generator().manual_seed(config.data_seed)
        drawn = sentences.draw("train_size", config.data_path, table, config.train_size + config.test_size, drawing)
        self.tables = {TRAIN: drawn[drawn["drawn"] < config.train_size],
                       TEST: drawn[drawn["drawn"] >= config.train_size]}
        if config.hold_out:
            wanted.append(sentences.WORD)
            parts = sentences.hold_out(config.hold_out, self.tables[TRAIN], self.tables[TEST], config.data_seed)
            self.tables = dict(zip((TRAIN, TEST), parts))
        if config.gen_path:
            gen = sentences.read_sentences("gen_path", config.gen_path, config.task, wanted, True, spaces)
            for variable in (name for name in variables if name not in gen):
                print(f"gen_path: {config.gen_path} has no column '{variable}', so that nothing is looked for in it.")
            self.tables[GEN] = sentences.draw("test_size", config.gen_path, gen, config.test_size, drawing)
        seen: dict[tuple[int, ...], str] = {}
        self.examples = {name: self.reader.read(drawn, wanted, device, seen) for name, drawn in self.tables.items()}

    def data(self, variable: str, paired: bool) -> Data:
        """The sentences for one variable: probed once each, evaluated in every row."""
        probed, pairs, changes = {}, {}, variable == self.answer_variable
        for name, table in self.tables.items():
            if variable not in table:
                continue
            examples = self.examples[name]
            once = torch.tensor((~table["sentence"].duplicated()).tolist(), device=examples.tokens.device)
            if "source" in table:
                probed[name] = examples
                if paired:
                    pairs[name] = sentences.given_pairs(examples, table, self.reader, variable, changes)
            else:
                rows = once.nonzero().flatten()
                probed[name] = examples if once.all() else examples[rows]
                if paired:
                    drawn = sentences.drawn_pairs(examples, variable, changes, table.attrs["source"],
                                                  self.config.data_seed)
                    pairs[name] = drawn if once.all() else drawn[rows]
            sources = [pairs[name].source] if name in pairs else []
            for shown in (probed[name], *sources):
                check_classes(variable, probed[TRAIN].variables[variable], shown.variables[variable])
        evaluated = {{TEST: "iid"}.get(name, name): examples for name, examples in self.examples.items()
                     if name != TRAIN}
        return Data(probed.pop(TRAIN), probed, evaluated, pairs, changes=changes,
                    from_file="source" in self.tables[TRAIN])


# ------------------------------------------------------------------------------------- checks

def check_data(data: Data, config: QuestionConfig, model: PretrainedConfig,
               counterfactual: Counterfactual | None) -> None:
    """Refuse rows that a model cannot read; raises BadInput."""
    if config.of_sentences:
        for name, examples in {TRAIN: data.train, **data.evaluated}.items():
            check_fits("gen_path" if name == GEN else "data_path", examples, model)
        return
    for key, examples in {**dict(zip(SEQUENCE_KEYS, (data.train, data.tests[TEST]))), **data.extra}.items():
        check_fits(key, examples, model)
    for key, pairs in zip(SEQUENCE_KEYS, data.pairs.values()):
        label = f"the answer '{counterfactual.label}'" if counterfactual else "the answer"
        check_fits(key, replace(pairs.source, answer=pairs.counterfactual), model, label)


def check_positions(data: Data, config: QuestionConfig, variable: str) -> None:
    """Refuse positions that no row of a split has, or whose rows lack a class; raises BadInput."""
    splits: dict[str, Examples | Pairs] = {TRAIN: data.train, **data.tests, **data.evaluated, **data.extra}
    splits |= {f"the pairs of {name}": pairs for name, pairs in data.pairs.items()}  # in base and source
    names = ", ".join(dict.fromkeys([LAST, FIRST, *data.train.positions]))
    for position in config.position_list:
        for name, split in splits.items():
            if not len(split.rows_with(position)):
                length = "" if config.of_sentences else f" in {data.train.tokens.shape[1]} tokens"
                raise BadInput(f"position_list: there is no position '{position}'{length} of {name}; positions are "
                               f"{names} and whole numbers.")
        shown = data.probing(position)
        for test in shown.tests.values() if variable in shown.train.variables else ():
            check_classes(variable, shown.train.variables[variable], test.variables[variable])


def check_layers(model: PretrainedConfig, path: str, config: QuestionConfig, setting: Setting) -> None:
    """Refuse a layer or a site that a model's configuration lacks; raises BadInput."""
    for key, layer in (("target_layer_list", setting.target_layer), ("layer_reinit", config.layer_reinit)):
        if layer is not True and layer >= model.num_hidden_layers:
            raise BadInput(f"{key}: there is no layer {layer}; the model has {model.num_hidden_layers}, counted from "
                           "0.")
    key = next((name for name in LOCATION_KEYS if hasattr(setting, name)), "operation")
    if hasattr(setting, key) and site_of(setting).location == RESID_MID and family_of(model).parallel:
        raise BadInput(f"{key}_list: {path} has no {RESID_MID}: attention and MLP of a '{model.model_type}' model read "
                       f"the same residual stream; take {'mlp' if key == 'location' else 'resid_post'} instead.")


def check_fits(key: str, examples: Examples, model: PretrainedConfig, answers: str = "the answer") -> None:
    """Refuse rows that a model cannot read to their ends, or whose tokens or answers are not the model's.

    Raises:
        BadInput: the message shows a sentence by its words and calls the answers `answers`.
    """
    longest, most = int(examples.lengths.argmax()), getattr(model, "max_position_embeddings", None) or 10**9
    if examples.lengths[longest] > most:
        row = f"'{examples.texts[longest]}'" if examples.texts else "a sequence"
        raise BadInput(f"{key}: {row} has {examples.lengths[longest]} tokens, the model reads at most {most}.")
    of_answers = [tokens for tokens in (examples.answer.right, examples.answer.wrong) if tokens is not None]
    for what, tokens in [("token", examples.tokens), *((answers, tokens) for tokens in of_answers)]:
        outside = tokens[(tokens < 0) | (tokens >= model.vocab_size)]
        if len(outside):
            raise BadInput(f"{key}: {what} {outside[0]} is not in the model's vocabulary of {model.vocab_size}.")


def check_classes(variable: str, train: Tensor, test: Tensor) -> None:
    """Refuse a variable with a single value, or with a class that only test has; raises BadInput."""
    classes = set(train.tolist())
    if len(classes) < 2:
        raise BadInput(f"variable: '{variable}' has a single value in the training data; there is nothing to tell "
                       "apart.")
    if min(classes) < 0 or max(classes) >= max(len(train), 1000):
        raise BadInput(f"variable: '{variable}' goes from {min(classes)} to {max(classes)}, with {len(classes)} values "
                       f"in {len(train)} training examples; number its values from 0.")
    unknown = sorted(set(test.tolist()) - classes)
    if unknown:
        raise BadInput(f"variable: class {unknown[0]} of '{variable}' has no example in the training data, but is "
                       "in the test data.")


def check_range(key: str, column: str, values: Tensor, limit: int) -> None:
    """Refuse values that are no class of `limit` classes; raises BadInput."""
    if not 0 <= values.min() <= values.max() < limit:
        raise BadInput(f"{key}: '{column}' goes from {values.min()} to {values.max()}, which does not fit "
                       f"in {limit} classes from 0.")


def check_batch(batch_size: int, count: int) -> None:
    """Refuse a batch that leaves no complete one; raises BadInput."""
    if batch_size > count:
        raise BadInput(f"batch_size_list: {batch_size} is more than the {count} training examples.")


# ------------------------------------------------------------------------------------ answers

def accuracy(model: OpenModel, states: Tensor, answer: Answer, rows: Tensor | None = None) -> float:
    """Share of right answers, of some rows or of all."""
    right = model.is_right(states, answer)
    return (right if rows is None else right[rows]).double().mean().item()


def accuracies(model: OpenModel, states: Tensor, name: str, examples: Examples) -> dict[str, float]:
    """Share of right answers of some examples, as NAME, or as NAME_GROUP of each group."""
    if not examples.groups:
        return {name: accuracy(model, states, examples.answer)}
    return {f"{name}_{group}": accuracy(model, states, examples.answer, rows)
            for group, rows in examples.groups.items()}


def vanilla_accuracies(model: OpenModel, data: Data, positions: Iterable[Position]
                       ) -> dict[Position, dict[str, float]]:
    """How often the model answers the rows of each position correctly without intervention, as a reference."""
    states = {name: model.final_states(examples) for name, examples in data.evaluated.items()}
    return {position: {column: share for name, examples in data.evaluated.items() for column, share in accuracies(
        model, states[name][examples.rows_with(position)], f"vanilla_acc_{name}", examples.probing(position)).items()}
        for position in positions}
