"""Learning curves of several memories over several seeds, as CSV, PNG and a table.

    python benchmarks/learning_curves.py --recipe maze-ppo --memories identity lstm mnm-p --seeds 0 1 2

trains each through `train.py`, `--jobs` at a time, under `runs/curves/NAME/`, where whatever is there already is used
again. It then writes `results/NAME.csv` (every logged point of every run), `NAME.png` (mean and spread over seeds) and
`NAME.md` (the table: final return, and the episodes each needed for the target).
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
COLORS = {"identity": "#8a8f98", "lstm": "#2a6fb0", "gru": "#3b9c6d", "mnm-p": "#d1495b", "mnm-g": "#8d5fa8"}
Curve = np.ndarray  # [points, 2]: episodes, mean return of the last 100 of them


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="maze-ppo")
    parser.add_argument("--name", help="of the files in results/; default: the recipe's")
    parser.add_argument("--memories", nargs="+", default=["identity", "lstm", "mnm-p"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--target", type=float, default=175.0, help="return whose first reaching is counted")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--title", default="")
    parser.add_argument("extra", nargs="*", help="further arguments of train.py, after --")
    return parser.parse_args()


def train(folder: Path, recipe: str, memory: str, seed: int, extra: list[str]) -> None:
    """Train one seed, unless it is done; a run that was cut off goes on."""
    if (folder / "summary.json").exists():
        return
    command = [sys.executable, str(ROOT / "train.py")]
    if any(folder.glob("checkpoints/step_*")):
        command += ["--resume", str(folder)]
    else:
        command += ["--recipe", recipe, "--memory", memory, "--seed", str(seed), "--run-dir", str(folder)]
        command += ["--no-baseline", *extra]
    subprocess.run([*command, "--no-progress"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def read(folder: Path) -> Curve:
    """The curve of one run."""
    with open(folder / "progress.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["rollout/ep_rew_mean"]]
    return np.array([[float(row["rollout/episodes"]), float(row["rollout/ep_rew_mean"])] for row in rows])


def reached(curve: Curve, target: float) -> float:
    """Episodes until the mean return of the last 100 first came to `target`; NaN where it never did."""
    above = np.flatnonzero(curve[:, 1] >= target)
    return float(curve[above[0], 0]) if len(above) else float("nan")


def main() -> None:
    args = arguments()
    name = args.name or args.recipe
    folder = ROOT / "runs" / "curves" / name
    jobs = [(memory, seed) for seed in args.seeds for memory in args.memories]
    with ThreadPoolExecutor(args.jobs) as pool:
        for done in [
            pool.submit(train, folder / f"{memory}-{seed}", args.recipe, memory, seed, args.extra)
            for memory, seed in jobs
        ]:
            done.result()
    curves = {memory: [read(folder / f"{memory}-{seed}") for seed in args.seeds] for memory in args.memories}
    results = ROOT / "results"
    results.mkdir(exist_ok=True)
    with open(results / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["memory", "seed", "episodes", "mean_return"])
        for memory, seed in jobs:
            for episodes, value in curves[memory][args.seeds.index(seed)]:
                writer.writerow([memory, seed, int(episodes), round(value, 3)])
    table = [
        f"| memory | final return (mean ± std of {len(args.seeds)} seeds) | each seed "
        f"| episodes to {args.target:g}, each seed |",
        "|---|---|---|---|",
    ]
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=130)
    for memory, runs in curves.items():
        final = np.array([curve[-1, 1] for curve in runs])
        needed = [reached(curve, args.target) for curve in runs]
        words = [f"{episodes:,.0f}" if episodes == episodes else "not reached" for episodes in needed]
        table.append(
            f"| {memory} | {final.mean():.1f} ± {final.std(ddof=1) if len(final) > 1 else 0:.1f} "
            f"| {', '.join(f'{value:.0f}' for value in final)} | {', '.join(words)} |"
        )
        grid = np.linspace(0, min(curve[-1, 0] for curve in runs), 300)
        values = np.array([np.interp(grid, curve[:, 0], curve[:, 1]) for curve in runs])
        mean, color = values.mean(0), COLORS.get(memory)
        (line,) = axes.plot(grid, mean, label=memory, color=color, linewidth=2)
        axes.fill_between(grid, values.min(0), values.max(0), color=line.get_color(), alpha=0.18, linewidth=0)
    axes.axhline(args.target, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="episodes", ylabel="return (last 100 episodes)", title=args.title or name)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, title=f"mean and range of {len(args.seeds)} seeds")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(results / f"{name}.png")
    (results / f"{name}.md").write_text("\n".join(table) + "\n", encoding="utf-8")
    print("\n".join(table))


if __name__ == "__main__":
    main()
