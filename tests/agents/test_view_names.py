"""Everything in the window has a name: actions, numbers and maps of observations, words as words."""

from __future__ import annotations

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from viewer_stubs import MAZE, policy_for, session_of

import envs  # noqa: F401 (registers the environments)
from agents import make_env
from agents.environments import as_tensor_env
from agents.view.moment import View
from agents.view.scene import draw
from agents.view.session import Session, action_names, observation_views

OURS = sorted(name for name in gymnasium.registry if name.startswith("Engram/"))
DIGITS = {"Engram/MnistRecall-v0", "Engram/MnistSort-v0"}  # the classes are digits


def views(env_id: str, steps: int = 0, **kwargs: object) -> dict[str, View]:
    env = make_env(env_id, 1, render_mode="rgb_array", **kwargs)
    obs, _ = env.reset(seed=0)
    for _ in range(steps):
        obs, *_ = env.step(env.action_space.sample())
    return {view.name: view for view in observation_views(env, obs)}


@pytest.mark.parametrize("env_id", OURS)
def test_nothing_of_our_environments_is_a_bare_number(env_id: str) -> None:
    env = make_env(env_id, 1, **({"source": "digits"} if env_id in DIGITS else {}))
    obs, _ = env.reset(seed=0)
    for view in observation_views(env, obs):
        assert not view.name[-1].isdigit() or view.name.startswith("query_"), view.name
        assert view.word or view.labels or view.name != "observed", view.name
    space = env.single_action_space
    if (isinstance(space, spaces.MultiBinary) and len(space.shape) > 1) or env_id in DIGITS:
        return  # a map needs none
    names = action_names(env) or env.action_names
    assert names
    assert env_id == "Engram/StackGrammar-v0" or not names[0].isdigit()


def test_symbols_have_the_letters_of_the_picture() -> None:
    shown = views("Engram/RepeatFirst-v0")
    assert list(shown["symbol"].labels) == ["A", "B", "C", "D"]
    assert shown["first"].values == [1]
    assert action_names(make_env("Engram/RepeatFirst-v0", 1)) == ("A", "B", "C", "D")


def test_the_maze_says_which_way_it_went() -> None:
    last = views(MAZE)["last action"]
    assert list(last.labels) == ["↑", "↓", "←", "→"]
    session = session_of(episode_length=9)
    session.step(torch.tensor([2]))
    last = next(view for view in session.scene().views if view.name == "last action")
    assert last.labels[int(np.argmax(last.values))] == "←"


def test_the_code_of_the_t_maze_is_explained() -> None:
    session = session_of("Engram/TMaze-v0", length=2)
    words = []
    for action in (1, 1, 0):
        words.append(session.scene().views[-1].word)
        session.step(torch.tensor([action]))
    assert words[0] in ("sign: north", "sign: south")
    assert words[1:] == ["corridor", "junction"]


def test_stories_are_words_and_the_best_answers_are_shown() -> None:
    session = session_of("Engram/Babi-v0")
    scene = session.scene()
    assert isinstance(session.obs, torch.Tensor)
    assert [view.word for view in scene.views] == [session.env.action_names[int(session.obs)]]
    assert len(scene.actions) == 159
    assert scene.exclusive  # of which the window shows five
    assert scene.probabilities is not None
    sure = np.eye(159)[7]
    assert not np.array_equal(draw(scene), draw(replace(scene, probabilities=sure, taken=[7])))


def test_images_are_images() -> None:
    session = session_of("Engram/ImageEpisode-v0")
    scene = session.scene()
    assert scene.views[0].name == "image"
    assert scene.views[0].values.ndim == 2
    assert scene.probabilities is not None
    assert scene.probabilities.shape == scene.views[0].values.shape


def test_mapping_names_planes_and_place() -> None:
    shown = views("Engram/Mapping-v0", 3)
    assert list(shown) == ["view: free", "view: wall", "view: row", "view: column", "query_3: free", "query_3: wall"]
    assert shown["view: row"].values.size == 1
    assert shown["view: wall"].values.shape == (3, 3)


@pytest.mark.parametrize(
    ("env_id", "first", "actions"),
    [
        ("CartPole-v1", "position", ("left", "right")),
        ("FrozenLake-v1", "observed", ("left", "down", "right", "up")),
        ("Pendulum-v1", "cos angle", ()),
    ],
)
def test_known_environments_have_names(env_id: str, first: str, actions: tuple[str, ...]) -> None:
    assert next(iter(views(env_id))) == first
    env = make_env(env_id, 1)
    assert action_names(env) == actions
    assert Session(env, policy_for(env)).scene().names == (("torque",) if env_id == "Pendulum-v1" else ())
    if env_id == "FrozenLake-v1":
        assert views(env_id)["observed"].word.startswith("0 ")


def test_an_environment_names_its_own() -> None:
    inner = gymnasium.make("CartPole-v1")
    inner.unwrapped.action_names = ("push", "pull")  # type: ignore[attr-defined]
    inner.unwrapped.observation_names = ["a", "b", "c", "d"]  # type: ignore[attr-defined]
    env = as_tensor_env(inner)
    obs, _ = env.reset(seed=0)
    assert action_names(env) == ("push", "pull")
    assert [view.name for view in observation_views(env, obs)] == ["a", "b", "c", "d"]


def test_names_are_the_environments_own_or_numbers() -> None:
    env = make_env("Engram/RepeatFirst-v0", 1)
    env.action_names = ("a", "b", "c", "d")
    assert action_names(env) == ("a", "b", "c", "d")
    env.action_names = ("a", "b")
    assert action_names(env) == ("0", "1", "2", "3")
    assert action_names(make_env("Pendulum-v1")) == ()
