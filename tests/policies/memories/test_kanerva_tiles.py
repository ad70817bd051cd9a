"""Tiles of Kanerva++'s memory: which key means which, what is written and read there, and how images are spread."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn import functional as F

from policies.memories.kanerva.encoder import DeepLinear
from policies.memories.kanerva.parts import Gaussian, Writer
from policies.memories.kanerva.tiles import KanervaBlocks, Whitening

T, B, K, C, SIDE, TILES = 4, 3, 2, 3, 4, 3


def blocks(allocation: Any = "inferred", reads: int = K) -> KanervaBlocks:
    return KanervaBlocks(8, 16, C, SIDE * TILES, reads, SIDE, 5, allocation).double()


def embeddings(length: int = T, reads: int = K) -> Tensor:
    return torch.randn(length, B, reads * C * SIDE * SIDE).double()


def test_writing_and_reading_are_sums_over_tiles() -> None:
    parts, embedding = blocks(), embeddings()
    mean, asked = torch.randn(2, T, B, K, 2).double()
    memory = parts.write(embedding, Gaussian(mean, mean))
    windows = parts.windows(memory, asked)
    expected = torch.zeros(B, C, SIDE * TILES, SIDE * TILES).double()
    content = embedding.view(T, B, K, C, SIDE, SIDE)

    def corner(key: Tensor) -> list[int]:
        return [SIDE * int(share * TILES) for share in Normal(0.0, 1.0).cdf(key)]

    for t, b, k in torch.cartesian_prod(*map(torch.arange, (T, B, K))).tolist():
        x, y = corner(mean[t, b, k])
        expected[b, :, y : y + SIDE, x : x + SIDE] += content[t, b, k]
    torch.testing.assert_close(memory, expected)
    for t, b, k in torch.cartesian_prod(*map(torch.arange, (T, B, K))).tolist():
        x, y = corner(asked[t, b, k])
        torch.testing.assert_close(windows[t, b, k], expected[b, :, y : y + SIDE, x : x + SIDE])


def test_standard_normal_keys_fall_on_all_tiles_alike() -> None:
    counts = blocks().tile(torch.randn(90_000)).bincount()
    assert len(counts) == TILES
    assert (counts - 30_000).abs().max() < 600


@pytest.mark.parametrize("allocation", ["inferred", "ranked"])
def test_keys_lie_in_the_middle_of_tiles_and_samples_stay_there(allocation: str) -> None:
    parts = blocks(allocation)
    keys, points = parts.infer_keys(embeddings(8))
    assert torch.equal(parts.tile(keys.mean), parts.tile(points))
    share = Normal(0.0, 1.0).cdf(keys.mean) * TILES
    torch.testing.assert_close(share, share.floor() + 0.5, atol=1e-6, rtol=0)
    samples = keys.mean + 3.9 * keys.std * torch.tensor([-1.0, 1.0]).double().view(2, 1, 1, 1, 1)
    assert torch.equal(parts.tile(samples), parts.tile(keys.mean).expand_as(samples))


def test_ranked_images_share_no_tile_and_come_back() -> None:
    parts, embedding = blocks("ranked"), embeddings(TILES**2)
    keys, _ = parts.infer_keys(embedding)
    windows = parts.windows(parts.write(embedding.view(9, B, K, -1).clone().flatten(2), keys), keys.mean)
    # the K blocks of an image lie upon one another
    torch.testing.assert_close(windows, embedding.view(9, B, K, C, SIDE, SIDE).sum(2, keepdim=True).expand_as(windows))
    assert len(parts.tile(keys.mean)[:, 0, 0].unique(dim=0)) == 9
    order = torch.randperm(9)
    torch.testing.assert_close(parts.infer_keys(embedding[order])[0].mean, keys.mean[order])
    with pytest.raises(ValueError, match="an episode has 10 images; expected at most 9, one per tile"):
        parts.infer_keys(embeddings(10))


def test_inferred_keys_are_the_networks_and_whitened() -> None:
    parts, embedding = blocks(), embeddings(40)
    assert parts.keys is not None
    points = parts.infer_keys(embedding)[1].flatten(0, 1).flatten(1)
    torch.testing.assert_close(points.mean(0), torch.zeros(2 * K).double())
    torch.testing.assert_close(points.t() @ points / len(points), torch.eye(2 * K).double(), atol=1e-2, rtol=0)
    raw = parts.keys(embedding.flatten(0, 1))
    back = torch.linalg.lstsq(points, raw - raw.mean(0)).solution
    torch.testing.assert_close(points @ back, raw - raw.mean(0))


def test_whitening_separates_entries_that_are_copies_but_for_a_little() -> None:
    """Normalised one by one they would stay copies, and all images lie on one line of the memory."""
    torch.manual_seed(0)
    whiten, one = Whitening(2, momentum=1.0).double(), torch.randn(500, 1).double()
    x = torch.cat([one, one + 0.1 * torch.randn(500, 1).double()], 1)
    white = whiten(x)
    torch.testing.assert_close(white.t() @ white / 500, torch.eye(2).double(), atol=0.01, rtol=0)
    whiten.eval()
    torch.testing.assert_close(whiten(x[:7]), white[:7])  # the batch's values were kept


def test_the_readings_the_paper_leaves_open() -> None:
    layers = DeepLinear(6, 5, 4, spectral_last=False).double()
    with torch.no_grad():
        layers[2].weight.mul_(3)
    x = torch.randn(2, 6).double()
    hidden = F.linear(x, layers[0].weight / layers.sigmas()[0], layers[0].bias)
    hidden = F.linear(hidden, layers[1].weight / layers.sigmas()[1], layers[1].bias)
    torch.testing.assert_close(layers(x), F.linear(hidden, layers[2].weight, layers[2].bias))
    torch.testing.assert_close(F.linear(x, *layers.collapsed()), layers(x))
    one, two = torch.randn(2, 1, 6)
    for linear in (True, False):
        writer = Writer(6, 8, 2, 16, linear)
        assert torch.allclose(writer(one + two), writer(one) + writer(two), atol=1e-5) == linear
        assert not writer(torch.zeros(1, 6)).any()
