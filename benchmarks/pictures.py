"""Draws the pictures of README.md and docs/ anew, and records what each was drawn from in results/pictures.json.

    python benchmarks/pictures.py                          # all that are drawn from tables in results/: seconds
    python benchmarks/pictures.py maze.gif mapping.png     # those of trained agents, trained first if need be
    python benchmarks/pictures.py --list                   # every picture with the command that draws it

`tests/test_pictures.py` fails where a picture is older than its table or its drawing code, shows other panels than its
memory has now, or was drawn of another training than its recipe's.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

import scaling_pictures
import torch
from PIL import Image
from trainings import Training

from agents import LEARNERS, latest_checkpoint, load
from agents.checkpoint.format import read_manifest
from agents.common.files import replace_file
from agents.common.plain_yaml import read_yaml_file
from agents.comparison import curves, intervals, pictures
from agents.comparison.pictures import GREY, Line
from agents.learner import MemoryOnPolicyAlgorithm
from agents.run.recipes import RECIPES, load_config
from agents.view.scene import draw
from agents.view.session import Session
from agents.view.window import record

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
RECORD = RESULTS / "pictures.json"
SEED = 10_000
"""Of the episodes shown; that of `evaluate.py`."""
PAPER = "175: MNM paper, figure 6: A2C, 250,000 episodes of 251 steps"


@dataclass(frozen=True)
class FromTable:
    """Curves of a table of points."""

    table: str
    lines: tuple[Line, ...] = ()
    axis: curves.Axis = "steps"
    titles: tuple[str, ...] = ()
    """Of the panels; empty: as the table calls them."""

    def source(self) -> dict[str, Any]:
        """What the picture depends on."""
        code = "".join(inspect.getsource(module) for module in (curves, intervals, pictures))
        return {"table": self.table, "digest": digest((RESULTS / self.table).read_text(), code, repr(self))}

    def draw(self, file: Path) -> dict[str, Any]:
        """Write it; what is to be recorded beside its source."""
        found = curves.read_points(RESULTS / self.table)
        drawn, panels = pictures.paper(len(found))
        for number, (axes, points) in enumerate(zip(panels, found, strict=True)):
            pictures.draw_curves(axes, points.groups, points.score, self.axis, self.lines)
            axes.set_title(self.titles[number] if self.titles else points.env, loc="left", fontsize=11)
        replace_file(file, pictures.png(drawn))
        return {}


@dataclass(frozen=True)
class OfStudy:
    """A study of `benchmarks/scaling.py`."""

    study: str

    def source(self) -> dict[str, Any]:
        """What the picture depends on."""
        table = f"scaling/{self.study}.csv"
        return {"table": table, "digest": digest((RESULTS / table).read_text(), inspect.getsource(scaling_pictures))}

    def draw(self, file: Path) -> dict[str, Any]:
        """Write it; what is to be recorded beside its source."""
        scaling_pictures.draw(file, self.study, scaling_pictures.read(RESULTS / "scaling" / f"{self.study}.csv"))
        return {}


@dataclass(frozen=True)
class OfAgent:
    """The window on an agent that a recipe trains: a moment (.png), or the first steps of an episode (.gif)."""

    recipe: str
    step: int
    """The moment, or how many steps."""
    least: float = 1.0
    """Share of the recipe's training that the agent shown has at least."""

    def training(self, runs: Path) -> Training:
        """The run that is shown."""
        words = ["--recipe", self.recipe, "--seed", "0", "--no-baseline"]
        lesson = load_config(RECIPES / f"{self.recipe}.yaml").follows
        if lesson is not None:
            words += ["--init-from", str(OfAgent(lesson, 0).training(runs).folder)]
        return Training(runs / self.recipe, tuple(words))

    def train(self, runs: Path) -> Path:
        """The folder of the run, trained first where it is not, after the lesson that it follows."""
        lesson = load_config(RECIPES / f"{self.recipe}.yaml").follows
        if lesson is not None:
            OfAgent(lesson, 0).train(runs)
        training = self.training(runs)
        training.train()
        return training.folder

    def source(self) -> dict[str, Any]:
        """What the picture depends on: the recipe's settings, and the panels that its memory has."""
        file = RECIPES / f"{self.recipe}.yaml"
        entries = read_yaml_file(file, "recipe")
        entries.pop("expect", None)  # words
        session = self.session(None)
        for _ in range(min(self.step, 3)):
            session.step()
        return {
            "recipe": self.recipe,
            "settings": digest(json.dumps(entries, sort_keys=True)),
            "panels": list(session.scene().panels),
            "step": self.step,
        }

    def session(self, checkpoint: Path | None) -> Session:
        """With the agent of a checkpoint, or one that has learned nothing."""
        config = load_config(RECIPES / f"{self.recipe}.yaml")
        model: MemoryOnPolicyAlgorithm
        if checkpoint is None:
            env = config.make_env(getattr(config.learner, "n_minibatches", 1))
            model = LEARNERS[config.algo]("MemoryPolicy", env, **config.learner_kwargs())
        else:
            model = load(checkpoint)
        torch.manual_seed(SEED + 1)
        title = f"{config.env.removeprefix('Engram/')} · {config.memory}"
        words = f"{config.memory} · {type(model).__name__} · {model.num_timesteps:,} steps"
        known = model.learns_from_targets
        env = config.make_env(1, render_mode="rgb_array")
        return Session(env, model.policy, title, words, known, SEED, not known)

    def draw(self, file: Path) -> dict[str, Any]:
        """Write it, after the training where that is not done; the steps of that training."""
        checkpoint = latest_checkpoint(RUNS / self.recipe if UNFINISHED else self.train(RUNS))
        session = self.session(checkpoint)
        if file.suffix == ".gif":
            staged = file.with_name(f".{file.stem}.partial.gif")
            record(session, staged, 6.0, self.step)
            staged.replace(file)
        else:
            for _ in range(self.step):
                session.step()
            image = io.BytesIO()
            Image.fromarray(draw(session.scene())).save(image, "png", optimize=True)
            replace_file(file, image.getvalue())
        return {"trained": read_manifest(checkpoint)["counters"]["num_timesteps"]}


