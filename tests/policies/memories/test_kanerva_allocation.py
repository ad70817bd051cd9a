"""Kanerva++'s generative model with blocks: where they lie, what is read there, and that the memory is what is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn import functional as F

from policies.memories.kanerva.encoder import DeepLinear
from policies.memories.kanerva.generative_model import KanervaModel
from policies.memories.kanerva.parts import Gaussian, Writer
from policies.memories.kanerva.places import KanervaBlocks

T, B = 4, 3


def build(**options: Any) -> KanervaModel:
    sizes: dict[str, Any] = {
        **{"image_shape": (1, 8, 8), "latent_size": 8, "memory_size": 16, "crop_size": 8, "reads": 1},
        **{"embedding_size": 64, "dense_size": 32, "prior_features": 8, "decoder_features": 64},
        **{"encoder_channels": (64,), "network": "dense", "write": "block", "normalise": True, "writer_features": 8},
    }
    return KanervaModel(**{**sizes, **options})


def blocks(**options: Any) -> KanervaBlocks:
    model = build(**options).double()
    assert isinstance(model.kanerva, KanervaBlocks)
    return model.kanerva


def noise(length: int, batch: int) -> Tensor:
    """Images of which each is one of a kind: three random pixels a row."""
    return (torch.rand(length, batch, 1, 8, 8).argsort(-1) < 3).float()


def lines(length: int, batch: int) -> Tensor:
    """Images of one of 16 kinds: a row or a column of ink."""
    kinds = torch.cat([torch.eye(8).view(8, 8, 1).expand(8, 8, 8), torch.eye(8).view(8, 1, 8).expand(8, 8, 8)])
    return kinds[torch.randint(16, (length, batch))].unsqueeze(2)


def test_writing_and_reading_are_sums_over_pixels() -> None:
    parts = blocks(reads=2, memory_size=7, crop_size=4, embedding_size=5, prior_features=2)
    keys = Gaussian(torch.randn(T, B, 2, 2).double(), torch.rand(T, B, 2, 2).double())
    embedding, size, side = torch.randn(T, B, 5).double(), 7, 4
    memory = parts.write(embedding, keys)
    expected, windows = torch.zeros(B, 3, size, size).double(), torch.zeros(T, B, 2, 3, side, side).double()
    content = (embedding @ parts.content.weight.T).view(T, B, 2, 3, side, side)
    where = Normal(0.0, 1.0).cdf(keys.mean) * size - 0.5  # the centre, in cells: uniform over the memory
    for write in (True, False):
        for t, b, k, i, j in torch.cartesian_prod(*map(torch.arange, (T, B, 2, side, side))).tolist():
            x, y = where[t, b, k]
            row = (1 - (y + i - 1.5 - torch.arange(size)).abs()).clamp(min=0)
            column = (1 - (x + j - 1.5 - torch.arange(size)).abs()).clamp(min=0)
            if write:
                expected[b] += content[t, b, k, :, i, j].view(3, 1, 1) * torch.outer(row, column)
            else:
                windows[t, b, k, :, i, j] = (memory[b] * torch.outer(row, column)).sum((1, 2))
    torch.testing.assert_close(memory, expected)
    torch.testing.assert_close(parts.windows(memory, keys.mean), windows)


@pytest.mark.parametrize("allocation", ["ranked", "place"])
def test_tiles_do_not_overlap_and_give_back_what_was_written(allocation: str) -> None:
    parts, embedding = blocks(allocation=allocation), torch.randn(T, B, 64).double()
    keys = parts.key_posterior(embedding)
    windows = parts.windows(parts.write(embedding, keys), keys.mean)
    torch.testing.assert_close(windows.flatten(2), parts.content(embedding))
    assert len(keys.mean[:, 0, 0].unique(dim=0)) == T


@pytest.mark.parametrize(("allocation", "same"), [("inferred", True), ("ranked", True), ("place", False)])
def test_an_episode_is_a_set_unless_its_places_are_given(allocation: str, same: bool) -> None:
    model, episode, order = build(allocation=allocation, shift=0.0).eval(), noise(T, B), [2, 0, 3, 1]
    memory, shuffled = model.infer_memory(episode), model.infer_memory(episode[order])
    assert torch.allclose(memory, shuffled, atol=1e-5) == same
    keys, moved = (model.key_posterior(model.embed(images)).mean for images in (episode, episode[order]))
    assert torch.allclose(keys[order], moved, atol=1e-5) == same


def test_inferred_keys_are_the_networks() -> None:
    parts, embedding = blocks(), torch.randn(T, B, 64).double()
    assert parts.keys is not None
    keys = parts.key_posterior(embedding)
    mean, raw = parts.keys.network(embedding).chunk(2, -1)
    centred = mean - mean.mean((0, 1))
    torch.testing.assert_close(keys.mean.squeeze(2), centred / (centred.square().mean((0, 1)) + 1e-5).sqrt())
    torch.testing.assert_close(keys.std.squeeze(2), F.softplus(raw + torch.tensor(0.3).double().expm1().log()) + 1e-4)


def train(model: KanervaModel, updates: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for _ in range(updates):
        costs = model(lines(T, 16), "memory")
        optimizer.zero_grad()
        costs["bound"].mean().backward()
        optimizer.step()


@torch.no_grad()
def controls(model: KanervaModel) -> tuple[float, float]:
    """Reconstruction along the memory's path, with the episode's memory and with another episode's."""
    model.eval()
    episode = lines(T, 64)
    memory = model.infer_memory(episode)
    own, other = (model(episode, "memory", m)["reconstruction"].mean() for m in (memory, memory.roll(1, 0)))
    return float(own), float(other)


def test_another_episodes_memory_hurts() -> None:
    """What was trained through the memory is lost with it: a model that leaves the memory unread fails here."""
    torch.manual_seed(0)
    model = build(allocation="ranked")
    before = controls(model)
    assert before[1] < 1.2 * before[0]
    model.train()
    train(model, 120)
    own, other = controls(model)
    assert own < 0.2 * before[0]
    assert other > 10 * own


def test_a_pooled_memory_of_normalised_embeddings_is_the_episodes() -> None:
    """Of its power little is common to all episodes, where without normalisation nearly all is."""
    shares = []
    for normalise in (True, False):
        torch.manual_seed(0)
        model = build(write="pooled", normalise=normalise)
        memory = model.infer_memory(noise(T, 64)).detach()
        shares.append(float(memory.mean(0).square().mean() / memory.square().mean()))
    assert shares[0] < 0.1 < shares[1]


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"write": "blocks"}, "write is 'blocks'; it must be 'pooled' or 'block'"),
        ({"allocation": "free"}, "allocation is 'free'; it must be one of inferred, ranked, place"),
        ({"crop_size": 16}, "crop_size is 16; it must be below memory_size, 16"),
        ({"network": "mlp"}, "network is 'mlp'; it must be 'image', 'dense' or 'patches'"),
        ({"encoder_channels": (8, 16)}, r"encoder_channels is \(8, 16\); network='dense' takes one number"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)
