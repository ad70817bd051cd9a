"""Text as numbers: what is said differently is read differently, and what it says can be read off linearly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from policies.text import WIDTH, is_text, text_features, text_rows

COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")
THINGS = ("ball", "box", "key", "door")


def test_a_mission_says_which_colour_and_which_thing() -> None:
    """As BabyAI's missions; a linear read-out, fitted to half of them, tells both in the other half."""
    said = [(c, t, f"{verb} the {COLOURS[c]} {THINGS[t]}") for verb in ("go to", "pick up", "open") for c in range(6)
            for t in range(4)]  # fmt: skip
    rows = text_rows([text for _, _, text in said])
    assert rows.shape == (72, WIDTH)
    order = np.random.default_rng(0).permutation(72)
    known, new = order[:48], order[48:]
    for part, count in ((0, 6), (1, 4)):
        right = np.array([each[part] for each in said])
        fitted = np.linalg.lstsq(rows[known], np.eye(count)[right[known]], rcond=1e-3)[0]
        assert ((rows[new] @ fitted).argmax(1) == right[new]).mean() > 0.9


def test_order_counts() -> None:
    texts = [f"put the {a} next to the {b}" for a, b in itertools.permutations(["red ball", "green box", "key"], 2)]
    assert len(np.unique(text_rows(texts), axis=0)) == 6


@pytest.mark.parametrize("length", [1, 2, 5])
def test_codes_of_letters_differ(length: int) -> None:
    codes = ["".join(code) for code in itertools.product("ABC", repeat=length)]
    assert len(np.unique(text_rows(codes), axis=0)) == 3**length


def test_the_numbers_are_fixed() -> None:
    """They are in no checkpoint: what a trained agent reads must not change from version to version."""
    found = text_features("go to the Red ball")
    assert found.dtype == np.float32
    assert np.flatnonzero(found == 1).tolist() == [6, 13, 32]
    assert np.flatnonzero(found == -1).tolist() == [12, 26, 31, 38, 39, 47, 86, 91]
    assert np.array_equal(found, text_features("  go  to the red ball"))
    assert not text_features("").any()
    found[:] = 9  # a vector of one's own
    assert text_features("go to the red ball").max() < 9


def test_what_is_text() -> None:
    for value in ("a", ("a", "b"), ["a"], np.array(["a", "bc"]), np.array(["a", "b"], dtype=object)):
        assert is_text(value)
    for value in (1.0, (), [1.0], ("a", 1), np.zeros(2), np.array([None, "a"], dtype=object), {"a": "b"}):
        assert not is_text(value)
