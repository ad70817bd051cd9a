"""Rewards, metrics and scores of the sequence tasks, by hand and as their docstrings promise."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from gymnasium import spaces
from sequence_helpers import ENVS, best_without_memory, nearly, play, right

from envs.tasks.sequence.associative_recall import AssociativeRecall
from envs.tasks.sequence.base import Sequences, SequenceTask
from envs.tasks.sequence.copy import Copy
from envs.tasks.sequence.dictionary_inference import DictionaryInference
from envs.tasks.sequence.double_copy import DoubleCopy
from envs.tasks.sequence.dynamic_ngrams import DynamicNGrams
from envs.tasks.sequence.priority_sort import PrioritySort
from envs.tasks.sequence.repeat_copy import RepeatCopy

# -- rewards and metrics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENVS)
def test_right_answers_return_one(name: str) -> None:
    env = ENVS[name](32)
    total, metrics = play(env, right, episodes=2)
    assert total.flatten().tolist() == pytest.approx([1.0] * 64)
    assert all(value == 0 for key, value in metrics.items() if not key.startswith("optimal"))


@pytest.mark.parametrize("name", ENVS)
def test_rewards_and_metrics_by_hand(name: str) -> None:
    env = ENVS[name](16)
    total, metrics = play(env, nearly)
    env.reset(seed=1)
    returns, wrong_bits, asked_bits, failed = [0.0] * 16, [0] * 16, [0] * 16, [False] * 16
    for index in range(16):
        asked = [step for step in range(env.length) if env.weights[step, index] > 0]
        for step in asked:
            env._elapsed = step
            said, target = nearly(env)[index].flatten().tolist(), right(env)[index].flatten().tolist()
            wrong = sum(a != b for a, b in zip(said, target, strict=True))
            returns[index] += (1 - wrong / len(target)) / len(asked)
            wrong_bits[index] += wrong
            asked_bits[index] += len(target)
            failed[index] |= wrong > 0
    assert total[0].tolist() == pytest.approx(returns, abs=1e-5)
    expected = {
        "wrong_bits": sum(wrong_bits) / 16,
        "error": 100 * sum(wrong_bits) / sum(asked_bits),
        "sequence_error": sum(failed) / 16,
    }
    assert expected["sequence_error"] > 0
    for key in set(metrics) & set(expected):
        assert metrics[key] == pytest.approx(expected[key], rel=1e-5), key
    assert ("wrong_bits" in metrics) == (isinstance(env.single_action_space, spaces.MultiBinary) and name != "n-grams")
    assert ("sequence_error" in metrics) == (name != "n-grams")


def test_answers_that_nobody_asked_for_cost_nothing() -> None:
    env = Copy(8, max_length=3, bits=2)
    env.reset(seed=0)
    for _ in range(env.length):
        weight = env.weights[env._elapsed]
        action = torch.where(weight[:, None] > 0, right(env), 1 - right(env))
        _, reward, _, _, info = env.step(action)
        assert torch.equal(reward > 0, weight > 0)
        assert not any(amount.any() for amount, _ in info["metrics"].values())


def test_ngram_metrics_by_hand() -> None:
    env = DynamicNGrams(8, length=30, context=2)
    _, metrics = play(env, right)
    env.reset(seed=1)
    bits, missed = 0.0, 0.0
    for step in range(30):
        for index in range(8):
            chance = env.optimal[step, index].item()
            chance = chance if env.targets[step, index, 0] == 1 else 1 - chance
            bits -= math.log2(chance)
            missed += 0.5 if chance == 0.5 else float(chance < 0.5)
    assert metrics["optimal_bits"] == pytest.approx(bits / 8, rel=1e-5)
    assert metrics["optimal_error"] == pytest.approx(100 * missed / 240, rel=1e-5)


class Parts(SequenceTask):
    """Two digits a step, the second asked for only now and then."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs, spaces.Box(0.0, 1.0, (1,)), spaces.MultiDiscrete([3, 4]), 5)

    def _sequences(self) -> Sequences:
        digits = torch.stack([self._integers(0, 2, 5, self.num_envs), self._integers(0, 3, 5, self.num_envs)], 2)
        weights = torch.ones(5, self.num_envs, 2)
        weights[:3, :, 1] = 0
        weights[4] = 2
        return Sequences(torch.zeros(5, self.num_envs, 1), digits, weights)


