"""The learner's environment: replacing it, and detecting resets and steps made by user code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor

from agents.environments import EnvLike, HostEnv, TensorVecEnv, as_tensor_env
from agents.hyperparameters import Hyperparameters
from agents.metrics.critic import CriticWatch
from agents.metrics.episodes import Episodes
from agents.metrics.task import TaskMetrics
from agents.returns import state_values
from agents.rollout import LearnerState, Rollout
from agents.scale import distributed
from envs.tensor_env import TensorEnv
from policies.policy import MemoryActorCriticPolicy


class TrainingEnv(BaseAlgorithm):
    """Two views of the same environments: `tensor_env`, which the learner steps, and `get_env()`, which SB3's callbacks
    see. Resets and steps that the learner did not make are detected."""

    policy: MemoryActorCriticPolicy
    new_episodes: str = ""
    """Why environments do not continue from their state in the checkpoint; empty if they do."""
    new_generators: str = ""
    """Why random generators do not continue from their state in the checkpoint; empty if they do."""
    unused_run: tuple[dict[str, Any], dict[str, Tensor]] | None = None
    """Manifest and tensors of a run that was loaded without its environments; `save` writes them back."""
    generators_to_set: dict[str, Tensor]
    """States of the random generators from a checkpoint, until `learn` sets them."""
    whole_episodes: bool
    normalize_values: bool
    rollout: Rollout
    episodes: Episodes
    task_metrics: TaskMetrics
    scores: Tensor
    """Amounts and counts of the task's metrics over the last rollout."""
    executor: Any
    config_class: ClassVar[type[Hyperparameters]]
    fast: str
    n_steps: int
    max_grad_norm: float
    target_coef: float
    critic_watch: CriticWatch
    policy_watch: Any
    learns_from_targets: ClassVar[bool]
    memory_seconds: float
    env_seconds: float
    learn_seconds: float
    before_dump: Callable[[], None] | None = None
    """Called before the log of an iteration is written, after its update."""
    rollout_began: int
    """`num_timesteps` before the rollout."""
    rollout_state: LearnerState
    """Observation, memory state and reset signal, carried from step to step."""
    user_moves: int
    """`TensorEnv.user_moves` after the learner's last step or reset; it differs if user code moved them."""
    _tensor_env: TensorEnv | None

    @property
    def tensor_env(self) -> TensorEnv:
        """The training environment behind its tensor interface.

        Raises:
            ValueError: there is none.
        """
        if self._tensor_env is None:
            raise ValueError("the model was loaded without an environment; call set_env")
        return self._tensor_env

    @property
    def all_envs(self) -> int:
        """Number of environments on all ranks; `n_envs` is this rank's."""
        return self.n_envs * distributed.size()

    @staticmethod
    def _wrap_env(env: VecEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:  # type: ignore[override]
        return env  # already a `TensorVecEnv`

    def set_env(self, env: EnvLike, force_reset: bool = True) -> None:
        """As in SB3. The number of environments may change; running episodes are then aborted.

        Raises:
            ValueError: its spaces are not the agent's.
            TypeError: it is not an environment.
        """
        found = as_tensor_env(env, self.device)
        for name in ("observation_space", "action_space"):
            theirs, ours = getattr(found, f"single_{name}"), getattr(self, name)
            if theirs != ours:
                raise ValueError(f"the spaces do not match: the environment's {name} is {theirs}, the agent's {ours}")
        if force_reset or self._tensor_env is None or found.num_envs != self.n_envs:
            self._last_obs = None
        self._tensor_env, self.n_envs = found, found.num_envs
        self.env = TensorVecEnv(found)
        self._vec_normalize_env = unwrap_vec_normalize(self.env)
        self._setup_env()

    def _setup_env(self) -> None:
        """Sets everything that depends on the environments."""
        raise NotImplementedError

    @property
    def policy_arguments(self) -> dict[str, Any]:
        """Constructor arguments of the policy, except spaces and learning rate."""
        raise NotImplementedError

    def diagnostics(self, rollout: Rollout) -> dict[str, Tensor]:
        """The learner's diagnostics of a rollout by their log names."""
        raise NotImplementedError

    def check_targets(self) -> None:
        """Checks that the environment gives right actions, `info["target"]`, if the learner needs them; this begins its
        first episode.

        Raises:
            ValueError: it gives none, or weights of another shape than actions have.
        """
        if not (self.learns_from_targets or self.target_coef):
            return
        env = self.tensor_env
        info = {} if isinstance(env, HostEnv) else env.describe() if env.started else env.reset()[1]
        if "target" not in info:
            own = "a2c and ppo learn from its rewards"
            advice = own if self.learns_from_targets else f"target_coef is {self.target_coef:g}, expected 0"
            raise ValueError(f"the environment gives no targets to learn from; {advice}")
        parts = isinstance(self.action_space, spaces.MultiDiscrete) and self.action_space.nvec.size
        weight = [*info["weight"].shape] if "weight" in info else "missing"
        expected = [[self.n_envs], *([[self.n_envs, parts]] if parts else [])]
        if weight not in expected:
            wanted = " or ".join(map(str, expected))
            raise ValueError(f'the shape of info["weight"] is {weight}, expected {wanted} for {self.action_space}')

    def env_was_moved(self) -> bool:
        """Whether user code has reset or stepped the environments, in a callback or between two calls."""
        return bool(self.tensor_env.user_moves != self.user_moves)

    def begin_episodes(self) -> None:
        """Starts new episodes at the environments' current observations, with a reset memory."""
        starts = torch.ones(self.n_envs, dtype=torch.bool, device=self.device)
        memory = self.policy.initial_state(self.n_envs)
        self.rollout_state = LearnerState(self.tensor_env.observe(), memory, starts, may_start=True)
        self.user_moves = self.tensor_env.user_moves
        self.episodes.clear()

    def abort_episodes(self, t: int) -> None:
        """Truncates running episodes after step `t` of a rollout, because a callback has moved the environments."""
        rollout = self.rollout
        ended = rollout.terminated[t] | rollout.truncated[t]
        values = state_values(self.policy, self.rollout_state.obs, self.rollout_state.memory)
        rollout.final_values[t] = torch.where(ended, rollout.final_values[t], values)
        rollout.truncated[t] |= ~ended
        if rollout.aborted is None:
            rollout.aborted = torch.zeros_like(rollout.truncated)
        rollout.aborted[t] = ~ended
        counted = self.episodes.returns.copy(), self.episodes.lengths.copy()
        self.begin_episodes()
        self.episodes.returns, self.episodes.lengths = counted  # as before the rollout, which is yet to be read
