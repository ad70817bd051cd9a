"""Kanerva++'s parts against their formulas, and the generative model of an episode made of them.

Equation numbers and figures are those of Ramapuram, Wu and Kalousis, "Kanerva++", ICLR 2021.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from policies.memories.kanerva.encoder import DenseEncoder, ImageEncoder, temporal_shift
from policies.memories.kanerva.generative_model import KanervaModel
from policies.memories.kanerva.likelihood import Likelihood
from policies.memories.kanerva.parts import EvoNormS0, Gaussian, ImageDecoder, Kanerva, read_windows

SIZES: dict[str, Any] = {
    "latent_size": 4,
    "memory_size": 8,
    "crop_size": 4,
    "embedding_size": 12,
    "dense_size": 16,
    "writer_features": 8,
    "prior_features": 4,
    "decoder_features": 16,
    "encoder_channels": (8, 16),
    "encoder_blocks": 1,
}
T, B = 5, 3


def build(shape: tuple[int, int, int] = (1, 8, 8), **options: Any) -> KanervaModel:
    return KanervaModel(shape, **{**SIZES, **options})


def bars(length: int, batch: int, size: int = 8) -> Tensor:
    """Episodes of binary images that are one horizontal bar each, of one of three rows known to the episode only."""
    rows = torch.randint(size, (batch, 3))[torch.arange(batch), torch.randint(3, (length, batch))]
    images = torch.zeros(length, batch, 1, size, size)
    images[torch.arange(length)[:, None], torch.arange(batch), 0, rows] = 1
    return images


# Parts


def test_windows_are_bilinear() -> None:
    """Eqs. (8) and (9) by four neighbours, windows that leave the memory included."""
    memory = torch.randn(B, 2, 6, 7).double()
    keys = (1.5 * torch.randn(B, 3, 3)).double()
    windows = read_windows(memory, keys, 4)
    assert windows.shape == (B, 3, 2, 4, 4)
    beyond = 0
    for b in range(B):
        for k in range(3):
            s, x, y = keys[b, k].tanh().tolist()
            for i in range(4):
                for j in range(4):
                    row, column = ((s * (2 * n / 3 - 1) + c + 1) / 2 for n, c in ((i, y), (j, x)))
                    row, column = row * 5, column * 6
                    value = torch.zeros(2).double()
                    for r in (math.floor(row), math.floor(row) + 1):
                        for c in (math.floor(column), math.floor(column) + 1):
                            if 0 <= r < 6 and 0 <= c < 7:
                                value += (1 - abs(row - r)) * (1 - abs(column - c)) * memory[b, :, r, c]
                            else:
                                beyond += 1
                    torch.testing.assert_close(windows[b, k, :, i, j], value)
    assert beyond > 0


def test_a_window_of_full_scale_is_the_memory() -> None:
    memory = torch.randn(1, 2, 5, 5).double()
    key = torch.tensor([[[20.0, 0.0, 0.0], [-20.0, 0.0, 0.0]]]).double()
    whole, turned = read_windows(memory, key, 5)[0]
    torch.testing.assert_close(whole, memory[0])
    torch.testing.assert_close(turned, memory[0].flip(1, 2))


def test_evonorm_is_its_formula() -> None:
    norm = EvoNormS0(6, groups=3).double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    x = torch.randn(2, 6, 3, 4).double()
    for n in range(2):
        for c in range(6):
            group = x[n, c // 2 * 2 : c // 2 * 2 + 2]
            variance = (group - group.mean()).square().mean()
            expected = x[n, c] * torch.sigmoid(norm.v[c] * x[n, c]) / (variance + 1e-5).sqrt()
            torch.testing.assert_close(norm(x)[n, c], expected * norm.gamma[c] + norm.beta[c])
    zeros = torch.zeros(1, 6, 2, 2).double().requires_grad_()
    norm(zeros).sum().backward()
    assert zeros.grad is not None
    assert zeros.grad.isfinite().all()


@pytest.mark.parametrize("both", [True, False])
def test_the_temporal_shift_is_a_loop(both: bool) -> None:
    features = torch.randn(4, 2, 9, 2, 2)
    shifted = temporal_shift(features, 2, both)
    for t in range(4):
        for c in range(9):
            source = t - 1 if c < 2 else t + 1 if both and c < 4 else t
            expected = features[source, :, c] if 0 <= source < 4 else torch.zeros(2, 2, 2)
            assert torch.equal(shifted[t, :, c], expected)


@pytest.mark.parametrize(
    ("encoder", "shape"),
    [
        (lambda: DenseEncoder(3, 16, 5, 0.25, linear=False), (3,)),
        (lambda: ImageEncoder((2, 6, 5), (4, 8), 2, 5, 0.25, "group", average_pool=True), (2, 6, 5)),
    ],
    ids=["vector", "image"],
)
def test_steps_that_carry_their_features_are_an_episode_shifted_online(encoder: Any, shape: tuple[int, ...]) -> None:
    encoder = encoder().double()
    xs = torch.randn(T, B, *shape).double()
    carried = [torch.zeros(B, *size).double() for size in encoder.shift_shapes]
    assert carried
    steps = []
    for x in xs:
        embedding, carried = encoder(x, carried)
        steps.append(embedding)
    online, both = encoder.episode(xs, "online"), encoder.episode(xs, "both")
    torch.testing.assert_close(torch.stack(steps), online)
    changed = xs.clone()
    changed[3] += 1
    differs = [not torch.allclose(a, b) for a, b in zip(encoder.episode(changed, "online"), online, strict=True)]
    assert differs == [False, False, False, True, True]  # the past knows nothing
    assert not torch.allclose(encoder.episode(changed, "both")[2], both[2])


def test_the_default_encoder_is_resnet18() -> None:
    """Its 18 layers with weights, and 512 features; the shift is before each block's first convolution."""
    encoder = KanervaModel().encoder
    convolutions = [m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert not any(m.bias is not None for m in convolutions)
    layers = [m for m in convolutions if m.kernel_size == (3, 3)]
    assert len(layers) + 1 == 18
    assert encoder.shift_shapes == [
        (8, 28, 28), (8, 28, 28), (8, 28, 28), (16, 14, 14), (16, 14, 14), (32, 7, 7), (32, 7, 7), (64, 4, 4)
    ]  # fmt: skip
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in encoder.modules()) == 20  # 3 of short cuts


