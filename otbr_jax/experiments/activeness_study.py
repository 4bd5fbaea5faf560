"""The finding that TSBD stands on: while they are unlearned, neurons of a backdoored network are far more active.

Networks with and without a backdoor are unlearned on the same few clean images for the same number of steps. How large
the gradients of each neuron are (activeness), and how far its weights moved (NWC), is compared neuron by neuron, and as
single scores that might tell a backdoored network from a clean one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax import detection, weight_change
from otbr_jax.activeness import Activeness, gradient_norms, over_batches
from otbr_jax.attacks.registry import ATTACKS
from otbr_jax.data.sources import Images
from otbr_jax.data.stored import stratified
from otbr_jax.detection import DetectionScores
from otbr_jax.errors import InputError
from otbr_jax.experiments import parallel
from otbr_jax.experiments.checkpoints import write_text
from otbr_jax.experiments.config import VictimConfig
from otbr_jax.experiments.runs import Run
from otbr_jax.experiments.stages import Stage, content_digest, open_workdir
from otbr_jax.experiments.studies import (
    drawn,
    open_study,
    row_settings,
    row_subject,
    training_images,
    victim_config,
    victim_metrics,
)
from otbr_jax.experiments.victims import open_victim, subject_of
from otbr_jax.layer_choice import LAYERS
from otbr_jax.metrics import Metrics
from otbr_jax.neuron_graph import Layer
from otbr_jax.report import activeness_page
from otbr_jax.settings import field, settings, wrong
from otbr_jax.types import Batch, BatchFn, Network, Variables
from otbr_jax.unlearning import UnlearningConfig, unlearn
from otbr_jax.weight_change import Scores


@settings("")
class ActivenessConfig(VictimConfig):
    """Everything that decides a study of activeness.

    With a checkpoint in `model` that network is the only victim, with the backdoor of `attack` and the key of `seed`:
    `attacks` and `seeds` are then not used.
    """

    attacks: tuple[str, ...] = field(
        default=("none", "badnets", "blended"),
        choices=(*ATTACKS, "none"),
        doc="names of attacks, `none` for a network without a backdoor; empty for the one of `attack`.",
    )
    seeds: tuple[int, ...] = field(
        default=(0, 1, 2),
        at_least=0,
        below=2**32,
        doc="of the victims: each attack gets a victim for each seed; empty for the one of `seed`.",
    )
    unlearning: UnlearningConfig = field(
        default=UnlearningConfig(), doc="on clean images, for a number of steps that all victims have in common."
    )
    fraction: float = field(
        default=0.05,
        above=0,
        at_most=1,
        doc="share of the training images that are clean and known, of every class its share.",
    )
    layers: str = field(default="auto", choices=LAYERS, doc="which layers are looked at, see `choose_layers`.")

    def check(self) -> None:
        """Every victim is named once."""
        super().check()
        for name in ("attacks", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise wrong(self, name, "each once")
        self.each()

    def each(self) -> list[VictimConfig]:
        """The settings of every victim, attack by attack."""
        if self.model.checkpoint:
            return [victim_config(self)]
        named = [dataclasses.replace(self.attack, name=name) for name in self.attacks] or [self.attack]
        return [victim_config(self, attack=attack, seed=seed) for attack in named for seed in self.seeds or [self.seed]]


class ActivenessFound(NamedTuple):
    """What was found in one victim.

    Attributes:
      attack: its name, `none` for a network without a backdoor.
      seed: of the victim.
      metrics: its ACC, ASR and RA; the latter two are of no use without an attack.
      activeness: mean and variance over the steps, of every neuron.
      nwc: how far the same unlearning moved it.
      scores: of the network.
      images: how many clean images it was unlearned on.
      provenance: what they are.
    """

    attack: str
    seed: int
    metrics: Metrics
    activeness: Activeness
    nwc: Scores
    scores: DetectionScores
    images: int
    provenance: str


def study_activeness(
    config: ActivenessConfig, workdir: str | os.PathLike[str], *, devices: Sequence[jax.Device] | None = None
) -> list[ActivenessFound]:
    """Unlearns every victim that `config` names on clean images, and compares how active their neurons are.

    Leaves in `workdir`: `activeness.json` with what `summarize` says, `activeness.csv` with every neuron, and
    `activeness.html`, a page with the figures.

    Args:
      config: the settings.
      workdir: directory for the stages and the results; resumed if it has been used before.
      devices: the devices that share the work; by default all local ones.

    Returns:
      What was found, victim by victim.

    Raises:
      InputError: names what is wrong with the settings, the checkpoint, the data or the working directory.
    """
    mesh, subject, layers, dataset = open_study(config, layers=config.layers, devices=devices)
    parallel.check_batch_size(config.unlearning.batch_size, mesh, name="unlearning.batch_size")
    pool = training_images(dataset)
    if round(config.fraction * len(pool.labels)) < 1:
        raise InputError(
            f"fraction: expected at least one of the {len(pool.labels)} images, found none at {config.fraction}"
        )
    found = []
    with open_workdir(workdir, subject=subject_of(config)) as directory:
        for settings in config.each():
            run = _Watching(settings, directory, subject, mesh, layers, config)
            victim = open_victim(run, dataset)
            clean = _share(pool, config.fraction, seed=settings.seed)
            activeness, nwc = run.watched(victim.stage, clean)
            found.append(
                ActivenessFound(
                    settings.attack.name, settings.seed, victim_metrics(run, victim, dataset.test), activeness, nwc,
                    detection.detection_scores(activeness.mean, nwc), len(clean.labels), dataset.provenance,
                )
            )  # fmt: skip
        summary = summarize(config, found)
        write_text(directory.path / "activeness.json", json.dumps(summary, indent=1) + "\n")
        write_text(directory.path / "activeness.csv", _table(found))
        page = activeness_page.render(summary, [one.activeness.mean for one in found])
        write_text(directory.path / "activeness.html", page)
    return found


def activeness_and_nwc(
    network: Network,
    variables: Variables,
    batches: BatchFn,
    layers: Sequence[Layer],
    *,
    key: jax.Array,
    config: UnlearningConfig,
    on_step: Callable[[], None] | None = None,
) -> tuple[Activeness, dict[str, jax.Array]]:
    """As `activeness.activeness`, with how far the same unlearning moved each neuron, `{layer name: [neurons]}`.

    Pure; jits. See there, and `on_step` of `unlearn`.
    """
    after, info = unlearn(
        network,
        variables,
        batches,
        key=key,
        config=config,
        observe=lambda gradients: gradient_norms(gradients, layers),
        on_step=on_step,
    )
    return over_batches(info.observed, layers), weight_change.neuron_weight_changes(variables, after, layers)


def summarize(config: ActivenessConfig, found: Sequence[ActivenessFound]) -> dict[str, Any]:
    """All numbers but those of single neurons, as plain JSON values; what is not defined is None.

    `victims` has an entry for each: `attack`, `seed`, `victim` (ACC, and ASR and RA of a backdoored one), `neurons`,
    `layers` (average and maximum activeness by layer) and `scores`. `detection` has for each score its `auc`, and the
    points `false_positive_rate` and `true_positive_rate` of its ROC curve.
    """
    backdoored = jnp.array([one.attack != "none" for one in found])
    curves = {
        name: detection.roc(jnp.stack([getattr(one.scores, name) for one in found]), backdoored)
        for name in DetectionScores._fields
    }
    return {
        "victims": [
            {
                "attack": one.attack,
                "seed": one.seed,
                "victim": {
                    name: _plain(value) if name == "acc" or one.attack != "none" else None
                    for name, value in one.metrics._asdict().items()
                },
                "neurons": sum(int(mean.size) for mean in one.activeness.mean.values()),
                "layers": {
                    name: {"average": _plain(jnp.mean(mean)), "maximum": _plain(jnp.max(mean))}
                    for name, mean in one.activeness.mean.items()
                },
                "scores": {name: _plain(value) for name, value in one.scores._asdict().items()},
            }
            for one in found
        ],
        "detection": {
            name: {
                "auc": _plain(curve.auc),
                "false_positive_rate": [_plain(value) for value in curve.false_positive_rate],
                "true_positive_rate": [_plain(value) for value in curve.true_positive_rate],
            }
            for name, curve in curves.items()
        },
        "clean": int(jnp.sum(~backdoored)),
        "backdoored": int(jnp.sum(backdoored)),
        "steps": config.unlearning.steps,
        "images": found[0].images,
        "data": found[0].provenance,
    }


def rows(config: ActivenessConfig, found: Sequence[ActivenessFound]) -> list[dict[str, Any]]:
    """Rows of results, but for commit, hardware and date: one for each victim, and a last one with the AUCs.

    The last one is of `attack` "all", and says in `config` what attacks and seeds they were.
    """
    summary, subject, settings = summarize(config, found), row_subject(config), row_settings(config)
    common = {"images": summary["images"], "steps": summary["steps"], "data": summary["data"]}
    victims = [
        subject | one | common
        | {"config": settings | {"seed": victim.seed, "attack": victim.attack.settings(), "attacks": [], "seeds": []}}
        for victim, one in zip(config.each(), summary["victims"], strict=True)
    ]  # fmt: skip
    aucs = {name: curve["auc"] for name, curve in summary["detection"].items()}
    kinds = {"clean": summary["clean"], "backdoored": summary["backdoored"]}
    return [*victims, subject | {"attack": "all", "auc": aucs} | kinds | common | {"config": settings}]


def _plain(value: jax.Array) -> float | None:
    """Six significant digits; None for what JSON has no number for."""
    return float(f"{float(value):.6g}") if math.isfinite(value) else None


def _share(images: Images, fraction: float, *, seed: int) -> Batch:
    chosen = stratified(images.labels, round(fraction * len(images.labels)), seed=seed)
    return Batch(jnp.asarray(images.images[chosen]), jnp.asarray(images.labels[chosen], jnp.int32))


def _table(found: Sequence[ActivenessFound]) -> str:
    """CSV of every neuron: attack, seed, layer, index, mean and variance of its activeness, NWC."""
    lines = ["attack,seed,layer,neuron,mean,variance,nwc"]
    for one in found:
        for layer in one.nwc:
            values = (one.activeness.mean[layer], one.activeness.variance[layer], one.nwc[layer])
            lines += [
                f"{one.attack},{one.seed},{layer},{neuron}," + ",".join(f"{value:.9g}" for value in neurons)
                for neuron, neurons in enumerate(np.stack(values, axis=1))
            ]
    return "\n".join(lines) + "\n"


@dataclasses.dataclass(frozen=True)
class _Watching(Run[VictimConfig]):
    """The stage of a study: a victim is unlearned, and its neurons watched."""

    layers: tuple[Layer, ...]
    study: ActivenessConfig

    def watched(self, victim: Stage, images: Batch) -> tuple[Activeness, Scores]:
        """Activeness of every neuron on batches drawn from uint8 images, and its NWC."""
        config, layers = self.study.unlearning, self.layers
        place = partial(parallel.split_batch, mesh=self.mesh)

        def function(
            variables: Variables, images: Batch, key: jax.Array, *, on_step: Callable[[], None] | None
        ) -> dict[str, Any]:
            make = partial(drawn, images=images, size=config.batch_size, prepare=self.prepare)
            found, nwc = activeness_and_nwc(
                self.network,
                variables,
                lambda key: place(make(key)),
                layers,
                key=key,
                config=config,
                on_step=on_step,
            )
            return found._asdict() | {"nwc": nwc}

        key = self.key("activeness")
        stage = self.stage(
            "activeness",
            function,
            (victim.value["variables"], images, key),
            title=f"clean unlearning: {self.config.attack.name}, seed {self.config.seed}",
            config={
                "network": self.network_digest(),
                "images": [content_digest(images), self.config.data.mean, self.config.data.std],
                "layers": [layer.name for layer in layers],
                **dataclasses.asdict(config),
            },
            key=key,
            parents=(victim,),
            total=config.steps,
        )
        mean, variance, nwc = (
            {layer.name: stage.value[part][layer.name] for layer in layers}  # execution order
            for part in ("mean", "variance", "nwc")
        )
        weight_change.check_scores(nwc)
        return Activeness(mean, variance), nwc
