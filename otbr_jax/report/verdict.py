"""A figure of the triggers that a detector inverted."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from otbr_jax.detectors.verdict import Backdoored, Verdict
from otbr_jax.report.plots import BAD, BAD_INK, STYLE, displayable


def draw_triggers(verdict: Verdict, triggers: Any) -> Figure:
    """The inverted trigger of each class on mid-grey, those of the highest scores first, a flagged one framed.

    Args:
      verdict: the verdict.
      triggers: masks `[classes, h, w, 1]` and patterns `[classes, h, w, c]`, all in [0, 1].
    """
    mask, pattern = triggers
    scores = np.array([np.nan if score is None else score for score in verdict.scores])
    shown = np.argsort(-scores)[:20]
    columns = min(len(shown), 5)
    rows = -(-len(shown) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.6 * columns, 2.05 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, label in zip(axes.flat, shown, strict=False):
            image = mask[label] * pattern[label] + (1 - mask[label]) * 0.5
            axis.set_axis_on()
            axis.imshow(np.clip(displayable(image), 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            flagged = verdict.backdoored == Backdoored.YES and label == verdict.suspect
            axis.set_title(
                f"class {label}\n{scores[label]:.2f}",
                fontsize=8,
                loc="center",
                color=BAD_INK if flagged else "#24292f",
            )
            for spine in axis.spines.values():
                spine.set(visible=flagged, color=BAD, linewidth=2.5)
    return figure
