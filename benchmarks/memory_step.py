"""Measures a step of each memory: time of acting and of training, and the bytes that training stores.

    python benchmarks/memory_step.py --csv results/memory_step.csv --table results/memory_step.md
    python benchmarks/memory_step.py --sizes papers --batches 1 16 --lengths 200
    python benchmarks/memory_step.py --quick --memories lstm "dnc:slots=500,word_size=16" "multigrid:levels=[1,2,3]"

Forward and backward pass are measured in three ways: single steps with autograd, the memory's `record`, which A2C uses
while it acts, and the memory's `unroll`, which PPO uses for its replay. A step of 64 environments counts as 64.
Configurations are interleaved, so that other load of the machine affects all of them; each figure is the median of the
repeats.

**Stored bytes.** All storages that a forward pass creates and that are alive after it, divided by its steps: the
tensors for the backward pass, the outputs and the last state. Parameters and inputs are not counted.

**Largest batch.** For rollouts of 200 steps: (16 GiB − parameters, their gradients and Adam's two moments − bytes that
do not depend on the batch) / (bytes for each environment + its state). Both numbers of bytes follow from two forward
passes over 200 steps, with one and with two environments; the better of `record` and `unroll` counts. Where these
passes would exceed `--memory-limit`, shorter ones are measured and scaled up. Encoder, heads, rollout and the buffers
of the backward pass are not counted.
"""

from __future__ import annotations

import ast
import csv
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from policies.memories import Memory, Unrolled, make_memory, memory_class, registered
from policies.memories.contract import State
from policies.memories.time.measure import stored_bytes
from policies.memories.time.unroll import unroll
from policies.native.allocator import tune_allocator

MIB, GIB = 2**20, 2**30
CARD, ROLLOUT = 16 * GIB, 200
"""For `largest_batch`: bytes of the GPU's memory, and steps between two updates."""

PAPERS = {
    "DNC 256×50, graph traversal": "dnc:slots=256,word_size=50,read_heads=5,num_layers=3",
    "DNC 128×50, shortest path": "dnc:slots=128,word_size=50,read_heads=5,num_layers=2",
    "DNC 500×16, the multigrid paper's": "dnc:slots=500,word_size=16",
    "DNC 256×64, the multigrid paper's": "dnc:slots=256,word_size=64",
    "SDNC 2,048×32, speed": "sdnc:slots=2048,word_size=32",
    "NTM 128×20, copy": "ntm:slots=128,word_size=20,hidden_size=100",
    "D-NTM 120×48, bAbI": "d-ntm:hidden_size=180,slots=120,word_size=28,address_size=20",
    "MNM-p 3×100, 3 heads, maze": "mnm-p",
    "MNM-g 3×100, 3 heads, maze": "mnm-g",
    "plastic 200, maze": "plastic:hidden_size=200",
    "MemN2N 50×50, bAbI": "memn2n:hidden_size=50,capacity=50,hops=3",
    "multigrid 15×15": "multigrid:preset='mapping-15'",
    "multigrid 25×25": "multigrid:preset='mapping-25'",
}
"""Sizes from papers, by their titles in the table. The width of the input is still `--input-size`."""


@dataclass
class Args:
    memories: tuple[str, ...] = ()
    """Names, optionally with options: "mnm-p:fast=False,heads=1". Default: those of `sizes`."""
    sizes: Literal["defaults", "papers"] = "defaults"
    """Every registered memory with its defaults, or the sizes that papers report (PAPERS in this file)."""
    batches: tuple[int, ...] = (1, 16, 64)
    """Numbers of environments stepped together."""
    lengths: tuple[int, ...] = (50, 200)
    """Steps between two parameter updates."""
    input_size: int = 32
    """Width of the input; for a memory that takes grids, channels of grids of its default size."""
    device: str = "cpu"
    """Device of the memory."""
    threads: int = 1
    """CPU threads."""
    repeats: int = 5
    """Number of repeats; the median is reported."""
    allocator: bool = True
    """Call `tune_allocator` first, as training does."""
    memory_limit: float = 4.0
    """GiB that one forward pass may store; ways of training that would store more are left out."""
    quick: bool = False
    """64 environments, 10 steps, 2 repeats; the largest batch from 40 steps."""
    csv: Path | None = None
    """File for all figures."""
    table: Path | None = None
    """File for the main figures, as Markdown."""


Way = Callable[[Memory, Tensor, None, State], Unrolled]


