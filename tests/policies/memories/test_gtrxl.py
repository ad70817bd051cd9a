"""GTrXL against its equations, head by head and key by key, and what its gates and its window promise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from policies.memories import Memory, make_memory
from policies.memories.gtrxl import BLOCK, GRUGate, skewed
from policies.memories.time.unroll import unroll

FEATURES, WIDTH, LAYERS, HEADS, CAPACITY = 4, 6, 2, 3, 4
SIZE = WIDTH // HEADS


def build(**options: object) -> Memory:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_layers": LAYERS, "heads": HEADS, "capacity": CAPACITY, "expansion": 2}
    memory = make_memory("gtrxl", input_size=FEATURES, **{**sizes, **options}).double()
    with torch.no_grad():
        for name, parameter in memory.named_parameters():
            if "bias" in name or "norm" in name:  # zeros and ones would hide what is left out
                parameter.normal_()
    return memory


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).mean() + 1e-5) * weight + bias


def gate(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Eqs. of §3.2, "gated recurrent unit type gating"."""
    w_r, w_z, w_g = p["of_y.weight"].split(WIDTH)
    u_r, u_z = p["of_x.weight"].split(WIDTH)
    r = torch.sigmoid(w_r @ y + u_r @ x)
    z = torch.sigmoid(w_z @ y + u_z @ x - p["bias"])
    h = torch.tanh(w_g @ y + p["of_reset.weight"] @ (r * x))
    return (1 - z) * x + z * h


def inside(p: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in p.items() if name.startswith(prefix)}


def layer(p: dict[str, Tensor], window: list[Tensor]) -> Tensor:
    """One layer at the newest of the inputs it sees, the oldest first."""
    normed = [norm(e, p["norm.weight"], p["norm.bias"]) for e in window]
    w_k, w_v = p["key_value.weight"].split(WIDTH)
    read = []
    for h in range(HEADS):
        part = slice(h * SIZE, (h + 1) * SIZE)
        q = (p["query.weight"] @ normed[-1])[part]
        scores = []
        for j, n in enumerate(normed):
            distance = len(window) - 1 - j
            angles = distance / 10_000 ** (torch.arange(0, WIDTH, 2) / WIDTH)
            r = (p["position.weight"] @ torch.cat([angles.sin(), angles.cos()]).double())[part]
            k = (w_k @ n)[part]
            score = q @ k + q @ r + p["key_bias"][part] @ k + p["position_bias"][part] @ r
            scores.append(score / math.sqrt(SIZE))
        weights = torch.stack(scores).softmax(0)
        read.append(sum(weight * (w_v @ n)[part] for weight, n in zip(weights, normed, strict=True)))
    y = torch.relu(p["attended.weight"] @ torch.cat(read))
    x = gate(inside(p, "attention_gate."), window[-1], y)
    hidden = torch.relu(p["mlp.0.weight"] @ norm(x, p["mlp_norm.weight"], p["mlp_norm.bias"]) + p["mlp.0.bias"])
    return gate(inside(p, "mlp_gate."), x, torch.relu(p["mlp.2.weight"] @ hidden + p["mlp.2.bias"]))


def by_the_equations(memory: Memory, xs: Tensor, starts: Tensor, seen: list[list[list[Tensor]]]) -> Tensor:
    """`seen`: for each batch entry and layer, the inputs before the first step."""
    p = dict(memory.named_parameters())
    outputs = torch.zeros(*xs.shape[:2], WIDTH, dtype=xs.dtype)
    for row in range(xs.shape[1]):
        windows = seen[row]
        for t in range(len(xs)):
            if starts[t, row]:
                windows = [[] for _ in range(LAYERS)]
            e = p["embedding.weight"] @ xs[t, row] + p["embedding.bias"]
            windows = [window[-CAPACITY:] for window in windows]
            for i in range(LAYERS):
                windows[i] = [*windows[i], e]
                e = layer(inside(p, f"layers.{i}."), windows[i])
            outputs[t, row] = e
    return outputs


