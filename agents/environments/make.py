"""Builds environments from their ids, and wraps any environment as a `TensorEnv`."""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import gymnasium as gym
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv

from agents.common.arguments import Count, read_arguments, read_typed
from agents.environments.copies import CopyAndKeep, copy_observations
from agents.environments.host import HostEnv
from agents.environments.hosts import VecEnvHost, VectorEnvHost
from agents.environments.named import find_env, import_object
from agents.environments.processes import frozen_texts, worker
from agents.sb3.vec_env import TensorVecEnv, VectorVecEnv
from envs.tensor_env import TensorEnv
from policies.heads import check_action_space
from policies.observations import Layout, short

Vector = Literal["sync", "async"]
Wrapper = str | Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]
EnvLike = str | gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | VecEnv | TensorEnv


def make_env(
    env_id: str,
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    *,
    wrappers: Sequence[Wrapper] = (),
    vector: Vector = "sync",
    **kwargs: Any,
) -> TensorEnv:
    """`num_envs` environments of a registered id on `device`.

    Ids whose vector entry point is a `TensorEnv` (all `Engram/...`, and your own) are batched on the device; any other
    Gymnasium id runs as `num_envs` ordinary environments on the host. `module:Id-v0` imports `module` first, as in
    Gymnasium.

    Args:
        env_id: as registered with Gymnasium.
        num_envs: how many.
        device: where the tensors live.
        wrappers: applied to every single environment, the first one innermost: callables, or `module:name`. A
            `TensorEnv` then runs as ordinary single environments.
        vector: "sync": one environment after the other; "async": each in a separate process, for slow environments.
        kwargs: arguments of the environment.

    Raises:
        ValueError: the id or a wrapper is unknown (the message lists near ones), arguments are wrong, or the
            environment cannot be built.
        TypeError: `env_id` is not a text.
    """
    if not isinstance(env_id, str):
        raise TypeError(
            f"env_id is of {type(env_id).__name__}, expected a Gymnasium id; learners take an environment itself"
        )
    spec = find_env(env_id)
    read_typed("num_envs", num_envs, Count)
    if isinstance(wrappers, str):
        raise ValueError(f"wrappers is {wrappers!r}, expected a list: wrappers=[{wrappers!r}]")
    if vector not in get_args(Vector):
        raise ValueError(f"vector is {vector!r}, expected one of {', '.join(get_args(Vector))}")
    layers = [import_object(wrapper, "a wrapper") if isinstance(wrapper, str) else wrapper for wrapper in wrappers]
    tensor_env = batched_class(spec)
    if tensor_env is not None and not layers:
        if vector == "async":
            raise ValueError(f"{env_id} is stepped as one batch on the device; expected vector='sync'")
        kwargs = read_arguments(tensor_env, kwargs, "env_kwargs", ("num_envs", "device"))
        with _building(env_id, tensor_env, kwargs):
            env = gym.make_vec(spec, num_envs, "vector_entry_point", device=device, **kwargs)
        assert isinstance(env, TensorEnv)
        return env
    with _building(env_id, spec.entry_point, {**spec.kwargs, **kwargs}):
        outer = [ignoring_interrupts(os.getpid())] if vector == "async" else []
        try:
            batch = _on_host(spec, num_envs, vector, [*layers, CopyAndKeep, *outer], kwargs)
        except ValueError as error:  # of a space or a constructor that does not know the id
            raise ValueError(f"environment {env_id!r} cannot be built: {error}") from error
        _forget_makers(batch)
        env = as_tensor_env(batch, device)
    if vector == "async":
        weakref.finalize(env, _close, batch)  # its processes are closed with it, or at exit
    return env


def ignoring_interrupts(parent: int) -> Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]:
    """A wrapper that ignores SIGINT in every other process than `parent`.

    A terminal sends Ctrl-C to all processes, and the parent finishes its iteration first, which needs the others.
    """

    def wrapper(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        if os.getpid() != parent:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return env

    return wrapper


def _close(batch: VectorEnv[Any, Any, Any]) -> None:
    with contextlib.suppress(OSError, EOFError):  # a process has ended before
        batch.close()


def _on_host(
    spec: EnvSpec, num_envs: int, vector: str, wrappers: list[Any], kwargs: dict[str, Any]
) -> VectorEnv[Any, Any, Any]:
    mode: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}
    if vector == "async":
        mode["worker"] = worker
    try:
        batch = gym.make_vec(spec, num_envs, vector, vector_kwargs=mode, wrappers=wrappers, **kwargs)
        if not frozen_texts(batch):
            return batch
        batch.close()
    except ValueError as error:
        if not isinstance(error.__cause__, gym.error.CustomSpaceError):
            raise
    mode["shared_memory"] = False  # texts and custom spaces are sent through pipes
    return gym.make_vec(spec, num_envs, vector, vector_kwargs=mode, wrappers=wrappers, **kwargs)


@contextlib.contextmanager
def _building(env_id: str, entry_point: Any, kwargs: dict[str, Any]) -> Iterator[None]:
    """Context manager that turns an error of an environment's constructor into a one-line `ValueError`."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if isinstance(error, TypeError) and (wrong := _signature_error(entry_point, kwargs)):
            raise ValueError(f"environment {env_id!r} does not take {kwargs}: {wrong}") from error
        raise ValueError(f"environment {env_id!r} cannot be built: {cause}") from error


def _signature_error(entry_point: Any, kwargs: dict[str, Any]) -> str:
    """How the arguments violate the signature of an environment's class or function; empty if they fit."""
    of_make = inspect.signature(gym.make).parameters
    try:
        signature = inspect.signature(load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point)
    except Exception:  # without a signature, or not importable: the original error says more
        return ""
    try:
        signature.bind_partial(**{name: value for name, value in kwargs.items() if name not in of_make})
    except TypeError as error:
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names = [each.name for each in signature.parameters.values() if each.kind in kinds]
        sb3 = "; the number of environments is num_envs" if "n_envs" in kwargs else ""
        return f"{error}; it takes {', '.join(names) or 'none'}{sb3}"
    return ""


