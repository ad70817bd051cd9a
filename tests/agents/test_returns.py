"""Advantages and returns: against numbers worked out by hand, against a slow loop, and out of a whole learner."""

from __future__ import annotations

import pytest
import torch
from agent_stubs import collect, script, set_critic
from torch import Tensor

from agents import A2C, PPO, MemoryOnPolicyAlgorithm
from agents.returns import bootstrap_values, gae, nstep, vtrace

# Critic 4 everywhere, discount 1/2, lambda 1/2, rewards 1, 2, 3, 4 in every column. Worked out by hand:
#   within an episode       delta = r + 4/2 - 4 = r - 2, and A_t = delta_t + A_{t+1} / 4
#   terminated at step 1    delta_1 = 2 - 4 = -2, and nothing is carried back from step 2
#   truncated at step 1     delta_1 = 2 + 4/2 - 4 = 0, and nothing is carried back from step 2
REWARDS = [[1.0] * 4, [2.0] * 4, [3.0] * 4, [4.0] * 4]
TERMINATED, TRUNCATED = [(1, 1), (1, 3)], [(1, 2), (1, 3)]
#            running    terminated  truncated  both: as terminated
ADVANTAGES = [
    [-0.90625, -1.5, -1.0, -1.5],
    [0.375, -2.0, 0.0, -2.0],
    [1.5, 1.5, 1.5, 1.5],
    [2.0, 2.0, 2.0, 2.0],  # 4 + 4/2 - 4: the rollout's end bootstraps too
]


def flags(places: list[tuple[int, int]], shape: tuple[int, int] = (4, 4)) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    for place in places:
        mask[place] = True
    return mask


def test_by_hand() -> None:
    constant = torch.full((4, 4), 4.0)
    truncated = flags(TRUNCATED)
    next_values = bootstrap_values(constant, constant[0], flags(TERMINATED), truncated, 4.0 * truncated)
    ended = flags(TERMINATED) | truncated
    assert gae(torch.tensor(REWARDS), constant, next_values, ended, 0.5, 0.5).tolist() == ADVANTAGES


def columns(*numbers: list[float]) -> Tensor:
    return torch.tensor(numbers).T


# Critic 4, discount 1/2, rewards 1, 2, 3 in three columns: one episode, one terminated at step 1, one truncated there
# with a final observation of value 8.
CONSTANT = torch.full((3, 3), 4.0)
ENDS = flags([(1, 1)], (3, 3)), flags([(1, 2)], (3, 3))
NEXT = bootstrap_values(CONSTANT, CONSTANT[0], *ENDS, torch.full((3, 3), 8.0))
THREE = columns(*3 * [[1.0, 2.0, 3.0]])


def test_what_follows_a_step() -> None:
    assert NEXT.tolist() == columns([4, 4, 4], [4, 0, 4], [4, 8, 4]).tolist()


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, columns([3, 4, 5], [3, 2, 5], [3, 6, 5])),
        (2, columns([1 + 4 / 2, 2 + 5 / 2, 5], [1 + 2 / 2, 2, 5], [1 + 6 / 2, 6, 5])),
        (3, columns([1 + 4.5 / 2, 4.5, 5], [2, 2, 5], [4, 6, 5])),
        (9, columns([1 + 4.5 / 2, 4.5, 5], [2, 2, 5], [4, 6, 5])),
    ],
)
def test_n_steps_by_hand(n: int, expected: Tensor) -> None:
    assert nstep(THREE, NEXT, ENDS[0] | ENDS[1], 0.5, n).tolist() == expected.tolist()


