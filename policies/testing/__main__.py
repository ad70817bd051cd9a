"""`python -m policies.testing MEMORY NAME=VALUE ...`: the checks of a memory, a line each."""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import sys
from typing import Any

from policies.testing import ConformanceError, NotBuiltError, check_memory


def main(arguments: list[str] | None = None) -> int:
    """Check what the words name; gives the exit status."""
    parser = argparse.ArgumentParser("python -m policies.testing", description="Hold a memory to its contract.")
    parser.add_argument("memory", help="a registered name, or module:Class")
    parser.add_argument("options", nargs="*", metavar="NAME=VALUE", help="its arguments: small sizes, all different")
    parser.add_argument("--input-shape", type=int, nargs="+", default=[5], help="of one input, without the batch")
    parser.add_argument("--learner", nargs="*", default=[], metavar="NAME=VALUE", help="arguments to learn with")
    parser.add_argument("--updates", type=int, default=200, help="of the parameters in the learning check")
    parser.add_argument("--floor", type=float, default=0.9, help="accuracy to reach there; chance is 0.25")
    parser.add_argument("--ceiling", type=float, default=1.0, help="accuracy not to exceed")
    given = parser.parse_args(arguments)
    try:
        check_memory(
            named(given.memory),
            input_shape=tuple(given.input_shape),
            learner=pairs(given.learner),
            updates=given.updates,
            floor=given.floor,
            ceiling=given.ceiling,
            verbose=True,
            **pairs(given.options),
        )
    except (NotBuiltError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ConformanceError as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return 1
    return 0


def named(name: str) -> Any:
    """The class that `module:Class` names, modules of the current folder included; another name as it is.

    Raises:
        ValueError: it is not there.
    """
    module, found, attribute = name.partition(":")
    if not found:
        return name
    sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name} cannot be imported: {error}") from error
    finally:
        sys.path.pop(0)


def pairs(words: list[str]) -> dict[str, Any]:
    """`NAME=VALUE` by name; values as Python writes them, and words.

    Raises:
        ValueError: there is no `=`.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is not of the form NAME=VALUE")
        try:
            found[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            found[name] = value
    return found


if __name__ == "__main__":
    sys.exit(main())
