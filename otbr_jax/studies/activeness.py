"""The observation behind TSBD: during unlearning, neurons of a backdoored network are far more active.

Networks with and without a backdoor are unlearned on the same few clean images for the same number of steps. The norms
of each neuron's gradients (activeness) and the change of its weights (NWC) are compared neuron by neuron, and as single
scores that may tell a backdoored network from a clean one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.attacks.registry import ATTACKS
from otbr_jax.detectors.scores import DetectionScores, detection_scores, roc
from otbr_jax.errors import InputError
from otbr_jax.graph.choose import LAYERS
from otbr_jax.graph.graph import Layer
from otbr_jax.plan import Plan, Report, Setup, Shown, Step, needs
from otbr_jax.report import activeness_page
from otbr_jax.settings import field, settings, wrong
from otbr_jax.steps.activeness import Activeness, gradient_norms, over_batches
from otbr_jax.steps.sampling import stratified_sample
from otbr_jax.steps.score import Scores, check_scores, neuron_weight_changes
from otbr_jax.steps.unlearn import UnlearningConfig, unlearn
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
from otbr_jax.types import Batch, BatchFn, Network, Variables
from otbr_jax.victims.config import VictimConfig


@settings("")
class ActivenessConfig(VictimConfig):
    """The settings of a study of activeness.

    With a checkpoint in `model` that network is the only victim, with the backdoor of `attack` and the key of `seed`.
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
        doc="seeds of the victims, one for each attack and seed; empty for the one of `seed`.",
    )
    unlearning: UnlearningConfig = field(
        default=UnlearningConfig(), doc="unlearning on clean images, for the same number of steps in all victims."
    )
    fraction: float = field(
        default=0.05,
        above=0,
        at_most=1,
        doc="share of the training images, of each class, that the defender has.",
    )
    layers: str = field(default="auto", choices=LAYERS, doc="which layers are studied, see `choose_layers`.")

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
        return [
            victim_config(self, attack=attack, seed=seed)
            for attack in attacks_of(self)
            for seed in self.seeds or [self.seed]
        ]


def inputs(case: Case) -> Mapping[str, Any]:
    """The defender's clean images, the same share of every class; raises InputError if there are none."""
    pool, fraction = training_images(case.dataset), case.study.fraction
    count = round(fraction * len(pool.labels))
    if count < 1:
        raise InputError(f"fraction: expected at least one of the {len(pool.labels)} images, found none at {fraction}")
    chosen = stratified_sample(pool.labels, count, seed=case.config.seed)
    return {"clean": Batch(jnp.asarray(pool.images[chosen]), jnp.asarray(pool.labels[chosen], jnp.int32))}


class NeuronScores(NamedTuple):
    """Activeness of every neuron, and its NWC."""

    activeness: Activeness
    nwc: Scores


def score_neurons(
    setup: Setup,
    settings: UnlearningConfig,
    *,
    victim: Variables,
    clean: Batch,
    key: jax.Array,
    report: Report | None,
) -> NeuronScores:
    """Unlearns a victim on batches drawn from uint8 images, and measures its neurons meanwhile."""
    make = partial(draw_batch, batch=clean, size=settings.batch_size, network=setup.network)
    return NeuronScores(
        *activeness_and_nwc(
            setup.network,
            victim,
            make,
            setup.layers,
            key=key,
            config=settings,
            on_step=report,
        )
    )


def plan(case: Case, inputs: Mapping[str, Any]) -> Plan:
    """One step, `activeness`."""
    del inputs
    return (
        Step(
            "activeness",
            score_neurons,
            needs("victim", "clean"),
            case.study.unlearning,
            check=lambda _, scores: check_scores(scores.nwc),
            shown=Shown(
                f"clean unlearning: {case.config.attack.name}, seed {case.config.seed}",
                total=case.study.unlearning.steps,
            ),
        ),
    )


class VictimScores(NamedTuple):
    """Activeness and NWC of a victim's neurons, and the scores of the network."""

    activeness: Activeness
    nwc: Scores
    scores: DetectionScores


