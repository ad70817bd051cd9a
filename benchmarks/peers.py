"""The peers of `throughput.py`: other libraries on the same maze, with the same work for each step.

sb3-contrib is used unchanged. The CleanRL-style loop is written after CleanRL's `ppo_atari_lstm.py`, without its code:
numpy in and out of the environment, an `nn.LSTM` stepped through time in Python both when acting and when learning,
minibatches cut over environments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor, nn

from agents.environments import TensorVecEnv
from envs.maze import InvisibleGoalMaze

Iteration = Callable[[], object]
"""Collects one rollout and learns from it."""


class PlainMaze(gym.Env[Any, Any]):
    """The invisible-goal maze for one agent in plain Python and numpy, as a user of DummyVecEnv would write it."""

    def __init__(self) -> None:
        maze = InvisibleGoalMaze()
        self.observation_space, self.action_space = maze.single_observation_space, maze.single_action_space
        after = maze._after.numpy().reshape(-1, 4)[::32].ravel()  # cell * 32 + action * 4 + bumped * 2
        self.following, self.rewards = (after // 32).tolist(), (-0.1 * (after // 2 % 2)).tolist()
        self.rows = maze._rows.numpy()
        self.length, self.goal_reward, self.centre = maze.episode_length, maze.goal_reward, maze.centre
        self.cells = len(maze.free_cells)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.random = np.random.default_rng(seed)
        self.cell, self.steps, self.goal = self.centre, 0, int(self.random.integers(self.cells))
        return self.observe(4, 0.0), {}

    def observe(self, action: int, reward: float) -> Any:
        row = self.rows[self.cell * 32 + action * 4].copy()
        row[9] = self.steps / self.length
        row[10] = reward
        return row

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        action = int(action)
        move = self.cell * 4 + action
        reward = self.rewards[move]
        self.cell = self.following[move]
        if self.cell == self.goal:
            reward += self.goal_reward
            self.cell = int(self.random.integers(self.cells))
        self.steps += 1
        return self.observe(action, reward), reward, self.steps == self.length, False, {}


def fast_maze(num_envs: int, device: str) -> VecEnv:
    """Our batched maze with NumPy arrays, the fastest environment for a Stable-Baselines3 learner."""
    return TensorVecEnv(InvisibleGoalMaze(num_envs, device=device))


def plain_mazes(num_envs: int, device: str) -> VecEnv:
    """The usual environment of a Stable-Baselines3 learner."""
    return DummyVecEnv([PlainMaze for _ in range(num_envs)])


def sb3_contrib(
    env: VecEnv,
    n_steps: int,
    hidden: int,
    epochs: int,
    minibatches: int,
    shared: bool,
    device: str,
    layers: Sequence[int] = (),
) -> Iteration:
    """RecurrentPPO. `shared`: one LSTM for actor and critic instead of two; `layers`: sizes before each head."""
    batch = env.num_envs * n_steps
    lstm = {"shared_lstm": True, "enable_critic_lstm": False} if shared else {}
    model = RecurrentPPO(
        "MlpLstmPolicy",
        env,
        n_steps=n_steps,
        batch_size=batch // minibatches,
        n_epochs=epochs,
        policy_kwargs={"lstm_hidden_size": hidden, "net_arch": list(layers), **lstm},
        device=device,
        seed=0,
    )
    return lambda: model.learn(batch, reset_num_timesteps=False)


class CleanStyle(nn.Module):
    """The CleanRL-style agent and its loop."""

    def __init__(self, env: VecEnv, n_steps: int, hidden: int, epochs: int, minibatches: int, device: str) -> None:
        super().__init__()
        self.env, self.n_steps, self.epochs, self.minibatches = env, n_steps, epochs, minibatches
        width, actions = env.observation_space.shape[0], env.action_space.n  # type: ignore[index, attr-defined]
        self.lstm, self.actor, self.critic = nn.LSTM(width, hidden), nn.Linear(hidden, actions), nn.Linear(hidden, 1)
        self.to(device)
        self.place = torch.device(device)
        self.optimizer = torch.optim.Adam(self.parameters(), 3e-4, eps=1e-5)
        self.obs = self.tensor(env.reset())
        self.done = torch.zeros(env.num_envs, device=self.place)
        self.state = tuple(torch.zeros(1, env.num_envs, hidden, device=self.place) for _ in range(2))

    def tensor(self, array: Any) -> Tensor:
        return torch.as_tensor(np.asarray(array, dtype=np.float32)).to(self.place)

    def unroll(self, obs: Tensor, done: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        outputs = []
        for x, d in zip(obs, done, strict=True):
            masked = tuple((1 - d).view(1, -1, 1) * part for part in state)
            output, state = self.lstm(x[None], masked)
            outputs.append(output)
        return torch.cat(outputs), state

    def evaluate(self, latent: Tensor, action: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        policy = torch.distributions.Categorical(logits=self.actor(latent))
        action = policy.sample() if action is None else action
        return action, policy.log_prob(action), policy.entropy(), self.critic(latent).squeeze(-1)

    def iteration(self) -> None:
        shape = (self.n_steps, self.env.num_envs)
        obs = torch.zeros(*shape, self.obs.shape[-1], device=self.place)
        dones, rewards, values, log_probs = (torch.zeros(shape, device=self.place) for _ in range(4))
        actions = torch.zeros(shape, dtype=torch.int64, device=self.place)
        begin = self.state
        with torch.no_grad():
            for t in range(self.n_steps):
                obs[t], dones[t] = self.obs, self.done
                latent, self.state = self.unroll(self.obs[None], self.done[None], self.state)
                actions[t], log_probs[t], _, values[t] = self.evaluate(latent[0], None)
                new, reward, done, _ = self.env.step(actions[t].cpu().numpy())
                self.obs, self.done, rewards[t] = self.tensor(new), self.tensor(done), self.tensor(reward)
            latent, _ = self.unroll(self.obs[None], self.done[None], self.state)
            advantages, last = torch.zeros_like(rewards), torch.zeros(self.env.num_envs, device=self.place)
            following, alive = self.critic(latent[0]).squeeze(-1), 1 - self.done
            for t in reversed(range(self.n_steps)):
                delta = rewards[t] + 0.99 * following * alive - values[t]
                advantages[t] = last = delta + 0.99 * 0.95 * alive * last
                following, alive = values[t], 1 - dones[t]
        for _ in range(self.epochs):
            for index in torch.randperm(shape[1], device=self.place).tensor_split(self.minibatches):
                state = tuple(part[:, index] for part in begin)
                latent, _ = self.unroll(obs[:, index], dones[:, index], state)
                _, log_prob, entropy, value = self.evaluate(latent, actions[:, index])
                gain = advantages[:, index]
                target = gain + values[:, index]
                gain = (gain - gain.mean()) / (gain.std() + 1e-8)
                ratio = (log_prob - log_probs[:, index]).exp()
                policy_loss = -torch.min(gain * ratio, gain * ratio.clamp(0.8, 1.2)).mean()
                loss = policy_loss + 0.5 * (value - target).square().mean() - 0.01 * entropy.mean()
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters(), 0.5)
                self.optimizer.step()
