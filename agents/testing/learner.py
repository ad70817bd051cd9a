"""The conformance checks of a learner."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from agents.evaluation import evaluate
from agents.learner import MemoryOnPolicyAlgorithm
from agents.rollout import Rollout
from envs.tensor_env import Info, TensorEnv
from policies.memories import registry
from policies.memories.contract import Memory, MemoryStep, State
from policies.testing.case import expect

NUM_ENVS, STEPS, LENGTH = 4, 6, 4


@dataclass(frozen=True)
class LearnerCase:
    """A learner to check."""

    learner: type[MemoryOnPolicyAlgorithm]
    options: dict[str, Any] = field(default_factory=dict)
    """The learner's arguments."""
    floor: float = 0.6
    """Mean reward to reach in the learning check; 0.25 is chance and 1 the maximum."""
    steps: int = 8192
    """Environment steps in the learning check."""

    def build(self, env: TensorEnv, memory: str = "gru", **kwargs: Any) -> MemoryOnPolicyAlgorithm:
        """The learner on `env`, on the CPU, seeded."""
        small = {} if memory in ("identity", "counting") else {"memory_kwargs": {"hidden_size": 8}}
        arguments: dict[str, Any] = {"n_steps": STEPS, "seed": 0, "device": "cpu", **self.options, **kwargs}
        maker: Any = self.learner
        model = maker("MemoryPolicy", env, policy_kwargs={"memory": memory, **small}, **arguments)
        expect(isinstance(model, MemoryOnPolicyAlgorithm), f"{self.learner} does not build a MemoryOnPolicyAlgorithm")
        return model  # type: ignore[no-any-return]


class Echo(TensorEnv):
    """Shows a symbol, which is the right action; episodes have `LENGTH` steps.

    Its infos have targets, and with `masks` action masks that allow the right action and one other. Actions that are
    not choices are rewarded if their first number is above 0.
    """

    state_names = ("symbol",)

    def __init__(self, num_envs: int = NUM_ENVS, space: spaces.Space[Any] | None = None, masks: bool = False) -> None:
        self.masks = masks
        super().__init__(num_envs, spaces.Box(0.0, 1.0, (4,)), space or spaces.Discrete(4), horizon=LENGTH)

    def _begin(self, where: Tensor | None) -> None:
        self._draw()

    def _draw(self) -> None:
        self.symbol = torch.randint(4, (self.num_envs,), generator=self.generator, device=self.device)

    def _advance(self, action: Tensor) -> tuple[Tensor, None, None]:
        first = action.reshape(self.num_envs, -1)[:, 0]
        chosen = isinstance(self.single_action_space, (spaces.Discrete, spaces.MultiDiscrete))
        reward = (first == self.symbol) if chosen else (first > 0)
        self._draw()
        return reward.float(), None, None

    def _observe(self) -> Tensor:
        return torch.nn.functional.one_hot(self.symbol, 4).float()

    def _describe(self) -> Info:
        target = self.symbol.clone()
        if not isinstance(self.single_action_space, spaces.Discrete):
            shape = self.single_action_space.shape or ()
            target = (self.symbol % 2).view(-1, *[1] * len(shape)).expand(-1, *shape).clone()
        info = {"target": target, "weight": torch.ones(self.num_envs, device=self.device)}
        if self.masks:
            places = torch.arange(4, device=self.device)
            info["action_mask"] = (places == self.symbol[:, None]) | (places == (self.symbol[:, None] + 1) % 4)
        return info


class Counting(Memory):
    """Outputs the number of steps since the last reset, then its input."""

    def __init__(self, input_size: int) -> None:
        super().__init__()
        self.output_size = 1 + input_size

    def initial_state(self, batch_size: int) -> State:
        return {"count": torch.zeros(batch_size, 1, device=self.device)}

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        count = state["count"] + 1
        return MemoryStep(torch.cat([count, x], 1), {"count": count}, {})


def parameters(model: MemoryOnPolicyAlgorithm) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.policy.state_dict().items()}


def _differs(one: dict[str, Tensor], other: dict[str, Tensor]) -> str | None:
    return next((name for name, value in one.items() if not torch.equal(value, other[name])), None)


def it_counts_its_steps_and_changes_the_policy(case: LearnerCase) -> None:
    model = case.build(Echo())
    acts = [name for name, _ in model.policy.named_parameters() if not name.startswith("value_net")]
    before = {name: value for name, value in parameters(model).items() if name in acts}
    model.learn(2 * NUM_ENVS * STEPS, log_interval=None)
    expect(model.num_timesteps == 2 * NUM_ENVS * STEPS, f"num_timesteps is {model.num_timesteps} after two rollouts")
    expect(_differs(before, parameters(model)) is not None, "two iterations change no parameter that affects actions")
    for name, value in parameters(model).items():
        expect(value.isfinite().all(), f"{name} is not finite")
    expect(model._n_updates > 0, "n_updates stays 0: make each step of the optimiser by self.update")
    logged = model.logger.name_to_value
    expect("train/loss" in logged, f"train/loss is not logged: {', '.join(sorted(logged))}")


