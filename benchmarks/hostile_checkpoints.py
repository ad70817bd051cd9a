"""Damaged and malicious checkpoints: each loads to a working agent, or ends with a one-line error that names the file.

    python benchmarks/hostile_checkpoints.py --count 1000
    python benchmarks/hostile_checkpoints.py --count 100 --through evaluate
    python benchmarks/hostile_checkpoints.py --count 100 --through resume

Most cases that change a manifest or tensors also update the digests; the others leave them. A loaded agent works if it
predicts and learns for one iteration, or ends with a one-line error about values that are not finite. Cases are drawn
with a seed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from safetensors.torch import load_file
from safetensors.torch import save as bytes_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from agents import CheckpointError, NonFiniteError, load, make_env
from agents.checkpoint import MANIFEST, TENSORS, digest, latest_checkpoint
from agents.run.command import main as train
from agents.run.recipes import load_config

Mutate = Callable[[Path], object]
Through = Literal["load", "evaluate", "resume"]

RUNS = {
    "gru-ppo": "--env Engram/TMaze-v0 --env-kwargs length=3 --algo ppo --memory gru --memory-kwargs hidden_size=6",
    "dnc-a2c": "--env Engram/InvisibleGoalMaze-v0 --env-kwargs episode_length=12 --algo a2c --memory dnc "
    "--memory-kwargs hidden_size=6 slots=5 word_size=4 read_heads=1",
    "mnm-supervised": "--env Engram/RepeatFirst-v0 --env-kwargs length=4 --algo supervised --memory mnm-p "
    "--memory-kwargs hidden_size=6 key_size=4 value_size=4 memory_units=4 heads=1",
    "lstm-host": "--env CartPole-v1 --algo ppo --memory lstm --memory-kwargs hidden_size=6",
}
"""The runs whose checkpoints are changed, by name: flags of train.py."""
COMMON = "--num-envs 4 --n-steps 8 --total-timesteps 96 --eval-episodes 2 --seed 1"
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 65, 10**6, 10**9, -(10**9), 2**31, 2**63, 10**30, 0.5, -0.5, 1e-300, 1e308),
    *(math.nan, math.inf, -math.inf, "", "x", "1e3", "../../x", "\x1b[31m", "a" * 5000, [], [1], [[]], [-1, 2], {}),
    *([10**5, 10**5], [2**28], [2**62, 2**62], [0.9, 0.999], "lstm", "dnc"),
    *({"$class": "os.system"}, {"$class": "optim.SGD"}, {"$yours": "os.system"}),
    *({"$schedule": [1, 2]}, {"$schedule": ["x", math.nan, 0]}, {"$schedule": [1e-3, 1e-4, 1.0]}),
    *({"kind": "Discrete", "n": 10**7, "start": 0}, {"kind": "Box", "low": 0, "high": 1, "shape": [10**6, 10**6]}),
]
SECONDS = 60
"""Time limit of a case in seconds."""


# -- the cases ---------------------------------------------------------------------------------------------------------


def cases(seed: int = 0) -> Iterator[tuple[str, Mutate]]:
    """Endless cases: a name, and a function that changes a checkpoint's folder."""
    draw = random.Random(seed)
    kinds = [_damage, _manifest, _manifest, _manifest, _tensor, _tensor, _header, _file]
    while True:
        yield draw.choice(kinds)(random.Random(draw.getrandbits(64)))


