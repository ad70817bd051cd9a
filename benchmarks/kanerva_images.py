"""Train Kanerva++'s generative model on black-and-white images and report its conditional bound on the test images.

    python benchmarks/kanerva_images.py --source digits --minutes 1     # needs no file
    python benchmarks/kanerva_images.py --source binarized-mnist --minutes 10 --csv results/kanerva.csv
    python benchmarks/kanerva_images.py --source omniglot --size paper --device cuda --minutes 60 --png omniglot.png

Nats an image, less is better: reconstruction, KL(Z) and KL(Y) apart, by both branches of the paper's figure 5. The
memory is written from the images that are then scored, and nothing is charged for it: these are conditional bounds, not
to be compared with the likelihood of a model without such a memory. The paper gives 41.58 on binarised MNIST and 66.24
on Omniglot, after 500 or 1,000 epochs of a ResNet18; its Omniglot of 28 x 28 pixels is another one than ours.

Not as in the paper: AdamW instead of LARS with Adam, divergences that are counted in little by little (else a short
training ends where Z says nothing), and training on the training split alone.
"""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from envs.tasks.image_data import load_images
from envs.tasks.image_episode import LEVELS, NOISE, noise_table
from policies.allocator import tune_allocator
from policies.memories.kanerva_model import KanervaModel

PAPER = {"binarized-mnist": 41.58, "omniglot": 66.24}
PARTS = ("bound", "reconstruction", "kl_z", "kl_y")
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        **{"memory_size": 32, "crop_size": 16, "embedding_size": 128, "dense_size": 128, "writer_features": 32},
        **{"prior_features": 8, "decoder_features": 32, "encoder_channels": (8, 16, 32), "encoder_blocks": 1},
    },
    "medium": {
        **{"memory_size": 32, "crop_size": 16, "embedding_size": 256, "dense_size": 256, "writer_features": 64},
        **{"prior_features": 16, "decoder_features": 128, "encoder_channels": (32, 64, 128), "encoder_blocks": 1},
    },
    "paper": {},  # the model's defaults
}


@dataclass
class Args:
    source: Literal["digits", "mnist", "binarized-mnist", "omniglot"] = "binarized-mnist"
    """The images; those of digits and mnist are cut at half ink."""
    data_dir: Path | None = None
    """Looked into first for files."""
    minutes: float = 10.0
    """Training ends after so many minutes; the learning rate falls to 0 by then."""
    epochs: float = math.inf
    """Or after so many passes over the training images, whichever is first."""
    length: int = 10
    """T, images of an episode."""
    batch: int = 8
    """Episodes of an update."""
    latent_size: int = 32
    """Width of Z."""
    reads: int = 2
    """K, windows read for an image."""
    size: Literal["small", "medium", "paper"] = "small"
    """Of the networks: for a CPU core, between, or the paper's."""
    learning_rate: float = 2e-3
    """At its highest, after a twentieth of the training."""
    kl_z_warm_up: float = 0.3
    """Share of the training in which the weight of KL(Z) grows from 0 to 1."""
    kl_y_warm_up: float = 0.3
    """Likewise for KL(Y). Where it takes longer, what keys say is cheaper for a while than what Z says."""
    weight_decay: float = 1e-3
    """Of weights; biases and normalisation have none."""
    seed: int = 0
    """Of parameters, episodes and noise."""
    device: str = "cpu"
    """Where everything lives."""
    threads: int = 1
    """CPU threads."""
    csv: Path | None = None
    """Write the table here."""
    png: Path | None = None
    """Draw originals, recalls, noisy images cleaned up, and new images here."""


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    tune_allocator()
    torch.manual_seed(args.seed)
    train, test = (black_and_white(args, split) for split in ("train", "test"))
    sizes = {"latent_size": args.latent_size, "reads": args.reads, **SIZES[args.size]}
    model = KanervaModel((1, *train.shape[1:]), **sizes).to(args.device)
    spent = fit(model, train, args)
    rows = [score(model, test, args, path) for path in ("posterior", "memory")]
    shared = {
        **{"source": args.source, "images": len(test), "paper": PAPER.get(args.source, ""), **spent},
        **{"length": args.length, "batch": args.batch, "latent_size": args.latent_size, "reads": args.reads},
        **{"size": args.size, "parameters": sum(p.numel() for p in model.parameters())},
        **{
            "learning_rate": args.learning_rate,
            "kl_z_warm_up": args.kl_z_warm_up,
            "kl_y_warm_up": args.kl_y_warm_up,
            "seed": args.seed,
            "device": args.device,
        },
    }
    report(args, rows, shared, pixel_cost(train, test))
    if args.csv is not None:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], *shared])
            writer.writeheader()
            writer.writerows({**row, **shared} for row in rows)
    if args.png is not None:
        draw(model, test, args, args.png)


def black_and_white(args: Args, split: str) -> Tensor:
    """Images of a split, uint8 `[K, H, W]`, 0 paper and 1 ink."""
    return (load_images(args.source, split, data_dir=args.data_dir, device=args.device).pixels >= 128).to(torch.uint8)


