"""Weights packed for the products of `packed.h`."""

from __future__ import annotations

import ctypes

from torch import Tensor

PANEL_BYTES = 128
"""Columns are filled up to whole panels, none of which is wider."""


def packed(functions: ctypes.CDLL, weight: Tensor, forward: bool = True) -> Tensor:
    """`weight` `[out, in]`, packed for products of rows with it, or in the backward pass with its transpose.

    Args:
        functions: a library that includes `packed.h`, for the type of `weight`.
        weight: a matrix; it may be a view.
        forward: which of the two.
    """
    inner, columns, down, across = (*weight.shape[::-1], *weight.stride()[::-1])
    if not forward:
        inner, columns, down, across = columns, inner, across, down
    panel = PANEL_BYTES // weight.itemsize
    found = weight.new_empty(-(-columns // panel) * panel * inner)
    sizes = map(ctypes.c_int64, (inner, columns, down, across))
    functions.pack(ctypes.c_void_p(weight.data_ptr()), *sizes, ctypes.c_void_p(found.data_ptr()))
    return found
