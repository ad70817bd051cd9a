"""Hostile checkpoints of `hostile_checkpoints.py`: through `load`, and a tenth each through the two commands."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import hostile_checkpoints as hostile
from fault_children import Child, Try

SLICE = 50
"""Cases of one seed, run by one child process."""


def checkpoints(seed: int, count: int, folder: Path) -> Iterator[Try]:
    """`count` through `load`, a tenth as many through `evaluate.py` and through `train.py --resume`."""
    runs = hostile.make_runs(folder / "runs")
    tenth, drawn, file = count // 10, 1000 * seed, folder / "found.json"
    ways: tuple[tuple[hostile.Through, int], ...] = (("load", count), ("evaluate", tenth), ("resume", tenth))
    for through, wanted in ways:
        for begin in range(0, wanted, SLICE):
            size, drawn = min(SLICE, wanted - begin), drawn + 1
            file.write_text('{"passed": 0, "failed": []}', encoding="utf-8")
            look = functools.partial(_survey, drawn, size, through, runs, file)
            out = Child(look, folder, file_size=0).wait(3600)  # some cases are huge sparse files
            found = json.loads(file.read_text(encoding="utf-8"))
            lost = size - found["passed"] - len(found["failed"])
            wrong = [*[""] * found["passed"], *found["failed"], *[f"not reached: {out.output[-160:]!r}"] * lost]
            yield from (Try(f"checkpoints, {through}", f"seed {drawn}", one, out.seconds / size) for one in wrong)


def _survey(drawn: int, size: int, through: hostile.Through, runs: dict[str, Path], file: Path) -> None:
    found = hostile.survey(drawn, size, through, runs)
    file.write_text(json.dumps({"passed": found.passed, "failed": found.failed}), encoding="utf-8")
