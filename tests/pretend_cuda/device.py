"""The pretend device: what it replaces in torch, does and records."""

from __future__ import annotations

import functools
import os
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._device import _device_constructors
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from pretend_cuda import replacements
from pretend_cuda.current import Current
from pretend_cuda.streams import CpuGenerator, CudaGenerator, CUDAGraph, Order, Stream, graph, on_stream
from pretend_cuda.tensor import (
    INDEXING,
    LAZY,
    RESHAPES,
    TAKES_A_NUMBER,
    WAITS,
    Operation,
    Pretend,
    leaves_of,
    memory_of,
    on_host,
    result_of,
)

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("agents/", "policies/", "envs/", "train.py", "evaluate.py")
"""Where a wait is looked for in the stack: the product, not its tests."""


class PretendCuda(TorchDispatchMode):
    """The device; see the module.

    Args:
        devices: how many there are.
    """

    def __init__(self, devices: int = 1) -> None:
        super().__init__()
        self.devices, self.current = devices, 0
        self.waits: Counter[tuple[str, str]] = Counter()
        """(operation, file:line) of everything that the host waited for."""
        self.faults: list[str] = []
        """Accesses without an order between streams, and replays that read freed memory."""
        self.doubles: Counter[tuple[str, str]] = Counter()
        """(operation, file:line) of what was float64, which a GPU does slowly and mps not at all."""
        self.launches = self.replays = 0
        self.capturing: CUDAGraph | None = None
        self.graphs: weakref.WeakSet[CUDAGraph] = weakref.WeakSet()
        self.order = Order()
        self.sync_mode: Any = "default"

    def clear(self) -> None:
        """Forget what has been recorded so far."""
        self.waits.clear()
        self.doubles.clear()
        self.faults.clear()
        self.launches = self.replays = 0

    # -- what is patched ----------------------------------------------------------------------------------------------

    def __enter__(self) -> PretendCuda:
        Current.gpu = self
        self.streams = [Stream(number) for number in range(self.devices)]
        self.defaults = [CudaGenerator(f"cuda:{number}") for number in range(self.devices)]
        self.seed_all(0)
        self.patches = ExitStack()

        def put(owner: Any, name: str, value: Any) -> None:
            self.patches.enter_context(mock.patch.object(owner, name, value, create=True))

        for name, value in self._cuda_module().items():
            put(torch.cuda, name, value)
        put(torch, "Generator", CudaGenerator)
        put(torch.backends.cuda, "is_built", lambda: True)
        put(torch.backends.cudnn, "is_acceptable", lambda tensor: False)
        put(torch._C, "_group_tensors_by_device_and_dtype", replacements.grouped)
        put(torch.nn.functional, "one_hot", replacements.one_hot)
        for functions in (torch, torch._VF):
            put(functions, "lstm_cell", replacements.lstm_cell)
            put(functions, "gru_cell", replacements.gru_cell)
        put(torch._VF, "lstm", replacements.Sequence(torch._VF.lstm))
        put(torch._VF, "gru", replacements.Sequence(torch._VF.gru))
        put(nn.Module, "_apply", replacements.swapping(nn.Module._apply))
        put(Tensor, "to", replacements.to)
        put(Tensor, "cuda", lambda tensor, device=None, *_: tensor.to("cuda" if device is None else device))
        for name in ("tensor", "as_tensor", "asarray"):
            put(torch, name, replacements.made_on_host(getattr(torch, name)))
        for known in replacements.FOREACH:
            known.append(Pretend)
        torch._C._set_only_lift_cpu_tensors(True)
        _device_constructors.cache_clear()  # `torch.device("meta")` as a context keeps the functions it has seen
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        left = super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(False)
        for known in replacements.FOREACH:
            known.remove(Pretend)
        self.patches.close()
        _device_constructors.cache_clear()
        return left

    def _cuda_module(self) -> dict[str, Any]:
        """What takes the place of each function of `torch.cuda`."""
        return {
            "CUDAGraph": CUDAGraph,
            "Stream": Stream,
            "_is_in_bad_fork": lambda: False,
            "_lazy_init": lambda: None,
            "current_device": lambda: self.current,
            "current_stream": lambda device=None: self.streams[self.current if device is None else self.number(device)],
            "default_generators": tuple(self.defaults),
            "device_count": lambda: self.devices,
            "empty_cache": lambda: None,
            "get_device_name": lambda device=None: "pretend",
            "get_rng_state": lambda device="cuda": self.defaults[self.number(device)].get_state(),
            "get_rng_state_all": lambda: [each.get_state() for each in self.defaults],
            "graph": graph,
            "graph_pool_handle": lambda: (0, 1),
            "is_available": lambda: True,
            "is_current_stream_capturing": lambda: self.capturing is not None,
            "is_initialized": lambda: True,
            "manual_seed": self.seed_all,
            "manual_seed_all": self.seed_all,
            "max_memory_allocated": lambda device=None: 0,
            "mem_get_info": lambda device=None: (64 << 30, 80 << 30),
            "memory_allocated": lambda device=None: 0,
            "reset_peak_memory_stats": lambda device=None: None,
            "set_device": self.set_device,
            "set_rng_state": lambda state, device="cuda": self.defaults[self.number(device)].set_state(state),
            "set_sync_debug_mode": lambda mode: setattr(self, "sync_mode", mode),
            "stream": on_stream,
            "synchronize": lambda device=None: (self.order.all_wait(), self.wait("torch.cuda.synchronize"))[0],
        }

    def set_device(self, device: Any) -> None:
        self.current = self.number(device)

    def seed_all(self, seed: int) -> None:
        for generator in self.defaults:
            generator.manual_seed(seed)

    def number(self, device: Any) -> int:
        """The number of a device given in any form that torch takes."""
        return device if isinstance(device, int) else self.index(torch.device(device))

    def index(self, device: torch.device) -> int:
        at = self.current if device.index is None else device.index
        if at >= self.devices:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return at

    # -- what is recorded ---------------------------------------------------------------------------------------------

    @staticmethod
    def place() -> str:
        """file:line of the innermost frame of the product."""
        frame = sys._getframe(1)
        while frame is not None:
            if name := _of_product(frame.f_code.co_filename):
                return f"{name}:{frame.f_lineno}"
            frame = frame.f_back  # type: ignore[assignment]
        return "elsewhere"

    def wait(self, what: str) -> None:
        """The host waits for the device."""
        self.refuse_in_capture(what)
        if self.sync_mode in ("error", 2):
            raise RuntimeError(f"called a synchronizing CUDA operation: {what} at {self.place()}")
        self.waits[what, self.place()] += 1

    def refuse_in_capture(self, what: str) -> None:
        if self.capturing is not None:
            raise RuntimeError(
                f"CUDA error: operation not permitted when stream is capturing: {what} at {self.place()}"
            )

    @contextmanager
    def device_random(self, at: int | None) -> Iterator[None]:
        """The default generator of device `at` in place of the host's; None: the host's."""
        if at is None:
            yield
            return
        mine, host = self.defaults[at], torch.random.default_generator
        before = host.get_state()
        host.set_state(CpuGenerator.get_state(mine))
        try:
            yield
        finally:
            CpuGenerator.set_state(mine, host.get_state())
            host.set_state(before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.operate(func, args, kwargs or {})

    def operate(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operation, done on the CPU and recorded as the device's."""
        func = LAZY.get(func, func)
        leaves = leaves_of((*args, *kwargs.values()))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        ours = [tensor for tensor in tensors if isinstance(tensor, Pretend)]
        device = kwargs.get("device")
        if device is not None and device.type == "meta":  # C++ makes something beside a wrapper
            device = torch.device("cuda", device.index if device.index is not None else self._beside(ours))
        to_device, to_host = (device is not None and device.type == kind for kind in ("cuda", "cpu"))
        if not ours and not to_device:
            return func(*args, **kwargs)
        at = self.index(device) if to_device else ours[0].at
        operation = Operation.of(func)
        name = operation.name
        if (
            name == "_to_copy"
            and to_device
            and ours
            and ours[0].at == at
            and kwargs.get("dtype") in (None, ours[0].dtype)
        ):
            return torch.ops.aten.alias.default(ours[0])
        self._check(operation, args, kwargs, tensors, ours, to_host)
        host_args = [on_host(value) for value in args]
        host_kwargs = {key: on_host(value) for key, value in kwargs.items()}
        if to_device:
            host_kwargs["device"] = torch.device("cpu")
        generators = [leaf for leaf in leaves if isinstance(leaf, CpuGenerator)]
        drawn = at if operation.draws and not generators else None
        mutated = [tensor for tensor in operation.mutated(tensors) if isinstance(tensor, Pretend)]
        if self.capturing is not None:
            if any(each._cdata not in self.capturing.allowed for each in generators):
                raise RuntimeError("Attempt to use a generator in a capture that is not registered with the graph")
            self.capturing.save(mutated)
        if drawn is None:
            result = func(*host_args, **host_kwargs)
        else:
            with self.device_random(drawn):
                result = func(*host_args, **host_kwargs)
        if name in RESHAPES:  # C++'s idea of the wrapper follows
            with no_dispatch():
                func(*args, **kwargs)
            return args[0]
        launches = operation.launches
        if launches:
            self.launches += 1 + replacements.BIASES.get(name, 0) * (args[-1] is True)
        out = result_of(operation, result, args, kwargs, at, to_host)
        if to_host:
            return out
        made = [tensor for tensor in leaves_of([out]) if isinstance(tensor, Pretend)]
        if any(tensor.dtype in (torch.float64, torch.complex128) for tensor in made):
            self.doubles[name, self.place()] += 1
        if self.capturing is not None:
            entry = func, host_args, host_kwargs, result, torch.is_grad_enabled(), drawn
            self.capturing.record(entry, ours, mutated, made, launches, f"{name} at {self.place()}")
        elif launches:
            self._follow(name, ours, mutated, made, at)
        return out

    def _beside(self, ours: list[Pretend]) -> int:
        return ours[0].at if ours else self.current

    def _check(
        self, operation: Operation, args: Any, kwargs: Any, tensors: list[Tensor], ours: list[Pretend], to_host: bool
    ) -> None:
        """Raise what CUDA would raise; record what the host would wait for."""
        name = operation.name
        theirs = [tensor for tensor in tensors if not isinstance(tensor, Pretend)]
        if name == "_to_copy":
            if to_host or theirs:
                self.wait("device to host" if to_host else "host to device")
            return
        if name == "copy_":
            if theirs:
                self.wait("device to host" if isinstance(args[1], Pretend) else "host to device")
            return
        places = {tensor.at for tensor in ours}
        if len(places) > 1:
            found = ", ".join(f"cuda:{place}" for place in sorted(places))
            raise RuntimeError(
                f"Expected all tensors to be on the same device, found {found} in {name} at {self.place()}"
            )
        if name in WAITS and kwargs.get("output_size") is None:
            self.wait(name)
        if name in INDEXING:
            self._check_index(name, args)
        elif theirs and ours:
            numbers = operation.pointwise or name in TAKES_A_NUMBER
            if not numbers or any(tensor.dim() for tensor in theirs):
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, found cuda:{ours[0].at} and cpu in {name} "
                    f"at {self.place()}"
                )

    def _check_index(self, name: str, args: Any) -> None:
        indices = [index for index in args[1] if index is not None]
        value = args[2] if len(args) > 2 else None
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            # one number written where a mask is true is a masked_fill
            number = name != "index" and len(indices) == 1 and value.numel() == 1 and not isinstance(value, Pretend)
            if not number:
                self.wait(f"{name} by a mask")
        elif any(not isinstance(x, Pretend) for x in indices) or (value is not None and not isinstance(value, Pretend)):
            self.wait("host to device")  # indices, or a value, from a list

    def _follow(self, name: str, ours: list[Pretend], mutated: list[Pretend], made: list[Pretend], at: int) -> None:
        """Hold streams to their order."""
        before = {memory_of(tensor) for tensor in ours}
        written = {memory_of(tensor) for tensor in mutated}
        fresh = {memory_of(tensor) for tensor in made} - before
        for memory in fresh:
            self.order.fresh(memory)
        who, stream = f"{name} ({self.place()})", self.streams[at].stream_id
        self.faults += self.order.access(stream, before - written, written | fresh, who)[:1]


@functools.cache
def _of_product(file: str) -> str:
    """The path of one of the product's files within the checkout; empty for any other file."""
    name = os.path.relpath(file, ROOT)
    return name if name.startswith(PLACES) else ""
