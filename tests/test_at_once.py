"""Several processes at once: one wins, or all, the others are told in a sentence, and nothing is lost."""

import contextlib
import io
import multiprocessing
import os
import traceback

import pytest

from conftest import CIRCUITS, METHODS, SENTENCES, TRAINING, rows_of, write_yaml
from interp.experiment import main

ROUNDS = int(os.environ.get("ROUNDS", "1"))  # each of three starts at once
SCRIPTS = {script.name: script for script in (TRAINING, CIRCUITS, METHODS["DAS"], SENTENCES)}
METHOD_OF = {"training": "train_algorithmic_models", "circuits": "circuit_probing", "DAS": "DAS"}


def compete(name, arguments, barrier, said):
    """One process: what the command line returns and says on stderr."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        barrier.wait()
        try:
            status = main(SCRIPTS[name], arguments)
        except BaseException:
            status = traceback.format_exc()
    said.put((status, errors.getvalue().strip().splitlines()))


@pytest.fixture(scope="module")
def processes():
    """A server that has imported all that a process needs, so that starts are at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*METHOD_OF.values(), "compare_methods", "amnesic_probing", "pytest"])
    return context


@pytest.fixture
def at_once(processes):
    def run(name: str, commands: list[list]) -> list[tuple]:
        barrier, said = processes.Barrier(len(commands)), processes.Queue()
        started = [processes.Process(target=compete, args=(name, [*map(str, own)], barrier, said)) for own in commands]
        for process in started:
            process.start()
        for process in started:
            process.join(timeout=300)
        found = [said.get(timeout=10) for _ in started]
        for status, lines in found:
            assert status in (0, 2) and not (status == 2 and len(lines) != 1), (status, lines)
        return found
    return run


def values_of(kind: str, tiny, folder) -> dict:
    own = {"training": tiny.training | {"num_epochs": 60, "checkpoint_every": 5, "save_checkpoints": [20, 40],
                                        "data_dir": str(folder / "data")},
           "circuits": tiny.circuits | {"num_epochs": 2}, "DAS": tiny.methods["DAS"] | {"epochs": 3}}[kind]
    return own | {"save_models": True, "model_dir": str(folder / "models"), "results_dir": str(folder / "run")}


def check_nothing_is_lost(folder, count: int) -> None:
    files = {str(file.relative_to(folder)) for file in folder.rglob("*")}
    assert not [file for file in files if file.endswith((".tmp", ".held", ".turn.lock")) or ".old-" in file]
    assert len(list((folder / "models").iterdir())) == count


def test_three_at_once_that_wait_all_end_with_the_same_table(tiny, tmp_path, at_once):
    config = write_yaml(tmp_path / "c.yaml", values_of("circuits", tiny, tmp_path))
    others = {"results_dir": str(tmp_path / "another")}  # it writes the same circuits
    other = write_yaml(tmp_path / "d.yaml", values_of("circuits", tiny, tmp_path) | others)
    found = at_once("circuit_probing", [["--config", config, "--wait"]] * 2 + [["--config", other, "--wait"]])
    assert 0 in [status for status, _ in found]
    for status, lines in found:  # who comes last to another run's circuits is refused, not made to wait
        assert not status or "is there already, from another run" in lines[0]
    tables = [rows_of(file) for file in tmp_path.glob("*/results.csv")]
    assert tables and all(table == tables[0] for table in tables)
    check_nothing_is_lost(tmp_path, 2)


@pytest.mark.parametrize("kind, saved", [("training", 3), ("circuits", 2), ("DAS", 2)])
def test_three_at_once_on_one_config(kind, saved, tiny, tmp_path, at_once):
    tables = []
    for number in range(ROUNDS + 1):
        folder = tmp_path / str(number)
        command = ["--config", write_yaml(tmp_path / f"{number}.yaml", values_of(kind, tiny, folder))]
        found = at_once(METHOD_OF[kind], [command] * (3 if number else 1))  # the first alone, to compare with
        assert 0 in [status for status, _ in found]
        assert all("another process is at work in" in lines[0] for status, lines in found if status)
        check_nothing_is_lost(folder, saved)
        tables.append(rows_of(folder / "run/results.csv"))
        assert tables[-1] == tables[0]
        assert {file.name for file in folder.rglob("*")} == {file.name for file in (tmp_path / "0").rglob("*")}


