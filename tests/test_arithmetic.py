"""The data are the published ones, to the byte."""

import hashlib

import pytest
import torch

from conftest import TRAINING
from interp.runs.config import CONFIGS, load_config
from interp.runs.settings import expand_settings
from interp.tasks.arithmetic import csv_text, draw_partners, make_data
from interp.tasks.functions import SINGLE_TASK, Task, variable_values

PUBLISHED = {  # SHA-256 of the published train.csv and test.csv
    "Disambiguation": ("6756a68b4672af6433b8deab6ce5e3aac400ea9df55bffea1c4c2b37bbe02323",
                       "ddd4091dca33f568b60b1f701d308332519f7bc2cea87398b9762f3d1a6ad0ce"),
    "Disambiguation/Transfer/a2": ("848637846db6a530035c0522fb103725470c04641c9aac5aff869d831e28dc85",
                                   "4ef41e25d18ce45c8323cf7ac347299ee82a3e7b6aeb666cdc154a8efc67f98c"),
    "Disambiguation/Transfer/a_plus_b": ("1607a74460f10df959dda2caca7c0dff3e1889d880910e1a7e059785dbd415f6",
                                         "288137a0ad068d8464f9fd923a5ae6efe190872e0b5879dd3fef2d53d11a8bbb"),
    "Grokking": ("7b8c79f2d37a0e03989c1046dcb2bba37068262c6c9c3910d330218a657d9b75",
                 "4bdbf61172043d294c2ca5315c4f87f879b7c678ffd076f650abbfbc756f9ea6"),
    "Shared_Nodes/Task_1": ("e1648b22d9c55876e41aec14a78f5a5041b88500f75168b43c23061f85676910",
                            "1ccfaf8b710f32ad84ed9656d16776e4f9c3fb4f6ebb1b7a97a365b0a7678fd2"),
    "Shared_Nodes/Task_2": ("876c25d2f6069cbfef47243ce79431b17950403b2cef2d45b95274b8ee4f539b",
                            "0592b25ef710dbab9e12154e1355e9178ba07c08d85bcd1c5573a74a2a0ec7fb"),
}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("name", ["Disambiguation/a2_minus_b2", "Grokking/a2_b", "Shared_Nodes/shared_nodes"])
def test_shipped_training_configs_make_the_published_files(name):
    config = load_config(CONFIGS / "Train_Algorithmic_Models" / f"{name}.yaml", TRAINING.schema)
    data_set = name.split("/")[0]
    files = TRAINING.prepare(config, expand_settings(config), torch.device("cpu")).files
    for file, text in files.items():
        task = f"{data_set}/{file.parent.name}" if config.multitask else data_set
        assert digest(text) == PUBLISHED[task][["train", "test"].index(file.stem)], file


@pytest.mark.parametrize("variable", ["a2", "a_plus_b"])
def test_transfer_data_are_the_published_ones(variable, generator):
    tables = make_data(Task(SINGLE_TASK, [(variable, 0, 1)], [], []), 113, 0.6, generator)
    assert tuple(digest(csv_text(table)) for table in tables) == PUBLISHED[f"Disambiguation/Transfer/{variable}"]


def test_every_variable_follows_its_formula():
    a, b = torch.tensor([7, 3]), torch.tensor([5, 9])
    expected = {"a_identity": [7, 3], "a2": [10, 9], "a4": [9, 3], "b_identity": [5, 9], "b2": [12, 3],
                "minus_b2": [1, 10], "b4": [1, 9], "ab": [9, 1], "a_plus_b": [12, 12], "a_minus_b": [2, 7],
                "a_mod_4": [3, 3], "b_mod_4": [1, 1], "a_plus_b_no_prime": [12, 12],
                "a_minus_b_no_prime": [2, -6]}
    for name, values in expected.items():
        assert variable_values(name, a, b, 13).tolist() == values, name


def test_no_row_is_its_own_counterfactual():
    for seed in range(30):  # four of ten permutations of two or three rows would fail
        partner = draw_partners(3, torch.Generator().manual_seed(seed))
        assert sorted(partner.tolist()) == [0, 1, 2]
        assert (partner != torch.arange(3)).all()
