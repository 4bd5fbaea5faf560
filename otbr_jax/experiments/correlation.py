"""The finding that repair without data stands on: neurons move alike under random, clean and poison unlearning.

One network is unlearned three times, on noise, on clean images and on triggered images with the labels that the
attacker wants, and the neuron weight changes (NWC) are correlated, per layer and overall. Poison unlearning needs the
attacker's trigger, which no defender has: this explains the method, it is not a part of it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax import unlearning, weight_change
from otbr_jax.attacks.poisoning import apply_trigger
from otbr_jax.attacks.registry import ATTACKS
from otbr_jax.data.sources import Dataset, Images
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
from otbr_jax.experiments.victims import (
    Victim,
    attacker_goals,
    open_victim,
    subject_of,
)
from otbr_jax.layer_choice import LAYERS
from otbr_jax.metrics import Metrics
from otbr_jax.neuron_graph import Layer
from otbr_jax.report import correlation_page
from otbr_jax.settings import field, settings, wrong
from otbr_jax.types import Batch, BatchFn, Variables
from otbr_jax.unlearning import UnlearningConfig
from otbr_jax.weight_change import Correlation, Scores

KINDS = ("random", "clean", "poison")


@settings("")
class CorrelationConfig(VictimConfig):
    """Everything that decides a study of correlations."""

    attacks: tuple[str, ...] = field(
        default=(),
        choices=(*ATTACKS, "none"),
        doc="names of attacks, each of which gets a victim of its own; empty for the one of `attack`.",
    )
    unlearning: UnlearningConfig = field(default=UnlearningConfig(), doc="of all three kinds alike.")
    layers: str = field(default="auto", choices=LAYERS, doc="which layers are compared, see `choose_layers`.")
    top: float = field(default=0.1, above=0, at_most=1, doc="share of the neurons of which the overlap is.")

    def check(self) -> None:
        """Every victim has a backdoor."""
        super().check()
        for config in self.each():
            if config.attack.name == "none":
                raise wrong(self, "attack.name", "an attack, since poison unlearning needs its trigger", found="'none'")

    def each(self) -> list[VictimConfig]:
        """The settings of every victim."""
        named = [dataclasses.replace(self.attack, name=name) for name in self.attacks] or [self.attack]
        return [victim_config(self, attack=attack) for attack in named]


class Study(NamedTuple):
    """What was found in one victim.

    Attributes:
      attack: its name.
      metrics: ACC, ASR and RA of the victim.
      scores: NWC by kind of unlearning, a name of `KINDS`.
      pairs: correlation with poison unlearning, of `random` and `clean`: over all neurons, and by layer.
      provenance: what the images are.
    """

    attack: str
    metrics: Metrics
    scores: Mapping[str, Scores]
    pairs: Mapping[str, tuple[Correlation, Mapping[str, Correlation]]]
    provenance: str


def correlate(
    config: CorrelationConfig, workdir: str | os.PathLike[str], *, devices: Sequence[jax.Device] | None = None
) -> list[Study]:
    """Unlearns every victim that `config` names in three ways, and correlates how far its neurons moved.

    Leaves in `workdir`: `correlation.json` with all numbers, `nwc.csv` with every neuron's three weight changes, and
    `correlation.html`, a page with the scatter plots.

    Args:
      config: the settings; with a checkpoint it is the victim, with the trigger of `attack`.
      workdir: directory for the stages and the results; resumed if it has been used before.
      devices: the devices that share the work; by default all local ones.

    Returns:
      What was found, victim by victim.

    Raises:
      InputError: names what is wrong with the settings, the checkpoint, the data or the working directory.
    """
    mesh, subject, layers, dataset = open_study(config, layers=config.layers, devices=devices)
    parallel.check_batch_size(config.unlearning.batch_size, mesh, name="unlearning.batch_size")
    with open_workdir(workdir, subject=subject_of(config)) as directory:
        studies = [
            _study(_Unlearning(victim, directory, subject, mesh, layers, config), dataset) for victim in config.each()
        ]
        summary = summarize(config, studies)
        write_text(directory.path / "correlation.json", json.dumps(summary, indent=1) + "\n")
        write_text(directory.path / "nwc.csv", _table(studies))
        write_text(directory.path / "correlation.html", correlation_page.render(summary, [s.scores for s in studies]))
    return studies


def summarize(config: CorrelationConfig, studies: Sequence[Study]) -> list[dict[str, Any]]:
    """All numbers as plain JSON values, one entry for each victim; a correlation that is not defined is None."""
    return [
        {
            "attack": study.attack,
            "victim": {name: round(float(value), 6) for name, value in study.metrics._asdict().items()},
            "neurons": sum(int(score.size) for score in study.scores["random"].values()),
            "top": config.top,
            "with_poison": {
                kind: {
                    "all": _plain(overall),
                    "last": _plain(list(by_layer.values())[-1]),
                    "layers": {name: _plain(found) for name, found in by_layer.items()},
                }
                for kind, (overall, by_layer) in study.pairs.items()
            },
            "data": study.provenance,
        }
        for study in studies
    ]


def rows(config: CorrelationConfig, studies: Sequence[Study]) -> list[dict[str, Any]]:
    """A row of results for each victim, but for commit, hardware and date."""
    subject, settings = row_subject(config), row_settings(config)
    return [
        subject
        | {"seed": config.seed, **found}
        | {"config": settings | {"attack": victim.attack.settings(), "attacks": []}}
        for victim, found in zip(config.each(), summarize(config, studies), strict=True)
    ]


def _plain(found: Correlation) -> dict[str, float | None]:
    return {name: None if value != value else round(float(value), 4) for name, value in found._asdict().items()}


def _table(studies: Sequence[Study]) -> str:
    """CSV of every neuron: attack, layer, index, and its NWC under each kind of unlearning."""
    lines = ["attack,layer,neuron," + ",".join(KINDS)]
    for study in studies:
        for layer in study.scores["random"]:
            columns = np.stack([np.asarray(study.scores[kind][layer]) for kind in KINDS], axis=1)
            lines += [
                f"{study.attack},{layer},{neuron}," + ",".join(f"{value:.9g}" for value in values)
                for neuron, values in enumerate(columns)
            ]
    return "\n".join(lines) + "\n"


def _study(run: _Unlearning, dataset: Dataset) -> Study:
    victim = open_victim(run, dataset)
    scores = run.scores(victim, training_images(dataset))
    pairs = {
        kind: weight_change.correlations(scores[kind], scores["poison"], top=run.study.top)
        for kind in ("random", "clean")
    }
    return Study(run.config.attack.name, victim_metrics(run, victim, dataset.test), scores, pairs, dataset.provenance)


@dataclasses.dataclass(frozen=True)
class _Unlearning(Run[VictimConfig]):
    """The stages of a study: a victim is unlearned in three ways."""

    layers: tuple[Layer, ...]
    study: CorrelationConfig

    def scores(self, victim: Victim, images: Images) -> dict[str, Scores]:
        """NWC by kind of unlearning; a network that has seen no training images is unlearned on test images."""
        assert victim.trigger is not None
        clean, labels = jnp.asarray(images.images), jnp.asarray(images.labels, jnp.int32)
        goals = attacker_goals(self.config.attack, labels, self.network.num_classes)
        triggered = apply_trigger(victim.trigger, clean, key=self.key("poison"))
        others = np.flatnonzero(np.asarray(labels != goals))
        return {
            "random": self.unlearned("random", victim.stage, None),
            "clean": self.unlearned("clean", victim.stage, Batch(clean, labels)),
            "poison": self.unlearned("poison", victim.stage, Batch(triggered[others], goals[others])),
        }

    def unlearned(self, kind: str, victim: Stage, images: Batch | None) -> Scores:
        """NWC after unlearning on batches drawn from uint8 images, or on noise."""
        config, layers, size = self.study.unlearning, self.layers, self.study.unlearning.batch_size
        place = partial(parallel.split_batch, mesh=self.mesh)

        def function(
            variables: Variables, images: Batch | None, key: jax.Array, *, on_step: Callable[[], None] | None
        ) -> Any:
            if images is None:
                make: BatchFn = unlearning.noise_batches(self.network, batch_size=size)
            else:
                make = partial(drawn, images=images, size=size, prepare=self.prepare)
            after, _ = unlearning.unlearn(
                self.network, variables, lambda key: place(make(key)), key=key, config=config, on_step=on_step
            )
            return weight_change.neuron_weight_changes(variables, after, layers)

        key = self.key(f"nwc_{kind}")
        stage = self.stage(
            f"nwc_{kind}",
            function,
            (victim.value["variables"], images, key),
            title=f"{kind} unlearning: {self.config.attack.name}",
            config={
                "network": self.network_digest(),
                "images": None
                if images is None
                else [content_digest(images), self.config.data.mean, self.config.data.std],
                "layers": [layer.name for layer in layers],
                **dataclasses.asdict(config),
            },
            key=key,
            parents=(victim,),
            total=config.steps,
        )
        scores = {layer.name: stage.value[layer.name] for layer in layers}  # execution order
        weight_change.check_scores(scores)
        return scores
