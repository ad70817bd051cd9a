"""Kanerva++ as in its paper: a generative model of an episode of images with a memory.

Equation numbers, figures and sections are those of Ramapuram, Wu and Kalousis, "Kanerva++", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from policies.memories.kanerva.encoder import Encoder, ImageEncoder, split_time
from policies.memories.kanerva.likelihood import Likelihood
from policies.memories.kanerva.parts import Gaussian, ImageDecoder, Kanerva, as_gaussian
from policies.memories.kanerva.patches import PatchDecoder, PatchEncoder
from policies.memories.kanerva.tiles import Allocation, KanervaBlocks

FLIPPED = 0.1
"""Probability with which `KanervaModel.search` assumes that a pixel is wrong."""


class KanervaModel(nn.Module):
    """Encoder, memory and decoder of a set of images, trained by the conditional bound of eq. (4).

    The defaults are those of the paper, as far as it specifies them (`embedding_size` is ResNet18's; `latent_size`,
    `crop_size` and `decoder_features` are ours). Noise is torch's: seed it with `torch.manual_seed`.

    `write="block"`, trained with the path "memory", is the form that uses its memory; see docs/kanerva-model.md. It has
    no writer and no temporal shift, and its embedding size is K C `crop_size`².

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
        decoder_features: feature maps of the decoder's coarsest grid.
        encoder_channels: widths of the encoder's stages; with `write="block"` one number.
        encoder_blocks: residual blocks per stage.
        shift: fraction of the channels that comes from the previous image; the same fraction comes from the next one.
        norm: normalisation of the encoder: "batch" or "group".
        likelihood: "bernoulli" or "gaussian"; see `Likelihood`.
        write: "pooled": the memory is a function of the mean embedding, as in the paper; "block": each image's feature
            map is written as a block to a tile, see `KanervaBlocks`; encoder, prior and decoder are convolutions over
            the image's patches, see `kanerva/patches.py`.
        allocation: how blocks are allocated: "inferred" or "ranked", see `KanervaBlocks`.
        linear_writer: only for `write="pooled"`: whether the writer is linear, see `Writer`.
        spectral_last: see `DeepLinear`.

    Raises:
        ValueError: a choice is unknown, or sizes do not fit each other.
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
        norm: Literal["batch", "group"] = "batch",
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
        write: Literal["pooled", "block"] = "pooled",
        allocation: Allocation = "inferred",
        linear_writer: bool = True,
        spectral_last: bool = True,
    ) -> None:
        super().__init__()
        if norm not in ("batch", "group"):
            raise ValueError(f"norm is {norm!r}; it must be 'batch' or 'group'")
        if write not in ("pooled", "block"):
            raise ValueError(f"write is {write!r}; it must be 'pooled' or 'block'")
        if write == "block" and len(encoder_channels) != 1:
            raise ValueError(f"encoder_channels is {tuple(encoder_channels)}; write='block' takes one number")
        self.likelihood = Likelihood(likelihood)
        self.encoder: Encoder
        self.decoder: nn.Module
        self.kanerva: Kanerva | KanervaBlocks
        read = (reads, crop_size, prior_features)
        if write == "block":
            channels = reads * memory_channels
            self.encoder = PatchEncoder(image_shape, crop_size, channels, encoder_channels[0], encoder_blocks)
            self.decoder = PatchDecoder(latent_size, image_shape, crop_size, decoder_features)
            self.kanerva = KanervaBlocks(
                dense_size, latent_size, memory_channels, memory_size, *read, allocation, spectral_last
            )
            return
        self.encoder = ImageEncoder(
            image_shape, encoder_channels, encoder_blocks, embedding_size, shift, norm, average_pool=True
        )
        self.decoder = ImageDecoder(latent_size, image_shape, decoder_features)
        sizes = (embedding_size, dense_size, latent_size, memory_channels, memory_size)
        self.kanerva = Kanerva(*sizes, writer_features, *read, linear_writer, spectral_last)

    def forward(
        self,
        episode: Tensor,
        path: Literal["posterior", "memory"] | None = None,
        memory: Tensor | None = None,
        queries: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The conditional bound of each image, in nats: lower is better, as in table 1.

        Args:
            episode: images `[T, B, C, H, W]`; the memory is written from all T, then each is read back (E.1).
            path: which branch of figure 5 decodes: "posterior", Z ~ q(Z|X), is the bound of eq. (4). "memory",
                Z ~ p(Z|M, Y), uses only the keys of the image; its bound is eq. (4) with that prior as the posterior,
                so `kl_z` is 0. None: "posterior" in training mode, "memory" otherwise.
            memory: a memory to read instead, `[B, C, S, S]`: a control, such as another episode's memory or the mean.
            queries: corrupted images `[T, B, C, H, W]` from which q(Y|X) and q(Z|X) are computed; the episode's
                own images are written and reconstructed.

        Returns:
            `bound`, `reconstruction` (−ln p(X|Z)), `kl_z` (KL(q(Z|X) ‖ p(Z|M, Y))) and `kl_y` (KL(q(Y|X) ‖ N(0, I))),
            each `[T, B]`; with `queries` also `key_error`, the squared distance between the keys of a query and those
            of its image, before they are moved to the centres of tiles.

        Raises:
            ValueError: `path` is unknown; with `allocation="ranked"`, an episode has more images than tiles.
        """
        path = path or ("posterior" if self.training else "memory")
        if path not in ("posterior", "memory"):
            raise ValueError(f"path is {path!r}; it must be 'posterior' or 'memory'")
        # queries are embedded with the episode, as one batch whose statistics both share
        embedding = self.embed(episode if queries is None else torch.cat([episode, queries], 1))
        keys, points = self.kanerva.infer_keys(embedding)
        count = episode.shape[1]
        if memory is None:
            memory = self.kanerva.write(embedding[:, :count], Gaussian(*(part[:, :count] for part in keys)))
        keys = Gaussian(*(part[:, -count:] for part in keys))
        prior = self.read_prior(memory, _sample(keys))
        kl_y = Gaussian(keys.mean.flatten(0, 1), keys.std.flatten(0, 1)).kl()
        chosen, kl_z = prior, torch.zeros_like(kl_y)
        if path == "posterior":
            chosen = as_gaussian(self.kanerva.posterior(embedding[:, -count:].flatten(0, 1)))
            kl_z = chosen.kl(prior)
        reconstruction = self.likelihood.cost(self.decoder(_sample(chosen)), episode.flatten(0, 1))
        bound = reconstruction + kl_y + kl_z
        costs = {"bound": bound, "reconstruction": reconstruction, "kl_z": kl_z, "kl_y": kl_y}
        costs = {name: split_time(cost, *episode.shape[:2]) for name, cost in costs.items()}
        if queries is not None:
            costs["key_error"] = (points[:, :count] - points[:, count:]).square().sum((2, 3))
        return costs

    def embed(self, images: Tensor) -> Tensor:
        """E of an episode `[T, B, C, H, W]`: `[T, B, D]`."""
        return self.encoder.episode(images)

    def infer_memory(self, episode: Tensor) -> Tensor:
        """M of an episode `[T, B, C, H, W]` (§3.3): `[B, C, S, S]`."""
        embedding = self.embed(episode)
        return self.kanerva.write(embedding, self.key_posterior(embedding))

    def key_posterior(self, embedding: Tensor) -> Gaussian:
        """q(Y|X) of embeddings `[N, B, D]`: keys `[N, B, K, 3]`, of blocks `[N, B, K, 2]`."""
        return self.kanerva.infer_keys(embedding)[0]

    def windows(self, memory: Tensor, keys: Tensor) -> Tensor:
        """The windows of `memory` `[B, C, S, S]` at keys `[N, B, K, 3 or 2]`: `[N, B, K, C, crop_size, crop_size]`."""
        return self.kanerva.windows(memory, keys)

    def read_prior(self, memory: Tensor, keys: Tensor) -> Gaussian:
        """p(Z|M, Y) at keys `[N, B, K, 3]`: `[N · B, L]`."""
        prior: Gaussian = self.kanerva.prior(self.windows(memory, keys).flatten(0, 1))[0]
        return prior

    def read(self, memory: Tensor, keys: Tensor) -> Tensor:
        """Expected images of Z ~ p(Z|M, Y) at keys `[N, B, K, 3]`: `[N, B, C, H, W]`."""
        decoded = self.decoder(_sample(self.read_prior(memory, keys)))
        return split_time(self.likelihood.mean(decoded), *keys.shape[:2])

    def iterative_read(self, memory: Tensor, images: Tensor, steps: int) -> Tensor:
        """Denoises images with the memory (§3.5, eq. 7); each step is Y ~ q(Y|X̂), Z ~ p(Z|Y, M), X̂ = E[X|Z].

        Args:
            memory: M, `[B, C, S, S]`.
            images: initial X̂, `[N, B, C, H, W]`.
            steps: at least 1.

        Returns:
            X̂ of every step, `[steps, N, B, C, H, W]`.

        Raises:
            ValueError: `steps` is below 1.
        """
        if steps < 1:
            raise ValueError(f"steps is {steps}; it must be at least 1")
        results = []
        for _ in range(steps):
            images = self.read(memory, _sample(self.key_posterior(self.embed(images))))
            results.append(images)
        return torch.stack(results)

    def search(self, memory: Tensor, images: Tensor, keys: Tensor, seen: Tensor | None = None) -> Tensor:
        """Reads at the given keys and returns for each image the read-out that explains it best.

        It infers Y from the image and the memory; q(Y|X) uses only the image. The selected key is the most likely one,
        assuming that a tenth of the image's pixels are flipped.

        Args:
            memory: M, `[B, C, S, S]`.
            images: corrupted images, pixels in 0..1, `[N, B, C, H, W]`.
            keys: candidates, all equally likely beforehand, `[R, B, K, 3 or 2]`; of blocks `KanervaBlocks.grid`.
            seen: bool, the known pixels of `images`, of the same shape; None: all.

        Returns:
            Expected images, `[N, B, C, H, W]`.
        """
        read_outs = self.likelihood.mean(self.decoder(self.read_prior(memory, keys).mean))
        read_outs = split_time(read_outs, *keys.shape[:2])
        ink = read_outs.clamp(0, 1) * (1 - 2 * FLIPPED) + FLIPPED
        known = torch.ones_like(images) if seen is None else seen.to(images.dtype)
        fits = torch.einsum("nbchw,rbchw->nbr", images * known, (ink / (1 - ink)).log())
        fits = fits + torch.einsum("nbchw,rbchw->nbr", known, (1 - ink).log())
        return read_outs[fits.argmax(2), torch.arange(len(memory), device=memory.device)]

    def prior_keys(self, number: int, batch_size: int) -> Tensor:
        """Y ~ N(0, I): `[number, batch_size, K, 3]`, of blocks `[number, batch_size, K, 2]`."""
        reference = self.kanerva.prior.project.weight
        size = (number, batch_size, self.kanerva.reads, self.kanerva.key_size)
        return torch.randn(size, device=reference.device, dtype=reference.dtype)

    def generate(self, memory: Tensor, number: int) -> Tensor:
        """New images of given memories `[B, C, S, S]` (§3.4): `[number, B, C, H, W]`."""
        return self.read(memory, self.prior_keys(number, len(memory)))

    def perturb(self, memory: Tensor, keys: Tensor, number: int, std: float = 0.1) -> Tensor:
        """Similar images (§4.1.1, figure 7): read at y + ε, ε ~ N(0, std²).

        Args:
            memory: M, `[B, C, S, S]`.
            keys: y, `[B, K, 3]`.
            number: number of perturbed keys.
            std: standard deviation of ε; we take the paper's N(0, 0.1) as a standard deviation of 0.1.

        Returns:
            `[number, B, C, H, W]`.
        """
        noise = torch.randn(number, *keys.shape, device=keys.device, dtype=keys.dtype)
        return self.read(memory, keys + std * noise)


def _sample(distribution: Gaussian) -> Tensor:
    return distribution.at(torch.randn_like(distribution.mean))
