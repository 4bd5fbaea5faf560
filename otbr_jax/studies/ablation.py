"""Ablation of TSBD: which weights are set to zero, how the network is fine-tuned, which neurons, how much data.

Every victim is repaired by several variants that differ from TSBD in one thing each, for several shares n.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax import plan as plans
from otbr_jax.attacks.registry import ATTACKS
from otbr_jax.data.clean import CleanConfig, clean_augmentation
from otbr_jax.defenses import tsbd
from otbr_jax.defenses.otbr import Unlearned
from otbr_jax.defenses.tsbd import TSBDConfig, TSBDSettings
from otbr_jax.metrics import Metrics
from otbr_jax.plan import ROOT, Plan, Report, Setup, Shown, Step, needs
from otbr_jax.report import ablation_page
from otbr_jax.settings import field, settings, wrong
from otbr_jax.steps.finetune import FinetuningConfig, finetune
from otbr_jax.steps.prune import neurons_to_prune, reinitialize
from otbr_jax.steps.score import Scores, correlations
from otbr_jax.studies import trigger_activation
from otbr_jax.studies.study import Case, Finding, Study, attacks_of, row_settings, row_subject, victim_fields
from otbr_jax.types import Batch, Variables
from otbr_jax.victims import evaluation
from otbr_jax.victims.config import VictimConfig
from otbr_jax.victims.evaluation import TestSet
from otbr_jax.victims.victims import test_set

ACTIVATION_IMAGES = 512
"""The largest number of images on which the activation of neurons is measured, with and without the trigger."""


class Variant(NamedTuple):
    """A variant of the method.

    Attributes:
      choice: which neurons, `nwc` (those that changed most), `least active` on clean images, or `random`.
      scheme: what of them is set to zero: `sub-weights` (the share m of their weights that changed most),
        `all weights`, or `whole neurons` (also their biases and normalisation).
      finetuning: `activeness-aware` or `vanilla`.
      compared: the comparisons that it belongs to, and its name in each.
    """

    choice: str = "nwc"
    scheme: str = "sub-weights"
    finetuning: str = "activeness-aware"
    compared: Mapping[str, str] = {}


TSBD = Variant(
    compared={
        "what is set to zero": "sub-weights",
        "fine-tuning": "activeness-aware",
        "which neurons": "NWC",
    }
)
"""The method as published."""

VARIANTS = (
    TSBD,
    Variant(scheme="all weights", compared={"what is set to zero": "all weights"}),
    Variant(scheme="whole neurons", compared={"what is set to zero": "whole neurons"}),
    Variant(finetuning="vanilla", compared={"fine-tuning": "vanilla"}),
    Variant(choice="least active", compared={"which neurons": "least active"}),
    Variant(choice="random", compared={"which neurons": "random"}),
)
CHOICES = ("nwc", "least active", "random")


@settings("")
class RunConfig(VictimConfig):
    """The settings of one run: of the victim, and of the method."""

    tsbd: TSBDConfig = field(default=TSBDConfig(), doc="the method.")
    clean: CleanConfig = field(default=CleanConfig(), doc="its clean images.")


@settings("")
class AblationConfig(VictimConfig):
    """Everything that decides an ablation.

    A checkpoint in `model` is the only victim, with the backdoor of `attack`: without `attacks` and `poisoning_ratios`.
    """

    attacks: tuple[str, ...] = field(
        default=(),
        choices=(*ATTACKS, "none"),
        doc="names of attacks, with victims for each; empty for the one of `attack`.",
    )
    tsbd: TSBDConfig = field(default=TSBDConfig(), doc="the method; tables show its `n`, which is one of `n` below.")
    clean: CleanConfig = field(default=CleanConfig(), doc="its clean images.")
    n: tuple[float, ...] = field(
        default=(0.1, 0.2, 0.3), at_least=0, at_most=1, doc="shares of neurons for which every variant is run."
    )
    poisoning_ratios: tuple[float, ...] = field(
        default=(0.05, 0.01), above=0, at_most=1, doc="poisoning ratios of more victims."
    )
    fractions: tuple[float, ...] = field(
        default=(0.1, 0.01), above=0, at_most=1, doc="fractions of more sets of clean images."
    )
    top: float = field(
        default=0.1,
        above=0,
        at_most=1,
        doc="share of each layer's neurons whose overlap with the most trigger-activated ones is measured.",
    )

    def check(self) -> None:
        """Every victim has a backdoor, and every variant is run once."""
        super().check()
        for name in ("attacks", "poisoning_ratios"):
            if self.model.checkpoint and getattr(self, name):
                raise wrong(self, name, "none, since model.checkpoint is the victim")
        if self.tsbd.n not in self.n:
            raise wrong(self, "tsbd.n", f"one of n, {[*self.n]}")
        for name, values, own in (
            ("poisoning_ratios", self.poisoning_ratios, self.attack.poisoning_ratio),
            ("fractions", self.fractions, self.clean.fraction),
        ):
            if len({*values, own}) < len(values) + 1:
                raise wrong(self, name, f"each once and not {own:g} again")
        for repair, _ in self.each():
            if repair.attack.name == "none":
                raise wrong(self, "attack.name", "an attack, since a backdoor is to be removed", found="'none'")

    def each(self) -> list[tuple[RunConfig, tuple[Variant, ...]]]:
        """The settings of every run, and the variants that are run there."""
        runs: list[tuple[RunConfig, tuple[Variant, ...]]] = []
        for attack in attacks_of(self):
            ratio, fraction = self.attack.poisoning_ratio, self.clean.fraction
            more = {"poisoned": _percent(ratio), "clean images": _percent(fraction)}
            first = TSBD._replace(compared={**TSBD.compared, **more})
            runs.append((self._run(attack, self.clean), (first, *VARIANTS[1:])))
            for other in self.poisoning_ratios:
                poisoned = dataclasses.replace(attack, poisoning_ratio=other)
                variant = TSBD._replace(compared={"poisoned": _percent(other)})
                runs.append((self._run(poisoned, self.clean), (variant,)))
            for other in self.fractions:
                clean = dataclasses.replace(self.clean, fraction=other)
                runs.append((self._run(attack, clean), (TSBD._replace(compared={"clean images": _percent(other)}),)))
        return runs

    def _run(self, attack: Any, clean: CleanConfig) -> RunConfig:
        return RunConfig(**victim_fields(self) | {"attack": attack}, tsbd=self.tsbd, clean=clean)


def variants_of(config: AblationConfig, one: Any) -> tuple[Variant, ...]:
    """The variants that are run with these settings of a victim."""
    return next(variants for each, variants in config.each() if each == one)


def inputs(case: Case) -> Mapping[str, Any]:
    """The clean images, and the test set."""
    clean = case.run.session.clean(case.config.clean, seed=case.config.seed)
    images = Batch(jnp.asarray(clean.images.images), jnp.asarray(clean.images.labels))
    return {"clean": images, "test": test_set(case.run, case.victim)}


class AblationSettings(NamedTuple):
    """The settings of `repair_by_variants`."""

    variants: tuple[tuple[str, str, str], ...]
    n: tuple[float, ...]
    m: float
    finetuning: FinetuningConfig
    top: float


class AblationMetrics(NamedTuple):
    """The results of one victim.

    Attributes:
      reinitialized: metrics after re-initialisation, `[variants, n]` each.
      finetuned: metrics after fine-tuning, the same.
      overlap: `{choice: [layers]}`, share of the most trigger-activated neurons of a layer that are among the first of
        the choice, too.
    """

    reinitialized: Metrics
    finetuned: Metrics
    overlap: Mapping[str, jax.Array]


def plan(case: Case, inputs: Mapping[str, Any]) -> Plan:
    """TSBD up to the scores, and a step with all variants."""
    images = len(inputs["clean"].labels) // case.run.mesh.size * case.run.mesh.size
    method = _with_batches_of_at_most(images, case.config.tsbd)
    unlearned, scores, *_ = tsbd.plan(TSBDSettings(tsbd=method))
    variants, ns = variants_of(case.study, case.config), case.study.n
    settings = AblationSettings(
        tuple((v.choice, v.scheme, v.finetuning) for v in variants), ns, method.m, method.finetuning, case.study.top
    )
    step = Step(
        "ablated",
        repair_by_variants,
        needs("victim", "unlearned", "scores", "clean", "test"),
        settings,
        key=ROOT,
        shown=Shown(f"variants: {case.config.attack.name}", total=len(variants) * len(ns), unit="run"),
    )
    return unlearned, scores, step


def repair_by_variants(
    setup: Setup,
    settings: AblationSettings,
    *,
    victim: Variables,
    unlearned: Unlearned,
    scores: Scores,
    clean: Batch,
    test: TestSet,
    key: jax.Array,
    report: Report | None,
) -> AblationMetrics:
    """Re-initialises, fine-tunes and measures a victim by every variant, for every n, in one program."""
    choices = _choices(setup, scores, victim, clean, key=key)
    change = _changes(setup, victim, test)
    overlap = {
        name: jnp.stack([layer.overlap for layer in correlations(choice, change, top=settings.top)[1].values()])
        for name, choice in choices.items()
    }
    aware = settings.finetuning
    kinds = {"activeness-aware": aware, "vanilla": dataclasses.replace(aware, alpha=0.0)}
    used = [*dict.fromkeys(kind for _, _, kind in settings.variants)]

    def zero(choice: str, scheme: str, count: jax.Array) -> Variables:
        share = 1.0 if scheme == "all weights" else settings.m
        kind = "neurons" if scheme == "whole neurons" else "weights"
        return reinitialize(
            victim, unlearned.variables, choices[choice], setup.layers, count=count, share=share, scheme=kind
        )[0]

    def tune(start: Variables, config: FinetuningConfig) -> Variables:
        return finetune(
            setup.network,
            start,
            clean,
            key=plans.named_key(key, "finetuned"),
            config=config,
            augment=setup.augment,
        )[0]

    def measure(variables: Variables) -> Metrics:
        return evaluation.measure(setup.network, variables, test)

    def run_variant(indices: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Metrics, Metrics]:
        which, kind, count = indices
        branches: list[Callable[[], Variables]] = [
            partial(zero, choice, scheme, count) for choice, scheme, _ in settings.variants
        ]
        start = jax.lax.switch(which, branches)
        end = jax.lax.switch(kind, [partial(tune, start, kinds[name]) for name in used])
        metrics = measure(start), measure(end)
        if report is not None:
            jax.debug.callback(report)
        return metrics

    counts = jnp.array([neurons_to_prune(n, setup.neurons) for n in settings.n], jnp.int32)
    shape = (len(settings.variants), len(counts))
    which = jnp.repeat(jnp.arange(shape[0]), shape[1])
    kind = jnp.array([used.index(kind) for _, _, kind in settings.variants])[which]
    metrics = jax.lax.map(run_variant, (which, kind, jnp.tile(counts, shape[0])))
    reinitialized, repaired = (Metrics(*(field.reshape(shape) for field in one)) for one in metrics)
    return AblationMetrics(reinitialized, repaired, overlap)


def _choices(setup: Setup, nwc: Scores, variables: Variables, clean: Batch, *, key: jax.Array) -> dict[str, Scores]:
    """Scores of neurons by each choice; the highest are chosen first."""
    nwc = {layer.name: nwc[layer.name] for layer in setup.layers}
    active = trigger_activation.clean_activation(
        setup.network, variables, setup.network.prepare(clean.images[:ACTIVATION_IMAGES]), setup.layers
    )
    least = {name: -values for name, values in active.items()}
    random = trigger_activation.random_scores(nwc, key=plans.named_key(key, "random"))
    return {"nwc": nwc, "least active": least, "random": random}


def _changes(setup: Setup, variables: Variables, test: TestSet) -> Scores:
    """TAC, on at most `ACTIVATION_IMAGES` test images whose label is not the attacker's."""
    others = test.labels != test.goals
    # The first of them; if there are fewer, some twice.
    places = jnp.nonzero(others, size=len(others), fill_value=0)[0]
    chosen = places[jnp.arange(min(ACTIVATION_IMAGES, len(others))) % jnp.maximum(jnp.sum(others), 1)]
    clean, triggered = (setup.network.prepare(images[chosen]) for images in (test.clean, test.triggered))
    return trigger_activation.trigger_activated_change(setup.network, variables, clean, triggered, setup.layers)


