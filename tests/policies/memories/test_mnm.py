"""MNM against its equations written as loops, and its fast path against its plain one.

Equation numbers are those of Munkhdalai et al., "Metalearned Neural Memory", NeurIPS 2019.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from policies.memories import make_memory
from policies.memories.contract import State
from policies.memories.mnm.fast_step import GradientStep, LocalStep
from policies.memories.mnm.memory import MNM
from policies.memories.mnm.rules import activations, write_gradient, write_local
from policies.memories.time.unroll import unroll

FEATURES, BATCH, LENGTH = 3, 2, 4
SIZES = {"hidden_size": 6, "output_size": 4, "key_size": 5, "value_size": 3, "memory_units": 7, "heads": 2}

both_rules = pytest.mark.parametrize("name", ["mnm-p", "mnm-g"])


def build(name: str, **options: Any) -> MNM:
    memory = make_memory(name, input_size=FEATURES, **{**SIZES, **options}).double()
    assert isinstance(memory, MNM)
    with torch.no_grad():  # interactions strong enough for every term to matter
        memory.interaction.weight *= 4
    return memory


def reference(memory: MNM, options: dict[str, Any], xs: Tensor, state: State) -> dict[str, Tensor]:
    """The paper, one batch entry, one head and one layer at a time."""
    options = {"rate": "single", "output_activation": "tanh", "mean_over_units": False, "memory_layers": 3, **options}
    heads, d_k, d_v, layers = memory.heads, options["key_size"], options["value_size"], options["memory_layers"]
    sizes = [options["memory_units"]] * (layers - 1) + [d_v]
    outputs, metas, finals = [], [], []
    for b in range(xs.shape[1]):
        h, c, v_read = state["hidden"][b], state["cell"][b], state["read_value"][b]
        phi = [state[f"weights_{layer}"][b] for layer in range(1, layers + 1)]
        outputs.append([])
        metas.append([])

        def sigma(m: Tensor, z: Tensor, layer: int) -> Tensor:
            last_is_linear = layer == layers and options["output_activation"] == "linear"
            return m @ z if last_is_linear else torch.tanh(m @ z)

        def f(phi: list[Tensor], key: Tensor) -> list[Tensor]:
            """z^0 ... z^L, §3.2."""
            z = [key]
            for layer in range(1, layers + 1):
                z.append(sigma(phi[layer - 1], z[-1], layer))
            return z

        for x in xs[:, b]:
            # §3.1: h_t = LSTM(x_t, v^r_{t-1}, h_{t-1})
            lstm = memory.controller
            gates = lstm.weight_ih @ torch.cat([x, v_read]) + lstm.bias_ih + lstm.weight_hh @ h + lstm.bias_hh
            i, forget, g, o = gates.chunk(4)
            c = torch.sigmoid(forget) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            # eq. (1)
            interaction = torch.tanh(memory.interaction.weight @ h + memory.interaction.bias)
            cut = [d_k] * heads + [d_k] * heads + [d_v] * heads + [d_k]
            vectors = list(interaction.split(cut))
            k_read, k_write, v_write = vectors[:heads], vectors[heads : 2 * heads], vectors[2 * heads : 3 * heads]
            beta = torch.sigmoid(memory.rate.weight @ vectors[-1] + memory.rate.bias)
            beta = beta.expand(layers) if options["rate"] == "single" else beta

            if memory.local_update:
                # eq. (4), the mean over heads
                new_phi = []
                for layer in range(1, layers + 1):
                    begin = sum(sizes[: layer - 1])
                    rows = slice(begin, begin + sizes[layer - 1])
                    update = torch.zeros_like(phi[layer - 1])
                    for k, v in zip(k_write, v_write, strict=True):
                        z = f(phi, k)
                        expected = memory.feedback.weight[rows] @ v + memory.feedback.bias[rows]  # z'^l = q_ψ^l(v)
                        update = update + torch.outer(z[layer] - expected, z[layer - 1])
                    scale = 2 / (heads * sizes[layer - 1]) if options["mean_over_units"] else 1 / heads
                    new_phi.append(phi[layer - 1] - beta[layer - 1] * scale * update)
            else:
                # eq. (2) and (3); through copies, as the keys depend on earlier memories and ∇ is at fixed keys
                fixed = [m.clone() for m in phi]
                l_up = sum((f(fixed, k)[-1] - v).square().sum() for k, v in zip(k_write, v_write, strict=True)) / heads
                if options["mean_over_units"]:
                    l_up = l_up / d_v
                gradient = torch.autograd.grad(l_up, fixed, create_graph=True)
                new_phi = [m - beta[i] * gradient[i] for i, m in enumerate(phi)]
            phi = new_phi

            # §3.2: the mean of the heads' read-outs; eq. (5) with recall delay 0; §3.1: y_t
            v_read = sum(f(phi, k)[-1] for k in k_read) / heads
            meta = sum((f(phi, k)[-1] - v).square().sum() for k, v in zip(k_write, v_write, strict=True)) / heads
            metas[-1].append(meta / d_v if options["mean_over_units"] else meta)
            outputs[-1].append(memory.output.weight @ torch.cat([h, v_read]) + memory.output.bias)
        finals.append(
            {"hidden": h, "cell": c, "read_value": v_read} | {f"weights_{layer}": m for layer, m in enumerate(phi, 1)}
        )
    return {
        "outputs": torch.stack([torch.stack(o) for o in outputs], 1),
        "meta": torch.stack([torch.stack(m) for m in metas], 1),
        **{key: torch.stack([final[key] for final in finals]) for key in finals[0]},
    }


@both_rules
@pytest.mark.parametrize("way", ["sequence", "fast step", "plain step"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rate": "per-layer"},
        {"output_activation": "linear"},
        {"mean_over_units": True},
        {"heads": 1},
        {"heads": 3, "memory_layers": 2, "rate": "per-layer", "output_activation": "linear", "mean_over_units": True},
        {"memory_layers": 1},
        {"memory_layers": 4, "key_size": 2, "value_size": 6},
    ],
    ids=lambda options: " ".join(f"{key}={value}" for key, value in options.items()) or "default",
)
def test_mnm_is_the_papers_equations(name: str, way: str, options: dict[str, Any]) -> None:
    """Outputs, meta loss, final state, and the gradients of everything trained and of the state carried in."""
    memory = build(name, fast=way != "plain step", **options)
    xs = torch.randn(LENGTH, BATCH, FEATURES).double()
    initial = memory.initial_state(BATCH)
    state = {key: (value + 0.1 * torch.randn(value.shape).double()).requires_grad_() for key, value in initial.items()}
    leaves = {**state, **dict(memory.named_parameters())}

    result = memory.unroll(xs, None, state) if way == "sequence" else unroll(memory, xs, None, state, step=memory.step)
    ours = {"outputs": result.outputs, "meta": result.losses["meta"], **result.state}
    paper = reference(memory, {**SIZES, **options}, xs, state)
    weights = {key: torch.randn(value.shape).double() for key, value in ours.items()}
    gradients = []
    for parts in (ours, paper):
        total = torch.stack([(weights[key] * parts[key]).sum() for key in weights]).sum()
        gradients.append(dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True)))
    for actual, expected in ((ours, paper), gradients):
        for key in expected:
            torch.testing.assert_close(
                actual[key], expected[key], rtol=1e-9, atol=1e-10, msg=lambda text, k=key: f"{k}: {text}"
            )


@both_rules
def test_at_the_papers_sizes_fast_is_plain_in_single_precision(name: str) -> None:
    """Table 2's maze agent over 30 steps; the gradient of each parameter to a relative 1e-3 of its norm."""
    torch.manual_seed(0)
    memory = make_memory(name, input_size=8)
    xs = torch.randn(30, 2, 8)
    outputs, gradients = [], []
    for fast in (True, False):
        memory.fast = fast
        memory.zero_grad()
        result = unroll(memory, xs, None, memory.initial_state(2), step=memory.step)
        (result.outputs.square().mean() + result.losses["meta"].mean()).backward()
        outputs.append(result.outputs)
        gradients.append({key: p.grad.clone() for key, p in memory.named_parameters() if p.grad is not None})
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    for key, expected in gradients[1].items():
        assert (gradients[0][key] - expected).norm() <= 1e-3 * expected.norm(), key


