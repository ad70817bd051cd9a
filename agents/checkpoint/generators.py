"""The states of the global random generators as tensors."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor


def get_generators() -> dict[str, Tensor]:
    """The state of every global random generator."""
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - SB3 seeds and draws from the global one
    _, internal, next_gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.array(keys, dtype=np.int64)),
        "numpy_position": torch.tensor([position, has_gauss]),
        "numpy_gauss": torch.tensor(gauss, dtype=torch.float64),
        "python": torch.tensor(internal),
        "python_gauss": torch.tensor(float("nan") if next_gauss is None else next_gauss, dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states |= {f"cuda/{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def set_generators(states: dict[str, Tensor]) -> None:
    """Restores the states that `get_generators` returned.

    Raises:
        KeyError: a state is missing.
        ValueError, RuntimeError, TypeError: a state is invalid; others may be set already.
    """
    torch.set_rng_state(states["torch"])
    position, has_gauss = states["numpy_position"].tolist()
    if not 0 <= position <= 624:  # NumPy would read out of bounds
        raise ValueError(f"the position of NumPy's random generator is {position}, expected 0 to 624")
    keys = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, states["numpy_gauss"].item()))  # noqa: NPY002
    next_gauss = states["python_gauss"].item()
    random.setstate((3, tuple(states["python"].tolist()), None if next_gauss != next_gauss else next_gauss))
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda/{index}" in states:
            torch.cuda.set_rng_state(states[f"cuda/{index}"], index)
