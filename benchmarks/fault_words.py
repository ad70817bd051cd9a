"""Command lines that are wrong, odd or right: flags, and arguments of environments and memories."""

from __future__ import annotations

import inspect
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
import yaml
from fault_children import Must, Try, command, complaint, fingerprint, quick

from policies.memories.registry import memory_class, registered

# -- flags -------------------------------------------------------------------------------------------------------------

WRONG: dict[str, list[str]] = {
    "total-timesteps": ["-5", "x", "", "1.5", "nan", "inf", "1e400", "[]"],
    "num-envs": ["0", "-4", "x", "", "2.5", "nan"],
    "seed": ["-1", "x", "", "1.5", str(2**40)],
    "threads": ["0", "-1", "x", ""],
    "n-steps": ["-1", "x", "", "0.5"],
    "bptt-segment": ["-1", "x", ""],
    "gamma": ["2", "-1", "x", "", "nan", "inf", "1.0001"],
    "gae-lambda": ["2", "-1", "x", "", "nan"],
    "ent-coef": ["-1", "nan", "inf", "x", ""],
    "vf-coef": ["-1", "nan", "x", ""],
    "aux-coef": ["-1", "nan", "x", ""],
    "max-grad-norm": ["0", "-1", "nan", "x", ""],
    "reward-scale": ["nan", "x", ""],
    "learning-rate": ["-1", "nan", "inf", "x", "", "3e-4x"],
    "n-epochs": ["0", "-1", "x", ""],
    "n-minibatches": ["0", "-1", "x", ""],
    "clip-range": ["-1", "nan", "x", ""],
    "clip-range-vf": ["-1", "x", ""],
    "target-kl": ["-1", "nan", "x", ""],
    "checkpoint-every": ["-1", "x", ""],
    "panels-every": ["-1", "x", ""],
    "eval-episodes": ["-1", "x", ""],
    "device": ["mps", "xla", "meta", "tpu", "cuda:x", "", "cpu:1x", "gpu"],
    "fast": ["x", ""],
    "precision": ["fp8", ""],
    "memory": ["nothing", "", "../lstm", "gru\n"],
    "env": ["Nothing-v0", "", "a:B-v0", "Engram/Copy", "/", ":"],
    "algo": ["dqn", "", "PPO "],
    "recipe": ["nowhere", "", "/", "\x01"],
    "resume": ["nowhere", "", "/dev/null", "/"],
    "init-from": ["nowhere", "", "/dev/null"],
    "run-dir": ["", "/dev/null", "/proc/nothing", "/dev/null/below", "x" * 300],
    "sweep": ["nowhere", "", "/dev/null"],
}
"""Invalid values by flag."""
ODD = [
    "1_000",
    "+3",
    " 4 ",
    "0x10",
    "\u0664",
    "1e2",
    "9" * 20,
    "1e308",
    "-0",
    "4.0",
    "1e-320",
    "true",
    "None",
    "0",
    "3,5",
    "1e6",
]
"""Values that may be read as numbers or refused."""
NUMERIC = [name for name, values in WRONG.items() if "x" in values and name not in ("fast",)]
ALONE: list[tuple[list[str], Must]] = [
    (["--nonsense", "3"], "refuse"),
    (["--learning-rat", "3"], "refuse"),
    (["--gamma"], "refuse"),
    (["stray"], "refuse"),
    (["--env-kwargs", "length"], "refuse"),
    (["--env-kwargs", "=3"], "refuse"),
    (["--memory-kwargs", "hidden_size"], "refuse"),
    (["--gamma=0.9=1"], "refuse"),
    (["--gamma", "0.9", "--gamma", "0.5"], "either"),
    (["--learning_rate", "0.001"], "either"),
    (["--help"], "work"),
    (["--lessons"], "refuse"),
    (["--sweep", "maze", "--trials", "0"], "refuse"),
    (["--sweep", "maze", "--jobs", "0"], "refuse"),
    (["--threads", "100000"], "either"),
    (["--num-envs", "1000000000"], "refuse"),
    (["--n-steps", "1000000000"], "refuse"),
    (["--eval-episodes", "0"], "work"),
    (["--checkpoint-every", "0"], "work"),
    (["--n-steps", "0"], "work"),
    (["--total-timesteps", "1"], "work"),
    (["--anneal"], "work"),
    (["--baseline"], "work"),
    (["--memory-kwargs", "hidden_size=1000000000"], "refuse"),
    (["--env", "CartPole-v1"], "either"),
]
RESUMED: list[tuple[list[str], Must]] = [
    (["--env", "Engram/TMaze-v0"], "refuse"),
    (["--env-kwargs", "symbols=7"], "refuse"),
    (["--memory", "lstm"], "refuse"),
    (["--memory-kwargs", "hidden_size=16"], "refuse"),
    (["--algo", "a2c"], "refuse"),
    (["--gamma", "2"], "refuse"),
    (["--learning-rate", "x"], "refuse"),
    (["--device", "tpu"], "refuse"),
    (["--run-dir", ""], "refuse"),
    (["--learning-rate", "1e-05"], "work"),
    (["--ent-coef", "0.5"], "work"),
    (["--vf-coef", "0.25"], "work"),
    (["--n-epochs", "3"], "work"),
    (["--clip-range", "0.1"], "work"),
    (["--max-grad-norm", "0.25"], "work"),
    (["--eval-episodes", "8"], "work"),
    (["--checkpoint-every", "7"], "work"),
    (["--seed", "5"], "either"),
    (["--num-envs", "8"], "either"),
    (["--gamma", "0.5"], "either"),
    (["--nonsense", "1"], "refuse"),
]
"""Flags together with --resume."""


