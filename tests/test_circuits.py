"""Masks, the replayed sublayer, the objective and the search: each against a plain version."""

import math

import pytest
import torch
from torch import nn

from interp.methods.circuits import find_circuit, shuffled_batches, soft_nearest_neighbor_loss
from interp.methods.neighbors import draw_references, majority_accuracy, nearest_neighbor_accuracy
from interp.models.behavior import masked, next_token_accuracy
from interp.models.forest import unshared
from interp.models.loading import build_gpt2, find_sublayer
from interp.models.masks import Circuit, ImpossibleAblation, NeuronMasks, full_masks, l0, load_circuit, save_circuit
from interp.models.sublayer import ReplayedMLP, all_updates, capture, capture_inputs, replay

LAYER = 1


@pytest.fixture
def model(generator):
    model = build_gpt2(vocab_size=20, n_positions=7, n_layer=3, n_head=4, n_embd=32, n_inner=64, seed=0).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.requires_grad_(False)


@pytest.fixture
def tokens(generator):
    return torch.randint(20, (40, 7), generator=generator)


@pytest.fixture
def probed(generator):
    """A position for each row, not the last one only."""
    return torch.randint(2, 7, (40,), generator=generator)


def updates_of_the_model(model, sublayer, tokens, probed):
    """The plain way: run the whole model and look at what the sublayer puts out."""
    seen = []
    handle = sublayer.module.register_forward_hook(
        lambda module, arguments, output: seen.append(output[0] if isinstance(output, tuple) else output))
    model(tokens)
    handle.remove()
    return seen[0][torch.arange(len(tokens)), probed]


@pytest.mark.parametrize("operation", ["attn", "mlp"])
def test_replayed_sublayer_equals_the_model_with_masked_weights(model, tokens, probed, operation, generator):
    sublayer = find_sublayer(model, LAYER, operation)
    forest = unshared(tokens, probed)
    replayed = replay(sublayer, capture(model, forest, [sublayer], nodes=100).inputs[0], forest)
    own = updates_of_the_model(model, sublayer, tokens, probed)
    torch.testing.assert_close(all_updates(replayed, full_masks(sublayer)), own, rtol=1e-4, atol=1e-4)

    masks = {name: torch.rand(len(linear.bias), generator=generator) for name, linear in sublayer.maps.items()}
    with masked(sublayer, masks):
        plain = updates_of_the_model(model, sublayer, tokens, probed)
    assert (plain - own).abs().max() > 0.1  # the masks do something
    torch.testing.assert_close(all_updates(replayed, masks), plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(updates_of_the_model(model, sublayer, tokens, probed), own, rtol=0, atol=0)


@pytest.mark.parametrize("operation", ["attn", "mlp"])
def test_positions_after_the_probed_one_do_not_matter(model, tokens, probed, operation):
    sublayer = find_sublayer(model, LAYER, operation)
    other = torch.where(torch.arange(7) > probed.unsqueeze(1), (tokens + 1) % 20, tokens)
    assert (other != tokens).any()
    forests = [unshared(text, probed) for text in (tokens, other)]
    updates = [all_updates(replay(sublayer, capture_inputs(model, forest, [sublayer])[0], forest),
                           full_masks(sublayer)) for forest in forests]
    torch.testing.assert_close(*updates, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("operation", ["attn", "mlp"])
def test_gradients_of_soft_masks_equal_the_plain_ones(model, tokens, probed, operation):
    sublayer = find_sublayer(model, LAYER, operation)
    forest = unshared(tokens, probed)
    replayed = replay(sublayer, capture_inputs(model, forest, [sublayer])[0], forest)
    masks = NeuronMasks(sublayer, init=0.1)
    labels = tokens[:, 0] % 3
    parameters = list(masks.parameters())
    fast = torch.autograd.grad(soft_nearest_neighbor_loss(
        replayed.update(masks.soft(2.0), torch.arange(40)), labels), parameters)

    soft = masks.soft(2.0)
    weights = {f"{name}.weight": linear.weight * soft[name] for name, linear in sublayer.maps.items()}
    caught = []
    handle = sublayer.module.register_forward_hook(lambda module, arguments, output: caught.append(output))
    prefix = f"transformer.h.{LAYER}.{operation}."
    torch.func.functional_call(model, {prefix + name: value for name, value in weights.items()}, (tokens,))
    handle.remove()
    output = caught[0][0] if operation == "attn" else caught[0]
    plain = torch.autograd.grad(soft_nearest_neighbor_loss(
        output[torch.arange(40), probed], labels), parameters)
    for quick, slow in zip(fast, plain):
        torch.testing.assert_close(quick, slow, rtol=1e-3, atol=1e-6)


def test_ablated_model_is_the_model_with_zeroed_weights_and_is_restored_after_an_error(model, tokens):
    sublayer = find_sublayer(model, LAYER, "mlp")
    before = model(tokens).logits
    keep = (torch.arange(64) % 2).float()
    with pytest.raises(RuntimeError), masked(sublayer, {"c_fc": keep, "c_proj": torch.ones(32)}):
        ablated = model(tokens).logits
        raise RuntimeError
    torch.testing.assert_close(model(tokens).logits, before, rtol=0, atol=0)
    model.transformer.h[LAYER].mlp.c_fc.weight[:, ::2] = 0
    torch.testing.assert_close(model(tokens).logits, ablated, rtol=0, atol=0)
    answers = ablated[:, -1].argmax(-1)
    assert next_token_accuracy(model, tokens, answers, batch_size=7) == 1.0


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
    model = build_gpt2(vocab_size=4, n_positions=1, n_layer=1, n_head=1, n_embd=width, n_inner=width, seed=0)
    sublayer = find_sublayer(model.requires_grad_(False), 0, "mlp")
    for linear in sublayer.maps.values():
        linear.weight.copy_(torch.eye(width))
    labels = torch.randint(classes, (600,), generator=generator)
    noise = 3 * torch.rand(600, width - classes, generator=generator)
    inputs = torch.cat([nn.functional.one_hot(labels, classes), noise], dim=1)
    replayed = ReplayedMLP(sublayer, inputs)
    settings = dict(lr=0.02, batch_size=100, num_epochs=30, mask_init=0.0, max_temp=200, generator=generator)
    circuit = find_circuit(sublayer, replayed, labels, l0_lambda=1e-4, **settings)
    kept = circuit.masks()["c_fc"] * circuit.masks()["c_proj"]
    assert kept.tolist() == [1.0] * classes + [0.0] * (width - classes)
    assert find_circuit(sublayer, replayed, labels, l0_lambda=10, **settings).l0_norm() == 0


def test_hard_soft_and_inverted_masks_and_their_size():
    model = build_gpt2(vocab_size=4, n_positions=2, n_layer=1, n_head=1, n_embd=4, n_inner=6, seed=0)
    masks = NeuronMasks(find_sublayer(model, 0, "mlp"), init=0.0)
    masks.scores["c_fc"].data = torch.tensor([-1.0, 0.0, 0.5, 2.0, -0.1, 0.1])
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
