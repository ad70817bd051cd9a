"""RepeatFirst: the smallest task that needs memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from envs.single_env import single as _single
from envs.tensor_env import Info, TensorEnv


class RepeatFirst(TensorEnv):
    """Repeat the first symbol at every step.

    Description:
        Every step shows a new random symbol. The first one of the episode is marked, and is the right answer at every
        step. The other symbols are distractors.

    Observation: `Box(float32)` `[symbols + 1]`: the symbol, one-hot, and 1 at the first step of an episode, else 0.

    Action: `Discrete(symbols)`: the answer. `info["target"]` (int64 `[num_envs]`) is the right one, `info["weight"]`
        (float32 `[num_envs]`) is 1: every step counts.

    Reward: `weight * [action == target] / length`; a perfect episode returns 1.

    Termination: after `length` answers.

    Args:
        num_envs: number of environments.
        length: answers in an episode (L), at least 1.
        symbols: number of symbols (k), at least 2.
        device: torch device of all tensors.
        render_mode: None or "rgb_array".

    Scores:
        Without memory at best (1 + (L - 1) / k) / L, which is 0.297 for the defaults: the first answer can be read off,
        the others are guesses. With memory 1. Answering at random returns 1 / k.

    Raises:
        ValueError: `length` or `symbols` is too small.

    Source: after RepeatFirst of POPGym (Morad et al., ICLR 2023), which shows cards of four suits; here the number of
        symbols is free, and wrong answers cost nothing.
    """

    ignores_actions = True
    state_names = ("first", "symbol", "last_action")

    def __init__(
        self,
        num_envs: int = 1,
        *,
        length: int = 16,
        symbols: int = 4,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        if length < 1 or symbols < 2:
            raise ValueError(f"length is {length}, symbols {symbols}; expected at least 1 and at least 2")
        super().__init__(
            num_envs,
            spaces.Box(0.0, 1.0, (symbols + 1,)),
            spaces.Discrete(symbols),
            device,
            horizon=length,
            render_mode=render_mode,
        )
        self.length = length
        self.symbols = symbols
        self.action_names = tuple(chr(ord("A") + symbol) if symbol < 26 else str(symbol) for symbol in range(symbols))
        self.observation_parts = (("symbol", (symbols,)), ("first", (1,)))
        self.observation_names = {"symbol": self.action_names}
        self._rows = torch.eye(symbols, symbols + 1, device=self.device)
        self._history: list[tuple[Tensor, Tensor]] = []  # symbols and answers of the episode, stored for pictures only

    def _draw(self) -> Tensor:
        return torch.randint(self.symbols, (self.num_envs,), generator=self.generator, device=self.device)

    def _begin(self, where: Tensor | None) -> None:
        assert where is None
        self.first = self.symbol = self._draw()
        self.last_action = torch.full((self.num_envs,), -1, device=self.device)  # none yet
        self._history.clear()

    def _advance(self, action: Tensor) -> tuple[Tensor, None, None]:
        reward = (action == self.first) * (1.0 / self.length)
        self.last_action = action.clone()
        if self.render_mode is not None:
            self._history.append((self.symbol, self.last_action))
        self.symbol = self._draw()
        return reward, None, None

    def _observe(self) -> Tensor:
        obs = self._rows.index_select(0, self.symbol)
        obs[:, -1] = float(self._elapsed == 0)
        return obs

    def _describe(self) -> Info:
        return {"target": self.first.clone(), "weight": torch.ones(self.num_envs, device=self.device)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self._history.clear()

    def text(self, index: int = 0) -> str:
        """Step, first symbol, symbol shown now and last answer, as letters."""
        first, shown, last = (
            chr(ord("A") + int(state[index])) if int(state[index]) >= 0 else "-"
            for state in (self.first, self.symbol, self.last_action)
        )
        return f"step {self._elapsed}/{self.length}: first {first}, now {shown}, last answer {last}"

    def frame(self, index: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
        from envs.rendering import strip_frame  # pygame is needed for pictures only

        shown: list[int | None] = [None] * self._elapsed
        answers = shown.copy()
        if self._elapsed:
            shown[0], answers[-1] = int(self.first[index]), int(self.last_action[index])
        for step, (symbol, answer) in enumerate(self._history, self._elapsed - len(self._history)):
            shown[step], answers[step] = int(symbol[index]), int(answer[index])
        if self._elapsed < self.length:
            shown.append(int(self.symbol[index]))
        return strip_frame(shown, answers, self.length, f"answer {self._elapsed} / {self.length}")


single = _single(RepeatFirst)
