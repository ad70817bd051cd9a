"""The invisible-goal maze, the benchmark of differentiable plasticity and MNM."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from envs.single_env import single as _single
from envs.tensor_env import TensorEnv

_MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right
_NO_ACTION = 4
_TRAIL = 12  # steps that stay visible in a picture
_CODES = 32  # codes for an environment's last action and result; see `InvisibleGoalMaze.__init__`


class InvisibleGoalMaze(TensorEnv):
    """Find an invisible goal, remember where it was, and return to it after every teleport.

    Description:
        A square of `size` x `size` cells inside a ring of wall, with a pillar wherever row and column are both even
        (counted with the ring), except in the centre: 65 free cells and 16 pillars for size 9. Each episode hides a
        goal in a random free cell. On reaching it the agent is rewarded and moved to a random free cell; the goal
        stays. The agent starts in the centre and sees walls only, so it must find the goal once by search and
        afterwards by remembering.

    Observation: `Box(float32)`, `[15]`, or `[11]` without the previous action.
        | columns | content                                                                       | range              |
        |---------|-------------------------------------------------------------------------------|--------------------|
        | 0-8     | the 3x3 cells around the agent, row by row: 1 wall, 0 free                    | {0, 1}             |
        | 9       | steps taken / `episode_length` (1 only in the final observation)              | [0, 1]             |
        | 10      | previous reward, unscaled (0 at the start)                                    | [-penalty, reward] |
        | 11-14   | previous action, one-hot; all 0 at the start, when there is none              | {0, 1}             |

        The released programs also feed a constant 1 and columns that are always 0, left out here since every network
        has biases; the 2018 program gives the raw step count, and the 2019 one marks action 0 as the previous action
        of the first step.

    Action: `Discrete(4)`: 0 up, 1 down, 2 left, 3 right.

    Reward: `-wall_penalty * [the move ran into a wall] + goal_reward * [the agent is on the goal after the move]`.
        The second term counts at every step, whether the agent moved or not. An agent that was teleported onto the goal
        and then runs into a wall earns 10 - 0.1 = 9.9.

    Termination: after `episode_length` steps, `terminated` (the observation holds the clock).

    Args:
        num_envs: number of environments.
        size: width of the square inside the ring, odd, at least 3.
        episode_length: steps of an episode.
        previous_action: whether the observation includes the previous action.
        wall_penalty: cost of running into a wall, at least 0.
        goal_reward: reward for reaching the goal, more than 0.
        goal_at_centre: whether the goal may be in the centre, where the agent starts.
        teleport_to_goal: whether the agent may be teleported onto the goal.
        device: torch device of all tensors.
        render_mode: None or "rgb_array".

    Published settings:
        | argument                         | Miconi 2018, MNM (`maze.py`) | Backpropamine 2019 (`batch.py`) | default |
        |----------------------------------|------------------------------|---------------------------------|---------|
        | size                             | 9                            | 9 or 11                         | 9       |
        | episode_length                   | 251                          | 200                             | 200     |
        | previous_action                  | False                        | True                            | True    |
        | wall_penalty                     | 0.1                          | 0.0                             | 0.1     |
        | goal_at_centre, teleport_to_goal | True                         | False                           | True    |

    Scores (mean return; `tests/envs/test_maze.py` computes them):
        | setting          | uniform random | without memory | told where goal and agent are |
        |------------------|----------------|----------------|-------------------------------|
        | default          | 0.4            | 53             | 329.9                         |
        | Miconi 2018, MNM | 0.2            | 15             | 414.1                         |
        | `batch.py`, 9x9  | 7.7            | 54             | 324.2                         |

        Without memory: a scripted walker that never runs into walls. If it sees its previous action, it goes straight
        on and turns only if it must (measured, +-0.5; a learned policy may do somewhat better). Told: the exact optimum
        over all policies that know the state. An agent that has to search first cannot reach it.

    Raises:
        ValueError: an argument is outside its range.

    Source: Miconi, Clune, Stanley, "Differentiable plasticity" (ICML 2018) and its `maze/maze.py`; Miconi et al.,
        "Backpropamine" (ICLR 2019), section 4.2, and its `maze/batch.py`; Munkhdalai et al., "Metalearned Neural
        Memory" (NeurIPS 2019), section 4.3.
    """

    action_names = ("up", "down", "left", "right")
    observation_names = {"last action": ("↑", "↓", "←", "→")}  # noqa: RUF012 (never changed in place)
    state_names = ("cell", "goal", "last_action", "last_reward")

    def __init__(
        self,
        num_envs: int = 1,
        *,
        size: int = 9,
        episode_length: int = 200,
        previous_action: bool = True,
        wall_penalty: float = 0.1,
        goal_reward: float = 10.0,
        goal_at_centre: bool = True,
        teleport_to_goal: bool = True,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        if size < 3 or size % 2 == 0:
            raise ValueError(f"size is {size}, expected an odd number of at least 3")
        if episode_length < 1:
            raise ValueError(f"episode_length is {episode_length}, expected at least 1")
        if wall_penalty < 0 or goal_reward <= 0:
            raise ValueError(f"wall_penalty is {wall_penalty}, goal_reward {goal_reward}; expected >= 0 and > 0")
        high = np.ones(15 if previous_action else 11, dtype=np.float32)
        low = np.zeros_like(high)
        low[10], high[10] = -wall_penalty, goal_reward
        super().__init__(
            num_envs, spaces.Box(low, high), spaces.Discrete(4), device, horizon=episode_length, render_mode=render_mode
        )
        self.observation_parts = (("3×3 view", (3, 3)), ("time", (1,)), ("last reward", (1,)))
        self.observation_parts += (("last action", (4,)),) if previous_action else ()
        self.size = size
        self.episode_length = episode_length
        self.goal_reward = goal_reward
        self.goal_at_centre = goal_at_centre
        self.teleport_to_goal = teleport_to_goal
        self.walls = _layout(size)
        self.free_cells = np.argwhere(~self.walls)
        """`[cells, 2]`: row and column of every free cell; the state names cells by their place in this list."""

        number = np.full(self.walls.shape, -1)
        number[~self.walls] = np.arange(len(self.free_cells))
        self.centre = int(number[size // 2 + 1, size // 2 + 1])
        ahead = self.free_cells[:, None] + np.array(_MOVES)
        beyond = number[ahead[..., 0], ahead[..., 1]]
        bump = beyond < 0
        stay = np.arange(len(self.free_cells))[:, None]
        after = _CODES * np.where(bump, stay, beyond) + 4 * np.arange(4) + 2 * bump

        # Cell, last action and its result are packed into one number, the index into all transition tables:
        # `cell * 32 + action * 4 + bumped * 2 + found`, with action 4 for none.
        code = np.arange(_CODES)
        patches = np.stack([self.walls[r - 1 : r + 2, c - 1 : c + 2].ravel() for r, c in self.free_cells])
        rows = np.zeros((len(self.free_cells), _CODES, len(high)), dtype=np.float32)
        rows[..., :9] = patches[:, None]
        rows[..., 10] = np.float32(-wall_penalty) * (code >> 1 & 1) + np.float32(goal_reward) * (code & 1)
        if previous_action:
            rows[..., 11:] = (code >> 2)[:, None] == np.arange(4)
        self._rows = torch.tensor(rows.reshape(-1, len(high)), device=self.device)
        self._rewards = self._rows[:, 10].clone()
        self._after = torch.tensor(after.repeat(_CODES, axis=0).ravel(), device=self.device)
        """Transition table, indexed by [code * 4 + action]: the next code, ignoring the goal."""
        self._trail: deque[Tensor] = deque(maxlen=_TRAIL)  # for pictures only

    def _begin(self, where: Tensor | None) -> None:
        assert where is None
        start = _CODES * self.centre + 4 * _NO_ACTION
        self._at = torch.full((self.num_envs,), start, device=self.device)
        self.goal = self._random_cell(None if self.goal_at_centre else self.cell)
        self._trail.clear()

    def _random_cell(self, other_than: Tensor | None) -> Tensor:
        """A uniform free cell for every environment, `[num_envs]`."""
        choices = len(self.free_cells) - (other_than is not None)
        cell = torch.randint(choices, (self.num_envs,), generator=self.generator, device=self.device)
        return cell if other_than is None else cell + (cell >= other_than)

    def _advance(self, action: Tensor) -> tuple[Tensor, None, None]:
        if self.render_mode is not None:
            self._trail.append(self._at)
        moved = self._after.index_select(0, torch.add(action, self._at, alpha=4))
        # XOR with the goal's code clears the cell bits exactly when the agent is on the goal; the low 5 bits (action,
        # bumped, found) then move to the new random cell.
        relative = moved ^ self._goal_found
        teleported = self._random_cell(None if self.teleport_to_goal else self.goal)
        self._at = torch.where(relative < _CODES, torch.add(relative, teleported, alpha=_CODES), moved)
        return self._rewards.index_select(0, self._at), None, None

    def _observe(self) -> Tensor:
        clock = self._elapsed / self.episode_length
        if len(self._rows) <= self.num_envs:  # the same for all environments: write to the smaller tensor
            self._rows[:, 9] = clock
            return self._rows.index_select(0, self._at)
        obs = self._rows.index_select(0, self._at)
        obs[:, 9] = clock
        return obs

    # The unpacked state, by the names in checkpoints; each part can be set on its own.

    @property
    def cell(self) -> Tensor:
        """The agent's cell, `[num_envs]`."""
        return self._at // _CODES

    @cell.setter
    def cell(self, cell: Tensor) -> None:
        self._at = cell * _CODES + self._at % _CODES

    @property
    def goal(self) -> Tensor:
        """The goal's cell, `[num_envs]`."""
        return self._goal

    @goal.setter
    def goal(self, goal: Tensor) -> None:
        self._goal, self._goal_found = goal, goal * _CODES + 1

    @property
    def last_action(self) -> Tensor:
        """The previous action, 4 where there is none."""
        return self._at % _CODES >> 2

    @last_action.setter
    def last_action(self, action: Tensor) -> None:
        self._at = self.cell * _CODES + action * 4 + self._at % 4

    @property
    def last_reward(self) -> Tensor:
        """The previous reward, 0 at the start."""
        return self._rewards[self._at]

    @last_reward.setter
    def last_reward(self, reward: Tensor) -> None:
        nearest = (self._rewards[:4] - reward[:, None]).abs().argmin(1)  # -penalty and 0 may be equal
        self._at = self._at // 4 * 4 + nearest

    def state_limits(self) -> dict[str, tuple[int, int]]:
        last = len(self.free_cells) - 1
        return {"cell": (0, last), "goal": (0, last), "last_action": (0, 4)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self._trail.clear()

    def text(self, index: int = 0) -> str:
        """The maze as text: `#` wall, `.` free, `G` goal, `A` agent, `@` the agent on the goal."""
        picture = np.where(self.walls, "#", ".")
        goal, cell = (tuple(self.free_cells[int(state[index])]) for state in (self.goal, self.cell))
        picture[goal] = "G"
        picture[cell] = "@" if cell == goal else "A"
        return "\n".join("".join(row) for row in picture)

    def frame(self, index: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
        from envs.rendering import maze_frame  # pygame is needed for pictures only

        return maze_frame(
            self.walls,
            agent=self.free_cells[int(self.cell[index])],
            goal=self.free_cells[int(self.goal[index])],
            trail=[self.free_cells[int(at[index]) // _CODES] for at in self._trail],
            caption=f"step {self._elapsed} / {self.episode_length}",
            reward=float(self.last_reward[index]),
        )


def _layout(size: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The wall mask, `[size + 2, size + 2]`: the ring, and pillars at even rows and columns except the centre."""
    walls = np.ones((size + 2, size + 2), dtype=bool)
    walls[1:-1, 1:-1] = False
    walls[2:-1:2, 2:-1:2] = True
    walls[size // 2 + 1, size // 2 + 1] = False
    return walls


single = _single(InvisibleGoalMaze)
