"""A one-layer GPT-2's logits at the last position, computed without the work nobody reads.

Exact, not an approximation: below attention the residual stream depends on (token, position)
alone, so the distinct pairs are few; and only the last position needs a query, the MLP and
logits. tests/test_last_position.py compares with the model's own forward.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2LMHeadModel


class LastPositionLogits(nn.Module):
    """logits = forward(): (rows, vocabulary) at the last position of fixed sequences.

    Args:
        model: a GPT-2 of one layer without dropout.
        tokens: (rows, positions).

    Raises:
        ValueError: the model has more than one layer, or dropout.
    """

    def __init__(self, model: GPT2LMHeadModel, tokens: Tensor):
        super().__init__()
        config = model.config
        if config.n_layer != 1 or config.resid_pdrop or config.embd_pdrop or config.attn_pdrop:
            raise ValueError("the fast forward is exact for one layer without dropout only")
        self.model = model
        rows, positions = tokens.shape
        pairs = tokens * positions + torch.arange(positions, device=tokens.device)
        distinct, pair_index = torch.unique(pairs, return_inverse=True)
        queries, query_index = torch.unique(pair_index[:, -1], return_inverse=True)
        self.register_buffer("token", distinct // positions)   # (pairs,)
        self.register_buffer("position", distinct % positions) # (pairs,)
        self.register_buffer("pair_index", pair_index)         # (rows, positions)
        self.register_buffer("queries", queries)               # (queries,) into pairs
        self.register_buffer("query_index", query_index)       # (rows,) into queries

    def forward(self) -> Tensor:
        transformer = self.model.transformer
        block = transformer.h[0]
        attention = block.attn
        heads, d_head = attention.num_heads, attention.head_dim

        stream = transformer.wte(self.token) + transformer.wpe(self.position)  # (pairs, d_model)
        query, key, value = attention.c_attn(block.ln_1(stream)).chunk(3, dim=-1)
        query = query[self.queries].view(-1, heads, d_head)
        scores = torch.einsum("qhd,khd->qkh", query, key.view(-1, heads, d_head)) * attention.scaling
        # F.embedding rather than indexing: its backward is several times faster on a CPU
        pair_scores = F.embedding(self.query_index[:, None] * len(key) + self.pair_index,
                                  scores.reshape(-1, heads))                    # (rows, positions, heads)
        weights = pair_scores.softmax(dim=1).unsqueeze(-1)
        values = F.embedding(self.pair_index, value).unflatten(-1, (heads, d_head))
        mixed = (weights * values).sum(dim=1).flatten(1)                       # (rows, d_model)

        last = F.embedding(self.query_index, stream[self.queries])             # (rows, d_model)
        middle = last + attention.c_proj(mixed)
        final = middle + block.mlp(block.ln_2(middle))
        return self.model.lm_head(transformer.ln_f(final))                     # (rows, vocabulary)
