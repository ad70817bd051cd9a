"""Turns any environment into a `TensorEnv`.

`make_env` builds environments from a Gymnasium id. `as_tensor_env` takes an existing one: a `TensorEnv` is returned
unchanged; an ordinary `gymnasium.Env`, a Gymnasium `VectorEnv` or an SB3 `VecEnv` behind `HostEnv`, which moves arrays
to the device and back. `TensorVecEnv` goes the other way: it shows a `TensorEnv` as an SB3 `VecEnv`, for
`model.get_env()`, callbacks and `evaluate_policy`. For environments on the host it returns the wrapped `VecEnv`, which
is the user's own if they passed one.
"""

from agents.environments.host import HostEnv
from agents.environments.make import EnvLike, Vector, as_tensor_env, device_for, make_env
from agents.environments.named import import_modules, import_object
from agents.sb3.vec_env import TensorVecEnv

__all__ = [
    "EnvLike",
    "HostEnv",
    "TensorVecEnv",
    "Vector",
    "as_tensor_env",
    "device_for",
    "import_modules",
    "import_object",
    "make_env",
]
