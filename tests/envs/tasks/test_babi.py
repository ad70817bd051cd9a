"""Babi: an episode by hand, generated stories against a simulator, the score without memory, texts and frames."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from babi_archives import CARRYING, REAL, WHERE, archive, real, symbol, words

from envs.tasks.babi.environment import Babi, failed_tasks, mean_error
from envs.tasks.babi.stories import load, single_questions

pytestmark = pytest.mark.filterwarnings("ignore:.*is not the published content")  # most are made here


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """An archive of tasks 1 and 8, with one or two stories a file."""
    files = {}
    for split in ("train", "valid", "test"):
        files[f"en-valid/qa8_{split}.txt"] = CARRYING
        files[f"en-valid/qa1_{split}.txt"] = WHERE if split != "train" else WHERE + WHERE.replace("office", "garden")
    return archive(tmp_path / "data", files)


def test_words_placeholders_targets_weights_and_rewards_by_hand(small: Path) -> None:
    env = Babi(1, source="en-valid", tasks=8, data_dir=small)
    obs, info = env.reset(seed=0)
    shown, rows = [], []
    for said in ["a"] * 17 + ["milk", "milk"] + ["the"] * 10 + ["apple"]:
        shown += words(obs)
        before = words(info["target"])[0], info["weight"].item()
        obs, reward, terminated, truncated, info = env.step(torch.tensor([symbol(said)]))
        rows.append((*before, reward.item(), terminated.item()))
        assert not truncated
    assert " ".join(shown) == (
        "mary got the milk there . mary got the apple there . what is mary carrying ? - - "
        "mary dropped the milk . what is mary carrying ? -"
    )
    third = pytest.approx(1 / 3)
    answers = {17: ("milk", 1.0, third, False), 18: ("apple", 1.0, 0.0, False), 29: ("apple", 1.0, third, True)}
    for step, row in enumerate(rows):
        assert row == answers.get(step, ("-", 0.0, 0.0, False))
    assert words(info["final_obs"]) == ["-"]
    assert words(obs) == ["mary"]  # the next story


def test_each_question_ends_a_story_of_its_own(small: Path) -> None:
    env = Babi(2, source="en-valid", tasks=8, data_dir=small, protocol="mnm", in_order=True)
    assert env.num_stories == 2  # questions of the one story
    obs, info = env.reset()
    told: list[list[str]] = [[], []]
    ends = []
    for step in range(25):
        for copy in range(2):
            told[copy] += words(obs[copy : copy + 1])
        obs, reward, terminated, _, info = env.step(info["target"])
        ends += [(step, copy, reward[copy].item()) for copy in terminated.nonzero().flatten().tolist()]
    first = "mary got the milk there . mary got the apple there . what is mary carrying ? - -"
    second = "mary got the milk there . mary got the apple there . mary dropped the milk . what is mary carrying ? -"
    assert " ".join(told[0][:19]) == first
    assert " ".join(told[1][:23]) == second
    assert ends[:2] == [(18, 0, 0.5), (22, 1, 1.0)]  # two words of an answer earn a half each
    with pytest.raises(ValueError, match=r"protocol is 'joint', expected one of \('dnc', 'mnm'\)"):
        Babi(1, protocol="joint")


def test_nothing_is_asked_after_the_end(small: Path) -> None:
    env = Babi(1, source="en-valid", tasks=8, data_dir=small)
    env.autoreset = False
    env.reset(seed=0)
    for _ in range(30):
        obs, _, terminated, _, info = env.step(torch.tensor([3]))
    assert terminated
    assert (words(obs), words(info["target"]), info["weight"].tolist()) == (["-"], ["-"], [0.0])


def test_a_question_is_right_if_all_words_are(small: Path) -> None:
    """Task 1: half of the questions are right; task 8: of two the second."""
    env = Babi(4, source="en-valid", split="train", data_dir=small, tasks=[8, 1], in_order=True)
    assert env.tasks == (1, 8)
    assert env.metric_names == ("error", "error_qa1", "error_qa8")
    assert env.num_stories == 3
    _, info = env.reset()
    sums: dict[str, np.ndarray[Any, Any]] = {}
    for _ in range(30):  # copies 0 and 3 read John's first story, 1 his second, 2 Mary's
        action = info["target"].clone()
        action[action == symbol("garden")] = symbol("office")
        action[action == symbol("milk")] = symbol("football")  # with "apple" right, the answer is still wrong
        *_, info = env.step(action)
        assert set(info["metrics"]) == set(env.metric_names)
        for name, pair in info["metrics"].items():
            sums[name] = sums.get(name, 0) + torch.stack(pair).double().numpy()
    amounts, counts = sums["error_qa8"]
    assert counts[2] == 2
    assert amounts[2] == 100
    amounts, counts = sums["error_qa1"]
    assert counts[1] > 0
    # Story by story, copy 1 goes on with stories 1, 2 (= 1 + 4 mod 3), 0, ...: garden is the only one it misses.
    assert amounts[1] == 100
    assert (sums["error"] == sums["error_qa1"] + sums["error_qa8"]).all()


def test_an_answer_is_judged_by_itself(small: Path) -> None:
    """A mistake in one answer does not make the next one wrong, nor that of the next story."""
    env = Babi(1, source="en-valid", tasks=8, data_dir=small)
    assert env.metric_names == ("error",)
    _, info = env.reset()
    errors = []
    for step in range(60):
        action = info["target"].clone()
        action[...] = symbol("you") if step in (18, 47) else action  # the second word, and the first of the next story
        *_, info = env.step(action)
        amount, count = info["metrics"]["error"]
        errors += amount[count > 0].tolist()
        assert not amount[count == 0].any()
    assert errors == [100.0, 0.0, 100.0, 0.0]


def test_mean_error_and_failed_tasks() -> None:
    metrics = {"error": 50.0, "error_qa1": 0.0, "error_qa2": 5.0, "error_qa19": 40.0}
    assert mean_error(metrics) == 15.0
    assert failed_tasks(metrics) == 1
    assert failed_tasks(metrics, limit=4.9) == 2
    assert mean_error({"error": 7.0}) == 7.0
    assert failed_tasks({"error": 7.0}) == 1
    with pytest.raises(ValueError, match="no 'error'"):
        mean_error({"success": 1.0})


def test_in_order_every_story_comes_once() -> None:
    env = Babi(3, tasks=1, stories=7, questions=1, in_order=True)
    _, info = env.reset()
    read: list[list[int]] = [[int(story)] for story in env.story]
    for _ in range(200):
        _, _, terminated, _, info = env.step(info["target"])
        for copy in terminated.nonzero().flatten().tolist():
            read[copy].append(int(env.story[copy]))
    assert [stories[:3] for stories in read] == [[0, 3, 6], [1, 4, 0], [2, 5, 1]]
    env.reset()
    assert env.story.tolist() == [0, 1, 2]


def test_stories_are_drawn_evenly() -> None:
    env = Babi(4000, tasks=[1, 15], stories=2, questions=1)
    env.reset(seed=0)
    counts = Counter(env.story.tolist())
    _, info = env.reset()
    for _ in range(60):
        _, _, terminated, _, info = env.step(info["target"])
        counts.update(env.story[terminated].tolist())
    # Task 15's stories are the longer ones and end less often, yet new ones are drawn evenly.
    total = sum(counts.values())
    assert total > 8000
    for story in range(4):
        assert counts[story] / total == pytest.approx(0.25, abs=0.02)


def test_copies_end_by_themselves_and_a_perfect_story_returns_1() -> None:
    env = Babi(50, stories=30, questions=2)
    _, info = env.reset(seed=0)
    returns, ends, finished = torch.zeros(50), Counter(), []
    for step in range(150):
        _, reward, terminated, _, info = env.step(info["target"])
        returns += reward
        finished += returns[terminated].tolist()
        ends[step] += int(terminated.sum())
        returns[terminated] = 0
    assert len(finished) > 50
    assert np.allclose(finished, 1.0)
    assert max(ends.values()) < 25


def best_word(env: Babi) -> tuple[str, float, float]:
    """The best constant answer, its mean return, and its percentage of wrong answers, by reading all stories."""
    stories: list[list[tuple[str, ...]]] = []
    targets, closes = words(env._targets.tolist()), env._closes.tolist()
    for first, last in zip(env._first.tolist(), env._last.tolist(), strict=True):
        stories.append([])
        answer: list[str] = []
        for target, complete in zip(targets[first:last], closes[first:last], strict=True):
            answer += [target] if target != "-" else []
            if complete:
                stories[-1].append(tuple(answer))
                answer = []
    share: Counter[str] = Counter()
    for story in stories:
        asked = [word for answer in story for word in answer]
        for word in asked:
            share[word] += 1 / len(asked) / len(stories)
    word, score = share.most_common(1)[0]
    answers = [answer for story in stories for answer in story]
    return word, score, 100 * sum(set(answer) != {word} for answer in answers) / len(answers)


def test_score_without_memory() -> None:
    """What the docstring says, by counting; and by playing, that a constant answer scores it."""
    word, score, error = best_word(Babi(1))
    assert (word, round(score, 3), round(error, 1)) == ("one", 0.108, 89.2)
    env = Babi(50, stories=10, in_order=True)
    word, score, error = best_word(env)
    _, info = env.reset()
    returns = torch.zeros(50)
    open_ = torch.ones(50, dtype=torch.bool)
    wrong = asked = 0.0
    while open_.any():
        _, reward, terminated, _, info = env.step(torch.full((50,), symbol(word)))
        returns += reward * open_
        amount, count = info["metrics"]["error"]
        wrong, asked = wrong + float((amount * open_).sum()), asked + float((count * open_).sum())
        open_ &= ~terminated
    assert returns.mean().item() == pytest.approx(score)
    assert wrong / asked == pytest.approx(error)


def test_texts_and_frames(small: Path) -> None:
    env = Babi(2, source="en-valid", tasks=8, data_dir=small, render_mode="rgb_array")
    env.reset(seed=0)
    frames = []
    for said in ["a"] * 17 + ["milk", "milk"]:
        frames.append(env.frame(1))
        env.step(torch.tensor([3, symbol(said)]))
    assert env.text(1).splitlines() == [
        "task 8, lists/sets · word 20 / 30",
        "  1 mary got the milk there .",
        "  2 mary got the apple there .",
        "  3 what is mary carrying ? [milk] [apple, not milk]",
        "  4 mary",
    ]
    assert all((one != other).any() for one, other in pairwise(frames))
    assert [verdicts(frame) for frame in (frames[17], frames[18], env.frame(1))] == ["", "right", "right wrong"]
    env.load_state_dict(env.state_dict())
    assert "[milk, not ?] [apple, not ?]" in env.text(1)
    assert verdicts(env.frame(1)) == "right"  # the answers beside the tiles


def verdicts(frame: np.ndarray[Any, Any]) -> str:
    """Whether there is anything green and anything red."""
    red, green, blue = frame.astype(int).transpose(2, 0, 1)
    kinds = (("right", green - np.maximum(red, blue) > 25), ("wrong", red - np.maximum(green, blue) > 80))
    return " ".join(name for name, seen in kinds if seen.any())


def test_a_long_story_scrolls_and_a_wide_sentence_is_broken(tmp_path: Path) -> None:
    wide = " ".join(["1 the"] + ["football"] * 14 + ["is red.\n"])
    lines = "".join(f"{n} John went to the {'office' if n % 2 else 'garden'}.\n" for n in range(2, 30))
    story = wide + lines + "30 Where is John? \toffice\t29\n"
    path = archive(tmp_path / "d", {f"en-valid/qa1_{split}.txt": story for split in ("train", "valid", "test")})
    env = Babi(1, source="en-valid", tasks=1, data_dir=path, render_mode="rgb_array")
    _, info = env.reset()
    written, sheets = [], []
    for step in range(190):
        if step in (184, 185):
            sheets.append(env.frame()[:376])
        if step in (0, 17, 30, 185):
            dark = (env.frame() < 100).all(-1)
            assert not dark[:, -14:].any()  # no word runs over the margin
            written.append([bool(dark[16 + 30 * row : 46 + 30 * row].any()) for row in range(12)])
        *_, info = env.step(info["target"])
    assert [sum(rows) for rows in written] == [1, 2, 5, 12]
    assert all(rows == sorted(rows, reverse=True) for rows in written)  # from the top
    assert (sheets[0] != sheets[1]).any()  # the present word is always in sight


# -- the published data ------------------------------------------------------------------------------------------------


@real
def test_score_without_memory_on_the_published_test_set() -> None:
    env = Babi(1, source="en-valid-10k", split="test", data_dir=REAL)
    assert env.tasks == tuple(range(1, 21))
    assert env.num_stories == 6267
    word, score, error = best_word(env)
    assert (word, round(score, 3), round(error, 1)) == ("no", 0.077, 87.1)


@real
@pytest.mark.parametrize("task", [1, 8, 19])
def test_published_questions_are_the_same_in_both_protocols(task: int) -> None:
    """Each of them once, with its answer, behind all statements before it and no other question."""
    stories = load("en-valid-10k", "test", [task], REAL)[task]
    alone = single_questions(stories)
    assert len(alone) == 1000
    asked = [line for story in stories for line in story if line.answer]
    assert [story[-1] for story in alone] == asked
    assert all(not line.answer for story in alone for line in story[:-1])
    whole = iter(alone)
    for story in stories:
        for place, line in enumerate(story):
            if line.answer:
                assert next(whole)[:-1] == [before for before in story[:place] if not before.answer]
    env = Babi(1, source="en-valid-10k", split="test", tasks=task, data_dir=REAL, protocol="mnm")
    assert env.num_stories == 1000
