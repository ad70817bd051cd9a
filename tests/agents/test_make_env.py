"""Environments by name: modules of the current folder, wrappers, parallel processes, and errors that say why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from agents import PPO, as_tensor_env, make_env
from agents.environments import HostEnv
from agents.environments.processes import ProcessEndedError
from envs import registered
from envs.repeat_first import RepeatFirst

GRU: dict[str, Any] = {"memory": "gru", "memory_kwargs": {"hidden_size": 8}}

MODULE = '''
import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Words(gym.Space):
    """A space of its own, as MiniGrid's missions."""

    def __init__(self):
        super().__init__(dtype=str)

    def sample(self, mask=None, probability=None):
        return "go"

    def contains(self, x):
        return isinstance(x, str)

    def __eq__(self, other):
        return isinstance(other, Words)


class Count(gym.Env):
    """Observation: steps so far, in one array that is used again; 3 steps."""

    action_space = spaces.Discrete(2)

    def __init__(self, size=1, words=False):
        if size > 5:
            raise RuntimeError("the size is\\nmuch too large")
        if size == 0:
            raise ValueError("a world without cells")
        len(size if size < 0 else [size])
        self.buffer, self.words = np.zeros(size, np.float32), words
        self.observation_space = spaces.Box(-9.0, 9.0, (size,))
        if words:
            self.observation_space = spaces.Dict({"x": self.observation_space, "mission": Words()})

    def shown(self):
        return {"x": self.buffer, "mission": "go"} if self.words else self.buffer

    def reset(self, *, seed=None, options=None):
        self.buffer[:] = 0
        return self.shown(), {}

    def step(self, action):
        self.buffer += 1
        return self.shown(), 1.0, bool(self.buffer[0] == 3), False, {}


class Double(gym.ObservationWrapper):
    def observation(self, observation):
        return 2 * observation


