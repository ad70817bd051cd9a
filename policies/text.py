"""Feature hashing of text: any string becomes a vector of fixed width, without a vocabulary.

Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning": each feature adds 1 or -1 to one of
`WIDTH` numbers; index and sign come from a hash. A linear layer over the vector is then a sum of learned embeddings.
The features are words and pairs of neighbouring words, so that "red ball, green box" differs from "green ball, red
box". The features of a text without spaces are its characters with their positions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

WIDTH = 128
"""Width of a text's vector."""


def text_features(text: str) -> Array:
    """The vector `[WIDTH]`, float32, of a text. Case is ignored; an empty text gives zeros."""
    return _features(text).copy()


def text_rows(texts: Any) -> Array:
    """`text_features` of each text of a sequence or an array, `[N, WIDTH]`."""
    return np.stack([_features(str(text)) for text in texts])


def is_text(value: Any) -> bool:
    """Whether a value is a text, or a sequence or array of texts."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind == "U" or (value.dtype == object and all(isinstance(each, str) for each in value.flat))
    return isinstance(value, str) or (
        isinstance(value, (tuple, list)) and bool(value) and all(isinstance(each, str) for each in value)
    )


@lru_cache(4096)
def _features(text: str) -> Array:
    numbers = np.zeros(WIDTH, np.float32)
    for feature in _features_of(text.lower()):
        code = int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "little")
        numbers[code // 2 % WIDTH] += 1 if code % 2 else -1
    numbers.flags.writeable = False
    return numbers


def _features_of(text: str) -> Iterator[str]:
    words = text.split()
    if len(words) == 1:
        yield from (f"{place} {character}" for place, character in enumerate(words[0]))
        return
    yield from words
    yield from (f"{word} {following}" for word, following in zip(["", *words], [*words, ""], strict=True) if words)
