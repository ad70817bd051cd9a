"""What a step of each memory costs: acting, training, and what training keeps.

    python benchmarks/memory_step.py --threads 2 --csv results/memory_step.csv
    python benchmarks/memory_step.py --quick --memories lstm mnm-p mnm-p:fast=False

Forward and backward is measured three times: stepped one by one with every graph kept, recorded by the memory's own
`record`, as A2C does while it acts, and by its own `unroll`, as PPO replays. A step of 64 environments counts as 64.
The configurations take turns, so that whatever else the machine does falls on all of them; each figure is the median of
the repeats.
"""

from __future__ import annotations

import ast
import csv
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from policies.allocator import tune_allocator
from policies.memories import Memory, Unrolled, make_memory, memory_class, registered
from policies.memories.base import State, unroll

MIB = 2**20


@dataclass
class Args:
    memories: tuple[str, ...] = field(default_factory=registered)
    """Names, each with options if need be: "mnm-p:fast=False,heads=1"."""
    batches: tuple[int, ...] = (1, 16, 64)
    """Numbers of environments stepped together."""
    lengths: tuple[int, ...] = (50, 200)
    """Steps between two parameter updates."""
    input_size: int = 32
    """Width of the input; for a memory that takes grids, channels of grids of its default size."""
    device: str = "cpu"
    """Where the memory lives."""
    threads: int = 1
    """CPU threads."""
    repeats: int = 5
    """Repeats, of which the median counts."""
    allocator: bool = True
    """Call `tune_allocator` first, as training does."""
    quick: bool = False
    """64 environments, 50 steps, 3 repeats."""
    csv: Path | None = None
    """Write the table here too."""


class Case:
    """One memory at one batch and length, with the times it took so far."""

    def __init__(self, label: str, batch: int, length: int, args: Args) -> None:
        name, _, options = label.partition(":")
        pairs = (pair.split("=") for pair in options.split(",") if pair)
        arguments = {key: ast.literal_eval(value) for key, value in pairs}
        cls = memory_class(name)
        shape = (args.input_size, *(cls.default_grid(**arguments) if cls.input_kind == "grid" else ()))
        torch.manual_seed(0)
        self.label, self.batch, self.length = label, batch, length
        input_size = shape if len(shape) > 1 else args.input_size
        self.memory = make_memory(name, input_size=input_size, **arguments).to(args.device)
        self.xs = torch.randn(length, batch, *shape, device=args.device)
        self.seconds: dict[str, list[float]] = {name: [] for name in ("act", "stepped", "recorded", "unrolled")}

    def measure(self) -> None:
        for name, seconds in self.seconds.items():
            seconds.append(timed(getattr(self, name), self.xs.device) / self.length)

    @torch.no_grad()
    def act(self) -> None:
        state = self.memory.initial_state(self.batch)
        for x in self.xs:
            state = self.memory(x, state).state

    def stepped(self) -> None:
        backward(self.memory, unroll(self.memory, self.xs, None, self.memory.initial_state(self.batch)))

    def recorded(self) -> None:
        backward(self.memory, record(self.memory, self.xs, None, self.memory.initial_state(self.batch)))

    def unrolled(self) -> None:
        backward(self.memory, self.memory.unroll(self.xs, None, self.memory.initial_state(self.batch)))

    def row(self) -> dict[str, Any]:
        median = {name: statistics.median(seconds) for name, seconds in self.seconds.items()}
        state = self.memory.initial_state(self.batch).values()
        return {
            "memory": self.label,
            "batch": self.batch,
            "length": self.length,
            "act_us": round(1e6 * median["act"], 1),
            "stepped_us": round(1e6 * median["stepped"], 1),
            "recorded_us": round(1e6 * median["recorded"], 1),
            "unrolled_us": round(1e6 * median["unrolled"], 1),
            "act_per_s": round(self.batch / median["act"]),
            "stepped_per_s": round(self.batch / median["stepped"]),
            "recorded_per_s": round(self.batch / median["recorded"]),
            "unrolled_per_s": round(self.batch / median["unrolled"]),
            "state_mib": round(sum(value.numel() * value.element_size() for value in state) / MIB, 3),
            "stepped_kept_mib": round(kept(self, unroll) / MIB, 3),
            "recorded_kept_mib": round(kept(self, record) / MIB, 3),
            "unrolled_kept_mib": round(kept(self, type(self.memory).unroll) / MIB, 3),
        }


def record(memory: Memory, xs: Tensor, starts: None, state: State) -> Unrolled:
    """A sequence without a reset, taken step by step."""
    recording = memory.record(state, len(xs))
    for x in xs:
        recording.step(x, starts)
    return recording.unrolled()


def backward(memory: Memory, result: Unrolled) -> None:
    """A loss that every output and loss is part of."""
    if not any(parameter.requires_grad for parameter in memory.parameters()):
        return
    memory.zero_grad()
    (result.outputs.square().mean() + sum(loss.mean() for loss in result.losses.values())).backward()


def timed(run: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def kept(case: Case, way: Callable[..., Unrolled]) -> float:
    """Bytes a step keeps for the backward pass: storages, each once, less the memory's own and the input."""
    own = {value.untyped_storage().data_ptr() for value in (*case.memory.parameters(), *case.memory.buffers(), case.xs)}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = way(case.memory, case.xs, None, case.memory.initial_state(case.batch))
    total = sum(found.values()) / case.length
    del result  # the graph held every storage until here, so no address was used twice
    return total


def main(args: Args) -> None:
    if args.quick:
        args.batches, args.lengths, args.repeats = (64,), (50,), 3
    torch.set_num_threads(args.threads)
    if args.allocator:
        tune_allocator()
    cases = [
        Case(label, batch, length, args) for length in args.lengths for batch in args.batches for label in args.memories
    ]
    for case in cases:  # first calls pay for kernels and for memory
        timed(case.stepped, case.xs.device)
        timed(case.recorded, case.xs.device)
        timed(case.unrolled, case.xs.device)
    for _ in range(args.repeats):
        for case in cases:
            case.measure()
    rows = [case.row() for case in cases]
    report(rows)
    if args.csv is not None:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def report(rows: list[dict[str, Any]]) -> None:
    names = list(rows[0])
    widths = {name: max(len(name), *(len(str(row[name])) for row in rows)) for name in names}
    for row in ({name: name for name in names}, *rows):
        print("  ".join(f"{row[name]!s:>{widths[name]}}" for name in names))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
