"""Learners by name: the built-in ones, and what other packages offer as entry points of group `engram.learners`."""

from __future__ import annotations

from typing import Any

from agents.checkpoint import CheckpointError, read_manifest
from agents.checkpoint.files import Place
from agents.checkpoint.opening import open_checkpoint
from agents.environments import EnvLike
from agents.learner import MemoryOnPolicyAlgorithm
from policies.plugins import Registry, View

learners = Registry("learner", "learners", MemoryOnPolicyAlgorithm)

register_learner = learners.register
"""Class decorator that makes a learner known, as in `@register_learner("ppo")`; see `Registry.register`."""
registered_learners = learners.names
learner_class = learners.find

LEARNERS = View(learners)
"""Every learner by its name."""


def load(path: Place, env: EnvLike | None = None, **kwargs: Any) -> MemoryOnPolicyAlgorithm:
    """Load a checkpoint of any known learner; arguments as in `MemoryOnPolicyAlgorithm.load`."""
    with open_checkpoint(path) as source:
        name = read_manifest(source).get("algorithm")
    for learner in learners.classes.values():
        if learner.__name__ == name:
            return learner.load(source, env, **kwargs)
    for offered in LEARNERS:  # of other packages, imported to find the class name
        try:
            learner = learner_class(offered)
        except (ValueError, TypeError):  # only this one cannot be found
            continue
        if learner.__name__ == name:
            return learner.load(source, env, **kwargs)
    raise CheckpointError(
        f"{source.name} holds {name!r}, this Engram knows {', '.join(LEARNERS)}: load a learner of your own by its "
        "class, as in PPO.load, or import the module that registers it"
    )
