"""Detects resets and steps of an environment that user code makes.

A user's callback may reset or play in the environments that an agent is trained in, through `training_env` or through a
variable of its own. The learner must then continue from the environments' current observations, not from the last ones
that it received. So the class of the user's object is replaced by a subclass that records resets and steps. Everything
else stays the same, and the object is pickled as its original class.
"""

from __future__ import annotations

import contextlib
import copyreg
from collections.abc import Iterator
from functools import cache, wraps
from typing import Any
from weakref import WeakKeyDictionary

import gymnasium as gym
from gymnasium.vector import VectorEnv, VectorWrapper
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper


@contextlib.contextmanager
def _refusing_exit() -> Iterator[None]:
    """Else an environment's `sys.exit()`, as when its window is closed, would end a training with status 0."""
    try:
        yield
    except SystemExit as exit:
        raise ValueError("the environment called sys.exit(): expected that it ends the episode or raises") from exit


class Watch:
    """Resets and steps recorded by `watch`."""

    def __init__(self) -> None:
        self.moves = 0
        """Number of resets and steps so far."""
        self.last_obs: Any = None
        """The observation that the last of them returned, in the environment's own values; None if it is unknown,
        because a single environment or wrapper was moved alone."""
        self.last_info: Any = None
        """Gymnasium's `info` returned with it; for a `VecEnv` the pair of `dones` and SB3's `infos`."""

    def note(self, obs: Any, info: Any = None) -> None:
        """Records a reset or step."""
        self.moves += 1
        self.last_obs, self.last_info = obs, info


def watch(env: VecEnv | VectorEnv[Any, Any, Any], *parts: gym.Env[Any, Any]) -> Watch:
    """Records resets and steps of `env`, of everything it wraps, and of `parts`, its single environments.

    An object whose class cannot be changed (for example with `__slots__`) is left unchanged.
    """
    record = Watch()
    layers: list[Any] = [*parts, env]
    while isinstance(layers[-1], (VecEnvWrapper, VectorWrapper)):
        inner = layers[-1]
        layers.append(inner.venv if isinstance(inner, VecEnvWrapper) else inner.env)
    for layer in layers:
        with contextlib.suppress(TypeError, AttributeError):
            watches = vars(layer).get("_watches")
            if watches is None:
                layer_class: Any = type(layer)
                layer.__class__ = _watched_class(layer_class)
                watches = layer._watches = WeakKeyDictionary()
            watches[record] = layer is env
    return record


def reset_infos(env: VecEnv) -> list[dict[str, Any]]:
    """Each environment's `info` of its last reset; SuperSuit's batches do not keep it."""
    return getattr(env.unwrapped, "reset_infos", None) or [{} for _ in range(env.num_envs)]


def _note(layer: Any, obs: Any, info: Any = None) -> None:
    """Records a reset or step of one wrapper layer in every `Watch` of it."""
    watches: WeakKeyDictionary[Watch, bool] = layer._watches  # and whether the layer is the outermost for it
    for record, is_outermost in watches.items():
        record.note(obs if is_outermost else None, info)


def _is_tuple(result: Any, length: int) -> bool:
    """Whether a result is a tuple of this length, as Gymnasium requires; if not, `CopyObservation` raises an error."""
    return isinstance(result, tuple) and len(result) == length


@cache
def _watched_class(original: Any) -> type[Any]:
    """A subclass of `original` that records resets and steps. It has no other base: `__class__` can be assigned."""

    @wraps(original.reset)
    def reset(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _refusing_exit():
            result = original.reset(self, *args, **kwargs)
        if issubclass(original, VecEnv):  # all infos are those of the reset
            _note(self, result, ([True] * self.num_envs, reset_infos(self)))
        else:
            _note(self, *(result if _is_tuple(result, 2) else (None,)))
        return result

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _refusing_exit():
            result = original.step(self, *args, **kwargs)
        _note(self, *((result[0], result[-1]) if _is_tuple(result, 5) else (None,)))
        return result

    def step_wait(self: Any) -> Any:
        with _refusing_exit():
            result = original.step_wait(self)
        _note(self, result[0], result[2:])
        return result

    def env_method(self: Any, method_name: str, *args: Any, **kwargs: Any) -> Any:
        results = original.env_method(self, method_name, *args, **kwargs)
        if method_name in ("reset", "step"):
            _note(self, None)
        return results

    def reduce(self: Any, protocol: Any) -> Any:
        builder, arguments, *rest = original.__reduce_ex__(self, protocol)
        if builder is copyreg.__newobj__:  # type: ignore[attr-defined] # which insists on the object's own class
            builder = object.__new__
        return builder, tuple(original if argument is type(self) else argument for argument in arguments), *rest

    def state(self: Any) -> Any:
        # Python 3.10's objects have no such method
        entries = original.__getstate__(self) if hasattr(original, "__getstate__") else vars(self)
        if not isinstance(entries, dict):
            return entries
        return {name: value for name, value in entries.items() if name != "_watches"}

    moves = {"step_wait": step_wait, "env_method": env_method} if issubclass(original, VecEnv) else {"step": step}
    names = {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": original.__doc__}
    return type(
        original.__name__,
        (original,),
        {**names, **moves, "reset": reset, "__reduce_ex__": reduce, "__getstate__": state},
    )
