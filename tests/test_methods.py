"""The mathematics of probes, LEACE, DAS and statistics: known values, properties and plain versions.

The scripts' are in test_scripts.py.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from interp import statistics
from interp.methods.das import Alignment, AlignmentSearch, search_alignment
from interp.methods.erasure import decodability, erased_rank, fit_eraser, random_eraser
from interp.methods.probes import build_probe, evaluate_probe, train_probe


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


def test_of_few_rows_only_a_probe_held_out_tells_that_nothing_is_left(generator):
    """Activations that have nothing to do with the labels, about as many rows as dimensions."""
    train, test = torch.randn(2, 60, 64, generator=generator)
    labels = torch.arange(60) % 2
    erased, other = (fit_eraser(train, labels, 2)(points) for points in (train, test))
    how = {"lr": 0.1, "num_steps": 100, "seed": 0}
    assert decodability(other, labels, 2, **how) > 0.95  # the published way
    assert decodability(erased, labels, 2, heldout=(other, labels), **how) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("orthogonal_map", ["cayley", "matrix_exp"])
def test_search_finds_a_planted_subspace_and_stays_orthogonal(orthogonal_map, generator):
    """Two of eight dimensions, rotated, carry one of four values; the head reads just them."""
    d, count = 8, 600
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q
    values = torch.randint(4, (2, count), generator=generator)  # of base and of source
    corners = 2.0 * torch.tensor([[1, 0], [0, 1], [-1, 0], [0, -1]])
    base, source = (torch.cat([corners[value], torch.randn(count, d - 2, generator=generator)], dim=1) @ basis.T
                    for value in values)

    def head(activations, rows):
        return 3 * (activations @ basis)[:, :2] @ corners.T

    def accuracy(alignment):
        moved = alignment.intervene(base[400:], source[400:])
        return (head(moved, None).argmax(-1) == values[1, 400:]).double().mean().item()

    assert accuracy(Alignment.of(torch.eye(d), 1e-3)) < 0.5
    alignment, log = search_alignment(
        lambda activations, rows: F.cross_entropy(head(activations, rows), values[1, rows], reduction="none"),
        base, source, epochs=60, accuracy=accuracy, lr=0.01, boundary_lr=0.02, batch_size=64, seed=0,
        orthogonal_map=orthogonal_map)
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
        loss_of, base[:32], source[:32], lr=0.02, boundary_lr=0.05, batch_size=8, epochs=5,
        orthogonal_map="cayley", seed=4, accuracy=lambda candidate: 0.5)
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


# ------------------------------------------------------------------------------ statistics

@pytest.mark.parametrize("share", [0, 0.01, 0.05, 0.2, 0.5, 0.95, 1])
@pytest.mark.parametrize("count", [5, 50, 500, 5000])
def test_the_interval_of_a_share_covers_it_as_often_as_it_says(count, share):
    """At least so often; more often with few pairs and near 0 and 1, where an exact interval cannot be narrower."""
    hits, times = np.unique(np.random.default_rng(0).binomial(count, share, 4000), return_counts=True)
    ends = np.array([statistics.share_interval(some, count) for some in hits])
    covered = times[(ends[:, 0] <= share) & (share <= ends[:, 1])].sum() / 4000
    assert covered >= 0.943 and (covered <= 0.97 or count * min(share, 1 - share) < 30)


@pytest.mark.parametrize("models", [2, 3, 5, 9])
def test_the_interval_over_models_covers_the_mean_of_all_of_them(models):
    drawing, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        shares = drawing.binomial(500, drawing.beta(6, 14, models)) / 500
        low, high = statistics.clustered_interval(shares.reshape(-1, 1), np.full((models, 1), 500))
        covered += low <= 0.3 <= high
    assert 0.93 <= covered / 1000 <= 0.97


def test_intervals_of_few():
    assert np.isnan([statistics.interval([1.0]), statistics.prediction_interval([1.0])]).all()
    assert np.isnan(statistics.share_interval(0, 0)).all() and statistics.share_interval(0, 100)[1] > 0.03
    assert statistics.interval([0.1, 0.2, 0.3]) == pytest.approx((-0.0484, 0.4484), abs=1e-4)  # Student's t
    assert statistics.prediction_interval([0.1, 0.2, 0.3]) == pytest.approx((-0.2968, 0.6968), abs=1e-4)
    low, high = statistics.clustered_interval([[0.2, 0.5, 0.8]], [[1000] * 3])  # of one model: over its pairs
    assert (low, high) == statistics.share_interval(1500, 3000) and high - low < 0.04


def test_a_method_exceeds_another_if_pairs_that_only_it_changes_are_too_many_for_chance():
    few, many = np.repeat([1, 0], [5, 95]), np.repeat([1, 0], [6, 94])
    assert statistics.exceeds(many, np.zeros(100)) and not statistics.exceeds(few, np.zeros(100))
    assert not statistics.exceeds(np.zeros(100), many) and not statistics.exceeds([], [])
    assert not statistics.exceeds(np.roll(many, 50), many)  # as many lost as gained


def test_auroc():
    assert statistics.auroc([2, 3], [0, 1]) == 1 and statistics.auroc([0, 1], [2, 3]) == 0
    assert statistics.auroc([1, 1], [1, 1]) == 0.5 and statistics.auroc([1, 2], [1, 0]) == 0.875
    assert np.isnan(statistics.auroc([], [1]))
    low, high = statistics.clustered_auroc_interval([[0.9, 0.8], [0.7, 0.1]], [[0.2, 0.1], [0.3, 0.2]])
    assert low < statistics.auroc([0.9, 0.8, 0.7, 0.1], [0.2, 0.1, 0.3, 0.2]) <= high == 1


def test_rank_among_draws():
    assert statistics.rank_among(5, [1, 2, 3, 4]) == 1 / 5  # never below 1 / (draws + 1)
    assert statistics.rank_among(2, [1, 2, 3, 4]) == 4 / 5
    assert statistics.rank_among(0, []) == 1


def test_holm():
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(statistics.holm([0.6, 0.7]), [1, 1])
    corrected = statistics.holm([0.01, np.nan, 0.02])
    assert np.isnan(corrected[1])
    np.testing.assert_allclose(corrected[[0, 2]], [0.02, 0.02])
