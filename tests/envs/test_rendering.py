"""Pictures: no display needed, sizes that encoders take, and what a viewer must be able to tell apart."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.maze import InvisibleGoalMaze
from envs.rendering import AGENT, GOAL, INK, RIGHT, WRONG, Canvas, Frame, corridor_frame, drawing_for, strip_frame
from envs.repeat_first import RepeatFirst


def where(frame: Frame, colour: tuple[int, int, int]) -> np.ndarray:
    """Which pixels have this colour, save what scaling rounds off."""
    return (abs(frame.astype(int) - colour) <= 4).all(-1)


def shows(frame: Frame, colour: tuple[int, int, int]) -> int:
    return int(where(frame, colour).sum())


def run(script: str, **variables: str) -> None:
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root, env={**os.environ, **variables})


def test_pictures_outlive_whoever_quits_pygame() -> None:
    """Gymnasium's environments do so when they are closed. In a process of its own: a stale face ends it."""
    script = (
        "import pygame; from envs.rendering import font\n"
        "for end in (pygame.quit, pygame.font.quit, lambda: (pygame.quit(), pygame.init())):\n"
        "    assert font(12).size('words')[0] > 0; end(); assert font(12).size('words')[0] > 0"
    )
    run(script)


def test_stepping_does_not_import_pygame_and_frames_need_no_display() -> None:
    script = (
        "import sys, gymnasium, envs; env = gymnasium.make('Engram/InvisibleGoalMaze-v0'); env.reset(); env.step(0);"
        "assert 'pygame' not in sys.modules; env.unwrapped.tensor_env.frame();"
        "import pygame; assert not pygame.display.get_init()"
    )
    run(script, SDL_VIDEODRIVER="none such")


def test_canvas_rounds_its_sides_up() -> None:
    assert Canvas(100, 16).frame().shape == (16, 112, 3)


def test_maze_picture() -> None:
    env = InvisibleGoalMaze()
    env.reset(seed=0)
    env.cell, env.goal = torch.tensor([0]), torch.tensor([64])
    picture = env.frame()
    assert picture.shape == (416, 384, 3)
    for colour in (AGENT, GOAL, INK):
        assert shows(picture, colour) > 50
    rows, columns = np.nonzero(where(picture, GOAL))
    assert (rows.mean(), columns.mean()) == pytest.approx((16 + 9.5 * 32, 16 + 9.5 * 32), abs=2)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_caption_of_a_large_maze_stays_legible(scale: float) -> None:
    heights = []
    for size in (9, 31):
        maze = InvisibleGoalMaze(1, size=size)
        maze.reset(seed=0)
        with drawing_for(420, 420, scale):
            frame = maze.frame()
        dark = frame.astype(int).sum(-1) < 450
        under_the_wall = np.flatnonzero(dark.mean(1) > 0.8)[-1] + 2
        rows = np.flatnonzero(dark[under_the_wall:].any(1))
        heights.append((rows[-1] - rows[0] + 1) / scale)
    assert min(heights) >= 7, heights


def test_strip_picture_marks_answers() -> None:
    nothing = strip_frame([1], [], 4)
    right, wrong = strip_frame([1, 0], [1], 4), strip_frame([1, 0], [0], 4)
    assert shows(right, RIGHT) > shows(nothing, RIGHT)
    assert shows(wrong, WRONG) > shows(nothing, WRONG)


def test_strip_picture_after_loading_a_state() -> None:
    env = RepeatFirst(length=5, render_mode="rgb_array")
    env.reset(seed=0)
    for _ in range(3):
        env.step(torch.tensor([1]))
    other = RepeatFirst(length=5, render_mode="rgb_array")
    other.load_state_dict(env.state_dict())
    assert other.frame().shape == env.frame().shape  # with gaps where the past is not known
    other.step(torch.tensor([1]))
    other.step(torch.tensor([1]))
    other.frame()


def test_corridor_picture_lights_the_sign_at_the_start_only() -> None:
    assert shows(corridor_frame(6, (0, 0), -1), GOAL) > shows(corridor_frame(6, (0, 1), -1), GOAL)
