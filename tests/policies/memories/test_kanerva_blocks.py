"""Kanerva++ behind its controller, against its equations written as loops. Without one: test_kanerva.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from policies.memories import make_memory
from policies.memories.contract import State
from policies.memories.kanerva.blocks import BlockKanerva
from policies.memories.kanerva.encoder import DeepLinear
from policies.memories.kanerva.memory import KanervaMemory
from policies.memories.kanerva.places import block_places, max_distance_within, offset_weights
from policies.memories.shared.noise import fingerprint, gaussian, next_seed
from policies.memories.time.unroll import unroll

FEATURES, BATCH, LENGTH = 5, 2, 5
H, R, L, C, S, CROP, K = 6, 4, 3, 2, 9, 4, 2
SIZES = {
    **{"hidden_size": H, "output_size": R, "latent_size": L, "memory_channels": C, "memory_size": S},
    **{"crop_size": CROP, "read_heads": K, "dense_size": 7, "prior_features": 3, "encoder_channels": (4,)},
    **{"embedding_size": 5, "kl_weight": 0.5, "sample": True},
}


def build(input_size: Any = FEATURES, dtype: torch.dtype = torch.float64, **options: Any) -> BlockKanerva:
    torch.manual_seed(3)
    memory = make_memory("kanerva++", input_size=input_size, **{**SIZES, **options}).to(dtype)
    assert isinstance(memory, KanervaMemory)
    assert isinstance(memory.form, BlockKanerva)
    return memory.form


def sequence(*shape: int, blank: int | None = None) -> Tensor:
    xs = torch.randn(LENGTH, BATCH, *shape).double()
    if blank is not None:
        xs[blank, 0] = 0
    return xs


# The equations


def linear(layer: Any, x: Tensor) -> Tensor:
    return layer.weight @ x + layer.bias


def dense(layers: Any, x: Tensor) -> Tensor:
    for layer, sigma in zip(layers, layers.sigmas(), strict=True):
        x = layer.weight @ x / sigma + layer.bias
    return x


def corner(key: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column, in cells, of the first pixel of the block at `key`: uniform over where a block fits."""
    x, y = Normal(0.0, 1.0).cdf(key) * (S - CROP)
    return y, x


def overlap(row: Tensor, column: Tensor) -> Tensor:
    """Eq. (9): how much of a pixel lies on each cell, `[S, S]`."""
    down, across = ((1 - (place - torch.arange(S)).abs()).clamp(min=0) for place in (row, column))
    return torch.outer(down, across)


PIXELS = [(i, j) for i in range(CROP) for j in range(CROP)]


def written(memory: Tensor, key: Tensor, gate: Tensor, block: Tensor) -> Tensor:
    """M (1 − g a) + g ST⁻¹(P), pixel by pixel."""
    top, left = corner(key)
    covered, added = torch.zeros(S, S).double(), torch.zeros(C, S, S).double()
    for i, j in PIXELS:
        weight = overlap(top + i, left + j)
        covered, added = covered + weight, added + weight * block[:, i, j].view(C, 1, 1)
    return memory * (1 - gate * covered) + gate * added


def window(memory: Tensor, key: Tensor) -> Tensor:
    top, left = corner(key)
    pixels = [(overlap(top + i, left + j) * memory).sum((1, 2)) for i, j in PIXELS]
    return torch.stack(pixels, 1).view(C, CROP, CROP)


def reference(memory: BlockKanerva, xs: Tensor) -> dict[str, Tensor]:
    """One batch entry and one step at a time."""
    found: dict[str, list[Tensor]] = {name: [] for name in ("outputs", "kl_z", "kl_y", "reconstruction", "memory")}
    for b in range(xs.shape[1]):
        h, c, r, m = (torch.zeros(*shape).double() for shape in ((H,), (H,), (R,), (C, S, S)))
        seed = torch.zeros(1).double()
        for x in xs[:, b]:
            cell = memory.controller
            gates = cell.weight_ih @ torch.cat([x, r]) + cell.bias_ih + cell.weight_hh @ h + cell.bias_hh
            i, f, g, o = gates.view(4, H)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            e = (h - h.mean()) / (h.var(correction=0) + 1e-5).sqrt()
            blank = bool((x == 0).all())
            if not blank:
                gate = linear(memory.write_gate, e).sigmoid()
                m = written(m, dense(memory.write_place, h), gate, linear(memory.content, e).view(C, CROP, CROP))
            seed = next_seed(seed, fingerprint(x[None]))
            noise = [gaussian(seed, shape, stream)[0] for stream, shape in ((0, (K, 2)), (1, (L,)), (2, (L,)))]
            mean, raw = dense(memory.keys, h).view(2, K, 2)
            q_y = Normal(mean, F.softplus(raw + math.log(math.exp(0.3) - 1)) + 1e-4)
            y = q_y.mean + q_y.stddev * noise[0]
            windows = torch.stack([window(m, key) for key in y], 1).flatten(0, 1)  # [C K, B, B]
            features = windows[None]
            for layer in memory.prior.layers:
                if isinstance(layer, torch.nn.Conv2d):
                    features = F.conv2d(features, layer.weight, layer.bias, stride=2, padding=1).tanh()
            features = features.flatten()
            numbers = linear(memory.prior.project, features)
            p_z = Normal(numbers[:L], F.softplus(numbers[L:]) + 1e-4)
            numbers = dense(memory.posterior, h)
            q_z = Normal(numbers[:L], F.softplus(numbers[L:]) + 1e-4)
            r = linear(memory.readout, torch.cat([windows.flatten(), features, p_z.mean + p_z.stddev * noise[1]]))
            seen = 0.0 if blank else 1.0
            found["outputs"].append(torch.cat([h, r]))
            found["kl_z"].append(0.5 * seen * kl_divergence(q_z, p_z).sum())
            found["kl_y"].append(0.5 * seen * kl_divergence(q_y, Normal(0.0, 1.0)).sum())
            decoded = dense(memory.input_decoder, q_z.mean + q_z.stddev * noise[2])
            found["reconstruction"].append(-seen * Normal(decoded, 1.0).log_prob(x).sum())
            found["memory"].append(m)
    shape = (xs.shape[1], len(xs))
    return {name: torch.stack(rows).unflatten(0, shape).transpose(0, 1) for name, rows in found.items()}


