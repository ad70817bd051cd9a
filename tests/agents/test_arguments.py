"""One reader for numbers and types: what fits, what does not, and what is said then."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

import agents
from agents.common.arguments import Count, Fraction, Positive, Range, Seed, Whole, format_setting, read, read_arguments
from agents.common.plain_yaml import read_yaml, read_yaml_file
from agents.hyperparameters import checked_values as fitted_to
from policies.memories import memory_class

Fast = Literal["auto", "off"]


@pytest.mark.parametrize(
    ("value", "hint", "fitted"),
    [
        ("1e-3", Positive, 1e-3),
        (1, Fraction, 1.0),
        (1e6, Count, 1_000_000),
        ("1e6", Count, 1_000_000),
        ("1_000", Count, 1000),
        ("017", Count, 17),
        (None, Positive | None, None),
        ("off", bool, False),
        ("yes", bool, True),
        ("off", Fast, "off"),
        (None, dict[str, Any], {}),
        ("a/b", Path | None, Path("a/b")),
        ([1, 2.0], Sequence[int], [1, 2]),
        (3, int | str | Sequence[int], 3),
        ("3", int | str | Sequence[int], "3"),
        ((1, 10), tuple[int, int], (1, 10)),
        (object, type, object),  # an annotation it does not know
    ],
)
def test_what_fits(value: Any, hint: Any, fitted: Any) -> None:
    found = read("x", value, hint)
    assert found == fitted
    assert type(found) is type(fitted)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (2, Fraction, "x is 2, expected a number from 0 to 1"),
        (-0.0001, Fraction, "expected a number from 0 to 1"),
        (float("nan"), Fraction, "x is nan, expected"),
        (float("inf"), Positive, "x is inf, expected a number above 0"),
        (0, Positive, "expected a number above 0"),
        ("1e-3x", Positive, "x is '1e-3x', expected"),
        (True, Count, "x is true, expected a whole number of at least 1"),
        (True, Positive, "x is true"),
        (1.5, Count, "expected a whole number of at least 1"),
        (0, Count, "expected a whole number of at least 1"),
        (10**30, Count, "expected a whole number"),
        ("9" * 5000, Count, "expected a whole number"),
        (None, Seed, "x is null, expected a whole number from 0 to 4294967295"),
        (1, bool, "x is 1, expected true or false"),
        ("maybe", bool, "expected true or false"),
        (False, Fast, "x is false, expected auto or off"),
        (1, str, "x is 1, expected text"),
        ("", Path | None, "x is '', expected a path or null"),
        ([], dict[str, Any], "expected NAME: VALUE entries"),
        ({1: 2}, dict[str, Any], "expected NAME: VALUE entries"),
        (5, Sequence[int], "expected a list of whole numbers"),
        ([0], Sequence[Count], "expected a list of whole numbers, each of at least 1"),
        ([1, "x"], Sequence[int], "expected a list of whole numbers"),
        ((1, 2, 3), tuple[int, int], "expected a list"),
    ],
)
def test_what_does_not_fit(value: Any, hint: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=r"^x is ") as error:
        read("x", value, hint)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_arguments_of_a_memory() -> None:
    gru, mnm = memory_class("gru"), memory_class("mnm-p")
    assert read_arguments(gru, {"hidden_size": "1e2"}, "memory_kwargs", sizes=True) == {"hidden_size": 100}
    assert read_arguments(mnm, {"recall_delay": 0, "rate": "single"}, "memory_kwargs", sizes=True)["recall_delay"] == 0
    for memory, wrong in (
        (gru, {"hidden_size": 0}),
        (gru, {"hidden_size": True}),
        (mnm, {"key_size": 0}),
        (mnm, {"memory_units": 1.5}),
        (mnm, {"recall_delay": -1}),
        (mnm, {"rate": "none"}),
        (memory_class("d-ntm"), {"address_size": 0}),
        (memory_class("kanerva++"), {"encoder_channels": [0]}),
    ):
        with pytest.raises(ValueError, match=f"memory_kwargs.{next(iter(wrong))} is .*, expected"):
            read_arguments(memory, wrong, "memory_kwargs", sizes=True)
    with pytest.raises(ValueError, match="input_size cannot be given here"):
        read_arguments(gru, {"input_size": 3}, "memory_kwargs", ("input_size",))


def test_annotations_that_cannot_be_read_check_nothing() -> None:
    def strange(x: NotThere) -> None:  # type: ignore[name-defined]  # noqa: F821
        """A third party's."""

    assert read_arguments(strange, {"x": 1}, "env_kwargs") == {"x": 1}
    assert read_arguments(print, {"sep": 1}, "env_kwargs") == {"sep": 1}


