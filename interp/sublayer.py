"""A frozen sublayer replayed on cached inputs through neuron masks.

Everything below the sublayer is frozen, so its inputs are computed once; the bias is not
masked, so W·diag(mask)·x = mask ⊙ (W·x) and the first map's product is computed once as well.
What is left for a training step is attention or the activation at the probed position, and
the last map. Positions after the probed one never matter in a causal model.
"""

from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.masks import Masks
from interp.models import LinearMap, Sublayer


@contextmanager
def inputs_of(modules: list[nn.Module]):
    """Collects, while open, the first input that each module was last called with."""
    caught: list[Tensor | None] = [None] * len(modules)

    def catch(index):
        def hook(module, arguments, keywords):
            # the tensor only: the call's key-value cache would grow and keep graphs alive
            caught[index] = (arguments[0] if arguments else keywords["hidden_states"]).detach()
        return hook

    handles = [module.register_forward_pre_hook(catch(i), with_kwargs=True)
               for i, module in enumerate(modules)]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def batches_of_inputs(model: PreTrainedModel, tokens: Tensor, modules: list[nn.Module], batch_size: int = 2048):
    """What each module reads, batch by batch: yields (rows, [(batch, positions, d_model), ...])."""
    with inputs_of(modules) as caught:
        for start in range(0, len(tokens), batch_size):
            rows = slice(start, start + batch_size)
            model(tokens[rows], use_cache=False, logits_to_keep=1)
            yield rows, caught


def capture_inputs(model: PreTrainedModel, tokens: Tensor, sublayers: list[Sublayer], probed: Tensor,
                   batch_size: int = 2048) -> list[Tensor]:
    """What each sublayer reads, for all of them in one pass of the model.

    Args:
        tokens: (rows, positions).
        probed: (rows,) the position that is probed in each row.

    Returns:
        For an attention (rows, positions up to the last probed one, d_model); for an MLP,
        which reads no other position, (rows, d_model) at the probed one.
    """
    tokens = tokens[:, :int(probed.max()) + 1]
    batches: list[list[Tensor]] = [[] for _ in sublayers]
    modules = [sublayer.module for sublayer in sublayers]
    for rows, caught in batches_of_inputs(model, tokens, modules, batch_size):
        for sublayer, inputs, kept in zip(sublayers, caught, batches):
            kept.append(inputs if sublayer.operation == "attn" else at_positions(inputs, probed[rows]))
    return [torch.cat(kept) for kept in batches]


def at_positions(values: Tensor, probed: Tensor) -> Tensor:
    """(rows, positions, width) at one position of each row: (rows, width)."""
    return values[torch.arange(len(values), device=values.device), probed]


def gate(product: Tensor, linear: LinearMap, mask: Tensor) -> Tensor:
    """The output of a linear map with masked neurons, from its unmasked product x @ weight."""
    return product * mask + linear.bias


class ReplayedMLP:
    """GPT-2's MLP at the probed position. inputs: (rows, d_model)."""

    def __init__(self, sublayer: Sublayer, inputs: Tensor, probed: Tensor):
        self.first_name, self.last_name = sublayer.maps
        self.first, self.last = sublayer.maps.values()
        self.activation = sublayer.module.act
        self.products = inputs @ self.first.weight  # (rows, d_mlp)

    def __len__(self) -> int:
        return len(self.products)

    def update(self, masks: Masks, rows: Tensor) -> Tensor:
        """What the masked sublayer adds to the residual stream: (batch, d_model)."""
        hidden = self.activation(gate(self.products[rows], self.first, masks[self.first_name]))
        return gate(hidden @ self.last.weight, self.last, masks[self.last_name])


class ReplayedAttention:
    """GPT-2's attention from the probed position. inputs: (rows, positions, d_model)."""

    def __init__(self, sublayer: Sublayer, inputs: Tensor, probed: Tensor):
        self.first_name, self.last_name = sublayer.maps
        self.first, self.last = sublayer.maps.values()
        self.module = sublayer.module
        self.probed = probed
        products = inputs @ self.first.weight  # (rows, positions, 3 d_model)
        query, *key_value = products.chunk(3, dim=-1)
        self.query = at_positions(query, probed)  # (rows, d_model)
        self.key_value = torch.cat(key_value, dim=-1)  # (rows, positions, 2 d_model)

    def __len__(self) -> int:
        return len(self.query)

    def update(self, masks: Masks, rows: Tensor) -> Tensor:
        """What the masked sublayer adds to the residual stream: (batch, d_model)."""
        heads = (self.module.num_heads, self.module.head_dim)
        width = self.query.shape[-1]
        mask, bias = masks[self.first_name], self.first.bias
        query = self.query[rows] * mask[:width] + bias[:width]              # (batch, d_model)
        key_value = self.key_value[rows] * mask[width:] + bias[width:]      # (batch, positions, 2 d_model)
        key, value = key_value.chunk(2, dim=-1)
        query, key, value = (part.unflatten(-1, heads) for part in (query, key, value))

        scores = torch.einsum("bhd,bphd->bhp", query, key) * self.module.scaling
        later = torch.arange(key.shape[1], device=key.device) > self.probed[rows].unsqueeze(1)
        weights = scores.masked_fill(later.unsqueeze(1), float("-inf")).softmax(-1)
        mixed = torch.einsum("bhp,bphd->bhd", weights, value).flatten(1)    # (batch, d_model)
        return gate(mixed @ self.last.weight, self.last, masks[self.last_name])


Replay = ReplayedAttention | ReplayedMLP


def replay(sublayer: Sublayer, inputs: Tensor, probed: Tensor) -> Replay:
    """A sublayer ready to be run through masks on inputs that `capture_inputs` gave."""
    kind = {"attn": ReplayedAttention, "mlp": ReplayedMLP}[sublayer.operation]
    return kind(sublayer, inputs, probed)


@torch.no_grad()
def all_updates(replayed: Replay, masks: Masks, batch_size: int = 2048) -> Tensor:
    """The updates of all rows: (rows, d_model)."""
    rows = torch.arange(len(replayed), device=next(iter(masks.values())).device)
    return torch.cat([replayed.update(masks, batch) for batch in rows.split(batch_size)])
