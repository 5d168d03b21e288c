"""Ablation by position against the plain way: single sentences, with one token's update another one."""

from contextlib import contextmanager

import pandas as pd
import pytest
import torch

from conftest import CIRCUITS, DEVICE, language_values, rows_of, write_yaml
from interp.experiment import main
from interp.methods.masks import load_circuit
from interp.models.family import family_of
from interp.models.loading import load_model, load_tokenizer
from interp.models.open_model import OpenModel
from interp.models.sublayers import find_sublayer, masked


def opened_model(language) -> OpenModel:
    model = load_model("", str(language.model), DEVICE)
    return OpenModel(model, family_of(model.config))


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
