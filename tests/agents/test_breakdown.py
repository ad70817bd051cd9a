"""Errors apart by group: against a plain count, on every task that groups its answers, and by the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import envs
import evaluate as command
from agents import Supervised, make_env
from agents.evaluation import evaluate, play
from agents.evaluation.breakdown import Breakdown, Row
from agents.evaluation.tables import print_errors
from agents.run.config import Config
from envs.tasks.sequence.copy import Copy
from envs.tasks.sequence.priority_sort import PrioritySort
from envs.tensor_env import AnswerGroup, TensorEnv


def halves(env: TensorEnv) -> Any:
    """Answers that are the same in every episode: 1 for the second half of the bits."""
    answer = torch.zeros(env.single_action_space.shape or (), dtype=torch.int8)
    answer.flatten()[answer.numel() // 2 :] = 1
    return lambda obs, starts: answer.expand(env.num_envs, *answer.shape)


def test_against_a_plain_count() -> None:
    """Seven episodes on three copies, so that the second and third do not count in the last round."""
    env = Copy(3, min_length=2, max_length=4, bits=4)
    breakdown = Breakdown(env)
    score = play(halves(env), env, 7, seed=5, breakdown=breakdown)
    counts: dict[str, dict[int, list[float]]] = {"place of the answer": {}, "answers due": {}}
    env.reset(seed=5)
    for quota in ([0, 1, 2], [0, 1, 2], [0]):
        for index in quota:
            steps = env.weights[:, index].nonzero()[:, 0].tolist()
            for place, step in enumerate(steps, 1):
                wrong = (env.targets[step, index] != torch.tensor([0, 0, 1, 1])).sum().item()
                for name, number in (("place of the answer", place), ("answers due", len(steps))):
                    counts[name].setdefault(number, []).append(25.0 * wrong)
        for _ in range(env.length):
            env.step(torch.zeros(3, 4, dtype=torch.int8))
    tables = breakdown.tables()
    for name, expected in counts.items():
        rows = [(str(number), len(errors)) for number, errors in sorted(expected.items())]
        assert [(row.label, row.answers) for row in tables[name]] == rows
        means = [sum(errors) / len(errors) for _, errors in sorted(expected.items())]
        assert [row.score for row in tables[name]] == pytest.approx(means)
    total = sum(row.score * row.answers for row in tables["answers due"])
    assert score.metrics["error"] == pytest.approx(total / sum(row.answers for row in tables["answers due"]))


@pytest.mark.parametrize("env_id", envs.registered())
def test_every_task_that_groups_its_answers_gives_back_its_score(env_id: str) -> None:
    env = make_env(env_id, 4)
    if not env.groups_answers:
        with pytest.raises(ValueError, match="does not define answer_groups"):
            Breakdown(env)
        return
    breakdown = Breakdown(env)

    def every_other(obs: Any, starts: Any) -> torch.Tensor:
        """Copies 1 and 3 are right, 0 and 2 say 0."""
        target = env.describe()["target"]
        return target * (torch.arange(4) % 2).view(4, *[1] * (target.dim() - 1)).to(target.dtype)

    score = play(every_other, env, 6, seed=1, breakdown=breakdown)
    assert 0 < score.metrics[env.grouped_metric] < 100
    assert breakdown.sums
    for name, sums in breakdown.sums.items():
        assert float(sums[0].sum() / sums[1].sum()) == pytest.approx(score.metrics[env.grouped_metric]), name
        group = env.answer_groups()[name]
        assert (group.number.dtype, group.number.shape) == (torch.int64, (env.horizon, 4))
        assert int(group.number.max()) < (len(group.labels) or 10**9)


class Numbers(Copy):
    """Each of its answers has a number of its own."""

    spread = 1

    def answer_groups(self) -> dict[str, AnswerGroup]:
        number = torch.arange(self.length * self.num_envs).view(self.length, self.num_envs)
        alike = AnswerGroup(torch.zeros_like(number))
        return {"number": AnswerGroup(number * self.spread + 3), "alike": alike}


@pytest.mark.parametrize(("spread", "width"), [(1, 4), (5, 20)])
def test_many_numbers_share_rows_and_a_single_one_has_no_table(spread: int, width: int) -> None:
    env = Numbers(2, min_length=20, max_length=20)  # the answers are the last 20 of 41 steps
    env.spread = spread
    breakdown = Breakdown(env)
    play(halves(env), env, 2, seed=0, breakdown=breakdown)
    tables = breakdown.tables()
    assert list(tables) == ["number"]
    first = 42 * spread + 3
    assert len(tables["number"]) == 10
    assert tables["number"][0].label == f"{first} to {first + width - 1}"
    assert tables["number"][-1].label.endswith(f" to {81 * spread + 3}")
    assert [row.answers for row in tables["number"]] == [4] * 10


def test_labels_stand_for_numbers() -> None:
    env = PrioritySort(64)
    breakdown = Breakdown(env)
    play(halves(env), env, 64, seed=0, breakdown=breakdown)
    rows = breakdown.tables()["distance to the nearest priority"]
    assert [row.label for row in rows][::5] == ["below 0.002", "0.05 and more"]
    assert sum(row.answers for row in rows) == 64 * 16


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    kwargs = {"max_items": 4}
    env = make_env("Engram/AssociativeRecall-v0", 2, **kwargs)
    model = Supervised("MemoryPolicy", env, policy_kwargs={"memory": "gru"}, n_steps=0)
    model.save(folder / "checkpoints" / "step_32")
    Config(env="Engram/AssociativeRecall-v0", env_kwargs=kwargs, memory="gru").save(folder / "config.yaml")
    return folder


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words)])
    try:
        command.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command_prints_and_keeps_them(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, run, "--episodes", 32, "--errors") == 0
    said = capsys.readouterr().out
    assert "error % by items shown" in said
    assert "answers due" not in said  # always three
    found = json.loads((run / "evaluation.json").read_text())
    assert set(found["errors"]) == {"agent", "random"}
    rows = found["errors"]["agent"]["items shown"]
    assert [row["label"] for row in rows] == ["2", "3", "4"]
    assert sum(row["answers"] for row in rows) == 96
    mean = sum(row["score"] * row["answers"] for row in rows) / 96
    assert found["scores"]["agent"]["metrics"]["error"] == pytest.approx(mean)
    assert call(monkeypatch, run, "--episodes", 8) == 0
    assert "errors" not in json.loads((run / "evaluation.json").read_text())


def test_an_environment_without_groups_gets_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TensorEnv, "groups_answers", False)
    monkeypatch.setattr("envs.tasks.sequence.base.SequenceTask.groups_answers", False)
    assert call(monkeypatch, run, "--episodes", 8, "--errors") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: this environment does not define answer_groups")
    assert said.count("\n") == 1


def test_players_may_have_had_other_questions(capsys: pytest.CaptureFixture[str]) -> None:
    """As in a curriculum, where what is asked follows from what was right."""
    one, other = [Row("1", 2.0, 3), Row("2", 4.0, 5)], [Row("2", 6.0, 7), Row("3", 8.0, 9)]
    print_errors(Console(), "error", "steps", {"gru": one, "random": other})
    rows = [line.strip("│").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [["1", "2", "–", "3"], ["2", "4", "6", "5"]]


def test_scores_are_the_same_with_and_without(run: Path) -> None:
    env = make_env("Engram/AssociativeRecall-v0", 4, max_items=4)
    model = Supervised.load(run / "checkpoints" / "step_32", device="cpu")
    assert evaluate(model, env, 6, seed=3) == evaluate(model, env, 6, seed=3, breakdown=Breakdown(env))
