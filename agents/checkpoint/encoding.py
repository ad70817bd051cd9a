"""Converts constructor arguments and spaces to JSON and back. No name in a file is ever imported."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common import torch_layers
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from policies import encoders
from policies.policy import MemoryActorCriticPolicy

# The only classes that a checkpoint can restore, by their stored names. They are looked up here, never imported.
CLASSES: dict[str, type] = {
    **{f"optim.{name}": getattr(torch.optim, name) for name in ("Adam", "AdamW", "RMSprop", "SGD", "NAdam", "RAdam")},
    **{
        f"nn.{name}": getattr(torch.nn, name)
        for name in ("Tanh", "ReLU", "ELU", "GELU", "SiLU", "LeakyReLU", "Sigmoid")
    },
    **{
        f"sb3.{name}": getattr(torch_layers, name)
        for name in ("FlattenExtractor", "NatureCNN", "CombinedExtractor", "BaseFeaturesExtractor")
    },
    **{name: getattr(encoders, name) for name in ("MLPEncoder", "PictureEncoder", "DictEncoder", "EmbeddingEncoder")},
    "MemoryActorCriticPolicy": MemoryActorCriticPolicy,
}
LARGEST_SPACE = 1 << 22
"""Maximum number of values in an observation or action, or of choices in a discrete one."""
_NAMES = {value: name for name, value in CLASSES.items()}


def encode(value: Any) -> Any:
    """`value` as JSON. A user's own function or class is stored by name; `decode` then requires it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [encode(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): encode(entry) for key, entry in value.items()}
    if isinstance(value, FloatSchedule):
        return encode(value.value_schedule)
    if isinstance(value, ConstantSchedule):
        return value.val
    if isinstance(value, LinearSchedule):
        return {"$schedule": [value.start, value.end, value.end_fraction]}
    if value in _NAMES:
        return {"$class": _NAMES[value]}
    return {"$yours": f"{getattr(value, '__module__', '?')}.{getattr(value, '__qualname__', type(value).__name__)}"}


def decode(value: Any, name: str) -> Any:
    """The inverse of `encode`.

    Args:
        value: from JSON.
        name: of the argument, for the error message.

    Raises:
        ValueError: the argument is a function or class of the user's, which must be passed to `load`.
    """
    if isinstance(value, list):
        return [decode(entry, name) for entry in value]
    if not isinstance(value, dict):
        return value
    if "$yours" in value:
        whole, *parts = name.split(".")
        given = "=".join([whole, "".join(f'{{"{part}": ' for part in parts) + "..." + "}" * len(parts)])
        raise ValueError(f"{name} was {value['$yours']}, which a checkpoint does not import: give it to load({given})")
    if "$class" in value:
        if value["$class"] not in CLASSES:
            raise ValueError(f"{name} is the class {value['$class']!r}, which this Engram does not know")
        return CLASSES[value["$class"]]
    if "$schedule" in value:
        return LinearSchedule(*value["$schedule"])
    return {key: decode(entry, f"{name}.{key}") for key, entry in value.items()}


def encode_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """A space as JSON. The entries of a `Dict` keep their order, because the first layer's weights are in that order.

    Raises:
        TypeError: no learner of this project takes such a space.
    """
    if isinstance(space, spaces.Box):
        bounds = {name: _shorten(getattr(space, name)) for name in ("low", "high")}
        return {"kind": "Box", **bounds, "shape": list(space.shape), "dtype": str(space.dtype)}
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start), **_type_of(space)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"kind": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist(), **_type_of(space)}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "n": np.asarray(space.n).tolist()}
    if isinstance(space, spaces.Dict):
        return {"kind": "Dict", "spaces": {key: encode_space(entry) for key, entry in space.spaces.items()}}
    raise TypeError(f"a checkpoint cannot hold the space {space}")


def decode_space(data: dict[str, Any]) -> spaces.Space[Any]:
    """The inverse of `encode_space`.

    Raises:
        ValueError: the kind of space is unknown, or it is larger than `LARGEST_SPACE`.
        KeyError, TypeError, AssertionError: an entry is missing or invalid.
    """
    if data["kind"] == "Box" and math.prod(data["shape"]) > LARGEST_SPACE:  # before its bounds are allocated
        raise ValueError(f"a space has the shape {data['shape']}, expected at most {LARGEST_SPACE:,} values")
    space = _decoded(data)
    if not 0 < (count := spaces.flatdim(space)) <= LARGEST_SPACE:
        raise ValueError(f"a space has {count:,} values or choices, expected 1 to {LARGEST_SPACE:,}")
    return space


def _decoded(data: dict[str, Any]) -> spaces.Space[Any]:
    kind = data["kind"]
    if kind == "Box":
        dtype = np.dtype(data["dtype"])
        low, high = (np.broadcast_to(np.array(data[name], dtype), data["shape"]).copy() for name in ("low", "high"))
        return spaces.Box(low, high, tuple(data["shape"]), dtype.type)
    integers = np.dtype(data.get("dtype", np.int64)).type
    if kind == "Discrete":
        # Gymnasium before 1.2 supports int64 only
        return spaces.Discrete(data["n"], start=data["start"], **({"dtype": integers} if "dtype" in data else {}))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(np.array(data["nvec"]), dtype=integers, start=np.array(data["start"]))
    if kind == "MultiBinary":
        return spaces.MultiBinary(data["n"])
    if kind == "Dict":
        # pairs, because Gymnasium sorts the keys of a dict
        return spaces.Dict([(key, decode_space(entry)) for key, entry in data["spaces"].items()])
    raise ValueError(f"unknown space {kind!r} in a checkpoint")


def _type_of(space: spaces.Space[Any]) -> dict[str, str]:
    """The integer type, unless it is int64."""
    return {} if space.dtype == np.int64 else {"dtype": str(space.dtype)}


def _shorten(array: np.ndarray[Any, Any]) -> Any:
    """A single number if all entries are equal (such as an image's bounds), else the whole list."""
    return array.flat[0].item() if array.size and (array == array.flat[0]).all() else array.tolist()
