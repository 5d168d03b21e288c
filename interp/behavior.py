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
