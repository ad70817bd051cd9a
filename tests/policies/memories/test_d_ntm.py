"""D-NTM against its equations written as loops, its draws, and its learning by REINFORCE."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.memories import make_memory
from policies.memories.base import State
from policies.memories.d_ntm import DNTM, uniform
from policies.memories.d_ntm_reinforce import AddressReinforce, unroll_addresses
from policies.memories.noise import fingerprint, next_seed

FEATURES, BATCH, LENGTH = 3, 2, 4
SIZES = {"hidden_size": 6, "output_size": 4, "memory_size": 5, "content_size": 3, "address_size": 2}
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One head: what reads or writes, w, the new v, and the log-probability of the draw."""
    k = emitted[: memory.head_sizes[0]]
    beta = (1 + emitted[memory.head_sizes[0]].exp()).log() + 1
    z = []
    for i in range(memory.slots):
        content = contents[i] if i < memory.memory_size else torch.zeros(memory.content_size).double()
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
        return w, w, new_v, torch.zeros(()).double()
    place = (w.log() if memory.deterministic else w.log() - (-u.log()).log()).argmax()
    one = torch.zeros(memory.slots).double()
    one[place] = 1
    return (one + w - w.detach() if memory.straight_through else one), w, new_v, w[place].log()


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
    n, heads_w, heads_r, steps = memory.memory_size, memory.write_heads, memory.read_heads, memory.reading_steps
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
                numbers = uniform(seed[None], len(us) * memory.slots + 1)[0]
                us = list(numbers[:-1].split(memory.slots))
                soft = memory.curriculum and not memory.deterministic
                soft = soft and bool(numbers[-1] < 1 / (1 + float(memory.get_buffer("updates"))) ** 0.5)
            hidden, h = control(memory, x, m, h)

            emitted = (memory.write_interface.weight @ hidden + memory.write_interface.bias).chunk(heads_w)
            found = [addressed(memory, emitted[i], contents, v_w[i], us[i], soft) for i in range(heads_w)]
            v_w = [f[2] if memory.least_recently_used else None for f in found]
            log_prob = sum(f[3] for f in found)
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
                log_prob = log_prob + sum(f[3] for f in found)
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
        finals[-1] |= {"seed": seed, "log_prob": log_prob} if seed is not None else {}
        finals[-1] |= {"prediction": foretold} if foretold is not None else {}
        if memory.consistency_coef:
            finals[-1]["mean_write"] = mean_write
        if memory.consistency_coef or memory.prediction_coef:
            finals[-1]["steps"] = torch.tensor([float(len(xs))]).double()
    return {
        **{key: torch.stack([torch.stack(row[key]) for row in rows], 1) for key in rows[0]},
        **{f"state {key}": torch.stack([final[key] for final in finals]) for key in finals[0]},
    }


@pytest.mark.parametrize(
    "options",
    [
        COEFS,
        {"controller": "feedforward", "num_layers": 2, "reading_steps": 2},
        {"num_layers": 2, "read_heads": 2, "write_heads": 2, "reading_steps": 3, **COEFS},
        {"no_operation": False, "least_recently_used": False},
        {"usage_decay": 0.6, "prediction": "bernoulli", **COEFS},
        {"addressing": "discrete", "read_heads": 2, "reading_steps": 2, **COEFS},
        {"addressing": "discrete", "estimator": "reinforce", "draw_seed": 5},
        {"addressing": "discrete", "deterministic": True},
        {"addressing": "discrete", "curriculum": True, "draws_depend_on": "step"},
    ],
    ids=lambda options: " ".join(f"{key}={value}" for key, value in options.items() if key not in COEFS) or "default",
)
def test_d_ntm_is_the_papers_equations(options: dict[str, Any]) -> None:
    """Outputs, losses, final state, and the gradients of everything trained and of the inputs."""
    memory = build(**options)
    xs = torch.randn(LENGTH, BATCH, FEATURES).double()
    if memory.bernoulli:
        xs = xs.sigmoid().round()
    if memory.curriculum:
        memory.get_buffer("updates").fill_(3)  # half of the steps
    xs.requires_grad_()
    leaves = {"xs": xs, **dict(memory.named_parameters())}
    result = memory.unroll(xs, None, memory.initial_state(BATCH))
    ours = {"outputs": result.outputs, **result.losses, **{f"state {k}": v for k, v in result.state.items()}}
    paper = reference(memory, xs, memory.initial_state(BATCH))
    assert set(result.losses) == {
        name for name in ("entropy", "consistency", "prediction") if f"{name}_coef" in options
    }
    paper = {key: paper[key] for key in ours}
    weights = {key: torch.randn(value.shape).double() for key, value in ours.items()}
    gradients = []
    for parts in (ours, paper):
        total = torch.stack([(weights[key] * parts[key]).sum() for key in weights]).sum()
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
        gradients.append(dict(zip(leaves, found, strict=True)))
    for actual, expected in ((ours, paper), gradients):
        for key in expected:
            torch.testing.assert_close(
                actual[key], expected[key], rtol=1e-8, atol=1e-10, msg=lambda text, k=key: f"{k}: {text}"
            )


