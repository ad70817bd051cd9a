"""Stack RNN against its equations written as loops, and what pushing and popping mean.

Source: Joulin and Mikolov, "Inferring Algorithmic Patterns with Stack-Augmented Recurrent Nets", NIPS 2015, §3.2.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sequences import expect_same_with_gradients
from torch import Tensor

from policies.memories import make_memory
from policies.memories.contract import State
from policies.memories.stack_rnn import StackRNN
from policies.memories.time.unroll import unroll

FEATURES, BATCH, LENGTH = 3, 2, 6
SIZES = {"hidden_size": 5, "num_stacks": 2, "capacity": 4}
PUSH, POP, NO_OP = 0, 1, 2


def build(**options: Any) -> StackRNN:
    memory = make_memory("stack-rnn", input_size=FEATURES, **{**SIZES, **options}).double()
    assert isinstance(memory, StackRNN)
    with torch.no_grad():  # strong enough for every term to matter
        for parameter in memory.parameters():
            parameter.mul_(3)
    return memory


def do(memory: StackRNN, action: int) -> None:
    """Make every stack do `action`, wholly, whatever the hidden layer says."""
    with torch.no_grad():
        memory.actions.weight.zero_()
        bias = memory.actions.bias.zero_().view(memory.num_stacks, -1)
        bias[:, action] = 1e3


def reference(memory: StackRNN, options: dict[str, Any], xs: Tensor, state: State) -> dict[str, Tensor]:
    """The paper, one batch entry, one stack and one cell at a time."""
    options = {"top_k": 2, "no_op": True, "recurrent": True, "bias": False, **SIZES, **options}
    capacity, k, kinds = options["capacity"], options["top_k"], 3 if options["no_op"] else 2
    outputs, hiddens, finals = [], [], []
    for b in range(xs.shape[1]):
        h, stacks = state["hidden"][b], list(state["stacks"][b])
        outputs.append([])
        for x in xs[:, b]:
            total = memory.input.weight @ x
            if options["bias"]:
                total = total + memory.input.bias
            if options["recurrent"]:
                assert memory.hidden is not None
                total = total + memory.hidden.weight @ h
            for index, s in enumerate(stacks):
                for cell in range(k):
                    total = total + memory.tops.weight[:, index * k + cell] * s[cell]
            h = 1 / (1 + torch.exp(-total))
            following = []
            for index, s in enumerate(stacks):
                rows = slice(index * kinds, (index + 1) * kinds)
                logits = memory.actions.weight[rows] @ h
                value = memory.pushed.weight[index] @ h
                if options["bias"]:
                    logits, value = logits + memory.actions.bias[rows], value + memory.pushed.bias[index]
                a = torch.exp(logits) / torch.exp(logits).sum()
                cells = []
                for i in range(capacity):
                    above = torch.sigmoid(value) if i == 0 else s[i - 1]
                    below = s[i + 1] if i + 1 < capacity else torch.tensor(-1.0).double()
                    cell = a[PUSH] * above + a[POP] * below
                    cells.append(cell + a[NO_OP] * s[i] if options["no_op"] else cell)
                following.append(torch.stack(cells))
            stacks = following
            outputs[-1].append(h)
        hiddens.append(h)
        finals.append(torch.stack(stacks))
    return {
        "outputs": torch.stack([torch.stack(o) for o in outputs], 1),
        "hidden": torch.stack(hiddens),
        "stacks": torch.stack(finals),
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"no_op": False},
        {"recurrent": False},
        {"bias": True},
        {"top_k": 1, "capacity": 1},
        {"top_k": 4, "num_stacks": 3, "no_op": False, "recurrent": False, "bias": True},
    ],
    ids=lambda options: " ".join(f"{key}={value}" for key, value in options.items()) or "default",
)
def test_it_is_the_papers_equations(options: dict[str, Any]) -> None:
    """Outputs, final state, and the gradients of everything trained and of the state carried in."""
    memory = build(**options)
    xs = torch.randn(LENGTH, BATCH, FEATURES).double()
    initial = memory.initial_state(BATCH)
    state = {key: (value + torch.randn(value.shape).double()).requires_grad_() for key, value in initial.items()}
    leaves = {**state, **dict(memory.named_parameters())}
    result = memory.unroll(xs, None, state)
    ours = {"outputs": result.outputs, **result.state}
    paper = reference(memory, options, xs, state)
    expect_same_with_gradients(ours, paper, leaves)


# What pushing and popping mean


def test_an_episode_begins_with_empty_stacks() -> None:
    state = build().initial_state(BATCH)
    assert (state["stacks"] == -1).all()
    assert (state["hidden"] == 0).all()


def test_what_was_pushed_last_is_popped_first_and_then_the_stack_is_empty() -> None:
    memory = build(bias=True)
    state, pushed = memory.initial_state(BATCH), []
    do(memory, PUSH)
    for x in torch.randn(3, BATCH, FEATURES).double():
        step = memory(x, state)
        state = step.state
        pushed.append(memory.pushed(step.output).sigmoid())
    assert torch.equal(state["stacks"][:, :, :3], torch.stack(pushed[::-1], 2))
    do(memory, POP)
    for depth in (2, 1, 0):
        state = memory(torch.randn(BATCH, FEATURES).double(), state).state
        assert torch.equal(
            state["stacks"][:, :, :depth], torch.stack(pushed[:depth][::-1], 2) if depth else state["stacks"][:, :, :0]
        )
        assert (state["stacks"][:, :, depth:] == -1).all()
    assert (memory(torch.randn(BATCH, FEATURES).double(), state).state["stacks"] == -1).all()  # popping nothing


def test_no_op_leaves_the_stacks_alone() -> None:
    memory = build(bias=True)
    state = memory.initial_state(BATCH)
    state["stacks"] = torch.randn(BATCH, 2, 4).double()
    do(memory, NO_OP)
    assert torch.equal(memory(torch.randn(BATCH, FEATURES).double(), state).state["stacks"], state["stacks"])


def test_a_full_stack_loses_its_lowest_cell() -> None:
    memory = build(bias=True)
    state = memory.initial_state(BATCH)
    state["stacks"] = torch.randn(BATCH, 2, 4).double()
    do(memory, PUSH)
    following = memory(torch.randn(BATCH, FEATURES).double(), state).state["stacks"]
    assert torch.equal(following[:, :, 1:], state["stacks"][:, :, :-1])


def test_only_the_top_cells_are_read() -> None:
    memory, x = build(top_k=2), torch.randn(BATCH, FEATURES).double()
    state = memory.initial_state(BATCH)
    outputs = []
    for cell in (1, 2):
        changed = state["stacks"].clone()
        changed[:, :, cell] += 1
        outputs.append(memory(x, {**state, "stacks": changed}).output)
    assert not torch.allclose(outputs[0], memory(x, state).output)
    assert torch.equal(outputs[1], memory(x, state).output)


def test_without_recurrence_the_past_is_in_the_stacks_alone() -> None:
    memory, x = build(recurrent=False), torch.randn(BATCH, FEATURES).double()
    state = memory.initial_state(BATCH)
    other = {**state, "hidden": state["hidden"] + 1}
    assert torch.equal(memory(x, other).output, memory(x, state).output)
    assert not torch.equal(build()(x, other).output, build()(x, state).output)


def test_actions_are_weights_of_the_actions_of_each_stack() -> None:
    memory = build()
    actions = memory.act(torch.rand(BATCH, 5).double())
    assert actions.shape == (BATCH, 2, 3)
    torch.testing.assert_close(actions.sum(2), torch.ones(BATCH, 2).double())
    assert (actions > 0).all()
    assert build(no_op=False).act(torch.rand(BATCH, 5).double()).shape == (BATCH, 2, 2)


# Rounding


@pytest.mark.parametrize(
    ("rounding", "training", "rounded"),
    [
        ("never", True, False),
        ("never", False, False),
        ("evaluation", True, False),
        ("evaluation", False, True),
        ("always", True, True),
        ("always", False, True),
    ],
)
def test_rounded_actions_are_the_likeliest(rounding: str, training: bool, rounded: bool) -> None:
    memory = build(rounding=rounding).train(training)
    hidden = torch.rand(20, 5).double()
    actions, soft = memory.act(hidden), build().actions
    soft.load_state_dict(memory.actions.state_dict())
    weights = soft(hidden).view(20, 2, 3).softmax(2)
    if rounded:
        assert torch.equal(actions.argmax(2), weights.argmax(2))
        assert torch.equal(actions, actions.round())
        assert (actions.sum(2) == 1).all()
    else:
        assert torch.equal(actions, weights)


def test_rounded_stacks_hold_what_was_pushed_however_long() -> None:
    """What the paper rounds for: without it the contents blur, step by step."""
    memory = build(capacity=60, bias=True)
    with torch.no_grad():
        memory.actions.weight.zero_()
        memory.actions.bias.zero_().view(2, 3)[:, PUSH] = 4.0  # PUSH, by 0.96
    xs = torch.randn(50, BATCH, FEATURES).double()
    blur = {}
    for rounding in ("never", "evaluation"):
        memory.rounding = rounding
        memory.eval()
        result = memory.unroll(xs, None, memory.initial_state(BATCH))
        pushed = memory.pushed(result.outputs).sigmoid().flip(0).permute(1, 2, 0)
        blur[rounding] = (result.state["stacks"][:, :, :50] - pushed).abs().max().item()
    assert blur["evaluation"] < 1e-12
    assert blur["never"] > 0.1


def test_the_gradient_of_rounded_actions_is_that_of_the_weights() -> None:
    memory = build(rounding="always")
    hidden = torch.rand(BATCH, 5).double().requires_grad_()
    weight = torch.randn(BATCH, 2, 3).double()
    (rounded,) = torch.autograd.grad((memory.act(hidden) * weight).sum(), hidden)
    memory.rounding = "never"
    (soft,) = torch.autograd.grad((memory.act(hidden) * weight).sum(), hidden)
    torch.testing.assert_close(rounded, soft)
    assert soft.abs().max() > 0


@pytest.mark.parametrize("rounding", ["never", "always"])
def test_acting_and_replaying_agree_as_ppo_needs(rounding: str) -> None:
    """PPO acts with `training` False and replays with it True."""
    memory, xs = build(rounding=rounding), torch.randn(LENGTH, BATCH, FEATURES).double()
    acted = unroll(memory.eval(), xs, None, memory.initial_state(BATCH)).outputs
    replayed = unroll(memory.train(), xs, None, memory.initial_state(BATCH)).outputs
    assert torch.equal(acted, replayed)


def test_a_long_run_stays_between_empty_and_full() -> None:
    memory = make_memory("stack-rnn", input_size=FEATURES, capacity=20)
    result = memory.unroll(10 * torch.randn(300, 1, FEATURES), None, memory.initial_state(1))
    result.outputs.sum().backward()
    stacks = result.state["stacks"]
    assert -1 - 1e-5 <= stacks.min() < stacks.max() <= 1 + 1e-5
    assert all(parameter.grad.isfinite().all() for parameter in memory.parameters())  # type: ignore[union-attr]


def test_memorising_needs_the_stacks() -> None:
    """A word of three symbols is shown, then to be said backwards; R = 0, so the stacks are the only memory.

    Without the stacks' tops every output is a function of the present input: chance is 1/2.
    """
    torch.manual_seed(0)
    memory = make_memory("stack-rnn", input_size=3, hidden_size=40, num_stacks=6, capacity=6, recurrent=False)
    head = torch.nn.Linear(40, 2)
    optimizer = torch.optim.Adam([*memory.parameters(), *head.parameters()], lr=1e-2)
    accuracy = math.nan
    for _ in range(300):
        word = torch.randint(2, (3, 64))
        xs = torch.zeros(6, 64, 3)
        xs[:3, :, :2] = torch.nn.functional.one_hot(word, 2).float()
        xs[3:, :, 2] = 1  # say it
        outputs = head(memory.unroll(xs, None, memory.initial_state(64)).outputs[3:])
        loss = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), word.flip(0).flatten())
        accuracy = (outputs.argmax(2) == word.flip(0)).float().mean().item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert accuracy > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounding": "test"}, "rounding is 'test'; it must be 'never', 'evaluation' or 'always'"),
        ({"top_k": 5}, "top_k is 5; it must be at least 1 and at most capacity, which is 4"),
        ({"top_k": 0}, "top_k is 0"),
        ({"num_stacks": 0}, "num_stacks is 0; it must be at least 1"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)
