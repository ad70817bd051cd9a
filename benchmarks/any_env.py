"""Third-party tasks with default settings, compared with sb3-contrib's RecurrentPPO with its defaults.

    python benchmarks/any_env.py --tasks cartpole hidden-cartpole --agents ppo:gru ppo:lstm sb3 --seeds 0 1 2
    python benchmarks/any_env.py --tasks popgym-repeat-first --agents ppo:gru ppo:identity random --results popgym.csv

An agent is `ALGO:MEMORY`, trained by `train.py --env ... --memory ... --algo ...` with no further hyper-parameter (on
POPGym with the sizes of `memory_sizes.py`). `random` is random actions, `sb3` is `RecurrentPPO("MlpLstmPolicy", env)`
with its Python loop over time as one call of the LSTM, and `sb3-a2c` is SB3's `A2C("MlpPolicy", env)`, which has no
memory. All have as many steps in 8 environments, and are scored by SB3's `evaluate_policy` on new episodes, with
sampled and with greedy actions. A training is one row of `results/any-env.csv`, with its commit; trainings that have a
row are skipped. The table of all rows is printed at the end, and one with a line for each agent.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = [
    *("task", "agent", "seed", "steps", "mean_return", "std_of_episodes", "success", "cpu_s", "greedy_return"),
    "commit",
]
EPISODES = 64


class Task(NamedTuple):
    env: str
    steps: int
    target: str


TASKS = {
    "cartpole": Task("CartPole-v1", 100_000, "≥ 475"),
    "hidden-cartpole": Task("benchmarks.foreign_tasks:HiddenVelocityCartPole-v1", 100_000, "≥ 475"),
    "acrobot": Task("Acrobot-v1", 100_000, "≥ −110"),
    "pendulum-150k": Task("Pendulum-v1", 150_000, "≥ −300"),
    "pendulum": Task("Pendulum-v1", 300_000, "≥ −300"),
    "lunar-lander": Task("LunarLander-v3", 500_000, "> 200"),
    "minigrid-memory": Task("minigrid:MiniGrid-MemoryS7-v0", 500_000, "success ≥ 0.95"),
    "flat-minigrid-memory": Task("benchmarks.foreign_tasks:FlatMemoryS7-v0", 500_000, "success ≥ 0.95"),
}
POPGYM = {
    f"popgym-{name}": Task(f"popgym:popgym-{short}Easy-v0", 150_000, "≤ 1")
    for name, short in {
        "repeat-previous": "RepeatPrevious",
        "repeat-first": "RepeatFirst",
        "autoencode": "Autoencode",
        "count-recall": "CountRecall",
        "concentration": "Concentration",
    }.items()
}


def whole_sequences(
    features: Tensor, states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: nn.LSTM
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """sb3-contrib's `_process_sequence` by one call of the LSTM, where it loops over time in Python.

    Its buffer cuts sequences at episode starts, so a state is reset at a sequence's first step or never. The results
    are the same but for rounding, and a training takes 4 to 7 times less processor time.
    """
    sequences = states[0].shape[1]
    starts = episode_starts.reshape(sequences, -1)
    if starts[:, 1:].any():
        raise ValueError("an episode starts inside a sequence: use sb3-contrib's own _process_sequence")
    keep = (1 - starts[:, 0]).view(1, sequences, 1)
    time_first = features.reshape(sequences, -1, lstm.input_size).transpose(0, 1)
    outputs, states = lstm(time_first, (keep * states[0], keep * states[1]))
    return outputs.transpose(0, 1).flatten(0, 1), states


def recurrent_ppo(env: Any, **kwargs: Any) -> Any:
    from sb3_contrib import RecurrentPPO

    model = RecurrentPPO("MlpLstmPolicy", env, **kwargs)
    model.policy._process_sequence = whole_sequences  # type: ignore[method-assign]
    return model


def plain_a2c(env: Any, **kwargs: Any) -> Any:
    from stable_baselines3 import A2C

    return A2C("MlpPolicy", env, **kwargs)


PEERS = {"sb3": recurrent_ppo, "sb3-a2c": plain_a2c}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices={**TASKS, **POPGYM}, default=list(TASKS))
    parser.add_argument("--agents", nargs="+", default=["ppo:gru", "ppo:lstm", "a2c:gru", "sb3"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--steps", type=int, help="of every training, in place of the task's; give them a --results of their own"
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel trainings, one thread each")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "any-env.csv")
    parser.add_argument("--one", action="store_true", help="the first of each in this process; prints its row")
    return parser.parse_args()


def one(name: str, agent: str, seed: int, steps: int) -> list[str]:
    """Trains an agent for `steps`, scores it, and returns its row."""
    import torch
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    from agents import TensorVecEnv, make_env
    from agents.evaluation import random_score
    from benchmarks.memory_sizes import SIZES

    torch.set_num_threads(1)
    task = (TASKS | POPGYM)[name]
    module, _, short = task.env.rpartition(":")
    if module:
        __import__(module)
    if agent == "random":
        score = random_score(make_env(task.env, EPISODES), EPISODES, 10_000 + seed)
        return [name, agent, str(seed), "0", f"{score.mean:.4g}", f"{score.std:.4g}", "", "0", ""]
    if agent in PEERS:
        envs = make_vec_env(short, 8, seed=seed)
        model = PEERS[agent](envs, seed=seed, device="cpu").learn(steps)
    else:
        from agents import latest_checkpoint, load
        from train import main as train

        algo, memory = agent.split(":")
        folder = ROOT / "runs" / "any-env" / f"{name}-{algo}-{memory}-{seed}-{time.strftime('%H%M%S')}"
        words = ["--env", task.env, "--memory", memory, "--algo", algo, "--seed", str(seed)]
        words += ["--total-timesteps", str(steps), "--run-dir", str(folder), "--device", "cpu"]
        if name in POPGYM and SIZES[memory]:
            words += ["--memory-kwargs", *SIZES[memory].split()]
        try:
            train([*words, "--no-baseline", "--no-progress", "--panels-every", "0", "--eval-episodes", "0"])
        except SystemExit as end:
            if end.code:
                raise
        model = load(latest_checkpoint(folder), device="cpu")
    trained_s = time.process_time()
    envs: Any
    if name in POPGYM or name == "minigrid-memory":  # SB3's own batch holds neither Tuple nor Text observations
        envs = TensorVecEnv(make_env(task.env, EPISODES))
        envs.seed(10_000 + seed)
    else:
        envs = make_vec_env(short, EPISODES, seed=10_000 + seed)

    def played(greedy: bool) -> Any:
        returns, _ = evaluate_policy(
            model, envs, EPISODES, deterministic=greedy, return_episode_rewards=True, warn=False
        )
        return np.asarray(returns)

    found = played(greedy=False)
    numbers = [found.mean(), found.std(ddof=1), (found > 0).mean(), trained_s, played(greedy=True).mean()]
    return [name, agent, str(seed), str(model.num_timesteps), *(f"{number:.4g}" for number in numbers)]


def table(file: Path, steps: int | None = None) -> str:
    """The rows of `file`, of trainings of so many steps, as Markdown: the score of every seed."""
    with open(file, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    lines = ["| task | steps | to reach | agent | mean | each seed | greedy |", "|---|---|---|---|---|---|---|"]
    for name, task in (TASKS | POPGYM).items():
        score = "success" if task.target.startswith("success") else "mean_return"
        for agent in dict.fromkeys(row["agent"] for row in rows if row["task"] == name):
            mine = sorted(
                (row for row in rows if (row["task"], row["agent"]) == (name, agent)), key=lambda r: r["seed"]
            )
            values = [float(row[score]) for row in mine]
            each = ", ".join(f"{value:.4g} (seed {row['seed']})" for row, value in zip(mine, values, strict=True))
            greedy = ", ".join(row["greedy_return"] or "–" for row in mine)
            cells = [name, f"{steps or task.steps:,}", task.target, agent, f"{np.mean(values):.4g}", each, greedy]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def by_agent(file: Path) -> str:
    """The rows of `file` as Markdown, a line for each agent and a column for each task: the mean, and each seed."""
    with open(file, newline="", encoding="utf-8") as stream:
        rows = sorted(csv.DictReader(stream), key=lambda row: int(row["seed"]))
    tasks = [name for name in TASKS | POPGYM if any(row["task"] == name for row in rows)]
    lines = [f"| agent | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]
    for agent in dict.fromkeys(row["agent"] for row in rows):
        cells = []
        for name in tasks:
            each = [float(row["mean_return"]) for row in rows if (row["task"], row["agent"]) == (name, agent)]
            mean, *seeds = [f"{round(value, 2) + 0.0:.2f}" for value in (np.mean(each or [0]), *each)]  # 0.0: no -0.00
            cells.append(f"**{mean}** ({', '.join(seeds)})" if each else "–")
        lines.append(f"| `{agent}` | {' | '.join(cells).replace('-', '−')} |")
    return "\n".join(lines)


def main() -> None:
    args = arguments()
    if args.one:
        name = args.tasks[0]
        print("row", *one(name, args.agents[0], args.seeds[0], args.steps or (TASKS | POPGYM)[name].steps), sep=",")
        return
    lock, file = Lock(), args.results
    words = ["git", "rev-parse", "--short=10", "HEAD"]
    commit = subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    if not file.exists():
        file.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    with open(file, newline="", encoding="utf-8") as stream:
        done = {(row["task"], row["agent"], row["seed"]) for row in csv.DictReader(stream)}

    def run(job: tuple[str, str, str]) -> None:
        words = [sys.executable, "-m", "benchmarks.any_env", "--one"]
        words += ["--tasks", job[0], "--agents", job[1], "--seeds", job[2]]
        words += ["--steps", str(args.steps)] if args.steps else []
        result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        rows = [line for line in result.stdout.splitlines() if line.startswith("row,")]
        if result.returncode or not rows:
            print(f"{' '.join(job)} failed: {result.stderr[-2000:]}", file=sys.stderr)
            return
        with lock, open(file, "a", encoding="utf-8") as stream:
            stream.write(f"{rows[-1].removeprefix('row,')},{commit}\n")
        print(rows[-1], flush=True)

    jobs = [(task, agent, str(seed)) for task in args.tasks for seed in args.seeds for agent in args.agents]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, [job for job in jobs if job not in done]))
    print(table(file, args.steps))
    print(f"\n{by_agent(file)}")


if __name__ == "__main__":
    main()