@pytest.mark.parametrize("kind, saved", [("training", 3), ("circuits", 2), ("DAS", 2)])
def test_three_configs_at_once_that_would_write_the_same_files(kind, saved, tiny, tmp_path, at_once):
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        commands = [["--config", write_yaml(tmp_path / f"{number}_{own}.yaml", values_of(kind, tiny, folder) | {
            "results_dir": str(folder / f"run_{own}")})] for own in range(3)]
        found = at_once(METHOD_OF[kind], commands)
        assert sorted(status for status, _ in found) == [0, 2, 2]
        refused = [lines[0] for status, lines in found if status]
        assert all("model_dir: " in line and str(folder / "models") in line for line in refused)
        check_nothing_is_lost(folder, saved)
        assert len(list(folder.glob("*/results.csv"))) == len(list(folder.glob("*/config.yaml"))) == 1


def test_three_configs_at_once_that_write_other_files_of_one_folder(tiny, tmp_path, at_once):
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        commands = [["--config", write_yaml(tmp_path / f"{number}_{seed}.yaml", values_of("training", tiny, folder) | {
            "results_dir": str(folder / f"run_{seed}"), "model_seed_list": [seed]})] for seed in range(3)]
        assert [status for status, _ in at_once("train_algorithmic_models", commands)] == [0, 0, 0]
        check_nothing_is_lost(folder, 9)


def test_data_of_two_configs_are_never_mixed(tmp_path, at_once):
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        commands = [["--config", write_yaml(tmp_path / f"{number}_{seed}.yaml", {
            "file_list": ["SV_Agr_gen"], "gen_size": 10, "data_seed": seed, "data_dir": str(folder / "data"),
            "results_dir": str(folder / f"run_{seed}")})] for seed in range(3)]
        found = at_once("generate_language_data", commands)
        assert sorted(status for status, _ in found) == [0, 2, 2]
        assert all("holds other data than this config makes" in lines[0] for status, lines in found if status)


def test_rests_of_the_dead_are_removed_and_of_the_living_left(tiny, tmp_path):
    values = values_of("circuits", tiny, tmp_path)
    config = str(write_yaml(tmp_path / "c.yaml", values))
    assert main(CIRCUITS, ["--config", config]) == 0
    circuit = next((tmp_path / "models").iterdir())
    host = os.uname().nodename
    rests = {name: circuit.with_name(f".{circuit.name}.{name}.tmp") for name in (f"999999999@{host}", f"1@{host}",
                                                                                "999999999@elsewhere")}
    for rest in rests.values():
        rest.write_text("half")
    (tmp_path / "models" / f".999999999@{host}.held").write_text(circuit.name)  # nobody has it locked
    circuit.unlink()
    assert main(CIRCUITS, ["--config", config]) == 0
    left = {file.name for file in (tmp_path / "models").iterdir() if file.name.startswith(".")}
    assert left == {rest.name for name, rest in rests.items() if name != f"999999999@{host}"}


def test_three_that_overwrite_one_run_at_once_keep_the_old_one(tiny, tmp_path, at_once):
    values = values_of("circuits", tiny, tmp_path) | {"operation_list": ["mlp"]}
    config = str(write_yaml(tmp_path / "c.yaml", values))
    assert main(CIRCUITS, ["--config", config]) == 0
    for _ in range(ROUNDS):
        before = (tmp_path / "run/results.csv").read_bytes()
        known = set(tmp_path.glob("run.old-*"))
        found = at_once("circuit_probing", [["--config", config, "--overwrite"]] * 3)
        assert 0 in [status for status, _ in found]
        new = sorted(set(tmp_path.glob("run.old-*")) - known, key=lambda folder: int(folder.name.rpartition("-")[2]))
        assert (new[0] / "results.csv").read_bytes() == before
        assert all((folder / "results.csv").exists() for folder in [*new, tmp_path / "run"])
        assert not [file for file in tmp_path.rglob("*") if file.name.endswith((".tmp", ".held", ".turn.lock"))]
