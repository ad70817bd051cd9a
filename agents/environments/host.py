"""`HostEnv` gives environments on the host the tensor interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents.environments.copies import number
from agents.environments.hosts import Host
from agents.environments.infos import episode_counts
from agents.environments.transfer import Transfer
from envs.tensor_env import Info, Obs, TensorEnv
from policies.action_masks import parts_of
from policies.heads import check_action_space
from policies.observations import Layout, entries_of


class HostEnv(TensorEnv):
    """Environments that run on the host, with the tensor interface: one transfer per step in each direction.

    Observations, rewards and ends are copied, and sent to an accelerator in one transfer (`Transfer`).

    Their state cannot be saved, so a resumed run starts new episodes; everything else continues.

    Raises:
        ValueError: no network takes the observation or action space.
        TypeError: in `reset`, `seed` is a sequence.
        RuntimeError: in `frame`, the environments have no `render_mode` that draws.
    """

    def __init__(self, host: Host, device: torch.device | str = "cpu") -> None:
        check_action_space(host.action_space)
        self._layout = Layout(host.observation_space)
        self.host, self._own_moves = host, 0
        super().__init__(host.num_envs, self._layout.space, host.action_space, device)
        self.vec_env = host.vec_env
        """The environments as an SB3 `VecEnv`: see `agents.environments.TensorVecEnv`."""
        self.counts_episodes = host.counts_episodes
        self.counted: list[dict[str, Any]] = []
        """Statistics of the episodes that ended since a learner last read them, as reported by the environments."""
        self.render_mode = "rgb_array"
        n, space = self.num_envs, self._layout.space
        rows = {name: ((n, *(entry.shape or ())), entry.dtype) for name, entry in entries_of(space).items()}
        self._obs, self._final = ({name: f"{what} {name}" for name in rows} for what in ("obs", "final"))
        choices = 0 if isinstance(host.action_space, spaces.Box) else sum(parts_of(host.action_space))
        self._transfer = Transfer(
            {
                **{self._obs[name]: row for name, row in rows.items()},
                "reward": ((n,), np.float32),
                "terminated": ((n,), np.bool_),
                "truncated": ((n,), np.bool_),
                "action_mask": ((n, choices), np.bool_),
                "episodes": ((3, n), np.float32),
                **{self._final[name]: row for name, row in rows.items()},
            },
            self.device,
        )

    @property
    def truncates(self) -> bool:  # type: ignore[override]
        """Whether the last step truncated any environment; known on the host."""
        return self._truncated_now

    _truncated_now = False

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, Info]:
        if isinstance(seed, Sequence):
            raise TypeError("HostEnv.reset takes one integer seed for all environments, not a sequence")
        obs = self.host.reset(None if seed is None else int(seed), options)
        tensors = self._transfer(self._named(obs, self._obs) | self._masks())
        return self._unnamed(tensors, self._obs), _only(tensors, "action_mask")

    @property
    def user_moves(self) -> int:
        """Number of resets, and of steps that user code made."""
        return self.host.watch.moves - self._own_moves

    @user_moves.setter
    def user_moves(self, value: int) -> None:
        """Ignored: `host.watch` counts."""

    def observe(self) -> Obs:
        """The current observations; if user code moved a single environment or wrapper, all environments are reset."""
        current = self.host.current_obs()
        if current is None:
            return self.reset()[0]
        return self._unnamed(self._transfer(self._named(current, self._obs)), self._obs)

    def step(self, action: Tensor | np.ndarray[Any, Any]) -> tuple[Obs, Tensor, Tensor, Tensor, Info]:
        array = action.cpu().numpy() if isinstance(action, Tensor) else np.asarray(action)
        moves = self.host.watch.moves
        obs, reward, terminated, truncated, final = self.host.step(
            array.astype(self.single_action_space.dtype, copy=False)
        )
        self._own_moves += self.host.watch.moves - moves
        self._truncated_now = bool(np.any(truncated))
        arrays = self._named(obs, self._obs) | self._masks()
        arrays |= {"reward": reward, "terminated": terminated, "truncated": truncated}
        if final is not None:
            arrays |= self._named(final, self._final)
            arrays["episodes"] = self._episodes()
        tensors = self._transfer(arrays)
        info: Info = {**_only(tensors, "action_mask"), "infos": self.host.infos, "shown": obs}
        if final is not None:
            returns, lengths, success = tensors["episodes"].unbind()
            stats = {"episode_return": returns, "episode_length": lengths, "is_success": success}
            stats["episodes"] = tensors["episodes"]
            info |= {"final_obs": self._unnamed(tensors, self._final), **stats}
        new_obs = self._unnamed(tensors, self._obs)
        return new_obs, tensors["reward"], tensors["terminated"], tensors["truncated"], info

    def _describe(self) -> Info:
        return {**self._transfer(self._masks())}

    def _masks(self) -> dict[str, Any]:
        masks = self.host.masks.current
        return {} if masks is None else {"action_mask": masks}

    def _episodes(self) -> np.ndarray[Any, Any]:
        """The episode statistics that the environments report, NaN if they report none.

        Returns, lengths and successes, `[3, N]`.
        """
        stats = np.full((3, self.num_envs), np.nan, dtype=np.float32)
        for index, info in self.host.ended_infos():
            counts = episode_counts(info)
            if counts is not None:
                self.counted.append(counts)
                stats[:2, index] = counts["r"], counts["l"]
            if info.get("is_success") is not None:
                stats[2, index] = number("info['is_success']", info["is_success"])
        return stats

    def _named(self, obs: Any, names: dict[str, str]) -> dict[str, Any]:
        arrays = self._layout.read(obs)
        return {names[name]: array for name, array in (arrays if isinstance(arrays, dict) else {"": arrays}).items()}

    def _unnamed(self, tensors: dict[str, Tensor], names: dict[str, str]) -> Obs:
        if self._layout.is_dict:
            return {name: tensors[whole] for name, whole in names.items()}
        return tensors[names[""]]

    def frame(self, index: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
        frames = self.host.render()
        if frames is None or frames[index] is None:
            raise RuntimeError("this environment draws no frames: build it with render_mode='rgb_array'")
        return np.asarray(frames[index], dtype=np.uint8)

    def state_dict(self) -> dict[str, Tensor]:
        """Empty: the state of a host environment cannot be saved."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing to load; the caller resets the environment."""

    def close(self, **kwargs: Any) -> None:
        self.host.close()


def _only(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {name: tensors[name]} if name in tensors else {}
