"""Multigrid's form for a GPU, all grids of a layer together, against the equations on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from multigrid_loops import build, everything, sequence
from torch import Tensor

from policies.memories.multigrid.fast_sequence import FastMultigrid, LayerRecording
from policies.memories.steps import Unrolled
from policies.memories.time.unroll import unroll

CASES: dict[str, dict[str, Any]] = {
    "peepholes": {},
    "none": {"peepholes": False},
    "one dimension": {"rank": 1},
    "three levels, residuals": {"levels": (1, 2, 3), "channels": (2, 3, 3), "residuals": ((3, 2),)},
    "normalised": {"normalization": "sequence", "peepholes": False},
    "no reader": {"reader": "none"},
    "questions": {"queries": {"query": (1, 2, 2)}},
}
BATCH, LENGTH = 3, 5


@pytest.fixture(autouse=True)
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    monkeypatch.setattr(FastMultigrid, "layered", lambda form, state: form.memory.plan.decoder == "none")


@pytest.mark.parametrize("resets", [False, True], ids=["one episode", "resets"])
@pytest.mark.parametrize("case", CASES)
def test_a_layer_at_once_is_the_equations(case: str, resets: bool) -> None:
    """Unrolled and recorded; values and gradients of inputs, parameters and the first state, in float64."""
    torch.manual_seed(0)
    options = CASES[case]
    shape = (2, 2) if "rank" in options else (2, 2, 2)
    memory = build(shape=shape, **options)
    xs, starts = sequence(shape, LENGTH, BATCH).requires_grad_(), torch.zeros(LENGTH, BATCH, dtype=torch.bool)
    starts[0, 0] = starts[2, 1] = starts[3] = resets
    steps = [0, 2, 3] if resets else []
    queries = {name: sequence(size, LENGTH, BATCH) for name, size in options.get("queries", {}).items()} or None
    state = {name: value.clone() for name, value in memory.initial_state(BATCH).items()}
    for name, value in state.items():
        if name.startswith(("hidden", "cell")):
            value.normal_().requires_grad_()

    def recorded() -> Unrolled:
        recording = memory.record(state, LENGTH)
        assert isinstance(recording, LayerRecording)
        for t, x in enumerate(xs):
            asked = [] if queries is None else [{name: each[t] for name, each in queries.items()}]
            taken.append(recording.step(x, starts[t] if t in steps else None, *asked).output)
        return recording.unrolled()

    taken: list[Tensor] = []
    ways = {
        "equations": lambda: unroll(memory, xs, starts, state, steps, queries),
        "unroll": lambda: memory.unroll(xs, starts, state, steps, queries),
        "record": recorded,
    }
    leaves = {"inputs": xs, **dict(memory.named_parameters())}
    leaves |= {name: value for name, value in state.items() if value.requires_grad}
    found = {}
    for way, run in ways.items():
        results = everything(run())
        loss = sum((part * (part.detach() + 1).cos()).sum() for part in results.values() if part.requires_grad)
        back = torch.autograd.grad(loss, [*leaves.values()], allow_unused=True, materialize_grads=True)
        found[way] = results | {f"gradient of {name}": each for name, each in zip(leaves, back, strict=True)}
    for way in ("unroll", "record"):
        for name, expected in found["equations"].items():
            error = f"{way}: {name}"
            torch.testing.assert_close(found[way][name], expected, rtol=1e-9, atol=1e-10, msg=error)
    torch.testing.assert_close(torch.stack(taken), found["equations"]["outputs"])


def test_bfloat16_is_that_of_single_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose nearness to double precision test_multigrid_cells.py bounds."""
    memory = build().float()
    assert memory.use_bf16()
    xs, found = sequence((2, 2, 2), LENGTH, BATCH).float(), []
    for together in (True, False):
        monkeypatch.setattr(FastMultigrid, "layered", lambda form, state, chosen=together: chosen)
        result = memory.unroll(xs, None, memory.initial_state(BATCH))
        gradients = torch.autograd.grad(result.outputs.square().mean(), [*memory.parameters()])
        found.append([result.outputs, *result.state.values(), *gradients])
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.01 * theirs.abs().max().item())


def test_a_decoder_is_stepped() -> None:
    memory = build(reader="none", decoder=1)
    assert not isinstance(memory.record(memory.initial_state(BATCH), LENGTH), LayerRecording)
