"""What one step of the 15x15 mapping network costs: the writer, its reader, and both.

    python benchmarks/multigrid_step.py

One map at a time, without gradients, as the paper measures it: 18 ± 3 ms on a Titan X (supplement, section D). The two
parts take turns; each figure is the median of the repeats.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from policies.memories.multigrid import Multigrid
from policies.memories.multigrid_layers import Span


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


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - start)


@torch.inference_mode()
def main(args: Args) -> None:
    device = torch.device(args.device)
    memory = Multigrid((4, 3, 3), preset=args.preset).to(device)
    x, span = torch.rand(1, 4, 3, 3, device=device), Span()
    state = memory(x, memory.initial_state(1)).state
    entering = memory.enter(x)
    written, _ = memory.writer(entering, state, span)
    runs = {
        "writer": lambda: memory.writer(entering, state, span),
        "reader": lambda: memory.readers[0](entering, state, span, written),
        "both": lambda: memory(x, state),
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


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
