"""What every registered environment must satisfy: the checks are those of `envs.testing`.

A new environment needs a row in `tests/cases.py` and nothing else.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from cases import ENVIRONMENTS
from gymnasium import spaces
from torch import Tensor

import envs
from envs.checks import TensorEnvError
from envs.preview import Taken
from envs.single_env import SingleEnv
from envs.tasks.sequence.base import SequenceTask
from envs.tasks.sequence.copy import Copy
from envs.tensor_env import Info, TensorEnv
from envs.testing import ENV_CHECKS, ConformanceError, EnvCase
from envs.testing.case import expect_same, play
from envs.testing.checks import check_contract

every_env = pytest.mark.parametrize("name", sorted(ENVIRONMENTS))


def test_importing_again_registers_nothing_twice() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(envs)


@pytest.mark.parametrize("check", ENV_CHECKS)
@every_env
def test_it_conforms(name: str, check: str) -> None:
    skipped = ENV_CHECKS[check](ENVIRONMENTS[name])
    optional = ("declared_ignored_actions_are_ignored", "a_preview_is_the_steps_it_stands_for")
    assert skipped is None or check in optional, skipped  # ours can all be seen


def test_environments_have_previews_where_steps_do_not_depend_on_each_other() -> None:
    environments = {name: case.make(1) for name, case in ENVIRONMENTS.items()}
    tasks = {name for name, env in environments.items() if isinstance(env, SequenceTask)}
    expected = (tasks - {"ShortestPath", "ImageEpisode"}) | {"Mapping"}
    assert {name for name, env in environments.items() if env.previews} == expected


@every_env
def test_it_knows_its_id(name: str) -> None:
    env = ENVIRONMENTS[name].make()
    assert env.num_envs == 5
    assert env.spec is not None
    assert env.spec.id == ENVIRONMENTS[name].env


@pytest.mark.gpu
@every_env
def test_keeps_the_contract_on_the_gpu(name: str) -> None:
    actions = [action.cuda() for action in ENVIRONMENTS[name].actions()]
    env = ENVIRONMENTS[name].make(device="cuda")
    check_contract(env, actions)
    torch.cuda.set_sync_debug_mode("error")
    try:
        play(env, actions)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    state = env.state_dict()
    future = play(env, actions)
    env.load_state_dict(state)
    expect_same(future, play(env, actions), "resumed on the GPU")


def test_mistakes_are_named() -> None:
    name = "RepeatFirst"
    with pytest.raises(ValueError, match="num_envs is 0"):
        ENVIRONMENTS[name].make(num_envs=0)
    with pytest.raises(ValueError, match="render_mode"):
        ENVIRONMENTS[name].make(render_mode="ascii")
    env = ENVIRONMENTS[name].make()
    with pytest.raises(RuntimeError, match="before reset"):
        env.step(torch.zeros(5, dtype=torch.int64))
    with pytest.raises(TypeError, match="one integer seed"):
        env.reset(seed=[1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="num_envs=1"):
        SingleEnv(env)
    single = ENVIRONMENTS[name].make_single()
    single.reset(seed=0)
    with pytest.raises(ValueError, match="not in Discrete"):
        single.step(3)
    for _ in range(6):
        *_, over, _, _ = single.step(0)
    assert over
    with pytest.raises(RuntimeError, match="call reset first"):
        single.step(0)


# The checks can fail


class Guess(TensorEnv):
    """A sound environment of somebody else's: guess a number that is shown; no pictures, and masks."""

    state_names: tuple[str, ...] = ("number",)

    def __init__(self, num_envs: int = 1, *, length: int = 3, device: Any = "cpu", render_mode: Any = None) -> None:
        space = spaces.Discrete(4)
        super().__init__(num_envs, spaces.Box(0, 3, (1,)), space, device, horizon=length, render_mode=render_mode)

    def _begin(self, where: Tensor | None) -> None:
        self.number = torch.randint(4, (self.num_envs,), generator=self.generator, device=self.device)

    def _advance(self, action: Tensor) -> tuple[Tensor, None, None]:
        reward = (action == self.number).float()
        self.number = torch.randint(4, (self.num_envs,), generator=self.generator, device=self.device)
        return reward, None, None

    def _observe(self) -> Any:
        return self.number[:, None].float()

    def _describe(self) -> Info:
        return {"action_mask": torch.arange(4, device=self.device) != self.number[:, None]}


