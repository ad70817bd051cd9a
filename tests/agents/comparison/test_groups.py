"""Grouping, budgets and thresholds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from agents.comparison import Comparison, GroupingError, find_runs
from agents.comparison.groups import lower_is_better
from agents.comparison.settings import changes
from tests.agents.comparison.run_folders import make_run, make_runs


def test_seeds_of_a_memory_are_a_group_and_the_best_comes_first(tmp_path: Path) -> None:
    make_runs(tmp_path, "gru", [1.0, 2.0, 3.0])
    make_runs(tmp_path, "lstm", [5.0, 6.0])
    found = Comparison.of(find_runs([tmp_path]))
    assert found.by == ("memory",)
    assert [(group.label, group.mean, group.seeds) for group in found.groups] == [("lstm", 5.5, 2), ("gru", 2.0, 3)]
    interval = found.groups[1].interval
    assert interval is not None
    assert 1.0 <= interval.low < 2.0 < interval.high <= 3.0


def test_errors_are_ranked_from_below(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "gru", metrics={"error": 5.0, "wrong_bits": 1.0})
    make_run(tmp_path / "b", "lstm", metrics={"error": 50.0, "wrong_bits": 9.0})
    found = Comparison.of(find_runs([tmp_path]))
    assert found.score == "error"
    assert [group.label for group in found.groups] == ["gru", "lstm"]
    assert lower_is_better("wrong_bits")
    assert not lower_is_better("return")


def test_without_by_different_trainings_are_never_mixed(tmp_path: Path) -> None:
    make_run(tmp_path / "a", learning_rate=1e-3)
    make_run(tmp_path / "b", learning_rate=3e-3)
    make_run(tmp_path / "c", "lstm", memory_kwargs={"hidden_size": 8})
    found = Comparison.of(find_runs([tmp_path]))
    assert found.by == ("memory", "learning_rate")
    assert {group.label for group in found.groups} == {"gru · 0.001", "gru · 0.003", "lstm · 0.001"}


def test_trials_of_a_sweep_are_told_apart_by_what_was_searched(tmp_path: Path) -> None:
    """Each has a recipe of its own, which says nothing."""
    for trial, rate in enumerate((1e-3, 3e-3)):
        for seed in range(2):
            make_run(tmp_path / f"{trial}-{seed}", seed=seed, learning_rate=rate, recipe=f"/x/trial-{trial}.yaml")
    assert Comparison.of(find_runs([tmp_path])).by == ("learning_rate",)


def test_a_group_that_mixes_settings_says_so(tmp_path: Path) -> None:
    make_run(tmp_path / "a", learning_rate=1e-3)
    make_run(tmp_path / "b", learning_rate=3e-3)
    found = Comparison.of(find_runs([tmp_path]), ["memory"])
    assert [group.seeds for group in found.groups] == [2]
    assert any("different learning_rate" in note for note in found.notes)


def test_a_setting_may_be_called_by_its_end(tmp_path: Path) -> None:
    for size in (8, 16):
        make_run(tmp_path / str(size), memory_kwargs={"hidden_size": size})
    found = Comparison.of(find_runs([tmp_path]), ["hidden-size"])
    assert {group.names for group in found.groups} == {("8",), ("16",)}
    with pytest.raises(ValueError, match="did you mean learning_rate"):
        Comparison.of(find_runs([tmp_path]), ["learning_rat"])


def test_the_same_training_twice_counts_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name)
    make_run(tmp_path / "c", seed=1)
    found = Comparison.of(find_runs([tmp_path]))
    assert found.groups[0].seeds == 2
    assert any("left out" in note for note in found.notes)


def test_baselines_of_an_imported_and_a_built_in_memory_are_one_group(tmp_path: Path) -> None:
    for name, imports in {"mine": ["my_memory"], "gru": []}.items():
        run = make_run(tmp_path / name, name, imports=imports)
        (run / "identity").mkdir()
        (run / "identity" / "progress.csv").write_text((run / "progress.csv").read_text())
    found = Comparison.of(find_runs([tmp_path]))
    assert found.by == ("memory",)
    assert sorted(group.label for group in found.groups) == ["gru", "identity", "mine"]


def test_different_environments_are_not_one_table(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", env="Engram/TMaze-v0")
    with pytest.raises(GroupingError, match=r"several environments \(Engram/Rep.*, Engram/TMaze-v0\)"):
        Comparison.of(find_runs([tmp_path]))
    make_run(tmp_path / "c", env_kwargs={"length": 3})
    with pytest.raises(GroupingError, match=r"different arguments of .* \(env_kwargs.length\)"):
        Comparison.of(find_runs([tmp_path / "a", tmp_path / "c"]))


def test_arguments_of_the_environment_may_be_what_is_compared(tmp_path: Path) -> None:
    for length in (3, 6):
        make_run(tmp_path / str(length), env_kwargs={"length": length})
    found = Comparison.of(find_runs([tmp_path]), ["length", "memory"])
    assert {group.names for group in found.groups} == {("3", "gru"), ("6", "gru")}
    assert (found.name, found.random) == ("Engram/RepeatFirst-v0", None)


def test_runs_that_are_not_complete(tmp_path: Path) -> None:
    make_run(tmp_path / "a", score=None, curve=[0.0] * 19 + [0.5])
    with pytest.raises(GroupingError, match=r"no score yet: .*a \(not complete, .*\); --in-training"):
        Comparison.of(find_runs([tmp_path]))
    assert Comparison.of(find_runs([tmp_path]), in_training=True).groups[0].mean == 0.5
    make_run(tmp_path / "task" / "c", score=None, metrics={"f1": 0.5})
    assert Comparison.of(find_runs([tmp_path / "task"]), in_training=True).score == "f1"
    make_run(tmp_path / "b", "lstm")
    found = Comparison.of(find_runs([tmp_path / "a", tmp_path / "b"]))
    assert [group.label for group in found.groups] == ["lstm", "gru"]
    assert math.isnan(found.groups[1].mean)
    assert any("no score yet" in note for note in found.notes)
    assert any("one seed, so no interval: lstm" in note for note in found.notes)


def test_an_unknown_score_lists_those_there_are(tmp_path: Path) -> None:
    make_run(tmp_path / "a", metrics={"f1": 0.5})
    with pytest.raises(GroupingError, match="no run has the score nix; there are return, f1"):
        Comparison.of(find_runs([tmp_path]), score="nix")
    with pytest.raises(GroupingError, match=r"no run has logged train/nix; there are .*task/f1"):
        Comparison.of(find_runs([tmp_path]), score="train/nix")
    assert Comparison.of(find_runs([tmp_path]), score="task/f1").groups[0].mean == 1.0


def test_unequal_budgets_are_marked(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "gru", steps=10_000)
    make_run(tmp_path / "b", "lstm", steps=9_900)  # a rollout less
    make_run(tmp_path / "c", "dnc", steps=2_000)
    make_run(tmp_path / "d", "dnc", seed=1, steps=5_000)
    found = Comparison.of(find_runs([tmp_path]), ["memory"])
    assert {g.label: found.same_budget(g) for g in found.groups} == {
        "gru": "yes",
        "lstm": "yes",
        "dnc": "no: 20–50 %",
    }


def test_steps_of_a_run_without_a_log_are_those_of_its_summary(tmp_path: Path) -> None:
    (make_run(tmp_path / "a", "gru", steps=1_000) / "progress.csv").write_text("")
    (make_run(tmp_path / "b", "lstm", steps=1_000, score=None) / "progress.csv").write_text("")
    found = Comparison.of(find_runs([tmp_path]))
    assert {g.label: found.same_budget(g) for g in found.groups} == {"gru": "yes", "lstm": "unknown"}


def test_lessons_are_part_of_the_budget(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "gru", steps=1_000)
    make_run(tmp_path / "b", "lstm", steps=1_000, init_from=tmp_path / "gone")
    found = Comparison.of(find_runs([tmp_path]), ["memory"])
    assert {g.label: found.same_budget(g) for g in found.groups} == {"gru": "yes", "lstm": "unknown"}


def test_the_threshold_is_reached_by_most_seeds_or_by_none(tmp_path: Path) -> None:
    for seed, curve in enumerate(([0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0], [0.0] * 4)):
        make_run(tmp_path / str(seed), seed=seed, curve=curve, steps=400, seconds=240)
    (group,) = Comparison.of(find_runs([tmp_path])).groups
    assert group.reached(0.9) == (400.0, 4.0, 2)
    assert group.reached(0.0) == (100.0, 1.0, 3)
    assert group.reached(2.0) == (math.inf, math.inf, 0)


def test_an_error_reaches_its_threshold_from_above(tmp_path: Path) -> None:
    make_run(tmp_path / "a", metrics={"error": 1.0}, curve=[50.0, 20.0, 5.0, 1.0], steps=400)
    (group,) = Comparison.of(find_runs([tmp_path])).groups
    assert group.reached(5.0).steps == 300


def test_a_mean_curve_ends_with_the_shortest_seed(tmp_path: Path) -> None:
    make_run(tmp_path / "a", seed=0, curve=[1.0] * 10, steps=1_000)
    make_run(tmp_path / "b", seed=1, curve=[3.0] * 5, steps=500)
    (group,) = Comparison.of(find_runs([tmp_path]), ["memory"]).groups
    xs, mean, low, high = group.mean_curve("steps")
    assert xs[-1] == 500
    assert (mean == 2.0).all()
    assert (low == 1.0).all()
    assert (high == 3.0).all()


def test_random_actions_are_taken_from_an_evaluation(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    scores = {"random": {"mean": 0.25, "metrics": {}}}
    evaluation = {"env": "Engram/RepeatFirst-v0", "env_kwargs": {}, "scores": scores}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    assert Comparison.of(find_runs([tmp_path])).random == 0.25
    others: list[dict[str, object]] = [{"env_kwargs": {"length": 3}}, {"wrappers": ["my:Wrapper"]}, {"max_steps": 7}]
    for other in others:
        (folder / "evaluation.json").write_text(json.dumps({**evaluation, **other}))
        assert Comparison.of(find_runs([tmp_path])).random is None
    same = {"wrappers": [], "max_steps": 30_000}
    (folder / "evaluation.json").write_text(json.dumps({**evaluation, **same}))
    assert Comparison.of(find_runs([tmp_path])).random == 0.25


def test_a_run_is_the_same_training_only_with_the_same_settings(tmp_path: Path) -> None:
    one, other = find_runs([make_run(tmp_path / "a"), make_run(tmp_path / "b", steps=2000, threads=2, gamma=0.5)])
    assert changes(one.config, one.config) == {}
    assert changes(one.config, other.config) == {"gamma": (0.99, 0.5), "total_timesteps": (1000, 2000)}


def test_runs_from_different_weights_are_no_repeats(tmp_path: Path) -> None:
    make_run(tmp_path / "a", score=1.0, init_from="runs/easy")
    make_run(tmp_path / "b", score=3.0, init_from="runs/hard")
    found = Comparison.of(find_runs([tmp_path]))
    assert sum(len(group.scores) for group in found.groups) == 2


def test_seeds_of_unequal_length_have_no_equal_budget(tmp_path: Path) -> None:
    make_run(tmp_path / "a", seed=0, steps=500)
    make_run(tmp_path / "b", seed=1, steps=1000)
    found = Comparison.of(find_runs([tmp_path]), by=("memory",))
    assert found.same_budget(found.groups[0]).startswith("no")
