"""What C++ would do for CUDA, by Python: functions that take the place of torch's."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pretend_cuda.current import Current
from pretend_cuda.tensor import Pretend

FOREACH = [
    importlib.import_module("torch.optim.optimizer")._foreach_supported_types,
    importlib.import_module("torch.utils._foreach_utils")._foreach_supported_types,
]
_to_of_torch, _one_hot_of_torch = Tensor.to, torch.nn.functional.one_hot


def grouped(lists: Any, with_indices: bool = False) -> Any:
    found: dict[Any, Any] = {}
    for index, first in enumerate(lists[0]):
        groups, indices = found.setdefault((first.device, first.dtype), ([[] for _ in lists], []))
        for group, entries in zip(groups, lists, strict=True):
            if entries:
                group.append(entries[index])
        indices.append(index)
    return {key: (groups, indices if with_indices else []) for key, (groups, indices) in found.items()}


def _numbered(device: Any) -> Any:
    if isinstance(device, str) and device.startswith("cuda"):
        device = torch.device(device)
    if isinstance(device, torch.device) and device.type == "cuda" and device.index is None:
        return torch.device("cuda", Current.gpu.current)
    return device


def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """C++ asks CUDA which device is meant where none is numbered."""
    args = tuple(map(_numbered, args))
    if "device" in kwargs:
        kwargs["device"] = _numbered(kwargs["device"])
    if args and isinstance(args[0], Pretend) and not isinstance(tensor, Pretend):
        args = (args[0].device, args[0].dtype, *args[1:])
    return _to_of_torch(tensor, *args, **kwargs)


def made_on_host(ordinary: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def make(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if isinstance(data, Pretend):
            copied = data.detach().clone() if ordinary.__name__ == "tensor" else data
            return copied.to(device=data.device if device is None else device, dtype=kwargs.get("dtype"))
        made = ordinary(data, *args, **kwargs)
        return made if device is None else made.to(_numbered(device))

    return make


def swapping(apply: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """`nn.Module.to` that keeps parameters the objects that an optimiser knows."""

    def run(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return apply(module, *args, **kwargs)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)

    return run


def one_hot(x: Tensor, num_classes: int = -1) -> Tensor:
    """On a CPU C++ looks at the numbers; on CUDA the kernel does."""
    if not isinstance(x, Pretend) or num_classes < 0:
        return _one_hot_of_torch(x, num_classes)
    return x.new_zeros(*x.shape, num_classes).scatter_(-1, x[..., None], 1)


def lstm_cell(x: Tensor, state: Any, w_x: Tensor, w_h: Tensor, b_x: Any = None, b_h: Any = None) -> Any:
    """As CUDA takes it: two products and one fused kernel."""
    if not isinstance(x, Pretend):
        return _lstm_cell_of_torch(x, state, w_x, w_h, b_x, b_h)
    h, c = state
    return torch.ops.aten._thnn_fused_lstm_cell(x @ w_x.t(), h @ w_h.t(), c, b_x, b_h)[:2]


def gru_cell(x: Tensor, h: Tensor, w_x: Tensor, w_h: Tensor, b_x: Any = None, b_h: Any = None) -> Tensor:
    if not isinstance(x, Pretend):
        return _gru_cell_of_torch(x, h, w_x, w_h, b_x, b_h)
    hidden: Tensor = torch.ops.aten._thnn_fused_gru_cell(x @ w_x.t(), h @ w_h.t(), h, b_x, b_h)[0]
    return hidden


_lstm_cell_of_torch, _gru_cell_of_torch = torch.lstm_cell, torch.gru_cell


# The fused kernels of a recurrent cell, which torch has on CUDA alone, with the layout of what they keep.


def _fused_lstm(x: Tensor, h: Tensor, c: Tensor, b_x: Any = None, b_h: Any = None) -> tuple[Tensor, Tensor, Tensor]:
    i, f, g, o = (x + h if b_x is None else x + h + b_x + b_h).chunk(4, 1)
    kept = torch.cat([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], 1)
    i, f, g, o = kept.chunk(4, 1)
    after = f * c + i * g
    return o * after.tanh(), after, kept


def _fused_lstm_back(d_h: Any, d_c: Any, before: Tensor, after: Tensor, kept: Tensor, biased: bool) -> Any:
    i, f, g, o = kept.chunk(4, 1)
    tanh_cell = after.tanh()
    d_h = torch.zeros_like(after) if d_h is None else d_h
    d = d_h * o * (1 - tanh_cell.square()) + (0 if d_c is None else d_c)
    d_g = [d * g * i * (1 - i), d * before * f * (1 - f), d * i * (1 - g.square()), d_h * tanh_cell * o * (1 - o)]
    d_gates = torch.cat(d_g, 1)
    return d_gates, d * f, d_gates.sum(0) if biased else None


def _fused_gru(x: Tensor, h: Tensor, hidden: Tensor, b_x: Any = None, b_h: Any = None) -> tuple[Tensor, Tensor]:
    x, h = (x, h) if b_x is None else (x + b_x, h + b_h)
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, 1), h.chunk(3, 1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    return n + z * (hidden - n), torch.cat([r, z, n, hidden, h_n], 1)


def _fused_gru_back(d_h: Tensor, kept: Tensor, biased: bool) -> Any:
    r, z, n, hidden, h_n = kept.chunk(5, 1)
    d_n = d_h * (1 - z) * (1 - n.square())
    d_r, d_z = d_n * h_n * r * (1 - r), d_h * (hidden - n) * z * (1 - z)
    d_x, d_gates = torch.cat([d_r, d_z, d_n], 1), torch.cat([d_r, d_z, d_n * r], 1)
    return d_x, d_gates, d_h * z, d_x.sum(0) if biased else None, d_gates.sum(0) if biased else None


BIASES = {"_thnn_fused_lstm_cell_backward_impl": 1, "_thnn_fused_gru_cell_backward": 2}
"""Launches that sum the gradients of biases up, beside the one of the kernel."""
_KERNELS = torch.library.Library("aten", "IMPL")
for _name, _kernel in {
    "_thnn_fused_lstm_cell": _fused_lstm,
    "_thnn_fused_lstm_cell_backward_impl": _fused_lstm_back,
    "_thnn_fused_gru_cell": _fused_gru,
    "_thnn_fused_gru_cell_backward": _fused_gru_back,
}.items():
    _KERNELS.impl(_name, _kernel, "CPU")


class Sequence:
    """A recurrent sequence, operation by operation; counted as one launch a step and three more."""

    def __init__(self, ordinary: Any) -> None:
        self.ordinary = ordinary

    def __call__(self, *args: Any) -> Any:
        gpu = Current.gpu
        before = gpu.launches
        out = self.ordinary(*args)
        if isinstance(args[0], Pretend):
            packed = isinstance(args[1], Tensor) and not isinstance(args[1], Pretend)
            gpu.launches = before + 3 + (len(args[1]) if packed else len(args[0]))
        return out
