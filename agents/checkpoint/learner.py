"""What a learner puts into a checkpoint, and how it comes back."""

from __future__ import annotations

import inspect
import os
import platform
from collections import deque
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from agents import distributed
from agents.capturable import plain_groups
from agents.checkpoint.format import (
    CheckpointError,
    latest_checkpoint,
    read_manifest,
    read_tensors,
    shapes,
    write_checkpoint,
)
from agents.encoding import decode, decode_space, encode, encode_space
from agents.environments import EnvLike, device_for
from agents.environments.infos import as_numpy
from agents.generators import get_generators
from policies.memories.base import detach
from policies.normalization import exchange_value_norm

if TYPE_CHECKING:
    from agents.on_policy import MemoryOnPolicyAlgorithm

LIBRARIES = ("torch", "gymnasium", "stable-baselines3", "numpy", "safetensors")

COUNTERS = ("num_timesteps", "_total_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining")
# What a constructor takes but a checkpoint does not keep: where and how it runs and logs is up to whoever loads it.
NOT_KEPT = ("self", "policy", "env", "device", "fast", "precision", "verbose", "tensorboard_log", "_init_setup_model")

LATER = {"normalize_values": False, "normalize_obs": False}
"""Arguments that older checkpoints do not have, and what they were made with."""

Self = TypeVar("Self", bound="Checkpointed")


def take_weights(policy: torch.nn.Module, path: str | os.PathLike[str]) -> None:
    """Give a policy the parameters and buffers of a checkpoint, or of the newest in a run's folder.

    Raises:
        CheckpointError: there is none, it is damaged, or its weights are not those of such a policy.
    """
    checkpoint = latest_checkpoint(path)
    manifest = read_manifest(checkpoint)
    tensors = read_tensors(checkpoint, manifest)
    weights = {name.removeprefix("policy/"): value for name, value in tensors.items() if name.startswith("policy/")}
    weights = exchange_value_norm(weights, policy.state_dict())
    theirs, ours = shapes(weights), shapes(policy.state_dict())
    if differ := sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)):
        there, here = theirs.get(differ[0], "missing"), ours.get(differ[0], "none")
        raise CheckpointError(
            f"the weights in {checkpoint} are not of this memory, environment and sizes: {len(differ)} differ; "
            f"{differ[0]} is {there}, expected {here}"
        )
    order = list(manifest["observation_space"].get("spaces", ()))
    found = list(getattr(policy.observation_space, "spaces", ()))
    if order != found:
        raise CheckpointError(
            f"the weights in {checkpoint} take the observation's entries in the order {', '.join(order)}, but the "
            f"environment has {', '.join(found)}: write its space as spaces.Dict([(name, space), ...]) in that order"
        )
    policy.load_state_dict(weights)


def load(path: str | os.PathLike[str], env: EnvLike | None = None, **kwargs: Any) -> MemoryOnPolicyAlgorithm:
    """Load a checkpoint of any of this project's learners, or the newest of a run's folder.

    Arguments as in `Checkpointed.load`.
    """
    from agents import LEARNERS  # a learner is a Checkpointed: the arrow back is drawn at call time

    path = _newest(path)
    name = read_manifest(path).get("algorithm")
    for learner in LEARNERS.values():
        if learner.__name__ == name:
            return learner.load(path, env, **kwargs)
    raise CheckpointError(f"{path} holds a {name!r}, this Engram knows {', '.join(LEARNERS)}")


