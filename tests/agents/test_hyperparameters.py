"""Hyper-parameters are a dataclass, which constructor, command line, recipes, sweeps and checkpoints read."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import stable_baselines3
import torch
import yaml
from test_sweep_space import space_file

import agents
from agents import A2C, PPO, MemoryOnPolicyAlgorithm, PPOConfig, Supervised, register_learner
from agents.common.arguments import Positive
from agents.registry import learners
from agents.run.command import main
from agents.run.config import Config
from agents.run.parsing import parse
from agents.run.recipes import RECIPES, load_config
from envs.repeat_first import RepeatFirst
from policies import plugins

GRU: dict[str, Any] = {"memory": "gru", "memory_kwargs": {"hidden_size": 4}}


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    monkeypatch.setattr(learners, "classes", dict(learners.classes))
    yield
    plugins._entry_points.cache_clear()


def build(learner: type[MemoryOnPolicyAlgorithm], *args: Any, **kwargs: Any) -> MemoryOnPolicyAlgorithm:
    return learner("MemoryPolicy", RepeatFirst(4, length=4), *args, policy_kwargs=GRU, device="cpu", **kwargs)


def own_learner() -> type[MemoryOnPolicyAlgorithm]:
    @dataclass
    class OwnConfig(PPOConfig):
        rho_bar: Positive = 1.0
        """Cut of the ratios."""

    class Own(PPO):
        config_class = OwnConfig

        def __init__(self, policy: Any, env: Any, rho_bar: float = 1.0, **kwargs: Any) -> None:
            super().__init__(policy, env, rho_bar=rho_bar, **kwargs)

    return register_learner("own")(Own)


# -- the constructor ---------------------------------------------------------------------------------------------------


def test_arguments_are_taken_by_position_in_the_order_of_sb3() -> None:
    """All of SB3's up to the first that we do not have; PPO's `batch_size` is `n_minibatches`."""
    for ours, theirs, count in ((A2C, stable_baselines3.A2C, 8), (PPO, stable_baselines3.PPO, 11)):
        names = [name for name in inspect.signature(ours).parameters if name not in ("aux_coef", "normalize_values")]
        expected = list(inspect.signature(theirs).parameters)
        assert [name.replace("n_minibatches", "batch_size") for name in names[:count]] == expected[:count]
    model = build(PPO, 1e-2, 8, 2, 3, 0.5)
    assert (model.learning_rate, model.n_steps, model.n_minibatches) == (1e-2, 8, 2)
    assert (model.n_epochs, model.gamma, model.gae_lambda) == (3, 0.5, 0.95)


def test_an_unknown_argument_is_named() -> None:
    with pytest.raises(TypeError, match=r"PPO does not take gama: did you mean gamma\?"):
        build(PPO, gama=0.5)


@pytest.mark.parametrize("learner", [A2C, PPO, Supervised])
def test_every_hyperparameter_is_an_attribute_and_has_a_help_text(learner: type[MemoryOnPolicyAlgorithm]) -> None:
    model = build(learner, n_steps=4)
    for name in learner.hyperparameters():
        assert hasattr(model, name)
    sources = [inspect.getsource(kind) for kind in learner.config_class.__mro__[:-1]]
    for name in learner.hyperparameters():
        assert any(re.search(rf'^    {name}: .*\n    """', source, re.MULTILINE) for source in sources), name


# -- a learner of one's own --------------------------------------------------------------------------------------------


