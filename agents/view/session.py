"""An episode of one environment, played by an agent or a person, as a sequence of `Scene`s."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents.environments import HostEnv
from agents.view.canvas import Box
from agents.view.hosts import LastPicture, task_of
from agents.view.names import Names, names_of
from agents.view.observation import views_of
from agents.view.panels import PanelHistory
from agents.view.scene import Scene, View
from envs.rendering import Frame, drawing_for
from envs.tensor_env import Info, Obs, TensorEnv
from policies.memories.contract import State
from policies.policy import MemoryActorCriticPolicy


class Session:
    """One environment, played by an agent or by a person (`policy` None).

    After `reset` and every `step` the agent has read the observation and chosen an action; `scene` describes that
    moment. `step` then takes this action, or the given one.

    Args:
        env: with `num_envs=1`. Its autoreset is turned off if possible, so that the last observation is shown.
        policy: the agent's policy.
        title: title of the pictures.
        subtitle: a line under it.
        deterministic: act greedily instead of sampling.
        seed: seed of the first episode; None: random.
        critic: whether the agent learned values; if not, none are shown.

    Raises:
        ValueError: `env` has another `num_envs` than 1.
    """

    def __init__(
        self,
        env: TensorEnv,
        policy: MemoryActorCriticPolicy | None,
        title: str = "",
        subtitle: str = "",
        deterministic: bool = False,
        seed: int | None = None,
        critic: bool = True,
    ) -> None:
        if env.num_envs != 1:
            raise ValueError(f"a session takes an environment with num_envs=1, not {env.num_envs}")
        self.env, self.policy = env, policy
        self.title, self.subtitle = title, subtitle
        self.deterministic, self.critic = deterministic, critic
        self.returns: list[float] = []
        """Returns of finished episodes."""
        self.task = task_of(env)
        """The task in one line."""
        self.known_names = names_of(env)
        self.names = action_names(env, self.known_names)
        self._camera: LastPicture | None = None
        if isinstance(env, HostEnv):
            self._camera = LastPicture(env)
        else:
            env.autoreset = False
        if policy is not None:
            policy.set_training_mode(False)
        self.episode = 0
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Starts a new episode; a running one is aborted."""
        self._begin(*self.env.reset(seed=seed))

    def _begin(self, obs: Obs, info: Info) -> None:
        self.episode += 1
        self.steps, self.total, self.reward, self.over = 0, 0.0, 0.0, False
        self.traces: dict[str, list[float]] = {"value": [], "reward": [], "return": []}
        """The episode so far: value of each decision, reward and return after each step."""
        self._next: tuple[Obs, Info] | None = None
        self.state: State | None = None
        self.history = PanelHistory()
        self.obs, self.mask = obs, info.get("action_mask")
        self._decide()

    def _decide(self) -> None:
        self.action: Tensor | None = None
        self.value: float | None = None
        if self.over:
            return  # keep the probabilities of the last decision
        self.probabilities: np.ndarray[Any, Any] | None = None
        if self.policy is None:
            return
        with torch.no_grad():
            state = self.policy.initial_state(1) if self.state is None else self.state
            step = self.policy.remember(self.obs, state)
            self.state = step.state
            self.history.add(self.policy.memory.panels(step.state))
            decision = self.policy.decide(step.output, self.deterministic, step.grid, self.mask)
            probabilities = self.policy.action_probabilities(step.output, step.grid, self.mask)
            self.action = self.policy.actions.to_env(decision.action)
        if self.critic:
            self.value = float(decision.value)
            self.traces["value"].append(self.value)
        if probabilities is not None:
            self.probabilities = probabilities[0].cpu().numpy()

    def step(self, action: Tensor | None = None) -> None:
        """Takes `action` `[1, *action_shape]`, by default the agent's. If the episode is over, starts the next."""
        if self.over:
            if self._next is None:
                self.reset()
            else:
                self._begin(*self._next)
            return
        if self._camera is not None:
            self._camera.picture = None
        action = self.action if action is None else action
        assert action is not None, "without an agent, step needs an action"
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.reward = float(reward)
        self.total += self.reward
        self.steps += 1
        self.traces["reward"].append(self.reward)
        self.traces["return"].append(self.total)
        ended = bool(terminated | truncated)
        if ended:
            self.returns.append(self.total)
        if ended and isinstance(self.env, HostEnv):  # it has already started the next episode
            self._next = obs, info
            obs = info.get("final_obs", obs)
        self.obs, self.mask, self.over = obs, info.get("action_mask"), ended
        self._decide()

    def scene(self, note: str = "", subtitle: str | None = None) -> Scene:
        """The current scene."""
        played = self.policy is None
        hidden = played and not self.over  # the hidden parts are shown at the end
        space = self.env.single_action_space
        action = None if self.action is None else self.action[0].cpu().numpy().reshape(-1)
        taken: list[int] = []
        if action is not None and isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
            action = action - np.ravel(space.start)
        if action is not None:
            taken = np.flatnonzero(action).tolist() if isinstance(space, spaces.MultiBinary) else [int(action[0])]
        probabilities = self.probabilities
        if probabilities is not None and isinstance(space, spaces.MultiBinary) and len(space.shape) > 1:
            maps = probabilities.reshape(-1, *space.shape[-2:])
            probabilities = np.concatenate(list(maps), axis=1)
        choices = isinstance(space, (spaces.Discrete, spaces.MultiBinary))
        names = self.known_names.actions
        if choices or action is None or len(names) != len(action):
            names = ()
        if choices and probabilities is None:  # the episode is over, so there is no next action
            probabilities = None if played else np.zeros(len(self.names))
        return Scene(
            title=self.title,
            subtitle=self.subtitle if subtitle is None else subtitle,
            frame=None if hidden else self._frame(),
            paint=None if hidden or isinstance(self.env, HostEnv) else self._paint,
            traces={} if played else self.traces,
            views=observation_views(self.env, self.obs, self.known_names),
            actions=self.names if choices else (),
            probabilities=probabilities,
            taken=taken if choices else (),
            numbers=None if choices else action,
            names=names,
            exclusive=isinstance(space, spaces.Discrete),
            bounds=_bounds(space),
            value=self.value,
            total=self.total,
            reward=self.reward,
            step=self.steps,
            episode=self.episode,
            panels=self.history.panels(),
            note=note or ("episode over" if self.over else ""),
            played=played,
        )

    def _paint(self, area: Box, scale: float) -> Frame | None:
        """The environment's picture for this area."""
        with drawing_for(area.width, area.height, scale):
            return self._frame()

    def _frame(self) -> Frame | None:
        if self.over and self._camera is not None and self._camera.picture is not None:
            return self._camera.picture
        try:
            return self.env.frame(0)
        except (NotImplementedError, RuntimeError, gymnasium.error.Error):
            return None  # it draws nothing


