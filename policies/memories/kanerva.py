"""Kanerva++: a memory that is an image, read through windows. Its parts are in `kanerva_parts.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policies.memories.base import MemoryStep, Panel, State, Unrolled, unroll
from policies.memories.kanerva_encoder import DeepLinear, DenseEncoder, Encoder, ImageEncoder
from policies.memories.kanerva_likelihood import Likelihood
from policies.memories.kanerva_parts import ImageDecoder, Kanerva, as_gaussian, read_windows
from policies.memories.kanerva_sequence import unroll_at_once
from policies.memories.noise import fingerprint, gaussian, next_seed
from policies.memories.readers import Queries, ReaderMemory, Shape
from policies.memories.registry import register_memory

KEYS, ASKED_KEYS, LATENT, POSTERIOR = range(4)
"""Streams of noise."""

COLOURS = ((1.0, 0.35, 0.2), (0.2, 0.75, 1.0), (1.0, 0.85, 0.1), (0.5, 1.0, 0.4), (0.9, 0.4, 1.0), (1.0, 1.0, 1.0))
ZOOM = 8
"""Pixels a memory cell in the panel."""


@register_memory("kanerva++")
class KanervaMemory(ReaderMemory):
    """Kanerva++ (Ramapuram, Wu and Kalousis, ICLR 2021) as a policy's memory, one input at a time.

    Every input is encoded, with part of its features shifted by a step, and added to a running mean. A deep linear
    network makes an image of the mean: the memory. Keys, of the question or else of the input, point to windows of it;
    what a window shows, and the latent Z that the learned prior p(Z|M, Y) makes of it, are the output.
    `policies.memories.kanerva_model` has the paper's own use of the same parts.

    State: `sum` `[B, embedding_size]` and `count` `[B]`, of what was written; `shift_i` `[B, channels, ...]`, features
    for the next step; `keys` `[B, K, 3]`, of the last input; with `sample`, `seed` `[B]`, a hash of the inputs so far.
    Losses, each `[B]` in nats and zero where nothing was written: `kl_z`, KL(q(Z|X) ‖ p(Z|M, Y)); `kl_y`,
    KL(q(Y|X) ‖ N(0, I)); with `reconstruct`, `reconstruction`, −ln p(X|Z ~ q(Z|X)). Their sum is the bound of eq. (4)
    with the memory as far as it has been written; they speak of the input, never of a question.

    Args:
        input_size: F of a vector, or (C, H, W) of an image.
        queries: shape of each question by name. Questions are not written; with none, the input asks as well.
        output_size: width of the output.
        embedding_size: D, width of E.
        dense_size: units of the dense networks.
        latent_size: L, width of Z.
        memory_channels: C of the memory.
        memory_size: S, its height and width: 4 times a power of two, at least 8.
        writer_features: feature maps of the writer's coarsest grid, halved by each layer.
        reads: K, windows read at a step.
        crop_size: side of a window in pixels, at least 4.
        prior_features: feature maps of the learned prior's first layer.
        encoder_channels: widths of the stages that encode an image.
        encoder_blocks: residual blocks a stage.
        encoder_activation: of the encoder of vectors. "linear" leaves the embedding a weighted sum of the inputs, so
            that their mean can count what was seen but not tell what went with what.
        shift: fraction of the features that comes from the step before.
        skip_blank: an input that is all zero is not written, as where a task asks and shows nothing.
        sample: draw keys and latents, by noise that is a hash of what was seen; False: take their means.
        map_shape: (C, H, W) of an image to decode from Z and give as `grid`; None: none.
        reconstruct: add the loss `reconstruction`.
        likelihood: of the input, for `reconstruct`: "gaussian" or, for inputs in 0..1, "bernoulli".
        decoder_features: feature maps of the decoder's coarsest grid.
        fast: do a sequence at once; False: step by step, which gives the same.
    """

    input_kind: ClassVar[Literal["vector", "grid", "either"]] = "either"

    def __init__(
        self,
        input_size: Shape,
        queries: Mapping[str, Shape] | None = None,
        output_size: int = 128,
        embedding_size: int = 64,
        dense_size: int = 64,
        latent_size: int = 32,
        memory_channels: int = 3,
        memory_size: int = 16,
        writer_features: int = 32,
        reads: int = 2,
        crop_size: int = 8,
        prior_features: int = 16,
        encoder_channels: Sequence[int] = (16, 32),
        encoder_blocks: int = 1,
        encoder_activation: Literal["relu", "linear"] = "relu",
        shift: float = 0.125,
        skip_blank: bool = True,
        sample: bool = True,
        map_shape: Sequence[int] | None = None,
        reconstruct: bool = False,
        likelihood: Literal["gaussian", "bernoulli"] = "gaussian",
        decoder_features: int = 32,
        fast: bool = True,
    ) -> None:
        super().__init__()
        if encoder_activation not in ("relu", "linear"):
            raise ValueError(f"encoder_activation is {encoder_activation!r}; it must be 'relu' or 'linear'")
        if likelihood not in ("gaussian", "bernoulli"):
            raise ValueError(f"likelihood is {likelihood!r}; it must be 'gaussian' or 'bernoulli'")
        self.output_size = output_size
        self.skip_blank = skip_blank
        self.sample = sample
        self.fast = fast

        def encoder(size: Shape, shift: float) -> Encoder:
            if isinstance(size, int):
                linear = encoder_activation == "linear"
                return DenseEncoder(size, dense_size, embedding_size, shift, linear)
            return ImageEncoder(
                _image(size), encoder_channels, encoder_blocks, embedding_size, shift, "group", average_pool=False
            )

        self.encoder = encoder(input_size, shift)
        self.asked = sorted(queries or {})
        # questions have no order in time, so nothing of theirs is shifted
        self.query_encoders = nn.ModuleList(encoder((queries or {})[name], 0.0) for name in self.asked)
        self.kanerva = Kanerva(
            embedding_size,
            dense_size,
            latent_size,
            memory_channels,
            memory_size,
            writer_features,
            reads,
            crop_size,
            prior_features,
        )
        self.readout = nn.Linear(self.kanerva.prior.features + latent_size + embedding_size, output_size)

        self.output_grid = None if map_shape is None else _image(map_shape)
        self.map_decoder = None
        if self.output_grid is not None:
            self.map_decoder = ImageDecoder(latent_size, self.output_grid, decoder_features)
        self.likelihood = Likelihood(likelihood)
        self.input_decoder: nn.Module | None = None
        if reconstruct and isinstance(input_size, int):
            self.input_decoder = DeepLinear(latent_size, dense_size, input_size)
        elif reconstruct:
            same = self.output_grid == input_size
            self.input_decoder = (
                self.map_decoder if same else ImageDecoder(latent_size, _image(input_size), decoder_features)
            )
        self.register_buffer("colours", torch.tensor(COLOURS), persistent=False)

    def initial_state(self, batch_size: int) -> State:
        shapes: dict[str, tuple[int, ...]] = {
            "sum": (self.kanerva.writer.project.in_features,),
            "count": (),
            "keys": (self.kanerva.keys.reads, 3),
        }
        shapes |= {f"shift_{index}": shape for index, shape in enumerate(self.encoder.shift_shapes)}
        shapes |= {"seed": ()} if self.sample else {}
        return {
            name: torch.zeros(1, *shape, device=self.device, dtype=self.dtype).expand(batch_size, *shape)
            for name, shape in shapes.items()
        }

    def forward(self, x: Tensor, state: State, queries: Queries | None = None) -> MemoryStep:
        carried = [state[f"shift_{index}"] for index in range(len(self.encoder.shift_shapes))]
        embedding, taken = self.encoder(x, carried)
        written = self.writes(x)
        following = {"sum": state["sum"] + written.unsqueeze(1) * embedding, "count": state["count"] + written}
        if self.sample:
            following["seed"] = next_seed(state["seed"], fingerprint(x))
        for index, (before, now) in enumerate(zip(carried, taken, strict=True)):
            following[f"shift_{index}"] = torch.where(written.view(-1, *[1] * (now.dim() - 1)) > 0, now, before)
        following["keys"], output, grid, losses = self.answer(
            x, embedding, written, following["sum"], following["count"], following.get("seed"), queries
        )
        return MemoryStep(output, following, losses, grid)

    def unroll(
        self,
        xs: Tensor,
        starts: Tensor | None,
        state: State,
        resets: Sequence[int] | None = None,
        queries: Queries | None = None,
    ) -> Unrolled:
        """As `base.unroll`, all steps at once."""
        if not self.fast:
            return unroll(self, xs, starts, state, resets, queries)
        return unroll_at_once(self, xs, None if resets is not None and not resets else starts, state, queries)

    def writes(self, x: Tensor) -> Tensor:
        """1 where an input `[N, ...]` is written, 0 where it is skipped, `[N]`."""
        shown = (x != 0).flatten(1).any(1)
        return (shown if self.skip_blank else torch.ones_like(shown)).to(x.dtype)

    def answer(
        self,
        x: Tensor,
        embedding: Tensor,
        written: Tensor,
        total: Tensor,
        count: Tensor,
        seed: Tensor | None,
        queries: Queries | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, dict[str, Tensor]]:
        """Read N memories, each made of a sum of embeddings and their count.

        Returns:
            The input's keys, the output, the map where there is one, and the losses.
        """

        def noise(stream: int, *shape: int) -> Tensor | None:
            return None if seed is None else gaussian(seed, shape, stream)

        memory = self.kanerva.writer(pooled(total, count))  # §3.3
        of_key, latent_size = (self.kanerva.keys.reads, 3), self.kanerva.prior.project.out_features // 2
        key_posterior = self.kanerva.keys(embedding)
        keys = key_posterior.at(noise(KEYS, *of_key))
        prior, features = self.kanerva.read(memory, keys)
        posterior = as_gaussian(self.kanerva.posterior(embedding))  # q(Z|X)
        losses = {"kl_z": posterior.kl(prior) * written, "kl_y": key_posterior.kl() * written}
        if self.input_decoder is not None:
            decoded = self.input_decoder(posterior.at(noise(POSTERIOR, latent_size)))
            losses["reconstruction"] = self.likelihood.cost(decoded, x) * written

        if self.asked:
            embedding, seed = self.ask(seed, queries)
            prior, features = self.kanerva.read(memory, self.kanerva.keys(embedding).at(noise(ASKED_KEYS, *of_key)))
        latent = prior.at(noise(LATENT, latent_size))  # figure 5's lower branch: Z is the memory's, not the input's
        grid = None if self.map_decoder is None else self.map_decoder(latent)
        return keys, self.readout(torch.cat([features, latent, embedding], 1)), grid, losses

    def ask(self, seed: Tensor | None, queries: Queries | None) -> tuple[Tensor, Tensor | None]:
        """The sum of the questions' embeddings, and a seed that knows the questions."""
        missing = set(self.asked) - set(queries or {})
        if queries is None or missing:
            raise ValueError(f"this memory was built to be asked {self.asked}; missing: {sorted(missing)}")
        embeddings = []
        for name, encoder in zip(self.asked, self.query_encoders, strict=True):
            embeddings.append(encoder(queries[name])[0])
            seed = None if seed is None else next_seed(seed, fingerprint(queries[name]))
        return torch.stack(embeddings).sum(0), seed

    def panels(self, state: State) -> dict[str, Panel]:
        """The memory with the windows that the last input's keys point to, and what is in them."""
        with torch.no_grad():
            memory = self.kanerva.writer(pooled(state["sum"][:1], state["count"][:1]))
            keys = state["keys"][:1]
            windows = read_windows(memory, keys, self.kanerva.crop_size)[0]
            low, high = memory.min(), memory.max()
            span = (high - low).clamp(min=1e-12)
            picture = F.interpolate((as_rgb(memory) - low) / span, scale_factor=ZOOM)[0].permute(1, 2, 0)
            colours = self.get_buffer("colours")
            for index, key in enumerate(keys[0].tanh()):
                outline = frame(key, picture.shape[0]).unsqueeze(-1)
                picture = torch.where(outline, colours[index % len(COLOURS)], picture)
            crops = ((as_rgb(windows) - low) / span).clamp(0, 1).permute(2, 0, 3, 1).flatten(1, 2)
        return {
            "memory": Panel(picture, f"x (cell · {ZOOM})", f"y (cell · {ZOOM})"),
            "windows": Panel(crops, "x, window by window", "y"),
        }


def pooled(total: Tensor, count: Tensor) -> Tensor:
    """The mean embedding of what was written; zero where nothing was."""
    return total / count.clamp(min=1).unsqueeze(-1)


def _image(shape: Shape | Sequence[int]) -> tuple[int, int, int]:
    if isinstance(shape, int) or len(shape) != 3:
        raise ValueError(f"the shape of an image is (C, H, W), not {shape}")
    channels, height, width = shape
    return channels, height, width


def as_rgb(image: Tensor) -> Tensor:
    """The first three channels of `[N, C, H, W]`; the last one again where there are fewer."""
    last = image[:, -1:].expand(-1, max(0, 3 - image.shape[1]), -1, -1)
    return torch.cat([image[:, :3], last], 1)


def frame(key: Tensor, size: int) -> Tensor:
    """The outline of a window (s, x, y) as a mask `[size, size]`, a few pixels thick."""
    places = torch.linspace(-1, 1, size, device=key.device, dtype=key.dtype)
    scale, x, y = key.unbind()
    distance = torch.maximum((places - x).abs().unsqueeze(0), (places - y).abs().unsqueeze(1))
    return (distance - scale.abs()).abs() <= 3 / size
