"""RepeatCopy: reproduce a sequence of bit vectors a given number of times."""

from __future__ import annotations

import torch
from gymnasium import spaces

from envs.single_env import single as _single
from envs.tasks.sequence.base import BitTask, Sequences, check_range

FORMATS = ("ntm", "dnc")


class RepeatCopy(BitTask):
    """Reproduce a sequence of random bit vectors R times, then mark the end.

    Description:
        L vectors are shown, then the number R, then nothing, while the vectors must be reproduced R times over,
        followed by an end marker. L and R are drawn for each environment and episode.

    Observation: `Box(float32)`, in one of two formats.
        - `format="ntm"`: `[bits + 1]`; the last channel shows R, normalised by mean and standard deviation of the
          integers in `trained_repeats`.
        - `format="dnc"`: `[bits + 2]`; the first step is a start marker in channel `bits`, and the last channel shows R
          divided by the greatest of `trained_repeats`.

    Action: `MultiBinary(bits + 1)`: a vector and the end marker. `info["target"]` (int8 `[num_envs, bits + 1]`) is the
        vector due with the marker at 0, and at the end zeros with the marker at 1; `info["weight"]` (float32
        `[num_envs]`) is 1 at the `L * R + 1` steps after the number, else 0.

    Reward: `weight * (share of right bits) / (L * R + 1)`; a perfect episode returns 1.

    Termination: after `max_length * (max_repeats + 1) + 2` steps, one more in the "dnc" format; a shorter sequence is
        over earlier, with weight 0 from then on.

    Metrics: `wrong_bits` (per sequence, with the marker), `error` (% of bits), `sequence_error` (share of sequences
        with a wrong bit).

    Args:
        num_envs: number of environments.
        min_length: shortest sequence, at least 1.
        max_length: longest sequence.
        min_repeats: fewest repeats, at least 1.
        max_repeats: most repeats.
        bits: bits in a vector, at least 1.
        format: "ntm" or "dnc".
        trained_repeats: fewest and most repeats in training, which set the scale of the shown number. Keep it in tests
            with more repeats, so that a number looks the same.
        device: torch device of all tensors.
        render_mode: None or "rgb_array".

    Scores:
        Without memory at best 0.579, the mean over L and R of (LR (b / 2 + 1) + b) / ((b + 1) (LR + 1)) with b bits:
        half of the bits are right by chance, and the marker is right when it is never set. With memory 1.

    Raises:
        ValueError: an argument is out of its range; in the "ntm" format also if the middle of `trained_repeats` is
            an integer, which would be shown as 0.

    Source: Graves, Wayne, Danihelka, "Neural Turing Machines" (arXiv 1410.5401, 2014), section 4.2, for "ntm": 8 bits,
        lengths and repeats 1 to 10. The repository google-deepmind/dnc (`dnc/repeat_copy.py`) for "dnc"; its training
        script takes 4 bits, lengths and repeats 1 to 2, and scales R by 10.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        min_length: int = 1,
        max_length: int = 10,
        min_repeats: int = 1,
        max_repeats: int = 10,
        bits: int = 8,
        format: str = "ntm",
        trained_repeats: tuple[int, int] = (1, 10),
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        check_range("length", min_length, max_length)
        check_range("repeats", min_repeats, max_repeats)
        if bits < 1:
            raise ValueError(f"bits is {bits}, expected at least 1")
        if format not in FORMATS:
            raise ValueError(f"format is {format!r}, expected one of {FORMATS}")
        least, most = trained_repeats
        if not 1 <= least <= most:
            raise ValueError(
                f"trained_repeats is {trained_repeats}, expected (minimum, maximum) with 1 <= minimum <= maximum"
            )
        if format == "ntm" and (least + most) % 2 == 0:
            raise ValueError(
                f"trained_repeats is {trained_repeats}, expected an even number of values: "
                "the middle one would be shown as 0"
            )
        # The variance of integers from a to b is ((b - a + 1)² - 1) / 12.
        middle = (least + most) / 2 if format == "ntm" else 0.0
        scale = (((most - least + 1) ** 2 - 1) / 12) ** 0.5 if format == "ntm" else float(most)
        numbers = [(repeats - middle) / scale for repeats in range(max_repeats + 1)]
        self._start = int(format == "dnc")  # steps before the first vector
        super().__init__(
            num_envs,
            spaces.Box(min(0.0, numbers[min_repeats]), max(1.0, numbers[max_repeats]), (bits + 1 + self._start,)),
            spaces.MultiBinary(bits + 1),
            max_length * (max_repeats + 1) + 2 + self._start,
            device,
            render_mode,
        )
        self._numbers = torch.tensor(numbers, device=self.device)  # how each R is shown
        self.min_length, self.max_length, self.bits = min_length, max_length, bits
        self._name_parts(*(("start", "repeats") if self._start else ("repeats",)))
        self.action_names = (*self.action_names[:-1], "end")
        self.min_repeats, self.max_repeats, self.format = min_repeats, max_repeats, format

    def _sequences(self) -> Sequences:
        bits, num_envs = self.bits, self.num_envs
        length = self._integers(self.min_length, self.max_length, num_envs)
        repeats = self._integers(self.min_repeats, self.max_repeats, num_envs)
        vectors = self._bits(self.max_length, num_envs, bits)

        times = self._times - self._start  # from the first vector on
        shown = slice(self._start, self._start + self.max_length)
        inputs = torch.zeros(self.length, num_envs, bits + 1 + self._start, device=self.device)
        inputs[shown, :, :bits] = vectors * (times[shown] < length)[..., None]
        inputs[..., -1] = (times == length) * self._numbers[repeats]
        if self._start:
            inputs[0, :, bits] = 1.0

        due = times - length - 1  # steps since the number, [T, N]
        end = length * repeats
        repeating = (due >= 0) & (due < end)
        targets = torch.zeros(self.length, num_envs, bits + 1, dtype=torch.int8, device=self.device)
        targets[..., :bits] = self._pick(vectors, due % length) * repeating[..., None]
        targets[..., bits] = due == end
        return Sequences(inputs, targets, (repeating | (due == end)).float())


single = _single(RepeatCopy)
