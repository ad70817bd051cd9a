"""What to run on the day a GPU is at hand: correctness, then speed, then one training; each line with a time limit.

    python benchmarks/gpu_check.py --out /tmp/gpu               # all parts: 5 + 5 + 10 minutes at most
    python benchmarks/gpu_check.py --out /tmp/gpu --parts 1     # correctness alone
    python benchmarks/gpu_check.py --out /tmp/gpu --pretend     # a rehearsal without a GPU, in small sizes

Every line is a process of its own, so that one that hangs or dies costs only itself. What it printed is in
OUT/NAME.txt; OUT/report.md has a table of what passed, with versions and the device. The order is by worth: where time
runs out, the rest is reported as not run. A later call runs only what has not passed yet; part 3 resumes its training.

Part 1 checks what is taken on trust without a GPU (`benchmarks/gpu_probes.py`), then the tests marked `gpu`, then one
short training with graphs. Part 2 is `benchmarks/gpu_iteration.py`. Part 3 trains the recipe maze-gpu for as long as it
is given.
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
"""Most that each part takes."""


@dataclass
class Args:
    out: Path
    """Folder for everything that is found."""
    parts: tuple[int, ...] = (1, 2, 3)
    """Which parts: 1 correctness, 2 speed, 3 training."""
    device: str = "cuda"
    """Which GPU."""
    pretend: bool = False
    """Rehearse on the pretend device of tests/pretend_cuda.py, in sizes that a CPU can do."""
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
    """Every process in its order."""
    tests = [*(["--pretend-cuda"] if args.pretend else []), "-m", "gpu", "-p", "no:cacheprovider"]
    few = ["-k", "gru or lstm or RepeatFirst or TMaze"] if args.pretend else []
    run = str(args.out / "repeat-first")
    size = "16" if args.pretend else "1024"
    steps = "2048" if args.pretend else "3000000"
    yield Line(1, "probes", ["benchmarks/gpu_probes.py"], 60)
    for name, file, seconds in (
        ("environments", "tests/envs/test_env_conformance.py", 60),
        ("memories", "tests/policies/memories/test_memory_conformance_time.py", 60),
        ("graphs", "tests/agents/test_cuda_graphs_gpu.py", 150),
    ):
        yield Line(1, name, ["-m", "pytest", file, *tests, *few], seconds)
    words = f"train.py --env Engram/RepeatFirst-v0 --memory gru --algo a2c --num-envs {size} --n-steps 16 --gamma 0"
    words += f" --total-timesteps {steps} --learning-rate 1e-2 --device {args.device} --fast graph --no-baseline"
    yield Line(1, "learns", [*words.split(), "--no-progress", "--run-dir", run], 60)
    yield Line(1, "scores", ["evaluate.py", run, "--device", args.device], 30)
    copies = ["8"] if args.pretend else ["512", "1024", "2048", "4096", "8192"]
    memories = ["lstm"] if args.pretend else ["lstm", "mnm-p", "dnc", "multigrid", "kanerva++"]
    for algo in ("a2c", "ppo"):
        for memory in memories:
            words = ["benchmarks/gpu_iteration.py", "--memories", memory, "--algos", algo, "--copies", *copies]
            words += ["--device", args.device, "--csv", str(args.out / f"speed-{algo}-{memory}.csv"), "--repeats", "3"]
            peer = "--sb3" if (algo, memory) == ("ppo", "lstm") else "--no-sb3"
            yield Line(2, f"speed {algo} {memory}", [*words, peer], 60)
    maze = args.out / "maze"
    words = ["--resume", str(maze)] if (maze / "config.yaml").exists() else ["--run-dir", str(maze)]
    if args.pretend:
        words += ["--num-envs", "8", "--total-timesteps", "3200", "--eval-episodes", "8"]
    words += ["--recipe", "maze-gpu", "--device", args.device] if words[0] == "--run-dir" else []
    yield Line(3, "maze", ["train.py", *words, "--no-progress", "--no-baseline"], 590)


def run(line: Line, args: Args, limit: float) -> tuple[str, float]:
    """How a line ended, and after how many seconds."""
    start = [sys.executable]
    if args.pretend and line.words[0] != "-m":
        start += ["tests/pretend_cuda.py"]
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
    """What the lines ran on."""
    import torch

    if args.pretend:
        return "a pretend device (tests/pretend_cuda.py): no figure of speed means anything"
    return torch.cuda.get_device_name(args.device)


def main(args: Args) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    file = args.out / "report.json"
    ended: dict[str, tuple[int, str, float]] = json.loads(file.read_text()) if file.exists() else {}
    left = {part: 60 * minutes * args.stretch for part, minutes in MINUTES.items()}
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
