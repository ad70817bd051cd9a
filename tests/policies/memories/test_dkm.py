"""The dynamic Kanerva machine against its equations written as loops over a covariance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from policies.memories import make_memory
from policies.memories.contract import State
from policies.memories.dkm import DKM, write
from policies.memories.shared.noise import fingerprint, gaussian, next_seed
from policies.memories.time.unroll import unroll

FEATURES, BATCH, LENGTH, K, C = 3, 2, 4, 4, 5


def build(**options: Any) -> DKM:
    memory = make_memory("dkm", input_size=FEATURES, **{"slots": K, "word_size": C, "output_size": 6, **options})
    assert isinstance(memory, DKM)
    with torch.no_grad():
        memory.prior_log_var.fill_(0.3)
        memory.log_w_std.fill_(-0.7)
    return memory.double()


def covariance(state: State) -> Tensor:
    return state["cov_root"] @ state["cov_root"].mT


def reference(memory: DKM, xs: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """Wu et al. (2018), one batch entry and one item at a time."""
    options = {"num_opt_iters": 1, "read_iterations": 1, "w_prior_stddev": 1.0, "obs_noise_stddev": 1.0, **options}
    obs_var = options["obs_noise_stddev"] ** 2 or memory.log_obs_std.exp() ** 2
    penalty = obs_var / options["w_prior_stddev"] ** 2
    prior = memory.prior_log_var.exp() + 1e-6
    w_std = memory.log_w_std.exp()
    found: dict[str, Any] = {name: [] for name in ("output", "kl_m", "kl_w", "reconstruction", "mean", "cov")}
    for b in range(xs.shape[1]):
        for rows in found.values():
            rows.append([])
        m, u, seed = memory.prior_mean[0], prior * torch.eye(K).double(), torch.zeros(1).double()
        root = prior.sqrt() * torch.eye(K).double()

        def solve(z: Tensor, m: Tensor) -> Tensor:
            gram = m @ m.T
            eye = torch.eye(K).double()
            if options.get("variant") == "code":  # least squares on G w = M z
                return torch.linalg.inv(gram.T @ gram + penalty * eye) @ gram.T @ m @ z
            return torch.linalg.inv(gram + penalty * eye) @ m @ z

        def drawn(mean: Tensor, root: Tensor, stream: int, seed: Tensor) -> Tensor:
            return mean + root @ gaussian(seed, (K, C), stream)[0] if options.get("sample_memory") else mean

        for x in xs[:, b]:
            seed = next_seed(seed, fingerprint(x[None]))
            z = memory.write_encoder.weight @ x + memory.write_encoder.bias
            new_m, new_root = m, root
            for i in range(options["num_opt_iters"]):
                w_mean = solve(z, drawn(new_m, new_root, 2 + 4 * i, seed))
                w = w_mean + w_std * gaussian(seed, (K,), 4 * i)[0] if options.get("sample_w") else w_mean
                sigma_z = w @ u @ w + obs_var
                c = w @ u / sigma_z
                new_m = m + torch.outer(c, z - w @ m)
                new_u = u - torch.outer(c, w @ u)
                f = root.T @ w  # only so that a drawn memory can be compared: any root of U would do
                new_root = root - torch.outer(root @ f, f) / (sigma_z + (obs_var * sigma_z).sqrt())
            columns = [
                kl_divergence(MultivariateNormal(new_m[:, j], new_u), MultivariateNormal(m[:, j], u)) for j in range(C)
            ]
            m, u, root = new_m, new_u, new_root
            weights_prior = Normal(0.0, torch.tensor(options["w_prior_stddev"], dtype=torch.float64))
            found["kl_m"][b].append(torch.stack(columns).sum())
            found["kl_w"][b].append(kl_divergence(Normal(w_mean, w_std.expand(K)), weights_prior).sum())
            if memory.decoder is not None:
                decoded = memory.decoder.weight @ (w @ m) + memory.decoder.bias
                found["reconstruction"][b].append(-Normal(decoded, 1.0).log_prob(x).sum())
            cue, read_from = memory.read_encoder.weight @ x + memory.read_encoder.bias, drawn(m, root, 3, seed)
            for i in range(options["read_iterations"]):
                w = solve(cue, read_from)
                w = w + w_std * gaussian(seed, (K,), 4 * i + 1)[0] if options.get("sample_w") else w
                cue = w @ read_from
            found["output"][b].append(memory.output.weight @ torch.cat([cue, x]) + memory.output.bias)
            found["mean"][b].append(m)
            found["cov"][b].append(u)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"variant": "code"},
        {"num_opt_iters": 3, "read_iterations": 2},
        {"w_prior_stddev": 0.6, "obs_noise_stddev": 0.4, "reconstruct": True},
        {"obs_noise_stddev": 0.0},
        {"sample_w": True, "sample_memory": True, "num_opt_iters": 2, "read_iterations": 2},
    ],
    ids=lambda options: " ".join(f"{key}={value}" for key, value in options.items()) or "default",
)
def test_dkm_is_the_papers_equations(options: dict[str, Any]) -> None:
    """Outputs, losses, the final memory, and the gradients of everything trained."""
    memory, xs = build(**options), torch.randn(LENGTH, BATCH, FEATURES).double()
    result = unroll(memory, xs, None, memory.initial_state(BATCH))
    ours = {"output": result.outputs, **result.losses}
    paper = reference(memory, xs, options)
    stacked = {name: torch.stack([torch.stack(row) for row in rows], 1) for name, rows in paper.items() if rows[0]}
    ours |= {"mean": result.state["memory_mean"], "cov": covariance(result.state)}
    stacked |= {name: stacked[name][-1] for name in ("mean", "cov")}
    weights = {name: torch.randn(value.shape).double() for name, value in ours.items()}
    assert stacked.keys() == ours.keys()
    gradients = []
    for parts in (ours, stacked):
        total = torch.stack([(weights[name] * parts[name]).sum() for name in weights]).sum()
        gradients.append(torch.autograd.grad(total, list(memory.parameters()), retain_graph=True))
    for name, expected in stacked.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-9, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")
    for (name, _), actual, expected in zip(memory.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")


# What writing means


def test_writing_one_by_one_is_conditioning_on_all_at_once() -> None:
    """The exact posterior of Bayesian linear regression, for weights that are given."""
    prior_mean, obs_var = torch.randn(K, C).double(), torch.tensor(0.3).double()
    root = torch.randn(K, K).double()
    w, z = torch.randn(6, K).double(), torch.randn(6, C).double()
    mean, after = prior_mean[None], root[None]
    total = torch.zeros(1).double()
    for row, code in zip(w, z, strict=True):
        mean, after, kl = write(mean, after, row[None], code[None], obs_var)
        assert kl > 0
        total = total + kl
    precision = torch.linalg.inv(root @ root.T)
    posterior = torch.linalg.inv(precision + w.T @ w / obs_var)
    expected = posterior @ (precision @ prior_mean + w.T @ z / obs_var)
    torch.testing.assert_close(after[0] @ after[0].T, posterior)
    torch.testing.assert_close(mean[0], expected)


def test_what_was_written_is_read_back() -> None:
    """Nearly orthogonal codes, little noise: a damaged cue finds the code it was."""
    memory = build(obs_noise_stddev=0.05, slots=8, word_size=16)
    codes = torch.linalg.qr(torch.randn(16, 4).double()).Q.T * 4
    mean, root = (memory.initial_state(1)[name] for name in ("memory_mean", "cov_root"))
    obs_var = torch.tensor(0.05**2).double()
    for _ in range(2):
        for code in codes:
            w = memory.address(code[None], mean, obs_var)
            mean, root, _ = write(mean, root, w, code[None], obs_var)
    for code in codes:
        w = memory.address(code[None], mean, obs_var)
        assert (w @ mean[0] - code).norm() < 0.1 * code.norm()
        damaged = code + 0.3 * torch.randn(16).double()
        read = (memory.address(damaged[None], mean, obs_var) @ mean[0])[0]
        assert (read - code).norm() < (damaged - code).norm()


def test_the_fiftieth_time_is_no_news() -> None:
    memory, x = build(), torch.randn(1, FEATURES).double()
    steps = [memory(x, memory.initial_state(1))]
    for _ in range(50):
        steps.append(memory(x, steps[-1].state))
    assert steps[-1].losses["kl_m"] < 0.01 * steps[0].losses["kl_m"]
    sizes = [float(covariance(step.state)[0].trace().detach()) for step in steps]
    assert sizes == sorted(sizes, reverse=True)


def test_ridge_weights_are_the_minimum() -> None:
    memory = build(w_prior_stddev=0.7)
    m, z, obs_var = torch.randn(BATCH, K, C).double(), torch.randn(BATCH, C).double(), torch.tensor(0.5).double()
    w = memory.address(z, m, obs_var).detach().requires_grad_()
    objective = (z - (w[:, None] @ m)[:, 0]).square().sum() + obs_var / 0.49 * w.square().sum()
    (slope,) = torch.autograd.grad(objective, w)
    assert slope.abs().max() < 1e-10


def test_the_whole_divergence_is_torchs() -> None:
    memory = build()
    state = memory.initial_state(BATCH)
    torch.testing.assert_close(memory.memory_kl(state), torch.zeros(BATCH).double())
    state = unroll(memory, torch.randn(LENGTH, BATCH, FEATURES).double(), None, state).state
    prior = (memory.prior_log_var.exp() + 1e-6) * torch.eye(K).double()
    for b in range(BATCH):
        columns = [
            kl_divergence(
                MultivariateNormal(state["memory_mean"][b, :, j], covariance(state)[b]),
                MultivariateNormal(memory.prior_mean[0, :, j], prior),
            )
            for j in range(C)
        ]
        torch.testing.assert_close(memory.memory_kl(state)[b], torch.stack(columns).sum())


@pytest.mark.parametrize(
    ("steps", "options"),
    [(10_000, {}), (1_000, {"obs_noise_stddev": 1e-3, "w_prior_stddev": 10.0, "sample_w": True})],
)
def test_ten_thousand_writes_leave_a_covariance(steps: int, options: dict[str, Any]) -> None:
    """A thousand whole steps; what is left of `steps` then writes without reading."""
    memory = build(slots=6, word_size=4, **options).float()
    with torch.no_grad():
        memory.write_encoder.weight.mul_(3)
        result = unroll(memory, torch.randn(1_000, 1, FEATURES), None, memory.initial_state(1))
        mean, root, noise = result.state["memory_mean"], result.state["cov_root"], memory.obs_var()
        for z in memory.write_encoder(torch.randn(steps - 1_000, 1, FEATURES)):
            mean, root, _ = write(mean, root, memory.address(z, mean, noise), z, noise)
    assert result.outputs.isfinite().all()
    assert all(loss.isfinite().all() for loss in result.losses.values())
    assert all(value.isfinite().all() for value in result.state.values())
    assert mean.isfinite().all()
    values = torch.linalg.eigvalsh(covariance({"cov_root": root.double()}))
    assert values.min() >= -1e-12
    assert values.max() < 1.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "lstsq"}, "variant is 'lstsq'; it must be 'paper' or 'code'"),
        ({"num_opt_iters": 0}, "num_opt_iters is 0; it must be at least 1"),
        ({"obs_noise_stddev": -1.0}, "obs_noise_stddev are 1.0 and -1.0"),
        ({"slots": 0}, "slots is 0; it must be at least 1"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)
