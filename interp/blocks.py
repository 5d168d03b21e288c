"""A model's blocks run over a forest, from any layer to any other, and what is read out above them.

What lies below an ablated sublayer stays as it is: the residual stream that enters its block is
computed once, and each ablated run starts there.
"""

from collections import deque

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interp.models import architecture_of, blocks_of
from interp.prefixes import Forest

NODES_AT_ONCE = 1024  # bounds the memory of a pass; measured faster than 4096, which leaves the cache


def embed(model: PreTrainedModel, forest: Forest, chunks: slice) -> Tensor:
    """The residual stream below the first block: (chunks, N, d_model)."""
    stream = model.get_input_embeddings()(forest.tokens[chunks])
    table = architecture_of(model.config).position_table
    return stream if table is None else stream + model.get_submodule(table)(forest.positions[chunks])


def streams(model: PreTrainedModel, stream: Tensor, forest: Forest, chunks: slice, first: int = 0,
            end: int | None = None):
    """Yields (layer, the residual stream that enters its block), from `first` to `end`."""
    blocks = blocks_of(model)
    end = len(blocks) if end is None else end
    surroundings = {"attention_mask": forest.mask_of(chunks), "position_ids": forest.positions[chunks]}
    rotary = architecture_of(model.config).rotary
    if rotary is not None:
        surroundings["position_embeddings"] = model.get_submodule(rotary)(stream, forest.positions[chunks])
    yield first, stream
    for layer in range(first, end):
        stream = blocks[layer](stream, **surroundings)  # without a key-value cache, which would grow
        yield layer + 1, stream


@torch.no_grad()
def final_states(model: PreTrainedModel, forest: Forest, layer: int = 0, entering: Tensor | None = None,
                 nodes: int = NODES_AT_ONCE) -> Tensor:
    """What the output embedding reads at the probed nodes, under whatever masks are in force.

    Args:
        layer: the block to start at.
        entering: (chunks, N, d_model) the residual stream that enters it; of a layer above 0 it must be given.
        nodes: how many to run at a time.

    Returns:
        (rows, d_model).
    """
    norm = model.get_submodule(architecture_of(model.config).norm)
    states = vectors(model, len(forest))
    for chunks in forest.batches(nodes):
        stream = embed(model, forest, chunks) if entering is None else entering[chunks]
        _, stream = deque(streams(model, stream, forest, chunks, layer), maxlen=1).pop()  # above the last block
        rows, probed = forest.probed_in(chunks)
        states[rows] = norm(stream.flatten(0, 1)[probed])
    return states


def vectors(model: PreTrainedModel, *shape: int) -> Tensor:
    """Room for vectors of the residual stream, (*shape, d_model): filled in place, they take no more than they are."""
    return torch.empty(*shape, model.config.hidden_size, device=model.device)
