"""MnistSort: answer with the classes of digits in the order of their priorities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from envs.single_env import single as _single
from envs.tasks.images.base import ImageTask
from envs.tasks.sequence.base import Sequences, Steps

if TYPE_CHECKING:
    from envs.tasks.images.pictures import Cell


class MnistSort(ImageTask):
    """Remember images of digits and their priorities; then answer with their classes, highest priority first.

    Description:
        `length` different images are shown, one per step, each with a priority drawn from U[-1, 1]. Then, without
        input, the classes of the images are due in descending order of priority.

    Observation: `Dict` of "image", `Box(float32)` `[1, H, W]` in 0..1 (paper to ink), and "priority", `Box(float32)`
        `[1]`; both zero when nothing is shown.

    Action: `Discrete(10)`. `info["target"]` is the class due, `info["weight"]` (float32 `[num_envs]`) 1 in the second
        half of the episode, else 0.

    Reward: `weight * [action == target] / length`; a perfect episode returns 1.

    Termination: after `2 * length` steps.

    Metrics: `error` (% wrong classes), `sequence_error` (share of episodes with a wrong class).

    Args:
        num_envs: number of environments.
        source: "digits" (8x8, needs scikit-learn and no file) or "mnist" (28x28).
        split: "train", "valid" or "test".
        length: images in an episode, at least 1.
        side: resize the images to this many pixels per side, by nearest neighbour; None: original size. The paper's 3,
            6 and 12 at once are multigrid's `input_levels="all"`.
        data_dir: folder searched first for files, see `envs.data.files`.
        device: torch device of all tensors.
        render_mode: None or "rgb_array".

    Scores:
        Without memory 0.1: the answers are independent of what is seen when they are due (0.112 on MNIST, where ones
        are the most frequent). With memory near 1, limited by the classification of digits.

    Raises:
        ValueError: an argument is out of its range.
        DataError: a file is missing or damaged.

    Source: Huynh, Maire, Walter, "Multigrid Neural Memory" (ICML 2020), supplement B.2. It gives no number of images
        and no program; ten are those of its recall task. Priorities and order are those of its task on bit vectors.
    """

    state_names = (*ImageTask.state_names, "priority")
    priority: Tensor  # [shown, N]

    def __init__(
        self,
        num_envs: int = 1,
        *,
        source: str = "digits",
        split: str = "train",
        length: int = 10,
        side: int | None = None,
        data_dir: str | Path | None = None,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        if length < 1:
            raise ValueError(f"length is {length}, expected at least 1")
        super().__init__(
            num_envs,
            source,
            split,
            data_dir,
            shown=length,
            horizon=2 * length,
            side=side,
            priority=True,
            device=device,
            render_mode=render_mode,
        )

    def _sequences(self) -> Sequences:
        assert self.labels is not None
        shown = self._distinct(self.shown)
        self.priority = 2.0 * self._uniform(self.shown, self.num_envs) - 1.0
        due = self.labels[shown.gather(0, self.priority.argsort(0, descending=True))]
        asked = (self._times >= self.shown).expand(-1, self.num_envs)
        return Sequences(shown, torch.cat([torch.zeros_like(due), due]), asked.float())

    def _other_entries(self, steps: Steps) -> dict[str, Tensor]:
        begin, end = (steps.start, steps.stop) if isinstance(steps, slice) else (steps, steps + 1)
        shown = self.priority[begin:end]
        later = torch.zeros(end - begin - len(shown), self.num_envs, device=self.device)
        priority = torch.cat([shown, later]).unsqueeze(2)
        return {"priority": priority if isinstance(steps, slice) else priority[0]}

    def _scene(self, index: int) -> tuple[list[int], list[int], list[int | None]]:
        """Numbers of the images shown so far, those due so far in their order, and the answers (None: not known)."""
        order = self.priority[:, index].argsort(descending=True)
        due = self.inputs[order, index].tolist()[: max(0, self._elapsed - self.shown)]
        answers = [None if given is None else int(given) for given in self._story(index).answers]
        return self.inputs[: self._elapsed + 1, index].tolist(), due, answers[self.shown :]

    def text(self, index: int = 0) -> str:
        """Classes and ranks of the images shown, then the classes due and given so far, with `!` under wrong ones."""
        assert self.labels is not None
        shown, due, answers = self._scene(index)
        ranks = self.priority[: len(shown), index].argsort(descending=True).argsort().tolist()
        right = [str(int(self.labels[number])) for number in due]
        given = [" " if answer is None else str(answer) for answer in answers]
        rows = {
            "shown": [str(int(self.labels[number])) for number in shown],
            "rank": [str(rank + 1) for rank in ranks],
            "right": right,
            "answer": given,
            "wrong": ["!" if b not in (a, " ") else " " for a, b in zip(right, given, strict=True)],
        }
        return "\n".join(
            [self._caption(), *(f"{name:<6}|{''.join(f'{x:>3}' for x in row)}" for name, row in rows.items())]
        )

    def frame(self, index: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
        # imported here, because it needs pygame
        from envs.tasks.images.pictures import Level, Section, Verdict, album_frame, grey

        assert self.labels is not None
        shown, due, answers = self._scene(index)
        right = [int(self.labels[number]) for number in due]
        given = [
            None if answer is None else Verdict(str(answer), answer == truth)
            for answer, truth in zip(answers, right, strict=True)
        ]
        images: list[tuple[str, Sequence[Cell]]] = [
            ("shown", [grey(self.pixels[number]) for number in shown]),
            ("priority", [Level(value) for value in self.priority[: len(shown), index].tolist()]),
        ]
        ordered: list[tuple[str, Sequence[Cell]]] = [
            ("sorted", [grey(self.pixels[number]) for number in due]),
            ("target", [Verdict(str(truth)) for truth in right]),
            ("answer", given),
        ]
        return album_frame([Section(self.shown, images), Section(self.shown, ordered)], self._caption())


single = _single(MnistSort)
