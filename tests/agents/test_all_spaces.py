"""Every space of Gymnasium, with every encoder: acted on, replayed and predicted from alike, or refused in one line."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_stubs import collect
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.evaluation import evaluate_policy

from agents import PPO, as_tensor_env, load, make_env
from envs.tensor_env import TensorEnv
from policies.encoders import MLPEncoder, PictureEncoder, module_names
from policies.observations import Layout, arrays_of, has_channels_last


class Playground(gym.Env[Any, Any]):
    """Random observations in one buffer that is used again; the reward is 1 where the action is in its space."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any] | None = None) -> None:
        self.observation_space = observation_space
        self.action_space = spaces.Discrete(3) if action_space is None else action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps == 3, False, {}


def picture(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


VECTOR = spaces.Box(-1.0, 1.0, (3,))
MINIGRID = spaces.Dict({"image": picture(7, 7, 3), "direction": spaces.Discrete(4), "mission": spaces.Text(20)})
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "scalar Box": spaces.Box(-1.0, 1.0, ()),
    "scalar Box in a Dict": spaces.Dict({"a": spaces.Box(-1.0, 1.0, ()), "b": spaces.Discrete(3)}),
    "Box of four dimensions": spaces.Box(-1.0, 1.0, (2, 2, 2, 2)),
    "float16": spaces.Box(-1.0, 1.0, (3,), np.float16),
    "int64": spaces.Box(-5, 5, (3,), np.int64),
    "uint16": spaces.Box(0, 5, (3,), np.uint16),
    "bool": spaces.Box(0, 1, (3,), np.bool_),
    "bytes": spaces.Box(0, 255, (9,), np.uint8),
    "start": spaces.Discrete(4, start=-2),
    "many symbols from 5": spaces.Discrete(40, start=5),
    "int32 choice": spaces.Discrete(4, dtype=np.int32),
    "MultiDiscrete": spaces.MultiDiscrete([2, 5], start=[3, -1]),
    "unsigned MultiDiscrete": spaces.MultiDiscrete([2, 5], dtype=np.uint16, start=[3, 1]),
    "MultiDiscrete 2-D": spaces.MultiDiscrete([[2, 3], [4, 5]], dtype=np.int32),
    "MultiBinary 2-D": spaces.MultiBinary((2, 3)),
    "Tuple (Blackjack)": spaces.Tuple([spaces.Discrete(32), spaces.Discrete(11), spaces.Discrete(2)]),
    "Dict in Dict": spaces.Dict(b=spaces.Dict(z=VECTOR, y=spaces.Discrete(3)), a=VECTOR),
    "Tuple in Dict in Tuple": spaces.Tuple([spaces.Dict({"hand": spaces.Tuple([VECTOR, spaces.Discrete(2)])}), VECTOR]),
    "names of any form": spaces.Dict(dict.fromkeys(("arm.left", "keys", "", "entry0", "a/b", "a b", "type"), VECTOR)),
    "MiniGrid": MINIGRID,
    "Text beside numbers": spaces.Tuple([spaces.Text(5), VECTOR]),
    "Text alone": spaces.Text(5),
    "Text within": spaces.Dict({"told": spaces.Tuple([spaces.Text(5), spaces.Dict({"by": spaces.Text(3)})])}),
    "an empty Box beside numbers": spaces.Dict({"none": spaces.Box(0, 1, (0,)), "a": VECTOR}),
    "3×3": picture(3, 3, 3),
    "5×5, channels first": picture(3, 5, 5),
    "1×9, gray": picture(1, 9, 1),
    "9×20": picture(9, 20, 3),
    "28×28, gray": picture(28, 28, 1),
    "64×64, four frames": picture(12, 64, 64),
    "pictures of three sizes": spaces.Dict({"a": picture(4, 4, 3), "b.c": picture(20, 20, 3), "d": picture(40, 36, 1)}),
    "one-hot picture (MiniGrid)": picture(7, 7, 20),
}
QUESTION = spaces.Dict({"query.a": VECTOR, "query": VECTOR, "x.y": spaces.Discrete(3), "z": VECTOR})
ENCODERS: dict[str, dict[str, Any]] = {
    "default": {"memory": "gru", "memory_kwargs": {"hidden_size": 8}},
    "MLPEncoder": {
        "memory": "gru",
        "memory_kwargs": {"hidden_size": 8},
        "features_extractor_class": MLPEncoder,
        "features_extractor_kwargs": {"layers": (8,)},
    },
    "GridEncoder": {"memory": "multigrid", "memory_kwargs": {"channels": [4, 4, 4]}},
}
FLAT = ("scalar Box", "MultiDiscrete 2-D", "start", "names of any form", "Tuple in Dict in Tuple")
CASES = [(name, encoder) for name in OBSERVATIONS for encoder in ("default", "MLPEncoder")]
CASES += [(name, "GridEncoder") for name in (*FLAT, "MiniGrid", "5×5, channels first", "one-hot picture (MiniGrid)")]


