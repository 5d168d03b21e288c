"""Statistics of figures and tables: intervals, ranks among random draws, corrections for many tests.

Intervals are of 95 %: of a share Clopper and Pearson's, of a mean over models Student's t.
Of a single model the interval is over the pairs, and says nothing about other models.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

TAILS = [0.025, 0.975]

Numbers = Sequence[float] | np.ndarray  # in a row


def interval(values: Numbers, of_next: bool = False) -> tuple[float, float]:
    """The 95 % interval of a mean over models, by Student's t; nan of fewer than two. of_next: of one further value."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return np.nan, np.nan
    reach = stats.t.ppf(TAILS[1], len(values) - 1) * values.std(ddof=1) * np.sqrt(of_next + 1 / len(values))
    return float(values.mean() - reach), float(values.mean() + reach)


def share_interval(hits: float, count: float) -> tuple[float, float]:
    """The 95 % interval of a share by Clopper and Pearson (Biometrika 1934), which covers at least that; nan of none.

    A percentile bootstrap has no width at shares of 0 and 1, and near them covers half of what it claims.
    """
    if not count:
        return np.nan, np.nan
    low, high = stats.beta.ppf(TAILS, [hits, hits + 1], [count - hits + 1, count - hits])
    return float(0 if np.isnan(low) else low), float(1 if np.isnan(high) else high)


def exceeds(hits: Numbers, others: Numbers) -> bool:
    """Whether hits are more frequent than others on the same pairs: McNemar's exact test, one-sided at 2.5 %."""
    only, lost = int(np.sum(np.asarray(hits) > np.asarray(others))), int(np.sum(np.asarray(hits) < np.asarray(others)))
    return share_interval(only, only + lost)[0] > 0.5


def prediction_interval(values: Numbers) -> tuple[float, float]:
    """Where 95 % of further values would lie if these are normally distributed (Student's t); nan of fewer than two.

    For one published value beside several of our models: the interval of our mean leaves out what models differ by.
    """
    return interval(values, of_next=True)


def clustered_interval(shares: Sequence[Numbers], counts: Sequence[Numbers]) -> tuple[float, float]:
    """A 95 % interval of the mean of shares in clusters (models): Student's t over the clusters' means.

    shares: for each cluster those that were measured in it. counts: of how many pairs each is a share. It is never
    narrower than the interval of all pairs as if they were of one cluster, which it is of a single one.
    """
    p, n = [np.asarray(some, float) for some in shares], [np.asarray(some, float) for some in counts]
    pooled = share_interval(sum(np.sum(share * count) for share, count in zip(p, n)), sum(map(np.sum, n)))
    if len(p) < 2:
        return pooled
    low, high = interval([np.mean(share) for share in p])
    return max(0, min(pooled[0], low)), min(1, max(pooled[1], high))


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
