"""A frozen model with hooks at the places that TransformerLens names: read, patch, answer.

The reference way is the model's own forward pass with hooks; it serves every family. The optimized ways (suffix.py,
replay.py) are exact, and are compared with it on a few rows when a model is opened.
"""

import copy
import inspect
import sys
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate.utils import align_module_device
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from interp.models.batches import TOKENS_AT_ONCE, Batch, batches_of
from interp.models.examples import Answer, Examples
from interp.models.family import ATTENTION, MLP, Family
from interp.models.positions import EVERYWHERE, PROBED, Position
from interp.runs.config import RunFailed

GIB = 2**30
ROWS_AT_ONCE = 256     # whose logits are held at a time
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.03}  # see `alike`

RESID_PRE, ATTN_OUT, RESID_MID, MLP_OUT, RESID_POST = "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"
SUBLAYER_OF = {ATTN_OUT: ATTENTION, MLP_OUT: MLP}

Change = Callable[[Tensor], Tensor | None]     # reads the values at a place; replaces them by what it returns, if any


@dataclass(frozen=True)
class Site:
    """A place in the model, as TransformerLens names it, and the position of a row at which it is read or patched."""

    layer: int
    location: str
    position: Position = PROBED

    def __str__(self) -> str:
        return f"blocks.{self.layer}.hook_{self.location}"


@dataclass(frozen=True)
class ForwardFrom:
    """The model run on from a site with other activations there, differentiable in them.

    run: of activations (batch, d_model) and the row numbers they belong to gives the final hidden states.
    lengths: (rows,) how many tokens of each row that takes.
    """

    run: Callable[[Tensor, Tensor], Tensor]
    lengths: Tensor

    def __call__(self, activations: Tensor, rows: Tensor) -> Tensor:
        return self.run(activations, rows)


class Enough(Exception):
    """No block above is needed."""


