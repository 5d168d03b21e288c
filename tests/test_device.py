"""The same tables on a GPU as on the CPU, to rounding: pytest --device cuda. On the CPU there is nothing to compare."""

import math

import pytest
import torch

import conftest
from conftest import CIRCUITS, COMPARISON, METHODS, TRAINING, comparison_values, rows_of, training_values, write_yaml
from interp.experiment import main
from interp.models.loading import choose_device

BOUND = 0.02  # of shares, of which one test row is 0.027; losses and norms are compared by ratio
EXACT = {"l0_max", "dataset_size", "examples", "train_length", "test_length", "rank", "erased_rank", "pairs"}


@pytest.mark.parametrize("name", ["training", "circuits", "probing", "amnesic_probing", "DAS", "comparison"])
def test_a_script_gives_the_same_table_on_the_gpu(name, tiny, tmp_path):
    if conftest.DEVICE.type == "cpu":
        pytest.skip("compares another device with the CPU")
    script, values = {"training": (TRAINING, training_values(tmp_path) | {"num_epochs": 20, "save_checkpoints": []}),
                      "circuits": (CIRCUITS, tiny.circuits), "comparison": (COMPARISON, comparison_values(tiny.folder)),
                      **{key: (METHODS[key], tiny.methods[key]) for key in METHODS}}[name]
    tables = []
    for device in ("cpu", str(conftest.DEVICE)):
        folder = tmp_path / device.replace(":", "_")
        own = {key: str(folder / key) for key in ("results_dir", "model_dir") if key in values}
        config = write_yaml(tmp_path / f"{folder.name}.yaml", values | own)
        assert main(script, ["--config", str(config), "--device", device]) == 0
        tables.append(rows_of(folder / "results_dir" / "results.csv"))
    for cpu, gpu in zip(*tables, strict=True):
        assert cpu.keys() == gpu.keys()
        for column, value in cpu.items():
            if column in EXACT or not is_number(value):
                assert gpu[column] == value, column
            else:
                assert math.isclose(float(gpu[column]), float(value), rel_tol=BOUND, abs_tol=BOUND), column


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def test_a_gpu_computes_in_full_precision_and_always_the_same():
    if conftest.DEVICE.type == "cpu":
        pytest.skip("says something of CUDA alone")
    choose_device(str(conftest.DEVICE))
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.are_deterministic_algorithms_enabled()
