"""Counterfactual embeddings: activations changed until a probe reads another value from them.

If a model used what the probe reads, it should answer as if the variable had the other value.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.models.examples import Answer
from interp.models.opened import OpenModel
from interp.runs.config import RunFailed


def counterfactual_embeddings(probe: nn.Module, activations: Tensor, targets: Tensor, *, num_steps: int,
                              lr: float) -> Tensor:
    """Change each activation by AdamW until the frozen probe reads its target value.

    Examples are independent and AdamW works element by element, so all of them are one tensor:
    the sum of the losses gives each row the gradient it would have alone.

    Args:
        activations: (examples, d_model), where each embedding starts.
        targets: (examples,) the values the probe should read.

    Returns:
        (examples, d_model).

    Raises:
        RunFailed: an embedding is not finite.
    """
    embeddings = activations.detach().clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([embeddings], lr=lr)
    for _ in range(num_steps):
        optimizer.zero_grad()
        F.cross_entropy(probe(embeddings), targets, reduction="sum").backward()
        optimizer.step()
    if not torch.isfinite(embeddings).all():
        raise RunFailed(f"counterfactual embeddings became infinite with cf_lr {lr}; try a smaller cf_lr.")
    return embeddings.detach()


def measure_patches(opened: OpenModel, probe: nn.Module, embeddings: Tensor, targets: Tensor, clean: Tensor,
                    patched: Tensor, answer: Answer, exchanged: Answer) -> dict[str, Tensor]:
    """What each counterfactual embedding did, an entry for each example.

    Args:
        targets: (examples,) the values that the embeddings should carry.
        clean, patched: (examples, d_model) the model's states without and with the embedding patched in.
        answer, exchanged: what is right without and with it.
    """
    def difference(states: Tensor) -> Tensor:
        return opened.logit(states, exchanged.right) - opened.logit(states, answer.right)

    return {
        "embedding_success": probe(embeddings).argmax(-1) == targets,
        "predicts_cf_label": opened.is_right(patched, exchanged),
        "predicts_original_label": opened.is_right(patched, answer),
        "logit_diff": difference(patched) / difference(clean),
    }
