"""A learner of somebody's own, with hyper-parameters of its own, for `--imports` with several ranks."""

from __future__ import annotations

from dataclasses import dataclass

from agents import A2C, A2CConfig, register_learner
from agents.common.arguments import Positive


@dataclass
class OfRanksConfig(A2CConfig):
    of_ranks: Positive = 1.0
    """A number."""


@register_learner("of-ranks")
class OfRanks(A2C):
    config_class = OfRanksConfig
    of_ranks: float
