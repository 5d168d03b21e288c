"""The configs of the paper's experiments again, for several model seeds.

    python configs/with_seeds.py 0 1 2 --out Results/Seeds/configs

Writes a config for each one of Disambiguation, Shared_Nodes, Grokking and their trainings, with that one as its `base`:
it has the seeds, and folders below Results/Seeds and Models/Seeds. The workflow calls this for
make experiment1 SEEDS="0 1 2". Transfers start from the model of the first seed.
"""

import argparse
import os
from pathlib import Path

import yaml

from interp.runs.config import CONFIGS, TRAINING, project_path, read_yaml
from interp.runs.files import write_text

EXPERIMENTS = ("Disambiguation", "Shared_Nodes", "Grokking")


def write_configs(seeds: list[int], out: Path) -> None:
    """Write the configs; a file that would not change keeps its time, so that no step is repeated."""
    for folder in [*EXPERIMENTS, *(f"{TRAINING}/{name}" for name in EXPERIMENTS)]:
        for file in sorted((CONFIGS / folder).rglob("*.yaml")):
            target = out / file.relative_to(CONFIGS)
            values = {"base": os.path.relpath(file, target.parent)} | with_seeds(read_yaml(file), seeds)
            text = yaml.safe_dump(values, sort_keys=False)
            if not target.exists() or target.read_text(encoding="utf-8") != text:
                write_text(target, text)


def with_seeds(values: dict, seeds: list[int]) -> dict:
    """The keys in which a config for other seeds differs from one with these values."""
    changed = {key: f"{root}/Seeds/{values[key].removeprefix(f'{root}/')}"
               for key, root in (("results_dir", "Results"), ("model_dir", "Models")) if key in values}
    for key, seed in (("model_path", "{model_seed}"), ("transfer", str(seeds[0]))):
        if values.get(key):
            changed[key] = values[key].replace("Models/", "Models/Seeds/", 1).replace("Seed_0", f"Seed_{seed}")
    return changed if values.get("transfer") else changed | {"model_seed_list": seeds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seeds", nargs="+", type=int)
    parser.add_argument("--out", type=Path, required=True, help="the folder of configs to write")
    options = parser.parse_args()
    write_configs(options.seeds, project_path(options.out))
