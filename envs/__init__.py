"""Batched torch environments, registered with Gymnasium under `Engram/`.

    import gymnasium, envs
    env = gymnasium.make("Engram/InvisibleGoalMaze-v0")                       # one copy, numpy
    env = gymnasium.make_vec("Engram/InvisibleGoalMaze-v0", num_envs=1024)    # a TensorEnv

Each module of an environment holds its class and `single`, the entry point of the ordinary single environment.
"""

from __future__ import annotations

import gymnasium

_CLASSES = {
    "Engram/InvisibleGoalMaze-v0": "envs.maze:InvisibleGoalMaze",
    "Engram/RepeatFirst-v0": "envs.repeat_first:RepeatFirst",
    "Engram/TMaze-v0": "envs.tmaze:TMaze",
}

for _id, _class in _CLASSES.items():
    if _id not in gymnasium.registry:
        gymnasium.register(id=_id, entry_point=_class.split(":")[0] + ":single", vector_entry_point=_class)


def registered() -> tuple[str, ...]:
    """The ids of all environments of this package, for `gymnasium.make` and `gymnasium.make_vec`."""
    return tuple(_CLASSES)
