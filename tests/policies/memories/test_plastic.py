"""Differentiable plasticity against its equations written as loops, and its fast path against its plain one.

Equation numbers are those of Miconi, Clune and Stanley, "Differentiable plasticity", ICML 2018.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sequences import expect_same_with_gradients, starts_at, through
from torch import Tensor

from policies.memories import make_memory
from policies.memories.contract import State
from policies.memories.plastic.memory import PlasticNetwork
from policies.memories.plastic.rules import advance
from policies.memories.time.unroll import unroll

FEATURES, BATCH, UNITS = 3, 2, 4
RULES = ["oja", "hebb", "clipped"]

both = pytest.mark.parametrize("name", ["plastic", "homo-plastic"])
every_rule = pytest.mark.parametrize("rule", RULES)
both_trained = pytest.mark.parametrize("trained", ["scaled", "paper"])


def build(name: str, **options: Any) -> PlasticNetwork:
    """Strongly plastic, so that every term matters; the bounds of "clipped" are met."""
    strong = {"init_scale": 0.8, "init_eta": 0.3, "clip": 0.4, "parametrization": "paper"}
    memory = make_memory(name, input_size=FEATURES, **{"hidden_size": UNITS, **strong, **options}).double()
    assert isinstance(memory, PlasticNetwork)
    with torch.no_grad():
        if memory.scaled:
            memory.strength *= 5
            return memory
        memory.w -= 0.4
        if memory.alpha.numel() > 1:
            memory.alpha -= 0.3
    return memory


def used_state(memory: PlasticNetwork) -> State:
    hidden = torch.rand(BATCH, UNITS).double() - 0.5
    return {"hidden": hidden, "hebb": torch.rand(BATCH, UNITS, UNITS).double() - 0.5}


def reference(memory: PlasticNetwork, xs: Tensor, starts: Tensor | None, state: State) -> dict[str, Tensor]:
    """The paper, one batch entry and one connection at a time."""
    w_in, bias, w = memory.input.weight, memory.input.bias, memory.w
    if memory.scaled:
        alpha, eta = memory.strength.expand(UNITS, UNITS) / UNITS, 1 / (1 + (-memory.rate[0]).exp())
    else:
        alpha, eta = memory.alpha.expand(UNITS, UNITS), memory.eta[0]
    outputs, traces = [], []
    for b in range(xs.shape[1]):
        h = list(state["hidden"][b])
        hebb = [list(row) for row in state["hebb"][b]]
        outputs.append([])
        for t, x in enumerate(xs[:, b]):
            if starts is not None and starts[t, b]:
                zero = torch.zeros(()).double()
                h, hebb = [zero] * UNITS, [[zero] * UNITS for _ in range(UNITS)]
            after = []
            for j in range(UNITS):  # (1)
                total = (w_in[j] * x).sum() + bias[j]
                for i in range(UNITS):
                    total = total + w[i, j] * h[i] + alpha[i, j] * hebb[i][j] * h[i]
                after.append(torch.tanh(total))
            following = [[torch.zeros(())] * UNITS for _ in range(UNITS)]
            for i in range(UNITS):
                for j in range(UNITS):
                    if memory.rule == "hebb":  # (2)
                        following[i][j] = eta * h[i] * after[j] + (1 - eta) * hebb[i][j]
                    elif memory.rule == "oja":  # (3)
                        following[i][j] = hebb[i][j] + eta * after[j] * (h[i] - after[j] * hebb[i][j])
                    else:
                        moved = hebb[i][j] + eta * h[i] * after[j]
                        following[i][j] = moved.clamp(-0.4, 0.4)
            h, hebb = after, following
            outputs[-1].append(torch.stack(h))
        traces.append(torch.stack([torch.stack(row) for row in hebb]))
    stacked = torch.stack([torch.stack(o) for o in outputs], 1)
    return {"outputs": stacked, "hidden": stacked[-1], "hebb": torch.stack(traces)}


@both
@every_rule
@both_trained
@pytest.mark.parametrize("resets", [None, (0, 3), (1, 2, 9)], ids=["no reset", "resets", "more resets"])
def test_it_is_the_papers_equations(name: str, rule: str, trained: str, resets: tuple[int, ...] | None) -> None:
    """Outputs, final state, and the gradients of everything trained and of the state carried in.

    Unrolled, recorded, and by plain steps.
    """
    memory, length, ours = build(name, rule=rule, parametrization=trained), 11, []
    xs = torch.randn(length, BATCH, FEATURES).double().requires_grad_()
    state = {key: value.requires_grad_() for key, value in used_state(memory).items()}
    starts = starts_at(resets, length, BATCH)
    for way in ("unrolled", "recorded", "plain steps"):
        memory.fast = way != "plain steps"
        result = through(memory, xs, starts, state, way == "recorded", resets)
        ours.append({"outputs": result.outputs, **result.state})
    paper = reference(memory, xs, starts, state)
    expect_same_with_gradients(ours, paper, {"xs": xs, **state, **dict(memory.named_parameters())})


def test_the_reference_meets_the_bounds_of_clipped() -> None:
    """Else the test above says nothing of them."""
    memory = build("plastic", rule="clipped")
    hebb = memory.unroll(torch.randn(11, BATCH, FEATURES).double(), None, used_state(memory)).state["hebb"]
    assert 0 < (hebb.abs() == 0.4).double().mean() < 1


@both
@every_rule
@pytest.mark.parametrize("length", [1, 2, 8, 9, 40])
def test_fast_is_plain_whatever_the_length(name: str, rule: str, length: int) -> None:
    """Where the kept traces become many, every second one is dropped: at steps 8, 32, 128 and so on."""
    memory = build(name, rule=rule)
    xs, state = torch.randn(length, BATCH, FEATURES).double(), used_state(memory)
    outputs, gradients = [], []
    for fast in (True, False):
        memory.fast = fast
        result = memory.unroll(xs, None, state)
        outputs.append(result.outputs)
        loss = result.outputs.square().sum() + result.state["hebb"].sum()
        gradients.append(torch.autograd.grad(loss, list(memory.parameters()), allow_unused=True))
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-11)
    for fast_gradient, plain_gradient, (key, _) in zip(*gradients, memory.named_parameters(), strict=True):
        torch.testing.assert_close(fast_gradient, plain_gradient, rtol=1e-8, atol=1e-10, msg=key)


@both
def test_at_the_papers_size_fast_is_plain_in_single_precision(name: str) -> None:
    """200 units, 60 steps; the gradient of each parameter to a relative 1e-3 of its norm."""
    memory, xs = make_memory(name, input_size=8), torch.randn(60, 2, 8)
    gradients = []
    for fast in (True, False):
        memory.fast = fast  # type: ignore[assignment]
        memory.zero_grad()
        memory.unroll(xs, None, memory.initial_state(2)).outputs.square().mean().backward()
        gradients.append({key: p.grad.clone() for key, p in memory.named_parameters() if p.grad is not None})
    assert len(gradients[1]) == 5
    for key, expected in gradients[1].items():
        assert (gradients[0][key] - expected).norm() <= 1e-3 * expected.norm(), key


@both
def test_a_sequence_keeps_few_traces(name: str) -> None:
    """The fast path's claim: 2 √T traces for the backward pass, where plain steps keep at least T."""
    length, kept = 128, {}
    for fast in (True, False):
        memory = make_memory(name, input_size=FEATURES, hidden_size=20, fast=fast)
        storages: dict[int, int] = {}

        def keep(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            if not isinstance(tensor, torch.nn.Parameter) and tensor.shape[-2:] == (20, 20):
                storages[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = memory.unroll(torch.randn(length, 1, FEATURES), None, memory.initial_state(1))
        kept[fast] = sum(storages.values()) / 20**2
        del result
    assert kept[True] <= 2 * length**0.5
    assert kept[False] >= length - 1


# What plasticity means


@both
@every_rule
def test_without_plasticity_it_is_a_plain_network(name: str, rule: str) -> None:
    memory, xs = build(name, rule=rule), torch.randn(5, BATCH, FEATURES).double()
    with torch.no_grad():
        memory.alpha.zero_()
    plain = torch.nn.RNN(FEATURES, UNITS).double()
    plain.load_state_dict(
        {
            "weight_ih_l0": memory.input.weight,
            "bias_ih_l0": memory.input.bias,
            "weight_hh_l0": memory.w.t(),
            "bias_hh_l0": torch.zeros(UNITS),
        }
    )
    torch.testing.assert_close(memory.unroll(xs, None, memory.initial_state(BATCH)).outputs, plain(xs)[0])


@both
@every_rule
def test_at_a_rate_of_zero_the_traces_stay(name: str, rule: str) -> None:
    memory = build(name, rule=rule, init_eta=0.0, clip=1.0)
    state = used_state(memory)
    assert torch.equal(memory(torch.randn(BATCH, FEATURES).double(), state).state["hebb"], state["hebb"])


def test_hebbs_rule_at_a_rate_of_one_holds_the_last_step_alone() -> None:
    memory = build("plastic", rule="hebb", init_eta=1.0)
    state = used_state(memory)
    step = memory(torch.randn(BATCH, FEATURES).double(), state)
    last = torch.einsum("bi,bj->bij", state["hidden"], step.output)
    torch.testing.assert_close(step.state["hebb"], last)


def test_idle_traces_fade_by_hebbs_rule_and_last_by_ojas() -> None:
    """Why the paper has Oja's rule: "stable long-term memories"."""
    hebb, silent, eta = torch.rand(1, 3, 3).double(), torch.zeros(1, 3).double(), torch.tensor([0.1]).double()
    faded = lasting = hebb
    for _ in range(20):
        faded = advance(faded, silent, silent, eta, "hebb", None)
        lasting = advance(lasting, silent, silent, eta, "oja", None)
    torch.testing.assert_close(faded, 0.9**20 * hebb)
    assert torch.equal(lasting, hebb)


def test_ojas_rule_comes_to_rest_at_the_ratio_of_the_activities() -> None:
    """(3) stands still where Hebb[i,j] = x[i] / y[j]: it cannot run away, as a bare product would."""
    x, y, eta = torch.tensor([[0.3, -0.8]]).double(), torch.tensor([[0.9, -0.5]]).double(), torch.tensor([0.2]).double()
    hebb = torch.zeros(1, 2, 2).double()
    for _ in range(600):
        hebb = advance(hebb, x, y, eta, "oja", None)
    torch.testing.assert_close(hebb, x.unsqueeze(2) / y.unsqueeze(1))


def test_clipped_traces_add_up_to_their_bounds() -> None:
    x, y, eta = torch.tensor([[1.0, -0.5]]).double(), torch.tensor([[0.5]]).double(), torch.tensor([0.2]).double()
    hebb = torch.zeros(1, 2, 1).double()
    for _ in range(3):
        hebb = advance(hebb, x, y, eta, "clipped", 0.25)
    torch.testing.assert_close(hebb, torch.tensor([[[0.25], [-0.15]]]).double())


def test_the_trace_goes_from_the_unit_before_to_the_unit_after() -> None:
    """Only connections out of the unit that was active, in rows, to the units that then are, in columns, change."""
    memory = build("plastic", rule="hebb")
    state = memory.initial_state(BATCH)
    hidden = torch.zeros(BATCH, UNITS).double()
    hidden[:, 1] = 0.7
    hebb = memory(torch.randn(BATCH, FEATURES).double(), {**state, "hidden": hidden}).state["hebb"]
    assert hebb[:, 1].abs().min() > 0
    assert hebb[:, [0, 2, 3]].abs().max() == 0


def test_plasticity_is_of_each_connection_or_of_all() -> None:
    assert build("plastic").alpha.shape == (UNITS, UNITS)
    assert build("homo-plastic").alpha.shape == (1, 1)


@both
@every_rule
def test_a_long_run_stays_finite(name: str, rule: str) -> None:
    memory = make_memory(name, input_size=FEATURES, hidden_size=20, rule=rule, init_eta=0.1)
    result = memory.unroll(5 * torch.randn(400, 1, FEATURES), None, memory.initial_state(1))
    result.outputs.sum().backward()
    assert result.state["hebb"].isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in memory.parameters())  # type: ignore[union-attr]


@both
@every_rule
def test_gradients_at_zero_are_finite(name: str, rule: str) -> None:
    memory = build(name, rule=rule)
    result = unroll(memory, torch.zeros(3, BATCH, FEATURES).double(), None, memory.initial_state(BATCH))
    result.outputs.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in memory.parameters())  # type: ignore[union-attr]


