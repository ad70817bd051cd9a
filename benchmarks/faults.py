"""Tests error handling: damaged files, mistyped commands, kills, signals, faulty environments.

    nice -n 19 python benchmarks/faults.py --out faults.md
    python benchmarks/faults.py --only flags --count 20 --seed 3

Inputs are drawn from lists or damaged at random, with the seed. A try is *passed* if the command works, or ends with a
one-line error that names the cause, a non-zero exit status and no loss of data. The table has the numbers of tries,
passes and failures of each block, followed by the failed inputs.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from fault_checkpoints import checkpoints
from fault_children import Try, warm
from fault_data import data
from fault_environments import environments
from fault_recipes import recipes
from fault_stops import kills, signals
from fault_words import flags, kwargs

Block = Callable[[int, int, Path], Iterator[Try]]

BLOCKS: dict[str, tuple[Block, int]] = {
    "checkpoints": (checkpoints, 1000),
    "kill -9": (kills, 100),
    "signals": (signals, 48),
    "flags": (flags, 118),
    "kwargs": (kwargs, 185),
    "recipes": (recipes, 114),
    "data files": (data, 300),
    "environments": (environments, 50),
}
"""Each block's function, and its tries in the full campaign."""


def run(names: list[str], seed: int, count: int | None = None, say: Callable[[str], None] = print) -> list[Try]:
    """Runs the tries of some blocks and prints failures at once."""
    done: list[Try] = []
    with tempfile.TemporaryDirectory(prefix="engram-faults-", ignore_cleanup_errors=True) as place:
        warm(Path(place))
        for name in names:
            block, usual = BLOCKS[name]
            folder = Path(place) / name
            folder.mkdir()
            for one in block(seed, usual if count is None else count, folder):
                done.append(one)
                if one.wrong:
                    say(f"{name}: {one.what}: {one.wrong}")
    return done


def table(tries: list[Try], seed: int) -> str:
    """The counts and failures in Markdown."""
    lines = ["| block | tried | passed | failed | s per try |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(one.block for one in tries):
        block = [one for one in tries if one.block == name]
        passed, seconds = sum(not one.wrong for one in block), sum(one.seconds for one in block) / len(block)
        lines.append(f"| {name} | {len(block):,} | {passed:,} | {len(block) - passed:,} | {seconds:.2f} |")
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )
    lines += ["", f"Seed {seed}; {machine}; {time.strftime('%Y-%m-%d')}."]
    failed = [f"- {one.block}: `{one.what}`: {one.wrong}" for one in tries if one.wrong]
    return "\n".join([*lines, *([""] if failed else []), *failed]) + "\n"


def main() -> int:
    """The command; returns 1 if a try failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", choices=list(BLOCKS), help="blocks to try; default: all")
    parser.add_argument("--count", type=int, help="tries in each block; default: the full campaign")
    parser.add_argument("--seed", type=int, default=0, help="seed of inputs and moments")
    parser.add_argument("--out", type=Path, help="file for the table")
    given = parser.parse_args()
    tries = run(given.only or list(BLOCKS), given.seed, given.count)
    text = table(tries, given.seed)
    print(text)
    if given.out:
        given.out.write_text(text, encoding="utf-8")
    return int(any(one.wrong for one in tries))


if __name__ == "__main__":
    sys.exit(main())
