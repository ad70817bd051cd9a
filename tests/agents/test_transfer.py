"""One copy a step: packed or not, arrays of any type arrive as they were, in memory of their own."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from agents.environments.transfer import Transfer

PARTS: dict[str, tuple[tuple[int, ...], Any]] = {
    "flag": ((3,), np.bool_),
    "picture": ((2, 3, 5, 7), np.uint8),
    "half": ((5,), np.float16),
    "double": ((2, 2), np.float64),
    "none": ((2, 0), np.float32),
    "choice": ((), np.int64),
    "last": ((3,), np.float32),
}


def arrays(seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {name: (generator.random(shape) * 200).astype(dtype) for name, (shape, dtype) in PARTS.items()}


@pytest.mark.parametrize("packed", [False, True])
def test_arrays_arrive_as_they_were(packed: bool) -> None:
    transfer = Transfer(PARTS, torch.device("cpu"), packed)
    first, second = arrays(0), arrays(1)
    taken = transfer(first)
    again = transfer({name: second[name] for name in ("picture", "flag")})
    for name, array in arrays(0).items():  # the second call wrote over none of the first's
        assert np.array_equal(taken[name].numpy(), array), name
        assert taken[name].numpy().dtype == array.dtype
    assert set(again) == {"picture", "flag"}
    first["last"][:] = 0
    assert taken["last"].any()
    assert np.array_equal(copy.deepcopy(transfer)(second)["half"].numpy(), second["half"])


@pytest.mark.parametrize("packed", [False, True])
def test_any_layout_in_memory_and_any_type_of_number(packed: bool) -> None:
    transfer = Transfer({"x": ((2, 3), np.float32)}, torch.device("cpu"), packed)
    array = np.arange(6.0).reshape(3, 2).T[::-1]  # float64, transposed, backwards
    assert transfer({"x": array})["x"].tolist() == array.tolist()
    assert transfer({"x": [[1, 2, 3], [4, 5, 6]]})["x"].tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_one_copy_to_the_device() -> None:
    transfer = Transfer(PARTS, torch.device("cuda"))
    taken = [transfer(arrays(seed)) for seed in range(20)]  # none may be written over by the next
    for seed, tensors in enumerate(taken):
        for name, array in arrays(seed).items():
            assert np.array_equal(tensors[name].cpu().numpy(), array)
