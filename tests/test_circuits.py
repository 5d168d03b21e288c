"""Masks, the objective and the search, each against a plain version; the replayed sublayer is in test_families.py."""

import math

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn.functional import one_hot, relu

from interp.methods.circuits import (
    draw_references,
    find_circuit,
    mean_loss,
    nearest_neighbor_accuracy,
    soft_nearest_neighbor_loss,
)
from interp.methods.masks import Circuit, ImpossibleAblation, NeuronMasks, l0
from interp.methods.optimize import batches_in_order, even_batch, shuffled_batches
from interp.methods.probes import majority_accuracy
from interp.models.examples import Answer, Examples
from interp.models.family import family_of
from interp.models.loading import build_gpt2
from interp.models.open_model import OpenModel
from interp.models.replay import ReplayedMLP
from interp.models.sublayers import find_sublayer


def one_layer_mlp(inputs: torch.Tensor, n_inner: int, fill=lambda weights: None):
    """The MLP of a ReLU GPT-2, and the same on what it reads, (rows, d_model). fill: changes weights in place."""
    count, width = inputs.shape
    model = build_gpt2(n_layer=1, n_head=1, vocab_size=4, n_positions=1, n_embd=width, n_inner=n_inner, seed=0)
    opened, first = OpenModel(model.requires_grad_(False), family_of(model.config)), torch.zeros(count).long()
    sublayer = find_sublayer(opened, 0, "mlp")
    for parameter in opened.blocks[0].mlp.parameters():
        fill(parameter)
    examples = Examples(first.unsqueeze(1), first, first, {}, Answer(first))
    opened.blocks[0].ln_2 = torch.nn.Identity()
    replayed = ReplayedMLP(opened, sublayer, examples, inputs.unsqueeze(1))
    replayed.stream = inputs.unsqueeze(1)  # without the attention's update
    return sublayer, replayed


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
    labels = torch.randint(classes, (600,), generator=generator)
    noise = 3 * torch.rand(600, width - classes, generator=generator)
    sublayer, replayed = one_layer_mlp(torch.cat([one_hot(labels, classes), noise], dim=1), width,
                                       lambda weights: weights.dim() == 2 and weights.copy_(torch.eye(width)))
    settings = dict(lr=0.02, batch_size=100, num_epochs=30, mask_init=0.0, max_temp=200, generator=generator)
    circuit = find_circuit(sublayer, replayed, labels, l0_lambda=1e-4, **settings)
    kept = circuit.masks()["c_fc"] * circuit.masks()["c_proj"]
    assert kept.tolist() == [1.0] * classes + [0.0] * (width - classes)
    assert find_circuit(sublayer, replayed, labels, l0_lambda=10, **settings).l0_norm() == 0


def test_search_takes_plain_steps_at_a_temperature_that_grows_with_the_epoch(generator):
    inputs, labels, seen = torch.randn(50, 6, generator=generator), torch.arange(50) % 3, {}
    sublayer, replayed = one_layer_mlp(inputs, 10, lambda weights: torch.nn.init.normal_(weights, generator=generator))
    circuit = find_circuit(
        sublayer, replayed, labels, lr=0.05, batch_size=20, num_epochs=4, mask_init=0.1, max_temp=81, l0_lambda=1e-3,
        generator=torch.Generator().manual_seed(7), after_epoch=seen.__setitem__)
    first, last = (torch.full((width,), 0.1, requires_grad=True) for width in (10, 6))
    optimizer, drawing = torch.optim.AdamW([first, last], lr=0.05), torch.Generator().manual_seed(7)
    c_fc, c_proj = sublayer.maps["c_fc"], sublayer.maps["c_proj"]
    for epoch in range(4):
        temperature, order = 3 ** epoch, torch.randperm(50, generator=drawing)
        for rows in (order[:20], order[20:40]):  # the rest is no batch
            one, two = (temperature * first).sigmoid(), (temperature * last).sigmoid()
            hidden = relu(inputs[rows] @ c_fc.weight * one + c_fc.bias)
            updates = hidden @ c_proj.weight * two + c_proj.bias
            optimizer.zero_grad()
            (soft_nearest_neighbor_loss(updates, labels[rows]) + 1e-3 * (6 * one.sum() + 10 * two.sum())).backward()
            optimizer.step()
    torch.testing.assert_close(circuit.scores, {"c_fc": first.detach(), "c_proj": last.detach()}, rtol=1e-4, atol=1e-5)
    assert list(seen) == [1, 2, 3, 4]
    torch.testing.assert_close(seen[4]["c_fc"], (81 * first.detach()).sigmoid(), rtol=1e-3, atol=1e-4)


def test_hard_soft_and_inverted_masks_and_their_size():
    masks = NeuronMasks(one_layer_mlp(torch.zeros(2, 4), 6)[0], init=0.0)
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
    with pytest.raises(ImpossibleAblation, match="2 of the 3 neurons of c_attn"):
        Circuit({"c_attn": torch.tensor([1.0, 1.0, -1.0])}, {"c_attn": 3}).random_ablation(generator)


def test_neighbors_and_baseline(generator):
    labels = torch.tensor([4, 4, 4, 7, 7, 9])
    references = draw_references(labels, generator)
    assert labels[references].tolist() == [4, 7, 9]
    assert {tuple(draw_references(labels, generator).tolist()) for _ in range(30)} == {
        (i, j, 5) for i in (0, 1, 2) for j in (3, 4)}
    assert majority_accuracy(labels, torch.tensor([4, 9, 9, 9])) == 0.25
    # by angle, neither by distance nor by product: references and updates are of very different lengths
    points, updates = (torch.randn(count, 3, generator=generator) * 10 ** torch.randn(count, 1, generator=generator)
                       for count in (5, 200))
    values = torch.randint(5, (200,), generator=generator)
    oracle = KNeighborsClassifier(1, metric="cosine").fit(points.numpy(), [3, 1, 4, 0, 2])
    assert nearest_neighbor_accuracy(points, torch.tensor([3, 1, 4, 0, 2]), updates, values) == oracle.score(
        updates.numpy(), values.numpy())
    assert nearest_neighbor_accuracy(points, torch.arange(5), updates[:0], values[:0]) is None


def test_batches(generator):
    """Shuffled ones leave the incomplete one out, those in order do not, even ones leave hardly a row out."""
    batches = torch.stack(shuffled_batches(10, 4, generator))
    assert batches.shape == (2, 4) and len(batches.unique()) == 8
    assert batches.flatten().tolist() != sorted(batches.flatten().tolist())
    assert [rows.tolist() for rows in batches_in_order(5, 2)] == [[0, 1], [2, 3], [4]]
    assert [even_batch(count, 500) for count in (2500, 2499, 947, 500, 501, 3, 0)] == [500, 499, 473, 500, 250, 3, 1]
    updates, labels = torch.randn(5, 3, generator=generator), torch.tensor([0, 1, 0, 0, 1])
    assert mean_loss(updates, labels, [torch.tensor([0, 1, 2]), torch.tensor([3, 4])]) == pytest.approx(
        (soft_nearest_neighbor_loss(updates[:3], labels[:3]) + soft_nearest_neighbor_loss(updates[3:], labels[3:])
         ).item() / 2)
