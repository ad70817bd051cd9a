"""The sparse DNC's equations written as loops, and a small one to hold to them.

Equation numbers are those of Rae et al., "Scaling Memory-Augmented Neural Networks with Sparse Reads and Writes",
NIPS 2016, arXiv:1610.09027; those from (10) on are in supplement D.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from policies.memories import make_memory
from policies.memories.contract import State, Unrolled
from policies.memories.sdnc.memory import SDNC
from policies.memories.shared.addressing import inverse_norms
from policies.memories.time.unroll import unroll

FEATURES, BATCH, LENGTH = 3, 2, 7
SIZES = {"hidden_size": 6, "output_size": 4, "slots": 8, "word_size": 3, "read_heads": 2}
SIZES |= {"sparse_reads": 2, "sparse_links": 3, "access_threshold": 0.05}
LEAVES = ("hidden", "cell", "read_vectors", "memory", "read_weights")
"""The parts of the state that gradients come to."""


def build(**options: Any) -> SDNC:
    memory = make_memory("sdnc", input_size=FEATURES, **{**SIZES, **options}).double()
    assert isinstance(memory, SDNC)
    with torch.no_grad():  # interfaces strong enough for every term to matter
        memory.interface.weight *= 6
    return memory


def random_state(memory: SDNC, steps: int = 6) -> State:
    """A state in use, with a memory and weightings that are not of its making."""
    with torch.no_grad():
        xs = torch.randn(steps, BATCH, FEATURES).double()
        state = unroll(memory, xs, None, memory.initial_state(BATCH)).state
    for name in ("hidden", "cell", "read_vectors", "memory"):
        state[name] = state[name] + 0.3 * torch.randn_like(state[name])
    state["read_weights"] = state["read_weights"] * (0.5 + 0.5 * torch.rand_like(state["read_weights"]))
    state["inverse_norm"] = inverse_norms(state["memory"])
    return {name: value.clone().requires_grad_() if name in LEAVES else value for name, value in state.items()}


def dense(weights: Tensor, slots: Tensor, size: int) -> Tensor:
    """One sparse weighting `[S]` over all slots."""
    total = [weights.new_zeros(()) for _ in range(size)]
    for weight, slot in zip(weights, slots.long().tolist(), strict=True):
        if slot >= 0:
            total[slot] = total[slot] + weight
    return torch.stack(total)


def links(memory: SDNC, state: State, b: int) -> dict[str, Tensor]:
    """N, P and p of one batch entry, dense."""
    size = memory.slots
    retained = state["log_retained"][b]
    rows_n, rows_p = [], []
    for i in range(size):
        rows_n.append(dense(*state["predecessors"][b, i], size))
        logs, slots = state["successors"][b, i]
        rows_p.append(dense((logs + retained[slots.clamp_min(0).long()]).exp(), slots, size))
    p = dense(*state["precedence"][b], size)
    return {"N": torch.stack(rows_n), "P": torch.stack(rows_p), "p": p}


def keep_largest(row: Tensor, count: int) -> Tensor:
    """The `count` largest entries of `[N]`, zero elsewhere."""
    kept = sorted(range(len(row)), key=lambda i: -float(row[i].detach()))[:count]
    return torch.stack([row[i] if i in kept else row.new_zeros(()) for i in range(len(row))])


def reference(memory: SDNC, xs: Tensor, state: State) -> dict[str, Tensor]:
    """The paper, one batch entry, head and slot at a time, with dense weightings and links."""
    size, heads = memory.slots, memory.read_heads
    found: list[dict[str, Tensor]] = []
    for b in range(xs.shape[1]):
        h, c, r = (state[name][b] for name in ("hidden", "cell", "read_vectors"))
        m = list(state["memory"][b])
        w_read = [dense(state["read_weights"][b, k], state["read_slots"][b, k], size) for k in range(heads)]
        last, time = state["last_access"][b].tolist(), float(state["time"][b])
        linked = links(memory, state, b)
        n, big_p, p = linked["N"], linked["P"], linked["p"]
        outputs = []
        for x in xs[:, b]:
            # §3.3: the controller sees the input and what was read one step ago
            lstm = memory.controller
            gates = lstm.weight_ih @ torch.cat([x, r.flatten()]) + lstm.bias_ih + lstm.weight_hh @ h + lstm.bias_hh
            i_gate, forget, g, o = gates.chunk(4)
            c = torch.sigmoid(forget) * c + torch.sigmoid(i_gate) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            keys, betas, a, alpha_gamma, modes = (memory.interface.weight @ h + memory.interface.bias).split(
                [heads * memory.word_size, heads, memory.word_size, 2, 3 * heads]
            )
            keys, modes = keys.view(heads, -1), modes.view(heads, 3)
            alpha, gamma = torch.sigmoid(alpha_gamma)
            time += 1

            # the write, with equations (5), (6) and (8)
            unused = min(range(size), key=lambda i: last[i])
            w_write = [alpha * gamma * sum(w[i] for w in w_read) / heads for i in range(size)]
            w_write[unused] = w_write[unused] + alpha * (1 - gamma)
            m = [(0 if i == unused else 1) * m[i] + w_write[i] * a for i in range(size)]

            # (19), (20), (11), without gradients
            w = [float(weight.detach()) for weight in w_write]
            new_n, new_p = n.clone(), big_p.clone()
            for i in range(size):
                for j in range(size):
                    new_n[i, j] = (1 - w[i]) * n[i, j] + w[i] * p[j]
                    new_p[i, j] = (1 - w[j]) * big_p[i, j] + w[j] * p[i]
            n = torch.stack([keep_largest(row, memory.sparse_links) for row in new_n])
            big_p = torch.stack([keep_largest(row, memory.sparse_links) for row in new_p])
            p = keep_largest((1 - sum(w)) * p + torch.tensor(w, dtype=torch.float64), memory.sparse_links)

            # the links, by rows of P and N or as (21) and (22) have it; content, (2); the words read, (4)
            w_now, r_now = [], []
            for k in range(heads):
                forward = sum(w_read[k][i] * big_p[i] for i in range(size))
                backward = sum(w_read[k][i] * n[i] for i in range(size))
                if memory.link_reads == "products":
                    forward, backward = n @ w_read[k], big_p @ w_read[k]
                beta = 1 + torch.log(1 + torch.exp(betas[k]))
                cosines = torch.stack(
                    [keys[k] @ word / torch.sqrt((keys[k] @ keys[k] + 1e-6) * (word @ word + 1e-6)) for word in m]
                )
                nearest = sorted(range(size), key=lambda i: -float(cosines[i].detach()))[: memory.sparse_reads]
                total = sum(torch.exp(beta * cosines[i]) for i in nearest)
                zero = total.new_zeros(())
                content = torch.stack(
                    [torch.exp(beta * cosines[i]) / total if i in nearest else zero for i in range(size)]
                )
                pi = torch.softmax(modes[k], 0)
                mixed = pi[0] * backward + pi[1] * content + pi[2] * forward
                w_now.append(keep_largest(mixed, memory.sparse_reads))
                r_now.append(sum(w_now[k][i] * m[i] for i in range(size)))
            w_read, r = w_now, torch.stack(r_now)

            # U^(2): the time of the last access above δ
            for i in range(size):
                if (w_write[i] + sum(weight[i] for weight in w_read)).detach() > memory.access_threshold:
                    last[i] = time
            outputs.append(memory.output.weight @ torch.cat([h, r.flatten()]) + memory.output.bias)
        found.append(
            {"outputs": torch.stack(outputs), "hidden": h, "cell": c, "read_vectors": r, "memory": torch.stack(m)}
            | {"w^R": torch.stack(w_read), "w^W": torch.stack(w_write), "N": n, "P": big_p, "p": p}
            | {
                "last_access": torch.tensor(last, dtype=torch.float64),
                "time": torch.tensor([time], dtype=torch.float64),
            }
        )
    return {name: torch.stack([part[name] for part in found]) for name in found[0]}


def comparable(memory: SDNC, result: Unrolled) -> dict[str, Tensor]:
    """What the module gives, in the form of `reference`."""
    state, size = result.state, memory.slots
    read, written = ("read_weights", "read_slots"), ("write_weights", "write_slots")
    parts = {"outputs": result.outputs.transpose(0, 1)}
    parts |= {name: state[name] for name in ("hidden", "cell", "read_vectors", "memory", "last_access", "time")}
    parts["w^R"] = torch.stack(
        [
            torch.stack([dense(state[read[0]][b, k], state[read[1]][b, k], size) for k in range(memory.read_heads)])
            for b in range(BATCH)
        ]
    )
    parts["w^W"] = torch.stack([dense(state[written[0]][b], state[written[1]][b], size) for b in range(BATCH)])
    each = [links(memory, state, b) for b in range(BATCH)]
    return parts | {name: torch.stack([one[name] for one in each]) for name in ("N", "P", "p")}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            actual[name], expected[name], rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


def gradients(memory: SDNC, parts: dict[str, Tensor], leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a number in which all that has a derivative has a weight of its own."""
    generator = torch.Generator().manual_seed(3)
    numbers = [
        (part * torch.randn(part.shape, generator=generator, dtype=part.dtype)).sum()
        for name, part in sorted(parts.items())
        if name in ("outputs", "hidden", "cell", "read_vectors", "memory", "w^R", "w^W")
    ]
    wanted = leaves | dict(memory.named_parameters())
    return dict(zip(wanted, torch.autograd.grad(torch.stack(numbers).sum(), list(wanted.values())), strict=True))
