"""The neural Turing machine over time on a CPU: whole sequences by C loops, as one autograd function.

A call of the loops processes several environments over many steps; episodes may start at any step. Before the loops
torch computes the input's part of the controller, after them the gradients of all weights, for many steps at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.memories.ntm.fast_native import Sizes, Weights, make_loops, norms
from policies.memories.steps import State
from policies.memories.time.sums import CHUNK_ROWS, WeightGradient, backward_in_chunks
from policies.memories.time.taped import LoopTape
from policies.native.loops import Arrays

NAMES = ("memory", "read_weights", "write_weights", "read_vectors", "hidden", "cell")
"""The names of a state's tensors, in the order of the loops; the last two only with an LSTM."""


def named(parts: Sequence[Tensor]) -> State:
    """A state from its tensors in the order of `NAMES`, with the controller's tensors first, as in `memory.py`."""
    state = dict(zip(NAMES, parts, strict=False))
    return {name: state[name] for name in (*NAMES[4:], *NAMES[:4]) if name in state}


class LoopState(NamedTuple):
    """A state, or its gradient, in the layout of the loops."""

    memory: Tensor
    """Transposed, with slots padded by zeros: `[B, word, padded]`."""
    w: Tensor
    """Weights of the read heads, then of the write heads, `[B, heads, padded]`."""
    inputs: list[Tensor]
    """The inputs of each layer, `[B, width]`: read vectors (first layer) or the output of the layer below, which is not
    part of the state, then the layer's hidden state."""
    cells: list[Tensor]

    @classmethod
    def zeros(cls, reference: Tensor, batch: int, sizes: Sizes) -> LoopState:
        """A state of zeros with the dtype of `reference`."""
        return cls(
            reference.new_zeros(batch, sizes.word, sizes.padded),
            reference.new_zeros(batch, sizes.heads, sizes.padded),
            [reference.new_zeros(batch, width) for width in sizes.widths],
            [reference.new_zeros(batch, sizes.hidden) for _ in range(sizes.layers if sizes.lstm else 0)],
        )

    def put(self, state: Sequence[Tensor | None], sizes: Sizes) -> None:
        """Copies a state's tensors, in the order of `NAMES`, into this one; None: that part stays as it was."""
        memory, read, write, vectors, *controller = state
        if memory is not None:
            self.memory[:, :, : sizes.slots] = memory.transpose(1, 2)
        if read is not None:
            self.w[:, : sizes.reads, : sizes.slots] = read
        if write is not None:
            self.w[:, sizes.reads :, : sizes.slots] = write
        if vectors is not None:
            self.inputs[0][:, : sizes.reads * sizes.word] = vectors.flatten(1)
        hidden = [each[:, -sizes.hidden :] for each in self.inputs]
        for part, rows in zip(controller, (hidden, self.cells), strict=False):  # only an LSTM has them
            if part is not None:
                torch._foreach_copy_(list(rows), list(part.unbind(1)))

    def parts(self, sizes: Sizes) -> list[Tensor]:
        """The state's tensors, in the order of `NAMES`; views where possible."""
        w = self.w[:, :, : sizes.slots]
        parts = [
            self.memory[:, :, : sizes.slots].transpose(1, 2),
            w[:, : sizes.reads],
            w[:, sizes.reads :],
            self.inputs[0][:, : sizes.reads * sizes.word].view(-1, sizes.reads, sizes.word),
        ]
        if sizes.lstm:
            parts.append(torch.stack([each[:, -sizes.hidden :] for each in self.inputs], 1))
            parts.append(torch.stack(self.cells, 1))
        return parts

    def arrays(self, prefix: str) -> Arrays:
        """The tensors by their names in the C struct, with `prefix`."""
        return {prefix + name: value for name, value in self._asdict().items()}


class NativeTape(LoopTape):
    """`length` steps of an NTM, stored while they run, without gradients.

    Args:
        length: maximum number of steps.
        state: the state before the first step, in the order of `NAMES`; not modified.
        initial: the initial state of an episode, `[1, ...]`, in the order of `NAMES`; None: no episode starts.
        weights: the trained parameters.
        sizes: sizes and options.
    """

    @torch.no_grad()
    def __init__(
        self, length: int, state: Sequence[Tensor], initial: Sequence[Tensor] | None, weights: Weights, sizes: Sizes
    ) -> None:
        reference, batch, heads, padded = state[0], sizes.batch, sizes.heads, sizes.padded
        self.sizes, self.weights = sizes, weights

        def allocate(*shape: int, steps: int = length) -> Tensor:
            return reference.new_empty(steps, batch, *shape)

        layers, width = range(sizes.layers), len(weights.controller[0])
        gates = [allocate(width) for _ in layers]
        self.features = allocate(sizes.hidden + sizes.reads * sizes.word)
        """Hidden state and read vectors after each step, concatenated."""
        self.inputs = [allocate(each, steps=length + 1) for each in sizes.widths]
        self.arrays: Arrays = {
            "gates": gates,
            "inputs": self.inputs,
            "cells": [allocate(sizes.hidden, steps=length + 1) for _ in layers if sizes.lstm],
            "tanh_cells": [allocate(sizes.hidden) for _ in layers if sizes.lstm],
            "features": self.features,
            "parameters": allocate(len(weights.interface)),
            "memory": allocate(sizes.word, padded, steps=length + 1),
            "norms": allocate(padded, steps=length + 1),
            "w": allocate(heads, padded, steps=length + 1),
            **{name: allocate(heads, padded) for name in ("content_w", "cosines", "shifted", "log_shifted")},
        }
        first = self.at(0)
        first.memory.zero_()
        first.w.zero_()
        first.put(state, sizes)
        norms(first.memory, self.arrays["norms"][0])
        if initial is not None:
            after_reset = LoopState.zeros(reference, 1, sizes)
            after_reset.put(initial, sizes)
            self.arrays |= after_reset.arrays("initial_") | {"initial_norms": reference.new_empty(1, padded)}
            norms(after_reset.memory, self.arrays["initial_norms"])  # type: ignore[arg-type]
        starts = None if initial is None else torch.zeros(length, batch, dtype=torch.bool)
        super().__init__(
            make_loops(sizes, weights, True, self.arrays), gates[0], weights.input, weights.biases[0], starts
        )

    def at(self, step: int) -> LoopState:
        """The state before a step."""
        memory, w, inputs, cells = (self.arrays[name] for name in LoopState._fields)
        return LoopState(memory[step], w[step], [each[step] for each in inputs], [each[step] for each in cells])

    def state(self) -> State:
        """The state after the last step."""
        return named(self.at(self.count).parts(self.sizes))

    def cut(self) -> None:
        """Frees the buffers of steps that did not run."""
        extra = {"inputs": 1, "cells": 1, "memory": 1, "norms": 1, "w": 1}
        for name, array in self.arrays.items():
            if name.startswith("initial_"):
                continue
            end = self.count + extra.get(name, 0)
            self.arrays[name] = array[:end] if isinstance(array, Tensor) else [each[:end] for each in array]
        self.features = self.features[: self.count]
        self.starts = None if self.starts is None else self.starts[: self.count]


