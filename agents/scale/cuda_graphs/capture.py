"""One graph: a part of an iteration, taken down once and done again at will."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

Body = Callable[[], Tensor]


class Capture(Protocol):
    """One graph."""

    def record(self, body: Body) -> None:
        """Take down what `body` does to the device, doing it or not."""

    def replay(self) -> Tensor:
        """Do it; gives what `body` gave."""


class Twin:
    """Does it all again by Python: what a graph must equal."""

    def record(self, body: Body) -> None:
        self.replay = body

    replay: Body


class CudaCapture:
    """A CUDA graph.

    Args:
        drawing: the generators that are drawn from, beside the device's default one.
        pool: memory that all graphs of a model share.
        stream: where it is captured, and where everything of its kind ran before.
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
    """A capture, its inputs and what Python knows after it."""

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