# What addressing means


def go_to(memory: DNTM, slot: int, avoidance: float = -1e3) -> Tensor:
    """What a head is told so that it goes to the slot with this address, while the contents are empty."""
    key = F.pad(memory.addresses[slot].detach(), (0, memory.content_size))
    return torch.cat([key, torch.tensor([1e4, avoidance]).double()])[None]


def test_weights_are_distributions_and_no_operation_is_one_of_the_slots() -> None:
    memory = build()
    state = memory.unroll(torch.randn(5, BATCH, FEATURES).double(), None, memory.initial_state(BATCH)).state
    for name in ("read_weights", "write_weights"):
        assert state[name].shape[2] == memory.memory_size + 1
        torch.testing.assert_close(state[name].sum(2), torch.ones(BATCH, 1).double())


def test_no_operation_neither_writes_nor_reads() -> None:
    memory = build()
    with torch.no_grad():
        for interface in (memory.read_interface, memory.write_interface):
            interface.weight.zero_()
            interface.bias.copy_(go_to(memory, memory.memory_size)[0])
        step = memory(torch.randn(1, FEATURES).double(), memory.initial_state(1))
        torch.testing.assert_close(step.state["write_weights"][0, 0, -1], torch.tensor(1.0).double())
        assert step.state["contents"].abs().max() < 1e-6
        assert step.state["read_value"].abs().max() < 1e-6
        memory.write_interface.bias.copy_(go_to(memory, 2)[0])
        memory.candidate.bias.fill_(10.0)
        step = memory(torch.randn(1, FEATURES).double(), memory.initial_state(1))
    assert (step.state["contents"][0].sum(1) > 1).nonzero().flatten().tolist() == [2]


def test_what_was_lately_looked_for_is_avoided() -> None:
    memory = build()
    contents, usage = torch.zeros(1, 5, 3).double(), torch.zeros(1, 1, 6).double()
    told = go_to(memory, 1, avoidance=1e3)
    told[0, -2] = 5.0
    first = memory.address(told, contents, usage, None, None)
    again = memory.address(told, contents, first.usage, None, None)
    told[0, -1] = -1e3
    careless = memory.address(told, contents, first.usage, None, None)
    assert first.probabilities.argmax() == 1
    assert again.probabilities[0, 0, 1] < 0.5 * first.probabilities[0, 0, 1]
    torch.testing.assert_close(careless.probabilities, first.probabilities)


def test_addresses_never_change_within_an_episode_and_contents_begin_empty() -> None:
    memory = build()
    before = memory.addresses.detach().clone()
    assert memory.initial_state(2)["contents"].abs().max() == 0
    memory.unroll(torch.randn(5, BATCH, FEATURES).double(), None, memory.initial_state(BATCH))
    assert torch.equal(memory.addresses, before)


