"""StackGrammar against parsers of its grammars, and the papers' way of counting successes."""

from __future__ import annotations

import pytest
import sequence_decoders as decode
import torch
from sequence_helpers import best_without_memory, evenly, letters, right

from envs.tasks.sequence.stack_grammar import GRAMMARS, StackGrammar

every_grammar = pytest.mark.parametrize("grammar", GRAMMARS)
SMALL = {"n_min": 2, "n_max": 5, "length": 60}


def streams(env: StackGrammar) -> list[str]:
    """The whole stream of each copy: what is shown and the last answer."""
    symbols = torch.cat([env.inputs, env.targets[-1:]]).T.tolist()
    return ["".join(env.alphabet[symbol] for symbol in stream) for stream in symbols]


@every_grammar
def test_streams_obey_the_grammar(grammar: str) -> None:
    env = StackGrammar(300, grammar=grammar, **SMALL)
    env.reset(seed=0)
    assert torch.equal(env.inputs[1:], env.targets[:-1])
    drawn = []
    for index, stream in enumerate(streams(env)):
        counted, closing, sizes = decode.grammar(stream, grammar)
        assert env.weights[:, index].tolist() == [float(flag) for flag in counted[1:]]
        assert env.closing[:, index].nonzero().flatten().tolist() == [place - 1 for place in closing]
        drawn.append(sizes[0])
    evenly(drawn, [2, 3, 4, 5])


@every_grammar
def test_observations_are_the_symbols(grammar: str) -> None:
    env = StackGrammar(3, grammar=grammar, **SMALL)
    obs, _ = env.reset(seed=0)
    expected = streams(env)
    seen = []
    for _ in range(60):
        assert isinstance(obs, torch.Tensor)
        seen.append(obs)
        obs, *_ = env.step(right(env))
    for index in range(3):
        assert letters(env, seen, index) == expected[index][:60]


def test_the_first_half_of_a_split_sum_takes_every_value() -> None:
    env = StackGrammar(900, grammar="anbmcnm", n_min=4, n_max=4, length=20)
    env.reset(seed=0)
    evenly([stream.index("b") for stream in streams(env)], [1, 2, 3])


def test_words_and_numbers_are_drawn_evenly() -> None:
    env = StackGrammar(900, grammar="memorisation", n_min=2, n_max=2, letters=3, length=20)
    env.reset(seed=0)
    evenly([stream[:2] for stream in streams(env)], [a + b for a in "abc" for b in "abc"])
    env = StackGrammar(2000, grammar="addition", n_min=2, n_max=2, length=30)
    env.reset(seed=0)
    terms = [stream[: stream.index("=")] for stream in streams(env)]
    counts = {term: terms.count(term) for term in set(terms)}
    assert set(counts) == {"0+10", "0+11", "1+1", "10+0", "11+0"}
    for term, share in {"0+10": 1 / 6, "0+11": 1 / 6, "1+1": 1 / 3, "10+0": 1 / 6, "11+0": 1 / 6}.items():
        assert counts[term] / 2000 == pytest.approx(share, abs=0.04)


def test_long_numbers_add_up() -> None:
    env = StackGrammar(200, grammar="addition", n_min=60, n_max=60, length=250)
    env.reset(seed=0)
    lengths = set()
    for stream in streams(env):
        _, closing, sizes = decode.grammar(stream, "addition")
        assert len(closing) >= 1
        assert set(sizes) == {60}
        lengths.add(stream.index("+"))
    assert len(lengths) > 40


@pytest.mark.parametrize(
    ("grammar", "n"), [(name, n) for name in GRAMMARS for n in (1, 2, 3) if (name, n) != ("anbmcnm", 1)]
)
def test_short_sequences_fill_the_stream(grammar: str, n: int) -> None:
    env = StackGrammar(50, grammar=grammar, n_min=n, n_max=n, length=40)
    env.reset(seed=0)
    for stream in streams(env):
        decode.grammar(stream, grammar)
        assert len(stream) == 41


