"""Slow decoders: from what one copy is shown, step by step, to the right answers and where they are due.

Each is written from the format in the paper, and sees observations only. They return two lists over the steps: the
answer (None where nothing is asked) and the format's own sizes, for tests of the distributions.
"""

from __future__ import annotations

from typing import Any

Answers = list[Any]
Vector = tuple[int, ...]


def _vector(row: list[float], bits: int) -> Vector:
    assert set(row[:bits]) <= {0.0, 1.0}
    return tuple(int(bit) for bit in row[:bits])


def _blank(rows: list[list[float]]) -> bool:
    return all(value == 0 for row in rows for value in row)


def copy(rows: list[list[float]], bits: int) -> tuple[Answers, int]:
    length = next(step for step, row in enumerate(rows) if row[bits] == 1)
    assert _blank([row[bits:] for row in rows[:length]])
    assert _blank([rows[length][:bits]])
    assert _blank(rows[length + 1 :])
    said: Answers = [_vector(row, bits) for row in rows[:length]]
    return _padded([None] * (length + 1) + said, rows), length


def repeat_copy(rows: list[list[float]], bits: int, format: str) -> tuple[Answers, tuple[int, int]]:
    first = 0
    if format == "dnc":
        assert rows[0] == [0.0] * bits + [1.0, 0.0]
        first = 1
    cue = next(step for step, row in enumerate(rows) if row[-1] != 0)
    if format == "dnc":
        repeats = rows[cue][-1] * 10
    else:
        numbers = range(1, 11)
        mean = sum(numbers) / 10
        repeats = rows[cue][-1] * (sum((number - mean) ** 2 for number in numbers) / 10) ** 0.5 + mean
    assert abs(repeats - round(repeats)) < 1e-5
    assert _blank([rows[cue][:-1]])
    assert _blank(rows[cue + 1 :])
    assert _blank([row[bits:] for row in rows[first:cue]])
    vectors = [(*_vector(row, bits), 0) for row in rows[first:cue]]
    said: Answers = vectors * round(repeats) + [(0,) * bits + (1,)]
    return _padded([None] * (cue + 1) + said, rows), (len(vectors), round(repeats))


def associative_recall(rows: list[list[float]], bits: int, item_length: int) -> tuple[Answers, tuple[int, int]]:
    items: list[list[Vector]] = []
    step = 0
    while rows[step][bits] == 1:
        assert _blank([rows[step][:bits], rows[step][bits + 1 :]])
        items.append([_vector(row, bits) for row in rows[step + 1 : step + 1 + item_length]])
        assert _blank([row[bits:] for row in rows[step + 1 : step + 1 + item_length]])
        step += 1 + item_length
    assert rows[step] == rows[step + item_length + 1] == [0.0] * (bits + 1) + [1.0]
    query = [_vector(row, bits) for row in rows[step + 1 : step + 1 + item_length]]
    step += item_length + 2
    assert _blank(rows[step:])
    place = items.index(query)
    said: Answers = list(items[place + 1])
    return _padded([None] * step + said, rows), (len(items), place)


def associative_recall_maps(rows: list[Any]) -> tuple[Answers, tuple[int, int]]:
    """`rows[t][channel][row][column]`."""
    flat = [[value for line in row[0] for value in line] for row in rows]
    marks = [{value for line in row[1] for value in line} for row in rows]
    query = next(step for step, mark in enumerate(marks) if mark == {1.0})
    assert all(mark == {0.0} for step, mark in enumerate(marks) if step != query)
    assert _blank(flat[query + 1 :])
    items = [_vector(row, 9) for row in flat[:query]]
    place = items.index(_vector(flat[query], 9))
    return _padded([None] * query + [items[place + 1]], rows), (query, place)


def priority_sort(rows: list[list[float]], bits: int, outputs: int) -> tuple[Answers, int]:
    length = next((step for step, row in enumerate(rows) if row[bits] == 0), len(rows))
    assert _blank(rows[length:])
    assert all(-1 <= row[bits] <= 1 for row in rows)
    ranked = sorted(rows[:length], key=lambda row: -row[bits])
    said: Answers = [_vector(row, bits) for row in ranked[:outputs]]
    return _padded([None] * length + said, rows), length


def double_copy(shown: str) -> tuple[Answers, int]:
    word, rest = shown.split("|")
    assert rest.strip() == ""
    return _padded([None] * (len(word) + 1) + list(word) * 2, shown), len(word)


