"""The DNC against its equations written as loops, and its taped linkage against autograd's.

Equations: Graves et al., Nature 538 (2016), Methods; several write heads as in google-deepmind/dnc.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from policies.memories import make_memory
from policies.memories.base import State, unroll
from policies.memories.dnc import DNC
from policies.memories.dnc_addressing import (
    allocation_weights,
    content_weights,
    next_linkage,
    next_memory,
    next_precedence,
    next_usage,
    oneplus,
    write_allocations,
)
from policies.memories.dnc_links import PlainLinks, TapedLinks
from policies.memories.shared_linear import SharedLinear

FEATURES, BATCH, LENGTH = 3, 2, 5
SIZES = {"hidden_size": 5, "output_size": 4, "slots": 6, "word_size": 3, "read_heads": 2}


def build(**options: Any) -> DNC:
    memory = make_memory("dnc", input_size=FEATURES, **{**SIZES, **options}).double()
    assert isinstance(memory, DNC)
    with torch.no_grad():  # an interface strong enough for every term to matter
        memory.interface.weight *= 6
    return memory


def random_state(memory: DNC, batch: int = BATCH) -> State:
    """Any state that the equations may meet: weights with sums of at most 1, a linkage without a diagonal."""
    shapes = {name: value.shape for name, value in memory.initial_state(batch).items()}
    state = {name: torch.randn(shape).double() for name, shape in shapes.items()}
    state["usage"] = torch.rand(shapes["usage"]).double()
    for name in ("precedence", "write_weights", "read_weights"):
        state[name] = 0.9 * state[name].softmax(-1)
    linkage = torch.rand(shapes["linkage"]).double() / memory.slots
    state["linkage"] = linkage * (1 - torch.eye(memory.slots).double())
    return state


def reference(memory: DNC, xs: Tensor, state: State, options: dict[str, Any]) -> dict[str, Tensor]:
    """The paper, one batch entry, head and slot at a time; `options` as given to the constructor."""
    options = {"controller_layers": 1, "write_heads": 1, "clip_value": 20.0, **SIZES, **options}
    n, w, r_heads, w_heads = (options[key] for key in ("slots", "word_size", "read_heads", "write_heads"))
    code_order = options.get("read_mode_order") == "code"
    limit = options["clip_value"] or float("inf")
    one = torch.ones((), dtype=torch.float64)

    def strength(x: Tensor) -> Tensor:
        return torch.log(1 + torch.exp(x)) + (0 if options.get("strength") == "softplus" else 1)

    def look_up(rows: list[Tensor], key: Tensor, beta: Tensor) -> Tensor:
        def norm(v: Tensor) -> Tensor:
            return torch.sqrt((v * v).sum() + 1e-6)

        scores = [torch.exp(beta * (key * row).sum() / (norm(key) * norm(row))) for row in rows]
        return torch.stack(scores) / sum(scores)

    def allocate(u: Tensor) -> Tensor:
        a = [one * 0] * n
        free_list = sorted(range(n), key=lambda slot: u[slot].item())
        product = one
        for slot in free_list:
            a[slot] = (1 - u[slot]) * product
            product = product * u[slot]
        return torch.stack(a)

    outputs, finals = [], []
    for b in range(xs.shape[1]):
        hidden, cell = list(state["hidden"][b]), list(state["cell"][b])
        rows, u = list(state["memory"][b]), state["usage"][b]
        p, link = list(state["precedence"][b]), [list(head) for head in state["linkage"][b]]
        w_w, w_r, r = list(state["write_weights"][b]), list(state["read_weights"][b]), list(state["read_vectors"][b])
        ys = []
        for x in xs[:, b]:
            below: list[Tensor] = []
            for layer, linear in enumerate(memory.controller):
                gates = linear.weight @ torch.cat([x, *r, hidden[layer], *below]) + linear.bias
                i, forget, g, o = gates.chunk(4)
                cell[layer] = torch.sigmoid(forget) * cell[layer] + torch.sigmoid(i) * torch.tanh(g)
                cell[layer] = cell[layer].clamp(-limit, limit)
                hidden[layer] = (torch.sigmoid(o) * torch.tanh(cell[layer])).clamp(-limit, limit)
                below = [hidden[layer]]
            xi = memory.interface.weight @ torch.cat(hidden)
            if options.get("bias"):
                xi = xi + memory.interface.bias

            # ξ = [k^r; β^r; k^w; β^w; e; v; f; g^a; g^w; π]
            place = 0

            def take(count: int, size: int, xi: Tensor = xi) -> list[Tensor]:
                nonlocal place
                parts = [xi[place + size * k : place + size * (k + 1)] for k in range(count)]
                place += count * size
                return parts

            k_r, beta_r = take(r_heads, w), [strength(s[0]) for s in take(r_heads, 1)]
            k_w, beta_w = take(w_heads, w), [strength(s[0]) for s in take(w_heads, 1)]
            erase, v = [torch.sigmoid(e) for e in take(w_heads, w)], take(w_heads, w)
            f, g_a, g_w = ([torch.sigmoid(s[0]) for s in take(count, 1)] for count in (r_heads, w_heads, w_heads))
            pi = [torch.softmax(m, 0) for m in take(r_heads, 2 * w_heads + 1)]
            assert place == len(xi)

            # usage
            u_new = []
            for slot in range(n):
                kept = one
                for head in range(w_heads):
                    last = w_w[head][slot]
                    kept = kept * (1 - (last.detach() if options.get("stop_usage_gradient") else last))
                written, psi = 1 - kept, one
                for head in range(r_heads):
                    psi = psi * (1 - f[head] * w_r[head][slot])
                u_new.append((u[slot] + written - u[slot] * written) * psi)
            u = torch.stack(u_new)
            # write weights
            seen, w_w = u, []
            for head in range(w_heads):
                a = allocate(seen)
                seen = seen + (1 - seen) * g_a[head] * g_w[head] * a
                c = look_up(rows, k_w[head], beta_w[head])
                w_w.append(g_w[head] * (g_a[head] * a + (1 - g_a[head]) * c))
            # memory
            for slot in range(n):
                row = rows[slot]
                for head in range(w_heads):
                    row = row * (1 - w_w[head][slot] * erase[head])
                rows[slot] = row + sum(w_w[head][slot] * v[head] for head in range(w_heads))
            # links of each write head, from the precedence before this write
            ahead, back = [], []
            for head in range(w_heads):
                matrix = [
                    torch.stack(
                        [
                            one * 0
                            if i == j
                            else (1 - w_w[head][i] - w_w[head][j]) * link[head][i][j] + w_w[head][i] * p[head][j]
                            for j in range(n)
                        ]
                    )
                    for i in range(n)
                ]
                link[head] = matrix
                p[head] = (1 - w_w[head].sum()) * p[head] + w_w[head]
                dense = torch.stack(matrix)
                ahead.append([dense @ weights for weights in w_r])
                back.append([dense.t() @ weights for weights in w_r])
            # read weights and vectors
            new_w_r = []
            for head in range(r_heads):
                c = look_up(rows, k_r[head], beta_r[head])
                ways = [back[k][head] for k in range(w_heads)]
                forwards = [ahead[k][head] for k in range(w_heads)]
                ways += [*forwards, c] if code_order else [c, *forwards]
                new_w_r.append(sum(pi[head][k] * way for k, way in enumerate(ways)))
            w_r = new_w_r
            r = [sum(w_r[head][slot] * rows[slot] for slot in range(n)) for head in range(r_heads)]
            y = memory.output.weight @ torch.cat([*hidden, *r])
            if options.get("bias"):
                y = y + memory.output.bias
            ys.append(y.clamp(-limit, limit))
        outputs.append(torch.stack(ys))
        final = {"hidden": hidden, "cell": cell, "memory": rows, "precedence": p, "write_weights": w_w}
        final |= {"read_weights": w_r, "read_vectors": r, "linkage": [torch.stack(matrix) for matrix in link]}
        finals.append({"usage": u} | {key: torch.stack(parts) for key, parts in final.items()})
    return {"outputs": torch.stack(outputs, 1)} | {
        key: torch.stack([final[key] for final in finals]) for key in finals[0]
    }


@pytest.mark.parametrize("way", ["sequence", "plain step"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"controller_layers": 3, "bias": True},
        {"write_heads": 2},
        {"write_heads": 2, "read_mode_order": "code", "stop_usage_gradient": True, "strength": "softplus"},
        {"clip_value": 0.3},
        {"clip_value": None, "read_heads": 1, "write_heads": 3},
    ],
    ids=lambda options: " ".join(f"{key}={value}" for key, value in options.items()) or "default",
)
def test_dnc_is_the_papers_equations(way: str, options: dict[str, Any]) -> None:
    """Outputs, final state, and the gradients of everything trained and of the state carried in."""
    memory = build(fast=way == "sequence", **options)
    xs = torch.randn(LENGTH, BATCH, FEATURES).double()
    state = {key: value.requires_grad_() for key, value in random_state(memory).items()}
    leaves = {**state, **dict(memory.named_parameters())}
    result = memory.unroll(xs, None, state)
    ours = {"outputs": result.outputs, **result.state}
    paper = reference(memory, xs, state, options)
    assert ours.keys() == paper.keys()
    assert_same_with_gradients(ours, paper, leaves)


def assert_same_with_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], leaves: dict[str, Tensor]) -> None:
    weights = {key: torch.randn(value.shape).double() for key, value in ours.items()}
    gradients = []
    for parts in (ours, theirs):
        total = torch.stack([(weights[key] * parts[key]).sum() for key in weights]).sum()
        found = torch.autograd.grad(
            total, list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        gradients.append(dict(zip(leaves, found, strict=True)))
    for actual, expected in ((ours, theirs), gradients):
        for key in expected:
            torch.testing.assert_close(
                actual[key], expected[key], rtol=1e-8, atol=1e-10, msg=lambda text, k=key: f"{k}: {text}"
            )


# The fast path


@pytest.mark.parametrize("write_heads", [1, 2])
@pytest.mark.parametrize("resets", ["none start", "known", "unknown"])
def test_fast_is_plain_with_and_without_resets(write_heads: int, resets: str) -> None:
    """Over several copies of the tape, and a last segment that is shorter than the others."""
    length = 11
    memory = build(write_heads=write_heads)
    starts = None if resets == "none start" else torch.zeros(length, BATCH, dtype=torch.bool)
    if starts is not None:
        starts[0, 0] = starts[3, 1] = starts[4, 1] = starts[8] = True
    xs = torch.randn(length, BATCH, FEATURES).double()
    state = {key: value.requires_grad_() for key, value in random_state(memory).items()}
    results = []
    for fast in (True, False):
        memory.fast = fast
        result = memory.unroll(xs, starts, state, [0, 3, 4, 8] if resets == "known" else None)
        results.append({"outputs": result.outputs, **result.state})
    assert_same_with_gradients(*results, {**state, **dict(memory.named_parameters())})


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_taped_links_are_plain_links(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many entries are worked on at once, and with rows wider than the slots."""
    slots, heads, reads, batch = 18, 1, 2, 3
    monkeypatch.setattr("policies.memories.dnc_links.CACHED_BYTES", chunk * 8 * slots**2)
    steps = [
        [0.9 * torch.randn(batch, count, slots).double().softmax(2) for count in (heads, heads, reads)]
        for _ in range(7)
    ]
    leaves = {f"{t} {k}": value.requires_grad_() for t, step in enumerate(steps) for k, value in enumerate(step)}
    linkage = torch.rand(batch, heads, slots, slots).double()
    linkage = (linkage * (1 - torch.eye(slots).double())).requires_grad_()
    starts = torch.tensor([False, True, False])
    results: list[dict[str, Tensor]] = []
    for links in (TapedLinks(linkage, 9), PlainLinks(linkage)):
        results.append({})
        for t, (w, p, w_r) in enumerate(steps):
            ways = links.follow(w, p, w_r, starts if t in (2, 3) else None)
            results[-1] |= {f"f {t}": ways[0], f"b {t}": ways[1]}
        results[-1]["final"] = links.final()
    assert_same_with_gradients(*results, {**leaves, "linkage": linkage})
    # the same graph once more, and only a part of it
    for keys in (["f 3"], ["final"]):
        parts = [{key: result[key] for key in keys} for result in results]
        assert_same_with_gradients(*parts, {**leaves, "linkage": linkage})


