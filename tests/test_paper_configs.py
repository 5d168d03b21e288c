"""Configs with the keys and values of the paper's YAML files: each is read for what it means there, and runs."""

import pandas as pd
import pytest
import torch

from conftest import CIRCUITS, DEVICE, METHODS, TRAINING, language_values, papers_table, rows_of, write_yaml
from interp.experiment import main
from interp.models.loading import load_model
from interp.runs.config import BadInput, load_config
from interp.runs.settings import expand_settings

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
SENTENCES = CIRCUIT | {"train_size": 2000, "test_size": 1000, "target_layer_list": list(range(12)),
                       "l0_lambda": 1e-7, "model_path": "gpt2"}
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
    "agreement": (CIRCUITS, SENTENCES | {"task": "agreement", "data_path": "data/SV_Agr.csv",
                                         "gen_path": "data/SV_Agr_gen.csv"}),
    "reflexive": (CIRCUITS, SENTENCES | {"task": "reflexive", "data_path": "data/Reflexive_An.csv",
                                         "gen_path": "data/Reflexive_An_gen.csv"}),
    "syntactic number": (CIRCUITS, SENTENCES | {"task": "syntactic_number", "data_path": "data/Syntactic_Number.csv"}),
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
MEANS = {
    "linear probing": {"layer_reinit": False, "random_init": False, "reinit_embeddings": False, "data_seed": 0,
                       "counterfactual_embeddings": False, "n_classes": 113, "target_position_list": [2]},
    "nonlinear probing": {"layer_reinit": False, "random_init": False, "cf_num_epochs": 10, "intermediate_size": 256},
    "amnesic probing": {"layer_reinit": False, "random_init": False, "data_seed": 0, "n_classes": 113,
                        "precision_list": ["float64"]},
    "circuit probing": {"layer_reinit": False, "train_size": 2500, "of_sentences": False, "variable_name": "var_0"},
    "agreement": {"variable_name": "labels", "layer_reinit": False, "of_sentences": True},
    "reflexive": {"variable_name": "labels", "layer_reinit": False, "of_sentences": True},
    "syntactic number": {"variable_name": "object labels", "layer_reinit": False, "of_sentences": True},
    "DAS": {"train_data_path": DATA["train_data_path"], "test_data_path": DATA["test_data_path"], "epochs": 250,
            "token_range": "2_3", "counterfactual_label": "CF_Label_0"},
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
        if "task" in values and "data_path" in values:
            own = language_values(language, tmp_path, values["task"])
            for key in {"data_path", "gen_path"} & set(values):
                name = own[key].rsplit("/", 1)[1]
                papers_table(name.removesuffix(".csv"), language).to_csv(tmp_path / name, index=False)
                own[key] = str(tmp_path / name)
        else:
            own = tiny.circuits | {
                "train_path": tiny.circuits["train_data_path"], "test_path": tiny.circuits["test_data_path"],
                "data_dir": str(tmp_path / "data"), "model_dir": str(tmp_path / "models")}
        own["results_dir"] = str(tmp_path / "run")
        paths = {key: own[key] for key in values if key.endswith(("_path", "_dir"))}
        small = SMALL | (SMALL_LANGUAGE if "data_path" in values else {})
        return values | paths | {key: value for key, value in small.items() if key in values}
    return at_home


def run(script, config, folder) -> list[dict]:
    assert main(script, ["--config", str(config), "--set", f"results_dir={folder}"]) == 0
    return rows_of(folder / "results.csv")


@pytest.mark.parametrize("family", PAPER)
def test_a_config_of_the_paper_runs_to_its_table(family, at_home, tmp_path):
    """And what it says besides changes nothing: controls that are off, a name of the same key, a default."""
    (script, _), values = PAPER[family], at_home(family)
    rows = run(script, write_yaml(tmp_path / "paper.yaml", values), tmp_path / "paper")
    assert len(rows) == len(expand_settings(script.schema(**values))) >= 2
    other = {RENAMED.get(family, {}).get(key, key): value
             for key, value in (values | SAME.get(family, {})).items() if value is not None}
    assert rows == run(script, write_yaml(tmp_path / "other.yaml", other), tmp_path / "other")
    if family == "transfer":
        assert [row["start"] for row in rows] == ["fresh", "transfer"] and rows[0]["train_acc"] != rows[1]["train_acc"]


def test_fewer_steps_of_a_counterfactual_embedding_are_other_embeddings(at_home, tmp_path):
    values = at_home("nonlinear probing")
    tables = {steps: pd.DataFrame(run(METHODS["probing"], write_yaml(
        tmp_path / f"{steps}.yaml", values | {"cf_num_epochs": steps}), tmp_path / str(steps))) for steps in (10, 100)}
    assert tables[10]["test_acc"].equals(tables[100]["test_acc"])
    assert not tables[10]["counterfactual_average_logit_diff"].equals(
        tables[100]["counterfactual_average_logit_diff"])


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
