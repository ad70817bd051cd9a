"""The conformance checks of a `TensorEnv`."""

from __future__ import annotations

import os
import warnings
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from envs.tensor_env import TensorEnv
from envs.testing.case import (
    ConformanceError,
    EnvCase,
    choices_of,
    copied,
    draws,
    expect,
    expect_same,
    leaves,
    play,
    to_numpy,
)


def it_passes_the_checkers_of_gymnasium_and_sb3(case: EnvCase) -> None:
    from gymnasium.utils.env_checker import check_env as gymnasium_checks
    from stable_baselines3.common.env_checker import check_env as sb3_checks

    env = case.make_single()
    with mock.patch.dict(os.environ, {"SDL_VIDEODRIVER": "dummy"}), warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            gymnasium_checks(env, skip_render_check=not draws(case))
            # SB3 takes every three-dimensional grid for an image, which it expects to be uint8 and large.
            warnings.filterwarnings("ignore", message="It seems that your observation .* is an image")
            warnings.filterwarnings("ignore", message="The minimal resolution for an image")
            warnings.filterwarnings("ignore", message="Treating image space as channels-last")
            sb3_checks(env)
        except (AssertionError, Warning) as error:
            raise ConformanceError(" ".join(str(error).split())) from error
    env.close()


def it_keeps_the_contract(case: EnvCase) -> None:
    """Spaces, shapes, types, devices, masks and `final_obs` over several episodes."""
    check_contract(case.make(), case.actions())


def check_contract(env: TensorEnv, actions: list[Tensor]) -> None:
    count, where = env.num_envs, env.device.type
    obs, info = env.reset(seed=0)
    expect("final_obs" not in info, "reset returns final_obs, but no episode has ended")
    ended_once = False
    for action in actions:
        for observed in (obs, *([info["final_obs"]] if "final_obs" in info else [])):
            space = env.observation_space
            expect(space.contains(to_numpy(observed)), f"the observation {observed} is not in {space}")
            for index in range(count):
                inside = env.single_observation_space.contains(to_numpy(observed, index))
                expect(inside, f"the observation of environment {index} is not in {env.single_observation_space}")
        for path, tensor in leaves(obs) + leaves(info):
            expect(tensor.device.type == where, f"{path or 'the observation'} is on {tensor.device}, not {where}")
            expect(
                tensor.shape[:1] == (count,), f"{path} is {tuple(tensor.shape)}: the environments, {count}, come first"
            )
        if "target" in info:
            shapes = tuple(info["target"].shape), tuple(action.shape)
            expect(shapes[0] == shapes[1], f"target is {shapes[0]}, an action {shapes[1]}")
            expect(info["weight"].dtype == torch.float32, f"weight is {info['weight'].dtype}, expected float32")
        _mask(env, info.get("action_mask"))
        obs, reward, terminated, truncated, info = env.step(action)
        for name, value, dtype in (
            ("reward", reward, torch.float32),
            ("terminated", terminated, torch.bool),
            ("truncated", truncated, torch.bool),
        ):
            found = tuple(value.shape), value.dtype, value.device.type
            wanted = (count,), dtype, where
            expect(found == wanted, f"{name} is {found[0]} {found[1]} on {found[2]}, expected {wanted}")
        expect(not (terminated & truncated).any(), "an environment is terminated and truncated at one step")
        expect(env.truncates or not truncated.any(), "an environment is truncated, but truncates is False")
        ended = terminated | truncated
        expect(not ended.any() or "final_obs" in info, "an episode ended, and info has no final_obs")
        if env.horizon is not None:
            together = bool(ended.all()) == bool(ended.any()) == ("final_obs" in info)
            expect(together, "with a horizon all environments end together, and only then is there a final_obs")
        elif not ended.any():
            expect(
                "final_obs" in info, "without a horizon the host cannot tell when episodes end: final_obs every step"
            )
            expect_same(info["final_obs"], obs, "final_obs at a step at which nothing ended")
        ended_once |= bool(ended.any())
    expect(ended_once, f"no episode ended in {len(actions)} steps: give arguments that make episodes short")


def _mask(env: TensorEnv, mask: Any) -> None:
    if mask is None:
        return
    choices = choices_of(env.single_action_space)
    found, wanted = (tuple(mask.shape), mask.dtype), (env.num_envs, sum(choices))
    right = found[0] == wanted and found[1] in (torch.bool, torch.int8)
    expect(right, f"action_mask is {found[0]} {found[1]}, expected {wanted} bool or int8")
    for part in torch.split(mask.bool(), choices, 1):
        expect(part.any(1).all(), "action_mask allows no choice for some part of an environment's action")


def a_seed_fixes_everything(case: EnvCase) -> None:
    actions = case.actions()
    masked = "action_mask" in case.make().reset(seed=0)[1]

    def episode(seed: int) -> list[Any]:
        env = case.make()  # actions that are valid for one seed may be invalid for another
        return [env.reset(seed=seed), *([] if masked and seed else play(env, actions))]

    first = copied(episode(0))
    expect_same(first, episode(0), "two environments with one seed")
    others = [copied(episode(seed)) for seed in range(1, 3 if not masked else 9)]
    differ = any(not torch.equal(value, first[path]) for other in others for path, value in other.items())
    expect(differ, "all seeds lead to the same episodes: draw from self.generator")