class OutOfSpace(Guess):
    def _observe(self) -> Any:
        return super()._observe() + 2


class DoubleReward(Guess):
    def _advance(self, action: Tensor) -> Any:
        return super()._advance(action)[0].double(), None, None


class NoChoice(Guess):
    def _describe(self) -> Info:
        return {"action_mask": torch.arange(4) < self.number[:, None]}


class GlobalDraws(Guess):
    def _begin(self, where: Tensor | None) -> None:
        self.number = torch.randint(4, (self.num_envs,))


class NeverRandom(Guess):
    def _begin(self, where: Tensor | None) -> None:
        self.number = torch.zeros(self.num_envs, dtype=torch.int64)

    def _advance(self, action: Tensor) -> Any:
        return (action == self.number).float(), None, None


class Forgets(Guess):
    """Counts its steps, and does not say so."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.count = torch.zeros(self.num_envs, device=self.device)

    def _advance(self, action: Tensor) -> Any:
        self.count = self.count + 1
        super()._advance(action)
        return self.count, None, None


class SaysItIgnores(Guess):
    ignores_actions = True

    def _advance(self, action: Tensor) -> Any:
        reward = super()._advance(action)[0]
        self.number = action.clone()
        return reward, None, None

    def _describe(self) -> Info:
        return {}


class FailsToStep(Copy):
    """Its previews leave the environment where it was."""

    def __init__(self, num_envs: int = 1, *, length: int = 3) -> None:
        super().__init__(num_envs, min_length=length, max_length=length)

    def _take(self, actions: Tensor) -> Taken:
        state = self.state_dict()
        taken = super()._take(actions)
        self.load_state_dict(state)
        return taken


class HandsOutItsState(Guess):
    def _begin(self, where: Tensor | None) -> None:
        super()._begin(where)
        self.number = self.number.float()

    def _advance(self, action: Tensor) -> Any:
        reward = super()._advance(action)[0]
        self.number = self.number.float()
        return reward, None, None

    def _observe(self) -> Any:
        return self.number[:, None]


class Waits(Guess):
    def _advance(self, action: Tensor) -> Any:
        if (action == 5).any():
            raise ValueError
        return super()._advance(action)


class PaintsGrey(Guess):
    def frame(self, index: int = 0) -> np.ndarray[Any, Any]:
        return np.full((32, 32, 3), 127, np.uint8)


BROKEN: list[tuple[type[TensorEnv], str, str]] = [
    (OutOfSpace, "it_keeps_the_contract", "is not in Box"),
    (DoubleReward, "it_keeps_the_contract", r"reward is \(5,\) torch.float64"),
    (NoChoice, "it_keeps_the_contract", "allows no choice"),
    (GlobalDraws, "a_seed_fixes_everything", "two environments with one seed"),
    (NeverRandom, "a_seed_fixes_everything", "all seeds lead to the same episodes"),
    (Forgets, "state_dict_resumes_exactly", "state_names"),
    (FailsToStep, "a_preview_is_the_steps_it_stands_for", "the state after a preview"),
    (SaysItIgnores, "declared_ignored_actions_are_ignored", "ignores_actions is True, but"),
    (HandsOutItsState, "outputs_are_not_shared", "the caller overwrote"),
    (Waits, "a_step_does_not_synchronise", "synchronises with the device"),
    (PaintsGrey, "frames_and_texts_show_what_happens", "at most three colours"),
]


@pytest.mark.parametrize(("env", "check", "message"), BROKEN)
def test_what_breaks_the_contract_is_found(env: type[TensorEnv], check: str, message: str) -> None:
    with pytest.raises(ConformanceError, match=message):
        ENV_CHECKS[check](EnvCase(env, {"length": 3}, steps=12))


@pytest.mark.parametrize("check", ENV_CHECKS)
def test_a_sound_one_of_somebody_elses_passes_without_pictures(check: str) -> None:
    skipped = ENV_CHECKS[check](EnvCase(Guess, {"length": 3}, steps=12))
    assert skipped in (None, "it draws no frames", "ignores_actions is False", "previews is False")


def test_episodes_that_are_too_long_to_check_are_said() -> None:
    with pytest.raises(ConformanceError, match="no episode ended in 12 steps"):
        ENV_CHECKS["it_keeps_the_contract"](EnvCase(Guess, {"length": 30}, steps=12))


class Slip(TensorEnv):
    """One mistake of someone who writes a first environment."""

    def __init__(self, num_envs: int = 2, *, wrong: str = "", device: str = "cpu") -> None:
        self.wrong = wrong
        self.metric_names = ("rate",) if wrong == "metric" else ()
        if wrong == "init":
            self.num_envs = num_envs
            return
        space: Any = (
            spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(0, 1, (2,))) if "dict" in wrong else spaces.Discrete(3)
        )
        horizon = None if wrong.startswith("open") else 3
        super().__init__(num_envs, space, spaces.Discrete(2), device, horizon=horizon)

    def _begin(self, where: Any) -> None: ...

    def _observe(self) -> Any:
        numbers = torch.zeros(self.num_envs, dtype=torch.int64)
        wrong: dict[str, Any] = {"numpy": numbers.numpy(), "dict": {"a": numbers}, "shape": numbers[:, None]}
        wrong["dict shape"] = {"a": numbers, "b": numbers}
        return wrong.get(self.wrong, numbers)

    def _advance(self, action: Any) -> Any:
        reward, ends = torch.zeros(self.num_envs), torch.zeros(self.num_envs, dtype=torch.bool)
        wrong: dict[str, Any] = {"float": (0.0, None, None), "column": (reward[:, None], None, None)}
        wrong |= {"two": (reward, None), "open": (reward, None, None), "open numbers": (reward, reward, None)}
        wrong |= {"open one": (reward, ends[:1], None)}
        return wrong.get(self.wrong, (reward, None, None))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("init", r"Slip.__init__ did not call super\(\).__init__\(num_envs, observation_space"),
        ("numpy", r"Slip._observe returned an observation of ndarray, expected a tensor \(2,\)"),
        ("shape", r"Slip._observe returned an observation of shape \(2, 1\), expected \(2,\)"),
        ("dict", "Slip._observe returned the entries a, expected a dictionary with a, b"),
        ("dict shape", r"Slip._observe returned entry 'b' of shape \(2,\), expected \(2, 2\)"),
        ("float", r"Slip._advance returned a reward of float, expected a tensor \(2,\)"),
        ("column", r"Slip._advance returned a reward of shape \(2, 1\), expected \(2,\)"),
        ("two", "Slip._advance returned 2 values, expected 3: reward, terminated, truncated"),
        ("open", r"returned None as terminated, expected a bool tensor \(2,\), or a horizon given to super"),
        ("open numbers", r"Slip._advance returned terminated of torch.float32, expected torch.bool"),
        (
            "metric",
            r"Slip._advance did not call self._measure\(rate=\(amount, count\)\), although metric_names lists it",
        ),
        ("open one", r"Slip._advance returned terminated of shape \(1,\), expected \(2,\)"),
    ],
)
def test_a_slip_in_the_first_step_is_named(wrong: str, message: str) -> None:
    def play() -> None:
        env = Slip(wrong=wrong)
        env.reset(seed=0)
        env.step(torch.zeros(2, dtype=torch.int64))

    with pytest.raises((TensorEnvError, AttributeError), match=message) as caught:
        play()
    assert "\n" not in str(caught.value)


def test_what_is_no_tensor_env_is_said() -> None:
    with pytest.raises(ConformanceError, match=r"CartPole-v1 makes a CartPoleVectorEnv, expected a TensorEnv"):
        EnvCase("CartPole-v1").make()
    with pytest.raises(ConformanceError, match="Acrobot-v1 has no vector_entry_point that is a TensorEnv"):
        EnvCase("Acrobot-v1").make()
