"""`python -m agents.testing memory|env|learner WHAT NAME=VALUE ...`: the checks of one thing, a line each."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from typing import Any

from agents.run.config import pairs
from agents.testing import ConformanceError, NotBuiltError, check_env, check_learner, check_memory


def main(arguments: list[str] | None = None) -> int:
    """Runs the checks; returns 0 if all pass, 1 if a check fails, 2 if the object cannot be built."""
    given = vars(_parser().parse_args(arguments))
    check, what = given.pop("check"), given.pop("what")
    try:
        if "learner" in given:
            given["learner"] = pairs(given["learner"])
        if "input_shape" in given:
            given["input_shape"] = tuple(given["input_shape"])
        check(named(what), verbose=True, **pairs(given.pop("options")), **given)
    except (NotBuiltError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ConformanceError as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m agents.testing", description="Hold something to its contract.")
    kinds = parser.add_subparsers(required=True, metavar="memory|env|learner")
    memory, env, learner = (kinds.add_parser(name) for name in ("memory", "env", "learner"))
    for kind, check, what in (
        (memory, check_memory, "a registered name, or module:Class"),
        (env, check_env, "a registered id, with its module before a colon, or module:Class"),
        (learner, check_learner, "a name as --algo takes it, or module:Class"),
    ):
        kind.set_defaults(check=check)
        kind.add_argument("what", help=what)
        kind.add_argument("options", nargs="*", metavar="NAME=VALUE", help="its own arguments")
    memory.add_argument("--input-shape", type=int, nargs="+", default=[5], help="of one input, without the batch")
    memory.add_argument("--learner", nargs="*", default=[], metavar="NAME=VALUE", help="arguments to learn with")
    memory.add_argument("--updates", type=int, default=200, help="of the parameters in the learning check")
    memory.add_argument("--floor", type=float, default=0.9, help="accuracy to reach there; chance is 0.25")
    memory.add_argument("--ceiling", type=float, default=1.0, help="accuracy not to exceed")
    env.add_argument("--steps", type=int, default=40, help="that are played; several episodes should fit")
    learner.add_argument("--floor", type=float, default=0.6, help="mean reward to reach; chance is 0.25")
    learner.add_argument("--steps", type=int, default=8192, help="of the environment in the learning check")
    return parser


def named(name: str) -> Any:
    """The class that `module:Class` names; any other name is returned unchanged.

    Raises:
        ValueError: it does not exist.
    """
    module, found, attribute = name.partition(":")
    if not found or re.search(r"-v\d+$", name):
        return name
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name} cannot be imported: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
