"""Every mistake ends in one sentence that names key, file or setting, with status 2 and nothing written."""

import io
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2LMHeadModel

from conftest import CIRCUITS, COMPARISON, METHODS, TRAINING, execute, write_yaml
from interp.experiment import main
from interp.methods.das import load_alignment
from interp.methods.interchange.registry import load_interchange
from interp.methods.masks import l0, load_circuit
from interp.runs.config import BadInput
from language_model import random_model

LARGE = {"train_data_path": "LARGE TRAIN", "test_data_path": "LARGE TEST"}  # has aux_9, from 500, and aux_8, from -1
MISTAKES = {  # by script; what is in capitals is a file
    TRAINING: {
        "unknown variable": ({"intermediate_functions": [["a3", 0, 1]]}, ["[a3, 0, 1]", "a4, b_identity"]),
        "a variable without its positions": ({"intermediate_functions": [["a2", 0]]}, ["'intermediate_functions.0.2'"]),
        "position of the = token": ({"intermediate_functions": [["a2", 0, 2]]}, ["[a2, 0, 2]", "position 2"]),
        "no variable": ({"intermediate_functions": []}, ["intermediate_functions"]),
        "rule on a missing column": ({"counterfactual_label_functions": [["var_0", "var_7", "+"]]}, ["var_7"]),
        "rule with another operation": ({"counterfactual_label_functions": [["var_0", "var_1", "-"]]}, ["+ and *"]),
        "heads that do not divide the width": ({"n_head": 3}, ["n_embd", "n_head"]),
        "context too short": ({"n_positions": 2}, ["n_positions"]),
        "checkpoint never reached": ({"save_checkpoints": [999]}, ["save_checkpoints", "999"]),
        "transfer without a model": ({"start_list": ["transfer"]}, ["'transfer'"]),
        "transfer from another shape": ({"transfer": "MODEL", "n_inner": 64}, ["transfer", "n_inner", "32"]),
        "transfer of another family": ({"transfer": "LLAMA"}, ["transfer", "'llama'", "GPT-2"]),
        "transfer with dropout": ({"transfer": "DROPOUT"}, ["transfer", "resid_pdrop 0.1", "without dropout"]),
        "a branch of a type": ({"transfer": 5}, ["the key 'transfer': Input should be a valid string"]),
        "layers that no machine has": ({"n_layer": 100000}, ["n_layer", "less than or equal to 1000"]),
        "a width that no machine has": ({"n_embd": 2**20}, ["n_embd", "a training of at least", "GiB"]),
        "other data in place": ({"data_seed": 1}, ["data_dir", "train.csv"]),
    },
    CIRCUITS: {
        "missing data file": ({"test_data_path": "data/Disambiguation/nothing.csv"},
                              ["test_data_path", "nothing.csv", "Disambiguation/a2_minus_b2.yaml makes it"]),
        "missing model": ({"model_path": "Models/Disambiguation/none"},
                          ["model_path", "Models/Disambiguation/none", "Disambiguation/a2_minus_b2.yaml"]),
        "variable is no column": ({"variable": "var_00"}, [
            "'var_00'", "train.csv", "did you mean 'var_0'", "; there are data, labels"]),
        "variable is no number": ({"variable": "CF_FN_0"}, ["CF_FN_0", "whole numbers"]),
        "a class below 0": (LARGE | {"variable": "aux_8"}, ["variable", "'aux_8' goes from -1", "from 0"]),
        "layer the model lacks": ({"target_layer_list": [1]}, ["target_layer_list", "layer 1", "has 1"]),
        "layer to re-initialise": ({"layer_reinit": 4}, ["layer_reinit", "layer 4"]),
        "position beyond the sequence": ({"probe_index_list": [3]}, ["position_list", "3"]),
        "unknown operation": ({"operation_list": ["attention"]}, ["operation_list", "'attn' or 'mlp'"]),
        "batch larger than train": ({"batch_size_list": [500]}, ["batch_size_list", "500"]),
        "circuits without a folder": ({"model_dir": None}, ["model_dir"]),
        "sweep that is not in the path": ({"checkpoint_list": [1]}, ["checkpoint_list", "{checkpoint}"]),
        "placeholder without a sweep": ({"model_path": "m_{checkpoint}"}, ["model_path", "{checkpoint}"]),
        "unknown placeholder": ({"model_path": "m_{seed}"}, ["model_path", "{seed}"]),
        "two tasks without their data": ({"task": "multitask"}, ["lm_same_task_path", "lm_different_task_path"]),
        "a key of sentences": ({"answer_prefix": ""}, ["'answer_prefix'", "no effect"]),
        "a language task without sentences": ({"task": "agreement"}, ["'data_path'", "'agreement'"]),
        "a branch of a type": ({"checkpoint_list": [1.5]}, ["the key 'checkpoint_list.0': Input"]),
    },
    METHODS["probing"]: {
        "unknown location": ({"residual_location_list": ["resid"]}, ["residual_location_list", "resid_mid"]),
        "too few classes": ({"n_classes": 5}, ["n_classes", "var_0", "5"]),
        "negative hidden layer": ({"intermediate_size": -2}, ["intermediate_size"]),
        "no counterfactual label": ({"counterfactual_label": None}, ["counterfactual_label"]),
        "label beyond vocabulary": (
            LARGE | {"counterfactual_label": "aux_9"}, ["train_data_path", "aux_9", "vocabulary"]),
        "learning rate beyond float32": ({"cf_lr": 1e38}, ["cf_lr"]),
        "label that never changes": ({"counterfactual_label": "labels"}, ["counterfactual_label", "no row"]),
        "position beyond the sequence": ({"target_position_list": [7]}, ["position_list", "7"]),
        "batch larger than train": ({"batch_size_list": [500]}, ["batch_size_list", "500"]),
        "missing column": ({"counterfactual_variable": "counter_var", "other_counterfactual": True},
                           ["'counter_var'", "did you mean"]),
        "counterfactual of another variable": (
            {"counterfactual_variable": "counter_var_1"}, ["counterfactual_variable", "counter_var_0", "other"]),
    },
    METHODS["amnesic_probing"]: {
        "one value of a list": ({"lr": 0.1}, ["the key 'lr'", "did you mean 'lr_list'"]),
        "second task without data": ({"multitask": True}, ["t2_train_data_path"]),
        "missing data of the second task": (
            {"multitask": True, "t2_train_data_path": "no.csv", "t2_test_data_path": "no.csv"}, ["t2_train_data_path"]),
        "layer the model lacks": ({"target_layer_list": [1]}, ["target_layer_list", "layer 1"]),
        "a test file of one row": ({"test_data_path": "ONE ROW"}, ["test_data_path", "two rows"]),
        "more classes than examples": (LARGE | {"variable": "aux_9"}, ["variable", "aux_9", "84"]),
    },
    METHODS["DAS"]: {
        "two labels": ({"counterfactual_label": ["CF_Label_0", "CF_Label_1"]}, ["counterfactual_label", "one"]),
        "a range without quotes": ({"token_range": 23}, ["token_range", "quotes"]),
        "a range of two positions": ({"token_range": "1_3"}, ["token_range", "1_3"]),
        "position beyond the sequence": ({"token_range": "3_4"}, ["position_list", "3"]),
        "more examples than there are": ({"n_train": 80}, ["n_train", "n_val"]),
        "alignments without a folder": ({"save_models": True}, ["model_dir"]),
        "label that is no token": ({"counterfactual_label": "counter_aux_9"}, ["'counter_aux_9'"]),
    },
    COMPARISON: {
        "wrong option": ({"method_options": {"das": {"epochs": 0}}},
                         ["'epochs'", "'das'", "greater than or equal to 1"]),
        "unknown method": ({"method_list": ["lad"]}, ["method", "'lad'", "did you mean 'lda'"]),
        "unknown option": ({"method_options": {"das": {"epoch": 3}}}, ["'das'", "'epoch'", "epochs"]),
        "no label": ({"counterfactual_labels": {}}, ["counterfactual_labels", "var_0"]),
        "unknown truth": ({"ground_truth": {"var_0": []}}, ["ground_truth", "var_1"]),
        "too many rows": ({"n_fit": 5000}, ["n_fit", "5000"]),
        "label that is no column": (
            {"counterfactual_labels": {"var_0": "CF_9", "var_1": "CF_9"}}, ["CF_9", "train.csv"]),
        "rule that is none": (
            {"counterfactual_labels": {"var_0": ["a", "b", "-"], "var_1": "CF_Label_0"}}, ["'-'"]),
        "variable without its source's": (
            {"variable_list": ["labels"], "counterfactual_labels": {"labels": "CF_Label_0"}}, ["counter_labels"]),
        "source in neither file": ({"test_data_path": "A SOURCE"}, ["only_right", "'10 10 10'"]),
    },
}


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory) -> dict[str, str]:
    """Data and models that mistakes are made with, by their names in capitals."""
    folder, (train, test) = tmp_path_factory.mktemp("files"), tables_of(tiny)
    tables = {"ONE ROW": test[:1], "A SOURCE": test.assign(counterfactual_data="10 10 10")} | {
        f"LARGE {name}": table.assign(aux_9=500 + table["var_0"], aux_8=table["var_0"] - 1)
        for name, table in (("TRAIN", train), ("TEST", test))}
    for name, table in tables.items():
        table.to_csv(folder / name)
    replace_in(copied_model(tiny, folder / "DROPOUT") / "config.json", '"resid_pdrop": 0.0', '"resid_pdrop": 0.1')
    random_model("llama").save_pretrained(folder / "LLAMA")
    return {path.name: str(path) for path in folder.iterdir()} | {"MODEL": tiny.circuits["model_path"]}


