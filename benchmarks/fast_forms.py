"""Measures the speed-up of each fast form over the memory's equations: acting, `unroll` (PPO) and `record` (A2C).

    python benchmarks/fast_forms.py
    python benchmarks/fast_forms.py --memories lstm "dnc:slots=256,word_size=50" --batches 64 --lengths 200

Both are measured alternately in one process. A figure is the median over repeats of (time of the equations) / (time of
the fast form): 2 is twice as fast. A fast form below 1.3 in all three, at the sizes of a recipe, is not worth its code.
"""

from __future__ import annotations

import copy
import statistics
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from benchmarks.memory_step import backward, parse, record, timed
from policies.memories import Memory, make_memory, memory_class, registered
from policies.memories.steps import detach


@dataclass
class Args:
    memories: tuple[str, ...] = ()
    """Names, optionally with options: "salu:heads=3". Default: all that have a fast form."""
    batches: tuple[int, ...] = (16,)
    """Numbers of environments stepped together."""
    lengths: tuple[int, ...] = (50,)
    """Steps between two parameter updates."""
    input_size: int = 32
    """Width of the input; for a memory that takes grids, channels of grids of its default size."""
    device: str = "cpu"
    """Device of the memory."""
    threads: int = 1
    """CPU threads."""
    turns: int = 5
    """Number of repeats; the median is reported."""


def gains(fast: Memory, plain: Memory, xs: torch.Tensor, turns: int) -> list[float]:
    """The speed-ups of acting, `unroll` and `record`."""
    state = detach(fast.initial_state(xs.shape[1]))  # it may be learned

    def act(memory: Memory) -> None:
        with torch.no_grad():
            current = state
            for x in xs:
                current = memory.step(x, current).state

    def unrolled(memory: Memory) -> None:
        backward(memory, memory.unroll(xs, None, state))

    def recorded(memory: Memory) -> None:
        backward(memory, record(memory, xs, None, state))

    found = []
    for way in (act, unrolled, recorded):
        ratios: list[float] = []
        for turn in range(turns + 1):
            plain_s, fast_s = (timed(partial(way, memory), xs.device) for memory in (plain, fast))
            ratios += [plain_s / fast_s] if turn else []  # the first repeat is warm-up
        found.append(statistics.median(ratios))
    return found


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    every = [name for name in registered() if memory_class(name).fast_form is not None]
    print("| memory | environments × steps | acting | unroll | record |\n|---|---|---|---|---|")
    for label in args.memories or every:
        name, options = parse(label)
        cls = memory_class(name)
        shape = (args.input_size, *(cls.default_grid(**options) if cls.input_kind == "grid" else ()))
        fast = make_memory(name, input_size=shape if len(shape) > 1 else args.input_size, **options).to(args.device)
        plain = copy.deepcopy(fast)
        plain.use_fast_form(False)
        for batch in args.batches:
            for length in args.lengths:
                xs = torch.randn(length, batch, *shape, device=args.device)
                figures = " | ".join(f"{gain:.2f}" for gain in gains(fast, plain, xs, args.turns))
                print(f"| {label} | {batch} × {length} | {figures} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