def test_a_subclass_with_kwargs_loses_nothing(tmp_path: Path) -> None:
    """On the command line, in a recipe, in a configuration and in a checkpoint."""
    own = own_learner()
    config, _ = parse(["--algo", "own", "--rho-bar", "2.5", "--gamma", ".5", "--n-steps", "7", "--ent-coef", ".3"])
    kwargs = config.learner_kwargs()
    assert (kwargs["rho_bar"], kwargs["gamma"], kwargs["n_steps"], kwargs["ent_coef"]) == (2.5, 0.5, 7, 0.3)
    config.save(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml").entries() == config.entries()
    model = build(own, rho_bar=2.5, gamma=0.5, n_steps=4)
    model.learn(16).save(tmp_path / "saved")
    again = agents.load(tmp_path / "saved", RepeatFirst(4, length=4), device="cpu")
    assert type(again) is own
    assert (again.rho_bar, again.gamma) == (2.5, 0.5)
    assert own.load(tmp_path / "saved", rho_bar=3.0).rho_bar == 3.0
    with pytest.raises(ValueError, match="rho_bar is 0, expected a number above 0"):
        build(own, rho_bar=0)
    again.learn(16, reset_num_timesteps=False)
    assert again.num_timesteps == 32


def test_a_checkpoint_from_before_a_hyperparameter_has_its_default(tmp_path: Path) -> None:
    class Own(PPO):
        pass

    build(Own, n_steps=4).save(tmp_path / "saved")
    again = own_learner()
    again.__name__ = "Own"
    assert again.load(tmp_path / "saved").rho_bar == 1.0


def test_a_definition_that_would_lose_something_is_refused() -> None:
    with pytest.raises(TypeError, match=r"__init__ takes rho_bar, which the command line .* class LostConfig\(PPOConf"):

        class Lost(PPO):
            def __init__(self, policy: Any, env: Any, rho_bar: float = 1.0, **kwargs: Any) -> None: ...

    with pytest.raises(TypeError, match=r"__init__ takes rho_bar, which"):

        class ByName(A2C):
            def __init__(self, *args: Any, rho_bar: float = 1.0, **kwargs: Any) -> None: ...

    with pytest.raises(TypeError, match=r"Narrow.__init__ does not take learning_rate: expected \*\*kwargs"):

        class Narrow(PPO):
            def __init__(self, policy: Any, env: Any, gamma: float = 0.5) -> None: ...

    class Bare(PPOConfig):
        rho_bar: float = 1.0

    with pytest.raises(TypeError, match=r"Bare.rho_bar is not a field: write @dataclass above class Bare"):

        class Undecorated(PPO):
            config_class = Bare

    with pytest.raises(TypeError, match="expected a dataclass that extends Hyperparameters"):

        class Other(PPO):
            config_class = dict  # type: ignore[assignment]


@pytest.mark.parametrize("name", ["seed", "env", "loss", "policy"])
def test_a_hyperparameter_cannot_take_a_name_that_is_used(name: str) -> None:
    namespace = {"__annotations__": {name: float}, name: 1.0}
    config = dataclass(type("Config", (PPOConfig,), namespace))
    with pytest.raises(TypeError, match=rf"Config.{name} has a name that learners reserve"):
        type("Own", (PPO,), {"config_class": config})


def test_a_constructor_that_adds_nothing_is_fine(tmp_path: Path) -> None:
    class Mine(PPO):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.seen = 0

    class Calm(PPO):
        def __init__(self, policy: Any, env: Any, learning_rate: float = 1e-5, **kwargs: Any) -> None:
            super().__init__(policy, env, learning_rate, **kwargs)

    build(Mine, n_steps=4).save(tmp_path / "mine")
    assert Mine.load(tmp_path / "mine").seen == 0
    build(Calm, gamma=0.5).save(tmp_path / "calm")
    again = Calm.load(tmp_path / "calm")
    assert (again.learning_rate, again.gamma) == (1e-5, 0.5)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (None, "Odd.learn_from returned NoneType, expected its metrics: a dictionary of tensors"),
        ({"train/odd": 3.0}, r"Odd returned the metric 'train/odd' of float, expected a tensor of shape \(\)"),
        ({"train/odd": torch.zeros(3)}, r"Odd returned the metric 'train/odd' of shape \(3,\), expected a tensor of"),
    ],
)
@pytest.mark.parametrize("base", [PPO, A2C])
def test_metrics_that_are_no_numbers_are_named(base: Any, metrics: Any, message: str) -> None:
    class Odd(base):  # type: ignore[misc]
        def learn_from(self, rollout: Any) -> Any:
            return super().learn_from(rollout) if base is PPO and metrics else metrics

        def loss(self, rollout: Any, *numbers: Any) -> Any:  # of one minibatch
            loss, parts = super().loss(rollout, *numbers)
            return loss, parts | (metrics or {})

    with pytest.raises(TypeError, match=message):
        build(Odd, n_steps=4).learn(16)


# -- the registry ------------------------------------------------------------------------------------------------------


