"""Multigrid layers: pyramids of grids; the inputs of a grid are its neighbours in the pyramid below.

A `Pyramid` has a grid for each level; level 1 is the coarsest, and each level has twice the side of the previous one.
A sequence is `T * B` rows, time before batch, with a `Span` that describes its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.memories.contract import State

Pyramid = dict[int, Tensor]
"""Grids `[N, C, L]` or `[N, C, H, W]` by level."""
Channels = dict[int, int]
"""C of each grid of a pyramid."""


def zero_at_starts(value: Tensor, step: int, starts: Tensor | None, resets: frozenset[int]) -> Tensor:
    """`value` `[B, ...]` before `step`, zeroed where an episode starts; only steps in `resets` are checked."""
    if starts is None or step not in resets:
        return value
    return value.masked_fill(starts[step].view(-1, *[1] * (value.dim() - 1)), 0.0)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution in the precision of `x`."""
    function = F.conv2d if x.dim() == 4 else F.conv1d
    return function(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=1)


@dataclass(frozen=True)
class Span:
    """The steps that make up a batch of rows."""

    length: int = 1
    """T."""
    starts: Tensor | None = None
    """Bool `[T, B]`, true where the state is reset before the step."""
    resets: frozenset[int] = frozenset()
    """The steps where `starts` may be true."""
    steps: Tensor | None = None
    """`[B, 1]`, steps of the episode before this span; only for normalisation over the sequence."""
    answering: Tensor | None = None
    """Bool `[T, B]`, true where the decoder's weights are used; None: no decoder."""
    to_fast_layout: Callable[[Tensor], Tensor] | None = None
    """Changes the layout of inputs `[T * B, C, ...]`."""
    recurrence: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None
    """Computes all steps of a grid without a decoder; see `fast_sequence.Recurrence`."""
    layer: Callable[..., list[tuple[Tensor, State]]] | None = None
    """Computes all grids of an LSTM layer without a decoder; see `fast_layers.Layers`."""

    def steps_of(self, rows: Tensor) -> Tensor:
        """Rows `[T * B, ...]` as `[T, B, ...]`."""
        return rows.view(self.length, -1, *rows.shape[1:])

    def zero_at_starts(self, step: int, value: Tensor) -> Tensor:
        """`value` `[B, ...]` of the state before `step`, zeroed where an episode starts."""
        return zero_at_starts(value, step, self.starts, self.resets)

    @cached_property
    def counts(self) -> list[Tensor]:
        """Steps of the episode after each step of the span, `[B, 1]` each."""
        assert self.steps is not None
        counts, count = [], self.steps
        for t in range(self.length):
            count = self.zero_at_starts(t, count) + 1
            counts.append(count)
        return counts


def up(grid: Tensor) -> Tensor:
    """↑: nearest neighbour, twice the side."""
    return F.interpolate(grid, scale_factor=2.0, mode="nearest")


def down(grid: Tensor) -> Tensor:
    """↓: the maximum of each block of two by two (or of two), half the side."""
    return F.max_pool2d(grid, 2) if grid.dim() == 4 else F.max_pool1d(grid, 2)


def neighbours(pyramid: Pyramid, level: int) -> list[Tensor]:
    """The parts of H^x_j = (↑h^x_{j-1}) ⊕ (h^x_j) ⊕ (↓h^x_{j+1}), without missing levels."""
    parts = []
    if level - 1 in pyramid:
        parts.append(up(pyramid[level - 1]))
    if level in pyramid:
        parts.append(pyramid[level])
    if level + 1 in pyramid:
        parts.append(down(pyramid[level + 1]))
    return parts


def widen(grid: Tensor, channels: int) -> Tensor:
    """`grid` padded with zero channels to `channels`."""
    extra = channels - grid.shape[1]
    return F.pad(grid, [0, 0] * (grid.dim() - 2) + [0, extra]) if extra else grid


def convolution(rank: int, inputs: int, outputs: int) -> nn.Conv1d | nn.Conv2d:
    """A convolution with kernel 3 and padding; initialised uniformly in ±1/sqrt(3^rank · inputs), torch's default."""
    return (nn.Conv2d if rank == 2 else nn.Conv1d)(inputs, outputs, 3, padding=1)