def test_more_reading_steps_run_the_controller_more_often() -> None:
    one, two = build(), build(reading_steps=2)
    two.load_state_dict(one.state_dict())
    x, state = torch.randn(1, FEATURES).double(), one.initial_state(1)
    h_one, h_two = one(x, state).state["hidden"], two(x, two.initial_state(1)).state["hidden"]
    assert not torch.allclose(h_one, h_two)
    first = one(x, state).state
    torch.testing.assert_close(two.controller[0](torch.cat([x, first["read_value"]], 1), h_one[:, 0]), h_two[:, 0])


# Draws


def test_uniform_numbers_are_uniform_and_independent() -> None:
    seed, numbers = torch.zeros(500), []
    for x in torch.randn(40, 500, FEATURES):
        seed = next_seed(seed, fingerprint(x))
        numbers.append(uniform(seed, 10))
    u = torch.stack(numbers)
    assert u.dtype == torch.float32
    assert u.min() > 0
    assert u.max() < 1
    counts = u.histc(10, 0, 1)
    assert (counts - 20_000).abs().max() < 4 * 20_000**0.5
    assert (u.flatten(0, 1).T.corrcoef() - torch.eye(10)).abs().max() < 0.03
    assert torch.stack([u[1:].flatten(), u[:-1].flatten()]).corrcoef()[0, 1].abs() < 0.01
    extreme = uniform(torch.arange(2.0**17), 32)
    assert (-(-extreme.log()).log()).isfinite().all()


def test_slots_are_drawn_with_their_probabilities() -> None:
    memory = build(addressing="discrete")
    seed = next_seed(torch.zeros(20_000).double(), fingerprint(torch.randn(20_000, 2)))
    told = torch.randn(1, 7).double().expand(20_000, -1)
    contents, usage = torch.zeros(20_000, 5, 3).double(), torch.zeros(20_000, 1, 6).double()
    drawn = memory.address(told, contents, usage, uniform(seed, 6), None)
    frequencies, expected = drawn.weights.mean((0, 1)), drawn.probabilities[0, 0]
    assert (frequencies - expected).abs().max() < 4 * (0.25 / 20_000) ** 0.5
    torch.testing.assert_close(drawn.log_prob, (drawn.weights * drawn.probabilities).sum((1, 2)).log())
    memory.deterministic = True
    likeliest = memory.address(told, contents, usage, uniform(seed, 6), None).weights
    assert torch.equal(likeliest[0, 0].argmax(), expected.argmax())
    assert torch.equal(likeliest, likeliest[:1].expand_as(likeliest))


def test_a_replay_draws_the_same_in_any_batch_and_another_seed_draws_others() -> None:
    memory, other = build(addressing="discrete"), build(addressing="discrete", draw_seed=1)
    xs, starts = torch.randn(30, 4, FEATURES).double(), torch.rand(30, 4) < 0.2
    whole = memory.unroll(xs, starts, memory.initial_state(4)).outputs
    part = memory.unroll(xs[:, [2]], starts[:, [2]], memory.initial_state(1)).outputs
    torch.testing.assert_close(part[:, 0], whole[:, 2])
    assert not torch.allclose(other.unroll(xs, starts, other.initial_state(4)).outputs, whole)


def test_draws_depend_on_the_history_or_on_the_step_alone() -> None:
    xs = torch.randn(3, 2, FEATURES).double()
    for depend, same in (("history", False), ("step", True)):
        memory = build(addressing="discrete", draws_depend_on=depend)
        seeds = memory.unroll(xs, None, memory.initial_state(2)).state["seed"]
        assert bool(seeds[0] == seeds[1]) == same


def test_the_curriculum_counts_training_steps_and_goes_from_soft_to_discrete() -> None:
    memory = build(addressing="discrete", curriculum=True)
    xs = torch.randn(4, 400, FEATURES).double()

    def soft() -> float:
        log_probs = unroll_addresses(memory, xs, None, memory.initial_state(400))[1]
        return float((log_probs == 0).double().mean())

    assert soft() == 1
    for _ in range(3):
        memory.unroll(xs[:, :2], None, memory.initial_state(2)).outputs.sum().backward()
    assert memory.get_buffer("updates") == 3
    assert "updates" in memory.state_dict()
    assert abs(soft() - 0.5) < 0.05  # 1 / sqrt(1 + 3)
    memory.deterministic = True
    assert soft() == 0


