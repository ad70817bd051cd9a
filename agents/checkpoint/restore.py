"""Restores the state of a learner from a checkpoint; every part is validated first."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from gymnasium import spaces
from torch import Tensor

from agents.checkpoint.environment import describe, difference
from agents.checkpoint.format import shapes
from agents.checkpoint.generators import get_generators, set_generators
from agents.checkpoint.optimizer import load_optimizer
from agents.checkpoint.saved import COUNTERS
from agents.environments import HostEnv
from agents.environments.infos import as_numpy
from agents.rollout import LearnerState
from agents.sb3.training_env import TrainingEnv
from agents.scale import distributed
from policies.observations import any_observation

Tensors = dict[str, Tensor]
T = TypeVar("T")


def with_prefix(tensors: dict[str, T], prefix: str) -> dict[str, T]:
    """The entries whose names have this prefix, by the rest of their names."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def prefix_of(rank: int) -> str:
    """The prefix of a rank's tensors; rank 0 has none."""
    return f"rank{rank}/" if rank else ""


def restore(model: TrainingEnv, manifest: dict[str, Any], tensors: Tensors, replaced: Collection[str] = ()) -> None:
    """Restores everything that fits; `model.new_episodes` and `model.new_generators` say what does not, and why.

    Args:
        replaced: arguments of the optimiser that keep the values of `model`.

    Raises:
        KeyError: an entry is missing.
        ValueError: something belongs to another agent; the message names it.
    """
    load_policy(model, manifest, tensors, replaced)
    for name in COUNTERS:
        setattr(model, name, manifest["counters"][name])
    model.ep_info_buffer = deque(maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)
    same_ranks = manifest.get("ranks", 1) == distributed.size()
    generators = with_prefix(tensors, f"{prefix_of(distributed.rank())}rng/")
    if same_ranks:
        with _undoing_changes(model):
            set_generators(generators)
    if manifest.get("device", model.device.type) != model.device.type:
        model.new_generators = f"the checkpoint is of {manifest['device']}, this run of {model.device.type}"
    if same_ranks and not model.new_generators:
        model.generators_to_set = generators
    elif model.seed is not None:  # not the same random numbers as at the start
        model.set_random_seed(_new_seed(model))
    if model.env is None:
        model.unused_run = manifest, {k: v for k, v in tensors.items() if not k.startswith(("policy/", "optimizer/"))}
    elif with_prefix(tensors, "run/"):
        load_episodes(model, manifest, tensors)
    continues = model.env is not None and bool(with_prefix(tensors, "run/")) and not model.new_episodes
    try:
        try_one_step(model, continues)
    except (ValueError, IndexError, RuntimeError) as error:
        if not continues or manifest["format_version"] > 1:
            raise
        _start_new_episodes(model, error)
        try_one_step(model, False)


def load_policy(model: TrainingEnv, manifest: dict[str, Any], tensors: Tensors, replaced: Collection[str] = ()) -> None:
    """Parameters, buffers and the optimiser's state; `replaced` as of `restore`.

    Raises:
        ValueError: a weight is infinite or NaN, or the optimiser's state does not fit its parameters.
    """
    weights = with_prefix(tensors, "policy/")
    check_finite(weights, model.policy.state_dict())
    model.policy.load_state_dict(weights)
    optimizer, groups = model.policy.optimizer, manifest["param_groups"]
    kept = [{name: value for name, value in group.items() if name in replaced} for group in optimizer.param_groups]
    if len(kept) == len(groups):
        groups = [group | own for group, own in zip(groups, kept, strict=True)]
    load_optimizer(optimizer, groups, with_prefix(tensors, "optimizer/"))


def check_finite(weights: Tensors, like: Tensors) -> None:
    """Checks weights before they are loaded.

    Raises:
        ValueError: a weight is infinite or NaN where a new policy's is finite.
    """
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all() and torch.isfinite(like[name]).all():
            raise ValueError(f"{name} has weights that are infinite or NaN")


