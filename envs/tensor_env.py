"""TensorEnv: a Gymnasium vector environment whose arrays are torch tensors on one device.

The state of all `num_envs` environments is a few tensors stepped together: no Python loop over environments, no
transfer to the host. A subclass implements four short methods: `_begin`, `_advance`, `_observe`, and `_describe` if
there are targets or action masks. This base class does seeding, automatic resets, spaces, counters and `state_dict`.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from envs.checks import check_advance, check_metrics, check_observation
from envs.preview import Obs as Obs
from envs.preview import Preview

Info = dict[str, Any]


class AnswerGroup(NamedTuple):
    """A grouping of a task's answers, for breakdowns of errors."""

    number: Tensor
    """Group numbers, int64 `[T, N]`, small and at least 0, for T steps of N environments; ignored at steps without a
    question."""
    labels: tuple[str, ...] = ()
    """A label for each number; empty: the number itself."""


_SB3_METHODS = {"env_is_wrapped", "env_method", "get_attr", "get_images", "seed", "set_attr", "step_async", "step_wait"}
_SET_BY_INIT = {"device", "generator", "horizon", "num_envs", "single_action_space", "single_observation_space"}
_SB3_HINT = "a batch of environments, which Stable-Baselines3 takes as agents.TensorVecEnv(env)"


class _ExplainSB3(abc.ABCMeta):
    """Its string says how to pass the environment to SB3, whose `evaluate_policy` and `EvalCallback` reject it."""

    def __str__(cls) -> str:
        return f"{cls!r} ({_SB3_HINT})"


class _Arguments:
    """Constructor arguments, stored such that they do not count as part of the environment's state."""

    __slots__ = ("values",)

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values


