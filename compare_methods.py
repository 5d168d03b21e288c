"""Which method finds what the model uses? All of them by one interventional measure.

    python compare_methods.py --config configs/Comparison/Disambiguation.yaml
    python compare_methods.py --config configs/Comparison/SV_Agreement-smollm2.yaml

1. Fit each method at a site: give it activations, values of the variable or answers, whatever it takes.
2. Exchange what it takes for the variable between two inputs. Does the model's answer change as it
   should? Exchange it between two inputs with the same value of the variable: does the answer stay the same?
3. Do the same at random, and with the method fitted on permuted values; mark what goes beyond exchanging everything.
"""

from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from interp.methods.interchange.registry import INTERCHANGES, fit
from interp.runs.command_line import answer_early
from interp.runs.config import Count, NonEmpty, NonNegative, Text, suggestion
from interp.tasks.functions import OPERATIONS
from interp.tasks.keys import Location, Locations, QuestionConfig

PLAIN = ("none", "full", "random")  # methods without a random control: they are controls, or have no size
NO_CONTROL: dict[str, Any] = dict.fromkeys((
    "random_iia_mean", "random_iia_max", "empirical_p", "random_impossible"))

RankRule = Literal["selected", "classes"] | Count


class Config(QuestionConfig):
    residual_location_list: Locations
    variable_list: NonEmpty[Text] = Field(description="the columns of the variables")
    method_list: NonEmpty[Text] = Field(description="the methods: names of interp/methods/interchange/registry.py")
    method_options: dict[str, dict[str, Any]] = Field({}, description=(
        "for a method the options of its fit, other than its defaults, such as {das: {epochs: 60}, random: {rank: 4}}"))
    rank_rule_list: NonEmpty[RankRule] = Field(["selected"], description=(
        "how many directions a linear method exchanges: as many as give the best interchange accuracy on the select "
        "pairs (`selected`), one fewer than the classes (`classes`), or a number"))
    counterfactual_labels: dict[str, Text | list[Text]] = Field({}, description=(
        "sequences: for each variable the column of its counterfactual answers, or a rule [x, y, op] of columns"))
    hard_negatives: dict[str, NonNegative] = Field({}, description=(
        "sequences: for a variable the position of the token that determines it; the token itself (`NAME@token`) and "
        "random groups of the tokens (`NAME@groups`) are asked for too, with the counterfactual answers of `NAME`"))
    ground_truth: dict[str, list[Location]] | None = Field(None, description=(
        "where it is known: for each variable the sites that carry it (none: []); goes into the table"))
    n_fit: Count = Field(2500, description="training rows that methods are fitted on")
    n_select: Count = Field(1000, description="others that ranks and epochs are chosen on")
    only_right: bool = Field(True, description="leave out pairs whose base or source the model answers wrongly")
    full_is_most: bool = Field(False, description=(
        "sequences: exchanging everything at a site is known to be the most that the variable's interchange can do, so "
        "that `exceeds_full` is told, as it is for sentences"))
    num_random_draws: NonNegative = Field(20, description=(
        "random controls of the method's size; 19 allow a claim at the level 0.05"))
    num_random_pairs: Count = Field(5000, description="test pairs that a random control is measured on, at most")
    isolate: bool = Field(True, description="measure what is exchanged between pairs of one value too")
    permuted_control: bool = Field(True, description=(
        "fit each method that sees the variable on values permuted over the rows too"))
    save_pairs: bool = Field(False, description="write pairs.csv, a row for each test pair")
    save_models: bool = Field(False, description="save the fitted interchanges")
    model_dir: Text | None = Field(None, description="where to save them")

    needs_variable = False

    @property
    def variables(self) -> list[str]:
        return self.variable_list

    def sweeps(self, setting: Any) -> bool:
        """A method that has no ranks is one setting, under the first rule."""
        return INTERCHANGES[setting.method].ranked or setting.rank_rule == self.rank_rule_list[0]

    @model_validator(mode="before")
    @classmethod
    def with_hard_negatives(cls, values):
        """What a method may take for a variable stands beside it, with the same counterfactual answers."""
        of, variables, labels = map(values.get, ("hard_negatives", "variable_list", "counterfactual_labels"))
        if not (isinstance(of, dict) and isinstance(variables, list) and isinstance(labels, dict)):
            return values  # which pydantic refuses, if it must
        further = {f"{name}@{kind}": labels[name] for name in of if name in labels for kind in ("token", "groups")}
        return values | {"variable_list": [*variables, *further], "counterfactual_labels": labels | further}

    def place_of(self, variable: str) -> int | None:
        """The position of the token that decides a hard negative; None of other variables."""
        name, kind, _ = variable.partition("@")
        return self.hard_negatives.get(name) if kind else None

    def masks_sublayer(self, name: str) -> bool:
        """Whether a method exchanges neurons of the sublayer that writes to the site."""
        return name.startswith(("circuit", "neuron")) or (
            name == "saved" and self.method_options[name]["file"].endswith(".json"))

    def reads_besides(self) -> dict[str, str]:
        return {"method_options": self.method_options["saved"]["file"]} if "saved" in self.method_list else {}

    @model_validator(mode="after")
    def consistent(self):
        if self.variable is not None:
            raise ValueError("the key 'variable' has no effect in this script; give 'variable_list'")
        for key in ("method_list", "method_options"):
            for name in sorted({*getattr(self, key)} - {*INTERCHANGES}):
                raise ValueError(f"the key '{key}': there is no method '{name}'{suggestion(name, INTERCHANGES)}; there "
                                 f"are {', '.join(INTERCHANGES)}")
        for name in dict.fromkeys([*self.method_options, *self.method_list]):  # some have an option without a default
            try:
                INTERCHANGES[name].options(**self.method_options.get(name, {}))
            except ValidationError as error:
                [option, *_], known = error.errors()[0]["loc"], ", ".join(INTERCHANGES[name].options.model_fields)
                raise ValueError(f"the key 'method_options': '{option}' of the method '{name}': "
                                 f"{error.errors()[0]['msg']}; its options are: {known or 'none'}") from None
        for name in () if self.of_sentences else self.variable_list:
            if name not in self.counterfactual_labels:
                raise ValueError(f"the key 'counterfactual_labels' lacks '{name}'")
        for name in {*self.hard_negatives} - {*self.variable_list}:
            raise ValueError(f"the key 'hard_negatives': '{name}' is not in variable_list")
        for key in ("gen_path", "counterfactual_labels", "hard_negatives", "full_is_most") if self.of_sentences else ():
            if getattr(self, key):
                raise ValueError(f"the key '{key}' has no effect for sentences; leave it out")
        for name, label in self.counterfactual_labels.items():
            if isinstance(label, list) and (len(label) != 3 or label[2] not in OPERATIONS):
                raise ValueError(f"the key 'counterfactual_labels' gives '{name}' {label}, which is no rule [x, y, op] "
                                 f"with one of {' '.join(OPERATIONS)}")
        if "resid_pre" in self.residual_location_list:
            for name in filter(self.masks_sublayer, self.method_list):
                raise ValueError(f"the key 'residual_location_list': no sublayer of the layer writes to resid_pre, and "
                                 f"'{name}' masks one; leave one of the two out")
        if self.ground_truth is not None:
            for name in self.variable_list:
                if name not in self.ground_truth and self.place_of(name) is None:
                    raise ValueError(f"the key 'ground_truth' lacks '{name}'; give it [] where no site carries it")
        return self


