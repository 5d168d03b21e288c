"""docs/tour.ipynb, run cell by cell on the tiny model, and as it is committed."""

import json
import re
import runpy

from conftest import CIRCUITS, execute
from interp.runs.config import PROJECT_ROOT

TOUR = PROJECT_ROOT / "docs/tour.ipynb"
run_cells = runpy.run_path(str(PROJECT_ROOT / "docs/run_tour.py"))["run_cells"]


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def pictures(notebook: dict) -> int:
    return sum("image/png" in output.get("data", {}) for cell in code_cells(notebook) for output in cell["outputs"])


def test_the_tour_runs_on_the_tiny_model(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a cell goes to the project's folder
    execute(CIRCUITS, tiny.circuits | {"model_dir": str(tmp_path / "circuits"), "num_epochs": 20}, tmp_path / "run")
    notebook = json.loads(TOUR.read_text())
    names = run_cells(notebook, {"RUN": str(tmp_path / "run"), "N_FIT": 50, "N_SELECT": 20, "EPOCHS": 5})
    assert pictures(notebook) == 3
    shares = names["shares"]
    assert len(shares) == 5 and all(0 <= share <= 1 for share in shares.values())
    pairs, model = names["pairs"], names["model"]
    right = (model.logits(model.final_states(pairs.base)).argmax(-1) == pairs.counterfactual.right).double().mean()
    assert shares["nothing exchanged"] == right.item()  # a forward pass from the site's activations changes nothing


def test_the_committed_tour_is_whole():
    """It has outputs, of cells that ran in order, and shows nothing of the machine that it ran on."""
    notebook = json.loads(TOUR.read_text())
    assert len(notebook["cells"]) < 40 and pictures(notebook) == 3
    assert [cell["execution_count"] for cell in code_cells(notebook)] == [*range(1, len(code_cells(notebook)) + 1)]
    text = TOUR.read_text()
    assert len(text) < 300_000 and "Traceback" not in text
    assert not re.search(r"/(home|root|tmp|work|Users)/", re.sub(r'"image/png": "[^"]*"', "", text))
