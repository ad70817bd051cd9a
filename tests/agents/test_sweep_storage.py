"""Studies in damaged storages, and options that samplers and pruners look at only late."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from sweep_spaces import space_file

from agents.sweep import study, trial
from agents.sweep.space_file import load_space


def begun(folder: Path, where: str | None = None, **entries: Any) -> tuple[optuna.Study, str]:
    """A study with two trials, and its storage."""
    study.silence_optuna()
    space = load_space(str(space_file(folder, **entries)))
    where = where or study.default_storage(folder)
    made = study.open_study(space, space.defaults({}), where)
    for value in range(2 if not made.trials else 0):
        asked = made.ask()
        space.suggest(asked)
        made.tell(asked, float(value))
    return made, where


def test_an_entry_that_was_cut_is_left_out_and_the_study_goes_on(tmp_path: Path) -> None:
    """As a kill or a power loss in the middle of a write leaves it; what is appended would come onto the same line."""
    _, where = begun(tmp_path)
    whole = Path(where).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(begun(tmp_path)[0].trials) == 2
    Path(where).write_bytes(whole[:-20])
    with pytest.warns(UserWarning, match=r"study\.journal: the last entry is incomplete"):
        made, _ = begun(tmp_path)
    assert [one.state.name for one in made.trials] == ["COMPLETE", "RUNNING"]
    made.ask()
    assert len(begun(tmp_path)[0].trials) == 3


def test_a_damaged_journal_is_named_and_left_alone(tmp_path: Path) -> None:
    _, where = begun(tmp_path)
    lines = Path(where).read_bytes().splitlines(keepends=True)
    for bad in (
        lines[0][:100],
        b"".join([*lines, b"garbage\n", b"{"]),
        b"".join([*lines[:3], lines[3][:20], *lines[4:]]),
        b"".join([*lines[:2], b"\0" * 50 + b"\n", *lines[2:]]),
        b"".join([*lines[:2], b"[1, 2]\n"]),
        b"".join([*lines, b'{"op_code": 99}\n']),
        b"\xff\xfe" + b"".join(lines),
        b"# a note of mine, no journal at all",
        b"# a note of mine,\nno journal at all",
    ):
        Path(where).write_bytes(bad)
        with pytest.raises(
            ValueError, match=r"cannot open the storage .*study\.journal: .* another --run-dir"
        ) as caught:
            begun(tmp_path)
        assert "\n" not in str(caught.value)
        assert Path(where).read_bytes() == bad  # nothing is removed from what is not understood


def test_a_storage_that_is_no_file_or_no_database_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "notes.db").write_text("this is no database, and long enough to be seen as none\n" * 40)
    for where, message in (
        (str(tmp_path / "pipe"), "pipe: it is not a regular file"),
        (str(tmp_path), "it is not a regular file"),
        (str(tmp_path / "nowhere" / "a.journal"), r"cannot open the storage .*a\.journal"),
        (f"sqlite:///{tmp_path}/notes.db", r"cannot open the storage sqlite:.*notes\.db"),
        ("nonsense://user:secret@host/db", "cannot open the storage nonsense:"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            begun(tmp_path, where)
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"sampler": {"name": "tpe", "n_startup_trials": "x"}}, r"sampler: tpe fails with its options: '<'"),
        ({"sampler": {"name": "tpe", "n_ei_candidates": "x"}}, "sampler: tpe fails with its options"),
        ({"sampler": {"name": "tpe", "gamma": 3}}, "sampler: tpe fails with its options"),
        ({"sampler": {"name": "random", "seed": "x"}}, "sampler: "),
        ({"sampler": {"name": "qmc", "qmc_type": "x"}}, "sampler: "),
        ({"pruner": {"name": "median", "n_startup_trials": "x"}}, "pruner: "),
        ({"pruner": {"name": "percentile", "percentile": "x"}}, "pruner: "),
        ({"pruner": {"name": "hyperband", "reduction_factor": "x"}}, "pruner: "),
        ({"pruner": {"name": "threshold", "upper": "x"}}, "pruner: "),
    ],
)
def test_options_are_tried_before_a_trial_costs_time(tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        begun(tmp_path, **entries)
    assert "space.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path(study.default_storage(tmp_path)).exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"metrics": {}}', b'{"mean_return": "x"}'])
def test_a_damaged_summary_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"summary\.json is not a valid summary|{tmp_path.name}: return is x"):
        trial.result(tmp_path, "return")


def test_a_curve_with_bytes_that_are_no_text_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    rows = b"time/total_timesteps,rollout/ep_rew_mean\n10,1.0\n20,\xff\xfe\n30,3.0\n"
    (tmp_path / "progress.csv").write_bytes(rows)
    assert trial.read_curve(tmp_path, "return") == [(10, 1.0), (30, 3.0)]


@pytest.mark.parametrize("name", ["tpe", "random", "grid", "qmc"])
def test_options_that_are_right_pass(tmp_path: Path, name: str) -> None:
    space = {"n_steps": [8, 16, 32, 64]}
    begun(tmp_path, sampler={"name": name, "seed": 3}, space=space, pruner={"name": "percentile", "percentile": 25.0})
