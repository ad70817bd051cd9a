"""What a computation keeps: the storages it made that are still alive after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Made(TorchDispatchMode):
    """Sees every storage that comes to be while it is on."""

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
    """Bytes of the storages that are alive after `run` by what it gives, each once, without those of `before`.

    With gradients on, that is what waits for the backward pass, wherever it is held, and the results themselves.
    """
    own = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in before}  # type: ignore[no-untyped-call]
    with Made() as made:
        result = run()
    total = 0
    for at, (seen, size) in made.storages.items():
        if at not in own and not seen.expired():
            total += size
    del result  # the graph held its storages until here
    return total
