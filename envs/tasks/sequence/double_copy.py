"""DoubleCopy: reproduce a sequence of symbols twice."""

from __future__ import annotations

import torch

from envs.single_env import single as _single
from envs.tasks.sequence.base import Sequences, SymbolTask, check_range


class DoubleCopy(SymbolTask):
    """Remember a sequence of symbols and reproduce it twice.

    Description:
        L random symbols are shown, then a delimiter, then nothing, while the symbols must be reproduced in the same
        order, two times. L is drawn for each environment and episode from `min_length` to `max_length`.

    Observation: `Box(float32)` `[symbols + 1]`: a symbol, or the delimiter (the last one), one-hot; zeros afterwards.

    Action: `Discrete(symbols)`. `info["target"]` (int64 `[num_envs]`) is the symbol due, `info["weight"]` (float32
        `[num_envs]`) 1 at the `2 * L` steps after the delimiter, else 0.

    Reward: `weight * [action == target] / (2 * L)`; a perfect episode returns 1.

    Termination: after `3 * max_length + 1` steps; shorter sequences are padded with weight 0.

    Metrics: `error` (% of symbols), `sequence_error` (share of sequences with a wrong symbol).

    Args:
        num_envs: number of environments.
        min_length: shortest sequence, at least 1.
        max_length: longest sequence.
        symbols: number of symbols, 2 to 26.
        device: torch device of all tensors.
        render_mode: None or "rgb_array".

    Scores:
        Without memory 1 / symbols, which is 0.1. With memory 1.

    Raises:
        ValueError: an argument is out of its range.

    Source: Munkhdalai, Sordoni, Wang, Trischler, "Metalearned Neural Memory" (NeurIPS 2019), section 4.1 and appendix:
        length 50, 10 symbols. That a delimiter ends the input is ours; the paper does not say how the end is shown.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        min_length: int = 50,
        max_length: int = 50,
        symbols: int = 10,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        check_range("length", min_length, max_length)
        if not 2 <= symbols <= 26:
            raise ValueError(f"symbols is {symbols}, expected 2 to 26")
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:symbols] + "|"
        super().__init__(num_envs, alphabet, symbols, 3 * max_length + 1, device, render_mode)
        self.min_length, self.max_length, self.symbols = min_length, max_length, symbols

    def _sequences(self) -> Sequences:
        delimiter, blank = self.symbols, self.symbols + 1
        length = self._integers(self.min_length, self.max_length, self.num_envs)
        symbols = self._integers(0, self.symbols - 1, self.max_length, self.num_envs)
        rest = torch.where(self._times == length, delimiter, blank)
        inputs = torch.where(self._times < length, self._pick(symbols, self._times), rest)
        due = self._times - length - 1
        asked = (due >= 0) & (due < 2 * length)
        return Sequences(inputs, self._pick(symbols, due % length) * asked, asked.float())


single = _single(DoubleCopy)