def test_a_certain_write_is_differentiated_too() -> None:
    """Weights of exactly 1 and 0 make 1 - w[i] - w[j] zero: undoing such an update would divide by it."""
    slots = 4
    w = torch.eye(slots).double()[None, :, None].unbind(1)  # slot 0, then 1, ...
    results = []
    leaves = [torch.rand(1, 1, slots).double().requires_grad_() for _ in range(4)]
    linkage = torch.rand(1, 1, slots, slots).double().requires_grad_()
    for links in (TapedLinks(linkage, 4), PlainLinks(linkage)):
        total = sum(sum(way.square().sum() for way in links.follow(w[t], leaves[t], leaves[t])) for t in range(4))
        results.append(torch.autograd.grad(total, [*leaves, linkage]))
    for actual, expected in zip(*results, strict=True):
        assert actual.isfinite().all()
        torch.testing.assert_close(actual, expected)


def test_training_does_not_keep_the_linkages_and_lets_go_of_the_tape() -> None:
    slots, length = 40, 36
    kept = {}
    for fast in (True, False):
        memory = make_memory("dnc", input_size=FEATURES, hidden_size=4, slots=slots, word_size=2, fast=fast)
        found: dict[int, int] = {}

        def keep(tensor: Tensor, found: dict[int, int] = found) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.nbytes() >= 4 * slots**2:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = memory.unroll(torch.randn(length, 1, FEATURES), None, memory.initial_state(1))
        kept[fast] = sum(found.values()) / (4 * slots**2)
        if fast:
            follow = next_follow(result.outputs.grad_fn)
            tape = follow.tape
            assert len(tape.copies) == 6  # √36
            result.outputs.sum().backward()
            assert len(tape.remade) == 6
            gone = weakref.ref(tape)
            gc.disable()
            try:
                del result, follow, tape
                assert gone() is None, "a cycle keeps the tape until the garbage collector comes"
            finally:
                gc.enable()
    assert kept[True] == 0
    assert kept[False] > length


