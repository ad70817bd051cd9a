"""Kanerva++'s blocks that are feature maps: where they lie, what a cell holds, and that the memory is what is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from policies.memories.kanerva.generative_model import KanervaModel
from policies.memories.kanerva.patches import PatchDecoder, PatchEncoder, PatchPrior
from policies.memories.kanerva.places import KanervaBlocks, aligned, block_places, outer_room, whole_room

T, B = 4, 3


def build(**options: Any) -> KanervaModel:
    sizes: dict[str, Any] = {
        **{"image_shape": (1, 8, 8), "latent_size": 64, "memory_channels": 4, "memory_size": 16, "crop_size": 4},
        **{"reads": 1, "dense_size": 16, "prior_features": 16, "decoder_features": 16, "encoder_channels": (16,)},
        **{"encoder_blocks": 1, "network": "patches", "write": "block", "normalise": True},
    }
    return KanervaModel(**{**sizes, **options})


def spots(length: int, batch: int) -> Tensor:
    """Images of any 2 x 2 patches: each of the 4 x 4 is full or empty."""
    return torch.randint(2, (length, batch, 1, 4, 4)).float().repeat_interleave(2, 3).repeat_interleave(2, 4)


@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize("room", [outer_room(16), whole_room(5, 16)])
def test_rounded_keys_put_blocks_on_cells_and_pass_the_gradient(size: int, room: float) -> None:
    keys = torch.randn(2000, dtype=torch.float64, requires_grad=True)
    rounded = aligned(keys, size, 16, room)
    first = block_places(rounded, room) * 7.5 + 7.5 - (size - 1) / 2
    torch.testing.assert_close(first, first.round())
    assert 0 <= first.min() < first.max() <= 16 - size
    inside = (block_places(keys, room) * 7.5 + 7.5 - (size - 1) / 2 - first).abs()[
        (first > 0.5) & (first < 15.5 - size)
    ]
    assert inside.max() <= 0.5 + 1e-9
    (gradient,) = torch.autograd.grad(rounded.sum(), keys)
    assert torch.equal(gradient, torch.ones_like(keys))


def test_where_whole_blocks_begin_is_uniform() -> None:
    keys = aligned(torch.randn(120_000), 5, 16, whole_room(5, 16))
    first = (block_places(keys, whole_room(5, 16)) * 7.5 + 5.5).round().long()
    counts = first.bincount(minlength=12)
    assert len(counts) == 12
    assert (counts - 10_000).abs().max() < 600


@pytest.mark.parametrize(("allocation", "length"), [("inferred", 1), ("ranked", T)])
def test_a_block_alone_is_the_embedding(allocation: str, length: int) -> None:
    model = build(allocation=allocation).double()
    parts, embedding = model.kanerva, torch.randn(length, B, 64).double()
    assert isinstance(parts, KanervaBlocks)
    keys = parts.key_posterior(embedding)
    windows = parts.windows(parts.write(embedding, keys), keys.mean)
    torch.testing.assert_close(windows.flatten(2), embedding)


def test_each_cell_is_a_patch() -> None:
    """Without residual blocks a patch reaches its own cell only."""
    encoder = PatchEncoder((1, 8, 8), 4, 2, 3, 0, 0.0).eval()
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"write": "pooled"}, "write is 'pooled'; network='patches' makes blocks: write='block'"),
        ({"crop_size": 5}, "crop_size is 5; patches of "),
        ({"latent_size": 40}, "latent_size is 40; a map of Z needs a multiple of crop_size², 16"),
        ({"encoder_channels": (8, 16)}, r"encoder_channels is \(8, 16\); network='patches' takes one number"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_map_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="embedding_size is 7; as a map it must be 64"):
        KanervaBlocks(7, 8, 16, 4, 16, 1, 4, 8, "ranked", mapped=True)
