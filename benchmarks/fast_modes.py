"""Measures `--fast auto`, `off` and `compile` for a memory, and the minutes of training after which compiling pays off.

    python benchmarks/fast_modes.py --csv results/fast_modes.csv
    python benchmarks/fast_modes.py --memories sdnc "d-ntm:addressing='discrete'" --modes auto off

The parts are those of PPO 4×4: an acting step of `--acting` environments without gradients, and a sequence of a
minibatch, `--batch` environments × `--length` steps, forward and backward. The modes are measured alternately, in one
process and on one thread, so that other load of the machine affects all of them; a figure is the median of the repeats,
in processor time. With `compile`, the first call of each part is the cost of compilation (processor time, a fresh
cache, one compiler process).

**Break-even**: minutes of a run with `auto` after which `compile` has saved the cost of compilation, if an iteration is
one rollout and four passes over it. No figure: compiling saves nothing.
"""

from __future__ import annotations

import csv
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from benchmarks.memory_step import backward, parse
from policies.memories import Memory, make_memory
from policies.native.allocator import tune_allocator

Mode = Literal["auto", "off", "compile"]
EPOCHS = 4
"""Passes of PPO over a rollout."""


@dataclass
class Args:
    memories: tuple[str, ...] = ("sdnc", "d-ntm", "dkm", "mnm-g", "dmn")
    """Names, optionally with options, as for `memory_step.py`."""
    modes: tuple[Mode, ...] = ("auto", "off", "compile")
    """Modes to measure."""
    acting: int = 64
    """Environments of an acting step."""
    batch: int = 16
    """Environments of a minibatch."""
    length: int = 50
    """Steps of a sequence."""
    input_size: int = 32
    """Width of the input."""
    turns: int = 3
    """Number of repeats; the median is reported."""
    csv: Path | None = None
    """Append the rows to this file."""


class Case:
    """A memory in one mode, with its measured times."""

    def __init__(self, label: str, mode: Mode, args: Args) -> None:
        name, options = parse(label)
        torch.manual_seed(0)
        self.memory: Memory = make_memory(name, input_size=args.input_size, **options)
        self.mode, self.args = mode, args
        self.memory.use_fast_form(mode != "off")
        if mode == "compile":
            self.memory.compile()
        self.acts = torch.randn(args.acting, args.input_size)
        self.xs = torch.randn(args.length, args.batch, args.input_size)
        self.seconds: dict[str, list[float]] = {"act": [], "train": []}
        before = time.process_time() + sum(os.times()[2:4])
        for part in (self.act, self.train):
            part(2)
        self.compile_seconds = time.process_time() + sum(os.times()[2:4]) - before

    @torch.no_grad()
    def act(self, steps: int) -> None:
        state = self.memory.initial_state(len(self.acts))
        for _ in range(steps):
            state = self.memory.step(self.acts, state).state

    def train(self, steps: int) -> None:
        backward(self.memory, self.memory.unroll(self.xs[:steps], None, self.memory.initial_state(self.args.batch)))

    def measure(self) -> None:
        parts: dict[str, Callable[[int], None]] = {"act": self.act, "train": self.train}
        for name, part in parts.items():
            start = time.process_time()
            part(self.args.length)
            self.seconds[name].append(time.process_time() - start)

    def per_step(self, name: str) -> float:
        """Microseconds per step of one environment."""
        envs = self.args.acting if name == "act" else self.args.batch
        return 1e6 * statistics.median(self.seconds[name]) / self.args.length / envs


def rows_of(label: str, args: Args) -> list[dict[str, Any]]:
    cases = [Case(label, mode, args) for mode in args.modes]
    for case in cases:
        case.train(args.length)  # warm-up
    for _ in range(args.turns):
        for case in cases:
            case.measure()
    rows: list[dict[str, Any]] = []
    for case in cases:
        act, train = case.per_step("act"), case.per_step("train")
        rows.append({"memory": label, "fast": case.mode, "act_us": round(act, 1), "train_us": round(train, 1)})
        rows[-1]["ppo_us"] = round(act + EPOCHS * train, 1)
        rows[-1]["compile_min"] = round(case.compile_seconds / 60, 2) if case.mode == "compile" else None
    auto = next((row["ppo_us"] for row in rows if row["fast"] == "auto"), None)
    for row in rows:
        gain = 1 - row["ppo_us"] / auto if auto else 0
        row["of_auto"] = round(auto / row["ppo_us"], 2) if auto else None
        row["break_even_min"] = round(row["compile_min"] / gain, 1) if row["compile_min"] and gain > 0 else None
    return rows


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Adds rows to a table, with a header if it is new."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)


def main(args: Args) -> None:
    torch.set_num_threads(1)
    tune_allocator()
    with tempfile.TemporaryDirectory() as cache:
        os.environ |= {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        for label in args.memories:
            rows = rows_of(label, args)
            for row in rows:
                print("  ".join(f"{name} {'–' if value is None else value}" for name, value in row.items()), flush=True)
            if args.csv is not None:
                append(args.csv, rows)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
