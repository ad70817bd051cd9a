"""Kanerva++ with a controller: an LSTM writes its state into the memory as blocks, and gets what was read as input.

Equation numbers and figures are those of Ramapuram, Wu and Kalousis, "Kanerva++", ICLR 2021. The controller is that of
the DNC (Graves et al., 2016): what was read at a step is part of its input at the next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policies.memories.contract import MemoryStep, Panel, State, Unrolled
from policies.memories.kanerva.encoder import DeepLinear, ImageEncoder, split_time
from policies.memories.kanerva.form import KanervaForm
from policies.memories.kanerva.panels import memory_panels
from policies.memories.kanerva.parts import Gaussian, LearnedPrior, as_gaussian, image_shape
from policies.memories.kanerva.places import block_places, cell_weights, inner_room
from policies.memories.shared.noise import fingerprint, gaussian, next_seed
from policies.memories.shared.numbers import rms
from policies.memories.shared.readers import ReaderForm, Shape
from policies.memories.steps import Queries, reset
from policies.memories.time.scopes import held

KEYS, LATENT, POSTERIOR, ASKED_KEYS, ASKED_LATENT = range(5)
"""Streams of noise."""

MOST_PIXELS = 1024
"""In the windows of a read, above which the prior's convolutions are not written out as linear layers."""

KEY_STD = 0.3
"""Standard deviation of keys before training; the prior's is 1."""


class Weights(NamedTuple):
    """What depends on parameters alone, computed once for a sequence: linear layers, each weight and bias."""

    heads: tuple[Tensor, Tensor]
    """From the controller's state to all heads."""
    asking: tuple[Tensor, Tensor]
    """From the controller's state, or a question, to the keys."""
    prior: list[tuple[Tensor, Tensor]] | None
    """The prior's convolutions; None: too large, they stay convolutions."""
    readout: tuple[Tensor, Tensor]
    """From the prior's features to what is read at the mean of Z."""
    std: tuple[Tensor, Tensor]
    """From the prior's features to the raw deviation of Z."""
    latent: Tensor
    """From Z to what is read."""


class Read(NamedTuple):
    """One reading of a memory for each of B entries."""

    features: Tensor
    """Of the windows, as the prior sees them, `[B, F]`."""
    output: Tensor
    """`[B, output_size]`."""


class FastBlocks(ReaderForm):
    """All that does not pass through the controller is done for all steps together."""

    memory: BlockKanerva

    def unroll(
        self,
        xs: Tensor,
        starts: Tensor | None,
        state: State,
        resets: Sequence[int] | None,
        queries: Queries | None = None,
    ) -> Unrolled:
        return self.memory.run(xs, starts, state, range(len(xs)) if resets is None else resets, queries)


