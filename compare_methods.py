"""Which method finds what the model uses? All of them by one interventional measure.

    python compare_methods.py --config configs/Comparison/Disambiguation.yaml
    python compare_methods.py --config configs/Comparison/SV_Agreement-smollm2.yaml

1. Fit each method at a site: give it activations, values of the variable or answers, whatever it takes.
2. Exchange what it takes for the variable between two inputs. Does the model's answer change as it
   should? Exchange it between two inputs with the same value of the variable: does the answer stay the same?
3. Do the same at random, and with the method fitted on a control task; mark what goes beyond exchanging everything.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from interp.methods.table import interchange_methods
from interp.runs.command_line import answer_early
from interp.runs.config import Count, NonEmpty, NonNegative, Text, suggestion
from interp.tasks.functions import OPERATIONS
from interp.tasks.keys import QuestionConfig

PLAIN = ("none", "full", "random")  # methods without a random control: they are controls, or have no size
NO_CONTROL: dict[str, Any] = dict.fromkeys((
    "random_iia_mean", "random_iia_max", "rank_among_random", "random_impossible"))


class Config(QuestionConfig):
    residual_location_list: NonEmpty[Literal["resid_mid", "resid_post"]] = Field(description=(
        "after attention, after the MLP"))
    variable_list: NonEmpty[Text] = Field(description="the columns of the variables")
    method_list: NonEmpty[Text] = Field(description="the methods: the files of interp/methods/interchange")
    method_options: dict[str, dict[str, Any]] = Field({}, description=(
        "for a method the options of its fit, other than its defaults"))
    rank: Literal["selected", "classes"] = Field("selected", description=(
        "how many directions a linear method exchanges: those with the best interchange accuracy on the select pairs, "
        "or one fewer than the classes"))
    counterfactual_labels: dict[str, Text | list[Text]] = Field({}, description=(
        "sequences: for each variable the column with the answers after its exchange, or a rule [x, y, op] of columns"))
    carried: dict[str, list[Literal["resid_mid", "resid_post"]]] | None = Field(None, description=(
        "where it is known: for each variable the sites that carry it (none: []); goes into the table"))
    n_fit: Count = Field(2500, description="training rows that methods are fitted on")
    n_select: Count = Field(1000, description="others that ranks and epochs are chosen on")
    only_right: bool = Field(True, description="leave out pairs whose base or source the model answers wrongly")
    num_random_draws: NonNegative = Field(20, description=(
        "random controls of the method's size; 19 allow a claim at the level 0.05"))
    num_random_pairs: Count = Field(5000, description="test pairs that a random control is measured on, at most")
    selectivity: bool = Field(True, description="fit each method on a control task too")
    save_pairs: bool = Field(False, description="write pairs.csv, a row for each test pair")
    save_models: bool = Field(False, description="save the fitted interchanges")
    model_dir: Text | None = Field(None, description="where to save them")

    needs_variable = False

    @property
    def variables(self) -> list[str]:
        return self.variable_list

    @model_validator(mode="after")
    def consistent(self):
        if self.variable is not None:
            raise ValueError("the key 'variable' has no effect in this script; give 'variable_list'")
        known = interchange_methods()
        for key in ("method_list", "method_options"):
            for name in sorted({*getattr(self, key)} - {*known}):
                raise ValueError(f"the key '{key}': there is no method '{name}'{suggestion(name, known)}; there are "
                                 f"{', '.join(known)}")
        for name in () if self.of_sentences else self.variable_list:
            if name not in self.counterfactual_labels:
                raise ValueError(f"the key 'counterfactual_labels' lacks '{name}'")
        for key in ("gen_path", "counterfactual_labels") if self.of_sentences else ():
            if getattr(self, key):
                raise ValueError(f"the key '{key}' has no effect for sentences; leave it out")
        for name, label in self.counterfactual_labels.items():
            if isinstance(label, list) and (len(label) != 3 or label[2] not in OPERATIONS):
                raise ValueError(f"the key 'counterfactual_labels' gives '{name}' {label}, which is no rule [x, y, op] "
                                 f"with one of {' '.join(OPERATIONS)}")
        if self.carried is not None:
            for name in self.variable_list:
                if name not in self.carried:
                    raise ValueError(f"the key 'carried' lacks '{name}'; give it [] where no site carries it")
        return self


if __name__ == "__main__":  # before what follows loads torch, which takes seconds
    answer_early("compare_methods", Config)

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from interp.experiment import Outcome, Script, main
from interp.methods.comparison import Splits
from interp.methods.interchange import Interchange, Pairs, Place, checked_options, fit, method
from interp.methods.masks import ImpossibleAblation
from interp.models.opened import OpenModel
from interp.runs.settings import Setting, saved_files
from interp.statistics import interval, rank_among
from interp.tasks.question import Exchange, Question


@dataclass
class Prepared:
    question: Question
    splits: Splits
    trials: dict[Setting, "Trial"] = field(default_factory=dict)  # the last one, by its setting without the method


def prepare(config: Config, settings: list[Setting], device: torch.device) -> Prepared:
    """Read the data and each model's configuration; refuse what does not fit together."""
    for name, options in config.method_options.items():
        checked_options(name, options)
    pairs = config.of_sentences or {
        name: Exchange((label[0], label[1], label[2]) if isinstance(label, list) else label, f"counter_{name}")
        for name, label in config.counterfactual_labels.items()}
    question = Question(config, settings, device, pairs=pairs)
    question.check_portions("n_fit", "n_select")
    return Prepared(question, Splits(question, config.n_fit, config.n_select, config.only_right))


