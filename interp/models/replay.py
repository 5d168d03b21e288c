"""A frozen sublayer replayed on cached inputs through neuron masks: a training step of circuit probing.

Everything below the sublayer is frozen, so what it reads is computed once, and so are the products of the maps that
read it: the bias is not masked, so W·diag(mask)·x = mask ⊙ (W·x). What is left for a step is attention or the
activation at the probed position, and the last map. Positions after the probed one never matter in a causal model.

Three ways, each compared with the plain one on a few rows before it is used; the first two compute in float32 whatever
the model's type:

ReplayedAttention   what the attention of GPT-2, GPT-NeoX and Llama is, written out (ALGEBRA)
ReplayedMLP         down(act(up(x))), or down(act(gate(x)) ⊙ up(x)), whoever the model is
ReplayedModule      the model's own module, whatever it does
ReplayedModel       the plain way: the model run up to the sublayer
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN, NewGELUActivation

from interp.models.examples import Examples
from interp.models.family import ATTENTION
from interp.models.forest import Forest
from interp.models.opened import ROWS_COMPARED, Call, OpenModel, alike, hooked, replaced, tensor_of
from interp.models.sublayers import Affine, Masks, Sublayer, masked, random_masks
from interp.models.tail import at_rows

ACTIVATION_KEYS = ("hidden_act", "activation_function", "hidden_activation", "activation")


class Replay(Protocol):
    """A sublayer on fixed rows, ready to be run through masks."""

    def __len__(self) -> int: ...

    def update(self, masks: Masks, rows: Tensor) -> Tensor:
        """What the masked sublayer adds to the residual stream where some rows are probed: (batch, d_model)."""


class CannotReplay(Exception):
    """A way of replaying does not fit a sublayer."""


@dataclass(frozen=True)
class Attention:
    """What ReplayedAttention must know of a family.

    maps: the names of the maps that give query, key and value, in one or three. interleaved: one map holds query, key
    and value of the first head, then of the second, and so on, rather than all queries, all keys, all values.
    rotary: what turns queries and keys by their positions.
    """

    maps: tuple[str, ...]
    rotary: str | None = None
    interleaved: bool = False


LLAMA = Attention(("q_proj", "k_proj", "v_proj"), rotary="model.rotary_emb")
ALGEBRA = {
    "gpt2": Attention(("c_attn",)),
    "gpt_neox": Attention(("query_key_value",), rotary="gpt_neox.rotary_emb", interleaved=True),
    "llama": LLAMA,
    "mistral": LLAMA,  # sentences longer than its sliding window are refused (question.context_of)
    "qwen2": LLAMA,
}


def gate(product: Tensor, bias: Tensor | None, mask: Tensor) -> Tensor:
    """The output of a linear map with masked neurons, from its unmasked product x @ W."""
    return product * mask if bias is None else product * mask + bias


def applied(last: Affine, inputs: Tensor, mask: Tensor) -> Tensor:
    """The output of a linear map with masked neurons."""
    return gate(inputs @ last.matrix, last.bias, mask)


def fused(activation: nn.Module) -> nn.Module:
    """The same function in one kernel; GPT-2's own takes eight."""
    return nn.GELU("tanh") if isinstance(activation, NewGELUActivation) else activation


class ReplayedMLP:
    """down(act(up(x))), or down(act(gate(x)) ⊙ up(x)), at the probed positions. inputs: (rows, d_model)."""

    def __init__(self, opened: OpenModel, sublayer: Sublayer, inputs: Tensor):
        names = [getattr(opened.model.config, key, None) for key in ACTIVATION_KEYS]
        names = [name for name in names if isinstance(name, str) and name in ACT2FN]
        if len(sublayer.maps) not in (2, 3) or not names:
            raise CannotReplay
        *first, (self.last_name, self.last) = sublayer.affine().items()
        self.biases, self.activation = {name: own.bias for name, own in first}, fused(ACT2FN[names[0]])
        self.behind = behind_of(opened, sublayer)
        inputs = inputs.to(opened.device)
        self.products = {name: inputs @ own.matrix for name, own in first}  # (rows, d_mlp) each

    def __len__(self) -> int:
        return len(next(iter(self.products.values())))

    def update(self, masks: Masks, rows: Tensor) -> Tensor:
        hidden, *factors = [gate(self.products[name].index_select(0, rows), bias, masks[name])
                            for name, bias in self.biases.items()]  # (batch, d_mlp)
        hidden = self.activation(hidden)
        for factor in factors:
            hidden = hidden * factor
        return self.behind(applied(self.last, hidden, masks[self.last_name]))


