"""The plastic input and the update of the traces: equations (1) to (3) of `memory.py`."""

from __future__ import annotations

import torch
from torch import Tensor


def plastic_input(before: Tensor, hebb: Tensor, alpha: Tensor) -> Tensor:
    """The traces' part of (1): Σ_i α[i,j] Hebb[i,j] h_{t-1}[i], `[B, n]`; `alpha` is `[n, n]` or, shared, `[1, 1]`."""
    if alpha.numel() == 1:
        return torch.bmm(before.unsqueeze(1), hebb).squeeze(1) * alpha
    return torch.bmm(before.unsqueeze(1), alpha * hebb).squeeze(1)


def advance(
    hebb: Tensor, before: Tensor, after: Tensor, eta: Tensor, rule: str, clip: float | None, out: Tensor | None = None
) -> Tensor:
    """The trace after a step, eq. (2), (3) or clipped, by `rule`; written to `out` if given, which may be `hebb`."""
    eta_x, y = (eta * before).unsqueeze(2), after.unsqueeze(1)
    if clip is not None:
        added = torch.addcmul(hebb, eta_x, y, out=out)
        return added.clamp(-clip, clip) if out is None else out.clamp_(-clip, clip)
    decayed = torch.mul(hebb, decay(after, eta, rule), out=out)
    return torch.addcmul(decayed, eta_x, y, out=out)


def decay(after: Tensor, eta: Tensor, rule: str) -> Tensor:
    """The decay factor of a trace: 1 - η in (2), 1 - η h_t[j]² in (3); broadcasts to `[B, n, n]`."""
    return (1 - eta * after.square()).unsqueeze(1) if rule == "oja" else (1 - eta).view(1, 1, 1)
