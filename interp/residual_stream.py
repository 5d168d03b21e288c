"""The residual stream of a model at a named site: capture it, patch it, run only what lies above it.

Sites carry TransformerLens's names, blocks.L.hook_resid_mid (after attention) and so on.
"""

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel

from interp.config import BadInput
from interp.models import find_sublayer, load_model, locate_model
from interp.prefixes import unshared
from interp.sublayer import capture_inputs


class ResidualStream:
    """A frozen model opened by TransformerLens's bridge, which wraps the model's modules in place."""

    def __init__(self, model: PreTrainedModel, path: str):
        self.bridge = TransformerBridge.boot_transformers(path, hf_model=model).eval()
        self.bridge.requires_grad_(False)

    @classmethod
    def load(cls, key: str, path: str, device: torch.device) -> "ResidualStream":
        """Open a saved model; raises BadInput as load_model does."""
        return cls(load_model(key, path, device), str(locate_model(key, path)[0]))

    @classmethod
    def kept(cls, last: dict[str, "ResidualStream"], path: str, device: torch.device) -> "ResidualStream":
        """The open model of a path, kept in `last` until another is asked for: a sweep loads each once."""
        if path not in last:
            last.clear()
            last[path] = cls.load("model_path", path, device)
        return last[path]

    def site(self, layer: int, location: str) -> str:
        """The hook's name.

        Raises:
            BadInput: the model has no such site (one with parallel attention and MLP has no resid_mid).
        """
        name = f"blocks.{layer}.hook_{location}"
        if name not in self.bridge.hook_dict:
            raise BadInput(f"the model has no site '{name}' in its residual stream.")
        return name

    @torch.no_grad()
    def capture(self, tokens: Tensor, layer: int, location: str, position: int, batch_size: int = 2048) -> Tensor:
        """The stream at one site and position: (rows, d_model). tokens: (rows, positions)."""
        name, caught = self.site(layer, location), []
        for batch in tokens.split(batch_size):
            self.bridge.run_with_hooks(batch, fwd_hooks=[
                (name, lambda stream, hook: caught.append(stream[:, position].clone()))])
        return torch.cat(caught)

    def patched_logits(self, tokens: Tensor, layer: int, location: str, position: int,
                       activations: Tensor) -> Tensor:
        """Logits at the last position with the stream replaced at one site and position.

        Differentiable in the activations, (rows, d_model). Returns (rows, vocabulary).
        """
        before: list[Tensor] = []

        def replace(stream: Tensor, hook) -> Tensor:
            stream = stream.clone()
            stream[:, position] = activations - before[0][:, position] if before else activations
            return stream

        hooks = [(self.site(layer, location), replace)]
        if location == "resid_mid":
            # the bridge's hook_resid_mid is what the MLP reads; a patch there would miss the connection past
            # the MLP, so attention's output is made to bring the stream to where it should be
            hooks = [(self.site(layer, "resid_pre"), lambda stream, hook: before.append(stream)),
                     (self.site(layer, "attn_out"), replace)]
        return self.bridge.run_with_hooks(tokens, fwd_hooks=hooks)[:, -1]

    @torch.no_grad()
    def patched_answers(self, tokens: Tensor, layer: int, location: str, position: int, activations: Tensor,
                        batch_size: int = 2048) -> Tensor:
        """patched_logits of many rows, in batches and without gradients: (rows, vocabulary)."""
        return torch.cat([
            self.patched_logits(batch, layer, location, position, patch)
            for batch, patch in zip(tokens.split(batch_size), activations.split(batch_size))])

    @torch.no_grad()
    def answers(self, tokens: Tensor, batch_size: int = 2048) -> Tensor:
        """The untouched model's logits at the last position: (rows, vocabulary)."""
        return torch.cat([self.bridge(batch)[:, -1] for batch in tokens.split(batch_size)])


class LastPositionTail:
    """What lies above a site of a GPT-2, run at the last position only: activation -> logits.

    A patch at the last position changes no earlier one, so the layers above need the earlier
    positions' keys and values once. Exact; tests compare with the patched whole model.

    Args:
        model: a GPT-2 (not one that a bridge has wrapped).
        tokens: (rows, positions), whose earlier positions the layers above attend to.
        layer, location: the site, resid_mid or resid_post.
    """

    def __init__(self, model: PreTrainedModel, tokens: Tensor, layer: int, location: str):
        self.transformer, self.unembed = model.transformer, model.lm_head
        self.own_mlp = self.transformer.h[layer] if location == "resid_mid" else None
        self.above = list(self.transformer.h[layer + 1:])
        last = torch.full((len(tokens),), tokens.shape[1] - 1, device=tokens.device)
        attentions = [find_sublayer(model, layer + 1 + above, "attn") for above in range(len(self.above))]
        self.earlier = []  # keys and values, (rows, positions - 1, d_model) each
        for block, read in zip(self.above, capture_inputs(model, unshared(tokens, last), attentions)):
            read = read.unflatten(0, tokens.shape)[:, :-1].contiguous()
            self.earlier.append(block.attn.c_attn(read).chunk(3, dim=-1)[1:])

    def logits(self, activations: Tensor, rows: Tensor) -> Tensor:
        """(batch, d_model) at the site, for the sequences numbered `rows` -> (batch, vocabulary)."""
        stream = activations
        if self.own_mlp is not None:
            stream = stream + self.own_mlp.mlp(self.own_mlp.ln_2(stream))
        for block, (keys, values) in zip(self.above, self.earlier):
            stream = stream + attend(block.attn, block.ln_1(stream), keys[rows], values[rows])
            stream = stream + block.mlp(block.ln_2(stream))
        return self.unembed(self.transformer.ln_f(stream))


def attend(attention, stream: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """GPT-2's attention of a last position (batch, d_model) to earlier keys and values and to itself."""
    heads = (attention.num_heads, attention.head_dim)
    query, key, value = attention.c_attn(stream).chunk(3, dim=-1)
    keys = torch.cat([keys, key.unsqueeze(1)], dim=1).unflatten(-1, heads)
    values = torch.cat([values, value.unsqueeze(1)], dim=1).unflatten(-1, heads)
    scores = torch.einsum("bhd,bphd->bhp", query.unflatten(-1, heads), keys) * attention.scaling
    mixed = torch.einsum("bhp,bphd->bhd", scores.softmax(-1), values).flatten(1)
    return attention.c_proj(mixed)
