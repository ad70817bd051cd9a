"""minGRU against its equations, and against the paper's log-space form of a sequence."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from policies.memories import Memory, make_memory
from policies.memories.time.unroll import unroll

LENGTH, BATCH, FEATURES = 90, 3, 4


def build(**options: object) -> Memory:
    torch.manual_seed(0)
    sizes = {"hidden_size": 5, "num_layers": 2, "expansion": 2, **options}
    return make_memory("mingru", input_size=FEATURES, **sizes).double()


def normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    spread = ((x - x.mean()) ** 2).mean()
    return (x - x.mean()) / torch.sqrt(spread + 1e-5) * weight + bias


def by_the_equations(memory: Memory, xs: Tensor, starts: Tensor, hidden: Tensor, log_space: bool) -> Tensor:
    """Number by number, one batch entry and one step after the other."""
    weights = dict(memory.named_parameters())
    outputs = torch.zeros(*xs.shape[:2], memory.output_size, dtype=xs.dtype)
    for row in range(xs.shape[1]):
        h = [*hidden[row]]
        for t in range(len(xs)):
            if starts[t, row]:
                h = [torch.zeros_like(layer) for layer in h]
            x = weights["embedding.weight"] @ xs[t, row] + weights["embedding.bias"]
            for i, before in enumerate(h):
                u = normalised(x, weights[f"norms.{i}.weight"], weights[f"norms.{i}.bias"])
                pre = weights[f"gates.{i}.weight"] @ u + weights[f"gates.{i}.bias"]
                units = len(before)
                now = []
                for j in range(units):
                    z = 1 / (1 + torch.exp(-pre[j]))
                    v = pre[units + j]
                    candidate = v
                    if log_space:
                        candidate = v + 0.5 if v >= 0 else 1 / (1 + torch.exp(-v))
                    now.append((1 - z) * before[j] + z * candidate)
                h[i] = torch.stack(now)
                x = x + weights[f"outputs.{i}.weight"] @ h[i] + weights[f"outputs.{i}.bias"]
            outputs[t, row] = normalised(x, weights["norm.weight"], weights["norm.bias"])
    return outputs


@pytest.mark.parametrize("log_space", [True, False])
def test_it_is_its_equations(log_space: bool) -> None:
    memory = build(log_space=log_space)
    xs, starts = torch.randn(7, 2, FEATURES).double(), torch.rand(7, 2) < 0.3
    state = {"hidden": torch.randn(2, 2, 10).double()}
    expected = by_the_equations(memory, xs, starts, state["hidden"], log_space)
    wanted = torch.autograd.grad(expected.square().sum(), [*memory.parameters()])
    for result in (memory.unroll(xs, starts, state), unroll(memory, xs, starts, state)):
        torch.testing.assert_close(result.outputs, expected)
        found = torch.autograd.grad((result.outputs**2).sum(), [*memory.parameters()])
        torch.testing.assert_close(found, wanted)


def test_a_sequence_is_the_papers_log_space_scan() -> None:
    """Appendix B: log h = a* + logcumsumexp(log b − a*), with a* the running sum of log(1 − z)."""
    memory = build(num_layers=1)
    xs, before = torch.randn(LENGTH, BATCH, FEATURES).double(), torch.rand(BATCH, 10).double() + 0.1
    gate, candidate = memory.gates[0](memory.norms[0](memory.embedding(xs))).chunk(2, -1)
    log_g = torch.where(candidate >= 0, (candidate.relu() + 0.5).log(), -F.softplus(-candidate))
    log_b = torch.cat([before.log()[None], -F.softplus(-gate) + log_g])
    sums = F.pad(-F.softplus(gate).cumsum(0), (0, 0, 0, 0, 1, 0))
    expected = (sums + torch.logcumsumexp(log_b - sums, 0)).exp()
    result = memory.unroll(xs, None, {"hidden": before.unsqueeze(1)})
    torch.testing.assert_close(result.state["hidden"][:, 0], expected[-1])


def test_the_gate_forgets_nothing_when_shut_and_everything_when_open() -> None:
    memory = build(num_layers=1, expansion=1)
    x, state = torch.randn(BATCH, FEATURES).double(), {"hidden": torch.rand(BATCH, 1, 5).double()}
    with torch.no_grad():
        memory.gates[0].bias[:5] = -1e3
        torch.testing.assert_close(memory(x, state).state["hidden"], state["hidden"])
        memory.gates[0].bias[:5] = 1e3
        other = {"hidden": state["hidden"] + 1}
        torch.testing.assert_close(memory(x, state).state, memory(x, other).state)


def test_long_sequences_stay_finite_with_saturated_gates() -> None:
    """Products of 2,000 coefficients underflow; nothing is divided by them."""
    memory = build(num_layers=1).float()
    with torch.no_grad():
        memory.gates[0].bias[:10] = torch.linspace(-30, 30, 10)
    result = memory.unroll(torch.randn(2000, 1, FEATURES), None, memory.initial_state(1))
    result.outputs.square().sum().backward()
    assert result.outputs.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in memory.parameters())


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="num_layers is 0; it must be at least 1"):
        build(num_layers=0)
