"""A2C: the graph of the rollout gives the gradient of a replay, and memory outlives the rollout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from agent_stubs import SMALL, VECTOR_MEMORIES, collect
from torch import Tensor

from agents import A2C
from envs.repeat_first import RepeatFirst
from envs.tensor_env import TensorEnv
from envs.tmaze import TMaze


def a2c(memory: str, env: TensorEnv, **kwargs: Any) -> A2C:
    policy_kwargs = {"memory": memory, "memory_kwargs": SMALL.get(memory, {})}
    return A2C("MemoryPolicy", env, policy_kwargs=policy_kwargs, seed=0, **kwargs)


def gradients(model: A2C, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Those of the loss that `train` would have made a step with."""

    def backward_only(loss: Tensor) -> Tensor:
        model.policy.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    monkeypatch.setattr(model, "update", backward_only)
    model.train()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.policy.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("memory", VECTOR_MEMORIES)
@pytest.mark.parametrize("env", ["variable", "horizon"])
def test_the_graph_of_the_rollout_is_the_graph_of_a_replay(
    memory: str, env: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`train` first goes through the graph that the rollout left, then, as it is used up, through a replay."""
    made = TMaze(5, length=1, max_steps=6) if env == "variable" else RepeatFirst(5, length=4)
    model = a2c(memory, made, n_steps=9, gamma=0.9, gae_lambda=0.9, ent_coef=0.01, normalize_advantage=True)
    model.learn(9 * 5)
    rollout = collect(model)
    assert rollout.starts[1:].any()
    assert not rollout.starts[0].all()
    assert rollout.latents is not None
    kept = gradients(model, monkeypatch)
    assert rollout.latents is None
    replayed = gradients(model, monkeypatch)
    assert kept.keys() == replayed.keys()
    assert any(name.startswith("memory.") for name in kept) == (memory != "identity")
    for name in kept:
        torch.testing.assert_close(kept[name], replayed[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_memory_outlives_the_rollout_and_its_graph_does_not() -> None:
    """Three rollouts of 2 steps within one episode of 6: the state goes on, the gradient stays within one rollout."""
    model = a2c("gru", RepeatFirst(3, length=6), n_steps=2, fast="off")  # a tape has no graph to leave
    model.learn(2 * 3)
    for _ in range(2):
        before = {name: value.detach().clone() for name, value in model.rollout_state.memory.items()}
        assert all(value.abs().sum() > 0 for value in before.values())
        rollout = collect(model)
        assert rollout.resets == []
        for name, value in rollout.state.items():
            assert value.grad_fn is None
            assert torch.equal(value, before[name])
        assert all(value.grad_fn is not None for value in model.rollout_state.memory.values())


def test_one_update_is_the_gradient_step() -> None:
    """Plain SGD without clipping: what the parameters moved by is the learning rate times the gradient."""
    kwargs = {"memory": "lstm", "memory_kwargs": {"hidden_size": 8}, "optimizer_class": torch.optim.SGD}
    env = RepeatFirst(4, length=4)
    model = A2C("MemoryPolicy", env, 0.5, n_steps=4, max_grad_norm=1e9, policy_kwargs=kwargs, seed=0)
    before = {name: value.detach().clone() for name, value in model.policy.named_parameters()}
    model.learn(16)
    moved = 0
    for name, value in model.policy.named_parameters():
        assert value.grad is not None
        torch.testing.assert_close(value.detach(), before[name] - 0.5 * value.grad)
        moved += bool(value.grad.any())
    assert moved >= 6


def test_gradients_are_cut_to_their_norm() -> None:
    model = a2c("lstm", RepeatFirst(4, length=4), n_steps=4, max_grad_norm=1e-3)
    model.learn(16)
    norm = torch.stack([p.grad.norm() for p in model.policy.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)
    assert model.logger.name_to_value == {}  # dumped


def test_sum_of_squared_probabilities_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits log(1, 2, 3, 4) in every state: Σπ² = (1 + 4 + 9 + 16) / 100 = 0.3, and by the logit of an action it has
    the derivative 2 π (π − Σπ²): (−0.04, −0.04, 0, 0.08)."""
    gradients_of = []
    for coefficient in (0.0, 0.5):
        model = a2c("gru", RepeatFirst(5, length=4), n_steps=4, squares_coef=coefficient, normalize_values=False)
        head = model.policy.action_net
        assert isinstance(head, torch.nn.Linear)
        with torch.no_grad():
            head.weight.zero_()
            head.bias.copy_(torch.tensor([1.0, 2, 3, 4]).log())
        rollout = collect(model)
        assert model.squares(rollout).item() == pytest.approx(0.3)
        gradients_of.append(gradients(model, monkeypatch)["action_net.bias"])
    expected = 0.5 * torch.tensor([-0.04, -0.04, 0, 0.08])
    torch.testing.assert_close(gradients_of[1] - gradients_of[0], expected, atol=1e-6, rtol=1e-5)


def test_squared_probabilities_are_those_of_discrete_actions() -> None:
    with pytest.raises(ValueError, match=r"squares_coef is 0\.1, but the actions are Box: only Discrete actions"):
        A2C("MemoryPolicy", "Pendulum-v1", squares_coef=0.1, policy_kwargs={"memory": "gru"})


def test_epsilon_of_adam() -> None:
    """With one's own optimiser it has no effect, and RMSprop has an epsilon of its own."""
    for given, eps in (
        ({"use_rms_prop": False}, 1e-5),
        ({"use_rms_prop": False, "adam_eps": 1e-4}, 1e-4),
        ({"adam_eps": 1e-4, "rms_prop_eps": 1e-3}, 1e-3),
    ):
        assert a2c("gru", RepeatFirst(1), **given).policy.optimizer.defaults["eps"] == eps
    for optimizer_kwargs in ({"betas": (0.5, 0.9)}, None):
        kwargs: dict[str, Any] = {"memory": "gru", "optimizer_kwargs": optimizer_kwargs}
        adam = A2C("MemoryPolicy", RepeatFirst(1), use_rms_prop=False, adam_eps=1e-4, policy_kwargs=kwargs)
        assert adam.policy.optimizer.defaults["eps"] == 1e-4
        assert adam.policy.optimizer.defaults["betas"] == ((0.5, 0.9) if optimizer_kwargs else (0.9, 0.999))
    kwargs = {"memory": "gru", "optimizer_class": torch.optim.AdamW, "optimizer_kwargs": {"eps": 1e-2}}
    own = A2C("MemoryPolicy", RepeatFirst(1), use_rms_prop=False, adam_eps=1e-4, policy_kwargs=kwargs)
    assert own.policy.optimizer.defaults["eps"] == 1e-2


@pytest.mark.parametrize("normalize", [True, False])
def test_a_single_step_of_a_single_environment(normalize: bool) -> None:
    """Nothing to take a deviation of: no division by nothing."""
    model = a2c("gru", RepeatFirst(1), n_steps=1, normalize_advantage=normalize)
    model.learn(5)
    assert model._n_updates == 5
    assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())
