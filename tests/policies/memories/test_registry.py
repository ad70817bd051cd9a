"""Memories by name, built in and from other packages."""

from __future__ import annotations

import doctest
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from policies.memories import make_memory, memory_class, register_memory, registered, registry
from policies.memories.identity import Identity
from policies.memories.lstm import LSTM


def test_docstring_examples_run() -> None:
    results = doctest.testmod(registry)
    assert results.attempted > 0
    assert results.failed == 0


def test_names_are_sorted_and_hold_the_built_in_memories() -> None:
    assert list(registered()) == sorted(registered())
    assert {"identity", "gru", "lstm", "mnm-p", "mnm-g"} <= set(registered())


def test_a_name_taken_is_refused_and_stays_with_its_owner() -> None:
    with pytest.raises(ValueError, match=r"'lstm' is taken by policies\.memories\.lstm:LSTM"):
        register_memory("lstm")(Identity)
    assert memory_class("lstm") is LSTM


def test_an_unknown_name_is_answered_with_the_known_ones_in_one_line() -> None:
    with pytest.raises(ValueError, match="'mnm_p'") as caught:
        make_memory("mnm_p", input_size=3)
    message = str(caught.value)
    assert "did you mean 'mnm-p'?" in message
    assert all(name in message for name in registered())
    assert "\n" not in message
    with pytest.raises(ValueError, match="known: ") as caught:
        make_memory("qqqq", input_size=3)
    assert "did you mean" not in str(caught.value)


def test_wrong_arguments_are_answered_with_the_memory_and_what_it_takes() -> None:
    with pytest.raises(TypeError, match=r"memory 'lstm'.*'hidden'.*hidden_size=200, num_layers=1") as caught:
        make_memory("lstm", input_size=3, hidden=5)
    assert "\n" not in str(caught.value)


def test_a_memory_raises_its_own_type_errors() -> None:
    with pytest.raises(TypeError) as caught:
        make_memory("lstm", input_size=3, hidden_size="many")
    assert "it takes" not in str(caught.value)


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package, as importlib sees it, whose entry points a test writes."""
    (tmp_path / "other_memories.py").write_text(
        "from policies.memories.identity import Identity\nclass Echo(Identity):\n    pass\nnot_a_memory = len\n"
    )
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry._entry_points.cache_clear()
    yield info / "entry_points.txt"
    registry._entry_points.cache_clear()
    sys.modules.pop("other_memories", None)


def test_other_packages_offer_memories_imported_on_first_use(other_package: Path) -> None:
    other_package.write_text("[engram.memories]\necho = other_memories:Echo\n")
    assert "echo" in registered()
    assert "other_memories" not in sys.modules
    memory = make_memory("echo", input_size=3)
    assert type(memory).__name__ == "Echo"
    x = torch.randn(2, 3)
    assert torch.equal(memory(x, {}).output, x)


def test_another_package_cannot_take_a_name(other_package: Path) -> None:
    other_package.write_text("[engram.memories]\nlstm = other_memories:Echo\n")
    with pytest.raises(ValueError, match=r"'lstm' of entry point other_memories:Echo is taken by .*LSTM"):
        make_memory("gru", input_size=3)


def test_what_another_package_offers_must_be_a_memory(other_package: Path) -> None:
    other_package.write_text("[engram.memories]\nodd = other_memories:not_a_memory\n")
    with pytest.raises(TypeError, match="offers 'odd', which is not a Memory class"):
        make_memory("odd", input_size=3)
