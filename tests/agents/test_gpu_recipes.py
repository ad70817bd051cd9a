"""Recipes for a GPU: as they stand, in small sizes, on the pretend device; stopped and resumed."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from pretend_cuda import PretendCuda

import agents
from agents.run.command import main
from agents.run.parsing import parse
from agents.run.recipes import base_config

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "babi-gpu": "--n-steps 3 --num-envs 2 --env-kwargs source=generated stories=5 questions=1 --memory-kwargs slots=8",
    "mapping-25-gpu": "--n-steps 2 --num-envs 2 --env-kwargs horizon=2",
    "maze-gpu": "--n-steps 4 --num-envs 3 --env-kwargs episode_length=4 --memory-kwargs hidden_size=8",
}
"""What makes each of them small."""
MOST_GRAPHS = 8
"""Rollouts may begin at so many different steps of an episode, or there are no graphs at all."""


def test_every_recipe_for_a_gpu_is_tried() -> None:
    assert {file.stem for file in (ROOT / "recipes").glob("*-gpu.yaml")} == set(SMALL)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_recipe_fits_its_graphs(name: str) -> None:
    recipe = base_config(name, None, None, None)
    assert (recipe.device, recipe.fast) == ("cuda", "graph")
    kwargs = {**recipe.env_kwargs, **({"source": "generated"} if name == "babi-gpu" else {})}
    env = agents.make_env(recipe.env, 1, "cpu", **kwargs)
    if env.horizon is not None:
        assert env.horizon % recipe.learner.n_steps == 0
        assert env.horizon // recipe.learner.n_steps <= MOST_GRAPHS


def trained(words: str, status: int) -> int:
    """How many graphs were replayed by a command that ends with `status`."""
    with PretendCuda() as gpu, pytest.raises(SystemExit) as end:
        main([*words.split(), "--no-progress"])
    assert end.value.code == status
    assert not gpu.faults
    return gpu.replays


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_recipe_is_trained_in_graphs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three iterations: eager, captured, replayed. For the main job in two slices, as a run of a few minutes a day."""
    done: list[int] = []
    dump = agents.MemoryOnPolicyAlgorithm.dump_logs

    def stop_in_time(self: agents.MemoryOnPolicyAlgorithm, iteration: int = 0) -> None:
        dump(self, iteration)
        done.append(self.num_timesteps)
        self.stop_requested = len(done) == 3

    monkeypatch.setattr(agents.MemoryOnPolicyAlgorithm, "dump_logs", stop_in_time)
    rest = f"--eval-episodes 0 --no-baseline --panels-every 0 --run-dir {tmp_path}"
    assert trained(f"--recipe {name} {SMALL[name]} --total-timesteps 72 {rest}", 130)
    if name == "maze-gpu":
        assert trained(f"--resume {tmp_path}", 0)
        assert done == [12, 24, 36, 48, 60, 72]


def test_the_script_for_a_gpu_runs_what_there_is(tmp_path: Path) -> None:
    """Its files exist, its trainings fit their graphs, and the lines of a part fit the time of the part."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "gpu_check.py"))
    for small in (False, True):
        lines = list(script["lines"](script["Args"](out=tmp_path, small=small)))
        assert all((ROOT / word).exists() for line in lines for word in line.words if word.endswith(".py"))
        for words in (line.words for line in lines if line.words[0] == "train.py"):
            config, _ = parse(words[1:])
            horizon = config.make_env(1).horizon or 0
            assert horizon % config.learner.n_steps == 0
            assert horizon // config.learner.n_steps <= MOST_GRAPHS
        for part, minutes in script["MINUTES"].items():
            assert sum(line.seconds for line in lines if line.part == part) <= 60 * minutes