def step_inputs(heads: int, sizes: list[int], targets: int) -> list[Tensor]:
    """Keys, targets, step sizes and matrices that require gradients, in float64."""
    keys = torch.randn(BATCH, 2 * heads, sizes[0]).double()
    matrices = [torch.randn(BATCH, m, n).double() / n**0.5 for n, m in pairwise(sizes)]
    steps = torch.rand(BATCH, len(matrices)).double()
    return [x.requires_grad_() for x in (keys, torch.randn(BATCH, heads, targets).double(), steps, *matrices)]


@pytest.mark.parametrize("tanh_output", [True, False])
@pytest.mark.parametrize("rule", [LocalStep, GradientStep])
def test_hand_written_gradients_are_numeric_gradients(rule: Any, tanh_output: bool) -> None:
    sizes = [3, 4, 2]
    keys, targets, steps, *weights = step_inputs(2, sizes, targets=6 if rule is LocalStep else 2)
    assert torch.autograd.gradcheck(
        lambda keys, targets, steps, *weights: rule.apply(keys, targets, steps, tanh_output, *weights),
        (keys, targets, steps, *weights),
    )


@pytest.mark.parametrize("rule", [LocalStep, GradientStep])
def test_gradients_that_nobody_asked_for_do_not_disturb_the_others(rule: Any) -> None:
    """The fixed φ_0 needs no gradient, and the last memory of a rollout gets none."""
    keys, targets, steps, *weights = step_inputs(2, [3, 4, 2], targets=6 if rule is LocalStep else 2)
    recalled, *_ = rule.apply(keys, targets, steps, True, *weights)
    expected = torch.autograd.grad(recalled.square().sum(), (keys, targets, steps))
    recalled, *_ = rule.apply(keys, targets, steps, True, *[m.detach() for m in weights])
    actual = torch.autograd.grad(recalled.square().sum(), (keys, targets, steps))
    torch.testing.assert_close(actual, expected)


