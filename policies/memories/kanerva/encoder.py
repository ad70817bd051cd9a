"""Encoders of Kanerva++, with features shifted in time, and the paper's dense networks.

Equation numbers and appendices are those of Ramapuram, Wu and Kalousis, "Kanerva++", ICLR 2021.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policies.memories.time.scopes import cached, host_may_read

Shift = Callable[[int, Tensor], Tensor]
"""Shifts features `[N, C, ...]` at one place of an encoder; arguments: the place's number, the features."""


class DeepLinear(nn.Sequential):
    """Appendix E's dense network: three linear layers without activations, each of spectral norm 1.

    A layer is divided by its largest singular value σ = uᵀWv (Miyato et al., 2018). u and v come from a power iteration
    with a fixed start, so that a pass is a function of the weights and writes to no buffer.

    Args:
        inputs: width of the input.
        units: width of the two hidden layers.
        outputs: width of the output.
        spectral_last: also divide the last layer; the author's code does not, and the paper does not specify it.
    """

    squarings = 5
    """Number of squarings of WWᵀ: 2⁵ steps of the power iteration."""

    def __init__(self, inputs: int, units: int, outputs: int, spectral_last: bool = True) -> None:
        super().__init__(nn.Linear(inputs, units), nn.Linear(units, units), nn.Linear(units, outputs))
        for layer in self._layers():
            nn.init.orthogonal_(
                layer.weight
            )  # all singular values are equal: initially, the division attenuates no direction
        self.spectral_last = spectral_last
        self._known: tuple[list[Tensor], list[Tensor], list[Tensor]] | None = None  # weights, and their u and v

    def sigmas(self) -> list[Tensor]:
        """The largest singular value of each layer, `[]`, with the gradient u vᵀ."""
        weights = [layer.weight for layer in self._layers()]
        sigmas = [u @ w @ v for w, u, v in zip(weights, *self._directions(weights), strict=True)]
        return sigmas if self.spectral_last else [*sigmas[:2], torch.ones_like(sigmas[2])]

    def forward(self, x: Tensor) -> Tensor:
        for weight, bias in cached(self, "normed", self.normed):
            x = F.linear(x, weight, bias)
        return x

    def normed(self) -> list[tuple[Tensor, Tensor]]:
        """Weight, divided by its spectral norm, and bias of each layer."""
        layers = self._layers()
        kind = layers[0].weight.device.type
        full = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
        with full:
            sigmas = self.sigmas()
        return [(layer.weight / (sigma + 1e-12), layer.bias) for layer, sigma in zip(layers, sigmas, strict=True)]

    def collapsed(self) -> tuple[Tensor, Tensor]:
        """The network as one linear layer: weight `[outputs, inputs]` and bias `[outputs]`."""
        first, second, third = cached(self, "normed", self.normed)
        weight = third[0] @ second[0]
        return weight @ first[0], weight @ first[1] + third[0] @ second[1] + third[1]

    def _layers(self) -> list[nn.Linear]:
        return list(self)  # type: ignore[arg-type]

    def _directions(self, weights: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """u and v of each layer; on a CPU cached until a weight changes."""
        if weights[0].device.type != "cpu" or not host_may_read() or torch.compiler.is_compiling():
            return self._iterate(weights)
        known = self._known
        if known is None or not all(
            old.dtype == new.dtype and torch.equal(old, new) for old, new in zip(known[0], weights, strict=True)
        ):
            self._known = known = ([w.detach().clone() for w in weights], *self._iterate(weights))
        return known[1], known[2]

    @torch.no_grad()
    def _iterate(self, weights: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        first, second, third = weights
        # one side of every layer has the hidden units' width, so the three layers are iterated as one batch
        power = torch.stack([first @ first.t(), second @ second.t(), third.t() @ third])
        tiny = torch.finfo(power.dtype).tiny
        for _ in range(self.squarings):
            power = power / power.diagonal(dim1=1, dim2=2).sum(1).clamp(min=tiny).view(-1, 1, 1)
            power = power @ power
        begin = torch.linspace(1, 2, power.shape[1], dtype=power.dtype, device=power.device)
        u1, u2, v3 = F.normalize(power @ begin, dim=1, eps=tiny).unbind()
        v1, v2, u3 = (F.normalize(product, dim=0) for product in (u1 @ first, u2 @ second, third @ v3))
        return [u1, u2, u3], [v1, v2, v3]


class Encoder(nn.Module):
    """Base class of encoders, from inputs to embeddings E, with temporal shifts of features at some places.

    Raises:
        ValueError: `fraction` is not in 0..0.5.
    """

    def __init__(self, fraction: float) -> None:
        super().__init__()
        if not 0 <= fraction <= 0.5:
            raise ValueError(f"shift is {fraction}; it must be a fraction of the channels in 0..0.5")
        self.fraction = fraction
        self.shift_shapes: list[tuple[int, ...]] = []
        """Shapes, without the batch, of the features that each place passes to the next step."""

    def place(self, channels: int, *grid: int) -> None:
        """Declares a place of a temporal shift, with this number of channels, of which at least one is shifted."""
        if self.fraction:
            self.shift_shapes.append((max(1, int(channels * self.fraction)), *grid))

    def run(self, x: Tensor, shift: Shift) -> Tensor:
        """Inputs `[N, ...]` to E `[N, embedding_size]`."""
        raise NotImplementedError

    def forward(self, x: Tensor, carried: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
        """One step; the shifted features come from the previous step.

        Args:
            x: the input, `[B, ...]`.
            carried: the features of the previous step, `[B, *shift_shapes[i]]`.

        Returns:
            E_t `[B, embedding_size]`, and the features for the next step.
        """
        passed_on: list[Tensor] = []

        def shift(place: int, features: Tensor) -> Tensor:
            if not self.fraction:
                return features
            shifted = self.shift_shapes[place][0]
            passed_on.append(features[:, :shifted])
            return torch.cat([carried[place], features[:, shifted:]], 1)

        return self.run(x, shift), passed_on

    def episode(self, xs: Tensor, direction: Literal["both", "online"] = "both") -> Tensor:
        """A whole episode `[T, B, ...]` to E `[T, B, embedding_size]`."""
        length, batch_size = xs.shape[:2]

        def shift(place: int, features: Tensor) -> Tensor:
            if not self.fraction:
                return features
            shifted = self.shift_shapes[place][0]
            whole = split_time(features, length, batch_size)
            return temporal_shift(whole, shifted, both=direction == "both").flatten(0, 1)

        return split_time(self.run(xs.flatten(0, 1), shift), length, batch_size)


def split_time(x: Tensor, length: int, batch_size: int) -> Tensor:
    """`[T · B, ...]` as `[T, B, ...]`."""
    return x.reshape(length, batch_size, *x.shape[1:])


def temporal_shift(features: Tensor, shifted: int, both: bool) -> Tensor:
    """Temporal shift (Lin et al., 2019), with zeros at both ends of the sequence.

    Args:
        features: `[T, B, C, ...]`.
        shifted: number of channels that come from the previous step.
        both: whether the same number comes from the next step.
    """
    past, future, rest = features[:, :, :shifted], features[:, :, shifted : 2 * shifted], features[:, :, 2 * shifted :]
    before = torch.cat([torch.zeros_like(past[:1]), past[:-1]])
    after = torch.cat([future[1:], torch.zeros_like(future[:1])]) if both else future
    return torch.cat([before, after, rest], 2)


class DenseEncoder(Encoder):
    """Three dense layers for vector inputs, with temporal shifts before the second and the third.

    The paper has only images. This replaces its residual network; therefore it has ReLU and no spectral norm.

    Args:
        size: F, width of the input.
        units: width of the two hidden layers.
        embedding_size: width of E.
        fraction: fraction of the units that is shifted.
        linear: no ReLU between the layers.
    """

    def __init__(self, size: int, units: int, embedding_size: int, fraction: float, linear: bool) -> None:
        super().__init__(fraction)
        widths = [size, units, units, embedding_size]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(widths))
        self.linear = linear
        for width in widths[1:3]:
            self.place(width)

    def run(self, x: Tensor, shift: Shift) -> Tensor:
        for index, layer in enumerate(self.layers):
            if index:
                x = shift(index - 1, x if self.linear else x.relu())
            x = layer(x)
        return x


class ImageEncoder(Encoder):
    """A residual network like ResNet18 (He et al., 2016), with a temporal shift before each block.

    Widths (64, 128, 256, 512) with 2 blocks each and average pooling are ResNet18's, with the 3 x 3 stem that suits
    small images.

    Args:
        shape: (C, H, W) of the input.
        channels: channels of each stage; each stage except the first halves the image.
        blocks: residual blocks per stage.
        embedding_size: width of E.
        fraction: fraction of the channels that is shifted.
        norm: "batch", as in the paper, or "group", which also works with one image.
        average_pool: average over the last grid, as ResNet does; False: preserve positions, for small networks.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels: Sequence[int],
        blocks: int,
        embedding_size: int,
        fraction: float,
        norm: Literal["batch", "group"],
        average_pool: bool,
    ) -> None:
        super().__init__(fraction)
        width, *grid = shape
        self.stem = nn.Sequential(_conv(width, channels[0], 1), normalise(norm, channels[0]), nn.ReLU())
        self.blocks = nn.ModuleList()
        width = channels[0]
        for stage, outputs in enumerate(channels):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                self.place(width, *grid)
                self.blocks.append(ResidualBlock(width, outputs, stride, norm))
                width, grid = outputs, [-(-side // stride) for side in grid]
        self.average_pool = average_pool
        self.project = nn.Linear(width * (1 if average_pool else math.prod(grid)), embedding_size)
        nn.init.kaiming_normal_(self.project.weight)  # E has about the scale of the features

    def run(self, x: Tensor, shift: Shift) -> Tensor:
        x = self.stem(x)
        for place, block in enumerate(self.blocks):
            x = block(x, shift(place, x))
        return self.project(x.mean((2, 3)) if self.average_pool else x.flatten(1))  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """Two convolutions and a short cut; only the convolutions read the shifted features."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Literal["batch", "group"]) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _conv(inputs, outputs, stride),
            normalise(norm, outputs),
            nn.ReLU(),
            _conv(outputs, outputs, 1),
            normalise(norm, outputs),
        )
        same = inputs == outputs and stride == 1
        self.short_cut: nn.Module = nn.Identity()
        if not same:
            self.short_cut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), normalise(norm, outputs))

    def forward(self, x: Tensor, shifted: Tensor) -> Tensor:
        return F.relu(self.short_cut(x) + self.residual(shifted))


def _conv(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def normalise(norm: Literal["batch", "group"], channels: int) -> nn.Module:
    """Batch normalisation, or group normalisation with up to 8 groups of at least four channels."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(
        next(groups for groups in (8, 4, 2, 1) if groups == 1 or channels % (4 * groups) == 0), channels
    )
