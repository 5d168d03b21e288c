"""The suffix forward: the part of the model above a site, with what lies below and before it computed once.

A patch at the answering token changes no earlier one, so the blocks above need the earlier tokens' keys and values
once, from an ordinary pass. Masks in a sublayer change nothing below it, so an ablation starts at its layer. The blocks
are the model's own, called with what the model calls them with, and with a small object in place of their cache.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from interp.models.examples import Examples
from interp.models.family import MLP
from interp.models.open_model import (
    GIB,
    RESID_MID,
    Call,
    ForwardFrom,
    OpenModel,
    Site,
    replaced,
    tensor_of,
    warn,
)


class StandIn(Cache):
    """Takes the place of a model's cache, and keeps nothing.

    length: how many tokens come before those of the pass.
    on_update: takes a layer and its keys and values, (batch, heads, T, width) each; gives those that it attends to.
    """

    def __init__(self, length: int, on_update: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None):
        self.layers, self.length, self.on_update = [], length, on_update

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_, **__) -> tuple[Tensor, Tensor]:
        assert self.on_update is not None  # without one, no block is run
        return self.on_update(layer_idx, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.length + query_length, 0


def calls_of(model: OpenModel, tokens: Tensor, **inputs) -> list[Call]:
    """What each block is called with besides the residual stream, without running any."""
    found: list[Call] = []
    as_tensor = model.blocks_give_tensors

    def pass_by(stream, *arguments, **keywords):
        found.append((arguments, keywords))
        return stream if as_tensor else (stream,)

    with replaced(model.blocks, pass_by):
        model.forward(tokens, **inputs)
    return found


def run_blocks(model: OpenModel, stream: Tensor, calls: Sequence[Call] | dict[int, Call], layers: range) -> Tensor:
    """The residual stream above some blocks, from what enters the first of them, in the model's own type."""
    stream = model.enter(stream)
    for layer in layers:
        arguments, keywords = calls[layer]
        stream = tensor_of(model.blocks[layer](stream, *arguments, **keywords))
    return stream


@torch.no_grad()
def final_states_from(model: OpenModel, examples: Examples, layer: int, entering: Tensor) -> Tensor:
    """The final hidden states of all rows, (rows, d_model), under whatever masks are in force in a layer or above.

    entering: the residual stream that enters the layer, (rows, T, d_model).
    """
    states = torch.empty(len(examples), model.d_model, device=model.device)
    for rows in model.batches(examples):
        length = int(examples.lengths[rows].max())
        calls = calls_of(model, examples.tokens[rows, :length])
        stream = run_blocks(model, entering[rows, :length], calls, range(layer, len(model.blocks)))
        at = torch.arange(len(rows), device=stream.device), examples.answering[rows].to(stream.device)
        states[rows] = model.leave(model.norm(stream[at]))
    return model.finite(states)


