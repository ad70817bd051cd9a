"""Anything in, one tensor interface out.

`make_env` builds from a Gymnasium id. `as_tensor_env` takes what is already built: a `TensorEnv` as it is; an ordinary
`gymnasium.Env`, a Gymnasium `VectorEnv` or an SB3 `VecEnv` behind `HostEnv`, which moves arrays to the device and back.
`TensorVecEnv` is the way back: a `TensorEnv` seen as an SB3 `VecEnv`, for `model.get_env()`, callbacks and
`evaluate_policy`. Of environments on the host it gives the `VecEnv` beneath: the user's own where there is one.
"""

from agents.environments.host import HostEnv
from agents.environments.make import EnvLike, Vector, as_tensor_env, device_for, make_env
from agents.environments.named import named
from agents.sb3.vec_env import TensorVecEnv

__all__ = ["EnvLike", "HostEnv", "TensorVecEnv", "Vector", "as_tensor_env", "device_for", "make_env", "named"]
