"""The comparisons that TSBD stands on: what is set to zero, how it is fine-tuned, which neurons, how much data.

Every victim is repaired in several ways that differ in one thing each from TSBD as it is, for several shares n.
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
from otbr_jax.studies.study import Case, Found, Study, named_attacks, row_settings, row_subject, victim_fields
from otbr_jax.types import Batch, Variables
from otbr_jax.victims import evaluation
from otbr_jax.victims.config import VictimConfig
from otbr_jax.victims.evaluation import TestSet
from otbr_jax.victims.victims import test_set

ACTIVATION_IMAGES = 512
"""How many images, at most, tell how active neurons are, and which of them the trigger activates."""


class Variant(NamedTuple):
    """One way to repair.

    Attributes:
      choice: which neurons, `nwc` (those that changed most), `least active` on clean images, or `random`.
      scheme: what of them is set to zero: `sub-weights` (the share m of their weights that changed most),
        `all weights`, or `whole neurons` (also their biases and normalisation).
      finetuning: `activeness-aware` or `vanilla`.
      compared: the comparisons that it belongs to, and its name there.
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
"""The method as it is."""

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
    """The settings of one run: of the victim, and of what is done to it."""

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
        doc="names of attacks, each of which gets victims of its own; empty for the one of `attack`.",
    )
    tsbd: TSBDConfig = field(
        default=TSBDConfig(), doc="the method; `n` is the share that tables show, among `n` below."
    )
    clean: CleanConfig = field(default=CleanConfig(), doc="its clean images.")
    n: tuple[float, ...] = field(
        default=(0.1, 0.2, 0.3), at_least=0, at_most=1, doc="shares of neurons that every variant is run for."
    )
    poisoning_ratios: tuple[float, ...] = field(
        default=(0.05, 0.01), above=0, at_most=1, doc="of more victims, beside `attack.poisoning_ratio`."
    )
    fractions: tuple[float, ...] = field(
        default=(0.1, 0.01), above=0, at_most=1, doc="of more sets of clean images, beside `clean.fraction`."
    )
    top: float = field(
        default=0.1,
        above=0,
        at_most=1,
        doc="share of each layer's neurons of which the overlap with the trigger-activated ones is.",
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
        for attack in named_attacks(self):
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


def given(case: Case) -> Mapping[str, Any]:
    """The clean images, and the test set."""
    clean = case.run.session.clean(case.config.clean, seed=case.config.seed)
    images = Batch(jnp.asarray(clean.images.images), jnp.asarray(clean.images.labels))
    return {"clean": images, "test": test_set(case.run, case.victim)}


class Ablating(NamedTuple):
    """What `repair_in_every_way` is given."""

    variants: tuple[tuple[str, str, str], ...]
    n: tuple[float, ...]
    m: float
    finetuning: FinetuningConfig
    top: float


class Ablated(NamedTuple):
    """What was found in one victim.

    Attributes:
      reinitialized: after re-initialisation, `[variants, n]` each.
      finetuned: after fine-tuning, the same.
      overlap: `{choice: [layers]}`, share of the most trigger-activated neurons of a layer that are among the first of
        the choice, too.
    """

    reinitialized: Metrics
    finetuned: Metrics
    overlap: Mapping[str, jax.Array]


def plan(case: Case, given: Mapping[str, Any]) -> Plan:
    """TSBD up to the scores, and a step with all variants."""
    method = _fitted(case.config.tsbd, len(given["clean"].labels) // case.run.mesh.size * case.run.mesh.size)
    unlearned, scores, *_ = tsbd.plan(TSBDSettings(tsbd=method))
    variants, ns = variants_of(case.study, case.config), case.study.n
    settings = Ablating(
        tuple((v.choice, v.scheme, v.finetuning) for v in variants), ns, method.m, method.finetuning, case.study.top
    )
    step = Step(
        "ablated",
        repair_in_every_way,
        needs("victim", "unlearned", "scores", "clean", "test"),
        settings,
        key=ROOT,
        shown=Shown(f"variants: {case.config.attack.name}", total=len(variants) * len(ns), unit="run"),
    )
    return unlearned, scores, step


def repair_in_every_way(
    setup: Setup,
    settings: Ablating,
    *,
    victim: Variables,
    unlearned: Unlearned,
    scores: Scores,
    clean: Batch,
    test: TestSet,
    key: jax.Array,
    report: Report | None,
) -> Ablated:
    """Re-initialises, fine-tunes and measures a victim in every way, for every n, in one program."""
    choices = _choices(setup, scores, victim, clean, key=key)
    change = _changes(setup, victim, test)
    overlap = {
        name: jnp.stack([found.overlap for found in correlations(choice, change, top=settings.top)[1].values()])
        for name, choice in choices.items()
    }
    aware = settings.finetuning
    kinds = {"activeness-aware": aware, "vanilla": dataclasses.replace(aware, alpha=0.0)}
    used = [*dict.fromkeys(kind for _, _, kind in settings.variants)]

    def zeroed(choice: str, scheme: str, count: jax.Array) -> Variables:
        share = 1.0 if scheme == "all weights" else settings.m
        kind = "neurons" if scheme == "whole neurons" else "weights"
        return reinitialize(
            victim, unlearned.variables, choices[choice], setup.layers, count=count, share=share, scheme=kind
        )[0]

    def tuned(start: Variables, config: FinetuningConfig) -> Variables:
        return finetune(
            setup.network,
            start,
            clean,
            key=plans.named_key(key, "finetuned"),
            config=config,
            augment=setup.augment,
        )[0]

    def ask(variables: Variables) -> Metrics:
        return evaluation.measure(setup.network, variables, test)

    def one(drawn: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Metrics, Metrics]:
        which, kind, count = drawn
        ways: list[Callable[[], Variables]] = [
            partial(zeroed, choice, scheme, count) for choice, scheme, _ in settings.variants
        ]
        start = jax.lax.switch(which, ways)
        end = jax.lax.switch(kind, [partial(tuned, start, kinds[name]) for name in used])
        found = ask(start), ask(end)
        if report is not None:
            jax.debug.callback(report)
        return found

    counts = jnp.array([neurons_to_prune(n, setup.neurons) for n in settings.n], jnp.int32)
    shape = (len(settings.variants), len(counts))
    which = jnp.repeat(jnp.arange(shape[0]), shape[1])
    kind = jnp.array([used.index(kind) for _, _, kind in settings.variants])[which]
    found = jax.lax.map(one, (which, kind, jnp.tile(counts, shape[0])))
    reinitialized, repaired = (Metrics(*(field.reshape(shape) for field in metrics)) for metrics in found)
    return Ablated(reinitialized, repaired, overlap)


def _choices(setup: Setup, nwc: Scores, variables: Variables, clean: Batch, *, key: jax.Array) -> dict[str, Scores]:
    """Scores of neurons, those to be taken first the highest."""
    nwc = {layer.name: nwc[layer.name] for layer in setup.layers}
    active = trigger_activation.clean_activation(
        setup.network, variables, setup.network.prepare(clean.images[:ACTIVATION_IMAGES]), setup.layers
    )
    least = {name: -values for name, values in active.items()}
    drawn = trigger_activation.random_scores(nwc, key=plans.named_key(key, "random"))
    return {"nwc": nwc, "least active": least, "random": drawn}


def _changes(setup: Setup, variables: Variables, test: TestSet) -> Scores:
    """TAC, on test images that the attacker wants another answer for, as many as are looked at at most."""
    others = test.labels != test.goals
    # The first of them; where there are fewer than that, some twice.
    places = jnp.nonzero(others, size=len(others), fill_value=0)[0]
    chosen = places[jnp.arange(min(ACTIVATION_IMAGES, len(others))) % jnp.maximum(jnp.sum(others), 1)]
    clean, triggered = (setup.network.prepare(images[chosen]) for images in (test.clean, test.triggered))
    return trigger_activation.trigger_activated_change(setup.network, variables, clean, triggered, setup.layers)


def rows(config: AblationConfig, found: Sequence[Found]) -> list[dict[str, Any]]:
    """A row of results for each run and variant, but for commit, hardware and date; fractions in [0, 1]."""
    subject, own, result = row_subject(config), row_settings(config), []
    for one in found:
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
                | {"clean_fraction": one.config.clean.fraction, "clean_images": len(one.given["clean"].labels)}
                | {name: getattr(variant, name) for name in ("choice", "scheme", "finetuning")}
                | {"compared": dict(variant.compared), "n": config.tsbd.n, "m": config.tsbd.m}
                | {"victim": _plain(one.metrics), "reached_chance": bool(one.values["unlearned"].info.reached)}
                | {"curve": curve}
                | {"tac_overlap": {"layers": _round(np.mean(overlap)), "last": _round(overlap[-1]), "top": config.top}}
                | {"data": one.provenance, "config": own | {"attack": attack.settings()}}
            )
    return result


def _fitted(config: TSBDConfig, images: int) -> TSBDConfig:
    """The same with batches of at most so many images."""
    unlearning, tuning = config.unlearning, config.finetuning
    return dataclasses.replace(
        config,
        unlearning=dataclasses.replace(unlearning, batch_size=min(unlearning.batch_size, images)),
        finetuning=dataclasses.replace(tuning, batch_size=min(tuning.batch_size, images)),
    )


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _plain(found: Metrics) -> dict[str, float]:
    return {name: _round(value) for name, value in found._asdict().items()}


def _round(value: Any) -> float:
    return round(float(value), 6)


def files(config: AblationConfig, found: Sequence[Found]) -> dict[str, str]:
    """`ablation.json` with all rows, and `ablation.html`, a page with the tables and figures."""
    all_rows = rows(config, found)
    return {
        "ablation.json": json.dumps(all_rows, indent=1) + "\n",
        "ablation.html": ablation_page.render(all_rows, n=config.tsbd.n),
    }


ABLATION = Study(
    name="ablation",
    Config=AblationConfig,
    layers=lambda config: config.tsbd.layers,
    each=lambda config: [one for one, _ in config.each()],
    given=given,
    plan=plan,
    rows=rows,
    files=files,
    table=lambda config, found: ablation_page.tables(rows(config, found), n=config.tsbd.n),
    described={"ablation.html": "tables and figures", "ablation.json": "all numbers"},
    figures=lambda config, found: {config.data.name: ablation_page.figure(rows(config, found))},
    augment=lambda config: clean_augmentation(config.clean),
    batch_sizes=lambda config: tsbd.DEFENSE.batch_sizes(config),
)
"""What are the parts of TSBD worth?"""
