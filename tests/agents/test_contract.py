"""What single environments give is compared with Gymnasium's contract, and a failure says what was given."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import PPO, as_tensor_env
from agents.environments.copies import ContractError, CopyObservation
from agents.run.failures import ErrorContext
from policies.observations import arrays_of


class Given(gym.Env[Any, Any]):
    """Gives what it was told to."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space: spaces.Space[Any] = spaces.Discrete(2)

    def __init__(self, reset: Any = None, step: Any = None) -> None:
        self.given = reset, step

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.given[0]

    def step(self, action: Any) -> Any:
        return self.given[1]


OBS = np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("reset", "message"),
    [
        (OBS, r"reset returned an array of shape \(3,\), expected an observation and a dictionary"),
        (None, "reset returned None"),
        ((OBS, {}, 1), "reset returned 3 values"),
        ((np.zeros(4), {}), r"an observation of shape \(4,\), expected \(3,\) as its observation_space says"),
        ((None, {}), "reset returned None as observation"),
        ((OBS, None), "reset returned None as info, expected a dictionary"),
    ],
)
def test_a_reset_that_is_none_is_named(reset: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        CopyObservation(Given(reset=reset)).reset()


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ((OBS, 0.0, False, {}), "step returned 4 values, expected 5: observation, reward, terminated, truncated, info"),
        (None, "step returned None, expected 5"),
        ((np.zeros((3, 3)), 0.0, False, False, {}), r"step returned an observation of shape \(3, 3\)"),
        (("left", 0.0, False, False, {}), "step returned 'left' as observation"),
        ((OBS, None, False, False, {}), "step returned None as reward, expected a number"),
        ((OBS, "1", False, False, {}), "step returned '1' as reward"),
        ((OBS, "good", False, False, {}), "step returned 'good' as reward"),
        ((OBS, np.zeros(2), False, False, {}), r"step returned an array of shape \(2,\) as reward"),
        ((OBS, 1j, False, False, {}), "step returned 1j as reward"),
        ((OBS, 0.0, np.zeros(2, bool), False, {}), r"step returned an array of shape \(2,\) as terminated"),
        ((OBS, 0.0, None, False, {}), "step returned None as terminated, expected true or false"),
        ((OBS, 0.0, False, "no", {}), "step returned 'no' as truncated, expected true or false"),
        ((OBS, 0.0, np.float32(np.nan), False, {}), "as terminated, expected true or false"),
        ((OBS, 0.0, False, 0.5, {}), "step returned 0.5 as truncated, expected true or false"),
        ((np.array([1, None, "x"], object), 0.0, False, False, {}), "an observation of object, expected numbers"),
        ((OBS, 0.0, False, False, [1]), r"step returned \[1\] as info, expected a dictionary"),
    ],
)
def test_a_step_that_is_none_is_named(step: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        CopyObservation(Given(step=step)).step(0)


DICT = spaces.Dict({"pos": spaces.Box(-1, 1, (2,)), "inner": spaces.Dict({"key": spaces.Discrete(3, start=1)})})
TUPLE = spaces.Tuple((spaces.Discrete(2), spaces.MultiDiscrete([2, 3])))


@pytest.mark.parametrize(
    ("space", "obs", "message"),
    [
        (spaces.Discrete(3), 3, r"step returned 3 as observation, expected an element of Discrete\(3\)"),
        (spaces.Discrete(3), -1, "step returned -1 as observation"),
        (spaces.Discrete(3), 1.5, "step returned 1.5 as observation"),
        (spaces.Discrete(3), None, "step returned None as observation"),
        (spaces.Discrete(3), np.zeros(2, int), r"step returned an array of shape \(2,\) as observation"),
        (spaces.MultiDiscrete([2, 3]), [1, 3], r"step returned \[1, 3\] as observation, expected an element of Multi"),
        (spaces.MultiDiscrete([2, 3]), [1], r"an observation of shape \(1,\), expected \(2,\)"),
        (spaces.MultiBinary(3), [1, 0], r"an observation of shape \(2,\), expected \(3,\)"),
        (spaces.MultiBinary(3), np.array([0, 3, 1]), r"step returned \[0, 3, 1\] as observation"),
        (
            spaces.MultiBinary(3),
            [0, 1, 2],
            r"step returned \[0, 1, 2\] as observation, expected an element of Multi",
        ),
        (spaces.Box(0, 255, (2,), np.uint8), [0.5, 1], "an observation with 0.5, expected uint8 as its space says"),
        (spaces.Box(0, 255, (2,), np.uint8), [255, 256], "an observation with 256, expected uint8"),
        (spaces.Box(-9, 9, (2,), np.int8), [np.nan, 1], "an observation with nan, expected int8"),
        (DICT, OBS, r"step returned an array of shape \(3,\) as observation, expected a dictionary with inner, pos"),
        (DICT, {"pos": [0, 0]}, "step returned an observation without the entry 'inner' of its space"),
        (DICT, {"pos": [0, 0], "inner": {}}, "without the entry 'inner.key'"),
        (
            DICT,
            {"pos": [0, 0], "inner": {"key": 0}},
            "step returned 0 as entry 'inner.key' of the observation, expected an",
        ),
        (DICT, {"pos": [0], "inner": {"key": 1}}, r"entry 'pos' of the observation of shape \(1,\), expected \(2,\)"),
        (spaces.Text(9), b"go", "step returned b'go' as observation, expected a text"),
        (
            spaces.Dict({"mission": spaces.Text(9)}),
            {"mission": None},
            "step returned None as entry 'mission' of the obse",
        ),
        (TUPLE, (0,), "step returned 1 values as observation, expected a tuple of 2"),
        (TUPLE, (0, [1, 5]), r"step returned \[1, 5\] as entry '1' of the observation"),
    ],
)
def test_an_observation_outside_its_space_is_named(space: spaces.Space[Any], obs: Any, message: str) -> None:
    env = Given(step=(obs, 0.0, False, False, {}))
    env.observation_space = space  # type: ignore[assignment]
    with pytest.raises(ContractError, match=message):
        CopyObservation(env).step(0)


@pytest.mark.parametrize(
    ("space", "obs"),
    [
        (spaces.Discrete(3, start=-1), np.int64(-1)),
        (spaces.Discrete(3), np.array([2])),
        (DICT, {"inner": {"key": np.int32(3), "more": None}, "pos": [0.0, 9.0], "unused": "x"}),
        (TUPLE, [1, (1, 2)]),
        (spaces.Box(-1, 1, (3,)), torch.zeros(3)),
        (spaces.Dict({"mission": spaces.Text(9), "x": spaces.MultiBinary(2)}), {"mission": "go", "x": [True, False]}),
    ],
)
def test_observations_that_can_be_read_pass(space: spaces.Space[Any], obs: Any) -> None:
    env = Given(step=(obs, 0.0, False, False, {}))
    env.observation_space = space  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CopyObservation(env).step(0)[0] is not None


@pytest.mark.parametrize(
    ("space", "obs", "dtype"),
    [
        (spaces.Box(0, 255, (2, 2, 3), np.uint8), np.full((2, 2, 3), 200), np.uint8),
        (spaces.Box(0, 255, (2,), np.uint8), [1.0, 255.0], np.uint8),
        (spaces.Box(-200, 200, (2,), np.int16), np.array([-200, 7]), np.int16),
        (spaces.Discrete(5), 3.0, np.int64),
        (spaces.Discrete(5), np.array([3]), np.int64),
    ],
)
def test_whole_numbers_of_another_type_are_converted(space: spaces.Space[Any], obs: Any, dtype: Any) -> None:
    """As an SB3 `DummyVecEnv` does; Gymnasium's batch refuses some, in words that name no entry."""

    def build() -> gym.Env[Any, Any]:
        env = Given(reset=(obs, {}), step=(obs, 0.0, False, False, {}))
        env.observation_space = space  # type: ignore[assignment]
        return env

    env = as_tensor_env(SyncVectorEnv([build, build]))
    for seen in (env.reset()[0], env.step(np.zeros(2, np.int64))[0]):
        assert isinstance(seen, torch.Tensor)
        assert seen.numpy().dtype == dtype
        flat = np.moveaxis(seen.numpy(), 1, -1) if seen.ndim == 4 else seen.numpy()
        assert (flat == np.asarray(obs)).all()


def test_a_space_that_changes_is_named() -> None:
    env = Given(reset=(OBS, {}), step=(np.zeros(5), 0.0, False, False, {}))
    copied = CopyObservation(env)
    copied.reset()
    env.observation_space = spaces.Box(-1, 1, (5,))
    with pytest.raises(ContractError, match=r"observation_space was Box\(.*\(3,\).* is now Box\(.*\(5,\).*one space"):
        copied.step(0)


class Unseeded(Given):
    def reset(self) -> Any:  # type: ignore[override]
        return OBS


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Given(reset=OBS), "reset returned an array of shape"),
        (Given(reset=None), "reset returned None"),
        (Given(reset=(OBS, {}), step=(OBS, 0.0, False, {})), "step returned 4 values"),
        (Given(reset=(OBS, {}), step=None), "step returned None"),
        (Unseeded(), r"Unseeded\.reset does not take seed and options, expected reset\(self, \*, seed=None, opt"),
    ],
)
def test_a_bare_environment_that_a_learner_is_given_says_the_same(env: gym.Env[Any, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        PPO("MemoryPolicy", env, n_steps=2, device="cpu").learn(2)


def test_one_environment_in_several_places_is_refused() -> None:
    env = gym.wrappers.TimeLimit(Given(reset=(OBS, {}), step=(OBS, 1.0, True, False, {})), 9)
    with pytest.raises(ValueError, match="several of the 3 environments are the same object"):
        as_tensor_env(SyncVectorEnv([lambda: env, lambda: Given(reset=(OBS, {})), lambda: env.env]))


class Plain(DummyVecEnv):
    """A user's own `VecEnv`, which says nothing of final observations."""

    truncated = False

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = super().step_wait()
        return obs, rewards, dones, [{"TimeLimit.truncated": self.truncated} for _ in infos]


def test_only_an_episode_that_was_cut_needs_its_last_observation() -> None:
    env = Plain([lambda: Given(reset=(OBS, {}), step=(OBS, 1.0, True, False, {}))])
    assert PPO("MemoryPolicy", env, n_steps=2, device="cpu").learn(2).num_timesteps == 2
    env.truncated = True
    with pytest.raises(
        ContractError, match=r"Plain cut an episode \(TimeLimit\.truncated\) without the last observation"
    ):
        PPO("MemoryPolicy", env, n_steps=2, device="cpu").learn(2)


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (({"a": 2, "b": [0, 0]}, {}), r"ends with a dictionary, as reset and step return it.*obs.*, info = env\.reset"),
        ({"a": 5, "b": [0, 0]}, r"the observation's entry 'a' contains 5, which is not in Discrete\(3, start=2\)"),
        ({"a": 2.5, "b": [0, 0]}, "the observation's entry 'a' contains 2.5"),
        ({"a": "x", "b": [0, 0]}, "the observation's entry 'a' is of <U1, expected numbers"),
        ({"a": [2, 1], "b": [[0, 0], [0, 1]]}, "the observation's entry 'a' contains 1"),
        ({"a": 2, "b": [0, 3]}, r"the observation's entry 'b' contains 3, which is not in MultiDiscrete\(\[2 3\]\)"),
        (np.zeros(3), "the observation is of ndarray, expected a dictionary with the entries a, b"),
    ],
)
def test_predict_names_what_is_outside_the_space(obs: Any, message: str) -> None:
    space = spaces.Dict({"a": spaces.Discrete(3, start=2), "b": spaces.MultiDiscrete([2, 3])})
    with pytest.raises(ValueError, match=message):
        arrays_of(obs, space)
    arrays, several = arrays_of({"b": [1, 2], "a": 4}, space)
    assert not several
    assert arrays["a"].tolist() == [4]  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "reward", [1, True, np.float32(1), np.int64(1), np.ones(1), np.ones(()), torch.ones(()), torch.ones(1), [1.0]]
)
def test_numbers_of_all_kinds_are_rewards(reward: Any) -> None:
    given = CopyObservation(Given(step=([0.0, 0.0, 0.0], reward, np.bool_(False), 0, {}))).step(0)
    assert float(given[1]) == 1.0
    assert np.ndim(given[1]) == 0


