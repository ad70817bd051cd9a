"""The viewer window: watch an agent, play the task yourself, or record a video.

`Viewer` shows a `Session` in a window with keyboard control; `record` writes it to a file. Both show one picture of
`agents.view.scene.draw` per step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from PIL import Image
from torch import Tensor

from agents.common.files import replacing
from agents.view.canvas import Box, pygame
from agents.view.scene import HEIGHT, WIDTH, Scene, draw
from agents.view.session import Session, action_names
from envs.rendering import Frame
from envs.tensor_env import TensorEnv

WATCH_KEYS = "space pause   → step   + − speed   R new episode   H legend   click enlarges   Q quit"
SUFFIXES = (".mp4", ".gif")
END_PAUSE_S = 0.5
"""Minimum time for which the end of an episode is shown, in seconds."""
MIN_SIZE = (400, 260)
"""Smallest picture in pixels; a smaller window shows a part of it."""

_ARROWS = {
    "up": pygame.K_UP,
    "north": pygame.K_UP,
    "down": pygame.K_DOWN,
    "south": pygame.K_DOWN,
    "left": pygame.K_LEFT,
    "west": pygame.K_LEFT,
    "right": pygame.K_RIGHT,
    "east": pygame.K_RIGHT,
}
_ARROW_SIGNS = {pygame.K_UP: "↑", pygame.K_DOWN: "↓", pygame.K_LEFT: "←", pygame.K_RIGHT: "→"}


class ViewerError(RuntimeError):
    """An error that the user can fix: no display, an action space without keys, ..."""


class Viewer:
    """A window that shows a session.

    Space pauses, → makes one step, + and − change the speed, R starts a new episode, H shows a legend. A click enlarges
    a card or panel, and another click goes back. Q, Escape or closing the window ends it. When a person plays, arrow
    and number keys act, and the environment waits for them.

    Args:
        session: what to show.
        fps: steps per second.

    Raises:
        ViewerError: there is no display, or the action space has no keys.
    """

    TICKS = 60
    """Keyboard polls per second."""

    def __init__(self, session: Session, fps: float = 8.0) -> None:
        self.session, self.fps = session, fps
        self.paused = False
        self.open = True
        self.frame: Frame | None = None
        """The picture on display."""
        self._show_end_until = 0.0  # time until which the end of an episode is shown
        self._due = 0.0  # steps that are due but not made yet
        self._stale = True  # whether the picture must be drawn again
        self._legend, self._enlarged = False, ""
        self._places: dict[str, Box] = {}
        self._keys = key_map(session.env) if session.policy is None else {}
        self._bits = np.zeros(len(session.names), dtype=np.int8)
        _open()
        pygame.display.set_caption(f"Engram — {session.title}")
        self._clock = pygame.time.Clock()
        self._last = time.perf_counter()

    def run(self) -> None:
        """Shows the session until the user ends it."""
        try:
            while self.open:
                self.tick()
                self._clock.tick(self.TICKS)
        finally:
            self.close()

    def close(self) -> None:
        """Closes the window; calling it twice is allowed."""
        self.open = False
        pygame.display.quit()

    def tick(self) -> None:
        """Handles the keys pressed since the last tick, makes the steps that are due, and draws; never blocks."""
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                self.open = False
            elif event.type == pygame.KEYDOWN:
                self._handle_key(event)
            elif event.type == pygame.MOUSEBUTTONDOWN and event.button == 1:
                self._click(event.pos)
            elif event.type in (pygame.VIDEOEXPOSE, pygame.VIDEORESIZE):
                self._stale = True
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        if not self.open:
            return
        if not self.paused and self.session.policy is not None:
            self._due += min(elapsed, 0.25) * self.fps  # no catching up after the window was dragged
            whole = int(self._due)
            self._due -= whole
            for _ in range(whole):
                if self.session.over and now < self._show_end_until:
                    break  # show the end for a moment
                self._step()
                if self.session.over:
                    self._show_end_until = now + END_PAUSE_S
        if self._stale:
            self._show()

    def _step(self, action: Tensor | None = None) -> None:
        self.session.step(action)
        self._stale = True

    def _click(self, place: tuple[int, int]) -> None:
        """Enlarges the panel at a position, or undoes it."""
        self._stale = True
        if self._legend or self._enlarged:
            self._legend, self._enlarged = False, ""
            return
        hit = [name for name, box in self._places.items() if box.holds(*place)]
        self._enlarged = hit[-1] if hit else ""

    def _handle_key(self, event: pygame.event.Event) -> None:
        self._stale = True
        if event.key == pygame.K_ESCAPE and (self._legend or self._enlarged):
            self._legend, self._enlarged = False, ""
        elif event.key == pygame.K_h:
            self._legend = not self._legend
        elif event.key in (pygame.K_q, pygame.K_ESCAPE):
            self.open = False
        elif event.key == pygame.K_r:
            self.session.reset()
            self._bits[:] = 0
        elif self.session.policy is None:
            self._play(event.key)
        elif event.key == pygame.K_SPACE:
            self.paused = not self.paused
            self._due = 0.0
        elif event.key == pygame.K_RIGHT:
            self.paused = True
            self._step()
        elif event.key in (pygame.K_PLUS, pygame.K_KP_PLUS, pygame.K_EQUALS) or event.unicode == "+":
            self.fps = min(128.0, 2 * self.fps)
        elif event.key in (pygame.K_MINUS, pygame.K_KP_MINUS):
            self.fps = max(0.5, self.fps / 2)

    def _play(self, key: int) -> None:
        space, device = self.session.env.single_action_space, self.session.env.device
        if self.session.over:
            if key in (pygame.K_RETURN, pygame.K_SPACE, *self._keys):
                self.session.reset()
        elif isinstance(space, spaces.MultiBinary):
            if key in self._keys:
                self._bits[self._keys[key]] ^= 1
            elif key in (pygame.K_RETURN, pygame.K_SPACE):
                self._step(torch.as_tensor(self._bits.reshape(1, *space.shape), device=device))
                self._bits = np.zeros_like(self._bits)
        elif key in self._keys:
            assert isinstance(space, spaces.Discrete)
            self._step(torch.tensor([self._keys[key] + int(space.start)], device=device))

    def _show(self) -> None:
        self._stale = False
        screen = pygame.display.get_surface()
        width, height = (max(have, least) for have, least in zip(screen.get_size(), MIN_SIZE, strict=True))
        self._places = {}
        self.frame = draw(self.scene(), width, height, self._places)
        screen.blit(pygame.surfarray.make_surface(self.frame.swapaxes(0, 1)), (0, 0))
        pygame.display.flip()

    def scene(self) -> Scene:
        """The session's scene, with the window's status."""
        session = self.session
        if session.policy is not None:
            note = "paused" if self.paused else ""
            scene = session.scene(note)
            keys = f"{WATCH_KEYS}   ·   {self.fps:g} steps/s"
            return dataclasses.replace(scene, help=keys, legend=self._legend, enlarged=self._enlarged)
        signs = {index: _ARROW_SIGNS.get(key, pygame.key.name(key)) for key, index in reversed(self._keys.items())}
        subtitle = "this is what was hidden: Enter begins the next episode"
        if not session.over:
            subtitle = session.task or "you see what the agent would see"
        scene = session.scene(subtitle=subtitle)
        named = [f"action {name}" if name.isdigit() else name for name in session.names]
        actions = [f"{signs[index]}   {name}" for index, name in enumerate(named)]
        scene = dataclasses.replace(scene, actions=actions, taken=np.flatnonzero(self._bits).tolist())
        return dataclasses.replace(scene, help=self._help(), legend=self._legend, enlarged=self._enlarged)

    def _help(self) -> str:
        binary = isinstance(self.session.env.single_action_space, spaces.MultiBinary)
        return (
            "you see what the agent would see   ·   "
            + ("Enter acts   " if binary else "")
            + "R new episode   H legend   click enlarges   Q quit"
        )


def _open() -> None:
    """Open a window.

    Raises:
        ViewerError: no window can be opened.
    """
    driver = os.environ.get("SDL_VIDEODRIVER", "")
    displays = [os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")]
    if sys.platform.startswith("linux") and not (driver or any(displays)):
        raise ViewerError("no display is available; record with --video FILE.mp4 instead")
    try:
        pygame.display.quit()  # an environment may have opened SDL's display before, and not on a screen
        pygame.display.init()
        if pygame.display.get_driver() in ("offscreen", "dummy") and not driver:
            pygame.display.quit()
            raise ViewerError("the display does not answer, so no window can be opened; use --video FILE.mp4 instead")
        pygame.display.set_mode((WIDTH, HEIGHT), pygame.RESIZABLE)
    except pygame.error as error:
        raise ViewerError(f"no window can be opened ({error}); record with --video FILE.mp4 instead") from error


def record(
    session: Session,
    file: Path,
    fps: float = 8.0,
    max_frames: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Writes the session's pictures, up to the end of the episode, to an .mp4 or .gif; returns their number.

    Args:
        session: a session with an agent.
        file: the output file.
        fps: frames per second. (GIF delays are multiples of 10 ms.)
        max_frames: record exactly this many, over several episodes if needed; None: one episode.
        progress: called after each frame with the number written.

    Raises:
        ValueError: another file extension.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{file} should end in one of {', '.join(SUFFIXES)}")
    count = 0

    def frames() -> Iterator[Frame]:
        nonlocal count
        episode = session.episode
        while True:
            yield draw(session.scene())
            count += 1
            if progress is not None:
                progress(count)
            if count == max_frames or (max_frames is None and session.over):
                return
            session.step()
            if max_frames is None and session.episode != episode:  # a host environment went on by itself
                return

    with replacing(file) as partial:
        (_write_gif if file.suffix.lower() == ".gif" else _write_mp4)(partial, frames(), fps)
    return count


def _write_mp4(file: Path, frames: Iterator[Frame], fps: float) -> None:
    import imageio.v2 as imageio  # only needed here, and slow to import

    writer: Any
    reader: Any
    try:
        writer = imageio.get_writer(file, codec="libx264", quality=8, fps=fps, macro_block_size=16)
        with contextlib.closing(writer):  # its own context manager leaves ffmpeg running after an error
            for frame in frames:
                writer.append_data(frame)
        with imageio.get_reader(file) as reader:  # ffmpeg's exit status is not passed on
            reader.get_meta_data()
    except OSError as error:
        if "ffmpeg" not in str(error).lower():
            raise
        raise OSError(f"ffmpeg could not write the video in {file.parent}: is the disk full?") from error


def _write_gif(file: Path, frames: Iterator[Frame], fps: float) -> None:
    # Not by imageio, whose frames share one palette, so that a golden star turns red. The octree keeps the colours of
    # small objects; a median cut spends them on large surfaces.
    def indexed(frame: Frame) -> Image.Image:
        return Image.fromarray(frame).quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)

    first, rest = indexed(next(frames)), (indexed(frame) for frame in frames)
    duration = max(20, round(100 / fps) * 10)  # ms; viewers play faster ones slowly
    first.save(file, "GIF", save_all=True, append_images=rest, duration=duration, loop=0)


def key_map(env: TensorEnv) -> dict[int, int]:
    """The keys for playing: key code to action, or to the bit it toggles for `MultiBinary` actions.

    Raises:
        ViewerError: the action space has no keys.
    """
    names = action_names(env)
    if not 1 <= len(names) <= 10:
        raise ViewerError(f"no keys for {env.single_action_space}: a person can play Discrete or MultiBinary up to 10")
    keys = {_ARROWS[name]: index for index, name in enumerate(names) if name in _ARROWS}
    digits = range(pygame.K_0, pygame.K_0 + len(names))
    pad = (getattr(pygame, f"K_KP{index}") for index in range(len(names)))
    return keys | {key: index for row in (digits, pad) for index, key in enumerate(row)}
