"""bAbI stories: the file format, the 159 symbols, and where the stories of an edition come from.

A file holds stories one after another. A line is `ID text`, or `ID question<tab>answer<tab>IDs of supporting lines`;
a story begins where the IDs begin again at 1. Stories are read in lower case and without numbers; full stops and
question marks are symbols of their own, and an answer "milk,football" is two words. That leaves 156 words in all
editions of all twenty tasks; with `.`, `?` and the placeholder `-` they are the 159 symbols of the DNC's experiment.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from envs.data.files import DataError, digest, find, read_members, warn_changed
from envs.tasks.babi.known import DIGESTS

TASKS = (
    "single supporting fact",
    "two supporting facts",
    "three supporting facts",
    "two argument relations",
    "three argument relations",
    "yes/no questions",
    "counting",
    "lists/sets",
    "simple negation",
    "indefinite knowledge",
    "basic coreference",
    "conjunction",
    "compound coreference",
    "time reasoning",
    "basic deduction",
    "basic induction",
    "positional reasoning",
    "size reasoning",
    "path finding",
    "agents' motivations",
)
"""Names of the twenty tasks, task 1 first."""

_WORDS = """
a above afraid after afternoon afterwards and antoine apple are back bathroom bedroom before below bernhard bigger
bill blue bored box brian carrying cat cats chest chocolate chocolates cinema color container daniel did discarded
do does down dropped e east either emily evening fit fits following football fred frog from garden gave gertrude get
give go got grabbed gray green greg hallway handed he how hungry in inside is jason jeff jessica john journeyed
julie julius kitchen left lily lion longer many mary maybe mice milk morning mouse moved n no none north not nothing
objects of office one or pajamas park passed picked pink put received rectangle red rhino right s sandra school she
sheep south sphere square suitcase sumit swan than that the then there they thirsty this three tired to took
travelled triangle two up w was went west what where white who why will winona wolf wolves yann yellow yes yesterday
you
"""
WORDS = tuple(_WORDS.split())
VOCABULARY = (*WORDS, ".", "?", "-")
"""The words of the 159 symbols."""
PLACEHOLDER = len(VOCABULARY) - 1
"""The symbol `-`, shown where a word of an answer is due."""

EDITIONS = ("en", "en-10k", "en-valid", "en-valid-10k")
SPLITS = ("train", "valid", "test")

_NUMBER = {word: number for number, word in enumerate(VOCABULARY)}
_TOKEN = re.compile(r"[a-z]+|[^a-z\s]")


class Line(NamedTuple):
    """A sentence, in symbols."""

    words: tuple[int, ...]
    answer: tuple[int, ...]
    """Words of the answer to a question; empty for a statement."""


Story = list[Line]


def parse(text: str, name: str) -> list[Story]:
    """The stories of one file.

    Args:
        text: content of the file.
        name: of the file, for messages.

    Raises:
        DataError: a line is not in the format or has a word that bAbI does not have, or the file ends inside a story.
    """
    stories: list[Story] = []
    known: dict[str, Line] = {}  # sentences recur often
    last, line = 0, Line((), ())
    if not text.endswith("\n"):
        raise DataError(f"{name} is empty or its last line is cut off, expected bAbI stories")
    for row, content in enumerate(text.splitlines(), start=1):
        number, _, sentence = content.partition(" ")
        if number == "1":
            if last and not line.answer:
                break
            stories.append([])
        elif not last or number != str(last + 1):
            raise DataError(
                f"{name}, line {row}: begins with {number[:20]!r}, expected {f'{last + 1} or 1' if last else 1}"
            )
        last = int(number)
        key = sentence.rpartition("\t")[0] or sentence  # without the supporting lines
        if key not in known:
            try:
                known[key] = _line(sentence)
            except ValueError as error:
                raise DataError(f"{name}, line {row}: {error}") from None
        line = known[key]
        stories[-1].append(line)
    if not line.answer:
        raise DataError(f"{name}, line {row}: the story before it ends without a question; the file is cut or damaged")
    return stories


def _line(sentence: str) -> Line:
    """One sentence without its ID."""
    words, *rest = sentence.split("\t")
    answer = rest[0].lower().split(",") if rest else []
    tokens = _TOKEN.findall(words.lower())
    ending = "?" if rest else "."
    if len(rest) not in (0, 2) or tokens[-1:] != [ending] or len(tokens) < 2:
        raise ValueError(f"{sentence[:60]!r}; expected 'words.' or 'words?<tab>answer<tab>lines'")
    for token in (*tokens, *answer):
        if token not in _NUMBER or token == VOCABULARY[PLACEHOLDER]:
            raise ValueError(f"{token[:20]!r} is not one of bAbI's {len(WORDS)} words")
    return Line(tuple(_NUMBER[token] for token in tokens), tuple(_NUMBER[word] for word in answer))


def single_questions(stories: list[Story]) -> list[Story]:
    """One story per question: the statements before it and the question, without the other questions."""
    single: list[Story] = []
    for story in stories:
        statements: Story = []
        for line in story:
            if line.answer:
                single.append([*statements, line])
            else:
                statements.append(line)
    return single


def load(edition: str, split: str, tasks: str | Sequence[int], data_dir: str | Path | None) -> dict[int, list[Story]]:
    """The stories of a split, task by task, from the published archive (see `envs.data.files`).

    Editions without a validation set (`en`, `en-10k`) give every tenth story of the training file to it.

    Args:
        edition: one of `EDITIONS`.
        split: one of `SPLITS`.
        tasks: numbers; "all" twenty; or "available": those of which the edition has the files of all splits.
        data_dir: folder searched first.

    Raises:
        DataError: the archive or a file in it is missing or damaged.
    """
    path = find("babi", data_dir)
    texts: dict[tuple[int, str], tuple[str, bytes]] = {}
    for name, content in read_members(path, f"*/{edition}/qa*.txt"):
        match = re.search(r"/qa(\d+)_(?:.*_)?(train|valid|test)\.txt$", name)
        if match:
            texts[int(match[1]), match[2]] = name, content
    no_valid_file = edition in ("en", "en-10k")
    files = ("train", "test") if no_valid_file else SPLITS
    needed = "train" if no_valid_file and split == "valid" else split
    if tasks == "available":
        tasks = [task for task in range(1, 21) if all((task, file) in texts for file in files)]
    elif isinstance(tasks, str):
        tasks = range(1, 21)
    missing = [f"qa{task}" for task in tasks if (task, needed) not in texts]
    if missing or not tasks:
        raise DataError(
            f"{path} has no {needed} file of {', '.join(missing) or 'any task'} in {edition}/; "
            "leave such tasks out by their numbers, or set tasks=available"
        )
    stories: dict[int, list[Story]] = {}
    changed = []
    for task in tasks:
        name, content = texts[task, needed]
        content = content.replace(b"\r\n", b"\n")
        if DIGESTS.get((edition, needed, task), digest(content)[:8]) != digest(content)[:8]:
            changed.append(name.rpartition("/")[2])
        stories[task] = parse(content.decode("utf-8", "replace"), f"{path}: {name}")
        if no_valid_file and split != "test":
            stories[task] = [story for i, story in enumerate(stories[task]) if (i % 10 == 9) == (split == "valid")]
        if not stories[task]:
            raise DataError(f"{path}: {name} has too few stories: every tenth is for validation")
    if changed:
        warn_changed("babi", f"{path}: {edition}/{', '.join(changed)}")
    return stories