def a_seed_fixes_everything(case: LearnerCase) -> None:
    found = [parameters(case.build(Echo(), seed=seed).learn(3 * NUM_ENVS * STEPS)) for seed in (0, 0, 1)]
    name = _differs(found[0], found[1])
    expect(name is None, f"two runs with one seed differ in {name}")
    expect(_differs(found[0], found[2]) is not None, "two seeds give the same parameters")


def it_resumes_exactly(case: LearnerCase) -> None:
    """N steps, a save, a load and N more steps equal 2 N steps, bit for bit."""
    half = 3 * NUM_ENVS * STEPS
    whole = case.build(Echo()).learn(2 * half)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved"
        case.build(Echo()).learn(half).save(path)
        resumed = case.learner.load(path, Echo(), device="cpu").learn(half, reset_num_timesteps=False)
    expect(resumed.num_timesteps == whole.num_timesteps, f"{resumed.num_timesteps} steps, not {whole.num_timesteps}")
    name = _differs(parameters(whole), parameters(resumed))
    expect(name is None, f"{name} differs from a run without interruption")


def memory_is_reset_after_each_episode(case: LearnerCase) -> None:
    """With rollouts that begin in the middle of episodes."""
    with mock.patch.dict(registry.memories.classes, {"counting": Counting}):
        model = case.build(Echo(), "counting", n_steps=LENGTH // 2)
        for _ in range(4):
            model.learn(NUM_ENVS * LENGTH // 2, reset_num_timesteps=False)
            seen = int(model.rollout_state.memory["count"][0].detach())
            step = (model.num_timesteps // NUM_ENVS - 1) % LENGTH + 1
            expect(seen == step, f"after step {step} of an episode the memory has seen {seen}")


def replay_gives_the_same_log_probabilities(case: LearnerCase) -> str | None:
    if case.learner.learns_from_targets:
        return "it learns from targets, not from log-probabilities"
    model = case.build(Echo(masks=True))
    model.learn(3 * NUM_ENVS * STEPS)  # the next rollout begins in the middle of episodes
    _collect(model)
    rollout = model.rollout
    with torch.no_grad():
        stored = rollout.log_probs if rollout.latents is None else model.evaluate_actions(rollout)[0].log_prob
        given = rollout.obs, rollout.actions, rollout.state, rollout.starts, rollout.resets, rollout.masks
        replayed = model.policy.evaluate_actions(*given)[0].log_prob
    off = (replayed - stored).abs().max()
    expect(off < 1e-5, f"log-probabilities are off by {float(off):.2g} before the first update: the ratio must be 1")
    return None


def _collect(model: MemoryOnPolicyAlgorithm) -> Rollout:
    _, callback = model._setup_learn(10**9, None, reset_num_timesteps=False)
    callback.on_training_start({}, {})
    model.collect_rollouts(model.env, callback, model.rollout, model.n_steps)
    return model.rollout


class _StopAfter(BaseCallback):
    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def _on_step(self) -> bool:
        self.left -= 1
        return self.left > 0


def it_continues_after_a_callback_stops_it(case: LearnerCase) -> None:
    model = case.build(Echo())
    model.learn(100 * NUM_ENVS * STEPS, callback=_StopAfter(STEPS + 2))
    stopped = model.num_timesteps
    expect(
        stopped <= 2 * NUM_ENVS * STEPS,
        f"a callback stops it after {STEPS + 2} steps, but it makes {stopped // NUM_ENVS}",
    )
    model.learn(2 * NUM_ENVS * STEPS, reset_num_timesteps=False)
    expect(model.num_timesteps > stopped, "it does not continue after a callback stopped it")


def every_action_space_works(case: LearnerCase) -> None:
    found: list[spaces.Space[Any]] = [
        spaces.Box(-1.0, 1.0, (2,)),
        spaces.MultiDiscrete([4, 3]),
        spaces.MultiBinary(3),
        spaces.MultiBinary([2, 2]),
    ]
    for space in found:
        try:
            model = case.build(Echo(space=space)).learn(2 * NUM_ENVS * STEPS)
        except Exception as error:
            raise AssertionError(f"with actions in {space}: {type(error).__name__}: {error}") from error
        for name, value in parameters(model).items():
            expect(value.isfinite().all(), f"with actions in {space} {name} becomes infinite or NaN")


def invalid_actions_are_never_taken(case: LearnerCase) -> None:
    model = case.build(Echo(masks=True)).learn(3 * NUM_ENVS * STEPS)
    masks, actions = model.rollout.masks, model.rollout.actions
    assert masks is not None
    expect(masks.gather(2, actions[..., None]).all(), "an action was taken that the environment's mask rules out")


def it_learns(case: LearnerCase) -> None:
    model = case.build(Echo(16), "identity", n_steps=8, learning_rate=1e-2)
    model.learn(case.steps)
    score = evaluate(model, Echo(16), 64, seed=1).mean / LENGTH
    expect(score >= case.floor, f"after {case.steps} steps it names {score:.2f} of the symbols, expected {case.floor}")


Check = Callable[[LearnerCase], str | None]
LEARNER_CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        it_counts_its_steps_and_changes_the_policy,
        a_seed_fixes_everything,
        it_resumes_exactly,
        memory_is_reset_after_each_episode,
        replay_gives_the_same_log_probabilities,
        it_continues_after_a_callback_stops_it,
        every_action_space_works,
        invalid_actions_are_never_taken,
        it_learns,
    )
}
"""Every check by its name."""
