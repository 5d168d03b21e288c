"""What one pass over examples keeps of a model's layers, so that their sublayers can be probed and ablated.

The model below a sublayer is frozen, so what the sublayer reads, and for ablations the residual stream that enters
its layer, is computed once, in one pass for as many layers as there is room for (room.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.models.examples import Examples
from interp.models.family import ATTENTION
from interp.models.opened import RESID_POST, RESID_PRE, Call, OpenModel, hooked, stream_of
from interp.models.room import fill
from interp.models.sublayers import Sublayer


@dataclass(frozen=True)
class Kept:
    """What was kept from one pass of a model over some examples, in memory or in files.

    inputs: what each sublayer reads, by (layer, operation): an attention's (nodes, d_model) at all
        nodes, an MLP's, which reads no other position, (rows, d_model) at the probed ones.
    entering: by layer, the residual stream that enters its block, (chunks, N, d_model).
    calls: what the blocks are called with besides, for each batch of chunks.
    """

    examples: Examples
    inputs: dict[tuple[int, str], Tensor]
    entering: dict[int, Tensor]
    calls: list[list[Call]]


@torch.no_grad()
def capture(opened: OpenModel, examples: Examples, sublayers: Sequence[Sublayer], layers: Sequence[int] = ()) -> Kept:
    """One pass of the model, no further up than needed, that keeps what sublayers and blocks read.

    Args:
        sublayers: those whose inputs are kept.
        layers: those whose entering residual stream is kept, for ablations to start from.

    What is kept takes `bytes_kept` a layer. Where that is too much for all layers, ask for some at a time.

    Raises:
        OSError: the disk that what memory does not hold goes to is full.
    """
    forest = opened.forest(examples)
    nodes = forest.nodes_at(examples.probed)
    readers = {(sub.layer, sub.operation): sub.module or next(iter(sub.maps.values())) for sub in sublayers}
    inputs = {place: opened.kept(forest.nodes if place[1] == ATTENTION else len(examples)) for place in readers}
    entering = {layer: opened.kept(*forest.tokens.shape) for layer in layers}
    calls, length = [], forest.tokens.shape[1]
    top = len(opened.blocks)
    at_layer = {layer: (layer, RESID_PRE) if layer < top else (top - 1, RESID_POST) for layer in layers}
    places = {*at_layer.values(), *((layer, RESID_POST) for layer in [max((layer for layer, _ in readers), default=-1)]
                                    if layer >= 0)}
    read: dict[tuple[int, str], Tensor] = {}
    with hooked(*(module.register_forward_pre_hook(
            lambda module, arguments, keywords, place=place: read.update({place: stream_of(arguments, keywords)}),
            with_kwargs=True) for place, module in readers.items())):
        for chunks in forest.batches(opened.nodes_at_once):
            given = opened.inputs(forest, chunks)
            found = opened.listen(forest.tokens[chunks], places, **given)
            for layer, place in at_layer.items():
                entering[layer][chunks] = found[place]
            if layers:
                calls.append(opened.calls(forest.tokens[chunks], **given))
            rows, at = forest.rows_in(chunks, nodes)
            for place, kept in inputs.items():
                own = opened.leave(read[place]).reshape(-1, kept.shape[-1])  # (nodes, d_model)
                if place[1] == ATTENTION:
                    kept[chunks.start * length:chunks.stop * length] = own
                else:
                    fill(kept, rows, own[at])
    return Kept(examples, inputs, entering, calls)


@torch.no_grad()
def answer_from(opened: OpenModel, kept: Kept, layer: int, entering: Tensor | None = None) -> Tensor:
    """The states of all rows under the masks in force in a layer or above, from what enters that layer.

    entering: to start from instead of what was kept, (chunks, N, d_model). Returns (rows, d_model).
    """
    if not opened.shares:
        return opened.answer(kept.examples)
    entering = kept.entering[layer] if entering is None else entering
    forest = opened.forest(kept.examples)
    nodes, states = forest.nodes_at(kept.examples.answering), opened.vectors(len(kept.examples))
    for chunks, calls in zip(forest.batches(opened.nodes_at_once), kept.calls):
        stream = opened.run_blocks(entering[chunks], calls, layer, len(opened.blocks))
        rows, at = forest.rows_in(chunks, nodes)
        states[rows] = opened.leave(opened.norm(stream.flatten(0, 1)[at.to(stream.device)]))
    return opened.finite(states)


def bytes_kept(opened: OpenModel, examples: Examples, operations: Sequence[str], entering: bool = False) -> int:
    """What `capture` keeps of one layer. operations: the sublayers whose inputs are kept; entering: the stream too."""
    nodes = opened.forest(examples).nodes
    vectors = nodes * ((ATTENTION in operations) + entering) + len(examples) * ("mlp" in operations)
    return vectors * opened.model.config.hidden_size * torch.finfo(torch.float32).bits // 8
