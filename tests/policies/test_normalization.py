"""The statistics themselves: moments against numpy, values that an update leaves alone, what is not normalised."""

from __future__ import annotations

import math

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from policies.normalization import ObsNorm, ValueNorm


def head_and_inputs() -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(5, 1), torch.randn(7, 5)


def update(norm: ValueNorm, returns: torch.Tensor, head: nn.Linear) -> None:
    norm.update(returns.mean(), returns.var(correction=0), returns.numel(), head)


def test_moments_of_values_are_weighted_over_all_samples() -> None:
    """As by hand: each batch counts by its age in samples, and the weights add up to 1 from the first batch on."""
    head, _ = head_and_inputs()
    norm, generator = ValueNorm(), torch.Generator().manual_seed(1)
    sizes, ages = (4000, 7000, 2000), (9000, 2000, 0)
    batches = [size + 100 * torch.rand(size, generator=generator) for size in sizes]
    for batch in batches:
        update(norm, batch, head)
    samples = torch.cat(batches).double().numpy()
    weights = np.concatenate(
        [
            np.full(size, (1 - math.exp(-size / norm.HORIZON)) * math.exp(-age / norm.HORIZON) / size)
            for size, age in zip(sizes, ages, strict=True)
        ]
    )
    mean = np.average(samples, weights=weights)
    std = math.sqrt(np.average((samples - mean) ** 2, weights=weights))
    np.testing.assert_allclose([float(norm.mean), float(norm.std)], [mean, std], rtol=1e-4)


def test_an_update_leaves_the_values_where_they_were() -> None:
    head, inputs = head_and_inputs()
    norm = ValueNorm()
    update(norm, 50 + 10 * torch.randn(1000), head)
    before = norm(head(inputs))
    update(norm, -900 + 300 * torch.randn(30_000), head)
    assert float(norm.mean) < -500
    torch.testing.assert_close(norm(head(inputs)), before, rtol=1e-4, atol=1e-2)


def test_the_first_returns_place_the_values_at_their_mean() -> None:
    """An untrained head knows nothing worth keeping: its numbers, of order 1, are taken as deviations."""
    head, inputs = head_and_inputs()
    norm = ValueNorm()
    torch.testing.assert_close(norm(head(inputs)), head(inputs))
    heads = head(inputs).detach()
    returns = -1000 + 5 * torch.randn(1000)
    update(norm, returns, head)
    torch.testing.assert_close(norm(head(inputs)), returns.mean() + returns.std(correction=0) * heads)


def test_returns_that_hardly_differ_are_not_blown_up() -> None:
    head, _ = head_and_inputs()
    norm = ValueNorm()
    update(norm, torch.full((100,), 3.0), head)
    assert float(norm.std) == torch.tensor(ValueNorm.FLOOR)
    assert torch.isfinite(head.weight).all()


def test_moments_of_observations_are_those_of_all_samples() -> None:
    norm = ObsNorm(spaces.Box(-9, 9, (3,)))
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randn(size, 3, generator=generator) * torch.tensor([1.0, 50.0, 0.01]) + 7 for size in (5, 900, 40)]
    for batch in batches:
        norm.update({"": (batch.mean(0), batch.var(0, correction=0), len(batch))})
    mean, variance = norm.moments(0)
    samples = torch.cat(batches)
    torch.testing.assert_close(mean, samples.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(variance, samples.var(0, correction=0), rtol=1e-3, atol=1e-6)
    seen = norm(samples)
    torch.testing.assert_close(seen.mean(0), torch.zeros(3), rtol=0, atol=1e-2)
    torch.testing.assert_close(seen.std(0), torch.ones(3), rtol=1e-2, atol=0)


def test_only_numbers_are_normalised_and_all_are_bounded() -> None:
    space = spaces.Dict(
        {
            "speed": spaces.Box(-np.inf, np.inf, (2,)),
            "camera": spaces.Box(0, 255, (36, 36, 3), np.uint8),
            "key": spaces.Discrete(3),
            "doors": spaces.MultiBinary(4),
            "counts": spaces.Box(0, 100, (2,), np.int32),
        }
    )
    norm = ObsNorm(space)
    assert set(norm.names) == {"speed", "counts"}
    obs = {name: torch.as_tensor(np.asarray(entry.sample()))[None] for name, entry in space.spaces.items()}
    obs["speed"] = torch.tensor([[1e6, -3.0]])
    seen = norm(obs)
    assert list(seen) == list(obs)
    torch.testing.assert_close(seen["speed"], torch.tensor([[norm.CLIP, -3.0]]))
    assert seen["counts"].dtype == torch.float32
    for name in ("camera", "key", "doors"):
        assert seen[name] is obs[name]
