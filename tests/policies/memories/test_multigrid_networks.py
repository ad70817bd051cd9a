"""The networks of the multigrid paper: their sizes, and what can reach what in them (supplement, proposition 1)."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from policies.memories.multigrid.layers import ConvGrid, Grid, LSTMGrid, Span, Stack
from policies.memories.multigrid.memory import Multigrid

# Sizes


@pytest.mark.parametrize(
    ("preset", "shape", "parameters", "writer", "cells"),
    [
        ("small", (5, 3, 3), 41_256, 29_320, 792),
        ("mapping-25", (4, 3, 3), 650_225, 392_768, 76_968),  # the released network
        ("mapping-15", (4, 3, 3), 115_721, 46_368, 7_992),  # published: 0.12 M and 8 K
        ("sort", (2, 3, 3), 115_073, 68_544, 7_992),
        ("recall", (2, 3, 3), 99_449, 34_272, 7_992),
        ("mnist", (1, 28, 28), 210_498, 107_136, 7_560),
        ("babi", (159, 1), 2_489_280, 2_143_104, 3_648),
    ],
)
def test_presets_have_their_sizes(
    preset: str, shape: tuple[int, ...], parameters: int, writer: int, cells: int
) -> None:
    memory = Multigrid(shape, preset=preset)
    assert sum(value.numel() for value in memory.parameters()) == parameters
    assert sum(value.numel() for value in memory.writer.parameters()) == writer
    state = memory.initial_state(1)
    assert sum(value.numel() for name, value in state.items() if name.startswith("cell")) == cells
    step = memory(torch.randn(1, *shape), state)
    assert step.output.shape == (1, memory.output_size)
    assert step.grid is None if memory.output_grid is None else step.grid.shape == (1, *memory.output_grid)


def test_the_layers_of_the_released_mapping_network() -> None:
    """Levels and the input channels of every convolution: as the released code has them."""
    memory = Multigrid((4, 3, 3), preset="mapping-25")
    inputs = [{int(level): grid.inputs for level, grid in layer.items()} for layer in memory.writer.layers]
    assert inputs[0] == {1: 4, 2: 4}
    assert inputs[2] == {1: 8, 2: 8, 3: 4}
    assert inputs[6] == {1: 32, 2: 48, 3: 48, 4: 32, 5: 16}
    (reader,) = memory.readers
    inputs = [{int(level): grid.conv.in_channels for level, grid in layer.items()} for layer in reader.layers]
    assert inputs[0] == {1: 4, 2: 4}
    assert inputs[1] == {1: 16, 2: 16}
    assert inputs[7] == {2: 96, 3: 96, 4: 96, 5: 64}
    assert inputs[13] == {5: 32}
    assert memory.output_grid == (1, 48, 48)
    assert memory.writer.residuals == {3: 1, 5: 3, 7: 5}


def test_initial_weights_are_the_released_ones() -> None:
    memory = Multigrid((4, 3, 3), preset="mapping-25")
    grid = memory.writer.layers[4]["3"]
    bound = (6 / (9 * (grid.inputs + 16) + 9 * 4 * 16)) ** 0.5  # glorot, uniform
    assert 0.95 * bound < grid.conv.weight.abs().max() <= bound
    i, f, o, candidate = grid.conv.bias.chunk(4)
    assert torch.equal(f, torch.ones(16))
    assert not torch.cat([i, o, candidate]).any()
    conv = memory.readers[0].layers[8]["4"].conv
    bound = (9 * conv.in_channels) ** -0.5
    for values in (conv.weight, conv.bias):
        assert 0.8 * bound < values.abs().max() <= bound


# Proposition 1


def reach(grids: str, levels: range, source: int, layers: int) -> list[dict[int, set[tuple[int, int]]]]:
    """Where each layer answers to an impulse at (1, 1) of layer 1, level `source`.

    All weights are positive and all else is zero, so that nothing cancels: what can be reached is what is not zero.
    """

    def make(layer: int, level: int, inputs: int, channels: int) -> Grid:
        if grids == "MG-conv":
            return ConvGrid(2, inputs, channels, "", "none")
        return LSTMGrid((9 * 2 ** (level - 1),) * 2, inputs, channels, f"{layer}_{level}", "none", False, 0.0, False)

    stack = Stack(dict.fromkeys(levels, 1), [(levels, 1)] * (layers - 1), make, {}).double()
    with torch.no_grad():
        for name, parameter in stack.named_parameters():
            parameter.fill_(0.0 if name.endswith("bias") else 0.3)
        first = {level: torch.zeros(1, 1, *[9 * 2 ** (level - 1)] * 2).double() for level in levels}
        first[source][..., 0, 0] = 1
        state = {name: torch.zeros(1, *shape).double() for name, shape in stack.sizes().items()}
        passed, _ = stack(first, state, Span())
    return [
        {level: {(i + 1, j + 1) for i, j in grid[0, 0].nonzero().tolist()} for level, grid in pyramid.items()}
        for pyramid in [first, *passed]
    ]


@pytest.mark.parametrize("grids", ["MG-conv", "MG-conv-LSTM"])
def test_proposition_1_holds_exactly(grids: str) -> None:
    """From (1, 1) of [layer 1, level 1] to 1 <= i, j <= (m - n + 2) 2^(n-1) - 1 of [layer m, level n], and no further.

    The supplement proves that these are reached. That no others are (within a grid, and none at all where m < n) is
    measured here.
    """
    for m, pyramid in enumerate(reach(grids, range(1, 5), 1, layers=7), start=1):
        for n, reached in pyramid.items():
            side = 9 * 2 ** (n - 1)
            furthest = min(side, (m - n + 2) * 2 ** (n - 1) - 1) if m >= n else 0
            assert reached == set(product(range(1, furthest + 1), repeat=2)), (m, n)


@pytest.mark.parametrize("grids", ["MG-conv", "MG-conv-LSTM"])
def test_without_neighbouring_levels_reach_grows_by_one_a_layer(grids: str) -> None:
    """The bottom of the supplement's figure 1: a stack of single grids, and the pyramid beside it."""
    single = reach(grids, range(4, 5), 4, layers=7)
    for m, pyramid in enumerate(single, start=1):
        assert pyramid[4] == set(product(range(1, m + 1), repeat=2))
    pyramid = reach(grids, range(1, 5), 4, layers=7)
    assert len(pyramid[6][4]) > 10 * len(single[6][4])


def test_one_step_of_the_released_writer_reaches_all_of_its_last_layer() -> None:
    """One step of the 25x25 writer carries what is at the centre of its input to every cell of its last layer."""
    memory = Multigrid((4, 3, 3), preset="mapping-25").double()
    state = memory.initial_state(1)
    x = torch.zeros(1, 4, 3, 3).double()
    other = x.clone()
    other[..., 1, 1] = 1
    one, two = memory(x, state), memory(other, state)
    for level in range(1, 6):
        assert (one.state[f"hidden_7_{level}"] != two.state[f"hidden_7_{level}"]).any(1).all(), level