def test_the_line_says_it_all_without_a_traceback_of_ours() -> None:
    from agents import make_env

    gym.register("Given/Four-v0", entry_point=Given, kwargs={"reset": (OBS, {}), "step": (OBS, 0.0, False, {})})
    env = make_env("Given/Four-v0", 2)
    env.reset(seed=0)
    with pytest.raises(Exception) as caught:  # noqa: PT011  (Gymnasium's own checker may come first)
        env.step(torch.zeros(2, dtype=torch.int64))
    assert caught.tb is not None
    error = caught.value.with_traceback(caught.tb.tb_next)  # without this file, which is the user's
    shown = ErrorContext("training, after 6 environment steps", "Given/Four-v0").error(error)
    assert shown.user_traceback == ""
    assert "environment Given/Four-v0 failed while training, after 6 environment steps" in str(shown)
    del gym.registry["Given/Four-v0"]


def test_probabilities_that_overflow_over_finite_numbers_are_named() -> None:
    from agents import PPO, NonFiniteError, make_env
    from agents.metrics.non_finite import raise_if_not_finite
    from policies.heads import DivergedError, refuse_nan

    env = make_env("Engram/RepeatFirst-v0", 4, length=3)
    model = PPO("MemoryPolicy", env, n_steps=2, n_epochs=1, n_minibatches=1, device="cpu").learn(8)
    with pytest.raises(DivergedError) as diverged:
        refuse_nan(torch.full((4, 2), torch.nan))
    with pytest.raises(NonFiniteError, match=r"contain NaN: .* after 8 environment steps; .* the observation is 1$"):
        raise_if_not_finite(model, diverged.value)
    raise_if_not_finite(model, RuntimeError("of another cause"))
