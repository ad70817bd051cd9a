"""The pictures without a screen, and the window on one: a virtual display where there is Xvfb."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from agents import PPO, make_env
from agents.env_adapters import as_tensor_env
from agents.scene import HEIGHT, WIDTH, Scene, View, draw
from agents.session import Session, action_names, observation_views
from agents.stage import colours, number, pygame
from agents.viewer import Viewer, ViewerError, key_map, record
from envs.tensor_env import TensorEnv
from policies.memories.base import Panel
from policies.policy import MemoryActorCriticPolicy

MAZE = "Engram/InvisibleGoalMaze-v0"
HEADER = 76  # pixels
EMPTY = draw(Scene(""))[HEADER:]


def policy_for(env: TensorEnv, memory: str = "gru") -> MemoryActorCriticPolicy:
    kwargs = {"memory": memory, "memory_kwargs": {} if memory == "identity" else {"hidden_size": 12}}
    return MemoryActorCriticPolicy(env.single_observation_space, env.single_action_space, lambda _: 1e-3, **kwargs)


def session_of(env_id: str = MAZE, memory: str | None = "gru", **kwargs: Any) -> Session:
    torch.manual_seed(0)
    env = make_env(env_id, 1, render_mode="rgb_array", **kwargs)
    return Session(env, None if memory is None else policy_for(env, memory), env_id, "a test", seed=0)


class Anything(TensorEnv):
    """Any observation, any action, no picture; episodes of three steps."""

    def __init__(self, observation: spaces.Space[Any], action: spaces.Space[Any]) -> None:
        super().__init__(1, observation, action, horizon=3)
        self.actions: list[Tensor] = []

    def _begin(self, where: Tensor | None) -> None: ...

    def _advance(self, action: Tensor) -> tuple[Tensor, None, None]:
        self.actions.append(action)
        return torch.ones(1), None, None

    def _observe(self) -> Any:
        def sample(space: spaces.Space[Any]) -> Any:
            if isinstance(space, spaces.Dict):
                return {key: sample(part) for key, part in space.items()}
            return torch.as_tensor(np.asarray(space.sample()))[None]

        return sample(self.single_observation_space)


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


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_pictures_show_what_changes() -> None:
    session = session_of()
    first = draw(session.scene())
    assert (first.shape, first.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 50
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
    assert 20_000 < counts[2] < counts[1]
    assert len(np.unique(draw(scene).reshape(-1, 3), axis=0)) > 20


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


def test_names_are_the_environments_own_or_numbers() -> None:
    env = make_env("Engram/RepeatFirst-v0", 1)
    env.action_names = ("a", "b", "c", "d")  # type: ignore[attr-defined]
    assert action_names(env) == ("a", "b", "c", "d")
    env.action_names = ("a", "b")  # type: ignore[attr-defined]
    assert action_names(env) == ("0", "1", "2", "3")
    assert action_names(make_env("Pendulum-v1")) == ()


# -- recordings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_recording_is_one_episode(suffix: str, tmp_path: Path) -> None:
    session = session_of(episode_length=3)
    count = record(session, tmp_path / f"film{suffix}", fps=10)
    assert count == 4  # what the agent sees before each of three actions, and the end
    film = iio.imread(tmp_path / f"film{suffix}", index=None if suffix == ".gif" else ...)
    assert film.shape == (4, HEIGHT, WIDTH, 3)
    last = draw(session.scene()).astype(int)
    assert np.abs(film[-1] - last).mean() < 4
    assert not np.array_equal(film[0], film[-1])


def test_a_recording_of_so_many_pictures(tmp_path: Path) -> None:
    assert record(session_of(episode_length=2), tmp_path / "film.gif", max_frames=5) == 5
    assert record(session_of(), tmp_path / "film.gif", max_frames=2) == 2
    with pytest.raises(ValueError, match=r"\.mp4, \.gif"):
        record(session_of(), tmp_path / "film.avi")


def test_ordinary_environments_can_be_recorded(tmp_path: Path) -> None:
    session = session_of("CartPole-v1")
    assert session.scene().frame is not None
    assert record(session, tmp_path / "film.gif", max_frames=3) == 3
    count = record(session, tmp_path / "film.gif")
    assert count > 3
    assert session.episode == 2  # a host environment goes on by itself


def test_an_environment_without_pictures_still_shows() -> None:
    import gymnasium

    env = as_tensor_env(gymnasium.make("CartPole-v1"))
    assert Session(env, policy_for(env)).scene().frame is None


# -- the window --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["dummy", "x11"])
def screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """SDL without a screen, then a virtual X display."""
    if request.param == "dummy":
        monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
        yield "dummy"
        return
    with_xvfb = request.getfixturevalue("xvfb")
    monkeypatch.setenv("DISPLAY", with_xvfb)
    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    yield "x11"
    pygame.display.quit()


@pytest.fixture(scope="module")
def xvfb() -> Iterator[str]:
    """The name of a virtual display."""
    binary = shutil.which("Xvfb")
    if binary is None:
        pytest.skip("there is no Xvfb: the window is only tested without a screen")
    read, write = os.pipe()
    # Xvfb picks a free display itself and tells which
    command = [binary, "-displayfd", str(write), "-screen", "0", "1280x800x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[write], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as told:
        display = told.readline().strip()
    if not display:
        server.wait(5)
        pytest.skip("Xvfb does not start here")
    yield f":{display}"
    server.terminate()
    server.wait(5)


def press(viewer: Viewer, *keys: int) -> None:
    for key in keys:
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key, unicode="", mod=0))
        viewer.tick()


@pytest.fixture
def open_window(screen: str) -> Iterator[Callable[..., Viewer]]:
    viewers: list[Viewer] = []

    def build(session: Session, fps: float = 1e-6) -> Viewer:
        viewers.append(Viewer(session, fps))
        viewers[-1].tick()
        return viewers[-1]

    yield build
    for viewer in viewers:
        viewer.close()


def shown() -> np.ndarray[Any, Any]:
    """What is on the window's surface, `[H, W, 3]`."""
    return pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)


