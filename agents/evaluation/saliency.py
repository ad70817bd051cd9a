"""Which earlier observations an agent's decisions depend on: gradients through its memory.

Each observation enters the memory as the encoder's features. The saliency of observation s for step t is the norm of
the gradient of a scalar of step t (the log-probability of the action taken, or the value) by those features.
POPGym Arcade (Wang et al. 2025) shows the same for Q-values and pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from agents.evaluation.scores import check_spaces
from envs.tensor_env import TensorEnv
from policies.policy import MemoryActorCriticPolicy

_DECISIONS = 32  # differentiated in one backward pass, each with a separate copy of the sequence


class Episode(NamedTuple):
    """One episode of an agent, possibly cut."""

    xs: Tensor
    """Encoded observations, `[T, 1, ...]`."""
    queries: dict[str, Tensor]
    """Questions to a memory with readers, each `[T, 1, ...]`; empty for other memories."""
    actions: Tensor
    """`[T, 1, *action_shape]`."""
    masks: Tensor | None
    """Action masks, `[T, 1, choices]`; None: all actions are valid."""
    rewards: Tensor
    """`[T]`."""


class Saliency(NamedTuple):
    """Gradient norms `[T, T]`: row t is a decision, column s an observation; 0 where s > t."""

    log_prob: np.ndarray[Any, np.dtype[Any]]
    value: np.ndarray[Any, np.dtype[Any]]
    rewards: np.ndarray[Any, np.dtype[Any]]
    """`[T]`."""

    def shares(self) -> np.ndarray[Any, np.dtype[Any]]:
        """Each decision's saliency as shares that sum to 1. A confident decision has small gradients throughout."""
        totals = self.log_prob.sum(1, keepdims=True)
        return self.log_prob / np.where(totals > 0, totals, 1.0)

    def earlier_share(self) -> float:
        """Share of the actions' saliency that belongs to observations before the present one, in 0..1."""
        return float(np.tril(self.shares(), -1).sum(1).mean())

    def median_age(self) -> int:
        """The age in steps below which half of the actions' saliency lies, among earlier observations; 0: none."""
        shares = self.shares()
        ages = np.array([np.trace(shares, -age) for age in range(1, len(shares))])
        return 1 + int(np.searchsorted(ages.cumsum(), ages.sum() / 2)) if ages.any() else 0


def play_episode(
    policy: MemoryActorCriticPolicy,
    env: TensorEnv,
    max_steps: int,
    deterministic: bool = False,
    seed: int | None = None,
) -> Episode:
    """Plays one episode of at most `max_steps` steps in a single environment.

    Raises:
        ValueError: there are several environments, or their spaces are not the agent's.
    """
    if env.num_envs != 1:
        raise ValueError(f"saliency needs a single environment; there are {env.num_envs}")
    check_spaces(policy, env)
    policy.set_training_mode(False)
    state = policy.initial_state(1)
    obs, info = env.reset(seed=seed)
    steps: list[tuple[Any, ...]] = []
    with torch.no_grad():
        while len(steps) < max_steps:
            x, *questions = policy.encode(obs)
            step = policy.memory.step(x, state, *questions)
            mask = info.get("action_mask")
            action = policy.act(step.output, deterministic, step.grid, mask)
            state = step.state
            obs, reward, terminated, truncated, info = env.step(policy.actions.to_env(action))
            steps.append((x, questions[0] if questions else {}, action, mask, reward))
            if bool((terminated | truncated).any()):
                break
    xs, queries, actions, masks, rewards = zip(*steps, strict=True)
    return Episode(
        torch.stack(xs),
        {name: torch.stack([each[name] for each in queries]) for name in queries[0]},
        torch.stack(actions),
        None if masks[0] is None else torch.stack(masks),
        torch.cat(rewards),
    )


def saliency(policy: MemoryActorCriticPolicy, episode: Episode, critic: bool = True) -> Saliency:
    """The saliency of all steps of an episode.

    Args:
        policy: the agent's policy.
        episode: played by this policy.
        critic: whether the agent has learned values; if not, the saliency of the value is 0.
    """
    policy.set_training_mode(False)
    length = len(episode.xs)
    norms = np.zeros((2, length, length))
    for begin in range(0, length, _DECISIONS):
        steps = range(begin, min(length, begin + _DECISIONS))
        for number in range(2 if critic else 1):
            norms[number, begin : steps.stop, : steps.stop] = _rows(policy, episode, steps, number)
    return Saliency(norms[0], norms[1], episode.rewards.double().cpu().numpy())


def _rows(policy: MemoryActorCriticPolicy, episode: Episode, steps: range, number: int) -> Any:
    """Rows `steps` `[len(steps), steps.stop]`, for the log-probability (`number` 0) or the value (1).

    The same sequence is repeated for each step, so that one backward pass gives separate gradients of all steps.
    """
    count, end = len(steps), steps.stop

    def repeated(whole: Tensor) -> Tensor:
        part = whole[:end].detach()
        return part.expand(end, count, *part.shape[2:]).clone()

    inputs = [repeated(whole) for whole in (episode.xs, *episode.queries.values())]
    leaves = [each.requires_grad_() for each in inputs if each.is_floating_point()]
    queries = dict(zip(episode.queries, inputs[1:], strict=True)) or None
    with torch.enable_grad():
        unrolled = policy.memory.unroll(inputs[0], None, policy.initial_state(count), (), queries)
        rows, columns = torch.tensor(list(steps)), torch.arange(count)
        latent = unrolled.outputs[rows, columns][None]
        grid = None if unrolled.grids is None else unrolled.grids[rows, columns][None]
        mask = None if episode.masks is None else episode.masks[list(steps), 0][None]
        evaluation = policy.evaluate_latents(latent, episode.actions[list(steps), 0][None], grid, mask)
        scalars = evaluation.log_prob if number == 0 else evaluation.value
        gradients = torch.autograd.grad(scalars.sum(), leaves, allow_unused=True)
    squares = sum(
        (each.double().flatten(2).square().sum(2) for each in gradients if each is not None),
        start=torch.zeros(end, count, dtype=torch.float64, device=episode.xs.device),
    )
    later = torch.arange(end, device=squares.device)[:, None] > rows.to(squares.device)
    return squares.sqrt().masked_fill(later, 0.0).T.cpu().numpy()


def figure(saliency: Saliency, title: str) -> Figure:
    """The saliency of action and value as two pictures; that of the value is left out if it is 0 (no critic)."""
    shown = [("action", saliency.log_prob), *([("value", saliency.value)] if saliency.value.any() else [])]
    drawn = Figure(figsize=(5.2 * len(shown), 5.0), layout="constrained")
    drawn.suptitle(title, fontsize=10)
    for axes, (name, norms) in zip(np.atleast_1d(drawn.subplots(1, len(shown))), shown, strict=True):
        past = np.ma.masked_where(np.triu(np.ones_like(norms, dtype=bool), 1), norms)
        scale = PowerNorm(0.4, 0.0, max(float(norms.max()), 1e-12))
        picture = axes.imshow(past, cmap="magma", norm=scale, aspect="equal")
        for step in np.flatnonzero(saliency.rewards > 0):
            axes.plot([-0.5, step], [step, step], color="white", linewidth=0.4, alpha=0.5)
        axes.set_title(f"what moves the {name}; white lines: rewards", fontsize=9)
        axes.set_xlabel("observation of step", fontsize=8)
        axes.set_ylabel("decision of step", fontsize=8)
        axes.tick_params(labelsize=7)
        drawn.colorbar(picture, ax=axes, shrink=0.7, label="gradient norm").ax.tick_params(labelsize=7)
    return drawn
