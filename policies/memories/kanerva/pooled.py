"""Kanerva++ as in its paper, for a policy: the memory is computed from the mean of all encoded inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from policies.memories.contract import MemoryStep, Panel, State
from policies.memories.kanerva.encoder import DenseEncoder, Encoder, ImageEncoder
from policies.memories.kanerva.fast_sequence import FastPooled
from policies.memories.kanerva.form import KanervaForm
from policies.memories.kanerva.panels import memory_panels
from policies.memories.kanerva.parts import Kanerva, as_gaussian, image_shape
from policies.memories.shared.arguments import one_of
from policies.memories.shared.noise import fingerprint, gaussian, next_seed
from policies.memories.shared.readers import Shape
from policies.memories.steps import Queries

KEYS, QUERY_KEYS, LATENT, POSTERIOR = range(4)
"""Streams of noise."""


class PooledKanerva(KanervaForm):
    """Kanerva++ without a controller; see `kanerva.KanervaMemory` for arguments and losses.

    State: `sum` `[B, embedding_size]` and `count` `[B]` of the embeddings written; `shift_i` `[B, channels, ...]`,
    features for the next step; `keys` `[B, K, 3]` of the last input; with `sample`, `seed` `[B]`, a hash of the inputs
    so far.

    Raises:
        ValueError: `encoder_activation` is unknown, a shape is not (C, H, W), or as `Kanerva`.
    """

    fast_form = FastPooled

    def __init__(
        self,
        input_size: Shape,
        queries: Mapping[str, Shape] | None,
        *,
        output_size: int,
        embedding_size: int,
        dense_size: int,
        latent_size: int,
        memory_channels: int,
        memory_size: int,
        writer_features: int,
        reads: int,
        crop_size: int,
        prior_features: int,
        encoder_channels: Sequence[int],
        encoder_blocks: int,
        encoder_activation: Literal["relu", "linear"],
        shift: float,
        skip_blank: bool,
        sample: bool,
        kl_weight: float,
        map_shape: Sequence[int] | None,
        reconstruct: bool,
        likelihood: Literal["gaussian", "bernoulli"],
        decoder_features: int,
    ) -> None:
        super().__init__()
        one_of("encoder_activation", encoder_activation, "relu", "linear")
        self.output_size = output_size
        self.skip_blank = skip_blank
        self.sample = sample
        self.kl_weight = kl_weight

        def encoder(size: Shape, shift: float) -> Encoder:
            if isinstance(size, int):
                linear = encoder_activation == "linear"
                return DenseEncoder(size, dense_size, embedding_size, shift, linear)
            return ImageEncoder(
                image_shape(size), encoder_channels, encoder_blocks, embedding_size, shift, "group", average_pool=False
            )

        self.encoder = encoder(input_size, shift)
        self.query_names = sorted(queries or {})
        # questions are not a sequence: no temporal shift
        self.query_encoders = nn.ModuleList(encoder((queries or {})[name], 0.0) for name in self.query_names)
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

        self._add_decoders(
            input_size,
            latent_size=latent_size,
            dense_size=dense_size,
            map_shape=map_shape,
            reconstruct=reconstruct,
            likelihood=likelihood,
            features=decoder_features,
        )

    def initial_state(self, batch_size: int) -> State:
        shapes: dict[str, tuple[int, ...]] = {
            "sum": (self.kanerva.writer.project.in_features,),
            "count": (),
            "keys": (self.kanerva.keys.reads, 3),
        }
        shapes |= {f"shift_{index}": shape for index, shape in enumerate(self.encoder.shift_shapes)}
        shapes |= {"seed": ()} if self.sample else {}
        return self.zeros_state(batch_size, shapes)

    def forward(self, x: Tensor, state: State, queries: Queries | None = None) -> MemoryStep:
        carried = [state[f"shift_{index}"] for index in range(len(self.encoder.shift_shapes))]
        embedding, shifted = self.encoder(x, carried)
        written = self.writes(x)
        new_state = {"sum": state["sum"] + written.unsqueeze(1) * embedding, "count": state["count"] + written}
        if self.sample:
            new_state["seed"] = next_seed(state["seed"], fingerprint(x))
        for index, (old, new) in enumerate(zip(carried, shifted, strict=True)):
            new_state[f"shift_{index}"] = torch.where(written.view(-1, *[1] * (new.dim() - 1)) > 0, new, old)
        new_state["keys"], output, grid, losses = self.answer(
            x, embedding, written, new_state["sum"], new_state["count"], new_state.get("seed"), queries
        )
        return MemoryStep(output, new_state, losses, grid)

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
        """Reads N memories, each computed from a sum of embeddings and their count.

        Returns:
            The input's keys `[N, K, 3]`, the output `[N, output_size]`, the map or None, and the losses.
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
        losses = {name: self.kl_weight * loss for name, loss in losses.items()}
        if self.input_decoder is not None:
            decoded = self.input_decoder(posterior.at(noise(POSTERIOR, latent_size)))
            losses["reconstruction"] = self.likelihood.cost(decoded, x) * written

        if self.query_names:
            embedding, seed = self.ask(seed, queries)
            prior, features = self.kanerva.read(memory, self.kanerva.keys(embedding).at(noise(QUERY_KEYS, *of_key)))
        latent = prior.at(noise(LATENT, latent_size))  # figure 5, lower branch: Z ~ p(Z|M, Y), not q(Z|X)
        grid = None if self.map_decoder is None else self.map_decoder(latent)
        return keys, self.readout(torch.cat([features, latent, embedding], 1)), grid, losses

    def ask(self, seed: Tensor | None, queries: Queries | None) -> tuple[Tensor, Tensor | None]:
        """The sum of the questions' embeddings, and a seed that depends on the questions."""
        queries = self._questions(queries)
        embeddings = []
        for name, encoder in zip(self.query_names, self.query_encoders, strict=True):
            embeddings.append(encoder(queries[name])[0])
            seed = None if seed is None else next_seed(seed, fingerprint(queries[name]))
        return torch.stack(embeddings).sum(0), seed

    def metrics(self, state: State) -> dict[str, Tensor]:
        """`written`: number of inputs written."""
        return {"written": state["count"]}

    def panels(self, state: State) -> dict[str, Panel]:
        """The memory with frames around the windows at the last input's keys, and the contents of the windows."""
        with torch.no_grad():
            memory = self.kanerva.writer(pooled(state["sum"][:1], state["count"][:1]))
            windows = state["keys"][0].tanh()
            return memory_panels(memory, windows, self.kanerva.crop_size, self.get_buffer("colours"))


def pooled(total: Tensor, count: Tensor) -> Tensor:
    """The mean of the written embeddings; zero if there are none."""
    return total / count.clamp(min=1).unsqueeze(-1)
