"""`fast`: what each value does, that fast and plain learn the same, and what is said where something cannot be had."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stable_baselines3.common.distributions import CategoricalDistribution
from torch import Tensor

import train
from agents import A2C, PPO, MemoryOnPolicyAlgorithm
from policies.heads import ChoiceDistribution
from policies.memories.contract import Memory

ENV = "Engram/RepeatFirst-v0"


def learner(cls: type[MemoryOnPolicyAlgorithm], fast: str, **kwargs: Any) -> MemoryOnPolicyAlgorithm:
    make: Any = cls
    policy = {"memory": "gru", "memory_kwargs": {"hidden_size": 8}}
    return make("MemoryPolicy", ENV, n_steps=16, policy_kwargs=policy, seed=0, device="cpu", fast=fast, **kwargs)


@pytest.mark.parametrize("cls", [PPO, A2C])
def test_fast_and_plain_learn_the_same(cls: type[MemoryOnPolicyAlgorithm]) -> None:
    kwargs = {"use_rms_prop": False} if cls is A2C else {}
    fast, plain = (learner(cls, mode, **kwargs).learn(64) for mode in ("auto", "off"))
    assert isinstance(fast.policy.action_dist, ChoiceDistribution)
    assert not isinstance(plain.policy.action_dist, ChoiceDistribution)
    assert plain.policy.memory.fast is False
    assert torch.equal(fast.rollout.actions, plain.rollout.actions)
    for (name, mine), other in zip(fast.policy.named_parameters(), plain.policy.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("fast", "said"), [("graph", "only CUDA has graphs"), ("fastest", "one of")])
def test_what_cannot_be_had_is_said_in_one_line(fast: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        learner(PPO, fast).learn(16)
    assert "\n" not in str(caught.value)


def test_the_command_ends_with_that_line(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main(["--env", ENV, "--memory", "gru", "--fast", "graph", "--run-dir", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert "only CUDA has graphs" in capsys.readouterr().err


def test_compile_goes_on_without_where_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*args: Any, **kwargs: Any) -> Any:
        def fails(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("no compiler\nand a long explanation")

        return fails

    monkeypatch.setattr(torch, "compile", no_compiler)
    model = learner(PPO, "compile")
    assert model.speed_note.startswith("torch cannot compile the step of gru (no compiler); continuing")
    assert model.learn(64).num_timesteps == 64


def test_compile_takes_the_memorys_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def compiled(function: Any, *args: Any, **kwargs: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            return function(*args, **kwargs)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    model = learner(PPO, "compile")
    assert model.speed_note == ""
    calls.clear()
    model.learn(16)
    assert isinstance(model.policy.memory, Memory)
    assert len(calls) >= 16  # once for every step that was acted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("choices", [2, 7])
def test_choices_are_those_of_sb3(dtype: torch.dtype, choices: int) -> None:
    logits = 3 * torch.randn(300, choices, dtype=dtype, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(2, 300, dtype=dtype, generator=torch.Generator().manual_seed(1))

    def results(distribution: CategoricalDistribution) -> list[Tensor]:
        leaf = logits.clone().requires_grad_()
        distribution.proba_distribution(leaf)
        torch.manual_seed(2)
        action = distribution.sample()
        log_prob, entropy = distribution.log_prob(action), distribution.entropy()
        loss = (weights[0] * log_prob + weights[1] * entropy).sum()
        probabilities = distribution.distribution.probs.detach()
        return [action, distribution.mode(), log_prob, entropy, *torch.autograd.grad(loss, leaf), probabilities]

    for ours, theirs in zip(
        results(ChoiceDistribution(choices)), results(CategoricalDistribution(choices)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_choice_ruled_out_has_no_part_in_the_entropy() -> None:
    choice = ChoiceDistribution(3).proba_distribution(torch.tensor([[0.0, 0.0, -torch.inf]]))
    assert choice.entropy().item() == pytest.approx(torch.tensor(2.0).log().item())


def test_bf16_replays_an_lstm_in_bfloat16_and_nothing_else() -> None:
    memory = {"memory": "lstm", "memory_kwargs": {"hidden_size": 16}}
    kwargs: dict[str, Any] = {"n_steps": 16, "policy_kwargs": memory, "seed": 0, "device": "cpu"}
    single, half = (PPO("MemoryPolicy", ENV, precision=precision, **kwargs) for precision in ("float32", "bf16"))
    for model in (single, half):
        model.learn(16)
        model.policy.load_state_dict(single.policy.state_dict())
    judged = [model.evaluate_actions(single.rollout)[0].value for model in (single, half)]
    assert judged[1].dtype == torch.float32
    assert not torch.equal(*judged)
    torch.testing.assert_close(*judged, atol=0.03, rtol=0)


def test_bf16_needs_a_sequence_kernel() -> None:
    with pytest.raises(ValueError, match="gru does not support it on cpu: expected 'float32'"):
        learner(PPO, "auto", precision="bf16")
    with pytest.raises(ValueError, match="expected PPO or V-trace, or supervised"):
        A2C("MemoryPolicy", ENV, precision="bf16", device="cpu", policy_kwargs={"memory": "lstm"})
    with pytest.raises(ValueError, match="expected one of float32, bf16"):
        learner(PPO, "auto", precision="half")


@pytest.mark.parametrize("instructions", [True, False])
def test_bf16_is_said_to_be_slow_where_the_processor_lacks_it(
    instructions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.scale.fast.multiplies_bf16", lambda: instructions)
    model = PPO("MemoryPolicy", ENV, precision="bf16", device="cpu", policy_kwargs={"memory": "lstm"})
    assert ("precision='float32' is several times as fast" in model.speed_note) == (not instructions)
