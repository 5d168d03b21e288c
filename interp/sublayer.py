"""A frozen sublayer replayed on cached inputs through neuron masks.

Everything below the sublayer is frozen, so its inputs are computed once; the bias is not
masked, so W·diag(mask)·x = mask ⊙ (W·x) and the first maps' products are computed once as well.
What is left for a training step is attention or the activation at the probed position, and
the last map. Positions after the probed one never matter in a causal model.
"""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation

from interp.blocks import NODES_AT_ONCE, embed, streams, vectors
from interp.masks import Masks
from interp.models import Heads, LinearMap, Sublayer
from interp.prefixes import Forest


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


@dataclass(frozen=True)
class Captured:
    """What was kept of one pass of a model over a forest.

    inputs: what each sublayer reads, in the order asked for: an attention's (nodes, d_model) at all
        nodes, an MLP's, which reads no other position, (rows, d_model) at the probed ones.
    entering: by layer, the residual stream that enters its block, (chunks, N, d_model).
    """

    inputs: list[Tensor]
    entering: dict[int, Tensor]


@torch.no_grad()
def capture(model: PreTrainedModel, forest: Forest, sublayers: Sequence[Sublayer], layers: Sequence[int] = (),
            nodes: int = NODES_AT_ONCE) -> Captured:
    """One pass of the model, no further up than needed, that keeps what sublayers and blocks read.

    Args:
        sublayers: those whose inputs are kept.
        layers: those whose entering residual stream is kept, for ablations to start from.
        nodes: how many to run at a time.

    What is kept takes `bytes_kept`. Where that is too much for all layers, ask for some at a time.
    """
    inputs = [vectors(model, forest.nodes if sublayer.operation == "attn" else len(forest))
              for sublayer in sublayers]
    entering = {layer: vectors(model, *forest.tokens.shape) for layer in layers}
    end = max([sublayer.layer + 1 for sublayer in sublayers] + list(layers), default=0)
    length = forest.tokens.shape[1]
    with inputs_of([sublayer.module for sublayer in sublayers]) as caught:
        for chunks in forest.batches(nodes):
            for layer, stream in streams(model, embed(model, forest, chunks), forest, chunks, end=end):
                if layer in entering:
                    entering[layer][chunks] = stream
            rows, probed = forest.probed_in(chunks)
            for sublayer, read, kept in zip(sublayers, caught, inputs):
                read = read.flatten(0, 1)  # (nodes, d_model)
                if sublayer.operation == "attn":
                    kept[chunks.start * length:chunks.stop * length] = read
                else:
                    kept[rows] = read[probed]
    return Captured(inputs, entering)


def capture_inputs(model: PreTrainedModel, forest: Forest, sublayers: Sequence[Sublayer]) -> list[Tensor]:
    """What each sublayer reads, for all of them in one pass of the model; see Captured."""
    return capture(model, forest, sublayers).inputs


def bytes_kept(config, forest: Forest, operations: Sequence[str], entering: bool = False) -> int:
    """What `capture` keeps of one layer.

    Args:
        config: the model's.
        operations: the sublayers whose inputs are kept.
        entering: the residual stream as well.
    """
    vectors = forest.nodes * (("attn" in operations) + entering) + len(forest) * ("mlp" in operations)
    return vectors * config.hidden_size * torch.finfo(torch.float32).bits // 8


def gate(product: Tensor, linear: LinearMap, mask: Tensor) -> Tensor:
    """The output of a linear map with masked neurons, from its unmasked product x @ weight."""
    return product * mask + linear.bias


def fused(activation: nn.Module) -> nn.Module:
    """The same function in one kernel; GPT-2's own takes eight."""
    return nn.GELU("tanh") if isinstance(activation, NewGELUActivation) else activation


