"""What a circuit is looked for in, and what ablation is judged on: sequences of an arithmetic task, or sentences.

Either gives a Material: forests of tokens with the variable's values at their probed positions, and
behaviors, which say how often a model answers rightly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from interp.behavior import next_token_accuracy, preference_accuracy, top_tokens
from interp.blocks import final_states
from interp.config import BadInput
from interp.examples import check_batch, check_classes, check_layers, check_model, read_examples
from interp.experiment import Setting, fill_in
from interp.language import REFLEXIVE, Reader, Sentences, check_sentences, read_language
from interp.models import load_tokenizer, read_model_config
from interp.prefixes import Forest, plant, unshared


@dataclass(frozen=True)
class Probed:
    """Rows of tokens, and the variable's value at each row's probed position, (rows,)."""

    forest: Forest
    labels: Tensor


@dataclass(frozen=True)
class Answers:
    """What a model answers, under whatever masks are in force."""

    accuracies: dict[str, float]     # by evaluation set
    likeliest: Tensor | None = None  # (rows, k) the likeliest next tokens after the first rows, where asked for


@dataclass(frozen=True)
class NextToken:
    """Does the model say the right next token?  tokens: (rows, positions); labels: (rows,)."""

    name: str
    tokens: Tensor
    labels: Tensor

    def ask(self, model: PreTrainedModel, layer: int = 0, entering: Tensor | None = None, spoken: int = 0) -> Answers:
        """The model is run whole; its likeliest tokens say no more than its accuracy, and are not kept."""
        return Answers({self.name: next_token_accuracy(model, self.tokens, self.labels)})


@dataclass(frozen=True)
class Preference:
    """Does the model prefer the right one of two tokens?

    answers: by evaluation set, the right and the wrong token of each row, (rows,) each; reflexives have
    two sets, one for each gender, on the same sentences.
    """

    forest: Forest
    answers: dict[str, tuple[Tensor, Tensor]]
    texts: list[str]

    def ask(self, model: PreTrainedModel, layer: int = 0, entering: Tensor | None = None, spoken: int = 0) -> Answers:
        """The model's answers, and its likeliest tokens after the first `spoken` rows.

        With `entering`, the residual stream that `capture` kept at a layer, the blocks below it are not
        run again: right for masks in it or above.
        """
        states = final_states(model, self.forest, layer, entering)  # (rows, d_model)
        return Answers({name: preference_accuracy(model, states, *pair) for name, pair in self.answers.items()},
                       top_tokens(model, states[:spoken]) if spoken else None)


Behavior = NextToken | Preference


@dataclass(frozen=True)
class Material:
    """What one model is shown. tests: by the name that their figures carry, the one called `test` first."""

    train: Probed
    tests: dict[str, Probed]
    behaviors: list[Behavior]

    def splits(self) -> dict[str, Probed]:
        return {"train": self.train} | self.tests


class ArithmeticTask:
    """Train and test sequences of equal length; with two tasks, behavior on either.

    Raises:
        BadInput: the data are missing, or do not fit each other or the models.
    """

    def __init__(self, config: Any, settings: Sequence[Setting], device: torch.device):
        self.variable = config.variable
        self.examples = {key: read_examples(key, getattr(config, key), [config.variable, "labels"], device)
                         for key in ("train_data_path", "test_data_path")}
        self.train, self.test = self.examples.values()
        check_classes(config.variable, self.train[config.variable], self.test[config.variable])
        evaluations = {"test": self.test} if config.lm_eval else {}
        if config.task == "multitask" and config.lm_eval:
            evaluations = {name: read_examples(f"lm_{name}_task_path", getattr(config, f"lm_{name}_task_path"),
                                               ["labels"], device) for name in ("same", "different")}
            self.examples |= {f"lm_{name}_task_path": examples for name, examples in evaluations.items()}
        self.behaviors = [NextToken(name, examples.tokens, examples["labels"])
                          for name, examples in evaluations.items()]
        for setting in settings:
            check_model(fill_in("model_path", config.model_path, setting),
                        {"target_layer_list": setting.target_layer, "layer_reinit": config.layer_reinit},
                        self.examples, {"probe_index_list": setting.probe_index})
            check_batch(setting.batch_size, len(self.train))

    def material(self, setting: Setting, path: str) -> Material:
        """The material of a setting's model; its sequences are probed at the setting's position."""
        probed = {}
        for name, examples in (("train", self.train), ("test", self.test)):
            rows, length = examples.tokens.shape
            positions = torch.full((rows,), setting.probe_index % length, device=examples.tokens.device)
            probed[name] = Probed(unshared(examples.tokens, positions), examples[self.variable])
        return Material(probed.pop("train"), probed, self.behaviors)


class LanguageTask:
    """Sentences as each model's tokenizer reads them, the probed position found from it.

    Raises:
        BadInput: sentences or tokenizer are missing, or they, the keys and the models do not fit.
    """

    def __init__(self, config: Any, settings: Sequence[Setting], device: torch.device):
        if config.probe_index_list != [-1]:
            raise BadInput("probe_index_list: the task decides at which token a sentence is probed; leave the key out.")
        self.materials: dict[str, Material] = {}  # by model path
        for setting in settings:
            path = fill_in("model_path", config.model_path, setting)
            if path not in self.materials:
                self.materials[path] = self.read(config, path, device)
            check_batch(setting.batch_size, len(self.materials[path].train.labels))

    def read(self, config: Any, path: str, device: torch.device) -> Material:
        model = read_model_config("model_path", path)
        check_layers(model, {"target_layer_list": max(config.target_layer_list), "layer_reinit": config.layer_reinit})
        reader = Reader(load_tokenizer("model_path", path), path, config.sentence_prefix, config.capitalize)
        data = read_language(config.task, config.data_path, config.gen_path, reader, variable=config.variable,
                             train_size=config.train_size, test_size=config.test_size, data_seed=config.data_seed)
        for key, sentences in {"data_path": data.train, **data.evaluations}.items():
            key = "gen_path" if key.startswith("gen") else "data_path"
            check_sentences(key, sentences, context_of(model), model.vocab_size)

        sets: dict[str, dict[str, Sentences]] = {}  # by file; reflexives have one for each gender
        for name, sentences in data.evaluations.items():
            sets.setdefault(name.split("_")[0] if config.task == REFLEXIVE else name, {})[name] = sentences
        tests, behaviors = {}, []
        for file, named in sets.items():
            sentences = next(iter(named.values()))
            forest = plant(sentences.prefixes, device=device)
            if sentences.labels is not None:
                tests["test" if file == "iid" else file] = Probed(forest, sentences.labels.to(device))
            behaviors.append(Preference(forest, {name: (own.right.to(device), own.wrong.to(device))
                                                 for name, own in named.items()}, sentences.texts))
        train = Probed(plant(data.train.prefixes, device=device), data.train.labels.to(device))
        return Material(train, tests, behaviors if config.lm_eval else [])

    def material(self, setting: Setting, path: str) -> Material:
        return self.materials[path]


def context_of(model: PretrainedConfig) -> int:
    """How many tokens every later one sees; a sliding window would need masks that the prefix forest has not."""
    return min(model.max_position_embeddings, getattr(model, "sliding_window", None) or model.max_position_embeddings)
