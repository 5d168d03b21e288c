"""A masked sublayer written out: two and a half times as fast as its module, for the families whose formula is known.

The bias is not masked, so W·diag(mask)·x = mask ⊙ (W·x), and the products of the maps that read the input are computed
once. What is left for a step is attention or the activation at the probed position, and the last map. All in float32.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN, NewGELUActivation

from interp.models.open_model import OpenModel
from interp.models.sublayers import Affine, Masks, Sublayer

ACTIVATION_KEYS = ("hidden_act", "activation_function", "hidden_activation", "activation")


class NotKnown(Exception):
    """The formula does not fit a sublayer."""


@dataclass(frozen=True)
class Attention:
    """What AttentionAlgebra must know of a family.

    maps: the names of the maps that give query, key and value, in one or three. interleaved: one map holds query, key
    and value of the first head, then of the second, and so on, rather than all queries, all keys, all values.
    rotary: the module that turns queries and keys by their positions.
    """

    maps: tuple[str, ...]
    rotary: str | None = None
    interleaved: bool = False


LLAMA = Attention(("q_proj", "k_proj", "v_proj"), rotary="model.rotary_emb")
FAMILIES = {
    "gpt2": Attention(("c_attn",)),
    "gpt_neox": Attention(("query_key_value",), rotary="gpt_neox.rotary_emb", interleaved=True),
    "llama": LLAMA,
    "mistral": LLAMA,  # rows longer than its sliding window are refused
    "qwen2": LLAMA,
}


def masked_output(product: Tensor, bias: Tensor | None, mask: Tensor) -> Tensor:
    """The output of a linear map with masked neurons, from its unmasked product x @ W."""
    return product * mask if bias is None else product * mask + bias


class MLPAlgebra:
    """down(act(up(x))), or down(act(gate(x)) ⊙ up(x)), at the probed positions. inputs: (rows, d_model)."""

    def __init__(self, model: OpenModel, sublayer: Sublayer, inputs: Tensor):
        names = [getattr(model.model.config, key, None) for key in ACTIVATION_KEYS]
        names = [name for name in names if isinstance(name, str) and name in ACT2FN]
        if len(sublayer.maps) not in (2, 3) or not names:
            raise NotKnown
        *first, (self.last_name, self.last) = sublayer.affine().items()
        self.biases = {name: affine.bias for name, affine in first}
        self.activation: nn.Module = ACT2FN[names[0]]
        if isinstance(self.activation, NewGELUActivation):
            self.activation = nn.GELU("tanh")  # the same in one kernel instead of eight
        self.products = {name: inputs @ affine.matrix for name, affine in first}  # (rows, d_mlp) each

    def update(self, masks: Masks, rows: Tensor) -> Tensor:
        hidden, *factors = [masked_output(self.products[name].index_select(0, rows), bias, masks[name])
                            for name, bias in self.biases.items()]  # (batch, d_mlp)
        hidden = self.activation(hidden)
        for factor in factors:
            hidden = hidden * factor
        return masked_output(hidden @ self.last.matrix, self.last.bias, masks[self.last_name])


class AttentionAlgebra:
    """Attention from the probed position. inputs: (rows, T, d_model).

    Masks and biases are taken out of the sums over positions, so that what is multiplied there, by far the most of the
    data, is constant and needs no gradient. With keys k ⊙ m + b, values v ⊙ n + c, and weights w_p that add up to 1:

        Σ_p w_p (v_p ⊙ n + c) = n ⊙ Σ_p w_p v_p + c,
        q · (k_p ⊙ m + b) = (q ⊙ m) · k_p + q · b,

    where q · b, alike at all positions, falls out of the softmax. A rotary model turns its keys,
    R_p x = cos_p ⊙ x + sin_p ⊙ Jx with J(x₁, x₂) = (-x₂, x₁), and the sines of both halves are alike, so

        q · R_p (k_p ⊙ m + b) = (q ⊙ m) · (cos_p ⊙ k_p) + (Jᵀq ⊙ m) · (sin_p ⊙ k_p) + q · R_p b.
    """

    def __init__(self, model: OpenModel, sublayer: Sublayer, inputs: Tensor, probed: Tensor):
        family, config = FAMILIES.get(model.kind), model.model.config
        if family is None or sublayer.module is None or set(family.maps) != set(list(sublayer.maps)[:-1]):
            raise NotKnown
        maps = sublayer.affine()
        self.names, (self.last_name, self.last) = family.maps, list(maps.items())[-1]
        self.scaling = cast(float, sublayer.module.scaling)
        steps = torch.arange(inputs.shape[1], device=inputs.device)
        self.later = (steps > probed.unsqueeze(1))[:, None, :, None]             # (rows, 1, T, 1)
        queries = config.num_attention_heads
        keys = getattr(config, "num_key_value_heads", None) or queries           # several queries share one in some
        self.width = getattr(config, "head_dim", None) or config.hidden_size // queries
        self.sizes = [count * self.width for count in (queries, keys, keys)]
        neurons = torch.arange(sum(self.sizes), device=inputs.device)            # in the order query, key, value
        self.columns: Tensor | slice = slice(None) if not family.interleaved else (
            neurons.view(queries, 3, self.width).transpose(0, 1).flatten())

        products = torch.cat([inputs @ maps[name].matrix for name in family.maps], dim=-1)[..., self.columns]
        query, key, value = products.split(self.sizes, dim=-1)
        self.query_bias, key_bias, value_bias = torch.cat([bias_of(maps[name]) for name in family.maps])[
            self.columns].split(self.sizes)
        self.query = query[torch.arange(len(inputs), device=inputs.device), probed]  # (rows, queries · width)
        self.key, self.value = self.heads(key), self.heads(value)                # (rows, keys, T, width)
        self.value_bias = value_bias.view(keys, 1, self.width)
        self.key_bias: Tensor | None = None
        self.turn: tuple[Tensor, Tensor] | None = None
        if family.rotary:
            cos, sin = rotation(model, family.rotary, steps, self.width)         # (T, width), (T, rotary)
            self.turn = cos[probed][:, None, None], sin[probed][:, None, None]
            self.key = turned_key(self.key, cos, sin)                            # (rows, keys, T, width + rotary)
            if key_bias.any():
                self.key_bias = turned_key(key_bias.view(keys, 1, self.width), cos, sin)

    def heads(self, values: Tensor) -> Tensor:
        """(n, T, keys · width) as (n, keys, T, width)."""
        return values.unflatten(-1, (-1, self.width)).transpose(1, 2).contiguous()

    def update(self, masks: Masks, rows: Tensor) -> Tensor:
        mask = torch.cat([masks[name] for name in self.names])[self.columns]
        query_mask, key_mask, value_mask = mask.split(self.sizes)
        key, value = self.key.index_select(0, rows), self.value.index_select(0, rows)
        key_mask, value_mask = (part.view(-1, 1, self.width) for part in (key_mask, value_mask))  # (keys, 1, width)

        query = self.query.index_select(0, rows) * query_mask + self.query_bias
        query = query.unflatten(-1, (key.shape[1], -1, self.width))              # (batch, keys, group, width)
        if self.turn is not None:
            query = turned_query(query, *(part[rows] for part in self.turn))
            key_mask = torch.cat([key_mask, key_mask[..., :query.shape[-1] - self.width]], dim=-1)
        scores = key @ (query * key_mask).transpose(2, 3)                        # (batch, keys, T, group)
        if self.key_bias is not None:
            scores = scores + self.key_bias @ query.transpose(2, 3)
        weights = (scores * self.scaling).masked_fill(self.later[rows], float("-inf")).softmax(2)
        mixed = weights.transpose(2, 3) @ value                                  # (batch, keys, group, width)
        mixed = (mixed * value_mask + self.value_bias).flatten(1)                # (batch, queries · width)
        return masked_output(mixed @ self.last.matrix, self.last.bias, masks[self.last_name])


def bias_of(affine: Affine) -> Tensor:
    return affine.matrix.new_zeros(affine.matrix.shape[1]) if affine.bias is None else affine.bias


def rotation(model: OpenModel, rotary: str, positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The model's cosines (n, width) and sines (n, rotary) at some positions (n,), for heads of a width.

    If only the first part of a head is rotated, the cosines of the rest are 1. rotary: the path of its module.
    """
    like = model.enter(positions)  # of which the module takes the type and the device
    cos, sin = (model.leave(part[0]) for part in model.model.get_submodule(rotary)(like, positions.unsqueeze(0)))
    return F.pad(cos, (0, width - cos.shape[-1]), value=1.0), sin


def turned_key(key: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """cos ⊙ k and sin ⊙ k side by side. key: (..., T or 1, width)."""
    return torch.cat([key * cos, key[..., :sin.shape[-1]] * sin], dim=-1)


def turned_query(query: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """With q' the query turned by its own position, q' and Jᵀq' side by side. query: (batch, keys, group, width)."""
    rotary = sin.shape[-1]
    query = query * cos + F.pad(half_turned(query[..., :rotary]) * sin, (0, query.shape[-1] - rotary))
    return torch.cat([query, -half_turned(query[..., :rotary])], dim=-1)


def half_turned(values: Tensor) -> Tensor:
    """J(x₁, x₂) = (-x₂, x₁) for the halves of the last dimension; its transpose is its negative."""
    first, second = values.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)