def next_follow(node: Any) -> Any:
    """The first node of a graph that holds a tape."""
    seen, queue = set(), [node]
    while queue:
        node = queue.pop()
        if hasattr(node, "tape"):
            return node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                queue.append(following)
    raise AssertionError("no node holds a tape")


def test_a_shared_layer_is_a_layer_at_every_step() -> None:
    weight = torch.randn(3, 4).double().requires_grad_()
    bias = torch.randn(3).double().requires_grad_()
    x = torch.randn(2, 4).double().requires_grad_()
    shared = SharedLinear(weight)
    ours, theirs = [x], [x]
    for _ in range(3):
        grow = torch.ones(3, 4).double()
        ours.append(shared(ours[-1], bias).tanh() @ grow)
        theirs.append((theirs[-1] @ weight.t() + bias).tanh() @ grow)
    torch.autograd.grad(ours[3].sum(), x, retain_graph=True)  # a pass that never comes to the weight
    for used in (3, 1, 2):  # the same graph again, in parts: nothing is left over from the pass before
        grads = [
            torch.autograd.grad(v[used].square().sum(), (weight, bias, x), retain_graph=True) for v in (ours, theirs)
        ]
        for actual, expected in zip(*grads, strict=True):
            torch.testing.assert_close(actual, expected)


