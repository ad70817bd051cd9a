"""Memories by name, built in and from other packages."""

from __future__ import annotations

import doctest
import inspect
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import torch

from policies import plugins
from policies.memories import built_in, make_memory, memory_class, register_memory, registered, registry
from policies.memories.contract import Memory, MemoryStep, Panel
from policies.memories.identity import Identity
from policies.memories.recurrent.lstm import LSTM


def test_docstring_examples_run() -> None:
    results = doctest.testmod(registry)
    assert results.attempted > 0
    assert results.failed == 0


def test_names_are_sorted_and_hold_the_built_in_memories() -> None:
    assert list(registered()) == sorted(registered())
    assert {"identity", "gru", "lstm", "mnm-p", "mnm-g"} <= set(registered())


def test_a_name_taken_is_refused_and_stays_with_its_owner() -> None:
    with pytest.raises(ValueError, match=r"'lstm' is taken by policies\.memories\.recurrent\.lstm:LSTM"):
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


@pytest.mark.parametrize("name", built_in())
def test_sizes_below_one_are_refused(name: str) -> None:
    for argument, parameter in inspect.signature(memory_class(name)).parameters.items():
        if not argument.endswith("seed") and (type(parameter.default) is int or argument == "output_size"):
            with pytest.raises(ValueError, match=argument):
                make_memory(name, input_size=(1, 3, 3) if name == "multigrid" else 3, **{argument: -1})


@pytest.mark.parametrize("name", ["dnc", "mnm-p", "ntm", "salu"])
def test_an_output_size_of_zero_is_not_the_default(name: str) -> None:
    with pytest.raises(ValueError, match="output_size is 0; it must be at least 1"):
        make_memory(name, input_size=3, output_size=0)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("gtrxl", {"gate_bias": 2}),
        ("homo-plastic", {"init_strength": 1}),
        ("plastic", {"init_eta": 0}),
        ("homo-plastic", {"parametrization": "paper", "init_scale": 1}),
    ],
)
def test_whole_numbers_are_accepted_where_real_ones_are_expected(name: str, arguments: dict[str, Any]) -> None:
    memory = make_memory(name, input_size=3, hidden_size=8, **arguments)
    assert all(parameter.is_floating_point() for parameter in memory.parameters())


