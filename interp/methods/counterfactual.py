"""Counterfactual embeddings: activations changed until a probe reads another value from them.

If a model used what the probe reads, it should answer as if the variable had the other value.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.methods.optimize import optimize
from interp.models.examples import Pairs
from interp.models.open_model import OpenModel


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
        RunFailed: the loss is not a number.
    """
    embeddings = activations.detach().clone().requires_grad_(True)
    optimize(torch.optim.AdamW([embeddings], lr=lr),
             lambda step, rows: F.cross_entropy(probe(embeddings), targets, reduction="sum"), lambda: [targets],
             num_steps, name="counterfactual embeddings", advice=lambda: "cf_lr")
    return embeddings.detach()


def measure_patches(model: OpenModel, probe: nn.Module, embeddings: Tensor, targets: Tensor, clean: Tensor,
                    patched: Tensor, pairs: Pairs) -> dict[str, Tensor]:
    """What each counterfactual embedding did, an entry for each pair.

    Args:
        targets: (pairs,) the values that the embeddings should carry.
        clean, patched: (pairs, d_model) the final hidden states without and with the embedding patched in.
    """
    answer, counterfactual = pairs.base.answer, pairs.counterfactual

    def difference(states: Tensor) -> Tensor:
        return model.logit(states, counterfactual.right) - model.logit(states, answer.right)

    return {
        "embedding_success": probe(embeddings).argmax(-1) == targets,
        "predicts_cf_label": model.is_right(patched, counterfactual),
        "predicts_original_label": model.is_right(patched, answer),
        "logit_diff": difference(patched) / difference(clean),
    }
