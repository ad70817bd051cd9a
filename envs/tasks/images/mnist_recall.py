"""MnistRecall: recall which digit followed the queried one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from envs.single_env import single as _single
from envs.tasks.images.base import ImageTask
from envs.tasks.sequence.base import Sequences, Steps
from envs.tensor_env import AnswerGroup

ASK = ("after", "last", "each")


class MnistRecall(ImageTask):
    """Remember images of digits; given one of them, answer with the class of the next.

    Description:
        `length` different images are shown, one per step. Then the k-th of them is shown again as the query, with k
        drawn for each environment from all except the last, and the target is the class of the image after it. With
        `ask="each"` every image except the first comes with a query about those shown so far.

    Observation: `Dict` of "image", `Box(float32)` `[1, H, W]` in 0..1 (paper to ink), zero when nothing is shown; and
        "query", likewise, zero without a query. Memories with readers pass it only to their readers.

    Action: `Discrete(10)`. `info["target"]` is the class, `info["weight"]` (float32 `[num_envs]`) 1 at steps with a
        query: the last step, or with `ask="each"` all except the first.

    Reward: `weight * [action == target] / (questions of an episode)`; a perfect episode returns 1.

    Termination: after `length` steps; with `ask="after"` after `length + 1`.

    Metrics: `error` (% wrong classes), `sequence_error` (the same as a share).

    Args:
        num_envs: number of environments.
        source: "digits" (8x8, needs scikit-learn and no file) or "mnist" (28x28).
        split: "train", "valid" or "test".
        length: images in an episode, at least 2.
        ask: "after": the query comes in a separate step, without an image; "last": with the last image, as
            in the released program, whose reader sees the memory that the last image left; "each": with every image
            except the first, which gives more targets per episode, easy ones first.
        side: resize the images to this many pixels per side, by nearest neighbour; None: original size. The paper's 3,
            6 and 12 at once are multigrid's `input_levels="all"`.
        data_dir: folder searched first for files, see `envs.data.files`.
        device: torch device of all tensors.
        render_mode: None or "rgb_array".

    Scores:
        Without memory 0.1: the next image is independent of the queried one (0.112 on MNIST, where ones are
        the most frequent). With `ask="last"` 0.2 and with "each" 0.38, since the image in view may be the answer. With
        memory near 1, limited by the classification of digits.

    Raises:
        ValueError: an argument is out of its range.
        DataError: a file is missing or damaged.

    Source: Huynh, Maire, Walter, "Multigrid Neural Memory" (ICML 2020), supplement B.2.1; the lengths are those of the
        program github.com/trihuynh88/multigrid_mem, `mnist_recall`. There all environments of a batch are asked for the
        same k, training goes through the images without repetition, and pixels are 0 to 255.
    """

    state_names = (*ImageTask.state_names, "asked_with")
    asked_with: Tensor  # number of the image in each question, [questions, N]

    def __init__(
        self,
        num_envs: int = 1,
        *,
        source: str = "digits",
        split: str = "train",
        length: int = 10,
        ask: str = "after",
        side: int | None = None,
        data_dir: str | Path | None = None,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        if length < 2:
            raise ValueError(f"length is {length}, expected at least 2: an image and the one after it")
        if ask not in ASK:
            raise ValueError(f"ask is {ask!r}, expected one of {', '.join(ASK)}")
        self.asks_each = ask == "each"
        self.first_asked = {"after": length, "last": length - 1, "each": 1}[ask]
        super().__init__(
            num_envs,
            source,
            split,
            data_dir,
            shown=length,
            horizon=length + (ask == "after"),
            side=side,
            query=True,
            device=device,
            render_mode=render_mode,
        )

    def _sequences(self) -> Sequences:
        assert self.labels is not None
        shown = self._distinct(self.shown)
        asked = slice(self.first_asked, self.length)
        followed = (min(step, self.shown - 1) for step in range(self.length)[asked])  # images that another one follows
        place = torch.stack([self._integers(0, count - 1, self.num_envs) for count in followed])
        self.asked_with = self._pick(shown, place)
        targets = torch.zeros(self.length, self.num_envs, dtype=torch.int64, device=self.device)
        targets[asked] = self.labels[self._pick(shown, place + 1)]
        weights = torch.zeros(self.length, self.num_envs, device=self.device)
        weights[asked] = 1.0
        return Sequences(shown, targets, weights)

    def _other_entries(self, steps: Steps) -> dict[str, Tensor]:
        return {"query": self._images(self.asked_with, self.first_asked, steps)}

    def answer_groups(self) -> dict[str, AnswerGroup]:
        """Also groups by the number of images shown since the one whose class is the answer."""
        shown = (self._times + 1).clamp(max=self.shown).expand(-1, self.num_envs)
        since = torch.zeros_like(self.targets)
        due = (self.inputs == self.asked_with[:, None]).long().argmax(1) + 2  # its place from 1 on, [questions, N]
        since[self.first_asked :] = shown[self.first_asked :] - due
        return {**super().answer_groups(), "images after the one due": AnswerGroup(since)}

    def _scene(self, index: int) -> Scene:
        first, end = self.first_asked, self._elapsed
        answers: list[int | None] = [None] * (end - len(self._answers))
        answers += [int(answer[index]) for answer in self._answers]
        return Scene(
            shown=self.inputs[: end + 1, index].tolist(),
            asked_with=self.asked_with[: max(end + 1 - first, 0), index].tolist(),
            targets=self.targets[first:end, index].tolist(),
            answers=answers[first:],
        )

    def text(self, index: int = 0) -> str:
        """Classes shown; `?` under the one asked with, and under the next the answer, with `!` if it is wrong.

        With a query at each step: the classes asked with, due and answered under the image that each came with.
        """
        assert self.labels is not None
        scene = self._scene(index)
        marks = ["_" if given is None else str(given) for given in scene.answers]
        wrong = [given not in (None, due) for given, due in zip(scene.answers, scene.targets, strict=True)]
        lines = [self._caption(), "shown |" + self._classes(scene.shown)]
        if scene.asked_with and not self.asks_each:
            place = " " * scene.shown.index(scene.asked_with[0])
            lines.append(f"asked |{place}?{marks[0] if marks else '_'}{'!' if any(wrong) else ''}")
        elif scene.asked_with:
            rows = {"asked": self._classes(scene.asked_with), "right": "".join(map(str, scene.targets))}
            rows |= {"answer": "".join(marks), "wrong": "".join(" !"[is_wrong] for is_wrong in wrong)}
            lines += [f"{name:<6}| {row}" for name, row in rows.items()]
        return "\n".join(lines)

    def _classes(self, numbers: list[int]) -> str:
        assert self.labels is not None
        return "".join(str(int(self.labels[number])) for number in numbers)

    def frame(self, index: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
        from envs.tasks.images.pictures import Section, Verdict, album_frame, grey  # pygame is needed for pictures only

        scene = self._scene(index)
        asked: list[Any] = [grey(self.pixels[number]) for number in scene.asked_with]
        due: list[Any] = [Verdict(str(right)) for right in scene.targets]
        given: list[Any] = [
            None if answer is None else Verdict(str(answer), answer == right)
            for answer, right in zip(scene.answers, scene.targets, strict=True)
        ]
        shown = ("shown", [grey(self.pixels[number]) for number in scene.shown])
        if self.asks_each:
            rows = [shown, ("query", [None, *asked]), ("target", [None, *due]), ("answer", [None, *given])]
        else:  # in the columns of the image asked with and the one after it
            before: list[Any] = [None] * (scene.shown.index(scene.asked_with[0]) if asked else 0)
            rows = [shown, ("query, target", before + asked + due), ("answer", [*before, None, *given])]
        return album_frame([Section(self.shown, rows)], self._caption())


class Scene(NamedTuple):
    """An episode of one environment up to the current step, on the host."""

    shown: list[int]
    """Numbers of the images."""
    asked_with: list[int]
    """Numbers of the images in the questions; the last may not be answered yet."""
    targets: list[int]
    """Classes due to the questions that have been answered."""
    answers: list[int | None]
    """To the same; None where an answer is not known any more."""


single = _single(MnistRecall)
