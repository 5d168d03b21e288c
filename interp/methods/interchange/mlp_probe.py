"""An MLP probe's counterfactual embedding towards what it reads from the source: it sets the variable, it does not
exchange it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from interp.methods.counterfactual import counterfactual_embeddings
from interp.methods.interchange import Interchange, Place, Points
from interp.methods.interchange._probe import probe_at
from interp.methods.probes import build_probe
from interp.runs.config import Count, Positive

SEES = "variable"
HIDDEN = 256
CF_STEPS, CF_LR = 100, 0.1


@dataclass(frozen=True)
class Embedding(Interchange):
    """Changes a base until the probe reads what it reads of the source, if it does not already."""

    def probe(self, device: torch.device) -> nn.Module:
        probe = build_probe(self.tensors["0.weight"].shape[1], len(self.tensors["2.bias"]), HIDDEN, 0).to(device)
        probe.load_state_dict(self.tensors)
        return probe.requires_grad_(False)

    def __call__(self, base: Points, source: Points) -> Tensor:
        probe = self.probe(base.activations.device)
        targets = probe(source.activations).argmax(-1)  # (n,)
        other = probe(base.activations).argmax(-1) != targets
        moved = base.activations.clone()
        with torch.enable_grad():
            moved[other] = counterfactual_embeddings(probe, base.activations[other], targets[other],
                                                     num_steps=CF_STEPS, lr=CF_LR)
        return moved


def fit(place: Place, *, seed: int, lr: Positive = 0.1, num_epochs: Count = 100,
        batch_size: Count = 500) -> Interchange:
    probe = probe_at(place, HIDDEN, seed=seed, lr=lr, num_epochs=num_epochs, batch_size=batch_size)
    return load({name: tensor.detach() for name, tensor in probe.state_dict().items()}, None, place)


def load(tensors: dict[str, Tensor], rank: None, place: Place | None) -> Embedding:
    return Embedding("mlp_probe", None, tensors)
