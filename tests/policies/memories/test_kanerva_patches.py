"""Kanerva++'s generative model with blocks: networks over patches, and that the memory is what is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from policies.memories.kanerva.generative_model import KanervaModel
from policies.memories.kanerva.parts import Gaussian
from policies.memories.kanerva.patches import PatchDecoder, PatchEncoder, PatchPrior

T, B = 4, 3


def build(**options: Any) -> KanervaModel:
    sizes: dict[str, Any] = {
        **{"image_shape": (1, 8, 8), "latent_size": 64, "memory_channels": 4, "memory_size": 16, "crop_size": 4},
        **{"reads": 1, "dense_size": 16, "prior_features": 16, "decoder_features": 16, "encoder_channels": (16,)},
        **{"encoder_blocks": 1, "write": "block"},
    }
    return KanervaModel(**{**sizes, **options})


def spots(length: int, batch: int) -> Tensor:
    """Images of any 2 x 2 patches: each of the 4 x 4 is full or empty."""
    return torch.randint(2, (length, batch, 1, 4, 4)).float().repeat_interleave(2, 3).repeat_interleave(2, 4)


def test_each_cell_is_a_patch() -> None:
    """Without residual blocks a patch reaches its own cell only."""
    encoder = PatchEncoder((1, 8, 8), 4, 2, 3, 0).eval()
    image = torch.rand(1, 1, 8, 8)
    other = image.clone()
    other[..., 2:4, 4:6] += 1
    moved = (encoder.run(image, lambda _, x: x) != encoder.run(other, lambda _, x: x)).view(2, 4, 4)
    assert moved.all(0).nonzero().tolist() == [[1, 2]]
    assert moved.sum() == 2

    decoder = PatchDecoder(3 * 16, (2, 8, 8), 4, 5).double().eval()
    latent = torch.randn(2, 48).double()
    hidden = F.conv2d(latent.view(2, 3, 4, 4), decoder.layers[0].weight, padding=1)  # type: ignore[arg-type]
    hidden = (hidden / (1 + 1e-5) ** 0.5).relu()
    pixels = F.conv2d(hidden, decoder.layers[3].weight, decoder.layers[3].bias, padding=1)  # type: ignore[arg-type]
    expected = torch.empty(2, 2, 8, 8).double()
    for channel, y, x in torch.cartesian_prod(*map(torch.arange, (2, 2, 2))).tolist():
        expected[:, channel, y::2, x::2] = pixels[:, channel * 4 + y * 2 + x]
    torch.testing.assert_close(decoder(latent), expected)


def test_the_prior_is_two_convolutions() -> None:
    prior, windows = PatchPrior(4, 4, 6, 2 * 16).double(), torch.randn(5, 2, 2, 4, 4).double()
    (mean, std), features = prior(windows)
    conv = prior.layers[0]
    hidden = F.conv2d(windows.flatten(1, 2), conv.weight, conv.bias, padding=1).relu()  # type: ignore[arg-type]
    numbers = torch.einsum("nfyx,of->noyx", hidden, prior.project.weight[:, :, 0, 0])
    numbers = numbers + prior.project.bias.view(-1, 1, 1)
    torch.testing.assert_close(features, hidden.flatten(1))
    torch.testing.assert_close(mean, numbers[:, :2].flatten(1))
    torch.testing.assert_close(std, F.softplus(numbers[:, 2:].flatten(1) - 2) + 1e-4)


@pytest.mark.parametrize("allocation", ["inferred", "ranked"])
def test_another_episodes_memory_hurts(allocation: str) -> None:
    """What was trained through the memory is lost with it: a model that leaves the memory unread fails here."""
    torch.manual_seed(0)
    model = build(allocation=allocation)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        model(spots(T, 16), "memory")["bound"].mean().backward()
        optimizer.step()
    model.eval()
    episode = spots(T, 64)
    with torch.no_grad():
        memory = model.infer_memory(episode)
        own, other = (model(episode, "memory", m)["bound"].mean() for m in (memory, memory.roll(1, 0)))
    assert own < 64 * 0.6  # ln 2 a pixel is 44
    assert other > 2 * own


def test_a_search_finds_images_by_what_is_seen_of_them() -> None:
    """All tiles are read; the one that fits the visible pixels is the answer, whatever the keys of the query are."""
    model = build(allocation="ranked").eval()
    pictures = (torch.rand(16, B, 1, 8, 8) > 0.5).float()
    model.read_prior = lambda memory, keys: Gaussian(pictures.flatten(0, 1), pictures.flatten(0, 1))  # type: ignore[method-assign]
    model.decoder = torch.nn.Identity()
    model.likelihood.mean = lambda decoded: decoded  # type: ignore[method-assign]
    keys = torch.zeros(16, B, 1, 2)
    asked = torch.randint(16, (T, B))
    right = pictures[asked, torch.arange(B)]
    noisy = torch.where(torch.rand(right.shape) < 0.1, 1 - right, right)
    assert torch.equal(model.search(torch.zeros(B, 4, 16, 16), noisy, keys), right)
    seen = torch.zeros_like(right)
    seen[..., :4, :] = 1
    assert torch.equal(model.search(torch.zeros(B, 4, 16, 16), right * seen, keys, seen), right)


def test_queries_ask_in_place_of_the_episode() -> None:
    """What is written and scored is the episode; what decides where to read is the query."""
    torch.manual_seed(0)
    model = build().eval()
    episode, queries = spots(T, B), spots(T, B)
    torch.manual_seed(1)
    asked = model(episode, "memory", queries=queries)
    torch.manual_seed(1)
    keys = model.key_posterior(model.embed(queries))
    prior = model.read_prior(model.infer_memory(episode), keys.at(torch.randn_like(keys.mean)))
    latent = prior.at(torch.randn_like(prior.mean))
    expected = model.likelihood.cost(model.decoder(latent), episode.flatten(0, 1))
    torch.testing.assert_close(asked["reconstruction"].flatten(), expected)
    points = [model.kanerva.infer_keys(model.embed(images))[1] for images in (episode, queries)]
    torch.testing.assert_close(asked["key_error"], (points[0] - points[1]).square().sum((2, 3)))
    same = model(episode, "memory", queries=episode)
    assert not same["key_error"].any()
    torch.manual_seed(1)
    alone = model(episode, "memory")
    torch.manual_seed(1)
    torch.testing.assert_close(alone["reconstruction"], model(episode, "memory", queries=episode)["reconstruction"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"write": "blocks"}, "write is 'blocks'; it must be 'pooled' or 'block'"),
        ({"allocation": "free"}, "allocation is 'free'; it must be one of inferred, ranked"),
        ({"memory_size": 18}, "memory_size is 18; tiles need a multiple of crop_size, 4"),
        ({"crop_size": 5}, "crop_size is 5; patches of "),
        ({"latent_size": 40}, "latent_size is 40; a map of Z needs a multiple of crop_size², 16"),
        ({"encoder_channels": (8, 16)}, r"encoder_channels is \(8, 16\); write='block' takes one number"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_training_with_spoilt_queries_keeps_their_keys() -> None:
    """The tile of a noisy copy is that of its image more often than before, and images still lie on all tiles."""
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def spoilt(images: Tensor) -> Tensor:
        return torch.where(torch.rand(images.shape) < 0.1, 1 - images, images)

    @torch.no_grad()
    def kept() -> tuple[float, int]:
        episode = spots(T, 200)
        clean, noisy = (
            model.kanerva.tile(model.key_posterior(model.embed(x)).mean) for x in (episode, spoilt(episode))
        )
        return float((clean == noisy).all(-1).float().mean()), len(clean.flatten(0, 2).unique(dim=0))

    before, _ = kept()
    for _ in range(30):
        episode = spots(T, 16)
        costs = model(episode, "memory", queries=spoilt(episode))
        optimizer.zero_grad()
        (costs["bound"] + 1000 * costs["key_error"]).mean().backward()
        optimizer.step()
    after, tiles = kept()
    assert after > before + 0.15
    assert tiles == 16
