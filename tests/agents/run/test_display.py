"""The live lines: what they say at every width, and that the time left is that of steps and clock."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from agents import PPO, Supervised
from agents.learner import MemoryOnPolicyAlgorithm
from agents.run.display import RunDisplay, fit_to_width, format_duration
from agents.run.logs import STEP, Table, ordered
from envs.repeat_first import RepeatFirst
from envs.tasks.sequence.copy import Copy

GRU = {"memory": "gru", "memory_kwargs": {"hidden_size": 4}}


def shown(display: RunDisplay, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    display.console = console
    console.print(display.lines())
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def trained() -> tuple[MemoryOnPolicyAlgorithm, RunDisplay]:
    model = PPO("MemoryPolicy", RepeatFirst(4, length=4), n_steps=8, seed=0, device="cpu", policy_kwargs=GRU)
    display = RunDisplay("kanerva++ supervised", Console(file=io.StringIO()))
    model.learn(64, display)
    return model, display


@pytest.mark.parametrize("width", [60, 80, 120, 190])
def test_bar_steps_and_times_are_there_at_every_width(
    width: int, trained: tuple[MemoryOnPolicyAlgorithm, RunDisplay]
) -> None:
    model, display = trained
    model.num_timesteps, model._total_timesteps = 403_000, 960_000
    first, second = shown(display, width)
    assert max(len(first), len(second)) <= width
    assert "403k/960k  41%" in first
    assert "left" in first
    assert "elapsed" in first
    assert first.count("━") + first.count("╸") >= 3
    assert second.startswith("  return 0.")
    assert ("env/memory/learn" in second) == (width >= 80)


def test_the_time_left_comes_from_steps_and_clock(trained: tuple[MemoryOnPolicyAlgorithm, RunDisplay]) -> None:
    model, display = trained
    now = time.monotonic()
    display._steps_at_start, display._started = 100, now - 60
    model.num_timesteps, model._total_timesteps = 228, 1252
    display._mark = 228, now - 10  # four iterations of 32 steps in 50 s, and 10 s of the next one
    assert display.left() == format_duration(32 * 32 / 128 * 50 - 10) == "0:06:30"
    display._mark = 100, now - 60  # within the first iteration
    assert display.left() == "0:08:00"
    model.num_timesteps = 100
    assert display.left() == "-:--:--"  # nothing was done yet
    assert (format_duration(3723), format_duration(90_061)) == ("1:02:03", "1d 1:01:01")


def test_a_supervised_task_is_judged_by_its_errors() -> None:
    env = Copy(4, min_length=1, max_length=2, bits=2)
    model = Supervised("MemoryPolicy", env, seed=0, device="cpu", policy_kwargs=GRU)
    display = RunDisplay("gru", Console(file=io.StringIO()))
    model.learn(4 * model.n_steps * 3, display)
    name, value = display.score()
    assert name == "error"
    assert value is not None
    assert 0 < value <= 100
    assert display.status()[0] == f"error {value:.2f} %"
    assert display._best is not None
    assert display._best <= value  # the lowest one


def test_a_log_file_gets_whole_lines_and_no_empty_ones() -> None:
    console = Console(file=io.StringIO(), width=40)
    model = PPO("MemoryPolicy", RepeatFirst(4, length=4), n_steps=8, seed=0, device="cpu", policy_kwargs=GRU)
    model.learn(128, RunDisplay("gru ppo", console, quiet_seconds=0))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 3
    assert lines[0].startswith("gru ppo · 32/128  25% · 0:00:0")
    assert all(line.endswith(" %") for line in lines)


def test_fields_are_dropped_from_the_end() -> None:
    assert fit_to_width(["return 1.00", "best 2.00", "3 steps/s"], 23) == "return 1.00 · best 2.00"
    assert fit_to_width(["return 1.00", "best 2.00"], 22) == "return 1.00"


def test_columns_have_one_order(tmp_path: Path) -> None:
    names = ["train/loss", STEP, "rollout/ep_rew_mean", "time/fps", "task/error"]
    expected = [STEP, "rollout/ep_rew_mean", "task/error", "train/loss", "time/fps"]
    assert ordered(names) == ordered(reversed(names)) == expected
    for number, order in enumerate((names, names[::-1])):
        table = Table(tmp_path / f"{number}.csv", [])
        for name in order:  # a column more in each row
            table.write(dict.fromkeys(order[: order.index(name) + 1], 1.0), {})
        table.close()
        assert (tmp_path / f"{number}.csv").read_text().splitlines()[0] == ",".join(expected)
