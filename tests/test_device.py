"""The same tables on a GPU as on the CPU, to rounding: pytest --device cuda. On the CPU there is nothing to compare."""

import pandas as pd
import pytest
import torch

import conftest

pytestmark = pytest.mark.skipif(conftest.DEVICE.type == "cpu", reason="compares another device with the CPU")
BOUND = 0.02  # of shares, of which one test row is 0.027; losses and norms are compared by ratio
EXACT = {"l0_max", "dataset_size", "examples", "train_length", "test_length", "rank", "erased_rank", "n_pairs"}


@pytest.mark.parametrize("script", [conftest.TRAINING, *conftest.SCRIPTS.values()], ids=lambda script: script.name)
def test_a_script_gives_the_same_table_on_the_gpu(script, tiny, tmp_path):
    values = tiny.values[script] | ({"num_epochs": 20, "save_checkpoints": []} if script is conftest.TRAINING else {})
    tables = []
    for device in ("cpu", str(conftest.DEVICE)):
        folder = tmp_path / device.replace(":", "_")
        folders = {key: str(folder / key) for key in ("data_dir", "model_dir") if key in values}
        conftest.execute(script, values | folders, folder / "run", "--device", device)
        tables.append(pd.read_csv(folder / "run/results.csv").drop(columns="seconds"))
    cpu, gpu = tables
    exact = [column for column in cpu if column in EXACT or cpu[column].dtype.kind not in "fi"]
    pd.testing.assert_frame_equal(gpu[exact], cpu[exact])
    pd.testing.assert_frame_equal(gpu, cpu, check_exact=False, rtol=BOUND, atol=BOUND)
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cuda.matmul.allow_tf32
