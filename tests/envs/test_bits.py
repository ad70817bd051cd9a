"""Bits in bytes: counted as a plain sum counts them, and drawn with the chances that are promised."""

from __future__ import annotations

import pytest
import torch

from envs.bits import count_ones, random_events


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("width", [1, 7, 8, 64, 784, 2040, 2048, 5000, 5001])
@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.bool])
def test_ones_are_counted(width: int, kind: torch.dtype) -> None:
    some = (torch.rand(3, width, generator=generator()) < 0.5).to(kind)
    for bits in (some, torch.ones_like(some), torch.zeros_like(some)):  # all ones: no byte overflows
        assert count_ones(bits).tolist() == bits.sum(1).tolist()
    assert count_ones(some.view(3, 1, width)).tolist() == some.sum(1).tolist()
    assert count_ones(some.T.contiguous().T).tolist() == some.sum(1).tolist()


@pytest.mark.parametrize("chance", [0, 1, 200, 2**15 - 1, 2**15, 2**15 + 1, 60_000, 2**16 - 1, 2**16])
def test_events_have_their_chance(chance: int) -> None:
    size = 4_000_003
    events = random_events(chance, size, generator(), "cpu")
    assert events.shape == (size,)
    expected, deviation = size * chance / 2**16, (size * chance / 2**16 * (1 - chance / 2**16)) ** 0.5
    assert abs(int(events.sum()) - expected) <= 4 * deviation  # exact for never and always
    if chance == 2**15:
        centred = events.float() - 0.5
        for apart in (1, 2, 3, 4):  # four are of one word
            assert 4 * (centred[apart:] * centred[:-apart]).mean().item() == pytest.approx(0, abs=0.003)