def two_of(space: spaces.Space[Any], action_space: spaces.Space[Any] | None = None) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: Playground(space, action_space)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)


def check(space: spaces.Space[Any], policy_kwargs: dict[str, Any], tmp_path: Path | None = None) -> None:
    model = PPO("MemoryPolicy", two_of(space), n_steps=7, n_minibatches=1, policy_kwargs=policy_kwargs, seed=0)
    with torch.no_grad():
        model.policy.action_net.weight *= 100
        rollout = collect(model)
        again, _ = model.policy.evaluate_actions(rollout.obs, rollout.actions, rollout.state, rollout.starts)
    assert (again.log_prob - rollout.log_probs).abs().max() < 1e-4
    model.train()
    # the environment's own observations, of one and of several; its own kind of action
    several, _ = two_of(space).reset(seed=1)
    one, _ = Playground(space).reset(seed=1)
    action, _ = model.predict(one, deterministic=True)
    actions, _ = model.predict(several, deterministic=True)
    assert action.shape == ()
    assert actions.shape == (2,)
    env, starts = Playground(space), np.ones(1, bool)
    obs, state, total = env.reset()[0], None, 0.0
    while env.steps < 3:
        move, state = model.predict(obs, state, starts)
        obs, reward, _, _, _ = env.step(move)
        total, starts = total + reward, np.zeros(1, bool)
    assert total == 3
    if tmp_path is not None:
        model.save(tmp_path / "it")
        loaded = load(tmp_path / "it")
        assert loaded.predict(one, deterministic=True)[0] == action
        assert (loaded.predict(several, deterministic=True)[0] == actions).all()
        load(tmp_path / "it", two_of(space)).learn(14, reset_num_timesteps=False)


@pytest.mark.filterwarnings("ignore:.*'none'.* is left out")
@pytest.mark.parametrize(("name", "encoder"), CASES)
def test_every_space_with_every_encoder(name: str, encoder: str, tmp_path: Path) -> None:
    check(OBSERVATIONS[name], ENCODERS[encoder], tmp_path if encoder == "default" else None)


@pytest.mark.parametrize("memory", ["kanerva++", "multigrid"])
def test_questions_with_names_of_any_form(memory: str) -> None:
    check(QUESTION, {"memory": memory})


