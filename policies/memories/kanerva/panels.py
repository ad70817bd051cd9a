"""Pictures of Kanerva++'s memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from policies.memories.contract import Panel
from policies.memories.kanerva.parts import read_windows

COLOURS = ((1.0, 0.35, 0.2), (0.2, 0.75, 1.0), (1.0, 0.85, 0.1), (0.5, 1.0, 0.4), (0.9, 0.4, 1.0), (1.0, 1.0, 1.0))
ZOOM = 8
"""Pixels per memory cell in the panel."""


def memory_panels(memory: Tensor, windows: Tensor, crop_size: int, colours: Tensor) -> dict[str, Panel]:
    """The memory with its windows outlined, and the windows' contents.

    Args:
        memory: `[1, C, S, S]`.
        windows: (s, x, y) of each in −1..1, `[K, 3]`.
        crop_size: pixels of a window's side.
        colours: colours of the outlines, used in turn, `[n, 3]`.
    """
    # `read_windows` applies tanh to its keys
    crops = read_windows(memory, windows.unsqueeze(0).atanh(), crop_size)[0]
    low, high = memory.min(), memory.max()
    span = (high - low).clamp(min=1e-12)
    picture = F.interpolate((as_rgb(memory) - low) / span, scale_factor=ZOOM)[0].permute(1, 2, 0)
    for index, window in enumerate(windows):
        outline = frame(window, picture.shape[0]).unsqueeze(-1)
        picture = torch.where(outline, colours[index % len(colours)], picture)
    shown = ((as_rgb(crops) - low) / span).clamp(0, 1).permute(2, 0, 3, 1).flatten(1, 2)
    return {
        "memory": Panel(picture, "x", "y", about="memory as an image; frames: last block, windows"),
        "windows": Panel(shown, "x, window by window", "y", about="contents of the windows read"),
    }


def as_rgb(image: Tensor) -> Tensor:
    """The first three channels of `[N, C, H, W]`; with fewer, the last one is repeated."""
    last = image[:, -1:].expand(-1, max(0, 3 - image.shape[1]), -1, -1)
    return torch.cat([image[:, :3], last], 1)


def frame(window: Tensor, size: int) -> Tensor:
    """The outline of a window (s, x, y) as a mask `[size, size]`, a few pixels thick."""
    places = torch.linspace(-1, 1, size, device=window.device, dtype=window.dtype)
    scale, x, y = window.unbind()
    distance = torch.maximum((places - x).abs().unsqueeze(0), (places - y).abs().unsqueeze(1))
    return (distance - scale.abs()).abs() <= 3 / size
