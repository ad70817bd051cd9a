"""ImageEpisode: remember images, then complete or clean them up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from envs.bits import count_ones, random_events, random_words
from envs.single_env import single as _single
from envs.tasks.images.base import ImageTask
from envs.tasks.sequence.base import Sequences, Steps
from envs.tensor_env import Info

if TYPE_CHECKING:
    from envs.tasks.images.pictures import Cell

NOISE = {"salt-and-pepper": 0.2, "speckle": 0.5, "poisson": 2.0}
"""Kinds of noise and their default amounts."""
QUERIES = ("clean", *NOISE, "half")
LEVELS = 2**16


class ImageEpisode(ImageTask):
    """Remember an episode of black-and-white images; then reproduce each from a corrupted version.

    Description:
        `length` different images are shown, one per step. Then "image" is blank, and `recalls` of them are queried in
        random order, corrupted according to `query`; the target is the clean image.

        - "clean": not corrupted; Kanerva machines are scored by this read-out.
        - "salt-and-pepper": a share `noise` of the pixels is replaced, by ink or paper with equal probability.
        - "speckle": x + n x with n from N(0, noise²), clipped to 0..1.
        - "poisson": Poisson(noise · x) / noise, clipped to 0..1: ink emits `noise` photons on average.
        - "half": one of the left, right, upper and lower halves, drawn uniformly, is hidden (paper).

        Pixels from 0 (paper) to 255 (ink) are binarised at 128; two of the sources are binary already.

    Observation: `Dict` of "image", `Box(float32)` `[1, H, W]`, 0 paper and 1 ink, zero when nothing is shown; and
        "query", `Box(float32)` `[1, H, W]` in 0..1, zero while images are shown. Memories with readers pass it only
        to their readers.

    Action: `MultiBinary([1, H, W])`. `info["target"]` (int8, same shape) is the clean image, `info["weight"]`
        (float32 `[num_envs]`) 1 at queries, else 0. The log-probability of the target is the Bernoulli
        log-likelihood of the image in nats.

    Reward: `weight * (share of right pixels) / recalls`; a perfect episode returns 1.

    Termination: after `length + recalls` steps.

    Metrics: `wrong_pixels` (per recalled image), `error` (% of pixels).

    Args:
        num_envs: number of environments.
        source: "digits" (8x8, needs scikit-learn and no file), "mnist", "binarized-mnist" or "omniglot" (28x28, our own
            version), see `load_images`.
        split: "train", "valid" or "test".
        length: T, images in an episode, at least 1.
        recalls: number of questions, 1 to `length`; None: all.
        query: corruption of the questions: "clean", "salt-and-pepper", "speckle", "poisson" or "half".
        noise: amount of noise; None: 0.2 (0 to 1) for salt and pepper, 0.5 (≥ 0) for speckle, 2 (> 0) for Poisson
            noise.
        data_dir: folder searched first for files, see `envs.data.files`.
        device: torch device of all tensors.
        render_mode: None or "rgb_array".

    Scores:
        With memory 1. Without memory also 1 for "clean", where the query is the answer; docs/environments/images.md has
        the scores of the other queries. Answering only paper gets 0.68 to 0.90 of the pixels right.

    Raises:
        ValueError: an argument is out of its range.
        DataError: a file is missing or damaged.

    Source: the protocol of Ramapuram, Wu, Kalousis, "Kanerva++" (ICLR 2021), appendix E.1 (an episode is written, then
        read out), and its three kinds of noise, section 4.1 and figure 6; it gives no amounts. Hiding a half is ours.
    """

    metric_names = ("wrong_pixels", "error")
    state_names = (*ImageTask.state_names, "asked_with", "side_hidden")
    asked_with: Tensor  # numbers of the queried images, [recalls, N]
    side_hidden: Tensor  # index of the hidden half of each query, with `query="half"`, [recalls, N]

    def __init__(
        self,
        num_envs: int = 1,
        *,
        source: str = "digits",
        split: str = "train",
        length: int = 10,
        recalls: int | None = None,
        query: str = "salt-and-pepper",
        noise: float | None = None,
        data_dir: str | Path | None = None,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        if length < 1:
            raise ValueError(f"length is {length}, expected at least 1")
        self.recalls = length if recalls is None else recalls
        if not 1 <= self.recalls <= length:
            raise ValueError(f"recalls is {recalls}, expected 1 to length {length}, or None")
        if query not in QUERIES:
            raise ValueError(f"query is {query!r}, expected one of {', '.join(QUERIES)}")
        if noise is not None and query not in NOISE:
            raise ValueError(f"noise is {noise}, but query={query!r} uses none; expected noise=None")
        self.query = query
        self._flipped = 0
        """Salt and pepper flips this many of `LEVELS` pixels: half of the replaced ones."""
        self._ink: Tensor | None = None
        """Values of ink pixels under the other kinds of noise, `[LEVELS]`; paper stays paper."""
        if query in NOISE:
            paper, ink = noise_table(query, NOISE[query] if noise is None else noise)
            if query == "salt-and-pepper":
                self._flipped = int(paper.sum())
            else:
                self._ink = ink.to(device)
        super().__init__(
            num_envs,
            source,
            split,
            data_dir,
            shown=length,
            horizon=length + self.recalls,
            classes=False,
            query=True,
            device=device,
            render_mode=render_mode,
        )
        self._halves = halves(*self.pixels.shape[1:]).to(self.device)
        self._questions: dict[int, Tensor] = {}  # of the episode so far, by step, stored for pictures only

    def _begin(self, where: Tensor | None) -> None:
        super()._begin(where)
        self._questions.clear()

    def _sequences(self) -> Sequences:
        shown = self._distinct(self.shown)
        self.asked_with = shown.gather(0, self._order(self.shown)[: self.recalls])
        self.side_hidden = torch.zeros_like(self.asked_with)
        if self.query == "half":
            self.side_hidden = self._integers(0, 3, self.recalls, self.num_envs)
        weights = (self._times >= self.shown).expand(-1, self.num_envs).float()
        return Sequences(shown, self.asked_with, weights)  # targets are numbers of images too

    def _due(self) -> Tensor:
        """Right answers at the current step, int8 `[N, 1, H, W]`."""
        if self._elapsed < self.shown:
            return torch.zeros(self._image_shape, dtype=torch.int8, device=self.device)
        return self.pixels.index_select(0, self.targets[self._elapsed - self.shown]).unsqueeze(1).view(torch.int8)

    def _advance(self, action: Tensor) -> tuple[Tensor, None, None]:
        pixels, weight = math.prod(self._image_shape[1:]), self.weights[self._elapsed]
        if self._asks():
            wrong = weight * count_ones(action.to(torch.int8).view(self._image_shape) ^ self._due())
        else:
            wrong = torch.zeros_like(weight)
        if self.render_mode is not None:
            self._answers.append(action.clone())
        self._measure(wrong_pixels=(wrong, weight), error=(100.0 / pixels * wrong, weight))
        return (weight - wrong / pixels) / self.recalls, None, None

    def _other_entries(self, steps: Steps) -> dict[str, Tensor]:
        assert steps == self._elapsed, "noise is drawn when a question is asked, so there is no preview"
        return {"query": self._question() if self._asks() else self._blanks()}

    def _asks(self) -> bool:
        return self.shown <= self._elapsed < self.length

    def _question(self) -> Tensor:
        """The corrupted image of the current step, float32 `[N, 1, H, W]`; every call draws new noise."""
        turn = self._elapsed - self.shown
        image = self.pixels.index_select(0, self.asked_with[turn])
        if self.query in NOISE:
            question = self._noisy(image)
        elif self.query == "half":
            question = (image * self._halves.index_select(0, self.side_hidden[turn])).float()
        else:
            question = image.float()
        question = question.unsqueeze(1)
        if self.render_mode is not None:
            self._questions[self._elapsed] = question.clone()
        return question

    def _noisy(self, image: Tensor) -> Tensor:
        """Adds noise to binary pixels, float32 like `image`; 16 random bits decide each pixel."""
        size, source = image.numel(), (self.generator, self.device)
        if self._ink is None:
            return (random_events(self._flipped, size, *source).view(image.shape) ^ image).float()
        words = random_words(-(-size // 4), *source)
        quantile = words.view(torch.int16)[:size].to(torch.int32).add_(LEVELS // 2)
        return self._ink.index_select(0, quantile).view(image.shape).mul_(image.float())

    def _describe(self) -> Info:
        return {"target": self._due(), "weight": self.weights[self._elapsed].clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self._questions.clear()

    # -- pictures --------------------------------------------------------------------------------------------------

    def _recalled(self, index: int) -> list[tuple[Tensor | None, Tensor, Tensor | None]]:
        """Question, right answer and answer of every recall begun so far, `[H, W]`; None where one is not known."""
        first = self._elapsed - len(self._answers)  # of the answers known
        recalled = []
        for step in range(self.shown, min(self._elapsed + 1, self.length)):
            question = self._questions[step][index, 0] if step in self._questions else None
            given = self._answers[step - first][index, 0] if first <= step < self._elapsed else None
            recalled.append((question, self.pixels[self.targets[step - self.shown, index]], given))
        return recalled

    def text(self, index: int = 0) -> str:
        """The image or query shown, and the last target and answer: `#` ink, `.` paper, `+` between, `!` wrong."""
        blocks: list[tuple[str, list[str]]] = []
        recalled = self._recalled(index)
        answered = recalled[: self._elapsed - self.shown]
        if self._elapsed < self.shown:
            blocks.append(("shown", _rows(self.pixels[self.inputs[self._elapsed, index]])))
        elif len(recalled) > len(answered) and recalled[-1][0] is not None:
            blocks.append(("query", _rows(recalled[-1][0])))
        if answered:
            _, right, given = answered[-1]
            blocks.append(("right", _rows(right)))
            if given is not None:
                blocks.append(("answer", _rows(given, right)))
        width = self._image_shape[-1]
        lines = ["  ".join(name.ljust(width) for name, _ in blocks)]
        lines += ["  ".join(rows) for rows in zip(*(rows for _, rows in blocks), strict=True)]
        return "\n".join([self._caption(), *(line.rstrip() for line in lines)])

    def frame(self, index: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
        # imported here, because it needs pygame
        from envs.tasks.images.pictures import Section, album_frame, compared, grey

        shown = [grey(self.pixels[number] * 255) for number in self.inputs[: self._elapsed + 1, index].tolist()]
        recalled = self._recalled(index)
        answered = self._elapsed - self.shown  # targets are shown only after the answer
        rows: list[tuple[str, Sequence[Cell]]] = [
            ("query", [None if query is None else grey(query * 255) for query, _, _ in recalled]),
            ("target", [grey(right * 255) for _, right, _ in recalled[: max(0, answered)]]),
            ("recall", [None if given is None else compared(given, right) for _, right, given in recalled]),
        ]
        sections = [Section(self.shown, [("shown", shown)]), Section(self.recalls, rows)]
        return album_frame(sections, self._caption())


def noise_table(kind: str, amount: float) -> Tensor:
    """Noisy values of a pixel: float32 `[2, 65536]`, a row for paper (0) and one for ink (1), a column per quantile.

    Args:
        kind: a key of `NOISE`.
        amount: share of pixels, standard deviation, or number of photons.

    Raises:
        ValueError: `amount` is out of its range.
    """
    most = 1.0 if kind == "salt-and-pepper" else math.inf
    if not 0 <= amount <= most or (kind == "poisson" and amount == 0):
        raise ValueError(f"noise is {amount}, expected {'0 to 1' if most == 1 else 'above 0'} for {kind}")
    quantile = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    pixel = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    if kind == "salt-and-pepper":
        noisy = torch.where(quantile < amount / 2, 0.0, pixel.expand(-1, LEVELS))
        noisy = torch.where(quantile >= 1 - amount / 2, 1.0, noisy)
    elif kind == "speckle":
        normal = math.sqrt(2) * torch.erfinv(2 * quantile - 1)
        noisy = pixel * (1 + amount * normal)
    else:
        counts = torch.arange(math.ceil(amount) + 1, dtype=torch.float64)  # higher counts are clipped
        up_to = torch.special.gammaincc(counts + 1, torch.tensor(amount, dtype=torch.float64))  # P(count ≤ k)
        noisy = pixel * torch.searchsorted(up_to, quantile, right=True) / amount
    return noisy.clamp(0, 1).float()


def halves(height: int, width: int) -> Tensor:
    """Masks that hide the left, right, upper and lower half of an image: uint8 `[4, H, W]`."""
    seen = torch.ones(4, height, width, dtype=torch.uint8)
    seen[0, :, : width // 2] = 0
    seen[1, :, width - width // 2 :] = 0
    seen[2, : height // 2] = 0
    seen[3, height - height // 2 :] = 0
    return seen


def _rows(image: Tensor, right: Tensor | None = None) -> list[str]:
    signs = [["#" if x == 1 else "." if x == 0 else "+" for x in row] for row in image.tolist()]
    if right is not None:
        for y, x in (image != right).nonzero().tolist():
            signs[y][x] = "!"
    return ["".join(row) for row in signs]


single = _single(ImageEpisode)
