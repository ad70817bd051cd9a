"""The end-to-end memory network against its equations written as loops, and its fast path against its plain one.

Equation and section numbers are those of Sukhbaatar et al., "End-To-End Memory Networks", NeurIPS 2015.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from policies.memories import make_memory
from policies.memories.contract import State, Unrolled
from policies.memories.memn2n import MemN2N
from policies.memories.time.unroll import unroll

FEATURES, BATCH, LENGTH = 3, 2, 9
SIZES = {"hidden_size": 4, "capacity": 5, "hops": 3}

both_tyings = pytest.mark.parametrize("tying", ["adjacent", "layer-wise"])


def build(scale: float = 6, **options: Any) -> MemN2N:
    memory = make_memory("memn2n", input_size=FEATURES, **{**SIZES, **options}).double()
    assert isinstance(memory, MemN2N)
    with torch.no_grad():  # strong enough for the softmax to leave its linear range
        for parameter in memory.parameters():
            parameter *= scale
    return memory


def inputs(length: int = LENGTH) -> Tensor:
    return torch.randn(length, BATCH, FEATURES).double()


def named(memory: MemN2N, tying: str) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """A^k, C^k, T_A^k, T_C^k and B, as the paper ties them (§2.2)."""
    e, t, hops = memory.embeddings, memory.temporal, memory.hops
    if tying == "adjacent":
        a, t_a = [e[0]], [t[0]]
        c, t_c = [], []
        for k in range(hops):
            c.append(e[k + 1])
            t_c.append(t[k + 1])
            a.append(c[-1])  # A^{k+1} = C^k
            t_a.append(t_c[-1])
        return a[:hops], c, t_a[:hops], t_c, a[0]
    return [e[0]] * hops, [e[1]] * hops, [t[0]] * hops, [t[1]] * hops, e[2]


def reference(memory: MemN2N, tying: str, xs: Tensor, starts: Tensor | None = None) -> Tensor:
    """The paper, one batch entry, one hop and one memory at a time, from the beginning: `[T, B, d]`."""
    a, c, t_a, t_c, b_matrix = named(memory, tying)
    outputs = []
    for b in range(xs.shape[1]):
        sentences: list[Tensor] = []
        outputs.append([])
        for t, x in enumerate(xs[:, b]):
            if starts is not None and starts[t, b]:
                sentences = []
            u = b_matrix @ x
            for k in range(memory.hops):
                m = [a[k] @ sentence + t_a[k][i] for i, sentence in enumerate(sentences)]
                o = torch.zeros_like(u)
                if m:
                    scores = torch.stack([u @ m_i for m_i in m])
                    p = scores.exp() / scores.exp().sum()
                    for i, sentence in enumerate(sentences):
                        o = o + p[i] * (c[k] @ sentence + t_c[k][i])
                u = (u if tying == "adjacent" else memory.between @ u) + o
            outputs[-1].append(u)
            sentences = [x, *sentences][: memory.capacity]
    return torch.stack([torch.stack(row) for row in outputs], 1)


@both_tyings
@pytest.mark.parametrize("way", ["sequence", "steps"])
@pytest.mark.parametrize(
    "options",
    [{}, {"hops": 1}, {"capacity": 1}, {"capacity": 20}],
    ids=lambda options: " ".join(f"{key}={value}" for key, value in options.items()) or "default",
)
def test_memn2n_is_the_papers_equations(tying: str, way: str, options: dict[str, Any]) -> None:
    """Outputs, and the gradients of all parameters and of the inputs; past the capacity and over resets."""
    memory = build(tying=tying, scale=6, **options)
    starts = torch.zeros(LENGTH, BATCH, dtype=torch.bool)
    starts[2, 0] = starts[7, 0] = starts[8, 1] = True
    xs = inputs().requires_grad_()
    run = memory.unroll if way == "sequence" else lambda *arguments: unroll(memory, *arguments)
    ours = run(xs, starts, memory.initial_state(BATCH)).outputs
    paper = reference(memory, tying, xs, starts)
    torch.testing.assert_close(ours, paper, rtol=1e-10, atol=1e-12)
    weights, leaves = torch.randn(ours.shape).double(), [xs, *memory.parameters()]
    gradients = [torch.autograd.grad((weights * outputs).sum(), leaves) for outputs in (ours, paper)]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def everything(result: Unrolled) -> dict[str, Tensor]:
    return {"outputs": result.outputs, **result.state}


@both_tyings
@pytest.mark.parametrize("length", [1, 4, 5, 6, 23])
@pytest.mark.parametrize("capacity", [1, 5])
def test_a_sequence_at_once_is_its_steps(tying: str, length: int, capacity: int) -> None:
    """`unroll`, `record` and plain steps, forward and backward, from a memory partly filled and one that is full."""
    for before in (2, 8):
        results, gradients = [], []
        starts = torch.rand(length, BATCH, generator=torch.Generator().manual_seed(length)) < 0.2
        for way in ("steps", "fast", "record"):
            torch.manual_seed(1)
            memory = build(tying=tying, capacity=capacity, fast=way != "steps")
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
            parts = everything(result)
            total = torch.stack([(p * torch.randn(p.shape).double()).sum() for p in parts.values()]).sum()
            leaves = [xs, *state.values(), *memory.parameters()]
            found = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
            results.append(list(parts.values()))
            gradients.append(list(found))
        for kind in (results, gradients):
            for other in kind[1:]:
                for actual, expected in zip(other, kind[0], strict=True):
                    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


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


# What reading means


def run_to_end(memory: MemN2N, xs: Tensor) -> State:
    return memory.unroll(xs, None, memory.initial_state(BATCH)).state


@both_tyings
def test_attention_is_a_distribution_over_what_is_filled(tying: str) -> None:
    memory = build(tying=tying)
    for length in range(1, LENGTH):
        attention = run_to_end(memory, inputs(length))["attention"]
        before = min(length - 1, memory.capacity)
        assert (attention[:, :, before:] == 0).all()
        if before:
            assert (attention[:, :, :before] > 0).all()
            torch.testing.assert_close(attention.sum(2), torch.ones(BATCH, memory.hops).double())


def test_an_empty_memory_gives_nothing() -> None:
    """The output of an episode's first step is the question alone, and its gradient is finite."""
    memory, x = build(), inputs(1)[0]
    step = memory(x, memory.initial_state(BATCH))
    torch.testing.assert_close(step.output, x @ memory.embeddings[0].t())
    step.output.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in memory.parameters() if parameter.grad is not None)


