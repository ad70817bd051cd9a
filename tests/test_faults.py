"""A sample of `benchmarks/faults.py`, which tries everything that can go wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if not hasattr(os, "fork"):
    pytest.skip("commands are run in forked children", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import faults
from fault_children import Child, Outcome, Try, complaint

SAMPLE = {"flags": 8, "kwargs": 8, "recipes": 8, "data files": 8, "environments": 4, "signals": 1, "kill -9": 2}


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Everything is imported and compiled once, not before each block."""
    faults.warm(tmp_path_factory.mktemp("warm"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults, "warm", lambda folder: None)
        yield


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("block", list(SAMPLE))
def test_a_sample_holds(block: str) -> None:
    tries = faults.run([block], seed=1_000, count=SAMPLE[block], say=lambda line: None)
    assert len(tries) == SAMPLE[block]
    assert [f"{one.what}: {one.wrong}" for one in tries if one.wrong] == []


def test_what_does_not_hold_is_seen(tmp_path: Path) -> None:
    """The judgement itself: each of these must be complained of."""
    trace = "Traceback (most recent call last):\n  File mine.py\nKeyError: 3\n"
    for outcome, must, names, wrong in (
        (Outcome(None, "", 60.0), "either", [], "no end"),
        (Outcome(-11, "", 1.0), "either", [], "ended by signal 11"),
        (Outcome(1, trace, 1.0), "either", [], "traceback: KeyError: 3"),
        (Outcome(0, "", 1.0), "refuse", [], "accepted"),
        (Outcome(2, "error: gamma is 2\n", 1.0), "work", [], "refused: error: gamma is 2"),
        (Outcome(1, "", 1.0), "either", [], "0 error lines"),
        (Outcome(2, "error: a\nb\n", 1.0), "either", [], "more than one line"),
        (Outcome(2, "error: x is wrong\n", 1.0), "either", ["gamma"], "names none of gamma"),
    ):
        assert complaint(outcome, must, names).startswith(wrong)
    assert complaint(Outcome(0, "done", 1.0), "work") == ""
    assert complaint(Outcome(2, "error: gamma is 2, expected 0 to 1\n", 1.0), "refuse", ["gamma"]) == ""
    assert complaint(Outcome(2, trace + "error: env\n", 1.0), "refuse", users="mine.py") == ""
    assert complaint(Outcome(2, trace + "error: env\n", 1.0), "refuse", users="other.py") != ""


def test_children_end_at_their_limits(tmp_path: Path) -> None:
    import time

    assert Child(lambda: time.sleep(60), tmp_path).wait(0.1).status is None
    assert Child(lambda: bytearray(1 << 33), tmp_path, 1 << 30).wait(30).status == 1
    assert Child(lambda: sys.exit("why"), tmp_path).wait(30).output == "why\n"
    assert Child(lambda: os.kill(os.getpid(), 9), tmp_path).wait(30).status == -9
    assert Child(lambda: 5, tmp_path).wait(30).status == 5


def test_the_table_counts() -> None:
    text = faults.table([Try("flags", "--x", ""), Try("flags", "--y", "accepted"), Try("recipes", "z", "")], seed=3)
    assert "| flags | 2 | 1 | 1 |" in text
    assert "| recipes | 1 | 1 | 0 |" in text
    assert "- flags: `--y`: accepted" in text
