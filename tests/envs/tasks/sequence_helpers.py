"""What the tests of the sequence tasks share: episodes and their decoding, players, and the best memoryless answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import sequence_decoders as decode
import torch
from gymnasium import spaces

from envs.tasks.sequence.associative_recall import AssociativeRecall
from envs.tasks.sequence.base import SequenceTask, SymbolTask
from envs.tasks.sequence.copy import Copy
from envs.tasks.sequence.dictionary_inference import DictionaryInference
from envs.tasks.sequence.double_copy import DoubleCopy
from envs.tasks.sequence.dynamic_ngrams import DynamicNGrams
from envs.tasks.sequence.priority_sort import PrioritySort
from envs.tasks.sequence.repeat_copy import RepeatCopy

Policy = Callable[[SequenceTask], torch.Tensor]


def episode(env: SequenceTask) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Observations, targets and weights of an episode as `reset` and `step` give them, a tensor a step."""
    obs, info = env.reset(seed=0)
    seen, targets, weights = [], [], []
    for step in range(env.length):
        assert isinstance(obs, torch.Tensor)
        seen.append(obs)
        targets.append(info["target"])
        weights.append(info["weight"])
        obs, _, terminated, _, info = env.step(torch.zeros_like(info["target"]))
        assert terminated.all() == (step == env.length - 1)
    assert (info["final_obs"] == 0).all()
    return seen, targets, weights


def letters(env: SymbolTask, seen: list[torch.Tensor], index: int) -> str:
    """What a copy was shown, a character a step, a space for nothing."""
    shown = ""
    for obs in seen:
        hot = obs[index].nonzero().flatten().tolist()
        assert len(hot) <= 1
        assert obs[index].sum() == len(hot)
        shown += env.alphabet[hot[0]] if hot else " "
    return shown


def check_answers(env: SequenceTask, decoder: Callable[[Any], tuple[decode.Answers, Any]]) -> list[Any]:
    """Targets and weights of every copy against the decoder; the sizes that it found."""
    seen, targets, weights = episode(env)
    sizes = []
    for index in range(env.num_envs):
        rows = letters(env, seen, index) if isinstance(env, SymbolTask) else [obs[index].tolist() for obs in seen]
        answers, size = decoder(rows)
        sizes.append(size)
        assert len(answers) == env.length
        for answer, target, weight in zip(answers, targets, weights, strict=True):
            assert weight[index].item() == (answer is not None)
            if isinstance(env, SymbolTask) and answer is not None:
                assert env.alphabet[int(target[index])] == answer
            elif answer is not None:
                assert tuple(target[index].flatten().tolist()) == answer
    return sizes


def evenly(values: list[Any], expected: list[Any]) -> None:
    """All expected values occur, about equally often, and no others."""
    counts = {value: values.count(value) for value in set(values)}
    assert set(counts) == set(expected)
    mean = len(values) / len(expected)
    assert all(abs(count - mean) < 5 * math.sqrt(mean) for count in counts.values())


def right(env: SequenceTask) -> torch.Tensor:
    return env.targets[env._elapsed]


def nearly(env: SequenceTask) -> torch.Tensor:
    """Right but for one entry in ten."""
    target = right(env)
    generator = torch.Generator().manual_seed(env._elapsed)
    wrong = torch.rand(target.shape, generator=generator) < 0.1
    if isinstance(env.single_action_space, spaces.Discrete):
        return torch.where(wrong, (target + 1) % int(env.single_action_space.n), target)
    return torch.where(wrong, 1 - target, target)


def play(env: SequenceTask, policy: Policy, episodes: int = 1) -> tuple[torch.Tensor, dict[str, float]]:
    """Returns of all copies and what would be reported."""
    env.reset(seed=1)
    total = torch.zeros(episodes, env.num_envs)
    sums = {name: [0.0, 0.0] for name in env.metric_names}
    for number in range(episodes):
        for _ in range(env.length):
            _, reward, _, _, info = env.step(policy(env))
            total[number] += reward
            assert set(info["metrics"]) == set(env.metric_names)
            for name, (amount, count) in info["metrics"].items():
                sums[name][0] += amount.sum().item()
                sums[name][1] += count.sum().item()
    return total, {name: amount / count for name, (amount, count) in sums.items()}


ENVS: dict[str, Callable[[int], SequenceTask]] = {
    "copy": lambda n: Copy(n, max_length=5, bits=3),
    "repeat copy": lambda n: RepeatCopy(n, max_length=3, max_repeats=3, bits=2),
    "recall": lambda n: AssociativeRecall(n, max_items=3),
    "recall on maps": lambda n: AssociativeRecall(n, grid=True),
    "sort": lambda n: PrioritySort(n, min_length=2, max_length=4, outputs=3, bits=2),
    "sort on maps": lambda n: PrioritySort(n, max_length=4, min_length=4, outputs=3, grid=True),
    "n-grams": lambda n: DynamicNGrams(n, length=20, context=2),
    "double copy": lambda n: DoubleCopy(n, min_length=2, max_length=5),
    "dictionary": lambda n: DictionaryInference(n, k=3, l=3),
}


def best_without_memory(make: Callable[[int], SequenceTask], num_envs: int) -> tuple[float, dict[str, float]]:
    """What the best answer to each observation alone earns: learned from one batch, measured in another."""
    env = make(num_envs)
    env.reset(seed=100)
    shown = torch.stack([look(env) for _ in range(env.length)])
    keys, where = torch.unique(shown.flatten(0, 1), dim=0, return_inverse=True)
    worth = (env.weights / env.total).flatten()
    targets = env.targets.flatten(0, 1).flatten(1) if env.targets.dim() > 2 else env.targets.flatten()[:, None]
    choices = 2
    if isinstance(env.single_action_space, spaces.Discrete):
        choices = int(env.single_action_space.n)
    tally = torch.zeros(len(keys), targets.shape[1], choices)
    for part in range(targets.shape[1]):
        tally[:, part].index_put_((where, targets[:, part].long()), worth, accumulate=True)
    best = tally.argmax(2)
    table = {tuple(key.tolist()): answer for key, answer in zip(keys, best, strict=True)}
    fallback = torch.zeros(targets.shape[1], dtype=torch.long)

    def policy(env: SequenceTask) -> torch.Tensor:
        seen = look(env, forward=False)
        said = torch.stack([table.get(tuple(row.tolist()), fallback) for row in seen])
        return said.view(env.targets.shape[1:])

    total, metrics = play(env, policy)
    return total.mean().item(), metrics


def look(env: SequenceTask, forward: bool = True) -> torch.Tensor:
    """The observation, flat; nothing but zeros where no answer is asked for, to keep the table small."""
    obs = env._observe().flatten(1) * (env.weights[env._elapsed] > 0).float()[:, None]
    env._elapsed += forward
    if env._elapsed == env.length and forward:
        env._elapsed = 0
    return obs
