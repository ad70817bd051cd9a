"""Blocks of Kanerva++'s memory image: positions, writing and reading, and the allocation of items.

The block allocation of Ramapuram, Wu and Kalousis, "Kanerva++", ICLR 2021, as writing: the paper allocates where it
reads; here what belongs to a key is also written there.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policies.memories.kanerva.encoder import DeepLinear
from policies.memories.kanerva.parts import Gaussian, KeyModel, LearnedPrior
from policies.memories.kanerva.patches import PatchPrior

Allocation = Literal["inferred", "ranked", "place"]
ALLOCATIONS = ("inferred", "ranked", "place")


def block_places(keys: Tensor, room: float) -> Tensor:
    """Centres of blocks in −1..1, where the memory's corner cells are, for keys of any shape.

    Standard normal keys are uniform from −room to room.

    Args:
        keys: y.
        room: the farthest that a centre may be from the middle.
    """
    return room * torch.erf(keys / math.sqrt(2))


def inner_room(block_size: int, memory_size: int) -> float:
    """How far from the middle the centre of a block may be, so that all of the block lies within the memory."""
    return 1 - (block_size - 1) / (memory_size - 1)


def outer_room(memory_size: int) -> float:
    """How far the centre may be, so that it lies within the memory; half a block may be cut off."""
    return memory_size / (memory_size - 1)


def whole_room(block_size: int, memory_size: int) -> float:
    """The same where centres are rounded to cells: each row that a whole block can begin at is as likely as another."""
    return (memory_size - block_size + 1) / (memory_size - 1)


def aligned(keys: Tensor, block_size: int, memory_size: int, room: float) -> Tensor:
    """The nearest keys whose blocks lie on cells of the memory, all of them within it; gradients pass as if equal.

    Args:
        keys: y, of any shape.
        room: see `block_places`.
    """
    half, first = (memory_size - 1) / 2, (block_size - 1) / 2
    rows = (block_places(keys.detach(), room) * half + half - first).round().clamp(0, memory_size - block_size)
    nearest = math.sqrt(2) * torch.erfinv((rows + first - half) / (half * room))
    return keys + (nearest - keys).detach()


def cell_weights(places: Tensor, block_size: int, memory_size: int) -> Tensor:
    """Bilinear weights between the rows of a block and those of the memory, eq. (9) for a block at the memory's scale.

    Args:
        places: centres in −1..1, `[...]`.

    Returns:
        `[..., block_size, memory_size]`: 1 where a row of the block lies on one of the memory, falling to 0 a row away.
    """
    half = (memory_size - 1) / 2  # a centre at 0 lies there
    rows = _rows(block_size, memory_size, half, places.device, places.dtype)
    return (1 - torch.add(rows, places[..., None, None], alpha=half).abs()).clamp(min=0)


def offset_weights(offsets: Tensor, room: float, block_size: int, memory_size: int) -> Tensor:
    """The weights of `cell_weights` for blocks whose first row lies `room · offsets` rows from the memory's first."""
    rows = _rows(block_size, memory_size, (block_size - 1) / 2, offsets.device, offsets.dtype)
    return (1 - torch.add(rows, offsets[..., None, None], alpha=room).abs()).relu()


