"""Encoders of one's own that do not fit are named in one line when the agent is built."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN

from agents import PPO

VECTOR = spaces.Box(-1.0, 1.0, (3,))


class Room(gym.Env[Any, Any]):
    """Random observations of a space; two actions."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.mark.parametrize("encoder", [CombinedExtractor, NatureCNN])
def test_an_encoder_that_does_not_fit_is_named_in_one_line(encoder: Any) -> None:
    """SB3's `CombinedExtractor` takes no names with dots, its `NatureCNN` nothing but pictures."""
    space = spaces.Dict({"arm.left": VECTOR}) if encoder is CombinedExtractor else VECTOR
    kwargs = {"features_extractor_class": encoder}
    with pytest.raises(
        ValueError, match=rf"{encoder.__name__} cannot be built for the observations .*; the default is"
    ) as said:
        PPO("MemoryPolicy", Room(space), policy_kwargs=kwargs)
    assert "\n" not in str(said.value)
    with pytest.raises(
        ValueError, match=r"\(features_extractor_class\) is .*, expected a subclass of .*BaseFeaturesExtractor"
    ):
        PPO("MemoryPolicy", Room(VECTOR), policy_kwargs={"features_extractor_class": Room})


class Wrong(BaseFeaturesExtractor):
    """Its output is not what its constructor says."""

    def __init__(self, observation_space: Any, wrong: str = "") -> None:
        super().__init__(observation_space, 6)
        self.wrong, self.layer = wrong, torch.nn.Linear(4 if wrong == "input" else 3, 6)

    def forward(self, observations: torch.Tensor) -> Any:
        output = self.layer(observations)
        given = {"width": output[:, :5], "dims": output[:, None], "type": output.double(), "nothing": None}
        return given.get(self.wrong, output)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            "width",
            r"encoder Wrong returned float32 \(2, 5\) for 2 observations, expected float32 \(2, 6\), as its features_d",
        ),
        ("dims", r"encoder Wrong returned float32 \(2, 1, 6\) for 2 observations"),
        ("type", r"encoder Wrong returned float64 \(2, 6\) for 2 observations"),
        ("nothing", "encoder Wrong returned NoneType for 2 observations"),
        ("input", r"encoder Wrong fails on the observations Box.*: RuntimeError: mat1 and mat2 shapes cannot be mult"),
    ],
)
def test_an_encoder_whose_output_does_not_fit_is_named_when_the_agent_is_built(wrong: str, message: str) -> None:
    encoder = {"features_extractor_class": Wrong, "features_extractor_kwargs": {"wrong": wrong}}
    with pytest.raises(ValueError, match=message) as said:
        PPO("MemoryPolicy", Room(VECTOR), policy_kwargs=encoder)
    assert "\n" not in str(said.value)
    PPO("MemoryPolicy", Room(VECTOR), policy_kwargs={"features_extractor_class": Wrong})
    with pytest.raises(ValueError, match="Linear cannot be built for the observations"):
        PPO("MemoryPolicy", Room(VECTOR), policy_kwargs={"features_extractor_class": torch.nn.Linear})