if __name__ == "__main__":  # before what follows loads torch, which takes seconds
    answer_early("compare_methods", Config)

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from interp.experiment import Outcome, Script, main
from interp.methods.comparison import (
    Split,
    answered,
    pairs_at_site,
    permuted_site,
    sharing_pairs,
    site_under_study,
    split_pairs,
    with_source_answers,
)
from interp.methods.interchange.base import Interchange, Pairs, SiteUnderStudy
from interp.methods.interchange.saved import read_saved
from interp.methods.masks import ImpossibleAblation
from interp.models.loading import read_model_config
from interp.models.open_model import OpenModel
from interp.runs.settings import Setting, saved_files
from interp.statistics import clustered_interval, exceeds, rank_among, share_interval
from interp.tasks.sentences import WORD
from interp.tasks.study import Counterfactual, Study, at_sites


def prepare(config: Config, settings: list[Setting], device: torch.device) -> Study:
    """Read the data and each model's configuration; refuse what does not fit together."""
    counterfactuals = {
        name: Counterfactual((label[0], label[1], label[2]) if isinstance(label, list) else label, f"counter_{name}",
                             config.place_of(name))
        for name, label in config.counterfactual_labels.items()}
    study = Study(config, settings, device, counterfactuals=counterfactuals, paired=config.of_sentences,
                  masks=any(map(config.masks_sublayer, config.method_list)))
    study.check_portions("n_fit", "n_select")
    if "saved" in config.method_list:
        options = INTERCHANGES["saved"].options(**config.method_options["saved"]).model_dump()
        for path in {study.path(setting) for setting in settings}:
            read_saved(**options, d_model=read_model_config("model_path", path).hidden_size)
    if config.only_right and not config.of_sentences:
        study.data_by_key = {key: with_source_answers(data) for key, data in study.data_by_key.items()}
    return study


