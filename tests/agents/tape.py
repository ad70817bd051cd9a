"""A tape that stands for a CUDA graph: on it a part of an iteration is replayed on the CPU as a graph would be.

While Python runs once, every operation is written down with the very tensors and numbers it was given. A replay does
these operations again, in those tensors, and runs none of the Python. So what Python decided is decided for good, a
tensor that a name has left for another is still the one that is read, and random numbers go on: all as in a CUDA graph.
What a graph could not take down is an error here as well: a value or a shape that the host must know.
"""

from __future__ import annotations

import functools
import sys
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

HOST_READS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "unique_dim",
    "_unique2",
    "bincount",
    "equal",
    "_linalg_check_errors",
}
"""Operations after which the host knows a value or a shape that it did not."""


RESHAPES = {"squeeze_", "unsqueeze_", "t_", "transpose_", "as_strided_", "detach_", "resize_"}
"""Operations that give a tensor another shape and leave its numbers: once is enough."""


@functools.cache
def _known(func: Any) -> tuple[str, bool]:
    """An operation's name, and whether a replay must do it again; asking C++ for its schema each time is slow."""
    name = func._schema.name.removeprefix("aten::")
    views = [entry.alias_info for entry in func._schema.returns if entry.alias_info is not None]
    return name, all(info.is_write for info in views) and name not in RESHAPES and not name.startswith("empty")


def _results(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (list, tuple)) else [result]


class HostReadError(AssertionError):
    """The host asks the device for a value, or gives it one that it could only give once."""


_tensor = torch.tensor


def _made_on_host(*args: Any, **kwargs: Any) -> Tensor:
    if "torch/optim" not in sys._getframe(1).f_code.co_filename:  # there only where steps are counted on the CPU
        raise HostReadError("a tensor is made from Python's numbers, which a graph would copy from the host each time")
    return _tensor(*args, **kwargs)


class Tape(TorchDispatchMode):
    """An `agents.scale.cuda_graphs.replay.Capture` for the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Any], bool]] = []
        self._fresh = True

    def record(self, body: Any) -> None:
        with (
            self,
            mock.patch.object(torch, "tensor", _made_on_host),
            mock.patch.object(torch, "as_tensor", _made_on_host),
        ):
            self.output: Tensor = body()

    def replay(self) -> Tensor:
        if self._fresh:  # recording it did it
            self._fresh = False
            return self.output
        with torch._C._AutoDispatchBelowAutograd():
            for operation, args, kwargs, given, grad in self.operations:
                with torch.set_grad_enabled(grad):  # some operations keep more where there is a gradient to come
                    again = operation(*args, **kwargs)
                for old, new in zip(given, _results(again), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)
        return self.output

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, repeated = _known(func)
        mask = name.startswith("index") and any(
            t.dtype == torch.bool for t in _results(args[1]) if isinstance(t, Tensor)
        )
        if name in HOST_READS or mask:
            raise HostReadError(f"the host reads: {name}")
        if name == "lift_fresh" and args[0].dim():  # without dimensions: a number that is assigned, no copy on a GPU
            raise HostReadError("a list of numbers becomes a tensor, which a graph would copy from the host each time")
        result = func(*args, **kwargs)
        if repeated:
            given = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in _results(result)]
            self.operations.append((func, args, kwargs, given, torch.is_grad_enabled()))
        return result
