"""Dynamic Kanerva machine: the memory is a Gaussian distribution, updated by Bayes' rule."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from policies.memories.contract import Memory, MemoryStep, Panel, State
from policies.memories.dkm.fast import FastDKM
from policies.memories.kanerva.parts import Gaussian
from policies.memories.registry import register_memory
from policies.memories.shared.arguments import at_least, one_of
from policies.memories.shared.noise import fingerprint, gaussian, next_seed
from policies.memories.shared.pictures import vector_panel

STREAMS = 4
WRITE, READ, WRITE_MEMORY, READ_MEMORY = range(STREAMS)
"""Noise streams of the first iteration; each further iteration adds `STREAMS`."""


@register_memory("dkm")
class DKM(Memory):
    """Dynamic Kanerva machine (Wu, Wayne, Gregor and Lillicrap, NeurIPS 2018).

    The memory is a K × C matrix with Gaussian columns: each has its own mean, and all share the covariance U. A code z
    is observed as z = wM + noise, with w from least squares. The posterior is exact: known codes change the memory
    little, new codes more, and every write reduces the uncertainty.

    At each step a linear encoder computes a code, which is written. A second linear encoder computes a cue from the
    same input, and its least-squares weights in the updated memory give the read-out ẑ = wM. The policy thus queries
    the memory with a learned function of its current input.

    State: `memory_mean` `[B, K, C]`; `cov_root` `[B, K, K]`, L of U = L Lᵀ; `write_weights`, `read_weights` `[B, K]`;
    `seed` `[B]` if anything is sampled.
    Losses, each `[B]` in nats: `kl_m`, KL of the memory after the write from the one before; `kl_w`, KL of the write
    weights from their prior; with `reconstruct`, `reconstruction`, −ln p(x|ẑ) of the code just written,
    a Gaussian with variance 1.

    Args:
        input_size: F, width of the input.
        output_size: width of the output.
        slots: K, rows.
        word_size: C, width of a row and of a code.
        num_opt_iters: number of solves for the write weights, each in the memory updated with the previous weights.
        read_iterations: number of solves for the read weights, each with the last read-out as the cue.
        w_prior_stddev: standard deviation of the weights' prior.
        obs_noise_stddev: standard deviation of the observation noise; 0: learned, starting at 1.
        variant: "paper": w minimises |z − wM|² + λ|w|² with λ = obs² / w_prior². "code": as in the released code, which
            passes the normal equations to a least-squares solver, so that they are squared once more.
        sample_w: sample the weights, with noise from a hash of the inputs; False: use their mean.
        sample_memory: solve and read in a sampled memory; False: in its mean.
        reconstruct: add the loss `reconstruction`.

    Raises:
        ValueError: a size or number of iterations is below 1, w_prior_stddev is not above 0, obs_noise_stddev is below
            0, or variant is unknown.
    """

    fast_form = FastDKM

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        slots: int = 32,
        word_size: int = 64,
        num_opt_iters: int = 1,
        read_iterations: int = 1,
        w_prior_stddev: float = 1.0,
        obs_noise_stddev: float = 1.0,
        variant: Literal["paper", "code"] = "paper",
        sample_w: bool = False,
        sample_memory: bool = False,
        reconstruct: bool = False,
    ) -> None:
        super().__init__()
        one_of("variant", variant, "paper", "code")
        at_least(1, output_size=output_size, slots=slots, word_size=word_size)
        at_least(1, num_opt_iters=num_opt_iters, read_iterations=read_iterations)
        if w_prior_stddev <= 0 or obs_noise_stddev < 0:
            raise ValueError(
                f"w_prior_stddev and obs_noise_stddev are {w_prior_stddev} and {obs_noise_stddev}; "
                "expected above 0 and at least 0"
            )
        self.output_size = output_size
        self.slots, self.word_size = slots, word_size
        self.num_opt_iters, self.read_iterations = num_opt_iters, read_iterations
        self.w_prior_stddev = w_prior_stddev
        self.variant = variant
        self.sample_w, self.sample_memory = sample_w, sample_memory

        self.write_encoder = nn.Linear(input_size, word_size)
        self.read_encoder = nn.Linear(input_size, word_size)
        self.output = nn.Linear(word_size + input_size, output_size)
        self.decoder = nn.Linear(word_size, input_size) if reconstruct else None
        self.prior_mean = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, slots, word_size)))
        self.prior_log_var = nn.Parameter(torch.zeros(()))
        self.log_w_std = nn.Parameter(torch.tensor(0.3).log())
        self.obs_noise_stddev = obs_noise_stddev
        self.log_obs_std = None if obs_noise_stddev else nn.Parameter(torch.zeros(()))

    def prior_variance(self) -> Tensor:
        """Prior variance of each row, `[]`."""
        return self.prior_log_var.exp() + 1e-6

    def obs_var(self) -> Tensor | float:
        """Variance of the observation noise, `[]`."""
        return self.obs_noise_stddev**2 if self.log_obs_std is None else (2 * self.log_obs_std).exp()

    def initial_state(self, batch_size: int) -> State:
        rows = self.slots
        eye = torch.eye(rows, device=self.device, dtype=self.dtype)
        zeros = torch.zeros(1, rows, device=self.device, dtype=self.dtype).expand(batch_size, -1)
        state = {
            "memory_mean": self.prior_mean.expand(batch_size, -1, -1),
            "cov_root": (self.prior_variance().sqrt() * eye).expand(batch_size, -1, -1),
            "write_weights": zeros,
            "read_weights": zeros,
        }
        return state | ({"seed": zeros[:, 0]} if self.sample_w or self.sample_memory else {})

    def forward(self, x: Tensor, state: State) -> MemoryStep:
        seed = next_seed(state["seed"], fingerprint(x)) if "seed" in state else None
        z, cue = self.write_encoder(x), self.read_encoder(x)
        obs_var = self.obs_var()

        mean, root = state["memory_mean"], state["cov_root"]
        for iteration in range(self.num_opt_iters):
            memory = self.drawn_memory(mean, root, seed, iteration * STREAMS + WRITE_MEMORY)
            w_mean = self.address(z, memory, obs_var)
            w = self.drawn_weights(w_mean, seed, iteration * STREAMS + WRITE)
            mean, root, kl_m = write(state["memory_mean"], state["cov_root"], w, z, obs_var)
        losses = {"kl_m": kl_m, "kl_w": self.weights_kl(w_mean)}

        memory = self.drawn_memory(mean, root, seed, READ_MEMORY)
        for iteration in range(self.read_iterations):
            read_mean = self.address(cue, memory, obs_var)
            cue = times(self.drawn_weights(read_mean, seed, iteration * STREAMS + READ), memory)  # ẑ = wM
        if self.decoder is not None:
            error = self.decoder(times(w, mean)) - x
            losses["reconstruction"] = 0.5 * (error.square() + math.log(2 * math.pi)).sum(1)

        after = {"memory_mean": mean, "cov_root": root, "write_weights": w_mean, "read_weights": read_mean}
        if seed is not None:
            after["seed"] = seed
        return MemoryStep(self.output(torch.cat([cue, x], 1)), after, losses)

    def address(self, z: Tensor, memory: Tensor, obs_var: Tensor | float) -> Tensor:
        """Least-squares weights `[B, K]` of a code `z` `[B, C]` in `memory` `[B, K, C]`."""
        penalty = obs_var / self.w_prior_stddev**2  # λ
        gram = memory @ memory.mT
        target = (memory @ z.unsqueeze(2)).squeeze(2)
        if self.variant == "code":
            gram, target = gram @ gram, times(target, gram)
        eye = torch.eye(self.slots, device=z.device, dtype=z.dtype)
        # not singular, because λ > 0; solve_ex does not check, so it needs no synchronisation
        weights: Tensor = torch.linalg.solve_ex(gram + penalty * eye, target)[0]
        return weights

    def drawn_weights(self, mean: Tensor, seed: Tensor | None, stream: int) -> Tensor:
        """w ~ N(mean, w_std² I), or the mean."""
        if not self.sample_w or seed is None:
            return mean
        return mean + self.log_w_std.exp() * gaussian(seed, (self.slots,), stream)

    def drawn_memory(self, mean: Tensor, root: Tensor, seed: Tensor | None, stream: int) -> Tensor:
        """M ~ N(mean, U) column by column, or the mean."""
        if not self.sample_memory or seed is None:
            return mean
        drawn: Tensor = mean + root @ gaussian(seed, (self.slots, self.word_size), stream)
        return drawn

    def weights_kl(self, w_mean: Tensor) -> Tensor:
        """KL(N(w_mean, w_std² I) ‖ N(0, w_prior² I)) in nats, `[B]`."""
        std = self.log_w_std.exp().expand_as(w_mean)
        return Gaussian(w_mean / self.w_prior_stddev, std / self.w_prior_stddev).kl()

    def memory_kl(self, state: State) -> Tensor:
        """KL divergence of the memory from its prior in nats, `[B]`: the effect of all writes together."""
        prior, root = self.prior_variance(), state["cov_root"]
        change = (state["memory_mean"] - self.prior_mean).square().sum((1, 2)) / prior
        trace = root.square().sum((1, 2)) / prior
        log_ratio = self.slots * prior.log() - 2 * torch.linalg.slogdet(root)[1]
        kl: Tensor = 0.5 * (change + self.word_size * (trace - self.slots + log_ratio))
        return kl

    def metrics(self, state: State) -> dict[str, Tensor]:
        """`uncertainty`: standard deviation of the rows, averaged."""
        return {"uncertainty": state["cov_root"].square().sum(2).sqrt().mean(1)}

    def panels(self, state: State) -> dict[str, Panel]:
        """Mean and covariance of the memory, standard deviation of each row, and the last write and read weights."""
        root = state["cov_root"][0].detach()
        cov = root @ root.mT
        weights = torch.stack([state["write_weights"][0], state["read_weights"][0]]).detach()
        return {
            "memory_mean": Panel(state["memory_mean"][0].detach(), "code unit", "row", about="mean of each row"),
            "covariance": Panel(cov, "row", "row", about="covariance of the rows"),
            "row deviation": vector_panel(
                root.norm(dim=1).unsqueeze(0), "row", limits=None, about="standard deviation of each row"
            ),
            "weights": Panel(weights, "row", "write, read", about="weights of the last write and read"),
        }


def times(row: Tensor, matrix: Tensor) -> Tensor:
    """`[B, N]` times `[B, N, M]`: `[B, M]`."""
    return (row.unsqueeze(1) @ matrix).squeeze(1)


def write(mean: Tensor, root: Tensor, w: Tensor, z: Tensor, obs_var: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """The exact posterior after observing z = wM + noise.

    Args:
        mean: M, `[B, K, C]`.
        root: L, `[B, K, K]`, where U = L Lᵀ.
        w: `[B, K]`.
        z: `[B, C]`.
        obs_var: variance of the noise, `[]`.

    Returns:
        M and L after the write, and the KL divergence of the new memory from the old one in nats, `[B]`.
    """
    f = times(w, root)  # wL, so that wU = f Lᵀ
    wu = times(f, root.mT)
    wuw = f.square().sum(1)
    var_z = wuw + obs_var  # Σ_z
    gain = wu / var_z.unsqueeze(1)  # c
    delta = z - times(w, mean)  # Δ
    new_mean = mean + gain.unsqueeze(2) * delta.unsqueeze(1)

    # U − cᵀwU; Potter's formula updates its root, so U stays positive semi-definite despite rounding
    alpha = 1 / (var_z + (obs_var * var_z).sqrt())
    new_root = root - (alpha.unsqueeze(1) * wu).unsqueeze(2) * f.unsqueeze(1)

    known = wuw / var_z  # β, the memory's share of the observation's variance
    kl = 0.5 * (known / var_z * delta.square().sum(1) - mean.shape[2] * (known + torch.log(obs_var / var_z)))
    return new_mean, new_root, kl