def take(rng: random.Random, pool: list[Any], count: int) -> list[Any]:
    """`count` draws from a pool, without repeats until all are drawn."""
    taken: list[Any] = []
    while len(taken) < count:
        taken += rng.sample(pool, min(len(pool), count - len(taken)))
    return taken


def flags(seed: int, count: int, folder: Path) -> Iterator[Try]:
    """Wrong, odd and right flags, a fifth of them with `--resume`."""
    rng = random.Random(seed)
    pool: list[tuple[list[str], Must]] = [([f"--{n}", v], "refuse") for n, values in WRONG.items() for v in values]
    if not torch.cuda.is_available():
        pool += [(["--device", "cuda"], "refuse"), (["--device", "cuda:7"], "refuse")]
    pool += ALONE
    beside = take(rng, RESUMED, count // 5)
    odd = [([f"--{rng.choice(NUMERIC)}={value}"], "either") for value in take(rng, ODD, count // 8)]
    run = folder / "resumed" / "run"
    command(quick(run), run.parent.parent)
    for words, must in take(rng, pool, count - len(beside) - len(odd)) + odd:
        new = folder / "run"
        shutil.rmtree(new, ignore_errors=True)
        out = command(quick(new, *words), folder)
        name = words[0].lstrip("-").split("=")[0]
        names = ["out of memory", name, name.replace("-", "_"), *(word for word in words[1:] if len(word) > 1)]
        wrong = complaint(out, must, names)
        if not wrong and out.status and any(path.is_file() for path in new.rglob("*")):
            wrong = "refused, but a run folder was made"
        yield Try("flags", " ".join(map(repr, words)), wrong, out.seconds)
    for words, must in beside:
        copy = folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)
        before = fingerprint(copy)
        out = command(["--resume", str(copy), "--total-timesteps", "128", "--no-progress", *words], folder)
        name, value = words[0].lstrip("-").replace("-", "_"), words[1]
        wrong = complaint(out, must, [name, name.replace("_", "-"), value.split("=")[0] or name, "observation_space"])
        if not wrong and out.status and fingerprint(copy) != before:
            wrong = "refused, but the run's folder has changed"
        if not wrong and must == "work":
            kept = yaml.safe_load((copy / "config.yaml").read_text(encoding="utf-8"))[name]
            wrong = "" if float(kept) == float(value) else f"config.yaml says {name}: {kept}"
        yield Try("flags", "--resume RUN " + " ".join(map(repr, words)), wrong, out.seconds)


# -- arguments of environments and memories ----------------------------------------------------------------------------

VALUES = [
    *(
        "x",
        "-1",
        "0",
        "1",
        "2",
        "1.5",
        ".inf",
        ".nan",
        "[]",
        "[1, 2]",
        "{}",
        "{a: 1}",
        "null",
        "true",
        "1000000000",
        "1e2",
    ),
    *(
        "''",
        "&a [*a]",
        '"\\0"',
        "2020-01-01",
        "0x10",
        "'3'",
        "9" * 400,
        "-1e308",
        "[[[[[[",
        "*",
        "!!binary aGk=",
        "~",
        "1:30",
    ),
    *(
        "!!python/object/apply:os.system ['touch canary']",
        "!!python/name:os.system",
        "\U0001f600",
        "a=b",
        "3 # c",
        "- 1",
    ),
]


def _arguments(kind: str) -> list[tuple[str, str]]:
    """Names of environments or memories with each of their arguments, and with some unknown ones."""
    found = []
    if kind == "memory":
        parts: list[tuple[str, Callable[..., Any]]] = [(name, memory_class(name)) for name in registered()]
    else:
        ids = sorted(name for name in gym.registry if name.startswith("Engram/"))
        parts = [(name, _vector_class(name)) for name in ids]
    for name, part in parts:
        taken = [one for one in inspect.signature(part).parameters if one not in ("self", "args", "kwargs")]
        found += [(name, argument) for argument in [*taken, taken[-1] + "s", "num_envs", "device", "input_size"]]
    return found


def _vector_class(name: str) -> Callable[..., Any]:
    entry: Any = gym.registry[name].vector_entry_point
    if isinstance(entry, str):
        module, _, attribute = entry.partition(":")
        return getattr(__import__(module, fromlist=[attribute]), attribute)  # type: ignore[no-any-return]
    return entry  # type: ignore[no-any-return]


def kwargs(seed: int, count: int, folder: Path) -> Iterator[Try]:
    """Arguments of all environments and memories with values of all kinds."""
    rng = random.Random(seed)
    few = 87 * count // 185
    cases = [("env", *one) for one in take(rng, _arguments("env"), few)]
    cases += [("memory", *one) for one in take(rng, _arguments("memory"), count - few)]
    values = take(rng, VALUES, count)
    for (kind, part, argument), value in zip(cases, values, strict=True):
        new = folder / "run"
        shutil.rmtree(new, ignore_errors=True)
        if kind == "env":
            algo = ["--algo", "ppo", "--memory-kwargs", "hidden_size=4"]
            words = ["--env", part, *algo, "--eval-episodes", "2", "--env-kwargs", f"{argument}={value}"]
        else:
            words = ["--memory", part, "--memory-kwargs", f"{argument}={value}"]
        out = command(quick(new, *words), folder)
        wrong = complaint(out, "either", [argument, value, part, "out of memory"])
        if (folder / "canary").exists():
            wrong = "code in a value was run"
        if not wrong and out.status and any(path.is_file() for path in new.rglob("*")):
            wrong = "refused, but a run folder was made"
        yield Try("kwargs", f"{part} {argument}={value[:60]}", wrong, out.seconds)
