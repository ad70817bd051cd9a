"""What every memory must do, as functions: for the tests of this project and of whoever wrote a memory of their own.

    from policies.testing import check_memory

    check_memory("trace", hidden_size=6, learner={"hidden_size": 64}, floor=0.5)

On the command line: `python -m policies.testing my_package.trace:Trace hidden_size=6`. With pytest, one test a check:

    @pytest.mark.parametrize("check", MEMORY_CHECKS)
    def test_trace(check):
        MEMORY_CHECKS[check](MemoryCase("trace", {"hidden_size": 6}))
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any

from policies.memories import memory_class
from policies.memories.base import Memory
from policies.testing import step
from policies.testing.case import ConformanceError, MemoryCase
from policies.testing.time import TIME_CHECKS

Check = Callable[[MemoryCase], str | None]
"""Raises `ConformanceError`; gives a reason where there was nothing to check."""


class NotBuiltError(ConformanceError):
    """There is nothing to check."""


_ONE_STEP: list[Any] = [
    step.a_step_keeps_names_shapes_and_types,
    step.the_initial_state_is_the_same_for_every_entry_and_batch_size,
    step.nothing_the_caller_holds_is_written_to,
    step.batch_entries_do_not_know_of_each_other,
    step.a_step_asks_nothing_of_the_device,
    step.panels_show_the_first_entry_and_change_with_it,
    step.gradients_reach_every_parameter,
    step.saved_and_loaded_it_is_the_same_memory,
]
MEMORY_CHECKS: dict[str, Check] = {
    **{check.__name__: check for check in _ONE_STEP},
    **TIME_CHECKS,
    "it_learns_to_recall_the_first_symbol": step.it_learns_to_recall_the_first_symbol,
}
"""Every check by its name, cheap ones first."""


def check_memory(
    memory: str | type[Memory],
    *,
    input_shape: tuple[int, ...] = (5,),
    learner: dict[str, Any] | None = None,
    updates: int = 200,
    floor: float = 0.9,
    ceiling: float = 1.0,
    verbose: bool = False,
    **options: Any,
) -> None:
    """Hold a memory to its contract.

    Args:
        memory: its registered name, or its class.
        input_shape: of one input without the batch.
        learner: its arguments in the learning check, where `options` are too small to learn with.
        updates: of the parameters in the learning check.
        floor: accuracy to reach there, where chance is 0.25; 0 for a memory that is not meant to recall.
        ceiling: accuracy not to exceed.
        verbose: print a line a check.
        **options: its own arguments; small sizes, all different, find most.

    Raises:
        ConformanceError: it breaks the contract, one line for each check that failed; or it cannot be built.
        ValueError: no memory has this name.
    """
    case = MemoryCase(memory, options, input_shape, learner or {}, updates, floor, ceiling)
    title, failed = memory if isinstance(memory, str) else memory.__name__, []
    if isinstance(memory, str):
        memory_class(memory)
    try:
        case.build()
    except Exception as error:  # whatever somebody's memory does
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise NotBuiltError(f"{title} cannot be built: {why}") from error
    for name, check in MEMORY_CHECKS.items():
        words = name.replace("_", " ")
        try:
            skipped = check(case)
            said = f"skipped, {skipped}" if skipped else "ok"
        except ConformanceError as error:
            said = str(error)
            failed.append(f"{words}: {said}")
        except Exception as error:  # whatever somebody's memory does when it is built and called
            place = traceback.extract_tb(sys.exc_info()[2])[-1]
            said = f"{type(error).__name__} at {place.filename}:{place.lineno}: {' '.join(str(error).split())}"
            failed.append(f"{words}: {said}")
        if verbose:
            print(f"{words}: {said}", flush=True)
    if failed:
        raise ConformanceError("\n  ".join([f"{title} fails {len(failed)} of {len(MEMORY_CHECKS)} checks", *failed]))


__all__ = ["MEMORY_CHECKS", "ConformanceError", "MemoryCase", "NotBuiltError", "check_memory"]
