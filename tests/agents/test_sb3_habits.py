"""What a Stable-Baselines3 user does without thinking works here too."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from agent_stubs import script
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import LinearSchedule

from agents import A2C, PPO, MemoryOnPolicyAlgorithm, Supervised, TensorVecEnv, make_env
from envs.repeat_first import RepeatFirst
from envs.tmaze import TMaze

GRU: dict[str, Any] = {"memory": "gru", "memory_kwargs": {"hidden_size": 8}}
both = pytest.mark.parametrize("learner", [A2C, PPO])


def small(learner: type[MemoryOnPolicyAlgorithm], env: Any, **kwargs: Any) -> MemoryOnPolicyAlgorithm:
    if learner is PPO:
        kwargs.setdefault("n_epochs", 2)
    return learner("MemoryPolicy", env, n_steps=8, policy_kwargs=GRU, seed=0, device="cpu", **kwargs)


# -- learn and its callbacks -------------------------------------------------------------------------------------------


@both
def test_learn_twice(learner: type[MemoryOnPolicyAlgorithm]) -> None:
    model = small(learner, TMaze(2, length=2))
    assert model.learn(32).num_timesteps == 32
    assert model.learn(32).num_timesteps == 32
    assert model.learn(32, reset_num_timesteps=False).num_timesteps == 64
    assert model.learn(33).num_timesteps == 48  # whole rollouts


@both
def test_a_callback_stops(learner: type[MemoryOnPolicyAlgorithm]) -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 22

    model = small(learner, TMaze(2, length=2))
    assert model.learn(1000, callback=Stop()).num_timesteps == 22
    assert model.learn(16, reset_num_timesteps=False).num_timesteps == 38  # and goes on from there
    assert model.learn(1000, callback=lambda locals_, globals_: model.num_timesteps < 6).num_timesteps == 6


def test_stop_requested_ends_after_the_iteration() -> None:
    class Request(BaseCallback):
        def _on_step(self) -> bool:
            self.model.stop_requested = True
            return True

    model = small(PPO, TMaze(2, length=2))
    assert model.learn(1000, callback=Request()).num_timesteps == 16
    assert model._n_updates == 4


@both
def test_stop_on_max_episodes(learner: type[MemoryOnPolicyAlgorithm]) -> None:
    """2 copies, episodes of 3 steps: the callback allows 4 episodes of each copy."""
    callback = StopTrainingOnMaxEpisodes(max_episodes=4)
    model = small(learner, RepeatFirst(2, length=3)).learn(1000, callback=callback)
    assert model.num_timesteps == 2 * 3 * 4
    assert callback.n_episodes == 8


def test_events_come_in_sb3s_order() -> None:
    class Diary(BaseCallback):
        def _init_callback(self) -> None:
            self.events: list[str] = []

        def _on_training_start(self) -> None:
            self.events.append("training")

        def _on_rollout_start(self) -> None:
            self.events.append("rollout")

        def _on_step(self) -> bool:
            dones = self.locals["dones"]
            assert len(dones) == 2
            self.events.append("end" if dones[0] else "step")
            return True

        def _on_rollout_end(self) -> None:
            self.events.append("over")

        def _on_training_end(self) -> None:
            self.events.append("done")

    diary = Diary()
    small(A2C, RepeatFirst(2, length=4)).learn(32, callback=[diary, Diary()])
    half = ["rollout", *2 * ["step", "step", "step", "end"], "over"]
    assert diary.events == ["training", *half, *half, "done"]


@both
def test_eval_and_checkpoint_callbacks(learner: type[MemoryOnPolicyAlgorithm], tmp_path: Path) -> None:
    from agents.environments import TensorVecEnv

    evaluate = EvalCallback(
        TensorVecEnv(RepeatFirst(2, length=4)),
        best_model_save_path=str(tmp_path / "best"),
        log_path=str(tmp_path / "log"),
        eval_freq=8,
        n_eval_episodes=4,
        verbose=0,
    )
    keep = CheckpointCallback(save_freq=8, save_path=str(tmp_path / "kept"), name_prefix="it")
    model = small(learner, RepeatFirst(2, length=4)).learn(32, callback=CallbackList([evaluate, keep]))
    results = np.load(tmp_path / "log" / "evaluations.npz")["results"]
    assert results.shape == (2, 4)
    assert ((results >= 0) & (results <= 1)).all()
    assert sorted(entry.name for entry in (tmp_path / "kept").iterdir()) == ["it_16_steps.zip", "it_32_steps.zip"]
    assert learner.load(tmp_path / "kept" / "it_32_steps.zip").num_timesteps == 32
    assert learner.load(tmp_path / "best" / "best_model").policy.memory_name == "gru"
    assert model.num_timesteps == 32


def test_every_n_timesteps_and_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []

    class Note(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(self.model.num_timesteps)
            return True

    small(A2C, TMaze(2, length=2)).learn(32, callback=EveryNTimesteps(10, Note()), progress_bar=True)
    assert seen == [10, 20, 30]


# -- numbers in the log ------------------------------------------------------------------------------------------------


@both
def test_episode_statistics_of_a_scripted_environment(learner: type[MemoryOnPolicyAlgorithm]) -> None:
    """Rewards 1, 2, 3, ... ; copy 0 ends after steps 3 and 8, copy 1 is cut after step 5: returns 6, 30 and 15."""
    env = script([[float(t), float(t)] for t in range(1, 9)], terminated=[(2, 0), (7, 0)], truncated=[(4, 1)])
    model = small(learner, env).learn(16)
    assert [(e["r"], e["l"]) for e in model.ep_info_buffer] == [(6.0, 3), (15.0, 5), (30.0, 5)]
    assert model._episode_num == 3
    # the second episode of copy 1 goes on into the next rollout: 6 + 7 + 8 + 1 + 2 + 3 + 4 + 5
    model.learn(16, reset_num_timesteps=False)
    assert [(e["r"], e["l"]) for e in model.ep_info_buffer][3:] == [(6.0, 3), (36.0, 8), (30.0, 5)]
    model.learn(16)
    assert len(model.ep_info_buffer) == 3


def test_the_window_of_the_statistics() -> None:
    env = script([[1.0], [2.0]], terminated=[(0, 0), (1, 0)])
    model = small(A2C, env, stats_window_size=3).learn(8)
    assert [e["r"] for e in model.ep_info_buffer] == [2.0, 1.0, 2.0]


def test_the_table_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    small(PPO, script([[1.0]] * 4, terminated=[(3, 0)]), verbose=1).learn(8)
    table = capsys.readouterr().out
    for line in ("ep_rew_mean        | 4 ", "ep_len_mean        | 4 ", "total_timesteps    | 8 ", "approx_kl"):
        assert line in table, table


def test_log_interval_and_own_logger(tmp_path: Path) -> None:
    model = small(PPO, TMaze(2, length=2))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(16 * 6, log_interval=3)
    lines = (tmp_path / "progress.csv").read_text().splitlines()
    assert len(lines) == 3
    header = lines[0].split(",")
    for name in ("train/approx_kl", "train/explained_variance", "time/fps", "train/learning_rate", "rollout/episodes"):
        assert name in header
    assert lines[2].split(",")[header.index("time/total_timesteps")] == "96"


def test_tensorboard(tmp_path: Path) -> None:
    small(A2C, TMaze(2, length=2), tensorboard_log=str(tmp_path)).learn(32, tb_log_name="name")
    assert list((tmp_path / "name_1").glob("events.out.tfevents.*"))


def test_a_falling_learning_rate() -> None:
    """LinearSchedule(1e-2, 0): after a quarter, half, ... of the run."""
    rates = []

    class Note(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            rates.append(self.model.policy.optimizer.param_groups[0]["lr"])

    model = small(PPO, TMaze(2, length=2), learning_rate=LinearSchedule(1e-2, 0.0, 1.0))
    model.learn(64, callback=Note())
    assert rates == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


# -- evaluate and predict ----------------------------------------------------------------------------------------------


@both
def test_evaluate_policy_counts_what_the_environment_gives(learner: type[MemoryOnPolicyAlgorithm]) -> None:
    model = small(learner, script([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]], terminated=[(2, 0)], truncated=[(2, 1)]))
    env = model.get_env()
    assert env is not None
    rewards, lengths = evaluate_policy(model, env, n_eval_episodes=6, return_episode_rewards=True)
    assert rewards == [6.0, 60.0] * 3
    assert lengths == [3] * 6


@both
def test_evaluating_on_the_training_environment_between_two_calls(
    learner: type[MemoryOnPolicyAlgorithm], counter: str
) -> None:
    """The episodes under way are gone: those that follow start as such, with a fresh memory and a fresh count."""
    model = learner(
        "MemoryPolicy", script([[1.0]] * 12, [(11, 0)]), n_steps=8, policy_kwargs={"memory": counter}, seed=0
    )
    model.learn(8)
    env = model.get_env()
    assert env is not None
    evaluate_policy(model, env, n_eval_episodes=1)
    model.learn(16, reset_num_timesteps=False)
    assert model.num_timesteps == 24
    assert model.rollout.state["count"].item() == 8
    assert [(e["r"], e["l"]) for e in model.ep_info_buffer] == [(12.0, 12)]


def test_evaluation_keeps_the_memory_and_resets_it(counter: str) -> None:
    """The critic's counter, seen through `predict`: evaluate_policy hands back state and episode starts."""
    model = PPO("MemoryPolicy", RepeatFirst(2, length=3), policy_kwargs={"memory": counter}, seed=0)
    seen: list[list[int]] = []

    def watch(locals_: dict[str, Any], _: dict[str, Any]) -> None:
        seen.append(locals_["states"]["count"].flatten().int().tolist())

    env = model.get_env()
    assert env is not None
    evaluate_policy(model, env, n_eval_episodes=4, callback=watch)
    assert seen[::2] == [[count] * 2 for count in (1, 2, 3, 1, 2, 3)]


