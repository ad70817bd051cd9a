"""How iterations are run: eagerly, or by a subclass that captures and replays them (`agents.scale.cuda_graphs`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from agents.metrics.report import PackedMetrics
from agents.rollout import Rollout
from agents.sb3.training_env import TrainingEnv


class Executor:
    """Runs the iterations of a learner eagerly.

    Args:
        model: the learner.
    """

    callbacks_after_rollout = False
    """Whether callbacks are called for all steps after the rollout, with values read from it."""

    def __init__(self, model: TrainingEnv) -> None:
        self.model: Any = model

    def iterate(self, callback: BaseCallback) -> bool:
        """One iteration; False if a callback asked to stop before the update."""
        continues: bool = self.model.iterate(callback)
        self.model.rollout_state.detach()  # a model that holds a graph cannot be copied
        return continues

    def minibatch(
        self, learn: Callable[..., PackedMetrics], rollout: Rollout, index: Tensor, *numbers: float | None
    ) -> PackedMetrics:
        """The update `learn(rollout, index, *numbers)` from the environments `index` of a rollout."""
        return learn(rollout, index, *numbers)
