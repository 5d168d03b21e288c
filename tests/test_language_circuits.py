"""Circuit probing of sentences end to end, on a small GPT-2 that has learned the grammar."""

import csv
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from transformers import MistralConfig

import circuit_probing
from conftest import CIRCUITS, DEVICE, SENTENCE_FILES, kill_when, language_values, rows_of, start, write_yaml
from interp.experiment import main
from interp.methods.masks import load_circuit
from interp.models.family import family_of
from interp.models.loading import load_model, load_tokenizer
from interp.models.opened import OpenModel
from interp.models.sublayers import find_sublayer, masked
from interp.runs.settings import expand_settings
from interp.tasks.question import context_of

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


def test_ablation_by_position_is_that_of_single_sentences_with_one_token_ablated(language, tmp_path, analyse):
    values = language_values(language, tmp_path) | {
        "target_layer_list": [0], "num_epochs": 5, "test_size": 60, "num_random_ablations": 0, "save_models": True,
        "model_dir": str(tmp_path / "circuits")}
    config = write_yaml(tmp_path / "c.yaml", values)
    assert main(CIRCUITS, ["--config", str(config)]) == 0
    tokenizer, opened = load_tokenizer("", str(language.model)), opened_model(language)
    answers = [tokenizer(word)["input_ids"][0] for word in ("is", "are")]
    labels = pd.read_csv(language.data / "SV_Agr.csv").set_index("sentence")["labels"]
    for row in rows_of(tmp_path / "agreement/results.csv"):
        assert analyse("ablate_by_position", "--config", config, "--layer", 0, "--operation", row["operation"],
                       "--out", tmp_path / row["operation"]).returncode == 0
        found = pd.read_csv(tmp_path / f"{row['operation']}.csv").set_index(["evaluation", "ablated_at"])["accuracy"]
        for name in ("iid", "gen"):
            assert found[name, "full model"] == pytest.approx(float(row[f"vanilla_acc_{name}"]))
            assert found[name, "every token"] == pytest.approx(float(row[f"ablated_acc_{name}"]))
        [file] = (tmp_path / "circuits").glob(f"*_{row['operation']}_*")
        sublayer, masks = find_sublayer(opened, 0, row["operation"]), load_circuit(file)[0].ablation()
        said = rows_of(next((tmp_path / "agreement/qualitative").glob(f"*{row['operation']}*")))
        for case, tokens in (("first token", slice(0, 1)), ("all other tokens", slice(1, None))):
            hits = []
            for sentence in (line["sentence"] for line in said):
                ids = torch.tensor([tokenizer(sentence)["input_ids"]])
                with torch.no_grad(), ablated_at(tokens, sublayer, masks):
                    logits = opened.model(ids, use_cache=False).logits[0, -1]  # a cache would hold both runs
                hits.append(logits[answers].argmax().item() == labels[sentence])
            assert found["iid", case] == pytest.approx(sum(hits) / 60)
    shutil.copy(*(next((tmp_path / "circuits").glob(f"*_{operation}_*")) for operation in ("attn", "mlp")))
    refused = analyse("ablate_by_position", "--config", config, "--layer", 0, "--operation", "mlp")
    assert refused.returncode == 2 and "its operation is attn, not mlp." in refused.stderr


@contextmanager
def ablated_at(tokens: slice, sublayer, masks):
    """The plain way: the sublayer's update is another one at some tokens."""
    def hook(module, arguments, keywords, whole):
        with masked(sublayer, masks):
            without = module.forward(*arguments, **keywords)
        update, other = (given[0] if isinstance(given, tuple) else given for given in (whole, without))
        update[:, tokens] = other[:, tokens]

    handle = sublayer.module.register_forward_hook(hook, with_kwargs=True)
    yield
    handle.remove()


