"""The result of a run, and what it says to machines: all numbers as JSON, the neuron scores as CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from otbr_jax.data.sources import Dataset
from otbr_jax.experiments import judging, otbr_run
from otbr_jax.experiments.evaluation import TestSet
from otbr_jax.experiments.repair_config import RepairConfig
from otbr_jax.experiments.stages import Stage, content_digest, versions
from otbr_jax.experiments.tsbd_run import chosen_setting
from otbr_jax.metrics import Metrics, defense_effectiveness
from otbr_jax.neuron_graph import Layer
from otbr_jax.suspicion import SuspicionConfig
from otbr_jax.types import Network, Variables
from otbr_jax.weight_change import ranks


class Repair(NamedTuple):
    """What `pipeline.repair` found.

    Attributes:
      variables: the repaired network's variables, as the pytree that the user brought.
      network: its functions.
      layers: the layers that were repaired, in execution order.
      stages: `attack` and `clean` if there are any (see `victims.Victim`);
        `victim`, those of the defence (see `otbr_run`, `tsbd_run`), and `evaluation` if there was data.
      dataset: the data it was measured with, or None.
      test: the test images as they were measured, or None.
      config: the settings.
      workdir: where everything is.
      files: the repaired network as files of the user's own kind, beside the Orbax checkpoint.
      clean: what the clean images were that the defence used, in a line; None without.
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
    clean: str | None = None


SYNTHETIC = "images made from the network"
ORACLE = "oracle: highest DER on the test set, with the trigger known"


