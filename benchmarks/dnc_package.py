"""Compares our DNC with the `dnc` package of PyPI: time of a sequence forward and backward, and peak memory.

    pip install --no-deps dnc==1.1.0
    python benchmarks/dnc_package.py --csv results/dnc_package.csv

Each side runs with the default allocator and with `tune_allocator` (`policies.native.allocator`), in separate processes
that alternate; a figure is the median of processor times over all rounds, without the first sequence of each process.
Peak memory is the process's largest resident set, libraries included. The package is used unchanged: within a sequence
it feeds every step the same first read vector, where a DNC feeds the last one.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from policies.memories import make_memory
from policies.native.allocator import tune_allocator

SIDES = ("engram", "package")


@dataclass
class Args:
    slots: int = 500
    """N, number of slots."""
    word_size: int = 16
    """W, width of a slot."""
    read_heads: int = 4
    """R, number of read heads."""
    hidden_size: int = 256
    """Units of the LSTM, one layer."""
    input_size: int = 32
    """Width of input and output."""
    batch: int = 16
    """Batch of sequences."""
    length: int = 100
    """Steps of a sequence."""
    threads: int = 1
    """CPU threads."""
    rounds: int = 3
    """Number of processes of each kind."""
    repeats: int = 3
    """Number of timed sequences in each process."""
    csv: Path | None = None
    """File for the table."""
    worker: str = ""
    """Internal: "SIDE ALLOCATOR" to measure in this process."""


def sequence(side: str, args: Args) -> Callable[[Tensor], Tensor]:
    """A function from inputs `[T, B, F]` to outputs."""
    if side == "engram":
        memory = make_memory(
            "dnc",
            input_size=args.input_size,
            hidden_size=args.hidden_size,
            output_size=args.input_size,
            slots=args.slots,
            word_size=args.word_size,
            read_heads=args.read_heads,
        )
        return lambda xs: memory.unroll(xs, None, memory.initial_state(args.batch)).outputs
    from dnc import DNC

    network = DNC(
        input_size=args.input_size,
        hidden_size=args.hidden_size,
        num_layers=1,
        num_hidden_layers=1,
        nr_cells=args.slots,
        cell_size=args.word_size,
        read_heads=args.read_heads,
        batch_first=False,
        gpu_id=-1,
    )
    return lambda xs: network(xs, (None, None, None), reset_experience=True)[0]


def work(args: Args) -> None:
    """Measures one side in this process and prints the result."""
    side, allocator = args.worker.split()
    torch.set_num_threads(args.threads)
    if allocator == "tuned":
        tune_allocator()
    torch.manual_seed(0)
    run, xs = sequence(side, args), torch.randn(args.length, args.batch, args.input_size)
    seconds = []
    for _ in range(1 + args.repeats):
        start = time.process_time()
        run(xs).square().mean().backward()
        seconds.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # bytes on Linux
    print(json.dumps({"seconds": seconds[1:], "peak": peak}))


def main(args: Args) -> None:
    if args.worker:
        work(args)
        return
    if importlib.util.find_spec("dnc") is None:
        print("the package is not installed: pip install --no-deps dnc==1.1.0")
        return
    numbers = {key: value for key, value in asdict(args).items() if isinstance(value, int)}
    options = [part for key, value in numbers.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    kinds = [(side, allocator) for allocator in ("default", "tuned") for side in SIDES]
    seconds: dict[tuple[str, str], list[float]] = {kind: [] for kind in kinds}
    peaks = dict.fromkeys(kinds, 0.0)
    for _ in range(args.rounds):
        for kind in kinds:
            command = [sys.executable, __file__, *options, "--worker", " ".join(kind)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            seconds[kind] += found["seconds"]
            peaks[kind] = max(peaks[kind], found["peak"])
    rows: list[dict[str, Any]] = []
    for side, allocator in kinds:
        median, peak = statistics.median(seconds[side, allocator]), peaks[side, allocator]
        other = statistics.median(seconds["package", allocator])
        rows.append(
            {
                "side": side,
                "allocator": allocator,
                "seconds": round(median, 3),
                "fastest": round(min(seconds[side, allocator]), 3),
                "steps_per_s": round(args.length / median, 1),
                "speed_against_package": round(other / median, 2),
                "peak_gib": round(peak / 2**30, 2),
                "peak_against_package": round(peak / peaks["package", allocator], 3),
            }
        )
    for row in ({name: name for name in rows[0]}, *rows):
        print("  ".join(f"{value!s:>{len(name)}}" for name, value in row.items()))
    if args.csv is not None:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
