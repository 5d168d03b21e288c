"""What a model says, whole or with neurons of a sublayer ablated."""

from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interp.blocks import NODES_AT_ONCE, final_states
from interp.masks import Masks
from interp.models import Sublayer
from interp.prefixes import Forest


@contextmanager
def masked(sublayer: Sublayer, masks: Masks):
    """While open, the weights into masked neurons are multiplied by their masks, at every position."""
    weights = {name: linear.weight for name, linear in sublayer.maps.items()}
    originals = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.mul_(masks[name])  # (fan_in, neurons) * (neurons,)
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(originals[name])


@torch.no_grad()
def next_token_accuracy(model: PreTrainedModel, tokens: Tensor, labels: Tensor,
                        batch_size: int = 4096) -> float:
    """How often the likeliest token after a sequence is its label. tokens: (rows, positions)."""
    hits = [model(batch, use_cache=False, logits_to_keep=1).logits[:, -1].argmax(-1) == expected
            for batch, expected in zip(tokens.split(batch_size), labels.split(batch_size))]
    return torch.cat(hits).double().mean().item()


@torch.no_grad()
def logit_differences(model: PreTrainedModel, forest: Forest, right: Tensor, wrong: Tensor, layer: int = 0,
                      entering: Tensor | None = None, nodes: int = NODES_AT_ONCE) -> Tensor:
    """How much likelier than another a token is to come next, as a difference of logits.

    Of the vocabulary only the tokens compared are computed. With `entering`, the residual stream
    that `capture` kept at a layer, the blocks below it are not run: right for masks in it or above.

    Args:
        right, wrong: (rows,) the tokens compared after each row's probed one.
        layer, entering, nodes: as in `final_states`.

    Returns:
        (rows,) positive where the right token is the likelier.
    """
    states = final_states(model, forest, layer, entering, nodes)  # (rows, d_model)
    unembedding = model.get_output_embeddings().weight            # (vocabulary, d_model), without a bias
    pairs, pair = torch.stack([right, wrong]).unique(dim=1, return_inverse=True)
    directions = unembedding[pairs[0]] - unembedding[pairs[1]]    # (pairs, d_model)
    return (states * directions[pair]).sum(-1)


def preference_accuracy(model: PreTrainedModel, forest: Forest, right: Tensor, wrong: Tensor, layer: int = 0,
                        entering: Tensor | None = None, nodes: int = NODES_AT_ONCE) -> float:
    """How often the right token is likelier than the wrong one; arguments as for `logit_differences`."""
    return (logit_differences(model, forest, right, wrong, layer, entering, nodes) > 0).double().mean().item()


@torch.no_grad()
def top_tokens(model: PreTrainedModel, forest: Forest, k: int = 50, layer: int = 0, entering: Tensor | None = None,
               nodes: int = NODES_AT_ONCE, batch_size: int = 500) -> Tensor:
    """The k likeliest tokens after each row's probed one, the likeliest first: (rows, k)."""
    unembed = model.get_output_embeddings()
    return torch.cat([unembed(states).topk(k).indices  # of (batch, vocabulary), large for all rows at once
                      for states in final_states(model, forest, layer, entering, nodes).split(batch_size)])
