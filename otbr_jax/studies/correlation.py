"""The observation behind repair without data: random, clean and poison unlearning change the same neurons.

One network is unlearned three times: on noise, on clean images, and on triggered images with the attacker's labels. The
neuron weight changes (NWC) are correlated, per layer and overall. Poison unlearning needs the attacker's trigger, which
no defender has: this explains the method, it is no part of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.attacks.poisoning import apply_trigger
from otbr_jax.attacks.registry import ATTACKS
from otbr_jax.graph.choose import LAYERS
from otbr_jax.plan import Plan, Report, Setup, Shown, Step, needs
from otbr_jax.report import correlation_page
from otbr_jax.settings import field, settings, wrong
from otbr_jax.steps.score import Correlation, Scores, check_scores, correlations, neuron_weight_changes
from otbr_jax.steps.unlearn import UnlearningConfig, noise_batches, unlearn
from otbr_jax.studies.study import (
    Case,
    Finding,
    Study,
    attacks_of,
    draw_batch,
    row_settings,
    row_subject,
    training_images,
    victim_config,
)
from otbr_jax.types import Batch, BatchFn, Variables
from otbr_jax.victims.config import VictimConfig
from otbr_jax.victims.victims import attacker_goals

KINDS = ("random", "clean", "poison")


@settings("")
class CorrelationConfig(VictimConfig):
    """The settings of a study of correlations."""

    attacks: tuple[str, ...] = field(
        default=(),
        choices=(*ATTACKS, "none"),
        doc="names of attacks, with a victim for each; empty for the one of `attack`.",
    )
    unlearning: UnlearningConfig = field(default=UnlearningConfig(), doc="settings of all three kinds of unlearning.")
    layers: str = field(default="auto", choices=LAYERS, doc="which layers are compared, see `choose_layers`.")
    top: float = field(default=0.1, above=0, at_most=1, doc="share of the neurons whose overlap is measured.")

    def check(self) -> None:
        """Every victim has a backdoor."""
        super().check()
        for config in self.each():
            if config.attack.name == "none":
                raise wrong(self, "attack.name", "an attack, since poison unlearning needs its trigger", found="'none'")

    def each(self) -> list[VictimConfig]:
        """The settings of every victim."""
        return [victim_config(self, attack=attack) for attack in attacks_of(self)]


def inputs(case: Case) -> Mapping[str, Any]:
    """The clean images and the triggered ones; test images if there are no training images."""
    run, images = case.run, training_images(case.dataset)
    assert case.victim.trigger is not None
    clean, labels = jnp.asarray(images.images), jnp.asarray(images.labels, jnp.int32)
    goals = attacker_goals(case.config.attack, labels, run.network.num_classes)
    triggered = apply_trigger(case.victim.trigger, clean, key=run.key("poison"))
    others = np.flatnonzero(np.asarray(labels != goals))
    return {"clean": Batch(clean, labels), "poison": Batch(triggered[others], goals[others])}


def weight_changes(
    setup: Setup,
    settings: UnlearningConfig,
    *,
    victim: Variables,
    key: jax.Array,
    report: Report | None,
    images: Batch | None = None,
) -> dict[str, jax.Array]:
    """NWC after unlearning on batches drawn from uint8 images, or on noise without any."""
    size = settings.batch_size
    if images is None:
        make: BatchFn = noise_batches(setup.network, batch_size=size)
    else:
        make = partial(draw_batch, batch=images, size=size, network=setup.network)
    after, _ = unlearn(setup.network, victim, make, key=key, config=settings, on_step=report)
    return neuron_weight_changes(victim, after, setup.layers)


def plan(case: Case, inputs: Mapping[str, Any]) -> Plan:
    """NWC by kind of unlearning, `nwc_KIND`."""
    config: UnlearningConfig = case.study.unlearning
    return tuple(
        Step(
            f"nwc_{kind}",
            weight_changes,
            needs("victim", **({"images": kind} if kind in inputs else {})),
            config,
            check=lambda _, scores: check_scores(scores),
            shown=Shown(f"{kind} unlearning: {case.config.attack.name}", total=config.steps),
        )
        for kind in KINDS
    )


class VictimCorrelations(NamedTuple):
    """NWC by kind of unlearning; and of `random` and `clean` the correlation with `poison`, overall and by layer."""

    scores: Mapping[str, Scores]
    pairs: Mapping[str, tuple[Correlation, Mapping[str, Correlation]]]


def victim_correlations(config: CorrelationConfig, one: Finding) -> VictimCorrelations:
    """The correlations of one victim."""
    scores = {kind: one.scores(f"nwc_{kind}") for kind in KINDS}
    pairs = {kind: correlations(scores[kind], scores["poison"], top=config.top) for kind in ("random", "clean")}
    return VictimCorrelations(scores, pairs)


def summarize(config: CorrelationConfig, findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """All numbers as plain JSON values, one entry for each victim; an undefined correlation is None."""
    return [
        {
            "attack": one.config.attack.name,
            "victim": {name: round(float(value), 6) for name, value in one.metrics._asdict().items()},
            "neurons": sum(int(score.size) for score in one.values["nwc_random"].values()),
            "top": config.top,
            "with_poison": {
                kind: {
                    "all": _plain(overall),
                    "last": _plain(list(by_layer.values())[-1]),
                    "layers": {name: _plain(each) for name, each in by_layer.items()},
                }
                for kind, (overall, by_layer) in victim_correlations(config, one).pairs.items()
            },
            "data": one.provenance,
        }
        for one in findings
    ]


def rows(config: CorrelationConfig, findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """A row of results for each victim, without commit, hardware and date."""
    subject, own = row_subject(config), row_settings(config)
    return [
        subject | {"seed": config.seed, **one} | {"config": own | {"attack": victim.attack.settings(), "attacks": []}}
        for victim, one in zip(config.each(), summarize(config, findings), strict=True)
    ]


def _plain(correlation: Correlation) -> dict[str, float | None]:
    return {name: None if value != value else round(float(value), 4) for name, value in correlation._asdict().items()}


def _every_neuron(findings: Sequence[Finding]) -> str:
    """CSV of every neuron: attack, layer, index, and its NWC under each kind of unlearning."""
    lines = ["attack,layer,neuron," + ",".join(KINDS)]
    for one in findings:
        scores = {kind: one.scores(f"nwc_{kind}") for kind in KINDS}
        for layer in scores["random"]:
            columns = np.stack([np.asarray(scores[kind][layer]) for kind in KINDS], axis=1)
            lines += [
                f"{one.config.attack.name},{layer},{neuron}," + ",".join(f"{value:.9g}" for value in values)
                for neuron, values in enumerate(columns)
            ]
    return "\n".join(lines) + "\n"


def files(config: CorrelationConfig, findings: Sequence[Finding]) -> dict[str, str]:
    """`correlation.json`, `nwc.csv` and `correlation.html`."""
    summary = summarize(config, findings)
    return {
        "correlation.json": json.dumps(summary, indent=1) + "\n",
        "nwc.csv": _every_neuron(findings),
        "correlation.html": correlation_page.render(
            summary, [victim_correlations(config, one).scores for one in findings]
        ),
    }


CORRELATION = Study(
    name="correlation",
    Config=CorrelationConfig,
    layers=lambda config: config.layers,
    each=CorrelationConfig.each,
    inputs=inputs,
    plan=plan,
    rows=rows,
    files=files,
    table=lambda config, findings: correlation_page.correlation_table(summarize(config, findings)).text(),
    descriptions={
        "correlation.html": "scatter plots",
        "correlation.json": "all numbers",
        "nwc.csv": "every neuron's weight changes",
    },
    batch_sizes=lambda config: {"unlearning.batch_size": config.unlearning.batch_size},
)
"""Do random, clean and poison unlearning change the same neurons?"""
