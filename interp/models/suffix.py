"""The suffix forward: the model above a site, with what lies below and before it computed once.

The model's own forward pass is run with the blocks below skipped. Masks in a sublayer change nothing below it, so an
ablation starts at its layer. A patch at the answering token changes no earlier token, so the blocks above need the
earlier tokens' keys and values once, from an ordinary pass.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import Cache

from interp.models.examples import Examples
from interp.models.family import MLP
from interp.models.open_model import RESID_MID, ForwardFrom, OpenModel, Site, replaced, tensor_of


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

    stream: (batch, T, d_model). Nothing is below layer 0, which reads the tokens.
    """
    stream = model.enter(stream)
    given = stream if model.blocks_give_tensors else (stream,)
    with replaced(model.blocks[:layer], lambda *_, **__: given):
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
    """The model above the sites of a layer and further up, at the answering token.

    keys, values: of the earlier tokens, by layer above, (rows, before, heads, width) in the model's type. Those of a
    shorter row stand at the end, next to the answering token, so that a window reaches as far back as in the row alone.
    """

    def __init__(self, model: OpenModel, examples: Examples, layer: int):
        self.model, self.examples = model, examples
        self.keys, self.values = dict[int, Tensor](), dict[int, Tensor]()
        self.before = max(1, int(examples.answering.max()))  # a row of one token has none, which its mask says
        self.first = self.before - examples.answering.unsqueeze(1)                           # (rows, 1)
        self.mask = (torch.arange(self.before + 1, device=model.device) >= self.first).long()  # (rows, before + 1)
        if layer < len(model.blocks) - 1:
            self.read_earlier(layer + 1)

    @torch.no_grad()
    def read_earlier(self, first: int) -> None:
        """One pass that keeps the keys and values of the layers from `first` on."""
        for batch in self.model.batches(self.examples):
            at = torch.arange(self.before, device=self.model.device) - self.first[batch.rows]
            place = batch.place.gather(1, at.clamp(min=0))  # (batch, before)

            def keep(layer, *pair, batch=batch, place=place):
                for tables, states in zip((self.keys, self.values), pair) if layer >= first else ():
                    states = states.transpose(1, 2).flatten(0, 1)[place.to(states.device)]  # (batch, before, ...)
                    if layer not in tables:
                        tables[layer] = states.new_zeros(len(self.examples), *states.shape[1:])
                    tables[layer][batch.rows.to(states.device)] = states
                return pair

            self.model.forward(batch.tokens, use_cache=True, past_key_values=StandIn(0, keep), **batch.inputs)

    def above(self, site: Site) -> ForwardFrom:
        """The forward pass from a site, differentiable in the activations."""
        model, layer = self.model, site.layer + 1
        mlp = mlp_update(model, site.layer) if site.location == RESID_MID else None

        def run(activations: Tensor, rows: Tensor) -> Tensor:
            stream = model.enter(activations).unsqueeze(1)  # (batch, 1, d_model)
            if mlp:
                stream = stream + mlp(stream)
            if layer == len(model.blocks):
                return model.finite(model.leave(model.norm(stream.squeeze(1))))
            positions = self.examples.answering[rows].unsqueeze(1)
            tokens = self.examples.tokens[rows].gather(1, positions)
            return model.finite(run_above(
                model, layer, stream, tokens, use_cache=True, past_key_values=self.earlier(rows),
                attention_mask=self.mask[rows], **model.at_positions(positions)).squeeze(1))

        return run

    def earlier(self, rows: Tensor) -> StandIn:
        """The earlier tokens' keys and values of some rows, to which each layer adds the answering token's."""
        return StandIn(self.before, lambda layer, *new: tuple(
            torch.cat([table[layer][rows.to(states.device)].transpose(1, 2), states], dim=2)
            for table, states in zip((self.keys, self.values), new)))


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
    """The forward pass from each site: the suffix forward where it is exact, else the reference."""
    fast = [site for site in sites if site.location in model.suffix] if examples.at_answer else []
    suffix = Suffix(model, examples, min(site.layer for site in fast)) if fast else None
    return {site: suffix.above(site) if suffix and site in fast else model.patched(examples, site) for site in sites}
