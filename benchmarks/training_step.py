"""A full-batch training step: the fast exact forward against the plain one over all positions.

    python benchmarks/training_step.py
"""

from functools import partial

import torch

import train_algorithmic_models as training
from benchmarks.timing import Step, compare
from interp.runs.config import CONFIGS, load_config
from interp.runs.settings import expand_settings

FAST, PLAIN = "last position, exact", "Hugging Face, all positions"


def training_step(config_name: str, name: str) -> Step:
    config = load_config(CONFIGS / "Train_Algorithmic_Models" / config_name, training.Config)
    [setting] = expand_settings(config)
    data = training.prepare(config, [setting], torch.device("cpu")).splits["train"]
    model = training.build_model(config, setting, torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.lr, weight_decay=config.wd, betas=config.betas)
    fast = training.last_position_logits(model, data.tokens)

    def step() -> float:
        optimizer.zero_grad()
        logits = fast() if name == FAST else model(data.tokens, use_cache=False).logits[:, -1]
        loss = training.cross_entropy(logits, data.labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


if __name__ == "__main__":
    for config_name in ("Disambiguation/a2_minus_b2.yaml", "Shared_Nodes/shared_nodes.yaml"):
        compare(f"training step, {config_name}", partial(training_step, config_name), FAST, PLAIN, rounds=10)
