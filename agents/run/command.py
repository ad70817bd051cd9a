"""The entry point of `train.py`: runs the command and exits with its status."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator

from agents.common.signals import terminable
from agents.common.terminal import PLAIN_TEXT, make_console, replace_unprintable
from agents.run.config import Command
from agents.run.failures import CommandError, ErrorContext
from agents.run.folder import describe_saved
from agents.run.lessons import train_lessons
from agents.run.parsing import parse, parsed_by_first
from agents.run.training import train
from agents.scale import distributed
from agents.scale.distributed import RankLostError


def main(arguments: list[str] | None = None) -> None:
    """Trains with these arguments (default: `sys.argv`) and exits."""
    arguments = sys.argv[1:] if arguments is None else arguments
    replace_unprintable()
    config: Command | None = None
    rank_prefix = ""
    try:
        with contextlib.ExitStack() as stack:
            with ErrorContext("reading the command").user_errors():
                stack.enter_context(distributed.session())
                rank_prefix = f"rank {distributed.rank()}: " if distributed.rank() else ""
                config, checkpoint = parsed_by_first(lambda: parse(arguments))
            stack.enter_context(terminable())
            console = make_console(quiet=distributed.rank() > 0)
            if config.lessons:
                status = train_lessons(config, arguments, console)
            elif config.sweep:
                with ErrorContext("sweeping").user_errors():
                    status = sweep(config, arguments)
            else:
                status = train(config, checkpoint, console)
    except (CommandError, RankLostError) as error:
        (error if isinstance(error, CommandError) else CommandError(str(error))).show(rank_prefix)
        status = 2
    except KeyboardInterrupt:
        with _ignoring_signals():
            folder = None if config is None else config.run_dir
            saved = "no run was started" if folder is None else describe_saved(folder)
            make_console(stderr=True).print(f"{rank_prefix}stopped at once; {saved}", **PLAIN_TEXT)
        status = 130
    sys.exit(status)


@contextlib.contextmanager
def _ignoring_signals() -> Iterator[None]:
    """Context manager in which a further Ctrl-C does not interrupt the final messages."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ValueError):  # only the main thread can handle signals
            for number in (signal.SIGINT, signal.SIGTERM):
                stack.callback(signal.signal, number, signal.signal(number, signal.SIG_IGN))
        yield


def sweep(config: Command, flags: list[str]) -> int:
    """Runs a hyper-parameter sweep; returns the exit status. See docs/sweep.md.

    Raises:
        ValueError: Optuna is not installed, the space is wrong, or no trial was completed.
    """
    try:
        from agents.sweep.driver import command
    except ImportError as error:
        raise ValueError(f'--sweep needs Optuna ({error}): python -m pip install "engram-rl[sweep]"') from error
    return command(config, flags, make_console())
