r"""Trains Kanerva++'s generative model on black-and-white images and reports its conditional bound on the test images.

    python benchmarks/kanerva_images.py --source digits --minutes 1     # needs no file
    python benchmarks/kanerva_images.py --form block --size large-patches --reads 1 --latent-size 768 --batch 10 \
        --precision bfloat16 --minutes 2 --state runs/kanerva.pt --csv runs/kanerva.csv --png runs/kanerva.png
    python benchmarks/kanerva_images.py --source omniglot --size paper --device cuda --minutes 60 --png omniglot.png

Results are in nats per image, lower is better: reconstruction, KL(Z) and KL(Y) separately, for both branches of the
paper's figure 5. The memory is written from the same images that are scored, and its information is not counted: these
are conditional bounds, not comparable with the likelihood of a model without such a memory. The paper reports 41.58 on
binarised MNIST and 66.24 on Omniglot, after 500 or 1,000 epochs of a ResNet18; its Omniglot of 28 x 28 pixels differs
from ours.

Two measures: `bound` is eq. (4); `bound/T` divides both divergences by the images of an episode, as the author's public
code for the dynamic Kanerva machine does. The paper does not say which of them it reports.

Controls: the same images read from another episode's memory, and from the mean memory of all test episodes. A model
that reconstructs equally well from those does not use its memory.

Forms (`--form`): "paper" trains eq. (4) with the pooled memory. "block" trains through the memory, Z ~ p(Z|M, Y), and
writes each image as a block to a tile; a block can hold a whole image, so the bound is the cost of addressing it. "vae"
has no memory and a standard normal prior, with the same encoder, decoder and steps.

With `--spoilt` each image is queried with a corrupted copy in training, so that the keys tolerate noise.

Differences from the paper: AdamW instead of LARS with Adam; in form "paper" a warm-up of the divergences' weights
(otherwise Z carries no information after a short training); training on the training split only.
"""

from __future__ import annotations

import csv
import itertools
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

from benchmarks.kanerva_queries import draw, mixed, retrieval
from envs.tasks.images.data import load_images
from policies.memories.kanerva.generative_model import KanervaModel
from policies.memories.kanerva.parts import as_gaussian
from policies.memories.kanerva.tiles import Allocation
from policies.native.allocator import tune_allocator

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
    "patches": {
        **{"memory_channels": 12, "memory_size": 28, "crop_size": 7, "dense_size": 128, "prior_features": 64},
        **{"decoder_features": 64, "encoder_channels": (64,), "encoder_blocks": 1, "write": "block"},
    },
    "large-patches": {
        **{"memory_channels": 24, "memory_size": 64, "crop_size": 4, "dense_size": 128, "prior_features": 128},
        **{"decoder_features": 128, "encoder_channels": (128,), "encoder_blocks": 1, "write": "block"},
    },
}
Path_ = Literal["posterior", "memory"]


