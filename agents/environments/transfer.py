"""Moves a step's arrays from the host to a device in one copy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]

_ALIGNMENT = 16  # bytes; each part starts at a multiple, which suits every type


class Transfer:
    """Copies arrays of fixed shapes and types to a device.

    On the CPU each becomes a separate tensor. For an accelerator they are concatenated in one page-locked buffer, which
    is copied at once; the tensors are views of the copy. The buffer is reused after its last copy is complete, which is
    usually the case by the next step.

    Args:
        parts: shape and numpy type of each array, by name.
        device: target of the copies.
        packed: whether to use one buffer; None: on an accelerator.
    """

    def __init__(
        self, parts: Mapping[str, tuple[tuple[int, ...], Any]], device: torch.device, packed: bool | None = None
    ) -> None:
        self.parts = {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in parts.items()}
        self.device = device
        self.packed = device.type != "cpu" if packed is None else packed
        self._copied: torch.cuda.Event | None = None
        self._buffer: Tensor | None = None

    def __call__(self, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        """New tensors, which share no memory with `arrays`; parts may be missing."""
        if not self.packed:
            return {
                name: torch.from_numpy(np.array(array, self.parts[name][1], order="C"))
                for name, array in arrays.items()
            }
        if self._buffer is None:
            self._allocate()
        assert self._buffer is not None
        if self._copied is not None:
            self._copied.synchronize()
        for name, array in arrays.items():
            np.copyto(self._host_views[name], array, casting="unsafe")
        written = self._buffer[: max((self._places[name][1] for name in arrays), default=0)]
        copied = torch.empty_like(written, device=self.device).copy_(written, non_blocking=True)
        if self.device.type == "cuda":
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(self.device))
        return {name: self._view(copied, name) for name in arrays}

    def _allocate(self) -> None:
        self._places: dict[str, tuple[int, int]] = {}
        end = 0
        for name, (shape, dtype) in self.parts.items():
            size = math.prod(shape) * dtype.itemsize
            self._places[name] = end, end + size
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
        self._buffer = torch.empty(end, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        self._host_views: dict[str, Array] = {name: self._view(self._buffer, name).numpy() for name in self.parts}

    def _view(self, buffer: Tensor, name: str) -> Tensor:
        (begin, end), (shape, dtype) = self._places[name], self.parts[name]
        return buffer[begin:end].view(torch.from_numpy(np.empty(0, dtype)).dtype).view(shape)

    def __deepcopy__(self, memo: dict[int, Any]) -> Transfer:
        return Transfer(self.parts, self.device, self.packed)

    def __getstate__(self) -> dict[str, Any]:
        return {"parts": self.parts, "device": self.device, "packed": self.packed, "_copied": None, "_buffer": None}