def _bounds(space: spaces.Space[Any]) -> tuple[float, float]:
    """Bounds of an action's entries."""
    if isinstance(space, spaces.Box):
        return float(np.min(space.low)), float(np.max(space.high))
    return 0.0, float(np.max(space.nvec - 1)) if isinstance(space, spaces.MultiDiscrete) else 1.0


def action_names(env: TensorEnv, names: Names | None = None) -> tuple[str, ...]:
    """Names of the choices, or their numbers; empty unless the action is one choice or bits."""
    space = env.single_action_space
    if isinstance(space, spaces.Discrete):
        count = int(space.n)
    elif isinstance(space, spaces.MultiBinary):
        count = int(np.prod(space.shape))
    else:
        return ()
    known = (names_of(env) if names is None else names).actions
    return known if len(known) == count else tuple(str(index) for index in range(count))


def observation_views(env: TensorEnv, obs: Obs, names: Names | None = None) -> list[View]:
    """The observation of environment 0, in drawable parts."""
    labels = env.observation_names
    if isinstance(obs, dict):
        space = env.single_observation_space
        assert isinstance(space, spaces.Dict)
        views = [
            view
            for key, part in obs.items()
            for view in views_of(key, part[0].cpu().numpy(), space[key], labels.get(key, ()))
        ]
    elif env.observation_parts:
        views = _named_views(env, obs[0].cpu().numpy())
    else:
        known = (names_of(env) if names is None else names).observed
        views = views_of("observed", obs[0].cpu().numpy(), env.single_observation_space, known)
    text = env.observation_text(0)
    return [*views, View("that is", np.zeros(1), word=text)] if text else views


def _named_views(env: TensorEnv, values: np.ndarray[Any, Any]) -> list[View]:
    space, views, end = env.single_observation_space, [], 0
    assert isinstance(space, spaces.Box)
    for name, shape in env.observation_parts:
        part = slice(end, end := end + math.prod(shape))
        low, high = float(space.low[part].min()), float(space.high[part].max())
        numbers = values[part]
        if numbers.size > 1 and np.isin(numbers, (0, 1)).all():  # bits, whatever the bounds of the whole observation
            low, high = 0.0, 1.0
        labels = env.observation_names.get(name, ())
        views.append(View(name, numbers.reshape(shape), low, high, centred=shape == (3, 3), labels=labels))
    return views
