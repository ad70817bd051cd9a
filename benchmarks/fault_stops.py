"""Runs that are killed or stopped at random and at chosen moments, and then resumed."""

from __future__ import annotations

import csv
import functools
import json
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from fault_children import Child, Outcome, Try, command, complaint
from safetensors import safe_open

import train

AGENTS = {
    "gru ppo, 8 × 16": "--memory gru --memory-kwargs hidden_size=8 --num-envs 8 --n-steps 16 --n-minibatches 2",
    "mnm-p ppo": "--memory mnm-p --num-envs 4 --n-steps 8 --n-minibatches 2",
    "lstm a2c": "--memory lstm --memory-kwargs hidden_size=12 --algo a2c --num-envs 5 --n-steps 7",
    "identity ppo": "--memory identity --num-envs 8 --n-steps 16 --n-minibatches 4",
    "dnc a2c": "--memory dnc --algo a2c --num-envs 3 --n-steps 9",
    "kanerva++ ppo": "--memory kanerva++ --num-envs 4 --n-steps 12 --n-minibatches 2",
    "multigrid supervised": "--memory gru --memory-kwargs hidden_size=24 --algo supervised --num-envs 6 --n-steps 10",
}
"""Command lines of the agents whose trainings are killed."""
NOT_COMPARED = ("time/", "wall", "fps")
"""Columns of progress.csv with times."""


def words_of(agent: str, steps: int, run: Path) -> list[str]:
    """The command that starts a run."""
    common = ["--env", "Engram/RepeatFirst-v0", "--env-kwargs", "length=5", "--n-epochs", "1", "--panels-every", "0"]
    if "a2c" in agent or "supervised" in agent:
        common = [word for word in common if word not in ("--n-epochs", "1")]
    common += ["--no-baseline", "--no-progress", "--eval-episodes", "4", "--checkpoint-every", "0"]
    return [*common, *AGENTS[agent].split(), "--total-timesteps", str(steps), "--run-dir", str(run)]


def whole_checkpoints(run: Path) -> list[Path]:
    """The folders with a checkpoint's name."""
    return sorted(path for path in (run / "checkpoints").glob("step_*") if path.is_dir())


def half(run: Path) -> str:
    """The incomplete checkpoints; empty if all are complete."""
    for folder in whole_checkpoints(run):
        missing = [name for name in ("manifest.json", "tensors.safetensors") if not (folder / name).is_file()]
        if missing:
            return f"{folder.name} lacks {missing[0]}"
    return ""


def differences(one: Path, other: Path) -> str:
    """How two runs' last checkpoints, scores and curves differ, apart from times; "" if they are equal."""
    last = [whole_checkpoints(run)[-1] for run in (one, other)]
    if last[0].name != last[1].name:
        return f"{last[0].name} and {last[1].name}"
    with (
        safe_open(last[0] / "tensors.safetensors", "pt") as first,
        safe_open(last[1] / "tensors.safetensors", "pt") as second,
    ):
        if set(first.keys()) != set(second.keys()):
            return f"tensors {sorted(set(first.keys()) ^ set(second.keys()))[:3]}"
        for key in first.keys():  # noqa: SIM118
            a, b = first.get_tensor(key), second.get_tensor(key)
            if key.endswith("recent_episodes"):  # the third number of an episode is its end time
                a, b = a[:, :2].contiguous(), b[:, :2].contiguous()
            if a.shape != b.shape or a.dtype != b.dtype or a.numpy().tobytes() != b.numpy().tobytes():
                return f"tensor {key}"
    scores = [json.loads((run / "summary.json").read_text())["mean_return"] for run in (one, other)]
    if scores[0] != scores[1]:
        return f"mean_return {scores[0]} and {scores[1]}"
    curves = []
    for run in (one, other):
        with open(run / "progress.csv", encoding="utf-8", newline="") as file:
            curves.append(
                [
                    {k: v for k, v in row.items() if not any(n in k for n in NOT_COMPARED)}
                    for row in csv.DictReader(file)
                ]
            )
    if len(curves[0]) != len(curves[1]):
        return f"progress.csv has {len(curves[0])} and {len(curves[1])} rows"
    for number, (left, right) in enumerate(zip(*curves, strict=True)):
        if left != right:
            return f"progress.csv, row {number}: {[key for key in left if left[key] != right.get(key)][:3]}"
    return ""


def kills(seed: int, count: int, folder: Path) -> Iterator[Try]:
    """kill -9 at random moments; after the resumes, the result must equal an uninterrupted run bit for bit."""
    rng = random.Random(seed)
    done, names = 0, list(AGENTS)
    for number in range(10**6):
        if done >= count:
            return
        agent = names[number % len(names)]
        steps = rng.randrange(24, 40) * 100
        whole, chain = folder / "whole", folder / "chain"
        for run in (whole, chain):
            shutil.rmtree(run, ignore_errors=True)
        let_be = command(words_of(agent, steps, whole), folder, 300)
        if wrong := complaint(let_be, "work"):
            yield Try("kill -9", f"{agent}, not killed", wrong, let_be.seconds)
            done += 1
            continue
        tries: list[Try] = []
        span = let_be.seconds / 3
        for _ in range(min(12, count - done)):
            out, moment = _one_kill(agent, steps, chain, rng.uniform(0, span), folder)
            wrong = half(chain)
            if out.status != -signal.SIGKILL:
                wrong = wrong or complaint(out, "work")
            tries.append(Try("kill -9", f"{agent}, {moment}", wrong, out.seconds))
            if out.status == 0:
                break
        words = ["--resume", str(chain)] if whole_checkpoints(chain) else words_of(agent, steps, chain)
        if not whole_checkpoints(chain):
            shutil.rmtree(chain, ignore_errors=True)
        if not (chain / "summary.json").exists():
            out = command([*words, "--no-progress"], folder, 300)
            wrong = complaint(out, "work")
        wrong = tries[-1].wrong or wrong or differences(whole, chain)
        if not wrong and (
            left := [path.name for path in (chain / "checkpoints").iterdir() if not path.name.startswith("step_")]
        ):
            wrong = f"{left[0]} was left behind"
        tries[-1] = Try("kill -9", tries[-1].what, wrong, tries[-1].seconds)
        yield from tries
        done += len(tries)


