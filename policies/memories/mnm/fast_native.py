"""Calls of `fast_sequence.c`: the memory's part of a step of `fast_sequence.py`, by a C loop on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from policies.native.compiler import library, off, shared_out

SOURCE = Path(__file__).with_name("fast_sequence.c")
MAX_LAYERS = 8
MAX_VECTORS = 16_384
"""Numbers in the keys of all heads on their way up; the loop has its vectors on the stack."""

Pointers = ctypes.c_void_p * MAX_LAYERS


class _Tape(ctypes.Structure):
    """As in the C file."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "heads", "layers", "width", "total", "squash_last")),
        ("sizes", ctypes.c_int64 * (MAX_LAYERS + 1)),
        *((name, Pointers) for name in ("m", "z", "e", "y")),
        ("interactions", ctypes.c_void_p),
        ("d_m", Pointers),
        ("d_interactions", ctypes.c_void_p),
        ("d_expected", ctypes.c_void_p),
    ]


def usable(weights: Sequence[Tensor], heads: int) -> bool:
    """Whether the loop can take this memory: on a CPU, of a usual size, and with a compiler at hand."""
    widest = max(max(m.shape[1:]) for m in weights)
    return (
        weights[0].device.type == "cpu"
        and len(weights) <= MAX_LAYERS
        and 2 * heads * widest <= MAX_VECTORS
        and not off()
        and library(SOURCE, weights[0].dtype) is not None
    )


class Loop:
    """The memory's part of each step. Everything is contiguous, and must live as long as this.

    Args:
        weights: M^l `[B, D_l, D_{l-1}]`; rewritten at each step.
        interactions: `[T, B, width]`, with 2H keys in front.
        zs, errors, ys: of each layer, `[T, B, H or 2H, D_l]`.
        heads: H.
        squash_output: whether the output layer has its tanh.
        gradients: for the way back, those of M^l, of the interactions, and of z', `[T, B, H, ΣD_l]`.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        interactions: Tensor,
        zs: Sequence[Tensor],
        errors: Sequence[Tensor],
        ys: Sequence[Tensor],
        heads: int,
        squash_output: bool,
        gradients: tuple[Sequence[Tensor], Tensor, Tensor] | None = None,
    ) -> None:
        d_weights, d_interactions, d_expected = gradients or ((), None, None)
        self._held = (*weights, interactions, *zs, *errors, *ys, *d_weights, d_interactions, d_expected)
        assert all(tensor is None or tensor.is_contiguous() for tensor in self._held)
        self._batch = len(weights[0])
        sizes = [weights[0].shape[2], *(m.shape[1] for m in weights)]
        self._tape = _Tape(
            self._batch, heads, len(weights), interactions.shape[2], sum(sizes[1:]), squash_output, tuple(sizes)
        )
        for name, layers in {"m": weights, "z": zs, "e": errors, "y": ys, "d_m": d_weights}.items():
            setattr(self._tape, name, Pointers(*(layer.data_ptr() for layer in layers)))
        self._tape.interactions = interactions.data_ptr()
        if d_interactions is not None and d_expected is not None:
            self._tape.d_interactions, self._tape.d_expected = d_interactions.data_ptr(), d_expected.data_ptr()
        functions = library(SOURCE, weights[0].dtype)
        assert functions is not None
        self._forward, self._backward = functions.forward, functions.backward

    def forward(self, t: int, steps: Tensor, expected: Tensor) -> None:
        """Write, then read. `steps`: step sizes `[B, L]`; `expected`: z' `[B, H, ΣD_l]`."""
        tape, at = ctypes.byref(self._tape), ctypes.c_int64(t)
        given = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (steps, expected)]
        shared_out(lambda *rows: self._forward(tape, at, *given, *map(ctypes.c_int64, rows)), self._batch)

    def backward(self, t: int, steps: Tensor, d_recalled: Tensor, d_steps: Tensor) -> None:
        """Undo the step. `d_recalled`: of all that was read `[B, 2H, d_v]`; writes `d_steps` `[B, L]`."""
        tape, at = ctypes.byref(self._tape), ctypes.c_int64(t)
        given = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (steps, d_recalled, d_steps)]
        shared_out(lambda *rows: self._backward(tape, at, *given, *map(ctypes.c_int64, rows)), self._batch)
