"""Ranks: processes that train one agent together, each with its share of the environments.

`torchrun` starts them; `session` joins them. Every rank holds the whole agent, collects its own rollout and sees the
same sums, so that all make the same update. A process on its own is rank 0 of 1: every function here is then the
identity and touches nothing, so that learners are written once, for any number of ranks.

Numbers go over the default group (NCCL between accelerators, gloo between CPUs). Flags and objects go over a group of
the hosts, which waits for as long as rank 0 may be busy alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")

PATIENCE = timedelta(days=30)
"""How long the ranks wait for one of them to evaluate or to write: longer than either can take."""


class RankLostError(RuntimeError):
    """Another rank has ended, or cannot be reached."""


@dataclass(frozen=True)
class _World:
    rank: int = 0
    size: int = 1
    hosts: Any = None
    restarts: int = 0


_world = _World()


@contextmanager
def session() -> Iterator[None]:
    """Join the ranks that `torchrun` started, and leave them at the end; on one's own, or inside a session, nothing.

    Raises:
        ValueError: the variables that `torchrun` sets are incomplete.
    """
    global _world
    if _world.size > 1 or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    accelerated = torch.cuda.is_available() and dist.is_nccl_available()
    store, number, count = next(rendezvous("env://"))
    # torchrun's store outlives a restart, and with it the addresses of the dead (pytorch/pytorch#135712). Only on one
    # machine is the number of restarts the same for all ranks.
    attempt = _restarts_here() if os.environ.get("GROUP_WORLD_SIZE", "1") == "1" else 0
    store = dist.PrefixStore(f"attempt{attempt}", store)  # type: ignore[attr-defined]
    backend = "cpu:gloo,cuda:nccl" if accelerated else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=count)
    hosts = dist.new_group(backend="gloo", timeout=PATIENCE)
    restarted = torch.tensor([_restarts_here()])
    dist.all_reduce(restarted, dist.ReduceOp.MAX, group=hosts)
    _world = _World(number, count, hosts, int(restarted))
    yield
    dist.destroy_process_group()  # not after an error: whoever is gone would be waited for
    _world = _World()


def rank() -> int:
    """Which of the ranks this is; rank 0 writes and prints."""
    return _world.rank


def size() -> int:
    """How many ranks there are."""
    return _world.size


def restarts() -> int:
    """How often `torchrun` has started this run anew after a failure."""
    return _restarts_here() if _world.size == 1 else _world.restarts


def _restarts_here() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))  # each machine counts the failures of its own ranks


def take_device(device: torch.device) -> None:
    """Make `cuda` mean an accelerator of this rank's own.

    Raises:
        ValueError: one accelerator is named, or there are fewer than ranks on this machine.
    """
    if _world.size == 1 or device.type != "cuda":
        return
    if str(device) != "cuda":
        raise ValueError(f"device is {device}, expected cuda: each of the {_world.size} ranks takes one of its own")
    here, found = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if here > found:
        raise ValueError(f"{here} ranks on this machine share {found} accelerators, expected one for each rank")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def share(num_envs: int) -> int:
    """How many of all `num_envs` environments are this rank's.

    Raises:
        ValueError: they cannot be shared out equally.
    """
    if num_envs % _world.size:
        raise ValueError(f"num_envs is {num_envs}, expected a multiple of the {_world.size} ranks that share them")
    return num_envs // _world.size


def own_seed(seed: int) -> int:
    """A seed of this rank's own; rank 0 keeps the one given.

    Hashed, since `seed + rank` would hand one rank the numbers of another's second environment.
    """
    return seed if _world.rank == 0 else int(np.random.SeedSequence([seed, _world.rank]).generate_state(1)[0])


# -- numbers: every rank calls, every rank gets the result -------------------------------------------------------------


def mean(value: Tensor) -> Tensor:
    """The mean over ranks, elementwise; nothing is differentiated through it."""
    if _world.size == 1:
        return value
    total = value.detach().clone()
    with _in_touch():
        dist.all_reduce(total)
    return total / _world.size


def gather(value: Tensor) -> Tensor:
    """What every rank has, `[ranks, ...]`; of the same shape on each."""
    if _world.size == 1:
        return value[None]
    parts = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(_world.size)]
    with _in_touch():
        dist.all_gather(parts, value.contiguous())
    return torch.stack(parts)


def mean_and_std(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample standard deviation over the values of all ranks, equally many on each."""
    if _world.size == 1:
        return values.mean(), values.std()
    average, population = moments(values)
    count = values.numel() * _world.size
    return average, (population * (count / (count - 1))).sqrt()


def variance(values: Tensor) -> Tensor:
    """Variance (of the population) over the values of all ranks, equally many on each."""
    return values.var(correction=0) if _world.size == 1 else moments(values)[1]


def moments(values: Tensor, dim: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor]:
    """Mean and variance (of the population) over `dim` (None: all) and over all ranks, equally many on each."""
    average, population = values.mean(dim), values.var(dim, correction=0)
    if _world.size == 1:
        return average, population
    # The law of total variance: the mean of the variances and the variance of the means.
    means, variances = gather(torch.stack([average, population])).unbind(1)
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Put the mean over ranks into the gradients.

    A parameter that no loss reached counts as zero here: whether one was reached may differ from rank to rank (a
    learned initial state, where no episode began), and to agree on that would cost a read from the device.
    """
    if _world.size == 1:
        return
    gradients = []
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    together = mean(torch.cat([gradient.flatten() for gradient in gradients]))  # one message, not one a parameter
    parts = torch.split(together, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


# -- flags and objects, between hosts ----------------------------------------------------------------------------------


def any_rank(flag: bool) -> bool:
    """Whether it is true on any rank."""
    if _world.size == 1:
        return flag
    flags = torch.tensor([int(flag)])
    with _in_touch():
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=_world.hosts)
    return bool(flags)


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives on rank 0, on every rank; the others do not call it and wait.

    Where it raises on rank 0, the others raise SystemExit: rank 0 tells the story.
    """
    if _world.size == 1:
        return make()
    sent: list[Any] = [None, None]  # result, exit status
    if _world.rank == 0:
        try:
            sent = [make(), None]
        except BaseException as error:
            status = error.code if isinstance(error, SystemExit) else 2
            with _in_touch():
                dist.broadcast_object_list([None, status or 0], 0, _world.hosts)
            raise
    with _in_touch():
        dist.broadcast_object_list(sent, 0, _world.hosts)
    result, status = sent
    if status is not None:
        raise SystemExit(status)
    return result  # type: ignore[no-any-return]


def to_first(value: T) -> list[T]:
    """What every rank has, on rank 0; nothing on the others."""
    if _world.size == 1:
        return [value]
    received: list[Any] | None = [None] * _world.size if _world.rank == 0 else None
    with _in_touch():
        dist.gather_object(value, received, 0, _world.hosts)
    return received or []


def equalise(module: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if _world.size > 1:
        state = {name: value.cpu() for name, value in module.state_dict().items()}
        module.load_state_dict(from_first(lambda: state))


@contextmanager
def _in_touch() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        cause = re.sub(r"^\[\S+\] ", "", str(error).strip().splitlines()[-1])  # without the line of gloo's source
        raise RankLostError(f"rank {_world.rank} of {_world.size} lost touch with another one ({cause})") from error