def dictionary_inference(shown: str, k: int, l: int) -> tuple[Answers, bool]:  # noqa: E741
    support, asking = shown.split(";")
    examples = support.split(",")
    assert len(examples) == k
    dictionary: dict[str, str] = {}
    sources = []
    for example in examples:
        source, target, nothing = example.split(".")
        assert (len(source), len(target), nothing) == (l, l, "")
        sources.append(source)
        for one, other in zip(source, target, strict=True):
            assert dictionary.setdefault(one, other) == other
    assert len(set(dictionary.values())) == len(dictionary) <= 13
    assert not set(dictionary) & set(dictionary.values())
    query, places = asking.split(".")
    assert (len(query), places) == (l, "_" * l)
    answers = [None] * (len(shown) - l) + [dictionary[letter] for letter in query]
    return answers, query in sources


def _padded(answers: Answers, rows: Any) -> Answers:
    return answers + [None] * (len(rows) - len(answers))


# -- the grammars, each parsed by hand: a stream to its sequences ------------------------------------------------------


def grammar(stream: str, name: str) -> tuple[list[bool], list[int], list[Any]]:
    """Which symbols of a stream are counted, which close a sequence, and the n of every whole sequence."""
    counted, closing, sizes = [False] * len(stream), [], []
    at = 0
    while at < len(stream):
        end, first, size = _READERS[name](stream, at)
        next_too = name.startswith("anb")  # the first symbol of the next sequence counts as well
        last = end + next_too  # one beyond what counts
        for place in range(first, min(last, len(stream))):
            counted[place] = True
        if last <= len(stream):
            closing.append(last - 1)
            sizes.append(size)
        at = end
    return counted, closing, sizes


def _run(stream: str, at: int, letter: str) -> int:
    """How many `letter` there are from `at` on."""
    count = 0
    while at + count < len(stream) and stream[at + count] == letter:
        count += 1
    return count


def _count_like(letters: str, factors: list[int]) -> Any:
    def read(stream: str, at: int) -> tuple[int, int, int]:
        n = _run(stream, at, letters[0])
        place = at
        for letter, factor in zip(letters, factors, strict=True):
            run = _run(stream, place, letter)
            assert run == n * factor or place + run >= len(stream), stream[at:]
            place += n * factor
        return place, at + n + 1, n

    return read


def _read_sum_of_counts(stream: str, at: int) -> tuple[int, int, int]:
    n = _run(stream, at, "a")
    m = _run(stream, at + n, "b")
    assert n > 0
    assert m > 0 or at + n == len(stream)
    run = _run(stream, at + n + m, "c")
    cut = at + n + m + run == len(stream)
    assert run == n + m or cut
    return at + 2 * (n + m), at + n + m + 1, n + m


def _read_word(stream: str, at: int) -> tuple[int, int, int]:
    mark = stream.find("=", at)
    if mark < 0:
        return len(stream) + 1, len(stream), 0
    n = mark - at
    back = stream[mark + 1 : mark + 1 + n]
    assert stream[at:mark][::-1].startswith(back)
    return mark + 1 + n, mark + 1, n


def _read_sum(stream: str, at: int) -> tuple[int, int, int]:
    stop = stream.find(".", at)
    mark = stream.find("=", at)
    if mark < 0:
        return len(stream) + 1, len(stream), 0
    first, second = stream[at:mark].split("+")
    for number in (first, second):
        assert number == "0" or number[0] == "1"
    digits = len(first.lstrip("0")) + len(second.lstrip("0"))
    right = f"{int(first, 2) + int(second, 2):b}"
    right = right.rjust(max(len(first), len(second)), "0")[::-1] + "."
    said = stream[mark + 1 : stop + 1 if stop >= 0 else None]
    assert right == said or (stop < 0 and right.startswith(said))
    return mark + 1 + len(right), mark + 1, digits


_READERS = {
    "anbn": _count_like("ab", [1, 1]),
    "anbncn": _count_like("abc", [1, 1, 1]),
    "anbncndn": _count_like("abcd", [1, 1, 1, 1]),
    "anb2n": _count_like("ab", [1, 2]),
    "anbmcnm": _read_sum_of_counts,
    "memorisation": _read_word,
    "addition": _read_sum,
}
