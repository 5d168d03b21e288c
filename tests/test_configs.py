"""The shipped configs: each is valid, writes where no other does, and names data and columns that training makes.

And configs with the keys and values of the paper's YAML files: each is read for what it means there, and runs.
"""

import runpy

import pandas as pd
import pytest
import torch

import conftest
from conftest import CIRCUITS, COMPARISON, DEVICE, KNOWN, METHODS, SENTENCES, TRAINING, execute, write_yaml
from interp.methods.table import METHODS as METHODS_OF_PAPER
from interp.models.loading import load_model
from interp.runs.config import CONFIGS, BadInput, load_config, project_path, read_yaml
from interp.runs.settings import expand_settings, fill_in

FILES = sorted({*CONFIGS.rglob("*.yaml")} - {CONFIGS / "Language" / "templates.yaml"})  # which is no config
MAKERS = (TRAINING, KNOWN, SENTENCES)  # of data
COLUMN_KEYS = ("variable", "counterfactual_variable", "counterfactual_label")


def script_of(values: dict):
    if "data_dir" in values:
        return TRAINING if "num_epochs" in values else KNOWN if "decoy_list" in values else SENTENCES
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
        if script in MAKERS and "transfer" not in file.parts:
            config = load_config(file, script.schema)
            prepared = script.prepare(config, expand_settings(config), DEVICE)
            files |= ({path: text.splitlines()[0].split(",") for path, text in prepared.files.items()}
                      if script is not SENTENCES else {path: list(table) for path, table in prepared.items()})
    return files


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_config_is_valid_and_its_data_are_made(file, made):
    values = read_yaml(file)
    script = script_of(values)
    config = load_config(file, script.schema)
    if script in MAKERS:
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


# ------------------------------------------------------------------------------ the paper's configs

DATA = {"train_data_path": "data/Disambiguation/train.csv", "test_data_path": "data/Disambiguation/test.csv",
        "model_path": "Models/Disambiguation/model_LR_0.001_Seed_0_10000"}
OFF = {"data_seed": 0, "layer_reinit": False, "random_init": False}
PROBE = DATA | OFF | {
    "variable": "var_0", "model_seed_list": [0], "target_layer_list": [0], "target_position_list": [2],
    "residual_location_list": ["resid_mid", "resid_post"], "lr_list": [0.1], "batch_size_list": [500],
    "num_epochs": 100, "n_classes": 113, "results_dir": "Results/x"}
CIRCUIT = {
    "layer_reinit": False, "model_seed_list": [0], "operation_list": ["attn", "mlp"], "lr_list": [0.001],
    "batch_size_list": [500], "mask_init_list": [0.0], "num_epochs": 90, "max_temp": 200, "l0_lambda": 1e-6,
    "data_seed": 0, "lm_eval": True, "num_random_ablations": 5, "save_models": False, "gif": False,
    "gif_interval": 10, "results_dir": "Results/x"}


def of_sentences(task: str, **files: str) -> dict:
    return CIRCUIT | {"train_size": 2000, "test_size": 1000, "target_layer_list": list(range(12)), "l0_lambda": 1e-7,
                      "model_path": "gpt2", "task": task} | {key: f"data/{name}.csv" for key, name in files.items()}


CF = {"counterfactual_embeddings": True, "counterfactual_variable": "counter_var_0",
      "counterfactual_label": "CF_Label_1", "cf_num_epochs": 10, "cf_lr": 0.1}
