"""Image data: four sources, each in three splits, as uint8."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from envs.data.files import DataError, check_known, find, read_amat, read_idx, read_npz, read_png_tree

Array = np.ndarray[Any, np.dtype[Any]]

SOURCES = ("digits", "mnist", "binarized-mnist", "omniglot")
LABELLED = ("digits", "mnist")
"""Sources of ten classes."""
SPLITS = ("train", "valid", "test")

OMNIGLOT_SIDE = 28
OMNIGLOT_INK = 0.3
"""Minimum share of ink of an ink pixel in 28 x 28: strokes keep their width and do not break."""
OMNIGLOT_VALID = 100
"""Number of characters of the background set, the last ones, in the validation split."""
DIGITS_HELD_OUT = 300


class Images(NamedTuple):
    """A split of a source."""

    pixels: Tensor
    """uint8 `[K, H, W]`, 0 paper to 255 ink."""
    labels: Tensor | None
    """int64 `[K]`, 0 to 9; None where a source is not `LABELLED`."""


def load_images(
    source: str = "digits",
    split: str = "train",
    *,
    data_dir: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> Images:
    """The images and labels of a split.

    - "digits": the 1,797 digits of 8 x 8 pixels in scikit-learn (from the test set of UCI's "Optical Recognition
      of Handwritten Digits"); no file is needed. In their order 1,197 training, 300 validation and 300 test images.
    - "mnist": 28 x 28. The first 50,000 training images are the training split, the other 10,000 the validation split;
      10,000 test.
    - "binarized-mnist": 28 x 28, a fixed random binarisation (Larochelle and Murray), 50,000, 10,000 and 10,000.
      Without labels.
    - "omniglot": 28 x 28 in black and white, computed here from the published 105 x 105: a pixel is ink if ink covers
      at least 0.3 of it. This is our own version, not the `chardata.mat` of the likelihood literature. The last 100
      characters of the background set are the validation split (2,000 drawings), the others the training split
      (17,280); the evaluation set is the test split (13,180).

    Args:
        source: one of `SOURCES`.
        split: one of `SPLITS`.
        data_dir: folder searched first, see `envs.data.files`.
        device: torch device of the tensors.

    Raises:
        ValueError: unknown source or split.
        DataError: a file is missing or damaged, or scikit-learn is not installed.
    """
    if source not in SOURCES:
        raise ValueError(f"source is {source!r}, expected one of {', '.join(SOURCES)}")
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    labels: Array | None = None
    if source == "digits":
        pixels, labels = _digits()
        held_out = len(pixels) - 2 * DIGITS_HELD_OUT
        parts = {"train": (0, held_out), "valid": (held_out, -DIGITS_HELD_OUT), "test": (-DIGITS_HELD_OUT, None)}
        part = slice(*parts[split])
        pixels, labels = pixels[part], labels[part]
    elif source == "mnist":
        pixels, labels = _mnist(split, data_dir)
    elif source == "binarized-mnist":
        path = find(f"binarized_mnist/{split}", data_dir)
        bits = read_amat(path)
        check_known(f"binarized_mnist/{split}", path, bits)
        pixels = 255 * bits.reshape(-1, 28, 28)
    else:
        pixels = _omniglot(split, data_dir)
    known = None if labels is None else torch.from_numpy(labels.astype(np.int64)).to(device)
    return Images(torch.from_numpy(np.ascontiguousarray(pixels, np.uint8)).to(device), known)


def resized(pixels: Tensor, side: int) -> Tensor:
    """Resizes images `[K, H, W]` to `side` x `side` pixels by nearest neighbour."""
    rows, columns = (torch.arange(side, device=pixels.device) * size // side for size in pixels.shape[1:])
    return pixels[:, rows[:, None], columns]


@lru_cache(maxsize=1)
def _digits() -> tuple[Array, Array]:
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise DataError('source "digits" is scikit-learn\'s: pip install "engram-rl[data]"') from None
    images, labels = load_digits(return_X_y=True)
    return np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), labels


def _mnist(split: str, data_dir: str | Path | None) -> tuple[Array, Array]:
    names = [f"mnist/{'test' if split == 'test' else 'train'}-{kind}" for kind in ("images", "labels")]
    paths = [find(name, data_dir) for name in names]
    pixels, labels = (read_idx(path) for path in paths)
    least = 1 if split == "test" else 6  # a sixth, at least one, is the validation split
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (28, 28) or len(pixels) < least:
        found = f"{pixels.dtype} {list(pixels.shape)}"
        raise DataError(f"{paths[0]} holds {found}, expected bytes of [images, 28, 28], at least {least} images")
    if labels.shape != pixels.shape[:1]:
        raise DataError(
            f"{paths[0]} holds {list(pixels.shape)} and {paths[1]} {list(labels.shape)}; expected one label per image"
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 9:
        found = f"{labels.dtype} labels from {labels.min()} to {labels.max()}"
        raise DataError(f"{paths[1]} holds {found}, expected integers from 0 to 9")
    for name, path, content in zip(names, paths, (pixels, labels), strict=True):
        check_known(name, path, content)
    held_out = len(pixels) // 6  # 10,000 of 60,000
    part = {"train": slice(len(pixels) - held_out), "valid": slice(len(pixels) - held_out, None), "test": slice(None)}
    return pixels[part[split]], labels[part[split]]


def _omniglot(split: str, data_dir: str | Path | None) -> Array:
    name = f"omniglot/{'evaluation' if split == 'test' else 'background'}"
    path = find(name, data_dir)
    paper = read_npz(path, "images") if path.suffix == ".npz" else read_png_tree(path)
    if paper.ndim != 4 or 0 in paper.shape or (split != "test" and len(paper) < 2):
        raise DataError(f"{path} holds an array {list(paper.shape)}, expected [characters, drawings, H, W]")
    if paper.dtype != bool and not ((paper == 0) | (paper == 1)).all():
        found = f"{paper.dtype} from {paper.min()} to {paper.max()}"
        raise DataError(f"{path} holds {found}, expected truth values (or 0 and 1), true for paper")
    paper = paper.astype(bool)
    check_known(name, path, paper)
    if split != "test":
        valid = min(OMNIGLOT_VALID, len(paper) // 2)
        paper = paper[-valid:] if split == "valid" else paper[:-valid]
    return downsampled(~paper.reshape(-1, *paper.shape[2:]))


def downsampled(ink: Array) -> Array:
    """Black and white drawings, bool `[K, H, W]`, True where there is ink, as uint8 `[K, 28, 28]`, 0 or 255.

    A pixel's share of ink is the mean over all source pixels that it overlaps.
    """
    side, drawings = OMNIGLOT_SIDE, torch.from_numpy(ink)
    parts = []
    for first in range(0, len(drawings), 1024):  # the whole set as floats would take a gigabyte
        part = drawings[first : first + 1024].float().unsqueeze(1)
        share = F.interpolate(part, size=(side, side), mode="area").squeeze(1)
        parts.append((share >= OMNIGLOT_INK).to(torch.uint8) * 255)
    return torch.cat(parts).numpy()
