"""The formats of the sequence tasks against slow decoders, their distributions, and their arguments."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import sequence_decoders as decode
import torch
from gymnasium import spaces
from sequence_helpers import ENVS, check_answers, episode, evenly

from envs.tasks.sequence.associative_recall import AssociativeRecall
from envs.tasks.sequence.base import SequenceTask
from envs.tasks.sequence.copy import Copy
from envs.tasks.sequence.dictionary_inference import DictionaryInference
from envs.tasks.sequence.double_copy import DoubleCopy
from envs.tasks.sequence.dynamic_ngrams import DynamicNGrams
from envs.tasks.sequence.priority_sort import PrioritySort
from envs.tasks.sequence.repeat_copy import RepeatCopy
from envs.tasks.sequence.stack_grammar import StackGrammar

# -- formats -----------------------------------------------------------------------------------------------------------


def test_copy_format() -> None:
    sizes = check_answers(Copy(600, min_length=2, max_length=5, bits=3), lambda rows: decode.copy(rows, 3))
    evenly(sizes, [2, 3, 4, 5])
    assert Copy().length == 41
    assert Copy().single_observation_space.shape == (9,)


@pytest.mark.parametrize("format", ["ntm", "dnc"])
def test_repeat_copy_format(format: str) -> None:
    env = RepeatCopy(600, max_length=3, max_repeats=4, bits=2, format=format)
    sizes = check_answers(env, lambda rows: decode.repeat_copy(rows, 2, format))
    evenly(sizes, [(length, repeats) for length in range(1, 4) for repeats in range(1, 5)])
    assert env.length == 3 * 5 + (3 if format == "dnc" else 2)
    space = RepeatCopy(format=format, max_repeats=20).single_observation_space  # longer than trained, scaled alike
    assert isinstance(space, spaces.Box)
    assert space.high.max() == pytest.approx(2 if format == "dnc" else (20 - 5.5) / math.sqrt(8.25))


def test_associative_recall_format() -> None:
    env = AssociativeRecall(600, max_items=4, item_length=2, bits=8)
    sizes = check_answers(env, lambda rows: decode.associative_recall(rows, 8, 2))
    evenly([items for items, _ in sizes], [2, 3, 4])
    evenly([place for items, place in sizes if items == 4], [0, 1, 2])
    assert AssociativeRecall().length == 32
    assert AssociativeRecall().single_observation_space.shape == (8,)


def test_associative_recall_on_maps() -> None:
    env = AssociativeRecall(64, grid=True)
    env.reset(seed=0)
    seen, targets, _ = episode(env)
    assert env.length == 11
    assert seen[0].shape == (64, 2, 3, 3)
    assert targets[0].shape == (64, 3, 3)
    maps = [[obs[index].tolist() for obs in seen] for index in range(64)]
    clear = []
    for index, rows in enumerate(maps):
        flat = [str(row[0]) for row in rows]
        if flat[:9].count(flat[10]) == 1:  # else nobody can know which is meant
            clear.append(index)
            answers, (items, place) = decode.associative_recall_maps(rows)
            assert items == 10
            assert place <= 8
            assert tuple(targets[10][index].flatten().tolist()) == answers[10]
    assert len(clear) > 55
    fewer = AssociativeRecall(256, grid=True, min_items=2, max_items=3)
    _, _, weights = episode(fewer)
    assert 80 < weights[2].sum() < 176
    assert torch.equal(weights[2] + weights[3], torch.ones(256))


@pytest.mark.parametrize("outputs", [3, 9])
def test_priority_sort_format(outputs: int) -> None:
    env = PrioritySort(300, min_length=2, max_length=5, outputs=outputs, bits=4)
    evenly(check_answers(env, lambda rows: decode.priority_sort(rows, 4, outputs)), [2, 3, 4, 5])
    assert PrioritySort().length == 36


def test_priority_sort_on_maps() -> None:
    env, plain = PrioritySort(16, grid=True), PrioritySort(16, bits=9)
    assert env.single_action_space.shape == (3, 3)
    for one, other in zip(zip(*episode(env), strict=True), zip(*episode(plain), strict=True), strict=True):
        assert torch.equal(one[0][:, 0].flatten(1), other[0][:, :9])
        assert torch.equal(one[0][:, 1].flatten(1), other[0][:, 9:].expand(-1, 9))
        assert torch.equal(one[1].flatten(1), other[1])
        assert torch.equal(one[2], other[2])


def test_priorities_are_uniform() -> None:
    env = PrioritySort(512)
    env.reset(seed=0)
    priorities = env.inputs[:20, :, -1].flatten()
    counts = torch.histc(priorities, 10, -1, 1)
    assert ((counts - 1024).abs() < 5 * 32).all()


def test_double_copy_format() -> None:
    evenly(check_answers(DoubleCopy(400, min_length=2, max_length=5, symbols=3), decode.double_copy), [2, 3, 4, 5])
    assert DoubleCopy().length == 151


@pytest.mark.parametrize(("k", "l"), [(4, 1), (8, 4), (12, 8), (16, 12)])
def test_dictionary_inference_format(k: int, l: int) -> None:  # noqa: E741
    env = DictionaryInference(50, k=k, l=l)
    known = check_answers(env, lambda shown: decode.dictionary_inference(shown, k, l))
    assert all(known) if l == 1 else not any(known)
    assert env.length == {4: 23, 8: 97, 12: 245, 16: 457}[k]
    assert int(env.single_action_space.n) == 26


def test_dictionaries_are_drawn_evenly() -> None:
    env = DictionaryInference(4000, k=1, l=1)
    seen, targets, _ = episode(env)
    pairs = [(int(obs.argmax()), int(target)) for obs, target in zip(seen[0], targets[-1], strict=True)]
    evenly([source for source, _ in pairs], list(range(26)))
    evenly([target for _, target in pairs], list(range(26)))
    assert all(source != target for source, target in pairs)


def test_queries_are_new_and_prefer_no_letter() -> None:
    env = DictionaryInference(6000, k=1, l=4)
    env.reset(seed=0)
    words, queries = env.inputs[:4].T.tolist(), env.inputs[11:15].T.tolist()
    old = [word for word, query in zip(words, queries, strict=True) if word == query]
    assert all(len(set(word)) == 1 for word in old)
    rare = []  # how often a query has the letter that its support word has once, where another was there thrice
    for word, query in zip(words, queries, strict=True):
        if len(set(word)) == 2 and max(map(word.count, word)) == 3:
            rare.append(query.count(min(word, key=word.count)))
    assert len(rare) > 80
    assert np.mean(rare) > 1.7  # 31 / 15 of 4 letters; 1 if the support's frequencies counted


def test_ngrams_follow_their_tables() -> None:
    env = DynamicNGrams(400, length=60, context=2)
    seen, targets, weights = episode(env)
    env.reset(seed=0)
    assert all((weight == 1).all() for weight in weights)
    assert (seen[0] == 0).all()
    for step in range(1, 60):
        assert torch.equal(seen[step].to(torch.int8), targets[step - 1])
    for index in range(400):
        bits = [int(target[index]) for target in targets]
        counts: dict[tuple[int, ...], list[float]] = {}
        for step, bit in enumerate(bits):
            past = tuple(bits[step - 2 : step])
            zeros, ones = counts.setdefault(past, [0, 0]) if step >= 2 else (0, 0)
            estimate = (ones + 0.5) / (zeros + ones + 1)
            assert env.optimal[step, index].item() == pytest.approx(estimate, abs=1e-6)
            if step >= 2:
                counts[past][bit] += 1


def test_ngram_tables_are_drawn_from_the_arcsine_law() -> None:
    """With contexts of one bit and long sequences, the share of ones after each context is the table itself."""
    env = DynamicNGrams(1500, length=400, context=1)
    env.reset(seed=0)
    bits = env.targets[..., 0].float()
    shares = []
    for context in (0, 1):
        where = (bits[:-1] == context).float()
        visits = where.sum(0)
        shares.append(((where * bits[1:]).sum(0) / visits)[visits > 60])
    # A context that leads away from itself is visited more, so look at both and weigh nothing: the law is symmetric.
    for share in shares:
        assert share.var() > 0.09  # a uniform law has 1/12, Beta(1/2, 1/2) 1/8
    first = env.targets[0].float().mean()
    assert first.item() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("name", ["recall on maps", "sort on maps", "repeats", "many repeats"])
def test_observations_and_targets_are_in_their_spaces(name: str) -> None:
    make = {"repeats": RepeatCopy, "many repeats": lambda n: RepeatCopy(n, min_repeats=1, max_repeats=23), **ENVS}[name]
    env = make(500)
    for obs, target, _ in zip(*episode(env), strict=True):
        assert env.observation_space.contains(obs.numpy())
        assert env.action_space.contains(target.numpy())


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_bits_are_fair_and_independent(bits: int) -> None:
    env = Copy(4096, min_length=4, max_length=4, bits=bits)
    env.reset(seed=0)
    vectors = env.inputs[:4, :, :bits].permute(1, 0, 2).flatten(1)  # [N, 4 * bits]
    assert (vectors.mean(0) - 0.5).abs().max() < 5 * 0.5 / 64
    correlation = torch.corrcoef(vectors.T) - torch.eye(4 * bits)
    assert correlation.abs().max() < 5 / 64


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Copy(min_length=0), "min_length is 0"),
        (lambda: Copy(min_length=3, max_length=2), "min_length is 3 and max_length 2"),
        (lambda: Copy(bits=0), "bits is 0"),
        (lambda: RepeatCopy(max_repeats=0), "max_repeats 0"),
        (lambda: RepeatCopy(min_length=0), "min_length is 0"),
        (lambda: RepeatCopy(bits=0), "bits is 0"),
        (lambda: RepeatCopy(format="tape"), "format is 'tape', expected one of"),
        (lambda: RepeatCopy(trained_repeats=(1, 3)), "even number of values"),
        (lambda: RepeatCopy(trained_repeats=(2, 1), format="dnc"), "1 <= minimum <= maximum"),
        (lambda: AssociativeRecall(min_items=1), "expected 2 <= min_items"),
        (lambda: AssociativeRecall(item_length=0), "item_length is 0"),
        (lambda: AssociativeRecall(item_length=3, grid=True), "item_length is 3, expected 1"),
        (lambda: AssociativeRecall(bits=6, grid=True), "bits is 6, expected 9"),
        (lambda: PrioritySort(bits=0), "bits is 0"),
        (lambda: PrioritySort(bits=8, grid=True), "bits is 8, expected 9"),
        (lambda: PrioritySort(outputs=0), "outputs is 0"),
        (lambda: PrioritySort(min_length=30), "min_length is 30 and max_length 20"),
        (lambda: DynamicNGrams(context=0), "context is 0"),
        (lambda: DynamicNGrams(context=17), "context is 17"),
        (lambda: DynamicNGrams(length=5), "length 5"),
        (lambda: DoubleCopy(min_length=51), "min_length is 51"),
        (lambda: DoubleCopy(symbols=1), "symbols is 1"),
        (lambda: DoubleCopy(symbols=27), "symbols is 27"),
        (lambda: DictionaryInference(k=0), "k is 0"),
        (lambda: DictionaryInference(l=0), "l 0"),
        (lambda: StackGrammar(grammar="palindrome"), "grammar is 'palindrome'"),
        (lambda: StackGrammar(n_min=0), "n_min is 0"),
        (lambda: StackGrammar(length=-1), "length is -1"),
        (lambda: StackGrammar(n_min=5, n_max=4), "n_min is 5, n_max 4"),
        (lambda: StackGrammar(grammar="anbmcnm", n_min=1), "expected 2 <= n_min"),
        (lambda: StackGrammar(grammar="addition", n_max=61), "n_max is 61"),
        (lambda: StackGrammar(letters=1), "letters is 1"),
        (lambda: StackGrammar(n_max=101), "length is 200, expected at least 202"),
    ],
)
def test_arguments_out_of_range(make: Callable[[], SequenceTask], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
