"""The checks that others may run on what is theirs: everything is named at once, by a call or a command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from cases import LEARNERS
from torch import Tensor, nn

from agents import A2C, PPO, MemoryOnPolicyAlgorithm
from agents.rollout import Rollout
from agents.testing import ConformanceError, NotBuiltError, check_env, check_learner, check_memory
from agents.testing.__main__ import main
from agents.testing.host_env import HOST_ENV_CHECKS
from agents.testing.learner import LEARNER_CHECKS, Counting, LearnerCase
from envs.repeat_first import RepeatFirst
from envs.testing import ENV_CHECKS, EnvCase
from envs.tmaze import TMaze
from policies.memories.contract import MemoryStep, Panel, State, Unrolled
from policies.memories.shared.pictures import vector_panel
from policies.memories.time.unroll import unroll
from policies.testing import MEMORY_CHECKS


@pytest.mark.parametrize("check", LEARNER_CHECKS)
@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_conforms(name: str, check: str) -> None:
    skipped = LEARNER_CHECKS[check](LEARNERS[name])
    assert skipped is None or LEARNERS[name].targets


class Frozen(A2C):
    def update(self, loss: Tensor) -> Tensor:
        self._n_updates += 1
        return loss.detach()


class Dice(A2C):
    def learn_from(self, rollout: Rollout) -> dict[str, Tensor]:
        with torch.no_grad():
            self.policy.action_net.bias += torch.randn(4, generator=torch.Generator().manual_seed(id(self)))
        return super().learn_from(rollout)


class Momentum(A2C):
    """Keeps something that no checkpoint knows of."""

    seen = 0

    def learn_from(self, rollout: Rollout) -> dict[str, Tensor]:
        self.seen += 1
        rollout.advantages = rollout.advantages / self.seen
        return super().learn_from(rollout)


class Amnesia(A2C):
    def collect_rollouts(self, *arguments: Any) -> bool:
        self.rollout_state.memory = self.policy.initial_state(self.n_envs)
        return super().collect_rollouts(*arguments)


class Stale(PPO):
    def collect_rollouts(self, *arguments: Any) -> bool:
        going = super().collect_rollouts(*arguments)
        self.rollout.state = self.policy.initial_state(self.n_envs)
        return going


class Unmasked(PPO):
    def _setup_learn(self, *arguments: Any, **kwargs: Any) -> Any:
        result = super()._setup_learn(*arguments, **kwargs)
        if self.rollout.masks is not None:
            self.policy.act = lambda latent, *_, act=self.policy.act: act(latent)  # type: ignore[method-assign]
        return result


BROKEN: list[tuple[type[MemoryOnPolicyAlgorithm], str, str]] = [
    (Frozen, "it_counts_its_steps_and_changes_the_policy", "change no parameter"),
    (Dice, "a_seed_fixes_everything", "two runs with one seed differ in"),
    (Momentum, "it_resumes_exactly", "differs from a run without interruption"),
    (Amnesia, "memory_is_reset_after_each_episode", "after step 4 of an episode the memory has seen 2"),
    (Stale, "replay_gives_the_same_log_probabilities", "the ratio must be 1"),
    (Unmasked, "invalid_actions_are_never_taken", "rules out"),
    (Frozen, "it_learns", "expected 0.6"),
]


@pytest.mark.parametrize(("learner", "check", "message"), BROKEN)
def test_a_learner_that_breaks_the_contract_is_found(
    learner: type[MemoryOnPolicyAlgorithm], check: str, message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        LEARNER_CHECKS[check](LearnerCase(learner, steps=512))


class LateReset(Counting):
    """Resets after the step that begins an episode."""

    def unroll(self, xs: Tensor, starts: Tensor | None, state: State, resets: Any = None) -> Unrolled:
        late = None if starts is None else torch.cat([torch.zeros_like(starts[:1]), starts[:-1]])
        return unroll(self, xs, late, state)


def test_somebodys_memory_is_checked_by_its_class(capsys: pytest.CaptureFixture[str]) -> None:
    """Without panels, and with every failure named at once."""
    check_memory(Counting, floor=0, updates=1, verbose=True)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(MEMORY_CHECKS)
    assert [line for line in said if not line.endswith(": ok")] == [
        "panels show the first entry and change with it: skipped, it has no panels",
        "metrics are a number for each entry: skipped, it has no metrics",
    ]
    with pytest.raises(ConformanceError) as failed:
        check_memory(LateReset, updates=1, floor=0)
    title, *lines = str(failed.value).splitlines()
    assert title == f"LateReset fails {len(lines)} of {len(MEMORY_CHECKS)} checks"
    assert len(lines) >= 3
    with pytest.raises(NotBuiltError, match=r"Counting cannot be built: TypeError: .*hiden_size"):
        check_memory(Counting, hiden_size=3)


class Short(Counting):
    """An output of another shape than it says."""

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        step = super().forward(x, state)
        return step._replace(output=step.output[:, :1])


class Wide(RepeatFirst):
    """Observations of another shape than the space says."""

    def _observe(self) -> Tensor:
        return super()._observe()[:, None]


def test_what_breaks_the_contract_at_once_is_said_once() -> None:
    with pytest.raises(NotBuiltError, match=r"^Short.forward returned an output of shape \(2, 1\)"):
        check_memory(Short)
    with pytest.raises(ConformanceError) as failed:
        check_env(Wide, length=3)
    assert str(failed.value).startswith("Wide._observe returned an observation of shape (")
    assert "\n" not in str(failed.value)


class Dropping(Counting):
    """With dropout, which draws other numbers when a learner repeats a step."""

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        step = super().forward(x, state)
        return step._replace(output=nn.functional.dropout(step.output, 0.5, self.training))


def test_a_memory_with_dropout_gets_one_message() -> None:
    with pytest.raises(ConformanceError) as failed:
        check_memory(Dropping, updates=1, floor=0)
    title, line = str(failed.value).splitlines()
    assert title == "Dropping fails a check that all others need"
    assert "in training mode, return different results, as with dropout" in line


class Stepwise(Counting):
    """Its state also holds integers and flags."""

    def initial_state(self, batch_size: int) -> State:
        zeros = torch.zeros(batch_size, 1, device=self.device, dtype=torch.int64)
        return {"step": zeros, "odd": zeros.bool(), **super().initial_state(batch_size)}

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        step = super().forward(x, state)
        return step._replace(state={"step": state["step"] + 1, "odd": ~state["odd"], **step.state})

    def panels(self, state: State) -> dict[str, Panel]:
        return {"step": vector_panel(torch.cat([state["step"], state["odd"]], 1)[:1].double(), limits=None)}


def test_a_state_may_hold_integers_and_flags() -> None:
    check_memory(Stepwise, updates=1, floor=0)


class Rounded(RepeatFirst):
    """Pays in double precision, and has no pictures."""

    def frame(self, index: int = 0) -> Any:
        raise NotImplementedError

    def _advance(self, action: Tensor) -> Any:
        reward, *ends = super()._advance(action)
        return reward.double(), *ends


def test_somebodys_environment_is_checked_by_id_or_class(capsys: pytest.CaptureFixture[str]) -> None:
    check_env("Engram/RepeatFirst-v0", length=3, symbols=3, steps=12, verbose=True)
    assert len(capsys.readouterr().out.splitlines()) == len(ENV_CHECKS)
    with pytest.raises(ConformanceError, match=r"Rounded fails \d+ of 13 checks\n  it keeps the contract: reward is"):
        check_env(Rounded, length=3, steps=12)
    with pytest.raises(ValueError, match=r"unknown environment 'CartPole-v9'; near it: CartPole-v1"):
        check_env("CartPole-v9")
    with pytest.raises(TypeError, match="env is an object of RepeatFirst, expected its id or its class"):
        check_env(RepeatFirst(2))  # type: ignore[arg-type]


class Windy(TMaze):
    """Some steps go in a random direction; episodes end at different times."""

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wind = torch.randint(8, (self.num_envs,), generator=self.generator, device=self.device)
        return super()._advance(torch.where(wind < 4, wind, action))


def test_an_environment_may_draw_random_numbers_in_every_step() -> None:
    """Autoreset draws too, so that with and without it the generators differ from the first step on."""
    for check in ("final_obs_is_the_last_observation", "single_env_equals_the_batch"):
        ENV_CHECKS[check](EnvCase(Windy, {"length": 2, "max_steps": 6}))


class Ordinary(gym.Env[Any, Any]):
    """What is special about it is given by name."""

    action_space = gym.spaces.MultiDiscrete([2, 3], start=[0, -1])
    observation_space = gym.spaces.Dict({"b": gym.spaces.Box(0.0, 1.0, (2,)), "a": gym.spaces.Text(4)})

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong

    def _told(self) -> tuple[Any, dict[str, Any]]:
        generator = np.random.default_rng() if self.wrong == "seed" else self.np_random
        seen = generator.random(2, np.float32) + (self.wrong == "space" and self.time == 3)
        mask = np.array([self.valid == 0, self.valid == 1, 1, 1, 0], np.int8)
        return {"b": seen, "a": "abc"}, {"action_mask": mask}

    @property
    def valid(self) -> int:
        """The only valid first part of an action; another one at an episode's end than at its beginning."""
        return int(self.time % 3 > 0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._told()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action[0] == self.valid
        assert action[1] < 1
        self.time += 1
        obs, info = self._told()
        return obs, float("nan") if self.wrong == "reward" else 1.0, self.time == 4, False, info


def test_somebodys_ordinary_environment_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    check_env("CartPole-v1", verbose=True)
    said = capsys.readouterr().out.splitlines()
    assert [line.endswith(": ok") for line in said] == [True] * len(HOST_ENV_CHECKS)
    check_env("Pendulum-v1", steps=8)
    check_env("Taxi-v4", steps=8, max_episode_steps=6)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("space", "the observation after step 3 is not in observation_space"),
        ("seed", "two runs with one seed differ after 0 steps"),
        ("reward", "the reward of step 1 is nan"),
    ],
)
def test_an_ordinary_environment_that_breaks_its_contract_is_found(wrong: str, words: str) -> None:
    with pytest.raises(ConformanceError, match=words):
        check_env(Ordinary, wrong=wrong, steps=8)


