"""A model on the bench: what one pass over its material kept, for its sublayers to be probed and ablated.

The model below a sublayer is frozen, so what the sublayer reads, and for ablations the residual stream that
enters its layer, is computed once, in one pass for as many layers as memory holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from torch import Tensor
from transformers import PreTrainedModel

from interp.models import Sublayer, find_sublayer
from interp.sublayer import Captured, Replay, bytes_kept, capture, replay
from interp.tasks import Answers, Behavior, Material, Preference

CACHE_BYTES = 2 * 2**30  # what a pass may keep, where the user does not say for how many layers


@dataclass(frozen=True)
class Bench:
    """A model, its material and what was kept of some of its layers."""

    model: PreTrainedModel
    material: Material
    vanilla: Answers                # the untouched model's
    layers: list[int]
    places: list[tuple[int, str]]   # the sublayers whose inputs were kept
    captured: dict[int, Captured]   # by id of the forest

    def replays(self, sublayer: Sublayer) -> dict[str, Replay]:
        """The sublayer on each split, ready to be run through masks."""
        number = self.places.index((sublayer.layer, sublayer.operation))
        return {name: replay(sublayer, self.captured[id(split.forest)].inputs[number], split.forest)
                for name, split in self.material.splits().items()}

    def ask(self, layer: int, spoken: int = 0) -> Answers:
        """The model's answers under the masks in force in a layer."""
        return ask(self.model, self.material, spoken, layer,
                   [self.entering(behavior, layer) for behavior in self.material.behaviors])

    def entering(self, behavior: Behavior, layer: int) -> Tensor | None:
        """The residual stream that enters a layer, where an ablated run can start from it: (chunks, N, d_model)."""
        return self.captured[id(behavior.forest)].entering[layer] if isinstance(behavior, Preference) else None


def ask(model: PreTrainedModel, material: Material, spoken: int = 0, layer: int = 0,
        entering: Sequence[Tensor | None] = ()) -> Answers:
    """A model's answers to all evaluation sets.

    Args:
        spoken: of how many rows of the first set the likeliest next tokens are wanted.
        layer, entering: for each behavior what enters that layer, where blocks below it need not be run.
    """
    answers = [behavior.ask(model, layer, given, spoken if number == 0 else 0)
               for number, (behavior, given) in enumerate(zip_longest(material.behaviors, entering))]
    accuracies = {name: accuracy for answer in answers for name, accuracy in answer.accuracies.items()}
    return Answers(accuracies, answers[0].likeliest if answers else None)


def set_up(model: PreTrainedModel, material: Material, vanilla: Answers, layers: list[int],
           operations: list[str], at_once: int | None = None) -> Bench:
    """Run a model over its material and keep what its first few of some layers need.

    Args:
        layers: layers to be probed one after the other.
        at_once: for how many of them to keep; by default as many as CACHE_BYTES hold.
    """
    probed = {id(split.forest): split.forest for split in material.splits().values()}
    judged = {id(behavior.forest): behavior.forest for behavior in material.behaviors
              if isinstance(behavior, Preference)}
    if at_once is None:
        per_layer = sum(bytes_kept(model.config, forest, operations if key in probed else [], key in judged)
                        for key, forest in (probed | judged).items())
        at_once = max(1, CACHE_BYTES // per_layer)
    layers = layers[:at_once]
    places = [(layer, operation) for layer in layers for operation in operations]
    sublayers = [find_sublayer(model, *place) for place in places]
    captured = {key: capture(model, forest, sublayers if key in probed else [], layers if key in judged else [])
                for key, forest in (probed | judged).items()}
    return Bench(model, material, vanilla, layers, places, captured)