class Subject:
    """One memory, and the bytes that its forward passes store."""

    def __init__(self, title: str, label: str, args: Args) -> None:
        name, options = parse(label)
        cls = memory_class(name)
        self.title, self.args = title, args
        self.shape = (args.input_size, *(cls.default_grid(**options) if cls.input_kind == "grid" else ()))
        torch.manual_seed(0)
        input_size = self.shape if len(self.shape) > 1 else args.input_size
        self.memory = make_memory(name, input_size=input_size, **options).to(args.device)
        self.ways: dict[str, Way] = {"stepped": unroll, "recorded": record, "unrolled": type(self.memory).unroll}
        self.single: dict[tuple[str, int], int] = {}
        self.state_bytes = sum(value.numel() * value.element_size() for value in self.memory.initial_state(1).values())
        self.largest_batch = max(
            (self.max_batch(name) for name in ("recorded", "unrolled")), key=lambda batch: batch or 0
        )

    def inputs(self, length: int, batch: int) -> Tensor:
        return torch.randn(length, batch, *self.shape, device=self.args.device)

    def single_bytes(self, name: str, length: int) -> int:
        """Bytes that a forward pass with one environment stores."""
        if (name, length) not in self.single:
            self.single[name, length] = storage_of(self.memory, self.ways[name], self.inputs(length, 1))
        return self.single[name, length]

    def fits(self, name: str, length: int, batch: int) -> bool:
        """Whether a forward pass of this size stays within the limit, estimated from smaller ones."""
        limit = self.args.memory_limit * GIB
        if self.single_bytes(name, 4) / 4 * length > limit:
            return False
        return self.single_bytes(name, length) * batch <= limit

    def max_batch(self, name: str) -> int | None:
        """The largest batch with this way of training; None: it stores nothing, at any batch."""
        length = ROLLOUT // 5 if self.args.quick else ROLLOUT
        while length > 4 and not self.fits(name, length, 2):
            length //= 2
        one, two = self.single_bytes(name, length), storage_of(self.memory, self.ways[name], self.inputs(length, 2))
        each, fixed = (two - one) * ROLLOUT / length, (2 * one - two) * ROLLOUT / length
        trained = sum(p.numel() * p.element_size() for p in self.memory.parameters() if p.requires_grad)
        each += self.state_bytes
        return max(0, int((CARD - 4 * trained - fixed) / each)) if each else None


class Case:
    """One memory at one batch size and length, with its measured times."""

    def __init__(self, subject: Subject, batch: int, length: int) -> None:
        self.subject, self.memory, self.batch, self.length = subject, subject.memory, batch, length
        self.xs = subject.inputs(length, batch)
        self.ways = {name: way for name, way in subject.ways.items() if subject.fits(name, length, batch)}
        self.seconds: dict[str, list[float]] = {name: [] for name in ("act", *self.ways)}

    def measure(self) -> None:
        for name, seconds in self.seconds.items():
            seconds.append(timed(self.act if name == "act" else lambda name=name: self.train(name), self.xs.device))

    @torch.no_grad()
    def act(self) -> None:
        state = self.memory.initial_state(self.batch)
        for x in self.xs:
            state = self.memory.step(x, state).state

    def train(self, name: str, steps: int | None = None) -> None:
        state = self.memory.initial_state(self.batch)
        backward(self.memory, self.ways[name](self.memory, self.xs[:steps], None, state))

    def row(self) -> dict[str, Any]:
        """The figures by column; None for a way of training that was left out."""
        median = {name: statistics.median(seconds) / self.length for name, seconds in self.seconds.items()}
        mib = {name: storage_of(self.memory, way, self.xs) / self.length / MIB for name, way in self.ways.items()}
        names = ("act", *self.subject.ways)
        return {
            "memory": self.subject.title,
            "batch": self.batch,
            "length": self.length,
            **{f"{name}_us": round(1e6 * median[name], 1) if name in median else None for name in names},
            **{f"{name}_per_s": round(self.batch / median[name]) if name in median else None for name in names},
            "state_mib": round(self.batch * self.subject.state_bytes / MIB, 3),
            **{f"{name}_stored_mib": round(mib[name], 3) if name in mib else None for name in names[1:]},
            "largest_batch_16gb": self.subject.largest_batch,
        }


