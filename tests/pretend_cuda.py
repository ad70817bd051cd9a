"""A pretend CUDA device: programs run with real numbers on the paths they take on a GPU, on a machine without one.

    with PretendCuda() as gpu:
        model = PPO("MemoryPolicy", make_env("Engram/RepeatFirst-v0", 8, "cuda"), device="cuda")
        model.learn(1)
    assert not gpu.faults and not gpu.waits

Every tensor of the device wraps an ordinary CPU tensor. C++ takes the wrapper for a meta tensor, Python is told
`cuda:N`, and a dispatch mode below autograd does the arithmetic on the CPU.

What is an error on CUDA is one here: operands on two devices, `.numpy()`, a read or copy while a stream is captured, an
unregistered generator, a generator state of the wrong size. What makes the host wait for the device is recorded with
its place in `waits`. Launches are counted in `launches`. Streams are held to their order by vector clocks, and each
unordered access is listed in `faults`. `torch.cuda.CUDAGraph` is a tape: capturing changes nothing, and a replay
repeats the recorded operations in the recorded memory, without Python.

What it cannot know: the time of a kernel, the numerics of cuDNN, cuBLAS and TF32, memory pools, and what C++ decides by
looking at a tensor's device itself.
"""

from __future__ import annotations

import functools
import importlib
import os
import runpy
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._device import _device_constructors
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("agents/", "policies/", "envs/", "train.py", "evaluate.py")
"""Where a wait is looked for in the stack: the product, not its tests."""

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
        return PretendCuda.now.operate(func, args, kwargs or {})

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
        if device is not None and PretendCuda.now.index(device) != self.at:
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


# -- generators, streams and graphs -----------------------------------------------------------------------------------


_Generator = torch.Generator


class _AnyGenerator(type(_Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, _Generator)


class CudaGenerator(_Generator, metaclass=_AnyGenerator):
    """Takes the place of `torch.Generator`; on the device its state has `STATE_BYTES`, as CUDA's has."""

    states: dict[int, Tensor] = {}  # noqa: RUF012 - shared by all, as states may be handed from one to another

    def __new__(cls, device: Any = "cpu") -> Any:
        device = torch.device(device)
        if device.type != "cuda":
            return _Generator(device)
        made = _Generator.__new__(cls)
        made.at = PretendCuda.now.index(device)
        return made

    def __init__(self, device: Any = "cpu") -> None: ...

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.at)

    def get_state(self) -> Tensor:
        PretendCuda.now.refuse_in_capture("reading a generator's state")
        whole = super().get_state()
        number = hash(whole.numpy().tobytes()) & (2**62 - 1)
        CudaGenerator.states[number] = whole
        return torch.tensor([number, 0]).view(torch.uint8).clone()

    def set_state(self, state: Tensor) -> Any:
        if state.numel() != STATE_BYTES:
            raise RuntimeError("RNG state is wrong size")
        number = int(state.view(torch.int64)[0])
        if number in CudaGenerator.states:
            super().set_state(CudaGenerator.states[number])
        else:  # saved by another process, which so few bytes cannot carry: numbers that only depend on them
            self.manual_seed(number)
        return self

    def clone_state(self) -> Any:
        again = CudaGenerator(self.device)
        _Generator.set_state(again, _Generator.get_state(self))
        return again

    def graphsafe_set_state(self, other: Any) -> Any:
        _Generator.set_state(self, _Generator.get_state(other))
        return self


class Stream:
    """Takes the place of `torch.cuda.Stream`."""

    count = 0

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        gpu = PretendCuda.now
        self.at = gpu.current if device is None else gpu.number(device)
        Stream.count += 1
        self.stream_id = self.cuda_stream = Stream.count
        gpu.order.create(self.stream_id)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.at)

    def wait_stream(self, other: Stream) -> None:
        PretendCuda.now.order.wait(self.stream_id, other.stream_id)

    def synchronize(self) -> None:
        PretendCuda.now.wait("stream.synchronize")

    def query(self) -> bool:
        return True


