"""Tensors of the pretend device, and what is known of each operation on them."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pretend_cuda.current import Current

WAITS = {
    "_linalg_check_errors",
    "_local_scalar_dense",
    "_unique2",
    "allclose",
    "bincount",
    "equal",
    "is_nonzero",
    "linalg_eig",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
}
"""Operations after which the host knows a value or a shape that it did not."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
RESHAPES = {"squeeze_", "unsqueeze_", "t_", "transpose_", "as_strided_"}
VIEWS = {"detach", "detach_", "lift", "lift_fresh", "alias", "_reshape_alias", "_unsafe_view"}
EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_"}
LAZY = {
    torch.ops.aten._conj.default: torch.ops.aten.conj_physical.default,
    torch.ops.aten._neg_view.default: torch.ops.aten.neg.default,
}
"""A wrapper has no bit that says its numbers are conjugate or negative: done at once, where CUDA waits with it."""
TAKES_A_NUMBER = {"fill_", "where", "full_like", "masked_fill", "masked_fill_", "scalar_tensor"}
"""Besides pointwise kernels: operations for which a 0-dimensional tensor of the host is a number."""
STATE_BYTES = 16
"""Size of a CUDA generator's state; a CPU generator's is 5,056 bytes."""


class Operation(NamedTuple):
    """What is known of an operation without its arguments: asking C++ for its schema again and again is slow."""

    name: str
    draws: bool
    """Whether it draws random numbers."""
    pointwise: bool
    launches: bool
    mutates: str
    """Which of its tensors it writes to: none, first, last or all."""
    arguments: tuple[str, ...]
    written: tuple[str, ...]
    """For each result that is an argument written to: the argument's name; empty where results are new."""

    @classmethod
    @functools.cache
    def of(cls, func: Any) -> Operation:
        schema = func._schema
        name = schema.name.removeprefix("aten::")
        mutates = "none"
        if schema.is_mutable and ("_foreach" in name or "_fused" in name):
            mutates = "all"  # more than it writes, which is safe
        elif schema.is_mutable:
            first = schema.arguments[0].alias_info
            mutates = "first" if first is not None and first.is_write else "last"
        written = []
        for entry in schema.returns:
            info = entry.alias_info
            for argument in schema.arguments if info is not None and info.is_write else ():
                if argument.alias_info is not None and argument.alias_info.before_set == info.before_set:
                    written.append(argument.name)
        return cls(
            name,
            draws=torch.Tag.nondeterministic_seeded in func.tags,
            pointwise=torch.Tag.pointwise in func.tags,
            launches=not (func.is_view or name in VIEWS or name in EMPTY),
            mutates=mutates,
            arguments=tuple(argument.name for argument in schema.arguments),
            written=tuple(written) if len(written) == len(schema.returns) else (),
        )

    def mutated(self, tensors: list[Tensor]) -> list[Tensor]:
        """Those of its tensors that it writes to."""
        if self.mutates == "none":
            return []
        return tensors if self.mutates == "all" else tensors[:1] if self.mutates == "first" else tensors[-1:]


def memory_of(tensor: Pretend) -> int:
    """What identifies the memory of a tensor."""
    address: int = tensor.host.untyped_storage()._cdata
    return address


class Pretend(Tensor):
    """A tensor of the pretend device.

    Attributes:
        host: the CPU tensor with its numbers.
        at: the number of its device.
    """

    host: Tensor
    at: int

    @staticmethod
    def __new__(cls, host: Tensor, at: int = 0) -> Pretend:
        size = {"strides": host.stride(), "storage_offset": host.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, host.shape, dtype=host.dtype, device=f"meta:{at}", **size)
        made.host, made.at = host, at
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Current.gpu.operate(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.at)

    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    is_meta = property(lambda self: False)

    def get_device(self) -> int:
        return self.at

    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.to("cpu")

    def cuda(self, device: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        return self.to("cuda" if device is None else device)

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        copy = kwargs.pop("copy", False)
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
        rest = {} if layout is None else {"memory_format": layout}
        if device is not None and device.type != "cuda":
            return torch.ops.aten._to_copy(self, dtype=dtype, device=device, non_blocking=non_blocking, **rest)
        if device is not None and Current.gpu.index(device) != self.at:
            return torch.ops.aten._to_copy(self, dtype=dtype, device=device, **rest)
        return super().to(self.dtype if dtype is None else dtype, copy=copy, **rest)

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def tolist(self) -> Any:
        return self.to("cpu").tolist()

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def untyped_storage(self) -> Any:
        return self.host.untyped_storage()

    def new_tensor(self, data: Any, **kwargs: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device, **kwargs})

    def __repr__(self, **kwargs: Any) -> str:
        return f"cuda:{self.at} {self.host!r}"

    def __deepcopy__(self, memo: Any) -> Tensor:
        with torch.no_grad():
            again: Tensor = self.detach().clone()
        if getattr(self, "_is_param", False):
            again = nn.Parameter(again, self.requires_grad)
        memo[id(self)] = again
        return again


def leaves_of(values: Iterable[Any]) -> list[Any]:
    """Arguments, or results, with the entries of lists, which hold no further ones."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            found += value
        else:
            found.append(value)
    return found


def detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return [detached(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def on_host(value: Any) -> Any:
    if isinstance(value, Pretend):
        return value.host
    return [on_host(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def result_of(operation: Operation, result: Any, args: Any, kwargs: Any, at: int, to_host: bool) -> Any:
    """What the device gives: the argument itself where an operation writes to it, else a wrapper."""
    if operation.written:
        given = dict(zip(operation.arguments, args, strict=False)) | kwargs
        back = [given[name] for name in operation.written]
        return back[0] if len(back) == 1 else tuple(back)
    if to_host:
        return result
    if isinstance(result, (list, tuple)):
        return type(result)(Pretend(x, at) if isinstance(x, Tensor) else x for x in result)
    return Pretend(result, at) if isinstance(result, Tensor) else result
