"""Pictures and texts of the sequence tasks: inputs, targets and answers, aligned in time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from envs.rendering import (
    FAINT,
    FLOOR,
    HUES,
    INK,
    LINE,
    RIGHT,
    WRONG,
    Canvas,
    Colour,
    Frame,
    available_size,
    blend,
    fold,
)

_MARGIN, _NAMES = 16, 64  # pixels around the picture, and for the names at its left


def bit_text(
    inputs: Tensor, targets: Tensor, answers: Sequence[Tensor | None], asked: Sequence[bool], caption: str
) -> str:
    """Three blocks of text: one row per channel, one column per step.

    Args:
        inputs: `[t + 1, channels]`.
        targets: `[t, bits]`.
        answers: t entries of `bits` bits, or None.
        asked: t entries: steps without a question stay empty.
        caption: the first line.
    """
    right = [[_sign(bit) if on else " " for bit in row] for row, on in zip(targets.tolist(), asked, strict=True)]
    given_bits = []
    for answer, target, on in zip(answers, targets.tolist(), asked, strict=True):
        bits = answer.flatten().tolist() if answer is not None else None
        given_bits.append(
            [" "] * len(target)
            if bits is None or not on
            else [_sign(bit) if bit == want else "!" for bit, want in zip(bits, target, strict=True)]
        )
    lines = [caption]
    blocks = (
        ("shown", [[_sign(value) for value in row] for row in inputs.tolist()], inputs.shape[1]),
        ("right", right, targets.shape[1]),
        ("answer", given_bits, targets.shape[1]),
    )
    for name, columns, rows in blocks:
        for row in range(rows):
            lines.append(f"{name if row == 0 else '':<6}|" + "".join(column[row] for column in columns))
    return "\n".join(lines)


def _sign(value: float) -> str:
    return "." if value == 0 else "#" if value == 1 else "+" if value > 0 else "-"


def bit_frame(
    inputs: Tensor,
    targets: Tensor,
    answers: Sequence[Tensor | None],
    asked: Sequence[bool],
    length: int,
    caption: str,
) -> Frame:
    """Strips of cells over time: input, target and prediction, wrong bits of the prediction in red.

    Args:
        inputs: `[t + 1, channels]`.
        targets: `[t, bits]`.
        answers: t entries of `bits` bits, or None.
        asked: t entries: steps without a question stay empty.
        length: steps of an episode; future steps stay empty.
        caption: a line underneath.
    """
    channels, bits = inputs.shape[1], targets.shape[1]
    tall = channels + 2 * bits
    per_row = length if tall > 6 else min(length, 50)  # low strips are broken into lines
    cell, gap = max(5.0, min(18.0, 900 / per_row)), 10.0
    lines = math.ceil(length / per_row)
    if (available := available_size()) is not None:
        # cells as wide as the task's own steps allow, yet legible; the lines that fit, the present one last
        most = (available.height - 4 * _MARGIN - 2 * gap) / tall
        cell = max(5.0, min(18.0, most, (available.width - _NAMES - 2 * _MARGIN) / per_row))
        per_row, lines = fold(
            length, cell, tall * cell + 2 * gap + 20, (_NAMES + 2 * _MARGIN, 4 * _MARGIN), (per_row, lines)
        )
    skipped = max(0, (min(len(inputs), length) - 1) // per_row - lines + 1)
    block = tall * cell + 2 * gap
    pitch = block + (20 if lines > 1 else 0)
    width = _NAMES + per_row * cell + 2 * _MARGIN
    canvas = Canvas(max(width, 240), lines * pitch + 4 * _MARGIN)
    tops = (0.0, channels * cell + gap, (channels + bits) * cell + 2 * gap)
    heights = (channels, bits, bits)
    left = (canvas.width - width) / 2 + _MARGIN + _NAMES

    for line in range(lines):
        columns = min(per_row, length - (line + skipped) * per_row)
        for name, top, height in zip(("input", "target", "answer"), tops, heights, strict=True):
            y = _MARGIN + line * pitch + top
            canvas.box(left - 2, y - 2, columns * cell + 4, height * cell + 4, LINE, round=3)
            canvas.text(name, left - 10, y + height * cell / 2, 17, anchor="midright")

    def draw(step: int, top: float, row: int, colour: Colour) -> None:
        line = step // per_row - skipped
        if line < 0:
            return
        x = left + step % per_row * cell
        y = _MARGIN + line * pitch + top + row * cell
        canvas.box(x + 0.5, y + 0.5, cell - 1, cell - 1, colour)

    for step, values in enumerate(inputs.tolist()):
        for row, value in enumerate(values):
            hue = HUES[0] if value > 0 else HUES[1]  # negative numbers are of another colour
            draw(step, tops[0], row, blend(FLOOR, hue, min(1.0, abs(value))))
    for step, (target, answer, on) in enumerate(zip(targets.tolist(), answers, asked, strict=True)):
        if not on:
            continue
        given_bits = None if answer is None else answer.flatten().tolist()
        for row, bit in enumerate(target):
            draw(step, tops[1], row, INK if bit else FLOOR)
            if given_bits is not None:
                wrong = given_bits[row] != bit
                ink, paper = (WRONG, blend(WRONG, FLOOR, 0.55)) if wrong else (RIGHT, FLOOR)
                draw(step, tops[2], row, ink if given_bits[row] else paper)
    now = len(inputs) - 1  # the current step
    if now < length:
        x = left + now % per_row * cell + cell / 2
        y = _MARGIN + (now // per_row - skipped) * pitch + block + 4
        canvas.polygon([(x, y), (x - 5, y + 8), (x + 5, y + 8)], INK)
    canvas.caption(caption, left, canvas.height - 1.4 * _MARGIN)
    return canvas.frame()


def symbol_frame(shown: str, right: str, given: str, alphabet: str, length: int, caption: str) -> Frame:
    """Tiles over time, in lines: the symbol shown, the right answer, and the answer given with its verdict.

    Args:
        shown: t + 1 characters; blank if nothing was shown.
        right: t characters; blank if nothing was asked.
        given: t characters; blank if nothing was asked or the answer is unknown.
        alphabet: all characters; each has its own hue.
        length: steps of an episode; future steps stay empty.
        caption: a line underneath.
    """
    tile, gap = 24, 10
    pitch = 3 * tile + gap
    columns = min(length, 36)
    default = columns, min(math.ceil(length / columns), 6)
    per_row, lines = fold(length, tile, pitch, (_NAMES + 2 * _MARGIN, 3.5 * _MARGIN), default)
    # A long episode scrolls: the line of the current step is the last to be seen.
    skipped = max(0, (min(len(shown), length) - 1) // per_row - lines + 1)
    width = _NAMES + per_row * tile + 2 * _MARGIN
    canvas = Canvas(max(width, 240), lines * pitch + 3.5 * _MARGIN)
    left = (canvas.width - width) / 2 + _MARGIN + _NAMES
    for line in range(lines):
        first = (line + skipped) * per_row
        top = _MARGIN + line * pitch
        for row, name in enumerate(("input", "target", "answer")):
            canvas.text(name, left - 10, top + (row + 0.5) * tile, 17, anchor="midright")
        for step in range(first, min(first + per_row, length)):
            x, now = left + (step - first) * tile, step == len(shown) - 1
            for row, letters in enumerate((shown, right, given)):
                letter = letters[step] if step < len(letters) else " "
                y, inner = top + row * tile, (x + 1, top + row * tile + 1, tile - 2, tile - 2)
                middle = (x + tile / 2, y + tile / 2 + 1)
                if letter == " ":
                    canvas.box(*inner, LINE, round=5, line=1)
                elif row == 2:
                    verdict = RIGHT if letter == right[step] else WRONG
                    canvas.box(*inner, blend(verdict, FLOOR, 0.75), round=5)
                    canvas.box(*inner, verdict, round=5, line=1.5)
                    canvas.text(letter, *middle, 19, verdict, "center")
                elif row == 1:
                    canvas.box(*inner, FLOOR, round=5)
                    canvas.text(letter, *middle, 19, INK, "center")
                else:
                    hue = HUES[alphabet.index(letter) % len(HUES)] if letter.isalnum() else FAINT
                    canvas.box(*inner, hue, round=5)
                    canvas.text(letter, *middle, 19, FLOOR, "center")
            if now:
                canvas.box(x - 1, top - 1, tile + 2, tile + 2, INK, round=6, line=2)
    canvas.caption(caption, left, canvas.height - 1.2 * _MARGIN)
    return canvas.frame()
