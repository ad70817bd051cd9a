"""Measures the memory that a computation keeps allocated: the storages it created that are alive afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CreatedStorages(TorchDispatchMode):
    """Registers every storage that is created while it is active."""

    allows_native = True  # C loops write into storages that torch has allocated

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                ref = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self.storages[ref.cdata] = (ref, storage.nbytes())
        return result


def stored_bytes(run: Callable[[], Any], before: Sequence[Tensor] = ()) -> int:
    """Bytes of the storages that the result of `run` keeps alive, each counted once, without those of `before`.

    With gradients enabled these are the results and everything stored for the backward pass.
    """
    excluded = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in before}  # type: ignore[no-untyped-call]
    with CreatedStorages() as created:
        result = run()
    alive = (size for at, (ref, size) in created.storages.items() if at not in excluded and not ref.expired())
    total: int = sum(alive)
    del result  # not earlier: it keeps its storages alive
    return total
