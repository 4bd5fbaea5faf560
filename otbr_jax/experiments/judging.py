"""The stages that judge a network before any repair: a trigger for every class, and what stands out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax import inversion, pruning, suspicion
from otbr_jax.defenses.otbr_plus import fuse_settings
from otbr_jax.experiments.repair_config import RepairConfig
from otbr_jax.runs.run import Run
from otbr_jax.runs.store import Stage, content_digest
from otbr_jax.inversion import Inverted
from otbr_jax.layer_choice import neighbours
from otbr_jax.neuron_graph import Layer
from otbr_jax.types import Batch, Variables


def network_settings(run: Run[RepairConfig]) -> dict[str, Any]:
    """What every stage that feeds images to the network depends on."""
    return {"network": run.network_digest(), "data": [run.config.data.mean, run.config.data.std]}


def judge(
    run: Run[RepairConfig],
    layers: Sequence[Layer],
    victim: Stage,
    unlearned: Stage,
    scores: Stage,
    images: Batch,
    source: Stage | None = None,
) -> dict[str, Stage]:
    """The stages `inverted`, a trigger for every class, and `judged`, which class stands out, and what leaves little.

    Args:
      run: the run of a defence.
      layers: the layers that are pruned and fused to see what falls.
      victim: the network as it came.
      unlearned: the same after unlearning.
      scores: its neuron weight changes.
      images: `[n, h, w, c]` in [0, 1] that it is judged by, and its answers.
      source: the stage that made them, if one did.
    """
    parents = () if source is None else (source,)
    inverted = _inverted(run, victim, images, parents)
    return {"inverted": inverted, "judged": _judged(run, layers, victim, unlearned, scores, images, inverted, parents)}


def left_alone(stages: Mapping[str, Stage]) -> bool:
    """Whether a network was judged, and no class stands out."""
    return "judged" in stages and not bool(stages["judged"].value["judgement"].stands_out)


def _inverted(run: Run[RepairConfig], victim: Stage, images: Batch, parents: tuple[Stage, ...]) -> Stage:
    patch, perturbation = run.config.suspicion.patch, run.config.suspicion.perturbation
    key = run.key("inverted")

    def function(variables: Variables, images: Batch, key: jax.Array, *, on_step: Any) -> Any:
        return inversion.invert_triggers(
            run.network,
            variables,
            images,
            key=key,
            patch=patch,
            perturbation=perturbation,
            prepare=run.prepare,
            on_class=on_step,
        )

    return run.stage(
        "inverted",
        function,
        (victim.value["variables"], images, key),
        title="reverse-engineering triggers",
        config=network_settings(run)
        | {"patch": dataclasses.asdict(patch), "perturbation": dataclasses.asdict(perturbation)}
        | {"images": content_digest(images)},
        key=key,
        parents=(victim, *parents),
        total=run.network.num_classes,
        unit="class",
    )


def _judged(
    run: Run[RepairConfig],
    layers: Sequence[Layer],
    victim: Stage,
    unlearned: Stage,
    scores: Stage,
    images: Batch,
    inverted: Stage,
    parents: tuple[Stage, ...],
) -> Stage:
    config, chosen, key = run.config.otbr, run.config.suspicion, run.key("fused")
    total = sum(layer.neurons for layer in layers)
    counts = jnp.array([pruning.neurons_to_prune(gamma, total) for gamma in chosen.gamma], jnp.int32)
    lams = jnp.array(chosen.lam, jnp.float32)

    def function(
        variables: Variables, unlearned: Any, nwc: Any, images: Batch, triggers: Inverted, key: Any, *, on_step: Any
    ) -> Any:
        def ask(fused: Variables) -> suspicion.Answers:
            return suspicion.answers(run.network, fused, images, triggers, prepare=run.prepare)

        along = fuse_settings(
            variables,
            unlearned,
            nwc,
            layers,
            ask,
            counts=counts,
            lams=lams,
            config=config,
            neighbours=neighbours(run.subject.graph, layers),
            key=key,
            on_setting=on_step,
        )
        return {"answers": along, "judgement": suspicion.judge(triggers, along, config=chosen)}

    return run.stage(
        "judged",
        function,
        (
            victim.value["variables"],
            unlearned.value["variables"],
            scores.value,
            images,
            Inverted(*inverted.value),
            key,
        ),
        title="judging gamma x lambda",
        config=network_settings(run)
        | {"otbr": dataclasses.asdict(config), "suspicion": dataclasses.asdict(chosen)}
        | {"images": content_digest(images)},
        key=key,
        parents=(victim, unlearned, scores, inverted, *parents),
        total=len(counts),
        unit="gamma",
    )
