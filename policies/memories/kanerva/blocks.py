"""Kanerva++ with a controller: an LSTM writes blocks to the memory, and its input contains the last read-out.

Equation numbers and figures are those of Ramapuram, Wu and Kalousis, "Kanerva++", ICLR 2021. The controller is that of
the DNC (Graves et al., 2016): the read-out of a step is part of the next input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policies.memories.contract import MemoryStep, Panel, State, Unrolled
from policies.memories.kanerva.encoder import DeepLinear, ImageEncoder, split_time
from policies.memories.kanerva.fast_blocks import FastBlocks
from policies.memories.kanerva.form import KanervaForm, Read, SharedLayers, StepResults
from policies.memories.kanerva.panels import memory_panels
from policies.memories.kanerva.parts import Gaussian, LearnedPrior, as_gaussian, image_shape
from policies.memories.kanerva.places import block_places, max_distance_within, offset_weights
from policies.memories.shared.noise import fingerprint, gaussian, next_seed
from policies.memories.shared.numbers import rms
from policies.memories.shared.readers import Shape
from policies.memories.steps import Queries, reset
from policies.memories.time.scopes import cached

KEYS, LATENT, POSTERIOR, QUERY_KEYS, QUERY_LATENT = range(5)
"""Streams of noise."""

MAX_LINEAR_PIXELS = 1024
"""Maximum number of pixels in the windows of a read for which the prior's convolutions are run as linear layers."""

KEY_STD = 0.3
"""Standard deviation of keys before training; the prior's is 1."""

RunSteps = Callable[[Tensor, Tensor, Tensor | None, State], StepResults]
"""Runs all steps; arguments: the first four of `BlockKanerva.walk_steps`."""


