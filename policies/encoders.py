"""Encoders: from an observation to what the memory takes in.

A vector memory takes `[B, F]`. Stable-Baselines3's feature extractors do exactly this, so they are used as they are:
`FlattenExtractor` for vectors and discrete spaces (one-hot), `NatureCNN` for images, `CombinedExtractor` for `Dict`
spaces, and any of the user's own through `features_extractor_class`. `MLPEncoder` adds layers in front of the memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import TensorDict
from torch import Tensor, nn


def default_encoder(observation_space: spaces.Space) -> type[BaseFeaturesExtractor]:  # type: ignore[type-arg]
    """The feature extractor that an SB3 user expects for this observation space."""
    if isinstance(observation_space, spaces.Dict):
        return CombinedExtractor
    return NatureCNN if is_image_space(observation_space) else FlattenExtractor


class MLPEncoder(BaseFeaturesExtractor):
    """`default_encoder`, then one ReLU layer for each number in `layers`.

    Args:
        observation_space: of one environment.
        layers: width of each layer; the last is the memory's input size.
    """

    def __init__(self, observation_space: spaces.Space, layers: Sequence[int] = (128,)) -> None:  # type: ignore[type-arg]
        if not layers:
            raise ValueError("MLPEncoder needs at least one layer; leave it out for none")
        super().__init__(observation_space, features_dim=layers[-1])
        # CombinedExtractor takes a Dict where the others take any space; the choice above keeps them apart.
        self.input: BaseFeaturesExtractor = default_encoder(observation_space)(observation_space)
        widths = [self.input.features_dim, *layers]
        modules: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            modules += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*modules)

    def forward(self, observations: Tensor | TensorDict) -> Tensor:
        output: Tensor = self.layers(self.input(observations))
        return output
