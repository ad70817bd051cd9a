"""A DNC over time on a CPU: whole sequences by C loops, as one autograd function with a custom backward.

A step uses neither Python nor torch. A call of the C loops processes several environments over many steps, so that
their linkages and the weights, packed once per sequence, stay in the cache. Before the loops torch computes the input's
part of the gates, after them the gradients of all weights, for all steps at once.

Gradient checkpointing for the linkage: one buffer is updated in place, a copy is stored every √T steps, and the
backward pass recomputes the linkages between two copies. All other results of a step are stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.memories.contract import State
from policies.memories.dnc.fast_native import ROWS, Shape, SlotLoops, Weights
from policies.memories.shared.addressing import inverse_norms
from policies.memories.time.scopes import cached

SLOTS = ("memory", "usage", "precedence", "linkage", "write_weights", "read_weights")
"""Parts of a state with one entry per slot."""
LINE_BYTES = 64
"""Size of a cache line. Rows over slots are padded with zeros to whole cache lines."""


def padded(value: Tensor, rows: int = 0) -> Tensor:
    """A copy of `value` `[..., N]`, padded with zeros to whole cache lines.

    Args:
        value: any tensor.
        rows: if not 0, the second last dimension is padded to a multiple of it.
    """
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
        state: the state before the first step; not modified.
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

        first = {name: to_loops(name, state[name]) for name in SLOTS}
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
        """Results of each step, `[T, B, ...]`."""
        self.steps["before"][0] = torch.cat([state["read_vectors"].flatten(1), hidden.flatten(1)], 1)
        self.starts: Tensor | None = None
        weights = cached(dnc, "packed", lambda: pack(dnc, forward=True))
        bias = None if dnc.interface.bias is None else dnc.interface.bias.detach()
        self._weights = weights, bias
        self._loops = SlotLoops(shape, weights, bias, self.checkpoint_interval, self.arrays())

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
        """Sets the resets of all steps. `starts`: bool `[T, B]`."""
        self.starts = starts.contiguous()
        self._loops = SlotLoops(self.shape, *self._weights, self.checkpoint_interval, self.arrays())

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
        padded_parts = {name: self.states[name][self.count] for name in SLOTS if name != "linkage"}
        padded_parts["linkage"] = self.linkage
        parts = {name: from_loops(name, value, self.shape.slots) for name, value in padded_parts.items()}
        return {**split(self.shape, after), "cell": self.states["cells"][self.count], **parts}

    def cut(self) -> None:
        """Frees the buffers of steps that did not run."""
        self.states = {name: state[: self.count + 1] for name, state in self.states.items()}
        self.steps = {name: step[: self.count] for name, step in self.steps.items()}
        self.starts = None if self.starts is None else self.starts[: self.count]


def pack(dnc: Any, forward: bool) -> Weights:
    """The recurrent weights of a `DNC`, packed for the forward or the backward pass."""
    controller = [layer.weight.detach() for layer in dnc.controller]
    return Weights(Shape.of(dnc), controller, dnc.interface.weight.detach(), forward)


def split(shape: Shape, after: Tensor) -> State:
    """Splits read vectors and hidden states after a step, `[B, R W + L d_h]`, into the parts of a state."""
    read_vectors, hidden = after[:, : shape.read_size], after[:, shape.read_size :]
    return {
        "hidden": hidden.view(-1, shape.layers, shape.hidden),
        "read_vectors": read_vectors.view(-1, shape.reads, shape.word),
    }


class NativeSequence(torch.autograd.Function):
    """The steps of a `NativeTape`, with a custom backward.

    Inputs: the tape, empty or full; xs `[T, B, F]`; starts, bool `[T, B]`, or None; names and tensors of the state
    before the first step; weight and bias of each layer of the controller, then of the interface (its bias if it has
    one). An empty tape runs its steps now. A full tape must have run them with these inputs.

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
        SlotLoops(shape, packed, bias, ctx.checkpoint_interval, {**arrays, **d_state, **d_steps}).backward_over(len(xs))

        d_gates, d_vectors = d_steps["d_gates"], d_steps["d_vectors"].flatten(0, 1)
        d_parameters, d_xs = _d_controller(shape, xs, weights, arrays, d_gates, ctx.needs_input_grad[1])
        hidden = arrays["after"].flatten(0, 1)[:, shape.read_size :]
        d_parameters += [d_vectors.t() @ hidden, *(d_vectors.sum(0) for _ in biases)]
        d_first = {name: from_loops(name, d_state[f"d_{name}"], shape.slots) for name in SLOTS}
        d_first |= {"cell": d_state["d_cell"], **split(shape, d_state["d_carried"])}
        return (None, d_xs, None, None, *(d_first[name] for name in ctx.names), *d_parameters)


def outputs_of(names: Sequence[str]) -> list[str]:
    """The parts of a state that `NativeSequence` returns separately."""
    return [name for name in names if name not in ("hidden", "read_vectors")]


def _d_state(d_ends: dict[str, Tensor | None], arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of the state after the last step, in the layout of the loops."""
    gradients = {"d_carried": torch.zeros_like(arrays["before"][0])}
    for name in (*SLOTS, "cell"):
        d_end = d_ends[name]
        if d_end is None:
            array = arrays["cells" if name == "cell" else name]
            gradients[f"d_{name}"] = torch.zeros_like(array if name == "linkage" else array[0])
        elif name == "cell":
            gradients["d_cell"] = d_end.clone(memory_format=torch.contiguous_format)
        else:
            gradients[f"d_{name}"] = to_loops(name, d_end)
    return gradients


def _d_controller(
    shape: Shape, xs: Tensor, weights: Sequence[Tensor], arrays: dict[str, Tensor], d_gates: Tensor, needs_d_xs: bool
) -> tuple[list[Tensor], Tensor | None]:
    """The gradients of weight and bias of each layer of the controller, and of the inputs if `needs_d_xs`."""
    flat_xs, before, after = (each.flatten(0, 1) for each in (xs, arrays["before"], arrays["after"]))
    d_xs = torch.zeros_like(xs, memory_format=torch.contiguous_format) if needs_d_xs else None
    d_parameters = []
    for layer, (weight, d_gate) in enumerate(zip(weights, d_gates.flatten(0, 1).chunk(shape.layers, 1), strict=True)):
        read_size, at = shape.read_size, shape.read_size + layer * shape.hidden
        inputs = [flat_xs, before[:, : at + shape.hidden]]
        if layer:
            inputs = [
                flat_xs,
                before[:, :read_size],
                before[:, at : at + shape.hidden],
                after[:, at - shape.hidden : at],
            ]
        d_weight = torch.cat([each.t() @ d_gate for each in inputs])
        d_parameters += [d_weight.t(), d_gate.sum(0)]
        if d_xs is not None:
            d_xs.flatten(0, 1).addmm_(d_gate, weight[:, : xs.shape[2]])
    return d_parameters, d_xs
