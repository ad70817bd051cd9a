"""Generators, streams and their order, and graphs of the pretend device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch

from pretend_cuda.current import Current
from pretend_cuda.tensor import STATE_BYTES, Pretend, detached, leaves_of, memory_of

CpuGenerator = torch.Generator


class _AnyGenerator(type(CpuGenerator)):  # type: ignore[misc]
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, CpuGenerator)


class CudaGenerator(CpuGenerator, metaclass=_AnyGenerator):
    """Takes the place of `torch.Generator`; on the device its state has `STATE_BYTES`, as CUDA's has."""

    states: dict[int, Tensor] = {}  # noqa: RUF012 - shared by all, as states may be handed from one to another

    def __new__(cls, device: Any = "cpu") -> Any:
        device = torch.device(device)
        if device.type != "cuda":
            return CpuGenerator(device)
        made = CpuGenerator.__new__(cls)
        made.at = Current.gpu.index(device)
        return made

    def __init__(self, device: Any = "cpu") -> None: ...

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.at)

    def get_state(self) -> Tensor:
        Current.gpu.refuse_in_capture("reading a generator's state")
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
        CpuGenerator.set_state(again, CpuGenerator.get_state(self))
        return again

    def graphsafe_set_state(self, other: Any) -> Any:
        CpuGenerator.set_state(self, CpuGenerator.get_state(other))
        return self


class Stream:
    """Takes the place of `torch.cuda.Stream`."""

    count = 0

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        gpu = Current.gpu
        self.at = gpu.current if device is None else gpu.number(device)
        Stream.count += 1
        self.stream_id = self.cuda_stream = Stream.count
        gpu.order.create(self.stream_id)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.at)

    def wait_stream(self, other: Stream) -> None:
        Current.gpu.order.wait(self.stream_id, other.stream_id)

    def synchronize(self) -> None:
        Current.gpu.wait("stream.synchronize")

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
        Current.gpu.graphs.add(self)

    def register_generator_state(self, generator: Any) -> None:
        if not isinstance(generator, CudaGenerator):
            raise RuntimeError("Expected a CUDA generator")
        self.generators.append(generator)

    def begin(self) -> None:
        self.saved: dict[int, tuple[Tensor, Tensor]] = {}
        self.drawing = [(each, CpuGenerator.get_state(each)) for each in [*self.generators, *Current.gpu.defaults]]
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
            CpuGenerator.set_state(generator, state)
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
        args = [detached(value) for value in args]
        kwargs = {key: detached(value) for key, value in kwargs.items()}
        given = [detached(value) for value in leaves_of([result])]
        for leaf in (*leaves_of((*args, *kwargs.values())), *given):
            if isinstance(leaf, Tensor):
                self.holds[leaf.untyped_storage()._cdata] += 1
        self.tape.append((func, args, kwargs, given, grad, drawn))

    def replay(self) -> None:
        gpu = Current.gpu
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
                for old, new in zip(given, leaves_of([again]), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

    def pool(self) -> Any:
        return (0, 0)

    def reset(self) -> None:
        self.tape = []


@contextmanager
def graph(graph: CUDAGraph, pool: Any = None, stream: Stream | None = None, **_: Any) -> Iterator[None]:
    """Takes the place of `torch.cuda.graph`."""
    gpu = Current.gpu
    gpu.order.all_wait()  # it synchronises the device
    stream = Stream() if stream is None else stream
    graph.at = stream.at
    with on_stream(stream):
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
def on_stream(stream: Stream | None) -> Iterator[None]:
    """Takes the place of `torch.cuda.stream`."""
    gpu = Current.gpu
    if stream is None:
        yield
        return
    before = gpu.current, gpu.streams[stream.at]
    gpu.current, gpu.streams[stream.at] = stream.at, stream
    try:
        yield
    finally:
        gpu.current, gpu.streams[stream.at] = before
