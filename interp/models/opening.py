"""Opening a model: its fast ways are compared with the plain one, on a few rows of what it will be shown."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interp.models.examples import Answer, Examples, from_rows
from interp.models.family import family_of
from interp.models.forest import CHUNK_SIZE, plant
from interp.models.kept import answer_from, capture
from interp.models.opened import (
    ATTN_OUT,
    MLP_OUT,
    RESID_POST,
    RESID_PRE,
    ROWS_COMPARED,
    OpenModel,
    Site,
    alike,
    replaced,
)
from interp.models.room import Room
from interp.models.tail import tail


class CannotOpen(ValueError):
    """A model that is not read rightly even by the plain way."""


@torch.no_grad()
def open_model(model: PreTrainedModel, examples: Examples, room: Room | None = None) -> OpenModel:
    """A frozen model, opened. A fast way that differs from the plain one on the examples is reported and not used.

    room: for what passes keep; by default 2 GiB of memory and then the system's temporary folder.

    Raises:
        CannotOpen: even the plain way differs from the model, or a block does more than add its updates.
        RunFailed: float16 does not hold the model's numbers.
        ValueError: as family_of.
    """
    opened = OpenModel(model, family_of(model.config), examples.tokens.device, room)
    # the shortest and the longest rows; as new examples, since what is cached of examples lasts
    order = examples.lengths.argsort()
    few = examples[torch.cat([order[:ROWS_COMPARED // 2], order[-ROWS_COMPARED // 2:]]).unique()]
    rows = rows_of(replace(few, probed=few.answering))
    given: list[Tensor] = []

    def head(states: Tensor) -> Tensor:
        """In float32: logits of 16 bits, which may be far from 0, would differ by their own rounding."""
        given.append(opened.head(states))
        return given[-1]

    with replaced([opened.unembed], head):
        plain = opened.leave(torch.cat([
            model(torch.tensor([row], device=opened.device), use_cache=False).logits[:, -1] for row in rows]))
    opened.finite(plain)

    states = apart(opened, few)
    unchanged = alike(opened.leave(torch.cat([logits[:, -1] for logits in given])), plain) if given else True
    opened.direct = unchanged and close(opened, lambda: opened.logits(states), plain)
    if not opened.direct and not close(opened, lambda: opened.logits(states), plain):
        raise CannotOpen(f"a '{model.config.model_type}' model gives other logits with its hooks than without")
    check_sums(opened, few)
    check_sharing(opened, few)
    check_tails(opened, few)
    return opened


def close(opened: OpenModel, found: Callable[[], Tensor], wanted: Tensor) -> bool:
    """Whether a way of computing gives the wanted result; an exception counts as no."""
    try:
        values = found()
    except OSError:  # a full disk is no family's fault
        raise
    except Exception:  # a family with other arguments can fail in any way
        return False
    return alike(values, wanted, opened.dtype)


def apart(opened: OpenModel, few: Examples) -> Tensor:
    """The states computed the plain way: rows apart, masks and positions left to the model."""
    opened.shares = False
    states = opened.answer(few)
    opened.shares = True
    return states


def check_sums(opened: OpenModel, few: Examples) -> None:
    """Every block adds its sublayers' updates to the residual stream, and nothing else."""
    opened.shares = False
    places = (RESID_PRE, ATTN_OUT, MLP_OUT, RESID_POST)
    read = opened.read(few, [Site(layer, location) for layer in range(len(opened.blocks)) for location in places])
    for layer in range(len(opened.blocks)):
        pre, attention, mlp, post = read[layer * len(places):(layer + 1) * len(places)]
        if not alike(pre + attention + mlp, post, opened.dtype):
            raise CannotOpen(f"layer {layer} of a '{opened.model.config.model_type}' model gives more than what enters "
                             "and the updates of its attention and its MLP")
    opened.shares = True


def check_sharing(opened: OpenModel, few: Examples) -> None:
    """A whole chunk of a prefix forest, rows apart under its masks, and passes that start in the middle.

    The chunk is of rows that begin as the longest of these does and end in any token, so that the last ones are packed
    far from what they begin with: a family may look at how far that is.
    """
    start = max(rows_of(few), key=len)[:-1]
    rows = [[*start, token] for token in range(min(opened.model.config.vocab_size, CHUNK_SIZE - len(start)))]
    tokens, last = from_rows(rows, opened.device)
    planted = Examples(tokens, last, last, {}, Answer(last))
    planted.__dict__["forest"] = plant(rows, device=opened.device)
    few = few[torch.arange(len(few), device=opened.device)]
    few.__dict__["forest"] = few.rows_apart
    states, middle = apart(opened, planted), len(opened.blocks) // 2
    opened.shares = (
        close(opened, lambda: opened.answer(planted), states)
        and close(opened, lambda: opened.answer(few), apart(opened, few))
        and close(opened, lambda: answer_from(opened, capture(opened, planted, [], [middle]), middle), states))
    if not opened.shares:
        opened.tell("rows that share what they begin with, or passes that start in the middle, give other answers")


def rows_of(examples: Examples) -> list[list[int]]:
    return [row[:length] for row, length in zip(examples.tokens.tolist(), examples.lengths.tolist())]


def check_tails(opened: OpenModel, few: Examples) -> None:
    """Runs on from the middle and from the last layer, of some rows with the activations of others."""
    few = replace(few, probed=few.answering)  # tails will be used on other data than these
    rows = torch.arange(len(few), device=opened.device).flip(0)[:ROWS_COMPARED - 1]
    for location in sorted(opened.tails):
        if opened.family.parallel and location != RESID_POST:
            opened.tails.discard(location)
            continue
        sites = [Site(layer, location) for layer in {len(opened.blocks) // 2 - 1, len(opened.blocks) - 1} - {-1}]
        if not all(tail_agrees(opened, few, site, rows) for site in sites):
            opened.tails.discard(location)
            opened.tell(f"running on from {location} at the last token alone gives other answers")
    opened.earlier.clear()


def tail_agrees(opened: OpenModel, few: Examples, site: Site, rows: Tensor) -> bool:
    moved = opened.read(few, [site])[0][:len(rows)]
    return close(opened, lambda: tail(opened, few, site)(moved, rows), opened.patched(few, site)(moved, rows))