@dataclass
class Args:
    source: Literal["digits", "mnist", "binarized-mnist", "omniglot"] = "binarized-mnist"
    """The images; those of digits and mnist are binarised at 0.5."""
    data_dir: Path | None = None
    """Folder that is searched first for data files."""
    form: Literal["paper", "block", "vae"] = "paper"
    """The form of the model, see above."""
    allocation: Allocation = "inferred"
    """Keys of blocks, see `KanervaBlocks`: "inferred" from the image, or "ranked" in its episode."""
    spoilt: bool = False
    """With form "block", query with copies that are clean, noisy (three kinds) or half hidden, equally often."""
    key_weight: float = 1000.0
    """With `spoilt`, weight of the squared distance between the keys of a copy and those of its image."""
    minutes: float = 10.0
    """Training ends after so many minutes of processor time (of the clock on a GPU); the learning rate falls to 0 by
    then."""
    epochs: float = math.inf
    """Maximum number of passes over the training images."""
    length: int = 10
    """T, number of images in an episode."""
    batch: int = 8
    """Number of episodes in an update."""
    latent_size: int = 32
    """Width of Z."""
    reads: int = 2
    """K, number of windows read for an image."""
    memory_size: int | None = None
    """S, height and width of the memory; None: that of `size`."""
    memory_channels: int | None = None
    """C of the memory; None: that of `size`."""
    size: Literal["small", "medium", "paper", "patches", "large-patches"] = "small"
    """Of the networks: for a CPU core, between, or the paper's. For form "block": "patches", 16 tiles of 7 x 7 cells,
    for ranked keys; "large-patches", 256 tiles of 4 x 4."""
    learning_rate: float = 2e-3
    """Maximum learning rate, reached after 5 % of the training."""
    kl_z_warm_up: float = 0.3
    """Share of the training in which the weight of KL(Z) grows from 0 to 1, in form "paper"."""
    kl_y_warm_up: float = 0.3
    """Likewise for KL(Y). Without it, keys carry no information at first."""
    weight_decay: float = 1e-3
    """Weight decay; none for biases and normalisation."""
    seed: int = 0
    """Seed of parameters, episodes and noise."""
    device: str = "cpu"
    """Device of environments and agents."""
    threads: int = 1
    """CPU threads."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of matrix products in training, by autocast; scores are computed in float32."""
    state: Path | None = None
    """File for the training's state; if it exists, the training continues from it."""
    slice: float = math.inf
    """Minutes after which this process stops, to be continued from `state`."""
    csv: Path | None = None
    """File for the table."""
    queries: Path | None = None
    """File for a table of queries with 2,000 corrupted test images."""
    png: Path | None = None
    """File for a picture of images, corrupted copies, their reconstructions and samples of random keys."""


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    tune_allocator()
    torch.manual_seed(args.seed)
    train, test = (black_and_white(args, split) for split in ("train", "test"))
    model = build(args, train).to(args.device)
    spent = fit(model, train, args)
    if spent is None:
        return
    rows = [score(model, test, args, path, memory) for path, memory in controls(args.form)]
    shared = {
        **{"source": args.source, "images": len(test), "paper": PAPER.get(args.source, ""), **spent},
        **{"form": args.form, "allocation": args.allocation if args.form == "block" else "", "spoilt": args.spoilt},
        **{"length": args.length, "batch": args.batch, "latent_size": args.latent_size, "reads": args.reads},
        **{"size": args.size, "memory_shape": memory_shape(args), "precision": args.precision},
        **{"parameters": sum(p.numel() for p in model.parameters())},
        **{"learning_rate": args.learning_rate, "seed": args.seed, "device": args.device},
    }
    report(args, rows, shared, pixel_cost(train, test))
    if args.csv is not None:
        write(args.csv, [{**row, **shared} for row in rows])
    torch.manual_seed(args.seed)
    played = list(itertools.islice(episodes(test, args.length, 10), 20))
    if args.queries is not None:
        found = retrieval(model, played)
        print_table(found)
        write(args.queries, [{**row, **shared} for row in found])
    if args.png is not None:
        draw(model, played[0][:, :1], played[0][:, 1:2], args.png)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def build(args: Args, images: Tensor) -> KanervaModel:
    sizes = {"latent_size": args.latent_size, "reads": args.reads, **SIZES[args.size]}
    chosen = {"memory_size": args.memory_size, "memory_channels": args.memory_channels}
    sizes |= {name: number for name, number in chosen.items() if number is not None}
    shape = (1, images.shape[1], images.shape[2])
    if args.form == "vae":
        return VAE(shape, **sizes)
    if (args.form == "block") != args.size.endswith("patches"):
        raise SystemExit(f"size is {args.size!r}; form 'block' takes 'patches' or 'large-patches', 'paper' the others")
    return KanervaModel(shape, allocation=args.allocation, **sizes)


def memory_shape(args: Args) -> str:
    """C x S x S; empty without a memory."""
    if args.form == "vae":
        return ""
    channels = args.memory_channels or SIZES[args.size].get("memory_channels", 3)
    side = args.memory_size or SIZES[args.size].get("memory_size", 64)
    return f"{channels}x{side}x{side}"


class VAE(KanervaModel):
    """The control without memory: Z ~ q(Z|X), prior N(0, I)."""

    def forward(
        self,
        episode: Tensor,
        path: Path_ | None = None,
        memory: Tensor | None = None,
        queries: Tensor | None = None,
    ) -> dict[str, Tensor]:
        posterior = as_gaussian(self.kanerva.posterior(self.embed(episode).flatten(0, 1)))
        latent = posterior.at(torch.randn_like(posterior.mean))
        reconstruction = self.likelihood.cost(self.decoder(latent), episode.flatten(0, 1))
        kl_z = posterior.kl()
        costs = {"bound": reconstruction + kl_z, "reconstruction": reconstruction, "kl_z": kl_z, "kl_y": 0 * kl_z}
        return {name: cost.view(episode.shape[:2]) for name, cost in costs.items()}