class BlockKanerva(KanervaForm):
    """Kanerva++ with an LSTM controller that writes a block at each step; see `kanerva.KanervaMemory` for arguments.

    State: `hidden`, `cell` `[B, H]` of the controller; `memory` `[B, C, S, S]`; `read` `[B, output_size]`, what was
    read; `places` `[B, 1 + K, 2]`, where the last block was written and the last windows read; with `sample`, `seed`
    `[B]`, a hash of the inputs so far.
    """

    fast_form = FastBlocks

    def __init__(
        self,
        input_size: Shape,
        queries: Mapping[str, Shape] | None,
        *,
        output_size: int,
        hidden_size: int,
        embedding_size: int,
        dense_size: int,
        latent_size: int,
        memory_channels: int,
        memory_size: int,
        reads: int,
        crop_size: int,
        prior_features: int,
        encoder_channels: Sequence[int],
        encoder_blocks: int,
        skip_blank: bool,
        sample: bool,
        kl_weight: float,
        map_shape: Sequence[int] | None,
        reconstruct: bool,
        likelihood: Literal["gaussian", "bernoulli"],
        decoder_features: int,
    ) -> None:
        super().__init__()
        if min(output_size, hidden_size, embedding_size, dense_size, latent_size, memory_channels, reads) < 1:
            raise ValueError("sizes and reads must be at least 1")
        if memory_size <= crop_size:
            raise ValueError(f"crop_size is {crop_size}; it must be below memory_size, {memory_size}")
        self.output_size = hidden_size + output_size
        self.latent_size, self.reads, self.crop_size = latent_size, reads, crop_size
        self.memory_size, self.channels = memory_size, memory_channels
        self.skip_blank, self.sample, self.kl_weight = skip_blank, sample, kl_weight

        def encoder(size: Shape, width: int) -> nn.Module:
            if isinstance(size, int):
                return nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width))
            shape = image_shape(size)
            return ImageEncoder(shape, encoder_channels, encoder_blocks, width, 0.0, "group", average_pool=False)

        self.encoder = None if isinstance(input_size, int) else encoder(input_size, embedding_size)
        seen = input_size if isinstance(input_size, int) else embedding_size
        self.controller = nn.LSTMCell(seen + output_size, hidden_size)
        self.write_place = DeepLinear(hidden_size, dense_size, 2)
        self.write_gate = nn.Linear(hidden_size, 1)
        self.content = nn.Linear(hidden_size, memory_channels * crop_size**2)
        self.keys = DeepLinear(hidden_size, dense_size, 2 * 2 * reads)  # q(Y|X)
        self.posterior = DeepLinear(hidden_size, dense_size, 2 * latent_size)  # q(Z|X)
        self.prior = LearnedPrior(reads * memory_channels, crop_size, prior_features, latent_size)
        self.readout = nn.Linear(self.prior.features + latent_size, output_size)
        self.asked = sorted(queries or {})
        self.query_encoders = nn.ModuleList(encoder((queries or {})[name], hidden_size) for name in self.asked)
        self.ask = nn.Linear(hidden_size, output_size) if self.asked else None

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
        hidden = self.controller.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "hidden": (hidden,),
            "cell": (hidden,),
            "memory": (self.channels, self.memory_size, self.memory_size),
            "read": (self.output_size - hidden,),
            "places": (1 + self.reads, 2),
        }
        shapes |= {"seed": ()} if self.sample else {}
        return self._zeros(batch_size, shapes)

    def forward(self, x: Tensor, state: State, queries: Queries | None = None) -> MemoryStep:
        asked = None if queries is None else {name: query.unsqueeze(0) for name, query in queries.items()}
        one = self.run(x.unsqueeze(0), None, state, (), asked)
        losses = {name: loss[0] for name, loss in one.losses.items()}
        return MemoryStep(one.outputs[0], one.state, losses, None if one.grids is None else one.grids[0])

    def run(
        self, xs: Tensor, starts: Tensor | None, state: State, resets: Sequence[int], queries: Queries | None
    ) -> Unrolled:
        """T steps; arguments as in `time.unroll`."""
        length, batch_size = xs.shape[:2]
        flat = xs.flatten(0, 1)
        seen = xs if self.encoder is None else split_time(_encode(self.encoder, flat), length, batch_size)
        written = split_time(self.writes(flat), length, batch_size)
        questions, prints = self.questions(queries)
        reset_at = frozenset(resets) if starts is not None else frozenset()
        initial = self.initial_state(batch_size) if reset_at else {}

        state = dict(state)
        seed = state.pop("seed", None)
        seeds: list[Tensor] = []
        if seed is not None:
            shown = fingerprint(xs, dims=2)
            for t in range(length):
                if t in reset_at and starts is not None:
                    seed = seed.masked_fill(starts[t], 0)
                seed = next_seed(seed, shown[t])
                seeds.append(seed)
        noise = self.noise(seeds, prints)

        weights = held(self, "weights", self.weights)
        hidden, reads, answers = [], [], []
        for t in range(length):
            if t in reset_at and starts is not None:
                state = reset(state, starts[t], initial)
            h, c = self.controller(torch.cat([seen[t], state["read"]], 1), (state["hidden"], state["cell"]))
            gate, place, content, numbers = torch.split(F.linear(h, *weights.heads), self.widths, 1)
            keys = self.draw_keys(numbers, noise[KEYS][t])
            places, cells = self.locate(torch.cat([place.unsqueeze(1), keys], 1))
            memory = self.write(state["memory"], cells[:, 0], gate.sigmoid() * written[t].unsqueeze(1), content)
            read = self.read(memory, cells[:, 1:], weights, noise[LATENT][t])
            state = {"hidden": h, "cell": c, "memory": memory, "read": read.output, "places": places}
            hidden.append(h)
            reads.append(read)
            if questions is not None:
                assert self.ask is not None
                keys = self.draw_keys(F.linear(questions[t], *weights.asking), noise[ASKED_KEYS][t])
                answer = self.read(memory, self.locate(keys)[1], weights, noise[ASKED_LATENT][t])
                answers.append(answer._replace(output=answer.output + self.ask(questions[t])))
        if seed is not None:
            state["seed"] = seed

        given = answers or reads
        outputs = torch.cat([torch.stack(hidden), torch.stack([read.output for read in given])], 2)
        grids = None
        if self.map_decoder is not None:
            latents = self.latents(given).at(_flat(noise[ASKED_LATENT if answers else LATENT]))
            grids = split_time(self.map_decoder(latents), length, batch_size)
        losses = self.losses(flat, torch.cat(hidden), written.flatten(), reads, noise[POSTERIOR])
        return Unrolled(
            outputs, state, {name: split_time(loss, length, batch_size) for name, loss in losses.items()}, grids
        )

    def questions(self, queries: Queries | None) -> tuple[Tensor | None, Tensor | None]:
        """The sum of the questions' embeddings `[T, B, H]`, and what seeds their noise `[T, B]`."""
        if not self.asked:
            return None, None
        queries = self._questions(queries)
        embeddings, prints = [], []
        for name, encoder in zip(self.asked, self.query_encoders, strict=True):
            query = queries[name]
            embeddings.append(split_time(_encode(encoder, query.flatten(0, 1)), *query.shape[:2]))
            prints.append(fingerprint(query, dims=2))
        return torch.stack(embeddings).sum(0), torch.stack(prints)

    def noise(self, seeds: list[Tensor], prints: Tensor | None) -> list[Tensor | _Nothing]:
        """Of each stream, what each step draws; None: means."""
        if not seeds:
            return [_Nothing() for _ in range(5)]
        seed = torch.stack(seeds)
        keys, latent = (self.reads, 2), (self.latent_size,)
        drawn: list[Tensor | _Nothing] = [_Nothing() for _ in range(5)]
        drawn[KEYS], drawn[LATENT] = gaussian(seed, keys, KEYS), gaussian(seed, latent, LATENT)
        if self.input_decoder is not None:
            drawn[POSTERIOR] = gaussian(seed, latent, POSTERIOR)
        if prints is not None:
            for shown in prints:
                seed = next_seed(seed, shown)
            drawn[ASKED_KEYS], drawn[ASKED_LATENT] = (
                gaussian(seed, keys, ASKED_KEYS),
                gaussian(seed, latent, ASKED_LATENT),
            )
        return drawn

    @property
    def widths(self) -> list[int]:
        """Of the heads: gate, place and content of the block to write, numbers of the keys."""
        return [1, 2, self.channels * self.crop_size**2, 2 * 2 * self.reads]

    def weights(self) -> Weights:
        """All heads as one linear map: the dense networks have nothing between their layers."""
        keys, project, width = self.keys.collapsed(), self.prior.project, self.latent_size
        parts = [
            *((self.write_gate.weight, self.write_gate.bias), self.write_place.collapsed()),
            *((self.content.weight, self.content.bias), keys),
        ]
        of_features, of_latent = torch.split(self.readout.weight, [self.prior.features, width], 1)
        small = self.reads * self.channels * self.crop_size**2 <= MOST_PIXELS
        return Weights(
            (torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])),
            keys,
            self.prior.as_linear() if small else None,
            # o = W_f f + W_z (W_μ f + b_μ) + b: linear in the features, but for what Z draws
            (of_features + of_latent @ project.weight[:width], self.readout.bias + of_latent @ project.bias[:width]),
            (project.weight[width:], project.bias[width:]),
            of_latent,
        )

    def key_posterior(self, numbers: Tensor) -> Gaussian:
        """q(Y|X) of what the network of the keys says, `[B, 4 K]`."""
        mean, raw = numbers.view(numbers.shape[0], 2, self.reads, 2).unbind(1)
        return Gaussian(mean, F.softplus(raw + math.log(math.expm1(KEY_STD))) + 1e-4)

    def draw_keys(self, numbers: Tensor, noise: Tensor | None) -> Tensor:
        """Keys `[B, K, 2]`; the means where there is no noise."""
        if noise is None:
            return numbers[:, : 2 * self.reads].view(-1, self.reads, 2)
        return self.key_posterior(numbers).at(noise)

    def locate(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Places `[B, n, 2]` of keys `[B, n, 2]`, and weights `[B, n, 2, crop_size, S]` across and down."""
        places = block_places(keys, inner_room(self.crop_size, self.memory_size))
        return places, cell_weights(places, self.crop_size, self.memory_size)

    def write(self, memory: Tensor, weights: Tensor, gate: Tensor, content: Tensor) -> Tensor:
        """M ← M (1 − g a) + g ST⁻¹(P): a block P in the place of what was there.

        Args:
            memory: `[B, C, S, S]`.
            weights: of the place, `[B, 2, crop_size, S]`.
            gate: g, `[B, 1]`.
            content: P, `[B, C · crop_size²]`.
        """
        across, down = weights.unbind(1)
        block = content.view(-1, self.channels, self.crop_size, self.crop_size) * gate.view(-1, 1, 1, 1)
        placed = down.transpose(1, 2).unsqueeze(1) @ block @ across.unsqueeze(1)
        sums = weights.sum(2)
        covered = (sums[:, 1] * gate).unsqueeze(2) * sums[:, :1]  # g a, [B, S, S]
        return torch.addcmul(memory + placed, memory, covered.unsqueeze(1), value=-1)

    def read(self, memory: Tensor, cells: Tensor, weights: Weights, noise: Tensor | None) -> Read:
        """Read memories `[B, C, S, S]` by weights of cells `[B, K, 2, crop_size, S]`."""
        across, down = cells.unbind(2)
        windows = down.unsqueeze(2) @ memory.unsqueeze(1) @ across.transpose(2, 3).unsqueeze(2)
        if weights.prior is None:
            features: Tensor = self.prior.layers(windows.flatten(1, 2))
        else:
            features = windows.flatten(1)
            for layer in weights.prior:
                features = F.linear(features, *layer).relu()
        # figure 5's lower branch: Z is the memory's, not the input's
        output = F.linear(features, *weights.readout)
        if noise is not None:
            std = F.softplus(F.linear(features, *weights.std)) + 1e-4
            output = output + F.linear(std * noise, weights.latent)
        return Read(features, output)

    def latents(self, reads: list[Read]) -> Gaussian:
        """p(Z|M, Y) of all steps, `[T · B, L]`."""
        return as_gaussian(self.prior.project(torch.cat([read.features for read in reads])))

    def losses(
        self, xs: Tensor, hidden: Tensor, written: Tensor, reads: list[Read], noise: Tensor | _Nothing
    ) -> dict[str, Tensor]:
        """The terms of eq. (4), each `[N]` for the N = T · B steps."""
        losses = dict.fromkeys(("kl_z", "kl_y"), torch.zeros_like(written))
        if not self.kl_weight and self.input_decoder is None:
            return losses
        posterior = as_gaussian(self.posterior(hidden))
        if self.kl_weight:
            keys = self.key_posterior(self.keys(hidden))
            losses["kl_z"] = self.kl_weight * posterior.kl(self.latents(reads)) * written
            losses["kl_y"] = self.kl_weight * keys.kl() * written
        if self.input_decoder is not None:
            decoded = self.input_decoder(posterior.at(_flat(noise)))
            losses["reconstruction"] = self.likelihood.cost(decoded, xs) * written
        return losses

    def metrics(self, state: State) -> dict[str, Tensor]:
        """How much is in the memory."""
        return {"memory_rms": rms(state["memory"])}

    def panels(self, state: State) -> dict[str, Panel]:
        """The memory with the block last written and the windows last read, and what is in them."""
        scale = (self.crop_size - 1) / (self.memory_size - 1)
        places = state["places"][0]
        with torch.no_grad():
            return memory_panels(
                state["memory"][:1],
                torch.cat([torch.full_like(places[:, :1], scale), places], 1),
                self.crop_size,
                self.get_buffer("colours"),
            )


class _Nothing:
    """Noise that is none, at every step."""

    def __getitem__(self, step: int) -> None:
        return None


def _flat(noise: Tensor | _Nothing) -> Tensor | None:
    """Of all steps, `[T · B, ...]`."""
    return noise.flatten(0, 1) if isinstance(noise, Tensor) else None


def _encode(encoder: nn.Module, x: Tensor) -> Tensor:
    encoded: Tensor | tuple[Tensor, list[Tensor]] = encoder(x)
    return encoded[0] if isinstance(encoded, tuple) else encoded