# What writing means


def test_a_gradient_step_is_autograds_gradient() -> None:
    keys, values, steps, *weights = step_inputs(3, [4, 5, 6, 2], targets=2)
    write_keys = keys[:, 3:]
    updated = write_gradient(weights, write_keys, values, steps, True)
    loss = (activations(weights, write_keys, True)[-1] - values).square().sum()
    for index, gradient in enumerate(torch.autograd.grad(loss, weights)):
        torch.testing.assert_close(updated[index], weights[index] - steps[:, index, None, None] * gradient / 2)


def test_one_layer_stores_a_value_in_one_step() -> None:
    """Appendix C, eq. (10): with one linear layer and a step of 1 / |k|², what was written is read back exactly."""
    keys, value, _, m = step_inputs(1, [4, 3], targets=3)
    key = keys[:, 1:]
    steps = 1 / key.square().sum(2)
    for updated in (write_gradient([m], key, value, steps, False), write_local([m], key, [value], steps, False)):
        torch.testing.assert_close(activations(updated, key, False)[-1], value)


def test_an_orthogonal_key_is_not_disturbed_by_a_write() -> None:
    key = torch.tensor([1.0, 0, 0, 0]).double().expand(BATCH, 1, -1)
    other = torch.tensor([0.0, 0, 2, 0]).double().expand(BATCH, 1, -1)
    _, value, steps, m = step_inputs(1, [4, 3], targets=3)
    before = activations([m], other, False)[-1]
    for updated in (
        write_gradient([m], key, value, steps, False),
        write_local([m], key, [value], steps, False),
    ):
        torch.testing.assert_close(activations(updated, other, False)[-1], before)


