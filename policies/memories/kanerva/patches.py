"""Networks of Kanerva++'s generative model whose embedding is a feature map: a block of the memory is that map.

The image is cut into as many patches as a block has cells; each cell contains the features of its patch. Encoder, prior
and decoder are convolutions over a grid of `crop_size`² cells, with few parameters, and Z is also a map. The paper
averages over the last grid of its encoder; a grid preserves positions in the image.

Sections and equation numbers are those of Ramapuram, Wu and Kalousis, "Kanerva++", ICLR 2021.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from policies.memories.kanerva.encoder import Encoder, ResidualBlock, Shift
from policies.memories.kanerva.parts import Gaussian, as_gaussian

PRIOR_OFFSET = -2.0
"""Added before the softplus of Z's standard deviation, whose initial value is then 0.13 instead of 0.69."""


def patch_side(shape: tuple[int, int, int], cells: int) -> int:
    """Side of a patch in pixels, if an image's side has `cells` patches.

    Raises:
        ValueError: the image is not square, or its side is not a multiple of `cells`.
    """
    if shape[1] != shape[2] or shape[1] % cells:
        raise ValueError(f"crop_size is {cells}; patches of {shape[1:]} pixels need a square image that it divides")
    return shape[1] // cells


class PatchEncoder(Encoder):
    """E as a map: patches to features, residual blocks, then `channels` batch-normalised features per cell.

    It has no temporal shift: the embedding of an image does not depend on other images.

    Args:
        shape: (C, H, W) of the input.
        cells: number of cells along a side of the map.
        channels: channels of E.
        features: channels of the residual blocks.
        blocks: number of residual blocks.
    """

    def __init__(self, shape: tuple[int, int, int], cells: int, channels: int, features: int, blocks: int) -> None:
        super().__init__(0.0)
        side = patch_side(shape, cells)
        self.stem = nn.Sequential(
            nn.Conv2d(shape[0], features, side, side, bias=False), nn.BatchNorm2d(features), nn.ReLU()
        )
        self.blocks = nn.ModuleList(ResidualBlock(features, features, 1, "batch") for _ in range(blocks))
        # with a bias, so that a window shows how many blocks overlap
        self.project = nn.Sequential(nn.Conv2d(features, channels, 1), nn.BatchNorm2d(channels, momentum=0.02))

    def run(self, x: Tensor, shift: Shift) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, x)
        embedding: Tensor = self.project(x).flatten(1)
        return embedding


class PatchPrior(nn.Module):
    """p(Z|M, Y) for a Z that is a map: two convolutions over the K windows, stacked along the channels.

    Args:
        channels: channels of the windows, K C.
        cells: number of cells along a window's side.
        features: channels between the convolutions.
        latent_size: L, a multiple of cells².

    Raises:
        ValueError: `latent_size` is not a multiple of cells².
    """

    def __init__(self, channels: int, cells: int, features: int, latent_size: int) -> None:
        super().__init__()
        if latent_size % cells**2:
            raise ValueError(f"latent_size is {latent_size}; a map of Z needs a multiple of crop_size², {cells**2}")
        self.features = features * cells**2
        self.layers = nn.Sequential(nn.Conv2d(channels, features, 3, padding=1), nn.ReLU())
        self.project = nn.Conv2d(features, 2 * latent_size // cells**2, 1)

    def forward(self, windows: Tensor) -> tuple[Gaussian, Tensor]:
        """`[N, K, C, cells, cells]` to the distribution of Z `[N, L]`, and the features of the windows."""
        features = self.layers(windows.flatten(1, 2))
        return as_gaussian(self.project(features).flatten(1), PRIOR_OFFSET), features.flatten(1)


class PatchDecoder(nn.Module):
    """From a map of Z to an image: a convolution, then one whose channels are the pixels of each patch.

    Args:
        latent_size: L, a multiple of cells².
        shape: (C, H, W) of the output; C is the number of parameters of a pixel's distribution.
        cells: number of cells along a side of the map.
        features: channels between the convolutions.
    """

    def __init__(self, latent_size: int, shape: tuple[int, int, int], cells: int, features: int) -> None:
        super().__init__()
        self.cells, self.side = cells, patch_side(shape, cells)
        self.layers = nn.Sequential(
            nn.Conv2d(latent_size // cells**2, features, 3, padding=1, bias=False),
            nn.BatchNorm2d(features),
            nn.ReLU(),
            nn.Conv2d(features, shape[0] * self.side**2, 3, padding=1),
        )

    def forward(self, latent: Tensor) -> Tensor:
        """`[N, L]` to `[N, C, H, W]`."""
        return F.pixel_shuffle(self.layers(latent.view(len(latent), -1, self.cells, self.cells)), self.side)
