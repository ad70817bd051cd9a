"""Learners by name: the built-in ones, and what other packages offer as entry points of group `engram.learners`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agents.checkpoint import CheckpointError, read_manifest
from agents.checkpoint.files import Place
from agents.checkpoint.learner import is_ours
from agents.checkpoint.opening import open_checkpoint
from agents.environments import EnvLike
from agents.learner import MemoryOnPolicyAlgorithm
from policies.plugins import Registry, View, qualified_name

learners = Registry("learner", "learners", MemoryOnPolicyAlgorithm)

register_learner = learners.register
"""Class decorator that makes a learner known, as in `@register_learner("ppo")`; see `Registry.register`."""
registered_learners = learners.names
learner_class = learners.find

LEARNERS = View(learners)
"""Every learner by its name."""


def load(path: Place, env: EnvLike | None = None, **kwargs: Any) -> MemoryOnPolicyAlgorithm:
    """Load a checkpoint of any known learner; arguments as in `MemoryOnPolicyAlgorithm.load`.

    Raises:
        CheckpointError: as there, or no known learner saved the checkpoint.
    """
    with open_checkpoint(path) as source:
        manifest = read_manifest(source)
    return _learner_of(manifest, source.name).load(source, env, **kwargs)


def _learner_of(manifest: dict[str, Any], checkpoint: str) -> type[MemoryOnPolicyAlgorithm]:
    """The learner that saved a checkpoint: the class of the same module and name, else, if it has moved, the only class
    of this name. A class of this project and another's are never taken for each other."""
    name, saved = manifest.get("algorithm"), str(manifest.get("learner", ""))
    found: list[type[MemoryOnPolicyAlgorithm]] = []
    for learner in _called(name):
        if qualified_name(learner) == saved or not saved:  # older checkpoints hold only the name of the class
            return learner
        if learner not in found and is_ours(qualified_name(learner)) == is_ours(saved):
            found.append(learner)
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"{checkpoint} holds a {name} of {saved}, but the learners with this class name are "
            f"{' and '.join(map(qualified_name, found))}: load it by its class, as in PPO.load"
        )
    raise CheckpointError(
        f"{checkpoint} holds {name!r}{f' of {saved}' if saved else ''}, this Engram knows {', '.join(LEARNERS)}: load "
        "a learner of your own by its class, as in PPO.load, or import the module that registers it"
    )


def _called(name: Any) -> Iterator[type[MemoryOnPolicyAlgorithm]]:
    """The learners whose class has this name: registered ones first, then those of other packages."""
    yield from (learner for learner in learners.classes.values() if learner.__name__ == name)
    for offered in LEARNERS:  # imported to find the class name
        try:
            learner = learner_class(offered)
        except (ValueError, TypeError):  # only this one cannot be found
            continue
        if learner.__name__ == name:
            yield learner
