"""MNM-p over time: the loop in C against torch's operations, and what going back over many steps costs in digits."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from policies.memories import make_memory
from policies.memories.contract import Memory
from policies.memories.mnm import fast_native as mnm_native
from policies.memories.mnm import fast_sequence as mnm_sequence
from policies.memories.time.checkpointing import unroll_by_segments
from policies.memories.time.measure import Made
from policies.native import compiler as native

compiled = pytest.mark.skipif(
    native.library(mnm_native.SOURCE, torch.float32) is None, reason="there is no C compiler here"
)


def test_who_takes_operations_down_sees_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENGRAM_NATIVE", raising=False)
    assert not native.off()
    with Made():
        assert native.off()


def trained_by(memory: Memory, xs: Tensor) -> dict[str, Tensor]:
    """All that a sequence gives, and the gradients of everything trained, also by way of the last state."""
    memory.zero_grad()
    result = memory.unroll(xs, None, memory.initial_state(xs.shape[1]))
    # transposed: gradients come in any order of memory
    ends = torch.stack([(value.mT.contiguous() ** 2).sum() for value in result.state.values()]).sum()
    (result.outputs.square().sum() + result.losses["meta"].sum() + ends).backward()
    found = {name: p.grad.clone() for name, p in memory.named_parameters() if p.grad is not None}
    return {"outputs": result.outputs.detach(), "meta": result.losses["meta"].detach(), **found, **result.state}


SMALL: dict[str, Any] = {"hidden_size": 6, "key_size": 5, "value_size": 3, "memory_units": 7}


@compiled
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "options",
    [
        {"heads": 1},
        {"heads": 2, "rate": "per-layer"},
        {"heads": 4, "output_activation": "linear", "memory_layers": 2},
        {"heads": 3, "memory_layers": 1, "mean_over_units": True},
        {"heads": 3, "key_size": 16, "value_size": 12, "memory_units": 20},
    ],
    ids=str,
)
def test_the_loop_is_torchs_operations(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], dtype: torch.dtype, threads: int
) -> None:
    """Widths that are whole fours and that are not, heads that are whole threes and that are not."""
    torch.manual_seed(0)
    memory = make_memory("mnm-p", input_size=3, **SMALL | options).to(dtype)
    with torch.no_grad():
        memory.interaction.weight *= 4  # strong enough for every term to matter
    xs = torch.randn(5, 3, 3, dtype=dtype)
    assert mnm_sequence.usable(memory.initial_weights(), memory.heads)
    torch.set_num_threads(threads)
    try:
        looped = trained_by(memory, xs)
    finally:
        torch.set_num_threads(1)
    monkeypatch.setattr(mnm_sequence, "usable", lambda *_: False)
    plain = trained_by(memory, xs)
    limits = {"rtol": 1e-9, "atol": 1e-11} if dtype is torch.float64 else {"rtol": 2e-4, "atol": 2e-5}
    for name, expected in plain.items():
        torch.testing.assert_close(looped[name], expected, msg=lambda text, n=name: f"{n}: {text}", **limits)


@compiled
def test_its_tanh_is_tanh() -> None:
    """One layer that copies its key: what is read is the tanh of what was asked, from tiny numbers to huge ones."""
    values = torch.cat([torch.logspace(-8, 2, 500), -torch.logspace(-8, 2, 500), torch.zeros(2), torch.tensor([0.25])])
    keys, room = torch.zeros(1, len(values), 4), torch.zeros(1, len(values), 1, 2)
    keys[0, :, 0] = values
    y, ys = torch.eye(2).expand(len(values), 2, 2).contiguous(), torch.zeros(1, len(values), 2, 2)
    loop = mnm_native.Loop([y], keys, [room], [room.clone()], [ys], 1, True)
    loop.forward(0, torch.zeros(len(values), 1), torch.zeros(len(values), 1, 2))
    torch.testing.assert_close(ys[0, :, 0, 0], values.tanh(), rtol=1e-6, atol=0)
    keys[0, 0, 0] = torch.nan
    loop.forward(0, torch.zeros(len(values), 1), torch.zeros(len(values), 1, 2))
    assert ys[0, 0, 0, 0].isnan()


def test_going_back_over_5000_steps_loses_few_digits() -> None:
    """In single precision, undoing 5,000 writes against making them again from a copy every 50 steps: 1e-6 measured."""
    torch.manual_seed(0)
    options = {"hidden_size": 24, "key_size": 16, "value_size": 16, "memory_units": 16, "heads": 2}
    memory = make_memory("mnm-p", input_size=8, **options)
    length = 5000
    xs = torch.randn(length, 1, 8)
    gradients = []
    for segment in (length, 50):
        memory.zero_grad()
        result = unroll_by_segments(memory, xs, None, memory.initial_state(1), (), segment=segment)
        (result.outputs.square().mean() + result.losses["meta"].mean()).backward()
        gradients.append({name: p.grad.clone() for name, p in memory.named_parameters() if p.grad is not None})
    for name, expected in gradients[1].items():
        assert (gradients[0][name] - expected).norm() <= 2e-5 * expected.norm(), name


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
    assert native.off()
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
        native.shared_out(lambda begin, end: done.extend(range(begin, end)), count)
        assert sorted(done) == list(range(count))
