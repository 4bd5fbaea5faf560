"""The figures of a report, one function each: arrays in, matplotlib figure out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

GOOD, BAD, NEUTRAL, ACCENT = "#0072b2", "#d55e00", "#7f8891", "#009e73"  # Okabe-Ito, safe for colour-blind readers
BAD_INK = "#a83c00"  # of letters, which need more contrast than lines

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": NEUTRAL,
    "axes.labelcolor": "#24292f",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
    "legend.frameon": False,
}


def predictions(
    clean: np.ndarray,
    triggered: np.ndarray | None,
    labels: np.ndarray,
    before: tuple[np.ndarray, np.ndarray],
    after: tuple[np.ndarray, np.ndarray],
    *,
    goals: np.ndarray,
) -> Figure:
    """Clean and triggered images with the network's predictions before and after the repair.

    Args:
      clean: uint8 `[k, h, w, c]`.
      triggered: the same with the trigger; None where none is known.
      labels: int `[k]`, true classes.
      before: predictions `[k]` of the suspicious network on the clean and on the triggered images.
      after: the same of the repaired network.
      goals: int `[k]`, what the attacker wants of the triggered images.
    """
    rows = [(clean, "clean")] + ([] if triggered is None else [(triggered, "triggered")])
    columns = len(clean)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.05 * columns, 1.75 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for row, (images, name) in enumerate(rows):
            for column in range(columns):
                axis = axes[row, column]
                axis.imshow(displayable(images[column]), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                for spine in axis.spines.values():  # the trigger may be as white as the page
                    spine.set(visible=True, color="#aab2bb", linewidth=0.8)
                predicted = (("before", before[row][column]), ("after", after[row][column]))
                for line, (when, prediction) in enumerate(predicted):
                    axis.text(
                        0.5,
                        -0.1 - 0.15 * line,
                        f"{when} {prediction}",
                        transform=axis.transAxes,
                        ha="center",
                        va="top",
                        fontsize=8.5,
                        color=_prediction_color(int(prediction), int(labels[column]), int(goals[column]), name),
                        fontweight="bold" if prediction != labels[column] else "normal",
                    )
                if row == 0:
                    axis.set_title(f"true {labels[column]}", loc="center", fontsize=9)
            axes[row, 0].set_ylabel(name, fontsize=10, color="#24292f")
        return figure


def _prediction_color(prediction: int, label: int, goal: int, kind: str) -> str:
    if prediction == label:
        return GOOD
    return BAD_INK if kind == "triggered" and prediction == goal else "#8a6d00"


def displayable(image: np.ndarray) -> np.ndarray:
    """An image `[h, w, c]` as a figure shows it: three channels as colour, any other number as their mean."""
    return image if image.shape[-1] == 3 else image.mean(axis=-1)


def grid(
    sweep: Sequence[Mapping[str, Any]],
    *,
    network: str,
    axes: tuple[str, str],
    chosen: Mapping[str, Any],
    oracle: Mapping[str, Any] | None,
) -> Figure:
    """ACC, and ASR if there is a trigger, of a network at every pair of settings, as numbers on colours.

    Args:
      sweep: the rows `sweep` of `results.summarize`, all pairs; numbers of fewer images than others' are in italics.
      network: whose metrics of a row are drawn.
      axes: names of the settings that are rows and columns of the figure.
      chosen: its `choice`, framed.
      oracle: its `oracle`, framed with a dashed line; None without a trigger.
    """
    heights, widths = (sorted({row[name] for row in sweep}) for name in axes)
    measured = {(row[axes[0]], row[axes[1]]): row[network] for row in sweep}
    most = max(own.get("images") or 0 for own in measured.values())
    panels = [("acc", "ACC, %", "Blues"), ("asr", "ASR, %", "Oranges")]
    panels = [panel for panel in panels if sweep[0][network][panel[0]] is not None]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 3.6 * len(panels), 0.9 + 0.3 * len(heights)), layout="constrained")
        for axis, (metric, title, colors) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            values = 100 * np.array([[measured[height, width][metric] for width in widths] for height in heights])
            axis.imshow(values, cmap=colors, vmin=0, vmax=180, aspect="auto")  # dark letters stay readable
            for i, j in np.ndindex(values.shape):
                fewer = (measured[heights[i], widths[j]].get("images") or most) < most
                style = "italic" if fewer else "normal"
                axis.text(j, i, f"{values[i, j]:.1f}", ha="center", va="center", fontsize=8.5, style=style)
            for setting, line in ((oracle, (0, (2, 2))), (chosen, "-")):
                if setting is not None and (setting[axes[0]], setting[axes[1]]) in measured:
                    corner = (widths.index(setting[axes[1]]) - 0.5, heights.index(setting[axes[0]]) - 0.5)
                    axis.add_patch(Rectangle(corner, 1, 1, fill=False, lw=1.8, ls=line, ec="#24292f", clip_on=False))
            axis.set_xticks(range(len(widths)), [f"{width:g}" for width in widths])
            axis.set_yticks(range(len(heights)), [f"{height:g}" for height in heights])
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
            axis.set(xlabel=axes[1], ylabel=axes[0], title=title)
        return figure


def tradeoff(
    sweep: Sequence[Mapping[str, Any]],
    *,
    networks: Mapping[str, str],
    along: Sequence[str],
    strength: str,
    chosen: Mapping[str, Any],
    victim: Mapping[str, float | None],
) -> Figure:
    """ACC and ASR over how strongly a network was repaired, for the repaired network and for those before it.

    Args:
      sweep: the rows `sweep` of `results.summarize`, in order of strength.
      networks: names of networks in them and their titles; the first one's line is solid.
      along: the settings whose product is the strength.
      strength: the strength in words.
      chosen: its `choice`, marked.
      victim: its `metrics` of the suspicious network.
    """
    places = [_product(row, along) for row in sweep]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.3), layout="constrained")
        axis = figure.subplots()
        for metric, color in (("acc", GOOD), ("asr", BAD)):
            for index, (name, title) in enumerate(networks.items()):
                values = [row[name][metric] for row in sweep]
                if None not in values:
                    line, label = "--" if index else "-", f"{metric.upper()} {title}"
                    axis.plot(places, 100 * np.array(values), line, color=color, marker="o", ms=3.5, label=label)
            before = victim[metric]
            if before is not None:
                axis.axhline(100 * before, color=color, lw=0.8, ls=":", zorder=0)
        axis.set(xlabel=strength, ylabel="per cent", ylim=(-3, 103))
        _mark(axis, chosen, along)
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        return figure


def _product(setting: Mapping[str, Any], names: Sequence[str]) -> float:
    return math.prod(setting[name] for name in names)


def selection(
    candidates: Sequence[Mapping[str, float]],
    *,
    chosen: Mapping[str, Any],
    along: Sequence[str],
    strength: str,
) -> Figure:
    """Held-out loss and accuracy over the strength of a repair.

    Args:
      candidates: rows `selection` of `results.summarize`.
      chosen: its `choice`, marked.
      along: the settings whose product is the strength.
      strength: the strength in words.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 2.6), layout="constrained")
        panels = (
            ("held_out_loss", "held-out loss, nats", 1, BAD),
            ("held_out_accuracy", "held-out accuracy, %", 100, GOOD),
        )
        for axis, (name, title, scale, color) in zip(figure.subplots(1, 2), panels, strict=True):
            values = scale * np.array([row[name] for row in candidates])
            axis.plot([_product(row, along) for row in candidates], values, "-", color=color, marker="o", ms=3.5)
            axis.set(xlabel=strength, ylabel=title)
            if scale == 100:
                axis.set_ylim(min(values.min() - 1, 95), 100.5)
            _mark(axis, chosen, along)
        return figure


