"""The addressing equations of the differentiable neural computer as pure functions.

Graves et al., "Hybrid computing using a neural network with dynamic external memory", Nature 538 (2016), Methods. With
one write head these are its equations; several write heads are combined as in the released code
(google-deepmind/dnc, `dnc/addressing.py` and `dnc/access.py`). Sizes: B batch, N slots, W word size, R read heads,
H write heads. Nothing is written in place. All derivatives are finite, also for a zero memory, equal rows, and slots
that are all free or all in use.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-6
"""Added to squared norms, as in the released code, so that the norm of a zero word can be inverted."""

USAGE_FLOOR = 1e-30
"""Added to usages in products of them; see `allocation_weights`."""


def oneplus(x: Tensor) -> Tensor:
    """1 + log(1 + e^x), in [1, ∞)."""
    return 1 + F.softplus(x)


def inverse_norms(words: Tensor) -> Tensor:
    """1 / |m| of words `[..., W]`, at most 1 / √`NORM_EPS`: `[...]`."""
    return (words.square().sum(-1) + NORM_EPS).rsqrt()


def content_weights(memory: Tensor, keys: Tensor, strengths: Tensor) -> Tensor:
    """C(M, k, β)[i] = softmax_i(β cos(k, M[i])).

    Args:
        memory: M, `[B, N, W]`.
        keys: k of K heads, `[B, K, W]`.
        strengths: β, `[B, K]`.

    Returns:
        A distribution over the slots for each head, `[B, K, N]`.
    """
    return similar_to(sharpened(keys, strengths), memory)


def sharpened(keys: Tensor, strengths: Tensor) -> Tensor:
    """β k / |k| of K heads, `[B, K, W]`; arguments as of `content_weights`."""
    return keys * (strengths * inverse_norms(keys))[..., None]


def similar_to(sharpened_keys: Tensor, memory: Tensor) -> Tensor:
    """`content_weights` of `sharpened` keys."""
    return (sharpened_keys @ memory.transpose(1, 2) * inverse_norms(memory)[:, None]).softmax(2)


def next_usage(usage: Tensor, write_weights: Tensor, read_weights: Tensor, free_gates: Tensor) -> Tensor:
    """u_t = (u_{t-1} + w^w_{t-1} - u_{t-1} ∘ w^w_{t-1}) ∘ ψ_t with the retention ψ_t = Π_i (1 - f^i_t w^{r,i}_{t-1}).

    The writes of several heads count as one of weight 1 - Π_h (1 - w^{w,h}).

    Args:
        usage: u_{t-1}, `[B, N]`.
        write_weights: w^w_{t-1}, `[B, H, N]`.
        read_weights: w^r_{t-1}, `[B, R, N]`.
        free_gates: f_t, `[B, R]`.

    Returns:
        u_t, `[B, N]`, in [0, 1].
    """
    retention = _product(1 - free_gates[..., None] * read_weights)
    written = write_weights[:, 0] if write_weights.shape[1] == 1 else 1 - _product(1 - write_weights)
    return torch.addcmul(usage, written, 1 - usage) * retention


def allocation_weights(usage: Tensor) -> Tensor:
    """a_t[φ_j] = (1 - u_t[φ_j]) Π_{i<j} u_t[φ_i], with φ the slots by ascending usage, equal ones by index.

    The sort is not differentiated, as in the paper; everything else is. The product is computed in logarithms, which
    torch differentiates without a synchronisation. `USAGE_FLOOR` is added to usages. That changes the weights by less
    than single precision and gives the right derivative at zero.

    Args:
        usage: u_t, `[B, N]`.

    Returns:
        `[B, N]`, with a sum of at most 1; all zero if every slot is in use.
    """
    ascending, order = usage.sort(dim=1, stable=True)
    logs = (ascending + USAGE_FLOOR).log()
    before = F.pad(logs.cumsum(1)[:, :-1], (1, 0)).exp()  # Π_{i<j}
    return torch.zeros_like(usage).scatter(1, order, torch.addcmul(before, ascending, before, value=-1))


def write_allocations(usage: Tensor, gates: Tensor) -> Tensor:
    """a_t of each write head; a head sees the usage raised by the heads before it, as in the released code.

    Args:
        usage: u_t, `[B, N]`.
        gates: g^a g^w of each head, `[B, H]`: the share of its allocation that a head writes to.

    Returns:
        `[B, H, N]`.
    """
    if gates.shape[1] == 1:
        return allocation_weights(usage).unsqueeze(1)
    allocations = []
    for gate in gates.unsqueeze(2).unbind(1):
        allocations.append(allocation_weights(usage))
        usage = usage + (1 - usage) * gate * allocations[-1]
    return torch.stack(allocations, 1)


def next_memory(memory: Tensor, write_weights: Tensor, erase: Tensor, write_vectors: Tensor) -> Tensor:
    """M_t = M_{t-1} ∘ (E - w^w eᵀ) + w^w vᵀ; several heads erase in turn, then write.

    Args:
        memory: M_{t-1}, `[B, N, W]`.
        write_weights: w^w_t, `[B, H, N]`.
        erase: e_t, `[B, H, W]`.
        write_vectors: v_t, `[B, H, W]`.
    """
    if write_weights.shape[1] == 1:  # M + w (vᵀ - eᵀ ∘ M): the same in two passes
        correction = torch.addcmul(write_vectors, memory, erase, value=-1)
        return torch.addcmul(memory, write_weights.transpose(1, 2), correction)
    keep = _product(1 - write_weights[..., None] * erase[:, :, None])
    return memory * keep + write_weights.transpose(1, 2) @ write_vectors


def next_precedence(precedence: Tensor, write_weights: Tensor) -> Tensor:
    """p_t = (1 - Σ_i w^w_t[i]) p_{t-1} + w^w_t, each `[B, H, N]`."""
    return torch.addcmul(write_weights, 1 - write_weights.sum(2, keepdim=True), precedence)


def next_linkage(linkage: Tensor, write_weights: Tensor, precedence: Tensor) -> Tensor:
    """L_t[i, j] = (1 - w^w_t[i] - w^w_t[j]) L_{t-1}[i, j] + w^w_t[i] p_{t-1}[j], and L_t[i, i] = 0.

    Args:
        linkage: L_{t-1} of each write head, `[B, H, N, N]`.
        write_weights: w^w_t, `[B, H, N]`.
        precedence: p_{t-1}, `[B, H, N]`.
    """
    i, j = write_weights[..., None], write_weights[:, :, None]
    linked = torch.addcmul(i * precedence[:, :, None], 1 - i - j, linkage)
    return linked.diagonal_scatter(torch.zeros_like(write_weights), dim1=2, dim2=3)


def follow_links(linkage: Tensor, read_weights: Tensor) -> tuple[Tensor, Tensor]:
    """f_t = L_t w^r_{t-1} and b_t = L_tᵀ w^r_{t-1}: the slots written after, and before, those that were read.

    Args:
        linkage: L_t, `[B, H, N, N]`.
        read_weights: w^r_{t-1}, `[B, R, N]`.

    Returns:
        Forward and backward weights for each pair of write head and read head, `[B, H, R, N]` each.
    """
    read_weights = read_weights[:, None]
    return read_weights @ linkage.transpose(2, 3), read_weights @ linkage


def _product(factors: Tensor) -> Tensor:
    """The product over dimension 1. The backward pass of `torch.prod` would synchronise with the device."""
    first, *others = factors.unbind(1)
    for factor in others:
        first = first * factor
    return first
