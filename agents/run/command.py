"""The entry: words in, exit status out."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape

from agents import CheckpointError, NonFiniteError, distributed
from agents.distributed import RankLostError
from agents.run.config import Command
from agents.run.lessons import course
from agents.run.parsing import parse
from agents.run.training import train


def main(arguments: list[str] | None = None) -> None:
    """Train as the words say (default: those of the process), and exit."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        with distributed.session():
            config, checkpoint = distributed.from_first(lambda: parse(words))
            console = Console(quiet=distributed.rank() > 0)
            if config.lessons:
                status = course(config, words, console)
            elif config.sweep:
                status = sweep(config, words, console)
            else:
                status = train(config, checkpoint, console)
    except (ValueError, CheckpointError, NonFiniteError, RankLostError) as error:
        who = f"rank {distributed.rank()}: " if distributed.rank() else ""
        Console(stderr=True).print(f"{who}[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        status = 2
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped at once; the last checkpoint stands")
        status = 130
    sys.exit(status)


def sweep(config: Command, flags: list[str], console: Console) -> int:
    """Many trainings, to find good hyper-parameters; gives the exit status. See docs/sweep.md."""
    try:
        from agents.sweep.driver import command
    except ImportError as error:
        raise ValueError(f'--sweep needs Optuna ({error}): python -m pip install "engram-rl[sweep]"') from error
    return command(config, flags, console)
