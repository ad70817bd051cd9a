"""MNM with a recall delay, eq. (5) of the paper."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from policies.memories import make_memory
from policies.memories.contract import State, Unrolled
from policies.memories.mnm.memory import MNM
from policies.memories.time.unroll import unroll

FEATURES, BATCH, LENGTH, DELAY, DECAY = 3, 3, 6, 2, 0.7
SIZES = {"hidden_size": 6, "output_size": 4, "key_size": 5, "value_size": 3, "memory_units": 7, "heads": 2}

both_rules = pytest.mark.parametrize("name", ["mnm-p", "mnm-g"])
both_paths = pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])


def build(name: str, **options: Any) -> MNM:
    torch.manual_seed(0)
    options = {"recall_delay": DELAY, "recall_decay": DECAY, **SIZES, **options}
    memory = make_memory(name, input_size=FEATURES, **options).double()
    assert isinstance(memory, MNM)
    with torch.no_grad():  # interactions strong enough for every term to matter
        memory.interaction.weight *= 4
    return memory


def inputs(length: int = LENGTH, seed: int = 1) -> Tensor:
    return torch.randn(length, BATCH, FEATURES, generator=torch.Generator().manual_seed(seed)).double()


def several_starts() -> Tensor:
    """The last episode of entry 1 is one step long, that of entry 2 began before the sequence."""
    starts = torch.zeros(LENGTH, BATCH, dtype=torch.bool)
    starts[0, 1] = starts[3, 0] = starts[3, 1] = starts[5, 1] = True
    return starts


def used_state(memory: MNM, steps: int = 2) -> State:
    with torch.no_grad():
        return unroll(memory, inputs(steps, seed=7), None, memory.initial_state(BATCH)).state


def reference(memory: MNM, xs: Tensor, starts: Tensor, state: State, units: int) -> Tensor:
    """Eq. (5), term by term: `[T, B]`. The steps are those without a delay, which test_mnm.py holds to the paper."""
    undelayed = copy.copy(memory)  # the same parameters
    undelayed.recall_delay, undelayed.fast = 0, False
    heads, d_k, d_v = memory.heads, SIZES["key_size"], SIZES["value_size"]

    def f(phi: State, key: Tensor) -> Tensor:
        for layer in (1, 2, 3):
            key = phi[f"weights_{layer}"][0] @ key
            key = key if layer == 3 and not memory.tanh_output else torch.tanh(key)
        return key

    metas = []
    for b in range(xs.shape[1]):
        now = {key: value[b : b + 1] for key, value in state.items()}
        pairs = [(now["write_keys"][0, tau], now["write_values"][0, tau]) for tau in reversed(range(DELAY))]
        metas.append([])
        for t in range(len(xs)):
            if starts[t, b]:
                now, pairs = undelayed.initial_state(1), []
            now = undelayed(xs[t, b : b + 1], now).state
            vectors = torch.tanh(memory.interaction.weight @ now["hidden"][0] + memory.interaction.bias)
            keys, values, _ = vectors.split([2 * heads * d_k, heads * d_v, d_k])
            pairs.append((keys.view(2, heads, d_k)[1], values.view(heads, d_v)))
            meta = torch.zeros((), dtype=xs.dtype)
            for tau in range(min(DELAY, len(pairs) - 1) + 1):
                for key, value in zip(*pairs[-1 - tau], strict=True):
                    meta = meta + DECAY**tau * (f(now, key) - value).square().sum()
            metas[-1].append(meta / (heads * units))
    return torch.stack([torch.stack(row) for row in metas], 1)


@both_rules
@both_paths
@pytest.mark.parametrize("mean", [False, True], ids=["summed", "mean"])
def test_the_meta_loss_is_equation_5(name: str, fast: bool, mean: bool) -> None:
    """Its value, and its gradient by every parameter and by the state carried in, with episodes beginning anywhere."""
    options = {"mean_over_units": True, "output_activation": "linear"} if mean else {}
    memory = build(name, fast=fast, **options)
    state = {key: value.clone().requires_grad_() for key, value in used_state(memory).items()}
    leaves = {**state, **{key: p for key, p in memory.named_parameters() if not key.startswith("output")}}
    weights = torch.rand(LENGTH, BATCH).double()
    ours = memory.unroll(inputs(), several_starts(), state).losses["meta"]
    paper = reference(memory, inputs(), several_starts(), state, SIZES["value_size"] if mean else 1)
    torch.testing.assert_close(ours, paper, rtol=1e-9, atol=1e-11)
    gradients = [torch.autograd.grad((weights * meta).sum(), list(leaves.values())) for meta in (ours, paper)]
    for key, actual, expected in zip(leaves, *gradients, strict=True):
        assert actual.count_nonzero() > 0, key
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-11, msg=lambda text, k=key: f"{k}: {text}")


def everything(result: Unrolled) -> dict[str, Tensor]:
    return {"outputs": result.outputs, **result.losses, **result.state}


@both_rules
@pytest.mark.parametrize("resets", [None, [0, 3, 5]], ids=["unknown", "exact"])
def test_every_way_through_time_is_the_same(name: str, resets: list[int] | None) -> None:
    """The memory's `unroll` and `record` and the plain function, by fast and by plain steps, also backward."""
    starts, results, gradients = several_starts(), [], []
    for fast in (False, True):
        memory = build(name, fast=fast)

        def recorded(xs: Tensor, state: State, memory: MNM = memory) -> Unrolled:
            recording = memory.record(state, LENGTH)
            for t, x in enumerate(xs):
                recording.step(x, starts[t] if resets is None or t in resets else None)
            return recording.unrolled()

        for way in (
            lambda xs, state, memory=memory: unroll(memory, xs, starts, state, step=memory.step),
            lambda xs, state, memory=memory: memory.unroll(xs, starts, state, resets),
            recorded,
        ):
            xs = inputs().requires_grad_()
            state = {key: value.clone().requires_grad_() for key, value in used_state(memory).items()}
            parts = everything(way(xs, state))
            generator = torch.Generator().manual_seed(3)
            total = torch.stack(
                [(p * torch.randn(p.shape, generator=generator, dtype=p.dtype)).sum() for p in parts.values()]
            ).sum()
            leaves = {"xs": xs, **state, **dict(memory.named_parameters())}
            found = torch.autograd.grad(total, list(leaves.values()))
            results.append(parts)
            gradients.append(dict(zip(leaves, found, strict=True)))
    for found_parts in (results, gradients):
        for other in found_parts[1:]:
            for key, expected in found_parts[0].items():
                torch.testing.assert_close(other[key], expected, rtol=1e-9, atol=1e-11)


