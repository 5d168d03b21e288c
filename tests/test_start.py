"""How scripts start: what they answer at once, and how threads wait."""

import os
import subprocess
import sys

import pytest

from conftest import write_yaml
from interp.runs import progress
from interp.runs.config import PROJECT_ROOT

SCRIPTS = ["train_algorithmic_models", "generate_language_data", "circuit_probing", "probing", "amnesic_probing", "DAS",
           "compare_methods"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_a_wrong_config_are_answered_before_torch_is_loaded(script, tmp_path):
    """Which takes seconds."""
    wrong = write_yaml(tmp_path / "c.yaml", {"results_dir": str(tmp_path / "run"), "num_epoch": 3})
    for arguments, status in ((["--help"], 0), (["--config", str(wrong)], 2)):
        finished = subprocess.run([sys.executable, "-X", "importtime", PROJECT_ROOT / f"{script}.py", *arguments],
                                  cwd="/", capture_output=True, text=True)
        said = [line for line in finished.stderr.splitlines() if not line.startswith("import time:")]
        assert finished.returncode == status and len(said) == (status == 2)
        loaded = {line.rpartition("|")[2].strip() for line in finished.stderr.splitlines()}
        assert "interp" in loaded and not loaded & {"torch", "pandas", "transformers"}


@pytest.mark.parametrize("own", [None, "active"])
def test_threads_wait_passively_unless_the_user_says_otherwise(own):
    """The setting is read when torch is loaded."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    code = ("import os, sys\nclass Early:\n  def find_spec(name, *_):\n    if name == 'torch': "
            "sys.exit(os.environ.get('OMP_WAIT_POLICY'))\nsys.meta_path.insert(0, Early)\nimport circuit_probing")
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT_ROOT,
                              env=environment | ({"OMP_WAIT_POLICY": own} if own else {}))
    assert finished.stderr.strip() == (own or "passive")


def test_a_log_gets_a_line_at_times_and_nothing_of_what_is_quickly_done(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    bar = progress.Progress(range(3), desc="layer 3 attn", unit="epoch")
    for number in bar:
        bar.set_postfix_str(f"loss {number}", refresh=False)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" after")[0] for line in lines] == [f"layer 3 attn: {done} of 3 epochs" for done in (1, 2, 3)]
    assert lines[-1].endswith("loss 2")
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 30)
    assert list(progress.Progress(range(3), desc="quick", unit="setting", leave=True)) == [0, 1, 2]
    assert not capsys.readouterr().err
