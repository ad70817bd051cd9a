"""Where each data file is published, under which names it is accepted, and its checksum.

The md5 sums of MNIST and Omniglot are those of torchvision's loaders; those of the binarised MNIST were computed from
the published files, those of the Underground from copies of the same sizes, and bAbI's sha256 is in the metadata of
the Hugging Face dataset `facebook/babi_qa`.
"""

from __future__ import annotations

from typing import NamedTuple


class Source(NamedTuple):
    """One published file."""

    folder: str
    """Folder in a data directory; the file may also lie directly in the data directory."""
    names: tuple[str, ...]
    """File or folder names that are accepted, the published one first."""
    url: str
    """Address of the published file."""
    checksum: str
    """Checksum of the published file, as `ALGORITHM:DIGITS`: checked after a download, and if `content` is unknown."""
    content: str = ""
    """`envs.data.files.digest` of the decoded content; "": unknown."""
    fixed: bool = False
    """Whether other content is refused; otherwise there is a warning."""


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"  # torchvision's mirror; the original address is often closed
_BINARIZED = "https://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
_TUBE = "https://raw.githubusercontent.com/nicola/tubemaps/"  # an early commit; later ones have newer lines
_OMNIGLOT = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"


def _mnist(name: str, md5: str, content: str) -> Source:
    return Source("mnist", (name + ".gz", name), f"{_MNIST}{name}.gz", f"md5:{md5}", content)


def _binarized(split: str, md5: str, content: str) -> Source:
    name = f"binarized_mnist_{split}.amat"
    return Source("binarized_mnist", (name, name + ".xz", name + ".gz"), _BINARIZED + name, f"md5:{md5}", content)


def _omniglot(name: str, md5: str) -> Source:
    return Source("omniglot", (name + ".zip", name + ".npz", name), f"{_OMNIGLOT}{name}.zip", f"md5:{md5}")


def _tube(name: str, md5: str, content: str) -> Source:
    url = f"{_TUBE}31d8c26d5bde5dcf300d79f87388b0fbed3d5999/datasets/{name}.csv"
    return Source("graphs/london-underground", (name + ".csv",), url, f"md5:{md5}", content, fixed=True)


SOURCES: dict[str, Source] = {
    "babi": Source(
        "babi",
        (
            "tasks_1-20_v1-2.tar.gz",
            "babi_tasks_1-20_v1-2.tar.gz",
            "babi_tasks_1-20_v1-2_english.tar.xz",
            "tasks_1-20_v1-2",
        ),
        "http://www.thespermwhale.com/jaseweston/babi/tasks_1-20_v1-2.tar.gz",
        "sha256:0364ebde659f14d11bc21744516c5ec49d3d06cb692733f66680771244998898",
    ),
    "mnist/train-images": _mnist("train-images-idx3-ubyte", "f68b3c2dcbeaaa9fbdd348bbdeb94873", "741c988805d008ac"),
    "mnist/train-labels": _mnist("train-labels-idx1-ubyte", "d53e105ee54ea40749a09fcbcd1e9432", "1feba77c54802fa5"),
    "mnist/test-images": _mnist("t10k-images-idx3-ubyte", "9fb629c4189551a2d022fa330f9573f3", "6d87418db22cc802"),
    "mnist/test-labels": _mnist("t10k-labels-idx1-ubyte", "ec29112dd5afa0611ce80d1b7f02629c", "ddeff807876a9661"),
    "binarized_mnist/train": _binarized("train", "db28b1a6ae0fe70cbd3da91acf46e477", "43490d4d6ac90027"),
    "binarized_mnist/valid": _binarized("valid", "bf37822a04e94123630de6a7dfd9c9ef", "069b4f0beb389b77"),
    "binarized_mnist/test": _binarized("test", "14e41ae11040adba6ab8cb291eda0dd8", "ca0294c3b8d984c7"),
    "omniglot/background": _omniglot("images_background", "68d2efa1b9178cc56df9314c21c6e718"),
    "omniglot/evaluation": _omniglot("images_evaluation", "6b91aef0f799c5bb55b94e3f2daec811"),
    "london-underground/stations": _tube("london.stations", "e1b7e57761f986a74126c0defd7003e5", "8e44d336532c7b5c"),
    "london-underground/connections": _tube(
        "london.connections", "19db40cb372f1eb312b058c266528127", "bc7504422c3bfe7a"
    ),
    "london-underground/lines": _tube("london.lines", "5de264c03af40ef342b7a0c44ce64f48", "a075c44e74f3461a"),
}