@functools.cache
def _rows(block_size: int, memory_size: int, half: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """How far the rows of a block in the middle lie from the memory's, `[block_size, memory_size]`; made once."""
    rows = torch.arange(block_size, device=device, dtype=dtype) - (block_size - 1) / 2 + half
    return rows.unsqueeze(1) - torch.arange(memory_size, device=device, dtype=dtype)


class KanervaBlocks(nn.Module):
    """What the block-allocated generative model has in place of `parts.Kanerva`.

    The memory is the sum of the blocks of all items. An item's block is a linear function of its embedding, or the
    embedding itself where that is a feature map, and lies at the mean of its keys, one block for each of the K keys; a
    read looks at a sample of them.

    Where an item goes, μ of q(Y|X):
    - "inferred": a dense network says, from the embedding, as in the paper.
    - "ranked": the items of an episode are ordered by a fixed projection of their embeddings, and have the tiles of a
      grid in that order, so that no two share one. It needs all T items, in any order.
    - "place": the tile of an item is its place in the episode. An upper limit, not a model of a set.

    Args:
        embedding_size: width of E.
        units: of the dense networks.
        latent_size: L.
        memory_channels: C of the memory.
        memory_size: S, its height and width.
        reads: K, blocks of an item, and windows read.
        crop_size: B, side of a block and of a window, below S.
        prior_features: feature maps of the learned prior's first layer, doubled by each further one.
        allocation: of the above.
        spectral_last: see `DeepLinear`.
        mapped: E is a map `[K C, B, B]`, flattened, and is the block; the prior is then a `PatchPrior`. A window
            between cells mixes patches, so the means of keys are rounded to cells, and keys begin sharp.
        normalise: batch-normalise the means of inferred keys, without parameters, so that items are spread over the
            whole memory from the start.
    """

    def __init__(
        self,
        embedding_size: int,
        units: int,
        latent_size: int,
        memory_channels: int,
        memory_size: int,
        reads: int,
        crop_size: int,
        prior_features: int,
        allocation: Allocation,
        spectral_last: bool = True,
        mapped: bool = False,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        if allocation not in ALLOCATIONS:
            raise ValueError(f"allocation is {allocation!r}; it must be one of {', '.join(ALLOCATIONS)}")
        if memory_size <= crop_size:
            raise ValueError(f"crop_size is {crop_size}; it must be below memory_size, {memory_size}")
        self.channels, self.size, self.reads, self.crop_size = memory_channels, memory_size, reads, crop_size
        self.allocation, self.mapped = allocation, mapped
        inferred = allocation == "inferred"
        self.room = whole_room(crop_size, memory_size) if mapped and inferred else outer_room(memory_size)
        cells = reads * memory_channels * crop_size**2
        self.content: nn.Linear | nn.Identity = nn.Identity()
        if not mapped:
            self.content = nn.Linear(embedding_size, cells, bias=False)
            nn.init.normal_(self.content.weight, std=embedding_size**-0.5)
        elif embedding_size != cells:
            raise ValueError(f"embedding_size is {embedding_size}; as a map it must be {cells}")
        self.keys: KeyModel | None = None
        self.normalise: nn.BatchNorm1d | None = None
        if inferred:
            std = 0.02 if mapped else 0.3
            self.keys = KeyModel(embedding_size, units, reads, numbers=2, std=std, spectral_last=spectral_last)
            self.normalise = nn.BatchNorm1d(2 * reads, momentum=0.02, affine=False) if normalise else None
        else:
            self.spread = nn.Parameter(torch.full((reads, 2), math.log(math.expm1(0.02 if mapped else 0.15))))
            self.register_buffer("direction", torch.randn(embedding_size))
        self.posterior = DeepLinear(embedding_size, units, 2 * latent_size, spectral_last)
        prior = PatchPrior if mapped else LearnedPrior
        self.prior = prior(reads * memory_channels, crop_size, prior_features, latent_size)

    def key_posterior(self, embedding: Tensor) -> Gaussian:
        """q(Y|X) of an episode's embeddings `[T, B, D]`: `[T, B, K, 2]`."""
        mean, std = self._key_posterior(embedding)
        return Gaussian(aligned(mean, self.crop_size, self.size, self.room) if self.mapped else mean, std)

    def _key_posterior(self, embedding: Tensor) -> Gaussian:
        length, batch_size = embedding.shape[:2]
        if self.keys is not None:
            mean, std = self.keys(embedding.flatten(0, 1))
            if self.normalise is not None:
                mean = self.normalise(mean.flatten(1)).view_as(mean)
            return Gaussian(*(part.unflatten(0, (length, batch_size)) for part in (mean, std)))
        if self.allocation == "ranked":
            with torch.no_grad():
                tile = (embedding @ self.get_buffer("direction")).argsort(0).argsort(0)
        else:
            tile = torch.arange(length, device=embedding.device).unsqueeze(1).expand(-1, batch_size)
        side = math.ceil(math.sqrt(length))
        tiles = torch.stack([tile % side, tile // side], -1).to(embedding.dtype)
        mean = math.sqrt(2) * torch.erfinv((2 * tiles + 1) / side - 1)
        mean = mean.unsqueeze(2).expand(-1, -1, self.reads, -1)
        return Gaussian(mean, F.softplus(self.spread).expand_as(mean))

    def write(self, embedding: Tensor, keys: Gaussian) -> Tensor:
        """M `[B, C, S, S]` of an episode's embeddings `[T, B, D]`."""
        down, across = self._weights(keys.mean)
        block = self.content(embedding).unflatten(2, (self.reads, self.channels, self.crop_size, self.crop_size))
        rows = block @ across.unsqueeze(3)  # [T, B, K, C, B, S], each row of a block along the memory's
        # over all rows of all blocks at once: [B, S, T K B] x [B, T K B, C S]
        down = down.permute(1, 4, 0, 2, 3).flatten(2)
        rows = rows.permute(1, 0, 2, 4, 3, 5).flatten(1, 3).flatten(2)
        memory: Tensor = (down @ rows).unflatten(2, (self.channels, self.size)).transpose(1, 2)
        return memory

    def windows(self, memory: Tensor, keys: Tensor) -> Tensor:
        """The windows of `memory` `[B, C, S, S]` at keys `[N, B, K, 2]`: `[N, B, K, C, crop_size, crop_size]`."""
        down, across = self._weights(keys)
        count, batch_size = keys.shape[:2]
        rows = down.transpose(0, 1).flatten(1, 3) @ memory.transpose(1, 2).flatten(2)  # [B, N K B, C S]
        rows = rows.view(batch_size, count, self.reads, self.crop_size, self.channels, self.size)
        return rows.permute(1, 0, 2, 4, 3, 5) @ across.transpose(3, 4).unsqueeze(3)

    def _weights(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Of `cell_weights`, down and across, each `[N, B, K, crop_size, S]`."""
        across, down = cell_weights(block_places(keys, self.room), self.crop_size, self.size).unbind(3)
        return down, across
