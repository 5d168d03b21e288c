"""Masks, the objective and the search, each against a plain version; the replayed sublayer is in test_families.py."""

import math

import pytest
import torch
from torch import nn

from interp.methods.circuits import find_circuit, shuffled_batches, soft_nearest_neighbor_loss
from interp.methods.masks import Circuit, ImpossibleAblation, NeuronMasks, l0, load_circuit, save_circuit
from interp.methods.neighbors import draw_references, majority_accuracy, nearest_neighbor_accuracy
from interp.models.family import family_of
from interp.models.loading import build_gpt2
from interp.models.opened import OpenModel
from interp.models.replay import ReplayedMLP
from interp.models.sublayers import find_sublayer


def one_layer_mlp(**shape):
    """A ReLU GPT-2 and its MLP."""
    model = build_gpt2(n_layer=1, n_head=1, vocab_size=4, seed=0, **shape).requires_grad_(False)
    opened = OpenModel(model, family_of(model.config))
    return opened, find_sublayer(opened, 0, "mlp")


def test_objective_equals_a_loop_over_pairs(generator):
    updates, labels = torch.randn(12, 5, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 1, 3, 2])
    total = 0.0
    for i in range(12):
        alike = everyone = 1e-5
        for j in range(12):
            if i != j:
                s = math.exp(torch.cosine_similarity(updates[i], updates[j], dim=0).item() - 1)
                everyone += s
                alike += s * (labels[i] == labels[j]).item()
        total -= math.log(alike / everyone) / 12
    assert soft_nearest_neighbor_loss(updates, labels).item() == pytest.approx(total, rel=1e-5)


def test_search_finds_the_neurons_that_carry_the_variable(generator):
    """Half of the hidden neurons hold the label, half hold noise: the circuit is the first half."""
    width, classes = 16, 8
    opened, sublayer = one_layer_mlp(n_positions=1, n_embd=width, n_inner=width)
    for linear in sublayer.maps.values():
        linear.weight.copy_(torch.eye(width))
    labels = torch.randint(classes, (600,), generator=generator)
    noise = 3 * torch.rand(600, width - classes, generator=generator)
    inputs = torch.cat([nn.functional.one_hot(labels, classes), noise], dim=1)
    replayed = ReplayedMLP(opened, sublayer, inputs)
    settings = dict(lr=0.02, batch_size=100, num_epochs=30, mask_init=0.0, max_temp=200, generator=generator)
    circuit = find_circuit(sublayer, replayed, labels, l0_lambda=1e-4, **settings)
    kept = circuit.masks()["c_fc"] * circuit.masks()["c_proj"]
    assert kept.tolist() == [1.0] * classes + [0.0] * (width - classes)
    assert find_circuit(sublayer, replayed, labels, l0_lambda=10, **settings).l0_norm() == 0


def test_hard_soft_and_inverted_masks_and_their_size():
    masks = NeuronMasks(one_layer_mlp(n_positions=2, n_embd=4, n_inner=6)[1], init=0.0)
    masks.scores[masks.names.index("c_fc")].data = torch.tensor([-1.0, 0.0, 0.5, 2.0, -0.1, 0.1])
    circuit = masks.circuit()
    assert circuit.masks()["c_fc"].tolist() == [0, 0, 1, 1, 0, 1]
    assert circuit.ablation()["c_fc"].tolist() == [1, 1, 0, 0, 1, 0]
    assert circuit.ablation(maps=("c_proj",))["c_fc"].tolist() == [1] * 6
    assert masks.soft(1e4)["c_fc"].round().tolist() == [0, 0, 1, 1, 0, 1]
    assert masks.soft(1.0)["c_fc"][3].item() == pytest.approx(1 / (1 + math.exp(-2)))
    assert circuit.l0_norm() == 3 * 4 and circuit.l0_max() == 6 * 4 + 4 * 6
    assert l0(masks.soft(1.0), masks.fan_in).requires_grad


def test_random_ablation_never_touches_the_circuit_and_has_its_size(generator):
    scores = {"first": torch.randn(50, generator=generator), "last": torch.cat([torch.ones(9), -torch.ones(11)])}
    scores["first"][:30] = -scores["first"][:30].abs()
    circuit = Circuit(scores, {"first": 3, "last": 5})
    drawn = set()
    for _ in range(20):
        for name, mask in circuit.random_ablation(generator).items():
            assert (mask == 0).sum() == (scores[name] > 0).sum()
            assert not ((mask == 0) & (scores[name] > 0)).any()
            drawn.add(tuple(mask.tolist()))
    assert len(drawn) > 20  # redrawn each time


def test_random_ablation_of_more_than_half_a_map_fails_in_words(generator):
    circuit = Circuit({"c_attn": torch.tensor([1.0, 1.0, -1.0])}, {"c_attn": 3})
    with pytest.raises(ImpossibleAblation, match="2 of the 3 neurons of c_attn"):
        circuit.random_ablation(generator)


def test_saved_circuit_comes_back(tmp_path):
    circuit = Circuit({"c_fc": torch.tensor([0.5, -2.0]), "c_proj": torch.tensor([1e-8])}, {"c_fc": 7, "c_proj": 2})
    save_circuit(circuit, tmp_path / "a.safetensors", {"variable": "var_0", "lr": 0.001})
    loaded, about = load_circuit(tmp_path / "a.safetensors")
    assert about == {"variable": "var_0", "lr": 0.001} and loaded.fan_in == circuit.fan_in
    for name, score in circuit.scores.items():
        torch.testing.assert_close(loaded.scores[name], score, rtol=0, atol=0)


def test_neighbors_and_baseline(generator):
    labels = torch.tensor([4, 4, 4, 7, 7, 9])
    references = draw_references(labels, generator)
    assert labels[references].tolist() == [4, 7, 9]
    assert {tuple(draw_references(labels, generator).tolist()) for _ in range(30)} == {
        (i, j, 5) for i in (0, 1, 2) for j in (3, 4)}
    points = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    updates = torch.tensor([[9.0, 1.0], [0.1, 0.2], [1.0, 2.0], [-1.0, -3.0]])  # by angle, not by distance
    assert nearest_neighbor_accuracy(points, torch.tensor([0, 1]), updates, torch.tensor([0, 1, 1, 0])) == 1.0
    assert majority_accuracy(labels, torch.tensor([4, 9, 9, 9])) == 0.25


def test_batches_are_shuffled_and_the_incomplete_one_dropped(generator):
    batches = torch.stack(shuffled_batches(10, 4, generator))
    assert batches.shape == (2, 4) and len(batches.unique()) == 8
    assert batches.flatten().tolist() != sorted(batches.flatten().tolist())
