"""The D-NTM's equations written as loops, and a small D-NTM to hold to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from policies.memories import make_memory
from policies.memories.contract import State
from policies.memories.d_ntm.memory import DNTM, uniform
from policies.memories.shared.noise import fingerprint, next_seed

FEATURES, BATCH, LENGTH = 3, 2, 4
SIZES = {"hidden_size": 6, "output_size": 4, "slots": 5, "word_size": 3, "address_size": 2}
COEFS = {"entropy_coef": 0.3, "consistency_coef": 0.7, "prediction_coef": 0.9}


def build(**options: Any) -> DNTM:
    torch.manual_seed(0)
    memory = make_memory("d-ntm", input_size=FEATURES, **{**SIZES, **options}).double()
    assert isinstance(memory, DNTM)
    with torch.no_grad():  # strong enough for every term to matter
        for layer in (memory.read_interface, memory.write_interface, memory.erase, memory.candidate):
            layer.weight *= 4
    return memory


def addressed(
    memory: DNTM, emitted: Tensor, contents: list[Tensor], v: Tensor | None, u: Tensor | None, soft: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One head: what reads or writes, w, the new v, and the log-probability of the draw."""
    k = emitted[: memory.head_sizes[0]]
    beta = (1 + emitted[memory.head_sizes[0]].exp()).log() + 1
    z = []
    for i in range(memory.places):
        content = contents[i] if i < memory.slots else torch.zeros(memory.word_size).double()
        cell = torch.cat([memory.addresses[i], content])
        z.append(beta * (k @ cell) / (((k @ k) + 1e-6).sqrt() * ((cell @ cell) + 1e-6).sqrt()))
    scores = torch.stack(z)
    new_v = torch.zeros(())
    if v is not None:
        gamma = torch.sigmoid(emitted[-1])
        new_v = (memory.usage_decay * v + (1 - memory.usage_decay) * scores).detach()
        scores = scores - gamma * v.detach()
    w = scores.exp() / scores.exp().sum()
    if u is None or soft:
        return w, w, new_v
    place = (w.log() if memory.deterministic else w.log() - (-u.log()).log()).argmax()
    one = torch.zeros(memory.places).double()
    one[place] = 1
    return one + w - w.detach(), w, new_v


