"""Measures a step of the sparse DNC and of the DNC against the number of slots.

    python benchmarks/sparse_scaling.py --csv results/sparse_scaling.csv
    python benchmarks/sparse_scaling.py --slots 500 4000 --memories sdnc --repeats 15

Three figures, each per step of a batch: acting, one step at a time, each of which copies the state; a sequence forward;
and a sequence forward and backward, as in training. The cases are measured alternately, so that other load of the
machine affects all of them; each figure is the median of the repeats. "against" is the figure divided by that of the
fewest slots.
"""

from __future__ import annotations

import csv
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from policies.memories import make_memory
from policies.native.allocator import tune_allocator

WAYS = ("act", "forward", "train")


@dataclass
class Args:
    memories: tuple[str, ...] = ("sdnc", "dnc")
    """Memories with the arguments `slots`, `word_size`, `read_heads` and `hidden_size`."""
    slots: tuple[int, ...] = (500, 1000, 2000, 4000)
    """Numbers of slots."""
    dense_limit: int = 1000
    """Maximum number of slots of other memories: training stores slots² link weights per environment and step."""
    batch: int = 16
    """Number of environments."""
    length: int = 8
    """Steps of a sequence."""
    word_size: int = 16
    """Width of a slot."""
    read_heads: int = 4
    """Read heads."""
    hidden_size: int = 256
    """Units of the LSTM."""
    input_size: int = 32
    """Width of the input."""
    device: str = "cpu"
    """Device of the memories."""
    threads: int = 1
    """CPU threads."""
    repeats: int = 7
    """Number of repeats; the median is reported."""
    csv: Path | None = None
    """File for the table."""


class Case:
    """One memory with one number of slots, and its measured times."""

    def __init__(self, name: str, slots: int, args: Args) -> None:
        self.name, self.slots, self.args = name, slots, args
        torch.manual_seed(0)
        sizes = {"word_size": args.word_size, "read_heads": args.read_heads, "hidden_size": args.hidden_size}
        self.memory = make_memory(name, input_size=args.input_size, slots=slots, **sizes).to(args.device)
        self.xs = torch.randn(args.length, args.batch, args.input_size, device=args.device)
        with torch.no_grad():  # a memory in use, with links to follow
            self.state = self.memory.unroll(self.xs, None, self.memory.initial_state(args.batch)).state
        self.seconds: dict[str, list[float]] = {way: [] for way in WAYS}

    def measure(self) -> None:
        for way, seconds in self.seconds.items():
            self.wait()
            start = time.perf_counter()
            getattr(self, way)()
            self.wait()
            seconds.append((time.perf_counter() - start) / self.args.length)

    def wait(self) -> None:
        if self.xs.device.type == "cuda":
            torch.cuda.synchronize(self.xs.device)

    @torch.no_grad()
    def act(self) -> None:
        state = self.state
        for x in self.xs:
            state = self.memory.step(x, state).state

    @torch.no_grad()
    def forward(self) -> None:
        self.memory.unroll(self.xs, None, self.state)

    def train(self) -> None:
        self.memory.zero_grad()
        self.memory.unroll(self.xs, None, self.state).outputs.square().mean().backward()

    def row(self, fewest: Case) -> dict[str, Any]:
        row: dict[str, Any] = {"memory": self.name, "slots": self.slots}
        for way in WAYS:
            seconds, least = (statistics.median(case.seconds[way]) for case in (self, fewest))
            row |= {f"{way}_ms": round(1e3 * seconds, 3), f"{way}_against": round(seconds / least, 2)}
        return row


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    tune_allocator()
    cases = [
        Case(name, slots, args)
        for name in args.memories
        for slots in sorted(args.slots)
        if name == "sdnc" or slots <= args.dense_limit
    ]
    for case in cases:  # warm-up
        case.measure()
        case.seconds = {way: [] for way in WAYS}
    for _ in range(args.repeats):
        for case in cases:
            case.measure()
    rows = [case.row(next(first for first in cases if first.name == case.name)) for case in cases]
    for row in ({key: key for key in rows[0]}, *rows):
        print("  ".join(f"{value!s:>15}" for value in row.values()), flush=True)
    if args.csv is not None:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
