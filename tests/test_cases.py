"""Nothing of this project is without a row in cases.py; what other packages register is theirs to test."""

from __future__ import annotations

import cases
import pytest

import agents
import envs
from policies.memories import built_in


@pytest.mark.parametrize(
    ("rows", "registered"),
    [
        (set(cases.MEMORIES), set(built_in())),
        ({row.env for row in cases.ENVIRONMENTS.values()}, set(envs.registered())),
        (set(cases.LEARNERS), set(agents.LEARNERS)),
    ],
    ids=["memories", "environments", "learners"],
)
def test_everything_has_a_row(rows: set[str], registered: set[str]) -> None:
    assert not registered - rows, "add a row to tests/cases.py: nothing has tested it"
    assert not rows - registered, "not registered"
