"""Models trained to hold variables: the task, what is exchanged, the truth, and the command line."""

import pandas as pd
import pytest
import torch

import train_known_models
from conftest import DEVICE, KNOWN, execute, rows_of, write_yaml
from interp.experiment import main
from interp.methods import held
from interp.methods.held import CLEAN, INTERVENTIONS, interchanged, mixture, truth, values_after
from interp.runs.settings import expand_settings
from interp.runs.tensors import load_tensors
from interp.tasks import known

TINY = {"n_embd": 16, "n_head": 2, "rank_list": [3], "steps": 4, "batch_size": 8, "sources_per_input": 2}


def values_of(folder, **changes) -> dict:
    return TINY | {f"{kind}_dir": str(folder / kind) for kind in ("data", "model")} | changes


def built(tmp_path, family: str, code: str, decoy: str = "copy"):
    config = train_known_models.Config(**values_of(
        tmp_path, family_list=[family], code_list=[code], decoy_list=[decoy], results_dir=str(tmp_path / "run")))
    [setting] = expand_settings(config)
    return train_known_models.build(config, setting, DEVICE), train_known_models.prepare(config, [setting], DEVICE)


def test_tables_are_balanced_and_every_argument_matters(tmp_path):
    tables = known.draw_tables(torch.Generator().manual_seed(0))
    for name in "fhua":
        assert tables[name].shape == (5, 5) and tables[name].flatten().bincount().tolist() == [5] * 5
    for lines in (tables["out"], tables["out"].T):
        assert all(sorted(line.tolist()) == list(range(5)) for line in lines)
    again, other = (known.draw_tables(torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert all(torch.equal(table, again[name]) and not torch.equal(table, other[name])
               for name, table in tables.items())
    splits = known.draw_splits(tables, torch.Generator().manual_seed(0))
    rows = [tuple(row) for split in splits.values() for row in split.tokens.tolist()]
    assert len(splits["train"].tokens) == 500 and len({*rows}) == 625

    _, prepared = built(tmp_path, "gpt2", "linear")
    for file, text in prepared.files.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        table, out = pd.read_csv(file), prepared.out
        inputs = {*table["data"]}
        assert table["data"].value_counts().unique().tolist() == [2] and {*table["counterfactual_data"]} <= inputs
        assert not (table["data"] == table["counterfactual_data"]).any()
        assert not table.duplicated(["data", "counterfactual_data"]).any()
        of_input = table.drop_duplicates("data").set_index("data")
        for name in known.VARIABLES:
            assert (of_input.loc[table["counterfactual_data"], name].values == table[f"counter_{name}"].values).all()
        columns = {name: torch.tensor(table[name].values) for name in table if "data" not in name}
        v, w, u = (columns[name] for name in ("V", "W", "U"))
        assert torch.equal(out[v, w], columns["labels"])
        assert torch.equal(out[columns["counter_V"], w], columns["label_V"])
        assert torch.equal(out[v, columns["counter_W"]], columns["label_W"])
        assert torch.equal(out[columns["counter_U"], w], columns["label_U"])
        x = torch.tensor([[int(word) for word in row.split()] for row in table["data"]])
        assert {*x[:, 2].tolist()} == {5} and {*x[:, 5].tolist()} == {6}
        for name, (i, j) in {"V": (0, 1), "W": (3, 4), "U": (0, 4)}.items():
            assert (table.assign(key=(x[:, i] * 5 + x[:, j]).numpy()).groupby("key")[name].nunique() == 1).all()


@pytest.mark.parametrize("family", ["gpt2", "llama", "olmo2"])
@torch.no_grad()
def test_interchanges_are_those_of_a_plain_model_run_once_for_each(family, tmp_path):
    """Against the model run on each side alone, projected by its own sums, run again with the block's output put."""
    model, prepared = built(tmp_path, family, "either")
    for parameter in model.model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1) / 2, std=0.3)
    tokens = prepared.splits["train"].tokens[:24]
    words = ["b", "s", "bbbbb", "sssss", "bbbbs", *(
        word for word, _ in INTERVENTIONS["either"].values() if "r" not in word)]
    states, clean = interchanged(model, tokens, words)

    def first(result):
        return result[0] if isinstance(result, tuple) else result

    def run(rows, put=None):
        seen = []

        def hook(module, arguments, result):
            seen.append(first(result))
            return result if put is None else (put, *result[1:]) if isinstance(result, tuple) else put

        handle = model.block.register_forward_hook(hook)
        logits = model.model(rows).logits[:, -1]
        handle.remove()
        return logits, seen[0]

    (base_logits, base), (source_logits, source) = run(tokens[:12]), run(tokens[12:])
    assert torch.allclose(clean, torch.cat([base, source]), atol=1e-5)
    sides = {"b": base, "s": source, "m": base.mean(0).expand_as(base)}
    for state, word in zip(states, words):
        put = sides[word[0]].clone()
        for letter, name in zip(word[1:], model.positions):
            position, basis = model.positions[name], model.bases[name]
            for direction in basis.T:  # one direction after the other; they are orthonormal
                there = (sides[letter][:, position] * direction).sum(1) - (put[:, position] * direction).sum(1)
                put[:, position] = put[:, position] + there[:, None] * direction
        assert torch.allclose(mixture(model, sides, word), put, atol=1e-5)
        assert torch.allclose(model.logits(state), run(tokens[:12], put)[0], atol=1e-4)
    for number, wanted in enumerate((base_logits, source_logits, base_logits)):
        assert torch.allclose(model.logits(states[number]), wanted, atol=1e-4)
    assert not torch.allclose(base_logits, source_logits, atol=1e-2)
    assert not torch.allclose(model.logits(states[4]), base_logits, atol=1e-4)  # the decoy alone