def test_its_masks_are_kept_while_it_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    """`Ordinary` itself refuses what its mask rules out."""
    check_env(Ordinary, steps=8, verbose=True)
    assert [line for line in capsys.readouterr().out.splitlines() if not line.endswith(": ok")] == [
        "it passes the checker of gymnasium: skipped, the checker ignores action masks"
    ]


def test_a_learner_is_checked_by_its_name() -> None:
    with pytest.raises(ValueError, match="no learner is called 'dqn'; known: a2c, ppo"):
        check_learner("dqn")
    with pytest.raises(ConformanceError, match="a2c fails 1 of 9 checks\n  it learns: "):
        check_learner("a2c", steps=128)


def test_somebodys_learner_is_checked() -> None:
    with pytest.raises(ConformanceError, match="Frozen fails 2 of 9 checks\n  it counts its steps"):
        check_learner(Frozen, steps=256)


def test_the_command_finds_what_is_in_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import gymnasium\nfrom envs.repeat_first import RepeatFirst\nfrom envs.single_env import single\n"
        "gymnasium.register('Mine/First-v0', single(RepeatFirst), vector_entry_point=RepeatFirst)\n"
    )
    command = [sys.executable, "-m", "agents.testing", "env", "mine:Mine/First-v0", "length=3", "--steps", "8"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "it keeps the contract: ok" in done.stdout


def test_mistakes_on_the_command_line_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["memory", "not_there:Mine"], "error: cannot import 'not_there' for 'not_there:Mine': it is not installed"),
        (["memory", "identity", "hidden_size"], "error: 'hidden_size': expected NAME=VALUE"),
        (["memory", "mine"], "error: no memory is called 'mine'"),
        (["memory", "identity", "size=3"], "error: identity cannot be built: TypeError"),
        (["env", "Engram/RepeatFirst-v0", "lenth=3"], "error: Engram/RepeatFirst-v0 cannot be built: TypeError"),
        (["learner", "agents:make_env"], "error: "),
    ):
        assert main(words) == 2, words
        error = capsys.readouterr().err.strip()
        assert error.startswith(said)
        assert "\n" not in error
    assert main(["memory", "identity", "--updates", "1"]) == 1
    assert "identity fails 1 of 16 checks" in capsys.readouterr().err