@pytest.mark.parametrize("changed, sublayer, said", [
    ({}, (0, "attn"), "there is no"),  # never run
    ({}, (7, "attn"), "no circuit of the attention of layer 7"),
    ({"operation_list": ["mlp"]}, (0, "attn"), "no circuit of the attention of layer 0"),
    ({"save_models": False}, (0, "attn"), "save_models: false"),
    ({"lm_eval": False}, (0, "attn"), "lm_eval: true"),
])
def test_ablation_by_position_refuses_what_it_cannot_ablate(changed, sublayer, said, language, tmp_path, analyse):
    values = language_values(language, tmp_path) | {"save_models": True, "model_dir": str(tmp_path / "circuits")}
    config = write_yaml(tmp_path / "c.yaml", values | changed)
    refused = analyse("ablate_by_position", "--config", config, "--layer", sublayer[0], "--operation", sublayer[1])
    [line] = refused.stderr.splitlines()
    assert refused.returncode == 2
    assert said in line and not (tmp_path / "agreement").exists()


def test_killed_between_layers_it_goes_on_and_layers_at_once_change_nothing(language, tmp_path):
    values = language_values(language, tmp_path) | {"num_epochs": 40, "num_random_ablations": 1}
    one = write_yaml(tmp_path / "one.yaml", values | {"results_dir": str(tmp_path / "one"), "layers_at_once": 1})
    assert main(CIRCUITS, ["--config", str(one)]) == 0
    config = write_yaml(tmp_path / "c.yaml", values)
    table = tmp_path / "agreement/results.csv"
    kill_when(start("circuit_probing", config), lambda: table.exists() and len(rows_of(table)) >= 1)
    before = len(rows_of(table))
    assert 1 <= before < 4
    assert main(CIRCUITS, ["--config", str(config)]) == 0
    for name in ("results.csv", "ablations.csv"):
        assert rows_of(tmp_path / "agreement" / name) == rows_of(tmp_path / "one" / name)


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
     ["data_path", "none.csv", "generate_language_data.py --config configs/Language/sentences.yaml"]),
    ({"data_path": "UNKNOWN", "train_size": 20, "test_size": 20}, ["model_path", "'zebra"]),
    ({"train_size": 6160, "test_size": 1}, ["train_size", "6160", "6161"]),
    ({"test_size": 5001}, ["test_size", "5001", "SV_Agr_gen.csv", "5000"]),
    ({"variable": "object labels"}, ["data_path", "object labels"]),
    ({"variable": "label"}, ["data_path", "'label'", "did you mean 'labels'"]),
    ({"answer_variable": "tense"}, ["data_path", "'tense'"]),
    ({"target_layer_list": [2]}, ["target_layer_list", "no layer 2"]),
    ({"batch_size_list": [501]}, ["batch_size_list", "501"]),
    ({"probe_index_list": [1]}, ["probe_index_list"]),
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


def test_a_sliding_window_counts_as_the_end_of_the_context():
    assert context_of(MistralConfig(max_position_embeddings=40, sliding_window=7)) == 7
    assert context_of(MistralConfig(max_position_embeddings=40, sliding_window=None)) == 40


def test_a_pass_keeps_as_many_layers_as_there_is_room_for(language, tmp_path, monkeypatch):
    def layers_kept(**changes) -> list[list[int]]:
        """What each setting's bench holds, of the layers still to come."""
        config = CIRCUITS.schema(**language_values(language, tmp_path) | changes)
        settings = expand_settings(config)
        prepared = CIRCUITS.prepare(config, settings, DEVICE)
        return [circuit_probing.bench_for(config, setting, prepared).layers for setting in settings]

    assert layers_kept() == [[0, 1]] * 4
    assert layers_kept(layers_at_once=1) == [[0], [0], [1], [1]]
    assert layers_kept(cache_gib=1e-9) == [[0, 1]] * 4  # on the disk
    monkeypatch.setattr("interp.models.room.shutil.disk_usage", lambda folder: SimpleNamespace(free=0))
    assert layers_kept(cache_gib=1e-9) == [[0], [0], [1], [1]]
