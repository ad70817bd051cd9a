"""Trains `stack-rnn` and `lstm` with equal steps on every grammar of Stack-RNN's paper (Joulin and Mikolov 2015).

    python benchmarks/stack_grammar.py --jobs 1
    python benchmarks/stack_grammar.py --out results --overwrite    # replaces the published files
    python benchmarks/stack_grammar.py --collect                    # only runs that exist under runs/grammars

Each run under `runs/grammars/` is `python train.py --recipe stack-anbn --memory MEMORY --env-kwargs grammar=NAME
n_max=19 score_all=true`. The agent is then evaluated greedily on new streams of each n from 2 to 59. As in the paper,
it is trained on every symbol, and the score is the share of these n for which every sequence is right; with n up to 19
in training, 31 % is possible without generalisation. `stack-rnn` is scored with continuous and with rounded actions.
`OUT/stack-grammar.md` and `.csv` have a row for each grammar and memory.
"""

from __future__ import annotations

import csv
import io
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from trainings import ROOT, Training, train_all

from agents import latest_checkpoint, load, make_env
from agents.common.files import replace_file
from agents.comparison.command import refuse_existing
from agents.evaluation import evaluate
from agents.learner import MemoryOnPolicyAlgorithm
from policies.memories.stack_rnn import StackRNN

NAME = "stack-grammar"
PAPER = {
    "anbn": (100, 100, 100),
    "anbncn": (100, 100, 100),
    "anbncndn": (68.3, 100, 100),
    "anb2n": (75, 100, 100),
    "anbmcnm": (100, 43.3, 100),
}
"""Table 2 of the paper: lstm, stack-rnn, stack-rnn rounded."""
TRAINED, TESTED = range(2, 20), range(2, 60)
SCORES = ("trained_n", "all_n", "all_n_rounded")


@dataclass
class Args:
    grammars: tuple[str, ...] = tuple(PAPER)
    """Grammars of the environment; default: those of the paper's table."""
    memories: tuple[str, ...] = ("stack-rnn", "lstm")
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each agent is trained once with each seed."""
    steps: int = 800_000
    """Environment steps of each training."""
    jobs: int = 2
    """Number of parallel trainings, one thread each."""
    collect: bool = False
    """Train nothing; compare the finished runs only."""
    runs: Path = ROOT / "runs" / "grammars"
    """Folder of the runs."""
    out: Path | None = None
    """Folder of the files; default: the folder of the runs."""
    overwrite: bool = False
    """Replace existing files."""


def training(args: Args, grammar: str, memory: str, seed: int) -> Training:
    words = [
        "--recipe",
        "stack-anbn",
        "--no-baseline",
        "--env-kwargs",
        f"grammar={grammar}",
        "n_max=19",
        "score_all=true",
        "--memory",
        memory,
    ]
    words += ["--seed", str(seed), "--total-timesteps", str(args.steps), "--eval-episodes", "0"]
    return Training(args.runs / f"{grammar}-{memory}-{seed}", tuple(words))


def solved(model: MemoryOnPolicyAlgorithm, grammar: str) -> list[bool]:
    """Whether every sequence is right, for each n: 32 streams, each long enough for one sequence of any grammar."""

    def right(n: int) -> bool:
        env = make_env("Engram/StackGrammar-v0", 32, grammar=grammar, n_min=n, n_max=n, length=5 * n + 5)
        return evaluate(model, env, 32, deterministic=True, seed=10_000).metrics["success"] == 1

    return [right(n) for n in TESTED]


def scores(folder: Path, grammar: str) -> dict[str, float]:
    """Percentage of solved n, by score."""
    model = load(latest_checkpoint(folder), device="cpu")
    plain = solved(model, grammar)
    found = {"trained_n": percent(plain[: len(TRAINED)]), "all_n": percent(plain)}
    memory = model.policy.memory
    if isinstance(memory, StackRNN):
        memory.rounding = "evaluation"
        found["all_n_rounded"] = percent(solved(model, grammar))
    return found


def percent(flags: list[bool]) -> float:
    return 100 * sum(flags) / len(flags)


def table(rows: list[dict[str, str]], args: Args, command: str) -> str:
    """Markdown table of the mean over seeds and the score of each seed."""
    lines = [f"`{command}`", "", "Share of n solved, in %: the mean, then each seed.", ""]
    lines += ["| grammar | memory | n 2–19 | n 2–59 | n 2–59, rounded | paper | paper, rounded |", "|" + "---|" * 7]
    for grammar in args.grammars:
        for memory in args.memories:
            selected = [row for row in rows if (row["grammar"], row["memory"]) == (grammar, memory)]
            if not selected:
                continue
            cells = []
            for name in SCORES:
                each = [float(row[name]) for row in selected if row[name]]
                mean = f"{sum(each) / len(each):.1f} ({', '.join(f'{one:.0f}' for one in each)})" if each else "–"
                cells.append(mean)
            lstm, plain, rounded = PAPER.get(grammar, ("–", "–", "–"))
            paper = {"lstm": (lstm, "–"), "stack-rnn": (plain, rounded)}.get(memory, ("–", "–"))
            lines.append("| " + " | ".join([grammar, memory, *cells, *map(str, paper)]) + " |")
    return "\n".join(lines) + "\n"


def main(args: Args) -> None:
    out = args.out or args.runs
    if not args.overwrite:
        refuse_existing(out, NAME)
    out.mkdir(parents=True, exist_ok=True)
    named = {
        (grammar, memory, seed): training(args, grammar, memory, seed)
        for seed in args.seeds
        for grammar in args.grammars
        for memory in args.memories
    }
    if not args.collect:
        train_all(named.values(), args.jobs)
    rows = []
    for (grammar, memory, seed), one in named.items():
        if one.complete:
            found = {name: f"{value:.2f}" for name, value in scores(one.folder, grammar).items()}
            what = {"grammar": grammar, "memory": memory, "seed": str(seed), "steps": str(args.steps)}
            rows.append({**what, **dict.fromkeys(SCORES, ""), **found})
    if not rows:
        raise ValueError(f"{args.runs} has none of these trainings")
    text = table(rows, args, shlex.join(["python", "benchmarks/stack_grammar.py", *sys.argv[1:]]))
    print(text)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(out / f"{NAME}.csv", file.getvalue())
    replace_file(out / f"{NAME}.md", text)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