# What addressing means


def test_a_full_allocation_gate_writes_to_the_free_slot() -> None:
    usage = torch.tensor([[0.9, 0.8, 0.0, 0.7]])
    torch.testing.assert_close(allocation_weights(usage), torch.tensor([[0.0, 0, 1, 0]]), rtol=0, atol=1e-29)
    usage = torch.tensor([[0.5, 0.25, 1.0]]).double()
    expected = torch.tensor([[0.5 * 0.25, 0.75, 0.0]]).double()
    torch.testing.assert_close(allocation_weights(usage), expected)


def test_equal_slots_are_allocated_in_order_and_full_ones_not_at_all() -> None:
    torch.testing.assert_close(allocation_weights(torch.zeros(1, 40)), torch.eye(40)[:1], rtol=0, atol=1e-29)
    assert torch.equal(allocation_weights(torch.ones(1, 40)), torch.zeros(1, 40))


@pytest.mark.parametrize("kind", ["zeros", "ones", "equal", "one zero", "mixed"])
def test_allocation_has_the_derivative_of_its_product(kind: str) -> None:
    """At zeros and ones too, where the product's derivative is that of the other factors."""
    n = 5
    usage = {
        "zeros": torch.zeros(n),
        "ones": torch.ones(n),
        "equal": torch.full((n,), 0.3),
        "one zero": torch.tensor([0.5, 0.0, 0.2, 1.0, 0.7]),
        "mixed": torch.tensor([0.5, 0.1, 0.2, 0.9, 0.7]),
    }[kind].double()
    ours = usage.clone().requires_grad_()
    theirs = usage.clone().requires_grad_()
    weights = torch.randn(n).double()
    (allocation_weights(ours[None])[0] * weights).sum().backward()
    order, total = sorted(range(n), key=lambda slot: (float(usage[slot]), slot)), torch.zeros(()).double()
    for rank, slot in enumerate(order):
        product = torch.ones(()).double()
        for before in order[:rank]:
            product = product * theirs[before]
        total = total + weights[slot] * (1 - theirs[slot]) * product
    total.backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_write_heads_allocate_different_slots() -> None:
    allocations = write_allocations(torch.zeros(1, 4), torch.ones(1, 3))[0]
    assert allocations.argmax(1).unique().numel() == 3
    torch.testing.assert_close(allocations.max(1).values, torch.ones(3))
    torch.testing.assert_close(allocations.sum(1), torch.ones(3))
    closed = write_allocations(torch.zeros(1, 4), torch.zeros(1, 2))
    assert torch.equal(closed[0, 0], closed[0, 1])


