"""A full disk ends every script in one sentence that names the file; with room again the same command goes on."""

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import CIRCUITS, METHODS, SENTENCES, TRAINING, rows_of, write_yaml
from interp.experiment import main

SCRIPTS = {"training": TRAINING, "circuits": CIRCUITS, "DAS": METHODS["DAS"], "sentences": SENTENCES}


def values_of(kind: str, tiny, folder: Path) -> dict:
    own = {"training": tiny.training | {"data_dir": str(folder / "data")}, "DAS": tiny.methods["DAS"] | {"epochs": 2},
           "circuits": tiny.circuits | {"num_epochs": 2, "gif": True, "gif_interval": 1},
           "sentences": {"file_list": ["SV_Agr_gen"], "gen_size": 2000, "data_dir": str(folder / "data")}}[kind]
    saved = {} if kind == "sentences" else {"save_models": True, "model_dir": str(folder / "models")}
    return own | saved | {"results_dir": str(folder / "run")}


def check_refused(kind: str, config: Path, capsys) -> str:
    """The file that the one sentence names."""
    capsys.readouterr()
    assert main(SCRIPTS[kind], ["--config", str(config)]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    name, _, words = line.removeprefix(f"{SCRIPTS[kind].name}: ").partition(": ")
    assert "No space left on device" in words and Path(name).is_absolute()
    assert not list(config.parent.rglob("*.tmp"))
    return name


@pytest.mark.parametrize("kind, full", [
    ("training", "train.csv"), ("training", "models/model_LR_0.01_Seed_0_100"), ("training", "state_"),
    ("training", "results.csv"), ("training", "curves.pdf"), ("training", "config.yaml"), ("circuits", "safetensors"),
    ("circuits", ".gif"), ("circuits", "ablations.csv"), ("DAS", "safetensors"), ("sentences", "SV_Agr_gen.csv")])
def test_a_write_that_fails_is_named(kind, full, tiny, tmp_path, monkeypatch, capsys):
    """Whatever is written where there is no room fails as a full disk does, with an error that names no file."""
    config = write_yaml(tmp_path / "c.yaml", values_of(kind, tiny, tmp_path))
    replace, rename = Path.replace, Path.rename

    def full_disk(self, target, move):
        if full in str(target) and ".tmp" in self.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return move(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", lambda self, target: full_disk(self, target, replace))
        patched.setattr(Path, "rename", lambda self, target: full_disk(self, target, rename))
        assert full in check_refused(kind, config, capsys)
    record = tmp_path / "run/run.json"
    assert full in ("config.yaml", "curves.pdf") or json.loads(record.read_text())["status"] == "failed"
    assert main(SCRIPTS[kind], ["--config", str(config)]) == 0
    assert json.loads(record.read_text())["status"] == "done" and not list(tmp_path.rglob("*.old-*"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, and a function that gives it another size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if not mount or subprocess.run([mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True
                                   ).returncode:
        pytest.skip("no file system may be mounted here")
    yield folder, lambda size: subprocess.run([mount, "-o", f"remount,size={size}", folder], check=True)
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("kind", ["training", "circuits", "DAS"])
@pytest.mark.parametrize("key", ["model_dir", "results_dir"])
def test_a_small_disk_is_full_and_then_is_not(kind, key, tiny, small_disk, tmp_path, capsys):
    folder, resize = small_disk
    values = values_of(kind, tiny, tmp_path)
    alone = write_yaml(tmp_path / "alone.yaml", values | {"results_dir": str(tmp_path / "alone"),
                                                          "model_dir": str(tmp_path / "others")})
    assert main(SCRIPTS[kind], ["--config", str(alone)]) == 0
    config, ends = write_yaml(tmp_path / "c.yaml", values | {key: str(folder / "x")}), []
    (folder / "fill").write_bytes(bytes(44 * 1024))
    for pages in range(2, 122, 8):
        resize(f"{44 + 4 * pages}k")
        capsys.readouterr()
        ends.append(main(SCRIPTS[kind], ["--config", str(config)]))
        said = capsys.readouterr().err.strip().splitlines()
        if not ends[-1]:
            break
        assert ends[-1] == 2 and len(said) == 1 and f"{folder}/x/" in said[0] and "No space left" in said[0], said
        record = Path(values["results_dir"]) / "run.json" if key == "model_dir" else folder / "x/run.json"
        if record.exists() and "curves" not in said[0]:  # which are drawn when all is done
            assert json.loads(record.read_text())["status"] == "failed"
    assert ends[-1] == 0 and len(ends) > 1
    results = folder / "x" if key == "results_dir" else Path(values["results_dir"])
    assert rows_of(results / "results.csv") == rows_of(tmp_path / "alone/results.csv")
    assert not [file for file in folder.rglob("*") if ".tmp" in file.name or ".old-" in file.name]