class Suffix:
    """The model above the sites of a layer and further up, at the answering token.

    keys, values: of all tokens of the rows, by layer above, (rows, T, heads, width) in the model's type.
    calls: how blocks are called for the answering token.
    """

    @torch.no_grad()
    def __init__(self, model: OpenModel, examples: Examples, layer: int):
        self.model, self.examples = model, examples
        self.keys, self.values = dict[int, Tensor](), dict[int, Tensor]()
        self.calls: list[Call] = []
        if layer < len(model.blocks) - 1:
            self.read_earlier(layer + 1)

    def read_earlier(self, first: int) -> None:
        """One pass that keeps the keys and values of the layers from `first` on."""
        model, examples = self.model, self.examples
        for rows in model.batches(examples):
            length = int(examples.lengths[rows].max())

            def keep(layer, *pair, rows=rows, length=length):
                for tables, states in zip((self.keys, self.values), pair) if layer >= first else ():
                    states = states.transpose(1, 2)  # (batch, T, heads, width)
                    if layer not in tables:
                        tables[layer] = states.new_zeros(*examples.tokens.shape, *states.shape[2:])
                    tables[layer][rows.to(states.device), :length] = states
                return pair

            model.forward(examples.tokens[rows, :length], use_cache=True, past_key_values=StandIn(0, keep))
        rows, positions = torch.arange(len(examples), device=model.device), examples.answering
        before = max(1, int(positions.max()))  # a row of one token has none, which its mask says
        seen = torch.arange(before, device=model.device) < positions.unsqueeze(1)
        self.calls = calls_of(
            model, examples.tokens[rows, positions].unsqueeze(1), use_cache=True, past_key_values=StandIn(before),
            attention_mask=torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1).long(),
            **({"position_ids": positions.unsqueeze(1)} if model.takes_positions else {}))

    def earlier(self, rows: Tensor) -> StandIn:
        """The earlier tokens' keys and values of some rows, to which each layer adds the answering token's."""
        before = max(1, int(self.examples.answering.max()))
        return StandIn(before, lambda layer, *new: tuple(
            torch.cat([table[layer][rows.to(table[layer].device), :before].transpose(1, 2).to(states.device), states],
                      dim=2)
            for table, states in zip((self.keys, self.values), new)))

    def above(self, site: Site) -> ForwardFrom:
        """The forward pass from a site, differentiable in the activations."""
        model, layers = self.model, range(site.layer + 1, len(self.model.blocks))
        mlp = mlp_update(model, site.layer) if site.location == RESID_MID else None

        def run(activations: Tensor, rows: Tensor) -> Tensor:
            stream = model.enter(activations).unsqueeze(1)  # (batch, 1, d_model)
            if mlp:
                stream = stream + mlp(stream)
            if layers:
                earlier = self.earlier(rows)
                calls = {layer: call_for(self.calls[layer], rows, len(self.examples), earlier) for layer in layers}
                stream = run_blocks(model, stream, calls, layers)
            return model.finite(model.leave(model.norm(stream.squeeze(1))))

        return run


def mlp_update(model: OpenModel, layer: int) -> Callable[[Tensor], Tensor]:
    """What a layer's MLP adds to the residual stream that it reads, token by token; the stream's shape.

    Raises:
        ValueError: the block calls the MLP's maps itself.
    """
    block, component = model.blocks[layer], model.family.components[MLP]
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


def call_for(call: Call, rows: Tensor, count: int, earlier: StandIn | None) -> Call:
    """A block's call for all rows as one for some of them, with the earlier tokens that these have."""
    def part(value: Any) -> Any:
        if isinstance(value, Cache):
            return earlier
        if isinstance(value, Tensor) and value.dim() and count > 1:
            chosen = rows.to(value.device)
            if value.shape[0] == count:
                return value[chosen]
            if value.dim() > 2 and value.shape[0] % count == 0:  # BLOOM's: (rows · heads, ...)
                return value.unflatten(0, (count, -1))[chosen].flatten(0, 1)
        return tuple(map(part, value)) if isinstance(value, tuple) else value

    arguments, keywords = call
    return tuple(map(part, arguments)), {name: part(value) for name, value in keywords.items()}


def forward_from(model: OpenModel, examples: Examples, sites: Sequence[Site]) -> dict[Site, ForwardFrom]:
    """The forward pass from each site: the suffix forward where it is exact and fits into memory."""
    fast = [site for site in sites if site.location in model.suffix] if examples.at_answer else []
    if fast:
        lowest = min(site.layer for site in fast)
        layers, config = len(model.blocks) - 1 - lowest, model.model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or model.d_model // config.num_attention_heads
        size = 2 * layers * examples.tokens.numel() * heads * width * model.dtype.itemsize
        if size > model.budget:
            warn(f"keys and values of {layers} layers take {size / GIB:.1f} GiB, more than cache_gib, so each forward "
                 "pass runs the whole model; a larger cache_gib is faster")
            fast = []
    suffix = Suffix(model, examples, lowest) if fast else None
    return {site: suffix.above(site) if suffix and site in fast else model.patched(examples, site) for site in sites}