def control(memory: DNTM, x: Tensor, m: list[Tensor], h: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    z = torch.cat([x, *m])
    layers = []
    for index, layer in enumerate(memory.controller):
        if not memory.recurrent:
            z = torch.tanh(layer.weight @ z + layer.bias)
            continue
        below, above = layer.weight_ih @ z + layer.bias_ih, layer.weight_hh @ h[index] + layer.bias_hh
        (r_x, z_x, n_x), (r_h, z_h, n_h) = below.chunk(3), above.chunk(3)
        reset, update = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
        z = (1 - update) * torch.tanh(n_x + reset * n_h) + update * h[index]
        layers.append(z)
    return z, layers


def reference(memory: DNTM, xs: Tensor, state: State) -> dict[str, Tensor]:
    """The paper, one batch entry, head and slot at a time."""
    n, heads_w, heads_r, steps = memory.slots, memory.write_heads, memory.read_heads, memory.reading_steps
    rows: list[dict[str, list[Tensor]]] = []
    finals: list[State] = []
    for b in range(xs.shape[1]):
        carried = {key: value[b] for key, value in state.items()}
        contents = list(carried["contents"])
        m = list(carried["read_value"].chunk(heads_r))
        h = list(carried["hidden"]) if memory.recurrent else []
        v_w: list[Any] = list(carried["write_usage"]) if memory.least_recently_used else [None] * heads_w
        v_r: list[Any] = list(carried["read_usage"]) if memory.least_recently_used else [None] * heads_r
        seed, foretold, writes = carried.get("seed"), carried.get("prediction"), []
        row: dict[str, list[Tensor]] = {"outputs": [], "entropy": [], "consistency": [], "prediction": []}
        for t, x in enumerate(xs[:, b]):
            us: list[Any] = [None] * (heads_w + heads_r * steps)
            soft = False
            if seed is not None:
                seen = fingerprint(x[None] if memory.by_history else x[None, :0])
                seed = next_seed(seed[None], seen)[0]
                numbers = uniform(seed[None], len(us) * memory.places + 1)[0]
                us = list(numbers[:-1].split(memory.places))
                soft = memory.curriculum and not memory.deterministic
                soft = soft and bool(numbers[-1] < 1 / (1 + float(memory.get_buffer("updates"))) ** 0.5)
            hidden, h = control(memory, x, m, h)

            emitted = (memory.write_interface.weight @ hidden + memory.write_interface.bias).chunk(heads_w)
            found = [addressed(memory, emitted[i], contents, v_w[i], us[i], soft) for i in range(heads_w)]
            v_w = [f[2] if memory.least_recently_used else None for f in found]
            erase = torch.sigmoid(memory.erase.weight @ hidden + memory.erase.bias).chunk(heads_w)
            alpha = torch.sigmoid(memory.input_gate.weight @ torch.cat([hidden, x]) + memory.input_gate.bias)
            new = memory.candidate.weight @ hidden + alpha * (memory.input_candidate.weight @ x) + memory.candidate.bias
            new = torch.relu(new).chunk(heads_w)
            for i in range(n):
                content = contents[i]
                for f, e in zip(found, erase, strict=True):
                    content = content * (1 - f[0][i] * e)
                contents[i] = content + sum(f[0][i] * c for f, c in zip(found, new, strict=True))
            writes.append(sum(f[0].detach()[:n] for f in found) / heads_w)
            w_write, w_read = [f[1] for f in found], []
            for step in range(steps):
                if step > 0:
                    hidden, h = control(memory, x, m, h)
                emitted = (memory.read_interface.weight @ hidden + memory.read_interface.bias).chunk(heads_r)
                first = heads_w + step * heads_r
                found = [addressed(memory, emitted[i], contents, v_r[i], us[first + i], soft) for i in range(heads_r)]
                m = [sum(f[0][i] * torch.cat([memory.addresses[i], contents[i]]) for i in range(n)) for f in found]
                w_read += [f[1] for f in found]
            v_r = [f[2] if memory.least_recently_used else None for f in found]

            features = torch.cat([hidden, *m])
            row["outputs"].append(memory.output.weight @ features + memory.output.bias)
            row["entropy"].append(memory.entropy_coef * sum((w * w.log()).sum() for w in w_write + w_read))
            mean_read = sum(w[:n] for w in w_read) / len(w_read)
            mean_write = sum(writes) / len(writes)
            row["consistency"].append(memory.consistency_coef * (1 - mean_read @ mean_write) ** 2)
            error = torch.zeros(()).double()
            if t > 0 and memory.predictor is not None:
                assert foretold is not None
                target, p = x.detach(), torch.sigmoid(foretold)
                bernoulli = -(target * p.log() + (1 - target) * (1 - p).log())
                error = (bernoulli if memory.bernoulli else (target - foretold) ** 2).mean()
            row["prediction"].append(memory.prediction_coef * error)
            if memory.predictor is not None:
                foretold = memory.predictor.weight @ features + memory.predictor.bias
        rows.append(row)
        final = {"contents": contents, "write_weights": w_write, "read_weights": w_read}
        final |= {"hidden": h} if memory.recurrent else {}
        final |= {"write_usage": v_w, "read_usage": v_r} if memory.least_recently_used else {}
        finals.append({key: torch.stack(value) for key, value in final.items()} | {"read_value": torch.cat(m)})
        finals[-1] |= {"seed": seed} if seed is not None else {}
        finals[-1] |= {"prediction": foretold} if foretold is not None else {}
        if memory.consistency_coef:
            finals[-1]["mean_write"] = mean_write
        if memory.consistency_coef or memory.prediction_coef:
            finals[-1]["steps"] = torch.tensor([float(len(xs))]).double()
    return {
        **{key: torch.stack([torch.stack(row[key]) for row in rows], 1) for key in rows[0]},
        **{f"state {key}": torch.stack([final[key] for final in finals]) for key in finals[0]},
    }
