"""Copies an iteration's metrics, rewards and episode ends of all ranks to the host in one transfer, and logs them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.environments import HostEnv
from agents.metrics.non_finite import refuse_non_finite
from agents.rollout import Rollout
from agents.sb3.training_env import TrainingEnv
from agents.scale import distributed
from policies.action_masks import refuse_without_choice, without_choice

_VALID, _EMPTY_MASKS = "rollout/valid_actions", "masks that allow nothing"
Array = np.ndarray[Any, Any]


class PackedMetrics(NamedTuple):
    """An iteration's results, still on the device."""

    names: tuple[str, ...]
    """Names of the metrics."""
    numbers: Tensor
    """Metrics, task scores, rewards, ends and the environment's episode counts, concatenated."""


def check_metrics(learner: type, metrics: Any) -> None:
    """Checks the metrics that a learner returned.

    Raises:
        TypeError: one is not a tensor with a single number.
    """
    if not isinstance(metrics, dict):
        found = type(metrics).__name__
        raise TypeError(
            f"{learner.__name__}.learn_from returned {found}, expected its metrics: a dictionary of tensors"
        )
    for name, metric in metrics.items():
        if not isinstance(metric, Tensor) or metric.shape:
            found = f"shape {tuple(metric.shape)}" if isinstance(metric, Tensor) else type(metric).__name__
            raise TypeError(
                f"{learner.__name__} returned the metric {name!r} of {found}, expected a tensor of shape ()"
            )


def pack_metrics(model: TrainingEnv, metrics: dict[str, Tensor]) -> PackedMetrics:
    """Packs `metrics`, the learner's diagnostics and the rollout's rewards and ends into one tensor."""
    rollout = model.rollout
    check_metrics(type(model), metrics)
    metrics = {**metrics, **model.diagnostics(rollout)}
    with torch.no_grad():
        numbers = model.policy.memory.metrics(model.rollout_state.memory)
    metrics |= {f"memory/{name}": number.mean() for name, number in numbers.items()}
    if rollout.masks is not None:
        metrics[_VALID] = rollout.masks.float().mean()
        metrics[_EMPTY_MASKS] = without_choice(rollout.masks.flatten(0, 1), model.action_space).sum()
    elif distributed.size() > 1:  # another rank may have masks already
        metrics |= {_VALID: torch.ones((), device=model.device), _EMPTY_MASKS: torch.zeros((), device=model.device)}
    parts = [torch.stack([metric.detach().float() for metric in metrics.values()])]
    parts += [model.scores, rollout.rewards.flatten(), _ends(rollout).flatten()]
    parts += [] if rollout.episode_stats is None else [rollout.episode_stats.flatten()]
    return PackedMetrics(tuple(metrics), torch.cat(parts))


def log_metrics(model: TrainingEnv, packed: PackedMetrics) -> None:
    """Reads rewards, episode ends and metrics in one transfer, counts episodes and fills the log.

    Metrics are means over the ranks, task scores are summed before they are divided, and the episodes are those of all
    ranks, in the order that one process with all environments would have.

    Raises:
        NonFiniteError: a metric is infinite or NaN, on every rank alike.
        ValueError: an action mask allowed nothing.
    """
    boundaries = np.cumsum([len(packed.names), len(model.scores)])
    of_ranks = distributed.gather(packed.numbers).cpu().numpy()  # [ranks, ...]
    means, sums, steps = np.split(of_ranks, boundaries, axis=1)
    values = dict(zip(packed.names, means.mean(0).tolist(), strict=True))
    # rewards, ends and possibly the environment's counts: [kinds, T, ranks, n_envs]
    of_steps = steps.reshape(len(steps), -1, model.n_steps, model.n_envs).transpose(1, 2, 0, 3)
    _count_episodes(model, *of_steps.reshape(*of_steps.shape[:2], -1))
    refuse_without_choice(values.pop(_EMPTY_MASKS, 0.0))
    if model.rollout.masks is None and values.get(_VALID) == 1:  # no rank has masks
        del values[_VALID]
    refuse_non_finite(model, values)
    if distributed.rank() == 0:
        normalized = model.policy.value_norm is not None
        model.critic_watch.update(values, model.max_grad_norm, normalized, model.n_steps * model.n_envs)
        model.policy_watch.update(values)
    for name, value in values.items():
        model.logger.record(name, value)
    for name, value in model.task_metrics.values(sums.sum(0)).items():
        model.logger.record(f"task/{name}", value)
    model.logger.record("train/n_updates", model._n_updates, exclude="tensorboard")


def log_times(model: TrainingEnv) -> None:
    """Logs the shares of the time of an iteration's parts, and the number of episodes."""
    total = model.env_seconds + model.memory_seconds + model.learn_seconds
    for name in ("env", "memory", "learn"):
        model.logger.record(f"time/{name}_share", getattr(model, f"{name}_seconds") / max(total, 1e-9))
    model.logger.record("rollout/episodes", model._episode_num)
    if model.before_dump is not None:
        model.before_dump()


def _ends(rollout: Rollout) -> Tensor:
    """`[T, N]`: 1 where an episode ended, 2 where it was aborted."""
    return rollout.ended().float() if rollout.aborted is None else rollout.ended().float() + rollout.aborted


def count_stopped(model: TrainingEnv, steps: int) -> None:
    """Counts the episodes in the first `steps` steps of a rollout that a callback has stopped, which is not logged.

    With several ranks only running episodes are forgotten: the other ranks may not have stopped.
    """
    model.task_metrics.sums()
    rollout = model.rollout
    if distributed.size() > 1:
        model.episodes.clear()
        return
    kinds = [rollout.rewards, _ends(rollout), *([] if rollout.episode_stats is None else rollout.episode_stats)]
    _count_episodes(model, *(kind[:steps].cpu().numpy() for kind in kinds))


def _count_episodes(model: TrainingEnv, rewards: Array, ends: Array, *stats: Array) -> None:
    """Logs the episodes that ended, with the environment's own counts if it has any; all arrays are `[T, all_envs]`."""
    assert model.ep_info_buffer is not None
    assert model.ep_success_buffer is not None
    elapsed = time.time() - model.start_time / 1e9
    counted: Iterable[dict[str, Any]] = model.episodes.ended(rewards, ends, np.stack(stats[:2]) if stats else None)
    env = model.tensor_env
    if env.counts_episodes:  # e.g. whole Atari games, where the learner's episodes are single lives
        deque(counted, maxlen=0)
        known = ~np.isnan(stats[0])
        counted = [{"r": float(r), "l": int(steps)} for r, steps in zip(stats[0][known], stats[1][known], strict=True)]
    if isinstance(env, HostEnv):
        from_wrapper, env.counted = env.counted, []
        if env.counts_episodes and distributed.size() == 1:  # with all entries of `Monitor`
            counted = from_wrapper
    for episode in counted:
        model.ep_info_buffer.append({"t": elapsed, **episode})
        model._episode_num += 1
    if stats:
        model.ep_success_buffer.extend(stats[2][(ends == 1) & ~np.isnan(stats[2])].tolist())