def rows(config: AblationConfig, findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """A row of results for each run and variant, without commit, hardware and date; fractions in [0, 1]."""
    subject, own, result = row_subject(config), row_settings(config), []
    for one in findings:
        attack, ablated = one.config.attack, one.values["ablated"]
        for index, variant in enumerate(variants_of(config, one.config)):
            overlap = ablated.overlap[variant.choice]
            curve = [
                {
                    "n": n,
                    "reinitialized": _plain(Metrics(*(metric[index, place] for metric in ablated.reinitialized))),
                    "finetuned": _plain(Metrics(*(metric[index, place] for metric in ablated.finetuned))),
                }
                for place, n in enumerate(config.n)
            ]
            result.append(
                subject
                | {"seed": config.seed, "attack": attack.name, "poisoning_ratio": attack.poisoning_ratio}
                | {"clean_fraction": one.config.clean.fraction, "clean_images": len(one.inputs["clean"].labels)}
                | {name: getattr(variant, name) for name in ("choice", "scheme", "finetuning")}
                | {"compared": dict(variant.compared), "n": config.tsbd.n, "m": config.tsbd.m}
                | {"victim": _plain(one.metrics), "reached_chance": bool(one.values["unlearned"].info.reached)}
                | {"curve": curve}
                | {"tac_overlap": {"layers": _round(np.mean(overlap)), "last": _round(overlap[-1]), "top": config.top}}
                | {"data": one.provenance, "config": own | {"attack": attack.settings()}}
            )
    return result


def _with_batches_of_at_most(images: int, config: TSBDConfig) -> TSBDConfig:
    unlearning, tuning = config.unlearning, config.finetuning
    return dataclasses.replace(
        config,
        unlearning=dataclasses.replace(unlearning, batch_size=min(unlearning.batch_size, images)),
        finetuning=dataclasses.replace(tuning, batch_size=min(tuning.batch_size, images)),
    )


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _plain(metrics: Metrics) -> dict[str, float]:
    return {name: _round(value) for name, value in metrics._asdict().items()}


def _round(value: Any) -> float:
    return round(float(value), 6)


def files(config: AblationConfig, findings: Sequence[Finding]) -> dict[str, str]:
    """`ablation.json` with all rows, and `ablation.html`, a page with the tables and figures."""
    all_rows = rows(config, findings)
    return {
        "ablation.json": json.dumps(all_rows, indent=1) + "\n",
        "ablation.html": ablation_page.render(all_rows, n=config.tsbd.n),
    }


ABLATION = Study(
    name="ablation",
    Config=AblationConfig,
    layers=lambda config: config.tsbd.layers,
    each=lambda config: [one for one, _ in config.each()],
    inputs=inputs,
    plan=plan,
    rows=rows,
    files=files,
    table=lambda config, findings: ablation_page.tables(rows(config, findings), n=config.tsbd.n),
    descriptions={"ablation.html": "tables and figures", "ablation.json": "all numbers"},
    figures=lambda config, findings: {config.data.name: ablation_page.figure(rows(config, findings))},
    augment=lambda config: clean_augmentation(config.clean),
    batch_sizes=lambda config: tsbd.DEFENSE.batch_sizes(config),
)
"""What are the parts of TSBD worth?"""