def parse(label: str) -> tuple[str, dict[str, Any]]:
    """The name and the options in "name:option=value,...", each value a Python literal."""
    name, _, options = label.partition(":")
    try:
        call = ast.parse(f"_({options})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("an option has no name")
        return name, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise SystemExit(f"{label!r} is not NAME:OPTION=VALUE,... with Python literals as values: {error}") from None


def record(memory: Memory, xs: Tensor, starts: None, state: State) -> Unrolled:
    """A sequence without resets, recorded step by step."""
    recording = memory.record(state, len(xs))
    for x in xs:
        recording.step(x, starts)
    return recording.unrolled()


def backward(memory: Memory, result: Unrolled) -> None:
    """Backward pass of a loss that depends on all outputs and losses."""
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


def storage_of(memory: Memory, way: Way, xs: Tensor) -> int:
    """Bytes that are alive after a forward pass and were not before it."""
    state = memory.initial_state(xs.shape[1])
    return stored_bytes(
        lambda: way(memory, xs, None, state), [*memory.parameters(), *memory.buffers(), xs, *state.values()]
    )


def main(args: Args) -> None:
    if args.quick:
        args.batches, args.lengths, args.repeats = (64,), (10,), 2
    torch.set_num_threads(args.threads)
    if args.allocator:
        tune_allocator()
    labels = {label: label for label in args.memories or registered()}
    if not args.memories and args.sizes == "papers":
        labels = PAPERS
    subjects = [Subject(title, label, args) for title, label in labels.items()]
    cases = [Case(subject, batch, length) for length in args.lengths for batch in args.batches for subject in subjects]
    for case in cases:  # warm-up
        for name in case.ways:
            case.train(name, steps=4)
    for _ in range(args.repeats):
        for case in cases:
            case.measure()
    rows = [case.row() for case in cases]
    report(rows)
    if args.csv is not None:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with args.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    if args.table is not None:
        args.table.parent.mkdir(parents=True, exist_ok=True)
        args.table.write_text(markdown(rows, args), encoding="utf-8")


def report(rows: list[dict[str, Any]]) -> None:
    names = list(rows[0])
    shown = [{name: "–" if value is None else str(value) for name, value in row.items()} for row in rows]
    widths = {name: max(len(name), *(len(row[name]) for row in shown)) for name in names}
    for row in ({name: name for name in names}, *shown):
        print("  ".join(f"{row[name]:>{widths[name]}}" for name in names))


COLUMNS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "memory": lambda row: row["memory"],
    "environments": lambda row: row["batch"],
    "length": lambda row: row["length"],
    "acting, steps/s": lambda row: row["act_per_s"],
    "A2C (`record`), steps/s": lambda row: row["recorded_per_s"],
    "PPO (`unroll`), steps/s": lambda row: row["unrolled_per_s"],
    "plain, steps/s": lambda row: row["stepped_per_s"],
    "state, MiB": lambda row: row["state_mib"],
    "stored per step, MiB": lambda row: smallest(row["recorded_stored_mib"], row["unrolled_stored_mib"]),
    "largest batch": lambda row: row["largest_batch_16gb"],
}


def smallest(*values: float | None) -> float | None:
    return min((value for value in values if value is not None), default=None)


def markdown(rows: list[dict[str, Any]], args: Args) -> str:
    """The command, the machine, and a table by memory, length and batch."""
    order = {row["memory"]: index for index, row in reversed(list(enumerate(rows)))}
    rows = sorted(rows, key=lambda row: (order[row["memory"]], row["length"], row["batch"]))
    lines = ["```bash", f"python benchmarks/memory_step.py {shlex.join(sys.argv[1:])}".strip(), "```", ""]
    where = torch.cuda.get_device_name(args.device) if torch.device(args.device).type == "cuda" else platform.machine()
    lines += [f"{where}, {args.threads} thread{'s' if args.threads > 1 else ''}, torch {torch.__version__}.", ""]
    lines += [
        f"Steps/s are summed over environments; all columns but acting include the backward pass. "
        f"Medians of {args.repeats} runs."
    ]
    unmeasured = any(get(row) is None for row in rows for get in COLUMNS.values())
    dash = f"; –: more than {args.memory_limit:g} GiB" if unmeasured else ""
    lines += [
        f"Largest batch: environments whose {ROLLOUT} steps fit into 16 GiB, by the forms that this device runs{dash}.",
        "",
    ]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = [get(row) for get in COLUMNS.values()]
        texts = ["–" if cell is None else f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells]
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