def behind_of(opened: OpenModel, sublayer: Sublayer):
    """What follows the last map or the module: a norm, if the family has one there, and the factor."""
    norm = sublayer.out if sublayer.out not in (sublayer.module, *sublayer.maps.values()) else None

    def behind(update: Tensor) -> Tensor:
        update = opened.leave(update if norm is None else norm(opened.enter(update)))
        return update if sublayer.scale == 1 else update * sublayer.scale

    return behind


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

    def __init__(self, opened: OpenModel, sublayer: Sublayer, inputs: Tensor, forest: Forest, probed: Tensor):
        attention = ALGEBRA.get(opened.model.config.model_type)
        if attention is None or sublayer.module is None or set(attention.maps) != set(list(sublayer.maps)[:-1]):
            raise CannotReplay
        maps, inputs = sublayer.affine(), inputs.to(opened.device)
        first = [maps[name] for name in attention.maps]
        self.last_name, self.last = list(maps.items())[-1]
        self.first_names, self.behind = list(attention.maps), behind_of(opened, sublayer)
        self.scaling = cast(float, sublayer.module.scaling)
        self.path = forest.path[:, :int(probed.max()) + 1]
        steps = torch.arange(self.path.shape[1], device=self.path.device)
        self.later = (steps > probed.unsqueeze(1)).unsqueeze(-1)                 # (rows, T, 1)
        nodes = forest.nodes_at(probed)                                          # (rows,)
        config = opened.model.config
        queries = config.num_attention_heads
        keys = getattr(config, "num_key_value_heads", None) or queries  # several queries share one in some models
        self.width = getattr(config, "head_dim", None) or config.hidden_size // queries
        self.sizes = [count * self.width for count in (queries, keys, keys)]
        # the order that puts the neurons as all queries, all keys, all values, head by head
        neurons = torch.arange(sum(self.sizes), device=inputs.device)
        self.columns: Tensor | slice = slice(None) if not attention.interleaved else (
            neurons.view(queries, 3, self.width).transpose(0, 1).flatten())

        products = torch.cat([inputs @ own.matrix for own in first], dim=-1)[:, self.columns]
        query, key, value = products.split(self.sizes, dim=-1)
        bias = torch.cat([inputs.new_zeros(own.matrix.shape[1]) if own.bias is None else own.bias
                          for own in first])[self.columns]
        self.query_bias, key_bias, value_bias = bias.split(self.sizes)
        self.query = query[nodes]                                                # (rows, queries · width)
        self.value, self.value_bias = self.by_key_head(value), self.by_key_head(value_bias.unsqueeze(0))
        self.key, key_bias = self.by_key_head(key), self.by_key_head(key_bias.unsqueeze(0))
        self.rotation: tuple[Tensor, Tensor] | None = None
        self.key_bias: Tensor | None = None
        if attention.rotary:
            positions = forest.positions.flatten()
            cos, sin = rotation(opened, attention.rotary, positions, self.width)  # (nodes, width), (nodes, rotary)
            self.rotation = cos[nodes], sin[nodes]
            self.key = turned_key(self.key, cos, sin)                            # (keys, nodes, width + rotary)
            if key_bias.any():
                turns = rotation(opened, attention.rotary, steps, self.width)
                self.key_bias = turned_key(key_bias, *turns).unsqueeze(1)

    def __len__(self) -> int:
        return len(self.query)

    def by_key_head(self, values: Tensor) -> Tensor:
        """(n, keys · width) as (keys, n, width), whose rows lie together."""
        return values.unflatten(-1, (-1, self.width)).transpose(0, 1).contiguous()

    def update(self, masks: Masks, rows: Tensor) -> Tensor:
        mask = torch.cat([masks[name] for name in self.first_names])[self.columns]
        query_mask, key_mask, value_mask = mask.split(self.sizes)
        key_mask, value_mask = self.by_key_head(key_mask.unsqueeze(0)), self.by_key_head(value_mask.unsqueeze(0))
        path = self.path.index_select(0, rows)                                   # (batch, T)
        key, value = (table.index_select(1, path.flatten()).unflatten(1, path.shape)
                      for table in (self.key, self.value))                       # (keys, batch, T, ...)

        query = self.query.index_select(0, rows) * query_mask + self.query_bias
        query = query.unflatten(-1, (len(self.key), -1, self.width)).transpose(0, 1)
        if self.rotation is not None:                                            # (keys, batch, group, width)
            query = turned_query(query, *(part[rows].unsqueeze(1) for part in self.rotation))
            key_mask = torch.cat([key_mask, key_mask[..., :query.shape[-1] - self.width]], dim=-1)
        scores = key @ (query * key_mask.unsqueeze(1)).transpose(2, 3)           # (keys, batch, T, group)
        if self.key_bias is not None:
            scores = scores + self.key_bias @ query.transpose(2, 3)
        weights = (scores * self.scaling).masked_fill(self.later[rows], float("-inf")).softmax(2)
        mixed = weights.transpose(2, 3) @ value                                  # (keys, batch, group, width)
        mixed = mixed * value_mask.unsqueeze(1) + self.value_bias.unsqueeze(1)
        mixed = mixed.transpose(0, 1).flatten(1)                                 # (batch, queries · width)
        return self.behind(applied(self.last, mixed, masks[self.last_name]))


