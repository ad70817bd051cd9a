"""MnistRecall: which digit followed this one?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.single_env import single as _single
from envs.tasks.base import Sequences
from envs.tasks.image_base import ImageTask


class MnistRecall(ImageTask):
    """Remember images of digits; asked with one of them, say the class of the next.

    Description:
        `length` different images are shown, one a step. Then the question is a copy of the k-th of them, k drawn evenly
        from all but the last for each copy, and the class of the image after it is due.

    Observation: `Dict` of "image", `Box(float32)` `[1, H, W]` in 0..1 (paper to ink), zero when nothing is shown; and
        "query", likewise, zero but for the last step. Memories with readers show it to these only.

    Action: `Discrete(10)`. `info["target"]` is the class due, `info["weight"]` (float32 `[num_envs]`) 1 at the last
        step, else 0.

    Reward: `weight * [action == target]`; a perfect episode returns 1.

    Termination: after `length + 1` steps; with `ask="last"` after `length`.

    Metrics: `error` (% wrong classes), `sequence_error` (the same as a share).

    Args:
        num_envs: number of copies.
        source: "digits" (8x8, needs scikit-learn and no file) or "mnist" (28x28).
        split: "train", "valid" or "test".
        length: images in an episode, at least 2.
        ask: "after": the question comes in a step of its own, while no image is shown; "last": with the last image, as
            in the released program, whose reader sees the memory that the last image left.
        side: resize the images to so many pixels a side, by nearest neighbour; None: as they are. The paper's 3, 6 and
            12 at once are multigrid's `input_levels="all"`.
        data_dir: looked into first for files, see `envs.data.find`.
        device: where everything lives.
        render_mode: None or "rgb_array".

    Scores:
        Without memory 0.1: the next image is independent of the one in the question (0.112 on MNIST, where ones are
        the most frequent). With memory as good as the reading of a digit, near 1.

    Raises:
        ValueError: an argument is out of its range.
        DataError: a file is missing or damaged.

    Source: Huynh, Maire, Walter, "Multigrid Neural Memory" (ICML 2020), supplement B.2.1; the lengths are those of the
        program github.com/trihuynh88/multigrid_mem, `mnist_recall`. There all copies of a batch are asked for the same
        k, training goes through the images without repetition, and pixels are 0 to 255.
    """

    state_names = (*ImageTask.state_names, "asked_with")
    asked_with: Tensor  # number of the image in the question, [N]

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
        if ask not in ("after", "last"):
            raise ValueError(f"ask is {ask!r}, expected 'after' or 'last'")
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
        place = self._integers(0, self.shown - 2, self.num_envs)
        self.asked_with = shown[place, self._copies]
        targets = torch.zeros(self.length, self.num_envs, dtype=torch.int64, device=self.device)
        targets[-1] = self.labels[shown[place + 1, self._copies]]
        weights = torch.zeros(self.length, self.num_envs, device=self.device)
        weights[-1] = 1.0
        return Sequences(shown, targets, weights)

    def _beside(self) -> dict[str, Tensor]:
        asks = self._elapsed == self.length - 1
        return {"query": self._look_up(self.asked_with) if asks else self._nothing()}

    def _scene(self, index: int) -> tuple[list[int], int | None, int | None]:
        """Numbers of the images shown so far; the place asked for and the answer, None where not known yet."""
        shown = self.inputs[: self._elapsed + 1, index].tolist()
        asks = self._elapsed >= self.length - 1
        place = self.inputs[:, index].tolist().index(int(self.asked_with[index])) if asks else None
        answered = self._elapsed == self.length and len(self._answers) == self.length
        return shown, place, int(self._answers[-1][index]) if answered else None

    def text(self, index: int = 0) -> str:
        """Classes shown; `?` under the one asked with, and under the next the answer, with `!` if it is wrong."""
        assert self.labels is not None
        shown, place, answer = self._scene(index)
        lines = [self._caption(), "shown |" + "".join(str(int(self.labels[number])) for number in shown)]
        if place is not None:
            said = "_" if answer is None else str(answer)
            wrong = answer is not None and answer != int(self.targets[-1, index])
            lines.append(f"asked |{' ' * place}?{said}{'!' if wrong else ''}")
        return "\n".join(lines)

    def frame(self, index: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
        from envs.tasks.image_pictures import Section, Verdict, album_frame, grey  # pygame is only needed to watch

        shown, place, answer = self._scene(index)
        images = [grey(self.pixels[number]) for number in shown]
        asked: list[Any] = [None] * self.shown
        said: list[Any] = [None] * self.shown
        if place is not None:
            asked[place] = images[place]
            if self._elapsed == self.length:
                right = int(self.targets[-1, index])
                asked[place + 1] = Verdict(str(right))
                said[place + 1] = None if answer is None else Verdict(str(answer), answer == right)
        rows = [("shown", images), ("query, target", asked), ("answer", said)]
        return album_frame([Section(self.shown, rows)], self._caption())


single = _single(MnistRecall)
