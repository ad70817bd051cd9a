"""Conformance checks for `TensorEnv`s; `agents.testing.check_env` runs all of them. With pytest, one test per check:

@pytest.mark.parametrize("check", ENV_CHECKS)
def test_recall(check):
    ENV_CHECKS[check](EnvCase("Mine/Recall-v0", {"length": 4}))
"""

from __future__ import annotations

from collections.abc import Callable

from envs.testing import checks
from envs.testing.case import ConformanceError, EnvCase

Check = Callable[[EnvCase], str | None]
"""A check: raises `ConformanceError`, or returns the reason why there was nothing to check."""

_ALL: tuple[Check, ...] = (
    checks.it_keeps_the_contract,
    checks.it_passes_the_checkers_of_gymnasium_and_sb3,
    checks.a_seed_fixes_everything,
    checks.declared_ignored_actions_are_ignored,
    checks.a_preview_is_the_steps_it_stands_for,
    checks.state_dict_resumes_exactly,
    checks.state_dict_before_the_first_reset_and_with_wrong_entries,
    checks.final_obs_is_the_last_observation,
    checks.outputs_are_not_shared,
    checks.single_env_equals_the_batch,
    checks.frames_and_texts_show_what_happens,
    checks.a_window_follows_every_step,
    checks.a_step_does_not_synchronise,
)
ENV_CHECKS: dict[str, Check] = {check.__name__: check for check in _ALL}
"""Every check by its name."""

__all__ = ["ENV_CHECKS", "Check", "ConformanceError", "EnvCase"]
