"""A tiny trained model and its data, made once by the real command line."""

import csv
import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor
from transformers import GPT2LMHeadModel

os.environ["HF_HUB_OFFLINE"] = "1"

import amnesic_probing
import circuit_probing
import compare_methods
import DAS
import generate_language_data
import probing
import train_algorithmic_models
import train_known_models
from analysis.tables import run as run_analysis
from interp.experiment import Script, main
from interp.models.family import family_of
from interp.models.loading import load_model
from interp.models.open_model import OpenModel
from language_model import completed_sentences, make_language_model, save_random_model, word_level_tokenizer

TRAINING = train_algorithmic_models.SCRIPT
KNOWN = train_known_models.SCRIPT
SENTENCES = generate_language_data.SCRIPT
CIRCUITS = circuit_probing.SCRIPT
COMPARISON = compare_methods.SCRIPT
METHODS = {"probing": probing.SCRIPT, "amnesic_probing": amnesic_probing.SCRIPT, "DAS": DAS.SCRIPT}
SCRIPTS = METHODS | {"circuit_probing": CIRCUITS, "compare_methods": COMPARISON}  # that look into a model

DEVICE = torch.device("cpu")  # what tests compute on

SENTENCE_FILES = {"agreement": ("SV_Agr", "SV_Agr_gen"), "reflexive": ("Reflexive_An", "Reflexive_An_gen"),
                  "syntactic_number": ("Syntactic_Number", None)}


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="what the tests compute on: cpu, cuda, cuda:1")


def pytest_configure(config):
    """Scripts that tests start take `auto`: CUDA where there is one, unless tests are to be on the CPU."""
    global DEVICE
    DEVICE = torch.device(config.getoption("--device"))
    if DEVICE.type == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        raise pytest.UsageError(f"--device {DEVICE}: there is no CUDA on this machine.")