def declared_ignored_actions_are_ignored(case: EnvCase) -> str | None:
    if not case.make(1).ignores_actions:
        return "ignores_actions is False"
    streams = []
    for seed in (1, 2):
        env = case.make()
        stream: list[Any] = [env.reset(seed=0)]
        for obs, _, terminated, truncated, info in play(env, case.actions(seed=seed)):
            shown = {key: value for key, value in info.items() if key not in ("metrics", "is_success")}
            stream.append((obs, terminated, truncated, shown))
        streams.append(stream)
    expect_same(streams[0], streams[1], "ignores_actions is True, but with other actions")
    return None


def a_preview_is_the_steps_it_stands_for(case: EnvCase) -> str | None:
    """Bit by bit: part of an episode, the rest of it, and a whole one."""
    env, stepped = case.make(), case.make()
    if not env.previews:
        return "previews is False"
    assert env.horizon is not None, "only episodes of one length have previews"
    env.reset(seed=0)
    stepped.reset(seed=0)
    expect(env.preview(env.horizon + 1) is None, "preview shows steps beyond the end of the episode")
    actions = case.actions(steps=2 * env.horizon)
    for begin, end in ((0, 1), (1, env.horizon), (env.horizon, 2 * env.horizon)):
        if begin == end:  # episodes of one step
            continue
        preview = env.preview(end - begin)
        if preview is None:
            raise ConformanceError(f"no preview of steps {begin} to {end}, but previews is True")
        shown, results = list[Any](), list[Any]()
        for action in actions[begin:end]:
            shown.append((stepped.observe(), stepped.describe()))
            results.append(stepped.step(action))
        answers = {"target": preview.targets, "weight": preview.weights}
        expect_same(copied((preview.obs, answers)), _stacked(shown), "a preview")
        taken = preview.take(torch.stack(actions[begin:end]))
        expect_same(taken.rewards, torch.stack([result[1] for result in results]), "the rewards of a preview")
        metrics = _stacked([result[4]["metrics"] for result in results])
        expect_same(copied(taken.metrics), metrics, "the metrics of a preview")
        expect_same(taken.obs, results[-1][0], "the observation after a preview")
        expect(taken.ended == bool(results[-1][2].all()), "a preview and its steps do not end together")
        expect_same(env.state_dict(), stepped.state_dict(), "the state after a preview")
    return None


def _stacked(steps: list[Any]) -> dict[str, Tensor]:
    """The tensors of T steps by path, `[T, ...]`."""
    return {path: torch.stack([dict(leaves(step))[path] for step in steps]) for path, _ in leaves(steps[0])}


def state_dict_resumes_exactly(case: EnvCase) -> None:
    env, actions = case.make(), case.actions()
    env.reset(seed=0)
    play(env, actions[:4])
    state = env.state_dict()
    before = copied(state)
    future = copied(play(env, actions[4:]))
    expect_same(before, state, "a state_dict, after later steps")
    other = case.make()  # never reset
    other.load_state_dict(state)
    found = copied(play(other, actions[4:]))
    expect_same(found, future, "after load_state_dict (is every tensor named in state_names?)")
    expect_same(before, state, "a state_dict, after load_state_dict")


def state_dict_before_the_first_reset_and_with_wrong_entries(case: EnvCase) -> None:
    env, other = case.make(), case.make()
    other.load_state_dict(env.state_dict())
    expect_same(env.reset(), other.reset(), "a first reset after load_state_dict")
    _refuses(env, {**env.state_dict(), "surplus": torch.zeros(1)}, "an entry that it does not know")
    bigger = case.make(6)
    bigger.reset()
    _refuses(env, bigger.state_dict(), "the state of another number of environments")


def _refuses(env: TensorEnv, state: dict[str, Tensor], what: str) -> None:
    try:
        env.load_state_dict(state)
    except ValueError:
        return
    raise ConformanceError(f"load_state_dict takes {what}, expected a ValueError")


def final_obs_is_the_last_observation(case: EnvCase) -> None:
    """`final_obs` equals the observation that the same step returns without automatic resets."""
    env, no_autoreset = case.make(1), case.make(1)
    no_autoreset.autoreset = False
    env.reset(seed=0)
    no_autoreset.reset(seed=0)
    for action in case.actions(1):
        _draw_alike(no_autoreset, env)
        obs, _, terminated, truncated, info = env.step(action)
        last, _, *flags, _ = no_autoreset.step(action)
        expect_same((terminated, truncated), tuple(flags), "ends with and without autoreset")
        if (terminated | truncated).any():
            expect_same(info["final_obs"], last, "final_obs and the last observation without autoreset")
            if env.horizon is not None:  # without one, autoreset draws at every step, so the generators differ here
                expect_same(obs, no_autoreset.reset()[0], "the first observation after autoreset and after reset")
            return
        expect_same(obs, last, "an observation with and without autoreset")
    raise ConformanceError("no episode ended: give arguments that make episodes short")


