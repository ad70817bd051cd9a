"""The DNC's equations written as loops, and a small DNC to hold to them.

Equations: Graves et al., Nature 538 (2016), Methods; several write heads as in google-deepmind/dnc.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from policies.memories import make_memory
from policies.memories.contract import State
from policies.memories.dnc.memory import DNC

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
    options = {"num_layers": 1, "write_heads": 1, "clip_value": 20.0, **SIZES, **options}
    n, w, r_heads, w_heads = (options[key] for key in ("slots", "word_size", "read_heads", "write_heads"))
    code_order = options.get("variant") == "code"
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
