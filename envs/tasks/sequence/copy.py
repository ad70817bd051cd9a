"""Copy: reproduce a sequence of bit vectors."""

from __future__ import annotations

import torch
from gymnasium import spaces

from envs.single_env import single as _single
from envs.tasks.sequence.base import BitTask, Sequences, check_range


class Copy(BitTask):
    """Remember a sequence of random bit vectors and reproduce it in the same order.

    Description:
        L vectors are shown, then a delimiter, then nothing, while the L vectors must be reproduced. L is drawn for each
        environment and episode from `min_length` to `max_length`.

    Observation: `Box(float32)` `[bits + 1]`: a vector, and 1 in the last channel at the delimiter.

    Action: `MultiBinary(bits)`. `info["target"]` (int8 `[num_envs, bits]`) is the vector due, `info["weight"]` (float32
        `[num_envs]`) 1 at the L steps after the delimiter, else 0.

    Reward: `weight * (share of right bits) / L`; a perfect episode returns 1.

    Termination: after `2 * max_length + 1` steps; shorter sequences are padded with weight 0.

    Metrics: `wrong_bits` (per sequence), `error` (% of bits), `sequence_error` (share of sequences with a wrong bit).

    Args:
        num_envs: number of environments.
        min_length: shortest sequence, at least 1.
        max_length: longest sequence.
        bits: bits in a vector, at least 1.
        device: torch device of all tensors.
        render_mode: None or "rgb_array".

    Scores:
        Without memory 0.5: the answers are independent of what is seen when they are due. With memory 1.

    Raises:
        ValueError: an argument is out of its range.

    Source: Graves, Wayne, Danihelka, "Neural Turing Machines" (arXiv 1410.5401, 2014), section 4.1: 8 bits, lengths 1
        to 20 in training and up to 120 in tests.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        min_length: int = 1,
        max_length: int = 20,
        bits: int = 8,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        check_range("length", min_length, max_length)
        if bits < 1:
            raise ValueError(f"bits is {bits}, expected at least 1")
        super().__init__(
            num_envs,
            spaces.Box(0.0, 1.0, (bits + 1,)),
            spaces.MultiBinary(bits),
            2 * max_length + 1,
            device,
            render_mode,
        )
        self.min_length, self.max_length, self.bits = min_length, max_length, bits
        self._name_parts("delimiter")

    def _sequences(self) -> Sequences:
        times = self._times
        length = self._integers(self.min_length, self.max_length, self.num_envs)
        vectors = self._bits(self.max_length, self.num_envs, self.bits)
        inputs = torch.zeros(self.length, self.num_envs, self.bits + 1, device=self.device)
        inputs[: self.max_length, :, :-1] = vectors * (times[: self.max_length] < length)[..., None]
        inputs[..., -1] = times == length
        due = times - length - 1  # which vector, [T, N]
        asked = (due >= 0) & (due < length)
        return Sequences(inputs, self._pick(vectors, due) * asked[..., None], asked.float())


single = _single(Copy)
