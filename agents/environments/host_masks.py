"""Action masks of host environments, from `info["action_mask"]` or a method `action_masks()`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from stable_baselines3.common.vec_env import VecEnv

from policies.action_masks import as_masks, parts_of

Masks = np.ndarray[Any, np.dtype[np.bool_]]
KEY, METHOD = "action_mask", "action_masks"


class HostMasks:
    """Action masks of a batch of environments at their current observations.

    Args:
        env: an SB3 `VecEnv`, or a Gymnasium vector environment; it or its single environments may have the method
            `action_masks`.
        space: of one action.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any] | VecEnv, space: spaces.Space[Any]) -> None:
        self.env, self.space = env, space
        self.current: Masks | None = None
        """`[num_envs, choices]`, as of the last `read`; None: the environments give no masks."""
        self._has_method = _has_method(env)

    def read(self, infos: Sequence[dict[str, Any]] | dict[str, Any]) -> None:
        """Reads the masks that came with the current observations, from Gymnasium's `info` or SB3's `infos`.

        Raises:
            ValueError: a mask does not fit the action space, or allows nothing.
        """
        rows = _of_vector(infos) if isinstance(infos, dict) else [info.get(KEY) for info in infos]
        if any(row is not None for row in rows):
            self.current = self._filled(rows)
        elif self._has_method:
            method = getattr(self.env, METHOD, None) if isinstance(self.env, VectorEnv) else None
            self.current = self._filled(method() if callable(method) else _call(self.env, METHOD))
        elif self.current is not None:
            self.current = np.ones_like(self.current)

    def _filled(self, rows: Sequence[Any]) -> Masks:
        """The masks of all environments; rows that are None allow everything."""
        width = sum(parts_of(self.space))
        rows = [np.ones(width, bool) if row is None else row for row in rows]
        return np.concatenate([as_masks(row if isinstance(row, np.ndarray) else [row], self.space, 1) for row in rows])


def _of_vector(info: dict[str, Any]) -> list[Any]:
    """The masks in a vector environment's `info`, None for environments that gave none; empty if none did."""
    masks = info.get(KEY, ())
    given = info.get(f"_{KEY}", np.ones(len(masks), bool))
    return [row if is_given else None for row, is_given in zip(masks, given, strict=True)]


def _has_method(env: VectorEnv[Any, Any, Any] | VecEnv) -> bool:
    if isinstance(env, VecEnv):
        try:
            return bool(env.has_attr(METHOD))
        except (AttributeError, NotImplementedError):  # some do not implement it, such as SuperSuit's
            return False
    if hasattr(env, METHOD):
        return True
    try:
        return all(_call(env, "has_wrapper_attr", METHOD))
    except AttributeError:  # it is no batch of single environments
        return False


def _call(env: VectorEnv[Any, Any, Any] | VecEnv, name: str, *arguments: Any) -> Sequence[Any]:
    if isinstance(env, VecEnv):
        return env.env_method(name, *arguments)
    results: Sequence[Any] = env.unwrapped.call(name, *arguments)  # type: ignore[attr-defined]
    return results
