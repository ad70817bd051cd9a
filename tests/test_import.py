"""Importing this project changes nothing in the process of whoever imports it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

LOOK = """
import json, locale, logging, os, random, signal, sys, threading, warnings
import gymnasium, numpy, stable_baselines3, torch  # what they do themselves is theirs
import sb3_contrib, torch.utils.tensorboard

def generator(state):
    return hash(str(state))

def look():
    return {
        "validation": torch.distributions.Distribution._validate_args,
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "grad": torch.is_grad_enabled(),
        "seed": torch.initial_seed(),
        "generators": [generator(torch.get_rng_state().tolist()), generator(numpy.random.get_state()),
                       generator(random.getstate())],
        "precision": [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32,
                      torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "numpy errors": numpy.geterr(),
        "warnings": [str(entry) for entry in warnings.filters],
        "logging": [logging.root.level, len(logging.root.handlers)],
        "environment": dict(os.environ),
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "hooks": [repr(sys.excepthook), repr(sys.displayhook), repr(threading.excepthook)],
        "path": sys.path,
        "folder": os.getcwd(),
        "running": threading.active_count(),
        "recursion": sys.getrecursionlimit(),
        "locale": locale.setlocale(locale.LC_ALL),
        "cuda": torch.cuda.is_initialized(),
    }

before = look()
import agents, agents.environments, envs, policies, policies.memories
import agents.evaluation, agents.view.session
imported = look()
model = agents.PPO("MemoryPolicy", "Engram/RepeatFirst-v0", n_steps=8, device="cpu", policy_kwargs={"memory": "gru"})
model.learn(16)
used = look()
print(json.dumps([before, imported, used]))
"""


def test_importing_and_training_leave_the_process_as_it_was(tmp_path: Path) -> None:
    """Training draws random numbers, as SB3's does; nothing else differs after it."""
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = subprocess.run([sys.executable, "-c", LOOK], cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1, "somebody printed"
    before, imported, used = json.loads(done.stdout.splitlines()[-1])
    assert before["validation"] is True
    assert imported == before
    used["environment"].pop("TORCHINDUCTOR_CACHE_DIR", None)  # torch's
    for name in ("seed", "generators", "warnings"):  # torch's optimisers import SymPy, which has warnings of its own
        del used[name], before[name]
    assert used == before
