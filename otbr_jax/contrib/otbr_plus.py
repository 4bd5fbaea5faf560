"""OTBR with detection: images made from the network decide whether to repair, and choose gamma and lambda.

With its defaults the defence `otbr` is the published method. With `detection.gamma` it first detects whether there is
a backdoor, and chooses gamma and lambda itself. With `trigger_finetuning.triggers` it returns the network fine-tuned on
inverted triggers, with `distillation.targets` the distilled one.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax import plan as plans
from otbr_jax.contrib.detection_steps import (
    detection_steps,
    is_flagged,
    plain_findings,
    pruning_detector,
    settings_arrays,
)
from otbr_jax.contrib.distill import DistillationConfig, distill
from otbr_jax.contrib.images import SyntheticConfig, synthesize
from otbr_jax.contrib.pruning_detection import Findings, PruningDetectionConfig
from otbr_jax.contrib.trigger_finetuning import TriggerFinetuningConfig, TriggerFinetuningInfo, finetune_classes
from otbr_jax.defenses import otbr as published
from otbr_jax.defenses.defense import Defense, Outcome, count_neurons
from otbr_jax.defenses.grid import Built, Grid
from otbr_jax.defenses.otbr import Fused, OTBRConfig, Pruned, fuse_pruned
from otbr_jax.detectors.detector import conclude
from otbr_jax.detectors.verdict import FEWEST
from otbr_jax.errors import InputError
from otbr_jax.graph.graph import NeuronGraph
from otbr_jax.inversion import InvertedTriggers
from otbr_jax.plan import Plan, Report, Setup, Shown, Step, needs
from otbr_jax.settings import field, settings, wrong
from otbr_jax.steps.augment import augment
from otbr_jax.steps.fuse import FusionConfig, align, interpolate
from otbr_jax.steps.procedural import PredictedImages
from otbr_jax.steps.prune import neurons_to_prune, prune
from otbr_jax.steps.score import Scores
from otbr_jax.types import Augment, Batch, Network, Variables

SYNTHETIC = "images made from the network"
"""What gamma and lambda are chosen with, in words."""


@settings("sweep")
class SweepConfig:
    """The grid of settings that the report shows beside the chosen one; empty for none."""

    gamma: tuple[float, ...] = field(
        default=(0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3), at_least=0, at_most=1, doc="shares of neurons to prune."
    )
    lam: tuple[float, ...] = field(
        default=(0.25, 0.5, 0.625, 0.75, 1.0),
        at_least=0,
        at_most=1,
        doc="the paper's lambdas. The chosen one is measured too if it is not among them.",
    )
    screening_images: int = field(
        default=0,
        at_least=0,
        doc="on how many test images all settings are measured; the best few, by these, are then measured on all. 0 "
        "measures all settings on all images.",
    )


@settings("")
class OTBRSettings:
    """All settings of the defence `otbr`."""

    otbr: OTBRConfig = field(default=OTBRConfig(), doc="the published method.")
    detection: PruningDetectionConfig = field(
        formerly="suspicion",
        default=PruningDetectionConfig(),
        doc="whether there is a backdoor to repair, and which gamma and lambda, by images made from the network.",
    )
    distillation: DistillationConfig = field(
        default=DistillationConfig(), doc="how the suspicious network is distilled into the fused one."
    )
    trigger_finetuning: TriggerFinetuningConfig = field(
        formerly="patching",
        default=TriggerFinetuningConfig(),
        doc="how a network with a flagged class is fine-tuned on inverted triggers, instead of fused.",
    )
    sweep: SweepConfig = field(default=SweepConfig(), doc="settings that the report shows beside the chosen one.")

    def check(self) -> None:
        """Trigger fine-tuning and distillation exclude each other, and have as many images as they ask for."""
        finetunes, made = bool(self.trigger_finetuning.triggers), self.detection.synthetic.images
        if finetunes and not self.detection.gamma:
            raise wrong(self, "detection.gamma", "settings to try beside trigger_finetuning.triggers", found="none")
        if self.distills and finetunes:
            expected = "'none' beside trigger_finetuning.triggers, since only the fused network is distilled"
            raise wrong(self, "distillation.targets", expected)
        if self.distills and self.distillation.finetuning.batch_size > made:
            expected = f"at most {made}, detection.synthetic.images"
            raise wrong(self, "distillation.finetuning.batch_size", expected)
        if finetunes and self.trigger_finetuning.finetuning.batch_size > 3 * made:
            expected = f"at most {3 * made}, three times detection.synthetic.images"
            raise wrong(self, "trigger_finetuning.finetuning.batch_size", expected)
        if finetunes and self.trigger_finetuning.relearnings and self.trigger_finetuning.relearned > made:
            raise wrong(self, "trigger_finetuning.relearned", f"at most {made}, detection.synthetic.images")

    @property
    def detects(self) -> bool:
        """Whether a backdoor is detected first, and gamma and lambda are chosen."""
        return bool(self.detection.gamma)

    @property
    def distills(self) -> bool:
        """Whether the suspicious network is distilled into the fused one."""
        return self.distillation.targets != "none"

    @property
    def lams(self) -> tuple[float, ...]:
        """The lambdas of the grid, the chosen one among them, in order."""
        return tuple(sorted({*self.sweep.lam, self.otbr.fusion.lam})) if self.sweep.gamma and self.sweep.lam else ()


class Distilled(NamedTuple):
    """A distilled network."""

    variables: Variables


class TriggerFinetuned(NamedTuple):
    """A network fine-tuned on inverted triggers, and what happened."""

    variables: Variables
    info: TriggerFinetuningInfo


def make_procedural(
    setup: Setup, settings: SyntheticConfig, *, victim: Variables, key: jax.Array, report: Report | None
) -> PredictedImages:
    """Images made from the network, and its predictions."""
    made, info = synthesize(setup.network, victim, key=key, config=settings, on_step=report)
    logits = setup.network.answer(victim, made.images)
    return PredictedImages(Batch(made.images, jnp.argmax(logits, axis=-1).astype(jnp.int32)), info)


def prune_chosen(
    setup: Setup, settings: PruningDetectionConfig, *, victim: Variables, scores: Scores, detected: Findings, **_: Any
) -> Pruned:
    """Prunes the chosen share of neurons; none where no class is flagged."""
    counts, lams = settings_arrays(setup, settings)
    count = jnp.where(detected.detected.flagged, counts[detected.chosen // len(lams)], 0)
    return Pruned(*prune(victim, scores, setup.layers, count=count))


class Fusing(NamedTuple):
    """The settings of `fuse_chosen`: those that were tried, and how networks are fused."""

    detection: PruningDetectionConfig
    fusion: FusionConfig


def fuse_chosen(
    setup: Setup,
    settings: Fusing,
    *,
    detected: Findings,
    victim: Variables,
    scores: Scores,
    pruned: Pruned,
    **inputs: Any,
) -> Fused:
    """Fuses with the chosen lambda; 0 where no class is flagged."""
    _, lams = settings_arrays(setup, settings.detection)
    lam = jnp.where(detected.detected.flagged, lams[detected.chosen % len(lams)], 0.0)
    return fuse_pruned(setup, settings.fusion, victim=victim, scores=scores, pruned=pruned, lam=lam, **inputs)


def distill_fused(
    setup: Setup,
    settings: DistillationConfig,
    *,
    victim: Variables,
    fused: Fused,
    synthetic: PredictedImages,
    key: jax.Array,
    report: Report | None,
    detected: Findings | None = None,
) -> Distilled:
    """The fused network after distillation of the suspicious one; unchanged if no class is flagged."""
    del report

    def distilled() -> Variables:
        return distill_into(setup, settings, fused.variables, victim, synthetic, key=key)

    if detected is None:
        return Distilled(distilled())
    return Distilled(jax.lax.cond(detected.detected.flagged, distilled, lambda: fused.variables))


def distill_into(
    setup: Setup,
    config: DistillationConfig,
    variables: Variables,
    teacher: Variables,
    procedural: PredictedImages,
    *,
    key: jax.Array,
) -> Variables:
    """Distils a teacher into a network, on the images of `procedural`."""
    return distill(
        setup.network,
        variables,
        teacher,
        procedural.batch.images,
        key=key,
        config=config,
        augment=random_shift(config.crop_padding),
    )


class TriggerFinetuning(NamedTuple):
    """The settings of `finetune_suspects`: how networks are fine-tuned and images made, and the threshold."""

    trigger_finetuning: TriggerFinetuningConfig
    synthetic: SyntheticConfig
    threshold: float


def finetune_suspects(
    setup: Setup,
    settings: TriggerFinetuning,
    *,
    victim: Variables,
    synthetic: PredictedImages,
    detected: Findings,
    key: jax.Array,
    report: Report | None,
) -> TriggerFinetuned:
    """The network, fine-tuned on the triggers of flagged classes; unchanged if no class is flagged."""
    del report
    scores = detected.detected.scores
    if len(scores) < FEWEST:
        scores = jnp.full_like(scores, -jnp.inf)  # of so few classes none is flagged
    variables, info = finetune_classes(
        setup.network,
        victim,
        synthetic.batch,
        scores,
        threshold=settings.threshold,
        key=key,
        config=settings.trigger_finetuning,
        synthetic=settings.synthetic,
        augment=random_shift(settings.trigger_finetuning.crop_padding),
    )
    return TriggerFinetuned(variables, info)


def random_shift(crop_padding: int) -> Augment:
    """`(images, key) -> images`, each shifted by up to so many pixels."""
    return lambda images, key: augment(images, key=key, crop_padding=crop_padding, flip=False)


def plan(config: OTBRSettings) -> Plan:
    """unlearned, scores (, synthetic, inverted, detected), pruned, fused (, distilled or trigger_finetuned)."""
    unlearned, scores, pruned, fused = published.plan(config.otbr)
    steps = [unlearned, scores]
    detection, made = config.detection, config.detection.synthetic
    if config.detects or config.distills:
        title = "making images from the network"
        steps.append(Step("synthetic", make_procedural, needs("victim"), made, shown=Shown(title, total=made.steps)))
    if config.detects:
        steps += detection_steps(detection, config.otbr, images="synthetic")
        known = {**pruned.needs, "detected": "detected"}
        pruned = dataclasses.replace(pruned, run=prune_chosen, needs=known, settings=detection)
        fusing = Fusing(detection, config.otbr.fusion)
        known = {**fused.needs, "detected": "detected"}
        fused = dataclasses.replace(fused, run=fuse_chosen, needs=known, settings=fusing)
    steps += [pruned, fused]
    if config.distills:
        known = needs("victim", "fused", "synthetic", *(["detected"] if config.detects else []))
        steps.append(Step("distilled", distill_fused, known, config.distillation, shown=Shown("distillation")))
    if config.trigger_finetuning.triggers:
        settings = TriggerFinetuning(config.trigger_finetuning, made, detection.threshold)
        steps.append(
            Step(
                "trigger_finetuned",
                finetune_suspects,
                needs("victim", "synthetic", "detected"),
                settings,
                key="patched",
                shown=Shown("fine-tuning on inverted triggers"),
            )
        )
    return tuple(steps)


def is_calibrated(config: OTBRSettings) -> bool:
    """Whether detection is that of `configs/otbr_plus.py`, which clean networks were scored with."""
    usual = PruningDetectionConfig(gamma=(0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3), lam=(0.5, 0.75))
    own, names = config.detection, ("gamma", "lam", "synthetic", "patch", "perturbation", "agreement", "evidence")
    return config.otbr.unlearning == OTBRConfig().unlearning and all(
        getattr(own, name) == getattr(usual, name) for name in names
    )


DETECTOR = pruning_detector("otbr_plus", OTBRSettings, data="none", plan=plan, is_calibrated=is_calibrated)
"""The detector of this defence, if it detects at all: by pruning and fusing, on images made from the network."""


class OTBRPlusInfo(NamedTuple):
    """What was detected and chosen.

    Attributes:
      triggers: the suspicious network's, `{family: InvertedTriggers}`, one for each class.
      findings: which class is flagged, and which setting was chosen.
      gamma: share of neurons pruned in the fused network, which is returned unless `trigger_finetuning` is on.
      lam: the paper's lambda of that network; 0, as gamma, where no class is flagged.
      share: `[trigger_finetuning.classes, 1 + trigger_finetuning.relearnings]`, a row for each class: the share of the
        way that was chosen in each phase, see `trigger_finetuning`; None where nothing is fine-tuned.
    """

    triggers: Mapping[str, InvertedTriggers]
    findings: Findings
    gamma: jax.Array
    lam: jax.Array
    share: jax.Array | None


def otbr_plus(
    network: Network, variables: Variables, graph: NeuronGraph, *, key: jax.Array, config: OTBRSettings
) -> tuple[Variables, OTBRPlusInfo]:
    """Repairs a network without any data, or returns it unchanged. Pure; jits.

    Args:
      network: the functions of the network.
      variables: the suspicious network's variables.
      graph: its neuron graph; `config.otbr.layers` says which of its layers are scored, pruned and fused.
      key: typed PRNG key.
      config: the settings; `detection.gamma` are the shares to choose from.

    Raises:
      InputError: if there are no such layers, or there is nothing to choose from.
    """
    if not config.detects:
        raise InputError("detection.gamma: expected at least one, found none")
    setup = plans.set_up(network, graph, layers=config.otbr.layers)
    values = plans.run(plan(config), setup, {"victim": variables}, key=key)
    findings, lams = values["detected"], config.detection.lam
    gamma, lam = (
        jnp.where(findings.detected.flagged, jnp.array(shares)[place], 0.0)
        for shares, place in (
            (config.detection.gamma, findings.chosen // len(lams)),
            (lams, findings.chosen % len(lams)),
        )
    )
    share = values["trigger_finetuned"].info.share if "trigger_finetuned" in values else None
    return values[networks(config)[-1]].variables, OTBRPlusInfo(values["inverted"], findings, gamma, lam, share)


def networks(config: OTBRSettings) -> tuple[str, ...]:
    """The steps that are networks, the repaired one last."""
    more = {"distilled": config.distills, "trigger_finetuned": bool(config.trigger_finetuning.triggers)}
    return ("victim", "unlearned", "pruned", "fused", *(name for name, included in more.items() if included))


def build(
    setup: Setup,
    setting: jax.Array,
    *,
    config: OTBRSettings,
    victim: Variables,
    scores: Scores,
    key: jax.Array,
    synthetic: PredictedImages | None = None,
) -> Built:
    """Prunes and aligns once for all lambdas, which only interpolate: transport does not depend on them."""
    pruned, removed = prune(victim, scores, setup.layers, count=setting)
    fuse_key = plans.named_key(key, "fused")
    alignment = align(pruned, victim, scores, removed.pruned, setup.layers, config=config.otbr.fusion, key=fuse_key)

    def finish(lam: jax.Array) -> Variables:
        fused = interpolate(victim, alignment, lam=lam)
        if synthetic is None:
            return fused
        return distill_into(setup, config.distillation, fused, victim, synthetic, key=plans.named_key(key, "distilled"))

    transports = [(alignment.info.fused[name], plan) for name, plan in alignment.info.plans.items()]
    converged = jnp.all(jnp.stack([plan.converged | ~used for used, plan in transports]))
    error = jnp.max(jnp.stack([jnp.where(used, plan.marginal_error, 0.0) for used, plan in transports]))
    return Built({"pruned": pruned}, finish, {"converged": converged, "marginal_error": error})


def grid(config: OTBRSettings) -> Grid | None:
    """The pairs of a gamma and a lambda that are measured."""
    gammas = config.sweep.gamma
    if not config.lams:
        return None
    return Grid(
        axes={"gamma": gammas, "lambda": config.lams},
        settings=tuple((gamma,) for gamma in gammas),
        arrays=lambda setup: jnp.array([neurons_to_prune(gamma, setup.neurons) for gamma in gammas], jnp.int32),
        build=partial(build, config=config),
        needs=("victim", "scores", *(("synthetic",) if config.distills else ())),
        along=("gamma",),
        strength="gamma, share of neurons pruned",
        network="distilled" if config.distills else "fused",
        unit="gamma",
        inner=config.lams,
        screening=config.sweep.screening_images,
    )


def outcome(config: OTBRSettings, values: Mapping[str, Any]) -> Outcome:
    """What was chosen and done, and whether transport converged."""
    choice: dict[str, Any] = {"gamma": config.otbr.gamma, "lambda": config.otbr.fusion.lam, "chosen_by": "config"}
    if config.detects:
        choice = {"gamma": 0.0, "lambda": 0.0, "chosen_by": "no class flagged"}
        if is_flagged(values):
            tried = tuple(itertools.product(config.detection.gamma, config.detection.lam))
            gamma, lam = tried[int(values["detected"].chosen)]
            choice = {"gamma": gamma, "lambda": lam, "chosen_by": SYNTHETIC}
    info, pruned = values["fused"].info, values["pruned"].info.pruned
    used = [info.plans[name] for name, fused in info.fused.items() if fused]
    scored, removed = count_neurons(pruned)
    transport = {
        "converged": all(bool(plan.converged) for plan in used),
        "worst_marginal_error": max((float(plan.marginal_error) for plan in used), default=None),
        "most_iterations": max((int(plan.iterations) for plan in used), default=None),
    }
    shown = max(pruned, key=lambda layer: int(pruned[layer].sum()))
    return Outcome(
        choice=choice,
        done=f"{removed} of {scored} neurons pruned, {len(used)} layers fused",
        did="pruned",
        neurons={"scored": scored, "pruned": removed, "layers_fused": len(used)},
        touched=pruned,
        scores=values["scores"],
        scored="Which neurons random unlearning moved",
        warnings=_warnings(transport),
        verdict=conclude(DETECTOR, config, values) if config.detects else None,
        more={
            "detection": plain_findings(config.detection, values) if config.detects else None,
            "trigger_finetuned": _plain_finetuning(config, values),
            "transport": transport,
        },
        plan=(shown, info.plans[shown].matrix) if removed else None,
    )


def _warnings(transport: Mapping[str, Any]) -> list[str]:
    if transport["converged"]:
        return []
    return [
        f"transport did NOT converge: worst marginal error {transport['worst_marginal_error']:.2g}; "
        "raise otbr.fusion.transport.max_iterations or epsilon"
    ]


def _plain_finetuning(config: OTBRSettings, values: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The share that was chosen for each flagged class, and what is left of the backdoor; None without fine-tuning."""
    if "trigger_finetuned" not in values or not is_flagged(values):
        return None
    shares, info = config.trigger_finetuning.shares, values["trigger_finetuned"].info
    scores, classes = np.asarray(values["detected"].detected.scores), []
    for index, suspect in enumerate(np.argsort(-scores, stable=True)[: len(info.share)]):
        if scores[suspect] >= config.detection.threshold:
            chosen = [int(np.argmin(np.abs(np.array(shares) - share))) for share in info.share[index]]
            success, own = (float(rates[index][-1][chosen[-1]]) for rates in (info.success, info.own))
            share, *relearned = (shares[place] for place in chosen)
            classes.append(
                {"class": int(suspect), "share": share, "relearned": relearned, "success": success, "own": own}
            )
    return classes


DEFENSE = Defense(
    name="otbr",
    Config=OTBRSettings,
    data="none",
    layers=lambda config: config.otbr.layers,
    plan=plan,
    networks=networks,
    outcome=outcome,
    grid=grid,
    detector=lambda config: DETECTOR if config.detects else None,
    # The few images of fine-tuning and distillation are not worth splitting: every device has all of them.
    batch_sizes=lambda config: {"otbr.unlearning.batch_size": config.otbr.unlearning.batch_size},
    source="arXiv 2408.15861",
)