def _mark(axis: Axes, chosen: Mapping[str, Any], along: Sequence[str]) -> None:
    """A line at the chosen setting."""
    value, name = _product(chosen, along), ", ".join(f"{name} {chosen[name]:g}" for name in along)
    axis.axvline(value, color=NEUTRAL, lw=1, zorder=0)
    axis.annotate(
        f" chosen: {name}",
        (value, 1.0),
        xycoords=("data", "axes fraction"),
        va="bottom",
        ha="center",
        color="#57606a",
    )


def nwc_by_layer(
    scores: Mapping[str, np.ndarray],
    chosen: Mapping[str, np.ndarray],
    *,
    label: str = "pruned",
    score: str = "neuron weight change (L1)",
) -> Figure:
    """Every neuron's score, layer by layer in execution order, with the chosen neurons marked."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        axis = figure.subplots()
        for index, (name, values) in enumerate(scores.items()):
            # Neurons side by side in their own order: reproducible, and nothing is drawn on top of another.
            places = index + np.linspace(-0.36, 0.36, len(values)) if len(values) > 1 else np.array([index])
            mask = np.asarray(chosen[name])
            axis.plot(places[~mask], values[~mask], ".", ms=2.6, color=NEUTRAL, label=None if index else "kept")
            axis.plot(places[mask], values[mask], ".", ms=4, color=BAD, label=None if index else label)
        axis.set_xticks(range(len(scores)), [short_name(name) for name in scores], rotation=55, ha="right", fontsize=8)
        positive = np.concatenate([np.ravel(values) for values in scores.values()])
        if (positive > 0).any():
            axis.set_yscale("log")
        axis.set(ylabel=score, xlim=(-0.7, len(scores) - 0.3))
        handles, labels = axis.get_legend_handles_labels()
        axis.legend(handles, labels, loc="upper left", markerscale=2)
        return figure


def transport_plan(matrix: np.ndarray, pruned: np.ndarray, *, layer: str) -> Figure:
    """The plan of one layer: which pruned-network neuron's mass went to which original neuron.

    Args:
      matrix: `[neurons, neurons]`, rows are the pruned network's neurons, columns the original's.
      pruned: bool `[neurons]`.
      layer: its name.
    """
    order = np.argsort(~np.asarray(pruned), kind="stable")  # pruned neurons first
    shown = matrix[np.ix_(order, order)] * len(matrix)  # 1 = all of a source neuron's mass
    count = int(np.sum(pruned))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 4.6), layout="constrained")
        axis: Axes = figure.subplots()
        image = axis.imshow(
            np.maximum(shown, 1e-6), norm=LogNorm(1e-3, 1), cmap="magma", interpolation="nearest", aspect="equal"
        )
        if 0 < count < len(matrix):
            axis.axhline(count - 0.5, color="white", lw=0.8)
            axis.axvline(count - 0.5, color="white", lw=0.8)
        axis.set(
            xlabel=f"original neurons, the {count} pruned ones first",
            ylabel="neurons of the pruned network, same order",
            title=short_name(layer),
        )
        figure.colorbar(image, ax=axis, label="share of the source neuron's mass", shrink=0.85)
        return figure


def short_name(layer: str) -> str:
    """`params/layer1.0/conv1/kernel` -> `layer1.0/conv1`."""
    parts = layer.split("/")
    return "/".join(parts[1:-1] if len(parts) > 2 else parts)


def nwc_scatter(
    scores: Mapping[str, Mapping[str, np.ndarray]], correlations: Mapping[str, Mapping[str, Any]], *, attack: str
) -> Figure:
    """Weight changes of neurons in random and in clean unlearning, against those in poison unlearning.

    Args:
      scores: NWC by kind of unlearning and layer.
      correlations: `with_poison` of `correlation.summarize`.
      attack: its name.
    """
    kinds, last = tuple(correlations), list(scores["poison"])[-1]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.6, 5.6), layout="constrained")
        axes = figure.subplots(2, len(kinds), squeeze=False)
        for column, kind in enumerate(kinds):
            for row, (part, layers) in enumerate((("all", list(scores["poison"])), ("last", [last]))):
                axis = axes[row, column]
                depth = np.concatenate([np.full(len(scores[kind][name]), i) for i, name in enumerate(layers)])
                x, y = (np.concatenate([scores[which][name] for name in layers]) for which in (kind, "poison"))
                if part == "all":
                    positive = (x > 0) & (y > 0)  # a logarithm has no place for the others
                    drawn = axis.scatter(x[positive], y[positive], c=depth[positive], s=5, cmap="viridis", lw=0)
                    axis.set(xscale="log", yscale="log")
                    if column == len(kinds) - 1:
                        bar = figure.colorbar(drawn, ax=axes[0, :], label="layer, in execution order", shrink=0.9)
                        bar.outline.set_visible(False)
                else:
                    axis.plot(x, y, ".", ms=5, color=GOOD)
                own = correlations[kind][part]
                values = [f"{name} {own[name]:.2f}" for name in ("pearson", "spearman") if own[name] is not None]
                name = "all neurons" if part == "all" else short_name(last)
                axis.set_title(f"{name}\n{', '.join(values)}", fontsize=8.5)
                axis.set(xlabel=f"NWC, {kind} unlearning", ylabel="NWC, poison unlearning" if column == 0 else "")
        figure.suptitle(attack, x=0.01, ha="left", fontsize=10)
        return figure


def correlation_by_layer(studies: Sequence[Mapping[str, Any]]) -> Figure:
    """Pearson correlation with poison unlearning, layer by layer: one panel for each kind, one line for each attack.

    `studies` is what `correlation.summarize` returns, of networks with the same layers.
    """
    kinds = tuple(studies[0]["with_poison"])
    names = list(studies[0]["with_poison"][kinds[0]]["layers"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for axis, kind in zip(figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], kinds, strict=True):
            for index, study in enumerate(studies):
                layers = study["with_poison"][kind]["layers"]
                values = [np.nan if layers[name]["pearson"] is None else layers[name]["pearson"] for name in names]
                axis.plot(
                    range(len(names)), values, marker="o", ms=3.5, lw=1.2, color=f"C{index % 10}", label=study["attack"]
                )
            axis.axhline(0, color=NEUTRAL, lw=0.8, ls=":", zorder=0)
            axis.set_xticks(
                range(len(names)), [short_name(name) for name in names], rotation=55, ha="right", fontsize=8
            )
            axis.set(
                title=f"{kind} against poison unlearning",
                ylabel="Pearson correlation of NWC" if axis.get_subplotspec().is_first_col() else "",
            )
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        return figure


_KINDS = ("#24292f", BAD, GOOD, ACCENT, "#cc79a7", "#e69f00", "#56b4e9", "#a08000", NEUTRAL)


def activeness_by_neuron(victims: Sequence[Mapping[str, Any]], means: Sequence[Mapping[str, np.ndarray]]) -> Figure:
    """Activeness of clean and backdoored networks: sorted neurons of the last layer, averages and maxima by layer.

    Args:
      victims: `victims` of `activeness_study.summarize`, of networks with the same layers.
      means: for each of them the mean activeness of every neuron, `{layer name: [neurons]}`.
    """
    attacks = sorted({one["attack"] for one in victims}, key=lambda name: (name != "none", name))
    names = list(means[0])
    groups = {attack: [i for i, one in enumerate(victims) if one["attack"] == attack] for attack in attacks}

    def lines(axis: Axes, values: Sequence[np.ndarray], start: int, **style: Any) -> None:
        places = np.arange(start, start + len(values[0]))
        for index, attack in enumerate(attacks):
            color, own = _KINDS[index % len(_KINDS)], np.stack([values[i] for i in groups[attack]])
            # A logarithm has no place for neurons that do not change.
            own = np.where(own > 0, own, np.nan)
            for line in own if len(own) > 1 else []:
                axis.plot(places, line, color=color, lw=0.6, alpha=0.5)
            label = "clean network" if attack == "none" else attack
            axis.plot(
                places,
                own.mean(axis=0),
                color=color,
                ls="--" if attack == "none" else "-",
                lw=1.8,
                label=label,
                **style,
            )
        axis.set_yscale("log")

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.9), layout="constrained")
        left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(1.3, 1, 1))
        lines(left, [np.sort(np.asarray(mean[names[-1]]))[::-1] for mean in means], 1)
        left.set(xlabel="neuron, the most active first", ylabel="activeness", title=short_name(names[-1]))
        for axis, part in ((middle, "average"), (right, "maximum")):
            lines(
                axis,
                [np.array([one["layers"][name][part] for name in names], float) for one in victims],
                0,
                marker="o",
                ms=3.5,
            )
            axis.set_xticks(
                range(len(names)), [short_name(name) for name in names], rotation=55, ha="right", fontsize=8
            )
            axis.set_title(f"{part} of each layer")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        return figure


def roc_curves(curves: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str]) -> Figure:
    """ROC curve of each score, a panel each.

    Args:
      curves: `detection` of `activeness_study.summarize`, of networks of both kinds.
      titles: the scores in words; the order of the panels.
    """
    columns = 3
    rows = -(-len(titles) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.8, 2.7 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for index, (name, title) in enumerate(titles.items()):
            axis, curve = axes[index // columns, index % columns], curves[name]
            x, y = (np.array(curve[rate], float) for rate in ("false_positive_rate", "true_positive_rate"))
            axis.plot([0, 1], [0, 1], color=NEUTRAL, lw=0.8, ls=":")
            axis.fill_between(x, y, color=GOOD, alpha=0.1, lw=0)
            axis.plot(x, y, color=GOOD, lw=1.6, marker="o", ms=3, clip_on=False)
            axis.set_title(title, fontsize=8.5)
            auc = "AUC -" if curve["auc"] is None else f"AUC {curve['auc']:.2f}"
            axis.text(0.97, 0.05, auc, ha="right", transform=axis.transAxes, fontweight="bold")
            axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        for axis in axes.flat[len(titles) :]:
            axis.set_visible(False)
        for axis in axes[-1]:
            axis.set_xlabel("false positive rate")
        for axis in axes[:, 0]:
            axis.set_ylabel("true positive rate")
        return figure