class ReplayedMLP:
    """An MLP at the probed position: down(act(up(x))), or down(act(gate(x)) ⊙ up(x)). inputs: (rows, d_model)."""

    def __init__(self, sublayer: Sublayer, inputs: Tensor):
        *first, (self.last_name, self.last) = sublayer.maps.items()
        self.first = dict(first)
        self.activation = fused(sublayer.activation)
        self.products = {name: inputs @ linear.weight for name, linear in first}  # (rows, d_mlp) each

    def __len__(self) -> int:
        return len(next(iter(self.products.values())))

    def update(self, masks: Masks, rows: Tensor) -> Tensor:
        """What the masked sublayer adds to the residual stream: (batch, d_model)."""
        hidden, *factors = [gate(self.products[name].index_select(0, rows), linear, masks[name])
                            for name, linear in self.first.items()]  # (batch, d_mlp)
        hidden = self.activation(hidden)
        for factor in factors:
            hidden = hidden * factor
        return gate(hidden @ self.last.weight, self.last, masks[self.last_name])


class ReplayedAttention:
    """Attention from the probed position. inputs: (nodes, d_model).

    Masks and biases are taken out of the sums over positions, so that what is gathered there, by
    far the most of the data, is constant and needs no gradient. With keys k ⊙ m + b, values
    v ⊙ n + c, and weights w_p that add up to 1:

        Σ_p w_p (v_p ⊙ n + c) = n ⊙ Σ_p w_p v_p + c,
        q · (k_p ⊙ m + b) = (q ⊙ m) · k_p + q · b,

    where q · b, alike at all positions, falls out of the softmax. A rotary model turns its keys,
    R_p x = cos_p ⊙ x + sin_p ⊙ Jx with J(x₁, x₂) = (-x₂, x₁), and the sines of both halves are
    alike, so

        q · R_p (k_p ⊙ m + b) = (q ⊙ m) · (cos_p ⊙ k_p) + (Jᵀq ⊙ m) · (sin_p ⊙ k_p) + q · R_p b.
    """

    def __init__(self, sublayer: Sublayer, inputs: Tensor, forest: Forest):
        *first, (self.last_name, self.last) = sublayer.maps.items()
        self.first_names = [name for name, _ in first]
        self.heads, self.scaling = sublayer.heads, sublayer.module.scaling
        self.path = forest.path
        steps = torch.arange(self.path.shape[1], device=self.path.device)
        self.later = (steps >= forest.lengths.unsqueeze(1)).unsqueeze(-1)        # (rows, T, 1)
        self.columns = query_key_value_columns(self.heads, inputs.device)
        self.sizes = [count * self.heads.width for count in (self.heads.queries, self.heads.keys, self.heads.keys)]

        products = torch.cat([inputs @ linear.weight for _, linear in first], dim=-1)[:, self.columns]
        query, key, value = products.split(self.sizes, dim=-1)
        bias = torch.cat([linear.bias for _, linear in first])[self.columns]
        self.query_bias, key_bias, value_bias = bias.split(self.sizes)
        self.query = query[forest.probed]                                        # (rows, queries · width)
        self.value, self.value_bias = self.by_key_head(value), self.by_key_head(value_bias.unsqueeze(0))
        self.key, key_bias = self.by_key_head(key), self.by_key_head(key_bias.unsqueeze(0))
        self.rotation = self.key_bias = None
        if self.heads.rotary is not None:
            cos, sin = rotation(self.heads, inputs, forest.positions.flatten())  # (nodes, width), (nodes, rotary)
            self.rotation = cos[forest.probed], sin[forest.probed]
            self.key = turned_key(self.key, cos, sin)                            # (keys, nodes, width + rotary)
            if key_bias.any():
                self.key_bias = turned_key(key_bias, *rotation(self.heads, inputs, steps)).unsqueeze(1)

    def __len__(self) -> int:
        return len(self.query)

    def by_key_head(self, values: Tensor) -> Tensor:
        """(n, keys · width) as (keys, n, width), whose rows lie together."""
        return values.unflatten(-1, (-1, self.heads.width)).transpose(0, 1).contiguous()

    def update(self, masks: Masks, rows: Tensor) -> Tensor:
        """What the masked sublayer adds to the residual stream: (batch, d_model)."""
        mask = torch.cat([masks[name] for name in self.first_names])[self.columns]
        query_mask, key_mask, value_mask = mask.split(self.sizes)
        key_mask, value_mask = self.by_key_head(key_mask.unsqueeze(0)), self.by_key_head(value_mask.unsqueeze(0))
        path = self.path.index_select(0, rows)                                   # (batch, T)
        key, value = (table.index_select(1, path.flatten()).unflatten(1, path.shape)
                      for table in (self.key, self.value))                       # (keys, batch, T, ...)

        query = self.query.index_select(0, rows) * query_mask + self.query_bias
        query = query.unflatten(-1, (self.heads.keys, -1, self.heads.width)).transpose(0, 1)
        if self.rotation is not None:                                            # (keys, batch, group, width)
            query = turned_query(query, *(part[rows].unsqueeze(1) for part in self.rotation))
            key_mask = torch.cat([key_mask, key_mask[..., :query.shape[-1] - self.heads.width]], dim=-1)
        scores = key @ (query * key_mask.unsqueeze(1)).transpose(2, 3)           # (keys, batch, T, group)
        if self.key_bias is not None:
            scores = scores + self.key_bias @ query.transpose(2, 3)
        weights = (scores * self.scaling).masked_fill(self.later[rows], float("-inf")).softmax(2)
        mixed = weights.transpose(2, 3) @ value                                  # (keys, batch, group, width)
        mixed = mixed * value_mask.unsqueeze(1) + self.value_bias.unsqueeze(1)
        mixed = mixed.transpose(0, 1).flatten(1)                                 # (batch, queries · width)
        return gate(mixed @ self.last.weight, self.last, masks[self.last_name])


