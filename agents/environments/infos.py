"""Builds SB3's `infos`, one dictionary per environment, from the `info` of vector environments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from envs.tensor_env import Info, Obs


@dataclass(frozen=True, slots=True)
class Kept:
    """Holds a value of an `info`, since Gymnasium converts those of a batch to the first one's type and shape."""

    value: Any


def kept(info: dict[str, Any]) -> dict[str, Any]:
    """`info` with values that a batch does not convert; `info_of_env` gives them back. Masks stay arrays.

    Names that Gymnasium uses for the last step of an episode are left out.
    """
    if not info:
        return info
    own = {name: Kept(value) for name, value in info.items() if name not in ("final_obs", "final_info")}
    return own if "action_mask" not in info else {**own, "action_mask": info["action_mask"]}


def episode_counts(info: dict[str, Any]) -> dict[str, Any] | None:
    """Return `r` and length `l` of an ended episode, if a `Monitor` or a similar wrapper counted them."""
    counts = info.get("episode")
    return counts if isinstance(counts, dict) and {"r", "l"} <= counts.keys() else None


def info_of_env(info: dict[str, Any], index: int, ended: bool) -> dict[str, Any]:
    """One environment's `info` from a Gymnasium vector environment with `SAME_STEP` resets.

    For an environment whose episode ended, the last step's `info` is in `final_info`, and the reset's in its place.
    """
    if not ended or "final_info" not in info:
        return _entries(info, index)
    final_info, later = _entries(info["final_info"], index), _entries(info, index)
    if episode_counts(later) is not None:  # RecordEpisodeStatistics around the vector environment
        final_info.setdefault("episode", later["episode"])
    return final_info


def _entries(info: dict[str, Any], index: int) -> dict[str, Any]:
    entries = {}
    for name, value in info.items():
        present = info.get(f"_{name}")
        if (isinstance(name, str) and name.startswith(("_", "final_"))) or (present is not None and not present[index]):
            continue
        if isinstance(value, dict):
            entries[name] = _entries(value, index)
        else:
            entry = value[index] if isinstance(value, (np.ndarray, list, tuple)) else value
            entries[name] = entry.value if isinstance(entry, Kept) else entry
    return entries


def infos_of_step(
    info: Info, terminated: Tensor, truncated: Tensor, counts: Callable[[int], dict[str, Any]]
) -> list[dict[str, Any]]:
    """SB3's `infos` of one step of a `TensorEnv`, on the host.

    Args:
        info, terminated, truncated: as returned by `step`.
        counts: the entry `episode` (return, length, time) of an environment whose episode ended with this step.
    """
    ends = (terminated | truncated).cpu().numpy()
    timeouts = (truncated & ~terminated).cpu().numpy()
    success = info["is_success"].cpu().numpy() if "is_success" in info else None
    final = as_numpy(info["final_obs"]) if "final_obs" in info and ends.any() else None
    infos = infos_of_obs(info, len(ends))
    for index, of_env in enumerate(infos):
        if ends[index]:
            of_env.clear()  # it describes the next episode's first observation
            if final is not None:
                of_env["terminal_observation"] = row(final, index)
            if success is not None and not np.isnan(success[index]):
                of_env["is_success"] = bool(success[index])
            of_env["episode"] = counts(index)
        of_env["TimeLimit.truncated"] = bool(timeouts[index])
    return infos


def infos_of_obs(info: Info, num_envs: int) -> list[dict[str, Any]]:
    """SB3's `infos` of a `TensorEnv`'s current observations."""
    of_step = ("final_obs", "is_success")
    arrays = {name: v.cpu().numpy() for name, v in info.items() if isinstance(v, Tensor) and name not in of_step}
    return [{name: array[index] for name, array in arrays.items()} for index in range(num_envs)]


def as_numpy(obs: Obs) -> Any:
    """A tensor observation as copied arrays; the tensor may share memory with the environment's state."""
    if isinstance(obs, dict):
        return {key: value.cpu().numpy().copy() for key, value in obs.items()}
    return obs.cpu().numpy().copy()


def row(obs: Any, index: int) -> Any:
    """The observation of one environment."""
    if isinstance(obs, dict):
        return {key: row(value, index) for key, value in obs.items()}
    return tuple(row(value, index) for value in obs) if isinstance(obs, tuple) else obs[index]
