"""Statistics of figures and tables, once: intervals, ranks among random draws, corrections for many tests.

An interval is a 95 % percentile bootstrap (scipy). Where there are clusters (model seeds), they are drawn first and
then what is in them; with a single one the interval is over what is in it alone, and says nothing of other models.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000

Numbers = Sequence[float] | np.ndarray  # in a row


def interval(values: Numbers, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """A 95 % bootstrap interval of a mean; nan where there are no two values."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return np.nan, np.nan
    if values.min() == values.max():  # nothing to draw from; scipy would warn
        return values[0], values[0]
    found = stats.bootstrap((values,), np.mean, n_resamples=resamples, confidence_level=LEVEL, method="percentile",
                            batch=max(1, 10**7 // len(values)), rng=np.random.default_rng(seed))
    low, high = found.confidence_interval
    return float(low), float(high)


def prediction_interval(values: Numbers) -> tuple[float, float]:
    """Where 95 % of further values would lie, if these are normally distributed (Student's t); nan of fewer than two.

    For a single published value beside several of our models: the interval of our mean would leave out what models
    differ by.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return np.nan, np.nan
    reach = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) * np.sqrt(1 + 1 / len(values))
    return float(values.mean() - reach), float(values.mean() + reach)


def clustered_interval(shares: Sequence[Numbers], counts: Sequence[Numbers], resamples: int = RESAMPLES,
                       seed: int = 0) -> tuple[float, float]:
    """A 95 % bootstrap interval of a mean of shares, drawn over clusters and then over what is counted in them.

    Args:
        shares: for each cluster (a model seed) the shares that were measured in it.
        counts: of how many pairs each of them is a share. Drawing pairs with replacement is drawing from a binomial.
    """
    drawing = np.random.default_rng(seed)
    p, n = [np.asarray(own, float) for own in shares], [np.asarray(own, int) for own in counts]
    if len(p) == 1:  # nothing to draw clusters from: the same draws as below, at once
        return middle((drawing.binomial(n[0], p[0], (resamples, len(n[0]))) / n[0]).mean(1))
    means = np.empty(resamples)
    for i in range(resamples):
        drawn = drawing.integers(len(p), size=len(p))
        means[i] = np.mean(np.concatenate([drawing.binomial(n[k], p[k]) / n[k] for k in drawn]))
    return middle(means)


def auroc(positive: Numbers, negative: Numbers) -> float:
    """The probability that a positive lies above a negative, ties counting half; nan where one of them is empty."""
    if not len(positive) or not len(negative):
        return np.nan
    return float(stats.mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative)))


def clustered_auroc_interval(positive: Sequence[Numbers], negative: Sequence[Numbers],
                             resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """A 95 % bootstrap interval of an AUROC over clusters, and then over the sites and variables in them."""
    drawing = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        drawn = drawing.integers(len(positive), size=len(positive))
        pools = [np.concatenate([drawing.choice(own[k], len(own[k])) if len(own[k]) else np.empty(0) for k in drawn])
                 for own in (positive, negative)]
        if all(len(pool) for pool in pools):
            above = pools[0][:, None] - pools[1][None]
            found.append(float(np.mean((above > 0) + (above == 0) / 2)))
    return middle(found) if found else (np.nan, np.nan)


def middle(values: Numbers) -> tuple[float, float]:
    """Between which values the middle 95 % of them lie."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
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
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(steps) else steps
    return corrected
