"""The mathematics of probes, counterfactual embeddings, LEACE and DAS: properties and plain versions."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from interp.methods.counterfactual import counterfactual_embeddings, measure_patches
from interp.methods.das import (
    Alignment,
    AlignmentSearch,
    boundary,
    interchange,
    load_alignment,
    save_alignment,
    search_alignment,
)
from interp.methods.erasure import decodability, erased_rank, fit_eraser, random_eraser
from interp.methods.probes import build_probe, evaluate_probe, train_probe
from interp.models.examples import Answer, Examples, Pairs
from interp.models.open_model import OpenModel


@pytest.fixture
def of_logits() -> OpenModel:
    """A model whose final hidden states are logits already."""
    model = OpenModel.__new__(OpenModel)
    model.direct, model.logits = False, lambda states: states
    return model


def clusters(generator, classes=4, count=800, d=12):
    """Points around a centre for each class: (count, d) and their classes (count,)."""
    labels = torch.randint(classes, (count,), generator=generator)
    centres = 3 * torch.randn(classes, d, generator=generator)
    return centres[labels] + torch.randn(count, d, generator=generator), labels


@pytest.mark.parametrize("intermediate_size, accuracy", [(-1, 0.6), (16, 1.0)])
def test_only_a_probe_with_a_hidden_layer_reads_what_is_not_linear(intermediate_size, accuracy, generator):
    points = torch.randn(1000, 2, generator=generator)
    labels = (points.prod(dim=1) > 0).long()
    probe = build_probe(2, 2, intermediate_size, seed=0)
    train_probe(probe, points, labels, lr=0.1, batch_size=100, num_epochs=30, generator=generator)
    assert evaluate_probe(probe, points, labels)[1] == pytest.approx(accuracy, abs=0.1)
    assert not any(parameter.requires_grad for parameter in probe.parameters())


@pytest.mark.parametrize("intermediate_size", [-1, 16])
def test_embeddings_of_all_examples_at_once_are_those_of_one_at_a_time(intermediate_size, generator):
    points, labels = clusters(generator, count=30)
    targets = (labels + 1) % 4
    probe = build_probe(12, 4, intermediate_size, seed=0)
    train_probe(probe, points, labels, lr=0.1, batch_size=10, num_epochs=20, generator=generator)
    together = counterfactual_embeddings(probe, points, targets, num_steps=50, lr=0.1)
    alone = []
    for point, target in zip(points, targets):  # plainly: the example alone, its own optimizer
        embedding = point.clone().requires_grad_(True)
        optimizer = torch.optim.AdamW([embedding], lr=0.1)
        for _ in range(50):
            optimizer.zero_grad()
            F.cross_entropy(probe(embedding), target).backward()
            optimizer.step()
        alone.append(embedding.detach())
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-4)
    assert (probe(together).argmax(-1) == targets).all()


def test_what_a_patch_did_is_counted_for_each_example(of_logits):
    base = Examples(*[torch.zeros(2, 1)] * 3, {}, Answer(torch.tensor([0, 1])))
    measured = measure_patches(
        of_logits, torch.nn.Identity(), embeddings=torch.eye(3)[[0, 1]], targets=torch.tensor([0, 2]),
        clean=torch.tensor([[4.0, 0.0, 0.0], [0.0, 5.0, 1.0]]),
        patched=torch.tensor([[0.0, 2.0, 0.0], [0.0, 3.0, 1.0]]),
        pairs=Pairs(base, base, Answer(torch.tensor([1, 2]))))
    assert {name: values.tolist() for name, values in measured.items()} == {
        "embedding_success": [True, False], "predicts_cf_label": [True, False],
        "predicts_original_label": [False, True], "logit_diff": [-0.5, 0.5]}


def test_after_leace_no_linear_classifier_beats_the_majority(generator):
    points, labels = clusters(generator)
    erased = fit_eraser(points, labels, 4)(points)
    majority = labels.bincount().max().item() / len(labels)
    before, after = (LogisticRegression(C=1e6, max_iter=2000).fit(x.numpy(), labels.numpy()).score(
        x.numpy(), labels.numpy()) for x in (points, erased))
    assert before > 0.95
    assert after <= majority + 0.01
    assert decodability(points, labels, 4, lr=0.1, num_steps=100, seed=0) > 0.95
    assert decodability(erased, labels, 4, lr=0.1, num_steps=100, seed=0) <= majority + 0.03
    assert (erased - points).norm() < points.norm()  # erased, not destroyed


def test_leace_does_not_depend_on_the_scale_of_activations(generator):
    """Those of the paper's models have a standard deviation of 0.004 to 0.011, many directions a far smaller one."""
    points, labels = clusters(generator)
    points = torch.cat([points, torch.randn(len(points), 20, generator=generator)
                        * torch.logspace(0, -2, 20)], 1)  # (points, 20 more directions)
    small = 0.006 * points / points.std()
    eraser = fit_eraser(small, labels, 4)
    found = LogisticRegression(C=1e6, max_iter=2000).fit(eraser(small).numpy() / 0.006, labels.numpy())
    assert found.score(eraser(small).numpy() / 0.006, labels.numpy()) <= labels.bincount().max() / len(labels) + 0.01

    def projector(scale: float, precision: str) -> torch.Tensor:
        fitted = fit_eraser(small * scale, labels, 4, precision)
        return fitted.proj_left @ fitted.proj_right

    for scale in (0.01, 100.0):
        torch.testing.assert_close(projector(scale, "float64"), projector(1.0, "float64"), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fit_eraser(small * scale, labels, 4)(small * scale), eraser(small) * scale,
                                   rtol=1e-3, atol=1e-5 * scale)
    assert (projector(100.0, "float32") - projector(1.0, "float32")).norm() > 0.05  # the published behaviour


def test_the_random_eraser_takes_as_many_dimensions_and_leaves_the_variable(generator):
    points, labels = clusters(generator)
    rank = erased_rank(fit_eraser(points, labels, 4))
    random = random_eraser(points, rank, generator)
    erased = random(points)
    assert rank == erased_rank(random) == torch.linalg.matrix_rank(points - erased) == 3  # of four classes
    torch.testing.assert_close(erased.mean(0), points.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(random(erased), erased, rtol=1e-4, atol=1e-4)
    assert decodability(erased, labels, 4, lr=0.1, num_steps=100, seed=0) > 0.9


def test_interchange_is_the_formula_and_its_ends_are_base_and_source(generator):
    d, base, source = 6, *torch.randn(2, 5, 6, generator=generator)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q
    gate = torch.rand(d, generator=generator)
    rows = [rotation @ ((1 - gate) * (rotation.T @ h) + gate * (rotation.T @ k)) for h, k in zip(base, source)]
    torch.testing.assert_close(interchange(rotation, gate, base, source), torch.stack(rows), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(interchange(rotation, torch.zeros(d), base, source), base)
    torch.testing.assert_close(interchange(rotation, torch.ones(d), base, source), source, rtol=1e-4, atol=1e-5)


def test_penalty_is_the_formula():
    search = AlignmentSearch(5, "cayley", seed=1)
    search.boundary.data = torch.tensor([0.7, -0.2])
    rotation = search.rotation.weight
    expected = (0.7 - 0.2 + sum(abs(rotation[i].sum() - 1) + abs(rotation[:, i].sum() - 1) for i in range(5)) / 10
                + sum(r * (1 - r) for r in rotation.flatten()) / 25)
    torch.testing.assert_close(search(torch.ones(2, 5), torch.ones(2, 5), 1.0)[1], expected)


def test_boundary_follows_its_formula():
    expected = [torch.sigmoid(torch.tensor(i / 2.0)) * torch.sigmoid(torch.tensor((0.5 * 4 - i) / 2.0))
                for i in range(4)]
    torch.testing.assert_close(boundary(torch.tensor(0.5), torch.arange(4.0), 2.0), torch.stack(expected))
    assert boundary(torch.tensor(0.5), torch.arange(100.0), 0.1)[[1, 49, 51, 99]].round().tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("orthogonal_map", ["cayley", "matrix_exp"])
def test_search_finds_a_planted_subspace_and_stays_orthogonal(orthogonal_map, of_logits, generator):
    """Two of eight dimensions, rotated, carry one of four values; the head reads just them."""
    d, count = 8, 600
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q
    values = torch.randint(4, (2, count), generator=generator)  # of base and of source
    corners = 2.0 * torch.tensor([[1, 0], [0, 1], [-1, 0], [0, -1]])
    base, source = (torch.cat([corners[value], torch.randn(count, d - 2, generator=generator)], dim=1) @ basis.T
                    for value in values)

    def head(activations, rows):
        return 3 * (activations @ basis)[:, :2] @ corners.T

    wanted, held_out = Answer(values[1]), torch.arange(400, 600)

    def accuracy(alignment):
        moved = alignment.intervene(base[held_out], source[held_out])
        return of_logits.is_right(head(moved, held_out), wanted[held_out]).double().mean().item()

    assert accuracy(Alignment(torch.eye(d), 1e-3)) < 0.5
    alignment, log = search_alignment(
        head, lambda logits, rows: of_logits.loss(logits, wanted[rows]), base, source, torch.arange(400), epochs=60,
        accuracy=accuracy, lr=0.01, boundary_lr=0.02, batch_size=64, orthogonal_map=orthogonal_map, seed=0)
    assert accuracy(alignment) == max(row["selection_acc"] for row in log) > 0.9
    assert alignment.rotation_error() < 1e-5 and log[-1]["width"] < 0.7  # as narrow as it can be
    assert [row["epoch"] for row in log] == list(range(1, 61)) and log[-1]["temperature"] == pytest.approx(0.1)


def test_search_takes_the_steps_of_its_formulas_and_of_equal_epochs_the_last(generator):
    """Plainly: the gate, the loss, both learning rates' warm-up in a tenth of the steps and decay, the temperature."""
    base, source = torch.randn(2, 40, 6, generator=generator)
    wanted, steps = torch.randint(6, (40,), generator=generator), 20

    def loss_of(states, rows):  # the states are logits
        return F.cross_entropy(states, wanted[rows], reduction="none")

    alignment, log = search_alignment(
        lambda activations, rows: activations, loss_of, base, source, torch.arange(32), lr=0.02, boundary_lr=0.05,
        batch_size=8, epochs=5, orthogonal_map="cayley", seed=4, accuracy=lambda candidate: 0.5)
    start = AlignmentSearch(6, "cayley", seed=4)
    optimizers = {0.02: torch.optim.Adam(start.rotation.parameters()), 0.05: torch.optim.Adam([start.boundary])}
    losses, places = [], torch.arange(6)
    for step in range(steps):
        rows, temperature = torch.arange(32)[step % 4 * 8:][:8], 50 - 49.9 * step / (steps - 1)
        for lr, optimizer in optimizers.items():
            optimizer.param_groups[0]["lr"] = lr * min(step / 2, (steps - step) / (steps - 2))
            optimizer.zero_grad()
        rotation, width = start.rotation.weight, start.boundary[0].clamp(1e-3, 1)
        gate = torch.sigmoid(places / temperature) * torch.sigmoid((6 * width - places) / temperature)
        moved = ((1 - gate) * (base[rows] @ rotation) + gate * (source[rows] @ rotation)) @ rotation.T
        penalty = (start.boundary.sum() + (rotation * (1 - rotation)).mean()
                   + ((rotation.sum(0) - 1).abs().mean() + (rotation.sum(1) - 1).abs().mean()) / 2)
        losses.append(loss_of(moved, rows).mean() + penalty)
        losses[-1].backward()
        for optimizer in optimizers.values():
            optimizer.step()
    assert [row["loss"] for row in log] == pytest.approx([sum(losses[i:i + 4]).item() / 4 for i in range(0, 20, 4)])
    torch.testing.assert_close(alignment.rotation, start.rotation.weight.detach(), rtol=1e-4, atol=1e-5)
    assert alignment.width == log[-1]["width"] == pytest.approx(start.width().item()) != log[0]["width"]


def test_a_saved_alignment_gives_the_same_accuracy(tmp_path, generator):
    alignment = AlignmentSearch(10, "cayley", seed=3).alignment()
    base, source = torch.randn(2, 50, 10, generator=generator)
    save_alignment(alignment, tmp_path / "a.safetensors", {"location": "attn"})
    loaded, about = load_alignment(tmp_path / "a.safetensors")
    assert about == {"location": "attn"}
    torch.testing.assert_close(loaded.intervene(base, source), alignment.intervene(base, source), rtol=0, atol=0)
