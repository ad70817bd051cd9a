"""Appendix C of the MNM paper: what a two-layer neural memory has in common with sparse distributed memory (SDM).

The claim. SDM (Kanerva, 1988) is a two-layer network of a fixed address matrix A and a content matrix C,

    a_t = σ(A k_t),  σ(m) = 1 where ½(D − m) ≤ δ, else 0        (7)      which addresses lie within δ of the key
    v̂_t = C_t a_t                                                        reading
    C_t = C_{t-1} + v_t a_tᵀ                                    (8)      writing

and a neural memory with L = 2 computes the same. Its first layer is a_t = σ(M¹_t k_t), which "becomes identical to that
of the SDM if we use the address matrix A for M¹_t and the binary activation function for σ"; its second layer reads
v̂_t = M²_t a_t, so that M² is the content matrix; and its gradient step writes there

    ∂L/∂M² = (2 / d_v) (v̂_t − v_t) a_tᵀ                         (9)
    M²_t = M²_{t-1} + v_t a_tᵀ − v̂_t a_tᵀ                       (10)     2/d_v dropped, β = 1

which is the write (8) of SDM plus a term that makes no update where the value is already stored.

The appendix gives A the shape D_l × d_v and a_t the size d_v; that C_t a_t is defined and v_t has size d_v wants
A: D_l × d_k and a_t of size D_l, which is used here. D in (7) is the length of the key: m is a product of vectors of
±1, so ½(D − m) is their Hamming distance. Our first layer has tanh: it becomes the binary activation as its weights
grow.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from policies.memories import make_memory
from policies.memories.mnm.memory import MNM
from policies.memories.mnm.rules import activations, write_gradient, write_local

KEY_BITS, ADDRESSES, VALUE_SIZE, RADIUS = 16, 200, 5, 5


def signs(*shape: int) -> Tensor:
    return torch.randint(2, shape).double() * 2 - 1


def sdm_activation(address: Tensor, key: Tensor) -> Tensor:
    """a of eq. (7), address by address: `[addresses]`."""
    return torch.stack([((row != key).sum() <= RADIUS).double() for row in address])


def first_layer(address: Tensor) -> Tensor:
    """M¹ `[1, addresses + 1, bits + 1]` that makes tanh binary; the key gets a last entry 1, and so does its image.

    a = 1 where m ≥ D − 2δ. As m changes in steps of 2, that is where m − (D − 2δ) + 1 > 0. A slope of 40 makes tanh ±1
    in float64.
    """
    threshold = torch.full((len(address), 1), -(KEY_BITS - 2.0 * RADIUS) + 1).double()
    constant = torch.zeros(1, KEY_BITS + 1).double()
    constant[0, -1] = 1
    return 40 * torch.cat([torch.cat([address, threshold], 1), constant]).unsqueeze(0)


def as_key(key: Tensor) -> Tensor:
    """`[bits]` to `[1, 1, bits + 1]`."""
    return torch.cat([key, torch.ones(1).double()]).view(1, 1, -1)


def test_the_threshold_of_equation_7_is_a_hamming_distance() -> None:
    address, key = signs(ADDRESSES, KEY_BITS), signs(KEY_BITS)
    inside = (KEY_BITS - address @ key) / 2 <= RADIUS
    assert torch.equal(inside.double(), sdm_activation(address, key))
    assert 0 < inside.sum() < ADDRESSES / 2  # sparse, yet not empty


def test_the_first_layer_is_the_address_decoder() -> None:
    """z¹ = 2a − 1 of eq. (7), for each of many keys."""
    address = signs(ADDRESSES, KEY_BITS)
    m_1 = first_layer(address)
    for key in signs(20, KEY_BITS):
        z_1 = activations([m_1], as_key(key), tanh_output=True)[1][0, 0]
        assert torch.equal((z_1[:-1] + 1) / 2, sdm_activation(address, key))


def test_a_two_layer_memory_reads_what_sparse_distributed_memory_reads() -> None:
    """f_φ(k) = C a, with the content matrix in M²: C a = ½ C z¹ + ½ C 1, the latter by the unit that is always 1."""
    address, content = signs(ADDRESSES, KEY_BITS), torch.zeros(VALUE_SIZE, ADDRESSES).double()
    keys, values = signs(6, KEY_BITS), signs(6, VALUE_SIZE)
    for key, value in zip(keys, values, strict=True):
        content = content + torch.outer(value, sdm_activation(address, key))  # eq. (8)
    m_2 = torch.cat([content, content.sum(1, keepdim=True)], 1).unsqueeze(0) / 2
    for key, value in zip(keys, values, strict=True):
        read = activations([first_layer(address), m_2], as_key(key), tanh_output=False)[-1][0, 0]
        torch.testing.assert_close(read, content @ sdm_activation(address, key))
        assert torch.equal(read.sign(), value)  # and it works as a memory


def addressed(bits: Tensor) -> Tensor:
    """An address activation `[D]` as the key `[1, 1, D]` of the second layer alone."""
    return bits.view(1, 1, -1)


def by_rule(rule: str, content: Tensor, a: Tensor, value: Tensor, step: float = 1.0) -> Tensor:
    """The second layer after a write, by either of MNM's rules; for mnm-p with z'² = v."""
    matrices, keys, v = [content.unsqueeze(0)], addressed(a), value.view(1, 1, -1)
    steps = torch.tensor([[step]]).double()
    if rule == "mnm-g":
        return write_gradient(matrices, keys, v, steps, tanh_output=False)[0][0]
    return write_local(matrices, keys, [v], steps, tanh_output=False)[0][0]


both_rules = pytest.mark.parametrize("rule", ["mnm-g", "mnm-p"])


@both_rules
def test_a_write_is_that_of_sparse_distributed_memory_and_a_correction(rule: str) -> None:
    """Eq. (10): M² + v aᵀ − v̂ aᵀ; on an empty content matrix just eq. (8)."""
    a = sdm_activation(signs(ADDRESSES, KEY_BITS), signs(KEY_BITS))
    value, empty = signs(VALUE_SIZE), torch.zeros(VALUE_SIZE, ADDRESSES).double()
    assert torch.equal(by_rule(rule, empty, a, value), empty + torch.outer(value, a))
    content = torch.randn_like(empty)
    written = content + torch.outer(value, a)
    torch.testing.assert_close(by_rule(rule, content, a, value), written - torch.outer(content @ a, a))


@both_rules
def test_what_is_already_stored_is_not_written_again(rule: str) -> None:
    """Where v̂ = v eq. (10) changes nothing, while eq. (8) adds the value once more."""
    a = sdm_activation(signs(ADDRESSES, KEY_BITS), signs(KEY_BITS))
    content = torch.randn(VALUE_SIZE, ADDRESSES).double()
    value = content @ a
    torch.testing.assert_close(by_rule(rule, content, a, value), content)
    assert not torch.allclose(content + torch.outer(value, a), content)


@both_rules
def test_where_addresses_do_not_overlap_both_memories_hold_the_same(rule: str) -> None:
    """Pairs at disjoint addresses: v̂ = 0 at each write, so (10) is (8); and with one address a key, recall is exact."""
    address = torch.cat([signs(1, KEY_BITS)] * 2)
    address[1] *= -1  # as far from one another as can be
    sdm = neural = torch.zeros(VALUE_SIZE, 2).double()
    values = signs(2, VALUE_SIZE)
    for key, value in zip(address, values, strict=True):
        a = sdm_activation(address, key)
        assert a.sum() == 1
        sdm = sdm + torch.outer(value, a)
        neural = by_rule(rule, neural, a, value)
    assert torch.equal(neural, sdm)
    for key, value in zip(address, values, strict=True):
        assert torch.equal(neural @ sdm_activation(address, key), value)


def test_the_gradient_by_the_second_layer_is_equation_9() -> None:
    """Through both layers, with the mean over units that the appendix takes, and as mnm-g takes its step."""
    memory = make_memory(
        "mnm-g",
        input_size=3,
        hidden_size=6,
        key_size=4,
        value_size=VALUE_SIZE,
        memory_units=7,
        memory_layers=2,
        heads=1,
        output_activation="linear",
        mean_over_units=True,
        fast=False,
    ).double()
    assert isinstance(memory, MNM)
    before = memory.initial_state(1)
    after = memory(torch.randn(1, 3).double(), before).state
    keys, values, rate = memory.interact(after["hidden"])
    beta = torch.sigmoid(memory.rate(rate))[0, 0]
    m_1, m_2 = before["weights_1"][0], before["weights_2"][0].clone().requires_grad_()
    a = torch.tanh(m_1 @ keys[0, 1])  # a_t = σ(M¹ k_t)
    recalled, value = m_2 @ a, values[0, 0]
    equation_9 = 2 / VALUE_SIZE * torch.outer(recalled - value, a)
    gradient = torch.autograd.grad((recalled - value).square().mean(), m_2, retain_graph=True)[0]
    torch.testing.assert_close(gradient, equation_9)
    torch.testing.assert_close(after["weights_2"][0], m_2 - beta * equation_9)
