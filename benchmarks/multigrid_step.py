"""What the 15x15 mapping network costs: a step of the writer, its reader and both; and learning from a sequence.

    python benchmarks/multigrid_step.py

Steps are of one map at a time, without gradients, as the paper measures it: 18 ± 3 ms on a Titan X (supplement, section
D). Sequences are of `length` steps of `copies` maps, forward and backward, step by step and at once: by torch's
operations, by the C loop, and by the loop in bfloat16. Parts take turns; each figure is the median of the repeats, for
sequences of processor time.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from policies.memories.multigrid.layers import Span
from policies.memories.multigrid.memory import Multigrid


@dataclass
class Args:
    preset: str = "mapping-15"
    """A preset of `multigrid` with a reader."""
    threads: tuple[int, ...] = (1, 2)
    """CPU threads."""
    repeats: int = 200
    """Repeats, of which the median counts."""
    device: str = "cpu"
    """Where the memory lives."""
    length: int = 25
    """Steps of a sequence."""
    copies: int = 6
    """Maps learned from at once."""
    turns: int = 7
    """Repeats of each way through a sequence."""


WAYS = {"step by step": (False, "0"), "at once": (True, "0"), "C loop": (True, "1"), "bfloat16": (True, "1")}
"""Whether fast, and `ENGRAM_NATIVE`."""


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def sequences(args: Args) -> None:
    """One thread, on the CPU."""
    torch.set_num_threads(1)
    xs = torch.rand(args.length, args.copies, 4, 3, 3)
    memories = {}
    for way, (fast, _) in WAYS.items():
        memories[way] = Multigrid((4, 3, 3), {"query": (4, 3, 3)}, preset=args.preset)
        memories[way].use_fast_form(fast)
    memories["bfloat16"].use_bf16()
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(args.turns + 1):  # the first one compiles, and pays for kernels
        for way, memory in memories.items():
            os.environ["ENGRAM_NATIVE"] = WAYS[way][1]
            start = time.process_time()
            unrolled = memory.unroll(xs, None, memory.initial_state(args.copies), None, {"query": xs})
            unrolled.outputs.sum().backward()
            if turn:
                taken[way].append(time.process_time() - start)
    plain = statistics.median(taken["step by step"])
    for way, spent in taken.items():
        ratios = sorted(first / own for first, own in zip(taken["step by step"], spent, strict=True))
        middle = statistics.median(spent)
        rate = args.length * args.copies / middle
        print(f"{way:13} {rate:6.0f} steps/s   {plain / middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


@torch.inference_mode()
def single_steps(args: Args) -> None:
    device = torch.device(args.device)
    memory = Multigrid((4, 3, 3), preset=args.preset).to(device)
    x, span = torch.rand(1, 4, 3, 3, device=device), Span()
    state = memory.step(x, memory.initial_state(1)).state
    entering = memory.enter(x)
    written, _ = memory.writer(entering, state, span)
    runs = {
        "writer": lambda: memory.writer(entering, state, span),
        "reader": lambda: memory.readers[0](entering, state, span, written),
        "both": lambda: memory.step(x, state),
    }
    print(f"{args.preset}, batch 1, {args.device}: median ms of {args.repeats} (lowest)")
    for threads in args.threads:
        torch.set_num_threads(threads)
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(args.repeats + 10):  # the first calls pay for kernels and for memory
            for name, run in runs.items():
                spent = milliseconds(run, device)
                if repeat >= 10:
                    taken[name].append(spent)
        figures = (f"{name} {statistics.median(spent):6.2f} ({min(spent):.2f})" for name, spent in taken.items())
        print(f"threads {threads}:  " + "   ".join(figures))


def main(args: Args) -> None:
    single_steps(args)
    if args.device == "cpu":
        print(f"{args.preset}, {args.copies} maps, {args.length} steps forward and backward, one thread")
        sequences(args)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