class TensorEnv(VectorEnv[Obs, Tensor, Tensor], metaclass=_ExplainSB3):
    """Base class of the batched environments.

    Episodes end in one of two ways, depending on `horizon`:

    - `horizon` is an integer: all environments start together and terminate together after that many steps. The host
      knows when, so nothing is masked and the device is not synchronised.
    - `horizon` is None: `_advance` returns which environments terminated or were truncated; each restarts on its own.

    Resets follow Gymnasium's `SAME_STEP` mode: the step that ends an episode returns the first observation of the next,
    and the last observation of the old one is in `info["final_obs"]`. The key is present unless the host knows that no
    episode ended at this step. With the attribute `autoreset` set to False, the step that ends an episode returns its
    last observation (and no target, if the horizon is fixed), and the caller resets. `SingleEnv` does so.

    A task with metrics of its own (bits per sequence, F1) names them in `metric_names` and passes them to `_measure`;
    learners log them as `task/NAME`.

    Args:
        num_envs: number of environments.
        observation_space, action_space: spaces of one environment.
        device: torch device of all tensors.
        horizon: see above.
        render_mode: None or "rgb_array".

    Raises:
        ValueError: `num_envs` is below 1, or the `render_mode` is unknown.
    """

    metadata = {  # noqa: RUF012 (Gymnasium declares it as it is)
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": ["rgb_array"],
        "render_fps": 8,
    }
    truncates: bool = False
    """Whether `step` can report truncated episodes; if not, learners skip the bootstrap."""
    ignores_actions: bool = False
    """Whether actions only change rewards and metrics, not observations, targets, weights or ends. A supervised learner
    then processes a whole rollout as one sequence."""
    action_names: tuple[str, ...] = ()
    """Names of the choices of a `Discrete` or `MultiBinary` action, or of the parts of any other, for the viewer;
    empty: numbers are shown."""
    observation_parts: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Names and shapes of the parts of a flat `Box` observation, in order, for the viewer; empty: one unnamed part."""
    observation_names: Mapping[str, tuple[str, ...]] = {}
    """Names of the values of a part of the observation, for the viewer: by its name in `observation_parts` or its key
    in a `Dict` space; "": the whole. Of `[C, H, W]` the planes are named, and those named "" are not shown."""
    metric_names: tuple[str, ...] = ()
    """Names of the task's own metrics; see `_measure`."""
    groups_answers: bool = False
    """Whether `answer_groups` is available; it needs a `horizon`."""
    grouped_metric: str = "error"
    """The metric in `metric_names` that counts single answers."""
    counts_episodes: bool = False
    """Whether the environment counts episodes itself: `info` then has `episode_return` and `episode_length` (float
    `[num_envs]`, NaN where none ended), from rewards before wrappers, and learners log these."""
    state_names: tuple[str, ...] = ()
    """Names of the tensor attributes that make up the environments' state, for `state_dict`."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        env = super().__new__(cls)
        with suppress(TypeError):  # the constructor will raise the error
            bound = inspect.signature(cls.__init__).bind(env, *args, **kwargs)
            bound.apply_defaults()
            env._arguments = _Arguments(bound.arguments)
        return env

    def __init__(
        self,
        num_envs: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "cpu",
        horizon: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}, expected at least 1")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is {render_mode!r}, expected one of {self.metadata['render_modes']} or None")
        self.num_envs = num_envs
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self.device = torch.device(device)
        self.horizon = horizon
        self.render_mode = render_mode
        self.generator = torch.Generator(self.device)
        self.generator.seed()
        self._elapsed = 0  # steps since the common start; counts only where `horizon` is set
        self._started = False
        self.autoreset = True
        self._measured: dict[str, tuple[Tensor, Tensor]] = {}
        self._success: Tensor | None = None
        self.user_moves = 0
        """Number of resets, and of steps that the learner did not make. If it changes during a rollout, the learner
        continues from the current observation (`observe`)."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments by name, including defaults; recorded by the base class.

        A checkpoint stores them: a state can only be loaded into an environment of the same class, arguments, horizon
        and spaces.
        """
        return {} if self._arguments is None else dict(list(self._arguments.values.items())[1:])

    _arguments: _Arguments | None = None
    _checked = False
    """Whether a step was compared with what the base class expects."""

    # -- implemented by subclasses ----------------------------------------------------------------------------------

    def _begin(self, where: Tensor | None) -> None:
        """Starts a new episode where the mask `where` `[num_envs]` is true; None: in all environments."""
        raise NotImplementedError

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Steps all environments; returns reward (float `[num_envs]`), terminated, truncated (bool `[num_envs]` or
        None).

        If `horizon` is set, return None for both.
        """
        raise NotImplementedError

    def _observe(self) -> Obs:
        """The observations of all environments, in new tensors."""
        raise NotImplementedError

    def _describe(self) -> Info:
        """Information that comes with the observation.

        `target` and `weight` if the right answer is known; `action_mask` if some actions are invalid: bool or
        int8 `[num_envs, n]` for `Discrete(n)`, `[num_envs, sum(nvec)]` for `MultiDiscrete`, `[num_envs, 2 · bits]` for
        `MultiBinary` (may the bit be 0, may it be 1). It must be given at every observation, with a valid choice in
        each part.
        """
        return {}

    @property
    def previews(self) -> bool:
        """Whether `preview` gives steps that end no later than the episode."""
        return False

    def preview(self, steps: int) -> Preview | None:
        """The next `steps` steps, to be taken at once. None: the episode ends earlier, or `previews` is False."""
        return None

    def _pass(self, steps: int) -> bool:
        """Counts steps taken at once, and begins new episodes if they end the old ones: whether they do."""
        self._elapsed += steps
        if ended := self._elapsed == self.horizon:
            self._elapsed = 0
            self._begin(None)
        return ended

    def answer_groups(self) -> dict[str, AnswerGroup]:
        """Groups this episode's answers by properties that may explain errors (slow; for evaluation only)."""
        raise NotImplementedError(f"{type(self).__name__} does not group its answers")

    def _measure(self, **metrics: tuple[Tensor, Tensor]) -> None:
        """Reports the task's metrics. Call it in `_advance` with every name in `metric_names`: an amount and a count,
        both float `[num_envs]`.

        `step` puts them in `info["metrics"]`. The metric is the sum of amounts divided by the sum of counts, over all
        steps and environments: wrong bits per sequence, right answers per question, and so on.
        """
        self._measured = metrics

    def _succeed(self, success: Tensor) -> None:
        """Reports successes. Call it at every `_advance` of a task with a goal: whether each environment's episode, if
        it ends with this step, reached its goal (bool `[num_envs]`). `step` puts it in `info["is_success"]`; learners
        log it as `rollout/success_rate`.
        """
        self._success = success

    @property
    def started(self) -> bool:
        """Whether the environment was reset at least once."""
        return self._started

    def observe(self) -> Obs:
        """The current observation, as returned by the last `reset` or `step`."""
        return self._observe()

    def describe(self) -> Info:
        """The information that came with the current observation in the last `reset` or `step`."""
        return self._describe()

    # -- Gymnasium's interface -------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, Info]:
        """Resets all environments.

        Args:
            seed: an integer that seeds the shared generator; None: the generator is not seeded.
            options: not used.

        Raises:
            TypeError: `seed` is a sequence: one generator on the device serves all environments.
            TensorEnvError: the subclass's observations do not fit its space; checked until the first step.
        """
        if seed is not None:
            if not isinstance(seed, (int, np.integer)):
                raise TypeError("TensorEnv.reset takes one integer seed for all environments, not a sequence")
            self.generator.manual_seed(int(seed))
        self._elapsed = 0
        self._started = True
        self.user_moves += 1
        self._begin(None)
        obs = self._observe()
        if not self._checked:
            check_observation(self, obs)
        return obs, self._describe()

    def step(self, action: Tensor | np.ndarray[Any, Any]) -> tuple[Obs, Tensor, Tensor, Tensor, Info]:
        """Steps all environments; see the class for episode ends.

        Args:
            action: `[num_envs, *action_shape]`: a tensor on the device of the environment, or an array.

        Returns:
            Observation, reward (float32), terminated, truncated (bool), all `[num_envs, ...]`, and info.

        Raises:
            RuntimeError: `reset` was never called.
            ValueError: an array has another shape.
            TensorEnvError: the subclass violates the contract; only the first step is checked.
        """
        if not self._started:
            raise RuntimeError(f"{type(self).__name__}.step was called before reset")
        if not isinstance(action, Tensor):  # e.g. a sample of the action space
            action = torch.as_tensor(np.asarray(action), device=self.device)
            if action.shape != (expected := (self.num_envs, *(self.single_action_space.shape or ()))):
                raise ValueError(f"the actions have shape {tuple(action.shape)}; expected {expected}")
        given = self._advance(action)
        if not self._checked:
            check_advance(self, given)
            check_metrics(self, self._measured)
            self._checked = True
        reward, terminated, truncated = given
        final: Info = {"metrics": self._measured} if self._measured else {}
        if self._success is not None:
            final["is_success"] = self._success
        if self.horizon is not None:
            self._elapsed += 1
            over = self._elapsed == self.horizon
            terminated = torch.full((self.num_envs,), over, dtype=torch.bool, device=self.device)
            truncated = torch.zeros_like(terminated)
            if over:
                last = self._observe()
                if not self.autoreset:
                    return last, reward, terminated, truncated, final
                final["final_obs"] = last
                self._elapsed = 0
                self._begin(None)
        else:
            assert terminated is not None  # checked above
            truncated = torch.zeros_like(terminated) if truncated is None else truncated
            last = self._observe()
            if not self.autoreset:
                return last, reward, terminated, truncated, {**self._describe(), **final}
            final["final_obs"] = last
            self._begin(terminated | truncated)
        return self._observe(), reward, terminated, truncated, {**self._describe(), **final}

    if not TYPE_CHECKING:  # it would hide misspelt attributes from a type checker

        def __getattr__(self, name: str) -> Any:
            if name in _SB3_METHODS:
                raise TypeError(f"{type(self).__name__} has no {name}: it is {_SB3_HINT}")
            if "generator" not in vars(self) and name in _SET_BY_INIT:
                arguments = "num_envs, observation_space, action_space, device"
                raise AttributeError(f"{type(self).__name__}.__init__ did not call super().__init__({arguments})")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def render(self) -> tuple[Any, ...] | None:
        """One RGB frame per environment, or None if `render_mode` is None."""
        if self.render_mode is None:
            return None
        return tuple(self.frame(index) for index in range(self.num_envs))

    def frame(self, index: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """RGB picture `[H, W, 3]` of environment `index`, in any render mode."""
        raise NotImplementedError(f"{type(self).__name__} draws nothing")

    def observation_text(self, index: int = 0) -> str:
        """The observation of environment `index` in words, for the viewer; empty: the viewer shows numbers."""
        return ""

    def text(self, index: int = 0) -> str:
        """The state of environment `index` as text, for a terminal or a failing test."""
        raise NotImplementedError(f"{type(self).__name__} has no text form")

    # -- exact resume ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, including the generator; copies that nothing else writes to.

        Before the first reset this is only the generator.
        """
        names = self.state_names if self._started else ()
        return {
            "generator": self.generator.get_state(),
            "elapsed": torch.tensor([self._elapsed, int(self._started)]),
            **{name: getattr(self, name).detach().clone() for name in names},
        }

    def state_limits(self) -> dict[str, tuple[int, int]]:
        """Least and greatest valid value of state tensors used as indices; a checkpoint outside them is refused."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores a `state_dict` of an environment of the same class, arguments and `num_envs`.

        Raises:
            ValueError: an entry is missing, unknown, of another shape or out of range.
        """
        elapsed, started = state["elapsed"].tolist() if "elapsed" in state else (0, 0)
        if self.horizon is not None and not 0 <= elapsed < self.horizon:
            raise ValueError(f"environment state is {elapsed} steps into an episode of {self.horizon}")
        names = self.state_names if started else ()
        expected = {"generator", "elapsed", *names}
        if set(state) != expected:
            raise ValueError(f"environment state has entries {sorted(state)}, expected {sorted(expected)}")
        if started and not self._started:
            self._begin(None)  # before the first reset there are no tensors to compare with
        for name in names:
            have = getattr(self, name)
            if state[name].shape != have.shape:
                raise ValueError(f"environment state {name!r} is {tuple(state[name].shape)}, not {tuple(have.shape)}")
        self.generator.set_state(state["generator"].cpu())
        self._elapsed, self._started = elapsed, bool(started)
        for name in names:
            setattr(self, name, state[name].to(self.device, copy=True))