def test_divergences_are_torchs() -> None:
    one, two = (Gaussian(torch.randn(B, 2, 3), torch.rand(B, 2, 3) + 0.1) for _ in range(2))
    between = kl_divergence(Normal(*one), Normal(*two)).sum((1, 2))
    torch.testing.assert_close(one.kl(two), between)
    torch.testing.assert_close(one.kl(), kl_divergence(Normal(*one), Normal(0.0, 1.0)).sum((1, 2)))
    assert torch.equal(one.at(None), one.mean)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 5, 7), (1, 3, 3), (4, 64, 48)])
def test_the_decoder_gives_the_shape_asked_for(shape: tuple[int, int, int]) -> None:
    assert ImageDecoder(4, shape, 16)(torch.randn(2, 4)).shape == (2, *shape)


# Likelihoods


def test_simple_likelihoods_are_torchs() -> None:
    decoded, image = torch.randn(B, 2, 3, 3), torch.rand(B, 2, 3, 3).round()
    binary, real = Likelihood("bernoulli"), Likelihood("gaussian")
    torch.testing.assert_close(binary.cost(decoded, image), -Bernoulli(logits=decoded).log_prob(image).sum((1, 2, 3)))
    torch.testing.assert_close(real.cost(decoded, image), -Normal(decoded, 1.0).log_prob(image).sum((1, 2, 3)))
    torch.testing.assert_close(binary.mean(decoded), decoded.sigmoid())
    assert torch.equal(real.mean(decoded), decoded)


# The model


