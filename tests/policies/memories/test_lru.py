"""The LRU against its equations in complex numbers, and what its parametrisation promises."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from policies.memories import Memory, make_memory
from policies.memories.time.unroll import unroll

FEATURES, WIDTH, STATES, LAYERS = 4, 5, 3, 2


def build(**options: object) -> Memory:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "state_size": STATES, "num_layers": LAYERS, **options}
    return make_memory("lru", input_size=FEATURES, **sizes).double()


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def by_the_equations(memory: Memory, xs: Tensor, starts: Tensor, hidden: Tensor) -> Tensor:
    """One batch entry, one step, one state after the other, in complex numbers."""
    p = dict(memory.named_parameters())
    outputs = torch.zeros(*xs.shape[:2], WIDTH, dtype=xs.dtype)
    for row in range(xs.shape[1]):
        state = [[torch.complex(*n) for n in layer] for layer in hidden[row]]
        for t in range(len(xs)):
            if starts[t, row]:
                state = [[0 * n for n in layer] for layer in state]
            z = p["encoder.weight"] @ xs[t, row] + p["encoder.bias"]
            for i in range(LAYERS):
                own = {name.removeprefix(f"layers.{i}."): value for name, value in p.items()}
                spread = ((z - z.mean()) ** 2).mean()
                u = (z - z.mean()) / (spread + 1e-5).sqrt() * own[f"norms.{i}.weight"] + own[f"norms.{i}.bias"]
                for n in range(STATES):
                    eigenvalue = torch.exp(torch.complex(-own["nu_log"][n].exp(), own["theta_log"][n].exp()))
                    drive = (torch.complex(own["B"][n, :, 0], own["B"][n, :, 1]) * u).sum()
                    state[i][n] = eigenvalue * state[i][n] + own["gamma_log"][n].exp() * drive
                c = torch.complex(own["C"][..., 0], own["C"][..., 1])
                y = (c @ torch.stack(state[i])).real + own["D"] * u
                both = own[f"gated.{i}.weight"] @ gelu(y) + own[f"gated.{i}.bias"]
                z = z + both[:WIDTH] * torch.sigmoid(both[WIDTH:])
            outputs[t, row] = z
    return outputs


def test_it_is_its_equations() -> None:
    memory = build()
    xs, starts = torch.randn(7, 2, FEATURES).double(), torch.rand(7, 2) < 0.3
    state = {"hidden": torch.randn(2, LAYERS, STATES, 2).double()}
    expected = by_the_equations(memory, xs, starts, state["hidden"])
    wanted = torch.autograd.grad(expected.square().sum(), [*memory.parameters()])
    for result in (memory.unroll(xs, starts, state), unroll(memory, xs, starts, state)):
        torch.testing.assert_close(result.outputs, expected)
        found = torch.autograd.grad(result.outputs.square().sum(), [*memory.parameters()])
        torch.testing.assert_close(found, wanted)


def test_eigenvalues_begin_uniform_on_the_ring() -> None:
    """Lemma 3.2: |Λ|² is uniform between the squared radii, the angle between 0 and `max_phase`."""
    memory = build(state_size=4000, num_layers=1, r_min=0.5, r_max=0.9, max_phase=1.0)
    eigenvalues = memory.layers[0].eigenvalues().detach()
    squared, angle = eigenvalues.abs().square(), eigenvalues.angle()
    quantiles = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).double()
    torch.testing.assert_close(squared.quantile(quantiles), 0.25 + 0.56 * quantiles, rtol=0, atol=0.02)
    torch.testing.assert_close(angle.quantile(quantiles), quantiles, rtol=0, atol=0.03)


def test_white_noise_gives_states_of_the_size_of_its_inputs() -> None:
    """What γ is for: E |x|² = E |Bu|², however long the state remembers."""
    memory = build(state_size=200, num_layers=1, r_min=0.9, r_max=0.999)
    layer = memory.layers[0]
    u = torch.randn(4000, 1, WIDTH).double()
    with torch.no_grad():
        x = torch.zeros(1, 200, dtype=torch.complex128)
        _, states = layer(
            u, x, lambda a, b, h: torch.stack([h := a_t * h + b_t for a_t, b_t in zip(a, b, strict=True)])
        )
        driven = (torch.view_as_complex(layer.B) @ u[:, 0].T.to(torch.complex128)).abs().square().mean()
    assert states[1000:].abs().square().mean() == pytest.approx(driven.item(), rel=0.1)


def test_it_is_stable_whatever_is_learned() -> None:
    memory = build(num_layers=1)
    with torch.no_grad():
        memory.layers[0].nu_log.copy_(torch.tensor([-30.0, 0.0, 30.0]))
    assert (memory.layers[0].eigenvalues().abs() <= 1).all()
    result = memory.unroll(torch.randn(3000, 1, FEATURES).double(), None, memory.initial_state(1))
    assert result.outputs.isfinite().all()


def test_an_impulse_rings_as_the_eigenvalue_says() -> None:
    memory = build(num_layers=1, state_size=1)
    layer = memory.layers[0]
    with torch.no_grad():
        layer.nu_log.fill_(math.log(-math.log(0.8)))
        layer.theta_log.fill_(math.log(0.5))
        before = torch.ones(1, 1, dtype=torch.complex128)
        for step in range(1, 6):
            _, before = layer(torch.zeros(1, WIDTH).double(), before, lambda a, b, h: a * h + b)
            assert before.item() == pytest.approx((0.8 * cmath.exp(0.5j)) ** step)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers is 0; it must be at least 1"),
        ({"r_min": 0.9, "r_max": 0.5}, "expected 0 <= r_min < r_max <= 1"),
        ({"max_phase": 7.0}, "max_phase is 7.0"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)