@both
def test_at_any_size_it_starts_unsaturated(name: str) -> None:
    """300 steps of noise, as an untrained agent sees; "paper" is for 200 units, and saturates with 300."""
    share = {}
    for trained in ("scaled", "paper"):
        memory = make_memory(name, input_size=FEATURES, hidden_size=300, parametrization=trained)
        with torch.no_grad():
            hidden = memory.unroll(torch.rand(300, BATCH, FEATURES), None, memory.initial_state(BATCH)).outputs[-1]
        share[trained] = (hidden.abs() > 0.95).double().mean()
    assert share["scaled"] < 0.05
    assert share["paper"] > 0.9


@both
def test_an_update_of_adam_leaves_the_rate_of_the_traces_positive(name: str) -> None:
    """0.01 is three updates of 4e-3 from zero, beyond which traces grow without bound; "scaled" trains σ(rate)."""
    etas = {}
    for trained in ("scaled", "paper"):
        memory = make_memory(name, input_size=FEATURES, hidden_size=8, parametrization=trained)
        optimizer = torch.optim.Adam(memory.parameters(), lr=4e-3)
        for _ in range(8):
            memory.plasticity()[1].sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        etas[trained] = memory.plasticity()[1].item()
    assert 0 < etas["scaled"] < 0.01
    assert etas["paper"] < 0