def rotation(opened: OpenModel, rotary: str, positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The model's own cosines (n, width) and sines (n, rotary) at some positions (n,), for heads of a width.

    If only the first part of a head is rotated, the cosines of the rest are 1. rotary: the path of its module.
    """
    like = opened.enter(positions)  # of which the module takes the type and the device
    cos, sin = (opened.leave(part[0]) for part in opened.model.get_submodule(rotary)(like, positions.unsqueeze(0)))
    return F.pad(cos, (0, width - cos.shape[-1]), value=1.0), sin


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


class ReplayedModule:
    """The model's own module: of an attention all positions, of an MLP the probed ones.

    The maps that read the input give what they gave before, and the last one, where it is an attention's, is applied at
    the probed position only. inputs: (nodes, d_model) of an attention, (rows, d_model) of an MLP.
    """

    def __init__(self, opened: OpenModel, sublayer: Sublayer, inputs: Tensor, examples: Examples):
        if sublayer.module is None:
            raise CannotReplay
        self.sublayer, self.module, self.whole = sublayer, sublayer.module, sublayer.operation == ATTENTION
        self.behind = behind_of(opened, sublayer)
        self.inner = sublayer.out in sublayer.maps.values()  # the module adds more to what is its update
        self.probed = examples.probed
        forest = opened.forest(examples)
        inputs = opened.enter(inputs)
        self.inputs = inputs[forest.path] if self.whole else inputs.unsqueeze(1)  # (rows, T or 1, d_model)
        self.call = module_call(opened, sublayer, sublayer.module, examples)
        self.last: str | None = None
        self.constant, self.last = self.look_at_maps()

    def __len__(self) -> int:
        return len(self.inputs)

    @torch.no_grad()
    def look_at_maps(self) -> tuple[dict[str, Tensor], str]:
        """The outputs of the maps that read the input, (rows, T or 1, neurons) each, and which map comes last."""
        few = torch.arange(min(2, len(self)), device=self.inputs.device)
        read: dict[str, Tensor] = {}
        with hooked(*(linear.register_forward_pre_hook(
                lambda module, arguments, name=name: read.update({name: arguments[0]}))
                for name, linear in self.sublayer.maps.items())):
            self.run(random_masks(self.sublayer), few, {})
        constant = {name: self.sublayer.maps[name](self.inputs) for name, own in read.items()
                    if own.shape == self.inputs[few].shape and torch.equal(own.to(few.device), self.inputs[few])}
        return constant, list(read)[-1]

    def update(self, masks: Masks, rows: Tensor) -> Tensor:
        return self.run(masks, rows, {
            name: table[rows.to(table.device)] for name, table in self.constant.items()})

    def run(self, masks: Masks, rows: Tensor, constant: dict[str, Tensor]) -> Tensor:
        maps, found = self.sublayer.maps, []
        handles = [self.sublayer.out.register_forward_hook(
            lambda module, arguments, output: found.append(output))] if self.inner else []
        if self.whole and self.last:
            at = torch.arange(len(rows), device=rows.device), self.probed[rows]

            def at_probed(module, arguments):
                read = arguments[0].unflatten(0, (len(rows), -1)) if arguments[0].dim() == 2 else arguments[0]
                return (read[tuple(index.to(read.device) for index in at)].unsqueeze(1),)

            handles.append(maps[self.last].register_forward_pre_hook(at_probed))
        arguments, keywords = at_rows(self.call, rows, len(self), None)
        with ExitStack() as changed:
            for name, values in constant.items():
                changed.enter_context(replaced([maps[name]], lambda inputs, values=values: values))
            changed.enter_context(masked(self.sublayer, masks))
            changed.enter_context(hooked(*handles))  # in this order: `out` is heard after its mask
            result = tensor_of(self.module(self.inputs[rows], *arguments, **keywords))
        return self.behind((found[0] if self.inner else result)[:, 0])


@torch.no_grad()
def module_call(opened: OpenModel, sublayer: Sublayer, module: nn.Module, examples: Examples) -> Call:
    """What a sublayer's module is called with besides what it reads, with all rows apart.

    Of an MLP, which is run on the probed position alone, for one position.
    """
    layout, found = examples.rows_apart, []
    calls = opened.calls(layout.tokens, **opened.at(layout.positions))

    def part(value: Any) -> Any:
        return value[:, :1] if sublayer.operation != ATTENTION and isinstance(value, Tensor) else value

    def catch(module, arguments, keywords):
        found.append((tuple(map(part, arguments[1:])), {
            name: part(value) for name, value in keywords.items() if name != "hidden_states"}))

    with hooked(module.register_forward_pre_hook(catch, with_kwargs=True)):
        opened.run_blocks(opened.vectors(*layout.tokens.shape).zero_(), calls, sublayer.layer, sublayer.layer + 1)
    return found[0]


class ReplayedModel:
    """The plain way: the model run up to the sublayer, under masks."""

    def __init__(self, opened: OpenModel, sublayer: Sublayer, examples: Examples):
        self.opened, self.sublayer, self.examples = opened, sublayer, examples

    def __len__(self) -> int:
        return len(self.examples)

    def update(self, masks: Masks, rows: Tensor) -> Tensor:
        site, at = self.sublayer.site, torch.arange(len(rows), device=rows.device)
        with masked(self.sublayer, masks):
            found = self.opened.listen(self.examples.rows_apart.tokens[rows], {(site.layer, site.location)})
        return found[site.layer, site.location][at, self.examples.probed[rows]]


@torch.no_grad()
def replay(opened: OpenModel, sublayer: Sublayer, examples: Examples, inputs: Tensor) -> Replay:
    """A sublayer ready to be run through masks, by the fastest way that agrees with the plain one.

    inputs: what its first map reads, as `capture` keeps it.
    """
    plain, forest = ReplayedModel(opened, sublayer, examples), opened.forest(examples)
    algebra = ((lambda: ReplayedAttention(opened, sublayer, inputs, forest, examples.probed))
               if sublayer.operation == ATTENTION else lambda: ReplayedMLP(opened, sublayer, inputs))
    rows, masks = torch.arange(len(plain), device=opened.device)[:ROWS_COMPARED], random_masks(sublayer)
    for way in (algebra, lambda: ReplayedModule(opened, sublayer, inputs, examples)):
        try:
            found = way()
            if alike(found.update(masks, rows), plain.update(masks, rows), opened.dtype):
                return found
            opened.tell(f"{type(found).__name__} gives other updates than a layer's {sublayer.operation}")
        except CannotReplay:
            continue
        except Exception as error:  # a module with other arguments can fail in any way
            opened.tell(f"a fast way of replaying a layer's {sublayer.operation} failed ({type(error).__name__})")
    return plain


@torch.no_grad()
def all_updates(replayed: Replay, masks: Masks, batch_size: int = 2048) -> Tensor:
    """The updates of all rows: (rows, d_model)."""
    rows = torch.arange(len(replayed), device=next(iter(masks.values())).device)
    return torch.cat([replayed.update(masks, batch) for batch in rows.split(batch_size)])