gym.register("Own/Count-v0", Count)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with `own_worlds.py`, which nothing else finds."""
    (tmp_path / "own_worlds.py").write_text(MODULE)
    (tmp_path / "broken_worlds.py").write_text("import a_package_that_is_not_here\n")
    (tmp_path / "odd_worlds.py").write_text("x = (\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(gym.registry, "Own/Count-v0", raising=False)
    for name in ("own_worlds", "broken_worlds", "odd_worlds"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_a_module_of_the_current_folder_with_wrappers() -> None:
    env = make_env("own_worlds:Own/Count-v0", 2, wrappers=["own_worlds:Double", lambda each: each], size=3)
    obs, _ = env.reset()
    assert isinstance(env, HostEnv)
    assert env.step(np.zeros(2, int))[0].tolist() == [[2] * 3] * 2  # type: ignore[union-attr]
    assert obs.shape == (2, 3)  # type: ignore[union-attr]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("env_id", "kwargs", "words"),
    [
        ("own_world:Own/Count-v0", {}, r"cannot import 'own_world' for .*not installed, and not in the current folder"),
        (
            "broken_worlds:X-v0",
            {},
            r"cannot import 'broken_worlds'.*ModuleNotFoundError: No module named 'a_package_th",
        ),
        ("odd_worlds:X-v0", {}, r"cannot import 'odd_worlds' for 'odd_worlds:X-v0': SyntaxError"),
        ("own_worlds:Own/Cnt-v0", {}, r"near it: Own/Count-v0.*own_worlds was imported and registers no such id"),
        ("MiniGrid-NotHere-v0", {}, r"if a package or module of your own registers it: MODULE:MiniGrid-NotHere-v0"),
        (
            "own_worlds:Own/Count-v0",
            {"sise": 3},
            r"does not take \{'sise': 3\}: got an unexpected.*; it takes size, words",
        ),
        ("CartPole-v1", {"n_envs": 4}, r"it takes .*; the number of environments is num_envs"),
        ("own_worlds:Own/Count-v0", {"size": -1}, r"cannot be built: TypeError: object of type 'int' has no len"),
        ("own_worlds:Own/Count-v0", {"size": 9}, r"cannot be built: RuntimeError: the size is much too large"),
        ("own_worlds:Own/Count-v0", {"size": 0}, r"environment 'own_worlds:Own/Count-v0' cannot be built: a world wit"),
        ("own_worlds:Own/Count-v0", {"wrappers": ["own_worlds:Dubble"]}, r"has no 'Dubble'; near it: Double"),
        ("own_worlds:Own/Count-v0", {"wrappers": ["Double"]}, r"a wrapper is 'Double', expected module:name"),
        ("CartPole-v1", {"wrappers": "own_worlds:Double"}, r"expected a list: wrappers=\['own_worlds:Double'\]"),
        ("CartPole-v1", {"num_envs": 0}, r"num_envs is 0, expected a whole number of at least 1"),
        ("CartPole-v1", {"num_envs": "2"}, r"num_envs is '2', expected a whole number of at least 1"),
        ("CartPole-v1", {"vector": "threads"}, r"vector is 'threads', expected one of sync, async"),
        ("Engram/TMaze-v0", {"vector": "async"}, r"stepped as one batch on the device; expected vector='sync'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(env_id: str, kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make_env(env_id, **{"num_envs": 2, **kwargs})
    assert "\n" not in str(caught.value)


def test_a_console_script_finds_the_current_folder(folder: Path) -> None:
    """Python started as a console script is: without the current folder among those it searches."""
    program = "from agents import make_env\nmake_env('own_worlds:Own/Count-v0')\n"
    script = folder / "bin" / "start.py"
    script.parent.mkdir()
    script.write_text(program)
    subprocess.run([sys.executable, script], cwd=folder, check=True)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("words", [False, True])
def test_processes_give_what_one_after_the_other_gives(words: bool) -> None:
    """Also with a space that has no place in shared memory, and with an array that is used again."""
    one, other = (make_env("own_worlds:Own/Count-v0", 2, vector=v, words=words) for v in ("sync", "async"))  # type: ignore[arg-type]
    assert isinstance(other, HostEnv)
    assert isinstance(other.host.env, AsyncVectorEnv)
    for _ in range(2):
        pair = [env.reset(seed=1)[0] for env in (one, other)]
        for _ in range(5):
            assert _same(*pair)
            steps = [env.step(torch.zeros(2, dtype=torch.int64)) for env in (one, other)]
            assert all(_same(*parts) for parts in list(zip(*steps, strict=True))[:4])
            assert ("final_obs" in steps[0][4]) == ("final_obs" in steps[1][4])
            if "final_obs" in steps[0][4]:
                assert _same(steps[0][4]["final_obs"], steps[1][4]["final_obs"])
                final = steps[1][4]["final_obs"]
                assert (final["x"] if words else final).tolist() == [[3.0], [3.0]]
            pair = [step[0] for step in steps]
    other.close()


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[name], other[name]) for name in one)
    return torch.equal(one, other)


@pytest.mark.parametrize("env_id", registered())
def test_our_environments_take_the_actions_of_their_own_space(env_id: str) -> None:
    env = gym.make_vec(env_id, 2)
    env.reset(seed=0)
    env.action_space.seed(0)
    action = env.action_space.sample()
    reward = env.step(action)[1]
    env.reset(seed=0)
    assert torch.equal(env.step(torch.as_tensor(action))[1], reward)


def test_vector_wrappers_around_ours() -> None:
    pytest.importorskip("array_api_compat")
    from gymnasium.wrappers.vector import ArrayConversion

    around = RecordEpisodeStatistics(ArrayConversion(RepeatFirst(2, length=3), env_xp=torch, target_xp=np))
    env = as_tensor_env(around)
    env.reset(seed=0)
    for _ in range(3):
        info = env.step(np.zeros(2, int))[4]
    assert info["final_obs"].shape == (2, 5)
    PPO("MemoryPolicy", around, n_steps=6, policy_kwargs=GRU, seed=0).learn(12)
    with pytest.raises(ValueError, match=r"around the RepeatFirst expects arrays.*ArrayConversion\(env, env_xp=torch"):
        as_tensor_env(RecordEpisodeStatistics(RepeatFirst(2)))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: AsyncVectorEnv([lambda: gym.make("CartPole-v1")]),
            r"Build it with AsyncVectorEnv\(\[\.\.\.\], autoreset_mode=gymn",
        ),
        (
            lambda: RecordEpisodeStatistics(SyncVectorEnv([lambda: gym.make("CartPole-v1")])),
            r"before it is wrapped in RecordEpisodeStatistics: SyncVectorEnv\(\[\.\.\.\], autoreset_mode=.*single-env",
        ),
        (
            lambda: gym.wrappers.vector.NormalizeObservation(gym.make_vec("CartPole-v1", 1, vectorization_mode="sync")),
            r"before it is wrapped in NormalizeObservation.*environment wrapper: agents\.make_env\(id, n, wrappers=\[",
        ),
        (lambda: gym.make_vec("CartPole-v1", 3), r"CartPoleVectorEnv resets at.*agents\.make_env\('CartPole-v1', n\)"),
    ],
)
def test_advice_on_resets_fits_what_was_given(build: Any, words: str) -> None:
    env = build()
    with pytest.raises(ValueError, match=words) as caught:
        as_tensor_env(env)
    assert "\n" not in str(caught.value)
    env.close()


def test_a_vector_environment_that_says_nothing_of_its_resets() -> None:
    class Silent(gym.vector.VectorEnv[Any, Any, Any]):
        num_envs = 1
        single_observation_space = observation_space = gym.spaces.Box(0, 1, (2,))
        single_action_space = action_space = gym.spaces.Discrete(2)

    with pytest.raises(
        ValueError, match=r"Silent does not say when it resets.*metadata\['autoreset_mode'\].*SB3 VecEnv"
    ):
        as_tensor_env(Silent())


def test_same_step_is_taken_from_whoever_has_it() -> None:
    mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
    for env in (
        gym.make_vec("CartPole-v1", 2, vectorization_mode="async", vector_kwargs=mode),
        RecordEpisodeStatistics(gym.make_vec("CartPole-v1", 2, vectorization_mode="sync", vector_kwargs=mode)),
    ):
        as_tensor_env(env).reset()
        env.close()


@pytest.mark.skipif(os.name == "nt", reason="other signals")
def test_processes_of_environments_leave_an_interrupt_to_the_learner() -> None:
    """A terminal sends Ctrl-C to all of them, but the iteration is finished first."""
    env = make_env("CartPole-v1", 2, vector="async")
    env.reset(seed=0)
    for process in env.host.env.unwrapped.processes:  # type: ignore[attr-defined]
        os.kill(process.pid, signal.SIGINT)
    for _ in range(3):
        env.step(np.zeros(2, np.int64))
    env.close()


class Failing(gym.Env[Any, Any]):
    """Fails in its second step, as `how` says."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    class TwoError(Exception):
        """Cannot be made from one text, nor sent to another process."""

        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")
            self.lock = threading.Lock()

    def __init__(self, how: str) -> None:
        self.how = how

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == 2:
            if self.how == "percent":
                raise ValueError("only 50 % of it")
            if self.how == "two":
                raise self.TwoError(1, 2)
            if self.how == "exit":
                raise SystemExit(4)
            os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros(2, np.float32), 0.0, False, False, {}


@pytest.mark.skipif(os.name == "nt", reason="other signals")
@pytest.mark.filterwarnings("ignore:.*ERROR")
@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("percent", ValueError, "^only 50 % of it$"),
        ("two", RuntimeError, "^TwoError: 1 and 2$"),
        ("exit", ProcessEndedError, "^the process of environment 0 ended with exit status 4$"),
        ("kill", ProcessEndedError, "^the process of environment 0 ended by SIGKILL$"),
    ],
)
def test_an_error_in_a_process_reaches_the_learner(
    monkeypatch: pytest.MonkeyPatch, how: str, error: type[Exception], message: str
) -> None:
    monkeypatch.setitem(gym.registry, "Failing-v0", EnvSpec("Failing-v0", Failing))
    env = make_env("Failing-v0", 1, vector="async", how=how)
    env.reset()
    env.step(np.zeros(1, np.int64))
    with pytest.raises(error, match=message):
        env.step(np.zeros(1, np.int64))