# REINFORCE


def test_reinforce_sends_no_gradient_through_the_draw_and_straight_through_does() -> None:
    xs = torch.randn(LENGTH, BATCH, FEATURES).double()
    for estimator, reached in (("reinforce", False), ("straight-through", True)):
        memory = build(addressing="discrete", estimator=estimator, least_recently_used=False)
        unrolled, log_probs = unroll_addresses(memory, xs, None, memory.initial_state(BATCH))
        (gradient,) = torch.autograd.grad(
            unrolled.outputs.square().sum(),
            memory.write_interface.weight,
            retain_graph=True,
            materialize_grads=True,
            allow_unused=True,
        )
        assert bool(gradient.any()) == reached
        assert torch.autograd.grad(log_probs.sum(), memory.write_interface.weight)[0].any()


def test_unroll_addresses_is_unroll() -> None:
    memory = build(addressing="discrete")
    xs, starts = torch.randn(6, 3, FEATURES).double(), torch.rand(6, 3) < 0.3
    expected = memory.unroll(xs, starts, memory.initial_state(3))
    unrolled, log_probs = unroll_addresses(memory, xs, starts, memory.initial_state(3))
    assert torch.equal(unrolled.outputs, expected.outputs)
    assert log_probs.shape == (6, 3)
    assert torch.equal(log_probs[-1], expected.state["log_prob"])


def test_returns_are_centred_scaled_and_compared_with_the_baseline() -> None:
    reinforce = AddressReinforce(2, coef=0.5, decay=0.9, huber_delta=1.0).double()
    with torch.no_grad():
        reinforce.baseline.weight.zero_()
        reinforce.baseline.bias.fill_(0.25)
    returns = torch.tensor([[1.0, 3.0], [5.0, 11.0]]).double()
    log_probs = torch.tensor([[-1.0, -2.0], [-0.5, -0.1]]).double().requires_grad_()
    outputs = torch.randn(2, 2, 2).double().requires_grad_()
    terms = reinforce(returns, log_probs, outputs)
    scaled = (returns - 5) / (14 + 1e-6) ** 0.5  # the first averages are the batch's own
    error = scaled - 0.25
    torch.testing.assert_close(terms["policy"], -0.5 * error * log_probs)
    torch.testing.assert_close(terms["baseline"], torch.where(error.abs() <= 1, error**2, 2 * error.abs() - 1))
    assert (error.abs() > 1).any()
    assert (error.abs() < 1).any()
    sum(term.sum() for term in terms.values()).backward()
    torch.testing.assert_close(log_probs.grad, -0.5 * error)
    assert outputs.grad is None
    assert reinforce.baseline.bias.grad is not None
    reinforce(returns + 10, log_probs, outputs)
    mean = 0.9 * 0.5 + 0.1 * 15
    torch.testing.assert_close(reinforce.mean, torch.tensor(mean).double())
    spread = 14 + (15 - mean / (1 - 0.81)) ** 2
    torch.testing.assert_close(reinforce.variance, torch.tensor(0.9 * 1.4 + 0.1 * spread).double())


