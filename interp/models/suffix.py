"""The suffix forward: the model above a site, with what lies below and before it computed once.

The model's own forward pass is run with the blocks below skipped. Masks in a sublayer change nothing below it, so an
ablation starts at its layer. A patch at a token changes no earlier one, so the blocks above need the
earlier tokens' keys and values once, from an ordinary pass.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import Cache

from interp.models.examples import Examples
from interp.models.family import MLP
from interp.models.open_model import (
    ATTN_OUT,
    MLP_OUT,
    RESID_MID,
    RESID_POST,
    RESID_PRE,
    ForwardFrom,
    OpenModel,
    Site,
    hooked,
    replaced,
    tensor_of,
)
from interp.models.positions import EVERYWHERE


class StandIn(Cache):
    """Takes the place of a model's cache, and keeps nothing.

    length: how many tokens come before those of the pass. on_update: takes a layer and its keys and values,
    (batch, heads, T, width) each; gives those that it attends to.
    """

    def __init__(self, length: int, on_update: Callable[..., tuple[Tensor, ...]]):
        self.layers, self.length, self.on_update = [], length, on_update

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_, **__):
        return self.on_update(layer_idx, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.length + query_length, 0


def run_above(model: OpenModel, layer: int, stream: Tensor, tokens: Tensor, **inputs) -> Tensor:
    """The final hidden states, (batch, T, d_model), with the blocks below a layer skipped: `stream` enters there.

    stream: (batch, T, d_model).
    """
    stream = model.enter(stream)
    given = stream if model.blocks_give_tensors else (stream,)
    bottom = [] if layer else [model.hook(Site(0, RESID_PRE), lambda old: stream.to(old.device).view_as(old))]
    with hooked(*bottom), replaced(model.blocks[:layer], lambda *_, **__: given):
        return model.forward(tokens, **inputs)


@torch.no_grad()
def final_states_from(model: OpenModel, examples: Examples, layer: int, entering: Tensor) -> Tensor:
    """The final hidden states of all rows, (rows, d_model), under whatever masks are in force in a layer or above.

    entering: the residual stream that enters the layer, (rows, T, d_model).
    """
    states = torch.empty(len(examples), model.d_model, device=model.device)
    for batch in model.batches(examples):
        stream = torch.zeros(*batch.tokens.shape, model.d_model, device=model.device)
        inside = torch.arange(batch.place.shape[1], device=model.device) < examples.lengths[batch.rows].unsqueeze(1)
        stream.view(-1, model.d_model)[batch.place[inside]] = entering[batch.rows, :batch.place.shape[1]][inside]
        found = run_above(model, layer, stream, batch.tokens, **batch.inputs).flatten(0, 1)
        states[batch.rows] = found[batch.at(examples.answering)]
    return model.finite(states)


class Suffix:
    """The model above some sites of the same rows.

    A patch at a token changes no earlier one: their keys and values are read once, and the model is run on the tokens
    from the patched one to the answering one, from the lowest block that the patch reaches.

    keys, values: of all tokens by layer, (rows, T, heads, width), in the model's type.
    """

    def __init__(self, model: OpenModel, examples: Examples, sites: Iterable[Site]):
        self.model, self.examples = model, examples
        self.keys, self.values = dict[int, Tensor](), dict[int, Tensor]()
        self.through = {ATTN_OUT: RESID_POST if model.family.parallel else RESID_MID, MLP_OUT: RESID_POST}
        first = min((start_of(site) for site in sites if self.is_exact(site)), default=len(model.blocks))
        if first < len(model.blocks):
            self.read_keys_and_values(first)

    def is_exact(self, site: Site) -> bool:
        return self.through.get(site.location, site.location) in self.model.suffix

    @torch.no_grad()
    def read_keys_and_values(self, first: int) -> None:
        """One pass that keeps those of the layers from `first` on."""
        for batch in self.model.batches(self.examples):
            def keep(layer, *pair, batch=batch):
                for tables, states in zip((self.keys, self.values), pair) if layer >= first else ():
                    states = states.transpose(1, 2).flatten(0, 1)[batch.place.to(states.device)]  # (batch, t, ...)
                    if layer not in tables:
                        tables[layer] = states.new_zeros(*self.examples.tokens.shape, *states.shape[2:])
                    tables[layer][batch.rows.to(states.device), :states.shape[1]] = states
                return pair

            self.model.forward(batch.tokens, use_cache=True, past_key_values=StandIn(0, keep), **batch.inputs)

    def needs(self, site: Site) -> list[Site]:
        """Where the forward pass from a site has to know the clean activations.

        These are the sum that a sublayer's update goes into, and what else enters the blocks above: the tokens after
        the patched one.
        """
        if not self.is_exact(site):
            return []
        through, examples = self.through.get(site.location), self.examples
        has_later = (examples.where(site.position) < examples.answering).any()
        sums = [site, replace(site, location=through)] if through else []
        return sums + [stream_of(site)] * bool(has_later)

    def above(self, site: Site, clean: dict[Site, Tensor], rows: Tensor | None = None) -> ForwardFrom:
        """The forward pass from a site, differentiable in the activations.

        clean: the activations of all rows where `needs` says. rows: those that the forward pass counts, all with the
        site's position; by default all that have it.
        """
        model, first, numbers = self.model, start_of(site), self.examples.rows_with(site.position)
        numbers = numbers if rows is None else rows
        if not self.is_exact(site):
            some = self.examples if len(numbers) == len(self.examples) else self.examples[numbers]
            return model.patched(some, site)
        through = replace(site, location=self.through.get(site.location, site.location))
        mlp = mlp_update(model, site.layer) if through.location == RESID_MID else None
        rest = clean[through] - clean[site] if through != site else None       # (rows, d_model), what is added to it
        later = clean.get(stream_of(site))                                     # (rows, T, d_model)
        patched = self.examples.where(site.position)                           # (rows,)
        lengths = self.examples.answering - patched + 1                        # (rows,), of the tokens to run
        before = max(1, int(patched.max()))

        def run(activations: Tensor, rows: Tensor) -> Tensor:
            rows = numbers[rows]
            values = activations if rest is None else activations + rest[rows]
            stream = model.enter(values).unsqueeze(1)  # (batch, 1, d_model)
            if mlp:
                stream = stream + mlp(stream)
            length = 1 if later is None else int(lengths[rows].max())
            steps = torch.arange(length, device=model.device)
            # beyond its answering token a row goes on with that, which no earlier token sees: (batch, length)
            places = (patched[rows].unsqueeze(1) + steps).minimum(self.examples.answering[rows].unsqueeze(1))
            if later is not None:
                stream = torch.cat([stream, model.enter(later[rows.unsqueeze(1), places[:, 1:]])], dim=1)
            if first == len(model.blocks):
                states = model.leave(model.norm(stream))
            else:
                seen = torch.arange(before, device=model.device) + patched[rows].unsqueeze(1) - before
                states = run_above(
                    model, first, stream, self.examples.tokens[rows.unsqueeze(1), places], use_cache=True,
                    past_key_values=self.earlier(rows, seen), **model.at_positions(patched[rows].unsqueeze(1) + steps),
                    attention_mask=torch.cat([seen >= 0, torch.ones_like(places, dtype=torch.bool)], dim=1).long())
            each = torch.arange(len(rows), device=model.device)
            return model.finite(states[each, lengths[rows] - 1])

        return ForwardFrom(run, lengths[numbers])

    def earlier(self, rows: Tensor, seen: Tensor) -> StandIn:
        """The keys and values of earlier tokens of some rows, to which each layer adds those of the tokens it runs.

        seen: (batch, before) which tokens, below 0 where a row has fewer. They stand next to the patched one, so that a
        window reaches as far back as in the row alone.
        """
        def with_earlier(layer: int, *new: Tensor) -> tuple[Tensor, ...]:
            at = rows.unsqueeze(1), seen.clamp(min=0)
            return tuple(torch.cat([table[layer][tuple(index.to(states.device) for index in at)].transpose(1, 2),
                                    states], dim=2) for table, states in zip((self.keys, self.values), new))

        return StandIn(seen.shape[1], with_earlier)


def stream_of(site: Site) -> Site:
    """What enters the blocks above a site."""
    location = RESID_PRE if site.location == RESID_PRE else RESID_POST
    return replace(site, location=location, position=EVERYWHERE)


def start_of(site: Site) -> int:
    """The lowest block that is run with what a patch at a site changes."""
    return site.layer + (site.location != RESID_PRE)


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


def forward_from(model: OpenModel, examples: Examples, sites: Sequence[Site]) -> dict[Site, ForwardFrom]:
    """The forward pass from each site, of the rows with its position.

    It is the suffix forward where that is exact, else the reference.
    """
    suffix = Suffix(model, examples, sites)
    clean = model.activations(examples, {part for site in sites for part in suffix.needs(site)})
    return {site: suffix.above(site, clean) for site in sites}
