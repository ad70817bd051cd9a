"""The parts of Kanerva++: writer, keys, windows, learned prior, decoder.

Equation numbers, figures and appendices are those of Ramapuram, Wu and Kalousis, "Kanerva++", ICLR 2021. N stands for
any number of images: a batch, or an episode of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policies.memories.kanerva.encoder import DeepLinear


class Gaussian(NamedTuple):
    """A normal distribution with independent entries, `[N, ...]`."""

    mean: Tensor
    std: Tensor

    def at(self, noise: Tensor | None) -> Tensor:
        """The sample for standard normal `noise`; None: the mean."""
        return self.mean if noise is None else self.mean + self.std * noise

    def kl(self, other: Gaussian | None = None) -> Tensor:
        """KL(self ‖ other) in nats, summed over all but the first dimension; None: from N(0, I)."""
        mean, std = (self.mean, self.std) if other is None else ((self.mean - other.mean) / other.std, self.std)
        ratio = (std if other is None else std / other.std).square()
        return 0.5 * (mean.square() + ratio - 1 - ratio.log()).flatten(1).sum(1)


def as_gaussian(numbers: Tensor, offset: float = 0.0) -> Gaussian:
    """The first half is the mean; the second, plus `offset`, becomes the standard deviation by a softplus."""
    mean, raw = numbers.chunk(2, -1)
    return Gaussian(mean, F.softplus(raw + offset) + 1e-4)


def image_shape(shape: int | Sequence[int], name: str = "input_size") -> tuple[int, int, int]:
    """(C, H, W), or a ValueError about the argument `name`."""
    if isinstance(shape, int) or len(shape) != 3:
        raise ValueError(f"{name}: the shape of an image is (C, H, W), not {shape}")
    channels, height, width = shape
    return channels, height, width


class Writer(nn.Module):
    """f_mem (§3.3, appendix E): from the pooled embedding to the memory `[N, C, S, S]`, by transposed convolutions.

    Appendix E calls it a deep linear decoder, §3.3 a non-linear one. If it is linear, without biases, the memory of
    several items is the mean of their memories. In both cases it is zero if nothing was written.

    Args:
        embedding_size: width of E.
        features: feature maps at 4 x 4; halved by each layer, 256 in the paper.
        channels: C of the memory.
        size: S, 4 times a power of two.
        linear: no activations, as in appendix E; False: ReLU between the layers.

    Raises:
        ValueError: `size` is not 8, 16, 32, ..., or `features` cannot be halved as often as it requires.
    """

    def __init__(self, embedding_size: int, features: int, channels: int, size: int, linear: bool = True) -> None:
        super().__init__()
        doublings = round(math.log2(size / 4)) if size >= 8 else 0
        if not doublings or 4 * 2**doublings != size:
            raise ValueError(f"memory_size is {size}; it must be 8, 16, 32, ...")
        if features >> (doublings - 1) < 1:
            raise ValueError(f"writer_features is {features}; a memory of size {size} halves it {doublings - 1} times")
        self.features, self.linear = features, linear
        self.project = nn.Linear(embedding_size, features * 4 * 4, bias=False)
        widths = [features >> layer for layer in range(doublings)] + [channels]
        self.layers = nn.Sequential(*(_doubling(*pair, bias=False) for pair in itertools.pairwise(widths)))
        # initialised to preserve the variance of their inputs, so that windows have unit scale before training
        nn.init.normal_(self.project.weight, std=embedding_size**-0.5)
        for layer in self.layers:
            assert isinstance(layer, nn.ConvTranspose2d)
            nn.init.normal_(layer.weight, std=(4 * layer.in_channels) ** -0.5)

    def forward(self, pooled: Tensor) -> Tensor:
        memory: Tensor = self.project(pooled).view(-1, self.features, 4, 4)
        for layer in self.layers:
            memory = layer(memory if self.linear else memory.relu())
        return memory


class KeyModel(nn.Module):
    """q(Y|X): K keys for each embedding, eq. (6), with σ where the paper prints σ².

    Args:
        embedding_size: width of E.
        units: width of the dense network.
        reads: K.
        spectral_last: see `DeepLinear`.
    """

    def __init__(self, embedding_size: int, units: int, reads: int, spectral_last: bool = True) -> None:
        super().__init__()
        self.reads = reads
        self.network = DeepLinear(embedding_size, units, 6 * reads, spectral_last)

    def forward(self, embedding: Tensor) -> Gaussian:
        """`[N, D]` to keys `[N, K, 3]`."""
        mean, std = as_gaussian(self.network(embedding))
        return Gaussian(mean.view(-1, self.reads, 3), std.reshape(-1, self.reads, 3))


def read_windows(memory: Tensor, keys: Tensor, size: int) -> Tensor:
    """f_ST (eqs. 5, 8 and 9): the window of the memory at each key, sampled bilinearly.

    tanh maps the keys to (s, x, y) in [-1, 1]: the scale, and the centre, with the memory's corner pixels at -1 and 1.
    A negative scale rotates the window by 180°. The memory is zero outside.

    Args:
        memory: M, `[N, C, H, W]`.
        keys: y, `[N, K, 3]`.
        size: pixels of a window's side.

    Returns:
        `[N, K, C, size, size]`.
    """
    scale, x, y = keys.tanh().unbind(-1)
    steps = torch.linspace(-1, 1, size, device=keys.device, dtype=keys.dtype)
    across = scale.unsqueeze(-1) * steps + x.unsqueeze(-1)  # [N, K, size]
    down = scale.unsqueeze(-1) * steps + y.unsqueeze(-1)
    pixels = (-1, -1, size, size)
    grid = torch.stack([across.unsqueeze(2).expand(pixels), down.unsqueeze(3).expand(pixels)], -1)
    # the K windows stacked vertically, so that the memory is not copied for each
    windows = F.grid_sample(memory, grid.flatten(1, 2), align_corners=True)
    return windows.view(*memory.shape[:2], keys.shape[1], size, size).transpose(1, 2)


class LearnedPrior(nn.Module):
    """p(Z|M, Y): a convolutional encoder over the K windows, stacked along the channels (appendix E).

    Args:
        channels: channels of the windows, K C.
        size: side of a window.
        features: feature maps of the first layer, doubled by each further one.
        latent_size: L.
        activation: after each convolution.

    Raises:
        ValueError: `size` is below 4.
    """

    def __init__(
        self, channels: int, size: int, features: int, latent_size: int, activation: type[nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        if size < 4:
            raise ValueError(f"crop_size is {size}; it must be at least 4")
        self.size = size
        layers: list[nn.Module] = []
        while size > 2:
            layers += [nn.Conv2d(channels, features, 3, stride=2, padding=1), activation()]
            channels, features, size = features, 2 * features, -(-size // 2)
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.features = channels * size * size
        self.project = nn.Linear(self.features, 2 * latent_size)
        # if Z does not depend on the keys initially, KL(q(Y|X) ‖ p(Y)) drives their information to zero
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def as_linear(self) -> list[tuple[Tensor, Tensor]]:
        """The convolutions as linear layers, weight `[outputs, inputs]` and bias: faster step by step, if small."""
        layers, size = [], self.size
        for conv in self.layers:
            if isinstance(conv, nn.Conv2d):
                assert conv.bias is not None
                inputs = conv.in_channels * size * size
                pixels = torch.eye(inputs, dtype=conv.weight.dtype, device=conv.weight.device)
                pixels = pixels.view(inputs, conv.in_channels, size, size)
                answers = F.conv2d(pixels, conv.weight, None, conv.stride, conv.padding)
                size = answers.shape[-1]
                layers.append((answers.flatten(1).t(), conv.bias.repeat_interleave(size * size)))
        return layers

    def forward(self, windows: Tensor) -> tuple[Gaussian, Tensor]:
        """`[N, K, C, size, size]` to the distribution of Z `[N, L]`, and the features of the windows."""
        features = self.layers(windows.flatten(1, 2))
        return as_gaussian(self.project(features)), features


class EvoNormS0(nn.Module):
    """x · sigmoid(v x) / std(x) · γ + β, the deviation taken over groups of channels (Liu et al., 2020).

    Args:
        channels: number of channels.
        groups: maximum number of groups; 8 in that paper's networks of this size.
        eps: added to the variance.
    """

    def __init__(self, channels: int, groups: int = 8, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups = math.gcd(channels, groups)
        self.eps = eps
        self.v, self.gamma = (nn.Parameter(torch.ones(channels, 1, 1)) for _ in range(2))
        self.beta = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.view(x.shape[0], self.groups, -1, *x.shape[2:])
        deviation = (grouped.var((2, 3, 4), correction=0, keepdim=True) + self.eps).sqrt()
        scaled = (grouped / deviation).flatten(1, 2)
        normalised: Tensor = scaled * (self.v * x).sigmoid() * self.gamma + self.beta
        return normalised


class ImageDecoder(nn.Module):
    """From Z to an image: transposed convolutions with EvoNorm-S0 between the layers (appendix E).

    Args:
        latent_size: L.
        shape: (C, H, W) of the output; C is the number of parameters of a pixel's distribution.
        features: feature maps of the coarsest grid; halved by each layer, down to 8.
    """

    def __init__(self, latent_size: int, shape: tuple[int, int, int], features: int) -> None:
        super().__init__()
        channels, *self.grid = shape
        doublings = max(0, int(math.log2(min(self.grid) / 4)))  # the coarsest grid is 4 to 7 wide
        self.coarsest = tuple(-(-side // 2**doublings) for side in self.grid)
        self.features = features
        self.project = nn.Linear(latent_size, features * math.prod(self.coarsest))
        layers: list[nn.Module] = []
        for _ in range(doublings):
            narrower = max(8, features // 2)
            layers += [EvoNormS0(features), _doubling(features, narrower, bias=True)]
            features = narrower
        layers += [EvoNormS0(features), nn.Conv2d(features, channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        """`[N, L]` to `[N, C, H, W]`."""
        image: Tensor = self.layers(self.project(latent).view(-1, self.features, *self.coarsest))
        return image[:, :, : self.grid[0], : self.grid[1]]


def _doubling(inputs: int, outputs: int, bias: bool) -> nn.ConvTranspose2d:
    """A transposed convolution that doubles height and width."""
    return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=bias)


class Readout(NamedTuple):
    """The result of reading the memory."""

    prior: Gaussian
    """p(Z|M, Y), `[N, L]`."""
    features: Tensor
    """Features of the windows, from the prior's network, `[N, ...]`."""


