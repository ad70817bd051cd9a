"""Base class of the image tasks: images are stored once on the device and looked up by index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from envs.tasks.images.data import LABELLED, load_images, resized
from envs.tasks.sequence.base import SequenceTask, Steps


class ImageTask(SequenceTask):
    """A sequence task that shows images first and asks afterwards.

    `_sequences` returns image indices as `inputs`, int64 `[shown, N]`; a step looks the images up in `pixels`, uint8
    `[K, H, W]`, shared by all environments. An observation is a `Dict` with an entry "image" `[1, H, W]`, which is zero
    from step `shown` on.

    Args:
        num_envs: number of environments.
        source: see `load_images`.
        split: "train", "valid" or "test".
        data_dir: folder searched first for files.
        shown: number of different images in an episode, from 1 to the size of the split.
        horizon: steps of an episode.
        side: resize to this many pixels per side, by nearest neighbour; None: original size.
        classes: True: the answers are the ten classes. False: they are images, and `pixels` are binarised at 128 to 0
            (paper) and 1 (ink).
        query: add an entry "query" to the observation, also an image.
        priority: add an entry "priority" to the observation, a number in -1..1.
        device: torch device of all tensors.
        render_mode: None or "rgb_array".

    Raises:
        ValueError: `side` is below 1, `source` has no classes though `classes` is True, the split has fewer images than
            `shown`, or as `load_images`.
    """

    def __init__(
        self,
        num_envs: int,
        source: str,
        split: str,
        data_dir: str | Path | None,
        shown: int,
        horizon: int,
        side: int | None = None,
        classes: bool = True,
        query: bool = False,
        priority: bool = False,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        if side is not None and side < 1:
            raise ValueError(f"side is {side}, expected at least 1, or None")
        pixels, labels = load_images(source, split, data_dir=data_dir, device=device)
        if classes and labels is None:
            known = ", ".join(LABELLED)
            raise ValueError(f"source is {source!r}, which does not have ten classes; expected one of {known}")
        if shown > len(pixels):
            raise ValueError(f"an episode shows {shown} images, but this split has only {len(pixels)}")
        pixels = pixels if side is None else resized(pixels, side)
        self.pixels = pixels if classes else (pixels >= 128).to(torch.uint8)
        self.scale = 1 / 255 if classes else 1.0
        self.labels, self.shown = labels, shown
        size = (1, *pixels.shape[1:])
        entries: dict[str, spaces.Space[Any]] = {"image": spaces.Box(0.0, 1.0, size)}
        if query:
            entries["query"] = spaces.Box(0.0, 1.0, size)
        if priority:
            entries["priority"] = spaces.Box(-1.0, 1.0, (1,))
        action_space = spaces.Discrete(10) if classes else spaces.MultiBinary(list(size))
        super().__init__(num_envs, spaces.Dict(entries), action_space, horizon, device, render_mode)
        self._image_shape = (num_envs, *size)

    def _distinct(self, number: int) -> Tensor:
        """Indices of different images for each environment, in random order, drawn uniformly: `[number, N]`.

        Floyd's sampling: each number is drawn from a range larger by one than the previous range; if it is already
        chosen, the new last number of the range is used instead.
        """
        chosen = torch.full((number, self.num_envs), -1, device=self.device)
        for turn in range(number):
            newest = len(self.pixels) - number + turn
            drawn = self._integers(0, newest, self.num_envs)
            chosen[turn] = drawn.masked_fill((chosen[:turn] == drawn).any(0), newest)
        return chosen.gather(0, self._order(number))

    def _order(self, number: int) -> Tensor:
        """A random permutation for each environment, int64 `[number, N]`."""
        return self._uniform(number, self.num_envs).argsort(0)

    def _look_up(self, numbers: Tensor) -> Tensor:
        """Images `[..., N, 1, H, W]`, float32 in 0..1, by their numbers `[..., N]`."""
        images = self.pixels.index_select(0, numbers.flatten()).float()  # multiplying other types: three times as slow
        return (images if self.scale == 1 else images.mul_(self.scale)).view(*numbers.shape[:-1], *self._image_shape)

    def _images(self, numbers: Tensor, first: int, steps: Steps) -> Tensor:
        """Images `[N, 1, H, W]` of a step, or `[T, N, 1, H, W]` of several. `numbers` `[S, N]` are shown from step
        `first` on; other steps are blank."""
        if not isinstance(steps, slice):
            place = steps - first
            return self._look_up(numbers[place]) if 0 <= place < len(numbers) else self._blanks()
        begin, end = (min(max(step - first, 0), len(numbers)) for step in (steps.start, steps.stop))
        before = min(max(first - steps.start, 0), steps.stop - steps.start)
        after = steps.stop - steps.start - before - (end - begin)
        parts = [self._blanks(before), self._look_up(numbers[begin:end]), self._blanks(after)]
        parts = [part for part in parts if len(part)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _blanks(self, *steps: int) -> Tensor:
        """Blank images, `[*steps, N, 1, H, W]`."""
        return torch.zeros(*steps, *self._image_shape, device=self.device)

    def _other_entries(self, steps: Steps) -> dict[str, Tensor]:
        """The entries beside "image" of the observations of a step, `[N, ...]`, or of several, `[T, N, ...]`."""
        return {}

    def _shown(self, steps: Steps) -> dict[str, Tensor]:
        return {"image": self._images(self.inputs, 0, steps), **self._other_entries(steps)}