class Own(Memory):
    """A memory of another package."""

    def __init__(self, input_size: int, wrong: str = "") -> None:
        super().__init__()
        if wrong != "size":
            self.output_size = 4
        self.wrong, self.cell, self.last = wrong, torch.nn.GRUCell(input_size, 4), 0
        self.layer = torch.nn.LazyLinear(4) if wrong == "lazy" else torch.nn.Identity()

    def initial_state(self, batch_size: int) -> Any:
        if self.wrong == "missing":
            return super().initial_state(batch_size)
        hidden = torch.zeros(batch_size, 4, dtype=torch.float64 if self.wrong == "type" else None)
        wrong = {"tuple": (hidden,), "batch": {"h": hidden[None]}, "number": {"h": hidden, "n": 0}}
        return wrong.get(self.wrong, {"h": hidden})

    def forward(self, x: torch.Tensor, state: Any) -> Any:
        hidden = self.layer(self.cell(x, state["h"]) + torch.rand(()))
        if self.wrong == "attribute":
            self.last = hidden = hidden + self.last
        if self.wrong == "grows":
            self.register_buffer("seen", x)
        if self.wrong == "in place":
            hidden = state["h"].add_(1)
        if self.wrong == "pair":
            return hidden, {"h": hidden}
        if self.wrong == "changing type":
            return MemoryStep(hidden, {"h": hidden.double()}, {})
        output = hidden[:, :3] if self.wrong == "width" else hidden / 0 if self.wrong == "infinite" else hidden
        if self.wrong == "double":
            output = output.double()
        if self.wrong == "detached":
            return MemoryStep(output.detach(), {"h": hidden.detach()}, {})
        losses: Any = {"loss": {"own": 0.5}, "mean loss": {"own": output.mean()}}.get(self.wrong, {})
        return MemoryStep(output, {"g" if self.wrong == "name" else "h": hidden}, losses)

    def metrics(self, state: Any) -> Any:
        wrong = {"metric": {"norm": 0.5}, "no metrics": None, "mean metric": {"norm": state["h"].norm()}}
        return wrong.get(self.wrong, {})

    def panels(self, state: Any) -> Any:
        wrong = {"no panel": {"h": state["h"]}, "panel of all": {"h": Panel(state["h"][None])}, "no panels": None}
        return wrong.get(self.wrong, {"h": Panel(state["h"][:1])})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("size", "Own has no output_size, expected __init__ to set it to the width of the output"),
        ("missing", r"Own has no initial_state\(batch_size\)"),
        ("tuple", "Own.initial_state returned a state of tuple, expected a dictionary of tensors"),
        ("batch", r"returned 'h' of shape \(1, 2, 4\) for 2 environments, expected the batch first: \(2, \.\.\.\)"),
        ("type", "returned 'h' of torch.float64 for a memory of torch.float32, expected .* dtype=self.dtype, device="),
        ("pair", r"Own.forward returned a tuple, expected MemoryStep\(output=\.\.\., state=\.\.\., losses={}\)"),
        ("width", r"an output of shape \(2, 3\) for 2 environments, expected \(2, 4\), as output_size says"),
        (
            "name",
            r"Own.forward returned the state {'g': \(2, 4\)}, expected {'h': \(2, 4\)}, as initial_state",
        ),
        ("in place", "Own.forward writes to the state it is given, expected new tensors"),
        ("number", "Own.initial_state returned 'n' of int, expected a tensor, batch first"),
        ("loss", r"Own.forward returned 'own' of float, expected a tensor \[B\]"),
        ("metric", r"Own.metrics returned 'norm' of float, expected a tensor \[B\]"),
        ("mean loss", r"Own.forward returned 'own' of shape \(\) for 2 environments, expected one number each: \(2,\)"),
        ("mean metric", r"Own.metrics returned 'norm' of shape \(\) for 2 environments, expected one number each"),
        ("no panel", "Own.panels returned 'h' of Tensor, expected a Panel"),
        ("no panels", "Own.panels returned a NoneType, expected a dictionary of Panel"),
        (
            "panel of all",
            r"Own.panels returned 'h' with an image of shape \(1, 2, 4\), expected \[H, W\] or \[H, W, 3\]",
        ),
        ("no metrics", "Own.metrics returned metrics of NoneType, expected a dictionary of tensors"),
        (
            "lazy",
            "creates or resizes parameters or buffers: layer.bias, layer.weight; expected all of them from __init_",
        ),
        ("grows", "creates or resizes parameters or buffers: seen; expected all of them from __init__"),
        ("infinite", "Own.forward returned infinite or NaN numbers for zeros at the initial state"),
        (
            "changing type",
            "Own.forward returned 'h' of torch.float64, and initial_state gives it as torch.float32",
        ),
        (
            "double",
            "Own.forward returned an output of torch.float64 for a memory of torch.float32, expected equal types",
        ),
        ("detached", r"results without gradients, so its parameters would not learn: .* torch.no_grad\(\) and detach"),
        ("attribute", "another output when a step is repeated from the same state: expected .* in the state, not in"),
    ],
)
def test_a_memory_of_another_package_that_breaks_the_contract_is_named_when_it_is_built(
    monkeypatch: pytest.MonkeyPatch, wrong: str, message: str
) -> None:
    monkeypatch.setattr(registry, "memory_class", lambda name: Own)
    with pytest.raises((TypeError, NotImplementedError), match=message) as caught:
        make_memory("own", input_size=3, wrong=wrong)
    assert "\n" not in str(caught.value)
    torch.manual_seed(0)
    sound = make_memory("own", input_size=3)
    after = torch.rand(2)
    torch.manual_seed(0)
    Own(3)
    assert torch.equal(torch.rand(2), after)  # the try drew nothing
    assert sound.training


