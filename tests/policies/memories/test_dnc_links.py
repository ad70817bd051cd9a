"""The DNC's fast way through time without C loops against its plain one: the taped linkage and the shared layer."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from dnc_loops import BATCH, FEATURES, assert_same_with_gradients, build, random_state
from torch import Tensor

from policies.memories import make_memory
from policies.memories.dnc.fast_links import PlainLinks, TapedLinks
from policies.memories.time.shared_linear import SharedLinear


@pytest.fixture(autouse=True)
def without_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGRAM_NATIVE", "0")


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
    monkeypatch.setattr("policies.memories.dnc.fast_links.CACHED_BYTES", chunk * 8 * slots**2)
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
