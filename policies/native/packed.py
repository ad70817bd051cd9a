"""Weights packed for the products of `packed.h`."""

from __future__ import annotations

import ctypes

from torch import Tensor

PANEL_BYTES = 128
"""Width of a panel; columns are padded to whole panels."""


def packed(functions: ctypes.CDLL, weight: Tensor, forward: bool = True) -> Tensor:
    """Packs `weight` `[out, in]` for products of rows with it (forward) or with its transpose (backward).

    Args:
        functions: a library that includes `packed.h`, compiled for the dtype of `weight`.
        weight: a matrix; it may be a view.
        forward: the pass.
    """
    inner, columns, row_stride, column_stride = (*weight.shape[::-1], *weight.stride()[::-1])
    if not forward:
        inner, columns, row_stride, column_stride = columns, inner, column_stride, row_stride
    panel = PANEL_BYTES // weight.itemsize
    result = weight.new_empty(-(-columns // panel) * panel * inner)
    sizes = map(ctypes.c_int64, (inner, columns, row_stride, column_stride))
    functions.pack(ctypes.c_void_p(weight.data_ptr()), *sizes, ctypes.c_void_p(result.data_ptr()))
    return result
