"""Whatever the scripts write, a full disk ends in one sentence that names it; with room again the same command goes on.

What every run writes, its settings and tables, is in test_runs.py.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import CIRCUITS, METHODS, SENTENCES, TRAINING, rows_of, write_yaml
from interp.experiment import main

SCRIPTS = {"training": TRAINING, "circuits": CIRCUITS, "DAS": METHODS["DAS"], "sentences": SENTENCES}


def values_of(kind: str, tiny, folder: Path) -> dict:
    data = {"data_dir": str(folder / "data")}
    values = {"training": tiny.training | data | {"num_epochs": 90, "save_checkpoints": [60]},
              "DAS": tiny.methods["DAS"] | {"epochs": 2},
              "circuits": tiny.circuits | {"num_epochs": 2, "gif": True, "gif_interval": 1},
              "sentences": data | {"file_list": ["SV_Agr_gen"], "gen_size": 2000}}[kind]
    saved = {} if kind == "sentences" else {"save_models": True, "model_dir": str(folder / "models")}
    return values | saved | {"results_dir": str(folder / "run")}


@pytest.mark.parametrize("kind, place", [
    ("training", "models"), ("training", "run"), ("training", "data"), ("circuits", "models"), ("circuits", "run"),
    ("DAS", "models"), ("sentences", "data")])
def test_a_small_disk_is_full_and_then_is_not(kind, place, tiny, tmp_path, capsys):
    mount, disk, ends = shutil.which("mount"), tmp_path / place, []
    disk.mkdir()
    mounting = [mount, "-t", "tmpfs", "-o", "size=4k", "tmpfs", disk]
    if not mount or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    config = write_yaml(tmp_path / "c.yaml", values_of(kind, tiny, tmp_path))
    try:
        for pages in range(1, 400):
            subprocess.run([mount, "-o", f"remount,size={4 * int(1.3 ** pages)}k", disk], check=True)
            capsys.readouterr()
            ends.append(main(SCRIPTS[kind], ["--config", str(config)]))
            if not ends[-1]:
                break
            [said] = capsys.readouterr().err.strip().splitlines()
            assert ends[-1] == 2 and f": {disk}" in said and "No space left on device" in said
            assert not [file for file in tmp_path.rglob("*") if ".tmp" in file.name]
        assert ends[-1] == 0 and len(ends) > 1
        found = {file.name: rows_of(file) for file in (tmp_path / "run").glob("*.csv")}
    finally:
        subprocess.run(["umount", disk], check=True)
    (tmp_path / "alone").mkdir()
    config = write_yaml(tmp_path / "c.yaml", values_of(kind, tiny, tmp_path / "alone"))
    assert main(SCRIPTS[kind], ["--config", str(config)]) == 0
    assert found == {file.name: rows_of(file) for file in (tmp_path / "alone/run").glob("*.csv")} != {}
