"""The finding that TSBD stands on: while they are unlearned, neurons of a backdoored network are far more active.

Networks with and without a backdoor are unlearned on the same few clean images for the same number of steps. How large
the gradients of each neuron are (activeness), and how far its weights moved (NWC), is compared neuron by neuron, and as
single scores that might tell a backdoored network from a clean one.
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
    Found,
    Study,
    drawn,
    named_attacks,
    row_settings,
    row_subject,
    training_images,
    victim_config,
)
from otbr_jax.types import Batch, BatchFn, Network, Variables
from otbr_jax.victims.config import VictimConfig


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
        return [
            victim_config(self, attack=attack, seed=seed)
            for attack in named_attacks(self)
            for seed in self.seeds or [self.seed]
        ]


def given(case: Case) -> Mapping[str, Any]:
    """The clean images that are known, of every class its share; raises InputError if there are none."""
    pool, fraction = training_images(case.dataset), case.study.fraction
    count = round(fraction * len(pool.labels))
    if count < 1:
        raise InputError(f"fraction: expected at least one of the {len(pool.labels)} images, found none at {fraction}")
    chosen = stratified_sample(pool.labels, count, seed=case.config.seed)
    return {"clean": Batch(jnp.asarray(pool.images[chosen]), jnp.asarray(pool.labels[chosen], jnp.int32))}


class Watched(NamedTuple):
    """Activeness of every neuron, and its NWC."""

    activeness: Activeness
    nwc: Scores


def watch(
    setup: Setup,
    settings: UnlearningConfig,
    *,
    victim: Variables,
    clean: Batch,
    key: jax.Array,
    report: Report | None,
) -> Watched:
    """A victim is unlearned on batches drawn from uint8 images, and its neurons watched."""
    make = partial(drawn, batch=clean, size=settings.batch_size, network=setup.network)
    return Watched(
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


def plan(case: Case, given: Mapping[str, Any]) -> Plan:
    """One step, `activeness`."""
    del given
    return (
        Step(
            "activeness",
            watch,
            needs("victim", "clean"),
            case.study.unlearning,
            check=lambda _, found: check_scores(found.nwc),
            shown=Shown(
                f"clean unlearning: {case.config.attack.name}, seed {case.config.seed}",
                total=case.study.unlearning.steps,
            ),
        ),
    )


class Seen(NamedTuple):
    """What was found in one victim: activeness and NWC of its neurons, and the scores of the network."""

    activeness: Activeness
    nwc: Scores
    scores: DetectionScores


def seen(one: Found) -> Seen:
    """What was found in one victim."""
    (mean, variance), nwc = one.values["activeness"]
    mean, variance, nwc = (one.ordered(scores) for scores in (mean, variance, nwc))
    return Seen(Activeness(mean, variance), nwc, detection_scores(mean, nwc))


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
    """As `otbr_jax.steps.activeness`, with how far the same unlearning moved each neuron, `{layer name: [neurons]}`.

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


def summarize(config: ActivenessConfig, found: Sequence[Found]) -> dict[str, Any]:
    """All numbers but those of single neurons, as plain JSON values; what is not defined is None.

    `victims` has an entry for each: `attack`, `seed`, `victim` (ACC, and ASR and RA of a backdoored one), `neurons`,
    `layers` (average and maximum activeness by layer) and `scores`. `detection` has for each score its `auc`, and the
    points `false_positive_rate` and `true_positive_rate` of its ROC curve.
    """
    each = [seen(one) for one in found]
    backdoored = jnp.array([one.config.attack.name != "none" for one in found])
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
            for one, what in zip(found, each, strict=True)
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
        "images": len(found[0].given["clean"].labels),
        "data": found[0].provenance,
    }


def rows(config: ActivenessConfig, found: Sequence[Found]) -> list[dict[str, Any]]:
    """Rows of results, but for commit, hardware and date: one for each victim, and a last one with the AUCs.

    The last one is of `attack` "all", and says in `config` what attacks and seeds they were.
    """
    summary, subject, own = summarize(config, found), row_subject(config), row_settings(config)
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
    """Six significant digits; None for what JSON has no number for."""
    return float(f"{float(value):.6g}") if math.isfinite(value) else None


def _every_neuron(found: Sequence[Found]) -> str:
    """CSV of every neuron: attack, seed, layer, index, mean and variance of its activeness, NWC."""
    lines = ["attack,seed,layer,neuron,mean,variance,nwc"]
    for one in found:
        (mean, variance), nwc, _ = seen(one)
        for layer in nwc:
            lines += [
                f"{one.config.attack.name},{one.config.seed},{layer},{neuron},"
                + ",".join(f"{value:.9g}" for value in neurons)
                for neuron, neurons in enumerate(np.stack((mean[layer], variance[layer], nwc[layer]), axis=1))
            ]
    return "\n".join(lines) + "\n"


def files(config: ActivenessConfig, found: Sequence[Found]) -> dict[str, str]:
    """`activeness.json` with what `summarize` says, `activeness.csv` with every neuron, and `activeness.html`."""
    summary = summarize(config, found)
    return {
        "activeness.json": json.dumps(summary, indent=1) + "\n",
        "activeness.csv": _every_neuron(found),
        "activeness.html": activeness_page.render(summary, [seen(one).activeness.mean for one in found]),
    }


ACTIVENESS = Study(
    name="activeness",
    Config=ActivenessConfig,
    layers=lambda config: config.layers,
    each=ActivenessConfig.each,
    given=given,
    plan=plan,
    rows=rows,
    files=files,
    table=lambda config, found: activeness_page.activeness_table(summarize(config, found)).text(),
    described={
        "activeness.html": "figures: activeness by neuron and layer, ROC curves",
        "activeness.json": "all scores",
        "activeness.csv": "every neuron's activeness and weight change",
    },
    batch_sizes=lambda config: {"unlearning.batch_size": config.unlearning.batch_size},
)
"""Are neurons of a backdoored network more active while it is unlearned?"""
