"""Reference scores: random actions, and the figure that a paper reports for a recipe's task."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from agents.common.plain_yaml import read_yaml_file
from agents.comparison import settings
from agents.comparison.groups import Comparison
from agents.comparison.pictures import Line
from agents.comparison.runs import RETURN, Run
from agents.evaluation import random_score
from agents.run.config import Config
from agents.run.recipes import RECIPES, load_config
from envs import registered

_EPISODES, _SEED = 256, 10_000


def with_random(comparison: Comparison) -> Comparison:
    """Adds the score of random actions to a comparison, playing them if no run has it.

    Only environments of this project are played, because others may be slow.
    """
    run = comparison.groups[0].runs[0]
    several = len({settings.task_key(other) for group in comparison.groups for other in group.runs}) > 1
    if several or comparison.random is not None or run.env not in registered() or "/" in comparison.score:
        return comparison
    fields = {name: run.config[name] for name in ("env", "env_kwargs", "wrappers", "eval_steps")}
    config = Config(**fields)
    env = config.make_env(_EPISODES)
    try:
        score = random_score(env, _EPISODES, _SEED, max_steps=config.eval_steps)
    finally:
        env.close()
    value = {RETURN: score.mean, **score.metrics}.get(comparison.score)
    return dataclasses.replace(comparison, random=value)


def paper_lines(runs: Sequence[Run], score: str) -> list[Line]:
    """The figures that papers report for the runs' tasks: the entry `paper` under `expect` in their recipes.

    A run with another environment than its recipe's, or with other arguments of it, is another task and adds no line.

    Raises:
        ValueError: such an entry is malformed.
    """
    found: dict[Line, None] = {}
    names = {run.config.get("recipe") for run in runs} - {None}
    for file in sorted(RECIPES / f"{name}.yaml" for name in names):
        expect = read_yaml_file(file, "recipe").get("expect") if file.is_file() else None
        if not isinstance(expect, dict) or "paper" not in expect:
            continue
        paper = expect["paper"]
        if not isinstance(paper, dict) or not {"score", "value", "source"} <= {*paper}:
            raise ValueError(f"{file}: expect.paper is {paper}, expected score, value and source")
        task = load_config(file)
        same = any((run.env, run.config["env_kwargs"]) == (task.env, task.env_kwargs) for run in runs)
        if paper["score"] == score and same:
            found.setdefault(Line(float(paper["value"]), f"{paper['value']:g}: {paper['source']}"))
    return list(found)
