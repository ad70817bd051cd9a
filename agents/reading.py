"""The one read of an iteration: what roll-outs and updates of all ranks say, brought to the host and into the log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents import distributed
from agents.non_finite import refuse_non_finite
from policies.action_masks import refuse_without_choice, without_choice

if TYPE_CHECKING:
    from agents.on_policy import MemoryOnPolicyAlgorithm


_WITHOUT = "masks that allow nothing"


class Report(NamedTuple):
    """What there is to read of an iteration, still on the device."""

    names: tuple[str, ...]
    """Of the metrics."""
    numbers: Tensor
    """Metrics, task scores, rewards and ends, one after the other."""


def report(model: MemoryOnPolicyAlgorithm, metrics: dict[str, Tensor]) -> Report:
    """Put `metrics`, the learner's diagnostics and what happened in the roll-out into one tensor."""
    rollout = model.rollout
    metrics = {**metrics, **model.diagnostics(rollout)}
    if rollout.masks is not None:
        metrics["rollout/valid_actions"] = rollout.masks.float().mean()
        metrics[_WITHOUT] = without_choice(rollout.masks.flatten(0, 1), model.action_space).sum()
    ended = rollout.terminated | rollout.truncated
    parts = [torch.stack([metric.detach().float() for metric in metrics.values()])]
    parts += [model.scores, rollout.rewards.flatten(), ended.flatten()]
    return Report(tuple(metrics), torch.cat(parts))


def read(model: MemoryOnPolicyAlgorithm, found: Report) -> None:
    """Read rewards, episode ends and metrics in the iteration's one transfer; count episodes; fill the log.

    Metrics are means over the ranks, task scores are summed before they are divided, and the episodes are those of all
    ranks, in the order in which one process with all environments would meet them.

    Raises:
        NonFiniteError: a metric is infinite or NaN, on every rank alike.
        ValueError: an action mask allowed nothing.
    """
    ends_of = np.cumsum([len(found.names), len(model.scores)])
    of_ranks = distributed.gather(found.numbers).cpu().numpy()  # [ranks, ...]
    means, sums, steps = np.split(of_ranks, ends_of, axis=1)
    values = dict(zip(found.names, means.mean(0).tolist(), strict=True))
    rewards, ends = (
        steps.reshape(-1, 2, model.n_steps, model.n_envs).transpose(1, 2, 0, 3).reshape(2, model.n_steps, -1)
    )
    assert model.ep_info_buffer is not None
    elapsed = time.time() - model.start_time / 1e9
    for episode in model.episodes.ended(rewards, ends > 0):
        model.ep_info_buffer.append({**episode, "t": elapsed})
        model._episode_num += 1
    refuse_without_choice(values.pop(_WITHOUT, 0.0))
    refuse_non_finite(model, values)
    for name, value in values.items():
        model.logger.record(name, value)
    for name, value in model.task_metrics.values(sums.sum(0)).items():
        model.logger.record(f"task/{name}", value)
    model.logger.record("train/n_updates", model._n_updates, exclude="tensorboard")
