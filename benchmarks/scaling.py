"""Measures how speed and memory scale with copies, memory size, width, levels, sequence length and ranks.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --studies envs slots --threads 2 --folder /tmp/scaling
    python benchmarks/scaling.py --device cuda --largest-env 1048576 --largest-agent 65536

Every point runs in its own process, so that peak memory is separate. Steps/s count every environment; the figure is the
median of the repeats.

**Estimates.** Three rates are measured first: float32 matrix products (FLOP/s), copies of a large buffer (bytes/s, read
and written), and operations on a small tensor (launches/s). One iteration of each point is then counted operation by
operation: FLOPs of its matrix products and convolutions, bytes that its operations read and write, and their number.
The estimate is the longest of the three times that these take at the measured rates; "share" is estimate / measured
time. It can exceed 1 if operations are fused or their operands are in a cache.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from scaling_pictures import draw
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from agents import LEARNERS, make_env
from envs.tensor_env import TensorEnv
from policies.native.allocator import tune_allocator

ROOT = Path(__file__).resolve().parents[1]
Study = Literal["envs", "agents", "slots", "width", "levels", "length", "ranks"]
MAZE, COPY = "Engram/InvisibleGoalMaze-v0", "Engram/Copy-v0"


@dataclass
class Point:
    """One point of a study."""

    study: str
    label: str
    """Name of its curve."""
    x: int
    """Position on the horizontal axis."""
    env: str
    num_envs: int
    algo: str = ""
    """Learner; empty: the environment alone."""
    memory: str = ""
    memory_kwargs: dict[str, Any] = field(default_factory=dict)
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    n_steps: int = 0
    ranks: int = 1


@dataclass
class Args:
    studies: tuple[Study, ...] = ("envs", "agents", "slots", "width", "levels", "length", "ranks")
    """Studies to run."""
    folder: Path = ROOT / "results" / "scaling"
    """Folder for one table and one picture per study."""
    device: str = "cpu"
    """Device of environments and agents."""
    threads: int = 1
    """CPU threads of each process."""
    largest_env: int = 65_536
    """Maximum number of environments stepped without an agent."""
    largest_agent: int = 8_192
    """Maximum number of copies with an agent."""
    largest_ranks: int = 2
    """Maximum number of ranks."""
    memory_limit: float = 8.0
    """GiB; a curve ends at the first point above half of this."""
    repeats: int = 3
    """Number of timed iterations; the median is reported."""
    point: str = ""
    """Internal: measure this point (JSON) and print the result."""


def points(args: Args) -> Iterator[Point]:
    """All points, in ascending order on every curve."""
    agents = {
        "lstm": {"hidden_size": 128},
        "mnm-p": {"hidden_size": 128, "key_size": 32, "value_size": 32, "memory_units": 32, "heads": 1},
        "dnc": {"hidden_size": 128, "slots": 32, "word_size": 16, "read_heads": 2},
        "multigrid": {},
        "kanerva++": {},
    }
    for env in (MAZE, COPY, "Engram/Mapping-v0"):
        for copies in doublings(1, args.largest_env, 4):
            yield Point("envs", env.split("/")[1], copies, env, copies)
    for memory, kwargs in agents.items():
        for copies in doublings(1, args.largest_agent, 8):
            yield Point("agents", memory, copies, MAZE, copies, "a2c", memory, kwargs, n_steps=20)
    sizes = {"hidden_size": 128, "word_size": 16, "read_heads": 2}
    for memory in ("dnc", "sdnc", "ntm"):
        for slots in doublings(32, 2048, 4):
            named = {**sizes, "slots": slots} if memory != "ntm" else {"hidden_size": 128, "slots": slots}
            yield Point("slots", memory, slots, MAZE, 16, "a2c", memory, named, n_steps=20)
    for memory, name in (("lstm", "hidden_size"), ("plastic", "hidden_size"), ("mnm-p", "memory_units")):
        for width in doublings(32, 512, 4):
            named = {"key_size": width, "value_size": width, "heads": 1} if memory == "mnm-p" else {}
            yield Point("width", memory, width, MAZE, 64, "a2c", memory, {name: width, **named}, n_steps=20)
    for levels in (1, 2, 3, 4):
        named = {"levels": [min(levels, layer) for layer in (2, 3, 4)], "channels": [8] * 3, "residuals": []}
        yield Point("levels", "multigrid", levels, MAZE, 16, "a2c", "multigrid", named, n_steps=20)
    for memory in ("lstm", "mnm-p", "dnc"):
        for length in (25, 100, 400):
            named = {"episode_length": length}
            yield Point("length", memory, length, MAZE, 16, "a2c", memory, agents[memory], named, n_steps=length)
    for ranks in doublings(1, args.largest_ranks, 2):
        yield Point("ranks", "lstm", ranks, MAZE, 64, "a2c", "lstm", agents["lstm"], n_steps=20, ranks=ranks)


def doublings(first: int, last: int, factor: int) -> Iterator[int]:
    """first, first · factor, ..., and always `last`."""
    while first < last:
        yield first
        first *= factor
    yield last


# -- one point, in a process of its own --------------------------------------------------------------------------------


class Work(TorchDispatchMode):
    """Counts operations, the bytes that they read and write, and the FLOPs of products."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = self.flop = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operations += 1
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            if (count := flop_registry.get(func.overloadpacket)) is not None:
                self.flop += count(*args, **(kwargs or {}), out_val=result)
        return result


