"""A frozen model opened for looking inside: read at a site, answer, run on from a site; masks are in sublayers.py.

The plain way is the model's own forward with hooks at the places that TransformerLens names. The fast ways are exact:
when a model is opened they are compared with the plain one on a few rows, and if one differs the run says so and does
not use it.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate.utils import align_module_device
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from interp.models.examples import Answer, Examples
from interp.models.family import ATTENTION, MLP, Family
from interp.models.forest import Forest
from interp.models.room import Room, fill
from interp.runs.config import RunFailed

PASS_BYTES = 2**30     # what a pass may take beside the weights; by the model's width and vocabulary, as far as that is
NODES_AT_ONCE = 1024   # not beyond these numbers; measured faster than 4096, which leaves the cache
ROWS_AT_ONCE = 256     # of runs on from a site
LOGITS_AT_ONCE = 500   # rows whose logits are held at a time
ROWS_COMPARED = 4      # when a fast way is compared with the plain one
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.03}  # see `alike`

RESID_PRE, ATTN_OUT, RESID_MID, MLP_OUT, RESID_POST = "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"
WRITES = {ATTN_OUT: ATTENTION, MLP_OUT: MLP}

Call = tuple[tuple[Any, ...], dict[str, Any]]  # what a block is called with besides the residual stream


@dataclass(frozen=True)
class Site:
    """A place in the residual stream, as TransformerLens names it."""

    layer: int
    location: str

    def __str__(self) -> str:
        return f"blocks.{self.layer}.hook_{self.location}"


@dataclass(frozen=True)
class RunOn:
    """The model above a site: activations (batch, d_model), row numbers (batch,) -> states.

    at_once: how many rows memory allows at a time.
    """

    run: Callable[[Tensor, Tensor], Tensor]
    at_once: int

    def __call__(self, activations: Tensor, rows: Tensor) -> Tensor:
        return self.run(activations, rows)


class _Enough(Exception):
    """No block above is needed."""


class OpenModel:
    """A model and where its family keeps things.

    `states` are what the output embedding reads, (rows, d_model); `is_right`, `loss`, `logit` say what they answer.
    Whatever leaves the model is float32 and on `device`, and is cast where it enters again: the model's own type is
    `dtype`, and its parts may be on other devices (accelerate's hooks move what they read).

    shares: rows may share what they begin with (the prefix forest), and a pass may start at any block.
    tails: the locations from which a run on needs the answering token only (tail.py).
    direct: logits are the output embedding of the states, without anything further.
    """

    def __init__(self, model: PreTrainedModel, family: Family, device: torch.device | None = None,
                 room: Room | None = None):
        self.model, self.family, self.dtype = model, family, model.dtype
        self.device, self.room = device or model.device, room or Room()
        self.blocks = cast(nn.ModuleList, model.get_submodule(family.blocks))
        self.norm: nn.Module = model.get_submodule(family.norm)
        self.unembed: nn.Linear = model.get_output_embeddings()
        self.takes_positions = "position_ids" in inspect.signature(model.base_model.forward).parameters
        self.gives_tensors = self.find_what_blocks_give()
        self.shares = self.direct = True
        self.tails = {RESID_MID, RESID_POST}
        self.earlier: dict[Examples, Any] = {}  # keys and values of what tails have read (tail.py)
        self.told: list[str] = []

    def tell(self, what: str) -> None:
        """Say, once per model, that a fast way is not used."""
        if what not in self.told:
            self.told.append(what)
            tqdm.write(f"{self.model.config.model_type}: {what}, so that this fast way is not used.", file=sys.stdout)

    def leave(self, values: Tensor) -> Tensor:
        """What leaves the model: float32, on the device."""
        return values.to(self.device, torch.float32)

    def enter(self, values: Tensor) -> Tensor:
        """What enters the model again, in its type."""
        return values.to(self.device, self.dtype)

    def vectors(self, *shape: int) -> Tensor:
        """An empty tensor for vectors of the residual stream, to be filled in place."""
        return torch.empty(*shape, self.model.config.hidden_size, device=self.device)

    def kept(self, *shape: int) -> Tensor:
        """The same for vectors that are kept, which may be in a file."""
        return self.room.empty(*shape, self.model.config.hidden_size, device=self.device)

    @cached_property
    def bytes_at_token(self) -> int:
        """About what a block holds at a time for each token: twice the outputs of its linear maps.

        A block has as many weights as its maps have outputs, times its width, or more.
        """
        weights = sum(parameter.numel() for parameter in self.blocks[0].parameters())
        return 2 * self.dtype.itemsize * weights // self.model.config.hidden_size

    @property
    def nodes_at_once(self) -> int:
        return at_once(NODES_AT_ONCE, self.bytes_at_token)

    @property
    def logits_at_once(self) -> int:
        return at_once(LOGITS_AT_ONCE, torch.float32.itemsize * self.model.config.vocab_size)

    def out_of(self, layer: int, operation: str) -> tuple[nn.Module, float]:
        """The module whose output a sublayer adds to the residual stream, and the factor it is added with."""
        component = self.family.components[operation]
        return self.blocks[layer].get_submodule(component.out), component.scale

    # ---------------------------------------------------------------------- one pass

    def forest(self, examples: Examples) -> Forest:
        return examples.forest if self.shares else examples.rows_apart

    def inputs(self, forest: Forest, chunks: slice) -> dict[str, Tensor]:
        """Mask and positions for a pass over some chunks of a forest; nothing if rows are run apart."""
        if not self.shares:
            return {}
        return {"attention_mask": forest.mask_of(chunks).to(self.dtype)} | self.at(forest.positions[chunks])

    def at(self, positions: Tensor) -> dict[str, Tensor]:
        return {"position_ids": positions} if self.takes_positions else {}

    def forward(self, tokens: Tensor, **inputs) -> Tensor:
        """What the output embedding would read at each token, (chunks, N, d_model)."""
        return self.leave(self.model.base_model(tokens, **{"use_cache": False} | inputs).last_hidden_state)

    def calls(self, tokens: Tensor, **inputs) -> list[Call]:
        """What each block is called with besides the residual stream, without running any."""
        found: list[Call] = []
        gives_tensors = self.gives_tensors

        def passed_by(stream, *arguments, **keywords):
            found.append((arguments, keywords))
            return stream if gives_tensors else (stream,)

        with replaced(self.blocks, passed_by):
            self.forward(tokens, **inputs)
        return found

    def find_what_blocks_give(self) -> bool:
        """Whether a block returns the residual stream, rather than a tuple that begins with it."""
        found = []
        with torch.no_grad(), hooked(self.blocks[0].register_forward_hook(
                lambda module, arguments, output: found.append(isinstance(output, Tensor)))):
            self.forward(torch.zeros(1, 1, dtype=torch.long, device=self.device))
        return found[0]

    def run_blocks(self, stream: Tensor, calls: Sequence[Call], first: int, end: int) -> Tensor:
        """What stands below block `end`, from what enters block `first`, in the model's own type."""
        stream = self.enter(stream)
        for layer in range(first, end):
            arguments, keywords = calls[layer]
            stream = tensor_of(self.blocks[layer](stream, *arguments, **keywords))
        return stream

    def hook(self, layer: int, location: str, change: Callable[[Tensor], Tensor | None]):
        """Call `change` with what stands at a place, resid_mid excepted, in each pass; what it returns is put there.

        If it returns nothing, nothing changes. Returns the handle that removes the hook.
        """
        def on_input(module, arguments, keywords):
            if (new := change(stream_of(arguments, keywords))) is None:
                return None
            return ((new, *arguments[1:]), keywords) if arguments else ((), keywords | {"hidden_states": new})

        if location == RESID_PRE:
            return self.blocks[layer].register_forward_pre_hook(on_input, with_kwargs=True)
        module, scale = (self.blocks[layer], 1.0) if location == RESID_POST else self.out_of(layer, WRITES[location])

        def on_output(module, arguments, output):
            if (new := change(tensor_of(output) * scale)) is None:  # a copy: some blocks add the other update into it
                return None
            return new / scale if isinstance(output, Tensor) else (new / scale, *output[1:])

        return module.register_forward_hook(on_output)

    def listen(self, tokens: Tensor, places: set[tuple[int, str]], **inputs) -> dict[tuple[int, str], Tensor]:
        """What stands at some places (layer, location) of a pass, (chunks, N, d_model) each; no block above is run.

        resid_mid is the sum of its parts.
        """
        parts = {part for layer, location in places for part in (
            [(layer, RESID_PRE), (layer, ATTN_OUT)] if location == RESID_MID else [(layer, location)])}
        found: dict[tuple[int, str], Tensor] = {}
        handles = [self.hook(*part, partial(found.__setitem__, part)) for part in parts]

        def stop(*_):
            raise _Enough

        last = max(layer for layer, _ in places)
        block_runs = any(layer == last and location != RESID_PRE for layer, location in places)
        block = self.blocks[last]
        handles.append((block.register_forward_hook if block_runs else block.register_forward_pre_hook)(stop))
        with hooked(*handles), suppress(_Enough):
            self.forward(tokens, **inputs)
        found = {place: own.view(*tokens.shape, -1) for place, own in found.items()}  # OPT's are flat
        found |= {(layer, location): found[layer, RESID_PRE] + found[layer, ATTN_OUT]
                  for layer, location in places if location == RESID_MID}
        return {place: self.leave(found[place]) for place in places}

    # ----------------------------------------------------------------------- the verbs

    @torch.no_grad()
    def read(self, examples: Examples, sites: Sequence[Site]) -> list[Tensor]:
        """The activations of all rows at their probed positions, (rows, d_model) for each site, in one pass."""
        forest = self.forest(examples)
        nodes = forest.nodes_at(examples.probed)
        kept = [self.kept(len(examples)) for _ in sites]
        for chunks in forest.batches(self.nodes_at_once):
            rows, places = forest.rows_in(chunks, nodes)
            found = self.listen(forest.tokens[chunks], {(site.layer, site.location) for site in sites},
                                **self.inputs(forest, chunks))
            for site, own in zip(sites, kept):
                fill(own, rows, found[site.layer, site.location].flatten(0, 1)[places])
        return list(map(self.finite, kept))

    @torch.no_grad()
    def answer(self, examples: Examples) -> Tensor:
        """The states of all rows at their answering positions, under whatever masks are in force."""
        forest = self.forest(examples)
        nodes, states = forest.nodes_at(examples.answering), self.vectors(len(examples))
        for chunks in forest.batches(self.nodes_at_once):
            rows, places = forest.rows_in(chunks, nodes)
            states[rows] = self.forward(forest.tokens[chunks], **self.inputs(forest, chunks)).flatten(0, 1)[places]
        return self.finite(states)

    def finite(self, values: Tensor) -> Tensor:
        """The same values; raises RunFailed where some have gone beyond float16's largest number, 65504."""
        if self.dtype == torch.float16 and not torch.isfinite(values).all():
            raise RunFailed("activations go beyond what float16 holds (65504); set dtype to bfloat16 or float32.")
        return values

    def patched(self, examples: Examples, site: Site) -> RunOn:
        """The whole model run with other activations at a site and the probed positions, differentiable in them.

        The plain way to run on.
        """
        def run_on(activations: Tensor, rows: Tensor) -> Tensor:
            tokens, each = examples.rows_apart.tokens[rows], torch.arange(len(rows), device=rows.device)
            at = each, examples.probed[rows]

            def put(values: Tensor, old: Tensor) -> Tensor:
                there = tuple(index.to(old.device) for index in at)
                return old.view(*tokens.shape, -1).index_put(there, values.to(old)).view_as(old)

            if site.location == RESID_MID:  # through the attention's output: what the MLP reads passes it by as well
                below: list[Tensor] = []
                handles = [self.hook(site.layer, RESID_PRE, lambda stream: below.append(self.leave(stream)[at])),
                           self.hook(site.layer, ATTN_OUT, lambda old: put(activations - below[0], old))]
            else:
                handles = [self.hook(site.layer, site.location, partial(put, activations))]
            with hooked(*handles):
                return self.finite(self.forward(tokens)[each, examples.answering[rows]])

        return RunOn(run_on, at_once(ROWS_AT_ONCE, examples.tokens.shape[1] * self.bytes_at_token))

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
        given = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states.unsqueeze(1))
        with replaced([self.model.base_model], lambda *_, **__: given), replaced([self.unembed], self.head):
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
        return torch.cat([self.logits(own).argmax(-1) for own in states.split(self.logits_at_once)]) == answer.right

    def loss(self, states: Tensor, answer: Answer) -> Tensor:
        """Cross-entropy of the right answer, of the vocabulary or of the two that are compared, (rows,)."""
        if answer.wrong is None:
            return F.cross_entropy(self.logits(states), answer.right, reduction="none")
        return F.softplus(self.logit(states, answer.wrong) - self.logit(states, answer.right))

    @torch.no_grad()
    def top_tokens(self, states: Tensor, k: int = 50) -> Tensor:
        """The k most probable next tokens of each row, in order: (rows, k), or fewer if the vocabulary is smaller."""
        return torch.cat([logits.topk(min(k, logits.shape[1])).indices
                          for logits in map(self.logits, states.split(self.logits_at_once))])


