"""The dynamic memory network against its equations written as loops, and its fast path against its plain one.

Equations are those of Kumar et al., "Ask Me Anything: Dynamic Memory Networks for Natural Language Processing",
ICML 2016.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from policies.memories import make_memory
from policies.memories.contract import State
from policies.memories.dmn.episode import attention_gru
from policies.memories.dmn.fast_episode import AttentionGRU
from policies.memories.dmn.memory import DMN
from policies.memories.time.unroll import unroll

FEATURES, BATCH, LENGTH = 3, 2, 8
SIZES = {"hidden_size": 5, "capacity": 4, "passes": 2}

both_forms = pytest.mark.parametrize("smooth", [False, True], ids=["paper", "smooth"])
both_paths = pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])


def build(scale: float = 3, **options: Any) -> DMN:
    memory = make_memory("dmn", input_size=FEATURES, **{**SIZES, **options}).double()
    assert isinstance(memory, DMN)
    with torch.no_grad():  # strong enough for every term to matter
        for parameter in memory.parameters():
            parameter *= scale
    return memory


def inputs(length: int = LENGTH) -> Tensor:
    return torch.randn(length, BATCH, FEATURES).double()


def gru(x: Tensor, h: Tensor, w: Tensor, u: Tensor, b_w: Tensor, b_u: Tensor) -> Tensor:
    """torch's GRU, gate by gate."""
    d = len(h)
    r = torch.sigmoid(w[:d] @ x + b_w[:d] + u[:d] @ h + b_u[:d])
    z = torch.sigmoid(w[d : 2 * d] @ x + b_w[d : 2 * d] + u[d : 2 * d] @ h + b_u[d : 2 * d])
    n = torch.tanh(w[2 * d :] @ x + b_w[2 * d :] + r * (u[2 * d :] @ h + b_u[2 * d :]))
    return (1 - z) * n + z * h


def by_cell(x: Tensor, h: Tensor, cell: nn.GRUCell) -> Tensor:
    return gru(x, h, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)


def reference(memory: DMN, xs: Tensor, starts: Tensor) -> dict[str, Tensor]:
    """The paper from an episode's beginning, one batch entry, one pass and one fact at a time."""
    d, outputs, gates = memory.hidden_size, [], []
    for b in range(xs.shape[1]):
        hidden, facts = torch.zeros(d).double(), []
        outputs.append([])
        gates.append([])
        for t, x in enumerate(xs[:, b]):
            if starts[t, b]:
                hidden, facts = torch.zeros(d).double(), []
            # input module: c_t = GRU(x_t, c_{t-1})
            hidden = gru(x, hidden, *memory.input.rnn.all_weights[0])
            facts = [*facts, hidden][-memory.capacity :]
            # question module: GRU(x_t, 0), where every product with the zero state is gone
            w, bias = memory.question.weight, memory.question.bias
            z = torch.sigmoid(w[:d] @ x + bias[:d])
            q = (1 - z) * torch.tanh(w[d:] @ x + bias[d:])
            m = q
            for _ in range(memory.passes):
                h, row = torch.zeros(d).double(), [torch.zeros(()).double()] * (memory.capacity - len(facts))
                for c in facts:
                    if memory.smooth:
                        parts = [c, m, q, c * q, c * m, (c - q) ** 2, (c - m) ** 2]
                    else:
                        bilinear = [(c @ memory.bilinear @ q).view(1), (c @ memory.bilinear @ m).view(1)]
                        parts = [c, m, q, c * q, c * m, (c - q).abs(), (c - m).abs(), *bilinear]
                    layer = torch.tanh(memory.gate_hidden.weight @ torch.cat(parts) + memory.gate_hidden.bias)
                    g = torch.sigmoid(memory.gate_out.weight @ layer + memory.gate_out.bias)[0]
                    h = g * by_cell(c, h, memory.episode) + (1 - g) * h
                    row.append(g)
                m = by_cell(h, m, memory.update)
                gates[-1].append(torch.stack(row))
            outputs[-1].append(m if memory.answer is None else by_cell(q, m, memory.answer))
    return {
        "outputs": torch.stack([torch.stack(row) for row in outputs], 1),
        "gates": torch.stack([torch.stack(row[-memory.passes :]) for row in gates]),
    }


