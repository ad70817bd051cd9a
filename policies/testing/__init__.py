"""Conformance checks for memories; `agents.testing.check_memory` runs all of them. With pytest, one test per check:

@pytest.mark.parametrize("check", MEMORY_CHECKS)
def test_trace(check):
    MEMORY_CHECKS[check](MemoryCase("trace", {"hidden_size": 6}))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from policies.testing import step
from policies.testing.case import ConformanceError, MemoryCase
from policies.testing.time import TIME_CHECKS

Check = Callable[[MemoryCase], str | None]
"""A check: raises `ConformanceError`, or returns the reason why there was nothing to check."""

_ONE_STEP: list[Any] = [
    step.a_repeated_step_is_the_same,
    step.a_step_keeps_names_shapes_and_types,
    step.the_initial_state_is_the_same_for_every_entry_and_batch_size,
    step.arguments_are_not_modified,
    step.batch_entries_are_independent,
    step.a_step_does_not_synchronise,
    step.panels_show_the_first_entry_and_change_with_it,
    step.metrics_are_a_number_for_each_entry,
    step.gradients_reach_every_parameter,
    step.a_loaded_memory_is_the_same,
]
MEMORY_CHECKS: dict[str, Check] = {
    **{check.__name__: check for check in _ONE_STEP},
    **TIME_CHECKS,
    "it_learns_to_recall_the_first_symbol": step.it_learns_to_recall_the_first_symbol,
}
"""Every check by its name, cheap ones first."""
REQUIRED = "a_repeated_step_is_the_same"
"""The check that all others need: if it fails, they fail for the same reason."""


__all__ = ["MEMORY_CHECKS", "REQUIRED", "Check", "ConformanceError", "MemoryCase"]
