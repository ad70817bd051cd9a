"""bAbI's file format: hand-written stories, damaged files, missing files, and the published archive."""

from __future__ import annotations

from pathlib import Path

import pytest
from babi_archives import CARRYING, REAL, WHERE, archive, real, words

from envs.data.files import DataError
from envs.tasks.babi.stories import PLACEHOLDER, TASKS, VOCABULARY, WORDS, load, parse

pytestmark = pytest.mark.filterwarnings("ignore:.*is not the published content")  # most are made here


def test_the_vocabulary_is_the_dncs() -> None:
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 159
    assert len(WORDS) == 156
    assert list(WORDS) == sorted(WORDS)
    assert VOCABULARY[PLACEHOLDER] == "-"
    assert len(TASKS) == 20


def test_stories_are_split_where_the_ids_begin_again() -> None:
    first, second = parse(CARRYING + WHERE, "file")
    assert [words(line.words) for line in first] == [
        ["mary", "got", "the", "milk", "there", "."],
        ["mary", "got", "the", "apple", "there", "."],
        ["what", "is", "mary", "carrying", "?"],
        ["mary", "dropped", "the", "milk", "."],
        ["what", "is", "mary", "carrying", "?"],
    ]
    assert [words(line.answer) for line in first] == [[], [], ["milk", "apple"], [], ["apple"]]
    assert words(second[-1].words + second[-1].answer) == ["where", "is", "john", "?", "office"]


def test_the_same_question_may_have_another_answer_later() -> None:
    text = WHERE + "3 John went to the garden.\n4 Where is John? \tgarden\t3\n"
    (story,) = parse(text, "file")
    assert [words(line.answer) for line in story if line.answer] == [["office"], ["garden"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty or its last line is cut off"),
        (WHERE[:-1], "is empty or its last line is cut off"),
        ("2 John went to the office.\n", "line 1: begins with '2', expected 1"),
        (CARRYING.replace("4 Mary", "5 Mary"), "line 4: begins with '5', expected 4 or 1"),
        (WHERE + "\n", "line 3: begins with '', expected 3 or 1"),
        (CARRYING + "1 John went to the office.\n", "line 6: the story before it ends without a question"),
        ("1 John went to the office.\n" + WHERE, "line 2: the story before it ends without a question"),
        (WHERE.replace("John", "Johann"), "line 1: 'johann' is not one of bAbI's 156 words"),
        (WHERE.replace("\toffice", "\toffices"), "line 2: 'offices' is not one"),
        (WHERE.replace("office.", "office - now."), "line 1: '-' is not one"),
        (WHERE.replace("\t1", ""), r"line 2: .*expected 'words.' or"),
        (WHERE.replace("office.", "office"), r"line 1: .*expected 'words.' or"),
        (WHERE.replace("John? ", "John. "), r"line 2: .*expected 'words.' or"),
    ],
)
def test_damaged_files_are_named(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        parse(text, "the file")
    assert str(caught.value).startswith("the file")


def test_editions_without_a_validation_set_give_every_tenth_training_story(tmp_path: Path) -> None:
    places = ("garden", "office", "kitchen")
    train = "".join(WHERE.replace("office", places[i % 3]) for i in range(25))
    path = archive(tmp_path / "d", {"en/qa1_some-name_train.txt": train, "en/qa1_some-name_test.txt": WHERE})
    answers = {
        split: [words(story[-1].answer)[0] for story in load("en", split, [1], path)[1]]
        for split in ("train", "valid", "test")
    }
    whole = [places[i % 3] for i in range(25)]
    assert answers["valid"] == [whole[9], whole[19]]
    assert answers["train"] == whole[:9] + whole[10:19] + whole[20:]
    assert answers["test"] == ["office"]
    few = archive(tmp_path / "few", {"en/qa1_a_train.txt": WHERE, "en/qa1_a_test.txt": WHERE})
    with pytest.raises(DataError, match="too few stories"):
        load("en", "valid", [1], few)


def test_missing_files_are_named_or_left_out(tmp_path: Path) -> None:
    whole = {f"en-valid/qa{task}_{split}.txt": WHERE for task in (1, 2, 3) for split in ("train", "valid", "test")}
    del whole["en-valid/qa3_train.txt"]
    path = archive(tmp_path / "d", whole)
    assert tuple(load("en-valid", "train", "available", path)) == (1, 2)
    assert tuple(load("en-valid", "test", "available", path)) == (1, 2)  # the same tasks in every split
    assert tuple(load("en-valid", "test", [3], path)) == (3,)
    with pytest.raises(DataError, match=r"no train file of qa3 in en-valid/; leave such tasks out"):
        load("en-valid", "train", [1, 3], path)
    with pytest.raises(DataError, match=r"no test file of qa4, qa5, .*qa20 in en-valid/"):
        load("en-valid", "test", "all", path)
    with pytest.raises(DataError, match=r"no train file of any task in en-10k/"):
        load("en-10k", "train", "available", path)


@real
def test_the_published_archive() -> None:
    counts = {}
    used: set[int] = set()
    for split in ("train", "valid", "test"):
        for task, stories in load("en-valid-10k", split, "available", REAL).items():
            counts[split, task] = sum(bool(line.answer) for story in stories for line in story)
            used.update(number for story in stories for line in story for number in line.words + line.answer)
    for (split, task), count in counts.items():
        odd = {("train", 18): 8996, ("valid", 18): 1004, ("train", 20): 9002, ("valid", 20): 998}
        assert count == odd.get((split, task), 9000 if split == "train" else 1000)
    assert {VOCABULARY[number] for number in used} == set(VOCABULARY) - {"-"}