@both_forms
@pytest.mark.parametrize(
    "options",
    [{}, {"passes": 1}, {"passes": 3, "gate_size": 2}, {"capacity": 1}, {"capacity": 12, "answer": "gru"}],
    ids=lambda options: " ".join(f"{key}={value}" for key, value in options.items()) or "default",
)
def test_dmn_is_the_papers_equations(smooth: bool, options: dict[str, Any]) -> None:
    """Outputs, gates, and the gradients of all parameters and of the inputs; past the capacity and over resets.

    Unrolled, by fast steps and by plain ones.
    """
    memory = build(smooth=smooth, **options)
    starts = torch.zeros(LENGTH, BATCH, dtype=torch.bool)
    starts[2, 0] = starts[6, 0] = starts[7, 1] = True
    xs = inputs().requires_grad_()
    leaves = [xs, *memory.parameters()]

    def with_gradients(parts: dict[str, Tensor]) -> list[Tensor]:
        torch.manual_seed(2)
        total = torch.stack([(part * torch.randn(part.shape).double()).sum() for part in parts.values()]).sum()
        return [*parts.values(), *torch.autograd.grad(total, leaves)]

    paper = with_gradients(reference(memory, xs, starts))
    for way in ("sequence", "fast steps", "plain steps"):
        memory.fast = way != "plain steps"
        run = memory.unroll if way == "sequence" else partial(unroll, memory)
        result = run(xs, starts, memory.initial_state(BATCH))
        found = with_gradients({"outputs": result.outputs, "gates": result.state["gates"]})
        for index, (actual, expected) in enumerate(zip(found, paper, strict=True)):
            rtol, atol = (1e-10, 1e-12) if index < 2 else (1e-8, 1e-11)
            torch.testing.assert_close(
                actual, expected, rtol=rtol, atol=atol, msg=lambda text, way=way: f"{way}: {text}"
            )


@pytest.mark.parametrize("length", [1, 3, 11])
@pytest.mark.parametrize("chunk_size", [1, 20, 2**15], ids=["step by step", "pieces", "at once"])
def test_a_sequence_at_once_is_its_steps(length: int, chunk_size: int) -> None:
    """`unroll`, `record` and plain steps, forward and backward, from a memory partly filled and one that is full."""
    for before in (2, 6):
        results, gradients = [], []
        starts = torch.rand(length, BATCH, generator=torch.Generator().manual_seed(length)) < 0.2
        for way in ("steps", "fast", "record"):
            torch.manual_seed(1)
            memory = build(fast=way != "steps")
            memory.chunk_size = chunk_size
            state = unroll(memory, inputs(before), None, memory.initial_state(BATCH)).state
            state = {key: value.detach().requires_grad_() for key, value in state.items()}
            xs = inputs(length).requires_grad_()
            if way == "record":
                recording = memory.record(state, 4)
                for t in range(length):
                    acted = recording.step(xs[t], starts[t] if starts[t].any() else None)
                    assert not acted.output.requires_grad
                result = recording.unrolled()
            else:
                result = memory.unroll(xs, starts, state)
            parts = {"outputs": result.outputs, **result.state}
            total = torch.stack([(p * torch.randn(p.shape).double()).sum() for p in parts.values()]).sum()
            leaves = [xs, *state.values(), *memory.parameters()]
            found = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
            results.append(list(parts.values()))
            gradients.append(list(found))
        for kind in (results, gradients):
            for other in kind[1:]:
                for actual, expected in zip(other, kind[0], strict=True):
                    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def attention_inputs(facts: int, steps: int, d: int) -> list[Tensor]:
    products, gates = torch.randn(facts - 1 + steps, BATCH, 3 * d), torch.rand(facts, steps, BATCH)
    gates[0, 0] = 0  # a fact that is not there
    weight, bias = torch.randn(3 * d, d), torch.randn(3 * d)
    return [tensor.double().requires_grad_() for tensor in (products, gates, weight, bias)]


def test_the_hand_written_gradient_is_the_numeric_gradient() -> None:
    assert torch.autograd.gradcheck(AttentionGRU.apply, attention_inputs(3, 2, 2))


def test_at_the_default_sizes_fast_is_plain_in_single_precision() -> None:
    arguments = [tensor.detach().float().requires_grad_() for tensor in attention_inputs(32, 10, 64)]
    with torch.no_grad():
        arguments[2] *= 0.1
    outputs, gradients = [], []
    for function in (AttentionGRU.apply, attention_gru):
        outputs.append(function(*arguments))
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), arguments))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    for actual, expected in zip(*gradients, strict=True):
        assert (actual - expected).norm() <= 1e-4 * expected.norm()


def test_the_fast_path_takes_no_steps() -> None:
    """Else the tests above would compare the plain path with itself."""
    memory = build()

    def refuse(*arguments: Any) -> None:
        raise AssertionError("a step was taken")

    memory.forward = refuse  # type: ignore[method-assign]
    memory.unroll(inputs(), None, memory.initial_state(BATCH))
    memory.fast = False
    with pytest.raises(AssertionError, match="a step was taken"):
        memory.unroll(inputs(), None, memory.initial_state(BATCH))