def tables_of(tiny) -> list[pd.DataFrame]:
    return [pd.read_csv(tiny.folder / f"data/{name}.csv", index_col=0) for name in ("train", "test")]


def write_data(folder: Path, train: pd.DataFrame, test: pd.DataFrame) -> dict[str, str]:
    """Write the tables; returns the keys that name them."""
    train.to_csv(folder / "train.csv")
    test.to_csv(folder / "test.csv")
    return {f"{name}_data_path": str(folder / f"{name}.csv") for name in ("train", "test")}


def copied_model(tiny, folder: Path) -> Path:
    return Path(shutil.copytree(tiny.circuits["model_path"], folder))


def replace_in(file: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize("script, mistake", [(script, mistake) for script in MISTAKES for mistake in MISTAKES[script]],
                         ids=lambda part: getattr(part, "name", part))
def test_a_wrong_config_is_refused(script, mistake, tiny, files, refused):
    changes, words = MISTAKES[script][mistake]
    changes = {key: files.get(value, value) if isinstance(value, str) else value for key, value in changes.items()}
    refused(script, tiny.values[script] | changes, words, beside=tiny.folder)


@pytest.mark.parametrize("change, words", [
    (lambda train, test: (train[train["var_0"] != 3], test), ["variable", "class 3", "'var_0'", "training data"]),
    (lambda train, test: (train.assign(var_0=1), test.assign(var_0=1)), ["var_0", "single value"]),
    (lambda train, test: (train, test[:0]), ["test_data_path", "no rows"]),
    ("99 2 11", ["test_data_path", "99"]), ("-1 2 11", ["test_data_path", "-1"]),  # none of the vocabulary
    ("2 11", ["'data'", "test.csv"]),  # of another length
], ids=["class without an example", "a single class", "no rows", "large token", "negative token", "short row"])
def test_circuit_probing_refuses_data(change, words, tiny, tmp_path, refused):
    train, test = tables_of(tiny)
    if isinstance(change, str):
        test.loc[0, "data"] = change
    else:
        train, test = change(train, test)
    paths = write_data(tmp_path, train, test)
    refused(CIRCUITS, tiny.circuits | paths | {"batch_size_list": [5]}, words, beside=tiny.folder)


def runs_code(model: Path) -> None:
    (model / "model.safetensors").unlink()
    torch.save({"weight": RunsCode()}, model / "pytorch_model.bin")


class RunsCode:
    def __reduce__(self):
        return print, ("code was run",)


WEIGHTS = "model.safetensors"
MODELS = {  # what is done to a model's folder
    "no weights": (lambda model: (model / WEIGHTS).unlink(), ["weights", "missing"]),
    "half a weight file": (lambda model: (model / WEIGHTS).write_bytes((model / WEIGHTS).read_bytes()[:3000]),
                           ["weights", "damaged"]),
    "no config": (lambda model: (model / "config.json").unlink(), ["config.json"]),
    "another architecture": (lambda model: (model / "config.json").write_text('{"model_type": "t5"}'), ["'t5'"]),
    "weights of another model": (lambda model: save_file({"foo": torch.zeros(2)}, model / WEIGHTS), ["lack", "wte"]),
    "weights of another shape": (lambda model: replace_in(
        model / "config.json", '"n_positions": 3', '"n_positions": 4'), ["shape", "config.json"]),
    "impossible config": (lambda model: replace_in(
        model / "config.json", '"n_head": 2', '"n_head": 3'), ["config.json", "do not fit"]),
    "negative heads": (lambda model: replace_in(
        model / "config.json", '"n_head": 2', '"n_head": -2'), ["config.json", "n_head -2"]),
    "a pickle that runs code": (runs_code, ["code in it is not run"]),
    "blocks that do more than add": (lambda model: random_model(
        "opt", do_layer_norm_before=False).save_pretrained(model), ["'opt'", "do more"]),
}


@pytest.mark.parametrize("mistake", MODELS)
def test_circuit_probing_refuses_models(mistake, tiny, tmp_path, refused):
    damage, words = MODELS[mistake]
    model = copied_model(tiny, tmp_path / "model")
    damage(model)
    refused(CIRCUITS, tiny.circuits | {"model_path": str(model)}, ["model_path", *words], beside=tiny.folder)


def test_weights_that_are_no_numbers_are_refused_when_a_model_is_opened(tiny, tmp_path, capsys):
    model = GPT2LMHeadModel.from_pretrained(tiny.circuits["model_path"])
    with torch.no_grad():
        model.transformer.wpe.weight[1, 1] = float("nan")
    model.save_pretrained(tmp_path / "model")
    config = write_yaml(tmp_path / "c.yaml", tiny.circuits | {
        "model_path": str(tmp_path / "model"), "results_dir": str(tmp_path / "run"), "save_models": False})
    assert main(CIRCUITS, ["--config", str(config)]) == 2
    assert "model_path: transformer.wpe.weight of" in capsys.readouterr().err.strip().splitlines()[-1]


def saved(content) -> bytes:
    """A file of torch's that holds what a training does not write."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.mark.parametrize("content", [saved({"weights": torch.zeros(1)}), saved(torch.zeros(2)), b"half",
                                     saved({"epoch": 150, "curve": [{"epoch": 150}]})])
def test_a_damaged_state_is_named_and_left_alone(content, tiny, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(tiny.training["results_dir"], run)
    shutil.rmtree(run / "settings")
    (run / "results.csv").unlink()
    state = run / "state_model_seed_0_lr_0.01.pt"
    state.write_bytes(content)
    config = write_yaml(tmp_path / "c.yaml", tiny.training | {"results_dir": str(run)})
    assert main(TRAINING, ["--config", str(config)]) == 2
    assert f"{state} is damaged; move it away" in capsys.readouterr().err.strip().splitlines()[-1]
    assert state.read_bytes() == content


@pytest.mark.parametrize("script, changes, advice", [
    (CIRCUITS, {"l0_lambda": 1e30}, "a smaller l0_lambda."),  # of a sublayer with so many weights
    (TRAINING, {"wd": 1e30}, "a smaller wd."),
    (TRAINING, {"lr_list": [1e30]}, "a smaller value in lr_list."),
])
def test_a_loss_that_is_no_number_fails_with_the_key_to_blame(
        script, changes, advice, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("interp.methods.circuits.l0", lambda masks, fan_in: 1e9 * l0(masks, fan_in))
    config = write_yaml(tmp_path / "c.yaml", tiny.values[script] | changes | {
        "results_dir": str(tmp_path / "run"), "model_dir": str(tmp_path / "models"), "save_models": False})
    assert main(script, ["--config", str(config)]) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith(f"try {advice}")
    assert json.loads((tmp_path / "run/run.json").read_text())["sessions"][0]["status"] == "failed"
    assert not (tmp_path / "run/results.csv").exists()


def test_data_that_a_run_does_not_read_may_be_missing(tiny, tmp_path):
    for script, own, unread in ((METHODS["amnesic_probing"], tiny.methods["amnesic_probing"], "t2_test_data_path"),
                                (CIRCUITS, tiny.circuits | {"save_models": False}, "lm_same_task_path")):
        execute(script, own | {unread: "data/none.csv"}, tmp_path / unread)


CIRCUIT, ROTATION = {"attn": torch.ones(3)}, {"rotation": torch.eye(3), "width": torch.tensor(0.5)}
SUBSPACE, PROBE = {"right": torch.ones(3, 2), "left": torch.ones(2, 3)}, {
    "0.weight": torch.ones(4, 3), "0.bias": torch.ones(4), "2.weight": torch.ones(2, 4), "2.bias": torch.ones(2)}
LOADED = {"circuit": load_circuit, "alignment": load_alignment, "interchange": load_interchange}


@pytest.mark.parametrize("what, tensors, about, reason", [
    ("circuit", CIRCUIT, {"fan_in": {"attn": 2}}, None), ("alignment", ROTATION, {}, None),
    ("interchange", SUBSPACE, {"interchange": "pca", "rank": 2}, None),
    ("interchange", PROBE, {"interchange": "mlp_probe", "rank": None}, None),
    ("interchange", ROTATION, {"interchange": "das", "rank": 2}, None),
    *(("circuit", CIRCUIT, about, "") for about in (None, [], ["fan_in"], 1, "[" * 10000, {}, {"fan_in": None})),
    *(("circuit", {"attn": torch.tensor([1, number])}, {"fan_in": {"attn": 2}}, "'attn' holds what is no number")
      for number in (float("nan"), float("inf"))),
    ("circuit", CIRCUIT, {"fan_in": {"mlp": 2}}, "it should hold mlp"), ("circuit", {}, {"fan_in": {}}, "fan_in"),
    *(("circuit", CIRCUIT, {"fan_in": {"attn": count}}, "whole number") for count in (2.5, True, 0, "2")),
    ("circuit", {"attn": torch.ones(3, 1)}, {"fan_in": {"attn": 2}}, "the shape [3, 1] of 'attn'"),
    ("alignment", ROTATION | {"rotation": torch.ones(3, 3)}, {}, "not orthogonal"),
    ("alignment", ROTATION | {"rotation": torch.eye(3)[:2]}, {}, "the shape [2, 3] of 'rotation'"),
    ("alignment", ROTATION | {"width": torch.tensor(1.5)}, {}, "width 1.5"),
    ("interchange", SUBSPACE | {"left": torch.ones(3, 2)}, {"interchange": "pca", "rank": 2}, "'left'"),
    ("interchange", SUBSPACE, {"interchange": "pca", "rank": 3}, "rank is 3, not 2"),
    ("interchange", SUBSPACE, {"interchange": ["pca"], "rank": 2}, ""), ("interchange", SUBSPACE, {"rank": 2}, ""),
    ("interchange", SUBSPACE, {"interchange": "pca", "rank": 2, "fan_in": {}}, ""),
    ("interchange", PROBE | {"0.bias": torch.ones(3)}, {"interchange": "mlp_probe", "rank": None}, "'0.bias'")])
def test_what_is_saved_is_validated_when_it_is_loaded(what, tensors, about, reason, tmp_path):
    text = about if isinstance(about, str) else json.dumps(about)
    save_file(tensors, tmp_path / "x", {"about": text} if about is not None else None)
    if reason is None:
        return LOADED[what](tmp_path / "x")
    with pytest.raises(BadInput, match=re.escape(f"x is not a saved {what}{': ' if reason else ''}")) as refusal:
        LOADED[what](tmp_path / "x")
    assert reason in str(refusal.value) and len(str(refusal.value).splitlines()) == 1


OUT = {script: [] for script in ("summarize_disambiguation", "summarize_shared_nodes", "summarize_grokking",
                                 "summarize_agreement", "summarize_reflexives", "summarize_syntactic_number",
                                 "summarize_comparison")} | {
    "summarize_layers": ["--model", "x"], "summarize_across_models": ["--published", "none"],
    "summarize_model_overlap": ["--circuits", "a", "b"],
    "compare_with_published": ["--published", "none", "--experiment", "x"]}


@pytest.mark.parametrize("script", OUT)
def test_figures_that_cannot_be_written_are_refused_before_anything_is_read(script, tmp_path, analyse):
    (tmp_path / "file").write_text("mine")
    assert "--out" in analyse(script, *OUT[script], "--out", tmp_path / "file/x/y", refusal="is a file").stderr