artifacts = partial(saved_files, "interchange")


# ------------------------------------------------------------------------------ the loops

def run(config: Config, settings: list[Setting], study: Study) -> Iterator[tuple[Setting, Outcome]]:
    """For each model and variable, read the pairs at every site and compare the methods there."""
    for model, data, of_variable in study.models(settings):
        variable = of_variable[0].variable
        splits = {name: answered(model, pairs, config.only_right) for name, pairs in split_pairs(
            data, variable, config.n_fit, config.n_select, config.data_seed).items()}
        # where the answer depends on this variable alone, exchanging everything is the most that can be done
        alone = config.full_is_most or config.of_sentences and data.changes
        for at in at_sites(model, of_variable, {name: split.pairs for name, split in splits.items()}, forward=splits,
                           entering=study.masks):
            pairs = {name: pairs_at_site(model, at.shown[name], variable, at.site, at.activations[name],
                                         at.forward[name], at.entering.get(name)) for name in splits}
            trial = set_up(config, splits["test"].of(at.rows["test"]), pairs, variable, alone, at.left_out)
            for setting in at.settings:
                yield setting, compare(config, setting, trial, study.path(setting))


@dataclass(frozen=True)
class Trial:
    """A site and a variable: where methods are fitted, and the test pairs that they are measured on.

    same: test bases whose sources share the variable. clean: the test bases' final hidden states without intervention,
    (n, d_model). alone: whether exchanging everything is the most that can be done. control: the site with permuted
    values. distance: to the fit bases, of activations. left_out: the column that counts test pairs without the
    position.
    of_rank: the accuracies of random directions, which are the same for all methods of a rank.
    """

    site: SiteUnderStudy
    test: Pairs
    same: Pairs
    clean: Tensor
    split: Split
    alone: bool
    control: SiteUnderStudy | None
    distance: Callable[[Tensor], Tensor]
    left_out: dict[str, int]
    of_rank: dict[int | None, list[float]]

    @property
    def model(self) -> OpenModel:
        return self.site.model

    @cached_property
    def full_hits(self) -> Tensor:
        """Whether exchanging everything gives the counterfactual answer, (n,)."""
        return self.model.is_right(self.test.states(self.test.source_activations), self.test.counterfactual)

    def moved(self, pairs: Pairs, states: Tensor) -> Tensor:
        """The change of the log odds of the new answer against the old one, from clean states to these, in nats, (n,).

        Where the interchange should not change the answer, the other answer, of two, is the new one.
        """
        logit, old, new = self.model.logit, pairs.answer.right, pairs.counterfactual.right
        if pairs.counterfactual.wrong is not None:
            new = torch.where(new == old, pairs.counterfactual.wrong, new)
        return logit(states, new) - logit(states, old) - logit(self.clean, new) + logit(self.clean, old)