class BlockKanerva(KanervaForm):
    """Kanerva++ with an LSTM controller that writes a block at each step; see `kanerva.KanervaMemory` for arguments.

    State: `hidden`, `cell` `[B, H]` of the controller; `memory` `[B, C, S, S]`; `read` `[B, output_size]`, the
    read-out; `places` `[B, 1 + K, 2]`, positions of the last block written and the last windows read; with `sample`,
    `seed` `[B]`, a hash of the inputs so far.

    Raises:
        ValueError: a size is below 1, or `crop_size` is not below `memory_size`.
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
            raise ValueError("a size or read_heads is below 1; expected at least 1")
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
        self.posterior = None
        if kl_weight or reconstruct:
            self.posterior = DeepLinear(hidden_size, dense_size, 2 * latent_size)  # q(Z|X)
        self.prior = LearnedPrior(reads * memory_channels, crop_size, prior_features, latent_size, nn.Tanh)
        windows = reads * memory_channels * crop_size**2
        self.windows, self.small, self.read_size = windows, windows <= MAX_LINEAR_PIXELS, output_size
        self.readout = nn.Linear(windows + self.prior.features + latent_size, output_size)
        self.query_names = sorted(queries or {})
        self.query_encoders = nn.ModuleList(encoder((queries or {})[name], hidden_size) for name in self.query_names)
        self.ask = nn.Linear(hidden_size, output_size) if self.query_names else None

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
        return self.zeros_state(batch_size, shapes)

    def forward(self, x: Tensor, state: State, queries: Queries | None = None) -> MemoryStep:
        return self.single_step(x, state, queries)

    def single_step(
        self, x: Tensor, state: State, queries: Queries | None, run_steps: RunSteps | None = None
    ) -> MemoryStep:
        """One step; `run_steps`: as of `run`."""
        questions = None if queries is None else {name: query.unsqueeze(0) for name, query in queries.items()}
        result = self.run(x.unsqueeze(0), None, state, (), questions, run_steps)
        losses = {name: loss[0] for name, loss in result.losses.items()}
        return MemoryStep(result.outputs[0], result.state, losses, None if result.grids is None else result.grids[0])

    def run(
        self,
        xs: Tensor,
        starts: Tensor | None,
        state: State,
        resets: Sequence[int],
        queries: Queries | None,
        run_steps: RunSteps | None = None,
    ) -> Unrolled:
        """T steps; arguments as in `time.unroll`. `run_steps`: function for the recurrent part; None: `walk_steps`."""
        length, batch_size = xs.shape[:2]
        flat = xs.flatten(0, 1)
        seen = xs if self.encoder is None else split_time(_encode(self.encoder, flat), length, batch_size)
        written = split_time(self.writes(flat), length, batch_size)
        noise: list[Tensor | _NoNoise] = [_NoNoise() for _ in range(5)]
        if run_steps is not None:
            step_results = run_steps(seen, written, starts, state)
        else:
            questions, prints = self.questions(queries)
            reset_at = frozenset(resets) if starts is not None else frozenset()
            if self.sample:
                seeds = self.seeds(xs, starts, state["seed"], reset_at)
                noise, state = self.noise(seeds, prints), {**state, "seed": seeds[-1]}
            step_results = self.walk_steps(seen, written, starts, state, reset_at, questions, noise)
        outputs = torch.cat([step_results.hidden, step_results.answer.output], 2)
        grids = None
        if self.map_decoder is not None:
            has_questions = step_results.answer is not step_results.read
            latents = self.latents(step_results.answer).at(_flat(noise[QUERY_LATENT if has_questions else LATENT]))
            grids = split_time(self.map_decoder(latents), length, batch_size)
        losses = self.losses(flat, step_results, written.flatten(), noise[POSTERIOR])
        return Unrolled(
            outputs,
            step_results.state,
            {name: split_time(loss, length, batch_size) for name, loss in losses.items()},
            grids,
        )

    def walk_steps(
        self,
        seen: Tensor,
        written: Tensor,
        starts: Tensor | None,
        state: State,
        reset_at: frozenset[int],
        questions: Tensor | None,
        noise: list[Tensor | _NoNoise],
    ) -> StepResults:
        """The steps, one by one.

        Args:
            seen: the controller's encoded inputs, `[T, B, ...]`.
            written: 1 where an input is written, else 0, `[T, B]`.
            starts: bool `[T, B]`, or None.
            state: the state before the first step, except for its seed: that after the last step.
            reset_at: steps at which an episode may start.
            questions: their embeddings, `[T, B, H]`, or None.
            noise: the noise of each step, for each stream.
        """
        initial = self.initial_state(seen.shape[1]) if reset_at else {}
        seed = {name: state[name] for name in ("seed",) if name in state}
        state = {name: state[name] for name in ("hidden", "cell", "memory", "read")}
        shared = cached(self, "weights", self.weights)
        hidden, reads, answers = [], [], []
        for t in range(len(seen)):
            if t in reset_at and starts is not None:
                state = reset(state, starts[t], {name: initial[name] for name in state})
            h, c = self.controller(torch.cat([seen[t], state["read"]], 1), (state["hidden"], state["cell"]))
            embedding = F.layer_norm(h, h.shape[-1:])  # E: blocks have the same scale throughout training
            gate, content = torch.split(F.linear(embedding, *shared.emit), [1, len(shared.emit[0]) - 1], 1)
            keys = F.linear(h, *shared.point).view(-1, 1 + self.reads, 2)
            if self.sample:
                deviations = F.linear(h, *shared.spread)
                keys = torch.cat([keys[:, :1], self.key_posterior(keys[:, 1:], deviations).at(noise[KEYS][t])], 1)
            block, windows = torch.split(self.locate(keys), [1, self.reads], 1)
            memory = self.write(state["memory"], block.squeeze(1), gate.sigmoid() * written[t].unsqueeze(1), content)
            read = self.read(memory, windows, shared, noise[LATENT][t])
            state = {"hidden": h, "cell": c, "memory": memory, "read": read.output}
            hidden.append(h)
            reads.append(read)
            if questions is not None:
                assert self.ask is not None
                query_keys = self.key_posterior(*F.linear(questions[t], *shared.query_keys).chunk(2, 1))
                answer = self.read(
                    memory, self.locate(query_keys.at(noise[QUERY_KEYS][t])), shared, noise[QUERY_LATENT][t]
                )
                answers.append(answer._replace(output=answer.output + self.ask(questions[t])))
        read, *other = (Read(*map(torch.stack, zip(*each, strict=True))) for each in (reads, answers) if each)
        places = block_places(keys, max_distance_within(self.crop_size, self.memory_size))
        return StepResults(torch.stack(hidden), read, other[0] if other else read, state | seed | {"places": places})

    def seeds(self, xs: Tensor, starts: Tensor | None, seed: Tensor, reset_at: frozenset[int]) -> Tensor:
        """The seed of each step's noise, `[T, B]`; `seed`: before the first step."""
        seeds, hashes = [], fingerprint(xs, dims=2)
        for t in range(len(xs)):
            if t in reset_at and starts is not None:
                seed = seed.masked_fill(starts[t], 0)
            seed = next_seed(seed, hashes[t])
            seeds.append(seed)
        return torch.stack(seeds)

    def questions(self, queries: Queries | None) -> tuple[Tensor | None, Tensor | None]:
        """The sum of the questions' embeddings `[T, B, H]`, and the seed of their noise `[T, B]`."""
        if not self.query_names:
            return None, None
        queries = self._questions(queries)
        embeddings, prints = [], []
        for name, encoder in zip(self.query_names, self.query_encoders, strict=True):
            query = queries[name]
            embeddings.append(split_time(_encode(encoder, query.flatten(0, 1)), *query.shape[:2]))
            prints.append(fingerprint(query, dims=2))
        return torch.stack(embeddings).sum(0), torch.stack(prints)

    def noise(self, seed: Tensor, prints: Tensor | None) -> list[Tensor | _NoNoise]:
        """The noise of each step, for each stream, from the steps' seeds `[T, B]`."""
        keys, latent = (self.reads, 2), (self.latent_size,)
        drawn: list[Tensor | _NoNoise] = [_NoNoise() for _ in range(5)]
        drawn[KEYS], drawn[LATENT] = gaussian(seed, keys, KEYS), gaussian(seed, latent, LATENT)
        if self.input_decoder is not None:
            drawn[POSTERIOR] = gaussian(seed, latent, POSTERIOR)
        if prints is not None:
            for input_hash in prints:
                seed = next_seed(seed, input_hash)
            drawn[QUERY_KEYS], drawn[QUERY_LATENT] = (
                gaussian(seed, keys, QUERY_KEYS),
                gaussian(seed, latent, QUERY_LATENT),
            )
        return drawn

    def weights(self) -> SharedLayers:
        """All heads as one linear map, since the dense networks have no activations."""
        keys, place = self.keys.collapsed(), self.write_place.collapsed()
        project, width, means = self.prior.project, self.latent_size, 2 * self.reads
        features = self.prior.features
        of_windows, of_features, of_latent = torch.split(self.readout.weight, [self.windows, features, width], 1)
        return SharedLayers(
            (
                torch.cat([self.write_gate.weight, self.content.weight]),
                torch.cat([self.write_gate.bias, self.content.bias]),
            ),
            (torch.cat([place[0], keys[0][:means]]), torch.cat([place[1], keys[1][:means]])),
            (keys[0][means:], keys[1][means:]),
            keys,
            self.prior.as_linear() if self.small else None,
            # r = W_m m + W_f f + W_z (W_μ f + b_μ) + b: linear in windows and features, except for the noise of Z
            (
                torch.cat([of_windows, of_features + of_latent @ project.weight[:width]], 1),
                self.readout.bias + of_latent @ project.bias[:width],
            ),
            (project.weight[width:], project.bias[width:]),
            of_latent,
        )

    def key_posterior(self, mean: Tensor, raw: Tensor) -> Gaussian:
        """q(Y|X), `[B, K, 2]`, from the outputs of the key network, `[B, 2 K]` each."""
        raw = raw + math.log(math.expm1(KEY_STD))
        return Gaussian(mean.reshape(-1, self.reads, 2), F.softplus(raw).view(-1, self.reads, 2) + 1e-4)

    def locate(self, keys: Tensor) -> Tensor:
        """Bilinear weights of the blocks at keys `[B, n, 2]`: pixel by memory cell, `[B, n, crop_size², S²]`."""
        # Φ(y) (S - B): first row and column of the block; for normal keys uniform over all positions
        span = self.memory_size - self.crop_size
        across, down = offset_weights(torch.special.ndtr(keys), span, self.crop_size, self.memory_size).unbind(2)
        return (down[:, :, :, None, :, None] * across[:, :, None, :, None, :]).flatten(4).flatten(2, 3)

    def write(self, memory: Tensor, weights: Tensor, gate: Tensor, content: Tensor) -> Tensor:
        """M ← M (1 − g a) + g ST⁻¹(P): block P replaces the old content.

        Args:
            memory: `[B, C, S, S]`.
            weights: bilinear weights of the block's position, `[B, crop_size², S²]`.
            gate: g, `[B, 1]`.
            content: P, `[B, C · crop_size²]`.
        """
        weights = weights * gate.unsqueeze(1)
        erased = memory.flatten(2) * (1 - weights.sum(1, keepdim=True))
        return torch.baddbmm(erased, content.view(-1, self.channels, self.crop_size**2), weights).view_as(memory)

    def read(self, memory: Tensor, weights: Tensor, shared: SharedLayers, noise: Tensor | None) -> Read:
        """Reads memories `[B, C, S, S]` with the weights of the windows, `[B, K, crop_size², S²]`."""
        # [B, C, K crop_size²]
        windows = memory.flatten(2) @ weights.flatten(1, 2).transpose(1, 2)
        features = flat = windows.flatten(1)
        if shared.prior is None:
            features = self.prior.layers(windows.view(len(flat), -1, self.crop_size, self.crop_size))
        else:
            for layer in shared.prior:
                features = F.linear(features, *layer).tanh()
        # figure 5, lower branch: Z ~ p(Z|M, Y), not q(Z|X)
        output = F.linear(torch.cat([flat, features], 1), *shared.readout)
        if noise is not None:
            std = F.softplus(F.linear(features, *shared.std)) + 1e-4
            output = output + F.linear(std * noise, shared.latent)
        return Read(features, output)

    def latents(self, read: Read) -> Gaussian:
        """p(Z|M, Y) of all steps, `[T · B, L]`."""
        return as_gaussian(self.prior.project(read.features.flatten(0, 1)))

    def losses(
        self, xs: Tensor, step_results: StepResults, written: Tensor, noise: Tensor | _NoNoise
    ) -> dict[str, Tensor]:
        """The terms of eq. (4), each `[N]` for the N = T · B steps."""
        losses = dict.fromkeys(("kl_z", "kl_y"), torch.zeros_like(written))
        if self.posterior is None:
            return losses
        hidden = step_results.hidden.flatten(0, 1)
        posterior = as_gaussian(self.posterior(hidden))
        if self.kl_weight:
            keys = self.key_posterior(*self.keys(hidden).chunk(2, 1))
            losses["kl_z"] = self.kl_weight * posterior.kl(self.latents(step_results.read)) * written
            losses["kl_y"] = self.kl_weight * keys.kl() * written
        if self.input_decoder is not None:
            decoded = self.input_decoder(posterior.at(_flat(noise)))
            losses["reconstruction"] = self.likelihood.cost(decoded, xs) * written
        return losses

    def metrics(self, state: State) -> dict[str, Tensor]:
        """`memory_rms`: root mean square of the memory."""
        return {"memory_rms": rms(state["memory"])}

    def panels(self, state: State) -> dict[str, Panel]:
        """The memory with frames around the last block and windows, and the contents of the windows."""
        scale = (self.crop_size - 1) / (self.memory_size - 1)
        places = state["places"][0]
        with torch.no_grad():
            return memory_panels(
                state["memory"][:1],
                torch.cat([torch.full_like(places[:, :1], scale), places], 1),
                self.crop_size,
                self.get_buffer("colours"),
            )


class _NoNoise:
    """No noise, at every step."""

    def __getitem__(self, step: int) -> None:
        return None


def _flat(noise: Tensor | _NoNoise) -> Tensor | None:
    """The noise of all steps as rows, `[T · B, ...]`."""
    return noise.flatten(0, 1) if isinstance(noise, Tensor) else None


def _encode(encoder: nn.Module, x: Tensor) -> Tensor:
    encoded: Tensor | tuple[Tensor, list[Tensor]] = encoder(x)
    return encoded[0] if isinstance(encoded, tuple) else encoded