def test_it_is_its_equations() -> None:
    memory = build()
    xs, starts = torch.randn(9, 2, FEATURES).double(), torch.rand(9, 2) < 0.15
    count = torch.tensor([3.0, 0.0]).double()  # the second entry has seen nothing
    rows = torch.randn(2, LAYERS, CAPACITY, WIDTH).double()
    rows = rows * (torch.arange(CAPACITY) >= CAPACITY - count[:, None])[:, None, :, None]
    seen = [[[*rows[b, i, CAPACITY - int(count[b]) :]] for i in range(LAYERS)] for b in range(2)]
    expected = by_the_equations(memory, xs, starts, seen)
    wanted = torch.autograd.grad(expected.square().sum(), [*memory.parameters()])
    state = {"memory": rows, "count": count}
    for result in (memory.unroll(xs, starts, state), unroll(memory, xs, starts, state)):
        torch.testing.assert_close(result.outputs, expected, rtol=1e-6, atol=1e-7)  # sines are made in float32
        found = torch.autograd.grad(result.outputs.square().sum(), [*memory.parameters()])
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [BLOCK - 1, BLOCK, 2 * BLOCK + 5])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.4])
def test_blocks_are_steps(length: int, share: float) -> None:
    memory = build(capacity=7)
    xs, starts = torch.randn(length, 2, FEATURES).double(), torch.rand(length, 2) < share
    state = unroll(memory, torch.randn(3, 2, FEATURES).double(), None, memory.initial_state(2)).state
    state = {name: value.detach() for name, value in state.items()}
    results = [memory.unroll(xs, starts, state), unroll(memory, xs, starts, state)]
    gradients = [torch.autograd.grad(r.outputs.square().sum(), [*memory.parameters()]) for r in results]
    torch.testing.assert_close(results[0].outputs, results[1].outputs)
    torch.testing.assert_close(results[0].state, results[1].state)
    torch.testing.assert_close(*gradients)


def test_what_left_the_window_is_forgotten() -> None:
    """With L layers an output depends on the last L · capacity steps before it, and on no more."""
    memory, reach = build(), LAYERS * CAPACITY
    xs = torch.randn(reach + 2, 1, FEATURES).double().requires_grad_()
    output = memory.unroll(xs, None, memory.initial_state(1)).outputs[-1]
    (gradient,) = torch.autograd.grad(output.sum(), xs)
    assert (gradient[0] == 0).all()
    assert (gradient[1:] != 0).all()


def test_a_large_gate_bias_makes_it_the_identity() -> None:
    memory = build()
    with torch.no_grad():
        for module in memory.modules():
            if isinstance(module, GRUGate):
                module.bias.fill_(1e3)
    x = torch.randn(3, FEATURES).double()
    torch.testing.assert_close(memory(x, memory.initial_state(3)).output, memory.embedding(x))


def test_gates_begin_at_the_bias_that_is_asked_for() -> None:
    torch.manual_seed(0)
    memory = make_memory("gtrxl", input_size=FEATURES, gate_bias=3.0)
    assert all((module.bias == 3).all() for module in memory.modules() if isinstance(module, GRUGate))


def test_rows_are_skewed_to_their_keys() -> None:
    by_distance = torch.tensor([[2, 1, 0], [12, 11, 10], [22, 21, 20.0]])  # distances 2, 1, 0
    assert skewed(by_distance).tolist() == [[2, 1, 0, 0, 0], [0, 12, 11, 10, 0], [0, 0, 22, 21, 20]]


def test_the_attention_panel_is_a_distribution_over_what_was_seen() -> None:
    memory = build()
    result = unroll(memory, torch.randn(3, 1, FEATURES).double(), None, memory.initial_state(1))
    image = memory.panels(result.state)["attention"].image
    assert image.shape == (LAYERS * HEADS, CAPACITY)
    torch.testing.assert_close(image.sum(1), torch.ones(LAYERS * HEADS).double())
    assert (image[:, 0] == 0).all()
    assert (image[:, 1:] > 0).all()
    assert (memory.panels(memory.initial_state(1))["attention"].image == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"capacity": 0}, "capacity is 0"), ({"heads": 4}, "multiple of heads, 4"), ({"hidden_size": 9}, "and of 2")],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)
