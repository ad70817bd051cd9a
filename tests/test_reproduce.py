"""benchmarks/reproduce.py: what lands, what does not, and the table that is published."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

import train
from agents.run.parsing import parse

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
reproduce = importlib.import_module("reproduce")
TINY = (
    "--algo supervised --env Engram/Copy-v0 --env-kwargs max_length=2 --memory gru --memory-kwargs hidden_size=4 "
    "--num-envs 2 --n-steps 0 --total-timesteps 40 --eval-episodes 4 --no-baseline --panels-every 0"
)


def row(**entries: Any) -> Any:
    usual = {"name": "tiny", "paper": "p", "task": "t", "figure": "f", "score": "error", "better": "lower"}
    usual |= {"protocol": "yes", "verdict": "reached", "train": TINY, "unit": "%"}
    return reproduce.Row(**{**usual, **entries})


def test_the_published_table_is_that_of_the_file() -> None:
    page = reproduce.README.read_text(encoding="utf-8")
    drawn = reproduce.table(reproduce.rows())
    assert drawn in page, "run python benchmarks/reproduce.py --write"
    assert page.index(drawn) < page.index("\n## ")  # at the top
    assert reproduce.with_table(page, drawn) == page


def test_every_row_that_is_trained_has_a_command_that_parses() -> None:
    for each in reproduce.rows().values():
        if each.train:
            parse([*reproduce.shlex.split(each.train), "--seed", "0"])
        else:
            script, *words = reproduce.shlex.split(each.command.format(seed=0, out="there"))
            assert (ROOT / script).is_file()
            assert "there/scores.csv" in words


def test_scores_land_in_the_interval_of_the_published_ones() -> None:
    published = row(seeds=[0, 1, 2], each=[10, 11, 12])  # 11 ± 4.303 · 1 / √3
    assert (published.interval.low, published.interval.high) == pytest.approx((8.516, 13.484), abs=1e-3)
    assert reproduce.verdict(published, [8.6, 13])[0] is True
    assert reproduce.verdict(published, [13.5])[0] is False
    assert reproduce.verdict(published, [8.5]) == (
        False,
        "tiny: error 8.5 % (one seed) is outside the published [8.516, 13.48]",
    )
    lands, said = reproduce.verdict(row(seeds=[0], each=[3]), [4])
    assert lands is None
    assert "published 3, one seed, which has no interval" in said
    assert reproduce.verdict(row(verdict="not run: it costs"), [4])[0] is None


def test_a_tiny_row_is_trained_and_read_and_not_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = row(seeds=[0, 1], each=[1.0, 1.1])
    monkeypatch.setattr(reproduce, "rows", lambda: {"tiny": tiny})
    with pytest.raises(SystemExit, match=r"^0$"):  # the first seed is there; the second is trained by a process
        train.main([*TINY.split(), "--seed", "0", "--run-dir", str(tmp_path / "tiny" / "0"), "--no-progress"])
    args = reproduce.Args(names=("tiny",), runs=tmp_path)
    assert reproduce.main(args) == 1  # about half of the bits are wrong after two updates
    said = capsys.readouterr().out
    assert [said.count(words) for words in ("complete: ", "training: ")] == [1, 1]
    assert "is outside the published" in said
    scores = [reproduce.trained_score(tmp_path / "tiny" / seed, "error") for seed in ("0", "1")]
    assert all(20 < score < 80 for score in scores)
    assert reproduce.trained_score(tmp_path / "tiny" / "0", "training") != 0
    with pytest.raises(ValueError, match="has no f1; expected one of return"):
        reproduce.trained_score(tmp_path / "tiny" / "0", "f1")
    monkeypatch.setattr(reproduce, "rows", lambda: {"tiny": row(seeds=[0, 1], each=scores)})
    assert reproduce.main(args) == 0
    said = capsys.readouterr().out
    assert said.count("complete: ") == 2
    assert "is in the published" in said


def test_other_programs_write_a_table_of_scores(tmp_path: Path) -> None:
    (tmp_path / "tiny" / "0").mkdir(parents=True)
    (tmp_path / "tiny" / "0" / "scores.csv").write_text("memory,bound\nother,9\nown,4.5\n")
    words = {"train": "", "command": "none.py --csv {out}/scores.csv", "where": {"memory": "own"}, "score": "bound"}
    assert reproduce.rerun(row(**words, seeds=[0], each=[4]), [0], tmp_path) == [4.5]  # the scores exist already
    with pytest.raises(ValueError, match="no row with"):
        reproduce.table_score(tmp_path / "tiny" / "0" / "scores.csv", {"memory": "none"}, "bound")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"verdict": "fine"}, "the verdict begins with"),
        ({"seeds": [0], "each": []}, "a score in each for every seed"),
        ({"verdict": "not run", "seeds": [0], "each": [1]}, "none where it was not run"),
        ({"seeds": [0], "each": [1], "command": "other.py"}, "train or command"),
    ],
)
def test_rows_that_contradict_themselves_are_refused(entries: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        row(**entries)
