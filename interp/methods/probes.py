"""Probes: classifiers that read a variable from frozen activations. Does the model use what they read?

Counterfactual embeddings are activations changed until a probe reads another value from them: if the model used what
the probe reads, it should answer as if the variable had the other value.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.methods.optimize import batches_in_order, optimize, shuffled_batches
from interp.models.examples import Pairs
from interp.models.open_model import OpenModel


def build_probe(d_model: int, n_classes: int, intermediate_size: int, seed: int) -> nn.Module:
    """A linear probe (intermediate_size -1) or one with a hidden ReLU layer of that size."""
    torch.manual_seed(seed)
    if intermediate_size == -1:
        return nn.Linear(d_model, n_classes)
    return nn.Sequential(nn.Linear(d_model, intermediate_size), nn.ReLU(), nn.Linear(intermediate_size, n_classes))


def train_probe(probe: nn.Module, activations: Tensor, labels: Tensor, *, lr: float, batch_size: int,
                num_epochs: int, generator: torch.Generator) -> None:
    """Train in place with AdamW on shuffled batches, an incomplete last one dropped; then freeze. Raises RunFailed.

    activations: (examples, d_model), labels: (examples,).
    """
    def loss_of(epoch: int, rows: Tensor) -> Tensor:
        rows = rows.to(labels.device)
        return F.cross_entropy(probe(activations[rows]), labels[rows])

    optimize(torch.optim.AdamW(probe.parameters(), lr=lr), loss_of,
             lambda: shuffled_batches(len(labels), batch_size, generator), num_epochs, name="probe")
    probe.requires_grad_(False)


@torch.no_grad()
def evaluate_probe(probe: nn.Module, activations: Tensor, labels: Tensor, batches: list[Tensor] | None = None,
                   batch_size: int = 500) -> tuple[float, float]:
    """Loss as the mean over batches (in order if none are given), accuracy over their examples."""
    batches = batches or batches_in_order(len(labels), batch_size)
    losses, hits = [], []
    for rows in (batch.to(labels.device) for batch in batches):
        logits = probe(activations[rows])
        losses.append(F.cross_entropy(logits, labels[rows]))
        hits.append(logits.argmax(-1) == labels[rows])
    return torch.stack(losses).mean().item(), torch.cat(hits).double().mean().item()


def majority_accuracy(train_labels: Tensor, labels: Tensor) -> float:
    """Accuracy of always predicting the most frequent label of train (of several, the smallest)."""
    values, counts = train_labels.unique(return_counts=True)
    return (labels == values[counts.argmax()]).double().mean().item()


def counterfactual_embeddings(probe: nn.Module, activations: Tensor, targets: Tensor, *, num_steps: int,
                              lr: float) -> Tensor:
    """Change each activation, (examples, d_model), by AdamW until the frozen probe reads its target, (examples,).

    Examples are independent and AdamW works element by element, so all of them are one tensor: the sum of the losses
    gives each row the gradient it would have alone. Raises RunFailed: the loss is not a number.
    """
    embeddings = activations.detach().clone().requires_grad_(True)
    optimize(torch.optim.AdamW([embeddings], lr=lr),
             lambda step, rows: F.cross_entropy(probe(embeddings), targets, reduction="sum"), lambda: [targets],
             num_steps, name="counterfactual embeddings", advice=lambda: "cf_lr")
    return embeddings.detach()


def measure_patches(model: OpenModel, probe: nn.Module, embeddings: Tensor, targets: Tensor, clean: Tensor,
                    patched: Tensor, pairs: Pairs) -> dict[str, Tensor]:
    """What each counterfactual embedding did, an entry for each pair.

    targets: (pairs,) the values that the embeddings should carry. clean, patched: (pairs, d_model) the final hidden
    states without and with the embedding patched in.
    """
    answer, counterfactual = pairs.base.answer, pairs.counterfactual

    def difference(states: Tensor) -> Tensor:
        return model.logit(states, counterfactual.right) - model.logit(states, answer.right)

    return {"embedding_success": probe(embeddings).argmax(-1) == targets,
            "predicts_cf_label": model.is_right(patched, counterfactual),
            "predicts_original_label": model.is_right(patched, answer),
            "logit_diff": difference(patched) / difference(clean)}
