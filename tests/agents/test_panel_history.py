"""Pictures of a memory over time: what grows, what does not, and that TensorBoard gets them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cases import MEMORIES, small
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents import PPO, make_env
from agents.run.callbacks import PicturePanels
from agents.run.logs import run_logger
from agents.view.canvas import colours
from agents.view.panels import MAX_STEPS, PanelHistory, figure, stable_limits
from agents.view.session import Session
from policies.memories.contract import Panel
from policies.policy import MemoryActorCriticPolicy


def test_weightings_grow_by_a_column_a_step() -> None:
    history = PanelHistory()
    for step in range(3):
        weights = torch.arange(4.0).view(2, 2) + 10 * step
        history.add({"w": Panel(weights, "slot", "head", over_time="columns"), "m": Panel(weights, "x", "y")})
    shown = history.panels()
    assert list(shown) == ["m", "w"]
    assert torch.equal(shown["m"].image, torch.tensor([[20.0, 21.0], [22.0, 23.0]]))
    expected = torch.tensor([[0.0, 10, 20], [1, 11, 21], [2, 12, 22], [3, 13, 23]])
    assert torch.equal(shown["w"].image, expected)
    assert (shown["w"].x_label, shown["w"].y_label) == ("step", "head × slot")


def test_similarity_compares_every_two_steps() -> None:
    history = PanelHistory()
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randn(4, 3, generator=generator) for _ in range(5)]  # two heads: read, read, write, write
    for step in steps:
        history.add({"keys": Panel(step, "unit", "read, write", over_time="similarity")})
    shown = history.panels()["keys"]
    for row, read in enumerate(steps):
        for column, written in enumerate(steps):
            pairs = [torch.cosine_similarity(read[head], written[2 + head], dim=0) for head in range(2)]
            torch.testing.assert_close(shown.image[row, column], torch.stack(pairs).mean())
    assert (shown.x_label, shown.y_label) == ("write at step", "read at step")


def test_a_picture_reaches_back_so_far_and_no_further() -> None:
    history = PanelHistory()
    for step in range(MAX_STEPS + 5):
        history.add({"w": Panel(torch.tensor([[float(step)]]), "slot", "head", over_time="columns")})
    image = history.panels()["w"].image
    assert image.shape == (1, MAX_STEPS)
    assert image[0, 0] == 5
    assert history.panels()["w"].y_label == "slot"


def test_a_figure_names_its_axes() -> None:
    drawn = figure("usage", Panel(torch.rand(3, 4), "slot", "step"))
    axes = drawn.axes[0]
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("usage", "slot", "step")
    assert len(drawn.axes) == 2  # with a colour bar
    assert len(figure("picture", Panel(torch.rand(3, 4, 3), "x", "y")).axes) == 1


def test_the_ticks_of_a_figure_are_rows_and_columns() -> None:
    axes = figure("precedence", Panel(torch.rand(1, 200), "slot", "write head")).axes[0]
    assert [tick for tick in axes.get_yticks() if -0.5 <= tick <= 0.5] == [0]  # one row
    steps = [tick for tick in axes.get_xticks() if -0.5 <= tick <= 199.5]
    assert steps == [0, 40, 80, 120, 160]  # far enough apart for their labels


def test_training_leaves_pictures_in_tensorboard(tmp_path: Path) -> None:
    kwargs = {"memory": "lstm", "memory_kwargs": {"hidden_size": 6}}
    model = PPO("MemoryPolicy", "Engram/RepeatFirst-v0", n_steps=8, policy_kwargs=kwargs, seed=0, device="cpu")
    model.set_logger(run_logger(tmp_path))
    model.learn(24, PicturePanels(seconds=0))
    model.logger.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    names = {f"view/{name}" for name in model.policy.memory.panels(model.rollout_state.memory)}
    assert names
    assert set(events.Tags()["images"]) == names
    assert len(events.Images(sorted(names)[0])) == 3


def test_it_costs_nothing_between_pictures() -> None:
    kwargs = {"memory": "lstm", "memory_kwargs": {"hidden_size": 6}}
    model = PPO("MemoryPolicy", "Engram/RepeatFirst-v0", n_steps=8, policy_kwargs=kwargs, seed=0, device="cpu")
    asked = []
    panels = model.policy.memory.panels
    model.policy.memory.panels = lambda state: asked.append(1) or panels(state)
    model.learn(32, PicturePanels(seconds=3600))
    assert len(asked) == 16  # the first and the last of four rollouts


@pytest.mark.parametrize(
    ("low", "high", "bounds", "kept"),
    [
        (-0.3, 0.1, None, (-0.5, 0.5)),
        (0.0, 0.013, (0.0, 1.0), (0.0, 0.02)),
        (-0.01, 0.04, (-1.0, 1.0), (-0.05, 0.05)),
        (-1.0, 0.04, (-1.0, 1.0), (-1.0, 1.0)),
        (3.0, 170.0, None, (0.0, 200.0)),
        (0.0, 0.0, (0.0, 1.0), (0.0, 1.0)),
        (0.0, 0.2, None, (0.0, 0.2)),
    ],
)
def test_limits_are_round_and_within_bounds(
    low: float, high: float, bounds: tuple[float, float] | None, kept: tuple[float, float]
) -> None:
    assert stable_limits(low, high, bounds) == pytest.approx(kept)


def test_a_colour_keeps_its_meaning_within_an_episode() -> None:
    history = PanelHistory()
    limits = []
    for value in (0.03, 0.9, 0.001):
        history.add({"m": Panel(torch.tensor([[value, -value]]), "x", "y")})
        limits.append(history.panels()["m"].limits)
    assert limits == [(-0.05, 0.05), (-1.0, 1.0), (-1.0, 1.0)]


def test_spread_weightings_show() -> None:
    """256 slots of nearly the same weight: not all of the colour of zero."""
    history = PanelHistory()
    history.add({"w": Panel(torch.full((1, 256), 1 / 256), "slot", "head", (0.0, 1.0), "columns")})
    shown = history.panels()["w"]
    picture, limits = colours(shown.image.numpy(), shown.limits)
    zero = colours(np.zeros((1, 1)), (0.0, 1.0))[0]
    assert limits == (0.0, 0.005)
    assert np.abs(picture.astype(int) - zero.astype(int)).max() > 60


@pytest.mark.parametrize("name", MEMORIES)
def test_each_panel_of_each_memory_says_what_it_is(name: str) -> None:
    env = make_env("Engram/RepeatFirst-v0", 1)
    kwargs = {"memory": name, "memory_kwargs": small(MEMORIES[name])}
    policy = MemoryActorCriticPolicy(env.single_observation_space, env.single_action_space, lambda _: 1e-3, **kwargs)
    panels = Session(env, policy).scene().panels
    assert name == "identity" or panels
    for title, panel in panels.items():
        assert 5 < len(panel.about) <= 50, title