class Order:
    """Which stream has seen how much of each other one's work, by vector clocks."""

    def __init__(self) -> None:
        self.clock: dict[int, dict[int, int]] = {}
        self.writes: dict[int, tuple[int, int, str]] = {}
        self.reads: dict[int, dict[int, tuple[int, str]]] = {}

    def create(self, stream: int) -> None:
        # a new stream waits for nothing, but whoever makes it has seen what was done so far
        self.clock[stream] = {other: clock[other] for other, clock in self.clock.items()} | {stream: 0}

    def wait(self, stream: int, other: int) -> None:
        mine = self.clock[stream]
        for seen, count in self.clock[other].items():
            mine[seen] = max(mine.get(seen, -1), count)

    def all_wait(self) -> None:
        now = {stream: clock[stream] for stream, clock in self.clock.items()}
        for clock in self.clock.values():
            clock.update(now)

    def fresh(self, memory: int) -> None:
        """Memory that has just been allocated has no history."""
        self.writes.pop(memory, None)
        self.reads.pop(memory, None)

    def access(self, stream: int, reads: set[int], writes: set[int], who: str) -> list[str]:
        """Record an access; gives a line for each earlier one that it had to wait for and did not."""
        clock = self.clock[stream]
        clock[stream] += 1
        found = []
        for memory in reads | writes:
            other, count, by = self.writes.get(memory, (stream, 0, ""))
            if other != stream and clock.get(other, -1) < count:
                found.append(f"{who} on stream {stream} does not wait for what stream {other} wrote in {by}")
        for memory in writes:
            for other, (count, by) in self.reads.get(memory, {}).items():
                if other != stream and clock.get(other, -1) < count:
                    found.append(f"{who} on stream {stream} overwrites what stream {other} may still read in {by}")
            self.writes[memory] = (stream, clock[stream], who)
            self.reads.pop(memory, None)
        for memory in reads - writes:
            self.reads.setdefault(memory, {})[stream] = (clock[stream], who)
        return found


