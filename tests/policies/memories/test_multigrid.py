"""Multigrid memory against the paper's equations written as loops, and what its parts mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from multigrid_loops import BATCH, LENGTH, assert_same_with_gradients, build, everything, reference, sequence

from policies.memories import make_memory
from policies.memories.multigrid.layers import BatchNorm, Span
from policies.memories.multigrid.memory import Multigrid
from policies.memories.multigrid.presets import PRESETS
from policies.memories.steps import select
from policies.memories.time.unroll import unroll

RESIDUALS = {"residuals": ((2, 1),), "reader_residuals": ((3, 1), (4, 3)), "down_channels": (4, 4)}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "released": {"peepholes": False},
    "residuals": RESIDUALS,
    "linear": {"output_size": 3, "activate_output": False},
    "map": {"keep": "finest", "readout": "pool", "activate_output": False},
    "one dimension": {"rank": 1, "shape": (2, 2)},
    "queries": {"queries": {"near": (1, 2, 2), "far": (2, 3, 4)}},
    "large input": {"shape": (2, 3, 3), **RESIDUALS},
    "all levels": {"shape": (1, 5, 5), "levels": (2, 2), "input_levels": "all"},
    "no reader": {"reader": "none", "reader_residuals": ((2, 1),), "down_channels": (2, 3)},
    "decoder": {"reader": "none", "decoder": "silence"},
    "decoder without peepholes": {"decoder": 0, "peepholes": False},
    "over time": {"reader": "none", "normalization": "sequence"},
    "over time, with a reader": {"normalization": "sequence", "queries": {"query": (1, 2, 2)}, **RESIDUALS},
    "over time, one dimension": {"rank": 1, "shape": (2, 2), "reader": "none", "normalization": "sequence"},
}


@pytest.mark.parametrize("way", ["sequence", "sequence by torch", "step"])
@pytest.mark.parametrize("label", OPTIONS)
def test_it_is_the_papers_equations(monkeypatch: pytest.MonkeyPatch, label: str, way: str) -> None:
    """Outputs, maps, final state; gradients of everything trained, of the inputs and of the state carried in."""
    monkeypatch.setenv("ENGRAM_NATIVE", "0" if way == "sequence by torch" else "1")
    memory = build(**{**OPTIONS[label], "fast": way != "step"})
    xs = sequence(memory.input_shape, LENGTH, BATCH)
    xs[1, 0] = xs[2, 1] = xs[0, 0, 0] = 0  # where all is zero, not only one channel, a decoder may be at work
    xs.requires_grad_()
    queries = {name: sequence(shape, LENGTH, BATCH) for name, shape in memory.query_shapes.items()}
    state = memory.initial_state(BATCH)
    if memory.plan.normalization == "none":  # the loops know statistics only from the first step on
        state = {name: torch.randn(value.shape).double().requires_grad_() for name, value in state.items()}
    leaves = {"xs": xs, **{name: value for name, value in state.items() if value.requires_grad}}
    result = memory.unroll(xs, None, state, queries=queries or None)
    paper = reference(memory, xs, queries, state)
    assert_same_with_gradients([paper, everything(result)], leaves | dict(memory.named_parameters()))


@pytest.mark.parametrize("normalization", ["none", "sequence", "batch", "batch, evaluated"])
@pytest.mark.parametrize("resets", [None, [0, 2], []], ids=["unknown", "known", "none"])
@pytest.mark.parametrize("options", [{}, {"reader": "none", "decoder": 1}], ids=["reader", "decoder"])
def test_a_sequence_at_once_is_step_by_step(
    normalization: str, resets: list[int] | None, options: dict[str, Any]
) -> None:
    """Also where episodes start, and with normalisation, whose running statistics end the same."""
    starts = torch.zeros(5, 3, dtype=torch.bool)
    if resets != []:
        starts[0, 1] = starts[2, 0] = True
    reader = {} if "reader" in options else {"queries": {"query": (1, 2, 2)}}
    twins = [build(normalization=normalization.split(",")[0], fast=fast, **reader, **options) for fast in (True, False)]
    twins[1].load_state_dict(twins[0].state_dict())
    xs = sequence((2, 2, 2), 5, 3)
    queries = {"query": sequence((1, 2, 2), 5, 3)} if reader else None
    state = {name: torch.rand(value.shape).double() for name, value in twins[0].initial_state(3).items()}
    results, gradients, buffers = [], [], []
    for memory in twins:
        memory.train("evaluated" not in normalization)
        before = {name: value.clone() for name, value in memory.named_buffers()}
        results.append(everything(memory.unroll(xs, starts, state, resets, queries)))
        buffers.append(dict(memory.named_buffers()))
        moved = any(not torch.equal(value, before[name]) for name, value in buffers[-1].items())
        assert moved == (normalization == "batch")
        total = torch.stack([value.square().sum() for value in results[-1].values()]).sum()
        leaves = dict(memory.named_parameters())
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
        gradients.append(dict(zip(leaves, found, strict=True)))
    for one, other in (results, gradients, buffers):
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-8, atol=1e-10, msg=lambda text, k=name: k + text)


# Writers and readers


def test_only_the_writer_changes_the_state() -> None:
    memory = build(queries={"a": (1, 2, 2), "b": (2, 3, 3)})
    x, state = sequence((2, 2, 2), BATCH), memory.initial_state(BATCH)
    asked = {"a": sequence((1, 2, 2), BATCH), "b": sequence((2, 3, 3), BATCH)}
    step = memory(x, state, asked)
    for name in asked:
        other = memory(x, state, asked | {name: asked[name] + 1})
        for key, value in step.state.items():
            assert torch.equal(other.state[key], value)
        half = memory.output_size // 2
        pairs = zip(step.output.split(half, 1), other.output.split(half, 1), strict=True)
        changed = [not torch.equal(*pair) for pair in pairs]
        assert changed == [name == "a", name == "b"]  # each reader answers its own query
    written = memory(x + 1, state, asked)  # and every reader sees what has just been written
    assert not torch.equal(written.output[:, :half], step.output[:, :half])
    assert not torch.equal(written.output[:, half:], step.output[:, half:])


def test_readers_see_every_layer_and_level_of_the_writer() -> None:
    memory = build(queries={"query": (1, 2, 2)}, levels=(2, 2), down_levels=(2, 1))
    state = {name: torch.randn(value.shape).double() for name, value in memory.initial_state(1).items()}
    x, query = sequence((2, 2, 2), 1), sequence((1, 2, 2), 1)
    written, _ = memory.writer(memory.enter(x), state, Span())
    for layer, pyramid in enumerate(written):
        for level, grid in pyramid.items():
            grid = grid.detach().requires_grad_()
            beside = [*written]
            beside[layer] = pyramid | {level: grid}
            passed, _ = memory.readers[0](memory.enter(query), state, Span(), beside)
            (found,) = torch.autograd.grad(passed[-1][1].sum(), grid)
            assert found.any(), (layer, level)


def test_residuals_stay_out_of_the_recurrent_state() -> None:
    memory = build(**RESIDUALS)
    plain = build(down_channels=(4, 4))
    plain.load_state_dict(memory.state_dict())
    x, state = sequence((2, 2, 2), 1), memory.initial_state(1)
    one, other = memory(x, state), plain(x, state)
    for key, value in one.state.items():
        assert torch.equal(other.state[key], value)
    assert not torch.equal(one.output, other.output)


@pytest.mark.parametrize(
    ("shape", "level", "corner"), [((3, 3), 1, 0), ((2, 3), 1, 0), ((4, 4), 2, 1), ((6, 6), 2, 0), ((9, 9), 3, 1)]
)
def test_an_input_enters_at_the_coarsest_level_that_holds_it(shape: tuple[int, int], level: int, corner: int) -> None:
    """The 9x9 query of the supplement: at the 12x12 level, in the middle of zeros, and each of its cells counts."""
    memory = Multigrid((4, 3, 3), {"query": (2, *shape)}, preset="mapping-15").double()
    query = torch.rand(1, 2, *shape, dtype=torch.float64, requires_grad=True)
    ((entered, grid),) = memory.enter(query).items()
    assert entered == level
    assert grid.shape[2:] == (3 * 2 ** (level - 1),) * 2
    assert grid.count_nonzero() == query.count_nonzero()
    assert torch.equal(grid[..., corner : corner + shape[0], corner : corner + shape[1]], query)
    step = memory(torch.rand(1, 4, 3, 3).double(), memory.initial_state(1), {"query": query})
    assert step.grid.shape == (1, 1, 24, 24)
    (found,) = torch.autograd.grad(step.grid.square().sum(), query)
    assert found.ne(0).any(1).all()


def test_the_decoder_goes_on_with_the_encoders_state() -> None:
    memory = build(shape=(3, 2, 2), reader="none", decoder=-1)
    xs = sequence((3, 2, 2), 4, 1)
    xs[:, :, -1] = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(4, 1, 1, 1)  # the last channel says so
    grid = memory.writer.layers[0]["1"]

    def used(steps: slice) -> list[bool]:
        outputs = memory.unroll(xs, None, memory.initial_state(1)).outputs[steps]
        (found,) = torch.autograd.grad(outputs.sum(), grid.conv.weight)
        return [bool(half.any()) for half in found.chunk(2)]

    assert used(slice(0, 2)) == [True, False]  # the encoder alone, so far
    assert used(slice(2, 4)) == [True, True]  # the decoder, through what the encoder left
    answers = memory.unroll(xs[2:], None, memory.initial_state(1)).outputs
    assert not torch.allclose(answers, memory.unroll(xs, None, memory.initial_state(1)).outputs[2:])


# Gates, normalisation, long runs


def test_gates_do_what_they_say() -> None:
    memory = build(levels=(1,), channels=(2,), down_levels=(1,), down_channels=(2,), forget_bias=0.0)
    grid = memory.writer.layers[0]["1"]
    state = {name: torch.randn(value.shape).double() for name, value in memory.initial_state(BATCH).items()}
    with torch.no_grad():
        grid.conv.bias.copy_(torch.tensor([-100.0, 100.0, 100.0, 0.0]).repeat_interleave(2))  # i, f, o, candidate
    step = memory(sequence((2, 2, 2), BATCH), state)
    torch.testing.assert_close(step.state["cell_1_1"], state["cell_1_1"])  # kept, nothing added
    torch.testing.assert_close(step.state["hidden_1_1"], state["cell_1_1"].tanh())
    with torch.no_grad():  # the peephole W^co sees the new cell, W^cf the old one
        grid.conv.weight.zero_()
        grid.conv.bias.copy_(torch.tensor([100.0, -100.0, 0.0, 0.5]).repeat_interleave(2))
        grid.peepholes[0, :2] = 0
    step = memory(sequence((2, 2, 2), BATCH), state)
    cell = torch.tensor(0.5).double().tanh()
    expected = (grid.peepholes[0, 2] * cell).sigmoid() * cell.tanh()
    torch.testing.assert_close(step.state["hidden_1_1"], expected.expand(BATCH, -1, -1, -1))


def test_batch_normalisation_trains_by_the_batch_and_is_evaluated_entry_by_entry() -> None:
    norm = BatchNorm(3, "").double()
    rows = 5 + 2 * sequence((3, 4, 4), 8)
    normal, _ = norm(rows, {}, Span())
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(3).double())
    torch.testing.assert_close(normal.var((0, 2, 3), correction=0), torch.ones(3).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(norm.running_mean, 0.01 * rows.mean((0, 2, 3)))
    norm.eval()
    assert torch.equal(norm(rows, {}, Span())[0][:1], norm(rows[:1], {}, Span())[0])


def test_normalisation_over_the_sequence_looks_back_only_and_ends_with_the_episode() -> None:
    memory = build(normalization="sequence")
    xs, initial = sequence((2, 2, 2), 6, 2), memory.initial_state(2)
    whole = memory.unroll(xs, None, initial).outputs
    later = xs.clone()
    later[4:] += 1
    assert torch.equal(memory.unroll(later, None, initial).outputs[:4], whole[:4])
    first = xs.clone()
    first[0] += 1
    assert not torch.allclose(memory.unroll(first, None, initial).outputs[4:], whole[4:])
    starts = torch.zeros(6, 2, dtype=torch.bool)
    starts[3] = True
    again = memory.unroll(xs, starts, initial)
    torch.testing.assert_close(again.outputs[3:], memory.unroll(xs[3:], None, initial).outputs)
    assert again.state["steps"].tolist() == [[3.0], [3.0]]
    alone = memory.unroll(xs[:, :1], None, select(initial, slice(1)))
    torch.testing.assert_close(alone.outputs, whole[:, :1])


@pytest.mark.parametrize("normalization", ["none", "sequence"])
def test_long_runs_stay_finite(normalization: str) -> None:
    memory = Multigrid((2, 3, 3), normalization=normalization)
    state = memory.initial_state(1)
    with torch.no_grad():
        for t in range(300):
            state = memory(torch.full((1, 2, 3, 3), 1e4 if t % 7 else 0.0), state).state
    result = unroll(memory, torch.zeros(2, 1, 2, 3, 3), None, state)
    result.outputs.square().sum().backward()
    assert all(value.isfinite().all() for value in (result.outputs, *result.state.values()))
    assert all(parameter.grad.isfinite().all() for parameter in memory.parameters() if parameter.grad is not None)


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "mapping"}, "there is no preset 'mapping'; known: small, "),
        ({"rank": 3}, "rank is 3; it must be one of 1, 2"),
        ({"keep": "all"}, "keep is 'all'; it must be one of 'finest', 'coarsest'"),
        ({"normalization": "layer"}, "normalization is 'layer'"),
        ({"decoder": "late"}, "decoder is 'late'; it must be 'none', 'silence' or the number of a channel"),
        ({"levels": "(1, 2)"}, r"levels is '\(1, 2\)'; it must be a list"),
        ({"levels": (1, 2)}, "must be of the same length"),
        ({"channels": (2, 0, 2)}, "must be at least 1"),
        ({"base": 0}, "base 0 must be at least 1"),
        ({"levels": (1, 3, 3)}, "layer 2 has 3 levels, but those before it end at 1"),
        ({"down_levels": (3, 1), "down_channels": (2, 2)}, "expected at most 2, the levels of the last layer"),
        ({"down_levels": (2,)}, "must end with 1"),
        ({"residuals": ((1, 2),)}, "must be pairs"),
        ({"residuals": ((3, 1), (3, 2))}, "at most one residual per target layer"),
        ({"residuals": ((2, 1),), "channels": (8, 4, 4)}, "layer 2 has 4 channels, fewer than layer 1"),
        ({"queries": {"query": (4,)}}, r"query is \(4,\); rank 2 expects \(channels, 2 sides\)"),
        ({"reader": "none", "queries": {"query": (4, 3, 3)}}, r"there are queries \(query\): expected reader="),
    ],
)
def test_arguments_that_contradict_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_memory("multigrid", input_size=(4, 3, 3), **options)


def test_queries_must_be_those_declared() -> None:
    memory = build(queries={"query": (1, 2, 2)})
    with pytest.raises(ValueError, match="this memory has readers for"):
        memory(sequence((2, 2, 2), 1), memory.initial_state(1))


def test_presets_take_arguments_one_by_one() -> None:
    assert Multigrid((4, 3, 3), preset="mapping-15", peepholes=True).plan.peepholes
    assert Multigrid((4, 3, 3), channels=[2, 2, 4]).plan.channels == (2, 2, 4)  # lists, as YAML has them
    assert Multigrid((4, 3, 3)).plan == PRESETS["small"]
    assert Multigrid.default_grid() == (3, 3)
    assert Multigrid.default_grid(preset="babi", channels=(1,)) == (1,)
    assert Multigrid.default_grid(base=5, fast=False) == (5, 5)
