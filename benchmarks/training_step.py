"""A full-batch training step: the exact forward pass at the last position against the one over all positions.

    python benchmarks/training_step.py [--quick]
"""

import sys
from functools import partial

import torch

import train_algorithmic_models as training
from benchmarks.timing import Step, compare, largest_difference
from interp.runs.config import CONFIGS, load_config
from interp.runs.settings import expand_settings

QUICK = "--quick" in sys.argv
LAST, REFERENCE = "last position, exact", "Hugging Face, all positions"


def training_step(config_name: str, way: str) -> Step:
    config = load_config(CONFIGS / "Train_Algorithmic_Models" / config_name, training.Config,
                         ["mod=13"] if QUICK else [])
    [setting] = expand_settings(config)
    data = training.prepare(config, [setting], torch.device("cpu")).splits["train"]
    model = training.build_model(config, setting, torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.lr, weight_decay=config.wd, betas=config.betas)
    at_last = training.last_position_logits(model, data.tokens)

    def step() -> float:
        optimizer.zero_grad()
        logits = at_last() if way == LAST else model(data.tokens, use_cache=False).logits[:, -1]
        loss = training.cross_entropy(logits, data.labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


if __name__ == "__main__":
    for config_name in ("Disambiguation/a2_minus_b2.yaml", "Shared_Nodes/shared_nodes.yaml"):
        build = partial(training_step, config_name)
        compare(f"training step, {config_name}", build, (LAST, REFERENCE), rounds=2 if QUICK else 10)
        print(largest_difference(build, (LAST, REFERENCE), 5))
