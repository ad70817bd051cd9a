"""The pictures of an agent, drawn without a screen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from viewer_stubs import MAZE, Anything, policy_for, session_of

import envs.rendering as rendering
from agents import make_env
from agents.view import canvas as stage
from agents.view.canvas import Box, brief, colours, number
from agents.view.hosts import task_of
from agents.view.scene import HEIGHT, WIDTH, Scene, View, draw
from agents.view.session import Session, observation_views
from policies.memories.contract import Panel
from policies.policy import MemoryActorCriticPolicy

HEADER = 76  # pixels
EMPTY = draw(Scene(""))[HEADER:]


def count_colours(picture: rendering.Frame) -> int:
    return len(np.unique(picture.astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)))


# -- a session ---------------------------------------------------------------------------------------------------------


def test_the_agent_sees_acts_and_remembers() -> None:
    session = session_of(episode_length=4)
    before = session.state
    scene = session.scene()
    assert before is not None  # it has read the first observation
    assert scene.probabilities is not None
    assert scene.probabilities.sum() == pytest.approx(1)
    assert (scene.step, scene.episode, list(scene.panels)) == (0, 1, ["hidden"])
    assert scene.actions == ("up", "down", "left", "right")
    assert len(scene.taken) == 1
    session.step()
    assert session.state is not None
    assert not torch.equal(session.state["hidden"], before["hidden"])


def test_the_last_moment_is_seen_and_then_memory_is_new() -> None:
    session = session_of(episode_length=2)
    first = session.obs
    session.step()
    session.step()
    assert session.over
    assert session.scene().note == "episode over"
    assert session.scene().taken == []
    assert isinstance(session.obs, Tensor)
    assert session.obs[0, 9] == 1  # the clock of the final observation, not of the next episode's first
    assert session.returns == [session.total]
    session.step()
    assert (session.episode, session.steps, session.total, session.over) == (2, 0, 0, False)
    assert isinstance(first, Tensor)
    assert torch.equal(session.obs, first)  # the start looks the same ...
    fresh = session_of(episode_length=2)
    assert fresh.state is not None
    assert session.state is not None
    assert torch.equal(session.state["hidden"], fresh.state["hidden"])  # ... and so does the memory


def test_a_session_takes_one_copy() -> None:
    with pytest.raises(ValueError, match="num_envs=1"):
        Session(make_env(MAZE, 2), None)


def test_value_reward_and_return_leave_a_trace() -> None:
    session = session_of(episode_length=3)
    for _ in range(3):
        session.step()
    traces = session.scene().traces
    assert [len(traces[name]) for name in ("value", "reward", "return")] == [3, 3, 3]
    assert traces["return"][-1] == pytest.approx(sum(traces["reward"]))
    session.step()
    assert [len(numbers) for numbers in session.scene().traces.values()] == [1, 0, 0]
    scene = replace(session.scene(), traces={"reward": [0.0, 1.0]})
    assert not np.array_equal(draw(scene), draw(replace(scene, traces={"reward": [1.0, 0.0]})))


def test_the_last_decision_stays_at_the_end() -> None:
    session = session_of(episode_length=2)
    session.step()
    decided = session.scene().probabilities
    session.step()
    assert session.over
    assert session.scene().probabilities is decided


def test_ordinary_environments_show_their_last_picture() -> None:
    session = session_of("CartPole-v1")
    while not session.over:
        before = session.scene().frame
        session.step()
    end, obs = session.scene().frame, session.obs
    assert end is not None
    assert before is not None
    assert not np.array_equal(end, before)
    assert isinstance(obs, Tensor)
    assert abs(float(obs[0, 2])) > 0.2  # the pole has fallen
    session.step()
    start = session.scene().frame
    assert start is not None
    assert np.abs(start.astype(int) - end).sum() > np.abs(before.astype(int) - end).sum()


def test_every_environment_says_what_it_is_about() -> None:
    for env_id in ("Engram/Babi-v0", "Engram/Mapping-v0", MAZE):
        assert 10 < len(task_of(make_env(env_id, 1))) < 110  # a line
    words = task_of(make_env("CartPole-v1", 1))
    assert "cart-pole problem" in words
    assert "http" not in words


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_pictures_show_what_changes() -> None:
    session = session_of()
    first = draw(session.scene())
    assert (first.shape, first.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
    assert count_colours(first) > 50
    assert np.array_equal(first, draw(session.scene()))
    session.step()
    second = draw(session.scene())
    thirds = [(first != second)[:, left:right].any() for left, right in ((0, 450), (460, 720), (730, WIDTH))]
    assert thirds == [True] * 3  # environment, observation and decision, memory


def test_panels_are_in_the_picture() -> None:
    scene = Scene("x", frame=np.full((100, 100, 3), 255, np.uint8), panels={"m": Panel(torch.rand(5, 5))})
    red = Panel(torch.tensor([1.0, 0.0, 0.0]).expand(5, 5, 3))
    several = {str(index): red for index in range(12)}  # more than there is room for
    plain, one, many = (draw(Scene("x", frame=scene.frame, panels=panels)) for panels in ({}, {"m": red}, several))
    counts = [int((abs(picture.astype(int) - (255, 0, 0)) < 5).all(2).sum()) for picture in (plain, one, many)]
    assert counts[0] == 0
    assert counts[1] > 50_000
    assert counts[2] > 20_000
    assert counts[2] / 9 < counts[1] / 2  # each of the nine is smaller, though all together get more room
    assert count_colours(draw(scene)) > 20


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """All words that are drawn."""
    drawn: list[str] = []
    render = stage.pygame.font.Font.render

    class Font(stage.pygame.font.Font):
        def render(self, words: str, *args: Any) -> Any:
            drawn.append(words)
            return render(self, words, *args)

    monkeypatch.setattr(stage.pygame.font, "Font", Font)
    rendering._load_font.cache_clear()
    yield drawn
    rendering._load_font.cache_clear()


@pytest.mark.parametrize("count", [1, 4, 6, 9])
def test_panels_leave_room_for_their_titles(count: int, written: list[str]) -> None:
    panel = Panel(torch.randn(12, 12), "column", "row")
    views, chances = [View("seen", np.eye(9)), View("asked", np.eye(9))], np.full(10, 0.1)
    scene = Scene("", "", np.zeros((230, 560, 3), np.uint8), views, probabilities=chances, actions=tuple("0123456789"))
    draw(replace(scene, panels={f"hidden {index}, level 3": panel for index in range(count)}))
    assert {f"hidden {index}, level 3" for index in range(count)} <= set(written)


@pytest.mark.parametrize("memory", ["dnc", "sdnc", "salu", "mnm-p", "ntm"])
@pytest.mark.parametrize("env_id", [MAZE, "Engram/DoubleCopy-v0"])
def test_no_word_is_cut(env_id: str, memory: str, written: list[str]) -> None:
    env = make_env(env_id, 1, render_mode="rgb_array")
    spaces_of = env.single_observation_space, env.single_action_space
    session = Session(env, MemoryActorCriticPolicy(*spaces_of, lambda _: 1e-3, memory=memory), env_id, seed=0)
    for _ in range(5):
        session.step()
    draw(session.scene())
    assert [words for words in written if "…" in words] == []


@pytest.mark.parametrize(
    ("env_id", "least"),
    [
        (MAZE, 150_000),
        ("Engram/RepeatFirst-v0", 120_000),
        ("Engram/Mapping-v0", 105_000),
        ("Engram/StackGrammar-v0", 170_000),
        ("Engram/PrioritySort-v0", 170_000),
        ("Engram/ShortestPath-v0", 170_000),
        ("Engram/Babi-v0", 120_000),
    ],
)
def test_the_environment_is_drawn_at_the_size_that_it_gets(env_id: str, least: int) -> None:
    session = session_of(env_id)
    scene = session.scene()
    sizes = []

    def paint(room: Box, scale: float) -> Any:
        frame = session._paint(room, scale)
        assert frame is not None
        fills = max(frame.shape[1] / (room.width * scale), frame.shape[0] / (room.height * scale))
        assert 0.98 < fills < 1.01  # no bitmap is scaled
        sizes.append(frame.shape[0] * frame.shape[1])
        return frame

    for width, height in ((WIDTH, HEIGHT), (1900, 1000), (640, 1000)):
        draw(replace(scene, paint=paint), width, height)
    assert sizes[0] >= least
    assert sizes[1] > 1.8 * sizes[0]


def test_a_long_story_scrolls_to_the_present() -> None:
    """In a low and broad room the last words are still there, and larger than all at once would be."""
    from envs.tasks.babi.picture import story_frame

    words = list(range(5, 25)) * 9
    with rendering.drawing_for(400, 120):
        with_now = story_frame(words, [0] * (len(words) - 1), [-1] * (len(words) - 1), "")
        other = story_frame([*words[:-1], 30], [0] * (len(words) - 1), [-1] * (len(words) - 1), "")
    assert not np.array_equal(with_now, other)
    assert with_now.shape[1] <= 400


def test_rows_are_folded_to_be_legible() -> None:
    assert rendering.fold(60, 10, 30, (0, 0), (60, 1)) == (60, 1)
    with rendering.drawing_for(300, 90):
        columns, lines = rendering.fold(60, 10, 30, (0, 0), (60, 1))
        assert columns * lines >= 60
        assert columns <= 37
        columns, lines = rendering.fold(6000, 10, 30, (0, 0), (60, 1))  # too many: the last lines
        assert (columns, lines) == (37, 3)


def test_every_part_of_a_scene_shows() -> None:
    seen = [View("seen", np.array([0.2, 0.7]))]
    plain = draw(Scene("title", views=seen))
    others = [
        Scene("other", views=seen),
        Scene("title", "subtitle", views=seen),
        Scene("title", views=[View("seen", np.array([0.9, 0.7]))]),
        Scene("title", views=seen, value=3.0),
        Scene("title", views=seen, total=3.0),
        Scene("title", views=seen, note="paused"),
        Scene("title", views=seen, numbers=np.array([0.5])),
        Scene("title", views=seen, actions=("a", "b"), probabilities=np.array([0.1, 0.9])),
        Scene("title", views=seen, actions=("",) * 6, probabilities=np.array([[0.1, 0.9, 0.5]] * 2)),
    ]
    for scene in others:
        assert not np.array_equal(plain, draw(scene)), scene


@pytest.mark.parametrize(
    "observation",
    [
        spaces.Box(0, 1, (4,)),
        spaces.Box(-np.inf, np.inf, (5,)),
        spaces.Box(-1, 1, (300,)),
        spaces.Box(0, 1, (3, 9, 9)),
        spaces.Box(0, 255, (3, 40, 50), np.uint8),
        spaces.Box(0, 1, (7, 11)),
        spaces.Box(-2, 2, ()),
        spaces.Discrete(6),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(5),
        spaces.Dict({"map": spaces.Box(0, 1, (2, 5, 5)), "query": spaces.Discrete(3)}),
    ],
    ids=str,
)
def test_any_observation_can_be_drawn(observation: spaces.Space[Any]) -> None:
    env = Anything(observation, spaces.Discrete(2))
    obs, _ = env.reset(seed=0)
    views = observation_views(env, obs)
    shown = draw(Scene("", views=views))[HEADER:]
    assert not np.array_equal(shown, EMPTY)


@pytest.mark.parametrize(
    "action",
    [
        spaces.Discrete(40),
        spaces.MultiBinary(1),
        spaces.MultiBinary(30),
        spaces.MultiDiscrete([3, 4]),
        spaces.Box(-1, 1, (3,)),
    ],
    ids=str,
)
def test_any_action_can_be_drawn(action: spaces.Space[Any]) -> None:
    env = Anything(spaces.Box(0, 1, (4,)), action)
    session = Session(env, policy_for(env))
    deciding = draw(session.scene())
    for _ in range(3):
        session.step()
    assert len(env.actions) == 3
    assert not np.array_equal(deciding, draw(session.scene()))


def test_a_value_that_nobody_learned_is_not_shown() -> None:
    env = Anything(spaces.Box(0, 1, (4,)), spaces.Discrete(3))
    assert Session(env, policy_for(env)).scene().value is not None
    assert Session(env, policy_for(env), critic=False).scene().value is None


def test_colours_say_where_zero_is() -> None:
    picture, limits = colours(np.array([[-1.0, 0.0, 3.0]]), None)
    assert limits == (-3.0, 3.0)
    assert picture[0, 1].min() > 240  # white
    assert picture[0, 2, 0] > picture[0, 2, 2]  # red
    assert colours(np.array([[1.0, 2.0]]), None)[1] == (1.0, 2.0)
    assert colours(np.array([[5.0]]), (0.0, 1.0))[1] == (0.0, 1.0)
    assert np.array_equal(colours(np.array([[np.nan, 0.0]]), (-1, 1))[0][0, 0], [0, 0, 0])
    numbers = (0.0, -0.5, 12345.0, 1e-9, float("nan"))
    assert [number(value) for value in numbers] == ["0", "−0.5", "12345", "1e−9", "nan"]
    small = (-0.0261, 0.0004, -0.00071, 0.1 + 0.2 - 0.3)  # the last is a rounding error
    assert [brief(value, 3) for value in small] == ["−0.026", "4e−4", "−7e−4", "0"]


@pytest.mark.parametrize("ground", [(255, 255, 255), (176, 196, 222), (20, 20, 20)])
def test_a_heading_is_legible_on_any_ground(ground: tuple[int, int, int]) -> None:
    frame = np.full((60, 60, 3), ground, np.uint8)
    session = Scene("", frame=frame, views=[View("seen", np.eye(3))])
    places: dict[str, Box] = {}
    picture = draw(session, places=places).astype(int)
    card = places["frame"]
    top, left = int(card.top) + 8, int(card.left) + 14
    heading = picture[top : top + 18, left : left + 220]
    assert np.abs(heading - heading[0, 0]).max() > 75
