"""Validates the entries of a manifest before they are used."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import Annotated, Any

from agents.common.arguments import Count, Range, Whole, read

COUNTERS: dict[str, Any] = {
    **dict.fromkeys(("num_timesteps", "_total_timesteps", "_n_updates", "_episode_num"), Whole),
    "_current_progress_remaining": Annotated[float, Range(-(2.0**62), 1)],
}
"""The learner's counters, with their types."""
_FUNCTIONS = {"$schedule", "$yours"}
LARGEST_SIZE = 1 << 20
"""Maximum of integer arguments of a learner, its policy and its memory, seeds excepted."""


def check_manifest(
    manifest: dict[str, Any], hints: Mapping[str, Any], schedules: Container[str], given: Container[str] = ()
) -> None:
    """Checks types and ranges of a manifest's entries.

    Args:
        manifest: its values are converted to their types in place.
        hints: types of the learner's hyper-parameters.
        schedules: hyper-parameters that may be functions of the remaining progress.
        given: arguments that are passed to `load`; the saved values are not checked.

    Raises:
        KeyError: an entry is missing.
        ValueError: one is of another type or out of range; the message names it.
    """
    for name in ("config", "counters", "observation_space", "action_space"):
        if not isinstance(manifest[name], dict):
            raise ValueError(f"{name} is {type(manifest[name]).__name__}, expected entries by name")
    counters, config = manifest["counters"], manifest["config"]
    counters |= {name: read(name, counters[name], hint) for name, hint in COUNTERS.items()}
    num_envs = manifest["num_envs"] = read("num_envs", manifest["num_envs"], Annotated[int, Range(1, LARGEST_SIZE)])
    ranks = manifest["ranks"] = read("ranks", manifest.get("ranks", 1), Count)
    manifest["may_start"] = read("may_start", manifest["may_start"], bool)
    if num_envs % ranks:
        raise ValueError(f"num_envs is {num_envs}, expected a multiple of ranks, which is {ranks}")
    read("policy_kwargs", config["policy_kwargs"], dict[str, Any])
    for name, value in config.items():
        if name in given and name != "policy_kwargs":
            continue
        if name in hints and not (name in schedules and isinstance(value, dict) and set(value) & _FUNCTIONS):
            config[name] = read(name, value, hints[name])
        if "seed" not in name:
            _check_sizes(value, name, hints)
    if not isinstance(manifest["param_groups"], list):
        raise ValueError(f"param_groups is {type(manifest['param_groups']).__name__}, expected a list")


def _check_sizes(value: Any, name: str, hints: Mapping[str, Any]) -> None:
    """Checks that no argument requires a size that cannot be allocated."""
    if isinstance(value, dict) and "$schedule" in value:
        number: Any = hints.get(name, float)
        parts: Any = (number, number, Annotated[float, Range(0, 1, True)])
        read(name, value["$schedule"], tuple[parts])
    elif isinstance(value, dict):
        for key, entry in value.items():
            if "seed" not in key:
                _check_sizes(entry, f"{name}.{key}", hints)
    elif isinstance(value, list):
        for entry in value:
            _check_sizes(entry, name, hints)
    elif type(value) is int and abs(value) > LARGEST_SIZE:
        raise ValueError(f"{name} is {value}, expected at most {LARGEST_SIZE:,}")
    elif isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{name} is NaN, expected a number")
