"""Estimators of returns and advantages: functions of tensors `[T, N]` (time, environment).

All take `next_values` `[T, N]`, the value after each step (`bootstrap_values`), and `ended` `[T, N]`, true
where an episode ended with that step, terminated or truncated. No sum reaches across the end of an episode, and at the
end of the rollout every estimate bootstraps from the value of the observation after it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs.tensor_env import Obs
from policies.memories.contract import State
from policies.policy import MemoryActorCriticPolicy


@torch.no_grad()
def state_values(policy: MemoryActorCriticPolicy, obs: Obs, state: State, starts: Tensor | None = None) -> Tensor:
    """Values `[N]` from which returns are bootstrapped, in evaluation mode: without dropout, and batch statistics
    stay as they are. Arguments as of `predict_values`."""
    training = [module for module in policy.modules() if module.training] if policy.training else []
    for module in training:  # faster than `policy.train`, which every step would call twice
        vars(module)["training"] = False
    try:
        return policy.predict_values(obs, state, starts)
    finally:
        for module in training:
            vars(module)["training"] = True


def bootstrap_values(
    values: Tensor, last_values: Tensor, terminated: Tensor, truncated: Tensor, final_values: Tensor
) -> Tensor:
    """V' `[T, N]`: 0 after a terminated step, `final_values` after a truncated one, else the next step's value.

    Args:
        values, terminated, truncated: `[T, N]`.
        last_values: `[N]`, value of the observation after the last step.
        final_values: `[T, N]`, value of the final observation where `truncated`; not read elsewhere.
    """
    next_values = torch.cat([values[1:], last_values[None]])
    return torch.where(truncated, final_values, next_values).masked_fill(terminated, 0.0)


def gae(rewards: Tensor, values: Tensor, next_values: Tensor, ended: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Generalised advantage estimation: advantages `[T, N]`; with the values added, TD(λ) returns.

    Schulman et al. 2016, eq. 11 and 16: `A_t = δ_t + γλ A_{t+1}` with `δ_t = r_t + γ V' − V_t`.

    Args:
        rewards, values, next_values, ended: `[T, N]`.
        gamma: discount, 0..1.
        gae_lambda: 0..1.
    """
    delta = rewards + gamma * next_values - values
    carry = gamma * gae_lambda * (~ended).to(rewards.dtype)
    return _discounted_sums(delta, carry)


def nstep(rewards: Tensor, next_values: Tensor, ended: Tensor, gamma: float, n: int) -> Tensor:
    """n-step returns `[T, N]`: up to `n` rewards, then the value after the last of them.

    Sutton and Barto 2018, eq. 7.1: `G_t = r_t + γ r_{t+1} + ... + γⁿ V`; fewer rewards where the episode or the rollout
    ends before.

    Args:
        rewards, next_values, ended: `[T, N]`.
        gamma: discount, 0..1.
        n: at least 1.
    """
    returns = rewards + gamma * next_values  # of one step
    for _ in range(min(n, len(rewards)) - 1):  # each pass adds one more reward
        longer = rewards[:-1] + gamma * torch.where(ended[:-1], next_values[:-1], returns[1:])
        returns = torch.cat([longer, returns[-1:]])
    return returns


def vtrace(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    ended: Tensor,
    ratios: Tensor,
    gamma: float,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """V-trace: value targets and policy-gradient advantages, `[T, N]` each, for actions of an older policy.

    Espeholt et al. 2018, eq. 1 in the recursive form of remark 1: `v_t = V_t + δ_t + γ c_t (v_{t+1} − V_{t+1})` with
    `δ_t = ρ_t (r_t + γ V' − V_t)`, `ρ_t = min(ρ̄, ratio_t)` and `c_t = min(c̄, ratio_t)`; and section 4.2,
    `ρ_t (r_t + γ v_{t+1} − V_t)`. With ratios of 1 the targets are TD(1) returns.

    Args:
        rewards, values, next_values, ended: `[T, N]`.
        ratios: `[T, N]`, probability of the action under the policy that learns, over that under the one that acted.
        gamma: discount, 0..1.
        rho_bar: ρ̄; the paper assumes at least `c_bar`. It decides to which policy's values the targets converge.
        c_bar: c̄; bounds how much the TD errors of later steps change an earlier target.
    """
    rho, c = ratios.clamp(max=rho_bar), ratios.clamp(max=c_bar)
    delta = rho * (rewards + gamma * next_values - values)
    carry = gamma * c * (~ended).to(rewards.dtype)
    corrections = _discounted_sums(delta, carry)  # v_t - V_t
    next_corrections = torch.cat([corrections[1:], torch.zeros_like(corrections[:1])]).masked_fill(ended, 0.0)
    return values + corrections, rho * (rewards + gamma * (next_values + next_corrections) - values)


def _discounted_sums(delta: Tensor, carry: Tensor) -> Tensor:
    """x `[T, N]` with `x_t = delta_t + carry_t x_{t+1}` and 0 after the last."""
    sums = torch.empty_like(delta)
    total = torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        torch.addcmul(delta[t], carry[t], total, out=sums[t])
        total = sums[t]
    return sums
