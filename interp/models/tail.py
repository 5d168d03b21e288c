"""The part of the model above a site, run at the answering token only.

A patch at the answering token changes no earlier one, so the blocks above need the earlier tokens' keys and values
once, from an ordinary pass. The blocks are the model's own, called with a small object in place of their cache.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from interp.models.examples import Examples
from interp.models.family import MLP
from interp.models.opened import RESID_MID, ROWS_AT_ONCE, Call, OpenModel, RunOn, Site, at_once, tensor_of


class StandIn(Cache):
    """Takes the place of a model's cache, and keeps nothing.

    length: how many tokens come before those of the pass.
    on_update: takes a layer and its keys and values, (batch, heads, T, width) each; gives those that it attends to.
    """

    def __init__(self, length: int, on_update: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None):
        self.layers, self.length, self.on_update = [], length, on_update

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_, **__) -> tuple[Tensor, Tensor]:
        assert self.on_update is not None  # where there is none, no block is run
        return self.on_update(layer_idx, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.length + query_length, 0


@dataclass(frozen=True)
class Earlier:
    """Keys and values of all tokens of some rows, in the model's type, and how blocks are called for the answering one.

    keys, values: by layer, (nodes, heads, width). path: (rows, T) the nodes of the tokens before the answering one,
    any node beyond them, which the calls' masks hide.
    """

    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    path: Tensor
    calls: list[Call]

    def before(self, rows: Tensor) -> StandIn:
        """The earlier tokens' keys and values of some rows, to which each layer adds the answering token's."""
        path = self.path[rows]  # (batch, T)
        return StandIn(path.shape[1], lambda layer, *new: tuple(
            torch.cat([table[layer][path.to(table[layer].device)].transpose(1, 2).to(own.device), own], dim=2)
            for table, own in zip((self.keys, self.values), new)))


@torch.no_grad()
def read_earlier(opened: OpenModel, examples: Examples) -> Earlier:
    """One pass that keeps every layer's keys and values."""
    forest = opened.forest(examples)
    keys, values = dict[int, Tensor](), dict[int, Tensor]()
    for chunks in forest.batches(opened.nodes_at_once):
        def keep(layer, *pair, chunks=chunks):
            for tables, own in zip((keys, values), pair):  # own: (chunks, heads, N, width)
                nodes = own.transpose(1, 2).flatten(0, 1)
                if layer not in tables:
                    tables[layer] = opened.room.empty(forest.nodes, *nodes.shape[1:], dtype=nodes.dtype,
                                                      device=nodes.device)
                first = chunks.start * own.shape[2]
                tables[layer][first:first + len(nodes)] = nodes
            return pair

        opened.forward(forest.tokens[chunks], **opened.inputs(forest, chunks), use_cache=True,
                       past_key_values=StandIn(0, keep))
    rows, positions = torch.arange(len(examples), device=opened.device), examples.answering
    path = forest.path[:, :max(1, int(positions.max()))]  # a row of one token has none, which its mask says
    seen = torch.arange(path.shape[1], device=opened.device) < positions.unsqueeze(1)
    calls = opened.calls(
        examples.tokens[rows, positions].unsqueeze(1), use_cache=True, past_key_values=StandIn(path.shape[1]),
        attention_mask=torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1).long(),
        **opened.at(positions.unsqueeze(1)))
    return Earlier(keys, values, path, calls)


def tail(opened: OpenModel, examples: Examples, site: Site) -> RunOn:
    """The part of the model above a site, at the answering token: a run on, differentiable in the activations."""
    above = range(site.layer + 1, len(opened.blocks))
    mlp = mlp_update(opened, site.layer) if site.location == RESID_MID else None
    if above and examples not in opened.earlier:
        opened.earlier[examples] = read_earlier(opened, examples)

    def run_on(activations: Tensor, rows: Tensor) -> Tensor:
        stream = opened.enter(activations).unsqueeze(1)  # (batch, 1, d_model)
        if mlp:
            stream = stream + mlp(stream)
        if above:
            earlier = opened.earlier[examples]
            before = earlier.before(rows)
            for layer in above:
                arguments, keywords = at_rows(earlier.calls[layer], rows, len(examples), before)
                stream = tensor_of(opened.blocks[layer](stream, *arguments, **keywords))
        return opened.finite(opened.leave(opened.norm(stream.squeeze(1))))

    of_earlier = 2 * examples.tokens.shape[1] * opened.model.config.hidden_size * opened.dtype.itemsize  # of one layer
    return RunOn(run_on, at_once(ROWS_AT_ONCE, opened.bytes_at_token + 2 * of_earlier))


def mlp_update(opened: OpenModel, layer: int) -> Callable[[Tensor], Tensor]:
    """What a layer's MLP adds to the residual stream that it reads, token by token; the stream's shape.

    Raises:
        ValueError: the block calls the MLP's maps itself.
    """
    block, component = opened.blocks[layer], opened.family.components[MLP]
    if component.module is None:
        raise ValueError("the block has no module for its MLP")
    modules = [block.get_submodule(name) for name in (component.norm, component.module) if name is not None]
    if component.out != component.module:  # a norm after the MLP
        modules.append(block.get_submodule(component.out))

    def update(stream: Tensor) -> Tensor:
        for module in modules:
            stream = tensor_of(module(stream))
        return stream if component.scale == 1 else stream * component.scale

    return update


def at_rows(call: Call, rows: Tensor, count: int, before: StandIn | None) -> Call:
    """A block's call for all rows as one for some of them, with the earlier tokens that these have."""
    def part(value: Any) -> Any:
        if isinstance(value, Cache):
            return before
        if isinstance(value, Tensor) and value.dim() and count > 1:
            own = rows.to(value.device)
            if value.shape[0] == count:
                return value[own]
            if value.dim() > 2 and value.shape[0] % count == 0:  # BLOOM's: (rows · heads, ...)
                return value.unflatten(0, (count, -1))[own].flatten(0, 1)
        return tuple(map(part, value)) if isinstance(value, tuple) else value

    arguments, keywords = call
    return tuple(map(part, arguments)), {name: part(value) for name, value in keywords.items()}


def run_on_from(opened: OpenModel, examples: Examples, site: Site) -> RunOn:
    """The part of the model above a site: by the tail if that is exact here, else by running the whole model."""
    fast = site.location in opened.tails and examples.at_answer
    return tail(opened, examples, site) if fast else opened.patched(examples, site)
