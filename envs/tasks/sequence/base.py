"""`SequenceTask`: a supervised sequence task as an environment; whole sequences are generated at every reset.

A subclass implements `_sequences`, which generates inputs, targets and weights of all environments and steps at once.
A step then looks up one row of each and compares, a `preview` many rows. Two kinds share this: `BitTask`, whose answers
are bit vectors or bit maps, and `SymbolTask`, whose answers are symbols.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from envs.bits import random_words
from envs.checks import check_advance
from envs.preview import Obs, Preview, Taken
from envs.tensor_env import AnswerGroup, Info, TensorEnv

Steps = int | slice
"""A step of an episode, or several in a row. A tensor of one step is `[N, ...]`, of several `[T, N, ...]`."""


class Sequences(NamedTuple):
    """Sequences of a task: T steps of N environments."""

    inputs: Tensor
    """Observations, float32 `[T, N, *observation_shape]`; a `SymbolTask` has symbols instead, int64 `[T, N]`."""
    targets: Tensor
    """Right answers `[T, N, *action_shape]`, of the action space's type."""
    weights: Tensor
    """Float32 `[T, N]`, or `[T, N, parts]` where an action has parts; 0 where nothing is asked."""


class SequenceTask(TensorEnv):
    """Base class of the sequence tasks.

    All environments start and end together, after `horizon` steps, the length of the longest sequence. Shorter
    sequences are padded with blank observations (zeros) of weight 0. The final observation is blank too.

    Reward: `weight * score / (sum of the weights of the episode)`, where the score is the share of right bits,
        or 1 for the right symbol and 0 for a wrong one. A perfect episode returns 1.

    Metrics (reported over all steps and environments):
        `error`: percentage of wrong answers (bits or symbols), of all that are due.
        `sequence_error`: share of episodes with at least one wrong answer.

    Args:
        num_envs: number of environments.
        observation_space: of one environment.
        action_space: of one environment.
        horizon: steps of an episode.
        device: torch device of all tensors.
        render_mode: None or "rgb_array"; answers are stored for pictures only if it is set.
    """

    ignores_actions: bool = True
    groups_answers: bool = True
    metric_names: tuple[str, ...] = ("error", "sequence_error")
    state_names: tuple[str, ...] = ("inputs", "targets", "weights", "total", "failed")
    inputs: Tensor
    targets: Tensor
    weights: Tensor
    total: Tensor  # sum of an episode's weights, [N]
    failed: Tensor  # whether an answer of the current sequence was wrong, [N]

    def __init__(
        self,
        num_envs: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        horizon: int,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(num_envs, observation_space, action_space, device, horizon=horizon, render_mode=render_mode)
        self.length = horizon
        self._env_indices = torch.arange(num_envs, device=self.device)
        self._times = torch.arange(horizon, device=self.device)[:, None]  # [T, 1], beside the environments' [N]
        self._answers: list[Tensor] = []  # of the episode so far, stored for pictures only

    # -- implemented by subclasses ----------------------------------------------------------------------------------

    def _sequences(self) -> Sequences:
        """Draws new sequences for all environments from `self.generator`. They must not be modified afterwards."""
        raise NotImplementedError

    def _shown(self, steps: Steps) -> Obs:
        """The observations `[N, ...]` of a step, or `[T, N, ...]` of several, in new tensors."""
        return self.inputs[steps].clone()

    def _metrics(self, wrong: Tensor, asked: Tensor, steps: Steps) -> dict[str, tuple[Tensor, Tensor]]:
        """Amounts and counts (see `_measure`), `[N]` of a step or `[T, N]` of several; called once for every step.

        Args:
            wrong: number of wrong answers, bits or symbols, float `[N]` or `[T, N]`.
            asked: number of answers due, float `[N]` or `[T, N]`.
            steps: the step or steps.
        """
        failed, ended = self._fail(wrong), self._ended(steps)
        return {"error": (100.0 * wrong, asked), "sequence_error": (failed * ended, ended)}

    def answer_groups(self) -> dict[str, AnswerGroup]:
        """Groups by the answer's position in its sequence, and by the sequence's number of answers; a subclass adds its
        own."""
        asked = self._asked()
        place = asked.cumsum(0)
        return {"place of the answer": AnswerGroup(place), "answers due": AnswerGroup(place[-1:].expand_as(place))}

    def _asked(self) -> Tensor:
        """Whether an answer is due, int64 `[T, N]`."""
        return (self.weights.reshape(self.length, self.num_envs, -1) > 0).any(2).long()

    # -- helpers for subclasses ------------------------------------------------------------------------------------

    def _ends(self, steps: Steps) -> bool:
        """Whether the last step of the episode is among them."""
        return (steps.stop if isinstance(steps, slice) else steps + 1) == self.length

    def _ended(self, steps: Steps) -> Tensor:
        """1 at the last step of the episode, else 0: float `[N]` or `[T, N]`."""
        if not isinstance(steps, slice):
            return torch.full((self.num_envs,), float(self._ends(steps)), device=self.device)
        ended = torch.zeros(steps.stop - steps.start, self.num_envs, device=self.device)
        ended[-1] = float(self._ends(steps))
        return ended

    def _fail(self, wrong: Tensor) -> Tensor:
        """Whether an answer of each sequence was wrong so far, bool `[N]` or `[T, N]`; updates `failed`."""
        if wrong.dim() == 1:
            self.failed = self.failed | (wrong > 0)
            return self.failed
        failed = self.failed | ((wrong > 0).cumsum(0) > 0)
        self.failed = failed[-1]
        return failed

    def _integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Random integers from `low` to `high`, both included: int64 `[*shape]`."""
        return torch.randint(low, high + 1, shape, generator=self.generator, device=self.device)

    def _bits(self, *shape: int) -> Tensor:
        """Random bits, int8 `[*shape]`: the low bits of the bytes of 64-bit words."""
        size = math.prod(shape)
        words = random_words(-(-size // 8), self.generator, self.device)
        return (words.view(torch.int8) & 1)[:size].view(shape)

    def _uniform(self, *shape: int) -> Tensor:
        """Random numbers from 0 to 1, float32 `[*shape]`."""
        return torch.rand(shape, generator=self.generator, device=self.device)

    def _pick(self, source: Tensor, index: Tensor) -> Tensor:
        """`source[index[t, n], n]` for all t and n: `[T, N, ...]` from `[S, N, ...]`; indices are cut to the range."""
        return source[index.clamp(0, len(source) - 1), self._env_indices]

    # -- the environment -------------------------------------------------------------------------------------------

    def _begin(self, where: Tensor | None) -> None:
        assert where is None
        self.inputs, self.targets, self.weights = self._sequences()
        self.total = self.weights.transpose(0, 1).flatten(1).sum(1)
        self.failed = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        self._answers.clear()

    def _advance(self, action: Tensor) -> tuple[Tensor, None, None]:
        reward, metrics = self._grade(action, self._elapsed)
        self._measure(**metrics)
        return reward, None, None

    def _grade(self, actions: Tensor, steps: Steps) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Rewards, `[N]` of a step or `[T, N]` of several, and metrics of the actions."""
        targets, weights = self.targets[steps], self.weights[steps]
        several = isinstance(steps, slice)
        right = (actions == targets).view(*targets.shape[: 1 + several], -1)  # [..., parts]: bits, or one symbol
        parts = right.shape[-1]
        if weights.dim() < right.dim():
            count = right.sum(-1)
            credit, wrong, asked = weights * count / parts, (weights > 0) * (parts - count), (weights > 0) * parts
        else:  # each part has a weight of its own
            credit, wrong, asked = (right * weights).sum(-1), ((weights > 0) & ~right).sum(-1), (weights > 0).sum(-1)
        if self.render_mode is not None:
            self._answers.extend(actions.clone() if several else actions.clone()[None])
        return credit / self.total, self._metrics(wrong.float(), asked.float(), steps)

    def _observe(self) -> Obs:
        if self._elapsed == self.length:
            return _blank(self.single_observation_space, self.num_envs, self.device)
        return self._shown(self._elapsed)

    def _describe(self) -> Info:
        return {"target": self.targets[self._elapsed].clone(), "weight": self.weights[self._elapsed].clone()}

    @property
    def previews(self) -> bool:
        # a subclass with steps of its own has to be stepped
        steps = ("step", "_advance", "_observe", "_describe")
        return self.autoreset and all(getattr(type(self), name) is getattr(SequenceTask, name) for name in steps)

    def preview(self, steps: int) -> Preview | None:
        end = self._elapsed + steps
        if not self.previews or end > self.length:
            return None
        part = slice(self._elapsed, end)
        return Preview(self._shown(part), self.targets[part].clone(), self.weights[part].clone(), self._take)

    def _take(self, actions: Tensor) -> Taken:
        steps = slice(self._elapsed, self._elapsed + len(actions))
        rewards, metrics = self._grade(actions, steps)
        if not self._checked:
            check_advance(self, (rewards[-1], None, None))
            self._checked = True
        ended = self._pass(len(actions))
        return Taken(self._observe(), rewards, ended, metrics)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self._answers.clear()

    # -- pictures --------------------------------------------------------------------------------------------------

    def _story(self, index: int) -> Story:
        """Inputs, targets and answers of environment `index` up to the current step."""
        now, parts = self._elapsed, math.prod(self.weights.shape[2:])
        answers: list[Tensor | None] = [None] * (now - len(self._answers))
        answers += [answer[index].cpu() for answer in self._answers]
        return Story(
            inputs=self.inputs[: now + 1, index].cpu(),
            targets=self.targets[:now, index].cpu(),
            asked=(self.weights[:now, index].reshape(now, parts) > 0).any(1).tolist(),
            answers=answers,
        )

    def _caption(self) -> str:
        return f"step {self._elapsed} / {self.length}"


class Story(NamedTuple):
    """An episode of one environment up to a step t, on the host."""

    inputs: Tensor
    """`[t + 1, ...]`: includes the current step, which has no answer yet."""
    targets: Tensor
    """`[t, ...]`."""
    asked: list[bool]
    """t entries: whether an answer was asked for."""
    answers: list[Tensor | None]
    """t entries; None where an answer is not known any more."""


class BitTask(SequenceTask):
    """A sequence task whose answers are bit vectors `MultiBinary(bits)` or bit maps `MultiBinary([H, W])`.

    It adds the metric `wrong_bits`: mean number of wrong bits per sequence. The cost in bits per sequence that papers
    plot is a cross-entropy, which only the learner knows: the sum of `-weight * log_prob(target)`, divided by ln 2.
    """

    metric_names = ("wrong_bits", "error", "sequence_error")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        shape = self.single_action_space.shape or ()
        if len(shape) == 1:
            ends = {0: ", top", shape[0] - 1: ", bottom"} if shape[0] > 1 else {}  # as in the picture
            self.action_names = tuple(f"bit {bit}{ends.get(bit, '')}" for bit in range(shape[0]))

    def _name_parts(self, *others: str) -> None:
        """Names the observation's parts: a vector of bits, then the numbers or maps that follow it."""
        shape = self.single_observation_space.shape or ()
        if len(shape) > 1:
            self.observation_names = {"": ("vector", *others)}
            return
        bits = shape[0] - len(others)
        self.observation_parts = (("vector", (bits,)), *((other, (1,)) for other in others))
        self.observation_names = {"vector": tuple(str(bit) for bit in range(bits))}

    def _metrics(self, wrong: Tensor, asked: Tensor, steps: Steps) -> dict[str, tuple[Tensor, Tensor]]:
        return {"wrong_bits": (wrong, self._ended(steps)), **super()._metrics(wrong, asked, steps)}

    def _columns(self, inputs: Tensor) -> Tensor:
        """Observations `[t, *observation_shape]` as columns `[t, rows]` of a picture. A map's channels beyond the first
        are constant, so one row shows each."""
        return inputs if inputs.dim() == 2 else torch.cat([inputs[:, 0].flatten(1), inputs[:, 1:, 0, 0]], 1)

    def text(self, index: int = 0) -> str:
        """Input, target and answer as text, one row per channel: `#` 1, `.` 0, `+` and `-` other numbers; `!` marks
        wrong bits."""
        from envs.tasks.sequence.pictures import bit_text

        story = self._story(index)
        return bit_text(
            self._columns(story.inputs), story.targets.flatten(1), story.answers, story.asked, self._caption()
        )

    def frame(self, index: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
        from envs.tasks.sequence.pictures import bit_frame  # pygame is needed for pictures only

        story = self._story(index)
        return bit_frame(
            self._columns(story.inputs),
            story.targets.flatten(1),
            story.answers,
            story.asked,
            self.length,
            self._caption(),
        )


class SymbolTask(SequenceTask):
    """A sequence task over symbols: observations are one-hot (zeros where blank), answers `Discrete`.

    Args:
        num_envs: number of environments.
        alphabet: one character for each symbol that can be shown; `len(alphabet)` is the blank.
        answers: number of symbols, from the first on, that can be answers.
        horizon: steps of an episode.
        device: torch device of all tensors.
        render_mode: None or "rgb_array".
    """

    def __init__(
        self,
        num_envs: int,
        alphabet: str,
        answers: int,
        horizon: int,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        size = len(alphabet)
        super().__init__(
            num_envs, spaces.Box(0.0, 1.0, (size,)), spaces.Discrete(answers), horizon, device, render_mode
        )
        self.alphabet = alphabet
        self.action_names = tuple(alphabet[:answers])
        self.observation_names = {"": tuple(alphabet)}
        self._rows = torch.eye(size + 1, size, device=self.device)  # the last row, of zeros, is the blank

    def _shown(self, steps: Steps) -> Tensor:
        return torch.nn.functional.embedding(self.inputs[steps], self._rows)

    def _words(self, index: int) -> tuple[str, str, str]:
        """Inputs, targets and answers so far, one character per step; blank if there is none or it is unknown."""
        story, names = self._story(index), self.alphabet + " "
        shown = "".join(names[symbol] for symbol in story.inputs.tolist())
        right = "".join(
            names[target] if asked else " " for target, asked in zip(story.targets.tolist(), story.asked, strict=True)
        )
        given = "".join(
            names[int(answer)] if asked and answer is not None else " "
            for answer, asked in zip(story.answers, story.asked, strict=True)
        )
        return shown, right, given

    def text(self, index: int = 0) -> str:
        """Inputs, targets and answers as text, one column per step; `!` marks errors."""
        shown, right, given = self._words(index)
        marks = "".join("!" if b not in (" ", a) else " " for a, b in zip(right, given, strict=True))
        rows = {"shown": shown, "right": right, "answer": given, "wrong": marks}
        return "\n".join([self._caption(), *(f"{name:<6}|{row}" for name, row in rows.items())])

    def frame(self, index: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
        from envs.tasks.sequence.pictures import symbol_frame  # pygame is needed for pictures only

        return symbol_frame(*self._words(index), self.alphabet, self.length, self._caption())


def _blank(space: spaces.Space[Any], num_envs: int, device: torch.device) -> Obs:
    """Observations of zeros, `[N, ...]`."""
    if isinstance(space, spaces.Dict):
        return {name: torch.zeros(num_envs, *(entry.shape or ()), device=device) for name, entry in space.items()}
    return torch.zeros(num_envs, *(space.shape or ()), device=device)


def check_range(name: str, low: int, high: int, least: int = 1) -> None:
    """Checks that a range of lengths is not empty and does not begin below `least`.

    Raises:
        ValueError: naming the two arguments `min_NAME` and `max_NAME`.
    """
    if not least <= low <= high:
        raise ValueError(f"min_{name} is {low} and max_{name} {high}; expected {least} <= min_{name} <= max_{name}")
