"""TensorEnv: a Gymnasium vector environment whose arrays are torch tensors on one device.

The state of all `num_envs` environments is a few tensors stepped together: no Python loop over environments, no
transfer to the host. A subclass writes four short methods (`_begin`, `_advance`, `_observe`, and `_describe` where it
has something to say beside the observation); this base does seeding, automatic resets, spaces, counters and
`state_dict`.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

Obs = Tensor | dict[str, Tensor]
Info = dict[str, Any]


class AnswerGroup(NamedTuple):
    """A number that a task gives to each of its answers, by which errors can be told apart."""

    number: Tensor
    """Int64 `[T, N]`, at least 0 and small, for the T steps of N environments; of no meaning where nothing is asked."""
    labels: tuple[str, ...] = ()
    """What each number stands for; empty: the number itself."""


_OF_SB3 = {"env_is_wrapped", "env_method", "get_attr", "get_images", "seed", "set_attr", "step_async", "step_wait"}
_FOR_SB3 = "a batch of environments, which Stable-Baselines3 takes as agents.TensorVecEnv(env)"


class _ForSB3(abc.ABCMeta):
    """Says how to hand an environment to SB3, whose `evaluate_policy` and `EvalCallback` refuse it by its class."""

    def __str__(cls) -> str:
        return f"{cls!r} ({_FOR_SB3})"


class _Given:
    """Arguments of a constructor, held where what looks for an environment's state in its attributes does not look."""

    __slots__ = ("values",)

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values


