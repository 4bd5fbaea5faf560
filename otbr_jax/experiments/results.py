"""The result of a run, and what it says to machines: all numbers as JSON, the neuron scores as CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from otbr_jax.data.sources import Dataset
from otbr_jax.experiments.evaluation import TestSet
from otbr_jax.experiments.repair_config import RepairConfig
from otbr_jax.experiments.stages import Stage, content_digest, versions
from otbr_jax.metrics import Metrics, defense_effectiveness
from otbr_jax.neuron_graph import Layer
from otbr_jax.types import Network, Variables
from otbr_jax.weight_change import ranks


class Repair(NamedTuple):
    """What `pipeline.repair` found.

    Attributes:
      variables: the repaired network's variables, as the pytree that the user brought.
      network: its functions.
      layers: the layers that were repaired, in execution order.
      stages: `attack` and `clean` if there are any (see `victims.Victim`);
        `victim`, `unlearned`, `scores`, `pruned`, `fused`, and `evaluation` if there was data.
      dataset: the data it was measured with, or None.
      test: the test images as they were measured, or None.
      config: the settings.
      workdir: where everything is.
      files: the repaired network as files of the user's own kind, beside the Orbax checkpoint.
    """

    variables: Variables
    network: Network
    layers: tuple[Layer, ...]
    stages: Mapping[str, Stage]
    dataset: Dataset | None
    test: TestSet | None
    config: RepairConfig
    workdir: pathlib.Path
    files: tuple[pathlib.Path, ...] = ()


NETWORKS = ("victim", "unlearned", "pruned", "fused")


def summarize(result: Repair) -> dict[str, Any]:
    """All numbers of a run as plain JSON values.

    Fractions lie in [0, 1]; what could not be measured (no data, no trigger) is None. `oracle` is the setting of
    the sweep with the highest DER, which a defender cannot know: it is chosen with the test set and the trigger.
    """
    config = result.config
    plans = result.stages["fused"].value["info"].plans
    fused_layers = [name for name, fused in result.stages["fused"].value["info"].fused.items() if fused]
    pruned = result.stages["pruned"].value["info"].pruned
    summary: dict[str, Any] = {
        "defense": config.defense,
        "metrics": dict.fromkeys(NETWORKS),
        "choice": {"gamma": config.otbr.gamma, "lambda": config.otbr.fusion.lam, "chosen_by": "config"},
        "oracle": None,
        "sweep": [],
        "neurons": {
            "scored": int(sum(mask.size for mask in pruned.values())),
            "pruned": int(sum(mask.sum() for mask in pruned.values())),
            "layers_fused": len(fused_layers),
        },
        "transport": {
            "converged": all(bool(plans[name].converged) for name in fused_layers),
            "worst_marginal_error": max((float(plans[name].marginal_error) for name in fused_layers), default=None),
            "most_iterations": max((int(plans[name].iterations) for name in fused_layers), default=None),
        },
        "repaired": content_digest(result.stages["fused"].value["variables"]),
        "data": None if result.dataset is None else result.dataset.provenance,
        "stages": {
            name: {
                "seconds": round(stage.seconds, 3),
                "resumed": stage.resumed,
                "digest": stage.digest,
                "versions": dict(stage.provenance["versions"]),
            }
            for name, stage in result.stages.items()
        },
        "versions": versions(),
        "devices": [str(device.device_kind) for device in jax.local_devices()],
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
    }
    if "evaluation" in result.stages:
        measured = result.stages["evaluation"].value
        triggered = config.attack.name != "none"
        victim = measured["metrics"]["victim"]
        summary["metrics"] = {name: _row(measured["metrics"][name], victim, triggered) for name in NETWORKS}
        summary["sweep"] = [
            {
                "gamma": gamma,
                "lambda": lam,
                "pruned": _row(Metrics(*(field[i] for field in measured["sweep"].pruned)), victim, triggered),
                "fused": _row(Metrics(*(field[i, j] for field in measured["sweep"].fused)), victim, triggered),
                "converged": bool(measured["sweep"].converged[i]),
                "marginal_error": _round(measured["sweep"].marginal_error[i]),
            }
            for i, gamma in enumerate(config.sweep.gamma)
            for j, lam in enumerate(config.lams)
        ]
        if triggered and summary["sweep"]:
            best = max(summary["sweep"], key=lambda row: row["fused"]["der"])
            summary["oracle"] = {
                "gamma": best["gamma"],
                "lambda": best["lambda"],
                "chosen_by": "oracle: highest DER on the test set, with the trigger known",
                "fused": best["fused"],
            }
    return summary


def _row(found: Metrics, victim: Metrics, triggered: bool) -> dict[str, float | None]:
    row: dict[str, float | None] = {"acc": _round(found.acc), "asr": None, "ra": None, "der": None}
    if triggered:
        row |= {
            "asr": _round(found.asr),
            "ra": _round(found.ra),
            "der": _round(defense_effectiveness(victim, found)),
        }
    return row


def _round(value: Any) -> float:
    return round(float(value), 6)


def scores_table(result: Repair) -> str:
    """CSV of every scored neuron: layer, index, NWC with all its digits, rank (0 = changed most), pruned."""
    scores = result.stages["scores"].value
    pruned = result.stages["pruned"].value["info"].pruned
    places = ranks(scores)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["layer", "neuron", "nwc", "rank", "pruned"])
    for layer in result.layers:  # execution order
        rows = zip(scores[layer.name], np.asarray(places[layer.name]), pruned[layer.name], strict=True)
        for neuron, (score, rank, is_pruned) in enumerate(rows):
            # 9 significant digits give back the same float32.
            writer.writerow([layer.name, neuron, f"{score:.9g}", rank, int(is_pruned)])
    return text.getvalue()
