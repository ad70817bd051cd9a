"""A DNC over time on a CPU: whole sequences by C loops, as one autograd function with a custom backward.

A step uses neither Python nor torch. A call processes several environments over many steps, forward or backward, so
that their linkages and the weights, packed once per sequence, stay in the cache. The input's part of the gates and the
gradients of all weights are large products of torch, before and after the loops.

Linkages of all steps are not stored: one buffer is updated in place, copies are stored every √T steps, and the backward
pass recomputes the steps between two copies. All other results of a step are stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.memories.contract import State
from policies.memories.dnc.fast_native import ROWS, Loops, Shape, Weights
from policies.memories.shared.addressing import inverse_norms
from policies.memories.time.scopes import cached

SLOTS = {"memory": "memory", "usage": "usage", "precedence": "precedence", "linkage": "linkage"}
SLOTS |= {"write_weights": "written", "read_weights": "read"}
"""Parts of a state with one entry per slot, and their names in the loops."""
LINE_BYTES = 64
"""Rows over slots are padded with zeros to whole cache lines of this many bytes."""


def padded(value: Tensor, rows: int = 0) -> Tensor:
    """`value` `[..., N]` padded with zeros to whole cache lines, and with `rows` to a multiple of it in the previous
    dimension; always a copy."""
    *others, slots = value.shape
    line = LINE_BYTES // value.itemsize
    if rows:
        others[-1] = -(-others[-1] // rows) * rows
    shape = (*others, -(-slots // line) * line)
    if shape == value.shape:
        return value.clone(memory_format=torch.contiguous_format)
    larger = value.new_zeros(shape)
    larger[tuple(slice(size) for size in value.shape)] = value
    return larger


def to_loops(name: str, value: Tensor) -> Tensor:
    """A part of a state, or its gradient, in the layout of the loops."""
    if name == "linkage":
        return padded(value, ROWS)
    return padded(value.transpose(1, 2) if name == "memory" else value)


def from_loops(name: str, value: Tensor, slots: int) -> Tensor:
    """The inverse of `to_loops`, as a view."""
    value = value[..., :slots]
    if name == "linkage":
        return value[:, :, :slots]
    return value.transpose(1, 2) if name == "memory" else value


class NativeTape:
    """Steps of a DNC, stored while they run, without gradients.

    Args:
        dnc: the `DNC`.
        state: before the first step; not modified.
        length: maximum number of steps.
        keep: whether the steps will be differentiated.
    """

    @torch.no_grad()
    def __init__(self, dnc: Any, state: State, length: int, keep: bool = True) -> None:
        self.dnc, self.shape, self.length, self.count = dnc, Shape.of(dnc), length, 0
        self.checkpoint_interval = max(1, math.isqrt(length)) if keep else 0
        shape, hidden = self.shape, state["hidden"]
        batch = len(hidden)

        def allocate(*sizes: int, steps: int = length, dtype: torch.dtype = hidden.dtype) -> Tensor:
            return hidden.new_empty(steps, batch, *sizes, dtype=dtype)

        first = {name: to_loops(part, state[part]) for part, name in SLOTS.items()}
        first["norms"] = padded(inverse_norms(state["memory"]))
        first["cells"] = state["cell"]
        self.linkage = first.pop("linkage")
        lead = self.linkage.shape[3]
        self.states = {name: allocate(*value.shape[1:], steps=length + 1) for name, value in first.items()}
        """Before each step (before its reset) and after the last step, `[T + 1, B, ...]`."""
        for name, value in first.items():
            self.states[name][0] = value
        self.checkpoints = allocate(
            *self.linkage.shape[1:], steps=-(-length // self.checkpoint_interval) if keep else 0
        )
        width = dnc.interface.weight.shape[0]
        self.steps = {
            "gates": allocate(shape.layers * 4 * shape.hidden),
            "tanh_cells": allocate(shape.layers, shape.hidden),
            "before": allocate(shape.feature_size),
            "after": allocate(shape.feature_size),
            "vectors": allocate(width),
            "write_content": allocate(shape.writes, lead),
            "read_content": allocate(shape.reads, lead),
            "order": allocate(shape.writes, lead, dtype=torch.int32),
        }
        """Of each step, `[T, B, ...]`."""
        self.steps["before"][0] = torch.cat([state["read_vectors"].flatten(1), hidden.flatten(1)], 1)
        self.starts: Tensor | None = None
        weights = cached(dnc, "packed", lambda: pack(dnc, forward=True))
        bias = None if dnc.interface.bias is None else dnc.interface.bias.detach()
        self._made = weights, bias
        self._loops = Loops(shape, weights, bias, self.checkpoint_interval, self.arrays())

    def arrays(self) -> dict[str, Tensor | None]:
        """The arrays of the loops."""
        return {
            **self.states,
            **self.steps,
            "linkage": self.linkage,
            "checkpoints": self.checkpoints,
            "starts": self.starts,
        }

    def set_starts(self, starts: Tensor) -> None:
        """`starts`: bool `[T, B]`; of all steps."""
        self.starts = starts.contiguous()
        self._loops = Loops(self.shape, *self._made, self.checkpoint_interval, self.arrays())

    @torch.no_grad()
    def run(self, xs: Tensor, starts: Tensor | None) -> None:
        """Runs all steps. `xs`: `[T, B, F]`; `starts`: bool `[T, B]`."""
        if starts is not None:
            self.set_starts(starts)
        self.steps["gates"][:] = self.dnc.gates_of(xs)
        self._loops.forward(0, len(xs))
        self.count = len(xs)

    @torch.no_grad()
    def step(self, projected: Tensor, starts: Tensor | None) -> None:
        """Runs a step. `projected`: inputs, `[B, F]`; `starts`: bool `[B]`."""
        if starts is not None:
            if self.starts is None:
                self.set_starts(starts.new_zeros(self.length, len(starts)))
            assert self.starts is not None
            self.starts[self.count] = starts
        self.steps["gates"][self.count] = self.dnc.gates_of(projected)
        self._loops.forward(self.count, self.count + 1)
        self.count += 1

    @property
    def full(self) -> bool:
        return self.count == self.length

    def state(self) -> State:
        """The state after the last step, as views; the linkage is overwritten by the next step."""
        after = self.steps["after"][self.count - 1]
        parts = {part: self.states[name][self.count] for part, name in SLOTS.items() if name != "linkage"}
        parts["linkage"] = self.linkage
        found = {part: from_loops(part, value, self.shape.slots) for part, value in parts.items()}
        return {**split(self.shape, after), "cell": self.states["cells"][self.count], **found}

    def cut(self) -> None:
        """Free the space of steps that did not run."""
        self.states = {name: state[: self.count + 1] for name, state in self.states.items()}
        self.steps = {name: step[: self.count] for name, step in self.steps.items()}
        self.starts = None if self.starts is None else self.starts[: self.count]


def pack(dnc: Any, forward: bool) -> Weights:
    """The weights of a `DNC`."""
    controller = [layer.weight.detach() for layer in dnc.controller]
    return Weights(Shape.of(dnc), controller, dnc.interface.weight.detach(), forward)


def split(shape: Shape, after: Tensor) -> State:
    """Splits the concatenated array of the loops into hidden states and read vectors, `[B, ...]`."""
    seen, hidden = after[:, : shape.read_size], after[:, shape.read_size :]
    return {
        "hidden": hidden.view(-1, shape.layers, shape.hidden),
        "read_vectors": seen.view(-1, shape.reads, shape.word),
    }


class NativeSequence(torch.autograd.Function):
    """The steps of a `NativeTape`, with a custom backward.

    Inputs: the tape, empty or full; inputs `[T, B, F]`; starts, bool `[T, B]`, or None; names of the parts of a state,
    and the state before the first step; weight and bias of each layer of the controller, then of the interface (its
    bias if it has one). The steps of an empty tape are run now. A full tape must come from the same inputs.

    Outputs: read vectors and hidden states after each step, concatenated, `[T, B, R W + L d_h]`; the other parts of the
    state after the last step, in the order of the names.
    """

    @staticmethod
    def forward(
        ctx: Any, tape: NativeTape, xs: Tensor, starts: Tensor | None, names: Sequence[str], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        if not tape.count:
            tape.run(xs, starts)
        ctx.names, ctx.shape, ctx.checkpoint_interval = names, tape.shape, tape.checkpoint_interval
        ctx.set_materialize_grads(False)
        parameters = tensors[len(names) :]
        arrays = {name: array for name, array in tape.arrays().items() if array is not None}
        ctx.arrays, ctx.parameters = (*arrays,), len(parameters)
        final = tape.state()
        ends = [final[name].clone(memory_format=torch.contiguous_format) for name in outputs_of(names)]
        if tape.checkpoint_interval:
            ctx.save_for_backward(xs, *parameters, *arrays.values())
        return (tape.steps["after"], *ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_after: Tensor | None, *d_ends: Tensor | None) -> tuple[Tensor | None, ...]:
        (xs, *saved), shape = ctx.saved_tensors, ctx.shape
        parameters, saved = saved[: ctx.parameters], saved[ctx.parameters :]
        arrays = dict(zip(ctx.arrays, saved, strict=True))
        weights = parameters[: 2 * shape.layers : 2]
        interface, *biases = parameters[2 * shape.layers :]
        d_state = _d_state(dict(zip(outputs_of(ctx.names), d_ends, strict=True)), arrays)
        d_steps = {f"d_{name}": torch.empty_like(arrays[name]) for name in ("gates", "vectors")}
        d_steps["d_after"] = torch.zeros_like(arrays["after"]) if d_after is None else d_after.contiguous()
        packed = Weights(shape, weights, interface, forward=False)
        bias = biases[0] if biases else None
        Loops(shape, packed, bias, ctx.checkpoint_interval, {**arrays, **d_state, **d_steps}).backward(len(xs))

        d_gates, d_vectors = d_steps["d_gates"], d_steps["d_vectors"].flatten(0, 1)
        d_parameters, d_xs = _d_controller(shape, xs, weights, arrays, d_gates, ctx.needs_input_grad[1])
        hidden = arrays["after"].flatten(0, 1)[:, shape.read_size :]
        d_parameters += [d_vectors.t() @ hidden, *(d_vectors.sum(0) for _ in biases)]
        d_first = {part: from_loops(part, d_state[f"d_{name}"], shape.slots) for part, name in SLOTS.items()}
        d_first |= {"cell": d_state["d_cell"], **split(shape, d_state["d_carried"])}
        return (None, d_xs, None, None, *(d_first[name] for name in ctx.names), *d_parameters)


def outputs_of(names: Sequence[str]) -> list[str]:
    """The parts of a state that `NativeSequence` returns separately."""
    return [name for name in names if name not in ("hidden", "read_vectors")]


def _d_state(d_ends: dict[str, Tensor | None], arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of the state after the last step, in the layout of the loops."""
    found = {"d_carried": torch.zeros_like(arrays["before"][0])}
    for part, name in {**SLOTS, "cell": "cells"}.items():
        reference, d_end = arrays[name] if name == "linkage" else arrays[name][0], d_ends[part]
        key = "d_cell" if part == "cell" else f"d_{name}"
        if d_end is None:
            found[key] = torch.zeros_like(reference)
        else:
            found[key] = d_end.clone(memory_format=torch.contiguous_format) if part == "cell" else to_loops(part, d_end)
    return found


def _d_controller(
    shape: Shape, xs: Tensor, weights: Sequence[Tensor], arrays: dict[str, Tensor], d_gates: Tensor, wants_xs: bool
) -> tuple[list[Tensor], Tensor | None]:
    """The gradients of weights and biases of the controller, and of the inputs."""
    flat_xs, before, after = (each.flatten(0, 1) for each in (xs, arrays["before"], arrays["after"]))
    d_xs = torch.zeros_like(xs) if wants_xs else None
    found = []
    for layer, (weight, of_gates) in enumerate(zip(weights, d_gates.flatten(0, 1).chunk(shape.layers, 1), strict=True)):
        seen, at = shape.read_size, shape.read_size + layer * shape.hidden
        inputs = [flat_xs, before[:, : at + shape.hidden]]
        if layer:
            inputs = [flat_xs, before[:, :seen], before[:, at : at + shape.hidden], after[:, at - shape.hidden : at]]
        d_weight = torch.cat([each.t() @ of_gates for each in inputs])
        found += [d_weight.t(), of_gates.sum(0)]
        if d_xs is not None:
            d_xs.flatten(0, 1).addmm_(of_gates, weight[:, : xs.shape[2]])
    return found, d_xs
