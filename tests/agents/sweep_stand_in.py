"""What a sweep needs of `train.py`, in milliseconds: a curve that rises to the learning rate, and what comes of it.

Entries of the configuration have it sleep (`vf_coef` seconds a row), fail (`ent_coef` 1), die (`ent_coef` 9), or wait
half way to be stopped (`max_grad_norm` 9 with a learning rate below 0.2; 8 in `trial-0000-seed-1`, unless resumed).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml

ROWS = 10

words = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=False))  # after the number of the parent process
folder = Path(words.get("--run-dir") or words["--resume"])
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
if "--resume" in words:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    done = max(int(path.parent.name.split("_")[1]) for path in folder.glob("checkpoints/*/manifest.json"))
else:
    config = yaml.safe_load(Path(words["--recipe"]).read_text()) | {"seed": int(words["--seed"])}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "progress.csv").write_text("time/total_timesteps,rollout/ep_rew_mean,task/errors\n")
    done = 0
with open(folder / "starts.txt", "a") as file:
    file.write(f"{done}\n")
if config["ent_coef"] == 1:
    print("warming up\nerror: made to fail")
    sys.exit(2)
if config["ent_coef"] == 9:
    os.kill(os.getpid(), signal.SIGKILL)
goal = config["learning_rate"] + config["seed"]
bad = config["max_grad_norm"] == 9 and config["learning_rate"] < 0.2
second = config["max_grad_norm"] == 8 and folder.name == "trial-0000-seed-1" and "--resume" not in words
for row in range(done + 1, ROWS + 1):
    time.sleep(config["vf_coef"])
    waits = (bad or second) and row > ROWS / 2
    for _ in range(600 * waits):
        if not stopped:
            time.sleep(0.1)
    step = row * config["total_timesteps"] // ROWS
    with open(folder / "progress.csv", "a") as file:
        file.write(f"{step},{goal * row / ROWS},{10 - goal * row / ROWS}\n")
    if stopped:
        (folder / f"checkpoints/step_{row}").mkdir(parents=True)
        (folder / f"checkpoints/step_{row}/manifest.json").write_text("{}")
        sys.exit(130)
(folder / "summary.json").write_text(json.dumps({"mean_return": goal, "metrics": {"errors": 10 - goal}}))
