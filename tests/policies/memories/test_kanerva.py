"""Kanerva++ without a controller, against its equations written as loops. With one: test_kanerva_blocks.py.

Equation numbers and figures are those of Ramapuram, Wu and Kalousis, "Kanerva++", ICLR 2021.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from policies.memories import make_memory
from policies.memories.contract import State
from policies.memories.kanerva.encoder import DenseEncoder
from policies.memories.kanerva.memory import KanervaMemory
from policies.memories.kanerva.pooled import PooledKanerva, pooled
from policies.memories.shared.noise import fingerprint, gaussian, next_seed
from policies.memories.time.unroll import unroll
from policies.testing import MEMORY_CHECKS, MemoryCase

FEATURES, BATCH, LENGTH = 5, 2, 5
SIZES = {
    "kl_weight": 1.0,
    "sample": True,
    "output_size": 4,
    "embedding_size": 6,
    "dense_size": 9,
    "latent_size": 3,
    "memory_channels": 2,
    "memory_size": 8,
    "writer_features": 4,
    "crop_size": 5,
    "prior_features": 3,
    "encoder_channels": (4, 8),
}


def build(input_size: Any = FEATURES, dtype: torch.dtype = torch.float64, **options: Any) -> PooledKanerva:
    memory = make_memory("kanerva++", input_size=input_size, controller="none", **{**SIZES, **options}).to(dtype)
    assert isinstance(memory, KanervaMemory)
    assert isinstance(memory.form, PooledKanerva)
    return memory.form


def sequence(*shape: int, blank: int | None = None) -> Tensor:
    xs = torch.randn(LENGTH, BATCH, *shape).double()
    if blank is not None:
        xs[blank, 0] = 0
    return xs


# The equations


def window_by_eq_9(memory: Tensor, key: Tensor, size: int) -> Tensor:
    """One window of `[C, H, W]`: every cell weighed by its distance, eq. (9)."""
    s, x, y = key.tanh()
    height, width = memory.shape[1:]
    pixels = []
    for i in range(size):
        for j in range(size):
            # eq. (8), then from -1..1 to cells
            column = (s * (2 * j / (size - 1) - 1) + x + 1) / 2 * (width - 1)
            row = (s * (2 * i / (size - 1) - 1) + y + 1) / 2 * (height - 1)
            down = (1 - (row - torch.arange(height)).abs()).clamp(min=0)
            across = (1 - (column - torch.arange(width)).abs()).clamp(min=0)
            pixels.append(memory @ across @ down)
    return torch.stack(pixels, 1).view(-1, size, size)


def normal(numbers: Tensor) -> Normal:
    half = len(numbers) // 2
    return Normal(numbers[:half], torch.log1p(numbers[half:].exp()) + 1e-4)


def dense(layers: Any, x: Tensor) -> Tensor:
    """Appendix E: three linear layers, each divided by its spectral norm."""
    for layer, sigma in zip(layers, layers.sigmas(), strict=True):
        x = layer.weight @ x / sigma + layer.bias
    return x


def reference(memory: PooledKanerva, xs: Tensor) -> dict[str, list[list[Tensor]]]:
    """The paper, one batch entry at a time; everything pooled anew at every step."""
    parts, encoder = memory.kanerva, memory.encoder
    assert isinstance(encoder, DenseEncoder)
    found: dict[str, list[list[Tensor]]] = {name: [] for name in ("output", "kl_z", "kl_y", "reconstruction", "keys")}
    for b in range(xs.shape[1]):
        for rows in found.values():
            rows.append([])
        seed = torch.zeros(1).double()
        before = [torch.zeros(9).double(), torch.zeros(9).double()]
        written: list[Tensor] = []
        for x in xs[:, b]:
            h, now = x, []
            for index, layer in enumerate(encoder.layers):
                if index:
                    h = h.clamp(min=0)
                    now.append(h)
                    h = torch.cat([before[index - 1][:1], h[1:]])  # 0.125 of 9 units is 1
                h = layer.weight @ h + layer.bias
            blank = bool((x == 0).all())
            if not blank:
                before = now
                written.append(h)
            seed = next_seed(seed, fingerprint(x[None]))
            noise = [gaussian(seed, shape, stream)[0] for stream, shape in ((0, (2, 3)), (2, (3,)), (3, (3,)))]

            pool = torch.stack(written).mean(0)
            m = (parts.writer.project.weight @ pool).view(1, 4, 4, 4)
            for layer in parts.writer.layers:
                m = F.conv_transpose2d(m, layer.weight, stride=2, padding=1)
            q_y = normal(dense(parts.keys.network, h))
            y = q_y.mean + q_y.stddev * noise[0].flatten()  # eq. (6)
            windows = torch.cat([window_by_eq_9(m[0], key, 5) for key in y.view(2, 3)])
            features = windows[None]
            for layer in parts.prior.layers:
                if isinstance(layer, torch.nn.Conv2d):
                    features = F.conv2d(features, layer.weight, layer.bias, stride=2, padding=1).clamp(min=0)
            features = features.flatten()
            p_z = normal(parts.prior.project.weight @ features + parts.prior.project.bias)
            q_z = normal(dense(parts.posterior, h))
            decoded = dense(memory.input_decoder, q_z.mean + q_z.stddev * noise[2])
            z = p_z.mean + p_z.stddev * noise[1]  # figure 5, else
            found["output"][b].append(memory.readout.weight @ torch.cat([features, z, h]) + memory.readout.bias)
            found["kl_z"][b].append((0 if blank else 1) * kl_divergence(q_z, p_z).sum())
            found["kl_y"][b].append((0 if blank else 1) * kl_divergence(q_y, Normal(0.0, 1.0)).sum())
            found["reconstruction"][b].append((0 if blank else -1) * Normal(decoded, 1.0).log_prob(x).sum())
            found["keys"][b].append(y.view(2, 3))
    return found


@pytest.mark.parametrize("fast", [True, False])
def test_it_is_the_papers_equations(fast: bool) -> None:
    """Outputs, losses, keys, and the gradient of every parameter; one entry of one step is blank."""
    memory, xs = build(reconstruct=True, fast=fast), sequence(FEATURES, blank=3)
    with torch.no_grad():  # windows and distributions that matter
        memory.encoder.layers[2].weight.mul_(8)
    result = memory.unroll(xs, None, memory.initial_state(BATCH))
    ours = {"output": result.outputs, **result.losses}
    paper = reference(memory, xs)
    stacked = {name: torch.stack([torch.stack(row) for row in paper[name]], 1) for name in paper}
    torch.testing.assert_close(result.state["keys"], stacked.pop("keys")[-1])
    weights = {name: torch.randn(value.shape).double() for name, value in ours.items()}
    gradients = []
    for parts in (ours, stacked):
        total = torch.stack([(weights[name] * parts[name]).sum() for name in weights]).sum()
        gradients.append(torch.autograd.grad(total, list(memory.parameters()), retain_graph=True))
    for name, expected in stacked.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-9, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")
    for (name, _), actual, expected in zip(memory.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("check", MEMORY_CHECKS)
def test_it_conforms(check: str) -> None:
    """As every memory; the row of the conformance suite is the form with a controller."""
    options = {**SIZES, "controller": "none", "map_shape": (1, 4, 4), "reconstruct": True}
    learner = {"controller": "none", "memory_size": 8, "crop_size": 4, "output_size": 128}
    MEMORY_CHECKS[check](MemoryCase("kanerva++", options, learner=learner, updates=100))


# A sequence at once


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((FEATURES,), {"reconstruct": True}),
        ((FEATURES,), {"skip_blank": False, "sample": False, "shift": 0.0, "encoder_activation": "linear"}),
        ((FEATURES,), {"queries": {"query": 3, "query_image": (1, 6, 6)}, "map_shape": (2, 5, 7)}),
        ((2, 8, 8), {"reconstruct": True, "map_shape": (2, 8, 8), "likelihood": "bernoulli", "encoder_blocks": 2}),
        ((1, 7, 6), {"queries": {"query": 3}, "read_heads": 3, "memory_channels": 1, "reconstruct": True}),
    ],
    ids=["vector", "plain", "questions", "image", "image questions"],
)
@pytest.mark.parametrize("resets", ["none", "some"])
def test_a_sequence_at_once_is_step_by_step(shape: tuple[int, ...], options: dict[str, Any], resets: str) -> None:
    memory = build(shape if len(shape) > 1 else shape[0], **options)
    xs = sequence(*shape)
    xs[1, 0] = xs[2, 0] = xs[0, 1] = xs[4, 1] = 0
    starts = None
    if resets == "some":
        starts = torch.zeros(LENGTH, BATCH, dtype=torch.bool)
        starts[0, 1] = starts[2, 0] = starts[3, 1] = True
    asked = {
        name: torch.randn(LENGTH, BATCH, *([size] if isinstance(size, int) else size)).double()
        for name, size in options.get("queries", {}).items()
    }
    with torch.no_grad():
        used = unroll(memory, sequence(*shape)[:2], None, memory.initial_state(BATCH), queries=_first(asked, 2)).state
    found = []
    for way in (memory.unroll, lambda *arguments: unroll(memory, *arguments)):
        leaves = {name: value.clone().requires_grad_() for name, value in used.items()}
        result = way(xs, starts, leaves, None, asked or None)
        parts = {"outputs": result.outputs, **result.losses, **result.state}
        parts |= {} if result.grids is None else {"grids": result.grids}
        generator = torch.Generator().manual_seed(1)
        total = sum((torch.randn(p.shape, generator=generator).double() * p).sum() for p in parts.values())
        leaves |= dict(memory.named_parameters())
        gradient = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
        found.append(parts | {f"gradient of {name}": g for name, g in zip(leaves, gradient, strict=True)})
    assert found[0].keys() == found[1].keys()
    for name in found[1]:
        torch.testing.assert_close(*(f[name] for f in found), msg=lambda text, n=name: f"{n}: {text}")


def _first(asked: dict[str, Tensor], steps: int) -> dict[str, Tensor] | None:
    return {name: query[:steps] for name, query in asked.items()} or None


# Writing


@pytest.mark.parametrize("shift", [0.0, 0.125])
@pytest.mark.parametrize("shape", [(FEATURES,), (2, 6, 6)])
def test_written_step_by_step_or_as_a_set_the_memory_is_the_same(shape: tuple[int, ...], shift: float) -> None:
    memory = build(shape if len(shape) > 1 else shape[0], shift=shift)
    xs = sequence(*shape)
    state = memory.initial_state(BATCH)
    for x in xs:
        state = memory(x, state).state
    stepwise = memory.kanerva.writer(pooled(state["sum"], state["count"]))
    at_once = memory.kanerva.writer(memory.encoder.episode(xs, "online").mean(0))
    torch.testing.assert_close(stepwise, at_once)
    if not shift:  # without a shift the items have no order
        shuffled = memory.encoder.episode(xs[[3, 0, 4, 2, 1]], "online").mean(0)
        torch.testing.assert_close(memory.kanerva.writer(shuffled), at_once)


def test_the_writer_is_linear_and_an_empty_memory_is_empty() -> None:
    writer = build(memory_size=32, writer_features=16).kanerva.writer
    a, b = torch.randn(2, 3, 6).double()
    torch.testing.assert_close(writer(2 * a - b), 2 * writer(a) - writer(b))
    assert writer(a).shape == (3, 2, 32, 32)
    assert not writer(torch.zeros(1, 6).double()).any()
    assert 0.5 < build(memory_size=64, writer_features=64).kanerva.writer(torch.randn(64, 6).double()).std() < 2


def unchanged(before: State, after: State) -> bool:
    return all(torch.equal(before[name], after[name]) for name in before if name not in ("keys", "seed"))


def test_a_blank_input_is_not_written() -> None:
    for shape in ((FEATURES,), (1, 6, 6)):
        size = shape if len(shape) > 1 else shape[0]
        memory, blank = build(size, reconstruct=True), torch.zeros(BATCH, *shape).double()
        state = memory(sequence(*shape)[0], memory.initial_state(BATCH)).state
        step = memory(blank, state)
        assert unchanged(state, step.state)
        assert not any(loss.any() for loss in step.losses.values())
        almost = blank.clone()
        almost.flatten(1)[:, 0] = 1e-3
        assert not unchanged(state, memory(almost, state).state)
        counted = build(size, skip_blank=False)(blank, state)
        assert torch.equal(counted.state["count"], state["count"] + 1)


def test_questions_are_answered_and_not_written() -> None:
    memory = build(queries={"query": 3, "query_image": (1, 6, 6)})
    x, state = sequence(FEATURES)[0], memory.initial_state(BATCH)
    asked = {"query": torch.randn(BATCH, 3).double(), "query_image": torch.randn(BATCH, 1, 6, 6).double()}
    step = memory(x, state, asked)
    for name in asked:
        other = memory(x, state, asked | {name: asked[name] + 1})
        assert all(torch.equal(other.state[key], step.state[key]) for key in state)
        assert all(torch.equal(other.losses[key], step.losses[key]) for key in step.losses)
        assert not torch.isclose(other.output, step.output).any()
    with pytest.raises(ValueError, match=r"questions \['query', 'query_image'\]; missing: \['query_image'\]"):
        memory(x, state, {"query": asked["query"]})
    with pytest.raises(ValueError, match="missing: "):
        memory(x, state)


# Noise


def test_noise_is_standard_normal_and_belongs_to_what_was_seen() -> None:
    seeds = next_seed(torch.zeros(2000), fingerprint(torch.randn(2000, 4)))
    noise = gaussian(seeds, (5, 6), 0).flatten(1).double()
    assert torch.equal(noise, gaussian(seeds, (5, 6), 0).flatten(1).double())
    assert noise.mean().abs() < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert abs(noise.pow(4).mean() - 3) < 0.2
    assert (noise.sort().values[:, 15].mean() - 0.04).abs() < 0.05  # the 16th of 30
    assert (noise.T.corrcoef() - torch.eye(30).double()).abs().max() < 0.1  # places
    assert (noise[:60].corrcoef() - torch.eye(60).double()).abs().max() < 0.8  # entries
    other = gaussian(seeds, (5, 6), 1).flatten(1).double()
    assert torch.stack([noise.flatten(), other.flatten()]).corrcoef()[0, 1].abs() < 0.02
    following = gaussian(next_seed(seeds, fingerprint(torch.zeros(2000, 4))), (5, 6), 0).flatten().double()
    assert torch.stack([noise.flatten(), following]).corrcoef()[0, 1].abs() < 0.02
    assert gaussian(torch.tensor([0.0, 5.0]), (3,), 0).dtype == torch.float32


def test_the_last_bit_of_an_input_does_not_decide() -> None:
    x = torch.tensor([[0.3, 1.0, -2.0, 0.0]])
    assert torch.equal(fingerprint(x), fingerprint(torch.nextafter(x, torch.tensor(9.0))))
    assert not torch.equal(fingerprint(x), fingerprint(x + 0.1))
    assert not torch.equal(fingerprint(x), fingerprint(x[:, [1, 0, 2, 3]]))
    assert torch.equal(fingerprint(torch.stack([x, x]), dims=2), fingerprint(x).expand(2, 1))


def test_entries_that_see_the_same_draw_the_same_until_they_do_not() -> None:
    memory, xs = build(), sequence(FEATURES)
    xs[:, 1] = xs[:, 0]
    xs[2, 1] += 1
    keys = []
    state = memory.initial_state(BATCH)
    for x in xs:
        state = memory(x, state).state
        keys.append(state["keys"])
    same = [torch.allclose(key[0], key[1]) for key in keys]
    assert same == [True, True, False, False, False]
    assert not torch.isclose(keys[0], keys[1]).any()


def test_without_sampling_keys_are_means() -> None:
    memory, x = build(sample=False), sequence(FEATURES)[0]
    state = memory.initial_state(BATCH)
    assert "seed" not in state
    step = memory(x, state)
    embedding, _ = memory.encoder(x, [state["shift_0"], state["shift_1"]])
    torch.testing.assert_close(step.state["keys"], memory.kanerva.keys(embedding).mean)
    assert not torch.allclose(build()(x, build().initial_state(BATCH)).state["keys"], step.state["keys"])


# Panels, types, errors


def test_the_panel_outlines_the_window_that_was_read() -> None:
    memory = build(read_heads=1, sample=False)
    state = dict(memory(sequence(FEATURES)[0], memory.initial_state(BATCH)).state)
    state["keys"] = torch.tensor([[[0.5, -0.5, 0.25]]]).atanh().double().expand(BATCH, 1, 3)
    image = memory.panels(state)["memory"].image
    outline = (image == memory.get_buffer("colours")[0]).all(2)
    rows, columns = outline.nonzero().unbind(1)
    to_pixels = [round((place + 1) / 2 * 63) for place in (-1.0, 0.0, -0.25, 0.75)]
    found = [int(n) for n in (columns.min(), columns.max(), rows.min(), rows.max())]
    assert all(abs(a - b) <= 2 for a, b in zip(found, to_pixels, strict=True))
    assert not outline[32, 16]  # inside
    assert image.shape == (64, 64, 3)
    assert image.min() >= 0
    assert image.max() <= 1


@pytest.mark.parametrize("shape", [(FEATURES,), (1, 5, 5)])
def test_single_precision_zeros_and_long_runs_stay_finite(shape: tuple[int, ...]) -> None:
    size = shape if len(shape) > 1 else shape[0]
    memory = build(size, torch.float32, skip_blank=False, reconstruct=True, map_shape=(1, 4, 4))
    result = memory.unroll(torch.zeros(3, BATCH, *shape), None, memory.initial_state(BATCH))
    assert result.outputs.dtype == torch.float32
    assert result.grids is not None
    (result.outputs.sum() + result.grids.sum() + sum(loss.sum() for loss in result.losses.values())).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in memory.parameters())
    with torch.no_grad():
        state = memory.unroll(100 * torch.randn(2000, BATCH, *shape), None, result.state).state
    assert all(value.isfinite().all() for value in state.values())
    assert state["count"].tolist() == [2003.0] * BATCH


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_size": 12}, "memory_size is 12; it must be 8, 16, 32"),
        ({"memory_size": 4}, "memory_size is 4"),
        ({"memory_size": 64, "writer_features": 4}, "writer_features is 4; a memory of size 64 halves it 3 times"),
        ({"crop_size": 3}, "crop_size is 3; it must be at least 4"),
        ({"shift": 0.6}, r"shift is 0.6; it must be a fraction of the channels in 0..0.5"),
        ({"read_heads": 0}, "read_heads is 0; it must be at least 1"),
        ({"encoder_channels": (16, 0)}, "encoder_channels is 0; it must be at least 1"),
        ({"kl_weight": -1.0}, "kl_weight is -1.0; it must be at least 0"),
        ({"encoder_activation": "tanh"}, "encoder_activation is 'tanh'"),
        ({"likelihood": "poisson"}, "likelihood is 'poisson'; it must be 'gaussian' or 'bernoulli'"),
        ({"map_shape": (4, 4)}, r"the shape of an image is \(C, H, W\), not \(4, 4\)"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)