def measure(point: Point, args: Args) -> dict[str, Any]:
    """Speed, work, time split and peak memory of one point."""
    torch.set_num_threads(args.threads)
    tune_allocator()
    if point.ranks > 1:
        return ranked(point, args)
    env = make_env(point.env, point.num_envs, torch.device(args.device), **point.env_kwargs)
    shares: dict[str, float] = {}
    if point.algo:
        policy = {"memory": point.memory, "memory_kwargs": point.memory_kwargs}
        learner = LEARNERS[point.algo]
        model = learner("MemoryPolicy", env, n_steps=point.n_steps, policy_kwargs=policy, seed=0, device=args.device)
        steps = model.n_steps

        def iteration() -> None:
            model.learn(1, log_interval=None, reset_num_timesteps=model.num_timesteps == 0)
    else:
        steps, model = 16, None
        iteration = playing(env, steps)
    before = forget_peak(args.device)
    iteration()
    with Work() as work:
        iteration()
    if model is not None:
        model.env_seconds = model.memory_seconds = model.learn_seconds = 0.0
    seconds = [timed(iteration, args.device) for _ in range(args.repeats)]
    if model is not None:
        parts = {name: getattr(model, f"{name}_seconds") for name in ("env", "memory", "learn")}
        shares = {f"{name}_share": round(value / sum(parts.values()), 3) for name, value in parts.items()}
    taken = statistics.median(seconds)
    return {
        "steps_per_s": round(point.num_envs * steps / taken, 1),
        "ms": round(1e3 * taken / steps, 4),
        "flop": work.flop / steps,
        "bytes": work.bytes / steps,
        "operations": round(work.operations / steps, 1),
        "peak_mib": round((peak(args.device) - before) / 2**20, 1),
        **shares,
    }


def playing(env: TensorEnv, steps: int) -> Callable[[], None]:
    """A function that takes random actions: 0 or 1, which are valid in every task."""
    env.reset(seed=0)
    shape = env.action_space.shape
    assert shape is not None

    def play() -> None:
        for _ in range(steps):
            env.step(torch.randint(2, shape, device=env.device))

    return play


