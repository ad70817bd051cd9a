"""Shared by the tests of the learners."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from agents.testing.learner import Counting
from policies.memories import registry


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models of this size gain nothing from a second thread, and a busy machine punishes it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name under which the counting memory is known, for the length of one test."""
    monkeypatch.setitem(registry.memories.classes, "counter", Counting)
    return "counter"
