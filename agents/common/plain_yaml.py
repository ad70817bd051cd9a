"""Reads and writes YAML as plain values: `1e-3` is a number, `off` is text. Errors are one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values: `1e-3` is a number, `off` is text, 010 is ten. No aliases, no tags, no key twice."""

    yaml_implicit_resolvers = {}  # noqa: RUF012

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not supported", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if isinstance(key, (dict, list)) or key in keys[:index]:
                problem = f"the entry {key!r} is given twice" if key in keys[:index] else "expected a name"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.value[index][0].start_mark)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        text = self.construct_scalar(node)
        return int(text, 16 if "x" in text else 10)  # 010 is ten


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", None),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first or list("-+0123456789.")
    )
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


class _Dumper(yaml.SafeDumper):
    """Writes text that means the same in YAML 1.1 and here, without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _first, _found in _Loader.yaml_implicit_resolvers.items():
    for _tag, _pattern in _found:
        _Dumper.add_implicit_resolver(_tag, _pattern, [_first])


def write_yaml(data: Any) -> str:
    """Plain values as YAML text, in their order."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def read_yaml(text: str, where: str) -> Any:
    """Parses YAML into plain values: no aliases, no tags, no repeated keys.

    Args:
        text: of the file.
        where: its name, for messages.

    Raises:
        ValueError: it is not YAML, or uses an unsupported feature; one line.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" line {mark.line + 1}:" if mark and "\n" in text else ""
        raise ValueError(f"{where}:{place} {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        why = "too deeply nested" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ValueError(f"{where} is not YAML: {why}") from error


def read_yaml_file(file: Path, kind: str) -> Any:
    """Reads a YAML file into plain values; `kind` names the file's role in messages.

    Raises:
        ValueError: it cannot be read, or is not YAML.
    """
    try:
        if file.stat().st_size > 1 << 20 or not file.is_file():
            raise ValueError(f"{file} is not a {kind}: expected a file of at most 1 MiB")
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not a {kind}: expected text in UTF-8 ({error.reason} at byte {error.start})"
        ) from error
    except OSError as error:
        raise ValueError(f"cannot read the {kind} {file}: {error.strerror or error}") from error
    return read_yaml(text, str(file))
