"""The shipped configs: each is valid, writes where no other does, and names data and columns that training makes."""

import runpy

import pytest

from conftest import CIRCUITS, COMPARISON, DEVICE, METHODS, SENTENCES, TRAINING
from interp.methods.table import METHODS as METHODS_OF_PAPER
from interp.runs.config import CONFIGS, load_config, project_path, read_yaml
from interp.runs.settings import expand_settings, fill_in

FILES = sorted(CONFIGS.rglob("*.yaml"))
COLUMN_KEYS = ("variable", "counterfactual_variable", "counterfactual_label")


def script_of(values: dict):
    if "data_dir" in values:
        return TRAINING if "num_epochs" in values else SENTENCES
    if "method_list" in values:
        return COMPARISON
    if "l0_lambda" in values:
        return CIRCUITS
    keys = {"location_list": "DAS", "intermediate_size": "probing"}
    return METHODS[next((keys[key] for key in keys if key in values), "amnesic_probing")]


@pytest.fixture(scope="module")
def made() -> dict:
    """The columns of the tables that the configs of training and of sentences make, by path."""
    files = {}
    for file in FILES:
        script = script_of(read_yaml(file))
        if script in (TRAINING, SENTENCES) and "transfer" not in file.parts:
            config = load_config(file, script.schema)
            prepared = script.prepare(config, expand_settings(config), DEVICE)
            files |= ({path: text.splitlines()[0].split(",") for path, text in prepared.files.items()}
                      if script is TRAINING else {path: list(table) for path, table in prepared.items()})
    return files


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_config_is_valid_and_its_data_are_made(file, made):
    values = read_yaml(file)
    script = script_of(values)
    config = load_config(file, script.schema)
    if script in (TRAINING, SENTENCES):
        return
    paths = {key: value for key, value in config.model_dump().items() if key.endswith("_path") and value}
    for key, path in paths.items():
        if key == "model_path":
            assert path.startswith("Models/") or path in ("gpt2", "gpt2-medium")
        else:
            assert project_path(path) in made, (key, path)
    table = made[project_path(paths.get("train_data_path", paths.get("data_path")))]
    for key in COLUMN_KEYS:
        assert getattr(config, key, None) is None or getattr(config, key) in table, key
    if script is COMPARISON:
        labels = [part for label in config.counterfactual_labels.values()
                  for part in (label[:2] if isinstance(label, list) else [label])]
        assert {*config.variable_list, *labels} <= {*table}


def test_no_two_configs_write_to_the_same_folder():
    """Two trainings of other seeds may share their folder of models."""
    folders = [read_yaml(file)["results_dir"] for file in FILES]
    assert len(folders) == len(set(folders))
    models = [(values["model_dir"], tuple(values.get("model_seed_list", []) if "num_epochs" in values else []))
              for file in FILES if (values := read_yaml(file)).get("save_models") and values.get("model_dir")]
    assert len(models) == len(set(models))


def test_variables_of_an_experiment_are_asked_alike():
    """A control asked with other settings than the variable that it is a control for would be none: b² once lacked
    LEACE's fit in float32."""
    names = ("variable", "counterfactual_variable", "counterfactual_label", "results_dir", "model_dir")
    for folder in {file.parent for file in FILES if file.parent.name in METHODS_OF_PAPER and "SV_" not in str(file)}:
        asked = [{key: value for key, value in read_yaml(file).items() if key not in names}
                 for file in folder.glob("*.yaml")]
        assert all(own == asked[0] for own in asked), folder


def test_configs_of_single_checkpoints_are_what_their_generator_writes():
    written = runpy.run_path(str(CONFIGS / "Grokking" / "create_configs.py"))["single_configs"]()
    found = list((CONFIGS / "Grokking").glob("*/*/**/*.yaml"))
    assert {file: file.read_text() for file in found} == written
    assert len(found) == 5 * 2 * 23


def test_the_experiments_again_for_several_seeds(tmp_path):
    """Each of their configs is valid and sweeps the seeds; models and results are no other run's."""
    write_configs = runpy.run_path(str(CONFIGS / "with_seeds.py"))["write_configs"]
    write_configs([0, 2], tmp_path)
    files = sorted(tmp_path.rglob("*.yaml"))
    assert len(files) > 100
    places = set()
    for file in files:
        script = script_of(read_yaml(file))
        config = load_config(file, script.schema)
        shipped = load_config(CONFIGS / file.relative_to(tmp_path), script.schema)
        assert config.model_seed_list == ([0] if getattr(config, "transfer", None) else [0, 2])
        assert config.results_dir == shipped.results_dir.replace("Results/", "Results/Seeds/")
        for setting in expand_settings(config) if hasattr(config, "model_path") else ():
            path = fill_in("model_path", config.model_path, setting)
            assert path.startswith("Models/Seeds/") and f"_Seed_{setting.model_seed}_" in path
        places.add(config.results_dir)
    assert len(places) == len(files)
    before = {file: file.stat().st_mtime_ns for file in files}
    write_configs([0, 2], tmp_path)
    assert before == {file: file.stat().st_mtime_ns for file in files}  # or the graph would begin anew
