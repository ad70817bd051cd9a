"""Multigrid neural memory: convolutional LSTMs at several resolutions, connected to neighbouring resolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.memories.contract import MemoryStep, Panel, State
from policies.memories.multigrid.fast_sequence import FastMultigrid
from policies.memories.multigrid.layers import Channels, ConvGrid, Grid, LSTMGrid, Pyramid, Span, Stack
from policies.memories.multigrid.presets import Plan, Residuals
from policies.memories.registry import register_memory
from policies.memories.shared.arguments import at_least
from policies.memories.shared.numbers import rms, saturation
from policies.memories.shared.readers import ReaderMemory
from policies.memories.steps import Queries


@register_memory("multigrid")
class Multigrid(ReaderMemory):
    """Multigrid neural memory (Huynh, Maire and Walter, ICML 2020).

    The writer is a stack of MG-conv-LSTM layers, whose cells are the memory. Every layer is a pyramid of grids. The
    inputs of a grid are the grids of the layer below at its own and the two neighbouring levels. Readers are stacks of
    MG-conv layers without a state. The first layers of a reader have the levels of the writer's layers, and the
    writer's output of the same step as additional input; its downward layers then lead to one grid. Layers and levels
    count from 1; level 1 is the coarsest. Arguments that are None have the preset's value.

    State: for each layer l and level j of the writer `hidden_l_j` and `cell_l_j` `[B, C, H, W]` (`[B, C, L]` for rank
    1). With normalization="sequence" also `steps` `[B, 1]`, and `mean_l_j` and `variance_l_j` `[B, C]`.
    Output: a vector, see `readout`; for rank 2 also the readers' last grids, `[B, readers * C, H, W]`.

    Args:
        input_size: `(C, H, W)` of the grid written at each step, `(C, L)` for rank 1.
        queries: shape of each query by name, one reader for each; None: one reader whose query is the input.
        preset: "small", "mapping-25", "mapping-15", "sort", "recall", "mnist" or "babi".
        rank: 1 or 2, spatial dimensions.
        base: side length at level 1; it doubles at each further level.
        levels: number of levels of each layer of the writer, from level 1. If the input (of a reader: the query) enters
            at a finer level, the layer has all levels up to that one.
        channels: channels of each layer of the writer, and of a reader's upward layers.
        residuals: pairs (to, from) of the writer's layers: the output of `from`, with channels padded with zeros, is
            added to the output of `to`. The sum does not enter the recurrent state.
        reader: "none": no upward layers; the downward layers follow the writer, and there are no queries.
        down_levels: number of levels of each downward layer; the last has 1.
        down_channels: channels of each downward layer.
        reader_residuals: as `residuals`, within a reader; its layers are counted upward, then downward.
        keep: which levels the downward layers have: "finest" gives a map, "coarsest" a small output.
        activate_output: also apply ReLU (and normalisation) after the last layer.
        readout: source of the vector output: "flatten", the last grid; "pool", the mean of each channel of the pyramid
            before it, for a last grid that is large or is itself the answer.
        output_size: width of a linear layer on the read-out; None: no layer.
        input_levels: "fit": an input enters at the coarsest level that is large enough, padded with zeros; "all": at
            all levels of the first layer, resized by nearest neighbour.
        decoder: for the priority sort. The writer's layers have a second set of weights, which continues with the state
            of the first set: "silence", while the whole input is zero; a number, while this channel of the input is
            above 0.5 anywhere; "none": one set only.
        peepholes: the gates read the cell, as in the paper's equations; not in the released code.
        forget_bias: initial bias of the forget gates.
        normalization: normalisation after each layer except the last: "none"; "batch", over the batch, which couples
            its entries in training; "sequence", over the episode so far (in readers with queries: over each grid).

    Raises:
        ValueError: output_size is below 1, arguments contradict each other, or an input's shape does not fit `rank`.
    """

    fast_form = FastMultigrid
    input_kind: ClassVar[Literal["vector", "grid", "either"]] = "grid"

    def __init__(
        self,
        input_size: tuple[int, ...],
        queries: Mapping[str, tuple[int, ...]] | None = None,
        preset: str = "small",
        rank: int | None = None,
        base: int | None = None,
        levels: Sequence[int] | None = None,
        channels: Sequence[int] | None = None,
        residuals: Residuals | None = None,
        reader: Literal["query", "none"] | None = None,
        down_levels: Sequence[int] | None = None,
        down_channels: Sequence[int] | None = None,
        reader_residuals: Residuals | None = None,
        keep: Literal["finest", "coarsest"] | None = None,
        activate_output: bool | None = None,
        readout: Literal["flatten", "pool"] | None = None,
        output_size: int | None = None,
        input_levels: Literal["fit", "all"] | None = None,
        decoder: int | Literal["none", "silence"] | None = None,
        peepholes: bool | None = None,
        forget_bias: float | None = None,
        normalization: Literal["none", "batch", "sequence"] | None = None,
    ) -> None:
        super().__init__()
        self.plan = plan = Plan.of(
            preset,
            **{"rank": rank, "base": base, "levels": levels, "channels": channels, "residuals": residuals},
            **{"reader": reader, "down_levels": down_levels, "down_channels": down_channels, "keep": keep},
            **{"reader_residuals": reader_residuals, "activate_output": activate_output, "readout": readout},
            **{"input_levels": input_levels, "decoder": decoder, "peepholes": peepholes},
            **{"forget_bias": forget_bias, "normalization": normalization},
        )
        at_least(1, output_size=output_size)
        if queries and plan.reader == "none":
            raise ValueError(f"reader is 'none', but there are queries ({', '.join(queries)}): expected reader='query'")
        self.input_shape, self.query_shapes = tuple(input_size), dict(queries or {})
        for name, shape in {"input_size": self.input_shape, **self.query_shapes}.items():
            if len(shape) != plan.rank + 1:
                raise ValueError(f"{name} is {shape}; rank {plan.rank} expects (channels, {plan.rank} sides)")
            # each layer moves an input by one level; the output is the coarsest one
            largest = plan.side(1 + len(plan.levels) + len(plan.down_levels))
            if plan.keep == "coarsest" and plan.reader == "query" and max(shape[1:]) > largest:
                depth = f"{len(plan.levels)} layers and {len(plan.down_levels)} downward layers"
                raise ValueError(
                    f"{name} is {shape}, but {depth} support sides up to {largest}: shrink it with "
                    "gymnasium.wrappers.ResizeObservation, or add layers"
                )

        up = self._layers_up(self.input_shape)
        self.writer = Stack(self._input_channels(self.input_shape), up, self._lstm_grid, dict(plan.residuals))
        finest = max(self.writer.output_channels[-1])
        down = [
            (range(finest - count + 1, finest + 1) if plan.keep == "finest" else range(1, count + 1), width)
            for count, width in zip(plan.down_levels, plan.down_channels, strict=True)
        ]
        self.readers = nn.ModuleList()
        pooled = 0
        for shape in self.query_shapes.values() or [self.input_shape]:
            written = self.writer.output_channels
            if plan.reader == "none":
                bottom, layers, side_inputs = written[-1], down, []
            else:
                bottom, layers, side_inputs = self._input_channels(shape), self._layers_up(shape) + down, written
            stack = Stack(bottom, layers, self._conv_grid, dict(plan.reader_residuals), side_inputs)
            self.readers.append(stack)
            pooled += sum([bottom, *stack.output_channels][-2].values())

        ((level, width),) = stack.output_channels[-1].items()
        out = (width * len(self.readers), *plan.size(level))
        self.output_grid = (out[0], out[1], out[2]) if plan.rank == 2 else None
        read = pooled if plan.readout == "pool" else out[0] * plan.side(level) ** plan.rank
        self.output_size = output_size or read
        self.linear = nn.Linear(read, output_size) if output_size else nn.Identity()

    @classmethod
    def default_grid(cls, preset: str = "small", **memory_kwargs: Any) -> tuple[int, ...]:
        """The spatial shape of level 1, for observations that are not grids.

        Takes the arguments of the constructor.
        """
        plan = Plan.of(preset, rank=memory_kwargs.get("rank"), base=memory_kwargs.get("base"))
        return plan.size(1)

    # -- building ------------------------------------------------------------------------------------------------------

    def _input_channels(self, shape: tuple[int, ...]) -> Channels:
        plan = self.plan
        entries = [plan.entry(shape[1:])] if plan.input_levels == "fit" else range(1, plan.levels[0] + 1)
        return dict.fromkeys(entries, shape[0])

    def _layers_up(self, shape: tuple[int, ...]) -> list[tuple[range, int]]:
        least = max(self._input_channels(shape))
        pairs = zip(self.plan.levels, self.plan.channels, strict=True)
        return [(range(1, max(levels, least) + 1), channels) for levels, channels in pairs]

    def _lstm_grid(self, layer: int, level: int, inputs: int, channels: int) -> Grid:
        plan, key = self.plan, f"{layer}_{level}"
        gates = (plan.peepholes, plan.forget_bias, plan.decoder != "none")
        return LSTMGrid(plan.size(level), inputs, channels, key, plan.normalization, *gates)

    def _conv_grid(self, layer: int, level: int, inputs: int, channels: int) -> Grid:
        plan = self.plan
        plain = layer == plan.reader_layers and not plan.activate_output
        if plan.reader == "none":  # downward layers follow the writer, so they may have statistics in the state
            key = f"{len(plan.levels) + layer}_{level}"
            return ConvGrid(plan.rank, inputs, channels, key, plan.normalization, plain)
        normalization = "step" if plan.normalization == "sequence" else plan.normalization
        return ConvGrid(plan.rank, inputs, channels, f"{layer}_{level}", normalization, plain)

    # -- one step ------------------------------------------------------------------------------------------------------

    def initial_state(self, batch_size: int) -> State:
        sizes = self.writer.sizes()
        if self.plan.reader == "none":
            sizes |= self.readers[0].sizes()  # type: ignore[operator]
        if self.plan.normalization == "sequence":
            sizes["steps"] = (1,)
        return self.zeros_state(batch_size, sizes)

    def forward(self, x: Tensor, state: State, queries: Queries | None = None) -> MemoryStep:
        span = Span(steps=state.get("steps"), answering=self.answering(x[None]))
        return MemoryStep(*self.write_and_read(x, state, queries, span))

    def answering(self, xs: Tensor) -> Tensor | None:
        """Bool `[T, B]`, true where the decoder's weights are used; None without a decoder."""
        if self.plan.decoder == "none":
            return None
        if self.plan.decoder == "silence":
            return (xs == 0).flatten(2).all(2)
        return (xs[:, :, self.plan.decoder] > 0.5).flatten(2).any(2)

    def write_and_read(
        self, x: Tensor, state: State, queries: Queries | None, span: Span
    ) -> tuple[Tensor, State, dict[str, Tensor], Tensor | None]:
        """One step, or all rows of a sequence.

        Raises:
            ValueError: the queries are not those of the readers.
        """
        if self.query_shapes.keys() != (queries or {}).keys():
            raise ValueError(f"queries are {sorted(queries or {})}; this memory has readers for {self.query_shapes}")
        written, new_state = self.writer(self._input_pyramid(x, span), state, span)
        grids, pools = [], []
        reader_inputs = [x] if queries is None or not queries else [queries[name] for name in self.query_shapes]
        for reader, query in zip(self.readers, reader_inputs, strict=True):
            if self.plan.reader == "none":
                pyramid, side_inputs = written[-1], []
            else:
                pyramid, side_inputs = self._input_pyramid(query, span), written
            outputs, changed = reader(pyramid, state, span, side_inputs)
            new_state |= changed
            grids += outputs[-1].values()
            pools += [level.to(self.dtype) for level in [pyramid, *outputs][-2].values()]
        if span.steps is not None:
            new_state["steps"] = span.counts[-1]
        grid = (torch.cat(grids, 1) if len(grids) > 1 else grids[0]).to(self.dtype)
        if self.plan.readout == "pool":
            read = torch.cat([level.flatten(2).mean(2) for level in pools], 1)
        else:
            read = grid.flatten(1)
        return self.linear(read), new_state, {}, grid if self.plan.rank == 2 else None

    def enter(self, x: Tensor) -> Pyramid:
        """Converts an input to the pyramid of the first layer."""
        levels = self._input_channels(tuple(x.shape[1:]))
        if self.plan.input_levels == "all":
            return {level: F.interpolate(x, size=self.plan.size(level), mode="nearest") for level in levels}
        (level,) = levels
        missing = [self.plan.side(level) - side for side in reversed(x.shape[2:])]  # F.pad takes the last side first
        padding = [amount for rest in missing for amount in (rest // 2, rest - rest // 2)]
        return {level: F.pad(x, padding) if any(missing) else x}

    def _input_pyramid(self, x: Tensor, span: Span) -> Pyramid:
        """As `enter`, in the layout of the span."""
        pyramid = self.enter(x)
        return (
            pyramid
            if span.to_fast_layout is None
            else {level: span.to_fast_layout(grid) for level, grid in pyramid.items()}
        )

    # -- pictures ------------------------------------------------------------------------------------------------------

    def metrics(self, state: State) -> dict[str, Tensor]:
        """`saturation`: share of saturated units; `cell_rms`: root mean square of the cells; means over grids."""
        hidden = [saturation(value) for name, value in state.items() if name.startswith("hidden_")]
        cells = [rms(value) for name, value in state.items() if name.startswith("cell_")]
        return {"saturation": torch.stack(hidden).mean(0), "cell_rms": torch.stack(cells).mean(0)}

    def panels(self, state: State) -> dict[str, Panel]:
        """h and c of the last layer of the writer, level by level: the mean over channels; in 1-D, every channel."""
        layer = len(self.plan.levels)
        panels = {}
        what = "grid of the last layer, coarse to fine"
        for name, label, limits in (("hidden", "h", (-1.0, 1.0)), ("cell", "c", None)):
            for level in sorted(self.writer.output_channels[-1], reverse=True):
                grid = state[f"{name}_{layer}_{level}"][0].detach()
                title = f"{name} {layer}, level {level}"
                if self.plan.rank == 1:
                    panels[title] = Panel(grid, "position", f"channel of {label}", limits, about=what)
                else:
                    panels[title] = Panel(grid.mean(0), f"column (mean of {label})", "row", limits, about=what)
        return panels
