"""Describes environments, so that a saved state is only loaded into an equal environment."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents.checkpoint.encoding import encode, encode_space
from agents.environments import HostEnv
from envs.tensor_env import TensorEnv

NOT_THE_TASK = ("num_envs", "device", "render_mode")
"""Arguments that do not change the task."""


def describe(env: TensorEnv) -> dict[str, Any]:
    """Class, arguments, horizon and spaces of an environment, as JSON."""
    name = f"{type(env).__module__.split('.')[0]}:{type(env).__qualname__}"  # survives a move within its package
    given = _host(env) if isinstance(env, HostEnv) else env.arguments
    return {
        "class": name,
        "arguments": {key: _plain(value) for key, value in given.items() if key not in NOT_THE_TASK},
        "horizon": env.horizon,
        "observation_space": encode_space(env.single_observation_space),
        "action_space": encode_space(env.single_action_space),
    }


def difference(saved: Any, found: dict[str, Any]) -> str:
    """Compares the description in a checkpoint with that of a given environment; empty if they are equal.

    Checkpoints of format version 1 contain only the name of the class.
    """
    name = found["class"].partition(":")[2]
    if not isinstance(saved, dict):
        return "" if saved == name.rpartition(".")[2] else f"the checkpoint is of {saved}, this run of {name}"
    if saved.get("class") != found["class"]:
        then = str(saved.get("class")).partition(":")[2]
        then, now = (then, name) if then != name else (str(saved.get("class")), found["class"])
        return f"the checkpoint is of {then}, this run of {now}"
    arguments = saved.get("arguments")
    before, after = arguments if isinstance(arguments, dict) else {}, found["arguments"]
    names = [key for key in {**after, **before} if before.get(key, _NONE) != after.get(key, _NONE)]
    differ = [(key, before.get(key, _NONE), after.get(key, _NONE)) for key in names]
    if not differ:
        entries = ("horizon", "observation_space", "action_space")
        differ = [(key, saved.get(key), found[key]) for key in entries if saved.get(key) != found[key]]
    if not differ:
        return ""
    then = ", ".join(f"{key}={_short(value)}" for key, value, _ in differ)
    now = ", ".join(f"{key}={_short(value)}" for key, _, value in differ)
    return f"the checkpoint is of {name}({then}), this run of {name}({now})"


class _None:
    def __repr__(self) -> str:
        return "none"


_NONE = _None()


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plain(value: Any) -> Any:
    """An argument as JSON: tensors and arrays by their digest, the user's own functions and classes by name."""
    if isinstance(value, (Tensor, np.ndarray)):
        array = np.ascontiguousarray(value.detach().cpu().numpy() if isinstance(value, Tensor) else value)
        content = array.tobytes() if array.dtype != object else repr(array.tolist()).encode()
        return {"array": [str(array.dtype), list(array.shape), hashlib.sha256(content).hexdigest()[:16]]}
    if isinstance(value, TensorEnv):
        return describe(value)
    if isinstance(value, spaces.Space):
        return encode_space(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(entry) for entry in (sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (torch.dtype, torch.device)) or hasattr(value, "__fspath__"):
        return str(value)
    return encode(value)


def _host(env: HostEnv) -> dict[str, Any]:
    """Id and arguments of host environments; the class name if they were not made from an id."""
    inner = getattr(env.host, "env", None)
    for each in (inner, *getattr(inner, "envs", ())[:1]):
        spec = getattr(each, "spec", None)
        if spec is not None:
            kwargs = {key: value for key, value in spec.kwargs.items() if key not in NOT_THE_TASK}
            return {"id": spec.id, **kwargs}
    return {"id": type(getattr(inner, "unwrapped", inner)).__name__}