class OpenModel:
    """A model and where its family keeps things.

    Final hidden states are what the output embedding reads, (rows, d_model). Whatever leaves the model is float32 and
    on `device`, and is cast where it enters again: the model's parts may be of another type and on other devices
    (accelerate's hooks move what they read).

    budget: bytes of memory for the activations of one pass.
    direct: logits are the output embedding of the final hidden states, without anything further.
    suffix: the locations from which the suffix forward is exact, RESID_PRE for a start at any block.
    shares: rows may share what they begin with.
    """

    def __init__(self, model: PreTrainedModel, family: Family, device: torch.device | None = None,
                 budget: int = 2 * GIB, direct: bool = True, suffix: frozenset[str] = frozenset(),
                 shares: bool = False):
        self.model, self.family, self.dtype = model, family, model.dtype
        self.device, self.budget = device or model.device, budget
        self.direct, self.suffix, self.shares = direct, suffix, shares
        self.blocks = cast(nn.ModuleList, model.get_submodule(family.blocks))
        self.norm: nn.Module = model.get_submodule(family.norm)
        self.unembed: nn.Linear = model.get_output_embeddings()
        # what holds the blocks, where a model calls itself its base, as Llama 4 does
        self.body: nn.Module = (model.get_submodule(family.blocks.rpartition(".")[0]) if model.base_model is model
                                else model.base_model)
        self.takes_positions = "position_ids" in inspect.signature(self.body.forward).parameters
        # now, as a later pass may run into somebody's hooks
        self.blocks_give_tensors, self.output_type = self.find_what_is_given()

    def with_ways(self, **ways: Any) -> "OpenModel":
        """The same model with other values of `direct`, `suffix` or `shares`."""
        other = copy.copy(self)
        for name, value in ways.items():
            setattr(other, name, value)
        return other

    @property
    def kind(self) -> str:
        return self.model.config.model_type

    @property
    def d_model(self) -> int:
        return self.model.config.hidden_size

    def leave(self, values: Tensor) -> Tensor:
        """What leaves the model: float32, on the device."""
        return values.to(self.device, torch.float32)

    def enter(self, values: Tensor) -> Tensor:
        """What enters the model again, in its type."""
        return values.to(self.device, self.dtype)

    def find_what_is_given(self) -> tuple[bool, type]:
        """Whether a block returns the residual stream, not a tuple that begins with it; and what the body returns."""
        found = []
        with torch.no_grad(), hooked(self.blocks[0].register_forward_hook(
                lambda module, arguments, output: found.append(isinstance(output, Tensor)))):
            output = self.body(torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False)
        return found[0], type(output)

    def at_positions(self, positions: Tensor) -> dict[str, Tensor]:
        """Positions (batch, T) as arguments of the forward pass, for a family that takes them."""
        return {"position_ids": positions} if self.takes_positions else {}

    def batches(self, examples: Examples) -> list[Batch]:
        """The rows of a pass in batches."""
        return batches_of(examples, self.shares)

    def portion(self, bytes_each: int, count: int) -> int:
        """How many of so many things, of so many bytes each, one pass should keep."""
        return max(1, min(count, self.budget // max(1, bytes_each)))

    # ---------------------------------------------------------------------- one pass

    def forward(self, tokens: Tensor, **inputs) -> Tensor:
        """The final hidden states at each token, (batch, T, d_model)."""
        if "attention_mask" in inputs and inputs["attention_mask"].is_floating_point():
            inputs["attention_mask"] = inputs["attention_mask"].to(self.dtype)
        return self.leave(self.body(tokens, **{"use_cache": False} | inputs).last_hidden_state)

    def hook(self, site: Site, change: Change):
        """Call `change` with what stands at a site, resid_mid excepted, in each pass; what it returns is put there.

        Returns the handle that removes the hook.
        """
        block, location = self.blocks[site.layer], site.location

        def on_input(module, arguments, keywords):
            new = change(arguments[0] if arguments else keywords["hidden_states"])
            if new is None:
                return None
            return ((new, *arguments[1:]), keywords) if arguments else ((), keywords | {"hidden_states": new})

        if location == RESID_PRE:
            return block.register_forward_pre_hook(on_input, with_kwargs=True)
        module, scale = (block, 1.0) if location == RESID_POST else self.writer(site.layer, SUBLAYER_OF[location])

        def on_output(module, arguments, output):
            if (new := change(tensor_of(output) * scale)) is None:  # a copy: some blocks add the other update into it
                return None
            return new / scale if isinstance(output, Tensor) else (new / scale, *output[1:])

        return module.register_forward_hook(on_output)

    def writer(self, layer: int, operation: str) -> tuple[nn.Module, float]:
        """The module whose output a sublayer adds to the residual stream, and the factor it is added with."""
        component = self.family.components[operation]
        return self.blocks[layer].get_submodule(component.out), component.scale

    def read(self, tokens: Tensor, sites: Iterable[Site], **inputs) -> dict[Site, Tensor]:
        """What stands at some sites of a pass, (batch, T, d_model) each; no block above is run.

        resid_mid is the sum of its parts.
        """
        sites = list(sites)
        parts = {part for site in sites for part in (
            [Site(site.layer, RESID_PRE), Site(site.layer, ATTN_OUT)] if site.location == RESID_MID else [site])}
        found: dict[Site, Tensor] = {}
        handles = [self.hook(part, partial(found.__setitem__, part)) for part in parts]

        def stop(*_):
            raise Enough

        last = max(site.layer for site in sites)
        block = self.blocks[last]
        entry_is_enough = all(site.location == RESID_PRE for site in sites if site.layer == last)
        handles.append((block.register_forward_pre_hook if entry_is_enough else block.register_forward_hook)(stop))
        with hooked(*handles), suppress(Enough):
            self.forward(tokens, **inputs)
        found = {place: values.view(*tokens.shape, -1) for place, values in found.items()}  # OPT's are flat
        found |= {site: found[Site(site.layer, RESID_PRE)] + found[Site(site.layer, ATTN_OUT)]
                  for site in sites if site.location == RESID_MID}
        return {site: self.leave(found[site]) for site in sites}

    # ----------------------------------------------------------------------- the verbs

    @torch.no_grad()
    def activations(self, examples: Examples, sites: Iterable[Site]) -> dict[Site, Tensor]:
        """The activations at some sites, read in one pass at their positions, (rows, d_model) each.

        Those of the position `everywhere` are (rows, T, d_model). What a row lacks is zero.
        """
        kept = {site: torch.zeros(len(examples), *(examples.tokens.shape[1:] if site.position == EVERYWHERE else []),
                                  self.d_model, device=self.device) for site in sites}
        where = {site.position: examples.where(site.position) for site in kept}
        for batch in self.batches(examples) if kept else ():
            found = self.read(batch.tokens, {replace(site, position=PROBED) for site in kept}, **batch.inputs)
            for site, values in kept.items():
                there = found[replace(site, position=PROBED)].flatten(0, 1)
                if site.position == EVERYWHERE:
                    values[batch.rows, :batch.place.shape[1]] = there[batch.place]
                else:
                    has = where[site.position][batch.rows] >= 0
                    values[batch.rows[has]] = there[batch.at(where[site.position].clamp(min=0))[has]]
        for values in kept.values():
            self.finite(values)
        return kept

    @torch.no_grad()
    def final_states(self, examples: Examples) -> Tensor:
        """The final hidden states of all rows at their answering positions, under whatever masks are in force."""
        states = torch.empty(len(examples), self.d_model, device=self.device)
        for batch in self.batches(examples):
            found = self.forward(batch.tokens, **batch.inputs).flatten(0, 1)
            states[batch.rows] = found[batch.at(examples.answering)]
        return self.finite(states)

    def patched(self, examples: Examples, site: Site) -> ForwardFrom:
        """The whole model run on the rows that have a site's position, with other activations there.

        The reference way of a forward pass from a site.
        """
        examples = examples.probing(site.position)

        def run(activations: Tensor, rows: Tensor) -> Tensor:
            tokens, each = examples.tokens[rows], torch.arange(len(rows), device=rows.device)
            at = each, examples.probed[rows]

            def put(values: Tensor, old: Tensor) -> Tensor:
                there = tuple(index.to(old.device) for index in at)
                return old.view(*tokens.shape, -1).index_put(there, values.to(old)).view_as(old)

            if site.location == RESID_MID:  # through the attention's output: what the MLP reads passes it by as well
                below: list[Tensor] = []
                handles = [self.hook(Site(site.layer, RESID_PRE), lambda stream: below.append(self.leave(stream)[at])),
                           self.hook(Site(site.layer, ATTN_OUT), lambda old: put(activations - below[0], old))]
            else:
                handles = [self.hook(site, partial(put, activations))]
            with hooked(*handles):
                return self.finite(self.forward(tokens)[each, examples.answering[rows]])

        return ForwardFrom(run, examples.lengths)

    def finite(self, values: Tensor) -> Tensor:
        """The same values; raises RunFailed where some have gone beyond float16's largest number, 65504."""
        if self.dtype == torch.float16 and not torch.isfinite(values).all():
            raise RunFailed("activations go beyond what float16 holds (65504); set dtype to bfloat16 or float32.")
        return values

    # ------------------------------------------------------------------------- answers

    def head(self, states: Tensor) -> Tensor:
        """The output embedding, computed in float32 whatever the model's type: its rounding would make answers tie."""
        with align_module_device(self.unembed):
            weight, bias = self.unembed.weight, self.unembed.bias
            return F.linear(states.to(weight.device, torch.float32), weight.float(),
                            None if bias is None else bias.float())

    def logits(self, states: Tensor) -> Tensor:
        """(rows, vocabulary) as the model gives them."""
        if self.direct:
            return self.leave(self.head(states))
        # the model's own forward, its body replaced by the states
        given = self.output_type(last_hidden_state=states.unsqueeze(1))
        with replaced([self.body], lambda *_, **__: given), replaced([self.unembed], self.head):
            tokens = torch.zeros(len(states), 1, dtype=torch.long, device=self.device)
            return self.leave(self.model(tokens).logits[:, 0])

    def logit(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The logit of one token in each row, (rows,), computed without those of the other tokens."""
        if not self.direct:
            return self.logits(states).gather(1, tokens.unsqueeze(1)).squeeze(1)
        distinct, which = tokens.unique(return_inverse=True)
        with align_module_device(self.unembed):
            weight, bias = self.unembed.weight, self.unembed.bias
            directions = self.leave(weight[distinct.to(weight.device)])  # (distinct, d_model)
            offsets = None if bias is None else self.leave(bias[tokens.to(bias.device)])
        logits = (states * F.embedding(which, directions)).sum(-1)
        return logits if offsets is None else logits + offsets

    def is_right(self, states: Tensor, answer: Answer) -> Tensor:
        """Whether the model gives the right answer, (rows,) booleans."""
        if answer.wrong is not None:
            return self.logit(states, answer.right) > self.logit(states, answer.wrong)
        return torch.cat([part.argmax(-1) for part in self.logits_in_parts(states)]) == answer.right

    def loss(self, states: Tensor, answer: Answer) -> Tensor:
        """Cross-entropy of the right answer, of the vocabulary or of the two that are compared, (rows,)."""
        if answer.wrong is None:
            return F.cross_entropy(self.logits(states), answer.right, reduction="none")
        return F.softplus(self.logit(states, answer.wrong) - self.logit(states, answer.right))

    @torch.no_grad()
    def top_tokens(self, states: Tensor, k: int = 50) -> Tensor:
        """The k most probable next tokens of each row, in order: (rows, k), or fewer if the vocabulary is smaller."""
        return torch.cat([part.topk(min(k, part.shape[1])).indices for part in self.logits_in_parts(states)])

    def logits_in_parts(self, states: Tensor) -> Iterable[Tensor]:
        """The logits of some rows at a time, (batch, vocabulary) each."""
        return map(self.logits, states.split(ROWS_AT_ONCE))


@torch.no_grad()
def in_batches(forward: ForwardFrom, activations: Tensor, rows: Tensor | None = None) -> Tensor:
    """The final hidden states of some rows, by default of all in order: (rows, d_model) -> (rows, d_model)."""
    rows = torch.arange(len(activations), device=activations.device) if rows is None else rows
    if not len(rows):
        return activations
    states, order = torch.empty_like(activations), forward.lengths[rows].argsort(stable=True)  # like lengths together
    for part in order.split(max(1, TOKENS_AT_ONCE // int(forward.lengths.max()))):
        states[part] = forward(activations[part], rows[part])
    return states


def warn(text: str) -> None:
    """Say something above the progress bars."""
    tqdm.write(f"{text}.", file=sys.stdout)


def alike(values: Tensor, wanted: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether two ways of computing the same in a model of a type agree up to rounding. values, wanted: (..., n).

    In float32 the largest difference counts, as a share of the standard deviation of what is wanted: rounding gives
    1e-6, another function 0.1 up. In 16 bits a single number may be off by much where others in its vector are large,
    so there the root mean square over a vector counts, of the worst vector, so that a wrong row is not averaged away.
    By that measure rounding gives up to 0.014 in bfloat16 and 0.003 in float16 in tiny models of twenty families, 0.019
    and 0.004 after 48 layers, and attention written down wrongly 0.056 up (tests/test_families.py).
    """
    difference = (values - wanted).abs() if values.shape == wanted.shape else torch.full_like(wanted, torch.inf)
    if dtype != torch.float32:
        difference = difference.square().mean(-1).sqrt()
    return bool(difference.max() <= TOLERANCE[dtype] * wanted.std() + 1e-12)


@contextmanager
def hooked(*handles):
    """Removes hooks when it is left."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced(modules: Iterable[nn.Module], forward: Callable):
    """While open, modules run `forward` instead of their own, which may be on the module itself (accelerate)."""
    before = [(module, vars(module).get("forward")) for module in modules]
    for module, _ in before:
        module.forward = forward
    try:
        yield
    finally:
        for module, original in before:
            del module.forward
            if original is not None:
                module.forward = original


def tensor_of(output) -> Tensor:
    """The tensor that a module returns, or the first one of a tuple."""
    return output if isinstance(output, Tensor) else output[0]
