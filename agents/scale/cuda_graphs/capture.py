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


class EagerCapture:
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
        gc.collect()  # a tensor freed during the capture could not return its memory
        with torch.cuda.graph(self.graph, pool=self.pool, stream=self.stream):
            self.output = body()

    def replay(self) -> Tensor:
        self.graph.replay()
        return self.output


class CapturedPart:
    """A capture, its inputs, and the Python-side state after it."""

    after: tuple[dict[str, Any], bool, list[int]]
    updates: int

    def __init__(self, capture: Capture, inputs: tuple[Any, ...], device: torch.device) -> None:
        self.capture = capture
        self.given = inputs
        # doubles: their products with float32 tensors are those of Python numbers
        self.inputs: list[Any] = [
            x.clone()
            if isinstance(x, Tensor)
            else x
            if x is None
            else torch.full((), x, dtype=torch.double, device=device)
            for x in inputs
        ]

    def copy_inputs(self, given: tuple[Any, ...]) -> None:
        """Copies new inputs to the buffers that the capture reads."""
        for x, last, buffer in zip(given, self.given, self.inputs, strict=True):
            if isinstance(x, Tensor):
                buffer.copy_(x)
            elif x != last:
                buffer.fill_(x)
        self.given = given