def victim_scores(one: Finding) -> VictimScores:
    """The scores of one victim."""
    (mean, variance), nwc = one.values["activeness"]
    mean, variance, nwc = (one.ordered(scores) for scores in (mean, variance, nwc))
    return VictimScores(Activeness(mean, variance), nwc, detection_scores(mean, nwc))


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
    """As `otbr_jax.steps.activeness`, and the NWC of the same unlearning, `{layer name: [neurons]}`.

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
    return over_batches(info.observed, layers), neuron_weight_changes(variables, after, layers)


def summarize(config: ActivenessConfig, findings: Sequence[Finding]) -> dict[str, Any]:
    """All numbers but those of single neurons, as plain JSON values; undefined ones are None.

    `victims` has an entry for each: `attack`, `seed`, `victim` (ACC, and ASR and RA of a backdoored one), `neurons`,
    `layers` (average and maximum activeness by layer) and `scores`. `detection` has for each score its `auc`, and the
    points `false_positive_rate` and `true_positive_rate` of its ROC curve.
    """
    each = [victim_scores(one) for one in findings]
    backdoored = jnp.array([one.config.attack.name != "none" for one in findings])
    curves = {
        name: roc(jnp.stack([getattr(one.scores, name) for one in each]), backdoored)
        for name in DetectionScores._fields
    }
    return {
        "victims": [
            {
                "attack": one.config.attack.name,
                "seed": one.config.seed,
                "victim": {
                    name: _plain(value) if name == "acc" or one.config.attack.name != "none" else None
                    for name, value in one.metrics._asdict().items()
                },
                "neurons": sum(int(mean.size) for mean in what.activeness.mean.values()),
                "layers": {
                    name: {"average": _plain(jnp.mean(mean)), "maximum": _plain(jnp.max(mean))}
                    for name, mean in what.activeness.mean.items()
                },
                "scores": {name: _plain(value) for name, value in what.scores._asdict().items()},
            }
            for one, what in zip(findings, each, strict=True)
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
        "images": len(findings[0].inputs["clean"].labels),
        "data": findings[0].provenance,
    }


def rows(config: ActivenessConfig, findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Rows of results, without commit, hardware and date: one for each victim, and a last one with the AUCs.

    The last one has `attack` "all", and the attacks and seeds in its `config`.
    """
    summary, subject, own = summarize(config, findings), row_subject(config), row_settings(config)
    common = {"images": summary["images"], "steps": summary["steps"], "data": summary["data"]}
    victims = [
        subject | one | common
        | {"config": own | {"seed": victim.seed, "attack": victim.attack.settings(), "attacks": [], "seeds": []}}
        for victim, one in zip(config.each(), summary["victims"], strict=True)
    ]  # fmt: skip
    aucs = {name: curve["auc"] for name, curve in summary["detection"].items()}
    kinds = {"clean": summary["clean"], "backdoored": summary["backdoored"]}
    return [*victims, subject | {"attack": "all", "auc": aucs} | kinds | common | {"config": own}]


def _plain(value: jax.Array) -> float | None:
    """Six significant digits; None for NaN and infinity, which JSON does not have."""
    return float(f"{float(value):.6g}") if math.isfinite(value) else None


def _every_neuron(findings: Sequence[Finding]) -> str:
    """CSV of every neuron: attack, seed, layer, index, mean and variance of its activeness, NWC."""
    lines = ["attack,seed,layer,neuron,mean,variance,nwc"]
    for one in findings:
        (mean, variance), nwc, _ = victim_scores(one)
        for layer in nwc:
            lines += [
                f"{one.config.attack.name},{one.config.seed},{layer},{neuron},"
                + ",".join(f"{value:.9g}" for value in neurons)
                for neuron, neurons in enumerate(np.stack((mean[layer], variance[layer], nwc[layer]), axis=1))
            ]
    return "\n".join(lines) + "\n"


def files(config: ActivenessConfig, findings: Sequence[Finding]) -> dict[str, str]:
    """`activeness.json` with what `summarize` returns, `activeness.csv` with every neuron, and `activeness.html`."""
    summary = summarize(config, findings)
    return {
        "activeness.json": json.dumps(summary, indent=1) + "\n",
        "activeness.csv": _every_neuron(findings),
        "activeness.html": activeness_page.render(summary, [victim_scores(one).activeness.mean for one in findings]),
    }


ACTIVENESS = Study(
    name="activeness",
    Config=ActivenessConfig,
    layers=lambda config: config.layers,
    each=ActivenessConfig.each,
    inputs=inputs,
    plan=plan,
    rows=rows,
    files=files,
    table=lambda config, findings: activeness_page.activeness_table(summarize(config, findings)).text(),
    descriptions={
        "activeness.html": "figures: activeness by neuron and layer, ROC curves",
        "activeness.json": "all scores",
        "activeness.csv": "every neuron's activeness and weight change",
    },
    batch_sizes=lambda config: {"unlearning.batch_size": config.unlearning.batch_size},
)
"""Are neurons of a backdoored network more active while it is unlearned?"""
