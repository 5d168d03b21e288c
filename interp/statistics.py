"""Statistics of figures and tables: intervals, ranks among random draws, corrections for many tests.

An interval is a 95 % percentile bootstrap. Where there are clusters (models), they are drawn first and then what is in
them; of a single cluster the interval is over what is in it, and says nothing about other models.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

TAILS = [0.025, 0.975]

Numbers = Sequence[float] | np.ndarray  # in a row


def interval(values: Numbers, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """A 95 % bootstrap interval of a mean; nan of fewer than two values."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return np.nan, np.nan
    if values.min() == values.max():  # scipy would warn
        return values[0], values[0]
    found = stats.bootstrap((values,), np.mean, n_resamples=resamples, method="percentile",
                            batch=max(1, 10**7 // len(values)), rng=np.random.default_rng(seed))
    low, high = found.confidence_interval
    return float(low), float(high)


def prediction_interval(values: Numbers) -> tuple[float, float]:
    """Where 95 % of further values would lie if these are normally distributed (Student's t); nan of fewer than two.

    For one published value beside several of our models: the interval of our mean leaves out what models differ by.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return np.nan, np.nan
    reach = stats.t.ppf(TAILS[1], len(values) - 1) * values.std(ddof=1) * np.sqrt(1 + 1 / len(values))
    return float(values.mean() - reach), float(values.mean() + reach)


def clustered_interval(shares: Sequence[Numbers], counts: Sequence[Numbers], resamples: int = 2000,
                       seed: int = 0) -> tuple[float, float]:
    """A 95 % bootstrap interval of a mean of shares, drawn over clusters and then over what is counted in them.

    shares: for each cluster (a model) those that were measured in it. counts: of how many pairs each is a share; to
    draw pairs with replacement is to draw from a binomial.
    """
    drawing = np.random.default_rng(seed)
    p, n = [np.asarray(some, float) for some in shares], [np.asarray(some, int) for some in counts]
    if len(p) == 1:  # the draws of the loop below, at once
        means = (drawing.binomial(n[0], p[0], (resamples, len(n[0]))) / n[0]).mean(1)
    else:
        means = np.empty(resamples)
        for i in range(resamples):
            drawn = drawing.integers(len(p), size=len(p))
            means[i] = np.mean(np.concatenate([drawing.binomial(n[k], p[k]) / n[k] for k in drawn]))
    low, high = np.quantile(means, TAILS)
    return float(low), float(high)


def auroc(positive: Numbers, negative: Numbers) -> float:
    """The probability that a positive lies above a negative, ties counting half; nan where one of them is empty."""
    if not len(positive) or not len(negative):
        return np.nan
    difference = np.subtract.outer(np.asarray(positive), np.asarray(negative))
    return float(np.mean((difference > 0) + (difference == 0) / 2))


def clustered_auroc_interval(positive: Sequence[Numbers], negative: Sequence[Numbers],
                             resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """A 95 % bootstrap interval of an AUROC over clusters, and then over the sites and variables in them."""
    drawing = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        drawn = drawing.integers(len(positive), size=len(positive))
        above, below = [np.concatenate([drawing.choice(some[k], len(some[k])) if len(some[k]) else np.empty(0)
                                        for k in drawn]) for some in (positive, negative)]
        if len(above) and len(below):
            found.append(auroc(above, below))
    low, high = np.quantile(found, TAILS) if found else (np.nan, np.nan)
    return float(low), float(high)


def rank_among(value: float, draws: Numbers) -> float:
    """The share of random draws, the value itself counted with them, that are at least as large: a p value.

    With n draws it is never below 1 / (n + 1): a claim at 0.05 needs 19 draws, at 0.01 it needs 99.
    """
    return (1 + int(np.sum(np.asarray(draws) >= value))) / (1 + len(draws))


def holm(p_values: Numbers) -> np.ndarray:
    """p values corrected for their number by Holm's step-down method, in their order; nan stays and is not counted."""
    p_values = np.asarray(p_values, dtype=float)
    corrected, known = np.full(len(p_values), np.nan), np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected
