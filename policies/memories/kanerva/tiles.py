"""Block allocation in Kanerva++'s generative model: each image's feature map is written to a tile of the memory.

After Ramapuram, Wu and Kalousis, "Kanerva++", ICLR 2021. The paper allocates blocks when reading; here blocks are also
written.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from policies.memories.kanerva.encoder import DeepLinear
from policies.memories.kanerva.parts import Gaussian
from policies.memories.kanerva.patches import PatchPrior

Allocation = Literal["inferred", "ranked"]
ALLOCATIONS = ("inferred", "ranked")


class KanervaBlocks(nn.Module):
    """The counterpart of `parts.Kanerva` with block allocation.

    The memory is a grid of tiles of the size of a block, to which the blocks of all images are added. A key is a point
    in R² and selects the tile that contains it; standard normal keys select all tiles equally often. An image is
    written to the tiles of the means of its K keys, one block each, and read at samples.

    The mean of q(Y|X) is the centre of a tile:
    - "inferred": a dense network maps the embedding to K points, which are whitened over the batch, so that images use
      the whole memory; the tile is the one that contains the point. Two images may have the same tile.
    - "ranked": the images of an episode are ordered by a fixed projection of their embeddings and assigned to the tiles
      in that order. No two share a tile, but all T images must be known.

    The standard deviation is the distance to the tile's nearest edge, divided by `sharpness`.

    Args:
        units: width of the dense networks.
        latent_size: L.
        memory_channels: C of the memory.
        memory_size: S, its height and width, a multiple of B.
        reads: K, blocks of an image, and windows read.
        crop_size: B, side of a block and of a window.
        prior_features: feature maps of the learned prior's first layer.
        allocation: "inferred" or "ranked".
        spectral_last: see `DeepLinear`.

    Raises:
        ValueError: `allocation` is unknown, or `memory_size` is not a multiple of `crop_size`.
    """

    key_size = 2
    sharpness = 4.0
    """With 4, a sample leaves its tile with probability 1/15,000 per axis; KL(Y) grows with 2 ln `sharpness`."""

    def __init__(
        self,
        units: int,
        latent_size: int,
        memory_channels: int,
        memory_size: int,
        reads: int,
        crop_size: int,
        prior_features: int,
        allocation: Allocation,
        spectral_last: bool = True,
    ) -> None:
        super().__init__()
        if allocation not in ALLOCATIONS:
            raise ValueError(f"allocation is {allocation!r}; it must be one of {', '.join(ALLOCATIONS)}")
        if memory_size % crop_size:
            raise ValueError(f"memory_size is {memory_size}; tiles need a multiple of crop_size, {crop_size}")
        self.channels, self.size, self.reads, self.crop_size = memory_channels, memory_size, reads, crop_size
        self.tiles = memory_size // crop_size  # along a side
        embedding_size = reads * memory_channels * crop_size**2
        self.keys: DeepLinear | None = None
        if allocation == "inferred":
            self.keys = DeepLinear(embedding_size, units, 2 * reads, spectral_last)
            self.whiten = Whitening(2 * reads)
        else:
            self.register_buffer("direction", torch.randn(embedding_size))
        self.posterior = DeepLinear(embedding_size, units, 2 * latent_size, spectral_last)
        self.prior = PatchPrior(reads * memory_channels, crop_size, prior_features, latent_size)
        edges, centres = (
            _quantiles((torch.arange(n) + shift) / self.tiles)
            for n, shift in ((self.tiles + 1, 0.0), (self.tiles, 0.5))
        )
        nearest = torch.minimum(edges[1:] - centres, centres - edges[:-1])
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("deviations", nearest / self.sharpness, persistent=False)

    def key_points(self, embedding: Tensor) -> Tensor:
        """Keys of embeddings `[T, B, D]` before they are moved to the centre of a tile: `[T, B, K, 2]`.

        Raises:
            ValueError: with "ranked", there are more images than tiles.
        """
        length = len(embedding)
        if self.keys is not None:
            points: Tensor = self.whiten(self.keys(embedding.flatten(0, 1)))
            return points.view(*embedding.shape[:2], self.reads, 2)
        if length > self.tiles**2:
            raise ValueError(f"an episode has {length} images; expected at most {self.tiles**2}, one per tile")
        with torch.no_grad():
            rank = (embedding @ self.get_buffer("direction")).argsort(0).argsort(0)
        tile = torch.stack([rank % self.tiles, rank // self.tiles], -1)
        return self.get_buffer("centres")[tile].unsqueeze(2).expand(-1, -1, self.reads, -1)

    def infer_keys(self, embedding: Tensor) -> tuple[Gaussian, Tensor]:
        """q(Y|X) of embeddings `[T, B, D]`, `[T, B, K, 2]`, and the points that select the tiles."""
        points = self.key_points(embedding)
        tile = self.tile(points)
        return Gaussian(self.get_buffer("centres")[tile], self.get_buffer("deviations")[tile]), points

    def tile(self, keys: Tensor) -> Tensor:
        """The tiles that contain keys of any shape: columns and rows, 0 to `tiles` − 1."""
        share = 0.5 + 0.5 * torch.erf(keys.detach().float() / math.sqrt(2))
        return (share * self.tiles).long().clamp(max=self.tiles - 1)

    def grid(self) -> Tensor:
        """The centres of all tiles as keys, `[tiles², 2]`."""
        x, y = torch.meshgrid(self.get_buffer("centres"), self.get_buffer("centres"), indexing="xy")
        return torch.stack([x, y], -1).flatten(0, 1)

    def write(self, embedding: Tensor, keys: Gaussian) -> Tensor:
        """M `[B, C, S, S]` of an episode's embeddings `[T, B, D]`."""
        side = self.crop_size
        memory = embedding.new_zeros(embedding.shape[1], self.tiles, self.tiles, self.channels, side, side)
        blocks = embedding.reshape(*embedding.shape[:2], self.reads, self.channels, side, side)
        memory = memory.index_put(self._places(keys.mean), blocks, accumulate=True)
        return memory.permute(0, 3, 1, 4, 2, 5).reshape(-1, self.channels, self.size, self.size)

    def windows(self, memory: Tensor, keys: Tensor) -> Tensor:
        """The tiles of `memory` `[B, C, S, S]` at keys `[N, B, K, 2]`: `[N, B, K, C, crop_size, crop_size]`."""
        grid = (self.tiles, self.crop_size)
        tiles = memory.reshape(-1, self.channels, *grid, *grid).permute(0, 2, 4, 1, 3, 5)
        return tiles[self._places(keys)]

    def _places(self, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Batch entry, row and column of the tiles at keys `[N, B, K, 2]`, each `[N, B, K]`."""
        column, row = self.tile(keys).unbind(-1)
        entry = torch.arange(keys.shape[1], device=keys.device).view(1, -1, 1).expand_as(row)
        return entry, row, column


class Whitening(nn.Module):
    """Whitening: zero mean and identity covariance; batch statistics in training, running ones in evaluation.

    Batch normalisation would allow two equal coordinates, whose keys lie on one line through the memory.

    Args:
        size: width of a vector.
        momentum: momentum of the running statistics.
        eps: added to variances.
    """

    def __init__(self, size: int, momentum: float = 0.02, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("covariance", torch.eye(size))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, size]` to `[N, size]`."""
        mean, covariance = self.get_buffer("mean"), self.get_buffer("covariance")
        x = x.to(mean.dtype)
        with torch.autocast(x.device.type, enabled=False):
            if self.training:
                centred = x - x.mean(0)
                spread = centred.t() @ centred / len(x)
                with torch.no_grad():
                    mean.lerp_(x.mean(0), self.momentum)
                    covariance.lerp_(spread, self.momentum)
            else:
                centred, spread = x - mean, covariance
            root = torch.linalg.cholesky(spread + self.eps * torch.eye(len(mean), device=x.device, dtype=x.dtype))
            white: Tensor = torch.linalg.solve_triangular(root, centred.t(), upper=False).t()
            return white


def _quantiles(shares: Tensor) -> Tensor:
    """Quantiles of the standard normal distribution: −∞ at 0, ∞ at 1."""
    return math.sqrt(2) * torch.erfinv(2 * shares.double() - 1).float()