def device_for(device: torch.device | str, env: EnvLike | None) -> torch.device:
    """Resolves `device` as SB3 does. "auto" is the environment's device if it has one, else an accelerator if
    available.

    Raises:
        ValueError: there is no such device.
    """
    if isinstance(env, TensorVecEnv):
        env = env.tensor_env
    if isinstance(env, TensorEnv) and str(device) == "auto":
        return env.device
    try:
        return get_device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device is {device!r}, expected cpu, cuda, cuda:1, ... or auto") from error


def as_tensor_env(env: EnvLike, device: torch.device | str = "cpu") -> TensorEnv:
    """`env` as a `TensorEnv` on `device`.

    Raises:
        ValueError: a `TensorEnv` on another device, a vector environment that resets at the *next* step, or a space
            that no network takes (the message names the entry, and what to do).
        TypeError: it is not an environment.
    """
    if isinstance(env, str):
        if batched_class(find_env(env)) is None:
            try:
                return make_env(env, 1, device, render_mode="rgb_array")  # as in SB3, so that it can be rendered
            except ValueError as error:
                if not isinstance(error.__cause__, TypeError):
                    raise
        return make_env(env, 1, device)
    if isinstance(env, TensorVecEnv):
        env = env.tensor_env
    if isinstance(env, TensorEnv):
        expected = torch.device(device)
        if expected.type != env.device.type or expected.index not in (None, env.device.index):
            raise ValueError(f"the environment lives on {env.device} but the agent on {device}; put both on one device")
        space = env.single_observation_space
        names = list(space) if isinstance(space, spaces.Dict) else [""]
        layout = Layout(space)
        flat = [(name, (name,) if isinstance(space, spaces.Dict) else ()) for name in names]
        if isinstance(space, spaces.Tuple) or layout.texts or list(layout.paths.items()) != flat:
            raise ValueError(
                f"{type(env).__name__} has the observations {short(space)}; expected one tensor or a flat dict of "
                "tensors: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of them"
            )
        check_action_space(env.single_action_space)
        return env
    if isinstance(env, VectorVecEnv):
        env = env.source.env
    parts: tuple[gym.Env[Any, Any], ...] = ()
    if isinstance(env, gym.Env):
        _check_spaces(env)
        single, parts = env, (env,)
        env = SyncVectorEnv([lambda: CopyAndKeep(single)], autoreset_mode=AutoresetMode.SAME_STEP)
        _forget_makers(env)
    if not isinstance(env, (VecEnv, VectorEnv)):
        raise TypeError(f"expected a Gymnasium id, Env, VectorEnv, SB3 VecEnv or TensorEnv, not {_not_an_env(env)}")
    if isinstance(env, VectorWrapper) and isinstance(env.unwrapped, TensorEnv) and not _converts(env):
        raise ValueError(
            f"{type(env).__name__} around the {type(env.unwrapped).__name__} expects arrays, which that does not give: "
            "put gymnasium.wrappers.vector.ArrayConversion(env, env_xp=torch, target_xp=numpy) between them; it comes "
            "with pip install gymnasium[array-api]"
        )
    copy_observations(env)
    return HostEnv(VecEnvHost(env) if isinstance(env, VecEnv) else VectorEnvHost(env, *parts), device)


def _forget_makers(batch: VectorEnv[Any, Any, Any]) -> None:
    """Drops the functions that made the environments: a model that keeps them cannot be pickled."""
    if isinstance(batch, SyncVectorEnv):
        batch.env_fns = ()


def _check_spaces(env: gym.Env[Any, Any]) -> None:
    for name in ("observation_space", "action_space"):
        space = getattr(env, name, None)
        if not isinstance(space, spaces.Space):
            found = "missing" if space is None else f"of {type(space).__module__}.{type(space).__name__}"
            raise TypeError(
                f"{name} of {type(env.unwrapped).__name__} is {found}, expected a space of gymnasium.spaces: set it in "
                "the environment's __init__"
            )


def _not_an_env(env: Any) -> str:
    """Describes an object that is not an environment, and how to get one from it."""
    if isinstance(env, type):
        return f"the class {env.__name__}: give an instance, {env.__name__}()"
    if isinstance(env, (list, tuple)):
        return f"a {type(env).__name__}: give gymnasium.vector.SyncVectorEnv([function, ...]), each of which makes one"
    if callable(env):
        return "a function: give what it makes, or several in gymnasium.vector.SyncVectorEnv([function, ...])"
    return f"{type(env).__name__}, whose class does not derive from gymnasium.Env"


def _converts(env: VectorEnv[Any, Any, Any]) -> bool:
    """Whether a wrapper converts tensors to arrays. Checked by name, because importing it needs an optional package."""
    while isinstance(env, VectorWrapper):
        if any(cls.__name__ == "ArrayConversion" for cls in type(env).__mro__):
            return True
        env = env.env
    return False


def batched_class(spec: EnvSpec) -> type[TensorEnv] | None:
    """The `TensorEnv` class that a spec builds; None if it builds other environments."""
    entry_point: Any = spec.vector_entry_point
    if isinstance(entry_point, str):
        entry_point = load_env_creator(entry_point)
    return entry_point if isinstance(entry_point, type) and issubclass(entry_point, TensorEnv) else None
