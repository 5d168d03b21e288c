"""docs/tour.ipynb, run cell by cell on the tiny model, and as it is committed."""

import json
import re
import runpy

from conftest import write_yaml
from interp.runs.config import PROJECT_ROOT

TOUR = PROJECT_ROOT / "docs/tour.ipynb"
run_cells = runpy.run_path(str(PROJECT_ROOT / "docs/run_tour.py"))["run_cells"]


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def pictures(notebook: dict) -> int:
    return sum("image/png" in output.get("data", {}) for cell in code_cells(notebook) for output in cell["outputs"])


def test_the_tour_runs_on_the_tiny_model(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the first cell goes to the project's folder
    circuits = tiny.circuits | {"model_dir": str(tmp_path / "circuits"), "results_dir": str(tmp_path / "run"),
                                "num_epochs": 20}
    notebook = json.loads(TOUR.read_text())
    names = run_cells(notebook, {
        "TRAINING": str(write_yaml(tmp_path / "training.yaml", tiny.training)),
        "CIRCUITS": str(write_yaml(tmp_path / "circuits.yaml", circuits)), "RUN": str(tmp_path / "run"),
        "OUT": str(tmp_path / "tour"), "N_FIT": 50, "N_SELECT": 20, "EPOCHS": 5})
    assert pictures(notebook) == 3
    shares = names["shares"]
    assert len(shares) == 5 and all(0 <= share <= 1 for share in shares.values())
    assert len(list((tmp_path / "tour").rglob("*.safetensors"))) == 2
    answered = names["answers"](names["base"]) == names["test"].answer.right  # run on from the site: the model's own
    assert answered.double().mean().item() == names["accuracy"](
        names["opened"], names["opened"].answer(names["test"]), names["test"].answer)


def test_the_committed_tour_is_whole():
    """It has outputs, of cells that ran in order, and shows nothing of the machine that it ran on."""
    notebook = json.loads(TOUR.read_text())
    assert len(notebook["cells"]) < 40 and pictures(notebook) == 3
    assert [cell["execution_count"] for cell in code_cells(notebook)] == [*range(1, len(code_cells(notebook)) + 1)]
    text = TOUR.read_text()
    assert len(text) < 300_000 and "Traceback" not in text
    assert not re.search(r"/(home|root|tmp|work|Users)/", re.sub(r'"image/png": "[^"]*"', "", text))