class CUDAGraph:
    """Takes the place of `torch.cuda.CUDAGraph`: a tape."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.tape: list[tuple[Any, Any, Any, Any, bool, int | None]] = []
        self.generators: list[Any] = []
        self.made: set[int] = set()
        """Memory allocated in the capture, which belongs to the graph."""
        self.external: dict[int, Tensor] = {}
        """Memory from before the capture, by an alias that keeps it."""
        self.read_by: dict[int, str] = {}
        self.written: set[int] = set()
        self.holds: Counter[int] = Counter()
        """How often the tape itself refers to each memory."""
        PretendCuda.now.graphs.add(self)

    def register_generator_state(self, generator: Any) -> None:
        if not isinstance(generator, CudaGenerator):
            raise RuntimeError("Expected a CUDA generator")
        self.generators.append(generator)

    def begin(self) -> None:
        self.saved: dict[int, tuple[Tensor, Tensor]] = {}
        self.drawing = [(each, _Generator.get_state(each)) for each in [*self.generators, *PretendCuda.now.defaults]]
        self.allowed = {each._cdata for each, _ in self.drawing}

    def save(self, written: list[Pretend]) -> None:
        """Keep what an operation is about to write: a capture runs nothing, so its end restores it."""
        for tensor in written:
            memory = memory_of(tensor)
            if memory not in self.made and memory not in self.saved:
                whole = torch.empty(0, dtype=torch.uint8).set_(tensor.host.untyped_storage())
                self.saved[memory] = whole, whole.clone()

    def end(self) -> None:
        for whole, before in self.saved.values():
            whole.copy_(before)
        for generator, state in self.drawing:
            _Generator.set_state(generator, state)
        self.saved, self.drawing = {}, []

    def record(
        self,
        entry: tuple[Any, list[Any], dict[str, Any], Any, bool, int | None],
        ours: list[Pretend],
        mutated: list[Pretend],
        out: list[Pretend],
        launches: bool,
        who: str,
    ) -> None:
        """Put an operation on the tape: (function, arguments, keywords, results, gradients on, device drawn from)."""
        known = {memory_of(tensor) for tensor in ours}
        for tensor in ours:
            memory = memory_of(tensor)
            if memory not in self.made and memory not in self.external:
                self.external[memory] = tensor.host.detach()
                self.read_by[memory] = f"{who} {tuple(tensor.shape)} {tensor.dtype}"
                self.holds[memory] += 1
        self.made |= {memory_of(tensor) for tensor in out} - known
        if not launches:
            return
        self.written |= {memory_of(tensor) for tensor in mutated}
        func, args, kwargs, result, grad, drawn = entry
        args = [_detached(value) for value in args]
        kwargs = {key: _detached(value) for key, value in kwargs.items()}
        given = [_detached(value) for value in _leaves([result])]
        for leaf in (*_leaves((*args, *kwargs.values())), *given):
            if isinstance(leaf, Tensor):
                self.holds[leaf.untyped_storage()._cdata] += 1
        self.tape.append((func, args, kwargs, given, grad, drawn))

    def replay(self) -> None:
        gpu = PretendCuda.now
        gpu.refuse_in_capture("replaying a graph")
        for memory, alias in self.external.items():
            uses = torch._C._storage_Use_Count(alias.untyped_storage()._cdata)
            if uses <= sum(each.holds[memory] for each in gpu.graphs):
                gpu.faults.append(f"a replay reads memory that was freed since the capture: {self.read_by[memory]}")
        stream = gpu.streams[self.at].stream_id
        gpu.faults += gpu.order.access(stream, set(self.external), self.written & set(self.external), "a replay")
        gpu.replays += 1
        with no_dispatch():
            for func, args, kwargs, given, grad, drawn in self.tape:
                with torch.set_grad_enabled(grad), gpu.device_random(drawn):
                    again = func(*args, **kwargs)
                for old, new in zip(given, _leaves([again]), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

    def pool(self) -> Any:
        return (0, 0)

    def reset(self) -> None:
        self.tape = []


@contextmanager
def _graph(graph: CUDAGraph, pool: Any = None, stream: Stream | None = None, **_: Any) -> Iterator[None]:
    """Takes the place of `torch.cuda.graph`."""
    gpu = PretendCuda.now
    gpu.order.all_wait()  # it synchronises the device
    stream = Stream() if stream is None else stream
    graph.at = stream.at
    with _on_stream(stream):
        gpu.capturing = graph
        with no_dispatch():
            graph.begin()
        try:
            yield
        finally:
            gpu.capturing = None
            with no_dispatch():
                graph.end()


@contextmanager
def _on_stream(stream: Stream | None) -> Iterator[None]:
    """Takes the place of `torch.cuda.stream`."""
    gpu = PretendCuda.now
    if stream is None:
        yield
        return
    before = gpu.current, gpu.streams[stream.at]
    gpu.current, gpu.streams[stream.at] = stream.at, stream
    try:
        yield
    finally:
        gpu.current, gpu.streams[stream.at] = before


# -- the device -------------------------------------------------------------------------------------------------------


class PretendCuda(TorchDispatchMode):
    """The device; see the module.

    Args:
        devices: how many there are.
    """

    now: PretendCuda

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
        PretendCuda.now = self
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
        put(torch._C, "_group_tensors_by_device_and_dtype", _grouped)
        put(torch.nn.functional, "one_hot", _one_hot)
        for functions in (torch, torch._VF):
            put(functions, "lstm_cell", _lstm_cell)
            put(functions, "gru_cell", _gru_cell)
        put(torch._VF, "lstm", _Sequence(torch._VF.lstm))
        put(torch._VF, "gru", _Sequence(torch._VF.gru))
        put(nn.Module, "_apply", _swapping(nn.Module._apply))
        put(Tensor, "to", _to)
        put(Tensor, "cuda", lambda tensor, device=None, *_: tensor.to("cuda" if device is None else device))
        for name in ("tensor", "as_tensor", "asarray"):
            put(torch, name, _made_on_host(getattr(torch, name)))
        for known in _FOREACH:
            known.append(Pretend)
        torch._C._set_only_lift_cpu_tensors(True)
        _device_constructors.cache_clear()  # `torch.device("meta")` as a context keeps the functions it has seen
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        left = super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(False)
        for known in _FOREACH:
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
            "graph": _graph,
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
            "stream": _on_stream,
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
        host.set_state(_Generator.get_state(mine))
        try:
            yield
        finally:
            _Generator.set_state(mine, host.get_state())
            host.set_state(before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.operate(func, args, kwargs or {})

    def operate(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operation, done on the CPU and recorded as the device's."""
        func = LAZY.get(func, func)
        leaves = _leaves((*args, *kwargs.values()))
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
        host_args = [_on_host(value) for value in args]
        host_kwargs = {key: _on_host(value) for key, value in kwargs.items()}
        if to_device:
            host_kwargs["device"] = torch.device("cpu")
        generators = [leaf for leaf in leaves if isinstance(leaf, _Generator)]
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
            self.launches += 1 + BIASES.get(name, 0) * (args[-1] is True)
        out = _result(operation, result, args, kwargs, at, to_host)
        if to_host:
            return out
        made = [tensor for tensor in _leaves([out]) if isinstance(tensor, Pretend)]
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


