"""bAbI files that are not the published ones are said."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from envs.data.files import digest
from envs.tasks.babi.known import DIGESTS
from envs.tasks.babi.stories import load

WHERE = "1 John went to the office.\n2 Where is John? \toffice\t1\n"


def test_files_that_are_not_the_published_ones_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tasks_1-20_v1-2" / "en-valid"
    folder.mkdir(parents=True)
    for task in (1, 8):
        (folder / f"qa{task}_test.txt").write_text(WHERE)
    with pytest.warns(UserWarning, match=r"v1-2: en-valid/qa1_test\.txt, qa8_test\.txt is not the published content"):
        load("en-valid", "test", [1, 8], tmp_path)
    for task in (1, 8):
        monkeypatch.setitem(DIGESTS, ("en-valid", "test", task), digest(WHERE.encode())[:8])
    (folder / "qa8_test.txt").write_bytes(WHERE.replace("\n", "\r\n").encode())  # Git writes such line ends on Windows
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load("en-valid", "test", [1, 8], tmp_path)
    assert len(DIGESTS) == 198  # of 200
