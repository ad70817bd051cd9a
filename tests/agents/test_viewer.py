"""Recordings, and the window: without a screen, and on a virtual one where there is Xvfb."""

from __future__ import annotations

import os
import shlex
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
import yaml
from gymnasium import spaces
from torch import Tensor
from viewer_stubs import MAZE, Anything, policy_for, session_of

from agents import PPO, make_env
from agents.environments import as_tensor_env
from agents.view.canvas import pygame
from agents.view.scene import HEIGHT, WIDTH, draw
from agents.view.session import Session
from agents.view.window import MIN_SIZE, Viewer, ViewerError, key_map, record
from envs.rendering import GOAL

# -- recordings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_recording_is_one_episode(suffix: str, tmp_path: Path) -> None:
    session = session_of(episode_length=3)
    count = record(session, tmp_path / f"film{suffix}", fps=10)
    assert count == 4  # what the agent sees before each of three actions, and the end
    film = iio.imread(tmp_path / f"film{suffix}", index=None if suffix == ".gif" else ...)
    assert film.shape == (4, HEIGHT, WIDTH, 3)
    last = draw(session.scene()).astype(int)
    difference = np.abs(film[-1] - last)
    assert difference.mean() < 4
    # colours of small things too: the goal's star, a few hundred pixels
    star = (np.abs(last - GOAL) < 10).all(2)
    assert star.sum() > 100
    assert difference[star].mean() < 20
    assert not np.array_equal(film[0], film[-1])


def test_a_recording_of_so_many_pictures(tmp_path: Path) -> None:
    assert record(session_of(episode_length=2), tmp_path / "film.gif", max_frames=5) == 5
    assert record(session_of(), tmp_path / "film.gif", max_frames=2) == 2
    with pytest.raises(ValueError, match=r"\.mp4, \.gif"):
        record(session_of(), tmp_path / "film.avi")


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_failed_recording_leaves_an_earlier_one(suffix: str, tmp_path: Path) -> None:
    film = tmp_path / f"film{suffix}"
    film.write_bytes(b"earlier")
    session = session_of(episode_length=3)
    session.step = lambda: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(ZeroDivisionError):
        record(session, film, max_frames=3)
    assert film.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [film]


def test_a_video_cut_by_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Truncated:
        """A writer like imageio's, whose ffmpeg cannot write the end of the file."""

        def __init__(self, file: Path, **_: object) -> None:
            file.write_bytes(b"\0" * 20480)

        def append_data(self, frame: object) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr("imageio.v2.get_writer", Truncated)
    with pytest.raises(OSError, match="is the disk full"):
        record(session_of(episode_length=3), tmp_path / "film.mp4")
    assert not list(tmp_path.iterdir())


def test_ordinary_environments_can_be_recorded(tmp_path: Path) -> None:
    session = session_of("CartPole-v1")
    assert session.scene().frame is not None
    assert record(session, tmp_path / "film.gif", max_frames=3) == 3
    count = record(session, tmp_path / "film.gif")
    assert count > 3
    assert session.over  # and the end is in the film, though a host environment goes on by itself
    assert (session.episode, len(session.returns)) == (1, 1)
    session.step()
    assert (session.episode, session.steps, session.over) == (2, 0, False)


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


@pytest.mark.parametrize("size", [(WIDTH // 2, HEIGHT), (1900, 1000), (90, 70)])
def test_a_resized_window_shows_all_of_it_at_its_size(
    open_window: Callable[..., Viewer], size: tuple[int, int]
) -> None:
    viewer = open_window(session_of())
    pygame.display.set_mode(size, pygame.RESIZABLE)
    press(viewer, pygame.K_SPACE)
    whole = draw(viewer.scene(), max(size[0], MIN_SIZE[0]), max(size[1], MIN_SIZE[1]))
    now = pygame.display.get_surface().get_size()
    assert np.array_equal(shown(), whole[: now[1], : now[0]])


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


def click(viewer: Viewer, x: float, y: float) -> None:
    event = pygame.event.Event(pygame.MOUSEBUTTONDOWN, button=1, pos=(round(x), round(y)))
    pygame.event.post(event)
    viewer.tick()


def test_h_shows_the_legend_and_goes_back(open_window: Callable[..., Viewer]) -> None:
    viewer = open_window(session_of())
    first = shown()
    press(viewer, pygame.K_h)
    assert not np.array_equal(shown(), first)
    press(viewer, pygame.K_ESCAPE)
    assert viewer.open
    assert np.array_equal(shown(), first)


@pytest.mark.parametrize("name", ["hidden", "frame", "views", "actions"])
def test_a_click_enlarges_and_another_goes_back(open_window: Callable[..., Viewer], name: str) -> None:
    viewer = open_window(session_of())
    first, box = shown(), viewer._places[name]
    click(viewer, box.left + box.width / 2, box.top + box.height / 2)
    assert viewer.scene().enlarged == name
    assert not np.array_equal(shown(), first)
    click(viewer, 400, 300)
    assert np.array_equal(shown(), first)


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


def test_the_end_of_an_episode_is_held(open_window: Callable[..., Viewer]) -> None:
    viewer = open_window(session_of(episode_length=2))
    viewer.fps = 100
    ends = time.perf_counter() + 5
    while not viewer.session.over and time.perf_counter() < ends:
        time.sleep(0.02)
        viewer.tick()
    over = time.perf_counter()
    while viewer.session.over and time.perf_counter() < ends:
        time.sleep(0.02)
        viewer.tick()
    assert viewer.session.episode >= 2
    assert time.perf_counter() - over > 0.4
    press(viewer, pygame.K_SPACE, pygame.K_r, pygame.K_RIGHT, pygame.K_RIGHT, pygame.K_RIGHT)  # but not by hand
    assert not viewer.session.over


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
    assert scene.subtitle == "Walk down a corridor and turn in the direction shown by a sign at its start."
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
    assert viewer.scene().frame is not None  # what was hidden
    assert "frame" in viewer._places
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


def test_every_environment_that_the_docs_play_has_keys() -> None:
    root = Path(__file__).resolve().parents[2]
    played = 0
    for page in (root / "README.md", *(root / "docs").rglob("*.md")):
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith("python evaluate.py --play --env "):
                words = shlex.split(line, comments=True)
                env, *arguments = words[words.index("--env") + 1 :]
                texts = [word.partition("=") for word in arguments if "=" in word]
                assert key_map(make_env(env, **{name: yaml.safe_load(text) for name, _, text in texts})), line
                played += 1
    assert played >= 2


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
        for _ in range(120):  # until it is there and takes the key; a busy machine is slow to start it
            time.sleep(0.5)
            subprocess.run([xdotool, "key", "q"], env=surroundings | {"DISPLAY": xvfb}, check=True)
            if window.poll() is not None:
                break
        assert window.wait(5) == 0
    finally:
        window.kill()