# -- what an operation writes and gives -------------------------------------------------------------------------------


def _leaves(values: Iterable[Any]) -> list[Any]:
    """Arguments, or results, with the entries of lists, which hold no further ones."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            found += value
        else:
            found.append(value)
    return found


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return [_detached(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _on_host(value: Any) -> Any:
    if isinstance(value, Pretend):
        return value.host
    return [_on_host(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _result(operation: Operation, result: Any, args: Any, kwargs: Any, at: int, to_host: bool) -> Any:
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


# -- what C++ would do for CUDA, by Python ----------------------------------------------------------------------------


_FOREACH = [
    importlib.import_module("torch.optim.optimizer")._foreach_supported_types,
    importlib.import_module("torch.utils._foreach_utils")._foreach_supported_types,
]
_to_of_torch, _one_hot_of_torch = Tensor.to, torch.nn.functional.one_hot


def _grouped(lists: Any, with_indices: bool = False) -> Any:
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
        return torch.device("cuda", PretendCuda.now.current)
    return device


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """C++ asks CUDA which device is meant where none is numbered."""
    args = tuple(map(_numbered, args))
    if "device" in kwargs:
        kwargs["device"] = _numbered(kwargs["device"])
    if args and isinstance(args[0], Pretend) and not isinstance(tensor, Pretend):
        args = (args[0].device, args[0].dtype, *args[1:])
    return _to_of_torch(tensor, *args, **kwargs)


def _made_on_host(ordinary: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def make(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if isinstance(data, Pretend):
            copied = data.detach().clone() if ordinary.__name__ == "tensor" else data
            return copied.to(device=data.device if device is None else device, dtype=kwargs.get("dtype"))
        made = ordinary(data, *args, **kwargs)
        return made if device is None else made.to(_numbered(device))

    return make


def _swapping(apply: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """`nn.Module.to` that keeps parameters the objects that an optimiser knows."""

    def run(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return apply(module, *args, **kwargs)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)

    return run


def _one_hot(x: Tensor, num_classes: int = -1) -> Tensor:
    """On a CPU C++ looks at the numbers; on CUDA the kernel does."""
    if not isinstance(x, Pretend) or num_classes < 0:
        return _one_hot_of_torch(x, num_classes)
    return x.new_zeros(*x.shape, num_classes).scatter_(-1, x[..., None], 1)


def _lstm_cell(x: Tensor, state: Any, w_x: Tensor, w_h: Tensor, b_x: Any = None, b_h: Any = None) -> Any:
    """As CUDA takes it: two products and one fused kernel."""
    if not isinstance(x, Pretend):
        return _lstm_cell_of_torch(x, state, w_x, w_h, b_x, b_h)
    h, c = state
    return torch.ops.aten._thnn_fused_lstm_cell(x @ w_x.t(), h @ w_h.t(), c, b_x, b_h)[:2]


def _gru_cell(x: Tensor, h: Tensor, w_x: Tensor, w_h: Tensor, b_x: Any = None, b_h: Any = None) -> Tensor:
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


class _Sequence:
    """A recurrent sequence, operation by operation; counted as one launch a step and three more."""

    def __init__(self, ordinary: Any) -> None:
        self.ordinary = ordinary

    def __call__(self, *args: Any) -> Any:
        gpu = PretendCuda.now
        before = gpu.launches
        out = self.ordinary(*args)
        if isinstance(args[0], Pretend):
            packed = isinstance(args[1], Tensor) and not isinstance(args[1], Pretend)
            gpu.launches = before + 3 + (len(args[1]) if packed else len(args[0]))
        return out


def main() -> None:
    """`python tests/pretend_cuda.py SCRIPT ...` runs a script on the device."""
    del sys.argv[0]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    sys.path.insert(0, str(ROOT))
    with PretendCuda():
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
