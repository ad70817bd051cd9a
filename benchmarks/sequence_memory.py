"""Peak memory and speed of back-propagation through time, against the length of the sequence.

    python benchmarks/sequence_memory.py --csv results/sequence_memory.csv --table results/sequence_memory.md
    python benchmarks/sequence_memory.py --memories mnm-p --lengths 1000 --environments 64 --ways own segments

Every case is a forked process that runs a sequence forward and backward, in one of four ways:

    plain     `unroll` of single steps with `fast=False`: autograd stores the tensors of every step
    own       the memory's own `unroll`
    segments  `unroll_by_segments`, with the segment length that stores least
    recorded  `SegmentedRecording`: first stepped, as A2C does, then differentiated

**Peak** is the largest resident set of the process minus that before the sequence; **stored** is peak / (steps ·
environments). **Steps/s** count every environment and use processor time, which other programs affect less than wall
time. Longer sequences have fewer environments, so that all cases take about as long; the peak of plain steps is linear
in both.
"""

from __future__ import annotations

import csv
import multiprocessing
import platform
import resource
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from policies.memories import Unrolled, make_memory, memory_class
from policies.memories.time.checkpointing import SegmentedRecording, Segments, unroll_by_segments
from policies.memories.time.unroll import unroll
from policies.native.allocator import tune_allocator

MIB = 2**20
Way = Literal["plain", "own", "segments", "recorded"]


@dataclass
class Args:
    memories: tuple[str, ...] = ("mnm-p", "mnm-g", "plastic", "dkm", "dnc", "lstm")
    """Registered names; their default sizes are used, for MNM those of the paper."""
    lengths: tuple[int, ...] = (50, 200, 1000, 5000)
    """Steps between two parameter updates."""
    environments: int = 0
    """Number of environments; 0: 3,200 / steps."""
    ways: tuple[Way, ...] = ("plain", "own", "segments", "recorded")
    """What to measure, see above."""
    longest_plain: int = 5000
    """Maximum length that is measured with plain steps."""
    input_size: int = 32
    """Width of the input."""
    repeats: int = 1
    """Number of timed sequences in each process, after a short warm-up; the fastest is reported."""
    csv: Path | None = None
    """File for the table, written after every row."""
    table: Path | None = None
    """File for the table as Markdown."""


def sequence(way: Way, name: str, args: Args, length: int, batch: int) -> tuple[int, Callable[[Tensor], Unrolled]]:
    """The steps of a segment (0 without segments), and a function that unrolls inputs `[T, B, F]`."""
    torch.manual_seed(0)
    options = {"fast": False} if way == "plain" and hasattr(make_memory(name, input_size=2), "fast") else {}
    memory = make_memory(name, input_size=args.input_size, **options)
    if way == "plain":
        return 0, lambda xs: unroll(memory, xs, None, memory.initial_state(batch))
    if way == "own":
        return 0, lambda xs: memory.unroll(xs, None, memory.initial_state(batch))
    segment = Segments(memory, None, args.input_size).best(length, recorded=way == "recorded", expected_steps=length)
    if way == "segments":
        return segment, lambda xs: unroll_by_segments(memory, xs, None, memory.initial_state(batch), segment=segment)

    def recorded(xs: Tensor) -> Unrolled:
        recording = SegmentedRecording(memory, memory.initial_state(batch), length, segment)
        for x in xs:
            recording.step(x, None)
        return recording.unrolled()

    return segment, recorded


def measure(answer: Connection, way: Way, name: str, args: Args, length: int, batch: int) -> None:
    segment, run = sequence(way, name, args, length, batch)

    def once(steps: int) -> float:
        xs = torch.randn(steps, batch, args.input_size)
        start = time.process_time()
        result = run(xs)
        (result.outputs.square().mean() + sum(loss.mean() for loss in result.losses.values())).backward()
        return time.process_time() - start

    before = peak()
    once(4)
    seconds = min(once(length) for _ in range(args.repeats))
    answer.send((segment, peak() - before, seconds))


def peak() -> int:
    """Largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def case(way: Way, name: str, args: Args, length: int, batch: int) -> dict[str, Any] | None:
    receiver, sender = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=measure, args=(sender, way, name, args, length, batch))
    process.start()
    sender.close()
    try:
        segment, peak_bytes, seconds = receiver.recv()
    except EOFError:  # the process ran out of memory
        return None
    finally:
        process.join()
    return {
        "memory": name,
        "length": length,
        "environments": batch,
        "way": way,
        "segment": segment,
        "peak_mib": round(peak_bytes / MIB, 1),
        "stored_kib": round(peak_bytes / 1024 / length / batch, 2),
        "steps_per_s": round(length * batch / seconds),
    }


def main(args: Args) -> None:
    torch.set_num_threads(1)
    tune_allocator()
    for name in args.memories:
        memory_class(name)  # unknown names fail early
    rows: list[dict[str, Any]] = []
    for length in args.lengths:
        batch = args.environments or max(1, 64 * 50 // length)
        for name in args.memories:
            for way in args.ways:
                if way == "plain" and length > args.longest_plain:
                    continue
                row = case(way, name, args, length, batch)
                if row is None:
                    print(f"{name}, {length} steps, {way}: the process died")
                    continue
                rows.append(row)
                print("  ".join(f"{value:>10}" for value in row.values()), flush=True)
                write(rows, args)


def write(rows: list[dict[str, Any]], args: Args) -> None:
    if args.csv is not None:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with args.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    if args.table is not None:
        args.table.parent.mkdir(parents=True, exist_ok=True)
        args.table.write_text(markdown(rows), encoding="utf-8")


def markdown(rows: list[dict[str, Any]]) -> str:
    """The command, the machine, and a table of each method relative to single steps ("plain")."""
    lines = ["```bash", f"python benchmarks/sequence_memory.py {shlex.join(sys.argv[1:])}".strip(), "```", ""]
    lines += [
        f"{platform.machine()}, 1 thread, torch {torch.__version__}. Peak: resident memory above that at the start.",
        "",
    ]
    lines += ["| memory | steps | environments | way | segment | peak, MiB | of plain | steps/s | of plain |"]
    lines += ["|" + "---|" * 9]

    def same(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["memory"], row["length"], row["environments"]

    plain = {same(row): row for row in rows if row["way"] == "plain"}
    for row in sorted(rows, key=same):
        cells = [row["memory"], row["length"], row["environments"], row["way"], row["segment"] or "–"]
        base = plain.get(same(row))
        for figure in ("peak_mib", "steps_per_s"):
            ratio = "–" if base is None else f"{row[figure] / max(base[figure], 0.1):.2f}"
            cells += [f"{row[figure]:,}", ratio]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