def _newest(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The newest checkpoint, where `path` is a run's folder; else `path`."""
    return latest_checkpoint(path) if os.path.isdir(os.path.join(path, "checkpoints")) else path


class Checkpointed(BaseAlgorithm):
    """`save` and `load` for the learners, in place of SB3's pickles."""

    def save(self: Any, path: str | os.PathLike[str]) -> None:  # type: ignore[override]
        """Write a checkpoint folder at `path`: the agent, its optimiser and all that the run's next step depends on.

        With several ranks all must call it; rank 0 writes what every one of them needs, into the one folder.
        """
        parts = distributed.to_first(self._of_this_rank())
        if not parts:
            return
        tensors = {f"policy/{name}": value for name, value in self.policy.state_dict().items()}
        optimizer = self.policy.optimizer.state_dict()
        for index, entries in optimizer["state"].items():
            for name, value in entries.items():
                tensors[f"optimizer/{index}/{name}"] = torch.as_tensor(value)
        for rank, part in enumerate(parts):
            tensors |= {_prefix(rank) + name: value for name, value in part.items()}
        if self._last_obs is not None:
            tensors |= self._episodes()
        manifest = {
            "algorithm": type(self).__name__,
            "policy": encode(self.policy_class),
            "config": {name: encode(getattr(self, name)) for name in self._kept_arguments()},
            "param_groups": plain_groups(optimizer["param_groups"]),
            "counters": {name: getattr(self, name) for name in COUNTERS},
            "num_envs": getattr(self, "n_envs", 1) * len(parts),
            "ranks": len(parts),
            "env": type(self.tensor_env).__name__ if self.env is not None else None,
            "may_start": getattr(self, "_may_start", True),
            "observation_space": encode_space(self.observation_space),
            "action_space": encode_space(self.action_space),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        }
        write_checkpoint(path, manifest, tensors)

    @classmethod
    def _kept_arguments(cls) -> list[str]:
        """Names of the constructor arguments that a checkpoint keeps."""
        return [name for name in inspect.signature(cls.__init__).parameters if name not in NOT_KEPT]

    def _of_this_rank(self: Any) -> dict[str, Tensor]:
        """What every rank has of its own: generators, environments, observation, reset signal and memory."""
        tensors = {f"rng/{name}": value for name, value in get_generators().items()}
        if self.env is not None:
            tensors |= {f"env/{name}": value for name, value in self.tensor_env.state_dict().items()}
        if self._last_obs is not None:
            observations = self._obs if isinstance(self._obs, dict) else {"": self._obs}
            tensors |= {f"run/obs/{key}": value for key, value in observations.items()}
            tensors |= {f"memory/{name}": value for name, value in detach(self._state).items()}
            tensors["run/starts"] = self._starts
        return tensors if distributed.size() == 1 else {name: value.cpu() for name, value in tensors.items()}

    def _episodes(self: Any) -> dict[str, Tensor]:
        """The episodes of all environments, under way and just ended."""
        recent = [[episode["r"], episode["l"], episode["t"]] for episode in self.ep_info_buffer]
        return {
            "run/episode_returns": torch.from_numpy(self.episodes.returns),
            "run/episode_lengths": torch.from_numpy(self.episodes.lengths),
            "run/recent_episodes": torch.tensor(recent, dtype=torch.float64).view(-1, 3),
        }

    @classmethod
    def load(  # type: ignore[override]
        cls: type[Self],
        path: str | os.PathLike[str],
        env: EnvLike | None = None,
        device: torch.device | str = "auto",
        **kwargs: Any,
    ) -> Self:
        """Load a checkpoint.

        With an environment of the same class and number of copies, and as many ranks, `learn(...,
        reset_num_timesteps=False)` goes on exactly where the saved run was. Else the environments start new episodes,
        and `new_episodes` says why; those on the host always do, as their state cannot be read.

        Args:
            path: of the checkpoint, or of a run's folder: its newest whole one.
            env: to go on training; None to predict only.
            device: where to; "auto": where `env` is, if it is given, else an accelerator where there is one.
            **kwargs: constructor arguments that replace the saved ones, `policy_kwargs` entry by entry. Functions and
                classes of your own must be given here: a checkpoint does not import them.

        Raises:
            CheckpointError: see there.
        """
        path = _newest(path)
        manifest = read_manifest(path)
        if manifest.get("algorithm") != cls.__name__:
            raise CheckpointError(f"{path} holds a {manifest.get('algorithm')}, expected a {cls.__name__}")
        tensors = read_tensors(path, manifest)
        try:
            observation_space = decode_space(manifest["observation_space"])
            action_space = decode_space(manifest["action_space"])
            model = cls._build(manifest, observation_space, action_space, env, device_for(device, env), kwargs)
            model._restore(manifest, tensors)
        except CheckpointError:
            raise
        except KeyError as error:
            raise CheckpointError(f"{path} is incomplete: expected an entry {error}") from error
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            IndexError,
            TypeError,
            ValueError,
            RuntimeError,
        ) as error:
            raise CheckpointError(f"{path} does not fit: {' '.join(str(error).split())}") from error
        return model

    @classmethod
    def _build(
        cls: type[Self],
        manifest: dict[str, Any],
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        env: EnvLike | None,
        device: torch.device,
        kwargs: dict[str, Any],
    ) -> Self:
        """A learner with the saved arguments, not yet with the saved tensors."""
        given = kwargs.pop("policy_kwargs", {})
        saved = manifest["config"]["policy_kwargs"] or {}
        policy_kwargs = {name: decode(value, name) for name, value in saved.items() if name not in given} | given
        missing = [name for name in cls._kept_arguments() if name not in (*kwargs, "policy_kwargs")]
        config = LATER | manifest["config"]
        arguments = {name: decode(config[name], name) for name in missing} | kwargs
        policy = arguments.pop("policy", None) or decode(manifest["policy"], "policy")
        learner: Any = cls
        model = learner(policy, env, device=device, policy_kwargs=policy_kwargs, _init_setup_model=False, **arguments)
        for name, saved_space in (("observation_space", observation_space), ("action_space", action_space)):
            if env is not None and getattr(model, name) != saved_space:
                raise ValueError(f"{name} is {getattr(model, name)}, but it was made with {saved_space}")
            setattr(model, name, saved_space)  # equal Dicts may differ in order: that of the weights counts
        if env is None:
            model.n_envs = manifest["num_envs"]
        model._setup_model()
        return model  # type: ignore[no-any-return]

    def _restore(self: Any, manifest: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

        self.policy.load_state_dict(part("policy/"))
        optimizer: dict[str, Any] = {"param_groups": manifest["param_groups"], "state": {}}
        for name, value in part("optimizer/").items():
            index, key = name.split("/", 1)
            optimizer["state"].setdefault(int(index), {})[key] = value
        self.policy.optimizer.load_state_dict(optimizer)
        for name in COUNTERS:
            setattr(self, name, manifest["counters"][name])
        self.ep_info_buffer = deque(maxlen=self._stats_window_size)
        self.ep_success_buffer = deque(maxlen=self._stats_window_size)
        own = _prefix(distributed.rank())
        then, now = (manifest.get("ranks", 1), manifest["num_envs"]), (distributed.size(), self.all_envs)
        if then[0] == now[0]:
            self._generators_to_set = part(f"{own}rng/")
        elif self.seed is not None:  # as many streams of random numbers as there are ranks now
            self.set_random_seed(distributed.own_seed(self.seed + self.num_timesteps))
        running = part("run/")
        if self.env is None or not running:
            return
        for reward, length, elapsed in running["recent_episodes"].tolist():
            self.ep_info_buffer.append({"r": reward, "l": int(length), "t": elapsed})
        env = self.tensor_env
        environment = part(f"{own}env/")
        if then != now:
            saved, found = (f"ranks={ranks} and num_envs={envs}" for ranks, envs in (then, now))
            self.new_episodes = f"the checkpoint is of {saved}, this run has {found}"
        elif type(env).__name__ != manifest["env"]:
            self.new_episodes = f"the checkpoint is of {manifest['env']}, this run of {type(env).__name__}"
        elif not environment:
            self.new_episodes = "the environments run on the host, where their state cannot be read"
        if self.new_episodes:
            if self.seed is not None:  # not once more the first ones
                self.env.seed(distributed.own_seed(self.seed + self.num_timesteps))
            return
        running |= part(f"{own}run/")
        env.load_state_dict(environment)
        names = getattr(self.observation_space, "spaces", {"": None})
        observations = {name: running[f"obs/{name}"].to(self.device) for name in names}
        self._obs = observations.get("", observations)
        self._starts = running["starts"].to(self.device)
        self._may_start = manifest["may_start"]
        self._state = {name: value.to(self.device) for name, value in part(f"{own}memory/").items()}
        expected = self.policy.initial_state(self.n_envs)
        if shapes(self._state) != shapes(expected):
            raise ValueError(f"the memory's state is {shapes(self._state)}, expected {shapes(expected)}")
        self.episodes.returns = running["episode_returns"].numpy()
        self.episodes.lengths = running["episode_lengths"].numpy()
        self._last_obs = as_numpy(self._obs)  # tells SB3 that there is no need to reset


def _prefix(rank: int) -> str:
    """Before the names of what belongs to one rank; a run of one process has none."""
    return f"rank{rank}/" if rank else ""