def _damage(draw: random.Random) -> tuple[str, Mutate]:
    """A flipped bit, a cut or a hole in one of the files, as after a disk error."""
    name, place, how = draw.choice([MANIFEST, TENSORS]), draw.random(), draw.choice(["bit", "cut", "zeros", "twice"])

    def mutate(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        at = int(place * len(data))
        if how == "bit":
            data[at] ^= 1 << draw.randrange(8)
        elif how == "cut":
            del data[at:]
        elif how == "zeros":
            data[at : at + 64] = bytes(len(data[at : at + 64]))
        else:
            data += data[at:]
        (folder / name).write_bytes(data)

    return f"{how} of {name} at {place:.4f}", mutate


def _manifest(draw: random.Random) -> tuple[str, Mutate]:
    """Another value, or none, for one entry of the manifest."""
    place, value, how = draw.random(), draw.choice(VALUES), draw.choice(["set"] * 8 + ["delete", "rename", "wrap"])
    sealed, older = draw.random() < 0.8, draw.random() < 0.15

    def mutate(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        everything = [path for path in _paths(manifest) if path[0] not in ("digest", "tensors_sha256", "versions")]
        paths = [path for path in everything if path[0] != "tensors"]
        paths += [path for path in everything if path[0] == "tensors"][::7]
        path = paths[int(place * len(paths))]
        node = manifest
        for key in path[:-1]:
            node = node[key]
        if how == "set":
            node[path[-1]] = value
        elif how == "wrap":
            node[path[-1]] = [node[path[-1]]]
        else:
            old = node.pop(path[-1])
            if how == "rename" and isinstance(node, dict):
                node[f"{path[-1]}_"] = old
        if older:  # the first format, which had no digest
            with contextlib.suppress(KeyError, TypeError, IndexError, AttributeError):
                manifest["env"] = manifest.pop("environment")["class"].partition(":")[2]
                manifest["tensors"] = {name: entry[1] for name, entry in manifest["tensors"].items()}
            manifest["format_version"] = 1
        _write(folder, manifest, sealed)

    words = "" if how != "set" else f" to {str(value)[:40]!r}"
    return f"manifest {how} at {place:.4f}{words}{'' if sealed else ', not sealed'}{', format 1' * older}", mutate


def _tensor(draw: random.Random) -> tuple[str, Mutate]:
    """One tensor that is missing, of another shape or type, or full of invalid values."""
    place, sealed = draw.random(), draw.random() < 0.9
    how = draw.choice(["delete", "rename", "flat", "longer", "empty", "type", "fill", "fill", "one"])
    fill = draw.choice([math.nan, math.inf, -math.inf, -1, 10**9, -(10**9), 1e30, 255])
    kinds = [torch.float64, torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.uint8, torch.int32]
    kind = draw.choice(kinds)

    def mutate(folder: Path) -> None:
        tensors = load_file(folder / TENSORS)
        name = sorted(tensors)[int(place * len(tensors))]
        value = tensors.pop(name).clone()
        full = torch.full(value.shape, fill, dtype=torch.float64).nan_to_num(99.0, 98.0, 97.0)
        if value.dtype.is_floating_point:
            full = torch.full(value.shape, fill, dtype=torch.float64)
        full = full.to(value.dtype)
        if how == "rename":
            tensors[draw.choice([f"{name}x", f"../{name}", "policy/" + name, "rank1/" + name])] = value
        elif how == "flat":
            tensors[name] = value.flatten()[None]
        elif how == "longer":
            tensors[name] = torch.cat([value.flatten(), value.flatten()])
        elif how == "empty":
            tensors[name] = value.flatten()[:0]
        elif how == "type":
            tensors[name] = value.to(kind)
        elif how == "fill":
            tensors[name] = full
        elif how == "one" and value.numel():
            value.view(-1)[draw.randrange(value.numel())] = full.view(-1)[0]
            tensors[name] = value
        _write_tensors(folder, bytes_of(tensors), tensors, sealed)

    words = {"fill": f" {fill}", "one": f" {fill}", "type": f" {kind}"}.get(how, "")
    return f"tensor {how}{words} at {place:.4f}{'' if sealed else ', not sealed'}", mutate


def _header(draw: random.Random) -> tuple[str, Mutate]:
    """A forged tensor file: wrong lengths, offsets and types; a pickle; another format."""
    dtype = draw.choice(["F32", "I64", "F8_E4M3", "X", "", None])
    shape = draw.choice([[2**40], [-1], [2**62, 2**62], [10**9, 10**9], [], [0], "x", [1.5]])
    ends = draw.choice([[0, 2**40], [8, 0], [0, 4], [-4, 4], [2**63, 2**64]])
    length = draw.choice([None, 0, 2, 2**31, 2**63 - 1, 10**9])
    content = draw.choice(["header", "header", "header", "pickle", "zip", "text", "deep"])

    def mutate(folder: Path) -> None:
        names = list(json.loads((folder / MANIFEST).read_text())["tensors"])
        entry = {"dtype": dtype, "shape": shape, "data_offsets": ends}
        text = json.dumps(dict.fromkeys(draw.sample(names, 3), entry)).encode()
        if content == "deep":
            text = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
        data = struct.pack("<Q", len(text) if length is None else length) + text + bytes(64)
        if content == "pickle":
            data = b"cos\nsystem\n(S'touch /tmp/engram-was-here'\ntR."
        elif content == "zip":
            data = b"PK\x03\x04" + bytes(200)
        elif content == "text":
            data = b"<html>404</html>"
        _write_tensors(folder, data, None, True)

    return f"tensor file {content} {dtype} {str(shape)[:20]} {ends} length {length}", mutate


def _file(draw: random.Random) -> tuple[str, Mutate]:
    """A pipe, a device, a link, a folder or nothing in place of one of the files."""
    name = draw.choice([MANIFEST, TENSORS])
    how = draw.choice(["pipe", "zero", "random", "loop", "dangling", "folder", "missing", "huge", "swapped", "bomb"])

    def mutate(folder: Path) -> None:
        file = folder / name
        content = file.read_bytes()
        file.unlink()
        if how == "pipe":
            os.mkfifo(file)
        elif how in ("zero", "random"):
            file.symlink_to(f"/dev/{'zero' if how == 'zero' else 'urandom'}")
        elif how in ("loop", "dangling"):
            file.symlink_to(file if how == "loop" else folder / "nowhere")
        elif how == "folder":
            file.mkdir()
        elif how == "huge":
            with open(file, "wb") as stream:
                stream.write(content)
                stream.truncate(1 << 42)
        elif how == "swapped":
            other = folder / (MANIFEST if name == TENSORS else TENSORS)
            file.write_bytes(other.read_bytes())
        elif how == "bomb":
            file.write_bytes(b"[" * 10**6 if draw.random() < 0.5 else b'{"format": ' + b"9" * 10**6 + b"}")

    return f"{how} as {name}", mutate


def _paths(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    here = [path] if path else []
    return here + [found for key, entry in entries for found in _paths(entry, (*path, key))]


def _write(folder: Path, manifest: Any, sealed: bool) -> None:
    if sealed:
        manifest["digest"] = digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def _write_tensors(folder: Path, data: bytes, tensors: dict[str, torch.Tensor] | None, sealed: bool) -> None:
    (folder / TENSORS).write_bytes(data)
    if sealed:
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["tensors_sha256"] = hashlib.sha256(data).hexdigest()
        if tensors is not None:
            kinds = {name: str(value.dtype).removeprefix("torch.") for name, value in tensors.items()}
            manifest["tensors"] = {name: [kinds[name], list(value.shape)] for name, value in tensors.items()}
        _write(folder, manifest, True)


# -- the survey --------------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """Counts of outcomes, and the failed cases."""

    tried: int = 0
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    """Failed cases, each with its outcome."""
    outcomes: Counter[str] = field(default_factory=Counter)


def make_runs(folder: Path, names: tuple[str, ...] = tuple(RUNS)) -> dict[str, Path]:
    """Trains the runs whose checkpoints are changed, a few seconds each."""
    for name in names:
        words = f"{RUNS[name]} {COMMON} --no-baseline --run-dir {folder / name}".split()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            train(words)
    return {name: folder / name for name in names}


def survey(seed: int = 0, count: int = 1000, through: Through = "load", runs: dict[str, Path] | None = None) -> Found:
    """Runs `count` cases and counts the outcomes.

    Args:
        seed: seed of the cases.
        count: number of cases.
        through: `agents.load` and a learner's `predict` and `learn`; or one of the commands.
        runs: from `make_runs`; None: trained now.
    """
    found = Found()
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = make_runs(Path(place)) if runs is None else runs
        each = cases(seed)
        for number in range(count):
            name, mutate = next(each)
            run = list(made.values())[number % len(made)]
            copy = Path(place) / "case" / run.name
            shutil.rmtree(copy.parent, ignore_errors=True)
            shutil.copytree(run, copy)
            checkpoint = latest_checkpoint(copy)
            for other in (copy / "checkpoints").iterdir():
                if other != checkpoint:
                    shutil.rmtree(other)
            mutate(checkpoint)
            outcome = _try(copy, checkpoint, through)
            found.tried += 1
            found.outcomes[outcome.partition(":")[0]] += 1
            if outcome.startswith(("refused", "works", "diverged")):
                found.passed += 1
            else:
                found.failed.append(f"{number} {run.name}: {name}: {outcome}")
    return found


def _try(run: Path, checkpoint: Path, through: Through) -> str:
    """The outcome of one case: text that begins with refused, works or diverged if the case passes."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before, state = signal.signal(signal.SIGALRM, late), torch.get_rng_state()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        return _by_load(run, checkpoint) if through == "load" else _by_command(run, through)
    except CheckpointError as error:
        if "\n" in str(error) or str(checkpoint) not in str(error):
            return f"a message of no use: {error}"
        return f"refused: {error}"
    except NonFiniteError as error:
        return f"diverged: {error}" if "\n" not in str(error) else f"a message of no use: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        torch.set_rng_state(state)


def _by_load(run: Path, checkpoint: Path) -> str:
    config = load_config(run / "config.yaml")
    env = make_env(config.env, config.num_envs, **config.env_kwargs)
    model = load(checkpoint, env, device="cpu")
    space = env.single_observation_space
    obs = np.stack([space.sample() for _ in range(4)])
    action, _ = model.predict(obs, None, None)
    assert len(action) == 4
    model.learn(1, reset_num_timesteps=False)
    return "works"


def _by_command(run: Path, through: Through) -> str:
    from agents.evaluation.command import main as evaluate

    said, status = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            if through == "evaluate":
                evaluate([str(run), "--episodes", "2", "--num-envs", "2"])
            else:
                train(["--resume", str(run), "--total-timesteps", "128"])
        except SystemExit as error:
            status = int(error.code or 0)
    lines = said.getvalue().strip().splitlines()
    last = lines[-1] if lines else ""
    if status == 0:
        return "works"
    if "error:" in last and (str(run) in last or "not finite" in last):
        return f"refused: {last}" if str(run) in last else f"diverged: {last}"
    return f"status {status}: {last}"


@dataclass
class Arguments:
    """Arguments of the command."""

    count: int = 1000
    """Number of cases."""
    seed: int = 0
    """Seed of the cases."""
    through: Through = "load"
    """Load with `agents.load`, `evaluate.py` or `train.py --resume`."""


def main() -> None:
    """Prints the counts and every failed case."""
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    started = time.perf_counter()
    found = survey(arguments.seed, arguments.count, arguments.through)
    print(*found.failed, sep="\n")
    counts = f"tried {found.tried}, passed {found.passed}, failed {len(found.failed)}"
    print(f"through {arguments.through}: {counts} ({dict(found.outcomes)}, {time.perf_counter() - started:.0f} s)")
    sys.exit(bool(found.failed))


if __name__ == "__main__":
    main()
