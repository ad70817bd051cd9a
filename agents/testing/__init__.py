"""Conformance checks for memories, environments and learners, also for those of other packages.

    from agents.testing import check_env, check_learner, check_memory

    check_memory("trace", hidden_size=6, learner={"hidden_size": 64}, floor=0.5)
    check_env("Mine/Recall-v0", length=4)
    check_learner(MyLearner, n_epochs=2)

As a command: `python -m agents.testing memory my_package.trace:Trace hidden_size=6`. The checks are in
`policies.testing`, `envs.testing` and `agents.testing.learner`; this project's tests run the same ones.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from agents import learner_class
from agents.environments.make import batched_class
from agents.environments.named import find_env
from agents.learner import MemoryOnPolicyAlgorithm
from agents.testing.host_env import HOST_ENV_CHECKS, HostEnvCase
from agents.testing.learner import LEARNER_CHECKS, Echo, LearnerCase
from envs.checks import TensorEnvError
from envs.tensor_env import TensorEnv
from envs.testing import ENV_CHECKS, EnvCase
from policies.memories import Memory, memory_class
from policies.memories import checks as memory_checks
from policies.memories.checks import try_step
from policies.testing import MEMORY_CHECKS, REQUIRED, MemoryCase


class ConformanceError(AssertionError):
    """The contract is broken; one line per failed check."""


class NotBuiltError(ConformanceError):
    """The object to check could not be built."""


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
    """Checks a memory against its contract.

    Args:
        memory: its registered name, or its class.
        input_shape: shape of one input without the batch.
        learner: the memory's arguments in the learning check, if `options` are too small to learn with.
        updates: parameter updates in the learning check.
        floor: accuracy to reach there (chance is 0.25); 0 for a memory that need not recall.
        ceiling: accuracy not to exceed.
        verbose: print one line per check.
        **options: the memory's arguments. Small sizes that all differ find most faults.

    Raises:
        ConformanceError: it breaks the contract.
        ValueError: no memory has this name.
    """
    if isinstance(memory, str):
        memory_class(memory)
    case = MemoryCase(memory, options, input_shape, learner or {}, updates, floor, ceiling)

    def try_types() -> None:
        for dtype in (torch.float32, torch.float64):
            try_step(case.build(dtype), case.input_size)

    _run(_title(memory), try_types, MEMORY_CHECKS, case, verbose)


def check_env(
    env: str | type[TensorEnv] | type[gym.Env[Any, Any]], *, steps: int = 40, verbose: bool = False, **options: Any
) -> None:
    """Checks an environment against its contract: a `TensorEnv`, or an ordinary Gymnasium environment.

    Frames and texts of a `TensorEnv` are checked if it has any. An ordinary environment must pass Gymnasium's checker
    and respect its spaces and seed; an agent is trained in it, saved, loaded, and plays it.

    Args:
        env: its registered id (`module:Id-v0` imports `module` first), or its class.
        steps: steps to play; several episodes should fit.
        verbose: print one line per check.
        **options: the environment's arguments; choose ones that make episodes short.

    Raises:
        ConformanceError: it breaks the contract, or cannot be built.
        ValueError: no environment has this id.
        TypeError: `env` is an environment.
    """
    if not isinstance(env, (str, type)):
        raise TypeError(f"env is an object of {type(env).__name__}, expected its id or its class, with its arguments")
    if batched_class(find_env(env)) is None if isinstance(env, str) else not issubclass(env, TensorEnv):
        host_case = HostEnvCase(env, options, steps)  # type: ignore[arg-type]
        _run(_title(env), host_case.batch, HOST_ENV_CHECKS, host_case, verbose)
        return
    case = EnvCase(env, options, steps)  # type: ignore[arg-type]
    _run(_title(env), case.make, ENV_CHECKS, case, verbose)


def check_learner(
    learner: str | type[MemoryOnPolicyAlgorithm],
    *,
    floor: float = 0.6,
    steps: int = 8192,
    verbose: bool = False,
    **options: Any,
) -> None:
    """Checks a learner against its contract.

    Args:
        learner: its name, as `--algo` takes it, or a subclass of `MemoryOnPolicyAlgorithm`.
        floor: mean reward to reach in the learning check, where a random agent gets 0.25 and the best 1.
        steps: environment steps in the learning check.
        verbose: print one line per check.
        **options: the learner's arguments.

    Raises:
        ConformanceError: it breaks the contract, or cannot be built.
        ValueError: no learner has this name.
    """
    if isinstance(learner, str):
        title, learner = learner, learner_class(learner)
    else:
        title = learner.__name__
    case = LearnerCase(learner, options, floor, steps)
    _run(title, lambda: case.build(Echo()), LEARNER_CHECKS, case, verbose)


def _title(what: Any) -> str:
    return what if isinstance(what, str) else what.__name__


def _run(
    title: str, build: Callable[[], Any], checks: Mapping[str, Callable[[Any], str | None]], case: Any, verbose: bool
) -> None:
    try:
        build()
    except AssertionError as error:
        raise NotBuiltError(str(error)) from error
    except Exception as error:  # third-party code may raise anything
        ours = str(error) if _raised_by_checks(error) else f"{title} cannot be built: {_line(error)}"
        raise NotBuiltError(ours) from error
    failed = []
    for name, check in checks.items():
        words = name.replace("_", " ")
        try:
            skipped = check(case)
            result = f"skipped, {skipped}" if skipped else "ok"
        except TensorEnvError as error:  # of the first step, so of every check
            raise ConformanceError(str(error)) from error
        except AssertionError as error:
            result = " ".join(str(error).split())
            failed.append(f"{words}: {result}")
        except Exception as error:
            place = traceback.extract_tb(sys.exc_info()[2])[-1]
            result = f"{_line(error)} ({place.filename}:{place.lineno})"
            failed.append(f"{words}: {result}")
        if verbose:
            print(f"{words}: {result}", flush=True)
        if failed and name == REQUIRED:
            raise ConformanceError(f"{title} fails a check that all others need\n  {failed[0]}")
    if failed:
        raise ConformanceError("\n  ".join([f"{title} fails {len(failed)} of {len(checks)} checks", *failed]))


def _raised_by_checks(error: Exception) -> bool:
    """Whether the error is the message of a check that runs when a memory is built."""
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename) == Path(memory_checks.__file__)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


__all__ = ["ConformanceError", "NotBuiltError", "check_env", "check_learner", "check_memory"]