@torch.no_grad()
def set_up(config: Config, split: Split, pairs: dict[str, Pairs], variable: str, alone: bool,
           left_out: dict[str, int]) -> Trial:
    test = pairs["test"]
    site = site_under_study(pairs["fit"], pairs["select"], test, variable)
    control = permuted_site(site, config.data_seed) if config.permuted_control else None
    same = sharing_pairs(test, config.data_seed) if config.isolate else test[test.base[:0]]
    distance = mahalanobis(site.fit.base_activations)
    return Trial(site, test, same, split.clean, split, alone, control, distance, left_out, {})


# ------------------------------------------------------------------------------ the method

def compare(config: Config, setting: Setting, trial: Trial, path: str) -> Outcome:
    """Fit one method at one site for one variable; measure what its interchange does. path: the model's."""
    found = fitted(config, setting, trial.site, {})
    metrics, pairs = measure(trial, found)
    of_negative = config.place_of(setting.variable) is not None  # of which it is not known
    known = None if config.ground_truth is None or of_negative else (
        setting.residual_location in config.ground_truth[setting.variable])
    metrics |= {"ground_truth": known, "form": INTERCHANGES[setting.method].form, "rank": found.rank,
                **random_control(config, setting, trial, found, pairs["hit"]),
                **permuted_control(config, setting, trial, found),
                "exceeds_full": exceeds_full(trial, setting.method, pairs["hit"]), **trial.left_out}
    for file in artifacts(config, setting):
        found.save(file, {"model_path": path, **setting._asdict()})
    return Outcome(metrics, {"pairs": [dict(zip(pairs, row)) for row in zip(*(
        column.tolist() for column in pairs.values()))]} if config.save_pairs else {})


def fitted(config: Config, setting: Setting, site: SiteUnderStudy, chosen: dict[str, Any]) -> Interchange:
    """A setting's method fitted at a site. chosen: options that need not be chosen again."""
    options = config.method_options.get(setting.method, {}) | chosen
    rank = len(site.fit.base_values.unique()) - 1 if setting.rank_rule == "classes" else setting.rank_rule
    return fit(setting.method, site, setting.model_seed, **options | {"rank": options.get("rank") or rank})


