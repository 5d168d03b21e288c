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
def logit_differences(model: PreTrainedModel, states: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
    """How much likelier than another a token is to come next, as a difference of logits.

    Of the vocabulary only the tokens compared are computed.

    Args:
        states: (rows, d_model) what `final_states` gives.
        right, wrong: (rows,) the tokens compared after each row's probed one.

    Returns:
        (rows,) positive where the right token is the likelier.
    """
    unembedding = model.get_output_embeddings().weight            # (vocabulary, d_model), without a bias
    pairs, pair = torch.stack([right, wrong]).unique(dim=1, return_inverse=True)
    directions = unembedding[pairs[0]] - unembedding[pairs[1]]    # (pairs, d_model)
    return (states * directions[pair]).sum(-1)


def preference_accuracies(model: PreTrainedModel, forest: Forest, answers: dict[str, tuple[Tensor, Tensor]],
                          layer: int = 0, entering: Tensor | None = None,
                          nodes: int = NODES_AT_ONCE) -> dict[str, float]:
    """How often the right token is likelier than the wrong one, for each set of answers.

    With `entering`, the residual stream that `capture` kept at a layer, the blocks below it are not
    run: right for masks in it or above.

    Args:
        answers: by name, the right and the wrong token after each row's probed one, (rows,) each.
        layer, entering, nodes: as in `final_states`.
    """
    states = final_states(model, forest, layer, entering, nodes)  # (rows, d_model)
    return {name: (logit_differences(model, states, *pair) > 0).double().mean().item()
            for name, pair in answers.items()}


@torch.no_grad()
def top_tokens(model: PreTrainedModel, forest: Forest, k: int = 50, layer: int = 0, entering: Tensor | None = None,
               nodes: int = NODES_AT_ONCE, batch_size: int = 500) -> Tensor:
    """The k likeliest tokens after each row's probed one, the likeliest first: (rows, k)."""
    unembed = model.get_output_embeddings()
    return torch.cat([unembed(states).topk(k).indices  # of (batch, vocabulary), large for all rows at once
                      for states in final_states(model, forest, layer, entering, nodes).split(batch_size)])
