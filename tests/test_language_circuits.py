"""Circuit probing of sentences end to end, on a small GPT-2 that has learned the grammar."""

import csv
import shutil

import pandas as pd
import pytest
import torch

from conftest import CIRCUITS, DEVICE, SENTENCE_FILES, language_values, rows_of, write_yaml
from interp.experiment import main
from interp.methods.masks import load_circuit
from interp.models.family import family_of
from interp.models.loading import load_model, load_tokenizer
from interp.models.open_model import OpenModel
from interp.models.sublayers import find_sublayer, masked

SETS = {"agreement": ["iid", "gen"], "syntactic_number": ["iid"],
        "reflexive": ["iid_masculine", "iid_feminine", "gen_masculine", "gen_feminine"]}


def opened_model(language) -> OpenModel:
    model = load_model("", str(language.model), DEVICE)
    return OpenModel(model, family_of(model.config))


@pytest.mark.parametrize("task", SENTENCE_FILES)
def test_each_task_gives_a_row_for_each_sublayer_and_its_evaluation_sets(task, language, tmp_path):
    config = write_yaml(tmp_path / "c.yaml", language_values(language, tmp_path, task))
    assert main(CIRCUITS, ["--config", str(config)]) == 0
    rows = rows_of(tmp_path / task / "results.csv")
    assert [(row["target_layer"], row["operation"]) for row in rows] == [
        ("0", "attn"), ("0", "mlp"), ("1", "attn"), ("1", "mlp")]
    for row in rows:
        for name in SETS[task]:
            assert float(row[f"vanilla_acc_{name}"]) > 0.97
    ablations = rows_of(tmp_path / task / "ablations.csv")
    assert {row["evaluation"] for row in ablations} == set(SETS[task])
    said = rows_of(next((tmp_path / task / "qualitative").iterdir()))
    assert len(said) == 250 and all(len(row[key].split(" | ")) == 50 for row in said[:3] for key in ("before", "after"))


def test_some_circuit_holds_number_better_than_the_full_sublayer_and_the_model_needs_it(language, tmp_path):
    config = write_yaml(tmp_path / "c.yaml", language_values(language, tmp_path))
    assert main(CIRCUITS, ["--config", str(config)]) == 0
    table = pd.read_csv(tmp_path / "agreement/results.csv")
    for name, neighbors in (("iid", "knn_test_acc"), ("gen", "knn_gen_acc")):
        lost = table[f"vanilla_acc_{name}"] - table[f"ablated_acc_{name}"]
        lost_to_random = table[f"vanilla_acc_{name}"] - table[f"random_ablated_acc_{name}_mean"]
        spread = table[f"random_ablated_acc_{name}_std"]
        found = ((table[neighbors] >= 0.95) & (table[f"full_model_{neighbors}"] < table[neighbors] - 0.02)
                 & (lost > 0.1) & (lost > lost_to_random + 3 * spread))
        assert found.any(), table.to_string()


def test_ablated_accuracy_is_that_of_the_whole_model_on_whole_sentences(language, tmp_path):
    values = language_values(language, tmp_path, "reflexive") | {
        "target_layer_list": [1], "num_epochs": 5, "test_size": 250, "save_models": True,
        "model_dir": str(tmp_path / "circuits")}
    assert main(CIRCUITS, ["--config", str(write_yaml(tmp_path / "c.yaml", values))]) == 0
    tokenizer, opened = load_tokenizer("", str(language.model)), opened_model(language)
    sentences = pd.read_csv(language.data / "Reflexive_An.csv")
    for row in rows_of(tmp_path / "reflexive/results.csv"):
        [file] = (tmp_path / "circuits").glob(f"*{row['operation']}*")
        circuit, _ = load_circuit(file)
        said = rows_of(next((tmp_path / "reflexive/qualitative").glob(f"*{row['operation']}*")))
        shown = [line["sentence"] for line in said]  # the first test batch, here all there are
        hits = {"masculine": [], "feminine": []}
        with masked(find_sublayer(opened, 1, row["operation"]), circuit.ablation()):
            for line in sentences[sentences["sentence"].isin(shown)].itertuples():
                tokens = tokenizer(f"{line.sentence} {line.right} {line.wrong}", add_special_tokens=False)["input_ids"]
                logits = opened.model(torch.tensor([tokens])).logits[0, -3]
                hits[line.group].append(bool(logits[tokens[-2]] > logits[tokens[-1]]))
        for gender, answers in hits.items():
            assert len(answers) == 250
            assert float(row[f"ablated_acc_iid_{gender}"]) == pytest.approx(sum(answers) / 250)


def test_a_sentence_in_two_groups_is_probed_once(language, tmp_path):
    """As one whose second group was taken out of the file."""
    gen = pd.read_csv(language.data / "Reflexive_An_gen.csv")
    gen[gen["group"] == "masculine"].to_csv(tmp_path / "once.csv", index=False)
    tables = []
    for path in (language.data / "Reflexive_An_gen.csv", tmp_path / "once.csv"):
        values = language_values(language, tmp_path, "reflexive") | {
            "num_epochs": 5, "gen_path": str(path), "results_dir": str(tmp_path / path.stem)}
        assert main(CIRCUITS, ["--config", str(write_yaml(tmp_path / "c.yaml", values))]) == 0
        tables.append(pd.read_csv(tmp_path / path.stem / "results.csv")[["knn_gen_acc", "full_model_knn_gen_acc"]])
    assert tables[0].equals(tables[1]) and tables[0]["full_model_knn_gen_acc"].nunique() > 1


