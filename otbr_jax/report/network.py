"""A neuron graph as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from otbr_jax.graph.graph import Layer, NeuronGraph
from otbr_jax.report.plots import ACCENT, BAD, GOOD, NEUTRAL, STYLE, short_name
from otbr_jax.report.table import Column, Table

_COLUMNS = (
    Column("#"),
    Column("layer", "left"),
    Column("kind", "left"),
    Column("neurons"),
    Column("inputs"),
    *(Column(title, "left") for title in ("weights", "path", "fed by", "tied to")),
)
_COLORS = {"conv": GOOD, "grouped": ACCENT, "depthwise": ACCENT, "dense": BAD}
_SHOWN = 4


def network_table(graph: NeuronGraph, shapes: Mapping[str, tuple[int, ...]]) -> Table:
    """One line per layer in execution order: size, main or side path, who feeds it, what it is tied to.

    Args:
      graph: the network's neuron graph.
      shapes: shape of every array by name.
    """
    number = {layer.name: str(index) for index, layer in enumerate(graph.layers)}
    rows = [
        (
            number[layer.name],
            short_name(layer.name),
            layer.kind,
            f"{layer.neurons:,}",
            f"{layer.inputs:,}",
            "x".join(map(str, shapes[layer.name])),
            _path(layer, graph),
            _few([number[name] for name in layer.fed_by]),
            _few([number[name] for name in layer.tied_to]),
        )
        for layer in graph.layers
    ]
    groups = f"{len(graph.groups):,} groups of neurons that may change places"
    total = f"{len(graph.layers)} layers, {sum(layer.neurons for layer in graph.layers):,} neurons, {groups}"
    return Table(_COLUMNS, rows, notes=(total,))


def _path(layer: Layer, graph: NeuronGraph) -> str:
    if layer.main_path:
        return "main"
    fed = {name for other in graph.layers for name in other.fed_by}
    return "side" if layer.name in fed else "output"


def _few(names: list[str]) -> str:
    if len(names) <= _SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[: _SHOWN - 2])}, ... {names[-1]} ({len(names)} layers)"


def draw_network(graph: NeuronGraph, *, title: str = "") -> Figure:
    """The layers from top to bottom as bars as long as they have neurons, with arcs from the layers that feed them.

    An arc from the layer just above is left out where it is the only one; what is added or multiplied is joined by a
    bracket on the left.
    """
    layers = graph.layers
    place = {layer.name: index for index, layer in enumerate(layers)}
    widest = max(layer.neurons for layer in layers)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 1.1 + 0.21 * len(layers)), layout="constrained")
        axis = figure.subplots()
        for index, layer in enumerate(layers):
            color = _COLORS[layer.kind]
            length = (layer.neurons / widest) ** 0.5
            axis.barh(index, length, 0.66, color=color if layer.main_path else "white", edgecolor=color, linewidth=1)
            axis.text(length + 0.012, index, f"{layer.neurons}", va="center", fontsize=7, color="#57606a")
        for index, layer in enumerate(layers):
            feeders = [place[name] for name in layer.fed_by]
            for feeder in feeders:
                if feeders != [index - 1]:
                    _arc(axis, feeder, index, color=NEUTRAL, alpha=max(0.15, 0.9 / len(feeders) ** 0.5))
        for bracket, members in enumerate(_tied(graph)):
            x = -0.03 - 0.022 * (bracket % 3)
            rows = [place[name] for name in members]
            axis.plot([x, x], [min(rows), max(rows)], color=ACCENT, linewidth=1.4, solid_capstyle="round")
            axis.plot([x] * len(rows), rows, ".", color=ACCENT, markersize=5)
        axis.set_yticks(range(len(layers)), [short_name(layer.name) for layer in layers], fontsize=7)
        axis.set(ylim=(len(layers) - 0.4, -0.6), xlim=(-0.12, 1.5), xticks=[])
        axis.spines[["left", "bottom"]].set_visible(False)
        axis.tick_params(length=0)
        for kind in dict.fromkeys(layer.kind for layer in layers):
            axis.barh(0, 0, color=_COLORS[kind], label=kind)
        axis.barh(0, 0, color="white", edgecolor=NEUTRAL, label="side path or output")
        axis.plot([], [], color=NEUTRAL, label="feeds")
        if _tied(graph):
            axis.plot([], [], color=ACCENT, marker=".", label="added or multiplied")
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=6, fontsize=7, borderaxespad=0.2, handlelength=1.2)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def _arc(axis: mpl.axes.Axes, start: int, stop: int, *, color: str, alpha: float) -> None:
    left = 1.12
    reach = left + min(0.48, 0.06 + 0.03 * (stop - start))
    curve = Path([(left, start), (reach, start), (reach, stop), (left, stop)], [1, 4, 4, 4])
    axis.add_patch(PathPatch(curve, fill=False, edgecolor=color, linewidth=0.9, alpha=alpha))


def _tied(graph: NeuronGraph) -> list[list[str]]:
    """Sets of layers that are added or multiplied, each once."""
    sets: dict[frozenset[str], list[str]] = {}
    for layer in graph.layers:
        if layer.tied_to:
            members = frozenset((layer.name, *layer.tied_to))
            sets.setdefault(members, [other.name for other in graph.layers if other.name in members])
    return list(sets.values())
