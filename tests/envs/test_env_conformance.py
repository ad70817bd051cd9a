"""What every registered environment must satisfy. A new environment needs a row in CASES and nothing else."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import envs
from envs.single_env import SingleEnv
from envs.tensor_env import TensorEnv

CASES: dict[str, dict[str, Any]] = {
    "Engram/AssociativeRecall-v0": {"max_items": 3, "item_length": 2, "bits": 3},
    "Engram/Babi-v0": {"tasks": [1, 6], "stories": 20, "questions": 1},
    "Engram/Copy-v0": {"max_length": 4, "bits": 3},
    "Engram/DictionaryInference-v0": {"k": 2, "l": 2},
    "Engram/DoubleCopy-v0": {"min_length": 2, "max_length": 4, "symbols": 3},
    "Engram/DynamicNGrams-v0": {"length": 12, "context": 2},
    "Engram/ImageEpisode-v0": {"length": 3, "recalls": 2},
    "Engram/GraphInference-v0": {"lesson": 2, "planning_steps": 2, "curriculum": True, "window": 3, "pass_mark": 0.01},
    "Engram/GraphTraversal-v0": {"lesson": 1},
    "Engram/InvisibleGoalMaze-v0": {"size": 5, "episode_length": 12},
    "Engram/MnistRecall-v0": {"length": 3, "side": 6},
    "Engram/MnistSort-v0": {"length": 3},
    "Engram/PrioritySort-v0": {"min_length": 3, "max_length": 5, "outputs": 4, "bits": 3},
    "Engram/RepeatCopy-v0": {"max_length": 3, "max_repeats": 2, "bits": 3, "format": "dnc"},
    "Engram/Mapping-v0": {"size": 11, "queries": (3, 9), "horizon": 13, "trajectory": "random"},
    "Engram/RepeatFirst-v0": {"length": 6, "symbols": 3},
    "Engram/ShortestPath-v0": {"lesson": 2, "planning_steps": 1, "beta": 0.5, "snap": True},
    "Engram/StackGrammar-v0": {"n_max": 4, "length": 12},
    "Engram/TMaze-v0": {"length": 2, "max_steps": 9},
}
STEPS = 40  # several episodes of every row
every_env = pytest.mark.parametrize("env_id", sorted(CASES))


def make(env_id: str, num_envs: int = 5, **kwargs: Any) -> TensorEnv:
    env = gymnasium.make_vec(env_id, num_envs=num_envs, **CASES[env_id], **kwargs)
    assert isinstance(env, TensorEnv)
    env.action_space.seed(1)
    return env


def make_single(env_id: str, **kwargs: Any) -> SingleEnv:
    env = gymnasium.make(env_id, **CASES[env_id], **kwargs).unwrapped
    assert isinstance(env, SingleEnv)
    return env


def actions_for(env: TensorEnv, steps: int = STEPS) -> list[torch.Tensor]:
    return [torch.as_tensor(env.action_space.sample(), device=env.device) for _ in range(steps)]


def leaves(value: Any, path: str = "") -> list[tuple[str, torch.Tensor]]:
    """All tensors in nested tuples and dicts, with their place."""
    if isinstance(value, torch.Tensor):
        return [(path, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [leaf for name, child in items for leaf in leaves(child, f"{path}/{name}")]


def copied(value: Any) -> list[tuple[str, torch.Tensor]]:
    return [(path, leaf.clone()) for path, leaf in leaves(value)]


def assert_same(one: Any, other: Any) -> None:
    one, other = leaves(one), leaves(other)
    assert [path for path, _ in one] == [path for path, _ in other]
    for (path, left), (_, right) in zip(one, other, strict=True):
        assert left.dtype == right.dtype, path
        assert torch.equal(left, right), path


def to_numpy(obs: Any, index: int | None = None) -> Any:
    if isinstance(obs, dict):
        return {name: to_numpy(value, index) for name, value in obs.items()}
    return obs.cpu().numpy() if index is None else obs[index].cpu().numpy()


def play(env: TensorEnv, actions: list[torch.Tensor]) -> list[Any]:
    return [env.step(action) for action in actions]


def test_every_registered_id_has_a_row() -> None:
    assert set(envs.registered()) == set(CASES)


def test_importing_again_registers_nothing_twice() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(envs)


@every_env
def test_passes_the_checkers_of_gymnasium_and_sb3(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = make_single(env_id)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)
        # SB3 takes every grid of three dimensions for an image, and would have it of bytes and large.
        warnings.filterwarnings("ignore", message="It seems that your observation .* is an image")
        warnings.filterwarnings("ignore", message="The minimal resolution for an image")
        warnings.filterwarnings("ignore", message="Treating image space as channels-last")
        sb3_check_env(env)
    env.close()


def contract(env: TensorEnv) -> None:
    """Spaces, shapes, types, devices and `final_obs` over several episodes."""
    obs, info = env.reset(seed=0)
    assert "final_obs" not in info
    ended_before = False
    for action in actions_for(env):
        for observed in (obs, *([info["final_obs"]] if "final_obs" in info else [])):
            assert env.observation_space.contains(to_numpy(observed))
            for index in range(env.num_envs):
                assert env.single_observation_space.contains(to_numpy(observed, index))
        for path, tensor in leaves(obs) + leaves(info):
            assert tensor.device.type == env.device.type, path
            assert tensor.shape[0] == env.num_envs, path
        if "target" in info:
            assert info["target"].shape == action.shape
            assert info["weight"].dtype == torch.float32
        obs, reward, terminated, truncated, info = env.step(action)
        for flag in (terminated, truncated):
            assert flag.shape == (env.num_envs,)
            assert flag.dtype == torch.bool
            assert flag.device.type == env.device.type
        assert reward.shape == (env.num_envs,)
        assert reward.dtype == torch.float32
        assert reward.device.type == env.device.type
        assert not (terminated & truncated).any()
        assert env.truncates or not truncated.any()
        ended = terminated | truncated
        assert not ended.any() or "final_obs" in info
        if env.horizon is not None:
            assert ended.all() == ended.any() == ("final_obs" in info)
        elif not ended.any():
            assert_same(info["final_obs"], obs)
        ended_before |= bool(ended.any())
    assert ended_before, "the row in CASES makes episodes too long for this test"


@every_env
def test_keeps_the_contract(env_id: str) -> None:
    env = make(env_id)
    assert env.num_envs == 5
    assert env.spec is not None
    assert env.spec.id == env_id
    contract(env)


@every_env
def test_a_seed_fixes_everything(env_id: str) -> None:
    def episode(seed: int) -> list[Any]:
        env = make(env_id)
        return [env.reset(seed=seed), *play(env, actions_for(env))]

    assert_same(episode(3), episode(3))
    assert any(not torch.equal(a, b) for (_, a), (_, b) in zip(leaves(episode(3)), leaves(episode(4)), strict=True))


@every_env
def test_who_says_so_ignores_actions(env_id: str) -> None:
    streams = []
    for seed in (1, 2):
        env = make(env_id)
        env.action_space.seed(seed)
        stream: list[Any] = [env.reset(seed=0)]
        for obs, _, terminated, truncated, info in play(env, actions_for(env)):
            stream.append((obs, terminated, truncated, {key: info[key] for key in info if key != "metrics"}))
        streams.append(stream)
    if env.ignores_actions:
        assert_same(*streams)
    else:
        pytest.skip("what it shows depends on what is done")


@every_env
def test_state_dict_resumes_exactly(env_id: str) -> None:
    env = make(env_id)
    actions = actions_for(env)
    env.reset(seed=0)
    play(env, actions[:4])
    state = env.state_dict()
    before = copied(state)
    future = copied(play(env, actions[4:]))
    assert_same(dict(before), dict(leaves(state)))  # later steps leave it alone

    other = make(env_id)  # never reset
    other.load_state_dict(state)
    assert_same(dict(future), dict(leaves(play(other, actions[4:]))))
    assert_same(dict(before), dict(leaves(state)))  # nor does the one that loaded it touch it


@every_env
def test_state_dict_before_the_first_reset_and_with_wrong_entries(env_id: str) -> None:
    env, other = make(env_id), make(env_id)
    other.load_state_dict(env.state_dict())
    assert_same(env.reset(), other.reset())
    with pytest.raises(ValueError, match="entries"):
        env.load_state_dict({**env.state_dict(), "surplus": torch.zeros(1)})
    bigger = make(env_id, num_envs=6)
    bigger.reset()
    with pytest.raises(ValueError, match=r"6[,)].* not .*5[,)]"):
        env.load_state_dict(bigger.state_dict())


@every_env
def test_final_obs_is_what_an_episode_without_automatic_reset_ends_with(env_id: str) -> None:
    env, plain = make(env_id, num_envs=1), make(env_id, num_envs=1)
    plain.autoreset = False
    env.reset(seed=0)
    plain.reset(seed=0)
    for action in actions_for(env):
        obs, _, terminated, truncated, info = env.step(action)
        last, _, *flags, _ = plain.step(action)
        assert_same((terminated, truncated), tuple(flags))
        if (terminated | truncated).any():
            assert_same(info["final_obs"], last)
            if env.horizon is not None:  # the others draw at every step, and so go apart here
                assert_same(obs, plain.reset()[0])
            return
        assert_same(obs, last)
    pytest.fail("no episode ended")


@every_env
def test_outputs_are_the_callers_own(env_id: str) -> None:
    env, untouched = make(env_id), make(env_id)
    outputs: Any = env.reset(seed=0)
    assert_same(outputs, untouched.reset(seed=0))
    for action in actions_for(env):
        for _, tensor in leaves(outputs):
            tensor.copy_(~tensor.bool())  # the caller overwrites what it was given
        assert_same(env.state_dict(), untouched.state_dict())
        before = copied(outputs)
        given = action.clone()
        following = env.step(given)
        given.copy_(~given.bool())
        assert_same(dict(before), dict(leaves(outputs)))  # a step leaves earlier outputs alone
        assert_same(following, untouched.step(action))
        outputs = following


@every_env
def test_single_env_plays_the_same_game(env_id: str) -> None:
    single, batch = make_single(env_id), make(env_id, num_envs=1)
    obs, info = single.reset(seed=7)
    expected, _ = batch.reset(seed=7)
    for action in actions_for(batch):
        assert_same(dict(leaves(expected)), {path: torch.as_tensor(x)[None] for path, x in arrays(obs)})
        assert all(isinstance(x, (np.ndarray, np.generic, int, float)) for _, x in arrays(info))
        obs, reward, terminated, truncated, info = single.step(action[0].numpy())
        expected, paid, *ended, more = batch.step(action)
        assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
        assert (reward, terminated, truncated) == (paid.item(), *(flag.item() for flag in ended))
        if terminated or truncated:
            final = {path: torch.as_tensor(x)[None] for path, x in arrays(obs)}
            assert_same(dict(leaves(more["final_obs"])), final)
            break
    with pytest.raises(RuntimeError, match="call reset first"):
        single.step(action[0].numpy())


def arrays(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, (dict, tuple)):
        return [(path, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [leaf for name, child in items for leaf in arrays(child, f"{path}/{name}")]


@every_env
def test_frames_and_texts_show_what_happens(env_id: str) -> None:
    env = make(env_id, num_envs=2, render_mode="rgb_array")
    env.reset(seed=0)
    frames, texts = [env.frame(1)], [env.text(1)]
    for action in actions_for(env, 6):
        env.step(action)
        frames.append(env.frame(1))
        texts.append(env.text(1))
    for frame in frames:
        assert frame.dtype == np.uint8
        assert frame.ndim == 3
        assert [side % 16 for side in frame.shape[:2]] == [0, 0]
        assert len(np.unique(frame.reshape(-1, 3), axis=0)) > 3
    assert any(frame.shape != frames[0].shape or (frame != frames[0]).any() for frame in frames[1:])
    assert len(set(texts)) > 1
    rendered = env.render()
    assert rendered is not None
    assert [frame.shape for frame in rendered] == [frames[0].shape] * 2
    assert make(env_id).render() is None


@every_env
def test_a_window_follows_every_step(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import pygame

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = make_single(env_id, render_mode="human")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    window = pygame.display.get_surface()
    assert window is not None
    shown = pygame.surfarray.array3d(window).swapaxes(0, 1)
    assert (shown == env.tensor_env.frame(0)).all()
    env.close()
    env.close()
    assert not pygame.display.get_init()


@every_env
def test_a_step_never_waits_for_the_device(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(env_id)
    actions = actions_for(env)

    def waits(*_: Any) -> None:
        raise AssertionError("a step asked the host for a value")

    with monkeypatch.context() as patch:
        for name in ("item", "cpu", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__"):
            patch.setattr(torch.Tensor, name, waits)
        env.reset(seed=0)
        play(env, actions)


@pytest.mark.gpu
@every_env
def test_keeps_the_contract_on_the_gpu(env_id: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    env = make(env_id, device="cuda")
    contract(env)
    actions = actions_for(env)
    torch.cuda.set_sync_debug_mode("error")
    try:
        play(env, actions)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    state = env.state_dict()
    future = play(env, actions)
    env.load_state_dict(state)
    assert_same(future, play(env, actions))


def test_mistakes_are_named() -> None:
    env_id = "Engram/RepeatFirst-v0"
    with pytest.raises(ValueError, match="num_envs is 0"):
        make(env_id, num_envs=0)
    with pytest.raises(ValueError, match="render_mode"):
        make(env_id, render_mode="ascii")
    env = make(env_id)
    with pytest.raises(RuntimeError, match="before reset"):
        env.step(actions_for(env, 1)[0])
    with pytest.raises(TypeError, match="one integer seed"):
        env.reset(seed=[1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="num_envs=1"):
        SingleEnv(env)
    single = make_single(env_id)
    single.reset(seed=0)
    with pytest.raises(ValueError, match="not in Discrete"):
        single.step(3)
