"""Looks up devices by the names of command-line options."""

from __future__ import annotations

import torch
from stable_baselines3.common.utils import get_device


def widest(device: torch.device) -> torch.dtype:
    """The widest floating point type of a device, for sums: mps has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def device_of(name: str) -> torch.device:
    """The device with this name.

    Raises:
        ValueError: this machine has no such device.
    """
    try:
        device = get_device(name) if name == "auto" else torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: expected cpu, cuda, cuda:1, ... or auto") from error
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            devices = "one CUDA device" if found == 1 else f"{found or 'no'} CUDA devices"
            raise ValueError(f"--device {name}: this machine has {devices}")
    elif device.type != "cpu" or device.index:
        raise ValueError(f"--device {name}: expected cpu, cuda, cuda:1, ... or auto")
    return device