@pytest.mark.parametrize("path", ["posterior", "memory"])
def test_the_bound_is_eq_4(path: Any) -> None:
    """From the same noise, with every term computed apart."""
    model, episode = build(norm="group").double(), bars(T, B).double()
    torch.manual_seed(1)
    costs = model(episode, path)
    torch.manual_seed(1)
    embedding = model.embed(episode)
    memory = model.infer_memory(episode)
    assert isinstance(model.kanerva, Kanerva)
    torch.testing.assert_close(memory, model.kanerva.writer(embedding.mean(0)))
    keys = model.key_posterior(embedding)
    y = keys.mean + keys.std * torch.randn_like(keys.mean)
    for t in range(T):
        windows = model.windows(memory, y)[t]
        for b in range(B):
            alone = read_windows(memory[b : b + 1], y[t, b : b + 1], 4)
            torch.testing.assert_close(windows[b], alone[0])
    prior = model.read_prior(memory, y)
    mean, raw = model.kanerva.posterior(embedding.flatten(0, 1)).chunk(2, 1)
    posterior = Normal(mean, torch.nn.functional.softplus(raw) + 1e-4)
    chosen = posterior if path == "posterior" else Normal(*prior)
    z = chosen.mean + chosen.stddev * torch.randn_like(mean)
    reconstruction = -Bernoulli(logits=model.decoder(z)).log_prob(episode.flatten(0, 1)).sum((1, 2, 3)).view(T, B)
    kl_z = kl_divergence(posterior, Normal(*prior)).sum(1).view(T, B) * (path == "posterior")
    kl_y = kl_divergence(Normal(*keys), Normal(0.0, 1.0)).sum((2, 3))
    for name, expected in {"reconstruction": reconstruction, "kl_z": kl_z, "kl_y": kl_y}.items():
        torch.testing.assert_close(costs[name], expected)
    torch.testing.assert_close(costs["bound"], reconstruction + kl_y + kl_z)


def test_training_takes_the_posterior_and_testing_the_memory() -> None:
    model, episode = build(norm="group"), bars(T, B)
    for mode, path in ((True, "posterior"), (False, "memory")):
        model.train(mode)
        found = []
        for way in (None, path):
            torch.manual_seed(2)
            found.append(model(episode, way)["bound"])
        assert torch.equal(*found)


def test_training_improves_the_bound() -> None:
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    bounds = []
    for _ in range(60):
        bound = model(bars(4, 8))["bound"].mean()
        optimizer.zero_grad()
        bound.backward()
        optimizer.step()
        bounds.append(float(bound.detach()))
    assert sum(bounds[-5:]) < 0.6 * sum(bounds[:5])
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_reading_again_is_reading_what_was_read() -> None:
    """Eq. (7): every step infers the keys of the image the step before gave, in the same memory."""
    model = build().eval()
    memory, noisy = model.infer_memory(bars(T, B)), torch.rand(2, B, 1, 8, 8)
    torch.manual_seed(3)
    steps = model.iterative_read(memory, noisy, 3)
    assert steps.shape == (3, 2, B, 1, 8, 8)
    torch.manual_seed(3)
    images = noisy
    for step in steps:
        keys = model.key_posterior(model.embed(images))
        y = keys.mean + keys.std * torch.randn_like(keys.mean)
        images = model.read(memory, y)
        torch.testing.assert_close(step, images)
    with pytest.raises(ValueError, match="steps is 0"):
        model.iterative_read(memory, noisy, 0)


def test_generated_images_come_from_the_memory_and_the_keys() -> None:
    model = build().eval()
    memory = model.infer_memory(bars(T, B))
    torch.manual_seed(4)
    images = model.generate(memory, 6)
    assert images.shape == (6, B, 1, 8, 8)
    assert images.min() > 0
    assert images.max() < 1
    torch.manual_seed(4)
    keys = model.prior_keys(6, B)
    assert torch.equal(model.read(memory, keys), images)
    assert keys.shape == (6, B, 2, 3)
    wide = model.prior_keys(2000, 1)
    assert wide.mean().abs() < 0.05
    assert (wide.std() - 1).abs() < 0.05


def test_perturbed_keys_are_near() -> None:
    model = build()
    seen: list[Tensor] = []
    model.read = lambda memory, keys: seen.append(keys)  # type: ignore[assignment, func-returns-value, method-assign]
    keys = model.prior_keys(1, B)[0]
    model.perturb(torch.zeros(B, 3, 8, 8), keys, 2000)
    assert seen[0].shape == (2000, B, 2, 3)
    assert ((seen[0] - keys).std() - 0.1).abs() < 0.005
    assert ((seen[0] - keys).mean()).abs() < 0.005


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "layer"}, "norm is 'layer'; it must be 'batch' or 'group'"),
        ({"likelihood": "poisson"}, "likelihood is 'poisson'; it must be one of bernoulli, gaussian"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)
    with pytest.raises(ValueError, match="path is 'test'; it must be 'posterior' or 'memory'"):
        build()(bars(1, 1), "test")  # type: ignore[arg-type]
