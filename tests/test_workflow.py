"""The workflow: every config has its step, and after a kill it continues to the same tables."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import pytest

from conftest import rows_of, write_yaml
from interp.runs.config import CONFIGS, PROJECT_ROOT, read_yaml, shown

pytest.importorskip("snakemake")

SNAKEMAKE = [sys.executable, "-m", "snakemake", "--cores", "2", "--rerun-triggers", "mtime", "--rerun-incomplete"]
TINY = {"mod": 23, "n_embd": 16, "n_head": 2, "n_inner": 32, "num_epochs": 60, "checkpoint_every": 1,
        "save_checkpoints": [50], "n_classes": 23, "batch_size_list": [50], "epochs": 40, "n_train": 200, "n_val": 50,
        "cf_num_epochs": 3}


TARGETS = ["paper", "comparison", "experiment4", "comparison_language", "known", "known_hard", "known_quick"]


def planned(*arguments: str) -> list[str]:
    """The commands of the scripts that a dry run shows."""
    run = subprocess.run([sys.executable, "-m", "snakemake", "--dry-run", "--forceall", "--printshellcmds", "--nolock",
                          *arguments], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return [line for line in (run.stdout + run.stderr).splitlines()
            if "--config configs" in line and "overlap" not in line]


def test_every_config_that_needs_no_download_is_run_once():
    run = [word for command in planned(*TARGETS) for word in command.split() if word.endswith(".yaml")]
    shipped = {shown(file) for file in CONFIGS.rglob("*.yaml")}
    gpt2 = {file for file in shipped if file.endswith(("-small.yaml", "-medium.yaml"))}
    single = {shown(file) for file in (CONFIGS / "Grokking").glob("*/*/**/*.yaml")}
    assert len(run) == len(set(run)) and gpt2 and single
    of_no_experiment = {f"configs/Language/{name}.yaml" for name in ("tasks", "templates")} | {
        "configs/SV_Agreement/sv_agreement-smollm2-subject.yaml", "configs/Comparison/audit.yaml"}
    of_no_experiment |= {file for file in shipped if "Positions" in file}
    assert set(run) == {file for file in shipped if "Quickstart" not in file} - gpt2 - single - of_no_experiment


def test_shards_are_commands_on_the_same_configs():
    commands = [command.partition(" --shard ") for command in planned("experiment4", "--config", "shards=3")]
    shards = [(command, shard) for command, _, shard in commands if shard]
    sweeps = {command for command, _ in shards}
    assert sorted(shards) == sorted((command, f"{number}/3") for command in sweeps for number in (1, 2, 3))
    assert sweeps <= {command for command, _, shard in commands if not shard}  # each is finished as a whole
    [language] = [command for command in sweeps if "sv_agreement-smollm2" in command]
    assert language.endswith("circuit_probing.py --config configs/SV_Agreement/sv_agreement-smollm2.yaml")


def tiny_experiment(folder: Path) -> list[str]:
    """Write the configs of Experiment 1 on a toy into a folder; returns the arguments that run its workflow."""
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


def test_make_works_in_a_folder_with_a_strange_name(tmp_path):
    """It comes to the first script, here one that fails."""
    project = tmp_path / "it's {here} $x #2"
    for folder in ("interp", "configs"):
        shutil.copytree(PROJECT_ROOT / folder, project / folder)
    for file in [*PROJECT_ROOT.glob("*file"), *PROJECT_ROOT.glob("*.t*")]:
        shutil.copy(file, project)
    (project / "train_algorithmic_models.py").write_text("import sys; sys.exit(f'{sys.executable} was here')")
    venv.create(project / ".venv")
    next(project.glob(".venv/lib/*/site-packages")).joinpath("x.pth").write_text(sysconfig.get_path("purelib"))
    for name in (".ready", ".snakemake"):
        (project / ".venv" / name).touch()
    run = subprocess.run(["make", "experiment3"], cwd=project, capture_output=True, text=True,
                         env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"})
    assert f"{project}/.venv/bin/python was here" in run.stdout + run.stderr


@pytest.mark.workflow
def test_a_workflow_killed_twice_ends_in_the_same_tables(tmp_path):
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