def black_and_white(args: Args, split: str) -> Tensor:
    """Images of a split, uint8 `[K, H, W]`, 0 background and 1 ink."""
    return (load_images(args.source, split, data_dir=args.data_dir, device=args.device).pixels >= 128).to(torch.uint8)


def episodes(images: Tensor, length: int, batch: int) -> Iterator[Tensor]:
    """All images in random order, as episodes `[length, batch, 1, H, W]`; an incomplete last batch is dropped."""
    order = torch.randperm(len(images), device=images.device)
    for chunk in order[: len(order) // length * length].split(length * batch):
        yield images[chunk].view(length, -1, 1, *images.shape[1:]).float()


def fit(model: KanervaModel, images: Tensor, args: Args) -> dict[str, Any] | None:
    """Trains within the budget and returns the seconds; None if the time of this process ends first."""
    optimizer = torch.optim.AdamW(weight_groups(model, args.weight_decay), lr=args.learning_rate, fused=True)
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    spent = {"minutes": 0.0, "clock_minutes": 0.0, "updates": 0, "seen": 0}
    if args.state is not None and args.state.exists():
        saved = torch.load(args.state, map_location=args.device, weights_only=True)
        if saved["args"] != described(args):
            raise SystemExit(
                f"{args.state} is the training of other options: expected {saved['args']}; give another file"
            )
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["generator"].cpu())
        spent = saved["spent"]
    model.train()
    path: Path_ = "posterior" if args.form in ("paper", "vae") else "memory"
    begin, begin_clock = clock() - 60 * spent["minutes"], time.perf_counter() - 60 * spent["clock_minutes"]
    first = reported = time.perf_counter()
    since, progress = 0, 0.0
    sums = torch.zeros(len(PARTS), device=args.device)  # over the updates since the last report
    while True:
        for episode in episodes(images, args.length, args.batch):
            spent["minutes"], spent["clock_minutes"] = (clock() - begin) / 60, (time.perf_counter() - begin_clock) / 60
            progress = max(spent["minutes"] / args.minutes, spent["seen"] / len(images) / args.epochs)
            over = (time.perf_counter() - first) / 60 > args.slice
            if progress >= 1 or over or time.perf_counter() - reported > 60:
                reported = time.perf_counter()
                if since:
                    means = dict(zip(PARTS, (sums / since).tolist(), strict=True))
                    sums, since = torch.zeros_like(sums), 0
                    line = "  ".join(f"{part} {value:.2f}" for part, value in means.items())
                    epochs = spent["seen"] / len(images)
                    print(f"{spent['minutes']:6.1f} min of processor  {epochs:6.2f} epochs  {line}", flush=True)
                if args.state is not None:
                    save(args.state, model, optimizer, args, spent)
            if progress >= 1:
                return {
                    **{name: round(spent[name], 2) for name in ("minutes", "clock_minutes")},
                    **{"epochs": round(spent["seen"] / len(images), 2), "updates": int(spent["updates"])},
                }
            if over:
                return None
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * one_cycle(progress)
            with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.precision == "bfloat16"):
                costs = model(episode, path, None, mixed(episode) if args.spoilt else None)
            optimizer.zero_grad()
            weighed(costs, args, progress).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1000.0)
            optimizer.step()
            spent["updates"], spent["seen"] = spent["updates"] + 1, spent["seen"] + episode.shape[:2].numel()
            sums += torch.stack([costs[part].detach().mean() for part in PARTS])
            since += 1


def weighed(costs: dict[str, Tensor], args: Args, progress: float) -> Tensor:
    """The loss of each image, with divergences weighted by the progress of the training."""
    loss = costs["reconstruction"]
    if args.form == "vae":
        return loss + costs["kl_z"]
    if args.form == "paper":
        divergences = (costs["kl_z"], args.kl_z_warm_up), (costs["kl_y"], args.kl_y_warm_up)
        return loss + sum(grown(progress, share) * divergence for divergence, share in divergences)
    # KL(Y) depends on the tiles alone, and those on no weight by a gradient
    return loss + args.key_weight * costs["key_error"] if args.spoilt else loss


