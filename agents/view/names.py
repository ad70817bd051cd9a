"""Names of observations and actions of Gymnasium's environments, for the window."""

from __future__ import annotations

from typing import Any, NamedTuple

from agents.environments import HostEnv
from envs.tensor_env import TensorEnv


class Names(NamedTuple):
    """Names of an environment's observation and actions; empty if unknown."""

    observed: tuple[str, ...] = ()
    """Names of the values of a flat observation."""
    actions: tuple[str, ...] = ()


_ARROWS = ("left", "down", "right", "up")
_LANDER = ("x", "y", "x velocity", "y velocity", "angle", "angular velocity", "left leg", "right leg")
KNOWN: dict[str, Names] = {
    "CartPole": Names(("position", "velocity", "angle", "angular vel."), ("left", "right")),
    "Pendulum": Names(("cos angle", "sin angle", "angular vel."), ("torque",)),
    "Acrobot": Names(("cos 1", "sin 1", "cos 2", "sin 2", "velocity 1", "velocity 2"), ("−1", "0", "+1")),
    "MountainCar": Names(("position", "velocity"), ("left", "coast", "right")),
    "MountainCarContinuous": Names(("position", "velocity"), ("force",)),
    "LunarLander": Names(_LANDER, ("nothing", "left engine", "main engine", "right engine")),
    "LunarLanderContinuous": Names(_LANDER, ("main engine", "side engines")),
    "FrozenLake": Names((), _ARROWS),
    "FrozenLake8x8": Names((), _ARROWS),
    "CliffWalking": Names((), ("up", "right", "down", "left")),
    "Taxi": Names((), ("down", "up", "right", "left", "pick up", "drop off")),
    "Blackjack": Names((), ("stick", "hit")),
}
"""Names by Gymnasium id without version."""


def names_of(env: TensorEnv) -> Names:
    """Names from the environment (`action_names`, `observation_names`), else from `KNOWN`."""
    if not isinstance(env, HostEnv):
        return Names(env.observation_names.get("", ()), env.action_names)
    inner = inner_env(env.host.env)
    spec = getattr(inner, "spec", None)
    known = KNOWN.get(str(getattr(spec, "id", "")).rpartition("/")[2].rpartition("-v")[0], Names())
    unwrapped = getattr(inner, "unwrapped", inner)
    observed, actions = (getattr(unwrapped, name, ()) for name in ("observation_names", "action_names"))
    return Names(_as_names(observed) or known.observed, _as_names(actions) or known.actions)


def inner_env(env: Any) -> Any:
    """The first single environment of a batch."""
    for _ in range(9):
        if isinstance(envs := getattr(env, "envs", None), (list, tuple)) and envs:
            return envs[0]
        env = getattr(env, "venv", None) or getattr(env, "env", None) or env
    return env


def _as_names(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else ()