def test_it_is_its_equations() -> None:
    """Outputs, losses, the memory, and the gradient of every parameter; one entry of one step is blank."""
    memory, xs = build(reconstruct=True), sequence(FEATURES, blank=3)
    result = memory.unroll(xs, None, memory.initial_state(BATCH))
    loops = reference(memory, xs)
    torch.testing.assert_close(result.state["memory"], loops.pop("memory")[-1])
    ours = {"outputs": result.outputs, **result.losses}
    weights = {name: torch.randn(value.shape).double() for name, value in ours.items()}
    gradients = []
    for parts in (ours, loops):
        total = torch.stack([(weights[name] * parts[name]).sum() for name in weights]).sum()
        gradients.append(torch.autograd.grad(total, list(memory.parameters()), retain_graph=True))
    for name, expected in loops.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-9, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")
    for (name, _), actual, expected in zip(memory.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((FEATURES,), {"sample": False, "skip_blank": False}),
        ((FEATURES,), {"queries": {"query": 3, "query_image": (1, 6, 6)}, "map_shape": (2, 5, 7)}),
        ((2, 8, 8), {"reconstruct": True, "map_shape": (2, 8, 8), "likelihood": "bernoulli"}),
    ],
    ids=["means", "questions", "image"],
)
def test_a_sequence_at_once_is_step_by_step(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    memory = build(shape if len(shape) > 1 else shape[0], **options)
    xs, starts = sequence(*shape), torch.zeros(LENGTH, BATCH, dtype=torch.bool)
    starts[0, 1] = starts[2, 0] = starts[3, 1] = True
    asked = {
        name: torch.randn(LENGTH, BATCH, *([size] if isinstance(size, int) else size)).double()
        for name, size in options.get("queries", {}).items()
    }
    state = {name: torch.rand_like(value) for name, value in memory.initial_state(BATCH).items()}
    results = [way(xs, starts, state, None, asked or None) for way in (memory.unroll, lambda *a: unroll(memory, *a))]
    for at_once, stepped in zip(
        *({**r.state, **r.losses, "out": r.outputs, "map": r.grids} for r in results), strict=True
    ):
        assert at_once == stepped
    torch.testing.assert_close(results[0].outputs, results[1].outputs)
    torch.testing.assert_close(results[0].losses, results[1].losses)
    torch.testing.assert_close(results[0].state, results[1].state)
    torch.testing.assert_close(results[0].grids, results[1].grids)


# Writing and reading


def test_what_is_written_at_a_key_is_read_there() -> None:
    """A block written with the gate open comes back whole where it lies on the cells, and little changed between."""
    memory = build(read_heads=1, sample=False)
    block = torch.randn(1, C * CROP * CROP).double()
    for cells in (0.0, 2.0, 2.5, S - CROP):
        key = Normal(0.0, 1.0).icdf(torch.tensor([[cells / (S - CROP)] * 2]).double().clamp(1e-9, 1 - 1e-9))
        weights = memory.locate(key.unsqueeze(1))
        before = torch.randn(1, C, S, S).double()
        filled = memory.write(before, weights[:, 0], torch.ones(1, 1).double(), block)
        if cells != 2.5:
            torch.testing.assert_close(
                (filled.flatten(2) @ weights[:, 0].transpose(1, 2)).flatten(1), block, atol=1e-5, rtol=1e-5
            )


def test_standard_normal_keys_are_uniform_over_where_a_block_fits() -> None:
    furthest = max_distance_within(CROP, S)
    places = block_places(torch.randn(20000), furthest)
    assert places.abs().max() <= 1 - (CROP - 1) / (S - 1)
    counts = torch.histc(places, 10, -furthest, furthest)
    assert (counts / 2000 - 1).abs().max() < 0.12
    offsets = (places + furthest) / (2 * furthest)  # of the first row, from 0 to 1
    weights = offset_weights(offsets, S - CROP, CROP, S)
    torch.testing.assert_close(weights.sum(2), torch.ones(20000, CROP), atol=1e-4, rtol=0)  # wholly within


def test_a_closed_gate_and_a_blank_input_write_nothing() -> None:
    memory = build()
    state = memory.initial_state(BATCH)
    state = memory(sequence(FEATURES)[0], state).state
    weights = memory.locate(torch.zeros(BATCH, 1, 2).double())
    block = torch.ones(BATCH, C * CROP * CROP).double()
    after = memory.write(state["memory"], weights[:, 0], torch.zeros(BATCH, 1).double(), block)
    assert torch.equal(after, state["memory"])
    blank = memory(torch.zeros(BATCH, FEATURES).double(), state)
    assert torch.equal(blank.state["memory"], state["memory"])
    assert not any(loss.any() for loss in blank.losses.values())
    assert not torch.equal(blank.state["hidden"], state["hidden"])  # time goes on for the controller


def test_what_was_read_reaches_the_controller_at_the_next_step() -> None:
    memory, xs = build(sample=False), sequence(FEATURES)
    state = memory(xs[0], memory.initial_state(BATCH)).state
    other = {**state, "memory": state["memory"] + 1}
    now, later = (memory(xs[1], s) for s in (state, other))
    assert torch.equal(now.output[:, :H], later.output[:, :H])
    assert not torch.isclose(now.output[:, H:], later.output[:, H:]).any()
    now, later = (memory(xs[2], step.state) for step in (now, later))
    assert not torch.isclose(now.output[:, :H], later.output[:, :H]).any()


def test_questions_are_answered_and_not_written() -> None:
    memory = build(queries={"query": 3})
    x, state = sequence(FEATURES)[0], memory.initial_state(BATCH)
    asked = torch.randn(BATCH, 3).double()
    step, other = (memory(x, state, {"query": question}) for question in (asked, asked + 1))
    assert all(torch.equal(other.state[key], step.state[key]) for key in state)
    assert all(torch.equal(other.losses[key], step.losses[key]) for key in step.losses)
    assert not torch.isclose(other.output[:, H:], step.output[:, H:]).any()
    with pytest.raises(ValueError, match=r"questions \['query'\]; missing: \['query'\]"):
        memory(x, state)


def test_the_collapsed_network_is_the_network() -> None:
    layers, x = DeepLinear(6, 9, 4).double(), torch.randn(3, 6).double()
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(torch.randn_like(parameter))
    torch.testing.assert_close(F.linear(x, *layers.collapsed()), layers(x))


# Noise


def test_entries_that_see_the_same_draw_the_same_until_they_do_not() -> None:
    memory, xs = build(), sequence(FEATURES)
    xs[:, 1] = xs[:, 0]
    xs[2, 1] += 1
    places: list[Tensor] = []
    state: State = memory.initial_state(BATCH)
    for x in xs:
        state = memory(x, state).state
        places.append(state["places"][:, 1:])
    assert [torch.allclose(place[0], place[1]) for place in places] == [True, True, False, False, False]
    assert "seed" not in build(sample=False).initial_state(BATCH)


# Panels, errors


def test_the_panel_outlines_the_block_that_was_written() -> None:
    memory = build(memory_size=16, sample=False)
    state = dict(memory(sequence(FEATURES)[0], memory.initial_state(BATCH)).state)
    outline = (memory.panels(state)["memory"].image == memory.get_buffer("colours")[0]).all(2)
    rows, columns = outline.nonzero().unbind(1)
    scale = (CROP - 1) / 15
    x, y = state["places"][0, 0]
    expected = [round(float(place.detach() + 1) / 2 * 127) for place in (x - scale, x + scale, y - scale, y + scale)]
    found = [int(n) for n in (columns.min(), columns.max(), rows.min(), rows.max())]
    assert all(abs(a - b) <= 3 for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": 9}, "crop_size is 9; it must be below memory_size, 9"),
        ({"crop_size": 3}, "crop_size is 3; it must be at least 4"),
        ({"read_heads": 0}, "at least 1"),
        ({"controller": "gru"}, "controller is 'gru'; it must be 'lstm' or 'none'"),
        ({"shift": 0.1}, "shift is 0.1; expected None, because only controller='none'"),
        ({"likelihood": "poisson"}, "likelihood is 'poisson'; it must be 'gaussian' or 'bernoulli'"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_weights_from_before_the_controller_are_refused_in_one_line() -> None:
    old = {"readout.weight": torch.zeros(1), "kanerva.writer.project.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"from a version without a controller.*train again"):
        make_memory("kanerva++", input_size=FEATURES).load_state_dict(old)