PAPER = {  # by family: the script and a config
    "linear probing": (METHODS["probing"], PROBE | {"intermediate_size": -1}),
    "nonlinear probing": (METHODS["probing"], PROBE | CF | {"intermediate_size": 256}),
    "amnesic probing": (METHODS["amnesic_probing"], {
        key: value for key, value in PROBE.items() if key != "batch_size_list"}),
    "circuit probing": (CIRCUITS, CIRCUIT | DATA | {
        "task": "disambiguation", "variable": "var_0", "target_layer_list": [0], "probe_index_list": [2],
        "train_size": 2500}),
    "agreement": (CIRCUITS, of_sentences("agreement", data_path="SV_Agr", gen_path="SV_Agr_gen")),
    "reflexive": (CIRCUITS, of_sentences("reflexive", data_path="Reflexive_An", gen_path="Reflexive_An_gen")),
    "syntactic number": (CIRCUITS, of_sentences("syntactic_number", data_path="Syntactic_Number")),
    "DAS": (METHODS["DAS"], {
        "counterfactual_label": ["CF_Label_0"], "train_path": DATA["train_data_path"],
        "test_path": DATA["test_data_path"], "model_path": DATA["model_path"], "n_train": 2500, "n_val": 1000,
        "model_seed_list": [0], "target_layer_list": [0], "location_list": ["attn", "mlp"], "token_range": "2_3",
        "lr_list": [0.01], "batch_size_list": [128], "epochs": 250, "results_dir": "Results/x"}),
    "transfer": (TRAINING, {
        "intermediate_functions": [["a2", 0, 1]], "mod": 113, "train_frac": 0.6, "n_layer": 1, "n_head": 4,
        "n_embd": 128, "n_inner": 512, "n_positions": 3, "transfer": True, "model_path": DATA["model_path"],
        "model_seed_list": [0], "lr_list": [0.001], "wd": 1.0, "betas": [0.9, 0.98], "num_epochs": 50,
        "checkpoint_every": 1, "save_models": False, "model_dir": "Models/x", "data_dir": "data/x",
        "results_dir": "Results/x"}),
}
UNTOUCHED = {"layer_reinit": False, "random_init": False, "reinit_embeddings": False}
MEANS = {
    "linear probing": UNTOUCHED | {"data_seed": 0, "counterfactual_embeddings": False, "n_classes": 113,
                                   "position_list": [2]},
    "nonlinear probing": UNTOUCHED | {"cf_num_epochs": 10, "intermediate_size": 256},
    "amnesic probing": UNTOUCHED | {"data_seed": 0, "n_classes": 113, "precision_list": ["float64"]},
    "circuit probing": UNTOUCHED | {"train_size": 2500, "of_sentences": False, "variable_name": "var_0"},
    "agreement": UNTOUCHED | {"variable_name": "labels", "of_sentences": True},
    "reflexive": UNTOUCHED | {"variable_name": "labels", "of_sentences": True},
    "syntactic number": UNTOUCHED | {"variable_name": "object labels", "of_sentences": True},
    "DAS": {"train_data_path": DATA["train_data_path"], "test_data_path": DATA["test_data_path"], "epochs": 250,
            "position_list": [2], "counterfactual_label": "CF_Label_0"},
    "transfer": {"transfer": DATA["model_path"], "start_list": ["fresh", "transfer"]},
}
SMALL = {  # what there is less of in the tests: the data, the model, the time
    "batch_size_list": [20], "num_epochs": 3, "epochs": 3, "n_train": 50, "n_val": 20, "mod": 11, "train_frac": 0.7,
    "n_embd": 16, "n_head": 2, "n_inner": 32}
SMALL_LANGUAGE = {"train_size": 60, "test_size": 40, "target_layer_list": [0, 1]}
SAME = {  # by family, changes that change no number; None where a key is left out
    "linear probing": dict.fromkeys(OFF), "nonlinear probing": dict.fromkeys(OFF),
    "amnesic probing": dict.fromkeys((*OFF, "n_classes")),
    "circuit probing": {"layer_reinit": -1, "train_size": None}, "agreement": {"variable": "labels"},
    "reflexive": {"variable": "labels", "layer_reinit": None}, "syntactic number": {"variable": "object labels"},
}
RENAMED = {"DAS": {"train_path": "train_data_path", "epochs": "num_epochs"}, "transfer": {"model_path": "transfer"}}


@pytest.mark.parametrize("family", PAPER)
def test_a_config_of_the_paper_is_valid_and_means_what_it_says(family, tmp_path):
    script, values = PAPER[family]
    config = load_config(write_yaml(tmp_path / "c.yaml", values), script.schema)
    assert {key: getattr(config, key) for key in MEANS[family]} == MEANS[family]
    assert all(isinstance(getattr(config, key), type(value)) for key, value in MEANS[family].items())  # 0 is no false


