"""Random bits, one per byte: drawn and counted as 64-bit words, many times faster than byte by byte."""

from __future__ import annotations

import torch
from torch import Tensor

_WORDS = 255
"""Number of words that can be added before a byte of the sum overflows."""


def random_words(count: int, generator: torch.Generator | None, device: torch.device | str) -> Tensor:
    """Random 64-bit words, int64 `[count]`; one of the 2⁶⁴ values never occurs."""
    limit = 2**63
    return torch.randint(-limit, limit - 1, (count,), generator=generator, device=device)


def random_events(chance: int, size: int, generator: torch.Generator | None, device: torch.device | str) -> Tensor:
    """Independent events, uint8 `[size]`: 1 with the probability `chance` / 2¹⁶, else 0. 16 random bits decide each."""
    drawn = random_words(-(-size // 4), generator, device).view(torch.int16)[:size]
    events = torch.empty(size, dtype=torch.uint8, device=drawn.device)
    if chance >= 2**16:  # the threshold would not be a 16-bit number
        return events.fill_(1)
    return torch.lt(drawn, chance - 2**15, out=events)  # into bytes twice as fast as into bool


def count_ones(bits: Tensor) -> Tensor:
    """The number of ones in each row, int64 `[N]`.

    Args:
        bits: int8, uint8 or bool `[N, ...]`, of zeros and ones only.
    """
    rows = bits.flatten(1).contiguous()
    if rows.shape[1] % 8:
        return rows.sum(1)
    words = rows.view(torch.int64)
    parts = [words[:, first : first + _WORDS].sum(1) for first in range(0, words.shape[1], _WORDS)]
    return torch.stack(parts, 1).view(torch.uint8).sum(1)


def count_common(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of ones in both of two maps of bits, in the first and in the second.

    Args:
        a, b: int8 `[..., H, W]`.

    Returns:
        Float32 `[...]` each.
    """
    if a.is_cuda:  # in few kernels; elsewhere the words of `count_ones` are faster
        both, first, second = (each.sum((-2, -1), dtype=torch.float32) for each in (a & b, a, b))
        return both, first, second
    counts = (count_ones(bits.flatten(0, -3)).view(bits.shape[:-2]) for bits in (a & b, a ^ b, b))
    both, differ, second = (number.float() for number in counts)
    return both, differ + 2 * both - second, second