def test_a_memory_of_another_package_does_not_override_what_policies_call(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithStep(Own):
        def step(self, x: Any, state: Any) -> Any:  # type: ignore[override]
            return self.cell(x, state["h"])

    monkeypatch.setattr(registry, "memory_class", lambda name: WithStep)
    with pytest.raises(TypeError, match=r"WithStep overrides Memory\.step, expected another name"):
        make_memory("own", input_size=3)


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
    found = [str(tmp_path)]  # whatever else is installed on this machine
    monkeypatch.setattr(
        plugins,
        "entry_points",
        lambda group: [e for d in distributions(path=found) for e in d.entry_points if e.group == group],
    )
    plugins._entry_points.cache_clear()
    yield info / "entry_points.txt"
    plugins._entry_points.cache_clear()
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
    """It loses that name only, and only who asks for it hears of it."""
    other_package.write_text("[engram.memories]\nlstm = other_memories:Echo\necho = other_memories:Echo\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_memory("gru", input_size=3)
        assert type(make_memory("echo", input_size=3)).__name__ == "Echo"
        assert "lstm" in registered()
    with pytest.warns(
        UserWarning, match=r"'lstm' is policies.memories.*LSTM; other_memories:Echo offers the same"
    ) as said:
        assert type(make_memory("lstm", input_size=3)).__module__.startswith("policies.")
    assert len(said) == 1


def test_two_packages_that_offer_one_name_leave_the_others_alone(other_package: Path) -> None:
    """The same one wins, whatever order they are installed in."""
    entries = ["ffm = other_memories:Echo", "ffm = another:Clash"]
    for order in (entries, entries[::-1]):
        plugins._entry_points.cache_clear()
        other_package.write_text(f"[engram.memories]\n{order[0]}\n")
        second = other_package.parent.parent / "second-1.0.dist-info"
        second.mkdir(exist_ok=True)
        (second / "METADATA").write_text("Metadata-Version: 2.1\nName: second\nVersion: 1.0\n")
        (second / "entry_points.txt").write_text(f"[engram.memories]\n{order[1]}\n")
        assert registered().count("ffm") == 1
        make_memory("gru", input_size=3)
        with (
            pytest.warns(UserWarning, match="'ffm' is another:Clash; other_memories:Echo offers the same name"),
            pytest.raises(ValueError, match=r"'ffm' cannot be used: .* another:Clash fails with ModuleNotFoundError"),
        ):
            make_memory("ffm", input_size=3)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("not_there:Echo", "ModuleNotFoundError: No module named 'not_there'"),
        ("other_memories:Ecko", "AttributeError: .*Ecko"),
    ],
)
def test_a_package_that_cannot_be_imported_costs_its_own_memory_alone(
    other_package: Path, target: str, why: str
) -> None:
    other_package.write_text(f"[engram.memories]\nbroken = {target}\n")
    assert "broken" in registered()
    make_memory("gru", input_size=3)
    with pytest.raises(ValueError, match=f"'broken' cannot be used: its entry point {target} fails with {why}") as said:
        make_memory("broken", input_size=3)
    assert "\n" not in str(said.value)


def test_what_another_package_offers_must_be_a_memory(other_package: Path) -> None:
    other_package.write_text("[engram.memories]\nodd = other_memories:not_a_memory\n")
    with pytest.raises(TypeError, match="offers 'odd', which is not a Memory class"):
        make_memory("odd", input_size=3)


FORMER = {
    "d-ntm": ({"memory_size": 5, "content_size": 3, "hidden_size": 6}, {"slots": 5, "word_size": 3}),
    "dkm": ({"memory_size": 4, "code_size": 3, "solve": "ridge"}, {"slots": 4, "word_size": 3, "variant": "paper"}),
    "dnc": ({"controller_layers": 2, "read_mode_order": "code"}, {"num_layers": 2, "variant": "code"}),
    "kanerva++": ({"reads": 3}, {"read_heads": 3}),
    "memn2n": ({"embedding_size": 6}, {"hidden_size": 6}),
    "ntm": ({"memory_size": 9, "read_first": True}, {"slots": 9, "variant": "code"}),
}


@pytest.mark.parametrize("name", FORMER)
def test_arguments_by_their_former_names_build_the_same_with_one_warning(name: str) -> None:
    former, current = FORMER[name]
    torch.manual_seed(0)
    with pytest.warns(FutureWarning, match=next(iter(current))) as warned:
        old = make_memory(name, input_size=5, **former)
    assert len(warned) == 1
    assert "\n" not in str(warned[0].message)
    torch.manual_seed(0)
    new = make_memory(name, input_size=5, **{**current, **{k: v for k, v in former.items() if k == "hidden_size"}})
    for key, value in old.state_dict().items():
        assert torch.equal(value, new.state_dict()[key])
    assert str(old) == str(new)
