"""Measures the 15x15 mapping network: a step of the writer, of its reader and of both, and learning from a sequence.

    python benchmarks/multigrid_step.py

Single steps have batch 1 and no gradients, as in the paper's measurement: 18 ± 3 ms on a Titan X (supplement, section
D). Sequences have `length` steps of `copies` maps, forward and backward: as single steps, and as whole sequences with
torch's operations, the C loop, and the C loop in bfloat16. The parts are measured alternately; each figure is the
median of the repeats, in processor time for sequences.
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
    """Number of repeats; the median is reported."""
    device: str = "cpu"
    """Device of the memory."""
    length: int = 25
    """Steps of a sequence."""
    copies: int = 6
    """Batch of maps in a sequence."""
    turns: int = 7
    """Number of repeats of each sequence."""


WAYS = {"single steps": (False, "0"), "torch": (True, "0"), "C loop": (True, "1"), "bfloat16": (True, "1")}
"""Whether to use the fast form, and the value of `ENGRAM_NATIVE`."""


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def sequences(args: Args) -> None:
    """Measures sequences on one thread of the CPU."""
    torch.set_num_threads(1)
    xs = torch.rand(args.length, args.copies, 4, 3, 3)
    memories = {}
    for way, (fast, _) in WAYS.items():
        memories[way] = Multigrid((4, 3, 3), {"query": (4, 3, 3)}, preset=args.preset)
        memories[way].use_fast_form(fast)
    memories["bfloat16"].use_bf16()
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(args.turns + 1):  # the first turn compiles and is warm-up
        for way, memory in memories.items():
            os.environ["ENGRAM_NATIVE"] = WAYS[way][1]
            start = time.process_time()
            unrolled = memory.unroll(xs, None, memory.initial_state(args.copies), None, {"query": xs})
            unrolled.outputs.sum().backward()
            if turn:
                times[way].append(time.process_time() - start)
    plain = statistics.median(times["single steps"])
    for way, spent in times.items():
        ratios = sorted(first / own for first, own in zip(times["single steps"], spent, strict=True))
        middle = statistics.median(spent)
        rate = args.length * args.copies / middle
        print(f"{way:13} {rate:6.0f} steps/s   {plain / middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


@torch.inference_mode()
def single_steps(args: Args) -> None:
    device = torch.device(args.device)
    memory = Multigrid((4, 3, 3), preset=args.preset).to(device)
    x, span = torch.rand(1, 4, 3, 3, device=device), Span()
    state = memory.step(x, memory.initial_state(1)).state
    x_input = memory.enter(x)
    written, _ = memory.writer(x_input, state, span)
    runs = {
        "writer": lambda: memory.writer(x_input, state, span),
        "reader": lambda: memory.readers[0](x_input, state, span, written),
        "both": lambda: memory.step(x, state),
    }
    print(f"{args.preset}, batch 1, {args.device}: median ms of {args.repeats} (lowest)")
    for threads in args.threads:
        torch.set_num_threads(threads)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(args.repeats + 10):  # the first ten are warm-up
            for name, run in runs.items():
                spent = milliseconds(run, device)
                if repeat >= 10:
                    times[name].append(spent)
        figures = (f"{name} {statistics.median(spent):6.2f} ({min(spent):.2f})" for name, spent in times.items())
        print(f"threads {threads}:  " + "   ".join(figures))


def main(args: Args) -> None:
    single_steps(args)
    if args.device == "cpu":
        print(f"{args.preset}, {args.copies} maps, {args.length} steps forward and backward, one thread")
        sequences(args)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