# Normalisation: `(rows, state, span)` to normalised rows and changed entries of the state


class Norm(nn.Module):
    """Normalisation with a trained scale and centre per channel."""

    eps = 1e-5

    def __init__(self, channels: int, key: str) -> None:
        super().__init__()
        self.key = key
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes (without the batch) of its entries in the state."""
        return {}

    def forward(self, rows: Tensor, state: State, span: Span) -> tuple[Tensor, State]:
        raise NotImplementedError


class BatchNorm(Norm):
    """Training: statistics of this step over batch and positions. Evaluation: their running mean."""

    momentum = 0.01
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, key: str) -> None:
        super().__init__(channels, key)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, rows: Tensor, state: State, span: Span) -> tuple[Tensor, State]:
        parts = rows.chunk(span.length) if self.training else [rows]
        running = (self.running_mean, self.running_var, self.weight, self.bias)
        normal = [F.batch_norm(part, *running, self.training, self.momentum, self.eps) for part in parts]
        return torch.cat(normal) if len(normal) > 1 else normal[0], {}


class SequenceNorm(Norm):
    """Statistics of each batch entry over positions and the steps of its episode so far, including this one."""

    def sizes(self) -> dict[str, tuple[int, ...]]:
        return {f"mean_{self.key}": self.weight.shape, f"variance_{self.key}": self.weight.shape}

    def forward(self, rows: Tensor, state: State, span: Span) -> tuple[Tensor, State]:
        mean, variance = (state[name] for name in self.sizes())
        means, variances = [], []
        here = span.steps_of(rows.flatten(2))  # [T, B, C, cells]
        step_means, step_variances = here.mean(3), here.var(3, correction=0)
        for t, (m, v) in enumerate(zip(step_means.unbind(), step_variances.unbind(), strict=True)):
            mean, variance = span.zero_at_starts(t, mean), span.zero_at_starts(t, variance)
            share = span.counts[t].reciprocal()  # the share of this step in the episode so far
            change = m - mean
            mean = mean + share * change
            variance = variance + share * (v - variance) + share * (1 - share) * change.square()
            means.append(mean)
            variances.append(variance)
        scale = self.weight * (torch.cat(variances) + self.eps).rsqrt()
        shift = self.bias - scale * torch.cat(means)
        shape = (*scale.shape, *[1] * (rows.dim() - 2))
        return rows * scale.view(shape) + shift.view(shape), dict(zip(self.sizes(), (mean, variance), strict=True))


class StepNorm(Norm):
    """Statistics of each row over positions and channels: for readers, which have no state."""

    def forward(self, rows: Tensor, state: State, span: Span) -> tuple[Tensor, State]:
        return F.group_norm(rows, 1, self.weight, self.bias, self.eps), {}


NORMS: dict[str, type[Norm]] = {"batch": BatchNorm, "sequence": SequenceNorm, "step": StepNorm}
Normalization = Literal["none", "batch", "sequence", "step"]


# One grid of one layer: `(parts, state, span)` to its rows and changed entries of the state


class Grid(nn.Module):
    """A grid of a layer: a convolution over its neighbours in the layer below, and the operations after it."""

    def __init__(self, key: str, channels: int, normalization: Normalization) -> None:
        super().__init__()
        self.key = key
        self.norm = None if normalization == "none" else NORMS[normalization](channels, key)

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes (without the batch) of its entries in the state."""
        return {} if self.norm is None else self.norm.sizes()

    def normal(self, rows: Tensor, state: State, span: Span) -> tuple[Tensor, State]:
        """Normalises rows, in the parameters' precision; without a normalisation returns them."""
        if self.norm is None:
            return rows, {}
        normal, changed = self.norm(rows.to(self.norm.weight.dtype), state, span)
        return normal.to(rows.dtype), changed

    def forward(self, parts: list[Tensor], state: State, span: Span) -> tuple[Tensor, State]:
        raise NotImplementedError


