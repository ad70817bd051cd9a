"""The images of the image tasks: made files, and the real ones where `ENGRAM_DATA` points to them."""

from __future__ import annotations

import gzip
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from envs.data.files import DataError
from envs.data.sources import SOURCES as SOURCES_BY_NAME
from envs.tasks.images.data import LABELLED, SOURCES, SPLITS, downsampled, load_images, resized

pytestmark = pytest.mark.filterwarnings("ignore:.*is not the published content")  # most are made here
REAL = Path(os.environ.get("ENGRAM_DATA", "/nowhere"))


def needs(folder: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (REAL / folder).is_dir(), reason=f"ENGRAM_DATA has no {folder}")


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def mnist(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """Files of 30 training and 3 test images; their directory, and the training images and labels."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (33, 28, 28)), rng.integers(0, 10, 33)
    for name, part in (("train", slice(30)), ("t10k", slice(30, None))):
        write_idx(tmp_path / "mnist" / f"{name}-images-idx3-ubyte.gz", images[part])
        write_idx(tmp_path / "mnist" / f"{name}-labels-idx1-ubyte.gz", labels[part])
    return tmp_path, images, labels


def test_digits_are_those_of_scikit_learn() -> None:
    parts = [load_images("digits", split) for split in SPLITS]
    assert [len(part.pixels) for part in parts] == [1197, 300, 300]
    images, labels = load_digits(return_X_y=True)
    pixels = torch.cat([part.pixels for part in parts])
    assert pixels.dtype == torch.uint8
    assert pixels.max() == 255
    assert np.allclose(pixels.numpy().reshape(-1, 64) / 255 * 16, images, atol=0.04)
    known = [part.labels for part in parts]
    assert torch.cat([label for label in known if label is not None]).tolist() == labels.tolist()


def test_digits_need_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    from envs.tasks.images.data import _digits

    _digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install \"engram-rl\[data\]\""):
        load_images("digits")


def test_mnist_is_split_into_first_and_last(mnist: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, images, labels = mnist
    for split, part in (("train", slice(25)), ("valid", slice(25, 30)), ("test", slice(30, 33))):
        pixels, known = load_images("mnist", split, data_dir=folder)
        assert known is not None
        assert known.dtype == torch.int64
        assert (pixels.numpy() == images[part]).all()
        assert known.tolist() == labels[part].tolist()


def test_mnist_labels_must_go_with_the_images(mnist: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, _, labels = mnist
    write_idx(folder / "mnist" / "train-labels-idx1-ubyte.gz", labels[:29])
    with pytest.raises(DataError, match=r"\[30, 28, 28\].*\[29\]; expected one label per image"):
        load_images("mnist", data_dir=folder)


def test_labels_that_no_digit_has_and_images_of_other_kinds_are_refused(
    mnist: tuple[Path, np.ndarray, np.ndarray],
) -> None:
    folder, images, labels = mnist
    place = folder / "mnist"
    write_idx(place / "train-labels-idx1-ubyte.gz", np.where(np.arange(30) == 3, 200, labels[:30]))
    with pytest.raises(DataError, match=r"train-labels.*labels from \d to 200, expected integers from 0 to 9"):
        load_images("mnist", data_dir=folder)
    write_idx(place / "train-labels-idx1-ubyte.gz", labels[:30])
    write_idx(place / "train-images-idx3-ubyte.gz", images[:30, :20])
    with pytest.raises(DataError, match=r"train-images.*\[30, 20, 28\], expected bytes of \[images, 28, 28\]"):
        load_images("mnist", data_dir=folder)
    floats = struct.pack(">BBBB3I", 0, 0, 13, 3, 30, 28, 28) + np.full(30 * 784, np.nan, ">f4").tobytes()
    (place / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(floats))
    with pytest.raises(DataError, match=r"train-images.*float32 .*expected bytes"):
        load_images("mnist", data_dir=folder)
    write_idx(place / "train-images-idx3-ubyte.gz", images[:0])
    with pytest.raises(DataError, match="at least 6 images"):
        load_images("mnist", data_dir=folder)


def test_other_content_than_the_published_one_is_said(mnist: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, _, _ = mnist
    with pytest.warns(UserWarning, match=r"t10k-(images|labels).*is not the published content of https://.*gz") as said:
        load_images("mnist", "test", data_dir=folder)
    assert len(said) == 2
    (folder / "binarized_mnist").mkdir()
    (folder / "binarized_mnist" / "binarized_mnist_test.amat").write_text("1 " * 784)
    with pytest.warns(UserWarning, match=r"binarized_mnist_test\.amat is not the published content"):
        load_images("binarized-mnist", "test", data_dir=folder)
    assert SOURCES_BY_NAME["mnist/train-images"].content
    assert not any(source.fixed for name, source in SOURCES_BY_NAME.items() if not name.startswith("london"))


def test_binarized_mnist_is_ink_where_its_files_have_ones(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 2, (3, 784))
    (tmp_path / "binarized_mnist").mkdir()
    text = "\n".join(" ".join(map(str, row)) for row in rows)
    (tmp_path / "binarized_mnist" / "binarized_mnist_valid.amat").write_text(text)
    pixels, labels = load_images("binarized-mnist", "valid", data_dir=tmp_path)
    assert labels is None
    assert (pixels.numpy().reshape(3, 784) == 255 * rows).all()


def shrunk_slowly(ink: np.ndarray) -> np.ndarray:
    """28 x 28 of one drawing: the mean of every pixel that a new pixel touches."""

    def touched(place: int, size: int) -> list[int]:
        return [old for old in range(size) if (old + 1) * 28 > place * size and old * 28 < (place + 1) * size]

    made = np.zeros((28, 28), np.uint8)
    for row in range(28):
        for column in range(28):
            values = [float(ink[y, x]) for y in touched(row, ink.shape[0]) for x in touched(column, ink.shape[1])]
            made[row, column] = 255 if sum(values) / len(values) >= 0.3 else 0
    return made


def test_omniglot_is_shrunk_by_its_share_of_ink(tmp_path: Path) -> None:
    ink = np.random.default_rng(0).random((4, 2, 70, 70)) < 0.3
    (tmp_path / "omniglot").mkdir()
    np.savez(tmp_path / "omniglot" / "images_background.npz", images=~ink)
    np.savez(tmp_path / "omniglot" / "images_evaluation.npz", images=~ink[:1])
    expected = np.stack([shrunk_slowly(drawing) for drawing in ink.reshape(-1, 70, 70)])
    assert 0.1 < (expected > 0).mean() < 0.9
    for split, part in (("train", slice(4)), ("valid", slice(4, 8)), ("test", slice(2))):
        pixels, labels = load_images("omniglot", split, data_dir=tmp_path)
        assert labels is None
        assert (pixels.numpy() == expected[part]).all()
    for bad, message in (
        (~ink[0], r"expected \[characters, drawings, H, W\]"),
        (ink[:0], r"\[0, 2, 70, 70\], expected \[characters"),
        (np.where(ink, np.nan, 1.0), "float64 from nan to nan, expected truth values"),
        (ink * 0.5, r"float64 from 0\.0 to 0\.5, expected truth values"),
    ):
        np.savez(tmp_path / "omniglot" / "images_evaluation.npz", images=bad)
        with pytest.raises(DataError, match=message):
            load_images("omniglot", "test", data_dir=tmp_path)
    np.savez(tmp_path / "omniglot" / "images_evaluation.npz", images=(~ink[:1]).astype(np.float32))
    assert (load_images("omniglot", "test", data_dir=tmp_path).pixels.numpy() == expected[:2]).all()


def test_shrinking_goes_over_all_parts() -> None:
    ink = np.zeros((1030, 28, 28), bool)
    ink[[0, 1023, 1024, 1029], 3, 4] = True
    assert (downsampled(ink) == 255 * ink).all()


def test_resizing_takes_the_pixel_at_the_same_place() -> None:
    pixels = torch.arange(2 * 7 * 5).view(2, 7, 5)
    for side in (1, 3, 6, 12):
        made = resized(pixels, side)
        assert made.shape == (2, side, side)
        for row in range(side):
            for column in range(side):
                assert torch.equal(made[:, row, column], pixels[:, row * 7 // side, column * 5 // side])


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="source is 'cifar', expected one of digits, mnist"):
        load_images("cifar")
    with pytest.raises(ValueError, match="split is 'dev', expected one of train, valid, test"):
        load_images("digits", "dev")
    with pytest.raises(DataError, match="not a directory"):
        load_images("mnist", data_dir=tmp_path / "nowhere")
    assert set(LABELLED) < set(SOURCES)


@needs("mnist")
def test_the_real_mnist() -> None:
    sizes = {"train": 50_000, "valid": 10_000, "test": 10_000}
    counts = {}
    for split, size in sizes.items():
        pixels, labels = load_images("mnist", split, data_dir=REAL)
        assert pixels.shape == (size, 28, 28)
        assert labels is not None
        counts[split] = torch.bincount(labels, minlength=10)
    assert counts["test"].tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert (counts["train"] + counts["valid"])[:3].tolist() == [5923, 6742, 5958]


@needs("binarized_mnist")
@pytest.mark.parametrize(("split", "size", "ink"), [("valid", 10_000, 0.13113), ("test", 10_000, 0.13251)])
def test_the_real_binarized_mnist(split: str, size: int, ink: float) -> None:
    pixels, _ = load_images("binarized-mnist", split, data_dir=REAL)
    assert pixels.shape == (size, 28, 28)
    assert (pixels > 0).double().mean().item() == pytest.approx(ink, abs=5e-6)


@needs("omniglot")
def test_the_real_omniglot() -> None:
    for split, size in (("valid", 2_000), ("test", 13_180)):
        pixels, _ = load_images("omniglot", split, data_dir=REAL)
        assert pixels.shape == (size, 28, 28)
        assert set(pixels.unique().tolist()) == {0, 255}
        assert 0.08 < (pixels > 0).double().mean() < 0.13
        assert (pixels > 0).flatten(1).any(1).all()
