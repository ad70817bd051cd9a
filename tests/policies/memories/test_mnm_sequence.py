"""MNM over time: the loops in C against the equations, and what going back over many steps costs in digits."""

from __future__ import annotations

import subprocess
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from policies.memories import make_memory
from policies.memories.contract import Memory
from policies.memories.mnm import fast_native as mnm_native
from policies.memories.mnm import fast_taped as mnm_taped
from policies.memories.mnm.fast import FastMNMp
from policies.memories.time.checkpointing import unroll_by_segments
from policies.memories.time.measure import CreatedStorages
from policies.memories.time.taped import TapedRecording
from policies.native import compiler as native
from policies.testing.step import NoHostReads

compiled = pytest.mark.skipif(
    native.library(mnm_native.SOURCE, torch.float32) is None, reason="there is no C compiler here"
)


def test_who_takes_operations_down_sees_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENGRAM_NATIVE", raising=False)
    assert not native.disabled()
    with NoHostReads():
        assert native.disabled()
        with CreatedStorages():
            assert native.disabled()
    with CreatedStorages():  # only counts what is allocated, also by C loops
        assert not native.disabled()


def trained_by(memory: Memory, xs: Tensor, starts: Tensor | None = None, recorded: bool = False) -> dict[str, Tensor]:
    """All that a sequence gives, and the gradients of everything trained and of what began it."""
    memory.zero_grad()
    xs = xs.clone().requires_grad_()
    begun = {name: value.clone().requires_grad_() for name, value in memory.initial_state(xs.shape[1]).items()}
    if recorded:
        recording = memory.record(begun, len(xs))
        for t, x in enumerate(xs):
            recording.step(x, starts[t] if starts is not None and starts[t].any() else None)
        result = recording.unrolled()
    else:
        resets = None if starts is None else starts.any(1).nonzero().flatten().tolist()
        result = memory.unroll(xs, starts, begun, resets)
    # transposed: gradients come in any order of memory
    ends = torch.stack([(value.mT.contiguous() ** 2).sum() for value in result.state.values()]).sum()
    (result.outputs.square().sum() + result.losses["meta"].sum() + ends).backward()
    wanted = {"inputs": xs, **{f"first {name}": value for name, value in begun.items()}}
    wanted |= dict(memory.named_parameters())
    found = {f"gradient of {name}": p.grad.clone() for name, p in wanted.items() if p.grad is not None}
    last = {name: value.detach() for name, value in result.state.items()}
    return {"outputs": result.outputs.detach(), "meta": result.losses["meta"].detach(), **found, **last}


SMALL: dict[str, Any] = {"hidden_size": 6, "key_size": 5, "value_size": 3, "memory_units": 7}


def drawn(seed: int) -> tuple[dict[str, Any], int, int]:
    """Options of a small memory, steps and environments: from one to several SIMD vectors, tiles and blocks."""
    random = Random(seed)
    names = ("hidden_size", "key_size", "value_size", "memory_units")
    options: dict[str, Any] = {name: random.choice((1, 3, 5, 8, 12, 16, 17, 33)) for name in names}
    options |= {"heads": random.randint(1, 7), "memory_layers": random.randint(1, 4)}
    options |= {"rate": random.choice(("single", "per-layer")), "mean_over_units": True}
    options |= {"output_activation": random.choice(("tanh", "linear"))}
    return options, random.randint(1, 9), random.choice((1, 2, 3, 5, 8, 9, 20))


@compiled
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", ["mnm-p", "mnm-g"])
def test_the_loops_are_the_equations(monkeypatch: pytest.MonkeyPatch, name: str, seed: int, dtype: torch.dtype) -> None:
    """Whatever the sizes, wherever episodes start, unrolled and recorded, in blocks and on threads: as step by step."""
    torch.manual_seed(seed)
    options, length, batch = drawn(seed)
    monkeypatch.setattr(mnm_taped, "CHUNK_ROWS", 3 * batch)
    monkeypatch.setattr(mnm_native, "MIN_BLOCK", 2)
    monkeypatch.setattr(mnm_native, "BLOCK_BYTES", 1)
    memory = make_memory(name, input_size=3, **options).to(dtype)
    with torch.no_grad():
        memory.interaction.weight *= 4  # strong enough for every term to matter
    xs = torch.randn(length, batch, 3, dtype=dtype)
    starts = (torch.rand(length, 1) < 0.2) & (torch.rand(length, batch) < 0.5) if seed % 2 else None
    assert memory._fast_form is not None
    assert memory._fast_form.fits(length, (), grad=True)
    torch.set_num_threads(1 + seed % 3)
    try:
        looped = [trained_by(memory, xs, starts, recorded) for recorded in (False, True)]
    finally:
        torch.set_num_threads(1)
    memory.fast = False
    plain = trained_by(memory, xs, starts)
    limits = {"rtol": 1e-9, "atol": 1e-11} if dtype is torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    for key, expected in plain.items():
        for found in looped:
            torch.testing.assert_close(found[key], expected, msg=lambda text, key=key: f"{key}: {text}", **limits)