Drawn = FromTable | OfStudy | OfAgent
STUDIES = ("agents", "envs", "length", "levels", "ranks", "slots", "width")
PICTURES: dict[str, Drawn] = {
    "compare.png": FromTable(
        "compare-curves.csv",
        (Line(0.9, "threshold 0.9", "-."), Line(0.231, "random actions", ":", GREY)),
        titles=("RepeatFirst: 40,000 steps of PPO",),
    ),
    "maze-ppo-long.png": FromTable(
        "maze-ppo-long-curves.csv",
        (Line(175.0, PAPER), Line(0.4, "random actions", ":", GREY)),
        "episodes",
        ("Invisible-goal maze, PPO: 10,000 episodes of 200 steps",),
    ),
    "maze-a2c.png": FromTable(
        "maze-a2c-curves.csv",
        (Line(175.0, PAPER), Line(0.4, "random actions", ":", GREY)),
        "episodes",
        ("Invisible-goal maze, A2C: 100,000 episodes of 200 steps",),
    ),
    "memories-maze-10k.png": FromTable(
        "memories-maze-10k-curves.csv",
        (Line(0.4, "random actions", ":", GREY),),
        "episodes",
        ("Invisible-goal maze, PPO, equal parameters: 10,000 episodes",),
    ),
    "supervised-tasks.png": FromTable("supervised-tasks-curves.csv"),
    "copy.png": FromTable("copy-curves.csv"),
    "double-copy.png": FromTable("double-copy-curves.csv"),
    "repeat-copy.png": FromTable("repeat-copy-curves.csv"),
    "n-grams.png": FromTable("n-grams-curves.csv"),
    "mnist-recall.png": FromTable("mnist-recall-curves.csv"),
    "mapping-deltanet.png": FromTable("mapping-deltanet-curves.csv"),
    "mapping-explore.png": FromTable("mapping-explore-curves.csv"),
    "associative-recall.png": FromTable("associative-recall-curves.csv"),
    "priority-sort.png": FromTable("priority-sort-curves.csv"),
    "dictionary.png": FromTable("dictionary-curves.csv"),
    "dictionary-words.png": FromTable("dictionary-words-curves.csv"),
    **{f"scaling/{study}.png": OfStudy(study) for study in STUDIES},
    "maze.gif": OfAgent("maze-ppo", 84),
    "mapping.png": OfAgent("mapping-9", 47, least=0.4),
    "sorting.png": OfAgent("priority-sort", 33),
}
"""By file in results/, what draws it here."""
ELSEWHERE = {
    "kanerva_binarized_mnist.png": "python benchmarks/kanerva_images.py --source binarized-mnist --minutes 60 "
    "--kl-z-warm-up 1 --kl-y-warm-up 1 --png results/kanerva_binarized_mnist.png",
    "kanerva_inferred.png": "python benchmarks/kanerva_images.py --form block --size large-patches --latent-size 768 "
    "--reads 1 --batch 10 --precision bfloat16 --minutes 1.2 --png results/kanerva_inferred.png",
    "kanerva_spoilt.png": "python benchmarks/kanerva_images.py --form block --size large-patches --latent-size 768 "
    "--reads 1 --batch 10 --precision bfloat16 --memory-size 32 --spoilt --minutes 2 --png results/kanerva_spoilt.png",
    "saliency.png": "python evaluate.py runs/maze-ppo --saliency results/saliency.png",
    "sweep-curves.png": "python train.py --sweep repeat-first --jobs 2 --trials 12 --run-dir runs/sweep",
    "sweep-history.png": "python train.py --sweep repeat-first --jobs 2 --trials 12 --run-dir runs/sweep",
    "sweep-importance.png": "python train.py --sweep repeat-first --jobs 2 --trials 12 --run-dir runs/sweep",
}
"""Pictures that another command draws."""
RUNS = ROOT / "runs" / "pictures"
"""Trained agents."""
UNFINISHED = False
"""Whether agents are shown as far as they are trained."""