def test_usage_is_raised_by_writing_and_lowered_by_free_gates() -> None:
    usage = torch.tensor([[0.2, 0.5, 0.0]])
    none = torch.zeros(1, 1, 3)
    write = torch.tensor([[[0.0, 0.0, 1.0]]])
    assert torch.equal(next_usage(usage, none, none, torch.ones(1, 1)), usage)
    assert torch.equal(next_usage(usage, write, none, torch.ones(1, 1)), torch.tensor([[0.2, 0.5, 1.0]]))
    read = torch.tensor([[[0.0, 1.0, 0.0]]])
    assert torch.equal(next_usage(usage, none, read, torch.ones(1, 1)), torch.tensor([[0.2, 0.0, 0.0]]))
    assert torch.equal(next_usage(usage, none, read, torch.zeros(1, 1)), usage)


def test_a_strong_key_finds_its_word_whatever_its_length() -> None:
    memory = torch.tensor([[[1.0, 0], [0, 3], [-1, 1]]])
    weights = content_weights(memory, torch.tensor([[[0.0, 0.01], [-5, 5]]]), torch.full((1, 2), 100.0))
    torch.testing.assert_close(weights[0].argmax(1), torch.tensor([1, 2]))
    torch.testing.assert_close(weights.sum(2), torch.ones(1, 2))
    weak = content_weights(memory, torch.ones(1, 1, 2), torch.zeros(1, 1))
    torch.testing.assert_close(weak, torch.full((1, 1, 3), 1 / 3))


@pytest.mark.parametrize("heads", [1, 2])
def test_a_certain_write_erases_and_replaces_one_word(heads: int) -> None:
    memory = torch.randn(1, 3, 4)
    weights = torch.zeros(1, heads, 3)
    weights[0, 0, 1] = 1
    erase, vectors = torch.ones(1, heads, 4), torch.randn(1, heads, 4)
    written = next_memory(memory, weights, erase, vectors)
    torch.testing.assert_close(written[:, 1], vectors[:, 0])
    assert torch.equal(written[:, [0, 2]], memory[:, [0, 2]])


def test_links_lead_along_the_order_of_writing_and_back() -> None:
    """Slots 2, 0, 3 are written; forward from 2 is 0, from 0 is 3; backward the reverse; nothing links to itself."""
    n = 4
    precedence, linkage = torch.zeros(1, 1, n), torch.zeros(1, 1, n, n)
    for slot in (2, 0, 3):
        write = torch.eye(n)[slot].view(1, 1, n)
        linkage, precedence = next_linkage(linkage, write, precedence), next_precedence(precedence, write)
    expected = torch.zeros(n, n)
    expected[0, 2] = expected[3, 0] = 1
    assert torch.equal(linkage[0, 0], expected)
    forward, backward = PlainLinks(linkage).follow(torch.zeros(1, 1, n), precedence, torch.eye(n)[None])
    assert torch.equal(forward[0, 0, 2], torch.eye(n)[0])
    assert torch.equal(backward[0, 0, 3], torch.eye(n)[0])


def test_oneplus_is_one_plus_a_softplus() -> None:
    x = torch.tensor([-50.0, 0.0, 3.0])
    torch.testing.assert_close(oneplus(x), 1 + torch.log1p(x.exp()))


@pytest.mark.parametrize("write_heads", [1, 2])
def test_weights_stay_weights(write_heads: int) -> None:
    """In [0, 1] with sums of at most 1, and so are the linkage's rows and columns; the diagonal is zero."""
    memory = build(write_heads=write_heads)
    with torch.no_grad():
        state = unroll(memory, 3 * torch.randn(30, 4, FEATURES).double(), None, memory.initial_state(4)).state
    slack = 1 + 1e-9
    for name in ("write_weights", "read_weights", "precedence"):
        assert (state[name] >= 0).all()
        assert (state[name].sum(2) <= slack).all()
    assert (state["write_weights"].sum(1) > 0).any()
    assert ((state["usage"] >= 0) & (state["usage"] <= slack)).all()
    linkage = state["linkage"]
    assert (linkage.sum(2) <= slack).all()
    assert (linkage.sum(3) <= slack).all()
    assert linkage.diagonal(dim1=2, dim2=3).count_nonzero() == 0
    assert linkage.count_nonzero() > 0


