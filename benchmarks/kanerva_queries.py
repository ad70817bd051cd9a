"""Queries Kanerva++'s generative model with corrupted images: a table and a picture of the reconstructions.

`benchmarks/kanerva_images.py` runs it, with `--queries` and `--png`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs.tasks.images.image_episode import LEVELS, NOISE, QUERIES, halves, noise_table
from policies.memories.kanerva.generative_model import KanervaModel
from policies.memories.kanerva.tiles import KanervaBlocks


def spoil(images: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Black-and-white images `[T, B, 1, H, W]` as the queries of `ImageEpisode`, and which pixels show something."""
    seen = torch.ones_like(images)
    if kind == "half":
        masks = halves(*images.shape[-2:]).to(images)
        seen = masks[torch.randint(len(masks), images.shape[:2], device=images.device)].unsqueeze(2)
    if kind not in NOISE:
        return images * seen, seen
    table = noise_table(kind, NOISE[kind]).to(images.device)
    return table[images.long(), torch.randint(LEVELS, images.shape, device=images.device)], seen


def mixed(images: Tensor) -> Tensor:
    """Each image corrupted in one of the ways, or clean, with equal probability."""
    spoilt = images.clone()
    kinds = torch.randint(len(QUERIES), images.shape[:2], device=images.device)
    for number, kind in enumerate(QUERIES):
        chosen = kinds == number
        spoilt[chosen] = spoil(images[chosen].unsqueeze(0), kind)[0][0]
    return spoilt


@torch.no_grad()
def retrieval(model: KanervaModel, played: Sequence[Tensor]) -> list[dict[str, Any]]:
    """How well images are reconstructed from corrupted queries, a row for each kind of query and way of reading.

    Args:
        model: trained; with blocks also by search.
        played: episodes `[T, B, 1, H, W]`, B at least 2.

    Returns:
        For each row: wrong pixels in % of the query, of its reconstruction from the episode's memory and of that from
        another episode's; and the losses of both reconstructions in nats.
    """
    model.eval()
    rows = []
    for kind in QUERIES:
        for read in ("keys", "search") if isinstance(model.kanerva, KanervaBlocks) else ("keys",):
            sums = torch.zeros(5, dtype=torch.float64)
            for episode in played:
                query, seen = spoil(episode, kind)
                own = model.infer_memory(episode)
                found = [_wrong(query, episode)]
                for memory in (own, own.roll(1, 0)):
                    image = read_back(model, memory, query, seen, read)
                    ink = image.clamp(1e-4, 1 - 1e-4)
                    nats = -(episode * ink.log() + (1 - episode) * (1 - ink).log())
                    found += [_wrong(image, episode), nats.flatten(2).sum(2).mean()]
                sums += torch.stack(found).double().cpu()
            names = ("query %", "own %", "own nats", "another's %", "another's nats")
            means = (sums / len(played)).tolist()
            rows.append({"query": kind, "read by": read} | {n: round(m, 3) for n, m in zip(names, means, strict=True)})
    return rows


def read_back(model: KanervaModel, memory: Tensor, query: Tensor, seen: Tensor, by: str) -> Tensor:
    """The expected image for a query: read once at its inferred keys, or found by search over all tiles."""
    if by == "keys":
        return model.iterative_read(memory, query, 1)[-1]
    assert isinstance(model.kanerva, KanervaBlocks)
    grid = model.kanerva.grid().view(-1, 1, 1, 2).expand(-1, query.shape[1], -1, -1)
    return model.search(memory, query, grid, seen)


def _wrong(image: Tensor, right: Tensor) -> Tensor:
    """Percentage of wrong pixels."""
    return 100 * ((image > 0.5) != (right > 0.5)).float().mean()


@torch.no_grad()
def draw(model: KanervaModel, episode: Tensor, another: Tensor, path: Path) -> None:
    """A row each: an episode `[T, 1, 1, H, W]`, what is read for it and its spoilt copies, what random keys show."""
    from matplotlib.figure import Figure

    model.eval()
    memory = model.infer_memory(episode)
    whole = torch.ones_like(episode)
    rows = [("original", episode), ("read by its keys", read_back(model, memory, episode, whole, "keys"))]
    rows += [("another's memory", read_back(model, model.infer_memory(another), episode, whole, "keys"))]
    blocks = isinstance(model.kanerva, KanervaBlocks)
    for kind in QUERIES[1:]:
        query, seen = spoil(episode, kind)
        rows += [(kind, query), ("read by its keys", read_back(model, memory, query, seen, "keys"))]
        if blocks:
            rows += [("found by search", read_back(model, memory, query, seen, "search"))]
        else:
            rows += [("after 10 reads", model.iterative_read(memory, query, 10)[-1])]
    rows += [("read at random keys", model.generate(memory, len(episode)))]
    figure = Figure(figsize=(0.6 * len(episode) + 1.4, 0.62 * len(rows)), dpi=110)
    for place, (name, pictures) in enumerate(rows):
        axes = figure.add_axes((0.17, 1 - (place + 1) / len(rows), 0.82, 0.94 / len(rows)))
        axes.imshow(1 - torch.cat(list(pictures[:, 0, 0]), 1).cpu(), cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
        axes.text(-0.01, 0.5, name, transform=axes.transAxes, ha="right", va="center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")