ACTIONS: dict[str, spaces.Space[Any]] = {
    "start": spaces.Discrete(3, start=-1),
    "int32": spaces.Discrete(3, start=4, dtype=np.int32),
    "MultiDiscrete int32 with start": spaces.MultiDiscrete([2, 3], dtype=np.int32, start=[5, -1]),
    "MultiDiscrete 2-D": spaces.MultiDiscrete([[2, 3], [4, 5]]),
    "MultiBinary 2-D": spaces.MultiBinary((2, 3)),
    "scalar Box": spaces.Box(-1.0, 1.0, ()),
    "Box of whole numbers": spaces.Box(-2, 2, (2,), np.int32),
    "Box 3-D": spaces.Box(-1.0, 1.0, (2, 2, 2)),
    "Box float16": spaces.Box(-1.0, 1.0, (2,), np.float16),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_every_action_space_gets_its_own_numbers(name: str, tmp_path: Path) -> None:
    """The environment itself refuses what is not in its space: by training, `predict` and SB3's `evaluate_policy`."""
    space = ACTIONS[name]
    model = PPO("MemoryPolicy", two_of(VECTOR, space), n_steps=8, policy_kwargs=ENCODERS["default"], seed=0).learn(16)
    model.save(tmp_path / "it")
    for agent in (model, load(tmp_path / "it"), load(tmp_path / "it", Playground(VECTOR, space))):
        for _ in range(20):
            assert space.contains(agent.predict(np.zeros(3, np.float32))[0][()])
        evaluate_policy(agent, Playground(VECTOR, space), n_eval_episodes=1, warn=False)
    evaluate_policy(model, model.get_env(), n_eval_episodes=1, warn=False)  # type: ignore[arg-type]


def test_an_action_without_dimensions_is_one_number() -> None:
    """Its log-probabilities are those of a `Box` of one number."""
    found = []
    for shape in ((), (1,)):
        env = two_of(VECTOR, spaces.Box(-1.0, 1.0, shape))
        policy = PPO("MemoryPolicy", env, policy_kwargs=ENCODERS["default"], seed=0).policy
        latent = torch.randn(3, 2, policy.memory.output_size, generator=torch.Generator().manual_seed(0))
        actions = torch.linspace(-1, 1, 6).view(3, 2, *shape)
        found.append(policy.evaluate_latents(latent, actions))
        assert found[-1].log_prob.shape == (3, 2)
    torch.testing.assert_close(found[0].log_prob, found[1].log_prob)


REFUSED: dict[str, tuple[spaces.Space[Any], spaces.Space[Any] | None, str]] = {
    "Sequence": (spaces.Dict({"a": VECTOR, "s": spaces.Sequence(VECTOR)}), None, r"entry 's' is Sequence.*FilterObs"),
    "Graph": (spaces.Dict({"g": spaces.Graph(VECTOR, None)}), None, r"entry 'g' is Graph.*FilterObservation"),
    "OneOf": (spaces.OneOf([VECTOR, VECTOR]), None, r"the observation is OneOf.*TransformObservation"),
    "empty": (spaces.Box(0, 1, (0,)), None, r"the observation space Box.* is empty"),
    "empty Dict": (spaces.Dict({}), None, r"is empty"),
    "two of one name": (
        spaces.Dict({"a.b": VECTOR, "a": spaces.Dict({"b": VECTOR})}),
        None,
        r"two entries of the observation are called 'a.b'",
    ),
    "unbounded actions": (
        VECTOR,
        spaces.Box(-np.inf, 1.0, (2,)),
        r"has no bounds.*TransformAction.* ClipAction",
    ),
    "Dict actions": (VECTOR, spaces.Dict({"a": VECTOR}), r"action space is Dict.*TransformAction"),
    "Tuple actions": (VECTOR, spaces.Tuple([VECTOR]), r"action space is Tuple.*TransformAction"),
    "Text actions": (VECTOR, spaces.Text(3), r"action space is Text.*TransformAction"),
    "too many symbols": (
        spaces.Dict({"a": spaces.Discrete(10**7)}),
        None,
        r"entry 'a' is Discrete.* more than 1,048,576",
    ),
    "too many choices": (VECTOR, spaces.Discrete(10**7), r"more than 1,048,576 choices.*TransformAction"),
    "empty actions": (VECTOR, spaces.Box(0, 1, (0,)), r"is empty"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_when_the_agent_is_built(name: str) -> None:
    observation_space, action_space, words = REFUSED[name]
    env = Playground(observation_space, action_space)
    with pytest.raises(ValueError, match=words) as caught:
        PPO("MemoryPolicy", env, policy_kwargs=ENCODERS["default"])
    assert "\n" not in str(caught.value)


def test_what_is_left_out_is_said_once() -> None:
    space = spaces.Dict({"nothing": spaces.Box(0, 1, (3, 0)), "a": VECTOR})
    with pytest.warns(UserWarning, match=r"entry 'nothing' \(Box.*\) is left out") as caught:
        PPO("MemoryPolicy", Playground(space), policy_kwargs=ENCODERS["default"])
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_tensor_env(Playground(space))


def test_what_predict_cannot_read_is_refused_in_one_line() -> None:
    space = Layout(OBSERVATIONS["Dict in Dict"]).space
    with pytest.raises(ValueError, match=r"entry 'b\.y' is missing: expected b\.z, b\.y, a; found a, b\.z"):
        arrays_of({"a": np.zeros(3), "b": {"z": np.zeros(3)}}, space)
    with pytest.raises(ValueError, match=r"entry 'a' has shape \(4,\); expected \(3,\), or several of them"):
        arrays_of({"a": np.zeros(4), "b": {"z": np.zeros(3), "y": 1}}, space)
    with pytest.raises(ValueError, match=r"some entries of the observation are of one environment"):
        arrays_of({"a": np.zeros((4, 3)), "b": {"z": np.zeros(3), "y": 1}}, space)
    with pytest.raises(ValueError, match=r"entry 'mission' has shape \(\); expected \(128,\) or a text, or several"):
        arrays_of({**MINIGRID.sample(), "mission": 3}, Layout(MINIGRID).space)


@pytest.mark.parametrize(
    ("shape", "last"),
    [
        ((7, 7, 3), True),
        ((3, 7, 7), False),
        ((84, 84, 12), True),
        ((12, 84, 84), False),
        ((36, 40, 3), True),
        ((3, 36, 40), False),
        ((7, 7, 20), True),
        ((64, 64, 9), True),
        ((3, 5, 3), False),
        ((3, 3, 3), False),
    ],
)
def test_which_side_of_a_picture_are_channels(shape: tuple[int, ...], last: bool) -> None:
    assert has_channels_last(picture(*shape)) == last


def test_symbols_of_a_small_picture_stay_apart() -> None:
    """Divided by 255, MiniGrid's numbers are all but equal; a random encoder tells neighbours apart as well as ends."""
    torch.manual_seed(0)
    encoder = PictureEncoder(picture(3, 7, 7))
    one, two, ten = (encoder(torch.full((1, 3, 7, 7), float(number))) for number in (1, 2, 10))
    assert (one - two).norm() > 0.5 * (one - ten).norm() > 0


@pytest.mark.parametrize("names", [["a.b", "entry0", "keys", ""], ["entry1", "x.y"], ["a", "b"]])
def test_module_names_are_ones_that_torch_takes(names: list[str]) -> None:
    given = module_names(names)
    modules = torch.nn.ModuleDict({module: torch.nn.Identity() for module in given.values()})
    assert len(modules) == len(names)
    assert [name for name in names if name == given[name]] == [n for n in names if n and n != "keys" and "." not in n]


class Reused(gym.Env[Any, Any]):
    """Observation: the step, written into one array again and again."""

    observation_space = spaces.Box(-1e3, 1e3, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.buffer = np.zeros(1, np.float32)

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        self.buffer[0] = 0
        return self.buffer, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.buffer += 1
        return self.buffer, 1.0, False, bool(self.buffer[0] == 3), {}


def _reused() -> Iterable[Any]:
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv

    yield "Env", Reused
    yield "Sync", lambda: SyncVectorEnv([Reused], autoreset_mode=AutoresetMode.SAME_STEP)
    yield "Sync without copies", lambda: SyncVectorEnv([Reused], copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    yield "DummyVecEnv", lambda: DummyVecEnv([Reused])
    yield "with Monitor", lambda: make_vec_env(Reused, 1)


@pytest.mark.parametrize(("name", "build"), list(_reused()))
def test_an_environment_may_use_its_arrays_again(name: str, build: Any) -> None:
    env = as_tensor_env(build())
    seen = [env.reset()[0]]
    for _ in range(4):
        obs, _, _, _, info = env.step(torch.zeros(1, dtype=torch.int64))
        seen.append(obs)
        if "final_obs" in info:
            final = info["final_obs"]
    assert [obs.item() for obs in seen] == [0, 1, 2, 0, 1]  # type: ignore[union-attr]
    assert final.item() == 3


@pytest.mark.parametrize("side", [48, 49, 56, 64])
def test_a_grid_memory_takes_a_picture_or_says_how_large_it_may_be(side: int) -> None:
    env, kwargs = Playground(picture(side, side, 3)), {"memory": "multigrid", "memory_kwargs": {"channels": [2, 2, 2]}}
    if side == 48:
        PPO("MemoryPolicy", env, n_steps=4, n_minibatches=1, policy_kwargs=kwargs, seed=0).learn(4)
        return
    with pytest.raises(ValueError, match=rf"\(3, {side}, {side}\), but 3 layers .* support sides up to 48: shrink it"):
        PPO("MemoryPolicy", env, policy_kwargs=kwargs)


class Batched(TensorEnv):
    """A batched environment with any spaces; nothing happens in it."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any] | None = None) -> None:
        super().__init__(2, observation_space, action_space or spaces.Discrete(2), horizon=2)

    def _begin(self, where: Any) -> None: ...

    def _advance(self, action: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return torch.zeros(2), None, None

    def _observe(self) -> dict[str, torch.Tensor]:
        return {"beside": torch.zeros(2), "a": torch.zeros(2, 3)}


@pytest.mark.parametrize(
    ("space", "action_space", "words"),
    [
        (spaces.Tuple([VECTOR]), None, r"Batched has the observations Tuple.*expected one tensor or a flat dict"),
        (spaces.Dict({"a": spaces.Dict({"b": VECTOR})}), None, r"Batched has the observations Dict.*flat dict"),
        (spaces.Dict({"a": spaces.Sequence(VECTOR)}), None, r"entry 'a' is Sequence"),
        (spaces.Dict({"a": VECTOR, "said": spaces.Text(3)}), None, r"Batched has the observations Dict.*flat dict"),
        (VECTOR, spaces.Box(-np.inf, np.inf, (2,)), r"has no bounds"),
    ],
)
def test_a_tensor_env_has_plain_spaces(space: Any, action_space: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PPO("MemoryPolicy", Batched(space, action_space), policy_kwargs=ENCODERS["default"])


def test_what_comes_beside_the_entries_of_the_space_is_left() -> None:
    model = PPO("MemoryPolicy", Batched(spaces.Dict({"a": VECTOR})), n_steps=4, policy_kwargs=ENCODERS["default"])
    assert list(model.learn(8).rollout.obs) == ["a"]


def test_wrappers_around_our_own_environments() -> None:
    stack = lambda env: gym.wrappers.FrameStackObservation(env, 2)  # noqa: E731
    env = make_env("Engram/RepeatFirst-v0", 2, wrappers=["gymnasium.wrappers:NormalizeReward", stack], length=3)
    assert env.single_observation_space.shape == (2, 5)
    PPO("MemoryPolicy", env, n_steps=6, n_minibatches=1, policy_kwargs=ENCODERS["default"]).learn(12)