def write_yaml(path: Path, values: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def rows_of(file: Path, drop: str = "seconds") -> list[dict]:
    with open(file, newline="") as table:
        return [{key: value for key, value in row.items() if key != drop} for row in csv.DictReader(table)]


def execute(script: Script, values: dict, folder: Path, *options: str) -> list[dict]:
    """A script's command line; its results, in a folder of their own."""
    config = write_yaml(folder.with_suffix(".yaml"), values | {"results_dir": str(folder)})
    assert main(script, ["--config", str(config), *options]) == 0
    return rows_of(folder / "results.csv")


def opened_model(path: Path | str) -> OpenModel:
    model = load_model("model", str(path), DEVICE)
    return OpenModel(model, family_of(model.config))


def tokens_of(column: pd.Series) -> Tensor:
    """A column of sequences as token ids, (rows, positions)."""
    return torch.tensor([list(map(int, row.split())) for row in column])


class Plain:
    """The tiny model at its last position, by nothing but its own modules: what scripts' figures are compared with."""

    def __init__(self, path: str):
        self.model = GPT2LMHeadModel.from_pretrained(path).eval().requires_grad_(False)
        [self.block] = self.model.transformer.h

    def at(self, location: str, tokens: Tensor) -> Tensor:
        """The residual stream after attention (resid_mid) or after the MLP (resid_post), (rows, d_model)."""
        return self.read(self.block.ln_2 if location == "resid_mid" else self.model.transformer.ln_f, tokens)

    def read(self, module: torch.nn.Module, tokens: Tensor, output: bool = False) -> Tensor:
        """What a module reads or gives, (rows, d_model)."""
        found: list[Tensor] = []
        handle = module.register_forward_hook(
            lambda module, arguments, result: found.append(result if output else arguments[0]))
        self.model(tokens)
        handle.remove()
        return (found[0][0] if isinstance(found[0], tuple) else found[0])[:, -1]

    def above(self, location: str, stream: Tensor) -> Tensor:
        """The logits that follow from it, (rows, vocabulary)."""
        if location == "resid_mid":
            stream = stream + self.block.mlp(self.block.ln_2(stream))
        return self.model.lm_head(self.model.transformer.ln_f(stream))


def training_values(folder: Path) -> dict:
    return {
        "intermediate_functions": [["a2", 0, 1], ["b_identity", 0, 1]],
        "auxiliary_functions": [["a_plus_b", 0, 1]],
        "counterfactual_label_functions": [["var_0", "counter_var_1", "+"], ["counter_var_0", "var_1", "+"]],
        "mod": 11, "train_frac": 0.7, "n_positions": 3, "n_embd": 16, "n_head": 2, "n_inner": 32,
        "lr_list": [0.01], "wd": 0.1, "num_epochs": 150, "checkpoint_every": 50, "save_checkpoints": [100],
        "data_dir": str(folder / "data"), "model_dir": str(folder / "models"),
        "results_dir": str(folder / "training"),
    }


def made_by_training(folder: Path) -> dict:
    return {f"{split}_data_path": str(folder / f"data/{split}.csv") for split in ("train", "test")} | {
        "model_path": str(folder / "models/model_LR_0.01_Seed_0_final")}


def circuit_values(folder: Path) -> dict:
    return made_by_training(folder) | {
        "variable": "var_0", "target_layer_list": [0], "probe_index_list": [2], "operation_list": ["attn", "mlp"],
        "lr_list": [0.01], "batch_size_list": [20], "mask_init_list": [0.0], "num_epochs": 5,
        "max_temp": 200, "l0_lambda": 1e-5, "num_random_ablations": 2, "save_models": True,
        "model_dir": str(folder / "circuits"), "results_dir": str(folder / "probing"),
    }


def method_values(folder: Path) -> dict[str, dict]:
    """Configs of the other methods on the tiny model, by script."""
    both = {"variable": "var_0", "residual_location_list": ["resid_mid", "resid_post"]}
    values = {
        "probing": both | {
            "lr_list": [0.1], "batch_size_list": [20], "num_epochs": 20, "intermediate_size": -1, "n_classes": 11,
            "counterfactual_embeddings": True, "counterfactual_variable": "counter_var_0",
            "counterfactual_label": "CF_Label_1", "cf_num_epochs": 20, "save_examples": True},
        "amnesic_probing": both,
        "DAS": {"counterfactual_label": ["CF_Label_0"], "n_train": 50, "n_val": 20, "location_list": ["attn", "mlp"],
                "token_range": "2_3", "batch_size_list": [25], "epochs": 10}}
    return {name: made_by_training(folder) | own | {"results_dir": str(folder / name)} for name, own in values.items()}


QUICK = {  # fits that take no time
    "linear_probe": {"num_epochs": 10}, "mlp_probe": {"num_epochs": 10}, "das": {"epochs": 3, "batch_size": 20},
    "das_k": {"epochs": 3, "batch_size": 20}, "neuron_mask": {"epochs": 3, "batch_size": 20},
    **dict.fromkeys(("circuit_update", "circuit_complement", "circuit_neurons", "circuit_selected"),
                    {"num_epochs": 3, "lr": 0.01})}


def comparison_values(folder: Path) -> dict:
    """A config of the comparison on the tiny model."""
    return made_by_training(folder) | {
        "residual_location_list": ["resid_mid"], "variable_list": ["var_0", "var_1"], "method_list": ["full", "lda"],
        "counterfactual_labels": {"var_0": ["counter_var_0", "var_1", "+"], "var_1": "CF_Label_0"},
        "n_fit": 50, "n_select": 20, "num_random_draws": 2, "method_options": QUICK,
        "results_dir": str(folder / "comparison")}


def language_values(language, folder: Path, task: str = "agreement") -> dict:
    """A config of circuit probing on the small language model."""
    data, gen = SENTENCE_FILES[task]
    return {
        "task": task, "variable": "object labels" if task == "syntactic_number" else "labels",
        "data_path": str(language.data / f"{data}.csv"), "gen_path": gen and str(language.data / f"{gen}.csv"),
        "model_path": str(language.model), "train_size": 500, "test_size": 300, "target_layer_list": [0, 1],
        "operation_list": ["attn", "mlp"], "lr_list": [0.01], "batch_size_list": [250], "mask_init_list": [0.0],
        "num_epochs": 20, "max_temp": 200, "l0_lambda": 1e-5, "num_random_ablations": 5,
        "results_dir": str(folder / task)}


def papers_table(name: str, language) -> pd.DataFrame:
    """A file of ours as the paper's repository has it."""
    table = pd.read_csv(language.data / f"{name}.csv")
    if not name.startswith("Reflexive"):
        return table.drop(columns=["right", "wrong"])
    right, wrong = (table["sentence"] + " " + table[column] for column in ("right", "wrong"))
    return pd.DataFrame({"sentence": right, "labels": table["labels"], "ungrammatical": wrong,
                         "gender": (table["group"] == "feminine").astype(int)})


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> SimpleNamespace:
    """The folder of a finished training run; tests read it and write elsewhere."""
    folder = tmp_path_factory.mktemp("tiny")
    execute(TRAINING, training_values(folder), folder / "training")
    training, circuits, methods = training_values(folder), circuit_values(folder), method_values(folder)
    values = {TRAINING: training, CIRCUITS: circuits, COMPARISON: comparison_values(folder)} | {
        METHODS[name]: methods[name] for name in METHODS}
    return SimpleNamespace(folder=folder, training=training, circuits=circuits, methods=methods, values=values)


@pytest.fixture(scope="session")
def language(tmp_path_factory) -> SimpleNamespace:
    """The folders of the sentences and of a small GPT-2 that has learned them; tests read and write elsewhere."""
    folder = tmp_path_factory.mktemp("language")
    execute(SENTENCES, {"data_dir": str(folder / "data"), "mark": False}, folder / "sentences")
    make_language_model(folder / "model", completed_sentences())
    return SimpleNamespace(folder=folder, data=folder / "data", model=folder / "model")


def sentences_of(others: tuple[str, ...]) -> pd.DataFrame:
    """the NOUN near the OTHER: what follows agrees with the noun."""
    rows = [(f"the {noun}{'s' * plural} near the {other}", ("is", "are")[plural], ("are", "is")[plural], plural)
            for noun in ("author", "pilot", "skater") for plural in (0, 1) for other in others]
    return pd.DataFrame(rows, columns=["sentence", "right", "wrong", "labels"])


@pytest.fixture(scope="session")
def sentences(tmp_path_factory) -> SimpleNamespace:
    """Files of sentences, and saved random models that know their words."""
    folder = tmp_path_factory.mktemp("families")
    tables = {"data": sentences_of(("book", "books", "game", "games")), "gen": sentences_of(("poem",))}
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    words = [*pd.concat(tables.values())["sentence"], "is are"]

    def saved(kind: str) -> Path:
        return folder / kind if (folder / kind).exists() else save_random_model(folder / kind, kind, words)

    return SimpleNamespace(folder=folder, gen=tables["gen"], tokenizer=word_level_tokenizer(words), saved=saved)


def sentence_jobs(sentences, kind: str, folder: Path, middle: bool = True) -> dict:
    """Quick configs of the four methods on such a model, by script, with results in folders called like it.

    middle: the model has a residual stream between its sublayers.
    """
    common = {"task": "sentences", "data_path": str(sentences.folder / "data.csv"),
              "gen_path": str(sentences.folder / "gen.csv"), "model_path": str(sentences.saved(kind)),
              "train_size": 18, "test_size": 6, "target_layer_list": [0]}
    probes = {"residual_location_list": [*["resid_mid"] * middle, "resid_post"], "lr_list": [0.1], "num_epochs": 3}
    values = {
        probing: probes | {"batch_size_list": [9], "counterfactual_embeddings": True, "cf_num_epochs": 3},
        amnesic_probing: probes,
        DAS: {"location_list": ["attn"] * middle + ["mlp"], "n_train": 12, "n_val": 6, "batch_size_list": [6],
              "epochs": 2},
        circuit_probing: {"operation_list": ["attn", "mlp"], "lr_list": [0.1], "batch_size_list": [9],
                          "mask_init_list": [0.0], "num_epochs": 3, "max_temp": 20, "l0_lambda": 1e-5,
                          "save_models": True, "model_dir": str(folder / "circuits")}}
    return {script: common | of_script | {"results_dir": str(folder / script.__name__)}
            for script, of_script in values.items()}


@pytest.fixture
def analyse(monkeypatch, capsys):
    """An analysis script's command line, without the seconds that a process of its own needs to start.

    It ends well, or, where a phrase of its refusal is given, in one sentence and status 2; what is missing may be said.
    """
    def run(script: str, *arguments, refusal: str | None = None) -> SimpleNamespace:
        monkeypatch.chdir("/")
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            run_analysis(script, importlib.import_module(f"analysis.{script}").main)
        except SystemExit as ended:
            status = ended.code
        said = capsys.readouterr()
        assert status == (0 if refusal is None else 2), said.err
        sentences = [line for line in said.err.splitlines() if not line.startswith("missing: ")]
        assert refusal is None or len(sentences) == 1 and refusal in sentences[0], said.err
        return SimpleNamespace(stdout=said.out, stderr=said.err)
    return run


@pytest.fixture
def refused(tmp_path, capsys):
    """A script's command line refuses a config in one sentence that has some words, and writes nothing."""
    def refused(script: Script, values: dict, words: list[str], *options: str, beside: Path | None = None) -> None:
        config = write_yaml(tmp_path / "refused.yaml", values | {"results_dir": str(tmp_path / "never")})
        folders = [tmp_path, *[beside] * (beside is not None)]
        before = [modified(folder) for folder in folders]
        capsys.readouterr()
        assert main(script, ["--config", str(config), *options]) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1 and all(word in said for word in words), said
        assert [modified(folder) for folder in folders] == before
    return refused


def modified(folder: Path) -> dict[Path, int]:
    """When each file and folder in it was last written."""
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
