"""Trains the easier lessons of a recipe, then the recipe itself."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich.console import Console

from agents.common.terminal import PLAIN_TEXT
from agents.run.config import Command
from agents.run.failures import ErrorContext
from agents.run.folder import folder_of, newest_checkpoint
from agents.run.parsing import parse, parsed_by_first
from agents.run.recipes import find_recipe, load_config
from agents.run.resuming import refuse_changes, what_changed
from agents.run.training import train
from agents.scale import distributed


def train_lessons(config: Command, arguments: list[str], console: Console) -> int:
    """Trains the lessons and then the recipe, each from the weights of the one before; returns the exit status.

    Lessons are runs in `lessons/` of the recipe's folder, and every flag applies to them too. Finished lessons are
    reused and unfinished ones resumed.
    """
    with ErrorContext("preparing the lessons").user_errors():
        lessons, places = _plan(config)

    def lesson(number: int) -> tuple[Command, Path | None] | None:
        """A lesson's configuration and the checkpoint to resume from; None if it is complete."""
        place = places[number]
        flags = [*arguments, "--run-dir", str(place)]
        if number < len(lessons):
            flags += ["--recipe", lessons[number], "--no-baseline"]
        if number:
            flags += ["--init-from", str(places[number - 1])]
        parsed = parse([*flags, "--resume", str(place)] if newest_checkpoint(place) else flags)
        if not (place / "summary.json").exists():
            return parsed
        saved = load_config(place / "config.yaml")
        refuse_changes(parsed[0], saved)
        if changed := what_changed(parsed[0], saved, training=True):
            console.print(f"{place} is complete: no effect of {changed}", **PLAIN_TEXT)
        return None

    for number, place in enumerate(places):
        console.rule(f"lesson {number + 1} of {len(places)}")
        with ErrorContext("preparing a lesson").user_errors():
            parsed = parsed_by_first(partial(lesson, number))
        if parsed is None:
            console.print(f"already complete: {place}", **PLAIN_TEXT)
        elif status := train(*parsed, console):
            hint = f"this resumes one lesson; to resume all: repeat the command with --run-dir {places[-1]}"
            console.print(hint, **PLAIN_TEXT)
            return status
    return 0


def _plan(config: Command) -> tuple[list[str], list[Path]]:
    """The lessons' recipes, easiest first, and the folders of all runs, the recipe's own last."""
    if not config.follows or config.init_from or config.resume or config.sweep:
        raise ValueError("--lessons needs a recipe with an entry follows, without --init-from, --resume and --sweep")
    folder = distributed.from_first(lambda: folder_of(config))
    lessons: list[str] = []
    easier: str | None = config.follows
    while easier:
        if easier in lessons:
            raise ValueError(f"recipe {easier} follows itself: expected a chain whose first recipe follows none")
        lessons.insert(0, easier)
        easier = load_config(find_recipe(easier)).follows
    names = [Path(lesson).stem for lesson in lessons]
    if len({*names}) < len(names):  # they would share a folder
        raise ValueError(f"the lessons are {', '.join(lessons)}: expected recipes whose file names differ")
    places = [*(folder / "lessons" / name for name in names), folder]
    return lessons, places