def load_episodes(model: TrainingEnv, manifest: dict[str, Any], tensors: Tensors) -> None:
    """Restores environments, memory and statistics; starts new episodes if they belong to other environments.

    Raises:
        ValueError: the statistics, or the states of equal environments or of the memory, have a wrong form.
    """
    running, own = with_prefix(tensors, "run/"), prefix_of(distributed.rank())
    recent = running["recent_episodes"]
    if recent.dim() != 2 or recent.shape[1] != 3 or not torch.isfinite(recent).all():
        raise ValueError(f"recent_episodes is {list(recent.shape)}, expected finite numbers [episodes, 3]")
    assert model.ep_info_buffer is not None
    assert model.ep_success_buffer is not None
    for reward, length, elapsed in recent.tolist():
        model.ep_info_buffer.append({"r": reward, "l": int(length), "t": elapsed})
    successes = running.get("recent_successes", torch.zeros(0))  # missing in older checkpoints
    if successes.dim() != 1 or not torch.isfinite(successes).all():
        raise ValueError(f"recent_successes is {list(successes.shape)}, expected finite numbers [episodes]")
    model.ep_success_buffer.extend(successes.tolist())
    env = model.tensor_env
    saved = manifest["environment"] if manifest["format_version"] > 1 else manifest["env"]
    saved_counts, counts = (manifest.get("ranks", 1), manifest["num_envs"]), (distributed.size(), model.all_envs)
    if saved_counts != counts:
        texts = (f"ranks={ranks} and num_envs={envs}" for ranks, envs in (saved_counts, counts))
        model.new_episodes = "the checkpoint has {}, this run {}".format(*texts)
    elif differs := difference(saved, describe(env)):
        model.new_episodes = differs
    elif isinstance(env, HostEnv):
        model.new_episodes = "the environments run on the host, where their state cannot be read"
    if not model.new_episodes:
        try:
            memory = _checked_memory_state(model, with_prefix(tensors, f"{own}memory/"))
            running |= with_prefix(tensors, f"{own}run/")
            _resume_episodes(model, manifest, with_prefix(tensors, f"{own}env/"), running, memory)
            return
        except (ValueError, IndexError) as error:
            if manifest["format_version"] > 1:  # the environments are equal, so the file is wrong
                raise
            _start_new_episodes(model, error)
    _reseed_env(model)  # not the first episodes again


def _start_new_episodes(model: TrainingEnv, error: Exception) -> None:
    """For checkpoints of version 1, which do not describe their environments: a mismatch shows only on stepping."""
    model.new_episodes = f"the environments are not those of the checkpoint ({' '.join(str(error).split())})"
    model._last_obs = None
    _reseed_env(model)


def _reseed_env(model: TrainingEnv) -> None:
    if model.seed is not None and model.env is not None:
        model.env.seed(_new_seed(model))


def _new_seed(model: TrainingEnv) -> int:
    assert model.seed is not None
    return distributed.own_seed((model.seed + model.num_timesteps) % 2**32)


def _resume_episodes(
    model: TrainingEnv, manifest: dict[str, Any], environment: Tensors, running: Tensors, memory: Tensors
) -> None:
    env = model.tensor_env
    if model.new_generators and "generator" in environment:
        if model.seed is not None:
            env.generator.manual_seed(_new_seed(model))
        environment["generator"] = env.generator.get_state()
    stored = model.rollout.obs
    named = stored if isinstance(stored, dict) else {"": stored}
    expected = {f"obs/{name}": value[0] for name, value in named.items()}
    expected["starts"] = model.rollout.starts[0]
    returns, lengths = model.episodes.returns, model.episodes.lengths
    expected |= {"episode_returns": torch.from_numpy(returns), "episode_lengths": torch.from_numpy(lengths)}
    for name, example in expected.items():
        _check_like(f"run/{name}", running[name], example)
    entries = getattr(model.observation_space, "spaces", {"": model.observation_space})
    observations = {}
    for name, space in entries.items():
        value = running[f"obs/{name}"]
        highest = {spaces.Discrete: "n", spaces.MultiDiscrete: "nvec"}.get(type(space))
        if highest and bool(((value < 0) | (value >= torch.as_tensor(getattr(space, highest)))).any()):
            raise ValueError(f"run/obs/{name} has values that are not in {space}")
        observations[name] = value.to(model.device)
    for name, (low, high) in env.state_limits().items():
        if name in environment and bool(((environment[name] < low) | (environment[name] > high)).any()):
            raise ValueError(f"env/{name} has values that are not from {low} to {high}")
    env.load_state_dict(environment)
    obs = observations if isinstance(stored, dict) else observations[""]
    model.rollout_state = LearnerState(obs, memory, running["starts"].to(model.device), manifest["may_start"])
    model.episodes.returns = running["episode_returns"].numpy()
    model.episodes.lengths = running["episode_lengths"].numpy()
    model._last_obs = as_numpy(obs)  # tells SB3 that there is no need to reset


