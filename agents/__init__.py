"""Learners, evaluation and viewer. Learners use memories and environments only through their interfaces."""

from agents.a2c import A2C, A2CConfig
from agents.agent import Agent
from agents.checkpoint import CheckpointError, latest_checkpoint
from agents.environments import TensorVecEnv, as_tensor_env, make_env
from agents.hyperparameters import Hyperparameters
from agents.learner import MemoryOnPolicyAlgorithm
from agents.metrics.non_finite import NonFiniteError
from agents.ppo import PPO, PPOConfig
from agents.registry import LEARNERS, learner_class, load, register_learner, registered_learners
from agents.supervised import Supervised, SupervisedConfig
from agents.vtrace import VTrace, VTraceConfig

__all__ = [
    "A2C",
    "LEARNERS",
    "PPO",
    "A2CConfig",
    "Agent",
    "CheckpointError",
    "Hyperparameters",
    "MemoryOnPolicyAlgorithm",
    "NonFiniteError",
    "PPOConfig",
    "Supervised",
    "SupervisedConfig",
    "TensorVecEnv",
    "VTrace",
    "VTraceConfig",
    "as_tensor_env",
    "latest_checkpoint",
    "learner_class",
    "load",
    "make_env",
    "register_learner",
    "registered_learners",
]
