"""A one-layer GPT-2's logits at the last position, computed without what is not needed for them.

Exact, not an approximation: below attention the residual stream depends on (token, position)
alone, so the distinct pairs are few; and only the last position needs a query, the MLP and
logits. tests/test_last_position.py compares with the model's own forward.
"""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block


def last_position_logits(model: GPT2LMHeadModel, tokens: Tensor) -> Callable[[], Tensor]:
    """A function that gives a model's logits at the last position of fixed sequences, (rows, vocabulary).

    Of a model with more layers, or with dropout, by its own forward. tokens: (rows, positions).
    """
    config = model.config
    if config.n_layer != 1 or config.resid_pdrop or config.embd_pdrop or config.attn_pdrop:
        return lambda: model(tokens, use_cache=False, logits_to_keep=1).logits[:, -1]
    positions = tokens.shape[1]
    pairs = tokens * positions + torch.arange(positions, device=tokens.device)
    distinct, pair_index = torch.unique(pairs, return_inverse=True)                # (pairs,), (rows, positions)
    queries, query_index = torch.unique(pair_index[:, -1], return_inverse=True)    # (queries,) into pairs, (rows,)
    token, position = distinct // positions, distinct % positions                  # (pairs,) each
    transformer, block = model.transformer, cast(GPT2Block, model.transformer.h[0])
    attention, heads, d_head = block.attn, block.attn.num_heads, block.attn.head_dim

    def logits() -> Tensor:
        stream = transformer.wte(token) + transformer.wpe(position)                # (pairs, d_model)
        query, key, value = attention.c_attn(block.ln_1(stream)).chunk(3, dim=-1)
        query = query[queries].view(-1, heads, d_head)
        scores = torch.einsum("qhd,khd->qkh", query, key.view(-1, heads, d_head)) * attention.scaling
        # F.embedding rather than indexing: its backward is several times faster on a CPU
        pair_scores = F.embedding(query_index[:, None] * len(key) + pair_index,
                                  scores.reshape(-1, heads))                       # (rows, positions, heads)
        weights = pair_scores.softmax(dim=1).unsqueeze(-1)
        values = F.embedding(pair_index, value).unflatten(-1, (heads, d_head))
        mixed = (weights * values).sum(dim=1).flatten(1)                           # (rows, d_model)

        last = F.embedding(query_index, stream[queries])                           # (rows, d_model)
        middle = last + attention.c_proj(mixed)
        final = middle + block.mlp(block.ln_2(middle))
        return model.lm_head(transformer.ln_f(final))

    return logits
