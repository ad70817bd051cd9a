"""Masked distributions: probabilities computed by hand, sb3-contrib's numbers, and gradients that stay finite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import make_masked_proba_distribution
from torch import Tensor

from policies.action_masks import as_masks, check_width, masked, random_choices, without_choice
from policies.policy import MemoryActorCriticPolicy

SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(4),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(3),
}
FLAGS = {"discrete": [4], "multi-discrete": [2, 3], "multi-binary": [2, 2, 2]}
OBS = spaces.Box(-1.0, 1.0, (3,))
ROWS = 5


def policy(action: str, memory: str = "gru", plain: bool = False) -> MemoryActorCriticPolicy:
    torch.manual_seed(0)
    made = MemoryActorCriticPolicy(
        OBS, SPACES[action], lambda _: 1e-3, memory=memory, memory_kwargs={"hidden_size": 64}
    )
    if plain:
        made.use_reference_implementations()
    with torch.no_grad():  # SB3 starts with an almost uniform policy
        made.action_net.weight.mul_(50)
    return made


def masks(action: str, rows: int = ROWS) -> Tensor:
    """Random ones that leave each part of the action something."""
    space, generator = SPACES[action], torch.Generator().manual_seed(1)
    drawn = torch.rand(64 * rows, sum(FLAGS[action]), generator=generator) < 0.5
    return drawn[~without_choice(drawn, space)][:rows]


def latents() -> Tensor:
    return torch.randn(ROWS, 64, generator=torch.Generator().manual_seed(2))


def test_probabilities_are_those_of_the_valid_choices_alone() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    mask = torch.tensor([[True, False, True, False]])
    probabilities = masked(logits, mask, SPACES["discrete"]).softmax(-1)
    torch.testing.assert_close(probabilities, torch.tensor([[0.25, 0.0, 0.75, 0.0]]))
    assert (probabilities[~mask] == 0).all()

    # two bits with P(1) = 0.2 and 0.7: the first may only be 1, the second is free
    odds = torch.log(torch.tensor([[0.2 / 0.8, 0.7 / 0.3]]))
    bits = masked(odds, torch.tensor([[0, 1, 1, 1]], dtype=torch.int8), spaces.MultiBinary(2)).sigmoid()
    torch.testing.assert_close(bits, torch.tensor([[1.0, 0.7]]))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("action", SPACES)
def test_as_in_sb3_contrib(action: str, plain: bool) -> None:
    """Log-probabilities, entropy and greedy action of its maskable distributions."""
    made, mask, latent = policy(action, plain=plain), masks(action), latents()
    space: Any = SPACES[action]
    theirs = make_masked_proba_distribution(space)
    with torch.no_grad():
        logits = made.action_net(made.mlp_extractor.forward_actor(latent))
        if action == "multi-binary":  # two logits a bit there, one here
            logits = torch.stack([torch.zeros_like(logits), logits], -1).flatten(1)
        theirs.proba_distribution(logits).apply_masking(mask)  # type: ignore[attr-defined]
        sampled = torch.stack([made.act(latent, mask=mask) for _ in range(50)])
        greedy = made.act(latent, True, mask=mask)
        torch.testing.assert_close(greedy.long(), theirs.mode().long())
        for taken in (*sampled[:5], greedy):
            ours = made.evaluate_latents(latent[None], taken[None], mask=mask[None])
            torch.testing.assert_close(ours.log_prob[0], theirs.log_prob(taken.long()))
            torch.testing.assert_close(ours.entropy[0], theirs.entropy())
            torch.testing.assert_close(made.log_prob(latent[None], taken[None], mask=mask[None])[0], ours.log_prob[0])
    chosen = sampled.view(50, ROWS, -1).long()
    starts = torch.tensor([0, *np.cumsum(FLAGS[action][:-1])], dtype=torch.int64)
    assert mask.expand(50, -1, -1).gather(2, chosen + starts).all(), "an invalid choice was sampled"


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("action", SPACES)
def test_gradients_are_finite_and_none_reaches_an_invalid_choice(action: str, plain: bool) -> None:
    made, latent = policy(action, plain=plain), latents()
    mask = masks(action)
    mask[:, 0], mask[0] = False, False  # the first choice is never valid, and in row 0 there is one for each part
    mask[:, 1] = True
    mask[0, {"discrete": [1], "multi-discrete": [1, 3], "multi-binary": [1, 3, 4]}[action]] = True
    taken = made.act(latent, mask=mask)
    judged = made.evaluate_latents(latent[None], taken[None], mask=mask[None])
    assert judged.entropy.isfinite().all()
    assert judged.entropy[0, 0].abs() < 1e-6
    assert judged.log_prob[0, 0].abs() < 1e-6
    (judged.log_prob.sum() + judged.entropy.sum()).backward()  # type: ignore[no-untyped-call]
    gradient = made.action_net.weight.grad
    assert isinstance(gradient, Tensor)
    assert gradient.isfinite().all()
    assert gradient.count_nonzero() > 0
    assert (gradient[0] == 0).all()


def test_a_wrong_target_that_does_not_count_is_harmless() -> None:
    """A supervised loss multiplies by its weight: 0 times minus infinity would be no number."""
    made, latent = policy("discrete"), latents()
    mask = torch.tensor([[False, True, True, True]]).expand(ROWS, -1)
    wrong = made.log_prob(latent[None], torch.zeros(1, ROWS, dtype=torch.int64), mask=mask[None])
    assert (0 * wrong).isfinite().all()
    assert (wrong < -1e7).all()


@pytest.mark.parametrize("action", SPACES)
def test_predict_obeys_masks(action: str) -> None:
    made, mask = policy(action), masks(action)
    obs = np.random.default_rng(0).uniform(-1, 1, (ROWS, 3)).astype(np.float32)
    for deterministic in (True, False):
        actions, _ = made.predict(obs, deterministic=deterministic, action_masks=mask.numpy())
        for row, taken in enumerate(actions):
            parts = np.split(mask[row].numpy(), np.cumsum(FLAGS[action])[:-1])
            assert all(part[int(choice)] for part, choice in zip(parts, np.atleast_1d(taken), strict=True))
    alone, _ = made.predict(obs[0], deterministic=True, action_masks=mask[0].numpy().astype(np.int8))
    together, _ = made.predict(obs, deterministic=True, action_masks=mask.numpy())
    assert np.array_equal(alone, together[0])


def test_masks_of_any_layout() -> None:
    space = spaces.MultiDiscrete([2, 2])
    expected = np.array([[True, False, True, True]])
    for given in (
        np.array([1, 0, 1, 1], np.int8),
        np.array([[True, False], [True, True]]),
        (np.array([1, 0]), np.array([1, 1])),
        [1, 0, 1, 1],
        torch.tensor([[1, 0, 1, 1]]),
    ):
        assert np.array_equal(as_masks(given, space, 1), expected)
    ragged = (np.array([1, 0]), np.array([0, 0, 1]))
    assert as_masks([ragged, ragged], spaces.MultiDiscrete([2, 3]), 2).tolist() == 2 * [[1, 0, 0, 0, 1]]


def test_mistakes_are_named() -> None:
    made = policy("multi-discrete")
    obs = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"\(2, 4\), expected \[2, 5\]"):
        made.predict(obs, action_masks=np.ones((2, 4), bool))
    with pytest.raises(ValueError, match="allows no action at 1 observations"):
        made.predict(obs, action_masks=np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], bool))
    with pytest.raises(ValueError, match="contain -inf, expected 1 for valid and 0 for invalid choices"):
        made.predict(obs, action_masks=np.array([[0, -np.inf, 0, 0, -np.inf]] * 2, np.float32))
    for odd in (1, [], [None, np.ones(5)]):
        with pytest.raises(ValueError, match=r"the action masks are .*, expected \[2, 5\]: a flag for each choice"):
            made.predict(obs, action_masks=odd)
    with pytest.raises(ValueError, match="not Box"):
        check_width(torch.ones(2, 3), spaces.Box(-1, 1, (3,)))
    with pytest.raises(ValueError, match="expected \\[num_envs, 4\\]"):
        check_width(torch.ones(2, 3), spaces.Discrete(4))


@pytest.mark.parametrize("action", SPACES)
def test_random_choices_are_uniform_over_the_valid_ones(action: str) -> None:
    torch.manual_seed(0)
    space, mask = SPACES[action], masks(action, 1)
    drawn = random_choices(mask.expand(4000, -1), space).view(4000, -1)
    for part, choices in zip(mask[0].split(FLAGS[action]), drawn.unbind(1), strict=True):
        shares = torch.bincount(choices, minlength=len(part)) / 4000
        expected = part / part.sum()
        assert (shares - expected).abs().max() < 4 * math.sqrt(0.25 / 4000)
        assert (shares[~part] == 0).all()
