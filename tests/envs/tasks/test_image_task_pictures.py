"""The image tasks as a person sees them: told in words and drawn."""

from __future__ import annotations

import numpy as np
import torch

from envs.rendering import RIGHT, WRONG
from envs.tasks.images.image_episode import ImageEpisode
from envs.tasks.images.mnist_recall import MnistRecall
from envs.tasks.images.mnist_sort import MnistSort


def amount(frame: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((abs(frame.astype(int) - np.array(colour)) <= 4).all(2).sum())


def test_recall_is_told_and_drawn() -> None:
    env = MnistRecall(2, length=3, render_mode="rgb_array")
    env.autoreset = False
    _, info = env.reset(seed=3)
    env.inputs[:, 1], env.asked_with[0, 1] = torch.tensor([4, 5, 6]), 5  # digits that show 4, 5 and 6
    env.targets[-1, 1] = 6
    assert env.text(1) == "step 0 / 4\nshown |4"
    for _ in range(3):
        *_, info = env.step(info["target"])
    assert env.text(1) == "step 3 / 4\nshown |456\nasked | ?_"
    state = env.state_dict()
    asked = env.frame(1)
    assert amount(asked, RIGHT) == amount(asked, WRONG) == 0
    for answer, said, colour in ((6, "?6", RIGHT), (7, "?7!", WRONG)):
        env.load_state_dict(state)
        assert env.text(1).endswith("?_")
        env.step(torch.tensor([0, answer]))
        assert env.text(1).endswith(f"asked | {said}")
        assert amount(env.frame(1), colour) > 50


def test_recall_with_a_question_a_step_is_told_and_drawn() -> None:
    env = MnistRecall(2, length=3, ask="each", render_mode="rgb_array")
    env.autoreset = False
    env.reset(seed=3)
    env.inputs[:, 1], env.asked_with[:, 1] = torch.tensor([4, 5, 6]), torch.tensor([4, 5])  # they show 4, 5 and 6
    env.targets[1:, 1] = torch.tensor([5, 6])
    assert env.text(1) == "step 0 / 3\nshown |4"
    env.step(torch.tensor([0, 9]))  # not scored
    assert env.text(1).splitlines()[1:] == ["shown |45", "asked | 4", "right | ", "answer| ", "wrong | "]
    assert amount(env.frame(1), RIGHT) == amount(env.frame(1), WRONG) == 0
    env.step(torch.tensor([0, 5]))
    assert env.text(1).splitlines()[1:] == ["shown |456", "asked | 45", "right | 5", "answer| 5", "wrong |  "]
    assert amount(env.frame(1), RIGHT) > 50
    assert amount(env.frame(1), WRONG) == 0
    env.step(torch.tensor([0, 5]))
    assert env.text(1).splitlines()[1:] == ["shown |456", "asked | 45", "right | 56", "answer| 55", "wrong |  !"]
    assert amount(env.frame(1), WRONG) > 50


def test_sort_is_told_and_drawn() -> None:
    env = MnistSort(1, length=3, render_mode="rgb_array")
    env.autoreset = False
    env.reset(seed=0)
    env.inputs[:, 0], env.priority[:, 0] = torch.tensor([4, 5, 6]), torch.tensor([-0.5, 0.9, 0.1])
    env.targets[3:, 0] = torch.tensor([5, 6, 4])
    for answer in (0, 0, 0, 5, 1):
        env.step(torch.tensor([answer]))
    assert env.text().splitlines() == [
        "step 5 / 6",
        "shown |  4  5  6",
        "rank  |  3  1  2",
        "right |  5  6",
        "answer|  5  1",
        "wrong |     !",
    ]
    frame = env.frame()
    assert amount(frame, RIGHT) > 50
    assert amount(frame, WRONG) > 50
    env.load_state_dict(env.state_dict())
    assert env.text().splitlines()[4] == "answer|      "
    assert amount(env.frame(), RIGHT) == 0


def test_an_episode_is_told_and_drawn() -> None:
    env = ImageEpisode(2, length=14, recalls=2, query="half", render_mode="rgb_array")
    env.autoreset = False
    obs, info = env.reset(seed=0)
    assert isinstance(obs, dict)

    def drawn(image: torch.Tensor) -> list[str]:
        return ["".join(".#"[int(x)] for x in row) for row in image]

    assert env.text(1).splitlines() == ["step 0 / 16", "shown", *drawn(obs["image"][1, 0])]
    for _ in range(14):
        obs, _, _, _, info = env.step(info["target"])
    assert env.text(1).splitlines() == ["step 14 / 16", "query", *drawn(obs["query"][1, 0])]
    asked = env.frame(1)
    assert amount(asked, WRONG) == 0
    state = env.state_dict()
    env.targets[0, 1] = 0 if env.targets[0, 1] else 1
    assert (env.frame(1) == asked).all()  # the answer is not given away
    env.targets = state["targets"]
    right = info["target"][1, 0].clone()
    answer = info["target"].clone()
    answer[1, 0, 2, 3] ^= 1
    env.step(answer)
    rows = env.text(1).splitlines()
    assert rows[1] == "query     right     answer"
    assert [row[10:18] for row in rows[2:]] == drawn(right)
    said = drawn(right)
    said[2] = said[2][:3] + "!" + said[2][4:]
    assert [row[20:] for row in rows[2:]] == said
    frame = env.frame(1)
    assert amount(frame, RIGHT) > 100
    assert amount(frame, WRONG) + amount(frame, (235, 186, 178)) >= 30
    env.load_state_dict(env.state_dict())
    assert env.text(1).splitlines()[1].split() == ["right"]
    assert amount(env.frame(1), RIGHT) == 0