@both_rules
def test_without_a_delay_nothing_is_kept_and_nothing_else_changes(name: str) -> None:
    """A delay adds to the meta loss and to the state only: outputs and memory are the same, up to rounding."""
    memory, without = build(name), build(name, recall_delay=0)
    ours = unroll(memory, inputs(), None, memory.initial_state(BATCH))
    plain = unroll(without, inputs(), None, without.initial_state(BATCH))
    assert ours.state.keys() - plain.state.keys() == {"write_keys", "write_values"}
    torch.testing.assert_close(ours.outputs, plain.outputs, rtol=1e-12, atol=1e-14)
    for key, value in plain.state.items():
        torch.testing.assert_close(ours.state[key], value, rtol=1e-12, atol=1e-14)
    metas, plain_metas = ours.losses["meta"], plain.losses["meta"]
    torch.testing.assert_close(metas[0], plain_metas[0], rtol=1e-12, atol=1e-14)  # nothing older to ask for
    assert (metas[1:] > plain_metas[1:]).all()


@both_rules
def test_the_state_holds_the_last_pairs_the_last_first(name: str) -> None:
    memory = build(name)
    state, told = memory.initial_state(BATCH), []
    for x in inputs():
        state = memory(x, state).state
        keys, values, _ = memory.interact(state["hidden"])
        told.append((keys[:, memory.heads :], values))
        for tau in range(DELAY):
            for index, key in enumerate(("write_keys", "write_values")):
                held = state[key][:, tau]
                assert torch.equal(held, told[-1 - tau][index] if tau < len(told) else torch.zeros_like(held))


@both_rules
def test_panels_show_the_pairs_that_the_meta_loss_asks_for(name: str) -> None:
    memory = build(name)
    earlier, later = used_state(memory, 2), used_state(memory, 3)
    panels = memory.panels(later)
    assert panels.keys() - build(name, recall_delay=0).panels(later).keys() == {"write_keys", "write_values"}
    for key in ("write_keys", "write_values"):
        assert torch.equal(panels[key].image.view(later[key][0].shape), later[key][0])
        assert not torch.equal(panels[key].image, memory.panels(earlier)[key].image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recall_delay": -1}, "recall_delay is -1; it must be at least 0"),
        ({"recall_decay": 0.0}, r"recall_decay is 0.0; it must be above 0 and at most 1"),
        ({"recall_decay": 1.5}, r"recall_decay is 1.5; it must be above 0 and at most 1"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_memory("mnm-p", input_size=FEATURES, **options)


# Figure 5
