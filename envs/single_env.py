"""`SingleEnv`: a `TensorEnv` with one environment as an ordinary Gymnasium environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from envs.tensor_env import TensorEnv


class SingleEnv(gymnasium.Env[Any, Any]):
    """A `TensorEnv` of one environment, with numpy arrays in and out and Gymnasium's single-environment rules.

    The step that ends an episode returns that episode's last observation, and the next call must be `reset`.
    `reset(seed=s)` followed by the same actions gives the same episode; `reset()` does not seed the generator.

    Args:
        tensor_env: an environment with `num_envs=1`, used by this object only.
        render_mode: None; "rgb_array": `render` returns `[H, W, 3]` uint8; "human": a window follows every step.

    Raises:
        ValueError: `tensor_env` has more than one environment, or the render mode is unknown.
    """

    metadata = {  # noqa: RUF012 (Gymnasium declares it as it is)
        "render_modes": ["human", "rgb_array"],
        "render_fps": 8,
    }

    def __init__(self, tensor_env: TensorEnv, render_mode: str | None = None) -> None:
        if tensor_env.num_envs != 1:
            raise ValueError(f"SingleEnv takes an environment with num_envs=1, not {tensor_env.num_envs}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is {render_mode!r}, expected one of {self.metadata['render_modes']} or None")
        self.tensor_env = tensor_env
        self.tensor_env.autoreset = False
        self.observation_space = tensor_env.single_observation_space
        self.action_space = tensor_env.single_action_space
        self.render_mode = render_mode
        self._over = True  # no episode is running
        self._window: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode; returns its first observation and info."""
        super().reset(seed=seed)
        obs, info = self.tensor_env.reset(seed=seed, options=options)
        self._over = False
        self._show()
        return _first(obs), _first(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step.

        Raises:
            RuntimeError: the episode has ended, or none was started.
            ValueError: `action` is not in the action space.
        """
        if self._over:
            raise RuntimeError("SingleEnv.step was called before reset or after an episode's end: call reset first")
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is not in {self.action_space}")
        batch = torch.as_tensor(np.asarray(action, dtype=self.action_space.dtype)[None], device=self.tensor_env.device)
        obs, reward, terminated, truncated, info = self.tensor_env.step(batch)
        ended, cut = bool(terminated.item()), bool(truncated.item())
        self._over = ended or cut
        self._show()
        if self._over:  # after the last step there is no target and no mask
            info = {name: value for name, value in info.items() if name in ("metrics", "is_success")}
        else:
            info.pop("is_success", None)
        return _first(obs), reward.item(), ended, cut, _first(info)

    def render(self) -> Any:
        """The current frame `[H, W, 3]` if the render mode is "rgb_array", else None."""
        return self.tensor_env.frame(0) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Closes the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None

    def _show(self) -> None:
        if self.render_mode != "human":
            return
        if self._window is None:
            from envs.rendering import Window  # pygame is needed for pictures only

            self._window = Window(type(self.tensor_env).__name__, self.metadata["render_fps"])
        self._window.show(self.tensor_env.frame(0))


def single(env_class: Callable[..., TensorEnv]) -> Callable[..., SingleEnv]:
    """The `gymnasium.make` entry point of a batched environment; it takes the same arguments without `num_envs`."""

    def make(render_mode: str | None = None, **kwargs: Any) -> SingleEnv:
        drawn = None if render_mode is None else "rgb_array"
        return SingleEnv(env_class(num_envs=1, render_mode=drawn, **kwargs), render_mode)

    return make


def _first(batch: Any) -> Any:
    """Environment 0 of a batch of tensors, as NumPy arrays; scalars become Python numbers."""
    if isinstance(batch, dict):
        return {name: _first(value) for name, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(_first(value) for value in batch)
    if isinstance(batch, Tensor):
        array = batch[0].cpu().numpy()
        return array if array.ndim else array[()]
    return batch
