"""Recipes that are wrong, odd or right."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml
from fault_children import Must, Try, command, complaint
from fault_words import take

LITERALS = [
    *(
        "x",
        "3e-4",
        "1e6",
        "off",
        "null",
        "[]",
        "{}",
        '"4"',
        "2020-01-01",
        ".nan",
        ".inf",
        "-1",
        "true",
        "!!binary aGk=",
    ),
    *(
        "0b11",
        "1:30",
        "yes",
        "~",
        "",
        "1e400",
        "[1]",
        "{a: 1}",
        "!!python/tuple [1]",
        "&a 3",
        "9" * 30,
        "'\\x00'",
        "0.5",
        "010",
    ),
]
RIGHT = {
    "env": "Engram/RepeatFirst-v0",
    "env_kwargs": {"length": 5},
    "memory": "gru",
    "memory_kwargs": {"hidden_size": 8},
    "algo": "ppo",
    "total_timesteps": 64,
    "num_envs": 4,
    "n_steps": 8,
    "n_minibatches": 2,
    "n_epochs": 1,
    "eval_episodes": 4,
    "panels_every": 0,
    "baseline": False,
    "progress": False,
    "seed": 1,
    "device": "cpu",
    "threads": 1,
    "learning_rate": 0.001,
    "gamma": 0.9,
    "clip_range": 0.2,
    "target_kl": 0.5,
    "max_grad_norm": 0.5,
    "anneal": False,
    "fast": "auto",
    "checkpoint_every": 30,
}
_TEXT = yaml.safe_dump(RIGHT, sort_keys=False)
_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{n}: &{n} [{', '.join([f'*{p}'] * 9)}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)
)
WHOLE: list[tuple[str, bytes | str, Must]] = [
    ("as it should be", _TEXT, "work"),
    ("line ends of Windows", _TEXT.replace("\n", "\r\n"), "work"),
    ("env_kwargs with nothing after it", _TEXT.replace("env_kwargs:\n  length: 5", "env_kwargs:"), "work"),
    ("learning_rate: 3e-4", _TEXT.replace("learning_rate: 0.001", "learning_rate: 3e-4"), "work"),
    ("byte order mark", b"\xef\xbb\xbf" + _TEXT.encode(), "either"),
    ("empty", "", "refuse"),
    ("a list", "- a\n- b\n", "refuse"),
    ("a number", "3\n", "refuse"),
    ("null", "null\n", "refuse"),
    ("text", "a recipe of mine\n", "refuse"),
    ("tabs", "env:\tEngram/RepeatFirst-v0\n\tmemory: gru\n", "either"),
    ("an entry twice", _TEXT + "gamma: 0.5\n", "either"),
    ("unknown entry", _TEXT + "learning_rat: 0.5\n", "refuse"),
    ("unknown entries of mixed types", _TEXT + "5: 1\nzzz: 1\n", "refuse"),
    ("a null entry", _TEXT + "null: 1\n", "refuse"),
    ("a list as entry", _TEXT + "? [1, 2]\n: 1\n", "refuse"),
    (
        "anchor bomb",
        _TEXT.replace("env_kwargs:\n", "env_kwargs:\n" + "".join(f"  {x}\n" for x in _BOMB.splitlines())),
        "refuse",
    ),
    ("anchor bomb beside", _BOMB + _TEXT, "refuse"),
    ("a list in itself", _TEXT.replace("length: 5", "length: &a [*a]"), "refuse"),
    ("deep", "[" * 20_000, "refuse"),
    ("deep mapping", "{a: " * 5_000, "refuse"),
    ("UTF-16", _TEXT.encode("utf-16"), "either"),
    ("Latin-1", _TEXT.encode() + b"recipe: caf\xe9\n", "refuse"),
    ("zero bytes", b"\0" * 100, "refuse"),
    ("random bytes", bytes(range(256)) * 4, "refuse"),
    ("large", "# " + "x" * (3 << 20) + "\n" + _TEXT, "either"),
    ("object tag", _TEXT + "recipe: !!python/object/apply:os.system ['touch canary']\n", "refuse"),
    ("two documents", _TEXT + "---\n" + _TEXT, "refuse"),
    ("unclosed quote", _TEXT + "recipe: 'abc\n", "refuse"),
    ("unclosed brace", _TEXT + "recipe: {a: 1\n", "refuse"),
    ("bad indent", _TEXT + "   seed: 3\n", "refuse"),
    ("env_kwargs is a list", _TEXT.replace("env_kwargs:\n  length: 5", "env_kwargs: [1]"), "refuse"),
    ("memory_kwargs is text", _TEXT.replace("memory_kwargs:\n  hidden_size: 8", "memory_kwargs: x"), "refuse"),
    ("arguments whose names are numbers", _TEXT.replace("length: 5", "5: 5"), "refuse"),
    ("follows itself", _TEXT + "follows: recipe\n", "either"),
    ("web page", "<!DOCTYPE html><html><body>404</body></html>", "refuse"),
    (
        "JSON",
        '{"env": "Engram/RepeatFirst-v0", "total_timesteps": 64, "memory": "gru", "baseline": false, "num_envs": 4}',
        "either",
    ),
    ("a percent sign", "%YAML 9.9\n---\n" + _TEXT, "either"),
    ("a control character", _TEXT + "recipe: a\x07b\n", "refuse"),
]


def recipes(seed: int, count: int, folder: Path) -> Iterator[Try]:
    """Files that are no recipes, and recipes with one entry of another type."""
    rng = random.Random(seed)
    whole = take(rng, WHOLE, min(len(WHOLE), 2 * count // 5))
    places = ["missing", "folder", "pipe", "device", "unreadable"][: count // 20]
    cases: list[tuple[str, bytes | str | None, Must]] = [*whole, *((place, None, "refuse") for place in places)]
    pairs = take(rng, [(name, literal) for name in RIGHT for literal in LITERALS], count - len(cases))
    cases += [
        (
            f"{name}: {literal[:40]}",
            yaml.safe_dump({k: v for k, v in RIGHT.items() if k != name}) + f"{name}: {literal}\n",
            "either",
        )
        for name, literal in pairs
    ]
    for what, content, must in cases:
        file, new = folder / "recipe.yaml", folder / "run"
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        elif what == "folder":
            file.mkdir()
        elif what == "pipe":
            os.mkfifo(file)
        elif what == "device":
            file.symlink_to("/dev/zero")
        elif what == "unreadable":
            file.symlink_to(file)
        long = what.startswith(("total_timesteps: ", "eval_episodes: ", "n_epochs: "))  # a million may be meant
        out = command(["--recipe", str(file), "--run-dir", str(new)], folder, 8 if long else 60)
        wrong = complaint(out, must, ["recipe.yaml", what.split(":")[0], "memory 'gru'"])
        if long and out.status is None and any(new.glob("checkpoints/step_*/manifest.json")):
            wrong = ""
        if (folder / "canary").exists():
            wrong = "code in a recipe was run"
        if not wrong and out.status and any(path.is_file() for path in new.rglob("*")):
            wrong = "refused, but a run folder was made"
        yield Try("recipes", what, wrong, out.seconds)
