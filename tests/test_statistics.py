"""Intervals, ranks and corrections, against known values and by simulation."""

import numpy as np
import pytest

from interp.statistics import (
    auroc,
    clustered_auroc_interval,
    clustered_interval,
    holm,
    interval,
    prediction_interval,
    rank_among,
)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    drawing = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        low, high = interval(drawing.random(80) < 0.3, resamples=300, seed=seed)
        covered += low <= 0.3 <= high
    assert 0.88 <= covered / 200 <= 0.99
    assert interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert np.isnan([interval([1.0]), prediction_interval([1.0])]).all()
    assert prediction_interval([0.1, 0.2, 0.3]) == pytest.approx((-0.2968, 0.6968), abs=1e-4)  # Student's t


def test_an_interval_over_models_is_wider_than_over_their_pairs():
    shares, counts = [[0.2], [0.5], [0.8]], [[1000], [1000], [1000]]
    low, high = clustered_interval(shares, counts)
    pooled_low, pooled_high = clustered_interval([[0.2, 0.5, 0.8]], [[1000] * 3])
    assert low < 0.25 and high > 0.75
    assert pooled_high - pooled_low < 0.06 < high - low
    assert clustered_interval(shares, counts) == (low, high)  # the same each time


def test_auroc():
    assert auroc([2, 3], [0, 1]) == 1 and auroc([0, 1], [2, 3]) == 0
    assert auroc([1, 1], [1, 1]) == 0.5 and auroc([1, 2], [1, 0]) == 0.875
    assert np.isnan(auroc([], [1]))
    low, high = clustered_auroc_interval([[0.9, 0.8], [0.7, 0.1]], [[0.2, 0.1], [0.3, 0.2]])
    assert low < auroc([0.9, 0.8, 0.7, 0.1], [0.2, 0.1, 0.3, 0.2]) <= high == 1


def test_rank_among_draws():
    assert rank_among(5, [1, 2, 3, 4]) == 1 / 5  # never below 1 / (draws + 1)
    assert rank_among(2, [1, 2, 3, 4]) == 4 / 5
    assert rank_among(0, []) == 1


def test_holm():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])
    corrected = holm([0.01, np.nan, 0.02])
    assert np.isnan(corrected[1])
    np.testing.assert_allclose(corrected[[0, 2]], [0.02, 0.02])
