"""Small bAbI archives, where the published one is, and words as symbols."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from envs.tasks.babi.stories import VOCABULARY

REAL = os.environ.get("ENGRAM_DATA")
real = pytest.mark.skipif(
    REAL is None or not any(Path(REAL).rglob("*tasks_1-20_v1-2*")), reason="ENGRAM_DATA has no bAbI archive"
)

CARRYING = """\
1 Mary got the milk there.
2 Mary got the apple there.
3 What is Mary carrying? \tmilk,apple\t1 2
4 Mary dropped the milk.
5 What is Mary carrying? \tapple\t1 2 4
"""
WHERE = """\
1 John went back to the office.
2 Where is John? \toffice\t1
"""


def archive(folder: Path, files: dict[str, str], name: str = "tasks_1-20_v1-2.tar.gz") -> Path:
    """A data directory with an archive of these members (below `tasks_1-20_v1-2/`)."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / name, "w:gz") as tar:
        for member, text in files.items():
            info = tarfile.TarInfo(f"tasks_1-20_v1-2/{member}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return folder


def words(numbers: Any) -> list[str]:
    return [VOCABULARY[int(number)] for number in numbers]


def symbol(word: str) -> int:
    return VOCABULARY.index(word)