@compiled
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["mnm-p", "mnm-g"])
def test_a_step_while_acting_is_the_equations(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    options, length, batch = drawn(seed)
    memory = make_memory(name, input_size=3, **options).double()
    acting = memory.initial_state(batch)
    for x in torch.randn(length, batch, 3, dtype=torch.float64):
        with torch.no_grad():
            before = {key: value.clone() for key, value in acting.items()}
            step = memory(x, acting)
            for key, value in before.items():
                assert torch.equal(acting[key], value), f"{key} was written to"
        expected = memory(x, acting)  # with a graph
        torch.testing.assert_close(step.output, expected.output, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(step.losses, expected.losses, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(step.state, expected.state, rtol=1e-9, atol=1e-11)
        acting = step.state


@compiled
@pytest.mark.parametrize("name", ["mnm-p", "mnm-g"])
def test_torchs_operations_stand_in_for_the_loops(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    torch.manual_seed(0)
    memory = make_memory(name, input_size=3, **SMALL, heads=2).double()
    xs, starts = torch.randn(9, 3, 3, dtype=torch.float64), torch.zeros(9, 3, dtype=torch.bool)
    starts[4, 1] = True
    looped = trained_by(memory, xs, starts)
    monkeypatch.setattr(mnm_native, "usable", lambda *_: False)
    for recorded in (False, True):
        for key, expected in trained_by(memory, xs, starts, recorded).items():
            torch.testing.assert_close(looped[key], expected, rtol=1e-9, atol=1e-11)


def test_a_recording_hands_its_tapes_to_the_graph() -> None:
    """Whoever holds the recording, a callback say, does not keep what the backward pass has given back."""
    torch.manual_seed(0)
    memory = make_memory("mnm-p", input_size=3, **SMALL)
    recording = memory.record(memory.initial_state(2), 6)
    for x in torch.randn(6, 2, 3):
        recording.step(x, None)
    result = recording.unrolled()
    assert isinstance(recording, TapedRecording)
    assert not recording.tapes
    assert not recording.xs
    result.outputs.sum().backward()


@compiled
def test_a_graph_may_be_gone_back_twice() -> None:
    """Undoing the writes takes place in a copy."""
    torch.manual_seed(0)
    memory = make_memory("mnm-p", input_size=3, **SMALL)
    result = memory.unroll(torch.randn(6, 2, 3), None, memory.initial_state(2))
    loss = result.outputs.square().sum() + result.losses["meta"].sum()
    first, second = (torch.autograd.grad(loss, memory.interaction.weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@compiled
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_its_tanh_is_tanh(dtype: torch.dtype) -> None:
    """Vectors of eq. (1) whose weights are 0 are the tanh of their biases, from tiny numbers to huge ones, and NaN."""
    values = torch.cat([torch.logspace(-8, 2, 500), -torch.logspace(-8, 2, 500), torch.zeros(2), torch.tensor([0.25])])
    memory = make_memory("mnm-p", input_size=1, hidden_size=1, key_size=1, value_size=1000, heads=1, memory_layers=1)
    memory.to(dtype)
    with torch.no_grad():
        memory.interaction.weight.zero_()
        memory.interaction.bias.copy_(values)
        memory.interaction.bias[500] = torch.nan
    form = FastMNMp(memory)
    tape = form.empty_tape(memory.initial_state(1), form.slow_weights(), 1)
    assert isinstance(tape, mnm_taped.NativeTape)
    tape.step(torch.zeros(1, 4, dtype=dtype))
    told = tape.steps["interactions"][0, 0].detach()
    expected = memory.interaction.bias.detach().tanh()
    torch.testing.assert_close(told, expected, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["mnm-p", "mnm-g"])
def test_going_back_over_5000_steps_loses_few_digits(name: str) -> None:
    """In single precision, undoing 5,000 writes against making them again from a copy every 50 steps: 1e-6 measured."""
    torch.manual_seed(0)
    options = {"hidden_size": 24, "key_size": 16, "value_size": 16, "memory_units": 16, "heads": 2}
    memory = make_memory(name, input_size=8, **options)
    length = 5000
    xs = torch.randn(length, 1, 8)
    gradients = []
    for segment in (length, 50):
        memory.zero_grad()
        result = unroll_by_segments(memory, xs, None, memory.initial_state(1), (), segment=segment)
        (result.outputs.square().mean() + result.losses["meta"].mean()).backward()
        gradients.append({key: p.grad.clone() for key, p in memory.named_parameters() if p.grad is not None})
    for key, expected in gradients[1].items():
        assert (gradients[0][key] - expected).norm() <= 2e-5 * expected.norm(), key


# Without a compiler


def test_what_stands_in_the_way_is_said_and_torch_does_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uncached = native.library.__wrapped__
    broken = tmp_path / "broken.c"
    broken.write_text("this is not C\n", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    with pytest.warns(UserWarning, match=r"broken\.c cannot be compiled or loaded.*no-such-compiler"):
        assert uncached(broken, torch.float32) is None
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(UserWarning, match=r"no C compiler was found for broken\.c"):
        assert uncached(broken, torch.float32) is None
    monkeypatch.setenv("ENGRAM_NATIVE", "0")
    assert native.disabled()
    assert uncached(mnm_native.SOURCE, torch.bfloat16) is None


@compiled
def test_a_compilers_last_word_is_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(command: list[Any], **_: Any) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="many words\nerror: the last\n")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.warns(UserWarning, match=r"cannot compile fast_sequence\.c: error: the last"):
        assert native.library.__wrapped__(mnm_native.SOURCE, torch.float32) is None
    assert list((tmp_path / "engram" / "native").iterdir()) == []


def test_threads_share_all_entries_out(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    for threads, count in ((1, 5), (2, 5), (4, 3)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        done.clear()
        native.parallel_for(lambda begin, end: done.extend(range(begin, end)), count)
        assert sorted(done) == list(range(count))
