"""Ranks: processes that train one agent together, each with its share of the environments.

`torchrun` starts them; `session` joins them. Every rank holds the whole agent and collects its own rollout. Gradients
are averaged over ranks, so all make the same update. A single process is rank 0 of 1; every function here is then the
identity, so that one implementation of a learner works for any number of ranks.

Tensors use the default group (NCCL between accelerators, gloo between CPUs). Flags and objects use a CPU group whose
timeout lets rank 0 evaluate alone.
"""

from __future__ import annotations

import math
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
"""Timeout of the CPU group: longer than rank 0 can take to evaluate or to write."""


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
    """Context manager that joins the process group that `torchrun` started. In a single process, or inside another
    session, it does nothing.

    Raises:
        ValueError: the variables that `torchrun` sets are incomplete.
    """
    global _world
    if _world.size > 1 or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    accelerated = torch.cuda.is_available() and dist.is_nccl_available()
    store, number, count = next(rendezvous("env://"))
    # torchrun's store survives a restart and keeps the addresses of dead processes (pytorch/pytorch#135712). The number
    # of restarts is the same for all ranks only on one machine.
    attempt = _restarts_here() if os.environ.get("GROUP_WORLD_SIZE", "1") == "1" else 0
    store = dist.PrefixStore(f"attempt{attempt}", store)  # type: ignore[attr-defined]
    backend = "cpu:gloo,cuda:nccl" if accelerated else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=count)
    hosts = dist.new_group(backend="gloo", timeout=PATIENCE)
    restarted = torch.tensor([_restarts_here()])
    dist.all_reduce(restarted, dist.ReduceOp.MAX, group=hosts)
    _world = _World(number, count, hosts, int(restarted))
    yield
    dist.destroy_process_group()  # not after an error, because it would wait for ranks that have ended
    _world = _World()


def rank() -> int:
    """This process's rank; rank 0 writes and prints."""
    return _world.rank


def size() -> int:
    """Number of ranks."""
    return _world.size


def restarts() -> int:
    """How often `torchrun` has restarted this run after a failure."""
    return _restarts_here() if _world.size == 1 else _world.restarts


def _restarts_here() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))  # each machine counts the failures of its own ranks


def take_device(device: torch.device) -> None:
    """Makes `cuda` mean a separate accelerator on each rank.

    Raises:
        ValueError: a single accelerator was named, or there are fewer accelerators than ranks on this machine.
    """
    if _world.size == 1 or device.type != "cuda":
        return
    if str(device) != "cuda":
        raise ValueError(f"device is {device}, expected cuda: each of the {_world.size} ranks uses its own device")
    here, found = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if here > found:
        raise ValueError(f"{here} ranks on this machine share {found} accelerators, expected one for each rank")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def share(num_envs: int) -> int:
    """This rank's share of all `num_envs` environments.

    Raises:
        ValueError: `num_envs` is not divisible by the number of ranks.
    """
    if num_envs % _world.size:
        raise ValueError(f"num_envs is {num_envs}, expected a multiple of the {_world.size} ranks that share them")
    return num_envs // _world.size


def own_seed(seed: int) -> int:
    """A seed for this rank; rank 0 keeps the given one.

    It is hashed: `seed + rank` would give one rank the random numbers of another's second environment.
    """
    return seed if _world.rank == 0 else int(np.random.SeedSequence([seed, _world.rank]).generate_state(1)[0])


# -- numbers: every rank calls, every rank gets the result -------------------------------------------------------------


def mean(value: Tensor) -> Tensor:
    """The mean over ranks, elementwise; nothing is differentiated through it.

    Raises:
        RankLostError: another rank has ended.
    """
    if _world.size == 1:
        return value
    total = value.detach().clone()
    with _in_touch():
        dist.all_reduce(total)
    return total / _world.size


def gather(value: Tensor) -> Tensor:
    """The tensors of all ranks, `[ranks, ...]`; their shapes must be equal.

    Raises:
        RankLostError: another rank has ended.
    """
    if _world.size == 1:
        return value[None]
    parts = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(_world.size)]
    with _in_touch():
        dist.all_gather(parts, value.contiguous())
    return torch.stack(parts)


def mean_and_std(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample standard deviation over the values of all ranks, which have equal numbers of values."""
    if _world.size == 1:
        return values.mean(), values.std()
    average, population, count = moments(values)
    return average, (population * (count / (count - 1))).sqrt()


def variance(values: Tensor) -> Tensor:
    """Population variance over the values of all ranks, which have equal numbers of values."""
    return values.var(correction=0) if _world.size == 1 else moments(values)[1]


def moments(values: Tensor, dim: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor, int]:
    """Mean, population variance and number of values over `dim` (None: all) and all ranks, which have equally many."""
    average, population = values.mean(dim), values.var(dim, correction=0)
    over = values.shape if dim is None else [values.shape[each] for each in dim]
    count = math.prod(over) * _world.size
    if _world.size == 1:
        return average, population, count
    # The law of total variance: the mean of the variances and the variance of the means.
    means, variances = gather(torch.stack([average, population])).unbind(1)
    return means.mean(0), variances.mean(0) + means.var(0, correction=0), count


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Averages gradients over ranks.

    A missing gradient counts as zero. Ranks may differ in which gradients are missing (that of a learned initial state,
    if no episode began), and exchanging this would cost a synchronisation.
    """
    if _world.size == 1:
        return
    gradients = []
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    together = mean(torch.cat([gradient.flatten() for gradient in gradients]))  # one message for all parameters
    parts = torch.split(together, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


# -- flags and objects, between hosts ----------------------------------------------------------------------------------


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true on any rank.

    Raises:
        RankLostError: another rank has ended.
    """
    if _world.size == 1:
        return flag
    flags = torch.tensor([int(flag)])
    with _in_touch():
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=_world.hosts)
    return bool(flags)


def from_first(make: Callable[[], T]) -> T:
    """Calls `make` on rank 0 and returns its result on every rank; the others wait.

    If it raises on rank 0, the others raise SystemExit; rank 0 reports the error.

    Raises:
        RankLostError: another rank has ended.
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
    """The objects of all ranks, on rank 0; an empty list on the others.

    Raises:
        RankLostError: another rank has ended.
    """
    if _world.size == 1:
        return [value]
    received: list[Any] | None = [None] * _world.size if _world.rank == 0 else None
    with _in_touch():
        dist.gather_object(value, received, 0, _world.hosts)
    return received or []


def equalise(module: nn.Module) -> None:
    """Copies the parameters and buffers of rank 0 to every rank."""
    if _world.size > 1:
        state = {name: value.cpu() for name, value in module.state_dict().items()}
        module.load_state_dict(from_first(lambda: state))


@contextmanager
def _in_touch() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        cause = re.sub(r"^\[\S+\] ", "", str(error).strip().splitlines()[-1])  # without gloo's source line
        raise RankLostError(f"rank {_world.rank} of {_world.size} lost contact with another rank ({cause})") from error
