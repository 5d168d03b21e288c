"""The method `saved`: what it reads is what was found, and nothing that it does not understand is taken for it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_interchange import WITH_CIRCUITS, same, trials_of

from conftest import COMPARISON, execute, write_yaml
from interp.experiment import main
from interp.methods.das import boundary
from interp.methods.interchange.base import SiteUnderStudy
from interp.methods.interchange.registry import fit, load_interchange
from interp.methods.interchange.saved import read_saved
from interp.methods.masks import Circuit
from interp.runs.config import BadInput


@pytest.fixture(scope="module")
def site(tiny, tmp_path_factory) -> SiteUnderStudy:
    return trials_of(tmp_path_factory.mktemp("site"), tiny.values[COMPARISON], **WITH_CIRCUITS)[0][1].site


@pytest.fixture
def orthonormal(generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(16, 3, generator=generator)).Q.contiguous()


def saver(name: str):
    return {"npy": lambda tensors, file: np.save(file, tensors["right"].numpy()), "safetensors": save_file,
            "pt": torch.save, "bin": torch.save}[name]


@pytest.mark.parametrize("method, ending", [
    ("difference_in_means", "npy"), ("difference_in_means", "safetensors"), ("difference_in_means", "pt"),
    ("lda", "safetensors"), ("lda", "bin"), ("das", "safetensors"), ("das", "pt"), ("full", "npy")])
def test_what_was_found_is_read_back(method, ending, site, tmp_path):
    """It does the same as when it was found, also when saved and loaded once more, and has the same random control."""
    options, pairs = {"das": {"epochs": 3, "batch_size": 20}}.get(method, {}), site.select
    found, file = fit(method, site, seed=1, **options), tmp_path / f"mine.{ending}"
    saver(ending)(found.tensors, file)
    again = fit("saved", site, seed=5, file=str(file))
    again.save(tmp_path / "kept.safetensors", {"seed": 1})
    loaded, about = load_interchange(tmp_path / "kept.safetensors")
    for own in (again, loaded):
        assert own.name == "saved" and own.rank == found.rank and same(own(pairs), found(pairs), 1e-6)
        controls = [one.random_like(torch.Generator().manual_seed(3)) for one in (own, found)]
        assert torch.equal(controls[0](pairs), controls[1](pairs))
    nothing = replace(pairs, source=pairs.base, source_values=pairs.base_values)
    assert about == {"seed": 1} and same(again(nothing), pairs.base_activations)


def test_a_matrix_has_any_name_and_precision(site, orthonormal, tmp_path):
    """Alone it needs no name; beside others it needs one. What it exchanges is what its columns span."""
    pairs, file = site.select, str(tmp_path / "mine.safetensors")
    change = pairs.source_activations - pairs.base_activations
    for tensors, tensor in (({"U": orthonormal}, None), ({"U": orthonormal.half()}, None),
                            ({"U": orthonormal, "V": orthonormal.T.contiguous()}, "U")):
        save_file(tensors, file)
        moved = fit("saved", site, seed=0, file=file, tensor=tensor)(pairs)
        assert same(moved, pairs.base_activations + change @ orthonormal @ orthonormal.T, 1e-3)
    with pytest.raises(BadInput, match="'tensor' should name its matrix; there are U, V"):
        read_saved(file, None, 16)


def test_neurons_are_those_of_a_circuit(site, tmp_path):
    neurons, file, pairs = {"c_attn": [0, 40, 17], "c_proj": [3]}, tmp_path / "mine.json", site.select
    file.write_text(json.dumps(neurons))
    scores = {name: torch.tensor([1.0 if one in neurons[name] else -1.0 for one in range(len(mask))])
              for name, mask in site.sublayer.full_masks().items()}
    circuit = Circuit(scores, site.sublayer.fan_in())
    wanted = fit("circuit_update", replace(site, find_circuit=lambda *_, **__: circuit), seed=0)
    found = fit("saved", site, seed=0, file=str(file))
    found.save(tmp_path / "kept.safetensors", {})
    for own in (found, load_interchange(tmp_path / "kept.safetensors")[0]):
        assert own.name == "saved" and torch.equal(own(pairs), wanted(pairs))
        drawn = own.random_like(torch.Generator().manual_seed(0)).tensors
        assert {name: int((score > 0).sum()) for name, score in drawn.items()} == {"c_attn": 3, "c_proj": 1}
    assert not same(found(pairs), pairs.base_activations, 1e-4)


def rotation(d: int, k: int) -> torch.nn.Module:
    layer = torch.nn.Linear(k, d, bias=False)
    torch.nn.init.orthogonal_(layer.weight)
    return torch.nn.utils.parametrizations.orthogonal(layer)


def state_of(layer: torch.nn.Module, **further) -> dict[str, torch.Tensor]:
    """A rotation as pyvene saves it: names and types are those of its files."""
    return {f"rotate_layer.{name}": part for name, part in layer.state_dict().items()} | {
        name: torch.tensor(value) for name, value in ({"embed_dim": 16, "interchange_dim": 16} | further).items()}


def test_a_rotation_of_pyvene_is_the_one_it_trained(site, tmp_path):
    pairs, file = site.select, tmp_path / "intkey.bin"
    base, source = pairs.base_activations, pairs.source_activations

    def read(layer, **further):
        torch.save(state_of(layer, **further), file)
        return fit("saved", site, seed=0, file=str(file))(pairs)

    for columns, exchanged, further in ((3, 3, {}), (16, 5, {"interchange_dim": 5})):
        layer = rotation(16, columns)
        with torch.no_grad():  # a step of training, which leaves the diagonal as it is
            layer.parametrizations.weight.original.add_(0.3 * torch.randn(16, columns).tril(-1))
        weight = layer.weight.detach()[:, :exchanged]
        assert same(read(layer, **further), base + (source - base) @ weight @ weight.T)
    gate = boundary(torch.tensor(0.4), torch.arange(16.0), 0.1)  # as pyvene's sigmoid_boundary
    weight = (layer := rotation(16, 16)).weight.detach()
    boundless = {"intervention_boundaries": [0.4], "temperature": 0.1, "intervention_population": list(range(16))}
    assert same(read(layer, **boundless), base + (source - base) @ weight @ torch.diag(gate) @ weight.T)
    for further, words in ((boundless | {"temperature": 50.0}, "temperature"), ({"masks": [100.0]}, "masks")):
        with pytest.raises(BadInput, match=words):
            read(layer, **further)


def test_a_file_that_pyvene_wrote(tiny, site, tmp_path):
    pyvene = pytest.importorskip("pyvene")
    from transformers import GPT2LMHeadModel
    model, pairs = GPT2LMHeadModel.from_pretrained(tiny.values[COMPARISON]["model_path"]), site.select
    for kind, further in ((pyvene.LowRankRotatedSpaceIntervention, {"low_rank_dimension": 3}),
                          (pyvene.BoundlessRotatedSpaceIntervention, {})):
        config = pyvene.IntervenableConfig([pyvene.RepresentationConfig(0, "block_output", "pos", 1, **further)], kind)
        alignment = pyvene.IntervenableModel(config, model)
        [intervention] = alignment.interventions.values()
        for parameter in intervention.rotate_layer.parameters():  # as a training changes it
            parameter.data.add_(0.3 * torch.randn(parameter.shape).tril(-1))
        if hasattr(intervention, "set_temperature"):
            intervention.set_temperature(torch.tensor(0.1))
        alignment.save(str(tmp_path / kind.__name__))
        [file] = (tmp_path / kind.__name__).glob("*.bin")
        moved = intervention(pairs.base_activations, pairs.source_activations).detach()
        assert same(fit("saved", site, seed=0, file=str(file))(pairs), moved)


def test_a_basis_of_transformer_lens(site, tmp_path):
    from transformer_lens import FactoredMatrix
    product = FactoredMatrix(torch.randn(16, 4), torch.randn(4, 16))  # as W_V @ W_O of a head
    torch.save(product.U, tmp_path / "U.pt")
    found, wanted = fit("saved", site, seed=0, file=str(tmp_path / "U.pt")), product.AB @ torch.linalg.pinv(product.AB)
    assert found.rank == 4 and same(found.tensors["right"] @ found.tensors["left"], wanted, 1e-4)


def test_it_is_audited_with_every_control(tiny, tmp_path, capsys):
    """By the command line, beside the method that found it; a run does not go on with another file."""
    values = tiny.values[COMPARISON] | {"save_models": True, "model_dir": str(tmp_path / "found")}
    lda = execute(COMPARISON, values | {"method_list": ["lda"], "variable_list": ["var_0"]}, tmp_path / "lda")
    [file] = (tmp_path / "found").iterdir()
    values |= {"method_list": ["none", "full", "random", "saved", "lda"], "variable_list": ["var_0"],
               "method_options": {"saved": {"file": str(file)}}, "model_dir": str(tmp_path / "run")}
    rows = {row["method"]: row for row in execute(COMPARISON, values, tmp_path / "run")}
    audited, [found] = rows["saved"], lda
    own = {"method", "form", "control_iia", "control_isolate", "seconds"}  # it is not fitted, so has no such control
    assert {key: value for key, value in audited.items() if key not in own} == {
        key: value for key, value in found.items() if key not in own}
    assert audited["random_iia_max"] and audited["mahalanobis"] and not audited["control_iia"]
    [kept] = (tmp_path / "run").glob("*saved*")
    assert same(load_interchange(kept)[0].tensors["right"], load_interchange(file)[0].tensors["right"], 0)

    file.write_bytes(kept.read_bytes())
    config = write_yaml(tmp_path / "run.yaml", values | {"results_dir": str(tmp_path / "run")})
    assert main(COMPARISON, ["--config", str(config)]) == 2 and "of another" in capsys.readouterr().err

    neurons = tmp_path / "neurons.json"
    neurons.write_text('{"c_attn": [3, 40]}')
    [row] = execute(COMPARISON, values | {"method_list": ["saved"], "save_models": False, "method_options": {
        "saved": {"file": str(neurons)}}}, tmp_path / "neurons")
    assert not row["rank"] and row["random_iia_mean"]


def bad_files(good: torch.Tensor) -> dict[str, tuple[object, list[str]]]:
    wide, right = torch.eye(16), {"right": good, "left": good.T.contiguous()}
    return {
        "npy": (2 * good, ["'right'", "orthonormal", "'left'"]),
        "safetensors": (right | {"left": 2 * good.T}, ["'left' @ 'right' is not 1"]),
        "pt": (good.T, ["'right' is [3, 16], not [16, k]", "transpose it"]),
        "a.pt": (good[:12], ["[12, 3]", "[16, k]"]),
        "b.pt": (good[:, :0], ["[16, 0]"]),
        "c.pt": (torch.eye(17)[:16], ["[16, 17]"]),
        "d.pt": (good[:, 0], ["[16]"]),
        "e.pt": (good / 0, ["no real number"]),
        "f.pt": (right | {"left": wide}, ["'left' is [16, 16], not [3, 16]"]),
        "g.pt": ({"rotation": 2 * wide, "width": torch.tensor(0.5)}, ["not orthogonal"]),
        "h.pt": (Path("/"), ["more than weights"]),
        "i.pt": ({}, ["'tensor'"]),
        "json": ({"c_attn": [-1]}, ["c_fc"]),
        "a.json": ({"c_attn": []}, ["c_fc"]),
        "b.json": ([3, 5], ["c_fc"]),
        "csv": ({}, [".npy .safetensors"]),
    }


def test_what_is_no_interchange_is_refused_in_a_sentence(tiny, orthonormal, tmp_path, refused, capsys):
    values = tiny.values[COMPARISON] | {"method_list": ["full", "saved"]}

    def options(name: str, **further) -> dict:
        return {"method_options": {"saved": {"file": str(tmp_path / name), **further}}}

    def refused_when_read(name: str, words: list[str]) -> None:
        with pytest.raises(BadInput) as found:
            read_saved(str(tmp_path / name), None, 16)
        assert len(str(found.value).splitlines()) == 1 and str(found.value).endswith(".")
        assert all(word in str(found.value) for word in ["method_options: ", name, "is no interchange: ", *words])

    for number, (ending, (held, words)) in enumerate(bad_files(orthonormal).items()):
        name, kind = f"bad_{number}.{ending}", ending.split(".")[-1]
        if kind in ("json", "csv"):
            (tmp_path / name).write_text(json.dumps(held))
        else:
            tensors = held if isinstance(held, dict) or kind == "pt" else {"right": held}
            saver(kind)(tensors if kind == "pt" else {key: part.contiguous() for key, part in tensors.items()},
                        tmp_path / name)
        refused_when_read(name, words)
    for name, text in (("half.json", '{"c_attn": [1'), ("twice.json", '{"c_attn": [1], "c_attn": [2]}'),
                       ("no.pt", "x"), ("no.npy", "x"), ("no.safetensors", "x"), ("empty.pt", "")):
        (tmp_path / name).write_text(text)
        refused_when_read(name, [])
    np.save(tmp_path / "text.npy", np.array([{}]), allow_pickle=True)
    refused_when_read("text.npy", ["allow_pickle"])
    refused(COMPARISON, values | options("bad_0.npy"), ["refused.yaml: method_options", "bad_0.npy", "orthonormal"])
    refused(COMPARISON, values | options("none.npy"), ["method_options", "there is no", "none.npy"])
    refused(COMPARISON, values, ["method_options", "'file'", "'saved'"])
    refused(COMPARISON, values | options("twice.json") | {"residual_location_list": ["resid_pre"]}, ["resid_pre"])
    for neurons, words in (({"c_fc": [0]}, ["'c_fc' 0", "c_attn 0 to 47"]), ({"c_proj": [2, 16]}, ["'c_proj' 16"])):
        (tmp_path / "other.json").write_text(json.dumps(neurons))
        config = write_yaml(tmp_path / "late.yaml", values | options("other.json") | {
            "method_list": ["saved"], "results_dir": str(tmp_path / "late")})  # the maps are the opened model's
        assert main(COMPARISON, ["--config", str(config), "--overwrite"]) == 2
        said = capsys.readouterr().err
        assert all(word in said for word in ["other.json", *words])
