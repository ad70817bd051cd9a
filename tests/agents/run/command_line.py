"""The command in this process, on a run of a second."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from agents.run.command import main

SMALL = ["--env", "Engram/RepeatFirst-v0", "--env-kwargs", "length=4", "--num-envs", "4", "--n-steps", "4"]
SMALL += ["--memory", "gru", "--memory-kwargs", "hidden_size=8", "--eval-episodes", "8", "--no-progress"]
SMALL += ["--learning-rate", "3e-4", "--no-anneal", "--no-baseline", "--panels-every", "0", "--checkpoint-every", "0"]


def command(*words: object) -> int:
    """The command's exit status."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert isinstance(end.value.code, int)
    return end.value.code


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "progress.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but its lock, to see that nothing was written."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}
