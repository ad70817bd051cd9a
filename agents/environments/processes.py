"""Environments in processes of their own (`--vector async`): how their errors reach the learner."""

from __future__ import annotations

import contextlib
import pickle
import signal
from collections.abc import Callable, Iterator
from typing import Any

from gymnasium.vector import AsyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState, _async_worker

from policies.observations import Layout


def frozen_texts(env: VectorEnv[Any, Any, Any]) -> bool:
    """Whether texts are in shared memory, which Gymnasium decodes once: every observation would have the first ones."""
    batch = env.unwrapped
    shared = isinstance(batch, AsyncVectorEnv) and batch.shared_memory
    return shared and bool(Layout(env.single_observation_space).texts)


class ProcessEndedError(RuntimeError):
    """A process of an environment has ended, for example for lack of memory."""


def worker(*arguments: Any) -> None:
    """Gymnasium's worker; any error of its environment can be shown and raised again by the learner."""
    queue = 5  # (index, env_fn, pipe, parent_pipe, shared_memory, error_queue, ...)
    inner: Callable[..., None] = _async_worker
    inner(*arguments[:queue], _Errors(arguments[queue]), *arguments[queue + 1 :])


class _Errors:
    """A queue of errors of which Gymnasium prints `trace % ()` and raises `kind(message)`.

    Args:
        queue: the queue that Gymnasium reads.
    """

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def put(self, found: tuple[int, type[BaseException], BaseException, str]) -> None:
        """Puts an error as (index, kind, message, trace)."""
        index, kind, error, trace = found
        text = error.args[0] if len(error.args) == 1 and isinstance(error.args[0], str) else str(error)
        if not _can_be_raised(kind, text):
            kind, text = RuntimeError, f"{kind.__name__}: {text}"
        self.queue.put((index, kind, text, trace.replace("%", "%%")))


def _can_be_raised(kind: type[BaseException], text: str) -> bool:
    """Whether another process can import `kind` and call it with a text alone."""
    try:
        return pickle.loads(pickle.dumps(kind)) is kind and text in str(kind(text))
    except Exception:
        return False


@contextlib.contextmanager
def naming_ended_processes(env: VectorEnv[Any, Any, Any]) -> Iterator[None]:
    """Context manager around a call of `env`.

    Raises:
        ProcessEndedError: one of its processes has ended, which the call notices as a closed pipe.
            The others are ended.
    """
    try:
        yield
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        batch = env.unwrapped
        if not isinstance(batch, AsyncVectorEnv) or not (ended := _ended(batch)):
            raise
        batch._state = AsyncState.DEFAULT  # or closing would wait for what the call has not received
        batch.close(terminate=True)
        raise ProcessEndedError(ended) from error


def _ended(batch: AsyncVectorEnv) -> str:
    """Which process has ended, and how; empty if none has."""
    for index, process in enumerate(batch.processes):
        process.join(0.1)
        code = process.exitcode
        if code is not None:
            how = f"with exit status {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
            return f"the process of environment {index} ended {how}"
    return ""