class Kanerva(nn.Module):
    """The common part of the pooled memory and the generative model: everything except encoder and decoder.

    Args:
        embedding_size: width of E.
        units: width of the dense networks.
        latent_size: L.
        memory_channels: C of the memory.
        memory_size: S, its height and width.
        writer_features: feature maps of f_mem at its coarsest grid.
        reads: K, windows read for one image.
        crop_size: side of a window in pixels.
        prior_features: feature maps of the learned prior's first layer, doubled by each further one.
        linear_writer: see `Writer`.
        spectral_last: see `DeepLinear`.

    Raises:
        ValueError: a size is below 1, or as `Writer` and `LearnedPrior`.
    """

    key_size = 3

    def __init__(
        self,
        embedding_size: int,
        units: int,
        latent_size: int,
        memory_channels: int,
        memory_size: int,
        writer_features: int,
        reads: int,
        crop_size: int,
        prior_features: int,
        linear_writer: bool = True,
        spectral_last: bool = True,
    ) -> None:
        super().__init__()
        if min(embedding_size, units, latent_size, memory_channels, reads, prior_features) < 1:
            raise ValueError("a size or reads is below 1; expected at least 1")
        self.crop_size, self.reads = crop_size, reads
        self.writer = Writer(embedding_size, writer_features, memory_channels, memory_size, linear_writer)
        self.keys = KeyModel(embedding_size, units, reads, spectral_last=spectral_last)
        # q(Z|X), from E and not from the memory
        self.posterior = DeepLinear(embedding_size, units, 2 * latent_size, spectral_last)
        self.prior = LearnedPrior(reads * memory_channels, crop_size, prior_features, latent_size)

    def infer_keys(self, embedding: Tensor) -> tuple[Gaussian, Tensor]:
        """q(Y|X) of embeddings `[T, B, D]`, `[T, B, K, 3]`, and its mean."""
        mean, std = self.keys(embedding.flatten(0, 1))
        shape = (*embedding.shape[:2], *mean.shape[1:])
        return Gaussian(mean.view(shape), std.view(shape)), mean.view(shape)

    def write(self, embedding: Tensor, keys: Gaussian) -> Tensor:
        """M `[B, C, S, S]` of an episode's embeddings `[T, B, D]` (§3.3); it does not depend on the keys."""
        memory: Tensor = self.writer(embedding.mean(0))
        return memory

    def windows(self, memory: Tensor, keys: Tensor) -> Tensor:
        """The windows of `memory` `[B, C, S, S]` at keys `[N, B, K, 3]`: `[N, B, K, C, crop_size, crop_size]`."""
        shared = memory.expand(len(keys), *memory.shape).flatten(0, 1)
        windows = read_windows(shared, keys.flatten(0, 1), self.crop_size)
        return windows.reshape(*keys.shape[:2], *windows.shape[1:])

    def read(self, memory: Tensor, keys: Tensor) -> Readout:
        """Memories `[N, C, S, S]` at keys `[N, K, 3]`."""
        return Readout(*self.prior(read_windows(memory, keys, self.crop_size)))
