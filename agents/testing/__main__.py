"""`python -m agents.testing memory|env|learner WHAT NAME=VALUE ...`: conformance checks, one line each."""

from __future__ import annotations

import argparse
import re
import sys

from agents.environments import import_object
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
        if ":" in what and not re.search(r"-v\d+$", what):  # not the id of an environment
            what = import_object(what, "the class")
        check(what, verbose=True, **pairs(given.pop("options")), **given)
    except (NotBuiltError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ConformanceError as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m agents.testing", description="Check a memory, environment or learner against its contract."
    )
    kinds = parser.add_subparsers(required=True, metavar="memory|env|learner")
    memory, env, learner = (kinds.add_parser(name) for name in ("memory", "env", "learner"))
    for kind, check, what in (
        (memory, check_memory, "a registered name, or module:Class"),
        (env, check_env, "a registered id, with its module before a colon, or module:Class"),
        (learner, check_learner, "a name as --algo takes it, or module:Class"),
    ):
        kind.set_defaults(check=check)
        kind.add_argument("what", help=what)
        kind.add_argument("options", nargs="*", metavar="NAME=VALUE", help="arguments of the class")
    memory.add_argument(
        "--input-shape", type=int, nargs="+", default=[5], help="shape of one input, without the batch dimension"
    )
    memory.add_argument(
        "--learner", nargs="*", default=[], metavar="NAME=VALUE", help="the memory's arguments in the learning check"
    )
    memory.add_argument("--updates", type=int, default=200, help="parameter updates in the learning check")
    memory.add_argument(
        "--floor", type=float, default=0.9, help="accuracy to reach in the learning check; chance is 0.25"
    )
    memory.add_argument("--ceiling", type=float, default=1.0, help="accuracy not to exceed in the learning check")
    env.add_argument("--steps", type=int, default=40, help="steps to play; should cover several episodes")
    learner.add_argument("--floor", type=float, default=0.6, help="mean reward to reach; chance is 0.25")
    learner.add_argument("--steps", type=int, default=8192, help="environment steps in the learning check")
    return parser


if __name__ == "__main__":
    sys.exit(main())
