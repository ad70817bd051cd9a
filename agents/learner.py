"""`MemoryOnPolicyAlgorithm`: base class of the learners.

It owns the rollout on the device, the memory state carried between rollouts, the reset signal, the advantages, the
episode statistics and the log. A learner adds `learn_from`, which updates the parameters from one rollout.

One iteration is collect → train → log. Logging is the only transfer to the host.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar, get_args

import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from torch import Tensor

from agents import checkpoint
from agents.checkpoint.files import Place, Source
from agents.checkpoint.generators import set_generators
from agents.collect import Collector
from agents.common.arguments import check_policy, read_typed
from agents.environments import EnvLike, HostEnv, TensorVecEnv, as_tensor_env, device_for
from agents.hyperparameters import (
    Hyperparameters,
    Setup,
    bind_arguments,
    check_definition,
    check_policy_names,
    checked_values,
    fields_of,
    schedule_value,
    signature_of,
)
from agents.metrics.critic import CriticWatch
from agents.metrics.episodes import Episodes
from agents.metrics.report import log_times
from agents.metrics.task import TaskMetrics
from agents.rollout import Rollout
from agents.sb3.callback_locals import Locals
from agents.scale import distributed
from agents.scale.executor import Executor
from agents.scale.fast import Fast, prepare
from agents.updates import Updates
from policies.memories.contract import State
from policies.memories.time.scopes import constant_parameters
from policies.policy import MemoryActorCriticPolicy

Self = TypeVar("Self", bound="MemoryOnPolicyAlgorithm")


class MemoryOnPolicyAlgorithm(Updates, OnPolicyAlgorithm):
    """Base of the learners; see `A2C` and `PPO` for use.

    A learner declares its hyper-parameters (`config_class`) and implements `learn_from`. The constructor takes them by
    position or name, in the order of the dataclass, and makes each an attribute.

    Args:
        policy: "MemoryPolicy" or a subclass of `MemoryActorCriticPolicy`; its arguments (such as the memory's name) are
            in `policy_kwargs`, as in SB3.
        env: a Gymnasium id (one environment), `Env`, `VectorEnv`, SB3 `VecEnv` or `TensorEnv`; see
            `agents.environments`. With several ranks (`agents.scale.distributed`), those of this one.
        *args, **kwargs: hyper-parameters, as in `config_class`; then
        fast: "auto" uses fast forms; "off" the reference implementations; "compile" also compiles the memory's step
            with torch.compile (`agents.scale.fast`); "graph" replays whole iterations as CUDA graphs
            (`agents.scale.cuda_graphs`) and raises a ValueError if that is not possible.
        precision: "float32", or "bf16" for whole sequences; see `agents.scale.fast.prepare`.
        stats_window_size: number of episodes averaged in `rollout/ep_*_mean`.
        tensorboard_log: folder, or None.
        policy_kwargs: arguments of the policy.
        verbose: 0 nothing, 1 SB3's table on the terminal.
        seed: random seed of torch, NumPy, `random` and the environments.
        device: "cpu", "cuda", ...; "auto": the environment's device if it has one, else as in SB3.

    Raises:
        TypeError: an argument is unknown, `policy` has no memory, or `env` is not an environment.
        ValueError: an argument is of the wrong type or out of its range; `n_steps` is 0, and episodes have no fixed
            length; or as `MemoryActorCriticPolicy` and `agents.environments.as_tensor_env`.
    """

    config_class: ClassVar[type[Hyperparameters]]
    """The dataclass of hyper-parameters; each is also an attribute of the learner."""
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MemoryPolicy": MemoryActorCriticPolicy}
    learns_from_targets: ClassVar[bool] = False
    """True for supervised learners: they train on `info["target"]` and act greedily."""

    policy: MemoryActorCriticPolicy
    reward_scale, aux_coef, target_coef = 1.0, 1.0, 0.0
    normalize_advantage = normalize_values = normalize_obs = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not hasattr(cls, "config_class"):  # a base of learners
            return
        check_definition(cls, cls.config_class)
        if "__init__" not in vars(cls):
            cls.__signature__ = signature_of(cls.config_class)  # type: ignore[attr-defined]

    def __init__(
        self, policy: str | type[MemoryActorCriticPolicy], env: EnvLike | None, *args: Any, **kwargs: Any
    ) -> None:
        bound = bind_arguments(type(self).__name__, self.config_class, policy, env, *args, **kwargs)
        bound.apply_defaults()
        values = checked_values(self.config_class, bound.arguments)
        setup = Setup(**{entry.name: values[entry.name] for entry in fields_of(Setup)})
        for name in self.hyperparameters():
            setattr(self, name, values[name])
        policy_kwargs = check_policy(setup.policy_kwargs)
        if env is None and setup._init_setup_model:
            raise TypeError("env is None, expected a Gymnasium id, Env, VectorEnv, SB3 VecEnv or TensorEnv")
        if setup.fast not in get_args(Fast):
            raise ValueError(f"fast is {setup.fast!r}, expected one of {', '.join(get_args(Fast))}")
        self.fast, self.precision = setup.fast, setup.precision
        self.executor = Executor(self)
        """How iterations are run."""
        self.step_by_step = False
        """Set by a callback in `on_rollout_start` to be called after every step of this rollout, with the memory's
        state."""
        self.stats_window_size = setup.stats_window_size
        self.critic_watch = CriticWatch()
        self.generators_to_set: dict[str, Tensor] = {}
        self.whole_episodes = False
        """Whether `n_steps` was 0: a rollout is a whole episode."""
        self.stop_requested = False
        """Set it, for example from a signal handler, to end `learn` cleanly after the current iteration."""
        device = device_for(setup.device, env)
        self._tensor_env = None if env is None else as_tensor_env(env, device)
        super().__init__(
            policy=policy,
            env=None if self._tensor_env is None else TensorVecEnv(self._tensor_env),  # type: ignore[arg-type]
            learning_rate=values["learning_rate"],
            n_steps=values["n_steps"],
            gamma=values.get("gamma", 1.0),
            gae_lambda=values.get("gae_lambda", 1.0),
            ent_coef=values.get("ent_coef", 0.0),
            vf_coef=values.get("vf_coef", 0.0),
            max_grad_norm=values["max_grad_norm"],
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=setup.stats_window_size,
            tensorboard_log=setup.tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=setup.verbose,
            seed=setup.seed,
            device=device,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
        )
        if self._tensor_env is not None:  # `env` uses the environments' action numbers, the networks may use others
            self.observation_space = self._tensor_env.single_observation_space
            self.action_space = self._tensor_env.single_action_space
        if setup._init_setup_model:
            self._setup_model()

    @classmethod
    def hyperparameters(cls) -> list[str]:
        """The names of its hyper-parameters, each an attribute."""
        return [entry.name for entry in fields_of(cls.config_class)]

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name in self.policy_aliases:
            return self.policy_aliases[policy_name]
        raise ValueError(
            f"Policy {policy_name} unknown: expected 'MemoryPolicy', whose policy_kwargs={{'memory': 'lstm'}} say what "
            "it remembers with ('identity': nothing, as SB3's MlpPolicy)"
        )

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        if callable(self.learning_rate):
            schedule_value(self.config_class, "learning_rate", self.learning_rate, 1.0)
        self.set_random_seed(self.seed)
        check_policy_names(self.policy_class, self.policy_kwargs)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_arguments
        ).to(self.device)
        num_envs = self.n_envs if self.env is not None else 1
        self.speed_note = prepare(self.policy, self.fast, self.precision, self._takes_sequences(), num_envs)
        """Why `fast` is not fully available; empty if it is."""
        if distributed.rank():  # parameters are equal on all ranks; from here on each rank has its own random numbers
            self.set_random_seed(distributed.own_seed(torch.initial_seed() if self.seed is None else self.seed))
        self.memory_seconds = self.env_seconds = self.learn_seconds = 0.0
        if self.env is not None:
            self._setup_env()

    @property
    def policy_arguments(self) -> dict[str, Any]:
        """Constructor arguments of the policy, except spaces and learning rate."""
        return {"normalize_values": self.normalize_values, "normalize_obs": self.normalize_obs} | self.policy_kwargs

    def _setup_env(self) -> None:
        """Sets everything that depends on the environments."""
        self.check_targets()
        self.whole_episodes = self.whole_episodes or self.n_steps == 0
        if self.whole_episodes:
            if self.tensor_env.horizon is None:
                raise ValueError("n_steps is 0 (a whole episode), but the episodes have no fixed length: give n_steps")
            self.n_steps = self.tensor_env.horizon
        self.task_metrics = TaskMetrics(self.tensor_env.metric_names, self.device)
        self.scores = self.task_metrics.sums()
        """Amounts and counts of the task's metrics in the last rollout."""
        self.rollout = Rollout.allocate(self.n_steps, self.tensor_env, isinstance(self.tensor_env, HostEnv))
        if self._last_obs is None:  # else its episodes go on: `set_env(env, force_reset=False)`
            self.episodes = Episodes(self.all_envs)
        self.user_moves = self.tensor_env.user_moves

    @property
    def rollout_buffer(self) -> Rollout:  # type: ignore[override]
        """The rollout, by the name under which SB3's callbacks look for it: tensors `[T, N, ...]` on the device."""
        return self.rollout

    def collector(self) -> Collector:
        """The collector of the next rollout."""
        raise NotImplementedError

    def _takes_sequences(self) -> bool:
        """Whether its memory processes whole sequences by `Memory.unroll`, while collecting or in a replay."""
        collector = self.collector()
        return collector.sequences or not collector.graph

    def predict(  # type: ignore[override]
        self,
        observation: Any,
        state: State | None = None,
        episode_start: Any = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[Any, State]:
        """As SB3's, and with masks of valid actions as sb3-contrib's `MaskablePPO`; see the policy's `predict`."""
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)

    # -- learn -----------------------------------------------------------------------------------------------------

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if self.env is None:
            raise ValueError("there is no environment to learn from; call set_env")
        total_timesteps = math.ceil(read_typed("total_timesteps", total_timesteps, float))
        sb3_resets = reset_num_timesteps or self._last_obs is None
        distributed.equalise(self.policy)
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if sb3_resets or self.env_was_moved():  # for example by evaluate_policy(model, model.get_env())
            self.begin_episodes()
        if self.generators_to_set and not reset_num_timesteps:  # the first call after `load`
            set_generators(self.generators_to_set)
        self.generators_to_set = {}
        self.rollout.allocate_masks(self.tensor_env.describe().get("action_mask"), self.action_space)
        return result

    def learn(
        self: Self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str = "run",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """As in SB3, except that an iteration's log is written after its update, so that it holds both.

        Raises:
            NonFiniteError: a tensor became NaN or infinite; the message names it and the step.
            ValueError: there is no environment; an argument is out of its range; a schedule gives a value out of its
                range; or `fast` is "graph", and capture is not possible.
            RankLostError: another rank has ended.
        """
        if log_interval == 0:
            raise ValueError("log_interval is 0, expected a whole number of at least 1, or None for no logs")
        iteration = 0
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        callback.on_training_start(Locals(locals()), globals())
        self.executor = self.make_executor()
        while self.num_timesteps < total_timesteps and not self._stops():
            self.step_by_step = False
            callback.on_rollout_start()
            if self.env_was_moved():
                self.begin_episodes()
            if not self.executor.iterate(callback):
                break
            iteration += 1
            if log_interval is not None and iteration % log_interval == 0:
                self.dump_logs(iteration)
        callback.on_training_end()
        return self

    def make_executor(self) -> Executor:
        """The executor of iterations: CUDA graphs if `fast` and the device allow it, else eager steps.

        Raises:
            ValueError: `fast` is "graph", and capture is not possible.
        """
        if self.fast == "graph" or (self.fast == "auto" and self.device.type == "cuda"):
            from agents.scale.cuda_graphs.replay import graphs_for  # not imported by CPU runs

            return graphs_for(self) or Executor(self)
        return Executor(self)

    def _stops(self) -> bool:
        """Whether any rank was asked to stop: all stop together, or the others would wait for it."""
        stops = distributed.any_rank(self.stop_requested)
        if stops:
            self.stop_requested = True
        return stops

    def iterate(self, callback: BaseCallback) -> bool:
        """One iteration; False if a callback asked to stop before the update."""
        if not self.collect_rollouts(self.env, callback, self.rollout, self.n_steps):
            return False
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        started = time.perf_counter()
        self.train()
        self.learn_seconds += time.perf_counter() - started
        return True

    @constant_parameters()
    def collect_rollouts(  # type: ignore[override]
        self, env: Any, callback: BaseCallback, rollout_buffer: Rollout, n_rollout_steps: int
    ) -> bool:
        """Fills the rollout; False if a callback asked to stop. The signature is SB3's; the learner's own environment
        and rollout are used."""
        return self.collector().collect(callback)

    # -- save and load ---------------------------------------------------------------------------------------------

    def save(  # type: ignore[override]
        self, path: Place, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
    ) -> None:
        """Write a checkpoint; see `agents.checkpoint.save`. `exclude` is ignored: the content is fixed.

        Raises:
            ValueError, TypeError, OSError: as there.
        """
        checkpoint.save(self, path, include)

    @classmethod
    def load(  # type: ignore[override]
        cls: type[Self],
        path: Place | Source,
        env: EnvLike | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Load a checkpoint; see `agents.checkpoint.load`.

        Raises:
            CheckpointError, TypeError: as there.
        """
        return checkpoint.load(cls, path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    def set_env(self, env: EnvLike, force_reset: bool = True) -> None:
        """As in SB3. The environments may differ in number, arguments and horizon: then new episodes start, and
        `new_episodes` says why.

        Raises:
            ValueError: its spaces are not the agent's, or as `agents.environments.as_tensor_env`.
            TypeError: it is not an environment.
        """
        new_env = as_tensor_env(env, self.device)
        change = checkpoint.describe_env_change(self, new_env)
        replaced = new_env is not self._tensor_env and not isinstance(new_env, HostEnv)
        super().set_env(new_env, force_reset=force_reset or replaced)
        self.new_episodes, self.unused_run = change, None

    def set_parameters(
        self, load_path_or_dict: Any, exact_match: bool = True, device: torch.device | str = "auto"
    ) -> None:
        """As in SB3, from a dictionary, or from a checkpoint's policy and optimiser.

        Raises:
            CheckpointError: the checkpoint is damaged, or of another policy.
            TypeError: it is neither a dictionary, a path nor a binary file object.
        """
        if isinstance(load_path_or_dict, dict):
            super().set_parameters(load_path_or_dict, exact_match, device)
        else:
            checkpoint.load_parameters(self, load_path_or_dict)

    # -- log -------------------------------------------------------------------------------------------------------

    def dump_logs(self, iteration: int = 0) -> None:
        log_times(self)
        super().dump_logs(iteration)