def digest(*texts: str) -> str:
    """The first digits of SHA-256, whatever the line ends."""
    joined = "\0".join(text.replace("\r\n", "\n") for text in texts)
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def content(file: Path) -> str:
    """The digest of a picture's file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def recorded() -> dict[str, dict[str, Any]]:
    """What was recorded of each picture when it was drawn."""
    found: dict[str, dict[str, Any]] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    return found


def command(name: str) -> str:
    """How a picture is drawn."""
    return ELSEWHERE.get(name) or f"python benchmarks/pictures.py {name}"


def redraw(name: str) -> None:
    """Draw a picture and record what it was drawn from."""
    file, picture = RESULTS / name, PICTURES[name]
    beside = picture.draw(file)
    found = recorded() | {name: {"content": content(file), **picture.source(), **beside}}
    replace_file(RECORD, json.dumps(dict(sorted(found.items())), indent=1) + "\n")
    print(file, flush=True)


def main() -> None:
    global RUNS, UNFINISHED
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="PICTURE", help="of results/; default: those drawn from tables")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the trained agents")
    parser.add_argument("--unfinished", action="store_true", help="show agents as far as they are trained")
    parser.add_argument("--list", action="store_true", help="every picture with the command that draws it")
    args = parser.parse_args()
    RUNS, UNFINISHED = args.runs, args.unfinished
    if args.list:
        for name in sorted({*PICTURES, *ELSEWHERE}):
            print(f"{name:32} {command(name)}")
        return
    if unknown := {*args.names} - {*PICTURES}:
        raise SystemExit(f"error: {', '.join(sorted(unknown))}: not drawn here; known are {', '.join(PICTURES)}")
    for name in args.names or [name for name, picture in PICTURES.items() if not isinstance(picture, OfAgent)]:
        redraw(name)


if __name__ == "__main__":
    main()
