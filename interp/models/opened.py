"""A frozen model opened for looking inside: read at a site, answer, run on from a site; masks are in sublayers.py.

The plain way is the model's own forward with hooks at the places that TransformerLens names. The fast ways are exact:
when a model is opened they are compared with the plain one on a few rows, and if one differs the run says so and does
not use it.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from interp.models.examples import Answer, Examples
from interp.models.family import ATTENTION, MLP, Family
from interp.models.forest import Forest

NODES_AT_ONCE = 1024   # bounds the memory of a pass; measured faster than 4096, which leaves the cache
ROWS_AT_ONCE = 256     # of runs on from a site
ROWS_COMPARED = 4      # when a fast way is compared with the plain one
TOLERANCE = 1e-3       # of the standard deviation of what is compared; rounding gives 1e-6, another function 0.1 up
LOGITS_AT_ONCE = 500   # rows whose logits are held at a time; those of all would take much memory

RESID_PRE, ATTN_OUT, RESID_MID, MLP_OUT, RESID_POST = "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"
WRITES = {ATTN_OUT: ATTENTION, MLP_OUT: MLP}

Call = tuple[tuple[Any, ...], dict[str, Any]]  # what a block is called with besides the residual stream
RunOn = Callable[[Tensor, Tensor], Tensor]     # activations (batch, d_model), row numbers (batch,) -> states


@dataclass(frozen=True)
class Site:
    """A place in the residual stream, as TransformerLens names it."""

    layer: int
    location: str

    def __str__(self) -> str:
        return f"blocks.{self.layer}.hook_{self.location}"


class _Enough(Exception):
    """No block above is needed."""


class OpenModel:
    """A model and where its family keeps things.

    `states` are what the output embedding reads, (rows, d_model); `is_right`, `loss`, `logit` say what they answer.

    shares: rows may share what they begin with (the prefix forest), and a pass may start at any block.
    tails: the locations from which a run on needs the answering token only (tail.py).
    direct: logits are the output embedding of the states, without anything further.
    """

    def __init__(self, model: PreTrainedModel, family: Family):
        self.model, self.family = model, family
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

    @property
    def device(self) -> torch.device:
        return self.model.device

    def vectors(self, *shape: int) -> Tensor:
        """An empty tensor for vectors of the residual stream, to be filled in place."""
        return torch.empty(*shape, self.model.config.hidden_size, device=self.device)

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
        return {"attention_mask": forest.mask_of(chunks)} | self.at(forest.positions[chunks])

    def at(self, positions: Tensor) -> dict[str, Tensor]:
        return {"position_ids": positions} if self.takes_positions else {}

    def forward(self, tokens: Tensor, **inputs) -> Tensor:
        """What the output embedding would read at each token, (chunks, N, d_model)."""
        return self.model.base_model(tokens, **{"use_cache": False} | inputs).last_hidden_state

    def calls(self, tokens: Tensor, **inputs) -> list[Call]:
        """What each block is called with besides the residual stream, without running any."""
        found: list[Call] = []
        gives_tensors = self.gives_tensors

        def passed_by(stream, *arguments, **keywords):
            found.append((arguments, keywords))
            return stream if gives_tensors else (stream,)

        for block in self.blocks:
            block.forward = passed_by
        try:
            self.forward(tokens, **inputs)
        finally:
            for block in self.blocks:
                del block.forward
        return found

    def find_what_blocks_give(self) -> bool:
        """Whether a block returns the residual stream, rather than a tuple that begins with it."""
        found = []
        with torch.no_grad(), hooked(self.blocks[0].register_forward_hook(
                lambda module, arguments, output: found.append(isinstance(output, Tensor)))):
            self.forward(torch.zeros(1, 1, dtype=torch.long, device=self.device))
        return found[0]

    def run_blocks(self, stream: Tensor, calls: Sequence[Call], first: int, end: int) -> Tensor:
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
        return found | {(layer, location): found[layer, RESID_PRE] + found[layer, ATTN_OUT]
                        for layer, location in places if location == RESID_MID}

    # ----------------------------------------------------------------------- the verbs

    @torch.no_grad()
    def read(self, examples: Examples, sites: Sequence[Site]) -> list[Tensor]:
        """The activations of all rows at their probed positions, (rows, d_model) for each site, in one pass."""
        forest = self.forest(examples)
        nodes = forest.nodes_at(examples.probed)
        kept = [self.vectors(len(examples)) for _ in sites]
        for chunks in forest.batches(NODES_AT_ONCE):
            rows, places = forest.rows_in(chunks, nodes)
            found = self.listen(forest.tokens[chunks], {(site.layer, site.location) for site in sites},
                                **self.inputs(forest, chunks))
            for site, own in zip(sites, kept):
                own[rows] = found[site.layer, site.location].flatten(0, 1)[places]
        return kept

    @torch.no_grad()
    def answer(self, examples: Examples) -> Tensor:
        """The states of all rows at their answering positions, under whatever masks are in force."""
        forest = self.forest(examples)
        nodes, states = forest.nodes_at(examples.answering), self.vectors(len(examples))
        for chunks in forest.batches(NODES_AT_ONCE):
            rows, places = forest.rows_in(chunks, nodes)
            states[rows] = self.forward(forest.tokens[chunks], **self.inputs(forest, chunks)).flatten(0, 1)[places]
        return states

    def patched(self, examples: Examples, site: Site) -> RunOn:
        """The whole model run with other activations at a site and the probed positions, differentiable in them.

        The plain way to run on.
        """
        def run_on(activations: Tensor, rows: Tensor) -> Tensor:
            tokens, each = examples.rows_apart.tokens[rows], torch.arange(len(rows), device=rows.device)
            at = each, examples.probed[rows]

            def put(values: Tensor, old: Tensor) -> Tensor:
                return old.view(*tokens.shape, -1).index_put(at, values).view_as(old)

            if site.location == RESID_MID:  # through the attention's output: what the MLP reads passes it by as well
                below: list[Tensor] = []
                handles = [self.hook(site.layer, RESID_PRE, lambda stream: below.append(stream[at])),
                           self.hook(site.layer, ATTN_OUT, lambda old: put(activations - below[0], old))]
            else:
                handles = [self.hook(site.layer, site.location, partial(put, activations))]
            with hooked(*handles):
                return self.forward(tokens)[each, examples.answering[rows]]

        return run_on

    # ------------------------------------------------------------------------- answers

    def logits(self, states: Tensor) -> Tensor:
        """(rows, vocabulary) as the model gives them."""
        if self.direct:
            return self.unembed(states)
        base = self.model.base_model  # the model's own forward, its body replaced by the states
        base.forward = lambda *_, **__: BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states.unsqueeze(1))
        try:
            return self.model(torch.zeros(len(states), 1, dtype=torch.long, device=self.device)).logits[:, 0]
        finally:
            del base.forward

    def logit(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The logit of one token in each row, (rows,), computed without those of the other tokens."""
        if not self.direct:
            return self.logits(states).gather(1, tokens.unsqueeze(1)).squeeze(1)
        distinct, which = tokens.unique(return_inverse=True)
        logits = (states * F.embedding(which, self.unembed.weight[distinct])).sum(-1)
        return logits if self.unembed.bias is None else logits + self.unembed.bias[tokens]

    def is_right(self, states: Tensor, answer: Answer) -> Tensor:
        """Whether the model gives the right answer, (rows,) booleans."""
        if answer.wrong is not None:
            return self.logit(states, answer.right) > self.logit(states, answer.wrong)
        return torch.cat([self.logits(own).argmax(-1) for own in states.split(LOGITS_AT_ONCE)]) == answer.right

    def loss(self, states: Tensor, answer: Answer) -> Tensor:
        """Cross-entropy of the right answer, of the vocabulary or of the two that are compared, (rows,)."""
        if answer.wrong is None:
            return F.cross_entropy(self.logits(states), answer.right, reduction="none")
        return F.softplus(self.logit(states, answer.wrong) - self.logit(states, answer.right))

    @torch.no_grad()
    def top_tokens(self, states: Tensor, k: int = 50) -> Tensor:
        """The k most probable next tokens of each row, in order: (rows, k), or fewer if the vocabulary is smaller."""
        return torch.cat([logits.topk(min(k, logits.shape[1])).indices
                          for logits in map(self.logits, states.split(LOGITS_AT_ONCE))])


def alike(values: Tensor, wanted: Tensor) -> bool:
    """Whether two ways of computing the same agree up to rounding."""
    return values.shape == wanted.shape and bool((values - wanted).abs().max() <= TOLERANCE * wanted.std() + 1e-12)


@contextmanager
def hooked(*handles):
    """Removes hooks when it is left."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
    return torch.cat([run_on(*batch) for batch in zip(activations.split(ROWS_AT_ONCE), rows.split(ROWS_AT_ONCE))])
