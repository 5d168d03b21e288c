"""Masked attention written out, for the families whose formula is known: five times as fast as the module, in float32.

The bias is not masked, so W·diag(mask)·x = mask ⊙ (W·x), and the products of the maps that read the input are computed
once. Masks and biases are taken out of the sums over positions, so that what is multiplied there, by far the most of
the data, is constant and needs no gradient. With keys k ⊙ m + b, values v ⊙ n + c, and weights w_p that add up to 1:

    Σ_p w_p (v_p ⊙ n + c) = n ⊙ Σ_p w_p v_p + c,
    q · (k_p ⊙ m + b) = (q ⊙ m) · k_p + q · b,

where q · b, alike at all positions, falls out of the softmax. A rotary model turns its keys,
R_p x = cos_p ⊙ x + sin_p ⊙ Jx with J(x₁, x₂) = (-x₂, x₁), and the sines of both halves are alike, so

    q · R_p (k_p ⊙ m + b) = (q ⊙ m) · (cos_p ⊙ k_p) + (Jᵀq ⊙ m) · (sin_p ⊙ k_p) + q · R_p b.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from interp.models.open_model import OpenModel
from interp.models.sublayers import Masks, Sublayer


@dataclass(frozen=True)
class Attention:
    """maps: the names of the maps that give query, key and value, in one or three. rotary: the module that gives the
    cosines and sines by which queries and keys are turned."""

    maps: tuple[str, ...]
    rotary: str | None = None


LLAMA = Attention(("q_proj", "k_proj", "v_proj"), rotary="model.rotary_emb")
FAMILIES = {"gpt2": Attention(("c_attn",)), "llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA}


class MaskedAttention:
    """Attention from the probed position. inputs: (rows, T, d_model)."""

    def __init__(self, model: OpenModel, sublayer: Sublayer, inputs: Tensor, probed: Tensor):
        family, config, maps = FAMILIES[model.kind], model.model.config, sublayer.affine()
        self.names, (self.last_name, self.last) = family.maps, list(maps.items())[-1]
        self.scaling: float = cast(Any, sublayer.module).scaling
        steps = torch.arange(inputs.shape[1], device=inputs.device)
        self.later = (steps > probed.unsqueeze(1))[:, None, :, None]             # (rows, 1, T, 1)
        queries = config.num_attention_heads
        keys = getattr(config, "num_key_value_heads", None) or queries           # several queries share one in some
        self.width = getattr(config, "head_dim", None) or config.hidden_size // queries
        self.sizes = [count * self.width for count in (queries, keys, keys)]
        products = torch.cat([inputs @ maps[name].matrix for name in family.maps], dim=-1)
        query, key, value = products.split(self.sizes, dim=-1)                   # (rows, T, neurons) each
        bias = torch.cat([maps[name].bias for name in family.maps])
        self.query_bias, key_bias, value_bias = (part.view(-1, 1, self.width) for part in bias.split(self.sizes))
        self.query = self.heads(query[torch.arange(len(inputs), device=inputs.device), probed].unsqueeze(1))
        self.key, self.value, self.value_bias = self.heads(key), self.heads(value), value_bias
        self.turn: tuple[Tensor, Tensor] | None = None
        self.key_bias: Tensor | None = None
        if family.rotary:
            cos, sin = model.model.get_submodule(family.rotary)(model.enter(inputs[:1]), steps.unsqueeze(0))
            cos, sin = model.leave(cos[0]), model.leave(sin[0])                  # (T, width) each
            self.turn = cos[probed][:, None, None], sin[probed][:, None, None]
            self.key = torch.cat([self.key * cos, self.key * sin], dim=-1)       # (rows, keys, T, 2 width)
            if key_bias.any():
                self.key_bias = torch.cat([key_bias * cos, key_bias * sin], dim=-1)

    def heads(self, values: Tensor) -> Tensor:
        """(n, T, heads · width) as (n, heads, T, width)."""
        return values.unflatten(-1, (-1, self.width)).transpose(1, 2).contiguous()

    def update(self, masks: Masks, rows: Tensor) -> Tensor:
        """What the masked attention gives where some rows are probed: (batch, d_model)."""
        query_mask, key_mask, value_mask = (part.view(-1, 1, self.width) for part in torch.cat(
            [masks[name] for name in self.names]).split(self.sizes))             # (heads, 1, width) each
        key, value = self.key.index_select(0, rows), self.value.index_select(0, rows)
        query = self.query.index_select(0, rows) * query_mask + self.query_bias  # (batch, queries, 1, width)
        query = query.squeeze(2).unflatten(1, (key.shape[1], -1))                # (batch, keys, group, width)
        if self.turn is not None:
            cos, sin = (part[rows] for part in self.turn)
            query = query * cos + half_turned(query) * sin
            query = torch.cat([query, -half_turned(query)], dim=-1)
            key_mask = torch.cat([key_mask, key_mask], dim=-1)
        scores = key @ (query * key_mask).transpose(2, 3)                        # (batch, keys, T, group)
        if self.key_bias is not None:
            scores = scores + self.key_bias @ query.transpose(2, 3)
        weights = (scores * self.scaling).masked_fill(self.later[rows], float("-inf")).softmax(2)
        mixed = weights.transpose(2, 3) @ value                                  # (batch, keys, group, width)
        mixed = (mixed * value_mask + self.value_bias).flatten(1)                # (batch, queries · width)
        return mixed @ self.last.matrix * masks[self.last_name] + self.last.bias


def half_turned(values: Tensor) -> Tensor:
    """J(x₁, x₂) = (-x₂, x₁) for the halves of the last dimension; its transpose is its negative."""
    first, second = values.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)
