"""Calls the C loops of a memory from Python."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from policies.native.compiler import disabled, library, parallel_for
from policies.native.packed import packed

MAX_LAYERS = 8
"""Maximum number of arrays in a list, one per layer."""

LANES_BYTES = 64
"""Size of the widest SIMD vector."""

Pointers = ctypes.c_void_p * MAX_LAYERS
Arrays = dict[str, Tensor | Sequence[Tensor]]


@functools.cache
def struct(source: Path) -> type[ctypes.Structure]:
    """The struct `Tape` of a C file, read from its declaration there.

    Fields are numbers (`int64_t`, `double`), pointers to arrays, and lists of these with a length of `MAX_LAYERS` or
    `MAX_LAYERS + 1`.
    """
    code = re.sub(r"/\*.*?\*/", "", source.read_text(encoding="utf-8"), flags=re.DOTALL)
    declaration = re.search(r"typedef struct \{([^}]*)\} Tape;", code)
    assert declaration is not None, source
    fields: list[tuple[str, Any]] = []
    for line in declaration[1].replace("const", "").split(";")[:-1]:
        kind, names = line.split(maxsplit=1)
        for name in names.split(","):
            ctype: Any = ctypes.c_void_p if "*" in name else ctypes.c_double if kind == "double" else ctypes.c_int64
            if "[" in name:
                ctype = ctype * (MAX_LAYERS + ("+ 1" in name))
            fields.append((re.findall(r"\w+", name)[0], ctype))
    return type("Tape", (ctypes.Structure,), {"_fields_": fields})


def functions_of(source: Path, reference: Tensor) -> ctypes.CDLL:
    """The compiled functions of a C file for the dtype of `reference`, if it is `usable`."""
    functions = library(source, reference.dtype)
    assert functions is not None
    return functions


def usable(source: Path, reference: Tensor) -> bool:
    """Whether the loops of `source` support the device and dtype of `reference`: a CPU, with a C compiler."""
    return reference.device.type == "cpu" and not disabled() and library(source, reference.dtype) is not None


def padded_size(size: int, reference: Tensor) -> int:
    """`size`, rounded up to whole SIMD vectors of the dtype of `reference`."""
    lanes = LANES_BYTES // reference.itemsize
    return -(-size // lanes) * lanes


def call(function: Callable[..., Any], arrays: Iterable[Tensor | None], sizes: Iterable[int], rows: int) -> None:
    """Calls a C function with pointers to `arrays` (None: NULL), with `sizes`, and with the range of its rows."""
    pointers = [None if array is None else ctypes.c_void_p(array.data_ptr()) for array in arrays]
    numbers = [*map(ctypes.c_int64, sizes)]
    parallel_for(lambda *part: function(*pointers, *numbers, *map(ctypes.c_int64, part)), rows)


class Loops:
    """The C functions `forward` and `backward` of one file, with the arrays of its struct by name.

    Args:
        source: the C file.
        reference: a tensor with the dtype of all arrays.
        numbers: the first fields of the struct, its sizes and options; `batch` is the number of environments.
        block: number of environments that one call processes together.
    """

    def __init__(self, source: Path, reference: Tensor, numbers: Iterable[Any], block: int) -> None:
        self.functions, self.tape = functions_of(source, reference), struct(source)(*numbers)
        self.block, self._keep_alive = block, list[Tensor]()

    def set(self, arrays: Mapping[str, Tensor | Sequence[Tensor] | None]) -> Loops:
        """Sets pointers to arrays in the struct and keeps the arrays alive; a list has one array per layer; None stays
        NULL."""
        for name, value in arrays.items():
            if value is None:
                continue
            tensors = (value,) if isinstance(value, Tensor) else tuple(value)
            assert hasattr(self.tape, name), name
            assert all(array.is_contiguous() for array in tensors), name
            self._keep_alive += tensors
            pointers = [array.data_ptr() for array in tensors]
            setattr(self.tape, name, pointers[0] if isinstance(value, Tensor) else Pointers(*pointers))
        return self

    def pack(self, weights: Mapping[str, Tensor | Sequence[Tensor]], forward: bool) -> Loops:
        """Packs weights for the forward or the backward pass, and sets them as `set` does."""
        for name, value in weights.items():
            packs = [packed(self.functions, w, forward) for w in ([value] if isinstance(value, Tensor) else value)]
            self.set({name: packs[0] if isinstance(value, Tensor) else packs})
        return self

    def forward(self, begin: int, end: int) -> None:
        """Runs the steps `begin` ... `end` - 1."""
        self._all(self.functions.forward, begin, end)

    def backward(self, begin: int, end: int) -> None:
        """Runs the backward pass over the steps `end` - 1 ... `begin`."""
        self._all(self.functions.backward, begin, end)

    def _all(self, function: Callable[..., None], first: int, last: int) -> None:
        tape, times = ctypes.byref(self.tape), (ctypes.c_int64(first), ctypes.c_int64(last))

        def run_blocks(begin: int, end: int) -> None:
            for at in range(begin, end, self.block):
                function(tape, *times, ctypes.c_int64(at), ctypes.c_int64(min(at + self.block, end)))

        parallel_for(run_blocks, self.tape.batch)
