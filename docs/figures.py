"""Draws the figures of the pages on concepts: `python docs/figures.py`, from the repository's root.

Numbers come from rows of `results/` and from the calibration, nothing is computed. Networks are drawn as sketches.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "figures"
GOOD, BAD, INK, SOFT, LINE = "#0072b2", "#d55e00", "#1f2328", "#57606a", "#b6bfc9"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "text.color": INK,
}
LAYERS = (3, 5, 5, 3)
"""Neurons of a sketched network, layer by layer."""
CHANGES = {(1, 1): 1.0, (1, 3): 0.3, (2, 0): 0.25, (2, 3): 0.9, (1, 0): 0.1, (2, 2): 0.15, (1, 4): 0.2, (2, 4): 0.05}
"""How much unlearning changes a sketched neuron's weights; by default 0."""
CHOSEN = ((1, 1), (2, 3))


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of results/NAME.jsonl."""
    from otbr_jax.report.rows import parse

    path = ROOT / "results" / f"{name}.jsonl"
    return [dict(row.values) for row in parse(path.read_text(), name=path.name)]


def network(
    axis: Axes,
    title: str,
    *,
    changed: bool = False,
    gone: bool = False,
    thin: Sequence[tuple[int, int]] = (),
    ghosts: bool = False,
) -> None:
    """A sketch of a network, from its input below to its logits above.

    Args:
      axis: where.
      title: what is done to it.
      changed: whether neurons are coloured by how much they changed.
      gone: whether the chosen ones have lost their weights.
      thin: neurons of which only a part is left.
      ghosts: whether a pruned copy is laid over it.
    """
    place = {
        (layer, neuron): ((neuron - (count - 1) / 2) * 1.05, layer * 1.3)
        for layer, count in enumerate(LAYERS)
        for neuron in range(count)
    }
    for (layer, a), start in place.items():
        for b in range(LAYERS[layer + 1] if layer + 1 < len(LAYERS) else 0):
            end = place[layer + 1, b]
            ends = {(layer, a), (layer + 1, b)} & {*CHOSEN}
            if ends and gone:
                continue
            weak = bool(ends & {*thin})
            style = {"lw": 0.5, "ls": ":"} if weak else {"lw": 0.8}
            axis.plot(*zip(start, end, strict=True), color=LINE, zorder=1, **style)
    for spot, (x, y) in place.items():
        share = CHANGES.get(spot, 0.0) if changed else 0.0
        hollow, part = gone and spot in CHOSEN, spot in thin
        colour: Any = mpl.colormaps["Oranges"](0.05 + 0.75 * share) if changed else "#dde3ea"
        colour = "white" if hollow else colour
        edge = BAD if spot in CHOSEN and (changed or gone or part) else SOFT
        axis.scatter(
            x, y, s=125, color=[colour], edgecolor=edge, lw=1.1, zorder=3, linestyle="--" if hollow or part else "-"
        )
        if ghosts and spot[0] in (1, 2):
            axis.scatter(x + 0.16, y - 0.2, s=125, color="none", edgecolor=GOOD, lw=0.9, zorder=2)
    axis.set(xlim=(-2.8, 2.8), ylim=(-0.45, 4.35), aspect="equal")
    axis.set_axis_off()
    axis.set_title(title, loc="center", fontsize=9, pad=2)


def bars(axis: Axes, names: Sequence[str], measured: Sequence[Mapping[str, float]]) -> None:
    """ACC and ASR after each step, in per cent, with their values."""
    spots = np.arange(len(names))
    for shift, metric, colour in ((-0.19, "acc", GOOD), (0.19, "asr", BAD)):
        values = [100 * row[metric] for row in measured]
        axis.bar(spots + shift, values, 0.36, color=colour, label=metric.upper())
        for spot, value in zip(spots, values, strict=True):
            axis.text(spot + shift, value + 1.5, f"{value:.1f}", ha="center", fontsize=8, color=SOFT)
    axis.set_xticks(spots, names)
    axis.set(ylim=(0, 112), yticks=(0, 50, 100), ylabel="%", xlim=(-0.6, len(names) - 0.4))
    axis.tick_params(axis="x", length=0)
    axis.legend(frameon=False, ncols=2, loc="upper right", bbox_to_anchor=(1.0, 1.2), borderaxespad=0)


def steps(panels: Sequence[Mapping[str, Any]], names: Sequence[str], measured: Any, *, title: str) -> Figure:
    """Sketches of a method's steps above what each does to ACC and ASR."""
    sketches, charts = 7.2 / len(panels) * 0.85 + 0.4, 1.75  # inches
    figure = Figure(figsize=(7.2, sketches + charts), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(sketches, charts))
    for number, (axis, panel) in enumerate(zip(above.subplots(1, len(panels)), panels, strict=True)):
        network(axis, **panel)
        if number:
            look = {"arrowstyle": "-|>", "mutation_scale": 11, "color": SOFT, "clip_on": False}
            axis.add_artist(FancyArrowPatch((-0.06, 0.48), (0.06, 0.48), transform=axis.transAxes, **look))
    axis = below.subplots()
    bars(axis, names, measured)
    axis.set_title(title)
    return figure


