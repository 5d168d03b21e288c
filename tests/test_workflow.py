"""The graph of experiments: every config has its step, and a killed graph goes on to the same tables."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import rows_of, write_yaml
from interp.runs.config import CONFIGS, PROJECT_ROOT, read_yaml, shown

pytest.importorskip("snakemake")

SNAKEMAKE = [sys.executable, "-m", "snakemake", "--cores", "2", "--rerun-triggers", "mtime", "--rerun-incomplete"]
TINY = {"mod": 23, "n_embd": 16, "n_head": 2, "n_inner": 32, "num_epochs": 60, "checkpoint_every": 1,
        "save_checkpoints": [50], "n_classes": 23, "batch_size_list": [50], "epochs": 40, "n_train": 200, "n_val": 50,
        "cf_num_epochs": 3}


def test_the_graph_runs_every_config_of_the_three_experiments_and_of_their_comparison_once():
    planned = subprocess.run([sys.executable, "-m", "snakemake", "--dry-run", "--forceall", "--printshellcmds",
                              "--nolock", "paper", "comparison"], cwd=PROJECT_ROOT, capture_output=True, text=True)
    told = planned.stdout + planned.stderr
    assert planned.returncode == 0, told
    commands = [line.split() for line in told.splitlines() if "--config configs" in line]
    run = [word for command in commands if not any("overlap" in word for word in command)
           for word in command if word.endswith(".yaml")]
    shipped = {shown(file) for folder in ("Disambiguation", "Shared_Nodes", "Grokking", "Train_Algorithmic_Models",
                                           "Comparison") for file in (CONFIGS / folder).rglob("*.yaml")}
    shipped = {file for file in shipped if "Comparison/SV_" not in file}  # language models have no step in the graph
    single = {shown(file) for file in (CONFIGS / "Grokking").glob("*/*/**/*.yaml")}
    assert len(run) == len(set(run))
    assert set(run) == shipped - single


def tiny_experiment(folder: Path) -> list[str]:
    """Experiment 1 on a toy in a folder of its own; returns the arguments that run its graph."""
    for part in ("Train_Algorithmic_Models", "Disambiguation", "Shared_Nodes", "Grokking"):
        for file in (CONFIGS / part).rglob("*.yaml"):
            values = read_yaml(file)
            values |= {key: value for key, value in TINY.items() if key in values}
            for key, value in values.items():
                if isinstance(value, str) and value.startswith(("Models/", "Results/", "data/")):
                    values[key] = str(folder / value.replace("_10000", "_50"))
            write_yaml(folder / "configs" / file.relative_to(CONFIGS), values)
    return ["experiment1", "--config", f"configs={folder / 'configs'}", f"results={folder / 'Results'}"]


def tables(folder: Path) -> dict[str, list[dict]]:
    return {str(file.relative_to(folder)): rows_of(file) for file in (folder / "Results").rglob("*.csv")}


@pytest.mark.workflow
def test_a_graph_killed_twice_ends_in_the_same_tables(tmp_path):
    """Minutes; off by default: pytest -m workflow."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert subprocess.run([*SNAKEMAKE, *tiny_experiment(whole)], cwd=PROJECT_ROOT).returncode == 0
    arguments = tiny_experiment(killed)
    state = "Results/Train_Algorithmic_Models/Disambiguation/state_model_seed_0_lr_0.001.pt"
    for sign in (state, "Results/Disambiguation/DAS/a2/results.csv"):  # in the training, in the middle of the methods
        process = subprocess.Popen([*SNAKEMAKE, *arguments], cwd=PROJECT_ROOT, start_new_session=True)
        while not (killed / sign).exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert subprocess.run([*SNAKEMAKE, *arguments, "--unlock"], cwd=PROJECT_ROOT).returncode == 0
    assert not (killed / "Results/Disambiguation/figures/there_and_used.png").exists()
    assert subprocess.run([*SNAKEMAKE, *arguments], cwd=PROJECT_ROOT).returncode == 0
    assert (killed / "Results/Disambiguation/figures/there_and_used.png").exists()
    ends = tables(killed)
    assert len(ends) > 20 and ends == tables(whole)
    left = subprocess.run([*SNAKEMAKE, "--dry-run", *arguments], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert "Nothing to be done" in left.stdout + left.stderr