class NativeSequence(torch.autograd.Function):
    """The steps of a `NativeTape`, with a custom backward.

    Inputs: the tape, empty or full; starts, bool `[T, B]`, or None; xs `[T, B, F]`; and the tensors that the tape was
    created from, for their gradients: the weights, the state, and the initial state of an episode, if any. An empty
    tape runs its steps now. A full tape must have run them with these inputs.

    Outputs: hidden state and read vectors after each step, concatenated, `[T, B, H + R M]`; the last state, in the
    order of `NAMES`.
    """

    @staticmethod
    def forward(ctx: Any, tape: NativeTape, starts: Tensor | None, xs: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        if not tape.count:
            tape.run(xs, starts)
        sizes = tape.sizes
        ctx.sizes, ctx.starts, ctx.has_starts = sizes, tape.starts, tape.starts is not None
        ctx.set_materialize_grads(False)
        ctx.lists = {name: None if isinstance(each, Tensor) else len(each) for name, each in tape.arrays.items()}
        flat = [each for array in tape.arrays.values() for each in ([array] if isinstance(array, Tensor) else array)]
        ctx.save_for_backward(xs, *tape.weights.flat(), *flat)
        # copies: a view of the last state would keep the states of all steps in memory
        return (tape.features, *(each.clone() for each in tape.at(tape.count).parts(sizes)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_features: Tensor | None, *d_last: Tensor | None) -> tuple[Tensor | None, ...]:
        sizes: Sizes = ctx.sizes
        saved = iter(ctx.saved_tensors)
        xs, weights = next(saved), Weights.of(saved, sizes.layers)
        arrays: Arrays = {
            name: next(saved) if count is None else [next(saved) for _ in range(count)]
            for name, count in ctx.lists.items()
        }
        inputs, features, parameters = (arrays[name] for name in ("inputs", "features", "parameters"))
        assert isinstance(features, Tensor)
        assert isinstance(parameters, Tensor)
        length, batch = features.shape[:2]
        d_features = torch.zeros_like(features) if d_features is None else d_features.contiguous()
        d_state = LoopState.zeros(features, batch, sizes)
        d_state.put(d_last, sizes)
        arrays |= d_state.arrays("d_") | {"d_features": d_features, "d_hidden": features.new_empty(batch, sizes.hidden)}
        if ctx.has_starts:
            d_initial = LoopState.zeros(features, batch, sizes)
            arrays |= d_initial.arrays("d_initial_") | {"starts": ctx.starts}

        chunk = min(length, max(1, CHUNK_ROWS // max(1, batch)))
        d_gates = [each.new_empty(chunk, *each.shape[1:]) for each in arrays["gates"]]
        d_parameters = parameters.new_empty(chunk, *parameters.shape[1:])
        arrays |= {"d_gates": d_gates, "d_parameters": d_parameters}
        loops = make_loops(sizes, weights, False, arrays)
        sums = [WeightGradient(each, layer_inputs[:-1]) for each, layer_inputs in zip(d_gates, inputs, strict=True)]
        sums += [WeightGradient(d_parameters, features[:, :, : sizes.hidden]), WeightGradient(d_gates[0], xs)]
        d_xs = torch.empty_like(xs, memory_format=torch.contiguous_format) if ctx.needs_input_grad[2] else None
        backward_in_chunks(loops, length, sums, d_gates[0], weights.input, d_xs)
        *controller, interface, from_x = sums
        d_weights = Weights(
            from_x.weight.t(),
            [each.weight.t() for each in controller],
            [each.bias for each in controller],
            interface.weight.t(),
            interface.bias,
        )
        d_initial_parts = [each.sum(0, keepdim=True) for each in d_initial.parts(sizes)] if ctx.has_starts else []
        return (None, None, d_xs, *d_weights.flat(), *d_state.parts(sizes), *d_initial_parts)
