"""Builds SB3's `infos`, one dictionary per environment, from the `info` of vector environments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from envs.tensor_env import Info, Obs


def of_vector(info: dict[str, Any], index: int, ended: bool) -> dict[str, Any]:
    """One environment's `info` from a Gymnasium vector environment with `SAME_STEP` resets.

    For an environment whose episode ended, `final_info` holds the last step's `info` and the usual place the reset's.
    """
    if not ended or "final_info" not in info:
        return _entries(info, index)
    said = _entries(info["final_info"], index)
    if "episode" in info and "episode" not in said:  # RecordEpisodeStatistics around the vector environment
        said |= {name: value for name, value in _entries(info, index).items() if name == "episode"}
    return said


def _entries(info: dict[str, Any], index: int) -> dict[str, Any]:
    said = {}
    for name, value in info.items():
        there = info.get(f"_{name}")
        if name.startswith("_") or name.startswith("final_") or (there is not None and not there[index]):
            continue
        if isinstance(value, dict):
            said[name] = _entries(value, index)
        else:
            said[name] = value[index] if isinstance(value, (np.ndarray, list, tuple)) else value
    return said


def of_tensors(
    info: Info, terminated: Tensor, truncated: Tensor, counts: Callable[[int], dict[str, Any]]
) -> list[dict[str, Any]]:
    """SB3's `infos` of one step of a `TensorEnv`, on the host.

    Args:
        info: as `step` gave it.
        terminated, truncated: as `step` gave them.
        counts: return and length of an environment's episode, where it ended with this step.
    """
    ends = (terminated | truncated).cpu().numpy()
    timeouts = (truncated & ~terminated).cpu().numpy()
    success = info["is_success"].cpu().numpy() if "is_success" in info else None
    final = as_numpy(info["final_obs"]) if "final_obs" in info and ends.any() else None
    infos = described(info, len(ends))
    for index, said in enumerate(infos):
        if ends[index]:
            said.clear()  # it came with the first observation of the next episode
            if final is not None:
                said["terminal_observation"] = row(final, index)
            if success is not None and not np.isnan(success[index]):
                said["is_success"] = bool(success[index])
            said["episode"] = counts(index)
        said["TimeLimit.truncated"] = bool(timeouts[index])
    return infos


def described(info: Info, num_envs: int) -> list[dict[str, Any]]:
    """SB3's `infos` of a `TensorEnv`'s current observations."""
    about_the_step = ("final_obs", "is_success")
    said = {name: v.cpu().numpy() for name, v in info.items() if isinstance(v, Tensor) and name not in about_the_step}
    return [{name: value[index] for name, value in said.items()} for index in range(num_envs)]


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