def test_what_an_interchange_should_give():
    values = {"b": {"A": torch.tensor([1]), "B": torch.tensor([3]), "W": torch.tensor([0])},
              "s": {"A": torch.tensor([4]), "B": torch.tensor([0]), "W": torch.tensor([2])}}
    wanted = {"iia_V": (4, 0), "iia_W": (4, 2), "strict": (4, 0), "scattered": (4, 0), "iia_A": (2, 0),
              "iia_B": (1, 0)}
    assert {name: tuple(int(value) for value in values_after(values, whose))
            for name, (_, whose) in INTERVENTIONS["shared"].items()} == wanted
    for code, interventions in INTERVENTIONS.items():
        assert all(len(word) == 1 + len(held.PLACES[code]) for word, _ in interventions.values())
        assert CLEAN[1] == interventions["strict"][1]


def test_the_truth_of_each_construction():
    def cells(code: str, decoy: str, column: str, cut: int = 1) -> dict[str, str]:
        """By variable and layer, a letter for each position: yes, no, or a dot."""
        positions = held.PLACES[code] | {"decoy": 5}
        table = pd.DataFrame(truth(positions, decoy, cut)).astype(object)
        return {f"{variable}{layer}": "".join({True: "y", False: "n"}.get(cell, ".") for cell in rows[column])
                for (variable, layer), rows in table.groupby(["variable", "layer"])}

    assert cells("linear", "U", "carried") == {
        "V0": "...nnn", "V1": "nnynnn", "W0": "nnn..n", "W1": "nnnnyn", "U0": "nnnnnn", "U1": "nnnnnn"}
    assert cells("linear", "U", "decodable") == {
        "V0": "......", "V1": "..y...", "W0": "......", "W1": "....y.", "U0": "......", "U1": ".....y"}
    assert cells("linear", "V", "decodable", 0) == {"V0": "..y..y", "W0": "....y.", "U0": "......"}
    assert cells("either", "V", "carried")["V0"] == "....nn" and cells("either", "V", "carried")["V1"] == "nn..nn"
    assert cells("either", "V", "decodable")["V1"] == "..yy.y"
    assert cells("shared", "V", "carried")["V1"] == "nn..nn" and cells("shared", "V", "decodable")["V1"] == ".....y"


def test_the_command_line_saves_what_is_verified_and_tells_what_is_not(tmp_path, monkeypatch, capsys):
    values = values_of(tmp_path, family_list=["gpt2", "llama"], decoy_list=["none", "copy"])
    rows = execute(KNOWN, values, tmp_path / "run")
    printed = capsys.readouterr().out
    assert [(row["verified"], row["steps"], row["decoy_swap"] != "") for row in rows] == [
        ("False", "4", False), ("False", "4", True)] * 2
    assert printed.count("is not verified and not saved: accuracy 0.") == 4 and not (tmp_path / "model").exists()
    assert len(rows_of(tmp_path / "run/curves.csv")) == 4
    record = (tmp_path / "run/run.json").read_bytes()
    assert execute(KNOWN, values, tmp_path / "run") == rows and (tmp_path / "run/run.json").read_bytes() == record

    monkeypatch.setattr(train_known_models, "ENOUGH", 0)  # of what is not yet trained everything is verified
    [row] = execute(KNOWN, values | {"family_list": ["llama"], "decoy_list": ["copy"]}, tmp_path / "saved")
    [folder] = (tmp_path / "model").iterdir()
    assert row["verified"] == "True" and folder.name == "llama_rank3_cut1_copy_linear_seed0"
    carried = pd.read_csv(folder / "truth.csv").query("carried == True")
    assert carried[["variable", "layer", "position"]].values.tolist() == [["V", 1, 2], ["W", 1, 4]]
    bases, about = load_tensors("truth", folder / "truth.safetensors", lambda tensors, about: tensors)
    assert about["positions"] == {"V": 2, "W": 4, "decoy": 5} and {*bases} == {*about["positions"]}
    assert all(torch.allclose(basis.T @ basis, torch.eye(3), atol=1e-5) for basis in bases.values())
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    (tmp_path / "saved/settings").rename(tmp_path / "settings")  # killed after saving: the same again
    execute(KNOWN, values | {"family_list": ["llama"], "decoy_list": ["copy"]}, tmp_path / "saved")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("change, sentence", [
    ({"rank_list": [17]}, "rank_list: 17 is more than the width"),
    ({"cut_list": [2]}, "cut_list: no block is above layer 2"),
    ({"family_list": ["bert"]}, "family_list"),
    ({"n_head": 3}, "n_embd (16) is not a multiple"),
    ({"sources_per_input": 125}, "sources_per_input")])
def test_a_config_that_cannot_be_is_refused(change, sentence, tmp_path, capsys):
    config = write_yaml(tmp_path / "c.yaml", values_of(tmp_path, results_dir=str(tmp_path / "run")) | change)
    assert main(KNOWN, ["--config", str(config)]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and not (tmp_path / "run").exists()
