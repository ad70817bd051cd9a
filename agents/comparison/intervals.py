"""Statistics over seeds: SciPy's bootstrap and t intervals, and the interquartile mean that rliable reports.

rliable takes its intervals from `arch`, which fails to import with current versions of pandas. For a single task, its
percentile bootstrap over runs equals `scipy.stats.bootstrap`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Method = Literal["bootstrap", "t"]
Array = np.ndarray[Any, np.dtype[np.float64]]

_RESAMPLES = 5_000
_CELLS = 20_000_000
"""Numbers that SciPy draws at once: 160 MB."""


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float


def mean_interval(values: ArrayLike, method: Method = "bootstrap") -> Interval | None:
    """95 % confidence interval of the mean over seeds; None for a single seed.

    Args:
        values: one score per seed.
        method: "bootstrap" resamples the seeds and takes percentiles, as rliable does; it is too narrow for fewer than
            about five seeds. "t" is Student's, which assumes normal scores.
    """
    low, high = band(np.asarray(values, dtype=float)[:, None], method)
    return None if np.isnan(low[0]) else Interval(float(low[0]), float(high[0]))


def band(values: Array, method: Method = "bootstrap") -> tuple[Array, Array]:
    """95 % confidence interval of the mean at every point of a curve.

    Args:
        values: one row per seed, `[seeds, points]`.
        method: as in `mean_interval`.

    Returns:
        Lower and upper ends, `[points]` each; NaN for a single seed.
    """
    from scipy import stats  # takes a second to import

    seeds, points = values.shape
    if seeds < 2:
        return np.full(points, np.nan), np.full(points, np.nan)
    if method == "t":
        half = stats.t.ppf(0.975, seeds - 1) * stats.sem(values, axis=0)
        mean = values.mean(0)
        return mean - half, mean + half
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=max(1, _CELLS // values.size),
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return found.confidence_interval.low, found.confidence_interval.high


def interquartile_mean(values: ArrayLike) -> float:
    """Mean of the middle half: without the best and the worst quarter of the seeds (all of up to three are used)."""
    from scipy import stats

    return float(stats.trim_mean(values, 0.25))