def _checked_memory_state(model: TrainingEnv, state: Tensors) -> Tensors:
    """The saved state of the memory on the learner's device, once its shapes are checked."""
    expected = model.policy.initial_state(model.n_envs)
    if shapes(state) != shapes(expected):
        raise ValueError(f"the memory's state is {shapes(state)}, expected {shapes(expected)}")
    for name, value in state.items():
        _check_like(f"memory/{name}", value, expected[name])
    return {name: value.to(model.device) for name, value in state.items()}


def _check_like(name: str, value: Tensor, example: Tensor) -> None:
    """Checks that a tensor has the type and shape of `example`, and is finite where `example` is.

    Raises:
        ValueError: the tensor differs, or has infinite values or NaN.
    """
    if value.shape != example.shape or value.dtype != example.dtype:
        found, wanted = (f"{str(each.dtype).removeprefix('torch.')} {list(each.shape)}" for each in (value, example))
        raise ValueError(f"{name} is {found}, expected {wanted}")
    if value.is_floating_point() and not torch.isfinite(value).all() and torch.isfinite(example).all():
        raise ValueError(f"{name} has values that are infinite or NaN")


# -- trial step --------------------------------------------------------------------------------------------------------


def try_one_step(model: TrainingEnv, running: bool) -> None:
    """Takes one trial step of the agent, and of its environments if they continue, and undoes it.

    A file may have the right types and shapes and still be invalid, such as a position outside the maze.

    Raises:
        ValueError: the step fails, or the agent's output is infinite or NaN.
    """
    policy = model.policy
    if running:
        current = model.rollout_state
        obs, state, starts = current.obs, current.memory, current.starts
    else:
        batch = model.n_envs if model.env is not None else 1
        obs = any_observation(model.observation_space, batch, model.device)
        state, starts = policy.initial_state(batch), None
    env = model.tensor_env if running else None
    info = {} if env is None else env.describe()
    with _undoing_changes(model), torch.no_grad():
        step = policy.remember(obs, state, starts)
        try:
            decision = policy.decide(step.output, False, step.grid, info.get("action_mask"))
        except RuntimeError as error:
            raise ValueError(f"no action can be sampled: {error}") from error
        if not (torch.isfinite(decision.value).all() and torch.isfinite(decision.log_prob).all()):
            raise ValueError("the agent's output is infinite or NaN: its weights have diverged")
        if env is None:
            return
        before, action = env.state_dict(), policy.actions.to_env(decision.action)
        if model.learns_from_targets:
            grid = None if step.grid is None else step.grid[None]
            policy.log_prob(step.output[None], policy.actions.from_env(info["target"])[None], grid)
        for _ in range(2):
            env.step(action)
        env.load_state_dict(before)


@contextmanager
def _undoing_changes(model: TrainingEnv) -> Iterator[None]:
    policy, generators = model.policy, get_generators()
    buffers = {name: value.clone() for name, value in policy.named_buffers()}
    training = policy.training
    policy.set_training_mode(False)
    try:
        yield
    finally:
        policy.set_training_mode(training)
        set_generators(generators)
        for name, value in policy.named_buffers():
            if not torch.equal(value, buffers[name]):
                value.copy_(buffers[name])
