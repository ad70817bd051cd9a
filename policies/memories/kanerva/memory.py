"""Kanerva++: the memory is an image, read through windows; with a controller, or as in the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from policies.memories.contract import MemoryStep, Panel, State, Unrolled
from policies.memories.kanerva.blocks import BlockKanerva
from policies.memories.kanerva.pooled import PooledKanerva
from policies.memories.registry import register_memory
from policies.memories.shared.arguments import at_least, one_of
from policies.memories.shared.readers import ReaderForm, ReaderMemory, Shape
from policies.memories.steps import Queries
from policies.memories.time.recording import Recording


class FastKanerva(ReaderForm):
    """The fast form of the wrapped memory."""

    memory: KanervaMemory

    def step(self, x: Tensor, state: State, queries: Queries | None = None) -> MemoryStep:
        return self.memory.form.step(x, state, *(() if queries is None else (queries,)))

    def unroll(
        self,
        xs: Tensor,
        starts: Tensor | None,
        state: State,
        resets: Sequence[int] | None,
        queries: Queries | None = None,
    ) -> Unrolled:
        return self.memory.form.unroll(xs, starts, state, resets, queries)

    def record(self, state: State, expected_steps: int) -> Recording:
        return self.memory.form.record(state, expected_steps)


@register_memory("kanerva++")
class KanervaMemory(ReaderMemory):
    """Kanerva++ (Ramapuram, Wu and Kalousis, ICLR 2021) as a policy's memory, one input at a time.

    With a controller (`BlockKanerva`), an LSTM reads the input and the last read-out; it writes a block at a position
    that it chooses, and its keys select windows of the memory. Without one (`PooledKanerva`), inputs are encoded and
    averaged, and a deep linear network maps the mean to the memory, as in the paper. In both forms the read-out is
    computed from the windows and from the latent Z of the learned prior p(Z|M, Y).
    `policies.memories.kanerva.generative_model` is the paper's model with the same parts.

    State: see `BlockKanerva` and `PooledKanerva`. Losses, each `[B]` in nats and zero where nothing was written:
    `kl_z`, KL(q(Z|X) ‖ p(Z|M, Y)); `kl_y`, KL(q(Y|X) ‖ N(0, I)), both times `kl_weight`; with `reconstruct`,
    `reconstruction`, −ln p(X|Z ~ q(Z|X)). With `kl_weight=1` their sum is the bound of eq. (4) for the memory written
    so far. They concern the input, not the questions.

    Args:
        input_size: F of a vector, or (C, H, W) of an image.
        queries: shape of each question by name. Questions are not written. Without questions the input is the question.
        controller: "lstm", or "none": the paper's form, a mean of encoded inputs.
        output_size: width of the read-out. With a controller the output is hidden state and read-out, concatenated.
        hidden_size: units of the controller.
        embedding_size: D, width of an encoded input; with a controller only images are encoded.
        dense_size: units of the dense networks.
        latent_size: L, width of Z.
        memory_channels: C of the memory.
        memory_size: S, its height and width; None: 8, without a controller 16. With a controller, values above
            2 `crop_size` risk that blocks and windows do not overlap, which gives no gradient. Without one: 4 times a
            power of two.
        writer_features: without a controller, feature maps of the writer's coarsest grid, halved by each layer.
        read_heads: K, windows read per step.
        crop_size: side of a window, and of a block, at least 4.
        prior_features: feature maps of the learned prior's first layer.
        encoder_channels: widths of the stages that encode an image.
        encoder_blocks: residual blocks per stage.
        encoder_activation: without a controller, of the encoder of vectors. With "linear" the mean embedding is a
            weighted sum of the inputs: it can count inputs, but not represent which occurred together.
        shift: without a controller, fraction of the features that comes from the previous step.
        skip_blank: an input that is all zero is not written, for tasks with steps that only ask.
        sample: sample keys and latents, with noise from a hash of the inputs; False: use their means, with which a
            policy learns faster.
        kl_weight: weight of both divergences in the losses; they matter if keys and latents are sampled.
        map_shape: (C, H, W) of an image to decode from Z and return as `grid`; None: none.
        reconstruct: add the loss `reconstruction`.
        likelihood: likelihood of the input, for `reconstruct`: "gaussian" or, for inputs in 0..1, "bernoulli".
        decoder_features: feature maps of the decoder's coarsest grid.

    Raises:
        ValueError: a size is below 1 or does not fit another, kl_weight is below 0, a choice is unknown, or shift is
            set with a controller.
    """

    fast_form = FastKanerva
    input_kind: ClassVar[Literal["vector", "grid", "either"]] = "either"

    def __init__(
        self,
        input_size: Shape,
        queries: Mapping[str, Shape] | None = None,
        controller: Literal["lstm", "none"] = "lstm",
        output_size: int = 64,
        hidden_size: int = 64,
        embedding_size: int = 64,
        dense_size: int = 64,
        latent_size: int = 32,
        memory_channels: int = 3,
        memory_size: int | None = None,
        writer_features: int = 32,
        read_heads: int = 2,
        crop_size: int | None = None,
        prior_features: int = 16,
        encoder_channels: Sequence[int] = (16, 32),
        encoder_blocks: int = 1,
        encoder_activation: Literal["relu", "linear"] = "relu",
        shift: float | None = None,
        skip_blank: bool = True,
        sample: bool = False,
        kl_weight: float = 0.0,
        map_shape: Sequence[int] | None = None,
        reconstruct: bool = False,
        likelihood: Literal["gaussian", "bernoulli"] = "gaussian",
        decoder_features: int = 32,
    ) -> None:
        super().__init__()
        one_of("controller", controller, "lstm", "none")
        one_of("likelihood", likelihood, "gaussian", "bernoulli")
        at_least(1, output_size=output_size, hidden_size=hidden_size, embedding_size=embedding_size)
        at_least(1, dense_size=dense_size, latent_size=latent_size, memory_channels=memory_channels)
        at_least(1, read_heads=read_heads, writer_features=writer_features, prior_features=prior_features)
        at_least(1, encoder_blocks=encoder_blocks, decoder_features=decoder_features)
        for width in encoder_channels:
            at_least(1, encoder_channels=width)
        at_least(0, kl_weight=kl_weight)
        if controller == "lstm" and shift:
            raise ValueError(f"shift is {shift}; expected None, because only controller='none' has a temporal shift")
        common: dict[str, Any] = {
            **{"output_size": output_size, "embedding_size": embedding_size, "dense_size": dense_size},
            **{"latent_size": latent_size, "memory_channels": memory_channels},
            **{"reads": read_heads, "prior_features": prior_features, "encoder_channels": encoder_channels},
            **{"encoder_blocks": encoder_blocks, "skip_blank": skip_blank, "sample": sample, "kl_weight": kl_weight},
            **{"map_shape": map_shape, "reconstruct": reconstruct, "likelihood": likelihood},
            **{"decoder_features": decoder_features},
        }
        self.form: BlockKanerva | PooledKanerva
        if controller == "lstm":
            self.form = BlockKanerva(
                input_size,
                queries,
                hidden_size=hidden_size,
                memory_size=8 if memory_size is None else memory_size,
                crop_size=4 if crop_size is None else crop_size,
                **common,
            )
        else:
            self.form = PooledKanerva(
                input_size,
                queries,
                memory_size=16 if memory_size is None else memory_size,
                writer_features=writer_features,
                encoder_activation=encoder_activation,
                shift=0.125 if shift is None else shift,
                crop_size=8 if crop_size is None else crop_size,
                **common,
            )
        self.output_size, self.output_grid = self.form.output_size, self.form.output_grid

    def initial_state(self, batch_size: int) -> State:
        return self.form.initial_state(batch_size)

    def forward(self, x: Tensor, state: State, queries: Queries | None = None) -> MemoryStep:
        return self.form(x, state, queries)  # type: ignore[no-any-return]

    def metrics(self, state: State) -> dict[str, Tensor]:
        """The metrics of the form."""
        return self.form.metrics(state)

    def panels(self, state: State) -> dict[str, Panel]:
        """The memory with frames around blocks and windows, and the contents of the windows."""
        return self.form.panels(state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if f"{prefix}readout.weight" in state_dict:
            raise ValueError(
                "these weights of kanerva++ are from a version without a controller and with a wrong spectral norm: "
                "train again, with controller='none' for the same form"
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)
