"""Compares steps per second with a compiled peer: PPO in JAX in the style of PureJaxRL, and gymnax's maze.

    python benchmarks/compiled_peer.py --jax-python ~/jaxenv/bin/python
    python benchmarks/compiled_peer.py --jax-python ~/jaxenv/bin/python --works ppo-gru --threads 1 2

JAX is not a dependency of this project: the peer (`benchmarks/jax_peer.py`) runs under an interpreter that has it (`pip
install jax`, and `gymnax six` for the last of the environments). First both sides play the same moves in the maze, and
must return equal observations and rewards.

Both sides have the same cores, are measured alternately iteration by iteration, and are compiled before the first that
counts. A ratio is the peer's time / ours in one repeat; the table has the median and range over the repeats. Wall time
and processor time are given; the latter is more reliable where other programs use the cores.

Workloads: `ppo-lstm`, `ppo-gru` (4 passes over 4 minibatches) and `a2c-lstm` (one pass over one batch; the peer runs
PPO with as much work), 64 environments, rollouts of 200 steps, 200 units; `env`: 16,384 mazes, random actions.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

from agents import A2C, PPO  # noqa: E402
from envs.maze import InvisibleGoalMaze  # noqa: E402
from policies.native.allocator import tune_allocator  # noqa: E402

COPIES, STEPS = 64, 200
ENV_COPIES, ENV_STEPS = 16_384, 100
Work = Literal["ppo-lstm", "ppo-gru", "a2c-lstm", "env"]
Times = dict[str, float]
"""Wall time (`wall`) and processor time (`cpu`) in seconds."""


@dataclass
class Args:
    jax_python: Path
    """An interpreter that has JAX."""
    works: tuple[Work, ...] = ("ppo-lstm", "ppo-gru", "a2c-lstm", "env")
    """Workloads, see above."""
    threads: tuple[int, ...] = (1,)
    """Numbers of threads, and cores, of each side."""
    repeats: int = 5
    """Number of repeats."""
    csv: Path | None = ROOT / "results" / "compiled_peer.csv"
    """File for the table."""


class Peer:
    """Runs `jax_peer.py` under another interpreter; requests and answers are dictionaries.

    Args:
        python: the interpreter.
        threads: with 1, XLA starts no further threads.
    """

    def __init__(self, python: Path, threads: int) -> None:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        if threads == 1:
            environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        command = [str(python), str(ROOT / "benchmarks" / "jax_peer.py")]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the reason is on its standard error
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer stopped: {self.process.stderr.read().strip().splitlines()[-1:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self.process.communicate()


def check_maze(peer: Peer, copies: int = 32) -> None:
    """Play the same moves on both sides.

    Raises:
        RuntimeError: observations or rewards differ.
    """
    env = InvisibleGoalMaze(copies)
    env.autoreset = False
    first, _ = env.reset(seed=0)
    length, cells = env.episode_length, len(env.free_cells)
    thrown, actions = (torch.randint(n, (length, copies)) for n in (cells, 4))
    throws = iter(thrown)
    env._random_cell = lambda other_than: next(throws)  # type: ignore[method-assign]
    seen, paid = [first], []
    for action in actions:
        obs, reward, *_ = env.step(action)
        seen.append(obs)
        paid.append(reward)
    answer = peer.ask(do="play", goals=env.goal.tolist(), thrown=thrown.tolist(), actions=actions.tolist())
    for ours, theirs in ((torch.stack(seen), answer["observations"]), (torch.stack(paid), answer["rewards"])):
        if not torch.allclose(ours, torch.tensor(theirs), atol=1e-6):
            raise RuntimeError("the peer's maze differs: equal moves give other observations or rewards")


def timed(run: Callable[[], object]) -> Times:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def ours(work: Work) -> Callable[[], object]:
    """An iteration of our side."""
    if work == "env":
        env = InvisibleGoalMaze(ENV_COPIES)
        env.reset(seed=0)

        def play() -> None:
            for _ in range(ENV_STEPS):
                env.step(torch.randint(4, (ENV_COPIES,)))

        return play
    algorithm, memory = work.split("-")
    learner: Any = PPO if algorithm == "ppo" else A2C
    options = {"n_epochs": 4, "n_minibatches": 4} if algorithm == "ppo" else {"use_rms_prop": False}
    # 200 units are the memories' default
    model = learner(
        "MemoryPolicy", InvisibleGoalMaze(COPIES), n_steps=STEPS, policy_kwargs={"memory": memory}, seed=0, **options
    )
    return lambda: model.learn(COPIES * STEPS, reset_num_timesteps=False)


def theirs(work: Work) -> list[tuple[str, dict[str, Any]]]:
    """Names of the peers, and the request that builds each."""
    if work == "env":
        size = {"copies": ENV_COPIES, "steps": ENV_STEPS}
        return [("gymnax MetaMaze", {"what": "gymnax", **size}), ("our maze in JAX", {"what": "maze", **size})]
    algorithm, memory = work.split("-")
    passes = 4 if algorithm == "ppo" else 1
    size = {"copies": COPIES, "steps": STEPS, "epochs": passes, "minibatches": passes}
    return [("JAX, as PureJaxRL", {"what": "ppo", "cell": memory, **size})]


def compare(args: Args, work: Work, threads: int) -> list[tuple[Any, ...]]:
    """One row for each peer."""
    torch.set_num_threads(threads)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:threads])  # a peer started from here has the same
    run = ours(work)
    steps = ENV_COPIES * ENV_STEPS if work == "env" else COPIES * STEPS
    rows = []
    for name, what in theirs(work):
        peer = Peer(args.jax_python, threads)
        check_maze(peer)
        ready = peer.ask(do="build", **what)["ready"]
        timed(run)
        turns = [(timed(run), peer.ask(do="run", times=1)) for _ in range(args.repeats)]
        peer.close()
        for clock in ("wall", "cpu"):
            mine, other = ([turn[side][clock] for turn in turns] for side in (0, 1))
            ratios = [b / a for a, b in zip(mine, other, strict=True)]
            speeds = [round(steps / statistics.median(seconds)) for seconds in (mine, other)]
            spread = [round(value, 3) for value in (statistics.median(ratios), min(ratios), max(ratios))]
            rows.append((work, *speeds, name, *spread, clock, threads, args.repeats, round(ready, 1)))
            figures = f"{speeds[0]:>12,}{speeds[1]:>12,}{spread[0]:>7.2f}  ({spread[1]:.2f}-{spread[2]:.2f})"
            print(f"{work:<9}{threads:>3}{clock:>6}{figures}  {name}", flush=True)
    os.sched_setaffinity(0, cores)
    return rows


def main(args: Args) -> None:
    """Measures the workloads, prints the table and writes it."""
    tune_allocator()
    print(f"torch {torch.__version__}\n{'work':<9}{'thr':>3}{'time':>6}{'ours/s':>12}{'theirs/s':>12}{'ratio':>7}")
    rows = [row for threads in args.threads for work in args.works for row in compare(args, work, threads)]
    if args.csv is not None:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with args.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            ratio = ("ratio", "ratio_min", "ratio_max")
            writer.writerow(
                ("work", "ours", "peer", "peer_name", *ratio, "time", "threads", "repeats", "peer_seconds_to_compile")
            )
            writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