@both_rules
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
def test_a_rate_of_zero_leaves_the_memory_alone(name: str, fast: bool) -> None:
    memory = build(name, fast=fast)
    state = memory.initial_state(BATCH)
    with torch.no_grad():
        memory.rate.bias.fill_(-1e4)
        closed = memory(torch.randn(BATCH, FEATURES).double(), state)
        memory.rate.bias.fill_(0)
        opened = memory(torch.randn(BATCH, FEATURES).double(), state)
    for layer in (1, 2, 3):
        assert torch.equal(closed.state[f"weights_{layer}"], state[f"weights_{layer}"])
        assert not torch.equal(opened.state[f"weights_{layer}"], state[f"weights_{layer}"])


@both_rules
def test_the_meta_loss_teaches_to_write(name: str) -> None:
    """Trained on eq. (5) alone, the memory recalls what it was just told far better than before it was told."""
    torch.manual_seed(0)
    memory = make_memory(name, input_size=FEATURES, **SIZES)
    optimizer = torch.optim.Adam(memory.parameters(), lr=1e-2)
    with torch.no_grad():  # values far from what φ_0 gives
        memory.interaction.bias.uniform_(-1, 1)
    memory.interaction.bias.requires_grad_(False)
    xs = torch.randn(3, 16, FEATURES)
    metas = []
    for _ in range(60):
        meta = memory.unroll(xs, None, memory.initial_state(16)).losses["meta"].mean()
        optimizer.zero_grad()
        meta.backward()
        optimizer.step()
        metas.append(float(meta.detach()))
    assert metas[-1] < 0.2 * metas[0]


# φ_0


@both_rules
def test_the_memory_begins_random_fixed_and_the_same(name: str) -> None:
    torch.manual_seed(1)
    one = build(name)
    torch.manual_seed(2)
    same, other = build(name), build(name, memory_seed=1)
    fan_ins = [SIZES["key_size"], SIZES["memory_units"], SIZES["memory_units"]]
    for layer, fan_in in enumerate(fan_ins, 1):
        phi_0 = one.initial_state(1)[f"weights_{layer}"]
        assert torch.equal(phi_0, same.initial_state(1)[f"weights_{layer}"])
        assert not torch.equal(phi_0, other.initial_state(1)[f"weights_{layer}"])
        assert 0.5 * fan_in**-0.5 < phi_0.abs().max() <= fan_in**-0.5
        assert not phi_0.requires_grad
    assert not any("initial" in key for key, _ in one.named_parameters())
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.initial_state(1)["weights_1"], one.initial_state(1)["weights_1"])


@both_rules
def test_a_step_keeps_one_set_of_matrices_for_the_backward_pass(name: str) -> None:
    """The fast path's claim: M_{t-1} by reference and vectors, where the plain path keeps several matrices more."""
    kept = {}
    for fast in (True, False):
        memory = make_memory(name, input_size=FEATURES, fast=fast)
        state = {key: value.clone().requires_grad_() for key, value in memory.initial_state(1).items()}
        storages: dict[int, int] = {}

        def keep(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            if not isinstance(tensor, torch.nn.Parameter) and tensor.shape[-2:] == (100, 100):
                storages[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            step = memory.step(torch.randn(1, FEATURES), state)
        kept[fast] = sum(storages.values()) / (3 * 100 * 100 * 4)
        del step
    assert kept[True] == 1
    assert kept[False] > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": "per_layer"}, "rate is 'per_layer'; it must be 'single' or 'per-layer'"),
        ({"output_activation": "relu"}, "output_activation is 'relu'"),
        ({"heads": 0}, "heads is 0; it must be at least 1"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_memory("mnm-p", input_size=FEATURES, **options)