def otbr() -> Figure:
    """OTBR's steps, and what they do to the first BadNets victim on digits."""
    (row,) = (row for row in rows("digits") if row["seed"] == 0)
    return steps(
        [
            {"title": "1  unlearn noise:\nsome weights change most", "changed": True},
            {"title": "2  score neurons,\nprune the highest", "changed": True, "gone": True},
            {"title": "3  align it with the\noriginal by transport", "gone": True, "ghosts": True},
            {"title": "4  average both:\nwhat was pruned is diluted", "thin": CHOSEN},
        ],
        ("suspicious", "unlearned", "pruned", "fused"),
        [row["metrics"][name] for name in ("victim", "unlearned", "pruned", "fused")],
        title="BadNets on digits, seed 0",
    )


def tsbd() -> Figure:
    """TSBD's steps, and what they do to the same victim."""
    row = [
        row
        for row in rows("bench_tsbd")
        if (row["dataset"], row["attack"], row["seed"]) == ("digits", "badnets", 0)
        and row["config"]["tsbd"].get("scheme") == "neurons"
    ][-1]  # the latest counts, as in the tables
    return steps(
        [
            {"title": "1  unlearn clean images\ndown to chance", "changed": True},
            {"title": "2  zero the neurons\nthat changed most", "changed": True, "gone": True},
            {"title": "3  fine-tune, and keep\ngradients small", "thin": CHOSEN},
        ],
        ("suspicious", "unlearned", "set to zero", "fine-tuned"),
        [row["metrics"][name] for name in ("victim", "unlearned", "reinitialized", "finetuned")],
        title="BadNets on digits, seed 0, with 65 clean images (whole neurons)",
    )


def detection() -> Figure:
    """Scores of calibration networks, and of the victims of the small bench, with the threshold."""
    from otbr_jax.detectors.calibration import calibration_of

    bench = [row for row in rows("bench_disarm") if row["seed"] < 10]  # others are the calibration's
    scored = [(row["attack"] != "none", row["verdict"]["score"]) for row in bench]
    kinds = (
        ("clean networks of the calibration", calibration_of("trigger_size").scores, SOFT),
        ("other clean networks", [score for bad, score in scored if not bad], GOOD),
        ("backdoored networks", [score for bad, score in scored if bad], BAD),
    )
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    axis = figure.subplots()
    rng = np.random.default_rng(0)
    for height, (_, scores, colour) in enumerate(kinds):
        jitter = height + rng.uniform(-0.22, 0.22, len(scores))
        axis.scatter(scores, jitter, s=16, color=colour, alpha=0.75, lw=0)
    axis.axvline(3.5, color=INK, lw=1, ls="--")
    axis.text(3.65, 2.62, "threshold 3.5", fontsize=8, va="center")
    axis.set_yticks(range(3), [f"{name} ({len(scores)})" for name, scores, _ in kinds])
    axis.set(xlabel="highest anomaly score of any class", ylim=(-0.5, 2.8), xlim=(-0.4, None))
    axis.tick_params(axis="y", length=0)
    return figure


def graph() -> Figure:
    """A residual block: arrays as boxes, and the axes that must move together in one colour."""
    figure = Figure(figsize=(7.2, 2.5), layout="constrained")
    axis = figure.subplots()
    arrays = (
        (0.0, "conv1", "kernel [3, 3, c, n]", (None, GOOD)),
        (2.5, "norm1", "scale, bias [n]", (GOOD,)),
        (5.0, "conv2", "kernel [3, 3, n, m]", (GOOD, BAD)),
        (7.5, "shortcut", "kernel [1, 1, c, m]", (None, BAD)),
        (10.0, "dense", "kernel [m, 10]", (BAD, None)),
    )
    for x, name, shape, axes in arrays:
        axis.add_patch(FancyBboxPatch((x, 0), 1.9, 1.3, boxstyle="round,pad=0.06", facecolor="#f6f8fa", edgecolor=LINE))
        axis.text(x + 0.95, 0.98, name, ha="center", fontsize=9.5, weight="bold")
        axis.text(x + 0.95, 0.62, shape, ha="center", fontsize=7.6, color=SOFT)
        for number, colour in enumerate(axes):
            left = x + 0.95 + (number - (len(axes) - 1) / 2) * 0.8
            at, look = (left - 0.26, 0.12), {"boxstyle": "round,pad=0.02", "color": colour or LINE}
            axis.add_patch(FancyBboxPatch(at, 0.52, 0.22, **look))
    for x, y, colour, text in (
        (0.0, 2.2, GOOD, "group of n neurons: outputs of conv1, their norm, inputs of conv2"),
        (0.0, 1.75, BAD, "group of m neurons: outputs of conv2 and of the shortcut are added, so they move together"),
    ):
        axis.add_patch(FancyBboxPatch((x, y - 0.08), 0.5, 0.2, boxstyle="round,pad=0.02", color=colour))
        axis.text(x + 0.7, y, text, fontsize=8.5, va="center")
    axis.set(xlim=(-0.2, 12.1), ylim=(-0.2, 2.5))
    axis.set_axis_off()
    return figure


def main() -> None:
    """Draws all of them."""
    OUT.mkdir(exist_ok=True)
    with mpl.rc_context(STYLE):
        for draw in (otbr, tsbd, detection, graph):
            draw().savefig(OUT / f"{draw.__name__}.png", dpi=150, facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    main()
