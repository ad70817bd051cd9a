"""Space files: what they say, and how they are told to be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from sweep_spaces import space_file

import train
from agents.run.parsing import parse
from agents.sweep.check import check
from agents.sweep.space_file import load_space

ROOT = Path(__file__).resolve().parent.parent.parent


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        train.main(list(words))
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"spce": {}}, "spce: unknown; known are name, recipe, fixed, space"),
        ({"space": {}}, "space: expected at least one"),
        (
            {"space": {"learning_rat": {"low": 0, "high": 1}}},
            "space.learning_rat: unknown; known are env, ",
        ),
        ({"space": {"memory_kwarg.heads": [1]}}, "space.memory_kwarg.heads: unknown"),
        ({"space": {"memory_kwargs": [1]}}, "space.memory_kwargs: name one argument"),
        ({"space": {"seed": [1]}}, "space.seed: cannot be searched: set seeds"),
        ({"space": {"total_timesteps": [1]}}, "space.total_timesteps: cannot be searched: pruning"),
        ({"space": {"gamma": 0.9}}, "space.gamma: is 0.9, expected {low, high"),
        ({"space": {"gamma": {"min": 0.9}}}, "space.gamma.min: unknown; known are low, high"),
        ({"space": {"gamma": {"low": 0.9}}}, "space.gamma: high is missing"),
        ({"space": {"gamma": {"low": 0.9, "high": 0.8}}}, "low is 0.9 and high is 0.8"),
        ({"space": {"gamma": {"low": 0, "high": 1, "log": True}}}, "log needs low above 0"),
        ({"space": {"gamma": {"low": 0, "high": 1, "step": 2}}}, "space.gamma.step: is 2"),
        (
            {"space": {"gamma": {"low": "small", "high": 1}}},
            "space.gamma.low is 'small', expected a whole number or a number",
        ),
        ({"space": {"n_steps": {"low": 0.5, "high": 8}}}, "space.n_steps: is a whole number, but low"),
        ({"space": {"anneal": {"low": 0, "high": 1}}}, "space.anneal: is not a number; give choices"),
        ({"space": {"gamma": {"choices": [0.9], "low": 0}}}, "space.gamma.low: unknown; known are choices, when"),
        ({"space": {"gamma": {"choices": []}}}, "space.gamma.choices: is [], expected at least one"),
        ({"space": {"gamma": [0.9, 0.9]}}, "expected at least one, and each once"),
        ({"space": {"n_steps": [8, "many"]}}, "space.n_steps.choices is 'many', expected a whole number of at least 0"),
        ({"space": {"gamma": {"low": 0.5, "high": 2}}}, "space.gamma.high is 2, expected a number from 0 to 1"),
        ({"space": {"env_kwargs.sizes": [[1, 2]]}}, "space.env_kwargs.sizes.choices is [[1, 2]], expected a list"),
        (
            {"space": {"gamma": {"low": 0, "high": 1, "when": {"algo": "ppo"}}}},
            "space.gamma.when.algo: expected a",
        ),
        (
            {"space": {"algo": ["ppo", "a2c"], "gamma": {"low": 0, "high": 1, "when": {"algo": "dqn"}}}},
            "space.gamma.when.algo: dqn is not one of its choices",
        ),
        ({"fixed": {"gama": 1}}, "fixed.gama: unknown; known are env"),
        ({"fixed": {"seed": 1}}, "fixed.seed: cannot be set in a sweep: set seeds"),
        ({"fixed": {"gamma": "high"}}, "fixed.gamma is 'high', expected a number from 0 to 1"),
        ({"fixed": {"learning_rate": 0.1}}, "fixed.learning_rate: is also in the space"),
        ({"seeds": 3}, "seeds is 3, expected a list"),
        ({"seeds": [1, 1]}, "seeds: is [1, 1], expected at least one, and each once"),
        ({"trials": 0}, "trials is 0"),
        ({"name": "a/b"}, "name: is 'a/b'"),
        ({"objective": "reward"}, "objective: is reward, expected return, task/NAME"),
        ({"objective": "task/errors"}, "direction: is missing, expected maximize or minimize"),
        ({"direction": "up"}, "direction is 'up', expected maximize or minimize"),
        ({"sampler": {"seed": 1}}, "sampler: is {'seed': 1}, expected a name"),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)
def test_wrong_entries_are_named(tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"space\.yaml: ") as error:
        load_space(str(space_file(tmp_path, **entries)))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("entries", "flags", "message"),
    [
        (
            {"space": {"memory_kwargs.heads": [1, 2]}},
            [],
            "space.memory_kwargs.heads: gru has no such argument; known are",
        ),
        ({"space": {"env_kwargs.lenght": [1, 2]}}, [], "env_kwargs.lenght: Engram/RepeatFirst-v0 has no such argument"),
        ({"space": {"n_epochs": [1, 2]}}, ["--algo", "a2c"], "space.n_epochs: has no effect on a2c"),
        ({"space": {"memory": ["gru", "lstn"]}, "fixed": {}}, [], "space.memory: no memory is called 'lstn'"),
        ({"space": {"memory_kwargs.hidden_size": {"low": 1.5, "high": 9}}}, [], "hidden_size: is a whole number"),
        (
            {"objective": "task/f1", "direction": "maximize"},
            [],
            "task/f1 is not a score of the environment; known are",
        ),
        (
            {},
            ["--learning-rate", "0.1"],
            "space.learning_rate: is searched, but the command line also has --",
        ),
        ({}, ["--learning_rate=0.1"], "space.learning_rate: is searched"),
        ({"space": {"anneal": [True, False]}}, ["--no-anneal"], "space.anneal: is searched, but the command line also"),
        (
            {"space": {"memory_kwargs.hidden_size": [16, 32]}},
            ["--memory-kwargs", "hidden_size=7"],
            "space.memory_kwargs.hidden_size: is searched, but the command line also has --memory-kwargs hidden_size",
        ),
        ({}, ["--eval-episodes", "0"], "objective: return is a score of new episodes, expected eval_episodes of at"),
        ({}, ["--seed", "1"], "seeds: the command line has --seed"),
        ({"sampler": "annealing"}, [], "sampler: annealing is unknown; known are tpe, random, grid"),
        ({"sampler": "grid"}, [], "sampler: a grid needs a step or choices for learning_rate"),
        (
            {"pruner": {"name": "median", "warmup": 1}},
            [],
            "pruner.warmup: median has no such option; known are n_st",
        ),
        ({"space": {"algo": ["ppo", "dqn"]}}, [], "no learner is called 'dqn'; known"),
        ({}, ["--storage", "nosql://here"], "cannot open the storage nosql"),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)
def test_what_the_parts_do_not_know_is_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], entries: dict[str, Any], flags: list[str], message: str
) -> None:
    file = space_file(tmp_path, **entries)
    assert command("--sweep", str(file), "--run-dir", str(tmp_path / "sweep"), *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_flags_go_before_fixed_values_and_these_before_the_recipe(tmp_path: Path) -> None:
    entries = {"recipe": "maze-ppo", "fixed": {"gamma": 0.5, "vf_coef": 0.25, "memory_kwargs": {"heads": 2}}}
    file = space_file(tmp_path, **entries)
    config, _ = parse(["--sweep", str(file), "--gamma", "0.75"])
    recipe = yaml.safe_load((ROOT / "recipes" / "maze-ppo.yaml").read_text(encoding="utf-8"))
    learner = config.learner
    assert (learner.gamma, learner.vf_coef, learner.reward_scale) == (0.75, 0.25, recipe["reward_scale"])
    assert config.memory_kwargs == recipe["memory_kwargs"] | {"heads": 2}
    assert not config.baseline
    other, _ = parse(["--sweep", str(file), "--memory", "gru"])  # the arguments were for another memory
    assert other.memory_kwargs == {}


def test_each_learner_of_a_search_has_its_own_defaults(tmp_path: Path) -> None:
    searched = {"algo": ["ppo", "a2c"], "gamma": {"low": 0.5, "high": 1}}
    fixed = {"env": "Engram/RepeatFirst-v0", "memory": "gru", "total_timesteps": 64, "vf_coef": 0.125}
    file = str(space_file(tmp_path, space=searched, fixed=fixed))
    for flags in ([], ["--learning-rate", "1e-3"]):  # PPO's default, now set for both
        config, _ = parse(["--sweep", file, *flags])
        space = check(load_space(file), config, ["--sweep", file, *flags])
        for algo in ("ppo", "a2c"):
            trial = space.configure(config, {"algo": algo, "gamma": 0.75})
            alone, _ = parse(["--env", "Engram/RepeatFirst-v0", "--memory", "gru", "--algo", algo, *flags])
            wanted = vars(alone.learner) | {"gamma": 0.75, "vf_coef": 0.125}
            assert vars(trial.learner) == wanted
            assert (trial.num_envs, trial.anneal) == (alone.num_envs, alone.anneal)


def test_parameters_are_drawn_where_they_apply_and_reach_the_configuration(tmp_path: Path) -> None:
    searched = {
        "memory": ["gru", "mnm-p"],
        "memory_kwargs.heads": {"low": 1, "high": 3, "when": {"memory": "mnm-p"}},
        "gamma": {"low": 0, "high": 1},  # whole bounds of a real number
        "learning_rate": {"low": "1e-4", "high": "1e-2", "log": True},  # YAML takes these for text
    }
    space = load_space(str(space_file(tmp_path, space=searched, fixed={})))
    values = {"memory": "mnm-p", "memory_kwargs.heads": 3, "gamma": 0.5, "learning_rate": 0.001}
    assert space.suggest(optuna.trial.FixedTrial(values)) == values
    config = space.configure(space.defaults({}), values)
    assert (config.memory, config.memory_kwargs, config.learner.gamma) == ("mnm-p", {"heads": 3}, 0.5)
    values["memory"] = "gru"
    assert set(space.suggest(optuna.trial.FixedTrial(values))) == {"memory", "gamma", "learning_rate"}
    assert {one.name: one.kind for one in space.parameters}["gamma"] is float
    assert space.size() is None
