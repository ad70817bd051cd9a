"""Gaussian noise as a function of the inputs so far, so that a replayed step draws the same numbers.

A memory that samples must return the same output for the same input and state; otherwise acting, replay and a loaded
agent would differ. Therefore it uses no random generator. The state contains a seed: a hash of all inputs since the
episode started. The noise is a hash of this seed and of each number's index, as in counter-based generators (Salmon et
al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011). Two batch entries draw the same noise only while their inputs
are equal. Inputs are rounded first, so that the last bits of floats do not matter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
SEEDS = 1 << 24
"""Number of seeds: all are integers that float32 represents exactly, because states are floating point."""
RESOLUTION = 64
"""Inputs are rounded to 1 / RESOLUTION before they are hashed."""


def mix(h: Tensor) -> Tensor:
    """Mixes 32-bit numbers stored as int64; each bit of the result depends on all bits (MurmurHash3's finaliser)."""
    h = h & MASK
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & MASK
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & MASK
    return h ^ (h >> 16)


def fingerprint(x: Tensor, dims: int = 1) -> Tensor:
    """Hashes `x` over all but its first `dims` dimensions; int64."""
    rounded = (x.detach().flatten(dims) * RESOLUTION).round().to(torch.int64)
    places = torch.arange(rounded.shape[-1], device=x.device)
    return mix((rounded * (mix(places * 0x9E3779B1 + 0x7F4A7C15) | 1)).sum(-1))


def next_seed(seed: Tensor, input_hash: Tensor) -> Tensor:
    """The seed after `input_hash`, a `fingerprint`; both `[B]`, the seed in the memory's own dtype."""
    number = seed.detach().to(torch.int64)
    return (mix(number * 0x9E3779B1 + input_hash + 0x632BE5AB) % SEEDS).to(seed.dtype)


def gaussian(seed: Tensor, shape: tuple[int, ...], stream: int) -> Tensor:
    """Standard normal numbers `[*seed.shape, *shape]`, by Box and Muller's transform of two hashes.

    Args:
        seed: from `next_seed`, of any shape.
        shape: shape of the noise for each seed.
        stream: index of the draw, for several independent draws from one seed.
    """
    places = torch.arange(math.prod(shape), device=seed.device)
    begin = mix(seed.detach().to(torch.int64).unsqueeze(-1) * 0x27D4EB2F + stream * 0x165667B1 + 0x3C6EF372)
    bits = [mix(begin * 0x9E3779B1 + (2 * places + half) * 0x85EBCA77 + begin) for half in (0, 1)]
    u, v = ((number.to(seed.dtype) + 0.5) / 2**32 for number in bits)
    radius = (-2 * u.log()).clamp(min=0).sqrt()
    return (radius * (2 * math.pi * v).cos()).view(*seed.shape, *shape)
