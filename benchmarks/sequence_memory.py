"""Peak memory and speed of back-propagation through time, against the length of the sequence.

    python benchmarks/sequence_memory.py --csv results/sequence_memory.csv --table results/sequence_memory.md
    python benchmarks/sequence_memory.py --memories mnm-p --lengths 1000 --environments 64 --ways own segments

Every case is a process of its own, forked from one that has loaded torch: a sequence forward and backward, by

    plain     `base.unroll` with `fast=False`: what autograd keeps of every step
    own       the memory's own `unroll`, whole
    segments  `unroll_by_segments`, with as many steps in a segment as keeps least
    recorded  `SegmentedRecording`: stepped first, as A2C does, then differentiated

**Peak** is the largest resident set of the process above that before the sequence; **kept** what one step of one
environment adds to it, peak / (steps · environments). **Steps/s** count every environment and go by the processor's
time, which says more than the clock where other programs run. Environments become fewer as sequences become longer, so
that each case has about as much to do; what plain steps keep is linear in both.
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
    """Registered names, with their defaults: MNM at the paper's size."""
    lengths: tuple[int, ...] = (50, 200, 1000, 5000)
    """Steps between two parameter updates."""
    environments: int = 0
    """Stepped together; 0: 64 for 50 steps, and as many fewer as a sequence is longer."""
    ways: tuple[Way, ...] = ("plain", "own", "segments", "recorded")
    """What to measure, see above."""
    longest_plain: int = 5000
    """Longer sequences are not measured plain."""
    input_size: int = 32
    """Width of the input."""
    repeats: int = 1
    """Sequences timed in each process, after a short one that is not; the fastest counts."""
    csv: Path | None = None
    """Write the table here too, row by row."""
    table: Path | None = None
    """And here, as Markdown."""


def sequence(way: Way, name: str, args: Args, length: int, batch: int) -> tuple[int, Callable[[Tensor], Unrolled]]:
    """Steps of a segment, or 0; and from inputs `[T, B, F]` to what they give."""
    torch.manual_seed(0)
    options = {"fast": False} if way == "plain" and hasattr(make_memory(name, input_size=2), "fast") else {}
    memory = make_memory(name, input_size=args.input_size, **options)
    if way == "plain":
        return 0, lambda xs: unroll(memory, xs, None, memory.initial_state(batch))
    if way == "own":
        return 0, lambda xs: memory.unroll(xs, None, memory.initial_state(batch))
    segment = Segments(memory, None, args.input_size).best(length, recorded=way == "recorded", room=length)
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
        begun = time.process_time()
        result = run(xs)
        (result.outputs.square().mean() + sum(loss.mean() for loss in result.losses.values())).backward()
        return time.process_time() - begun

    before = peak()
    once(4)
    seconds = min(once(length) for _ in range(args.repeats))
    answer.send((segment, peak() - before, seconds))


def peak() -> int:
    """Largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def case(way: Way, name: str, args: Args, length: int, batch: int) -> dict[str, Any] | None:
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=measure, args=(theirs, way, name, args, length, batch))
    process.start()
    theirs.close()
    try:
        segment, taken, seconds = ours.recv()
    except EOFError:  # it died: out of memory
        return None
    finally:
        process.join()
    return {
        "memory": name,
        "length": length,
        "environments": batch,
        "way": way,
        "segment": segment,
        "peak_mib": round(taken / MIB, 1),
        "kept_kib": round(taken / 1024 / length / batch, 2),
        "steps_per_s": round(length * batch / seconds),
    }


def main(args: Args) -> None:
    torch.set_num_threads(1)
    tune_allocator()
    for name in args.memories:
        memory_class(name)  # a wrong name is an error now
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
