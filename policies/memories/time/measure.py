"""Measures the memory that a computation keeps allocated: the storages it created that are alive afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Made(TorchDispatchMode):
    """Registers every storage that is created while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                seen = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self.storages[seen.cdata] = (seen, storage.nbytes())
        return result


def kept(run: Callable[[], Any], before: Sequence[Tensor] = ()) -> int:
    """Bytes of the storages that the result of `run` keeps alive, each counted once, without those of `before`.

    With gradients enabled these are the results and everything stored for the backward pass.
    """
    own = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in before}  # type: ignore[no-untyped-call]
    with Made() as made:
        result = run()
    total = 0
    for at, (seen, size) in made.storages.items():
        if at not in own and not seen.expired():
            total += size
    del result  # the graph held its storages until now
    return total