@every_grammar
@pytest.mark.parametrize("score_all", [False, True])
def test_success_counts_sequences_as_the_paper_does(grammar: str, score_all: bool) -> None:
    env = StackGrammar(20, grammar=grammar, score_all=score_all, **SMALL)
    env.reset(seed=0)
    expected = streams(env)
    said = [""] * 20
    generator = torch.Generator().manual_seed(0)
    amounts = {"success": [0.0, 0.0], "error": [0.0, 0.0]}
    total = torch.zeros(20)
    for _ in range(60):
        wrong = torch.rand(20, generator=generator) < 0.05
        action = torch.where(wrong, (right(env) + 1) % len(env.alphabet), right(env))
        said = [words + env.alphabet[int(symbol)] for words, symbol in zip(said, action, strict=True)]
        _, reward, _, _, info = env.step(action)
        total += reward
        for name, sums in amounts.items():
            for number in (0, 1):
                sums[number] += info["metrics"][name][number].sum().item()
    successes = sequences = errors = asked = 0
    for index, (stream, words) in enumerate(zip(expected, said, strict=True)):
        counted, closing, _ = decode.grammar(stream, grammar)
        missed = [one != other for one, other in zip(stream[1:], words, strict=True)]
        first = 0
        for close in closing:
            bad = any(missed[place - 1] and counted[place] for place in range(max(first, 1), close + 1))
            successes += not bad
            first = close + 1
        sequences += len(closing)
        errors += sum(flag and counted[place] for place, flag in enumerate(missed, start=1))
        asked += sum(counted[1:])
        scored = [not flag for place, flag in enumerate(missed, start=1) if score_all or counted[place]]
        assert total[index].item() == pytest.approx(sum(scored) / len(scored), abs=1e-5)
    assert 0 < successes < sequences
    assert amounts["success"] == [successes, sequences]
    assert amounts["error"] == [pytest.approx(100 * errors), asked]


@pytest.mark.parametrize(
    ("grammar", "score", "success"),
    [
        ("anbn", 0.91, 0),
        ("anbncn", 0.91, 0),
        ("anbncndn", 0.91, 0),
        ("anb2n", 0.96, 0),
        ("anbmcnm", 0.91, 0),
        ("memorisation", 0.50, 0.03),
        ("addition", 0.49, 0),
    ],
)
def test_scores_without_memory(grammar: str, score: float, success: float) -> None:
    assert f"{grammar} {score:.2f}" in (StackGrammar.__doc__ or "").replace("\n        ", " ")
    got, metrics = best_without_memory(lambda n: StackGrammar(n, grammar=grammar), 300)
    assert got == pytest.approx(score, abs=0.01)
    assert metrics["success"] == pytest.approx(success, abs=0.01)


def test_a_curriculum_moves_between_episodes() -> None:
    env = StackGrammar(200, n_min=2, n_max=2, length=40)
    env.reset(seed=0)
    assert {stream.index("b") for stream in streams(env)} == {2}
    env.n_min, env.n_max = 5, 6
    for _ in range(39):
        env.step(right(env))
    assert {stream.index("b") for stream in streams(env)} == {2}
    env.step(right(env))  # the next episode
    assert {stream.index("b") for stream in streams(env)} == {5, 6}
    env.n_max = 21
    with pytest.raises(ValueError, match="length is 40, expected at least 42"):
        env.reset()


def test_table_of_one_n_alone() -> None:
    """The paper's test: every n by itself."""
    for n in (2, 30, 60):
        env = StackGrammar(4, grammar="anbncndn", n_min=n, n_max=n, length=500)
        env.reset(seed=0)
        closed = successes = 0.0
        for _ in range(500):
            *_, info = env.step(right(env))
            amount, count = info["metrics"]["success"]
            successes, closed = successes + amount.sum().item(), closed + count.sum().item()
        assert successes == closed == 4 * (500 // (4 * n))