def summarize(result: Repair) -> dict[str, Any]:
    """All numbers of a run as plain JSON values.

    Fractions lie in [0, 1]; what could not be measured (no data, no trigger) is None. `oracle` is the setting of
    the sweep with the highest DER, which a defender cannot know: it is chosen with the test set and the trigger.
    """
    config = result.config
    names, final = config.networks, config.networks[-1]
    summary: dict[str, Any] = {
        "defense": config.defense,
        "metrics": dict.fromkeys(names),
        **(_otbr(result) if config.defense == "otbr" else _tsbd(result)),
        "oracle": None,
        "sweep": [],
        "repaired": content_digest(result.stages[final].value["variables"]),
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
        summary["metrics"] = {name: _row(measured["metrics"][name], victim, triggered) for name in names}
        sweep = _otbr_sweep if config.defense == "otbr" else _tsbd_sweep
        summary["sweep"] = sweep(config, measured.get("sweep"), lambda found: _row(found, victim, triggered))
        if triggered and summary["sweep"]:
            swept = summary["swept"]
            best = max(summary["sweep"], key=lambda row: row[swept]["der"])
            setting = {name: best[name] for name in summary["axes"]}
            summary["oracle"] = setting | {"chosen_by": ORACLE, swept: best[swept]}
    return summary


def _patching(result: Repair) -> list[dict[str, Any]] | None:
    """How far a network was patched for each class that stands out, and what is left; None where it was not."""
    if "patched" not in result.stages or "info" not in result.stages["patched"].value:
        return None
    shares, info = result.config.patching.shares, result.stages["patched"].value["info"]
    suspicion = result.stages["judged"].value["judgement"].suspicion
    found = []
    for index, suspect in enumerate(np.argsort(-suspicion, stable=True)[: len(info.share)]):
        if suspicion[suspect] >= result.config.suspicion.threshold:
            chosen = [int(np.argmin(np.abs(np.array(shares) - share))) for share in info.share[index]]
            success, own = (float(values[index][-1][chosen[-1]]) for values in (info.success, info.own))
            share, *recovered = (shares[place] for place in chosen)
            found.append(
                {"class": int(suspect), "share": share, "recovered": recovered, "success": success, "own": own}
            )
    return found


def _otbr(result: Repair) -> dict[str, Any]:
    config, info = result.config, result.stages["fused"].value["info"]
    gamma, lam = otbr_run.chosen_setting(config, result.stages)
    judgement, chosen_by = None, "config"
    if "judged" in result.stages:
        judgement = summarize_judgement(config.suspicion, result.stages, by=SYNTHETIC)
        chosen_by = SYNTHETIC if judgement["stands_out"] else "no class standing out"
    plans, pruned = info.plans, result.stages["pruned"].value["info"].pruned
    fused_layers = [name for name, fused in info.fused.items() if fused]
    neurons = {
        "scored": int(sum(mask.size for mask in pruned.values())),
        "pruned": int(sum(mask.sum() for mask in pruned.values())),
        "layers_fused": len(fused_layers),
    }
    transport = {
        "converged": all(bool(plans[name].converged) for name in fused_layers),
        "worst_marginal_error": max((float(plans[name].marginal_error) for name in fused_layers), default=None),
        "most_iterations": max((int(plans[name].iterations) for name in fused_layers), default=None),
    }
    return {
        "did": "pruned",
        "unlearning_kind": "random",
        "done": f"{neurons['pruned']} of {neurons['scored']} neurons pruned, {neurons['layers_fused']} layers fused",
        "warnings": _not_converged(result, transport),
        "swept": config.swept if config.lams else None,
        "axes": ["gamma", "lambda"],
        "along": ["gamma"],
        "strength": "gamma, share of neurons pruned",
        "choice": {"gamma": gamma, "lambda": lam, "chosen_by": chosen_by},
        "judgement": judgement,
        "patched": _patching(result),
        "neurons": neurons,
        "transport": transport,
    }


def _not_converged(result: Repair, transport: Mapping[str, Any]) -> list[str]:
    """Sentences on transport that did not converge, of the repair and of the grid."""
    found = []
    if not transport["converged"]:
        found.append(
            f"transport did NOT converge: worst marginal error {transport['worst_marginal_error']:.2g}; "
            "raise otbr.fusion.transport.max_iterations or epsilon"
        )
    if "evaluation" in result.stages and result.config.lams:
        converged = result.stages["evaluation"].value["sweep"].converged
        gammas = [gamma for gamma, right in zip(result.config.sweep.gamma, converged, strict=True) if not right]
        if gammas:
            found.append(f"transport did NOT converge in the grid at gamma {', '.join(f'{g:g}' for g in gammas)}")
    return found


def summarize_judgement(config: SuspicionConfig, stages: Mapping[str, Stage], *, by: str) -> dict[str, Any]:
    """How suspicious each class is and how the settings did, as plain JSON values; `by` names the images."""
    found, triggers = stages["judged"].value, stages["inverted"].value
    judgement, along = found["judgement"], found["answers"]
    return {
        "by": by,
        "stands_out": bool(judgement.stands_out),
        "suspect": int(judgement.suspect),
        "suspicion": [_round(value) for value in judgement.suspicion],
        "threshold": config.threshold,
        "trigger_size": [_round(value) for value in triggers.size],
        "trigger_success": [_round(value) for value in triggers.success],
        "perturbation_strength": [_round(value) for value in triggers.strength],
        "settings": [
            {
                "gamma": gamma,
                "lambda": lam,
                "agreement": _round(np.mean(along.agreement[index])),
                "remaining": _round(judgement.remaining[index]),
            }
            for index, (gamma, lam) in enumerate(itertools.product(config.gamma, config.lam))
        ],
    }


def _otbr_sweep(config: RepairConfig, sweep: Any, row: Callable[[Metrics], dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "gamma": gamma,
            "lambda": lam,
            "pruned": row(Metrics(*(field[i] for field in sweep.pruned))),
            config.swept: row(Metrics(*(field[i, j] for field in sweep.repaired))),
            "converged": bool(sweep.converged[i]),
            "marginal_error": _round(sweep.marginal_error[i]),
        }
        for i, gamma in enumerate(config.sweep.gamma)
        for j, lam in enumerate(config.lams)
    ]


def _tsbd(result: Repair) -> dict[str, Any]:
    config, stages = result.config, result.stages
    unlearning, reinit = stages["unlearned"].value["info"], stages["reinitialized"].value["info"]
    epochs = int(unlearning.epochs)
    selection = None
    if "selected" in stages:
        found = stages["selected"].value
        selection = [
            {"n": n, "m": m, "held_out_accuracy": _round(accuracy), "held_out_loss": _round(loss)}
            for (n, m), accuracy, loss in zip(config.pairs(config.selection), found.accuracy, found.loss, strict=True)
        ]
    history = stages["finetuned"].value.get("history", {"loss": [], "accuracy": []})
    n, m = chosen_setting(config, stages)
    chosen_by = "config" if selection is None else "held-out clean images"
    if judging.left_alone(stages):
        chosen_by = "no class standing out"
    accuracy, reached = _round(unlearning.accuracy[epochs - 1]), bool(unlearning.reached)
    warning = (
        f"clean unlearning did NOT reach chance: accuracy {100 * accuracy:.1f} % after {epochs} epochs; "
        "raise tsbd.unlearning.max_epochs or its learning_rate"
    )
    neurons = {
        "scored": int(sum(mask.size for mask in reinit.neurons.values())),
        "reinitialized": int(sum(mask.sum() for mask in reinit.neurons.values())),
        "weights_zeroed": int(sum(mask.sum() for mask in reinit.zeroed.values())),
    }
    return {
        "did": "re-initialised",
        "unlearning_kind": "clean",
        "done": f"{neurons['weights_zeroed']:,} weights of {neurons['reinitialized']} of {neurons['scored']} neurons "
        f"re-initialised, {sum(np.isfinite(history['loss']))} epochs of fine-tuning",
        "warnings": [] if reached else [warning],
        "swept": config.swept if config.pairs(config.sweep) else None,
        "axes": ["n", "m"],
        "along": ["n", "m"],
        "strength": "n m, share of weights re-initialised",
        "choice": {
            "n": n,
            "m": m,
            "chosen_by": chosen_by,
        },
        "judgement": summarize_judgement(config.suspicion, stages, by="clean images") if "judged" in stages else None,
        "selection": selection,
        "neurons": neurons,
        "unlearning": {"epochs": epochs, "accuracy": accuracy, "reached_chance": reached},
        "finetuning": {
            name: [_round(value) for value in values if np.isfinite(value)] for name, values in history.items()
        },
        "clean": result.clean,
    }


def _tsbd_sweep(config: RepairConfig, sweep: Any, row: Callable[[Metrics], dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"n": n, "m": m} | {name: row(Metrics(*(field[i] for field in found))) for name, found in sweep.items()}
        for i, (n, m) in enumerate(config.pairs(config.sweep))
    ]


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


def chosen_neurons(result: Repair) -> Mapping[str, np.ndarray]:
    """Which neurons the defence pruned or re-initialised, `{layer name: bool [neurons]}`."""
    if result.config.defense == "otbr":
        return result.stages["pruned"].value["info"].pruned
    return result.stages["reinitialized"].value["info"].neurons


def scores_table(result: Repair) -> str:
    """CSV of every scored neuron: layer, index, NWC with all its digits, rank (0 = changed most), pruned.

    For TSBD the last column says whether its weights were re-initialised.
    """
    scores = result.stages["scores"].value
    pruned = chosen_neurons(result)
    places = ranks(scores)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    last = "pruned" if result.config.defense == "otbr" else "reinitialized"
    writer.writerow(["layer", "neuron", "nwc", "rank", last])
    for layer in result.layers:  # execution order
        rows = zip(scores[layer.name], np.asarray(places[layer.name]), pruned[layer.name], strict=True)
        for neuron, (score, rank, is_pruned) in enumerate(rows):
            # 9 significant digits give back the same float32.
            writer.writerow([layer.name, neuron, f"{score:.9g}", rank, int(is_pruned)])
    return text.getvalue()
