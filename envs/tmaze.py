"""The T-maze: a cue at the start says which way to turn at the far end."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from envs.single_env import single as _single
from envs.tensor_env import TensorEnv

_NORTH, _EAST, _SOUTH, _WEST = range(4)
_GOAL_REWARD, _PENALTY = 4.0, -0.1


class TMaze(TensorEnv):
    """Walk down a corridor and turn in the direction shown by a sign at its start.

    Description:
        A corridor leads east, `length` steps from the start to a junction with a northern and a southern arm. The goal
        is in one of the arms, and only the observation of the start cell tells in which. (Walking back shows it again.)

    Observation: `Box(float32)` `[3]`, Bakker's code:
        | where              | observation |
        |--------------------|-------------|
        | start, goal north  | 0 1 1       |
        | start, goal south  | 1 1 0       |
        | corridor           | 1 0 1       |
        | junction           | 0 1 0       |
        | an arm (final)     | 0 0 0       |

    Action: `Discrete(4)`: 0 north, 1 east, 2 south, 3 west. No `target`: the best action depends on the position, and
        going back to the sign is not wrong.

    Reward: +4 for entering the arm with the goal, -0.1 for entering the other, -0.1 for running into a wall, else 0.

    Termination: `terminated` in either arm; `truncated` after `max_steps` steps, which the observation does not show.

    Success (`info["is_success"]`): the arm with the goal was entered.

    Args:
        num_envs: number of environments.
        length: steps from the start to the junction, at least 1.
        max_steps: episodes are truncated after this many steps; None: `10 * length`. The shortest takes `length + 1`.
        device: torch device of all tensors.
        render_mode: None or "rgb_array".

    Scores:
        Without memory at best 4 / 2 - 0.1 / 2 = 1.95: walk to the junction and guess. With memory 4.
        Uniform random actions return -4.65 with the defaults, and reach an arm in 24 % of the episodes.

    Raises:
        ValueError: `length` is below 1, or `max_steps` below `length + 1`.

    Source: Bakker, "Reinforcement Learning with Long Short-Term Memory" (NIPS 2001, printed 2002). The limit on
        the number of steps is ours.
    """

    truncates = True
    action_names = ("north", "east", "south", "west")
    observation_parts = (("code", (3,)),)
    state_names = ("place", "steps")

    def __init__(
        self,
        num_envs: int = 1,
        *,
        length: int = 10,
        max_steps: int | None = None,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        max_steps = 10 * length if max_steps is None else max_steps
        if length < 1 or max_steps < length + 1:
            raise ValueError(f"length is {length}, max_steps {max_steps}; expected at least 1 and at least length + 1")
        super().__init__(
            num_envs, spaces.Box(0.0, 1.0, (3,)), spaces.Discrete(4), device, horizon=None, render_mode=render_mode
        )
        self.length = length
        self.max_steps = max_steps

        # A place is goal * places + position: 0 is the start, `length` the junction, then the two arms.
        junction, places = length, length + 3
        north_arm, south_arm = length + 1, length + 2
        self._places = places
        beyond = np.repeat(np.arange(places)[:, None], 4, axis=1)
        beyond[:junction, _EAST] += 1
        beyond[1 : junction + 1, _WEST] -= 1
        beyond[junction, _NORTH], beyond[junction, _SOUTH] = north_arm, south_arm
        reward = np.where(beyond == np.arange(places)[:, None], _PENALTY, 0.0)[None].repeat(2, axis=0)
        reward[0, junction, [_NORTH, _SOUTH]] = _GOAL_REWARD, _PENALTY
        reward[1, junction, [_NORTH, _SOUTH]] = _PENALTY, _GOAL_REWARD
        seen = np.zeros((2, places, 3), dtype=np.float32)
        seen[0, 0], seen[1, 0] = (0, 1, 1), (1, 1, 0)
        seen[:, 1:junction] = 1, 0, 1
        seen[:, junction] = 0, 1, 0
        self._next = torch.tensor(np.stack([beyond, beyond + places]).ravel(), device=self.device)
        self._reward = torch.tensor(reward.ravel(), dtype=torch.float32, device=self.device)
        self._over = torch.tensor(np.tile(np.arange(places) > junction, 2), device=self.device)
        self._seen = torch.tensor(seen.reshape(-1, 3), device=self.device)

    def _begin(self, where: Tensor | None) -> None:
        start = torch.randint(2, (self.num_envs,), generator=self.generator, device=self.device) * self._places
        if where is None:
            self.place, self.steps = start, torch.zeros_like(start)
        else:
            self.place = torch.where(where, start, self.place)
            self.steps = self.steps * ~where

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        move = torch.add(action, self.place, alpha=4)
        self.place = self._next.index_select(0, move)
        self.steps = self.steps + 1
        terminated = self._over.index_select(0, self.place)
        truncated = (self.steps >= self.max_steps) & ~terminated
        reward = self._reward.index_select(0, move)
        self._succeed(reward > 0)
        return reward, terminated, truncated

    def _observe(self) -> Tensor:
        return self._seen.index_select(0, self.place)

    def _where(self, index: int) -> tuple[int, int]:
        """Goal (0 north, 1 south) and position of environment `index`."""
        return divmod(int(self.place[index]), self._places)

    def state_limits(self) -> dict[str, tuple[int, int]]:
        return {"place": (0, 2 * self._places - 1)}

    def observation_text(self, index: int = 0) -> str:
        goal, position = self._where(index)
        if position == 0:
            return f"sign: {('north', 'south')[goal]}"
        return "corridor" if position < self.length else "junction" if position == self.length else "end"

    def text(self, index: int = 0) -> str:
        """Three rows: the northern arm, the corridor, the southern arm; `G` goal, `A` agent, `.` free."""
        goal, position = self._where(index)
        rows = [list(" " * self.length + arm) for arm in (("G", ".") if goal == 0 else (".", "G"))]
        rows.insert(1, list("." * (self.length + 1)))
        row = {self.length + 1: 0, self.length + 2: 2}.get(position, 1)
        rows[row][min(position, self.length)] = "A"
        return "\n".join("".join(row) for row in rows)

    def frame(self, index: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
        from envs.rendering import corridor_frame  # pygame is needed for pictures only

        goal, position = self._where(index)
        row = {self.length + 1: -1, self.length + 2: 1}.get(position, 0)
        outcome = 0.0 if row == 0 else _GOAL_REWARD if row == 2 * goal - 1 else _PENALTY
        return corridor_frame(
            self.length,
            place=(row, min(position, self.length)),
            goal=2 * goal - 1,
            caption=f"step {int(self.steps[index])} / {self.max_steps}",
            reward=outcome,
        )


single = _single(TMaze)
