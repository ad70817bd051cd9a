"""Gated DeltaNet against its equations, number by number; its chunks against the recurrence over several chunks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from policies.memories import Memory, make_memory
from policies.memories.gated_deltanet import CHUNK, NORM_EPS, delta_chunks
from policies.memories.time.unroll import unroll

FEATURES, WIDTH, LAYERS, HEADS, KEY, VALUE, CONV = 4, 5, 2, 2, 3, 4, 3


def build(**options: object) -> Memory:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_layers": LAYERS, "heads": HEADS, "key_size": KEY, "value_size": VALUE}
    return make_memory("gated-deltanet", input_size=FEATURES, **{**sizes, "conv_size": CONV, **options}).double()


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean() + 1e-5) * weight


def by_the_equations(memory: Memory, xs: Tensor, starts: Tensor, state: dict[str, Tensor]) -> Tensor:
    """One batch entry, one step, one head after the other; eq. (10) as it is written, with products of matrices."""
    p = dict(memory.named_parameters())
    outputs = torch.zeros(*xs.shape[:2], WIDTH, dtype=xs.dtype)
    for row in range(xs.shape[1]):
        matrices = [[*layer] for layer in state["memory"][row]]
        recent = [[*layer] for layer in state["recent"][row]]
        for t in range(len(xs)):
            if starts[t, row]:
                matrices = [[0 * matrix for matrix in layer] for layer in matrices]
                recent = [[0 * vector for vector in layer] for layer in recent]
            x = p["embedding.weight"] @ xs[t, row] + p["embedding.bias"]
            for i in range(LAYERS):
                rule = f"rules.{i}."
                own = {name.removeprefix(rule): value for name, value in p.items() if name.startswith(rule)}
                u = rms(x, p[f"norms.{i}.weight"])
                recent[i] = [*recent[i], own["vectors.weight"] @ u][-CONV:]
                mixed = silu(sum(own["convolution"][tap] * recent[i][tap] for tap in range(CONV)))
                keys = HEADS * KEY
                read = []
                for h in range(HEADS):
                    q, k = (mixed[at + h * KEY : at + (h + 1) * KEY] for at in (0, keys))
                    q, k = (part / torch.sqrt((part**2).sum() + NORM_EPS) for part in (q, k))
                    v = mixed[2 * keys + h * VALUE : 2 * keys + (h + 1) * VALUE]
                    pre = own["rates.weight"] @ u
                    rate = torch.log(1 + torch.exp(pre[h] + own["step_bias"][h]))
                    alpha = torch.exp(-torch.exp(own["decay_log"][h]) * rate)
                    beta = 1 / (1 + torch.exp(-pre[HEADS + h]))
                    keeps = alpha * (torch.eye(KEY, dtype=xs.dtype) - beta * torch.outer(k, k))
                    matrices[i][h] = matrices[i][h] @ keeps + beta * torch.outer(v, k)
                    read.append(rms(matrices[i][h] @ q, own["norm.weight"]))
                gates = silu(own["gate.weight"] @ u)
                x = x + own["output.weight"] @ (torch.cat(read) * gates)
                gate, value = (p[f"mlp_in.{i}.weight"] @ rms(x, p[f"mlp_norms.{i}.weight"])).chunk(2)
                x = x + p[f"mlp_out.{i}.weight"] @ (silu(gate) * value)
                recent[i] = recent[i][-(CONV - 1) :]
            outputs[t, row] = rms(x, p["norm.weight"])
    return outputs


def test_it_is_its_equations() -> None:
    memory = build()
    xs, starts = torch.randn(7, 2, FEATURES).double(), torch.rand(7, 2) < 0.3
    state = {
        "memory": torch.randn(2, LAYERS, HEADS, VALUE, KEY).double(),
        "recent": torch.randn(2, LAYERS, CONV - 1, HEADS * (2 * KEY + VALUE)).double(),
    }
    with torch.no_grad():
        for norm in (module for module in memory.modules() if isinstance(module, torch.nn.RMSNorm)):
            norm.weight.normal_()
    expected = by_the_equations(memory, xs, starts, state)
    wanted = torch.autograd.grad(expected.square().sum(), [*memory.parameters()])
    for result in (memory.unroll(xs, starts, state), unroll(memory, xs, starts, state)):
        torch.testing.assert_close(result.outputs, expected)
        found = torch.autograd.grad(result.outputs.square().sum(), [*memory.parameters()])
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, 2 * CHUNK + 5])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.3])
def test_chunks_are_the_recurrence(length: int, share: float) -> None:
    torch.manual_seed(length)
    starts = torch.rand(length, 2) < share
    q, k = torch.nn.functional.normalize(torch.randn(2, length, 2, HEADS, KEY).double(), dim=-1)
    v = torch.randn(length, 2, HEADS, VALUE).double()
    log_alpha, beta = -torch.rand(length, 2, HEADS).double(), torch.rand(length, 2, HEADS).double()
    memory = torch.randn(2, HEADS, VALUE, KEY).double()
    leaves = [leaf.requires_grad_() for leaf in (q.clone(), k.clone(), v, log_alpha, beta, memory)]
    q, k, *_ = leaves

    state, read = memory, []
    for t in range(length):
        state = torch.where(starts[t].view(-1, 1, 1, 1), torch.zeros_like(state), state)
        outer = torch.eye(KEY).double() - beta[t, ..., None, None] * k[t].unsqueeze(-1) * k[t].unsqueeze(-2)
        state = log_alpha[t].exp()[..., None, None] * state @ outer
        state = state + beta[t, ..., None, None] * v[t].unsqueeze(-1) * k[t].unsqueeze(-2)
        read.append((state * q[t].unsqueeze(-2)).sum(-1))
    o, last = delta_chunks(q, k, v, log_alpha, beta, memory, starts.cumsum(0))
    torch.testing.assert_close(o, torch.stack(read), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(last, state, rtol=1e-10, atol=1e-12)
    weights = torch.randn_like(o)
    expected = torch.autograd.grad((torch.stack(read) * weights).sum() + state.sum(), leaves, allow_unused=True)
    found = torch.autograd.grad((o * weights).sum() + last.sum(), leaves, allow_unused=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_what_was_written_is_replaced_and_other_keys_are_left_alone() -> None:
    """What a Hebbian sum lacks: with β = 1 and α = 1 a second value for a key takes the place of the first."""
    keys = torch.eye(KEY).double()[[0, 1, 0]].view(3, 1, 1, KEY)
    values = torch.randn(3, 1, 1, VALUE).double()
    ones, zeros = torch.ones(3, 1, 1).double(), torch.zeros(3, 1, 1).double()
    _, memory = delta_chunks(
        keys, keys, values, zeros, ones, torch.zeros(1, 1, VALUE, KEY).double(), zeros[..., 0].long()
    )
    torch.testing.assert_close(memory[0, 0, :, 0], values[2, 0, 0])
    torch.testing.assert_close(memory[0, 0, :, 1], values[1, 0, 0])


def test_gates_begin_between_a_few_steps_and_thousands() -> None:
    memory = build(heads=400)
    log_alpha, _ = memory.rules[0].rates_of(torch.zeros(1, WIDTH).double())
    steps = -1 / log_alpha.detach()
    assert 0.5 < steps.min() < 10
    assert 500 < steps.max() < 20_000
    assert math.isclose(steps.median().item(), 14, rel_tol=0.5)


def test_strong_decay_over_long_chunks_stays_finite() -> None:
    memory = build(num_layers=1).float()
    with torch.no_grad():
        memory.rules[0].decay_log.fill_(6.0)  # α = exp(-400 softplus): ratios of products underflow
    result = memory.unroll(torch.randn(300, 2, FEATURES), None, memory.initial_state(2))
    result.outputs.square().sum().backward()
    assert result.outputs.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in memory.parameters())


@pytest.mark.parametrize(("options", "message"), [({"heads": 0}, "heads is 0"), ({"conv_size": 1}, "conv_size is 1")])
def test_sizes_that_are_too_small_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)