artifacts = partial(saved_files, "interchange")


# ------------------------------------------------------------------------------ the method

def run_setting(config: Config, setting: Setting, prepared: Prepared) -> Outcome:
    """Fit one method at one site for one variable; measure what exchanging it does."""
    trial = trial_for(setting, prepared)
    found = fitted(config, setting, trial.place, {})
    figures, pairs = measure(trial, found)
    known = config.carried and setting.residual_location in config.carried[setting.variable]
    figures |= {"carried": known, "rank": found.rank,
                **random_control(config, setting, trial, found, pairs["hit"]),
                "selectivity": selectivity(config, setting, trial, found, figures["log_odds_mean"]),
                "beyond_full": beyond_full(trial, pairs["hit"])}
    for file in artifacts(config, setting):
        found.save(file, {"model_path": prepared.question.path(setting), **setting._asdict()})
    return Outcome(figures, {"pairs": [dict(zip(pairs, row)) for row in zip(*(
        column.tolist() for column in pairs.values()))]} if config.save_pairs else {})


def fitted(config: Config, setting: Setting, place: Place, chosen: dict[str, Any]) -> Interchange:
    """A setting's method fitted at a place. chosen: options that need not be chosen again."""
    options = checked_options(setting.method, config.method_options.get(setting.method, {})) | chosen
    if "rank" in inspect.signature(method(setting.method).fit).parameters:
        classes = len(place.fit.base.values.unique()) - 1
        options = {"rank": classes if config.rank == "classes" else "selected"} | options
    return fit(setting.method, place, seed=setting.model_seed, **options)


@dataclass
class Trial:
    """A site and a variable: where methods are fitted, and the test pairs that they are measured on.

    same: pairs whose sources share the variable. clean, clean_same: clean states of the bases, (n, d_model).
    controls: for what a method sees, a place where that means nothing, and the test pairs to match.
    """

    place: Place
    test: Pairs
    same: Pairs
    clean: Tensor
    clean_same: Tensor
    controls: dict[str, tuple[Place, Pairs]]
    depends: bool   # the answer depends on this variable alone
    left_out: int
    model_acc: float  # of the answers without intervention, to the bases of the test pairs and of those left out
    random: dict[int | None, list[float]] = field(default_factory=dict)  # accuracies of random directions, by rank

    @cached_property
    def full_hits(self) -> Tensor:
        """Whether exchanging everything gives the exchanged answer, for each pair: (n,) booleans."""
        return self.place.opened.is_right(self.test.states(self.test.source.activations), self.test.exchanged)

    def moved(self, pairs: Pairs, states: Tensor) -> Tensor:
        """The change of the log odds of the new answer against the old one, from clean states to these, in nats, (n,).

        Where the exchange should not change the answer, the other answer, where there are two, is the new one.
        """
        logit, old, new = self.place.opened.logit, pairs.answer.right, pairs.exchanged.right
        if pairs.exchanged.wrong is not None:
            new = torch.where(new == old, pairs.exchanged.wrong, new)
        return logit(states, new) - logit(states, old) - logit(self.clean, new) + logit(self.clean, old)


def trial_for(setting: Setting, prepared: Prepared) -> Trial:
    """The setting's site and variable, set up once for all methods."""
    key = setting._replace(method=None)
    if key not in prepared.trials:
        prepared.trials.clear()  # memory holds one
        splits = prepared.splits
        place, test, left_out = splits.place(setting), *splits.pairs(setting, "test")
        same = splits.sharing(test)
        prepared.trials[key] = Trial(place, test, same, splits.clean(setting, test), splits.clean(setting, same),
                                     splits.controls(setting, place, test), splits.depends(setting), left_out,
                                     splits.model_accuracy(setting))
    return prepared.trials[key]


