"""Interface to the C loops of `fast_sequence.c`: steps of MNM on a CPU, forward and backward."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from policies.memories.mnm.fast_sequence import Parts, SlowWeights
from policies.native import loops
from policies.native.compiler import parallel_for
from policies.native.loops import MAX_LAYERS, Arrays, Loops, Pointers
from policies.native.packed import packed

SOURCE = Path(__file__).with_name("fast_sequence.c")
MAX_VECTORS = 16_384
"""Maximum number of activations of all keys in one layer; the loops keep such arrays on the stack."""
PACKED_FOR_ONE = 2**17
"""Maximum number of weights per environment for which packing takes less time than it saves in one step."""
THREADS_FROM = 2**24
"""Minimum number of multiplications in a step for which several threads are faster than one."""
BLOCK_BYTES, MIN_BLOCK = 2**19, 16
"""The loops process blocks of environments whose memories take BLOCK_BYTES, half of a typical L2 cache. If a block had
fewer than MIN_BLOCK environments, all are processed together: products with few rows cost more than memories outside
the cache."""
PACKED, UNPACKED = ("recurrent", "interaction", "feedback"), ("interaction_bias", "rate", "rate_bias", "feedback_bias")
"""The fields of `SlowWeights` that the loops use packed and as they are."""


def usable(weights: Sequence[Tensor], heads: int) -> bool:
    """Whether the loops can be used for this memory: on a CPU, of a supported size, and with a compiler."""
    widest = max(max(m.shape[1:]) for m in weights)
    few = len(weights) <= MAX_LAYERS and 2 * heads * widest <= MAX_VECTORS
    return few and loops.usable(SOURCE, weights[0])


def worth_packing(slow: SlowWeights, batch: int) -> bool:
    """Whether packing the weights saves more time in a single step than it takes."""
    return sum(weight.numel() for weight in slow) <= batch * PACKED_FOR_ONE


class Shape(NamedTuple):
    """Sizes and options of the C loops."""

    sizes: tuple[int, ...]
    """d_k, D_1 ... D_L."""
    heads: int
    tanh_output: bool
    """Whether the output layer of the memory has a tanh."""


def _numbers(batch: int, shape: Shape, slow: SlowWeights) -> tuple[Any, ...]:
    """Sizes and options in the order of the C file."""
    sizes = (slow.interaction.shape[1], shape.heads, len(shape.sizes) - 1, len(slow.interaction), len(slow.feedback))
    return (batch, *sizes, len(slow.rate), shape.tanh_output, shape.sizes)


def make_loops(shape: Shape, slow: SlowWeights, forward: bool, arrays: Arrays) -> Loops:
    """The loops over `arrays`, named as in the C struct, with the weights packed for the forward or backward pass."""
    batch = len(arrays["m"][0])
    block = BLOCK_BYTES // sum(m[0].nbytes for m in arrays["m"])
    loops = Loops(SOURCE, slow.recurrent, _numbers(batch, shape, slow), block if block >= MIN_BLOCK else batch)
    loops.pack({name: getattr(slow, name) for name in PACKED}, forward)
    return loops.set({name: getattr(slow, name) for name in UNPACKED} | arrays)


def padded(m: Tensor) -> Tensor:
    """`m` `[B, D, D']` padded with zeros to whole SIMD vectors: rows to 32 bytes, columns to 64; always a copy."""
    rows, columns = m.shape[1:]
    more = [-size % (width // m.itemsize) for size, width in ((columns, 64), (rows, 32))]
    return F.pad(m, (0, more[0], 0, more[1])) if any(more) else m.clone(memory_format=torch.contiguous_format)


def padded_width(m: Tensor) -> int:
    """The width of the output of M^l `[B, D_l, D_{l-1}]`, padded to whole SIMD vectors."""
    return m.shape[1] + -m.shape[1] % (64 // m.itemsize)


def products_of(slow: SlowWeights) -> dict[str, Tensor]:
    """The weights of the three products per step, packed for the forward pass."""
    functions = loops.functions_of(SOURCE, slow.recurrent)
    return {name: packed(functions, getattr(slow, name)) for name in PACKED}


@torch.no_grad()
def step(
    shape: Shape,
    slow: SlowWeights,
    products: dict[str, Tensor],
    divisors: Tensor,
    start: Parts,
    weights: Sequence[Tensor],
    gates_x: Tensor,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """One step that is not recorded.

    Args:
        shape, slow, divisors, start, weights: as of `NativeTape`.
        products: packed weights, from `products_of`.
        gates_x: the input's part of the gates, `[B, 4 d_h]`; overwritten.

    Returns:
        Hidden state and read-out, concatenated; the cell; errors as in `NativeSequence`; M^l.
    """
    functions, (hidden, cell, read_value), heads = loops.functions_of(SOURCE, gates_x), start, shape.heads
    batch, d_h = hidden.shape
    carried, cells = torch.stack([torch.cat([hidden, read_value], 1)] * 2), torch.stack([cell, cell])
    errors, new_weights = hidden.new_empty(batch), [padded(m) for m in weights]
    pads = [padded_width(m) for m in new_weights]
    widths = {"tanh_cells": d_h, "interactions": len(slow.interaction), "betas": len(slow.rate)}
    widths |= {"expected": heads * len(slow.feedback)}
    by_layer = {"z": heads, "e": heads, "y": 2 * heads}
    scratch = hidden.new_empty(batch * (sum(widths.values()) + 4 * heads * sum(pads)))
    at = scratch.data_ptr()

    def take_scratch(width: int) -> int:
        nonlocal at
        at += batch * width * scratch.itemsize
        return at - batch * width * scratch.itemsize

    tape = loops.struct(SOURCE)(*_numbers(batch, shape, slow))
    for name, width in widths.items():
        setattr(tape, name, take_scratch(width))
    for name, vectors in by_layer.items():
        setattr(tape, name, Pointers(*(take_scratch(vectors * pad) for pad in pads)))
    arrays = {"carried": carried, "cells": cells, "errors": errors, "divisors": divisors, "gates": gates_x.contiguous()}
    arrays |= products | {name: getattr(slow, name) for name in UNPACKED}
    for name, array in arrays.items():
        setattr(tape, name, array.data_ptr())
    tape.m = Pointers(*(m.data_ptr() for m in new_weights))
    times = (ctypes.c_int64(0), ctypes.c_int64(1))
    multiplications = batch * (sum(weight.numel() for weight in slow) + sum(m[0].numel() for m in weights))
    run = parallel_for if multiplications >= THREADS_FROM else lambda call, count: call(0, count)
    run(lambda *rows: functions.forward(ctypes.byref(tape), *times, *map(ctypes.c_int64, rows)), batch)
    return carried[1], cells[1], errors, unpadded(new_weights, shape)


def unpadded(matrices: Sequence[Tensor], shape: Shape) -> list[Tensor]:
    """The matrices `[B, D_l, D_{l-1}]` without their padding."""
    return [m[:, :to, :of] for m, (of, to) in zip(matrices, pairwise(shape.sizes), strict=True)]
