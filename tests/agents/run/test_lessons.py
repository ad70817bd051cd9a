"""Runs that start from another run's weights: `--init-from`, `--lessons`, and the recipes that follow another."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import command, rows

import agents
from agents.run.recipes import RECIPES, load_config

SMALL = ["--env", "Engram/RepeatFirst-v0", "--env-kwargs", "length=8", "--num-envs", "8", "--n-steps", "8"]
SMALL += ["--memory", "gru", "--memory-kwargs", "hidden_size=16", "--eval-episodes", "16", "--no-progress"]


def test_a_run_begins_with_the_weights_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights and nothing else; the memoryless agent beside it begins anew, and a resumed run is not set back."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert command(*SMALL, "--no-baseline", "--total-timesteps", "128", "--run-dir", str(first)) == 0
    begun = []

    def learn(self: agents.MemoryOnPolicyAlgorithm, *args: Any, **kwargs: Any) -> Any:
        begun.append({name: value.clone() for name, value in self.policy.state_dict().items()})
        return learn_before(self, *args, **kwargs)

    learn_before = agents.PPO.learn
    monkeypatch.setattr(agents.PPO, "learn", learn)
    longer = ["--env-kwargs", "length=9", "--n-steps", "9", "--total-timesteps", "144"]
    assert command(*SMALL, *longer, "--init-from", str(first), "--run-dir", str(second)) == 0
    taken = agents.load(agents.latest_checkpoint(first), device="cpu").policy.state_dict()
    assert len(begun) == 2  # the agent, and the memoryless one
    assert all(torch.equal(value, taken[name]) for name, value in begun[0].items())
    assert int(rows(second)[0]["time/total_timesteps"]) == 72
    shutil.rmtree(first / "checkpoints")  # it is needed no more
    assert command("--resume", str(second), "--total-timesteps", "216", "--no-progress", "--no-baseline") == 0
    assert not all(torch.equal(value, taken[name]) for name, value in begun[2].items())
    capsys.readouterr()
    assert command(*SMALL, "--memory-kwargs", "hidden_size=24", "--init-from", str(second)) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "differ; action_net.weight is [4, 16], expected [4, 24]" in message


def test_a_lesson_reminds_of_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--total-timesteps", "64", "--no-baseline"]
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    for words, reminded in (
        ([*SMALL, *short, "--run-dir", first], False),
        ([*SMALL, *short, "--follows", "easier", "--run-dir", str(tmp_path / "alone")], True),
        ([*SMALL, *short, "--follows", "easier", "--init-from", first, "--run-dir", second], False),
        (["--resume", second, "--total-timesteps", "128", "--no-progress"], False),
    ):
        assert command(*words) == 0
        assert ("add --lessons, or train --recipe easier and then --init-from" in capsys.readouterr().out) == reminded


def test_one_command_trains_all_lessons_and_continues_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Easiest first, each with the weights of the one before; what is done is not trained again."""
    shared = {"env": "Engram/RepeatFirst-v0", "memory": "gru", "memory_kwargs": {"hidden_size": 16}, "num_envs": 8}
    for name, length, follows in (("easy", 4, None), ("middle", 6, "easy"), ("hard", 8, "middle")):
        follows = str(tmp_path / f"{follows}.yaml") if follows else None
        recipe = {**shared, "env_kwargs": {"length": length}, "follows": follows}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    run = tmp_path / "run"
    words = ["--recipe", str(tmp_path / "hard.yaml"), "--lessons", "--run-dir", str(run), "--eval-episodes", "16"]
    words += ["--n-steps", "8", "--total-timesteps", "128", "--no-progress", "--seed", "3"]
    begun, iterations = [], []

    def learn(self: agents.MemoryOnPolicyAlgorithm, *args: Any, **kwargs: Any) -> Any:
        first = next(self.policy.parameters()).clone()
        begun.append((self.policy.memory_name, self.num_timesteps, self.seed, first))
        return learn_before(self, *args, **kwargs)

    def stop_in_the_third_lesson(self: agents.MemoryOnPolicyAlgorithm, iteration: int = 0) -> None:
        dump(self, iteration)
        iterations.append(iteration)
        self.stop_requested = len(iterations) == 5

    learn_before, dump = agents.PPO.learn, agents.MemoryOnPolicyAlgorithm.dump_logs
    monkeypatch.setattr(agents.PPO, "learn", learn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agents.MemoryOnPolicyAlgorithm, "dump_logs", stop_in_the_third_lesson)
        assert command(*words) == 130
    assert f"repeat the command with --run-dir {run}" in capsys.readouterr().out.replace("\n", "")
    lessons = [run / "lessons" / "easy", run / "lessons" / "middle", run]
    assert [len(rows(folder)) for folder in lessons] == [2, 2, 1]
    assert [load_config(folder / "config.yaml").env_kwargs["length"] for folder in lessons] == [4, 6, 8]
    for (_, steps, seed, first), before in zip(begun[1:3], lessons[:2], strict=True):
        handed_on = next(agents.load(agents.latest_checkpoint(before), device="cpu").policy.parameters())
        assert (steps, seed) == (0, 3)
        assert torch.equal(first, handed_on)

    assert command(*words) == 0
    assert capsys.readouterr().out.count("already complete") == 2
    assert [len(rows(folder)) for folder in lessons] == [2, 2, 2]
    assert [(memory, steps) for memory, steps, _, _ in begun[3:]] == [("gru", 64), ("identity", 0)]
    assert all((folder / "summary.json").exists() for folder in lessons)
    for flag, value, said in (
        ("--seed", "4", "--seed is 4, but .*easy is a run with 3, which cannot change on resume"),
        ("--learning-rate", "0.5", "easy is complete: no effect of learning_rate 0.001 → 0.5"),
    ):
        assert command(*words, flag, value) == (2 if flag == "--seed" else 0)
        assert re.search(said, " ".join("".join(capsys.readouterr()).split()))
    assert command(*words, "--init-from", str(run)) == 2
    easiest = tmp_path / "easy.yaml"
    easiest.write_text(yaml.safe_dump({**shared, "follows": str(tmp_path / "hard.yaml")}))
    capsys.readouterr()
    assert command(*words) == 2
    assert "follows itself" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "middle.yaml"
    other.write_text(yaml.safe_dump(shared))
    easiest.write_text(yaml.safe_dump({**shared, "follows": str(other)}))
    assert command(*words) == 2
    assert "expected recipes whose file names differ" in capsys.readouterr().err


def test_lessons_in_recipes_can_hand_their_weights_on() -> None:
    recipes = {file.stem: load_config(file) for file in RECIPES.glob("*.yaml")}
    lessons = [(name, recipe, recipes[recipe.follows]) for name, recipe in recipes.items() if recipe.follows]
    assert len(lessons) >= 8
    for name, recipe, before in lessons:
        assert recipe.memory == before.memory, name
        if recipe.env != before.env:  # another task, with the same weights
            one, other = (agents.make_env(each.env, 1) for each in (recipe, before))
            assert one.single_observation_space == other.single_observation_space, name
            assert one.single_action_space == other.single_action_space, name
        kept, handed = ({**one.memory_kwargs, "slots": 0} for one in (recipe, before))  # no weight depends on slots
        assert kept == handed, name