@torch.no_grad()
def measure(trial: Trial, found: Interchange) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The measures of an interchange on the test pairs, and by column what it did to each of them, (n,)."""
    opened, test, same = trial.place.opened, trial.test, trial.same
    activations = found(test.base, test.source)
    states = test.states(activations)
    hits, moved = opened.is_right(states, test.exchanged), trial.moved(test, states)
    stays = same_answers(opened, same, same.states(found(same.base, same.source)), trial.clean_same)
    whole = (test.source.activations - test.base.activations).norm(dim=1)
    change = ((activations - test.base.activations).norm(dim=1) / whole)[whole > 0]
    iia, isolate = mean(hits), mean(stays)
    low, high = interval(hits.double().tolist())
    return {"iia": iia, "iia_low": low, "iia_high": high, "log_odds_mean": mean(moved),
            "log_odds_median": moved.double().median().item() if len(moved) else None, "isolate": isolate,
            "disentangle": None if iia is None or isolate is None else (iia + isolate) / 2, "change": mean(change),
            "pairs": len(test), "left_out": trial.left_out, "model_acc": trial.model_acc,
            }, {"base_row": test.base.rows, "source_row": test.source.rows, "base_value": test.base.values,
                "source_value": test.source.values, "wanted": test.exchanged.right, "hit": hits, "log_odds": moved}


def same_answers(opened: OpenModel, pairs: Pairs, states: Tensor, clean: Tensor) -> Tensor:
    """Whether states give the same answers as clean ones, be they right or wrong, (n,) booleans."""
    if pairs.answer.wrong is not None:
        return opened.is_right(states, pairs.answer) == opened.is_right(clean, pairs.answer)
    return (opened.top_tokens(states, 1) == opened.top_tokens(clean, 1)).flatten() if len(pairs) else clean[:, 0] > 0


@torch.no_grad()
def random_control(config: Config, setting: Setting, trial: Trial, found: Interchange,
                   hits: Tensor) -> dict[str, Any]:
    """Control (a): as many random directions or neurons, on some of the test pairs; the method's rank among them."""
    if setting.method in PLAIN or not config.num_random_draws or not len(hits):
        return NO_CONTROL
    some = trial.test[torch.arange(len(hits), device=hits.device)[:config.num_random_pairs]]
    rank = found.rank  # directions of a rank are the same draws, whatever the method; neurons are a circuit's own
    drawing = torch.Generator().manual_seed(setting.model_seed)
    try:
        first = found.random_like(drawing)
    except ImpossibleAblation as error:
        return NO_CONTROL | {"random_impossible": str(error)}
    if first is None:
        return NO_CONTROL
    if rank is None or rank not in trial.random:
        drawn = [first, *(one for _ in range(1, config.num_random_draws) if (one := found.random_like(drawing)))]
        states = (some.states(one(some.base, some.source)) for one in drawn)
        trial.random[rank] = [trial.place.opened.is_right(own, some.exchanged).double().mean().item() for own in states]
    draws = trial.random[rank]
    # if the exchange should change nothing, doing nothing is best, and a rank above random means nothing
    changes = trial.depends or not config.of_sentences
    return NO_CONTROL | {
        "random_iia_mean": sum(draws) / len(draws), "random_iia_max": max(draws),
        "rank_among_random": rank_among(hits[:len(some)].double().mean().item(), draws) if changes else None}


def selectivity(config: Config, setting: Setting, trial: Trial, found: Interchange,
                log_odds: float | None) -> float | None:
    """Control (b): the log odds minus those of the same method fitted on the control task."""
    sees = method(setting.method).SEES
    if not config.selectivity or sees not in trial.controls or log_odds is None:
        return None
    place, test = trial.controls[sees]
    control = fitted(config, setting, place, found.chosen)
    with torch.no_grad():
        return log_odds - trial.moved(test, test.states(control(test.base, test.source))).double().mean().item()


def beyond_full(trial: Trial, hits: Tensor) -> bool | None:
    """Control (d): more exchanged answers than exchanging everything gives, if the answer depends on it alone."""
    if not trial.depends or len(hits) < 2:
        return None
    return interval((hits.double() - trial.full_hits.double()).tolist())[0] > 0


def mean(values: Tensor) -> float | None:
    return values.double().mean().item() if len(values) else None


def run(config: Config, settings: list[Setting], prepared: Any) -> Iterator[tuple[Setting, Outcome]]:
    return ((setting, run_setting(config, setting, prepared)) for setting in settings)


SCRIPT = Script("compare_methods", Config, prepare, run, artifacts)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