def _one_kill(agent: str, steps: int, run: Path, after: float, folder: Path) -> tuple[Outcome, str]:
    if whole_checkpoints(run):
        words, moment = ["--resume", str(run), "--no-progress"], f"resumed from {whole_checkpoints(run)[-1].name}"
    else:
        shutil.rmtree(run, ignore_errors=True)
        words, moment = words_of(agent, steps, run), "started"
    child = Child(lambda: train.main(words), folder)
    deadline = time.monotonic() + after
    while time.monotonic() < deadline and not child.ended():
        time.sleep(0.001)
    child.send(signal.SIGKILL)
    return child.wait(300), f"{moment}, killed after {after:.2f} s"


SIGNALS = {
    "SIGTERM": (signal.SIGTERM,),
    "SIGINT": (signal.SIGINT,),
    "SIGINT twice": (signal.SIGINT, signal.SIGINT),
    "SIGTERM, SIGINT": (signal.SIGTERM, signal.SIGINT),
    "SIGINT three times": (signal.SIGINT,) * 3,
    "SIGHUP": (signal.SIGHUP,),
}
MOMENTS = ("early", "in training", "while writing", "in evaluation", "in the baseline", "in a resumed run")


def signals(seed: int, count: int, folder: Path) -> Iterator[Try]:
    """Signals at chosen moments: messages must be true, and the run must resume from its files."""
    rng = random.Random(seed)
    cases = [(name, moment) for moment in MOMENTS for name in SIGNALS]
    chosen = [*rng.sample(cases, min(count, len(cases))), *(rng.choice(cases) for _ in range(count - len(cases)))]
    for name, moment in chosen:
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        words = words_of("gru ppo, 8 × 16", 4_000, run)
        words[words.index("--eval-episodes") + 1] = "4000" if moment == "in evaluation" else "4"
        if moment == "in the baseline":
            words.remove("--no-baseline")
        if moment == "in a resumed run":
            command([word if word != "4000" else "1000" for word in words], folder, 120)
            words = ["--resume", str(run), "--total-timesteps", "5000", "--no-progress"]
        child = Child(functools.partial(train.main, words), folder)
        _wait_for(moment, child, run, rng)
        for number in SIGNALS[name]:
            child.send(number)
            time.sleep(rng.choice((0.0, 0.005, 0.05)))
        out = child.wait(120)
        wrong = untrue(out, run, [-number for number in SIGNALS[name]])
        if not wrong and whole_checkpoints(run) and not (run / "summary.json").exists():
            wrong = complaint(
                command(["--resume", str(run), "--eval-episodes", "4", "--no-progress"], folder, 120), "work"
            )
            wrong = wrong and f"the resume: {wrong}"
        yield Try("signals", f"{name} {moment}", wrong, out.seconds)


def _wait_for(moment: str, child: Child, run: Path, rng: random.Random) -> None:
    """Waits for the moment, or until the child ends."""
    deadline, checkpoints = time.monotonic() + 60, run / "checkpoints"
    before = len(whole_checkpoints(run))

    def come() -> bool:
        if moment == "early":
            return True
        if moment == "while writing":
            return any(not path.name.startswith("step_") for path in checkpoints.glob("*")) and before == 0
        if moment == "in evaluation":
            return (checkpoints / "step_000000004096").exists() or (checkpoints / "step_000000004000").exists()
        if moment == "in the baseline":
            return (run / "identity").exists()
        return len(whole_checkpoints(run)) > 0

    while not come() and not child.ended() and time.monotonic() < deadline:
        time.sleep(0.0005)
    time.sleep({"while writing": 0.0, "early": rng.uniform(0, 0.15)}.get(moment, rng.uniform(0, 0.3)))


def untrue(out: Outcome, run: Path, ended_by: list[int]) -> str:
    """The false statements in the output of an interrupted command."""
    said, there = out.output, [path.name for path in whole_checkpoints(run)]
    if out.status is None:
        return "no end"
    if "Traceback" in said:
        return f"traceback: {said.strip().splitlines()[-1][:160]}"
    if out.status not in (0, 130, 143, 129, *ended_by):
        return f"exit status {out.status}: {said.strip()[-160:]!r}"
    if half(run):
        return half(run)
    if ("last checkpoint" in said or "continue with" in said) and not there:
        return f"speaks of a checkpoint, and there is none: {said.strip()[-160:]!r}"
    if "no checkpoint" in said and there:
        return f"says that there is no checkpoint, and there is {there[-1]}"
    for word in said.replace(",", "").replace(";", " ").split():
        if word.startswith("step_") and word not in there and not (run / "identity" / "checkpoints" / word).exists():
            return f"speaks of {word}, and there are {there}"
    if out.status == 0 and not (run / "summary.json").exists():
        return "exit status 0 without a summary"
    return ""