def test_what_was_read_is_seen_at_the_next_step() -> None:
    memory = build()
    state = random_state(memory)
    other = {**state, "read_vectors": state["read_vectors"] + 1}
    x = torch.randn(BATCH, FEATURES).double()
    assert not torch.allclose(memory(x, state).state["hidden"], memory(x, other).state["hidden"])


# No infinite derivative, no NaN


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["zero memory", "equal rows", "full memory", "zero everything"])
def test_gradients_are_finite_where_the_memory_is_degenerate(case: str, dtype: torch.dtype, fast: bool) -> None:
    memory = build(slots=40, fast=fast).to(dtype)
    state = {key: value.to(dtype).clone() for key, value in random_state(memory).items()}
    if case == "zero memory":
        state["memory"].zero_()
    elif case == "equal rows":
        state["memory"].fill_(0.5)
    elif case == "full memory":
        state["usage"].fill_(1)
        with torch.no_grad():  # and nothing is freed
            memory.interface.weight.zero_()
    else:
        state = {key: torch.zeros_like(value) for key, value in state.items()}
        with torch.no_grad():  # keys are zero too
            memory.interface.weight.zero_()
    state = {key: value.requires_grad_() for key, value in state.items()}
    xs = torch.randn(4, BATCH, FEATURES, dtype=dtype)
    result = memory.unroll(xs, None, state)
    leaves = [*state.values(), *memory.parameters()]
    total = result.outputs.square().sum() + sum(value.square().sum() for value in result.state.values())
    gradients = torch.autograd.grad(total, leaves)
    for value in (result.outputs, *result.state.values(), *gradients):
        assert value.isfinite().all()
    assert any(gradient.count_nonzero() for gradient in gradients)


def test_ten_thousand_steps_stay_finite_and_the_memory_stays_in_bounds() -> None:
    torch.manual_seed(0)
    memory = make_memory("dnc", input_size=FEATURES, hidden_size=8, slots=8, word_size=4, read_heads=2)
    state = memory.initial_state(2)
    with torch.no_grad():
        memory.get_submodule("interface").weight *= 20
        for xs in (3 * torch.randn(10_000, 2, FEATURES)).split(1000):
            state = unroll(memory, xs, None, state).state  # plain steps, the quicker way without gradients
            assert all(value.isfinite().all() for value in state.values())
    assert (state["read_weights"].sum(2) <= 1 + 1e-4).all()
    assert (state["linkage"].sum(3) <= 1 + 1e-4).all()
    # and it can still be trained from there
    memory.unroll(torch.randn(5, 2, FEATURES), None, state).outputs.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in memory.parameters())


# Options


def test_gradients_of_hidden_states_are_clipped() -> None:
    limit = 1e-3
    memory, free = build(clip_gradients=limit), build()
    free.load_state_dict(memory.state_dict())
    xs = torch.randn(1, BATCH, FEATURES).double()
    grads = []
    for which in (memory, free):
        state = {key: value.requires_grad_() for key, value in random_state(which).items()}
        total = 1e3 * which.unroll(xs, None, state).outputs.sum()
        # dc = dh o (1 - tanh²) is below dh, and f < 1
        grads.append(torch.autograd.grad(total, state["cell"])[0])
    assert 0 < grads[0].abs().max() <= limit
    assert grads[1].abs().max() > limit


def test_the_default_size_of_the_interface_is_the_papers() -> None:
    memory = make_memory("dnc", input_size=FEATURES)
    w, r = 16, 4
    assert memory.get_submodule("interface").weight.shape == (w * r + 3 * w + 5 * r + 3, 256)
    assert [name for name, _ in memory.named_parameters() if "bias" in name] == ["controller.0.bias"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots must be at least 1, not 0"),
        ({"controller_layers": 0}, "controller_layers must be at least 1, not 0"),
        ({"clip_value": 0.0}, "clip_value must be above 0 or None, not 0.0"),
        ({"clip_gradients": -1.0}, "clip_gradients must be above 0 or None, not -1.0"),
        ({"strength": "plus"}, "strength is 'plus'; it must be 'oneplus' or 'softplus'"),
        ({"read_mode_order": "bcf"}, "read_mode_order is 'bcf'; it must be 'paper' or 'code'"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_memory("dnc", input_size=FEATURES, **options)