def episodes(images: Tensor, length: int, batch: int) -> Iterator[Tensor]:
    """All images in random order, as episodes `[length, batch, 1, H, W]`; what is left over is left out."""
    order = torch.randperm(len(images), device=images.device)
    for chunk in order[: len(order) // length * length].split(length * batch):
        yield images[chunk].view(length, -1, 1, *images.shape[1:]).float()


def fit(model: KanervaModel, images: Tensor, args: Args) -> dict[str, Any]:
    """Train within the budget; what was spent."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate)
    model.train()
    start = told = time.perf_counter()
    updates, seen, since, progress = 0, 0, 0, 0.0
    sums = torch.zeros(len(PARTS), device=args.device)  # over the updates since it last told
    while progress < 1:
        for episode in episodes(images, args.length, args.batch):
            progress = max((time.perf_counter() - start) / 60 / args.minutes, seen / len(images) / args.epochs)
            if progress >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * one_cycle(progress)
            costs = model(episode)
            optimizer.zero_grad()
            weight_z, weight_y = (grown(progress, share) for share in (args.kl_z_warm_up, args.kl_y_warm_up))
            (costs["reconstruction"] + weight_z * costs["kl_z"] + weight_y * costs["kl_y"]).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1000.0)
            optimizer.step()
            updates, seen, since = updates + 1, seen + episode.shape[:2].numel(), since + 1
            sums += torch.stack([costs[part].detach().mean() for part in PARTS])
            if time.perf_counter() - told > 30:
                told = time.perf_counter()
                means = dict(zip(PARTS, (sums / since).tolist(), strict=True))
                sums, since = torch.zeros_like(sums), 0
                line = "  ".join(f"{part} {value:.2f}" for part, value in means.items())
                print(f"{(told - start) / 60:6.1f} min  {seen / len(images):6.2f} epochs  {line}", flush=True)
    minutes = (time.perf_counter() - start) / 60
    return {"minutes": round(minutes, 2), "epochs": round(seen / len(images), 2), "updates": updates}


def grown(progress: float, share: float) -> float:
    """From 0 to 1 in the first `share` of the training."""
    return min(1.0, progress / share) if share else 1.0


def one_cycle(progress: float, warm_up: float = 0.05) -> float:
    """The share of the learning rate: up along a line, then down along a cosine."""
    if progress < warm_up:
        return grown(progress, warm_up)
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


@torch.no_grad()
def score(model: KanervaModel, images: Tensor, args: Args, path: Literal["posterior", "memory"]) -> dict[str, Any]:
    """Means over the images, in nats, and the standard error of the bound over episodes."""
    torch.manual_seed(args.seed)
    model.eval()
    costs = [model(episode, path) for episode in episodes(images, args.length, args.batch)]
    each = {part: torch.cat([cost[part].mean(0) for cost in costs]).double() for part in PARTS}
    row: dict[str, Any] = {"path": path, **{part: round(float(values.mean()), 3) for part, values in each.items()}}
    bound = each["bound"]
    return {**row, "bound_error": round(float(bound.std() / math.sqrt(len(bound))), 3)}


def pixel_cost(train: Tensor, test: Tensor) -> float:
    """Nats a test image costs if all that is known is how often each pixel is ink: for scale."""
    often = (train.double().sum(0) + 0.5) / (len(train) + 1)
    return float(-torch.where(test > 0, often.log(), (1 - often).log()).sum((1, 2)).mean())


def report(args: Args, rows: list[dict[str, Any]], shared: dict[str, Any], pixels: float) -> None:
    print(f"\n{args.source}, {shared['images']} test images, nats an image (less is better)")
    print("  ".join(f"{name:>14}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value:>14}" for value in row.values()))
    paper = f"; the paper has {shared['paper']}" if shared["paper"] else ""
    print(f"pixels by their frequency alone: {pixels:.2f}{paper}")
    print("Conditional: the memory is written from the images that are scored, and nothing is charged for it.")
    print(f"{shared['parameters']:,} parameters, {shared['minutes']} minutes, {shared['epochs']} epochs")


@torch.no_grad()
def draw(model: KanervaModel, images: Tensor, args: Args, path: Path) -> None:
    """A row each: an episode of test images, what is recalled of it, noisy ones, cleaned up, and new images."""
    from matplotlib.figure import Figure

    torch.manual_seed(args.seed)
    model.eval()
    episode = next(episodes(images, args.length, 1))
    memory = model.infer_memory(episode)
    rows = [("original", episode), ("recall", model.iterative_read(memory, episode, 1)[-1])]
    for kind, amount in NOISE.items():
        table = noise_table(kind, amount).to(episode.device)
        noisy = table[episode.long(), torch.randint(LEVELS, episode.shape, device=episode.device)]
        rows += [(kind, noisy), ("after 10 reads", model.iterative_read(memory, noisy, 10)[-1])]
    made = model.generate(memory, args.length)
    rows += [("generated", made), ("after 10 reads", model.iterative_read(memory, made, 10)[-1])]
    figure = Figure(figsize=(0.6 * args.length + 1.4, 0.62 * len(rows)), dpi=150)
    for place, (name, pictures) in enumerate(rows):
        axes = figure.add_axes((0.17, 1 - (place + 1) / len(rows), 0.82, 0.94 / len(rows)))
        axes.imshow(1 - torch.cat(list(pictures[:, 0, 0]), 1).cpu(), cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
        axes.text(-0.01, 0.5, name, transform=axes.transAxes, ha="right", va="center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
