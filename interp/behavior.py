"""What a model says, whole or with neurons of a sublayer ablated."""

from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interp.masks import Masks
from interp.models import Sublayer


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


def preference_accuracy(model: PreTrainedModel, states: Tensor, right: Tensor, wrong: Tensor) -> float:
    """How often the right token is likelier than the wrong one; arguments as of `logit_differences`."""
    return (logit_differences(model, states, right, wrong) > 0).double().mean().item()


@torch.no_grad()
def top_tokens(model: PreTrainedModel, states: Tensor, k: int = 50, batch_size: int = 500) -> Tensor:
    """The k likeliest tokens after each row's probed one, the likeliest first: (rows, k), or as many as there are.

    Args:
        states: (rows, d_model) what `final_states` gives.
        batch_size: rows whose logits are computed at a time; for all at once they take much memory.
    """
    unembed = model.get_output_embeddings()
    k = min(k, unembed.weight.shape[0])
    return torch.cat([unembed(batch).topk(k).indices for batch in states.split(batch_size)])
