"""SALU's attention over the table, and the parts of its interaction vectors."""

from __future__ import annotations

import torch
from torch import Tensor


def attend(read_keys: Tensor, keys: Tensor, used: Tensor) -> Tensor:
    """Read weights a over the rows of all heads, `[B, H, C H]`; zero where not `used`.

    Args:
        read_keys: k^r, `[B, H, d_k]`.
        keys: K, `[B, C, H, d_k]`.
        used: bool `[B, C]`, the steps that may be read; if all are false, all weights are equal.
    """
    scores: Tensor = torch.bmm(read_keys, keys.flatten(1, 2).transpose(1, 2)) / keys.shape[3] ** 0.5
    unread = (~used).repeat_interleave(keys.shape[2], 1).unsqueeze(1)
    return scores.masked_fill(unread, torch.finfo(scores.dtype).min).softmax(2)


def parts(vectors: Tensor, heads: int, key_size: int) -> list[Tensor]:
    """Splits interaction vectors `[..., H (2 d_k + d_v)]` into views: k^r, k^w `[..., H, d_k]`, v^w `[..., H, d_v]`."""
    n_keys = heads * key_size
    pieces = torch.split(vectors, [n_keys, n_keys, vectors.shape[-1] - 2 * n_keys], -1)
    return [piece.view(*piece.shape[:-1], heads, -1) for piece in pieces]