def test_content_finds_the_memory_that_matches() -> None:
    """With orthogonal inputs and no times, attention peaks at the earlier input equal to the question, however old."""
    memory = build(hidden_size=3, hops=1)
    with torch.no_grad():
        memory.temporal.zero_()
        memory.embeddings.copy_(torch.eye(3).double().expand(2, -1, -1) * 5)
    one, two, three = torch.eye(3).double().unsqueeze(1).expand(3, BATCH, 3)
    for order, found in (((one, two, three, one), 2), ((two, one, three, one), 1), ((two, three, one, one), 0)):
        attention = run_to_end(memory, torch.stack(order))["attention"]
        assert (attention[:, 0].argmax(1) == found).all()
        assert (attention[:, 0, found] > 0.99).all()


def test_time_finds_the_memory_of_an_age() -> None:
    """Without content, T_A alone says which memory is read, and it is the same age at every step."""
    memory = build(hops=1, hidden_size=3, tying="layer-wise")
    with torch.no_grad():
        memory.embeddings[0].zero_()
        memory.embeddings[2].zero_()[0, 0] = 1  # u = (x_0, 0, 0)
        memory.temporal.zero_()[0, 2, 0] = 50  # and a memory three steps old answers to it
    xs = inputs().abs() + 0.5
    assert (run_to_end(memory, xs)["attention"][:, 0, 2] > 0.99).all()
    assert (run_to_end(memory, xs[:-1])["attention"][:, 0, 2] > 0.99).all()


def test_the_oldest_input_is_overwritten() -> None:
    memory, xs = build(), inputs()
    changed = xs.clone()
    changed[2] += 10
    outputs = memory.unroll(xs, None, memory.initial_state(BATCH)).outputs
    others = memory.unroll(changed, None, memory.initial_state(BATCH)).outputs
    differs = (outputs != others).flatten(1).any(1)
    assert differs.tolist() == [False, False, *[True] * (1 + memory.capacity), False]
    held = run_to_end(memory, xs)["memories"]
    assert torch.equal(held, xs[-memory.capacity :].flip(0).transpose(0, 1))


def test_weights_saved_with_a_linear_start_load() -> None:
    memory, other = build(), build()
    other.load_state_dict({**memory.state_dict(), "linear": torch.tensor(False)})
    assert torch.equal(other.embeddings, memory.embeddings)


@both_tyings
def test_a_long_run_stays_finite(tying: str) -> None:
    memory = build(tying=tying, scale=1)
    result = memory.unroll(10 * inputs(2000), None, memory.initial_state(BATCH))
    assert result.outputs.isfinite().all()
    assert result.state["count"].eq(memory.capacity).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tying": "none"}, "tying is 'none'; it must be 'adjacent' or 'layer-wise'"),
        ({"hops": 0}, "hops is 0; it must be at least 1"),
        ({"capacity": 0}, "capacity is 0; it must be at least 1"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_memory("memn2n", input_size=FEATURES, **options)
