"""LSTM and GRU over time on a CPU: steps without a graph, stored on a tape.

The input's part of all steps is one matrix product. A step writes into preallocated tensors, in about ten operations.
`fast_gradient.py` is the custom backward of the recorded sequence. Weight rows have torch's order: i, f, g, o (LSTM)
and r, z, n (GRU).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from policies.memories.recurrent import fast_native as recurrent_native

# As tensors: with Python numbers an operation on a small tensor takes twice as long.
_ONE, _MINUS_TWO = torch.tensor(1.0, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)


def tanh_(x: Tensor) -> Tensor:
    """tanh in place, as 1 - 2 σ(-2x): exact to 1e-7 in float32, and up to three times as fast as torch's on a CPU."""
    return torch.add(_ONE, x.mul_(_MINUS_TWO).sigmoid_(), alpha=-2, out=x)


class Tape:
    """Stores the steps of one layer while they run, without gradients.

    Args:
        state: the state tensors `[B, H]` before the first step; not modified.
        parameters: parameters of the layer, as in `nn.RNNBase.all_weights`.
        expected_steps: number of steps to allocate; with more steps the tape is copied to a larger one.
    """

    gates: int
    """Number of gates: the weights have this many blocks of H rows."""
    bias: Tensor
    """Added to the input's part of the gates, `[gates * H]`."""

    @torch.no_grad()
    def __init__(self, state: Sequence[Tensor], parameters: Sequence[Tensor], expected_steps: int) -> None:
        self.w_x, self.w_h, self.b_x, self.b_h = (parameter.detach() for parameter in parameters)
        self.length = 0
        self.starts: dict[int, Tensor] = {}
        """Resets `[B]` by step, for the steps at which an episode may start."""
        self.native, self.all_starts = False, torch.empty(0)
        """Whether the steps were computed by C loops, and their resets `[T, B]`; empty without resets."""
        first = state[0]
        self.size = first.shape[1]
        self.active = first.new_empty(max(expected_steps, 1), len(first), self.gates * self.size)
        """The gates, `[steps, B, gates * H]`."""
        self.states = [first.new_empty(len(self.active) + 1, *first.shape) for _ in state]
        """State tensors before each step and after the last, `[steps + 1, B, H]`; before the reset, except step 0."""
        self.extra = self._extra()
        for values, value in zip(self.states, state, strict=True):
            values[0] = value

    def _extra(self) -> Tensor:
        """Allocates the array `extra` `[steps, B, H]`, sets `bias`, and copies the transposed recurrent weights, which
        makes products with few rows an eighth faster."""
        raise NotImplementedError

    def _split(self) -> None:
        """Creates the views of all steps at once: created one by one, they would take as long as the arithmetic."""
        raise NotImplementedError

    def _advance(self, t: int, before: Sequence[Tensor]) -> None:
        """Step `t` from the state `before`; `active` contains the input's part of the gates."""
        raise NotImplementedError

    def _grow(self) -> None:
        def larger(array: Tensor, steps: int) -> Tensor:
            enlarged = array.new_empty(steps, *array.shape[1:])
            enlarged[: len(array)] = array
            return enlarged

        capacity = 2 * len(self.active)
        self.active, self.extra = larger(self.active, capacity), larger(self.extra, capacity)
        self.states = [larger(values, capacity + 1) for values in self.states]
        self._split()

    @torch.no_grad()
    def step(self, x: Tensor, starts: Tensor | None) -> tuple[Tensor, ...]:
        """Steps on `x` `[B, F]`, after a reset where `starts` `[B]` is true; returns the state tensors `[B, H]`."""
        t = self.length
        if t == 0:
            self._split()
        if t == len(self.active):
            self._grow()
        torch.addmm(self.bias, x, self.w_x.t(), out=self.active[t])
        before: Sequence[Tensor] = [values[t] for values in self._state_views]
        self._advance(t, before if starts is None else self._reset(t, before, starts))
        self.length += 1
        return tuple(values[t + 1] for values in self._state_views)

    @torch.no_grad()
    def run(self, xs: Tensor, starts: Tensor | None, resets: Sequence[int] | None) -> None:
        """Runs all steps of `xs` `[T, B, F]`; `starts` and `resets` as in `unroll`."""
        torch.addmm(self.bias, xs.flatten(0, 1), self.w_x.t(), out=self.active.flatten(0, 1))
        if len(self.active) == len(xs) and self._run_natively(starts):
            self.length = len(xs)
            return
        self._split()
        reset_at = frozenset(range(len(xs)) if resets is None else resets) if starts is not None else frozenset()
        befores = zip(*self._state_views, strict=True)
        for t, before in zip(range(len(xs)), befores, strict=False):
            if t in reset_at:
                assert starts is not None
                self._advance(t, self._reset(t, before, starts[t]))
            else:
                self._advance(t, before)
        self.length = len(xs)

    def _run_natively(self, starts: Tensor | None) -> bool:
        """Computes all steps by C loops if available; returns whether it did."""
        if not recurrent_native.usable(self.states[0][0]):
            return False
        if starts is not None:
            self.all_starts = starts.contiguous()
        self._loops(None if starts is None else self.all_starts)
        self.native = True
        return True

    def _loops(self, starts: Tensor | None) -> None:
        raise NotImplementedError

    @staticmethod
    def single_step(x: Tensor, state: Sequence[Tensor], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One step that is not recorded, without a graph; returns the state tensors `[B, H]`."""
        raise NotImplementedError

    def _reset(self, t: int, before: Sequence[Tensor], starts: Tensor) -> Sequence[Tensor]:
        """The state before step `t`, set to 0 where `starts` is true."""
        self.starts[t] = starts
        if t == 0:  # step 0 is the tape's own copy; later states are outputs
            return [value.masked_fill_(starts[:, None], 0.0) for value in before]
        return [value.masked_fill(starts[:, None], 0.0) for value in before]

    _state_views: list[tuple[Tensor, ...]]


class LSTMTape(Tape):
    """The tape of an LSTM; `active` becomes i, f, g, o and `extra` is tanh of the cell."""

    gates = 4

    def _extra(self) -> Tensor:
        self.bias, self.w_out = self.b_x + self.b_h, self.w_h.t().contiguous()
        return torch.empty_like(self.states[0][1:])

    @staticmethod
    def single_step(x: Tensor, state: Sequence[Tensor], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        w_x, w_h, b_x, b_h = parameters
        active = torch.addmm(b_x + b_h, x, w_x.t())
        hidden, cell, tanh_cell = (torch.empty_like(value) for value in (*state, state[0]))
        views = (active, *active.view(x.shape[0], 4, -1).unbind(1), tanh_cell)
        lstm_step(views, state, w_h.t(), hidden, cell)
        return hidden, cell

    def _loops(self, starts: Tensor | None) -> None:
        hiddens, cells = self.states
        recurrent_native.lstm_forward(self.active, self.w_h.contiguous(), hiddens, cells, self.extra, starts)

    def _split(self) -> None:
        self._state_views = [values.unbind(0) for values in self.states]
        each = (gate.unbind(0) for gate in torch.unflatten(self.active, 2, (4, -1)).unbind(2))
        self._views = list(zip(self.active.unbind(0), *each, self.extra.unbind(0), strict=True))

    def _advance(self, t: int, before: Sequence[Tensor]) -> None:
        hiddens, cells = self._state_views
        lstm_step(self._views[t], before, self.w_out, hiddens[t + 1], cells[t + 1])


def lstm_step(
    views: Sequence[Tensor], before: Sequence[Tensor], w_out: Tensor, hidden_out: Tensor, cell_out: Tensor
) -> None:
    """A step in place.

    Args:
        views: `[B, 4H]`, the input's part, overwritten by the gates; its parts i, f, g, o; output for tanh c.
        before: hidden state and cell.
        w_out: the recurrent weights, transposed.
        hidden_out, cell_out: outputs.
    """
    active, i, f, g, o, tanh_cell = views
    hidden, cell = before
    active.addmm_(hidden, w_out)
    g.mul_(_MINUS_TWO)  # tanh(g) = 1 - 2 σ(-2 g); the σ of all gates is computed at once
    active.sigmoid_()
    torch.add(_ONE, g, alpha=-2, out=g)
    torch.mul(f, cell, out=cell_out).addcmul_(i, g)
    torch.mul(cell_out, _MINUS_TWO, out=tanh_cell).sigmoid_()
    torch.add(_ONE, tanh_cell, alpha=-2, out=tanh_cell)
    torch.mul(o, tanh_cell, out=hidden_out)


class GRUTape(Tape):
    """The tape of a GRU; `active` becomes r, z, n and `extra` is the hidden state's part of n, W_hn h + b_hn."""

    gates = 3

    def _extra(self) -> Tensor:
        both = 2 * self.size
        self.bias = _input_bias(self.b_x, self.b_h, self.size)
        self.w_rz, self.w_n = (part.t().contiguous() for part in (self.w_h[:both], self.w_h[both:]))
        self.b_n = self.b_h[both:]
        return torch.empty_like(self.states[0][1:])

    @staticmethod
    def single_step(x: Tensor, state: Sequence[Tensor], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        w_x, w_h, b_x, b_h = parameters
        size = state[0].shape[1]
        active = torch.addmm(_input_bias(b_x, b_h, size), x, w_x.t())
        n_hidden, hidden = torch.empty_like(state[0]), torch.empty_like(state[0])
        (r, z, n), rz = active.view(x.shape[0], 3, size).unbind(1), active[:, : 2 * size]
        w_rz, w_n = w_h[: 2 * size].t(), w_h[2 * size :].t()
        gru_step((rz, n, r, z, n_hidden), state[0], w_rz, w_n, b_h[2 * size :], hidden)
        return (hidden,)

    def _loops(self, starts: Tensor | None) -> None:
        recurrent_native.gru_forward(
            self.active, self.w_h.contiguous(), self.b_n.contiguous(), self.states[0], self.extra, starts
        )

    def _split(self) -> None:
        self._state_views = [values.unbind(0) for values in self.states]
        r, z, n = (gate.unbind(0) for gate in torch.unflatten(self.active, 2, (3, -1)).unbind(2))
        rz = self.active[..., : 2 * self.size].unbind(0)
        self._views = list(zip(rz, n, r, z, self.extra.unbind(0), strict=True))

    def _advance(self, t: int, before: Sequence[Tensor]) -> None:
        gru_step(self._views[t], before[0], self.w_rz, self.w_n, self.b_n, self._state_views[0][t + 1])


def _input_bias(b_x: Tensor, b_h: Tensor, size: int) -> Tensor:
    """The summed biases of r and z, and the input's bias of n; n's other bias is multiplied by r."""
    return torch.cat([b_x[: 2 * size] + b_h[: 2 * size], b_x[2 * size :]])


def gru_step(
    views: Sequence[Tensor], hidden: Tensor, w_rz: Tensor, w_n: Tensor, b_n: Tensor, hidden_out: Tensor
) -> None:
    """A step in place.

    Args:
        views: rz `[B, 2H]` and n, the input's part, overwritten by the gates; r and z, the parts of rz; output for the
            hidden state's part of n.
        hidden, w_rz, w_n, b_n: the state before, its weights, transposed, and the bias of n.
        hidden_out: output.
    """
    rz, n, r, z, n_hidden = views
    rz.addmm_(hidden, w_rz).sigmoid_()
    torch.addmm(b_n, hidden, w_n, out=n_hidden)
    tanh_(n.addcmul_(r, n_hidden))
    torch.lerp(n, hidden, z, out=hidden_out)  # (1 - z) n + z h
