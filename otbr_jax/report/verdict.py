"""Whether a network looks backdoored: in a sentence, and as pictures of the triggers found in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from otbr_jax.detectors.detector import Detector, Verdict
from otbr_jax.report.calibration import scores_for
from otbr_jax.report.plots import BAD, BAD_INK, STYLE, displayable


def judgement_of(found: Verdict, detector: Detector, config: Any) -> dict[str, Any]:
    """A detector's verdict with these settings as a judgement: what rows, `verdict` and `draw_triggers` take."""
    return {
        "by": detector.by,
        "calibrated": detector.is_usual(config),
        "stands_out": found.backdoored,
        "suspect": found.suspect,
        "suspicion": [*found.scores],
        "threshold": found.threshold,
        "score": detector.score,
        "p_value": found.p_value,
    }


def verdict(judgement: Mapping[str, Any]) -> str:
    """A sentence: which class is most suspicious, how many clean networks are as suspicious, what follows."""
    if judgement["suspect"] is None:
        return f"nothing stands out, judged by {judgement['by']}"
    score, rate = judgement["suspicion"][judgement["suspect"]], "not measured for these images and settings"
    what = (
        f"class {judgement['suspect']} stands out"
        if judgement["stands_out"]
        else f"nothing stands out; most suspicious is class {judgement['suspect']}"
    )
    if scores := scores_for(judgement):
        higher = sum(clean >= score for clean in scores)
        clean = f"{higher} of the bench's {len(scores)} clean networks, of ten classes each"
        rate = f"{100 * higher / len(scores):.0f} % ({clean})"
    said = (
        f"{what}: {judgement.get('score', 'suspicion')} {score:.2f}, threshold {judgement['threshold']:g}, judged by "
        f"{judgement['by']}"
    )
    threshold = judgement["threshold"]
    others = [label for label, one in enumerate(judgement["suspicion"]) if one is not None and one >= threshold]
    if judgement["stands_out"] and len(others) > 1:
        others.remove(judgement["suspect"])
        more = " and ".join(f"class {label} ({judgement['suspicion'][label]:.2f})" for label in others)
        said += f"; above the threshold, too: {more}"
    if judgement.get("p_value") is not None:
        return f"{said}; p-value {judgement['p_value']:.2g}"
    return f"{said}; false-positive rate at this score: {rate}"


def draw_triggers(mask: np.ndarray, pattern: np.ndarray, judgement: Mapping[str, Any]) -> Figure:
    """The trigger that was reverse-engineered for each class, on mid-grey, the suspicious class framed.

    Args:
      mask: `[classes, h, w, 1]` in [0, 1].
      pattern: `[classes, h, w, c]` in [0, 1].
      judgement: of `results.summarize`.
    """
    shown = np.argsort(-np.asarray(judgement["suspicion"]))[:20]
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
            guilty = judgement["stands_out"] and label == judgement["suspect"]
            axis.set_title(
                f"class {label}\n{judgement['suspicion'][label]:.2f}",
                fontsize=8,
                loc="center",
                color=BAD_INK if guilty else "#24292f",
            )
            for spine in axis.spines.values():
                spine.set(visible=guilty, color=BAD, linewidth=2.5)
    return figure