class TensorEnv(VectorEnv[Obs, Tensor, Tensor], metaclass=_ForSB3):
    """Base class of the batched environments.

    Episodes end in one of two ways, and the class says which:

    - `horizon` is an integer: every environment starts together and ends (terminates) together after that many steps.
      The host knows when, so nothing is masked and nothing is asked of the device.
    - `horizon` is None: `_advance` returns who terminated and who was truncated, and each environment starts anew by
      itself.

    Resets follow Gymnasium's `SAME_STEP` mode: the step that ends an episode returns the first observation of the next,
    and the last observation of the ended one is in `info["final_obs"]`, which is present exactly when the host cannot
    rule out that an environment ended at this step. Setting the attribute `autoreset` to False turns this off: the step
    that ends an episode then returns its last observation (and no target, where the horizon is fixed), and the caller
    resets. `SingleEnv` does so, whence its last frame can be seen.

    A task with scores in a unit of its own (bits per sequence, F1) names them in `metric_names` and gives them to
    `_measure`; learners log them as `task/NAME`.

    Args:
        num_envs: number of environments.
        observation_space: of one environment.
        action_space: of one environment.
        device: where everything lives.
        horizon: see above.
        render_mode: None or "rgb_array".
    """

    metadata = {  # noqa: RUF012 (Gymnasium declares it as it is)
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": ["rgb_array"],
        "render_fps": 8,
    }
    truncates: bool = False
    """Whether `step` can ever report a truncated episode; where it cannot, learners skip the bootstrap."""
    ignores_actions: bool = False
    """Whether observations, targets, weights and ends are the same whatever is done: only rewards and scores differ.
    A supervised learner then sees a whole rollout before it answers."""
    action_names: tuple[str, ...] = ()
    """What each choice of a `Discrete` or `MultiBinary` action means, for the viewer; empty: numbers are shown."""
    observation_parts: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Names and shapes of the parts of a flat `Box` observation, in order, for the viewer; empty: one unnamed part."""
    metric_names: tuple[str, ...] = ()
    """Scores in the task's own unit beside the reward; see `_measure`."""
    groups_answers: bool = False
    """Whether `answer_groups` can be asked; `horizon` must be set."""
    grouped_metric: str = "error"
    """The score of `metric_names` that counts single answers."""
    counts_episodes: bool = False
    """Whether `info` has `episode_return` and `episode_length` (float `[num_envs]`, NaN where none ended) of whatever
    counts as an episode here, in rewards before wrappers changed them; learners log these then."""
    state_names: tuple[str, ...] = ()
    """Attributes (tensors) that make up the state of the environments, for `state_dict`."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        env = super().__new__(cls)
        with suppress(TypeError):  # of an environment in the making; or the constructor is about to say what is wrong
            bound = inspect.signature(cls.__init__).bind(env, *args, **kwargs)
            bound.apply_defaults()
            env._given = _Given(bound.arguments)
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
        self.visits: object = object()
        """Another object after each `reset`, and after each step by somebody beside the learner: by it the learner
        sees that it must go on from what the environment shows now (`observe`)."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What it was constructed with, by name, defaults included; recorded without a subclass's doing.

        A checkpoint keeps them: a state goes only into an environment of the same class, arguments, horizon and spaces.
        """
        return {} if self._given is None else dict(list(self._given.values.items())[1:])

    _given: _Given | None = None

    # -- what a subclass writes ------------------------------------------------------------------------------------

    def _begin(self, where: Tensor | None) -> None:
        """Start a new episode in the environments where the mask `where` `[num_envs]` is true; None: in all of them."""
        raise NotImplementedError

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Move every environment one step: reward (float `[num_envs]`), terminated, truncated (bool `[num_envs]` or
        None).

        Where `horizon` is set, terminated and truncated are ignored: return None for both.
        """
        raise NotImplementedError

    def _observe(self) -> Obs:
        """The observation of every environment, in fresh tensors."""
        raise NotImplementedError

    def _describe(self) -> Info:
        """What goes beside the observation.

        `target` and `weight` where the right answer is known; `action_mask` where not every action is valid: bool or
        int8 `[num_envs, n]` for `Discrete(n)`, `[num_envs, sum(nvec)]` for `MultiDiscrete`, `[num_envs, 2 · bits]` for
        `MultiBinary` (may the bit be 0, may it be 1), at every observation and with a valid choice in each part.
        """
        return {}

    def answer_groups(self) -> dict[str, AnswerGroup]:
        """What the answers of the episode that has just begun may depend on, by name; not for the hot path."""
        raise NotImplementedError(f"{type(self).__name__} does not group its answers")

    def _measure(self, **metrics: tuple[Tensor, Tensor]) -> None:
        """Call it in `_advance` with every name in `metric_names`: an amount and a count, both float `[num_envs]`.

        `step` puts them in `info["metrics"]`. What is reported is the sum of the amounts over the sum of the counts,
        over all steps and environments: wrong bits over ended sequences, right answers over questions, and so on.
        """
        self._measured = metrics

    def _succeed(self, success: Tensor) -> None:
        """Call it in `_advance`, at every step, where an episode can succeed: whether each environment's episode, if it
        ends with this step, reached its goal (bool `[num_envs]`). `step` puts it in `info["is_success"]`, and learners
        log it as `rollout/success_rate`.
        """
        self._success = success

    @property
    def started(self) -> bool:
        """Whether it was ever reset."""
        return self._started

    def observe(self) -> Obs:
        """The present observation, as the last `reset` or `step` gave it."""
        return self._observe()

    def describe(self) -> Info:
        """What goes beside the present observation, as the last `reset` or `step` gave it."""
        return self._describe()

    # -- Gymnasium's interface -------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, Info]:
        """Start every environment anew.

        Args:
            seed: one integer seeds the generator that all environments share; None goes on with the generator as it is.
            options: not used.

        Raises:
            TypeError: `seed` is a sequence: one generator on the device serves all environments.
        """
        if seed is not None:
            if not isinstance(seed, (int, np.integer)):
                raise TypeError("TensorEnv.reset takes one integer seed for all environments, not a sequence")
            self.generator.manual_seed(int(seed))
        self._elapsed = 0
        self._started = True
        self.visits = object()
        self._begin(None)
        return self._observe(), self._describe()

    def step(self, action: Tensor | np.ndarray[Any, Any]) -> tuple[Obs, Tensor, Tensor, Tensor, Info]:
        """Step every environment; see the class for what happens where an episode ends.

        Args:
            action: `[num_envs, *action_shape]`: a tensor on the device of the environment, or an array.

        Returns:
            Observation, reward (float32), terminated, truncated (bool), all `[num_envs, ...]`, and info.

        Raises:
            RuntimeError: `reset` was never called.
        """
        if not self._started:
            raise RuntimeError(f"{type(self).__name__}.step was called before reset")
        if not isinstance(action, Tensor):  # such as the class's own action space gives
            action = torch.as_tensor(np.asarray(action), device=self.device)
        reward, terminated, truncated = self._advance(action)
        final: Info = {"metrics": self._measured} if self._measured else {}
        if self._success is not None:
            final["is_success"] = self._success
        if self.horizon is not None:
            self._elapsed += 1
            over = self._elapsed == self.horizon
            terminated, truncated = self._flags(over), self._flags(False)
            if over:
                last = self._observe()
                if not self.autoreset:
                    return last, reward, terminated, truncated, final
                final["final_obs"] = last
                self._elapsed = 0
                self._begin(None)
        else:
            assert terminated is not None
            truncated = self._flags(False) if truncated is None else truncated
            last = self._observe()
            if not self.autoreset:
                return last, reward, terminated, truncated, {**self._describe(), **final}
            final["final_obs"] = last
            self._begin(terminated | truncated)
        return self._observe(), reward, terminated, truncated, {**self._describe(), **final}

    if not TYPE_CHECKING:  # it would hide misspelt attributes from a type checker

        def __getattr__(self, name: str) -> Any:
            if name in _OF_SB3:
                raise TypeError(f"{type(self).__name__} has no {name}: it is {_FOR_SB3}")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _flags(self, value: bool) -> Tensor:
        return torch.full((self.num_envs,), value, dtype=torch.bool, device=self.device)

    def render(self) -> tuple[Any, ...] | None:
        """One RGB frame an environment, or None where `render_mode` is None."""
        if self.render_mode is None:
            return None
        return tuple(self.frame(index) for index in range(self.num_envs))

    def frame(self, index: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """RGB picture `[H, W, 3]` of environment `index`, in any render mode."""
        raise NotImplementedError(f"{type(self).__name__} draws nothing")

    def text(self, index: int = 0) -> str:
        """The state of environment `index` in characters, for a terminal or a failing test."""
        raise NotImplementedError(f"{type(self).__name__} has no text form")

    # -- exact resume ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, the generator included; tensors that nothing else writes to.

        Before the first reset that is the generator alone.
        """
        names = self.state_names if self._started else ()
        return {
            "generator": self.generator.get_state(),
            "elapsed": torch.tensor([self._elapsed, int(self._started)]),
            **{name: getattr(self, name).detach().clone() for name in names},
        }

    def state_limits(self) -> dict[str, tuple[int, int]]:
        """Least and greatest value of state tensors by which something is looked up: a checkpoint's are compared."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state_dict` of an environment of the same class, arguments and `num_envs`.

        Raises:
            ValueError: an entry is missing, unknown or of another shape, or no episode is that long.
        """
        elapsed, started = state["elapsed"].tolist() if "elapsed" in state else (0, 0)
        if self.horizon is not None and not 0 <= elapsed < self.horizon:
            raise ValueError(f"environment state is {elapsed} steps into an episode of {self.horizon}")
        names = self.state_names if started else ()
        expected = {"generator", "elapsed", *names}
        if set(state) != expected:
            raise ValueError(f"environment state has entries {sorted(state)}, expected {sorted(expected)}")
        if started and not self._started:
            self._begin(None)  # a fresh environment has no tensors to compare with yet
        for name in names:
            have = getattr(self, name)
            if state[name].shape != have.shape:
                raise ValueError(f"environment state {name!r} is {tuple(state[name].shape)}, not {tuple(have.shape)}")
        self.generator.set_state(state["generator"].cpu())
        self._elapsed, self._started = elapsed, bool(started)
        for name in names:
            setattr(self, name, state[name].to(self.device, copy=True))