def ranked(point: Point, args: Args) -> dict[str, Any]:
    """Measures a training on several ranks with `torchrun train.py`."""
    folder = args.folder / f".ranks-{point.ranks}"
    count = point.num_envs * point.n_steps
    options = {
        **{"env": point.env, "algo": point.algo, "memory": point.memory, "num-envs": point.num_envs},
        **{"n-steps": point.n_steps, "total-timesteps": 200 * count, "run-dir": folder, "device": args.device},
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    flags += ["--memory-kwargs", *(f"{name}={value}" for name, value in point.memory_kwargs.items())]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={point.ranks}", "train.py"]
    shares = ["--no-progress", "--no-baseline", "--eval-episodes", str(point.num_envs)]
    subprocess.run([*command, *flags, *shares], cwd=ROOT, check=True, capture_output=True, text=True)
    with (folder / "progress.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    half = rows[len(rows) // 2], rows[-1]
    steps, seconds = ([float(row[f"time/{name}"]) for row in half] for name in ("total_timesteps", "time_elapsed"))
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    folder.rmdir()
    return {"steps_per_s": round((steps[1] - steps[0]) / max(seconds[1] - seconds[0], 1.0), 1)}


def timed(run: Callable[[], None], device: str) -> float:
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def peak(device: str) -> int:
    """Peak bytes since `forget_peak`: of the device, or of this process on the CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak(device: str) -> int:
    """Resets the peak (on the CPU only if Linux allows it), and returns the bytes in use."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") or peak(device)


def _status(name: str) -> int:
    """An entry of Linux's /proc/self/status in bytes; 0 if it is missing."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0


# -- limits ------------------------------------------------------------------------------------------------------------


def limits(args: Args, side: int = 2048, launches: int = 10_000) -> dict[str, float]:
    """FLOP/s, bytes/s and operations/s of this machine.

    Args:
        args: device and threads.
        side: of the multiplied matrices; the copied buffer has 16 times as many numbers.
        launches: number of operations in one timing.
    """
    torch.set_num_threads(args.threads)
    square = torch.randn(side, side, device=args.device)
    product = torch.empty_like(square)
    large = torch.randn(16 * side**2, device=args.device)
    other = torch.empty_like(large)
    small = torch.zeros(64, 9, device=args.device)

    def many() -> None:
        for _ in range(launches):
            small.add_(1.0)

    work: dict[str, tuple[Callable[[], Any], float]] = {
        "flop": (lambda: torch.mm(square, square, out=product), 2.0 * side**3),
        "bytes": (lambda: other.copy_(large), 2.0 * large.numel() * 4),
        "operations": (many, float(launches)),
    }
    found = {}
    for name, (run, amount) in work.items():
        run()
        found[name] = amount / statistics.median(timed(run, args.device) for _ in range(5))
    return found


def bound(row: dict[str, Any], rates: dict[str, float]) -> dict[str, Any]:
    """The limiting rate of a point, the limit in steps/s, and its share of the measured time."""
    if "flop" not in row:
        return {}
    times = {name: row[name] / rate for name, rate in rates.items()}
    binds = max(times, key=lambda name: times[name])
    share = 1e3 * times[binds] / row["ms"]
    return {"bound_by": binds, "limit_per_s": round(row["steps_per_s"] / share, 1), "share": round(share, 3)}


# -- all of it ---------------------------------------------------------------------------------------------------------


def main(args: Args) -> None:
    if args.point:
        print(json.dumps(measure(Point(**json.loads(args.point)), args)))
        return
    rates = limits(args)
    print("  ".join(f"{name} {rate:.3g}/s" for name, rate in rates.items()), flush=True)
    args.folder.mkdir(parents=True, exist_ok=True)
    for study in args.studies:
        rows: list[dict[str, Any]] = []
        ended: set[str] = set()
        for point in (point for point in points(args) if point.study == study):
            if point.label in ended:
                continue
            result = apart(point, args)
            row = {"label": point.label, study: point.x, **result, **bound(result, rates)}
            rows.append({**row, "threads": args.threads, "device": args.device})
            print("  ".join(f"{name}={value}" for name, value in row.items()), flush=True)
            if row.get("peak_mib", 0) > args.memory_limit * 512 or "failed" in row:
                ended.add(point.label)
            write(args.folder / f"{study}.csv", rows)
        draw(args.folder / f"{study}.png", study, rows)
    write(args.folder / "limits.csv", [{**rates, "threads": args.threads, "device": args.device}])


def apart(point: Point, args: Args) -> dict[str, Any]:
    """Runs `measure` in its own process."""
    command = [sys.executable, __file__, "--point", json.dumps(asdict(point)), "--device", args.device]
    command += ["--threads", str(args.threads), "--repeats", str(args.repeats), "--folder", str(args.folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:200]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