def test_predict_single_and_batched() -> None:
    model = small(PPO, RepeatFirst(4))
    obs = np.random.default_rng(0).random((4, 5)).astype(np.float32)
    actions, state = model.predict(obs, deterministic=True)
    assert actions.shape == (4,)
    assert isinstance(actions, np.ndarray)
    single, own = model.predict(obs[2], deterministic=True)
    assert single.shape == ()
    assert single == actions[2]
    torch.testing.assert_close(own["hidden"][0], state["hidden"][2])

    later, _ = model.policy.predict(obs, state, deterministic=True)
    fresh, after = model.predict(obs, state, np.array([True, False, True, False]), deterministic=True)
    torch.testing.assert_close(after["hidden"][0], state["hidden"][0])  # the same first step again
    assert not torch.allclose(after["hidden"][1], state["hidden"][1])
    assert fresh[1] == later[1]


def test_set_env() -> None:
    model = small(A2C, TMaze(2, length=2)).learn(16)
    model.set_env(TMaze(5, length=2))
    assert model.n_envs == 5
    assert model.learn(40, reset_num_timesteps=False).num_timesteps == 56
    with pytest.raises(ValueError, match="spaces do not match"):
        model.set_env(RepeatFirst(5))


def test_get_parameters_and_set_parameters_as_in_sb3() -> None:
    one, other = small(PPO, TMaze(2, length=2)), small(PPO, TMaze(2, length=2)).learn(16)
    one.set_parameters(other.get_parameters())
    for mine, theirs in zip(one.policy.parameters(), other.policy.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_compiled_policy_is_saved_as_it_was_built(tmp_path: Path) -> None:
    model = small(PPO, RepeatFirst(2, length=4))
    policy, model.policy = model.policy, torch.compile(model.policy, backend="eager")
    model.save(tmp_path / "saved")
    theirs = PPO.load(tmp_path / "saved", device="cpu").policy.state_dict()
    assert theirs.keys() == policy.state_dict().keys()
    assert all(torch.equal(theirs[name], value) for name, value in policy.state_dict().items())


def test_an_unknown_policy_or_memory_is_named() -> None:
    with pytest.raises(ValueError, match="Policy Mlp unknown"):
        PPO("Mlp", TMaze(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no memory is called 'lstn'.*did you mean 'lstm'"):
        PPO("MemoryPolicy", TMaze(2), policy_kwargs={"memory": "lstn"})


def test_the_same_seed_gives_the_same_run() -> None:
    def run(seed: int) -> torch.Tensor:
        model = PPO("MemoryPolicy", TMaze(3, length=2), n_steps=8, n_epochs=1, policy_kwargs=GRU, seed=seed).learn(48)
        return torch.cat([parameter.flatten() for parameter in model.policy.parameters()])

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


@pytest.mark.parametrize("learner", [A2C, PPO, Supervised])
@pytest.mark.parametrize("memory", ["gru", "dnc"])
def test_a_model_is_copied_right_after_learn(learner: Any, memory: str) -> None:
    """And both learn on alike: no tensor of a graph is left in it."""
    model = learner("MemoryPolicy", RepeatFirst(4, length=4), n_steps=8, policy_kwargs={"memory": memory}, seed=0)
    twin = copy.deepcopy(model.learn(64))
    assert twin.policy is not model.policy
    obs = model.get_env().reset()
    assert (twin.predict(obs, deterministic=True)[0] == model.predict(obs, deterministic=True)[0]).all()
    assert twin.learn(64, reset_num_timesteps=False).num_timesteps == 128


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"batch_size": 64}, "PPO does not take batch_size: use n_minibatches: a minibatch is a set of environments"),
        ({"use_sde": True}, "PPO does not take use_sde: there is no state-dependent exploration"),
        ({"n_epoch": 3}, r"PPO does not take n_epoch: did you mean n_epochs\?"),
        ({"memory": "gru"}, r"PPO does not take memory: it goes into policy_kwargs=\{'memory': \.\.\.\}"),
        ({"qqq": 3}, "PPO does not take qqq: known are policy, env, learning_rate, "),
        ({"policy_kwargs": {"memry": "gru"}}, r"MemoryActorCriticPolicy does not take memry: did you mean memory\?"),
        (
            {"policy_kwargs": {"lstm_hidden_size": 9}},
            r"lstm_hidden_size: a memory's own arguments go into memory_kwargs",
        ),
    ],
)
def test_an_argument_that_is_not_taken_says_what_is(given: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        PPO("MemoryPolicy", RepeatFirst(2), **given)


def test_a_policy_without_memory_is_refused() -> None:
    words = "policy is ActorCriticPolicy, expected 'MemoryPolicy' or a subclass of policies"
    with pytest.raises(TypeError, match=words):
        PPO(ActorCriticPolicy, RepeatFirst(2))  # type: ignore[type-var]


def test_what_is_no_environment_is_refused() -> None:
    with pytest.raises(TypeError, match="env is None, expected a Gymnasium id"):
        PPO("MemoryPolicy", None)
    with pytest.raises(TypeError, match=r"not the class RepeatFirst: give an instance, RepeatFirst\(\)"):
        PPO("MemoryPolicy", RepeatFirst)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not a function: give what it makes, or several in"):
        PPO("MemoryPolicy", lambda: RepeatFirst(2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"not a list: give gymnasium\.vector\.SyncVectorEnv"):
        PPO("MemoryPolicy", [lambda: RepeatFirst(2)])  # type: ignore[arg-type]
    bare = gymnasium.Env[Any, Any]()
    with pytest.raises(TypeError, match="observation_space of Env is missing, expected a space of gymnasium"):
        PPO("MemoryPolicy", bare)
    bare.observation_space, bare.action_space = gymnasium.spaces.Discrete(2), 2  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"action_space of Env is of builtins\.int, expected a space of gymnasium"):
        PPO("MemoryPolicy", bare)
    with pytest.raises(TypeError, match="env_id is of RepeatFirst, expected a Gymnasium id"):
        make_env(RepeatFirst(2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="TensorVecEnv got a TimeLimit, expected a TensorEnv"):
        TensorVecEnv(gymnasium.make("CartPole-v1"))  # type: ignore[arg-type]
    env = RepeatFirst(2)
    env.reset()
    with pytest.raises(ValueError, match=r"the actions have shape \(3,\); expected \(2,\)"):
        env.step(np.zeros(3, np.int64))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"observation": (np.zeros(4), {})}, r"as reset and step return it; .* observation, info = env\.reset\(\)"),
        ({"observation": np.array([0, np.nan, 0, 0])}, "the observation contains NaN"),
        ({"state": (1, 2)}, "state is of tuple, expected what the last call of predict returned, or None"),
        ({"state": {"hidden": torch.zeros(2, 1, 8)}}, "state has 2 environments, but the observation has 1"),
        ({"state": {"hidden": torch.zeros(1, 9)}}, r"state\['hidden'\] has shape \(1, 9\), expected \(1, 1, 8\): what"),
        ({"state": {"cell": torch.zeros(1, 8)}}, r"state has the entries \['cell'\], expected \['hidden'\]: what"),
        ({"state": {"hidden": np.zeros((1, 1, 8))}}, r"state\['hidden'\] is of ndarray, expected a tensor: what the"),
        ({"episode_start": np.ones(3, bool)}, "episode_start has 3 environments, but the observation has 1"),
    ],
)
def test_predict_says_what_does_not_fit(given: dict[str, Any], words: str) -> None:
    sizes = {"memory": "gru", "memory_kwargs": {"hidden_size": 8}}
    model = PPO("MemoryPolicy", "CartPole-v1", policy_kwargs=sizes)
    with pytest.raises((ValueError, TypeError), match=words):
        model.predict(**{"observation": np.zeros(4), **given})
