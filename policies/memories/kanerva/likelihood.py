"""Log-likelihoods of images under a decoder's output, in nats."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

LIKELIHOODS = ("bernoulli", "gaussian")


class Likelihood:
    """p(X|Z) by name.

    Args:
        name: "bernoulli": the decoder outputs logits of binary pixels; "gaussian": means of real pixels with unit
            variance, as in the figures of Kanerva++.

    Raises:
        ValueError: there is no likelihood of this name.
    """

    def __init__(self, name: Literal["bernoulli", "gaussian"]) -> None:
        if name not in LIKELIHOODS:
            raise ValueError(f"likelihood is {name!r}; it must be one of {', '.join(LIKELIHOODS)}")
        self.name = name

    def cost(self, decoded: Tensor, image: Tensor) -> Tensor:
        """−ln p(image), `[N]`, for decoder outputs and images `[N, C, ...]`."""
        decoded = decoded.to(image.dtype)  # under autocast the sum over pixels would lose precision
        if self.name == "bernoulli":
            losses = F.binary_cross_entropy_with_logits(decoded, image, reduction="none")
        else:
            losses = 0.5 * (decoded - image).square() + 0.5 * math.log(2 * math.pi)
        return losses.flatten(1).sum(1)

    def mean(self, decoded: Tensor) -> Tensor:
        """The expected image, `[N, C, ...]`."""
        return decoded.sigmoid() if self.name == "bernoulli" else decoded