def test_parts_with_weights_of_their_own() -> None:
    total, metrics = play(Parts(6), right)
    assert total[0].tolist() == pytest.approx([1.0] * 6)
    assert metrics == {"error": 0, "sequence_error": 0}
    # The second digit is wrong throughout: weights of 1 + 2 of 5 + 4 are lost, two answers of seven.
    total, metrics = play(Parts(6), lambda env: (right(env) + torch.tensor([0, 1])) % torch.tensor([3, 4]))
    assert total[0].tolist() == pytest.approx([1 - 3 / 9] * 6)
    assert metrics == {"error": pytest.approx(100 * 2 / 7), "sequence_error": 1}


# -- scores ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "score"),
    [
        (lambda n: Copy(n), 0.5),
        (lambda n: RepeatCopy(n), 0.579),
        (lambda n: AssociativeRecall(n), 0.5),
        (lambda n: AssociativeRecall(n, grid=True), 0.5),
        (lambda n: PrioritySort(n), 0.5),
        (lambda n: PrioritySort(n, grid=True), 0.5),
        (lambda n: DynamicNGrams(n), 0.537),
        (lambda n: DoubleCopy(n), 0.1),
        (lambda n: DictionaryInference(n), 0.038),
    ],
    ids=["copy", "repeat", "recall", "recall-maps", "sort", "sort-maps", "n-grams", "double-copy", "dictionary"],
)
def test_scores_without_memory(make: Callable[[int], SequenceTask], score: float) -> None:
    env = make(1)
    name = type(env).__name__
    assert f"{score:g}" in (type(env).__doc__ or "").split("Scores:")[1], name
    got, _ = best_without_memory(make, 2000 if name == "DictionaryInference" else 500)
    assert got == pytest.approx(score, abs=0.015)


def test_optimal_ngram_score() -> None:
    env = DynamicNGrams(3000)

    def optimal(env: SequenceTask) -> torch.Tensor:
        assert isinstance(env, DynamicNGrams)
        return (env.optimal[env._elapsed] > 0.5).to(torch.int8)[:, None]

    total, metrics = play(env, optimal)
    assert total.mean().item() == pytest.approx(0.762, abs=0.005)
    assert metrics["optimal_bits"] == pytest.approx(133.3, abs=1.5)
    assert metrics["optimal_error"] == pytest.approx(23.8, abs=0.5)
    assert metrics["error"] == pytest.approx(metrics["optimal_error"], abs=0.3)


def test_ambiguous_queries_on_maps() -> None:
    """Who takes the first match loses half of the bits where it is the wrong one, which is nearly never."""
    env = AssociativeRecall(20000, grid=True)
    env.reset(seed=0)
    codes = (env.inputs[:, :, 0].flatten(2) * 2.0 ** torch.arange(9)).sum(2)
    matches = codes[:9] == codes[10]
    assert (matches.sum(0) > 1).float().mean().item() == pytest.approx(0.016, abs=0.004)
    first = matches.float().argmax(0)
    said = env.inputs[:, :, 0].flatten(2)[first + 1, torch.arange(20000)]
    score = (said == env.targets[10].flatten(1)).float().mean().item()
    assert score == pytest.approx(0.996, abs=0.002)


@pytest.mark.parametrize("symbol", [0, 9])
def test_all_symbols_are_alike_likely(symbol: int) -> None:
    total, _ = play(DoubleCopy(500), lambda _: torch.full((500,), symbol))
    assert total.mean().item() == pytest.approx(0.1, abs=0.01)
