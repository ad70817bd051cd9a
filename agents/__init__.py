"""The learners: how to learn. They know memories and environments only through their contracts."""

from agents.a2c import A2C
from agents.agent import Agent
from agents.checkpoint import CheckpointError, latest_checkpoint, load
from agents.environments import TensorVecEnv, as_tensor_env, make_env
from agents.learner import MemoryOnPolicyAlgorithm
from agents.metrics.non_finite import NonFiniteError
from agents.ppo import PPO
from agents.supervised import Supervised

LEARNERS: dict[str, type[MemoryOnPolicyAlgorithm]] = {"a2c": A2C, "ppo": PPO, "supervised": Supervised}

__all__ = [
    "A2C",
    "LEARNERS",
    "PPO",
    "Agent",
    "CheckpointError",
    "MemoryOnPolicyAlgorithm",
    "NonFiniteError",
    "Supervised",
    "TensorVecEnv",
    "as_tensor_env",
    "latest_checkpoint",
    "load",
    "make_env",
]