def test_the_window_shows_exactly_the_pictures(open_window: Callable[..., Viewer], screen: str) -> None:
    viewer = open_window(session_of())
    assert pygame.display.get_driver() == screen
    assert viewer.frame is not None
    assert np.array_equal(shown(), viewer.frame)
    assert np.array_equal(viewer.frame, draw(viewer.scene()))


def test_keys(open_window: Callable[..., Viewer]) -> None:
    viewer = open_window(session_of())
    session = viewer.session
    first = shown()
    press(viewer, pygame.K_SPACE)
    assert viewer.paused
    assert not np.array_equal(shown(), first)  # it says so
    press(viewer, pygame.K_RIGHT, pygame.K_RIGHT)
    assert session.steps == 2
    press(viewer, pygame.K_r)
    assert (session.steps, session.episode) == (0, 2)
    viewer.fps = 8
    press(viewer, pygame.K_PLUS, pygame.K_EQUALS, pygame.K_MINUS)
    assert viewer.fps == 16
    assert session.steps == 0  # paused all the while
    press(viewer, pygame.K_SPACE)
    assert not viewer.paused
    press(viewer, pygame.K_q)
    assert not viewer.open


def test_time_makes_steps_unless_paused(open_window: Callable[..., Viewer]) -> None:
    viewer = open_window(session_of(), fps=50)
    press(viewer, pygame.K_SPACE)
    before = viewer.session.steps
    time.sleep(0.1)
    viewer.tick()
    assert viewer.session.steps == before
    press(viewer, pygame.K_SPACE)
    time.sleep(0.1)
    started = time.perf_counter()
    viewer.tick()
    assert time.perf_counter() - started < 1  # never waits
    assert viewer.session.steps > before


def test_closing_the_window_ends_it(open_window: Callable[..., Viewer]) -> None:
    viewer = open_window(session_of())
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    viewer.run()
    assert not viewer.open
    assert pygame.display.get_surface() is None


def test_a_person_steers_and_does_not_see_the_goal(open_window: Callable[..., Viewer]) -> None:
    viewer = open_window(session_of("Engram/TMaze-v0", None, length=2))
    session, scene = viewer.session, viewer.scene()
    assert scene.frame is None
    assert not scene.panels
    viewer.fps = 1000
    time.sleep(0.02)
    viewer.tick()
    assert session.steps == 0  # time waits for the person
    press(viewer, pygame.K_RIGHT, pygame.K_1)  # east, and east by its number
    assert isinstance(session.obs, Tensor)
    assert session.obs.tolist() == [[0, 1, 0]]  # the junction
    press(viewer, pygame.K_UP)
    assert session.over
    assert session.returns[0] in (pytest.approx(4), pytest.approx(-0.1))
    press(viewer, pygame.K_UP)
    assert (session.episode, session.steps) == (2, 0)


def test_a_person_sets_bits(open_window: Callable[..., Viewer]) -> None:
    env = Anything(spaces.Box(0, 1, (4,)), spaces.MultiBinary(3))
    viewer = open_window(Session(env, None))
    press(viewer, pygame.K_0, pygame.K_2, pygame.K_0)
    assert viewer.scene().taken == [2]
    press(viewer, pygame.K_RETURN)
    assert [action.tolist() for action in env.actions] == [[[0, 0, 1]]]
    assert viewer.scene().taken == []


def test_keys_need_few_actions() -> None:
    with pytest.raises(ViewerError, match="no keys"):
        key_map(make_env("Pendulum-v1"))
    with pytest.raises(ViewerError, match="no keys"):
        key_map(Anything(spaces.Box(0, 1, (1,)), spaces.Discrete(11)))


def test_no_display_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(ViewerError, match="--video"):
        Viewer(session_of())
    for name, value in (("SDL_VIDEODRIVER", "nonsense"), ("DISPLAY", ":98765")):  # SDL would draw where nobody looks
        monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
        monkeypatch.setenv(name, value)
        with pytest.raises(ViewerError, match="--video"):
            Viewer(session_of())


def test_the_command_opens_the_window_for_real(xvfb: str, tmp_path: Path) -> None:
    """From the command line to real key strokes through the X server."""
    xdotool = shutil.which("xdotool")
    if xdotool is None:
        pytest.skip("there is no xdotool to press keys with")
    env = make_env(MAZE, 1)
    PPO("MemoryPolicy", env, policy_kwargs={"memory": "identity"}, n_steps=2, n_minibatches=1).save(tmp_path / "agent")
    words = [sys.executable, "evaluate.py", str(tmp_path / "agent"), "--env", MAZE, "--watch"]
    surroundings = {name: value for name, value in os.environ.items() if name != "SDL_VIDEODRIVER"}
    root = Path(__file__).resolve().parents[2]
    window = subprocess.Popen(words, cwd=root, env=surroundings | {"DISPLAY": xvfb}, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(40):  # until it is there and takes the key
            time.sleep(0.5)
            subprocess.run([xdotool, "key", "q"], env=surroundings | {"DISPLAY": xvfb}, check=True)
            if window.poll() is not None:
                break
        assert window.wait(5) == 0
    finally:
        window.kill()