def at_once(most: int, each: int) -> int:
    """How many things of so many bytes each a pass takes at a time, and no more than `most`."""
    return max(1, min(most, PASS_BYTES // each))


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
    """While open, modules do something else than their own forward, which may be on the module itself (accelerate)."""
    before = [(module, vars(module).get("forward")) for module in modules]
    for module, _ in before:
        module.forward = forward
    try:
        yield
    finally:
        for module, own in before:
            del module.forward
            if own is not None:
                module.forward = own


def stream_of(arguments: tuple, keywords: dict[str, Any]) -> Tensor:
    """The residual stream among the arguments of a block or sublayer."""
    return arguments[0] if arguments else keywords["hidden_states"]


def tensor_of(output) -> Tensor:
    """The tensor that a module returns, or the first one of a tuple."""
    return output if isinstance(output, Tensor) else output[0]


@torch.no_grad()
def run_all(run_on: RunOn, activations: Tensor, rows: Tensor | None = None) -> Tensor:
    """A run on from a site in batches: (rows, d_model) of activations -> (rows, d_model) of states."""
    rows = torch.arange(len(activations), device=activations.device) if rows is None else rows
    return torch.cat([run_on(*batch) for batch in zip(activations.split(run_on.at_once), rows.split(run_on.at_once))])
