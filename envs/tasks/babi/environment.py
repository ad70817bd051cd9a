"""Babi: read a story word by word and answer the questions in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from envs.single_env import single as _single
from envs.tasks.babi.generator import GENERATORS, generate
from envs.tasks.babi.stories import (
    EDITIONS,
    PLACEHOLDER,
    SPLITS,
    TASKS,
    VOCABULARY,
    Story,
    load,
    parse,
    single_questions,
)
from envs.tensor_env import Info, TensorEnv

SOURCES = ("generated", *EDITIONS)
PROTOCOLS = ("dnc", "mnm")


class Babi(TensorEnv):
    """The bAbI question-answering tasks, one or several together.

    Description:
        An episode is a story with all its questions; each step shows a word, a full stop or a question mark. After a
        question the placeholder `-` is shown once for every word of the answer, which is the target; answers are not
        shown. Each environment starts a new story when its story ends. With `protocol="mnm"` an episode is one question
        after the statements before it, so a story of five questions is five episodes.

    Observation: `Discrete(159)`: the current symbol, a number into `VOCABULARY`; `-` after the last step.

    Action: `Discrete(159)`: a word of the answer. `info["target"]` (int64 `[num_envs]`) is the right one where the
        placeholder is shown, else `-`; `info["weight"]` (float32 `[num_envs]`) is 1 there, else 0.

    Reward: `weight * [action == target] / (answer words in the story)`: 1 for a story without a mistake.

    Termination: after the last answer.

    Metrics:
        `error`: percentage of questions answered wrongly; an answer is right if all its words are.
        `error_qaN`: the same for the questions of task N, where several tasks are read. Their mean and the number of
        tasks above 5 %, as papers report them, are `mean_error` and `failed_tasks` of these.

    Args:
        num_envs: number of environments.
        source: "generated": stories from `envs.tasks.babi.generator`, without a download; or an edition of the
            published data, "en", "en-10k", "en-valid" or "en-valid-10k" (1,000 or 10,000 training questions per
            task; "valid" has a validation set; otherwise every tenth training story is used for it).
        split: "train", "valid" or "test".
        tasks: "all" (twenty; five if generated); "available": those of which the edition has all files; or one number
            or several.
        data_dir: folder searched first for the published archive; see `envs.data.files`.
        protocol: "dnc": an episode is a story with all its questions; "mnm": each question ends an episode of its own,
            without the earlier questions ("story" then means such an episode).
        in_order: False: each story is drawn from all stories of all tasks, equally likely. True: environment i reads
            stories i, i + num_envs, ... after each `reset`, so `num_stories` episodes contain every story once.
        stories: generated stories per task and split.
        questions: questions per generated story.
        device: torch device of all tensors.
        render_mode: None or "rgb_array"; answers are stored for pictures only if it is set.

    Scores:
        A policy without memory sees `-` at every step with an answer due, so it can only give a constant answer. The
        best one returns 0.108 on the generated stories ("one"; an `error` of 89.2) and 0.077 on the test set of
        en-valid-10k ("no"; 87.1). The best is 1. The error of a constant answer is the same in both protocols.

    Raises:
        ValueError: an argument is out of its range; or, as `DataError`, a file is missing or damaged.

    Source: Weston et al., "Towards AI-Complete Question Answering" (arXiv 1502.05698, 2015); words and placeholders as
        in Graves et al., "Hybrid computing using a neural network with dynamic external memory" (Nature, 2016). "mnm":
        Munkhdalai et al., "Metalearned Neural Memory" (NeurIPS 2019), section 4.2.
    """

    action_names = VOCABULARY
    observation_names = {"": VOCABULARY}  # noqa: RUF012 (never changed in place)
    ignores_actions = True
    state_names = ("story", "place", "round", "missed")
    story: Tensor  # number of the current story, [N]
    place: Tensor  # index of the current symbol in `_symbols`, [N]
    round: Tensor  # number of stories finished since the reset, [N]
    missed: Tensor  # whether a word of the current answer was wrong, [N]

    def __init__(
        self,
        num_envs: int = 1,
        *,
        source: str = "generated",
        split: str = "train",
        tasks: str | int | Sequence[int] = "all",
        data_dir: str | Path | None = None,
        protocol: str = "dnc",
        in_order: bool = False,
        stories: int = 1000,
        questions: int = 5,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        choices = (("source", source, SOURCES), ("split", split, SPLITS), ("protocol", protocol, PROTOCOLS))
        for name, value, known in choices:
            if value not in known:
                raise ValueError(f"{name} is {value!r}, expected one of {known}")
        if stories < 1 or questions < 1:
            raise ValueError(f"stories is {stories} and questions {questions}, expected at least 1 of both")
        tasks = _task_numbers(tasks, tuple(GENERATORS) if source == "generated" else range(1, len(TASKS) + 1))
        super().__init__(
            num_envs,
            spaces.Discrete(len(VOCABULARY)),
            spaces.Discrete(len(VOCABULARY)),
            device,
            horizon=None,
            render_mode=render_mode,
        )
        if source == "generated":
            chosen = tuple(GENERATORS) if isinstance(tasks, str) else tasks
            of_task = {task: parse(generate(task, stories, questions, split), f"generated qa{task}") for task in chosen}
        else:
            of_task = load(source, split, tasks, data_dir)
        if protocol == "mnm":
            of_task = {task: single_questions(whole_stories) for task, whole_stories in of_task.items()}
        self.tasks = tuple(of_task)
        """Numbers of the tasks."""
        several = len(self.tasks) > 1
        self.metric_names = ("error", *(f"error_qa{task}" for task in self.tasks if several))
        self.in_order = in_order
        self._env_indices = torch.arange(num_envs, device=self.device)
        counts = [len(stories_of_task) for stories_of_task in of_task.values()]
        self.num_stories = sum(counts)
        self._concatenate([story for stories_of_task in of_task.values() for story in stories_of_task])
        self._task_indices = torch.arange(len(counts), device=self.device)
        self._task = self._task_indices.repeat_interleave(
            torch.tensor(counts, device=self.device)
        )  # of each story, [S]
        self._given_answers: Tensor | None = None  # by step of the story, -1 where unknown: for pictures only
        if render_mode is not None:
            longest = int((self._last - self._first).max())
            self._given_answers = torch.full((num_envs, longest), -1, dtype=torch.int16, device=self.device)

    def _concatenate(self, stories: list[Story]) -> None:
        """Concatenates all stories, each followed by a placeholder at which no answer is due."""
        symbols: list[int] = []
        targets: list[int] = []
        closes: list[bool] = []
        lengths, answer_words = [], []
        for story in stories:
            begin, due = len(symbols), 0
            for line in story:
                symbols += line.words
                targets += [PLACEHOLDER] * len(line.words) + list(line.answer)
                symbols += [PLACEHOLDER] * len(line.answer)
                closes += [False] * (len(line.words) + len(line.answer))
                if line.answer:
                    closes[-1] = True
                    due += len(line.answer)
            symbols.append(PLACEHOLDER)
            targets.append(PLACEHOLDER)
            closes.append(False)
            lengths.append(len(symbols) - begin)
            answer_words.append(due)

        def tensor(values: list[Any], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=self.device)

        self._symbols, self._targets = tensor(symbols, torch.int16), tensor(targets, torch.int16)  # [P]
        self._closes = tensor(closes, torch.bool)  # [P], whether an answer is complete here
        ends = list(accumulate(lengths))
        self._first = tensor([end - length for end, length in zip(ends, lengths, strict=True)], torch.int64)  # [S]
        self._last = tensor([end - 1 for end in ends], torch.int64)  # [S], the placeholder after the end
        self._word_reward = 1.0 / tensor(answer_words, torch.float32)  # [S], reward of a right word

    # -- the environment -------------------------------------------------------------------------------------------

    def _begin(self, where: Tensor | None) -> None:
        began = torch.zeros_like(self._env_indices) if where is None else self.round + where
        if self.in_order:
            story = (self._env_indices + began * self.num_envs) % self.num_stories
        else:
            story = torch.randint(self.num_stories, (self.num_envs,), generator=self.generator, device=self.device)
        place = self._first.index_select(0, story)
        if where is not None:
            story, place = torch.where(where, story, self.story), torch.where(where, place, self.place)
        self.story, self.place, self.round = story, place, began
        if where is None:  # otherwise `_advance` has reset it
            self.missed = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, None]:
        target = self._targets.index_select(0, self.place)
        closes = self._closes.index_select(0, self.place)
        asked, right = target != PLACEHOLDER, action == target
        missed = self.missed | (asked & ~right)
        reward = (asked & right) * self._word_reward.index_select(0, self.story)
        if self._given_answers is not None:
            step = self.place - self._first.index_select(0, self.story)
            self._given_answers[self._env_indices, step] = action.to(torch.int16)

        of_task = self._task.index_select(0, self.story) == self._task_indices[:, None]  # [tasks, N]
        questions = closes.float()
        errors = (100.0 * missed) * questions
        each = zip(self.metric_names[1:], (of_task * errors).unbind(), (of_task * questions).unbind(), strict=False)
        self._measure(error=(errors, questions), **{name: (amount, count) for name, amount, count in each})

        self.missed = missed & ~closes
        self.place = self.place + 1
        return reward, self.place == self._last.index_select(0, self.story), None

    def _observe(self) -> Tensor:
        return self._symbols.index_select(0, self.place).long()

    def _describe(self) -> Info:
        target = self._targets.index_select(0, self.place).long()
        return {"target": target, "weight": (target != PLACEHOLDER).float()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        if self._given_answers is not None:
            self._given_answers.fill_(-1)

    # -- pictures --------------------------------------------------------------------------------------------------

    def _story_so_far(self, index: int) -> tuple[list[int], list[int], list[int], str]:
        """Symbols, right and given answers of environment `index` up to the current step, on the host, and a caption.

        Includes the current symbol, which has no answer yet; -1 stands for an unknown answer.
        """
        story, now = int(self.story[index]), int(self.place[index])
        first, last = int(self._first[story]), int(self._last[story])
        symbols = self._symbols[first : min(now + 1, last)].tolist()
        given = (
            [-1] * (now - first) if self._given_answers is None else self._given_answers[index, : now - first].tolist()
        )
        task = self.tasks[int(self._task[story])]
        caption = f"task {task}, {TASKS[task - 1]} · word {min(now + 1, last) - first} / {last - first}"
        return symbols, self._targets[first:now].tolist(), given, caption

    def text(self, index: int = 0) -> str:
        """The story so far, one sentence per line; after a question the right answer, and the given one if wrong."""
        from envs.tasks.babi.picture import story_text

        return story_text(*self._story_so_far(index))

    def frame(self, index: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
        from envs.tasks.babi.picture import story_frame  # pygame is needed for pictures only

        return story_frame(*self._story_so_far(index))


def _task_numbers(tasks: str | int | Sequence[int], known: Sequence[int]) -> str | tuple[int, ...]:
    """`tasks` unchanged if it is "all" or "available", else as a sorted tuple."""
    if tasks in ("all", "available"):
        return str(tasks)
    numbers = (tasks,) if isinstance(tasks, int) else () if isinstance(tasks, str) else tuple(tasks)
    if not numbers or len(set(numbers)) < len(numbers) or not set(numbers) <= set(known):
        raise ValueError(f"tasks is {tasks!r}, expected 'all', 'available' or different numbers among {list(known)}")
    return tuple(sorted(numbers))


def mean_error(metrics: Mapping[str, float]) -> float:
    """The mean of the tasks' errors in percent; of a single task, its error.

    Args:
        metrics: scores by name, such as `agents.evaluation.Score.metrics`.

    Raises:
        ValueError: they are not those of a `Babi`.
    """
    errors = _errors(metrics)
    return sum(errors) / len(errors)


def failed_tasks(metrics: Mapping[str, float], limit: float = 5.0) -> int:
    """The number of tasks with an error above `limit` percent; arguments and errors as in `mean_error`."""
    return sum(error > limit for error in _errors(metrics))


def _errors(metrics: Mapping[str, float]) -> list[float]:
    each = [value for name, value in metrics.items() if name.startswith("error_qa")]
    if not each and "error" not in metrics:
        raise ValueError(f"there is no 'error' or 'error_qaN' among {sorted(metrics)}")
    return each or [metrics["error"]]


single = _single(Babi)
