"""Intervals over seeds against slow, obvious ones."""

from __future__ import annotations

import numpy as np
import pytest

from agents.comparison.intervals import band, interquartile_mean, mean_interval


def test_bootstrap_is_the_percentiles_of_resampled_means() -> None:
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    draw = np.random.default_rng(1)
    means = [draw.choice(values, len(values)).mean() for _ in range(20_000)]
    found = mean_interval(values)
    assert found is not None
    assert found == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.25)
    assert found == mean_interval(values)  # the same every time


def test_t_interval_is_that_of_the_tables() -> None:
    """1 to 5: standard error √(2.5 / 5), and 2.7764 of it at four degrees of freedom."""
    half = 2.7764 * np.sqrt(0.5)
    assert mean_interval([1, 2, 3, 4, 5], "t") == pytest.approx((3 - half, 3 + half), rel=1e-4)


@pytest.mark.parametrize("method", ["bootstrap", "t"])
def test_equal_seeds_have_an_interval_of_no_width_and_one_seed_none(method: str) -> None:
    assert mean_interval([2.0, 2.0, 2.0], method) == (2.0, 2.0)  # type: ignore[arg-type]
    assert mean_interval([2.0], method) is None  # type: ignore[arg-type]


def test_a_band_is_an_interval_at_every_point() -> None:
    values = np.random.default_rng(0).normal(size=(6, 4))
    low, high = band(values)
    for point in range(4):
        assert mean_interval(values[:, point]) == pytest.approx((low[point], high[point]), abs=0.1)


def test_the_interquartile_mean_leaves_out_the_extremes() -> None:
    assert interquartile_mean([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -100.0]) == 3.5
    assert interquartile_mean([1.0, 2.0, 9.0]) == 4.0
