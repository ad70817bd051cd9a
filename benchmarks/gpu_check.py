"""Checks on a GPU: correctness, then speed, then one training, each with a time limit.

    python benchmarks/gpu_check.py --out /tmp/gpu               # all parts: 5 + 5 + 10 minutes at most
    python benchmarks/gpu_check.py --out /tmp/gpu --parts 1     # correctness alone
    python benchmarks/gpu_check.py --out /tmp/gpu --pretend     # without a GPU, with small sizes

Every line is a separate process with its own time limit, so that a crash or hang affects no other line; the limits of a
part add up to its maximum duration. The output of a line is in OUT/NAME.txt; OUT/report.md has a table of results, with
versions and the device. A later call runs only lines that have not passed yet; part 3 resumes its training. `--small`
uses sizes that a CPU or a pretend device can run.

Part 1 runs `benchmarks/gpu_probes.py`, the tests marked `gpu`, and one short training with graphs. Part 2 is
`benchmarks/gpu_iteration.py`. Part 3 trains the recipe maze-gpu until its time limit.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[1]
MINUTES = {1: 5, 2: 5, 3: 10}
"""Maximum duration of each part: the sum of its lines' limits, before `--stretch`."""
SPEED = {"a2c": 24, "ppo": 34}
"""Seconds of each line of part 2."""


@dataclass
class Args:
    out: Path
    """Folder for all output."""
    parts: tuple[int, ...] = (1, 2, 3)
    """Parts to run: 1 correctness, 2 speed, 3 training."""
    device: str = "cuda"
    """The GPU."""
    pretend: bool = False
    """Run on the pretend device of tests/pretend_cuda, with small sizes."""
    small: bool = False
    """Few environments, short episodes and few tests, to check that everything runs."""
    stretch: float = 1.0
    """Multiplies every time limit."""


@dataclass
class Line:
    """One process."""

    part: int
    name: str
    words: list[str]
    seconds: int


def lines(args: Args) -> Iterator[Line]:
    """All processes in order."""
    small = args.small or args.pretend
    tests = [*(["--pretend-cuda"] if args.pretend else []), "-m", "gpu", "-p", "no:cacheprovider"]
    few = ["-k", "gru or lstm or RepeatFirst or TMaze"] if small else []
    run = args.out / "repeat-first"
    yield Line(1, "probes", ["benchmarks/gpu_probes.py"], 30)
    for name, file, seconds in (
        ("environments", "tests/envs/test_env_conformance.py", 45),
        ("memories", "tests/policies/memories/test_memory_conformance.py", 60),
        ("graphs", "tests/agents/test_cuda_graphs_gpu.py", 100),
    ):
        yield Line(1, name, ["-m", "pytest", file, *tests, *few], seconds)
    words = "--env Engram/RepeatFirst-v0 --memory gru --algo a2c --n-steps 16 --gamma 0 --learning-rate 1e-2"
    words += f" --num-envs {16 if small else 1024} --total-timesteps {2048 if small else 3_000_000} --fast graph"
    words += f" --device {args.device}" + " --eval-episodes 8" * small
    yield Line(1, "learns", training(run, words), 45)
    yield Line(1, "scores", ["evaluate.py", str(run), "--device", args.device, *["--episodes", "8"] * small], 20)

    sizes = {"a2c": "--num-envs 512 2048 8192", "ppo": "--num-envs 1024 4096 --episode 80"}
    for algo, size in sizes.items():
        for memory in ("lstm", "mnm-p", "dnc", "multigrid", "kanerva++"):
            peer = (algo, memory) == ("ppo", "lstm")  # the work that RecurrentPPO does, beside it
            words = f"benchmarks/gpu_iteration.py --memories {memory} --algos {algo} --device {args.device} "
            words += "--repeats 1 --num-envs 4 --steps 4 --episode 8 --probe 64" if small else f"--repeats 3 {size}"
            words += f" --minibatches {4 if peer else 1} {'--sb3' if peer else '--no-sb3'}"
            words += f" --csv {args.out}/speed-{algo}-{memory}.csv"
            yield Line(2, f"speed {algo} {memory}", words.split(), SPEED[algo])

    words = f"--recipe maze-gpu --device {args.device}"
    words += " --env-kwargs episode_length=20 --num-envs 4 --n-steps 10" if small else ""
    words += " --total-timesteps 400 --eval-episodes 8" if small else ""
    yield Line(3, "maze", training(args.out / "maze", words), 590)


def training(folder: Path, words: str) -> list[str]:
    """`train.py` in a folder: with `words`, or `--resume` if a run exists."""
    begun = (folder / "config.yaml").exists()
    start = ["--resume", str(folder)] if begun else ["--run-dir", str(folder), *words.split()]
    return ["train.py", "--no-progress", "--no-baseline", *start]


def run(line: Line, args: Args, limit: float) -> tuple[str, float]:
    """The result of a line and its duration in seconds."""
    start = [sys.executable]
    if args.pretend and line.words[0] != "-m":
        start += ["tests/pretend_cuda"]
    started = time.monotonic()
    file = args.out / f"{line.name.replace(' ', '-')}.txt"
    with open(file, "w") as stream:
        process = subprocess.Popen([*start, *line.words], cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT)
        try:
            end = "passed" if process.wait(limit) == 0 else f"failed (exit status {process.returncode})"
        except subprocess.TimeoutExpired:
            process.terminate()  # train.py finishes its iteration, saves and ends
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            end = "saved, to be resumed" if process.returncode == 130 else f"stopped after {limit:.0f} s"
    return end, time.monotonic() - started


def device_name(args: Args) -> str:
    """Versions and device."""
    import torch

    if args.pretend:
        return "a pretend device (tests/pretend_cuda): no figure of speed means anything"
    return torch.cuda.get_device_name(args.device)


def main(args: Args) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    file = args.out / "report.json"
    ended: dict[str, tuple[int, str, float]] = json.loads(file.read_text()) if file.exists() else {}
    left = {part: 60 * minutes * args.stretch for part, minutes in MINUTES.items()}  # of the part as a whole
    for line in lines(args):
        if line.part not in args.parts or ended.get(line.name, (0, "", 0.0))[1] == "passed":
            continue
        limit = min(line.seconds * args.stretch, left[line.part])
        how, seconds = run(line, args, limit) if limit > 5 else ("not run: the part's time was over", 0.0)
        left[line.part] -= seconds
        ended[line.name] = line.part, how, round(seconds, 1)
        file.write_text(json.dumps(ended, indent=1))
        print(f"part {line.part}  {line.name:24} {how}, {seconds:.0f} s", flush=True)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "gymnasium", "stable-baselines3", "numpy"))
    rows = [f"| {part} | {name} | {how} | {seconds} |" for name, (part, how, seconds) in ended.items()]
    head = [f"{device_name(args)}; Python {platform.python_version()}, {versions}", ""]
    table = ["| part | what | how it ended | seconds |", "|---|---|---|---|", *rows]
    (args.out / "report.md").write_text("\n".join([*head, *table, ""]))
    sys.exit(any(how.startswith(("failed", "stopped")) for _, how, _ in ended.values()))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
