"""The states of the global random generators as tensors."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor


def get_generators() -> dict[str, Tensor]:
    """The state of every global random generator."""
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - SB3 seeds and draws from the global one
    _, internal, following = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.array(keys, dtype=np.int64)),
        "numpy_position": torch.tensor([position, has_gauss]),
        "numpy_gauss": torch.tensor(gauss, dtype=torch.float64),
        "python": torch.tensor(internal),
        "python_gauss": torch.tensor(float("nan") if following is None else following, dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states |= {f"cuda/{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def set_generators(states: dict[str, Tensor]) -> None:
    """Restores the states that `get_generators` returned."""
    torch.set_rng_state(states["torch"])
    position, has_gauss = states["numpy_position"].tolist()
    keys = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, states["numpy_gauss"].item()))  # noqa: NPY002
    following = states["python_gauss"].item()
    random.setstate((3, tuple(states["python"].tolist()), None if following != following else following))
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda/{index}" in states:
            torch.cuda.set_rng_state(states[f"cuda/{index}"], index)


def check_generators(states: dict[str, Tensor]) -> None:
    """Validates states from `get_generators` without changing the global generators.

    Raises:
        ValueError: a state is missing or invalid.
    """
    expected = {
        "torch": (torch.uint8, list(torch.get_rng_state().shape)),
        "numpy": (torch.int64, [624]),
        "numpy_position": (torch.int64, [2]),
        "numpy_gauss": (torch.float64, []),
        "python": (torch.int64, [625]),
        "python_gauss": (torch.float64, []),
    }
    for name, (dtype, shape) in expected.items():
        if name not in states:
            raise ValueError(f"the state of the random generator {name} is missing")
        if states[name].dtype != dtype or list(states[name].shape) != shape:
            raise ValueError(f"the state of the random generator {name} is invalid: expected {dtype} {shape}")
    numbers = {"numpy": (states["numpy"], 2**32 - 1), "python": (states["python"][:-1], 2**32 - 1)}
    numbers |= {
        "numpy_position": (states["numpy_position"], 624),  # beyond it NumPy would read out of bounds
        "python position": (states["python"][-1:], 624),
    }
    for name, (values, high) in numbers.items():
        if int(values.min()) < 0 or int(values.max()) > high:
            raise ValueError(f"the state of the random generator {name} is invalid: expected numbers from 0 to {high}")
    try:
        torch.Generator().set_state(states["torch"])
    except RuntimeError as error:
        raise ValueError(f"the state of the random generator torch is invalid: {error}") from error
    for name in states.keys() - expected.keys():
        if not name.startswith("cuda/") or states[name].dtype != torch.uint8:
            raise ValueError(f"there is no random generator {name}")
