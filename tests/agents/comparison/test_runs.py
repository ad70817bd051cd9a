"""What is read from the folder of a run."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

import train
from agents import load
from agents.checkpoint import latest_checkpoint
from agents.comparison import Comparison, find_runs
from agents.comparison.runs import column_of
from tests.agents.comparison.run_folders import make_run, make_runs

SMALL = "--env Engram/RepeatFirst-v0 --num-envs 2 --n-steps 8 --eval-episodes 4 --panels-every 0 --no-progress"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run with its baseline, and one that begins with its weights."""
    folder = tmp_path_factory.mktemp("trained")
    for name, words in (
        ("first", "--memory gru --total-timesteps 64"),
        ("second", f"--memory gru --total-timesteps 32 --no-baseline --init-from {folder}/first"),
    ):
        with pytest.raises(SystemExit) as end:
            train.main([*SMALL.split(), *words.split(), "--run-dir", str(folder / name)])
        assert end.value.code == 0
    return folder


def test_a_real_run_and_its_baseline(trained: Path) -> None:
    run, baseline = find_runs([trained / "first"])
    assert (run.memory, baseline.memory) == ("gru", "identity")
    assert run.steps == baseline.steps == 64
    assert {*run.scores} == {*baseline.scores} == {"return"}
    learned = load(latest_checkpoint(run.folder)).policy.parameters()
    assert run.parameters == sum(parameter.numel() for parameter in learned)
    assert baseline.parameters is not None
    assert baseline.parameters < run.parameters
    curve = run.curve("return")
    assert curve.steps[-1] == 64
    assert 0 < run.minutes < 1


def test_lessons_count_as_steps(trained: Path) -> None:
    (second,) = find_runs([trained / "second"])
    assert (second.steps, second.lesson_steps) == (32, 64)
    assert find_runs([trained / "first"])[0].lesson_steps == 0


def test_a_threshold_is_reached_after_the_steps_of_the_lessons(trained: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "run", init_from=trained / "second", curve=[0.0, 1.0, 1.0, 1.0], steps=400)
    (group,) = Comparison.of(find_runs([tmp_path])).groups
    assert group.reached(0.9).steps == 200 + 32 + 64


def test_a_baseline_without_its_table_is_read_from_event_files(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "first", tmp_path / "first")
    (tmp_path / "first" / "identity" / "progress.csv").unlink()
    _, baseline = find_runs([tmp_path])
    assert (baseline.memory, baseline.steps) == ("identity", 64)
    assert {*baseline.scores} == {"return"}


def test_lessons_that_are_gone_are_unknown(tmp_path: Path) -> None:
    make_run(tmp_path / "run", init_from=tmp_path / "gone")
    (run,) = find_runs([tmp_path])
    assert (run.lesson_steps, run.lessons) == (None, True)


def test_runs_after_different_lessons_are_different_groups(trained: Path, tmp_path: Path) -> None:
    starts = {"none": None, "one": trained / "first", "two": trained / "second"}
    for seed in (0, 1):
        for name, start in starts.items():
            make_run(tmp_path / f"{name}-{seed}", seed=seed, init_from=start)
    found = Comparison.of(find_runs([tmp_path]))
    assert found.by == ("init_from",)
    one, two = "RepeatFirst-v0 (64 steps)", "RepeatFirst-v0 (64 steps), RepeatFirst-v0 (32 steps)"
    assert {group.names: group.seeds for group in found.groups} == {("false",): 2, (one,): 2, (two,): 2}


def test_event_files_have_the_numbers_of_the_table(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained / "second", copy)
    (copy / "progress.csv").unlink()
    (before,), (after,) = find_runs([trained / "second"]), find_runs([copy])
    for one, other in zip(before.curve("return"), after.curve("return"), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_runs_are_found_below_a_folder_and_once(tmp_path: Path) -> None:
    first, second = make_runs(tmp_path / "deep" / "er", "gru", [1.0, 2.0])
    make_run(first / "lessons" / "easier")
    found = find_runs([tmp_path, second, first / ".." / first.name])
    assert [run.folder.resolve() for run in found] == [first, second]


def test_a_clock_that_began_anew_is_added_up(tmp_path: Path) -> None:
    """Older runs have no `time/wall`."""
    folder = make_run(tmp_path / "run")
    rows = ["time/total_timesteps,time/time_elapsed,rollout/ep_rew_mean"]
    rows += [f"{step},{clock},0" for step, clock in ((1, 30), (2, 60), (3, 10), (4, 20), (5, 5))]
    (folder / "progress.csv").write_text("\n".join(rows) + "\n")
    (run,) = find_runs([folder])
    assert [*run.curve("return").minutes * 60] == [30, 60, 70, 80, 85]


def test_a_thinned_curve_keeps_its_mean_and_its_end(tmp_path: Path) -> None:
    (run,) = find_runs([make_run(tmp_path / "run", curve=[*map(float, range(10))], steps=100)])
    thin = run.curve("return").thinned(4)
    assert [*thin.steps] == [30, 60, 90, 100]
    assert [*thin.values] == [1, 4, 7, 9]


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        find_runs([tmp_path / "nothing"])
    with pytest.raises(ValueError, match="contains no run"):
        find_runs([tmp_path])
    folder = make_run(tmp_path / "run")
    (folder / "summary.json").write_text('{"mean_return": ')
    with pytest.raises(ValueError, match=r"summary\.json is damaged"):
        find_runs([folder])
    for entries, wrong in (
        ({"mean_return": "high"}, "mean_return is 'high', expected a number"),
        ({"mean_return": 1, "metrics": [1]}, r"metrics is \[1\], expected names and values"),
        ({"mean_return": 1, "metrics": {"f1": None}}, "f1 is None, expected a number"),
        ({"env_steps": []}, None),
        ({"env_steps": [1]}, r"env_steps is \[1\], expected a number"),
    ):
        (folder / "summary.json").write_text(json.dumps(entries))
        with nullcontext() if wrong is None else pytest.raises(ValueError, match=rf"summary\.json is damaged: {wrong}"):
            find_runs([folder])
    (folder / "summary.json").unlink()
    table = (folder / "progress.csv").read_text()
    (folder / "progress.csv").write_text(table.replace(",0.0", ",none"))
    (run,) = find_runs([folder])
    with pytest.raises(
        ValueError, match=r"progress\.csv is damaged: row 2 has 'none' for rollout/ep_rew_mean, expected a"
    ):
        run.curve("return")


def test_a_run_that_has_not_begun_has_no_curve(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", score=None)
    (folder / "progress.csv").unlink()
    (run,) = find_runs([folder])
    assert run.steps == 0
    assert math.isnan(run.minutes)
    assert not len(run.curve("return").steps)


def test_the_success_rate_is_a_rollouts() -> None:
    assert column_of("success_rate") == "rollout/success_rate"
    assert column_of("error") == "task/error"