def outputs_are_not_shared(case: EnvCase) -> None:
    env, untouched = case.make(), case.make()
    outputs: Any = env.reset(seed=0)
    expect_same(outputs, untouched.reset(seed=0), "two environments with one seed")
    for action in case.actions():
        for _, tensor in leaves(outputs):
            tensor.copy_(~tensor.bool())  # the caller overwrites the results
        expect_same(env.state_dict(), untouched.state_dict(), "the state, after the caller overwrote results")
        before, own_action = copied(outputs), action.clone()
        next_outputs = env.step(own_action)
        own_action.copy_(~own_action.bool())
        expect_same(before, outputs, "the results of a step, after the next step")
        expect_same(next_outputs, untouched.step(action), "a step, after the caller overwrote earlier results")
        outputs = next_outputs


def single_env_equals_the_batch(case: EnvCase) -> None:
    alone, batch = case.make_single(), case.make(1)
    obs, info = alone.reset(seed=7)
    expected, _ = batch.reset(seed=7)
    for action in case.actions(1, reset=7):
        given = {path: torch.as_tensor(array)[None] for path, array in _arrays(obs)}
        expect_same(given, dict(leaves(expected)), "SingleEnv's observation")
        plain = all(isinstance(entry, (np.ndarray, np.generic, int, float)) for _, entry in _arrays(info))
        expect(plain, f"SingleEnv's info has entries other than numbers and arrays: {info}")
        _draw_alike(alone.tensor_env, batch)
        obs, reward, terminated, truncated, info = alone.step(action[0].cpu().numpy())
        expected, paid, *ended, more = batch.step(action)
        same = (reward, terminated, truncated) == (paid.item(), *(flag.item() for flag in ended))
        expect(same, "SingleEnv's reward or end differs from the batch's")
        if terminated or truncated:
            final = {path: torch.as_tensor(array)[None] for path, array in _arrays(obs)}
            expect_same(final, dict(leaves(more["final_obs"])), "SingleEnv's last observation")
            return


def _draw_alike(env: TensorEnv, other: TensorEnv) -> None:
    """Gives `env` the random numbers of `other`: without a horizon, autoreset draws in every step, used or not."""
    env.generator.set_state(other.generator.get_state())


def _arrays(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, (dict, tuple)):
        return [(path, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [leaf for name, child in items for leaf in _arrays(child, f"{path}/{name}")]


def frames_and_texts_show_what_happens(case: EnvCase) -> str | None:
    if not draws(case):
        return "it draws no frames"
    env = case.make(2, render_mode="rgb_array")
    env.reset(seed=0)
    frames, texts = [env.frame(1)], [_text(env)]
    for action in case.actions(2, steps=6):
        env.step(action)
        frames.append(env.frame(1))
        texts.append(_text(env))
    for frame in frames:
        expect(
            frame.dtype == np.uint8 and frame.ndim == 3, f"a frame is {frame.shape} {frame.dtype}, not uint8 [H, W, 3]"
        )
        sides = [side % 16 for side in frame.shape[:2]]
        expect(sides == [0, 0], f"a frame is {frame.shape}: video encoders want sides that are multiples of 16")
        colours = frame.reshape(-1, 3).astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)
        expect(len(np.unique(colours)) > 3, "a frame has at most three colours")
    changes = any(frame.shape != frames[0].shape or (frame != frames[0]).any() for frame in frames[1:])
    expect(changes, "the frame does not change in six steps")
    expect(texts[0] is None or len(set(texts)) > 1, "the text does not change in six steps")
    rendered = env.render()
    expect(
        rendered is not None and [frame.shape for frame in rendered] == [frames[0].shape] * 2,
        "render returns no frames",
    )
    expect(case.make().render() is None, "render returns frames without a render_mode")
    return None


def _text(env: TensorEnv) -> str | None:
    try:
        return env.text(1)
    except NotImplementedError:
        return None


def a_window_follows_every_step(case: EnvCase) -> str | None:
    if not draws(case):
        return "it draws no frames"
    import pygame

    with mock.patch.dict(os.environ, {"SDL_VIDEODRIVER": "dummy"}):
        env = case.make_single(render_mode="human")
        env.reset(seed=0)
        env.step(case.actions(1, 1)[0][0].cpu().numpy())
        window = pygame.display.get_surface()
        expect(window is not None, "render_mode='human' opens no window")
        assert window is not None
        shown = pygame.surfarray.array3d(window).swapaxes(0, 1)
        expect((shown == env.tensor_env.frame(0)).all(), "the window does not show the frame")
        env.close()
        env.close()
        expect(not pygame.display.get_init(), "close leaves the window open")
    return None


def a_step_does_not_synchronise(case: EnvCase) -> None:
    env, actions = case.make(), case.actions()

    def waits(*_: Any) -> None:
        raise ConformanceError("a step synchronises with the device: .item(), .cpu(), float(x), if x:")

    names = ("item", "cpu", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__")
    patched: dict[str, Any] = dict.fromkeys(names, waits)
    with mock.patch.multiple(torch.Tensor, **patched):
        env.reset(seed=0)
        play(env, actions)
