"""Stories made by the generator, whose answers follow from what was told, and arguments that are refused."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch

from envs.tasks.babi.environment import Babi
from envs.tasks.babi.generator import GENERATORS, generate
from envs.tasks.babi.stories import parse


def answer(question: str, history: list[str], strict: bool) -> str:
    """The answer by replaying sentences; where `strict`, asserting that each of them was possible."""
    where: dict[str, str] = {}
    holder: dict[str, str] = {}
    lying: dict[str, str] = {}
    kinds: dict[str, str] = {}
    fears: dict[str, str] = {}
    for sentence in history:
        if match := re.fullmatch(r"(\w+) (?:moved|went|went back|journeyed|travelled) to the (\w+)\.", sentence):
            person, place = match.groups()
            assert not strict or where.get(person) != place
            where[person] = place
        elif match := re.fullmatch(r"(\w+) (?:got|took|grabbed|picked up) the (\w+) there\.", sentence):
            person, thing = match.groups()
            if strict:
                assert thing not in holder
                assert lying.get(thing, where[person]) == where[person]
            holder[thing] = person
            lying.pop(thing, None)
        elif match := re.fullmatch(r"(\w+) (?:dropped|discarded|left|put down) the (\w+)(?: there)?\.", sentence):
            person, thing = match.groups()
            assert not strict or holder[thing] == person
            holder.pop(thing, None)
            lying[thing] = where.get(person, "?")
        elif match := re.fullmatch(r"(\w+) (?:gave|handed|passed) the (\w+) to (\w+)\.", sentence):
            person, thing, other = match.groups()
            if strict:
                assert holder[thing] == person != other
                assert where[person] == where[other]
            holder[thing] = other
        elif match := re.fullmatch(r"(\w+) are afraid of (\w+)\.", sentence):
            one, other = (
                {"mice": "mouse", "wolves": "wolf", "cats": "cat"}.get(animal.lower(), animal.lower())
                for animal in match.groups()
            )
            assert one != other
            fears[one] = other
        else:
            match = re.fullmatch(r"(\w+) is a (\w+)\.", sentence)
            assert match, sentence
            kinds[match[1].lower()] = match[2]
    if match := re.fullmatch(r"Where is (\w+)\?", question):
        return where[match[1]]
    if match := re.fullmatch(r"Where is the (\w+)\?", question):
        thing = match[1]
        return where[holder[thing]] if thing in holder else lying[thing]
    if match := re.fullmatch(r"Is (\w+) in the (\w+)\?", question):
        return "yes" if where[match[1]] == match[2] else "no"
    if match := re.fullmatch(r"How many objects is (\w+) carrying\?", question):
        return ["none", "one", "two", "three"][list(holder.values()).count(match[1])]
    match = re.fullmatch(r"What is (\w+) afraid of\?", question)
    assert match, question
    return fears[kinds[match[1]]]


@pytest.mark.parametrize("task", GENERATORS)
def test_made_answers_follow_from_the_story_and_from_the_supporting_lines(task: int) -> None:
    counts: Counter[str] = Counter()
    sentences: dict[int, str] = {}
    for row in generate(task, 300, 5, seed=0).splitlines():
        number, _, rest = row.partition(" ")
        if number == "1":
            sentences = {}
        if "\t" not in rest:
            sentences[int(number)] = rest
            continue
        question, given, support = rest.split("\t")
        assert answer(question.strip(), list(sentences.values()), strict=True) == given
        cited = [sentences[line] for line in sorted(map(int, support.split()))]
        assert answer(question.strip(), cited, strict=False) == given
        assert len(cited) == {1: 1, 2: 2, 6: 1, 15: 2}.get(task, len(cited))
        counts[given] += 1
    assert counts.total() == 1500
    commonest = counts.most_common(1)[0][1] / 1500
    assert commonest < {1: 0.25, 2: 0.25, 6: 0.55, 7: 0.55, 15: 0.35}[task]
    assert len(counts) == {1: 6, 2: 6, 6: 2, 7: 4, 15: 4}[task]


def test_made_stories_depend_on_the_seed_and_splits_differ() -> None:
    assert generate(1, 3, 2, seed=0) == generate(1, 3, 2, seed=0) != generate(1, 3, 2, seed=1)
    assert generate(2, 3, 2, seed=0) != generate(7, 3, 2, seed=0)
    train, valid, test = (Babi(1, split=split, stories=5) for split in ("train", "valid", "test"))
    assert not any(
        one._symbols.shape == other._symbols.shape and torch.equal(one._symbols, other._symbols)
        for one, other in ((train, valid), (train, test), (valid, test))
    )
    for task, stories in ((task, parse(generate(task, 20, 3, 0), "made")) for task in GENERATORS):
        assert len(stories) == 20, task
        assert all(sum(bool(line.answer) for line in story) == 3 for story in stories)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "hn"}, "source is 'hn', expected one of"),
        ({"split": "dev"}, "split is 'dev', expected one of"),
        ({"stories": 0}, "stories is 0"),
        ({"questions": 0}, "questions 0"),
        ({"tasks": 3}, r"tasks is 3, expected .* among \[1, 2, 6, 7, 15\]"),
        ({"tasks": "some"}, "tasks is 'some'"),
        ({"tasks": [1, 1]}, "different numbers"),
        ({"tasks": []}, "different numbers"),
        ({"source": "en", "tasks": [21]}, r"tasks is \[21\]"),
        ({"source": "en", "data_dir": "/nowhere"}, "data_dir is '/nowhere', which is not a directory"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Babi(1, **arguments)