def test_pieces_bound_what_is_kept_for_the_backward_pass() -> None:
    """The gates' tensors `[capacity, steps, batch, ...]` are not kept for all steps, as they are in one piece."""
    kept = []
    for chunk_size in (2**15, 8):
        memory = build(capacity=16)
        memory.chunk_size = chunk_size
        sizes = []

        def keep(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            memory.unroll(inputs(40), None, memory.initial_state(BATCH))
        kept.append(max(sizes))
    assert kept[1] < kept[0] / 4


# What reading means


def run_to_end(memory: DMN, xs: Tensor) -> State:
    return memory.unroll(xs, None, memory.initial_state(BATCH)).state


@both_forms
def test_only_facts_that_are_there_are_let_in(smooth: bool) -> None:
    memory = build(smooth=smooth)
    for length in range(1, LENGTH):
        state = run_to_end(memory, inputs(length))
        empty = memory.capacity - min(length, memory.capacity)
        assert (state["gates"][:, :, :empty] == 0).all()
        assert ((state["gates"][:, :, empty:] > 0) & (state["gates"][:, :, empty:] < 1)).all()
        assert (state["facts"][:, :empty] == 0).all()


@both_paths
def test_closed_gates_read_nothing_and_open_gates_are_a_gru(fast: bool) -> None:
    """Equation for h: at g = 0 the episode is its beginning, at g = 1 that of an ordinary GRU over the facts."""
    memory = build(fast=fast, scale=1)
    xs = inputs(memory.capacity)
    with torch.no_grad():
        memory.gate_out.bias.fill_(-1e4)
        closed = unroll(memory, xs, None, memory.initial_state(BATCH))
        memory.gate_out.bias.fill_(1e4)
        opened = unroll(memory, xs, None, memory.initial_state(BATCH))
        w, bias = memory.question.weight, memory.question.bias
        z, n = (xs[-1] @ w.t() + bias).chunk(2, 1)
        ways = {"closed": torch.zeros(BATCH, memory.hidden_size).double(), "opened": None}
        h = ways["closed"]
        for c in opened.state["facts"].unbind(1):
            h = memory.episode(c, h)
        ways["opened"] = h
        for way, result in (("closed", closed), ("opened", opened)):
            m = (1 - z.sigmoid()) * n.tanh()
            for _ in range(memory.passes):
                m = memory.update(ways[way], m)
            torch.testing.assert_close(result.outputs[-1], m)


def test_the_second_pass_may_look_elsewhere() -> None:
    """Its gates see what the first has found; with m kept out of z they are those of the first."""
    memory = build()
    gates = run_to_end(memory, inputs())["gates"]
    assert not torch.allclose(gates[:, 0], gates[:, 1])
    with torch.no_grad():
        for index in (1, 4, 6, 8):  # m, c∘m, |c - m|, cᵀWm
            begin = sum(memory.blocks[:index])
            memory.gate_hidden.weight[:, begin : begin + memory.blocks[index]] = 0
    gates = run_to_end(memory, inputs())["gates"]
    torch.testing.assert_close(gates[:, 0], gates[:, 1])


def test_the_oldest_fact_is_overwritten() -> None:
    """With an input module that only passes on its input, an input is forgotten after `capacity` steps."""
    memory, xs = build(), inputs()
    with torch.no_grad():  # update gate shut: c_t depends on x_t alone, up to a part of e^-100
        d = memory.hidden_size
        memory.input.rnn.weight_hh_l0.zero_()
        memory.input.rnn.weight_ih_l0[d : 2 * d] = 0
        memory.input.rnn.bias_ih_l0[d : 2 * d] = -1e3
    changed = xs.clone()
    changed[1] += 1
    outputs, others = (memory.unroll(x, None, memory.initial_state(BATCH)).outputs for x in (xs, changed))
    differs = (outputs != others).flatten(1).any(1)
    assert differs.tolist() == [False, *[True] * memory.capacity, *[False] * (LENGTH - 1 - memory.capacity)]


@both_forms
@both_paths
def test_equal_vectors_give_finite_gradients(smooth: bool, fast: bool) -> None:
    """|c - q| where c = q, and everything at zero: the NaN that the smooth form was invented against."""
    memory = build(smooth=smooth, fast=fast)
    with torch.no_grad():
        for module in (memory.input, memory.question):
            for parameter in module.parameters():
                parameter.zero_()
    xs = torch.zeros(LENGTH, BATCH, FEATURES).double().requires_grad_()
    outputs = memory.unroll(xs, None, memory.initial_state(BATCH)).outputs
    outputs.sum().backward()
    assert xs.grad is not None
    for gradient in (xs.grad, *(parameter.grad for parameter in memory.parameters())):
        assert gradient is not None
        assert gradient.isfinite().all()


@both_forms
def test_a_long_run_stays_finite(smooth: bool) -> None:
    memory = build(smooth=smooth, scale=1)
    with torch.no_grad():
        result = memory.unroll(10 * inputs(2000), None, memory.initial_state(BATCH))
    assert result.outputs.isfinite().all()
    assert result.state["count"].eq(memory.capacity).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answer": "word"}, "answer is 'word'; it must be 'memory' or 'gru'"),
        ({"passes": 0}, "passes is 0; it must be at least 1"),
        ({"gate_size": 0}, "gate_size is 0; it must be at least 1"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_memory("dmn", input_size=FEATURES, **options)
