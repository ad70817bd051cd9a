"""Reads from host environments what the window shows: the task in one line, and the last picture of an episode."""

from __future__ import annotations

import contextlib
import inspect
import re
from typing import Any

import gymnasium as gym
import numpy as np

from agents.environments import HostEnv
from agents.view.names import inner_env
from envs.rendering import Frame
from envs.tensor_env import TensorEnv


class LastPicture:
    """Keeps the last picture of an episode, because a host environment starts the next episode in the same step.

    Args:
        env: of one environment, whose `reset` is watched.
    """

    def __init__(self, env: HostEnv) -> None:
        self.picture: Frame | None = None
        inner = inner_env(env.host.env)
        if not isinstance(inner, gym.Env) or inner.render_mode != "rgb_array":
            return
        reset = inner.reset

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.picture = None
            with contextlib.suppress(Exception):  # before the first reset; later errors are raised by `frame`
                if isinstance(drawn := inner.render(), np.ndarray):
                    self.picture = np.asarray(drawn, dtype=np.uint8)
            return reset(*args, **kwargs)

        vars(inner)["reset"] = watched  # not by setattr, which wrappers forward


def task_of(env: TensorEnv) -> str:
    """The first sentence of the environment's documentation; empty if it has none."""
    kind: Any = type(env)
    if isinstance(env, HostEnv):
        inner = inner_env(env.host.env)
        kind = type(getattr(inner, "unwrapped", inner))
    docstring = inspect.cleandoc(vars(kind).get("__doc__") or "")
    for paragraph in docstring.split("\n\n"):
        line = " ".join(paragraph.split())
        if line and not line.startswith(("#", "|", "`")):
            line = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line)  # links
            return line.split(". ")[0].rstrip(".") + "."
    return ""