class ConvGrid(Grid):
    """A grid of an MG-conv layer: convolution, ReLU, normalisation; `plain`: the convolution alone."""

    def __init__(
        self, rank: int, inputs: int, channels: int, key: str, normalization: Normalization, plain: bool = False
    ) -> None:
        super().__init__(key, channels, "none" if plain else normalization)
        self.plain = plain
        self.conv = convolution(rank, inputs, channels)

    def forward(self, parts: list[Tensor], state: State, span: Span) -> tuple[Tensor, State]:
        x = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        rows = convolve(x, self.conv.weight, self.conv.bias)
        return (rows, {}) if self.plain else self.normal(rows.relu(), state, span)


class LSTMGrid(Grid):
    """A grid of an MG-conv-LSTM layer: a convolutional LSTM with normalised output.

    One convolution over [H^x; h^y_{t-1}] computes i, f, o and the candidate, in this order. With a decoder there are
    two sets of weights, the encoder's first, with one state; `Span.answering` selects the set.
    """

    def __init__(
        self,
        size: tuple[int, ...],
        inputs: int,
        channels: int,
        key: str,
        normalization: Normalization,
        peepholes: bool,
        forget_bias: float,
        decoder: bool,
    ) -> None:
        super().__init__(key, channels, normalization)
        rank, sets = len(size), 2 if decoder else 1
        self.rank, self.inputs, self.shape = rank, inputs, (channels, *size)
        self.conv = convolution(rank, inputs + channels, sets * 4 * channels)
        self.peepholes = nn.Parameter(torch.zeros(sets, 3, *self.shape)) if peepholes else None  # W^ci, W^cf, W^co
        with torch.no_grad():
            for weight, bias in zip(self.conv.weight.chunk(sets), self.conv.bias.chunk(sets), strict=True):  # type: ignore[union-attr]
                nn.init.xavier_uniform_(weight)
                bias.zero_()
                bias[channels : 2 * channels] = forget_bias

    def sizes(self) -> dict[str, tuple[int, ...]]:
        return {f"hidden_{self.key}": self.shape, f"cell_{self.key}": self.shape, **super().sizes()}

    def forward(self, parts: list[Tensor], state: State, span: Span) -> tuple[Tensor, State]:
        h, c = state[f"hidden_{self.key}"], state[f"cell_{self.key}"]
        if span.length == 1 and span.starts is None:
            h, c = self.advance(
                self.conv(torch.cat([*parts, h], 1)), c, None if span.answering is None else span.answering[0]
            )
            rows = h
        else:
            # the input's part for all steps together; only the recurrent part is computed step by step
            x = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
            x_weight, h_weight = self.conv.weight.tensor_split([self.inputs], 1)
            x_gates, dtype, h = convolve(x, x_weight, self.conv.bias), h.dtype, h.to(x.dtype)
            if span.answering is None and span.recurrence is not None:
                peepholes = None if self.peepholes is None else self.peepholes[0]
                rows, h, c = span.recurrence(span.starts, span.resets, x_gates, h, c, h_weight.to(x.dtype), peepholes)
            else:
                hidden = []
                answering: Sequence[Tensor | None] = (
                    [None] * span.length if span.answering is None else span.answering.unbind()
                )
                for t, gates in enumerate(span.steps_of(x_gates).unbind()):
                    h, c = span.zero_at_starts(t, h), span.zero_at_starts(t, c)
                    h, c = self.advance(gates.to(c.dtype) + convolve(h, h_weight), c, answering[t])
                    h = h.to(x.dtype)
                    hidden.append(h)
                rows = torch.cat(hidden)
            h = h.to(dtype)
        rows, changed = self.normal(rows, state, span)
        return rows, {f"hidden_{self.key}": h, f"cell_{self.key}": c, **changed}

    def advance(self, gates: Tensor, c: Tensor, answering: Tensor | None) -> tuple[Tensor, Tensor]:
        """h^y_t and c^y_t from the gates' convolutions and c^y_{t-1}."""
        peepholes: Tensor | None = self.peepholes
        if answering is not None:
            answering = answering.view(-1, *[1] * (self.rank + 1))
            encoder, decoder = gates.chunk(2, 1)
            gates = torch.where(answering, decoder, encoder)
            if peepholes is not None:
                peepholes = torch.where(answering[:, None], peepholes[1], peepholes[0])
        elif peepholes is not None:
            peepholes = peepholes[0]
        channels = self.shape[0]
        if peepholes is None:
            i, f, o = gates[:, : 3 * channels].sigmoid().chunk(3, 1)
            c = torch.addcmul(f * c, i, gates[:, 3 * channels :].tanh())
            return o * c.tanh(), c
        i_and_f, o, candidate = gates.tensor_split([2 * channels, 3 * channels], 1)
        w_ci_and_cf, w_co = peepholes.tensor_split([2], -self.rank - 2)
        i_and_f = i_and_f.view(-1, 2, channels, *c.shape[2:])
        i, f = torch.addcmul(i_and_f, w_ci_and_cf, c.unsqueeze(1)).sigmoid().unbind(1)
        c = torch.addcmul(f * c, i, candidate.tanh())
        o = torch.addcmul(o, w_co.squeeze(-self.rank - 2), c).sigmoid()
        return o * c.tanh(), c


