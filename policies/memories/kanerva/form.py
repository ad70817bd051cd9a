"""Base class of both forms of Kanerva++: decoders, the write mask, and the check of questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from policies.memories.contract import State
from policies.memories.kanerva.encoder import DeepLinear
from policies.memories.kanerva.likelihood import Likelihood
from policies.memories.kanerva.panels import COLOURS
from policies.memories.kanerva.parts import ImageDecoder, image_shape
from policies.memories.shared.readers import ReaderMemory, Shape
from policies.memories.steps import Queries


class Read(NamedTuple):
    """The result of reading the memory."""

    features: Tensor
    """Features of the windows, the input of the learned prior, `[..., F]`."""
    output: Tensor
    """`[..., output_size]`."""


class StepResults(NamedTuple):
    """The results of T steps."""

    hidden: Tensor
    """`[T, B, H]`."""
    read: Read
    """The read at the input's keys, `[T, B, ...]`."""
    answer: Read
    """The read for the output: at the questions' keys; without questions the same as `read`."""
    state: State


class SharedLayers(NamedTuple):
    """Linear layers (weight, bias) that depend only on parameters, computed once per sequence."""

    emit: tuple[Tensor, Tensor]
    """From E to the write gate and the block."""
    point: tuple[Tensor, Tensor]
    """From the hidden state to the key of the block and the means of the keys."""
    spread: tuple[Tensor, Tensor]
    """From the hidden state to the raw deviations of the keys."""
    query_keys: tuple[Tensor, Tensor]
    """From a question to means and raw deviations of the keys."""
    prior: list[tuple[Tensor, Tensor]] | None
    """The prior's convolutions as linear layers; None: too large, they run as convolutions."""
    readout: tuple[Tensor, Tensor]
    """From windows and features to the read-out at the mean of Z."""
    std: tuple[Tensor, Tensor]
    """From the features to the raw deviation of Z."""
    latent: Tensor
    """From Z to the read-out."""


class KanervaForm(ReaderMemory):
    """Base class of the two forms; see `kanerva.memory.KanervaMemory` for the arguments."""

    input_kind: ClassVar[Literal["vector", "grid", "either"]] = "either"
    skip_blank: bool
    query_names: list[str]

    def _add_decoders(
        self,
        input_size: Shape,
        *,
        latent_size: int,
        dense_size: int,
        map_shape: Sequence[int] | None,
        reconstruct: bool,
        likelihood: Literal["gaussian", "bernoulli"],
        features: int,
    ) -> None:
        self.output_grid = None if map_shape is None else image_shape(map_shape, "map_shape")
        self.map_decoder = None
        if self.output_grid is not None:
            self.map_decoder = ImageDecoder(latent_size, self.output_grid, features)
        self.likelihood = Likelihood(likelihood)
        self.input_decoder: nn.Module | None = None
        if reconstruct and isinstance(input_size, int):
            self.input_decoder = DeepLinear(latent_size, dense_size, input_size)
        elif reconstruct:
            same = self.output_grid == input_size
            self.input_decoder = (
                self.map_decoder if same else ImageDecoder(latent_size, image_shape(input_size), features)
            )
        self.register_buffer("colours", torch.tensor(COLOURS), persistent=False)

    def writes(self, x: Tensor) -> Tensor:
        """1 where an input `[N, ...]` is written, 0 where it is skipped, `[N]`."""
        not_blank = (x != 0).flatten(1).any(1)
        return (not_blank if self.skip_blank else torch.ones_like(not_blank)).to(x.dtype)

    def _questions(self, queries: Queries | None) -> Queries:
        """Checks that `queries` is complete, and returns it.

        Raises:
            ValueError: a question is missing.
        """
        missing = sorted(set(self.query_names) - set(queries or {}))
        if queries is None or missing:
            raise ValueError(f"expected the questions {self.query_names}; missing: {missing}")
        return queries
