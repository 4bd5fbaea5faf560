"""Triggers to look at: images without and with each trigger, and what it changes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from otbr_jax.errors import InputError
from otbr_jax.report import html
from otbr_jax.report.numbers import formatted
from otbr_jax.report.plots import NEUTRAL, STYLE, displayable
from otbr_jax.report.quality import Quality, check_pairs
from otbr_jax.report.table import Column, Table

_FACTORS = (0.5, 1, 2, 5, 10, 20, 50, 100)
# In inches.
_CELL, _GAP, _LEFT, _TITLE, _LINE, _SPACE, _MARGIN = 0.82, 0.05, 1.12, 0.2, 0.16, 0.3, 0.1
_NARROWEST = 5.6  # that name and quality fit into one line
_INK, _SOFT = "#24292f", "#57606a"


class Example(NamedTuple):
    """One attack.

    Attributes:
      name: of the attack.
      clean: uint8 `[k, h, w, c]` with 1 or 3 channels.
      triggered: the same images with the trigger.
      quality: of the trigger, usually on more images than are shown.
      note: a few words on its settings; may be empty.
    """

    name: str
    clean: np.ndarray
    triggered: np.ndarray
    quality: Quality
    note: str


def amplification(clean: np.ndarray, triggered: np.ndarray) -> float:
    """The factor that makes the differences of these uint8 images as visible as they can be without clipping."""
    largest = int(np.max(np.abs(_difference(clean, triggered))))
    return max((factor for factor in _FACTORS if factor * largest <= 127.5), default=_FACTORS[0]) if largest else 1


def figure(entries: Sequence[Example]) -> Figure:
    """For each attack three rows of images: clean, with the trigger, and the difference around grey.

    Differences are signed: grey is no change, brighter is more of a channel, darker less. Images of one attack have one
    size; those of different attacks may differ in size, channels and number.

    Raises:
      InputError: if there is no entry, or an entry's images are not uint8 `[k, h, w, 1 or 3]` in pairs.
    """
    _check(entries)
    columns = max(len(entry.clean) for entry in entries)
    width = max(_NARROWEST, _LEFT + columns * (_CELL + _GAP) - _GAP + _MARGIN)
    notes = [textwrap.wrap(entry.note, int(width * 15)) for entry in entries]
    heights = [_TITLE + len(lines) * _LINE + 3 * (_CELL + _GAP) for lines in notes]
    total = sum(heights) + _SPACE * (len(entries) - 1) + 2 * _MARGIN
    with mpl.rc_context(STYLE):
        drawing = Figure(figsize=(width, total))
        top = total - _MARGIN
        for entry, lines, height in zip(entries, notes, heights, strict=True):
            _group(drawing, entry, lines, top=top)
            top -= height + _SPACE
        return drawing


def overview(entries: Sequence[Example]) -> Figure:
    """One column for each attack: its first image clean, with the trigger, and the change. Raises as `figure`."""
    _check(entries)
    width, total = _LEFT + len(entries) * (_CELL + _GAP) + _MARGIN, _TITLE + 3 * (_CELL + _GAP) + _LINE + 2 * _MARGIN
    with mpl.rc_context(STYLE):
        drawing = Figure(figsize=(width, total))
        for column, entry in enumerate(entries):
            factor = amplification(entry.clean[:1], entry.triggered[:1])
            left, top = _LEFT + column * (_CELL + _GAP), total - _MARGIN - _TITLE
            middle = (left + _CELL / 2) / width
            name = entry.name.partition(",")[0].replace("_", "-")
            drawing.text(middle, (top + 0.05) / total, name, fontsize=9, color=_INK, ha="center")
            for row, images in enumerate(_rows(entry, factor)):
                _image(drawing, images[0], left=left, bottom=top - row * (_CELL + _GAP) - _CELL)
            drawing.text(middle, _MARGIN / total, f"x{factor:g}", fontsize=8.5, color=_SOFT, ha="center")
        for row, name in enumerate(("clean", "with trigger", "change")):
            height = total - _MARGIN - _TITLE - row * (_CELL + _GAP) - _CELL / 2
            place = ((_LEFT - 0.1) / width, height / total)
            drawing.text(*place, name, fontsize=9, color=_INK, ha="right", va="center")
        return drawing


def render(entries: Sequence[Example], *, title: str = "Triggers") -> str:
    """The gallery as one HTML page, figures included; it loads nothing from anywhere. Raises as `figure`."""
    drawing = html.embed(figure(entries))
    return html.render("gallery.html", title=title, table=quality_table(entries), drawing=drawing)


def quality_table(entries: Sequence[Example]) -> Table:
    """How well each trigger hides: PSNR, SSIM, largest change, and its settings."""
    columns = ("attack", "PSNR, dB", "SSIM", "largest change", Column("trigger", "left"))
    rows = [
        (
            entry.name,
            formatted(entry.quality.psnr, ".1f"),
            f"{entry.quality.ssim:.3f}",
            str(entry.quality.largest),
            entry.note,
        )
        for entry in entries
    ]
    return Table(columns, rows)


def _check(entries: Sequence[Example]) -> None:
    if not entries:
        raise InputError("entries: expected at least one attack, found none")
    for entry in entries:
        try:
            check_pairs(entry.clean, entry.triggered)
        except InputError as error:
            raise InputError(f"{entry.name}: {error}") from None
        if entry.clean.shape[-1] not in (1, 3):
            raise InputError(f"{entry.name}: clean: expected 1 or 3 channels, found {entry.clean.shape[-1]}")


def _group(drawing: Figure, entry: Example, note: Sequence[str], *, top: float) -> None:
    """Draws one attack, `top` inches above the figure's lower edge."""
    width, total = drawing.get_size_inches()
    factor = amplification(entry.clean, entry.triggered)

    def write(x: float, y: float, text: str, **style: Any) -> None:
        drawing.text(x / width, y / total, text, va="top", **style)

    write(_MARGIN, top, entry.name, fontsize=10, fontweight="bold", color=_INK)
    write(width - _MARGIN, top, _described(entry.quality), fontsize=8.5, color=_SOFT, ha="right")
    for number, line in enumerate(note):
        write(_MARGIN, top - _TITLE - number * _LINE, line, fontsize=8.5, color=_SOFT)
    names = ("clean", "with trigger", f"change x{factor:g}")
    for row, (name, images) in enumerate(zip(names, _rows(entry, factor), strict=True)):
        bottom = top - _TITLE - len(note) * _LINE - (row + 1) * (_CELL + _GAP) + _GAP
        drawing.text(
            (_LEFT - 0.1) / width, (bottom + _CELL / 2) / total, name, fontsize=9, color=_INK, ha="right", va="center"
        )
        for column, image in enumerate(images):
            _image(drawing, image, left=_LEFT + column * (_CELL + _GAP), bottom=bottom)


def _rows(entry: Example, factor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clean images, those with the trigger, and the change around grey, in [0, 1]."""
    changes = 0.5 + factor * _difference(entry.clean, entry.triggered) / 255
    return entry.clean / 255, entry.triggered / 255, changes


def _image(drawing: Figure, image: np.ndarray, *, left: float, bottom: float) -> None:
    width, total = drawing.get_size_inches()
    axis = drawing.add_axes((left / width, bottom / total, _CELL / width, _CELL / total))
    axis.imshow(np.clip(displayable(image), 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():  # an image may be as white as the page
        spine.set(visible=True, color=NEUTRAL, linewidth=0.5)


def _difference(clean: np.ndarray, triggered: np.ndarray) -> np.ndarray:
    return np.asarray(triggered, np.int16) - np.asarray(clean, np.int16)


def _described(quality: Quality) -> str:
    if quality.psnr is None:
        return "changes nothing"
    return f"PSNR {quality.psnr:.1f} dB, SSIM {quality.ssim:.3f}, largest change {quality.largest} of 255"
