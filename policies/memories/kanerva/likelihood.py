"""Log-likelihoods of images under a decoder's output, in nats."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

LIKELIHOODS = ("bernoulli", "gaussian", "logistic")


class Likelihood:
    """p(X|Z) by name.

    Args:
        name: "bernoulli": logits of binary pixels. "gaussian": means of real ones, with unit variance, as the figures
            of Kanerva++ write it. "logistic": pixels in 0..1 of 256 values, by a mixture of discretised logistics
            (Salimans et al., 2017, "PixelCNN++"), as its results on such images use.
        channels: C of the image.
        mixtures: logistics a pixel.
    """

    def __init__(
        self, name: Literal["bernoulli", "gaussian", "logistic"], channels: int = 1, mixtures: int = 10
    ) -> None:
        if name not in LIKELIHOODS:
            raise ValueError(f"likelihood is {name!r}; it must be one of {', '.join(LIKELIHOODS)}")
        self.name = name
        self.channels = channels
        self.mixtures = mixtures
        # of each mixture: its weight; mean and scale of each channel; how each channel leans on those before it
        self.pairs = channels * (channels - 1) // 2
        self.parameters = channels if name != "logistic" else mixtures * (1 + 2 * channels + self.pairs)
        """How many numbers a decoder gives for each pixel."""

    def cost(self, decoded: Tensor, image: Tensor) -> Tensor:
        """−ln p(image): `[N, parameters, ...]` and `[N, C, ...]` to `[N]`."""
        decoded = decoded.to(image.dtype)  # under autocast the sum over pixels would lose digits
        if self.name == "bernoulli":
            losses = F.binary_cross_entropy_with_logits(decoded, image, reduction="none")
        elif self.name == "gaussian":
            losses = 0.5 * (decoded - image).square() + 0.5 * math.log(2 * math.pi)
        else:
            losses = self._logistic_cost(decoded, image)
        return losses.flatten(1).sum(1)

    def mean(self, decoded: Tensor) -> Tensor:
        """The expected image, `[N, C, ...]`."""
        if self.name == "bernoulli":
            return decoded.sigmoid()
        if self.name == "gaussian":
            return decoded
        weights, means, _, leaning = self._mixture(decoded)
        expected: list[Tensor] = []
        for channel in range(self.channels):
            expected.append(self._leant(means, leaning, channel, expected))
        image = torch.stack([(weights.softmax(1) * mean).sum(1) for mean in expected], 1)
        return ((image + 1) / 2).clamp(0, 1)

    def _mixture(self, decoded: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights `[N, mixtures, ...]`; means, log scales `[N, mixtures, C, ...]`; leaning `[N, mixtures, pairs, ...]`.

        Means are of pixels in -1..1.
        """
        parts = decoded.view(len(decoded), self.mixtures, -1, *decoded.shape[2:])
        weights, means, scales, leaning = torch.split(parts, [1, self.channels, self.channels, self.pairs], 2)
        return weights.squeeze(2), means, scales.clamp(min=-7), leaning.tanh()

    def _leant(self, means: Tensor, leaning: Tensor, channel: int, before: list[Tensor]) -> Tensor:
        """A channel's mean, given the channels `before` it: green leans on red, blue on both."""
        first = channel * (channel - 1) // 2
        mean = means[:, :, channel]
        for index, value in enumerate(before):
            mean = mean + leaning[:, :, first + index] * value
        return mean

    def _logistic_cost(self, decoded: Tensor, image: Tensor) -> Tensor:
        weights, means, scales, leaning = self._mixture(decoded)
        pixels = (2 * image - 1).unsqueeze(1)  # [N, 1, C, ...]
        log_probs = weights.log_softmax(1)
        for channel in range(self.channels):
            before = [pixels[:, :, earlier] for earlier in range(channel)]
            x, scale = pixels[:, :, channel], scales[:, :, channel]
            centred, precision = x - self._leant(means, leaning, channel, before), (-scale).exp()
            above, below = precision * (centred + 1 / 255), precision * (centred - 1 / 255)
            inside = above.sigmoid() - below.sigmoid()
            # where a logistic hardly reaches, its density at the pixel times the pixel's width
            density = precision * centred - scale - 2 * F.softplus(precision * centred) + math.log(2 / 255)
            middle = torch.where(inside > 1e-5, inside.clamp(min=1e-12).log(), density)
            outer = torch.where(x > 0.999, -F.softplus(below), middle)  # white: everything above
            log_probs = log_probs + torch.where(x < -0.999, above - F.softplus(above), outer)  # black: all below
        return -log_probs.logsumexp(1)