def test_a_name_is_taken_once_and_a_wrong_one_gets_a_hint() -> None:
    with pytest.raises(ValueError, match=r"the learner name 'ppo' is taken by agents\.ppo:PPO"):
        register_learner("ppo")(A2C)
    assert own_learner() is not own_learner()  # a notebook's cell runs again
    with pytest.raises(ValueError, match=r"no learner is called 'pppo'; known: a2c, .*; did you mean 'ppo'\?"):
        agents.learner_class("pppo")
    with pytest.raises(TypeError, match="is not a MemoryOnPolicyAlgorithm class"):
        register_learner("int")(int)
    assert "pppo" not in agents.LEARNERS
    assert agents.LEARNERS["ppo"] is PPO


def test_other_packages_offer_learners(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "other_learners.py").write_text(
        "from dataclasses import dataclass\nfrom agents import A2C, A2CConfig\n\n@dataclass\n"
        "class FarConfig(A2CConfig):\n    far: float = 1.0\n    '''How far.'''\n\n"
        "class Far(A2C):\n    config_class = FarConfig\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    offered = [EntryPoint("far", "other_learners:Far", "engram.learners")]
    offered += [EntryPoint("b", "other_learners:No", "engram.learners")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: offered if group == "engram.learners" else [])
    plugins._entry_points.cache_clear()
    assert list(agents.LEARNERS) == sorted({"b", "far", *agents.LEARNERS})
    config, _ = parse(["--algo", "far", "--far", "2"])
    assert config.learner_kwargs()["far"] == 2.0
    build(agents.LEARNERS["far"], far=3.0).save(tmp_path / "saved")
    assert agents.load(tmp_path / "saved").far == 3.0
    with pytest.raises(ValueError, match=r"the learner 'b' cannot be used: its entry point other_learners:No fails"):
        parse(["--algo", "b"])


def test_learners_of_one_class_name_are_not_mixed_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A copy of PPO that somebody changes is often still called PPO."""
    monkeypatch.setattr(agents.registry.learners, "classes", dict(agents.registry.learners.classes))
    copies = {}
    for module in ("mine", "theirs"):
        copies[module] = type("PPO", (PPO,), {"__module__": module, "config_class": PPO.config_class})
    register_learner("mine")(copies["mine"])
    build(copies["mine"]).save(tmp_path / "mine")
    build(PPO).save(tmp_path / "ours")
    assert type(agents.load(tmp_path / "mine")) is copies["mine"]
    assert type(agents.load(tmp_path / "ours")) is PPO
    with pytest.raises(agents.CheckpointError, match=r"holds mine:PPO, expected agents\.ppo:PPO: load it by its own"):
        PPO.load(tmp_path / "mine")
    with pytest.raises(agents.CheckpointError, match=r"holds agents\.ppo:PPO, expected mine:PPO"):
        copies["mine"].load(tmp_path / "ours")
    assert type(copies["theirs"].load(tmp_path / "mine")) is copies["theirs"]  # its module may have been renamed
    del agents.registry.learners.classes["mine"]
    with pytest.raises(
        agents.CheckpointError, match=r"holds 'PPO' of mine:PPO, this Engram knows a2c.* import the mod"
    ):
        agents.load(tmp_path / "mine")
    register_learner("theirs")(copies["theirs"])  # the only one of this name: its module was renamed
    assert type(agents.load(tmp_path / "mine")) is copies["theirs"]
    third = type("PPO", (PPO,), {"__module__": "third", "config_class": PPO.config_class})
    register_learner("third")(third)
    with pytest.raises(agents.CheckpointError, match="are theirs:PPO and third:PPO: load it by its class"):
        agents.load(tmp_path / "mine")


# -- the command line, recipes and sweeps ------------------------------------------------------------------------------


def help_of(algo: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    with pytest.raises(SystemExit):
        main(["--algo", algo, "--env", "Engram/RepeatFirst-v0", "--help"])
    return set(re.findall(r"--([a-z][\w-]+)", capsys.readouterr().out))


def test_help_shows_the_options_of_the_learner_and_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    own_learner()
    ppo, a2c, supervised, own = (help_of(algo, capsys) for algo in ("ppo", "a2c", "supervised", "own"))
    assert own - ppo == {"rho-bar"}
    assert {"n-epochs", "clip-range"} <= ppo - a2c
    assert {"rms-prop-eps"} <= a2c - ppo
    assert supervised & {"gamma", "ent-coef", "n-epochs", "use-rms-prop", "rho-bar"} == set()
    assert {"learning-rate", "aux-coef", "memory", "num-envs"} <= supervised


def test_a_recipe_of_today_loads_whatever_learner_it_names(tmp_path: Path) -> None:
    """Files hold all entries on one level; those of other learners are left out."""
    old = {"algo": "a2c", "env": "Engram/RepeatFirst-v0", "gamma": 0.5, "n_epochs": 3, "clip_range": 0.1}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(old))
    config = load_config(tmp_path / "old.yaml")
    assert config.learner.gamma == 0.5
    assert not hasattr(config.learner, "n_epochs")
    (tmp_path / "old.yaml").write_text(yaml.safe_dump({**old, "gama": 1}))
    with pytest.raises(ValueError, match="gama is an unknown entry; did you mean gamma"):
        load_config(tmp_path / "old.yaml")


def test_a_recipe_with_another_learner_keeps_what_both_have() -> None:
    config, _ = parse(["--recipe", "maze-ppo", "--algo", "a2c"])
    assert (config.learner.gamma, config.learner.n_steps, config.learner.normalize_values) == (0.95, 200, False)


def test_what_runs_start_from_has_not_changed() -> None:
    """The defaults of the command, with and without a recipe."""
    env = ["--env", "Engram/RepeatFirst-v0"]
    ppo, a2c, supervised = (parse([*env, "--algo", algo])[0] for algo in ("ppo", "a2c", "supervised"))
    assert (ppo.num_envs, ppo.anneal, a2c.num_envs, a2c.anneal) == (8, True, 8, True)
    assert (supervised.num_envs, supervised.anneal) == (16, False)
    shared = {"ent_coef": 0.001, "gae_lambda": 0.95, "normalize_values": True, "vf_coef": 0.5}
    for config in (ppo, a2c):
        assert {name: getattr(config.learner, name) for name in shared} == shared
    assert (ppo.learner.n_steps, ppo.learner.n_minibatches, a2c.learner.n_steps) == (128, 2, 16)
    assert (ppo.learner.learning_rate, a2c.learner.learning_rate) == (1e-3, 2e-3)
    assert (ppo.learner.normalize_advantage, a2c.learner.normalize_advantage) == (True, False)
    assert (a2c.learner.use_rms_prop, a2c.learner.max_grad_norm) == (False, 0.1)
    assert (supervised.learner.n_steps, supervised.learner.max_grad_norm) == (0, 10)
    assert parse(["--env", "CartPole-v1"])[0].learner.normalize_obs
    assert not Config().anneal


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: str(file.stem))
def test_a_recipe_does_not_depend_on_the_defaults_of_the_command(file: Path) -> None:
    """Its published numbers stay the same if a default of `train.py` changes."""
    recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    config = agents.learner_class(recipe.get("algo", "ppo")).config_class
    assert {*config.run_defaults, *config.gpu_defaults} <= {*recipe}


def test_a_sweep_over_learners_gives_each_its_own(tmp_path: Path) -> None:
    searched: dict[str, Any] = {
        "algo": ["ppo", "a2c"],
        "n_epochs": {"low": 1, "high": 9, "when": {"algo": "ppo"}},
        "gamma": {"low": 0.1, "high": 0.9},
    }
    file = space_file(tmp_path, space=searched, fixed={"rms_prop_eps": 1e-3})
    config, _ = parse(["--sweep", str(file), "--clip-range", "0.4", "--vf-coef", "0.25"])
    from agents.sweep import load_space

    space = load_space(str(file))
    ppo = space.configure(config, {"algo": "ppo", "n_epochs": 3, "gamma": 0.2})
    a2c = space.configure(config, {"algo": "a2c", "gamma": 0.3})
    assert (ppo.learner.n_epochs, ppo.learner.clip_range, ppo.learner.vf_coef, ppo.learner.gamma) == (3, 0.4, 0.25, 0.2)
    assert (a2c.learner.rms_prop_eps, a2c.learner.vf_coef, a2c.learner.gamma) == (1e-3, 0.25, 0.3)
    assert type(a2c.learner) is agents.A2CConfig
