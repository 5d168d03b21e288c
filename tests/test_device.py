"""The same tables on a GPU as on the CPU, to rounding: pytest --device cuda. On the CPU there is nothing to compare."""

import pandas as pd
import pytest
import torch

import conftest
from conftest import CIRCUITS, COMPARISON, METHODS, TRAINING, comparison_values, training_values, write_yaml
from interp.experiment import main

pytestmark = pytest.mark.skipif(conftest.DEVICE.type == "cpu", reason="compares another device with the CPU")
BOUND = 0.02  # of shares, of which one test row is 0.027; losses and norms are compared by ratio
EXACT = {"l0_max", "dataset_size", "examples", "train_length", "test_length", "rank", "erased_rank", "n_pairs"}


@pytest.mark.parametrize("name", ["training", "circuits", "probing", "amnesic_probing", "DAS", "comparison"])
def test_a_script_gives_the_same_table_on_the_gpu(name, tiny, tmp_path):
    script, values = {"training": (TRAINING, training_values(tmp_path) | {"num_epochs": 20, "save_checkpoints": []}),
                      "circuits": (CIRCUITS, tiny.circuits), "comparison": (COMPARISON, comparison_values(tiny.folder)),
                      **{key: (METHODS[key], tiny.methods[key]) for key in METHODS}}[name]
    tables = []
    for device in ("cpu", str(conftest.DEVICE)):
        folder = tmp_path / device.replace(":", "_")
        folders = {key: str(folder / key) for key in ("results_dir", "model_dir") if key in values}
        config = write_yaml(tmp_path / f"{folder.name}.yaml", values | folders)
        assert main(script, ["--config", str(config), "--device", device]) == 0
        tables.append(pd.read_csv(folder / "results_dir/results.csv").drop(columns="seconds"))
    cpu, gpu = tables
    exact = [column for column in cpu if column in EXACT or cpu[column].dtype.kind not in "fi"]
    pd.testing.assert_frame_equal(gpu[exact], cpu[exact])
    pd.testing.assert_frame_equal(gpu, cpu, check_exact=False, rtol=BOUND, atol=BOUND)
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cuda.matmul.allow_tf32