def weight_groups(model: torch.nn.Module, decay: float) -> list[dict[str, Any]]:
    """Parameter groups: weight decay for linear layers and convolutions, none for biases and normalisation."""
    decayed = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.modules.conv._ConvNd)]
    kept = {id(weight) for weight in decayed}
    others = [p for p in model.parameters() if id(p) not in kept]
    return [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def described(args: Args) -> dict[str, str]:
    """The settings that identify a training."""
    apart = ("state", "slice", "csv", "queries", "png", "threads", "data_dir")
    return {name: str(value) for name, value in vars(args).items() if name not in apart}


def save(
    path: Path, model: KanervaModel, optimizer: torch.optim.Optimizer, args: Args, spent: dict[str, float]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(path.name + ".part")
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "generator": torch.get_rng_state()}
    torch.save({**parts, "args": described(args), "spent": spent}, staged)
    staged.replace(path)


def grown(progress: float, share: float) -> float:
    """Rises from 0 to 1 in the first `share` of the training."""
    return min(1.0, progress / share) if share else 1.0


def one_cycle(progress: float, warm_up: float = 0.05) -> float:
    """The factor of the learning rate: a linear rise, then a cosine."""
    if progress < warm_up:
        return grown(progress, warm_up)
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


def controls(form: str) -> list[tuple[Path_, str]]:
    """The paths scored for a form, and the memory that is read: its own where there is nothing else to say."""
    if form == "vae":
        return [("posterior", "own")]
    paths: tuple[Path_, ...] = ("posterior", "memory") if form == "paper" else ("memory",)
    return [(path, memory) for path in paths for memory in ("own", "another's", "mean")]


@torch.no_grad()
def score(model: KanervaModel, images: Tensor, args: Args, path: Path_, memory: str) -> dict[str, Any]:
    """Means over the images, in nats, and the standard error of the bound over episodes."""
    torch.manual_seed(args.seed)
    model.eval()
    played = list(episodes(images, args.length, args.batch))
    mean = None
    if memory == "mean":
        mean = torch.cat([model.infer_memory(episode) for episode in played]).mean(0)
    costs = []
    for episode in played:
        other = None
        if memory == "another's":
            # an episode alone in its batch has none beside it
            other = model.infer_memory(episode if episode.shape[1] > 1 else played[0][:, :1]).roll(1, 0)
        elif mean is not None:
            other = mean.expand(episode.shape[1], *mean.shape)
        costs.append(model(episode, path, other))
    each = {part: torch.cat([cost[part].mean(0) for cost in costs]).double() for part in PARTS}
    row: dict[str, Any] = {"path": path, "memory": memory}
    row |= {part: round(float(values.mean()), 3) for part, values in each.items()}
    divergence = each["bound"] - each["reconstruction"]
    row["bound/T"] = round(float((each["reconstruction"] + divergence / args.length).mean()), 3)
    bound = each["bound"]
    return {**row, "bound_error": round(float(bound.std() / math.sqrt(len(bound))), 3)}


def pixel_cost(train: Tensor, test: Tensor) -> float:
    """Nats per test image of a model with independent pixels, for scale."""
    often = (train.double().sum(0) + 0.5) / (len(train) + 1)
    return float(-torch.where(test > 0, often.log(), (1 - often).log()).sum((1, 2)).mean())


def report(args: Args, rows: list[dict[str, Any]], shared: dict[str, Any], pixels: float) -> None:
    print(f"\n{args.source}, {shared['images']} test images, nats per image (lower is better)")
    print_table(rows)
    paper = f"; the paper has {shared['paper']}" if shared["paper"] else ""
    print(f"pixels by their frequency alone: {pixels:.2f}{paper}")
    print("Conditional: the memory is written from the images that are scored, and nothing is charged for it.")
    print(f"{shared['parameters']:,} parameters, {shared['minutes']} minutes of processor, {shared['epochs']} epochs")


def print_table(rows: list[dict[str, Any]]) -> None:
    print("  ".join(f"{name:>14}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value:>14}" for value in row.values()))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