def test_reinforce_learns_where_to_write_without_any_other_gradient() -> None:
    """The return of a step is 1 where the slot drawn for writing is the one the input names; chance is 1/3."""
    torch.manual_seed(0)
    memory = make_memory(
        "d-ntm",
        input_size=2,
        hidden_size=16,
        memory_size=2,
        content_size=2,
        address_size=2,
        controller="feedforward",
        addressing="discrete",
        estimator="reinforce",
        entropy_coef=1e-3,
        least_recently_used=False,
    )
    reinforce = AddressReinforce(memory.output_size)
    optimizer = torch.optim.Adam([*memory.parameters(), *reinforce.parameters()], lr=1e-2)
    written: list[Tensor] = []
    address, hits = memory.address, []

    def watched(*arguments: Any) -> Any:
        found = address(*arguments)
        written.append(found.weights)
        return found

    memory.address = watched  # type: ignore[method-assign]
    for _ in range(120):
        written.clear()
        asked = torch.randint(2, (2, 64))
        noisy = F.one_hot(asked, 2).float() + 0.02 * torch.randn(2, 64, 2)  # new histories, new draws
        unrolled, log_probs = unroll_addresses(memory, noisy, None, memory.initial_state(64))
        slots = torch.stack(written[::2])[:, :, 0].argmax(2)  # a write, then a read
        returns = (slots == asked).float()
        terms = {**reinforce(returns, log_probs, unrolled.outputs), **unrolled.losses}
        optimizer.zero_grad()
        sum(term.mean() for term in terms.values()).backward()
        optimizer.step()
        hits.append(float(returns.mean()))
    assert sum(hits[:5]) / 5 < 0.55
    assert sum(hits[-5:]) / 5 > 0.85


def test_discrete_addressing_learns_by_the_straight_through_gradient() -> None:
    """Which of two symbols came first? A feed-forward controller can keep it in the slots only."""
    torch.manual_seed(0)
    memory = make_memory(
        "d-ntm",
        input_size=3,
        hidden_size=16,
        memory_size=4,
        content_size=6,
        address_size=4,
        controller="feedforward",
        addressing="discrete",
    )
    head = nn.Linear(memory.output_size, 2)
    optimizer = torch.optim.Adam([*memory.parameters(), *head.parameters()], lr=1e-2)

    def play(episodes: int) -> tuple[Tensor, Tensor]:
        shown = torch.randint(2, (4, episodes))
        xs = F.one_hot(shown, 3).float()
        xs[0, :, 2] = 1
        return shown[0], head(memory.unroll(xs, None, memory.initial_state(episodes)).outputs)

    for _ in range(150):
        first, logits = play(32)
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), first.repeat(4)).backward()
        optimizer.step()
    memory.deterministic = True
    first, logits = play(400)
    assert (logits[-1].argmax(1) == first).double().mean() > 0.9


# Robustness


@pytest.mark.parametrize("addressing", ["soft", "discrete"])
def test_a_thousand_steps_stay_finite(addressing: str) -> None:
    memory = build(addressing=addressing, **COEFS).float()
    with torch.no_grad():
        state = memory.initial_state(1)
        for _ in range(5):
            result = memory.unroll(3 * torch.randn(200, 1, FEATURES), None, state)
            state = result.state
            assert all(value.isfinite().all() for value in (*state.values(), *result.losses.values()))


def test_gradients_at_zero_are_finite() -> None:
    memory = build(addressing="discrete", **COEFS).float()
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.zero_()
    result = memory.unroll(torch.zeros(3, 1, FEATURES), None, memory.initial_state(1))
    (result.outputs.sum() + sum(loss.sum() for loss in result.losses.values())).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in memory.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"controller": "lstm"}, "controller is 'lstm'; it must be 'gru' or 'feedforward'"),
        ({"addressing": "hard"}, "addressing is 'hard'; it must be 'soft' or 'discrete'"),
        ({"estimator": "pathwise"}, "estimator is 'pathwise'"),
        ({"prediction": "l1"}, "prediction is 'l1'"),
        ({"draws_depend_on": "time"}, "draws_depend_on is 'time'"),
        ({"reading_steps": 0}, "reading_steps is 0; it must be at least 1"),
        ({"usage_decay": 1.5}, "usage_decay is 1.5; it must be in 0..1"),
        ({"curriculum": True}, "it needs addressing='discrete'"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_memory("d-ntm", input_size=FEATURES, **options)


def test_wrong_options_of_the_estimator_are_refused() -> None:
    with pytest.raises(ValueError, match=r"decay is 1.0; it must be at least 0 and below 1"):
        AddressReinforce(3, decay=1.0)
    with pytest.raises(ValueError, match="huber_delta is 0; it must be above 0"):
        AddressReinforce(3, huber_delta=0)
