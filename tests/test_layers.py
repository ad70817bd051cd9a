"""Modules import downwards only, and never in a circle; imports for types and inside functions count too."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = [
    ["envs.bits", "envs.checks", "envs.preview", "envs.data", "envs.rendering", "envs.tensor_env", "envs.single_env"],
    ["envs.tasks.sequence"],
    ["envs.tasks.babi", "envs.tasks.graphs", "envs.tasks.images"],
    ["envs", "envs.testing"],
    ["policies.native", "policies.plugins", "policies.memories.steps"],
    ["policies.memories.time.unroll", "policies.memories.time.recording", "policies.memories.time.scopes"],
    ["policies.memories.contract"],
    ["policies.memories.time", "policies.memories.shared", "policies.memories.checks", "policies.memories.registry"],
    ["policies.memories"],
    ["policies"],
    ["policies.testing"],
    ["agents.common", "agents.scale.distributed", "agents.scale.devices"],
    ["agents.environments", "agents.sb3.vec_env"],
    ["agents.contract", "agents.returns", "agents.rollout"],
    ["agents.metrics", "agents.sb3", "agents.scale", "agents.hyperparameters"],
    ["agents.checkpoint"],
    ["agents.updates", "agents.replaying", "agents.collect", "agents.learner"],
    ["agents.a2c", "agents.ppo", "agents.supervised", "agents.registry", "agents.agent"],
    ["agents"],
    ["agents.evaluation.scores", "agents.evaluation.breakdown", "agents.view"],
    ["agents.run.config", "agents.run.recipes"],
    ["agents.run", "agents.evaluation", "agents.comparison", "agents.sweep", "agents.testing"],
    ["train", "evaluate", "compare"],
]
"""Lowest first. A module belongs to the longest of the names it starts with, and imports from its layer or below."""

APART = ("envs", "policies")
"""Neither imports from the other."""

ALLOWED: set[tuple[str, str]] = set()
"""(importer, imported) that still break the rule. An entry that is no longer needed fails the test."""


def modules() -> dict[str, Path]:
    paths = [path for top in ("agents", "envs", "policies") for path in (ROOT / top).rglob("*.py")]
    found = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    return found | {name: ROOT / f"{name}.py" for name in ("train", "evaluate", "compare")}


def imports(name: str, source: str, package: bool, known: Iterable[str]) -> set[str]:
    """The modules of `known` that this source imports, wherever in the file it does so."""
    known, found = set(known), set()
    parent = name if package else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = parent.split(".")[: len(parent.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {full if (full := f"{base}.{alias.name}") in known else base for alias in node.names}
    return (found & known) - {name}


def arrows() -> dict[str, set[str]]:
    paths = modules()
    return {name: imports(name, path.read_text(), path.name == "__init__.py", paths) for name, path in paths.items()}


def layer(name: str, layers: list[list[str]]) -> int:
    fits = [(len(part), at) for at, parts in enumerate(layers) for part in parts if f"{name}.".startswith(f"{part}.")]
    return max(fits)[1]


def upwards(graph: Mapping[str, set[str]], layers: list[list[str]]) -> set[tuple[str, str]]:
    return {(a, b) for a, ends in graph.items() for b in ends if layer(a, layers) < layer(b, layers)}


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """One circle, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def without(graph: Mapping[str, set[str]], left_out: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    left_out = set(left_out)
    return {a: {b for b in ends if (a, b) not in left_out} for a, ends in graph.items()}


def test_no_import_points_upwards() -> None:
    assert upwards(arrows(), LAYERS) - ALLOWED == set()


def test_no_circle_between_modules() -> None:
    assert not circle(without(arrows(), ALLOWED))


def test_environments_and_policies_do_not_know_each_other() -> None:
    for a, ends in arrows().items():
        for b in ends:
            tops = (a.partition(".")[0], b.partition(".")[0])
            assert tops[0] == tops[1] or tops[0] not in APART, f"{a} imports {b}"


@pytest.mark.parametrize("entry", sorted(ALLOWED))
def test_every_exception_is_still_needed(entry: tuple[str, str]) -> None:
    a, b = entry
    graph = arrows()
    assert b in graph[a], f"{a} does not import {b} any more: take it off the list"
    kept = without(graph, ALLOWED - {entry})
    assert entry in upwards(graph, LAYERS) or circle(kept), f"{a} may import {b}: take it off the list"


def test_the_walk_sees_every_kind_of_import() -> None:
    source = """
from typing import TYPE_CHECKING
import a.b.c as other
from . import near
from .near import thing
from ..up import thing
if TYPE_CHECKING:
    from a.types import Only
def late():
    from a.b import lazy
"""
    known = ["a.b.c", "a.b.near", "a.up", "a.types", "a.b.lazy", "a.b.self"]
    assert imports("a.b.self", source, False, known) == {"a.b.c", "a.b.near", "a.up", "a.types", "a.b.lazy"}


def test_circles_and_upward_arrows_are_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert not circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})
    assert upwards({"low": {"high.part"}, "high.part": set()}, [["low"], ["high"]]) == {("low", "high.part")}