@torch.no_grad()
def measure(trial: Trial, found: Interchange) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The measures of an interchange on the test pairs, and by column what it did to each of them, (n,)."""
    model, test, same = trial.model, trial.test, trial.same
    activations = found(test)
    states = test.states(activations)
    hits, moved = model.is_right(states, test.counterfactual), trial.moved(test, states)
    stays = same_answers(model, same, same.states(found(same)), trial.clean[same.base])
    whole = (test.source_activations - test.base_activations).norm(dim=1)
    relative_norm = ((activations - test.base_activations).norm(dim=1) / whole)[whole > 0]
    iia, isolate = mean(hits), mean(stays)
    low, high = share_interval(int(hits.sum()), len(hits))
    if WORD in (held := trial.split.pairs.base.variables) and len(hits):  # over the words that were held out
        of_words = [hits[held[WORD] == word].tolist() for word in held[WORD].unique()]
        low, high = clustered_interval([[sum(some) / len(some)] for some in of_words], [[len(s)] for s in of_words])
    return {"iia": iia, "iia_low": low, "iia_high": high, "log_odds_mean": mean(moved),
            "log_odds_median": moved.double().quantile(0.5).item() if len(moved) else None, "isolate": isolate,
            "disentangle": None if iia is None or isolate is None else (iia + isolate) / 2,
            "relative_norm": mean(relative_norm), "mahalanobis": mean(trial.distance(activations)),
            "n_pairs": len(test), "n_unchanged": trial.split.n_unchanged, "n_excluded": trial.split.n_excluded,
            "model_acc": trial.split.accuracy,
            }, {"base_row": trial.split.base_rows, "source_row": trial.split.source_rows,
                "base_value": test.base_values, "source_value": test.source_values,
                "wanted": test.counterfactual.right, "hit": hits, "log_odds": moved}


def same_answers(model: OpenModel, pairs: Pairs, states: Tensor, clean: Tensor) -> Tensor:
    """Whether states give the same answers as clean ones, right or wrong, (n,) booleans."""
    if pairs.answer.wrong is not None:
        return model.is_right(states, pairs.answer) == model.is_right(clean, pairs.answer)
    return (model.top_tokens(states, 1) == model.top_tokens(clean, 1)).flatten() if len(pairs) else clean[:, 0] > 0


@torch.no_grad()
def random_control(config: Config, setting: Setting, trial: Trial, found: Interchange,
                   hits: Tensor) -> dict[str, Any]:
    """Control (a): as many random directions or neurons, on some of the test pairs; the method's rank among them."""
    if setting.method in PLAIN or not config.num_random_draws or not len(hits):
        return NO_CONTROL
    some = trial.test[torch.arange(len(hits), device=hits.device)[:config.num_random_pairs]]
    drawing = torch.Generator().manual_seed(setting.model_seed)
    try:
        first = found.random_like(drawing)
    except ImpossibleAblation as error:
        return NO_CONTROL | {"random_impossible": str(error)}
    if first is None:
        return NO_CONTROL
    draws = trial.of_rank.get(found.rank) if found.rank is not None else None
    if draws is None:
        drawn = [first, *(one for _ in range(1, config.num_random_draws) if (one := found.random_like(drawing)))]
        draws = [trial.model.is_right(some.states(one(some)), some.counterfactual).double().mean().item()
                 for one in drawn]
        trial.of_rank[found.rank] = draws
    # if the interchange should change nothing, doing nothing is best, and a rank above random means nothing
    changes = trial.alone or not config.of_sentences
    return NO_CONTROL | {
        "random_iia_mean": sum(draws) / len(draws), "random_iia_max": max(draws),
        "empirical_p": rank_among(hits[:len(some)].double().mean().item(), draws) if changes else None}


@torch.no_grad()
def permuted_control(config: Config, setting: Setting, trial: Trial, found: Interchange) -> dict[str, float | None]:
    """Control (b): what the method does if it is fitted on values that mean nothing."""
    values: dict[str, float | None] = {"control_iia": None, "control_isolate": None}
    if trial.control and INTERCHANGES[setting.method].supervision == "variable":
        with torch.enable_grad():
            control = fitted(config, setting, trial.control, found.chosen)
        metrics, _ = measure(trial, control)
        values = {"control_iia": metrics["iia"], "control_isolate": metrics["isolate"]}
    return values


def exceeds_full(trial: Trial, method: str, hits: Tensor) -> bool | None:
    """Control (d): more counterfactual answers than exchanging everything gives, where that is the most possible."""
    if not trial.alone or len(hits) < 2:
        return None
    return method != "full" and exceeds(hits.tolist(), trial.full_hits.tolist())


def mahalanobis(fit: Tensor) -> Callable[[Tensor], Tensor]:
    """How many standard deviations activations (n, d) lie from the mean of those fitted on, per direction that varies.

    1 is usual of the data; what leaves the directions in which they vary is measured in their smallest deviation.
    """
    wide = fit.double()
    variances, basis = torch.linalg.eigh(torch.cov(wide.T))
    least = variances[-1] * len(variances) * torch.finfo(fit.dtype).eps ** 2  # below it, rounding
    scale, center = variances.clamp(min=least).sqrt(), wide.mean(0)
    return lambda activations: ((activations.double() - center) @ basis / scale).square().mean(1).sqrt()


def mean(values: Tensor) -> float | None:
    return values.double().mean().item() if len(values) else None


SCRIPT = Script("compare_methods", Config, prepare, run, artifacts)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