def test_layers_at_once_and_memory_change_how_many_passes_there_are_and_nothing_else(language, tmp_path, monkeypatch):
    """One pass for all layers that memory holds, or one for each."""
    passes, activations = [], OpenModel.activations

    def counted(model, examples, sites):
        if len(examples) > 100:  # not the few of which ways are compared
            passes.append({site.layer for site in sites})
        return activations(model, examples, sites)

    monkeypatch.setattr(OpenModel, "activations", counted)
    tables = {}
    for name, values, layers in (("all", {}, [{0, 1}]), ("one", {"layers_at_once": 1}, [{0}, {1}]),
                                 ("little", {"cache_gib": 1e-9}, [{0}, {1}])):
        passes.clear()
        values = language_values(language, tmp_path) | {"num_epochs": 5, "results_dir": str(tmp_path / name)} | values
        assert main(CIRCUITS, ["--config", str(write_yaml(tmp_path / f"{name}.yaml", values))]) == 0
        assert [passes[0], *(after for before, after in zip(passes, passes[1:]) if before != after)] == layers
        tables[name] = [rows_of(tmp_path / name / f"{table}.csv") for table in ("results", "ablations")]
    assert tables["all"] == tables["one"] == tables["little"]


def test_a_circuit_of_more_than_half_of_a_map_says_so(language, tmp_path):
    values = language_values(language, tmp_path) | {"l0_lambda": 0.0, "mask_init_list": [0.1], "num_epochs": 1,
                                                    "operation_list": ["mlp"], "target_layer_list": [1]}
    assert main(CIRCUITS, ["--config", str(write_yaml(tmp_path / "c.yaml", values))]) == 0
    [row] = rows_of(tmp_path / "agreement/results.csv")
    assert "outside of it" in row["random_ablation_impossible"] and row["random_ablated_acc_iid_mean"] == ""
    assert row["ablated_acc_iid"] != ""


def with_unknown_words(folder):
    """A sentence with a word that the tokenizer has not."""
    with open(folder / "odd.csv", "w", newline="") as file:
        rows = [["sentence", "labels"]] + [[f"the zebra{n} near the chef", n % 2] for n in range(40)]
        csv.writer(file).writerows(rows)
    return str(folder / "odd.csv")


@pytest.mark.parametrize("changes, words", [
    ({"data_path": "data/Language/none.csv"},
     ["data_path", "none.csv", "configs/Language/sentences.yaml makes it"]),
    ({"data_path": "UNKNOWN", "train_size": 20, "test_size": 20}, ["model_path", "'zebra"]),
    ({"train_size": 6160, "test_size": 1}, ["train_size", "6160", "6161"]),
    ({"test_size": 5001}, ["test_size", "5001", "SV_Agr_gen.csv", "5000"]),
    ({"variable": "object labels"}, ["data_path", "object labels"]),
    ({"variable": "label"}, ["data_path", "'label'", "did you mean 'labels'"]),
    ({"answer_variable": "tense"}, ["data_path", "'tense'"]),
    ({"target_layer_list": [2]}, ["target_layer_list", "no layer 2"]),
    ({"batch_size_list": [501]}, ["batch_size_list", "501"]),
    ({"probe_index_list": [1]}, ["position_list", "from the end"]),
    ({"position_list": ["last", "probed"]}, ["position_list", "'probed' is no position"]),
    ({"position_list": ["subject"]}, ["position_list", "'subject'", "last, first"]),
    ({"task": "reflexives"}, ["task", "'reflexives'", "did you mean 'reflexive'"]),
    ({"task": "sentence"}, ["task", "'sentence'", "did you mean 'sentences'"]),
    ({"task": "grammar"}, ["train_data_path", "'grammar'", "sentences, agreement, reflexive"]),
    ({"test_data_path": "data/x.csv"}, ["test_data_path", "leave it out"]),
    ({"sentence_prefix": "<s>"}, ["sentence_prefix", "<s>"]),
    ({"sentence_prefix": "<bos>"}, ["sentence_prefix", "<bos>"]),
    ({"model_path": "nobody/no-such-model"}, ["model_path", "nobody/no-such-model"]),
    ({"layers_at_once": 0}, ["layers_at_once"]),
], ids=lambda value: str(value)[:40])
def test_language_mistakes_end_in_one_sentence(changes, words, language, tmp_path, capsys):
    values = language_values(language, tmp_path) | changes
    if values["data_path"] == "UNKNOWN":
        values["data_path"] = with_unknown_words(tmp_path)
    assert main(CIRCUITS, ["--config", str(write_yaml(tmp_path / "c.yaml", values))]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and all(word in said for word in words), said
    assert not (tmp_path / "agreement").exists()


def test_a_context_too_short_for_a_sentence_is_refused(language, tmp_path, capsys):
    shutil.copytree(language.model, tmp_path / "short")
    model = load_model("", str(language.model), DEVICE)
    model.config.n_positions = 5
    model.transformer.wpe.weight.data = model.transformer.wpe.weight.data[:5].clone()
    model.save_pretrained(tmp_path / "short")
    values = language_values(language, tmp_path) | {"model_path": str(tmp_path / "short")}
    assert main(CIRCUITS, ["--config", str(write_yaml(tmp_path / "c.yaml", values))]) == 2
    assert "reads at most 5" in capsys.readouterr().err
