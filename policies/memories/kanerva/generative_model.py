"""Kanerva++ as in its paper: a generative model of an episode of images with a memory.

Equation numbers, figures and sections are those of Ramapuram, Wu and Kalousis, "Kanerva++", ICLR 2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from policies.memories.kanerva.encoder import DenseEncoder, Encoder, ImageEncoder, split_time
from policies.memories.kanerva.likelihood import Likelihood
from policies.memories.kanerva.parts import DenseDecoder, Gaussian, ImageDecoder, Kanerva, as_gaussian, read_windows
from policies.memories.kanerva.patches import PatchDecoder, PatchEncoder
from policies.memories.kanerva.places import Allocation, KanervaBlocks


class KanervaModel(nn.Module):
    """Encoder, memory and decoder of a set of images, trained by the conditional bound of eq. (4).

    The defaults are the paper's where it gives a number (`embedding_size` is ResNet18's; `latent_size`, `crop_size` and
    `decoder_features` are not in it). Noise is torch's: seed it with `torch.manual_seed`.

    `write="block"` with `normalise=True`, trained along the path "memory", is the form that uses its memory; see
    docs/memories/kanerva++.md.

    Args:
        image_shape: (C, H, W).
        latent_size: L, width of Z.
        memory_channels: C of the memory.
        memory_size: S, its height and width.
        reads: K, windows read for one image.
        crop_size: side of a window in pixels.
        embedding_size: width of E.
        dense_size: units of the dense networks.
        writer_features: feature maps of the writer's coarsest grid.
        prior_features: feature maps of the learned prior's first layer.
        decoder_features: feature maps of the decoder's coarsest grid; units of a dense decoder.
        encoder_channels: widths of the encoder's stages; units of a dense encoder, one number.
        encoder_blocks: residual blocks a stage.
        shift: fraction of the channels that comes from the image before, and as many from the one after.
        shift_direction: "both", or "online": only from the image before, as when they come one by one.
        norm: of the encoder: "batch", or "group".
        average_pool: the encoder ends in an average over its last grid.
        likelihood: "bernoulli", "logistic" or "gaussian"; see `Likelihood`.
        mixtures: logistics a pixel.
        network: "image": the paper's residual encoder and transposed convolutions; "dense": three dense layers each,
            for a CPU; "patches": convolutions over the image's patches, and E a map that is written as it is, see
            `kanerva/patches.py`; `embedding_size` is then K C `crop_size`².
        write: "pooled": the memory is made of the mean embedding, as in the paper; "block": each image's content is
            written as a block at its own keys, see `KanervaBlocks`.
        allocation: of blocks: "inferred", "ranked" or "place", see `KanervaBlocks`.
        normalise: batch-normalise E (without parameters, but of patches) and the means of inferred keys of blocks, and
            multiply the pooled mean by √T, so that the memory is the episode's and not that of the average image.
        linear_writer: of `write="pooled"`; see `Writer`.
        spectral_last: see `DeepLinear`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        latent_size: int = 256,
        memory_channels: int = 3,
        memory_size: int = 64,
        reads: int = 2,
        crop_size: int = 32,
        embedding_size: int = 512,
        dense_size: int = 512,
        writer_features: int = 256,
        prior_features: int = 32,
        decoder_features: int = 256,
        encoder_channels: Sequence[int] = (64, 128, 256, 512),
        encoder_blocks: int = 2,
        shift: float = 0.125,
        shift_direction: Literal["both", "online"] = "both",
        norm: Literal["batch", "group"] = "batch",
        average_pool: bool = True,
        likelihood: Literal["bernoulli", "gaussian", "logistic"] = "bernoulli",
        mixtures: int = 10,
        network: Literal["image", "dense", "patches"] = "image",
        write: Literal["pooled", "block"] = "pooled",
        allocation: Allocation = "inferred",
        normalise: bool = False,
        linear_writer: bool = True,
        spectral_last: bool = True,
    ) -> None:
        super().__init__()
        if shift_direction not in ("both", "online"):
            raise ValueError(f"shift_direction is {shift_direction!r}; it must be 'both' or 'online'")
        if norm not in ("batch", "group"):
            raise ValueError(f"norm is {norm!r}; it must be 'batch' or 'group'")
        if write not in ("pooled", "block"):
            raise ValueError(f"write is {write!r}; it must be 'pooled' or 'block'")
        if network not in ("image", "dense", "patches"):
            raise ValueError(f"network is {network!r}; it must be 'image', 'dense' or 'patches'")
        if network == "patches" and write != "block":
            raise ValueError(f"write is {write!r}; network='patches' makes blocks: write='block'")
        if network != "image" and len(encoder_channels) != 1:
            raise ValueError(f"encoder_channels is {tuple(encoder_channels)}; network={network!r} takes one number")
        self.shift_direction, self.network = shift_direction, network
        self.likelihood = Likelihood(likelihood, image_shape[0], mixtures)
        parameters = (self.likelihood.parameters, *image_shape[1:])
        channels = embedding_size  # numbers of E that are normalised alike: one, or those of a channel of the map
        self.encoder: Encoder
        self.decoder: nn.Module
        if network == "patches":
            channels = reads * memory_channels
            embedding_size = channels * crop_size**2
            self.encoder = PatchEncoder(image_shape, crop_size, channels, encoder_channels[0], encoder_blocks, shift)
            self.decoder = PatchDecoder(latent_size, parameters, crop_size, decoder_features)
        elif network == "dense":
            pixels = math.prod(image_shape)
            self.encoder = DenseEncoder(pixels, encoder_channels[0], embedding_size, shift, False, norm == "batch")
            self.decoder = DenseDecoder(latent_size, parameters, decoder_features)
        else:
            self.encoder = ImageEncoder(
                image_shape, encoder_channels, encoder_blocks, embedding_size, shift, norm, average_pool
            )
            self.decoder = ImageDecoder(latent_size, parameters, decoder_features)
        # of a map with an offset, by which a window shows how many blocks lie upon one another
        mapped = network == "patches"
        self.normalise = nn.BatchNorm1d(channels, momentum=0.02, affine=mapped) if normalise else None
        sizes = (embedding_size, dense_size, latent_size, memory_channels, memory_size)
        self.kanerva: Kanerva | KanervaBlocks
        if write == "block":
            of_blocks = (spectral_last, mapped, normalise)
            self.kanerva = KanervaBlocks(*sizes, reads, crop_size, prior_features, allocation, *of_blocks)
        else:
            self.kanerva = Kanerva(
                *(*sizes, writer_features, reads, crop_size, prior_features, linear_writer, spectral_last)
            )

    def forward(
        self,
        episode: Tensor,
        path: Literal["posterior", "memory"] | None = None,
        memory: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The conditional bound of each image, in nats: less is better, as in table 1.

        Args:
            episode: images `[T, B, C, H, W]`; the memory is written from all T, then each is read back (E.1).
            path: which branch of figure 5 decodes: "posterior", Z ~ q(Z|X), is the bound of eq. (4). "memory",
                Z ~ p(Z|M, Y), takes nothing from the image but its keys; its bound is eq. (4) with that prior for the
                posterior, so `kl_z` is no part of it and is given for comparison. None: "posterior" in training mode,
                "memory" otherwise.
            memory: read from this one instead, `[B, C, S, S]`: a control, with another episode's memory or the mean.

        Returns:
            `bound`, `reconstruction` (−ln p(X|Z)), `kl_z` (KL(q(Z|X) ‖ p(Z|M, Y))) and `kl_y` (KL(q(Y|X) ‖ N(0, I))),
            each `[T, B]`.
        """
        path = path or ("posterior" if self.training else "memory")
        if path not in ("posterior", "memory"):
            raise ValueError(f"path is {path!r}; it must be 'posterior' or 'memory'")
        embedding = self.embed(episode)
        keys = self.key_posterior(embedding)
        memory = self._write(embedding, keys) if memory is None else memory
        prior = self.read_prior(memory, _sample(keys))
        posterior = as_gaussian(self.kanerva.posterior(embedding.flatten(0, 1)))
        latent = _sample(posterior if path == "posterior" else prior)
        reconstruction = self.likelihood.cost(self.decoder(latent), episode.flatten(0, 1))
        kl_z, kl_y = posterior.kl(prior), Gaussian(keys.mean.flatten(0, 1), keys.std.flatten(0, 1)).kl()
        bound = reconstruction + kl_y + (kl_z if path == "posterior" else 0)
        costs = {"bound": bound, "reconstruction": reconstruction, "kl_z": kl_z, "kl_y": kl_y}
        return {name: split_time(cost, *episode.shape[:2]) for name, cost in costs.items()}

    def embed(self, images: Tensor) -> Tensor:
        """E of an episode `[T, B, C, H, W]`: `[T, B, D]`."""
        embedding = self.encoder.episode(images.flatten(2) if self.network == "dense" else images, self.shift_direction)
        if self.normalise is None:
            return embedding
        together = self.normalise.num_features
        numbers = embedding.reshape(-1, together, embedding.shape[2] // together)
        return split_time(self.normalise(numbers).flatten(1), *images.shape[:2])

    def infer_memory(self, episode: Tensor) -> Tensor:
        """M of an episode `[T, B, C, H, W]` (§3.3): `[B, C, S, S]`."""
        embedding = self.embed(episode)
        return self._write(embedding, self.key_posterior(embedding))

    def _write(self, embedding: Tensor, keys: Gaussian) -> Tensor:
        if isinstance(self.kanerva, KanervaBlocks):
            return self.kanerva.write(embedding, keys)
        memory: Tensor = self.kanerva.writer(
            embedding.mean(0) * (1 if self.normalise is None else len(embedding) ** 0.5)
        )
        return memory

    def key_posterior(self, embedding: Tensor) -> Gaussian:
        """q(Y|X) of embeddings `[N, B, D]`: keys `[N, B, K, 3]`, of blocks `[N, B, K, 2]`."""
        if isinstance(self.kanerva, KanervaBlocks):
            return self.kanerva.key_posterior(embedding)
        keys = self.kanerva.keys(embedding.flatten(0, 1))
        return Gaussian(*(split_time(numbers, *embedding.shape[:2]) for numbers in keys))

    def windows(self, memory: Tensor, keys: Tensor) -> Tensor:
        """The windows of `memory` `[B, C, S, S]` at keys `[N, B, K, 3 or 2]`: `[N, B, K, C, crop_size, crop_size]`."""
        if isinstance(self.kanerva, KanervaBlocks):
            return self.kanerva.windows(memory, keys)
        shared = memory.expand(len(keys), *memory.shape).flatten(0, 1)
        windows = read_windows(shared, keys.flatten(0, 1), self.kanerva.crop_size)
        return split_time(windows, *keys.shape[:2])

    def read_prior(self, memory: Tensor, keys: Tensor) -> Gaussian:
        """p(Z|M, Y) at keys `[N, B, K, 3]`: `[N · B, L]`."""
        prior: Gaussian = self.kanerva.prior(self.windows(memory, keys).flatten(0, 1))[0]
        return prior

    def read(self, memory: Tensor, keys: Tensor) -> Tensor:
        """Expected images of Z ~ p(Z|M, Y) at keys `[N, B, K, 3]`: `[N, B, C, H, W]`."""
        decoded = self.decoder(_sample(self.read_prior(memory, keys)))
        return split_time(self.likelihood.mean(decoded), *keys.shape[:2])

    def iterative_read(self, memory: Tensor, images: Tensor, steps: int) -> Tensor:
        """Clean images up by what the memory holds (§3.5, eq. 7): Y ~ q(Y|X̂), Z ~ p(Z|Y, M), X̂ = E[X|Z], again.

        Args:
            memory: M, `[B, C, S, S]`.
            images: X̂ to begin with, `[N, B, C, H, W]`.
            steps: at least 1.

        Returns:
            X̂ of every step, `[steps, N, B, C, H, W]`.
        """
        if steps < 1:
            raise ValueError(f"steps is {steps}; it must be at least 1")
        taken = []
        for _ in range(steps):
            images = self.read(memory, _sample(self.key_posterior(self.embed(images))))
            taken.append(images)
        return torch.stack(taken)

    def prior_keys(self, number: int, batch_size: int) -> Tensor:
        """Y ~ N(0, I): `[number, batch_size, K, 3]`, of blocks `[number, batch_size, K, 2]`."""
        like = self.kanerva.prior.project.weight
        numbers = 2 if isinstance(self.kanerva, KanervaBlocks) else 3
        return torch.randn(number, batch_size, self.kanerva.reads, numbers, device=like.device, dtype=like.dtype)

    def generate(self, memory: Tensor, number: int) -> Tensor:
        """New images of given memories `[B, C, S, S]` (§3.4): `[number, B, C, H, W]`."""
        return self.read(memory, self.prior_keys(number, len(memory)))

    def perturb(self, memory: Tensor, keys: Tensor, number: int, std: float = 0.1) -> Tensor:
        """Images near one another (§4.1.1, figure 7): read at y + ε, ε ~ N(0, std²).

        Args:
            memory: M, `[B, C, S, S]`.
            keys: y, `[B, K, 3]`.
            number: of perturbed keys.
            std: of ε; the paper's N(0, 0.1) is read as a deviation of 0.1.

        Returns:
            `[number, B, C, H, W]`.
        """
        noise = torch.randn(number, *keys.shape, device=keys.device, dtype=keys.dtype)
        return self.read(memory, keys + std * noise)


def _sample(distribution: Gaussian) -> Tensor:
    return distribution.at(torch.randn_like(distribution.mean))
