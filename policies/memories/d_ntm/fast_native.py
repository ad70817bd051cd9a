"""The D-NTM over time on a CPU: whole sequences by the C loops of `fast_sequence.c`, as one autograd function.

A call of the loops processes several environments over many steps; episodes may start at any step. Before the loops
torch computes the input's part of gates and candidates, after them the gradients of all weights, for all steps at once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.native import loops
from policies.native.loops import Loops

SOURCE = Path(__file__).with_name("fast_sequence.c")
BLOCK = 16
"""Number of environments that the loops process together."""
MAX_NUMBERS = 2**15
"""Maximum number of weights of all heads, and of units; the loops keep a few such arrays on the C stack."""


class Sizes(NamedTuple):
    """Sizes and options of the C loops, in the order of the C file."""

    batch: int
    hidden: int
    slots: int
    places: int
    """N, plus 1 with a no-operation slot."""
    padded: int
    address: int
    word: int
    reads: int
    writes: int
    lru: bool
    """Whether heads avoid recently addressed slots: γ v is subtracted."""

    @property
    def heads(self) -> int:
        return self.reads + self.writes


class Weights(NamedTuple):
    """The trained parameters inside the loop."""

    recurrent: Tensor
    """Hidden state to the gates, `[3 H, H]`."""
    recurrent_bias: Tensor
    from_read: Tensor
    """Read-out to the gates, `[3 H, R W]`."""
    interface: Tensor
    """Hidden state to the parameters of read heads, write heads, e, c and α, `[width, H]`."""
    bias: Tensor
    addresses: Tensor
    """A, `[N + 1, d_a]`."""


def usable(reference: Tensor, heads: int, places: int, hidden: int) -> bool:
    """Whether the loops support this memory: on a CPU, with a compiler. `reference`: one of its parameters."""
    return max(heads * places, hidden) <= MAX_NUMBERS and loops.usable(SOURCE, reference)


def transposed_padded(rows: Tensor, width: int) -> Tensor:
    """`rows` `[..., n, W]`, transposed and padded with zeros: `[..., W, width]`."""
    result = rows.new_zeros(*rows.shape[:-2], rows.shape[-1], width)
    result[..., : rows.shape[-2]] = rows.transpose(-1, -2)
    return result


def norms(contents: Tensor, squares: Tensor) -> Tensor:
    """1 / |[A(i); C(i)]|, `[B, padded]`, of contents `[B, word, padded]`; `squares`: |A(i)|², `[padded]`."""
    result = contents.new_empty(len(contents), contents.shape[2])
    pointers = (ctypes.c_void_p(contents.data_ptr()), ctypes.c_void_p(squares.data_ptr()))
    loops.functions_of(SOURCE, contents).norms(
        *pointers, *map(ctypes.c_int64, contents.shape), ctypes.c_void_p(result.data_ptr())
    )
    return result


def make_loops(sizes: Sizes, decay: float, weights: Weights, forward: bool, arrays: Mapping[str, Tensor]) -> Loops:
    """The loops over `arrays`, named as in the C struct, with the weights packed for the forward or backward pass."""
    packed = {name: getattr(weights, name) for name in ("recurrent", "from_read", "interface")}
    return Loops(SOURCE, weights.interface, (*sizes, decay), BLOCK).pack(packed, forward).set(arrays)


class NativeSequence(torch.autograd.Function):
    """All steps, with a custom backward.

    Inputs: sizes and the decay of v; starts, bool `[T, B]`, or None; v before the first step, `[B, heads, N + 1]`; the
    input's part of the gates `[T, B, 3 H]`, with its bias, and of candidates and α `[T, B, H_w d_c + 1]`; the fields of
    `Weights`; contents, read-out and hidden state before the first step.

    Outputs: hidden state and read-out after each step, concatenated, `[T, B, H + R W]`; contents, w and v after the
    last step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        sizes: Sizes,
        decay: float,
        starts: Tensor | None,
        usage: Tensor,
        gates: Tensor,
        candidates_x: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        weights, (contents, read, hidden) = Weights(*rest[:6]), rest[6:]
        length, width, n = len(gates), len(weights.interface), sizes.padded

        def allocate(*shape: int, extra: int = 0) -> Tensor:
            return gates.new_empty(length + extra, sizes.batch, *shape)

        addresses = transposed_padded(weights.addresses, n)
        squares, first = addresses.square().sum(0), transposed_padded(contents, n)
        initial = first.new_zeros(1, sizes.word, n)
        arrays = {
            "addresses": addresses,
            "squares": squares,
            "first_contents": first,
            "first_norms": norms(first, squares),
            "initial_contents": initial,
            "initial_norms": norms(initial, squares),
            "gates": gates.clone(memory_format=torch.contiguous_format),
            "candidates_x": candidates_x.contiguous(),
            "n_hidden": allocate(sizes.hidden),
            "features": allocate(sizes.hidden + read.shape[1]),
            "parameters": allocate(width),
            "hidden_in": allocate(sizes.hidden, extra=1),
            "read_in": allocate(read.shape[1], extra=1),
            "contents": allocate(sizes.word, n),
            "norms": allocate(n),
            "usage": allocate(sizes.heads, n, extra=1),
            "w": allocate(sizes.heads, n),
            "cosines": allocate(sizes.heads, n),
        }
        arrays["hidden_in"][0], arrays["read_in"][0], arrays["usage"][0] = hidden, read, 0
        arrays["usage"][0, :, :, : sizes.places] = usage
        if starts is not None:
            arrays["starts"] = starts.contiguous()
        biases = {"recurrent_bias": weights.recurrent_bias, "bias": weights.bias}
        make_loops(sizes, decay, weights, True, arrays | biases).forward(0, length)
        ctx.sizes, ctx.decay, ctx.names = sizes, decay, (*arrays,)
        ctx.save_for_backward(*weights, *arrays.values())
        last = arrays["contents"][-1, :, :, : sizes.slots].transpose(1, 2)
        usage = arrays["usage"][-1, :, :, : sizes.places].clone()
        ctx.mark_non_differentiable(usage)
        return arrays["features"], last, arrays["w"][-1, :, :, : sizes.places], usage

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_features: Tensor, d_contents: Tensor, d_w: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        weights, sizes = Weights(*ctx.saved_tensors[:6]), ctx.sizes
        arrays = dict(zip(ctx.names, ctx.saved_tensors[6:], strict=True))
        gradients = {
            "d_features": d_features.contiguous(),
            "d_w": transposed_padded(d_w.transpose(1, 2), sizes.padded),
            "d_recurrent": torch.empty_like(arrays["gates"]),
            "d_contents": transposed_padded(d_contents, sizes.padded),
            "d_addresses": d_features.new_zeros(sizes.batch, sizes.address, sizes.padded),
        }
        gradients |= {f"d_{name}": torch.empty_like(arrays[name]) for name in ("gates", "parameters", "candidates_x")}
        gradients |= {f"d_{name}": torch.zeros_like(arrays[f"{name}_in"][0]) for name in ("hidden", "read")}
        make_loops(sizes, ctx.decay, weights, False, arrays | gradients).backward(0, len(d_features))

        def product(name: str, inputs: Tensor) -> Tensor:
            return gradients[name].flatten(0, 1).t() @ inputs.flatten(0, 1)

        d_weights = Weights(
            product("d_recurrent", arrays["hidden_in"][:-1]),
            gradients["d_recurrent"].sum((0, 1)),
            product("d_gates", arrays["read_in"][:-1]),
            product("d_parameters", arrays["features"][:, :, : sizes.hidden]),
            gradients["d_parameters"].sum((0, 1)),
            gradients["d_addresses"].sum(0)[:, : sizes.places].t(),
        )
        d_contents = gradients["d_contents"][:, :, : sizes.slots].transpose(1, 2)
        d_first = (d_contents, gradients["d_read"], gradients["d_hidden"])
        return (None, None, None, None, gradients["d_gates"], gradients["d_candidates_x"], *d_weights, *d_first)