def test_vtrace_by_hand() -> None:
    """Column 0: ratios 2, 1/2, 1, so rho = c = 1, 1/2, 1 and delta = -1, 0, 1; corrections 1, 1/4, -7/8 from behind."""
    ratios = columns([2.0, 0.5, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    targets, advantages = vtrace(THREE, CONSTANT, NEXT, ENDS[0] | ENDS[1], ratios, 0.5)
    assert targets.tolist() == columns([3.125, 4.25, 5.0], [2.0, 2.0, 5.0], [4.0, 6.0, 5.0]).tolist()
    assert advantages.tolist() == columns([-0.875, 0.25, 1.0], [-2.0, -2.0, 1.0], [0.0, 2.0, 1.0]).tolist()


def test_vtrace_cuts_ratios_for_targets_and_for_traces_apart() -> None:
    """Ratios of 4 cut at 2 and at 1: delta = -2, 0, 2, corrections 2, 1, -3/2 from behind."""
    one = slice(0, 1)
    ratios = torch.full((3, 1), 4.0)
    targets, advantages = vtrace(THREE[:, one], CONSTANT[:, one], NEXT[:, one], ENDS[0][:, one], ratios, 0.5, 2.0, 1.0)
    assert targets.flatten().tolist() == [2.5, 5.0, 6.0]
    assert advantages.flatten().tolist() == [-1.0, 2.0, 2.0]


def test_vtrace_with_ratios_of_1_gives_whole_returns() -> None:
    ended = ENDS[0] | ENDS[1]
    targets, advantages = vtrace(THREE, CONSTANT, NEXT, ended, torch.ones(3, 3), 0.5)
    torch.testing.assert_close(targets, nstep(THREE, NEXT, ended, 0.5, 3))
    torch.testing.assert_close(advantages, gae(THREE, CONSTANT, NEXT, ended, 0.5, 1.0))


@pytest.mark.parametrize("learner", [A2C, PPO])
def test_by_hand_in_a_learner(learner: type[MemoryOnPolicyAlgorithm], counter: str) -> None:
    env = script(REWARDS, TERMINATED, TRUNCATED)
    model = learner(
        "MemoryPolicy", env, n_steps=4, gamma=0.5, gae_lambda=0.5, policy_kwargs={"memory": counter}, seed=0
    )
    set_critic(model, [0.0, 0.0], 4.0)
    rollout = collect(model)
    assert rollout.advantages.tolist() == ADVANTAGES
    assert rollout.returns.tolist() == [[a + 4 for a in row] for row in ADVANTAGES]
    assert rollout.last_values.tolist() == [4.0] * 4
    assert rollout.environments(torch.tensor([2, 0])).last_values.tolist() == [4.0] * 2


def test_reward_scale_enters_the_advantages_and_not_the_log(counter: str) -> None:
    kwargs = {"n_steps": 4, "gamma": 1.0, "gae_lambda": 1.0, "policy_kwargs": {"memory": counter}, "seed": 0}
    model = A2C("MemoryPolicy", script([[1.0], [2.0], [3.0], [4.0]], [(3, 0)]), reward_scale=0.5, **kwargs)
    set_critic(model, [0.0, 0.0], 0.0)
    assert collect(model).returns.flatten().tolist() == [5.0, 4.5, 3.5, 2.0]
    model.learn(4)
    assert [episode["r"] for episode in model.ep_info_buffer] == [10.0]


def test_a_cut_episode_bootstraps_from_its_final_observation_and_final_memory(counter: str) -> None:
    """The critic reads 100 * (steps remembered) + (step of the episode), so its value says which of each it was given.

    Copy 0 is cut after its steps 2 and 5, copy 1 terminates after step 3. When copy 0 is cut, the memory has seen
    positions 0, 1, 2 and the final observation is position 3, the fourth thing to remember: 403. The observation of the
    next episode would give 100 with a fresh memory and 400 with the old one, the final one with a fresh memory 103.
    """
    env = script([[0.0, 0.0]] * 6, terminated=[(3, 1)], truncated=[(2, 0), (5, 0)])
    model = PPO("MemoryPolicy", env, n_steps=6, gamma=1.0, gae_lambda=0.0, policy_kwargs={"memory": counter}, seed=0)
    set_critic(model, [100.0, 1.0], 0.0)
    rollout = collect(model)
    assert rollout.values[:, 0].tolist() == [100, 201, 302, 100, 201, 302]
    assert rollout.values[:, 1].tolist() == [1100, 1201, 1302, 1403, 1100, 1201]
    assert rollout.final_values.tolist() == [[0, 0], [0, 0], [403, 0], [0, 0], [0, 0], [403, 0]]
    # gae_lambda 0, no reward: A_t = V' - V_t; terminated: 0 - 1403
    assert rollout.advantages[:, 0].tolist() == [101, 101, 101, 101, 101, 101]
    assert rollout.advantages[:, 1].tolist() == [101, 101, 101, -1403, 101, 101]


def slow(
    rewards: Tensor,
    values: Tensor,
    last: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    final: Tensor,
    gamma: float,
    gae_lambda: float,
) -> list[list[float]]:
    """Each advantage as the sum that defines it, eq. 16, one number at a time."""
    steps, copies = rewards.shape
    result = [[0.0] * copies for _ in range(steps)]
    for n in range(copies):
        for t in range(steps):
            weight = 1.0
            for k in range(t, steps):
                following = values[k + 1, n].item() if k + 1 < steps else last[n].item()
                if terminated[k, n]:
                    following = 0.0
                elif truncated[k, n]:
                    following = final[k, n].item()
                result[t][n] += weight * (rewards[k, n].item() + gamma * following - values[k, n].item())
                if terminated[k, n] or truncated[k, n]:
                    break
                weight *= gamma * gae_lambda
    return result


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (0.9, 1.0), (1.0, 0.5), (0.5, 0.0)])
def test_against_a_slow_loop(gamma: float, gae_lambda: float) -> None:
    generator = torch.Generator().manual_seed(3)
    steps, copies = 17, 6

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    terminated = torch.rand(steps, copies, generator=generator) < 0.15
    truncated = torch.rand(steps, copies, generator=generator) < 0.15
    terminated[:, 0] = truncated[:, 0] = False  # an episode that outlasts the rollout
    assert (terminated & truncated).any()
    rewards, values, final, last = normal(steps, copies), normal(steps, copies), normal(steps, copies), normal(copies)
    arguments = (rewards, values, last, terminated, truncated, final, gamma, gae_lambda)
    next_values = bootstrap_values(values, last, terminated, truncated, final)
    advantages = gae(rewards, values, next_values, terminated | truncated, gamma, gae_lambda)
    expected = torch.tensor(slow(*arguments), dtype=torch.float64)
    torch.testing.assert_close(advantages, expected, rtol=1e-12, atol=1e-12)
