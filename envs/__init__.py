"""Batched torch environments, registered with Gymnasium under `Engram/`.

    import gymnasium, envs
    env = gymnasium.make("Engram/InvisibleGoalMaze-v0")                       # one environment, numpy
    env = gymnasium.make_vec("Engram/InvisibleGoalMaze-v0", num_envs=1024)    # a TensorEnv

Each module of an environment holds its class and `single`, the entry point of the ordinary single environment.
"""

from __future__ import annotations

import gymnasium

_CLASSES = {
    "Engram/AssociativeRecall-v0": "envs.tasks.sequence.associative_recall:AssociativeRecall",
    "Engram/Babi-v0": "envs.tasks.babi.environment:Babi",
    "Engram/Copy-v0": "envs.tasks.sequence.copy:Copy",
    "Engram/DictionaryInference-v0": "envs.tasks.sequence.dictionary_inference:DictionaryInference",
    "Engram/DoubleCopy-v0": "envs.tasks.sequence.double_copy:DoubleCopy",
    "Engram/DynamicNGrams-v0": "envs.tasks.sequence.dynamic_ngrams:DynamicNGrams",
    "Engram/ImageEpisode-v0": "envs.tasks.images.image_episode:ImageEpisode",
    "Engram/GraphInference-v0": "envs.tasks.graphs.inference:GraphInference",
    "Engram/GraphTraversal-v0": "envs.tasks.graphs.traversal:GraphTraversal",
    "Engram/InvisibleGoalMaze-v0": "envs.maze:InvisibleGoalMaze",
    "Engram/MnistRecall-v0": "envs.tasks.images.mnist_recall:MnistRecall",
    "Engram/MnistSort-v0": "envs.tasks.images.mnist_sort:MnistSort",
    "Engram/PrioritySort-v0": "envs.tasks.sequence.priority_sort:PrioritySort",
    "Engram/RepeatCopy-v0": "envs.tasks.sequence.repeat_copy:RepeatCopy",
    "Engram/Mapping-v0": "envs.mapping.environment:Mapping",
    "Engram/RepeatFirst-v0": "envs.repeat_first:RepeatFirst",
    "Engram/ShortestPath-v0": "envs.tasks.graphs.shortest_path:ShortestPath",
    "Engram/StackGrammar-v0": "envs.tasks.sequence.stack_grammar:StackGrammar",
    "Engram/TMaze-v0": "envs.tmaze:TMaze",
}

for _id, _class in _CLASSES.items():
    if _id not in gymnasium.registry:
        gymnasium.register(id=_id, entry_point=_class.split(":")[0] + ":single", vector_entry_point=_class)


def registered() -> tuple[str, ...]:
    """The ids of all environments of this package, for `gymnasium.make` and `gymnasium.make_vec`."""
    return tuple(_CLASSES)