def test_each_has_its_own_default() -> None:
    made = {name: make_memory(name, input_size=FEATURES, hidden_size=UNITS) for name in ("plastic", "homo-plastic")}
    assert [hasattr(memory, "alpha") for memory in made.values()] == [True, False]


def test_a_recordings_first_state_is_left_alone() -> None:
    memory = build("plastic")
    state = used_state(memory)
    before = {key: value.clone() for key, value in state.items()}
    recording = memory.record(state, 4)
    for x in torch.randn(3, BATCH, FEATURES).double():
        recording.step(x, torch.tensor([True, False]))
    for key, value in before.items():
        assert torch.equal(state[key], value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "bcm"}, "rule is 'bcm'; it must be 'oja', 'hebb' or 'clipped'"),
        ({"clip": 0.0}, "clip is 0.0; it must be more than 0"),
        ({"hidden_size": 0}, "hidden_size is 0; it must be at least 1"),
        ({"parametrization": "log"}, "parametrization is 'log'; it must be 'scaled' or 'paper'"),
        (
            {"init_eta": 0.0, "parametrization": "scaled"},
            "init_eta is 0.0; with parametrization='scaled' it must be between 0 and 1",
        ),
        ({"init_eta": 1.5, "rule": "hebb"}, "init_eta is 1.5; with rule='hebb' it must be from 0 to 1"),
        ({"init_eta": -0.1}, "init_eta is -0.1; with rule='oja' it must be from 0 to 1"),
        ({"init_eta": float("nan")}, "init_eta is nan; with rule='oja' it must be from 0 to 1"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_memory("plastic", input_size=FEATURES, **options)


def test_the_clipped_rule_takes_any_rate() -> None:
    """It has no decay factor that a rate could make negative."""
    memory = make_memory("plastic", input_size=FEATURES, rule="clipped", init_eta=1.5)
    assert memory.plasticity()[1].item() == 1.5
