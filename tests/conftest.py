"""Shared by all tests: tests marked `gpu` run on a GPU, or with `--pretend-cuda` on that of tests/pretend_cuda."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from pretend_cuda import PretendCuda


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pretend-cuda", action="store_true", help="run on a pretend GPU; use with -m gpu")
    parser.addoption("--write-launches", action="store_true", help="write the launches that are counted as the budget")


def pytest_collection_finish() -> None:
    """What is imported and collected stays: garbage collections, one before each capture, need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _accelerator(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.config.getoption("--pretend-cuda"):
        with PretendCuda() as gpu:
            yield
        assert not gpu.faults
        return
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no accelerator")
    yield
