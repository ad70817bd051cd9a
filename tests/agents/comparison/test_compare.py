"""The command: what it prints at 80 columns, what it writes, and how it fails."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import compare
from agents.comparison import Comparison, find_runs, pictures
from agents.comparison.curves import read_points
from agents.comparison.pictures import Line
from agents.comparison.references import paper_lines, with_random
from agents.comparison.runs import Run
from tests.agents.comparison.run_folders import make_run, make_runs


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What it prints; it must not fail."""
    compare.main([str(word) for word in words])
    return capsys.readouterr().out


def failed(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as end:
        compare.main([str(word) for word in words])
    assert end.value.code == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    return error


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    make_runs(folder, "mnm-p", [0.9, 1.0, 1.0], curve=[0.2, 0.95, 1.0])
    make_runs(folder, "identity", [0.3, 0.31, 0.29], curve=[0.2, 0.25, 0.3])
    return folder


@pytest.mark.parametrize("more", [[], ["--threshold", "0.9"], ["--by", "memory", "algo", "learning_rate"]])
def test_the_table_fits_into_eighty_columns(
    runs: Path, more: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = said(capsys, runs, "--no-random", *more)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    row = next(line for line in text.splitlines() if line.startswith("mnm-p"))
    assert "0.967  [0.823, 1.110]" in row  # Student's t: 0.967 ± 4.303 · 0.0577 / √3
    assert ("(3/3)" in text) == ("--threshold" in more)


def test_intervals_are_students_unless_the_bootstrap_is_asked_for(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert "95 % interval: Student's t over seeds" in said(capsys, runs, "--no-random")
    text = said(capsys, runs, "--no-random", "--interval", "bootstrap")
    assert "95 % interval: percentile bootstrap over seeds" in text
    assert "0.967  [0.900, 1.000]" in text


def test_random_actions_stand_below(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They get a quarter of four symbols right."""
    last = next(line for line in said(capsys, runs).splitlines() if line.startswith("random"))
    assert float(last.split()[1]) == pytest.approx(0.25, abs=0.05)
    assert "random" not in said(capsys, runs, "--no-random")


def test_the_legend_counts_the_episodes_of_scored_runs_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_runs(tmp_path / "runs", "gru", [0.5, 0.6], eval_episodes=64)
    make_run(tmp_path / "runs" / "unscored", "gru", 2, score=None, eval_episodes=0)
    assert "mean of 64 new episodes per seed" in said(capsys, tmp_path / "runs", "--no-random")


def test_files_are_written_and_not_overwritten(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    said(capsys, runs, "--out", out, "--threshold", 0.9)
    names = {"comparison.md", "comparison.csv", "comparison-curves.csv", "comparison.png"}
    assert {path.name for path in out.iterdir()} == names
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert "exists: choose another --out, or add --overwrite" in failed(capsys, runs, "--out", out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    lines = [line for line in before["comparison.md"].decode().splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| mnm-p | 0.967 | [0.823, 1.110] |")
    rows = [*csv.DictReader(before["comparison.csv"].decode().splitlines())]
    assert [row["memory"] for row in rows] == ["mnm-p", "identity", "random actions"]
    assert [float(score) for score in rows[0]["each_seed"].split()] == [0.9, 1.0, 1.0]
    assert rows[0]["seeds_to"] == "3"
    points = [*csv.DictReader(before["comparison-curves.csv"].decode().splitlines())]
    assert [row["value"] for row in points if (row["group"], row["seed"]) == ("mnm-p", "1")] == ["0.2", "0.95", "1"]

    (table,) = read_points(out / "comparison-curves.csv")
    groups = Comparison.of(find_runs([runs])).groups
    assert [curves.label for curves in table.groups] == [group.label for group in groups]
    for curves, group in zip(table.groups, groups, strict=True):
        for one, other in zip(curves.mean_curve("minutes"), group.mean_curve("minutes"), strict=True):
            assert one == pytest.approx(other, rel=1e-4)

    said(capsys, runs, "--out", out, "--overwrite", "--x", "minutes")
    assert (out / "comparison.png").read_bytes() != before["comparison.png"]


def test_tables_of_points_name_folders_from_where_the_command_ran(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for here, shown in ((runs.parent, runs.name), (elsewhere, str(runs))):
        monkeypatch.chdir(here)
        said(capsys, runs, "--out", tmp_path / "out", "--overwrite")
        points = [*csv.DictReader((tmp_path / "out" / "comparison-curves.csv").read_text().splitlines())]
        assert {row["folder"].rpartition("/")[0] for row in points if row["group"] == "mnm-p"} == {shown}


def test_a_leaderboard_has_a_table_for_every_environment(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(runs / "other", env="Engram/TMaze-v0", score=4.0)
    make_run(runs / "begun", env="Engram/Copy-v0", score=None)
    assert "several environments" in failed(capsys, runs)
    text = said(capsys, runs, "--leaderboard", "--no-random", "--out", tmp_path / "out")
    assert text.index("Engram/RepeatFirst-v0 · return") != text.index("Engram/TMaze-v0 · return")
    assert "Engram/Copy-v0: no score yet" in text
    assert text.split("written")[0] == said(capsys, runs, "--by", "env", "--no-random").split("to write")[0]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "name the folders of runs"),
        (["nowhere"], "nowhere does not exist"),
        (["empty"], "empty contains no run"),
        (["runs", "--by", "memry"], "--by memry: no run has a setting of that name; did you mean memory"),
        (["runs", "--score", "f1"], "no run has the score f1; there are return"),
        (["runs", "--out", ""], "is empty"),
        (["runs", "--out", "runs/identity-0/config.yaml"], "is a file: expected a folder"),
        (
            ["runs/identity-0/summary.json"],
            "contains no run: expected a config.yaml of train.py in it or its subfolders; runs/",
        ),
        (["runs", "--leaderboard", "--score", "nix"], "no environment has runs with a score"),
    ],
)
def test_what_is_wrong_is_one_line(
    words: list[str], line: str, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs.parent)
    Path("empty").mkdir()
    assert line in failed(capsys, *words)


def lines_of(drawn: Figure) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_ydata()) for line in drawn.axes[0].lines}


def test_the_picture_has_the_means_and_the_lines_to_compare_with(runs: Path) -> None:
    found = Comparison.of(find_runs([runs]))
    drawn = pictures.figure([found], lines=[[Line(0.5, "a paper")]])
    curves = lines_of(drawn)
    assert {*curves} == {"mnm-p (3 seeds)", "identity (3 seeds)", "_a paper"}
    assert curves["mnm-p (3 seeds)"][-1] == pytest.approx(1.0)
    assert [*curves["_a paper"]] == [0.5, 0.5]
    assert drawn.axes[0].get_ylabel() == "return, last 100 episodes (higher is better)"
    assert pictures.png(drawn) == pictures.png(pictures.figure([found], lines=[[Line(0.5, "a paper")]]))


def test_a_paper_is_a_line_where_the_recipe_knows_its_figure(runs: Path) -> None:
    (run, *_) = find_runs([runs])
    maze = {"recipe": "maze-ppo-long", "env": "Engram/InvisibleGoalMaze-v0", "env_kwargs": {}}
    (line,) = paper_lines([Run(run.folder, {**run.config, **maze})], "return")
    assert line.value == 175
    assert "MNM" in line.label
    assert paper_lines([Run(run.folder, {**run.config, **maze})], "error") == []
    assert paper_lines([run], "return") == []
    for another in ({"env_kwargs": {"size": 5}}, {"env": "Engram/TMaze-v0"}):
        assert paper_lines([Run(run.folder, {**run.config, **maze, **another})], "return") == []


def test_random_is_not_played_where_that_may_be_slow(tmp_path: Path) -> None:
    make_run(tmp_path / "a", env="CartPole-v1")
    assert with_random(Comparison.of(find_runs([tmp_path]))).random is None


def test_letters_that_mean_something_elsewhere_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Brackets to rich, a bar to Markdown, a dollar and a leading underscore to matplotlib."""
    for number, name in enumerate(("[red]a[/red]", "b|c", "$d", "_e")):
        make_run(tmp_path / "runs" / str(number), memory_kwargs={"name": name}, steps=(number + 1) * 100)
    text = said(capsys, tmp_path / "runs", "--by", "name", "--out", tmp_path / "out")
    assert all(f"\n{name} " in text for name in ("[red]a[/red]", "b|c", "$d", "_e"))
    lines = [line for line in (tmp_path / "out" / "comparison.md").read_text().splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    drawn = pictures.figure([Comparison.of(find_runs([tmp_path / "runs"]), ["name"])])
    assert {str(text.get_text()) for text in drawn.axes[0].get_legend().get_texts()} == {
        "[red]a[/red] (1 seed)",
        "b|c (1 seed)",
        r"\$d (1 seed)",
        "e (1 seed)",
    }