def query_key_value_columns(heads: Heads, device: torch.device) -> Tensor | slice:
    """The order that puts an attention's neurons as all queries, all keys, all values, head by head."""
    if not heads.interleaved:
        return slice(None)
    neurons = torch.arange(3 * heads.queries * heads.width, device=device)
    return neurons.view(heads.queries, 3, heads.width).transpose(0, 1).flatten()


def rotation(heads: Heads, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The model's own cosines (n, width) and sines (n, rotary) at some positions (n,).

    Where only the first part of a head is turned, the cosines of the rest are 1.
    """
    cos, sin = (part[0] for part in heads.rotary(like, positions.unsqueeze(0)))
    return F.pad(cos, (0, heads.width - cos.shape[-1]), value=1.0), sin


def turned_key(key: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """cos ⊙ k and sin ⊙ k side by side. key: (keys, n or 1, width)."""
    return torch.cat([key * cos, key[..., :sin.shape[-1]] * sin], dim=-1)


def turned_query(query: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """With q' the query turned by its own position, q' and Jᵀq' side by side. query: (keys, batch, group, width)."""
    rotary, rest = sin.shape[-1], query.shape[-1] - sin.shape[-1]
    query = query * cos + F.pad(half_turned(query[..., :rotary]) * sin, (0, rest))
    return torch.cat([query, -half_turned(query[..., :rotary])], dim=-1)


def half_turned(values: Tensor) -> Tensor:
    """J(x₁, x₂) = (-x₂, x₁) for the halves of the last dimension; its transpose is its negative."""
    first, second = values.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


Replay = ReplayedAttention | ReplayedMLP


def replay(sublayer: Sublayer, inputs: Tensor, forest: Forest) -> Replay:
    """A sublayer ready to be run through masks on inputs that `capture` gave."""
    return ReplayedAttention(sublayer, inputs, forest) if sublayer.operation == "attn" else ReplayedMLP(
        sublayer, inputs)


@torch.no_grad()
def all_updates(replayed: Replay, masks: Masks, batch_size: int = 2048) -> Tensor:
    """The updates of all rows: (rows, d_model)."""
    rows = torch.arange(len(replayed), device=next(iter(masks.values())).device)
    return torch.cat([replayed.update(masks, batch) for batch in rows.split(batch_size)])