# Layers


class Stack(nn.Module):
    """A stack of multigrid layers.

    Args:
        input_channels: channels of the input pyramid.
        layers: levels and channels of each layer.
        make: creates a grid from layer, level, input channels and channels.
        residuals: for each target layer the layer whose output, zero-padded in channels, is added to its output.
        side_channels: for the first layers, channels of a pyramid that is concatenated to their output.

    Raises:
        ValueError: a level has no input, or a residual has more channels than its target.
    """

    def __init__(
        self,
        input_channels: Channels,
        layers: Sequence[tuple[range, int]],
        make: Callable[[int, int, int, int], Grid],
        residuals: Mapping[int, int],
        side_channels: Sequence[Channels] = (),
    ) -> None:
        super().__init__()
        self.residuals = residuals
        self.output_channels: list[Channels] = []
        """Output channels of each layer."""
        self.layers = nn.ModuleList()
        before = input_channels
        for number, (levels, channels) in enumerate(layers, start=1):
            inputs = {level: sum(before.get(level + step, 0) for step in (-1, 0, 1)) for level in levels}
            if not inputs[levels[-1]]:
                raise ValueError(f"layer {number} has {levels[-1]} levels, but those before it end at {max(before)}")
            # a coarse grid without input is omitted
            grids = {str(level): make(number, level, count, channels) for level, count in inputs.items() if count}
            self.layers.append(nn.ModuleDict(grids))
            before = {int(level): channels for level in grids}
            if number in residuals:
                source = self.output_channels[residuals[number] - 1]
                if any(source.get(level, 0) > channels for level in before):
                    raise ValueError(f"layer {number} has {channels} channels, fewer than layer {residuals[number]}")
            if number <= len(side_channels):
                side = side_channels[number - 1]
                before = {level: before.get(level, 0) + side.get(level, 0) for level in sorted({*before, *side})}
            self.output_channels.append(before)

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes (without the batch) of its entries in the state."""
        return {name: shape for layer in self.layers for grid in layer.values() for name, shape in grid.sizes().items()}  # type: ignore[operator]

    def forward(
        self, pyramid: Pyramid, state: State, span: Span, side_inputs: Sequence[Pyramid] = ()
    ) -> tuple[list[Pyramid], State]:
        """The output pyramid of each layer, and the new state of the stack."""
        outputs: list[Pyramid] = []
        new_state: State = {}
        for number, layer in enumerate(self.layers, start=1):
            out: Pyramid = {}
            levels, grids = zip(*((int(name), grid) for name, grid in layer.items()), strict=True)  # type: ignore[operator]
            parts = [neighbours(pyramid, level) for level in levels]
            if span.layer is not None and isinstance(grids[0], LSTMGrid):
                results = span.layer(grids, parts, state, span)
            else:
                results = [grid(part, state, span) for grid, part in zip(grids, parts, strict=True)]
            for level, (rows, changed) in zip(levels, results, strict=True):
                out[level] = rows
                new_state |= changed
            if number in self.residuals:
                for level, source in outputs[self.residuals[number] - 1].items():
                    if level in out:
                        out[level] = out[level] + widen(source, out[level].shape[1])
            if number <= len(side_inputs):
                side = side_inputs[number - 1]
                for level in side:
                    out[level] = torch.cat([out[level], side[level]], 1) if level in out else side[level]
            outputs.append(out)
            pyramid = out
        return outputs, new_state