@pytest.mark.parametrize(("name", "value"), [("gamma", 2), ("max_grad_norm", 0), ("vf_coef", -1), ("seed", -1)])
@pytest.mark.parametrize("learner", [agents.PPO, agents.A2C])
def test_learners_refuse_what_cannot_be_meant(learner: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}, expected"):
        learner("MemoryPolicy", "Engram/RepeatFirst-v0", policy_kwargs={"memory": "gru"}, **{name: value})


@pytest.mark.parametrize(
    "wrong",
    [{"n_epochs": 0}, {"clip_range": -0.1}, {"clip_range_vf": 0}, {"target_kl": -1}, {"n_steps": 2.5}, {"gamma": "1"}],
)
def test_ppo_refuses_them_too(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*, expected"):
        agents.PPO("MemoryPolicy", "Engram/RepeatFirst-v0", policy_kwargs={"memory": "gru"}, **wrong)


def test_memory_arguments_are_checked_where_the_agent_is_built() -> None:
    with pytest.raises(ValueError, match=r"memory_kwargs.hidden_size is 0, expected a whole number of at least 1"):
        agents.A2C(
            "MemoryPolicy",
            "Engram/RepeatFirst-v0",
            policy_kwargs={"memory": "gru", "memory_kwargs": {"hidden_size": 0}},
        )


def test_a_schedule_is_a_number() -> None:
    def falls(left: float) -> float:
        return 1e-3 * left

    values = {"learning_rate": falls, "clip_range": 0.1}
    assert fitted_to(agents.PPOConfig, values) == values
    with pytest.raises(ValueError, match=r"gamma is .*, expected a number from 0 to 1"):
        fitted_to(agents.PPOConfig, {"gamma": falls})


def test_ranges_say_what_they_are() -> None:
    assert str(Range(0, 1)) == "from 0 to 1"
    assert read("x", 0, Annotated[int, Range(0)]) == read("x", 0, Whole)
    assert format_setting(Path("runs/a")) == "runs/a"


def test_yaml_is_read_as_it_is_meant() -> None:
    text = "a: 1e-3\nb: off\nc: 010\nd: 1_000\ne: .5\nf: -2\ng: null\nh:\ni: true\nj: 12:30\nk: '1e-3'\nl: 3e+4\nm: no"
    assert read_yaml(text, "f") == {
        **{"a": 1e-3, "b": "off", "c": 10, "d": 1000, "e": 0.5, "f": -2, "g": None, "h": None, "i": True},
        **{"j": "12:30", "k": "1e-3", "l": 3e4, "m": "no"},
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1\nb: 2", "f: line 2: "),
        ("a: &x [1]\nb: *x", "f: line 2: aliases"),
        ("x: !!python/object/apply:os.system [ls]", "f: could not determine a constructor"),
        ("a: 1\nb: 2\na: 3", "f: line 3: the entry 'a' is given twice"),
        ("? [1, 2]\n: 3", "f: line 1: expected a name"),
        ("a: \x01", "f is not YAML: "),
        ("[" * 5000, "f is not YAML: too deeply nested"),
        ("a: !!int x", "f is not YAML: "),
        ("a: 1\n---\nb: 2", "f: line 2: "),
    ],
)
def test_what_is_not_such_yaml_gets_one_line(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=r"^f") as error:
        read_yaml(text, "f")
    assert str(error.value).startswith(expected)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    latin, large = tmp_path / "latin.yaml", tmp_path / "large.yaml"
    latin.write_bytes(b"env: caf\xe9")
    large.write_text("#" * (1 << 20) + "\n# ")
    for file, expected in ((latin, "expected text in UTF-8"), (large, "1 MiB"), (tmp_path / "none", "No such file")):
        with pytest.raises(ValueError, match=expected) as error:
            read_yaml_file(file, "recipe")
        assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("gru", r"policy_kwargs is 'gru', expected a dictionary such as \{'memory': 'gru'\}"),
        ({"net_arch": 64}, r"net_arch is 64, expected a list of layer widths such as \[64, 64\]"),
        ({"net_arch": "64"}, "net_arch is '64', expected a list of layer widths"),
        ({"net_arch": [64, 0]}, r"net_arch is .*64.*0.*, expected a list of layer widths"),
        ({"net_arch": ["64"]}, "net_arch is .*, expected a list of layer widths"),
        (
            {"net_arch": {"p": [64]}},
            r"net_arch is .*, expected a list .* such as \[64, 64\], or such lists as pi and vf",
        ),
        ({"net_arch": {"pi": 64}}, "net_arch is .*, expected a list of layer widths"),
        ({"optimizer_class": "adam"}, "optimizer_class is 'adam', expected a class"),
        ({"activation_fn": "relu"}, r"activation_fn is 'relu', expected a class such as torch\.nn\.ReLU"),
    ],
)
def test_policy_arguments_of_the_wrong_kind_are_named(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agents.PPO("MemoryPolicy", "Engram/RepeatFirst-v0", policy_kwargs=wrong)


@pytest.mark.parametrize("name", ["learning_rate", "clip_range", "clip_range_vf"])
@pytest.mark.parametrize("wrong", [float("nan"), -1.0])
def test_a_schedule_that_gives_no_number_is_named(name: str, wrong: Any) -> None:
    """At the start for the learning rate, which builds the optimiser, and later where it is used."""
    model = agents.PPO("MemoryPolicy", "CartPole-v1", n_steps=4, n_minibatches=1, n_epochs=1)
    setattr(model, name, lambda left: wrong if left < 1 else 0.1)
    model._setup_lr_schedule()
    with pytest.raises(ValueError, match=rf"{name} is a schedule that gives .* progress 0.5, expected a number"):
        model.learn(8)
    for wrong_at_once in (wrong, "x", None):
        with pytest.raises(
            ValueError, match=r"learning_rate is a schedule that gives .* progress 1, expected a number"
        ):
            agents.A2C("MemoryPolicy", "CartPole-v1", learning_rate=lambda left, value=wrong_at_once: value)


def test_a_schedule_that_falls_to_zero_is_not_negative_in_the_last_rollout() -> None:
    """The last rollout may end after `total_timesteps`."""
    rates: list[float] = []

    def falls(left: float) -> float:
        rates.append(1e-3 * left)
        return rates[-1]

    model = agents.PPO(
        "MemoryPolicy", "CartPole-v1", falls, n_steps=6, n_minibatches=1, n_epochs=1, clip_range=lambda left: 0.2 * left
    )
    model.learn(8)
    assert model.num_timesteps == 12
    assert min(rates) == 0.0
    assert model.policy.optimizer.param_groups[0]["lr"] == 0.0


@pytest.mark.parametrize("wrong", ["100", None, [100], float("nan"), float("inf")])
def test_learn_refuses_what_is_no_number_of_steps(wrong: Any, tmp_path: Path) -> None:
    model = agents.A2C("MemoryPolicy", "CartPole-v1", n_steps=4)
    with pytest.raises(ValueError, match=r"total_timesteps is .*, expected a number"):
        model.learn(wrong)
    with pytest.raises(ValueError, match="log_interval is 0, expected a whole number of at least 1, or None"):
        model.learn(8, log_interval=0)
    model.learn(7.5).save(tmp_path / "saved")  # type: ignore[arg-type]
    assert agents.load(tmp_path / "saved")._total_timesteps == 8
