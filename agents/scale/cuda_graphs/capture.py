"""One captured, replayable part of an iteration."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

Body = Callable[[], Tensor]


class Capture(Protocol):
    """A captured part of an iteration."""

    def record(self, body: Body) -> None:
        """Captures the device operations of `body`; may or may not run them."""

    def replay(self) -> Tensor:
        """Replays the capture; returns what `body` returned."""


class Twin:
    """Reference implementation: re-runs the Python body on each replay."""

    def record(self, body: Body) -> None:
        self.replay = body

    replay: Body


class CudaCapture:
    """A CUDA graph.

    Args:
        drawing: generators used in the body, beside the device's default one.
        pool: memory that all graphs of a model share.
        stream: the stream for captures and their warm-ups.
    """

    def __init__(self, drawing: list[torch.Generator], pool: Any, stream: torch.cuda.Stream) -> None:
        self.graph, self.pool, self.stream = torch.cuda.CUDAGraph(), pool, stream
        for generator in drawing:
            self.graph.register_generator_state(generator)

    def record(self, body: Body) -> None:
        gc.collect()  # a tensor that dies while the stream is captured could not give its memory back
        with torch.cuda.graph(self.graph, pool=self.pool, stream=self.stream):
            self.output = body()

    def replay(self) -> Tensor:
        self.graph.replay()
        return self.output


class Recorded:
    """A capture, its inputs, and the Python-side state after it."""

    after: tuple[dict[str, Any], bool, list[int]]
    updates: int

    def __init__(self, capture: Capture, inputs: tuple[Any, ...], device: torch.device) -> None:
        self.capture = capture
        self.given = inputs
        # numbers are doubles, which enter a product with a float32 tensor as Python's do
        self.inputs: list[Any] = [
            x.clone()
            if isinstance(x, Tensor)
            else x
            if x is None
            else torch.full((), x, dtype=torch.double, device=device)
            for x in inputs
        ]

    def take(self, given: tuple[Any, ...]) -> None:
        for x, last, held in zip(given, self.given, self.inputs, strict=True):
            if isinstance(x, Tensor):
                held.copy_(x)
            elif x != last:
                held.fill_(x)
        self.given = given