@pytest.fixture
def at_home(tiny, language, tmp_path):
    """A family's config, its paths those of the tiny models."""
    def at_home(family: str) -> dict:
        _, values = PAPER[family]
        if "data_path" in values:
            own = conftest.language_values(language, tmp_path, values["task"])
            for key in {"data_path", "gen_path"} & set(values):
                name = own[key].rsplit("/", 1)[1]
                conftest.papers_table(name.removesuffix(".csv"), language).to_csv(tmp_path / name, index=False)
                own[key] = str(tmp_path / name)
        else:
            own = tiny.circuits | {f"{split}_path": tiny.circuits[f"{split}_data_path"] for split in ("train", "test")}
        own |= {f"{kind}_dir": str(tmp_path / kind) for kind in ("data", "model", "results")}
        paths = {key: own[key] for key in values if key.endswith(("_path", "_dir"))}
        small = SMALL | (SMALL_LANGUAGE if "data_path" in values else {})
        return values | paths | {key: value for key, value in small.items() if key in values}
    return at_home


@pytest.mark.parametrize("family", PAPER)
def test_a_config_of_the_paper_runs_to_its_table(family, at_home, tmp_path):
    """And what it says besides changes nothing: controls that are off, a name of the same key, a default."""
    (script, _), values = PAPER[family], at_home(family)
    rows = execute(script, values, tmp_path / "paper")
    assert len(rows) == len(expand_settings(script.schema(**values))) >= 2
    other = {RENAMED.get(family, {}).get(key, key): value
             for key, value in (values | SAME.get(family, {})).items() if value is not None}
    assert rows == execute(script, other, tmp_path / "other")
    if family == "transfer":
        assert [row["start"] for row in rows] == ["fresh", "transfer"] and rows[0]["train_acc"] != rows[1]["train_acc"]


def test_fewer_steps_of_a_counterfactual_embedding_are_other_embeddings(at_home, tmp_path):
    values = at_home("nonlinear probing")
    few, many = (pd.DataFrame(execute(METHODS["probing"], values | {"cf_num_epochs": steps}, tmp_path / str(steps)))
                 for steps in (10, 100))
    assert few["test_acc"].equals(many["test_acc"])
    assert not few["counterfactual_average_logit_diff"].equals(many["counterfactual_average_logit_diff"])


@pytest.mark.parametrize("change, kept, sublayers", [
    ({"random_init": True}, {"wte", "wpe"}, ()),
    ({"reinit_embeddings": True}, {"h", "ln_f"}, ()),
    ({"random_init": True, "reinit_embeddings": True}, set(), ()),
    ({"layer_reinit": 0}, {"wte", "wpe", "ln_f"}, ()),
    ({"layer_reinit": True}, {"wte", "wpe", "ln_f"}, ("attn", "mlp")),
    ({"layer_reinit": False}, {"wte", "wpe", "ln_f", "h"}, ()),
])
def test_what_a_control_leaves_of_a_model(change, kept, sublayers, at_home):
    """Weights that are not drawn or shuffled anew are the saved ones to the bit; biases and norms start alike."""
    config = CIRCUITS.schema(**at_home("circuit probing") | change)
    settings = expand_settings(config)
    saved = dict(load_model("", config.model_path, DEVICE).transformer.named_parameters())
    study = CIRCUITS.prepare(config, settings, DEVICE)
    for model, _, [setting, *others] in study.models(settings):
        assert bool(others) != bool(sublayers)  # each sublayer in a model of its own, where one is shuffled
        for name, weight in model.model.transformer.named_parameters():
            own = name.split(".")[2] if name.startswith("h.") else name
            changed = name.split(".")[0] not in kept and (not sublayers or own == setting.operation)
            assert weight.dim() == 2 or not sublayers or torch.equal(weight, saved[name])
            if weight.dim() == 2:
                assert torch.equal(weight, saved[name]) != changed, (name, setting.operation)
                assert not sublayers or torch.equal(weight.flatten().sort().values, saved[name].flatten().sort().values)


def test_two_names_of_one_key_are_refused_together(at_home, tmp_path):
    values = at_home("DAS") | {"train_data_path": "data/other.csv"}
    with pytest.raises(BadInput, match="the key 'train_path': .*; did you mean 'train_data_path'"):
        load_config(write_yaml(tmp_path / "c.yaml", values), METHODS["DAS"].schema)
    with pytest.raises(BadInput, match=r"transfer: true needs the key 'model_path'"):
        load_config(write_yaml(tmp_path / "c.yaml", {
            key: value for key, value in at_home("transfer").items() if key != "model_path"}), TRAINING.schema)
